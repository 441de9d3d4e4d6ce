//! The headers of a request, made anew for the service: any lines, from a peer that the first byte chooses.

use std::sync::LazyLock;

use dpa_sidecar::decide::facts::Fact;
use dpa_sidecar::decide::facts::Transport;
use dpa_sidecar::decide::facts::Why;
use dpa_sidecar::forward::headers::HeaderRules;
use dpa_sidecar::forward::headers::Proven;
use dpa_sidecar::forward::headers::TrustedHeader;
use dpa_sidecar::forward::headers::rebuild_request;
use dpa_sidecar::gate::Ids;
use dpa_sidecar::identify::TrustedPeers;
use dpa_sidecar::observed::Peer;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Version;
use jiff::Timestamp;

/// Header lines that are read, as the settings limit them.
const MAX_HEADERS: usize = 100;

static RULES: LazyLock<HeaderRules> = LazyLock::new(|| HeaderRules {
    identity: ["dpa-caller", "x-caller", "x_login"].map(HeaderName::from_static).to_vec(),
    keeps_tokens: true,
    trusted: vec![TrustedHeader {
        name: HeaderName::from_static("x-real-ip"),
        peers: TrustedPeers { networks: vec!["127.0.0.1/32".parse().unwrap()], ..TrustedPeers::default() },
    }],
    server_timing: false,
});

/// What the sidecar sets.
const SET: [&str; 9] = [
    "dpa-context",
    "dpa-decision-id",
    "forwarded",
    "traceparent",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-request-id",
];

fn read(lines: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let lines = lines.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    for line in lines.take_while(|line| !line.is_empty()).take(MAX_HEADERS) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    headers
}

/// Every header that may pass does, with all its values; nothing that a caller says of itself does; what the sidecar
/// sets is there once and is what was proven.
pub(crate) fn run(data: &[u8]) {
    let Some((kind, lines)) = data.split_first() else { return };
    let address = match kind % 4 {
        0 => Some("127.0.0.1".parse().unwrap()),
        1 => Some("192.0.2.1".parse().unwrap()),
        2 => Some("2001:db8::1".parse().unwrap()),
        _ => None,
    };
    let transport = Transport { tls: None, client_certificate: false, is_unix: address.is_none() };
    let peer = Peer { address, transport, certificate: Fact::Unknown(Why::Missing), until: None };
    let version = if kind & 4 == 0 { Version::HTTP_11 } else { Version::HTTP_10 };
    let context = HeaderValue::from_static("purpose=\"customer_support\"");
    let context = (kind & 8 == 0).then_some(&context);
    let given = read(lines);
    let ids = Ids::of(&given, Timestamp::UNIX_EPOCH);
    let proven = Proven { peer: &peer, version, time: Timestamp::UNIX_EPOCH, ids: &ids, context };
    let mut sent = given.clone();
    rebuild_request(&mut sent, &RULES, &proven);

    let named: Vec<String> = given
        .get_all("connection")
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(|name| String::from_utf8_lossy(name.trim_ascii()).to_ascii_lowercase())
        .collect();
    let is_bearer = |value: &HeaderValue| value.as_bytes().to_ascii_lowercase().starts_with(b"bearer");
    for name in given.keys().filter(|name| !SET.contains(&name.as_str())) {
        let before: Vec<_> = given.get_all(name).iter().collect();
        let after: Vec<_> = sent.get_all(name).iter().collect();
        if name == "te" || name == "trailer" {
            said_anew(name.as_str(), &before, &after);
            continue;
        }
        if name == "authorization" && before.iter().any(|value| is_bearer(value)) {
            assert!(after.is_empty() || after == before, "a part of {name} passed");
        } else if may_pass(name.as_str(), &given, &named, *kind % 4 == 0) {
            let is_of_another_trace = name == "tracestate" && ids.new_traceparent.is_some();
            assert!(before == after || (is_of_another_trace && after.is_empty()), "{name} was lost");
        } else {
            assert!(after.is_empty(), "{name} passed");
        }
    }
    assert!(sent.keys().all(|name| given.contains_key(name) || SET.contains(&name.as_str())), "from nowhere: {sent:?}");
    set_once(&sent, &given, &proven);
    let mut twice = sent.clone();
    rebuild_request(&mut twice, &RULES, &proven);
    assert_eq!(twice, sent);
}

