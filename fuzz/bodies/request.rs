//! The head of a request: read, decided, and cleaned as it is sent on.

use std::sync::LazyLock;

use dpa_sidecar::config;
use dpa_sidecar::config::Settings;
use dpa_sidecar::decide::decision::Decision;
use dpa_sidecar::decide::decision::Outcome;
use dpa_sidecar::decide::facts::Customers;
use dpa_sidecar::decide::facts::Fact;
use dpa_sidecar::decide::facts::Facts;
use dpa_sidecar::decide::facts::Scope;
use dpa_sidecar::decide::facts::Transport;
use dpa_sidecar::decide::facts::Why;
use dpa_sidecar::gate::Ids;
use dpa_sidecar::gate::weigh;
use dpa_sidecar::observed::Observed;
use dpa_sidecar::observed::Peer;
use dpa_sidecar::observed::Target;
use dpa_sidecar::observed::Unreadable;
use dpa_sidecar::policy;
use dpa_sidecar::policy::Policy;
use dpa_sidecar::policy::problem::Source;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Method;
use http::Uri;
use http::Version;
use http::header;
use jiff::Timestamp;

/// Header lines that are read, as the settings limit them.
const MAX_HEADERS: usize = 100;

static POLICY: LazyLock<Policy> = LazyLock::new(|| {
    let text = include_str!("../../config/policy.yaml").to_owned();
    let source = Source { path: "policy.yaml".to_owned(), text };
    policy::compile(&[source], &["policy.yaml".to_owned()], None, None).0.unwrap()
});

static SETTINGS: LazyLock<Settings> = LazyLock::new(|| {
    let source = Source { path: "request.yaml".to_owned(), text: include_str!("request.yaml").to_owned() };
    let (settings, problems) = config::compile(&source, &|_| None);
    settings.unwrap_or_else(|| panic!("{problems:?}"))
});

static TIME: LazyLock<Timestamp> = LazyLock::new(|| "2026-06-15T12:00:00Z".parse().unwrap());

struct Head {
    method: Method,
    uri: Uri,
    version: Version,
    headers: HeaderMap,
}

impl Head {
    /// Lines that are no header are passed over, so that one of them does not hide the others.
    fn of(data: &[u8]) -> Option<Self> {
        let mut lines = data.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let mut words = lines.next()?.split(|byte| *byte == b' ');
        let method = Method::from_bytes(words.next()?).ok()?;
        let uri = Uri::try_from(words.next()?).ok()?;
        let version = if words.next() == Some(b"HTTP/1.0") { Version::HTTP_10 } else { Version::HTTP_11 };
        let mut headers = HeaderMap::new();
        for line in lines.take_while(|line| !line.is_empty()).take(MAX_HEADERS) {
            let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
            let (name, value) = line.split_at(colon);
            let value = value.strip_prefix(b":").unwrap_or_default().trim_ascii();
            if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
                headers.append(name, value);
            }
        }
        Some(Self { method, uri, version, headers })
    }

    fn weigh(
        &self,
        target: &Target,
        host: &str,
        peer: &Peer,
    ) -> Result<(Facts<'static>, Decision<'static>), Unreadable> {
        let seen = Observed {
            method: &self.method,
            target: target.clone(),
            host: host.to_owned(),
            headers: &self.headers,
            peer,
            egress: None,
            storage: SETTINGS.storage_location,
            time: *TIME,
        };
        weigh(&seen, &POLICY, &SETTINGS.trust, &SETTINGS.routes)
    }
}

fn peer(address: [u8; 4]) -> Peer {
    let transport = Transport { tls: None, client_certificate: false, is_unix: false };
    Peer { address: Some(address.into()), transport, certificate: Fact::Unknown(Why::Missing), until: None }
}

/// What is decided on is what is sent on, and a permit rests on facts.
pub(crate) fn run(data: &[u8]) {
    let Some(head) = Head::of(data) else { return };
    let ids = Ids::of(&head.headers, *TIME);
    assert!(ids.trace.len() == 32 && ids.trace.bytes().all(|byte| byte.is_ascii_hexdigit()), "{ids:?}");

    let Ok((target, host)) = Target::read(&head.uri, &head.headers, head.version) else { return };
    canonical(&target);
    let again = Target::read(target.uri(), &head.headers, head.version);
    assert_eq!(again, Ok((target.clone(), host.clone())), "what is sent on would be read otherwise");
    assert!(head.headers.get_all(header::CONTENT_LENGTH).iter().count() < 2);

    let weighed = head.weigh(&target, &host, &peer([127, 0, 0, 1]));
    permitted_on_facts(&weighed);
    let unproven = head.weigh(&target, &host, &peer([192, 0, 2, 1]));
    if let Ok((facts, decision)) = &unproven {
        let is_permitted = matches!(decision.outcome, Outcome::Permit { .. });
        assert!(!is_permitted || facts.scope == Scope::Outside, "nobody's word was taken: {facts:?}");
    }
}

/// Plain characters, no second reading.
fn canonical(target: &Target) {
    let text = target.as_str();
    assert!(text.bytes().all(|byte| byte.is_ascii_graphic()), "{text}");
    assert_eq!(target.uri().to_string(), text);
    let path = target.path();
    assert!(path.starts_with('/') && !path.contains("//"), "{path}");
    assert!(!path.contains(['\\', ';', '?', '#', '"', '<', '>', '^', '`', '{', '|', '}']), "{path}");
    assert!(!path.split('/').any(|part| part == "." || part == ".."), "{path}");
    for (place, _) in text.match_indices('%') {
        let hex = &text[place + 1..place + 3];
        assert_eq!(hex, hex.to_ascii_uppercase(), "{text}");
        let byte = u8::from_str_radix(hex, 16).unwrap();
        assert!(!byte.is_ascii_alphanumeric() && !b"-._~\0".contains(&byte), "{text}");
        if place < path.len() {
            assert!(!b"/\\".contains(&byte) && !byte.is_ascii_control(), "{text}");
        }
    }
    for name in ["customer", "purpose", "subscriber", ""] {
        let _value = target.query_value(name);
    }
}

fn permitted_on_facts(weighed: &Result<(Facts<'_>, Decision<'_>), Unreadable>) {
    let Ok((facts, decision)) = weighed else { return };
    match (&decision.outcome, facts.scope) {
        (Outcome::Deny(reasons), _) => assert!(!reasons.is_empty(), "denied for nothing"),
        (Outcome::Permit { .. }, Scope::Unmapped) => panic!("a request without a route was permitted"),
        (Outcome::Permit { .. }, Scope::Outside) => assert!(facts.route.is_some()),
        (Outcome::Permit { .. }, Scope::Within) => {
            assert!(facts.caller.known().is_some_and(|caller| caller.party.is_some()), "{facts:?}");
            assert!(matches!(facts.customers.known(), Some(Customers::One(_))), "{facts:?}");
            assert!(facts.purpose.known().is_some() && facts.operation.known().is_some(), "{facts:?}");
        }
    }
}
