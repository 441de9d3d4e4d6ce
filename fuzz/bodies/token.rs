//! Tokens: a header `Authorization`, a token that is signed for what it says, a key set.

use std::sync::Arc;
use std::sync::LazyLock;

use arc_swap::ArcSwap;
use aws_lc_rs::signature::ED25519;
use aws_lc_rs::signature::Ed25519KeyPair;
use aws_lc_rs::signature::KeyPair as _;
use aws_lc_rs::signature::UnparsedPublicKey;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dpa_sidecar::decide::facts::Fact;
use dpa_sidecar::decide::facts::Flaw;
use dpa_sidecar::decide::facts::Transport;
use dpa_sidecar::decide::facts::Why;
use dpa_sidecar::identify::Proven;
use dpa_sidecar::identify::Trust;
use dpa_sidecar::identify::Way;
use dpa_sidecar::identify::identify;
use dpa_sidecar::identify::key_set::Algorithm;
use dpa_sidecar::identify::key_set::KeySet;
use dpa_sidecar::identify::token::ClaimNames;
use dpa_sidecar::identify::token::Issuer;
use dpa_sidecar::identify::token::Tokens;
use dpa_sidecar::observed::Observed;
use dpa_sidecar::observed::Peer;
use dpa_sidecar::observed::Target;
use dpa_sidecar::policy;
use dpa_sidecar::policy::Policy;
use dpa_sidecar::policy::problem::Source;
use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use http::Uri;
use http::Version;
use http::header;
use jiff::Timestamp;
use serde_json::Value;

const ISSUER: &str = "https://id.example";
const AUDIENCE: &str = "api";

/// A key that everybody knows.
static PAIR: LazyLock<Ed25519KeyPair> = LazyLock::new(|| Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap());

static TIME: LazyLock<Timestamp> = LazyLock::new(|| "2026-06-15T12:00:00Z".parse().unwrap());

static TRUST: LazyLock<Trust> = LazyLock::new(|| {
    let x = URL_SAFE_NO_PAD.encode(PAIR.public_key());
    let set = format!(r#"{{"keys": [{{"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": "{x}"}}]}}"#);
    let name = |name: &str| Some(name.to_owned());
    let issuer = Issuer {
        name: ISSUER.to_owned(),
        audience: AUDIENCE.to_owned(),
        algorithms: vec![Algorithm::EdDsa, Algorithm::Es256],
        claims: ClaimNames { purpose: name("p"), customer: name("c"), instruction: name("i"), location: name("l") },
        keys: Arc::new(ArcSwap::from_pointee(KeySet::read(set.as_bytes()).unwrap())),
    };
    let tokens = Tokens { issuers: vec![issuer], most_bytes: 4096, are_forwarded: false };
    Trust { ways: vec![Way::Tokens(tokens)] }
});

/// A policy in which nobody has a token.
static POLICY: LazyLock<Policy> = LazyLock::new(|| {
    let text = include_str!("../../config/policy.yaml").to_owned();
    let source = Source { path: "policy.yaml".to_owned(), text };
    policy::compile(&[source], &["policy.yaml".to_owned()], None, None).0.unwrap()
});

fn proven(headers: &HeaderMap) -> Proven {
    let mut host = HeaderMap::new();
    host.insert(header::HOST, HeaderValue::from_static("data.example"));
    let (target, host) = Target::read(&Uri::from_static("/"), &host, Version::HTTP_11).unwrap();
    let transport = Transport { tls: None, client_certificate: false, is_unix: false };
    let peer = Peer { address: None, transport, certificate: Fact::Unknown(Why::Missing), until: None };
    let seen = Observed {
        method: &Method::GET,
        target,
        host,
        headers,
        peer: &peer,
        egress: None,
        storage: "US".parse().unwrap(),
        time: *TIME,
    };
    let proven = identify(&seen, &TRUST, &POLICY);
    if TRUST.tokens().unwrap().lacks_key(headers).is_some() {
        assert_eq!(proven.identity, Fact::Unknown(Why::Flawed(Flaw::UnknownKey)), "waits for a key in vain");
    }
    proven
}

/// What is believed is signed, by the one key, and is one token alone.
fn authorization(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n') {
        let Ok(value) = HeaderValue::from_bytes(line) else { return };
        headers.append(header::AUTHORIZATION, value);
    }
    let proven = proven(&headers);
    let Some(identity) = proven.identity.known() else { return };
    assert!(identity.as_str().starts_with("jwt:https://id.example|"), "{identity}");
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { panic!("two headers were read as one") };
    let (scheme, token) = value.to_str().unwrap().split_once(' ').unwrap();
    assert!(scheme.eq_ignore_ascii_case("bearer") && token.len() <= 4096 + 4096, "{scheme}");
    let (message, signature) = token.trim_start().rsplit_once('.').unwrap();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let key = UnparsedPublicKey::new(&ED25519, PAIR.public_key().as_ref());
    assert!(key.verify(message.as_bytes(), &signature).is_ok(), "a token that nobody signed");
}