/// What is said of trailers is a part of what was said, and nothing that would name another message.
fn said_anew(name: &str, before: &[&HeaderValue], after: &[&HeaderValue]) {
    assert!(after.len() < 2, "{name} twice");
    let words = |values: &[&HeaderValue]| -> Vec<String> {
        let all = values.iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        all.map(|word| String::from_utf8_lossy(word.trim_ascii()).to_ascii_lowercase()).collect()
    };
    let (before, after) = (words(before), words(after));
    assert!(after.iter().all(|word| before.contains(word)), "{name}: {after:?}");
    let forbidden =
        ["content-length", "transfer-encoding", "host", "authorization", "dpa-caller", "x-caller", "te", "trailer"];
    let is_good = |word: &String| match name {
        "te" => word == "trailers",
        _ => !word.starts_with("dpa-") && !forbidden.contains(&word.as_str()),
    };
    assert!(after.iter().all(is_good), "{name}: {after:?}");
}

fn set_once(sent: &HeaderMap, given: &HeaderMap, proven: &Proven<'_>) {
    let Proven { peer, version, ids, context, .. } = proven;
    let host = given.get("host").map(HeaderValue::as_bytes);
    // On loopback it is no caller's.
    let address = peer.address.filter(|address| !address.is_loopback()).map(|address| address.to_string());
    let via = if *version == Version::HTTP_10 { "1.0 dpa-sidecar" } else { "1.1 dpa-sidecar" };
    let id = ids.decision.to_string();
    let table: [(&str, Option<&[u8]>); 6] = [
        ("dpa-context", context.map(HeaderValue::as_bytes)),
        ("dpa-decision-id", Some(id.as_bytes())),
        ("via", Some(via.as_bytes())),
        ("x-forwarded-for", address.as_ref().map(|address| address.as_bytes())),
        ("x-forwarded-host", host),
        ("x-forwarded-proto", Some(b"http")),
    ];
    for (name, expected) in table {
        let values: Vec<&[u8]> = sent.get_all(name).iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(values, expected.into_iter().collect::<Vec<_>>(), "{name}");
    }
    for name in ["forwarded", "traceparent", "x-request-id"] {
        assert_eq!(sent.get_all(name).iter().count(), 1, "{name}");
    }
    let forwarded = sent["forwarded"].to_str().unwrap();
    assert!(forwarded.ends_with("proto=http") && forwarded.matches("proto=").count() >= 1, "{forwarded}");
    assert_eq!(forwarded.starts_with("for="), address.is_some(), "{forwarded}");
    assert!(forwarded.matches('"').count() % 2 == 0, "{forwarded}");
    assert!(sent["traceparent"].to_str().unwrap().contains(&ids.trace));
    let request_id = sent["x-request-id"].as_bytes();
    assert!((1..=128).contains(&request_id.len()) && request_id.iter().all(u8::is_ascii_graphic), "{request_id:?}");
}

fn may_pass(name: &str, given: &HeaderMap, named: &[String], is_listed: bool) -> bool {
    let needed = ["host", "content-length", "traceparent", "tracestate", "x-request-id"];
    if named.iter().any(|hop| hop == name) && !needed.contains(&name) {
        return false;
    }
    if name == "x-real-ip" {
        return is_listed;
    }
    let is_spelt_otherwise = name.contains('_');
    let name = name.replace('_', "-");
    let is_there_too = given.contains_key(&name) && !named.contains(&name);
    if is_spelt_otherwise && (name.starts_with("content-") || name == "x-request-id" || is_there_too) {
        return false;
    }
    let stops = [
        "connection",
        "expect",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "client-ip",
        "forwarded",
        "forwarded-for",
        "http2-settings",
        "method-override",
        "proxy",
        "remote-addr",
        "remote-user",
        "true-client-ip",
        "via",
        "x-caller",
        "x-cluster-client-ip",
        "x-forward-for",
        "x-host",
        "x-http-destinationurl",
        "x-http-method",
        "x-http-method-override",
        "x-http-path-override",
        "x-login",
        "x-method",
        "x-method-override",
        "x-originating-ip",
        "x-override-url",
        "x-real-ip",
    ];
    let beginnings = [
        "cf-client-",
        "cf-connecting-",
        "client-cert",
        "dpa-",
        "fastly-client-",
        "l5d-",
        "spiffe-",
        "ssl-client",
        "tls-client-",
        "wl-proxy-",
        "x-amzn-mtls-",
        "x-amzn-oidc-",
        "x-arr-",
        "x-auth-request-",
        "x-authenticated-",
        "x-client-",
        "x-dpa-",
        "x-endpoint-api-",
        "x-envoy-",
        "x-forwarded",
        "x-goog-authenticated-",
        "x-istio-",
        "x-ms-client-principal",
        "x-mtls-",
        "x-original-",
        "x-remote-",
        "x-rewrite-",
        "x-spiffe",
        "x-ssl-",
        "x-svid",
        "x-tls-",
    ];
    !stops.contains(&name.as_str()) && !beginnings.iter().any(|beginning| name.starts_with(beginning))
}