/// A token of which the signature is right is believed only if all that it says is right too.
fn signed(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == b'\n');
    let (Some(head), Some(payload)) = (parts.next(), parts.next()) else { return };
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(head), URL_SAFE_NO_PAD.encode(payload));
    let token = format!("Bearer {message}.{}", URL_SAFE_NO_PAD.encode(PAIR.sign(message.as_bytes())));
    let mut headers = HeaderMap::new();
    headers.insert(header::AUTHORIZATION, HeaderValue::from_str(&token).unwrap());
    let proven = proven(&headers);
    let Some(identity) = proven.identity.known() else { return };
    let head: Value = serde_json::from_slice(head).unwrap();
    assert_eq!(head["alg"], "EdDSA");
    assert!(head.get("kid").is_none_or(|kid| kid == "k"), "{head}");
    for name in ["jku", "jwk", "x5u", "x5c", "crit", "b64", "enc", "zip"] {
        assert_eq!(head.get(name), None, "{name}");
    }
    // Deeper than the library reads into values: then nothing there is a claim of ours.
    let Ok(payload) = serde_json::from_slice::<Value>(payload) else { return };
    assert_eq!(payload["iss"], ISSUER);
    assert_eq!(Some(identity.as_str()), payload["sub"].as_str().map(|sub| format!("jwt:{ISSUER}|{sub}")).as_deref());
    let is_meant = |value: &Value| value == AUDIENCE;
    assert!(is_meant(&payload["aud"]) || payload["aud"].as_array().is_some_and(|list| list.iter().any(is_meant)));
    let now = TIME.as_duration().as_secs_f64();
    assert!(payload["exp"].as_f64().is_some_and(|end| end > now), "{}", payload["exp"]);
    assert!(payload.get("nbf").is_none_or(|begin| begin.as_f64().is_some_and(|begin| begin <= now + 30.0)));
    let claims = &proven.claims;
    assert_eq!(claims.purpose.as_deref(), payload.get("p").map(|text| text.as_str().unwrap()));
    assert_eq!(claims.instruction.as_deref(), payload.get("i").map(|text| text.as_str().unwrap()));
    assert_eq!(claims.customer.is_some(), payload.get("c").is_some());
    assert!(claims.customer.iter().flatten().count() <= 16);
    assert!(claims.location.known().is_none_or(|place| payload["l"] == place.to_string()), "{:?}", claims.location);
}

/// A set that is taken has keys, and nothing in it is more than one token's key.
fn key_set(data: &[u8]) {
    let Ok(set) = KeySet::read(data) else { return };
    assert!((1..=256).contains(&set.count()), "{}", set.count());
    for algorithm in Algorithm::ALL {
        for kid in [None, Some("k"), Some("")] {
            let is_there = set.pick(kid, algorithm).is_ok();
            assert!(!(is_there && set.lacks(kid, algorithm)), "{kid:?} {algorithm}");
        }
    }
}

/// The first byte says what the rest is.
pub(crate) fn run(data: &[u8]) {
    match data.split_first() {
        Some((b'a', rest)) => authorization(rest),
        Some((b's', rest)) => signed(rest),
        Some((b'k', rest)) => key_set(rest),
        _ => {}
    }
}
