//! Tokens: who is believed, what their claims say, and what becomes of the keys of their issuers.

use std::io::Read as _;
use std::io::Write as _;
use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1_SIGNING;
use aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
use aws_lc_rs::signature::ECDSA_P384_SHA384_FIXED_SIGNING;
use aws_lc_rs::signature::EcdsaKeyPair;
use aws_lc_rs::signature::Ed25519KeyPair;
use aws_lc_rs::signature::KeyPair as _;
use aws_lc_rs::signature::RSA_PKCS1_SHA256;
use aws_lc_rs::signature::RSA_PSS_SHA256;
use aws_lc_rs::signature::RSA_PSS_SHA384;
use aws_lc_rs::signature::RsaEncoding;
use aws_lc_rs::signature::RsaKeyPair;
use aws_lc_rs::signature::RsaPublicKeyComponents;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use base64::engine::general_purpose::URL_SAFE;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dpa_sidecar::decide::facts::Fact;
use dpa_sidecar::decide::facts::Flaw;
use dpa_sidecar::decide::facts::Transport;
use dpa_sidecar::decide::facts::Why;
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
use http::HeaderMap;
use http::Method;
use http::Uri;
use http::Version;
use serde_json::Value;
use serde_json::json;

use crate::support::Answer;
use crate::support::CARE_DESK;
use crate::support::Folder;
use crate::support::Head;
use crate::support::ROLLUP;
use crate::support::SUBSCRIBER;
use crate::support::Setup;
use crate::support::Sidecar;
use crate::support::Upstream;
use crate::support::out;
use crate::support::repository;
use crate::support::run;

pub(crate) const ISSUER: &str = "https://id.lumenfield.example";
const OTHER_ISSUER: &str = "https://id.adsync.example";

/// A key pair of an issuer, or a stolen secret.
pub(crate) enum Signer {
    Ec(EcdsaKeyPair),
    Rsa(RsaKeyPair, &'static dyn RsaEncoding),
    Ed(Ed25519KeyPair),
    Secret(Vec<u8>),
}

pub(crate) fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn rsa() -> RsaKeyPair {
    RsaKeyPair::generate(KeySize::Rsa2048).unwrap()
}

pub(crate) fn p256() -> Signer {
    Signer::Ec(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
}

impl Signer {
    fn sign(&self, message: &str) -> Vec<u8> {
        let message = message.as_bytes();
        match self {
            Self::Ec(pair) => pair.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec(),
            Self::Rsa(pair, encoding) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(*encoding, &SystemRandom::new(), message, &mut signature).unwrap();
                signature
            }
            Self::Ed(pair) => pair.sign(message).as_ref().to_vec(),
            Self::Secret(secret) => hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message).as_ref().to_vec(),
        }
    }

    /// The public half as a JWK, with what `more` says.
    pub(crate) fn jwk(&self, more: Value) -> Value {
        let mut jwk = match self {
            Self::Ec(pair) => {
                let point = &pair.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                let curve = if x.len() == 32 { "P-256" } else { "P-384" };
                json!({"kty": "EC", "crv": curve, "x": b64(x), "y": b64(y)})
            }
            Self::Rsa(pair, _) => {
                let public = RsaPublicKeyComponents::<Vec<u8>>::from(pair.public_key());
                json!({"kty": "RSA", "n": b64(public.n), "e": b64(public.e)})
            }
            Self::Ed(pair) => json!({"kty": "OKP", "crv": "Ed25519", "x": b64(pair.public_key())}),
            Self::Secret(secret) => json!({"kty": "oct", "k": b64(secret)}),
        };
        jwk.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        jwk
    }

    fn token(&self, header: impl AsRef<[u8]>, payload: impl AsRef<[u8]>) -> String {
        let message = format!("{}.{}", b64(header), b64(payload));
        let signature = b64(self.sign(&message));
        format!("{message}.{signature}")
    }
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// Claims of the care desk, with these changed; a null takes one away.
pub(crate) fn claims(changes: Value) -> Value {
    let mut claims = json!({"iss": ISSUER, "aud": "subscriber-api", "sub": "care-desk", "exp": now() + 600});
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    claims
}

/// A token of the care desk with these claims changed, signed by this key of that `kid`.
pub(crate) fn token(signer: &Signer, algorithm: &str, kid: &str, changes: Value) -> String {
    let header = json!({"alg": algorithm, "typ": "JWT", "kid": kid});
    signer.token(header.to_string(), claims(changes).to_string())
}

/// The sample policy, with identities of tokens.
pub(crate) fn policy() -> String {
    let text = std::fs::read_to_string(repository("config/policy.yaml")).unwrap();
    [("care", "care-desk"), ("care", "care-roaming"), ("insights", "rollup")].iter().fold(text, |text, (team, name)| {
        let known = format!("[\"spiffe://lumenfield.example/ns/{team}/sa/{name}\"]");
        let more = format!("[\"spiffe://lumenfield.example/ns/{team}/sa/{name}\", \"jwt:{ISSUER}|{name}\"]");
        assert!(text.contains(&known), "{name}");
        text.replace(&known, &more)
    })
}

fn free_address() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// A sidecar that believes what `identity` says.
pub(crate) struct Given {
    identity: String,
    pub(crate) enforcement: &'static str,
    pub(crate) health: String,
    pub(crate) more: &'static str,
}

impl Given {
    /// Entries of `identity`, in flow style.
    pub(crate) fn identity(entries: &str) -> Self {
        let identity = format!("[{entries}]");
        Self { identity, enforcement: "enforce", health: free_address(), more: "" }
    }

    pub(crate) fn text(&self, upstream: &str) -> String {
        let Self { identity, enforcement, health, more } = self;
        format!(
            "service: {{name: subscriber-api, storage_location: US-OR, instance: pod-0}}
workers: 2
policy: {{file: policy.yaml}}
enforcement: {enforcement}
listeners: [{{name: main, address: '127.0.0.1:0', upstream: app}}]
upstreams: [{{name: app, address: '{upstream}'}}]
identity: {identity}
routes:
  - path: /v1/customers/{{customer}}/subscribers/{{id}}
    customer: {{from: path, name: customer}}
    subscriber: {{from: path, name: id}}
    purpose: {{from: context}}
    data_categories: [user.contact]
  - path: /claimed/{{id}}
    customer: {{from: claim}}
    subscriber: {{from: path, name: id}}
    purpose: {{from: claim}}
    data_categories: [user.contact]
  - path: /fixed/{{id}}
    customer: redwood-strand
    subscriber: {{from: path, name: id}}
    purpose: customer_support
    data_categories: [user.contact]
  - path: /stated/{{id}}
    customer: {{from: context}}
    subscriber: {{from: path, name: id}}
    purpose: {{from: context}}
    data_categories: [user.contact]
  - {{path: '/assets/{{*rest}}', methods: [GET], subscriber_data: false}}
decision_log: {{file: {{path: decisions.ndjson}}, stdout: true}}
health: {{address: '{health}'}}
{more}
"
        )
    }

    pub(crate) fn start_in(&self, upstream: &Upstream, folder: Folder) -> Sidecar {
        folder.write("policy.yaml", &policy());
        Setup::to(&upstream.address).start_with(&self.text(&upstream.address), folder)
    }
}

/// An entry for tokens with all claims, its keys in `jwks.json` or at a URL.
pub(crate) fn issuer(keys: &str) -> String {
    format!(
        "{{token: {{issuer: '{ISSUER}', audience: subscriber-api, algorithms: [RS256, PS384, ES256, ES384, EdDSA], {keys}, \
         claims: {{purpose: dpa_purpose, customer: dpa_customer, instruction: dpa_instruction, location: dpa_location}}}}}}"
    )
}

pub(crate) fn set(keys: &[Value]) -> String {
    json!({ "keys": keys }).to_string()
}

/// Sends a request with these values of `Authorization`; the answer, and the record of its decision.
pub(crate) fn ask(sidecar: &Sidecar, authorization: &[String]) -> (Answer, Value) {
    let head = Head::bare("GET", SUBSCRIBER).with("DPA-Context", "purpose=customer_support");
    recorded(sidecar, authorization.iter().fold(head, |head, value| head.with("Authorization", value)))
}

fn recorded(sidecar: &Sidecar, head: Head) -> (Answer, Value) {
    let answer = sidecar.ask(head.end());
    let record = sidecar.decision(&answer.decision_id());
    (answer, record)
}

fn bearing(target: &str, token: &str) -> Head {
    Head::bare("GET", target).with("Authorization", &format!("Bearer {token}"))
}

/// Who the record says called, or why nobody can tell.
pub(crate) fn who(record: &Value) -> Result<&str, &str> {
    match record["unknown"]["caller"]["why"].as_str() {
        Some(why) => Err(why),
        None => Ok(record["caller_id"].as_str().unwrap_or("a third party")),
    }
}

/// What `/readyz?verbose` says.
pub(crate) fn readiness(given: &Given) -> String {
    health(given, "/readyz?verbose")
}

fn health(given: &Given, target: &str) -> String {
    let mut stream = std::net::TcpStream::connect(&given.health).unwrap();
    stream.write_all(format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn who_a_token_proves() {
    let (ec, second, ec384) = (p256(), p256(), EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap());
    let ec384 = Signer::Ec(ec384);
    let rsa_pair = rsa();
    let modulus = RsaPublicKeyComponents::<Vec<u8>>::from(rsa_pair.public_key()).n;
    let rsa = Signer::Rsa(rsa_pair, &RSA_PKCS1_SHA256);
    let ed = Signer::Ed(Ed25519KeyPair::generate().unwrap());
    let (theirs, for_encryption, leaked, unnamed) = (p256(), p256(), p256(), p256());
    let only_es384 = p256();
    let secret = Signer::Secret(b"a shared secret of 32 bytes long".to_vec());
    let mut small = modulus[..128].to_vec();
    small[127] |= 1;
    let mut off_the_curve = ec.jwk(json!({"kid": "off-the-curve"}));
    off_the_curve["y"] = off_the_curve["x"].clone();

    let folder = Folder::new();
    let keys = [
        ec.jwk(json!({"kid": "ec", "use": "sig", "alg": "ES256"})),
        second.jwk(json!({"kid": "second", "key_ops": ["verify"]})),
        ec384.jwk(json!({"kid": "ec384"})),
        rsa.jwk(json!({"kid": "rsa", "use": "sig"})),
        ed.jwk(json!({"kid": "ed"})),
        for_encryption.jwk(json!({"kid": "for-encryption", "use": "enc"})),
        unnamed.jwk(json!({"kid": "for-wrapping", "key_ops": ["wrapKey"]})),
        leaked.jwk(json!({"kid": "leaked", "d": b64([1; 32])})),
        only_es384.jwk(json!({"kid": "only-es384", "alg": "ES384"})),
        secret.jwk(json!({"kid": "secret"})),
        json!({"kty": "RSA", "kid": "small", "n": b64(&small), "e": "AQAB"}),
        json!({"kty": "RSA", "kid": "even", "n": b64([&modulus[..255], &[0][..]].concat()), "e": "AQAB"}),
        json!({"kty": "LMS", "kid": "of-tomorrow", "pub": "AAAA"}),
        json!({"kid": "of-no-type"}),
        off_the_curve,
    ];
    folder.write("jwks.json", &set(&keys));
    folder.write("theirs.json", &set(&[theirs.jwk(json!({"kid": "theirs"})), second.jwk(json!({"kid": "ec"}))]));
    let upstream = Upstream::ok();
    let other = format!(
        "{{token: {{issuer: '{OTHER_ISSUER}', audience: subscriber-api, algorithms: [ES256], jwks_file: theirs.json}}}}"
    );
    let given = Given::identity(&format!("{}, {other}", issuer("jwks_file: jwks.json")));
    let sidecar = given.start_in(&upstream, folder);

    let bearer = |token: String| vec![format!("Bearer {token}")];
    let plain = |changes: Value| bearer(token(&ec, "ES256", "ec", changes));
    // The payload as text, for what no JSON library would write.
    let raw = |payload: &str| bearer(ec.token(r#"{"alg":"ES256","kid":"ec"}"#, payload));
    let head = |header: &str| bearer(ec.token(header, claims(json!({})).to_string()));
    let text = claims(json!({})).to_string();
    let with = |more: &str| raw(&format!("{},{more}}}", &text[..text.len() - 1]));
    let good = token(&ec, "ES256", "ec", json!({}));
    let (message, signature) = good.rsplit_once('.').unwrap();
    let (good_header, good_payload) = message.split_once('.').unwrap();
    let good_rsa = token(&rsa, "RS256", "rsa", json!({}));
    let der = {
        // A private key of its own, in the other form of an ECDSA signature.
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        b64(pair.sign(&SystemRandom::new(), message.as_bytes()).unwrap().as_ref())
    };
    let last = signature.chars().last().unwrap();
    // The last of 86 characters carries two bits; the other four have to be 0.
    let loose = ('A'..='z').chain('0'..='9').find(|c| {
        let value = |c: char| "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_".find(c);
        *c != last && value(*c).is_some_and(|bits| bits / 16 == value(last).unwrap() / 16)
    });
    let non_canonical = format!("{message}.{}{}", &signature[..signature.len() - 1], loose.unwrap());
    let own_key = ec.jwk(json!({}));

    let table: Vec<(&str, Vec<String>, Result<&str, &str>)> = vec![
        // What holds.
        ("ES256", plain(json!({})), Ok("care-desk")),
        ("RS256", bearer(good_rsa.clone()), Ok("care-desk")),
        ("ES384", bearer(token(&ec384, "ES384", "ec384", json!({}))), Ok("care-desk")),
        ("EdDSA", bearer(token(&ed, "EdDSA", "ed", json!({}))), Ok("care-desk")),
        ("a key with `key_ops`", bearer(token(&second, "ES256", "second", json!({}))), Ok("care-desk")),
        ("no `kid`, and one key fits", bearer(ed.token(r#"{"alg":"EdDSA"}"#, &text)), Ok("care-desk")),
        ("the audience in a list", plain(json!({"aud": ["x", "subscriber-api"]})), Ok("care-desk")),
        ("the scheme in other letters", vec![format!("bEARER {good}")], Ok("care-desk")),
        ("two blanks after the scheme", vec![format!("Bearer  {good}")], Ok("care-desk")),
        ("an end with a fraction", plain(json!({"exp": 2_000_000_000.5})), Ok("care-desk")),
        ("a beginning within the leeway", plain(json!({"nbf": now() + 15})), Ok("care-desk")),
        ("a beginning in the past", plain(json!({"nbf": now() - 15})), Ok("care-desk")),
        ("no type", head(r#"{"alg":"ES256","kid":"ec"}"#), Ok("care-desk")),
        ("an access token", head(r#"{"alg":"ES256","kid":"ec","typ":"at+JWT"}"#), Ok("care-desk")),
        ("a type with its full name", head(r#"{"alg":"ES256","kid":"ec","typ":"application/jwt"}"#), Ok("care-desk")),
        ("a thumbprint, which is no key", head(r#"{"alg":"ES256","kid":"ec","x5t":"AAAA"}"#), Ok("care-desk")),
        ("blanks in the JSON", raw(&format!("\n {text}\t ")), Ok("care-desk")),
        (
            "claims nobody asks for, nested deep",
            with(&format!("\"x\":{}1{}", "[".repeat(2000), "]".repeat(2000))),
            Ok("care-desk"),
        ),
        ("a subject that the policy does not have", plain(json!({"sub": "stranger"})), Ok("a third party")),
        (
            "another issuer, which the policy has no identities of",
            bearer(token(&theirs, "ES256", "theirs", json!({"iss": OTHER_ISSUER}))),
            Ok("a third party"),
        ),
        // The header Authorization.
        ("no header", vec![], Err("missing")),
        ("another scheme", vec!["Basic dXNlcjpwYXNz".to_owned()], Err("missing")),
        ("a scheme that only begins so", vec![format!("BearerX {good}")], Err("missing")),
        ("a bracket behind the scheme, which was passed over once", vec![format!("Bearer[ {good}")], Err("malformed")),
        ("the scheme alone", vec!["Bearer".to_owned()], Err("malformed")),
        ("a token that is none", vec!["Bearer x".to_owned()], Err("malformed")),
        ("two words", vec![format!("Bearer {good} {good}")], Err("malformed")),
        ("a tab", vec![format!("Bearer\t{good}")], Err("malformed")),
        ("a list", vec![format!("Bearer {good}, Bearer {good}")], Err("malformed")),
        ("the same header twice", vec![format!("Bearer {good}"), format!("Bearer {good}")], Err("several_identities")),
        (
            "another scheme beside it",
            vec!["Basic dXNlcjpwYXNz".to_owned(), format!("Bearer {good}")],
            Err("several_identities"),
        ),
        // The algorithm.
        (
            "`none` without a signature",
            bearer(format!("{}.{}.", b64(r#"{"alg":"none"}"#), b64(&text))),
            Err("wrong_algorithm"),
        ),
        (
            "`none` in other letters",
            bearer(format!("{}.{}.", b64(r#"{"alg":"nOnE"}"#), b64(&text))),
            Err("wrong_algorithm"),
        ),
        ("`none` with a good signature", head(r#"{"alg":"none","kid":"ec"}"#), Err("wrong_algorithm")),
        ("no algorithm", head(r#"{"kid":"ec"}"#), Err("wrong_algorithm")),
        ("an empty algorithm", head(r#"{"alg":"","kid":"ec"}"#), Err("wrong_algorithm")),
        ("an algorithm that is no text", head(r#"{"alg":["ES256"],"kid":"ec"}"#), Err("malformed")),
        ("an algorithm in small letters", head(r#"{"alg":"es256","kid":"ec"}"#), Err("wrong_algorithm")),
        (
            "HS256 with the RSA key as its secret",
            bearer(token(&Signer::Secret(modulus.clone()), "HS256", "rsa", json!({}))),
            Err("wrong_algorithm"),
        ),
        (
            "HS256 with the key set as its secret",
            bearer(token(&Signer::Secret(set(&keys).into_bytes()), "HS256", "ec", json!({}))),
            Err("wrong_algorithm"),
        ),
        (
            "HS256 with a secret of the set",
            bearer(token(&secret, "HS256", "secret", json!({}))),
            Err("wrong_algorithm"),
        ),
        (
            "an RSA algorithm with a key of a curve",
            bearer(token(&ec, "RS256", "ec", json!({}))),
            Err("wrong_algorithm"),
        ),
        ("a curve's algorithm with an RSA key", bearer(token(&rsa, "ES256", "rsa", json!({}))), Err("wrong_algorithm")),
        ("another curve's algorithm", bearer(token(&ec, "ES384", "ec", json!({}))), Err("wrong_algorithm")),
        (
            "good, and not listed for this issuer",
            bearer(token(&rsa, "RS384", "rsa", json!({}))),
            Err("wrong_algorithm"),
        ),
        (
            "listed for another issuer only",
            bearer(token(&ed, "EdDSA", "theirs", json!({"iss": OTHER_ISSUER}))),
            Err("wrong_algorithm"),
        ),
        // Headers that choose the key.
        (
            "a URL of keys",
            head(r#"{"alg":"ES256","kid":"ec","jku":"https://id.adsync.example/jwks"}"#),
            Err("forbidden_header"),
        ),
        ("a key of its own", head(&json!({"alg": "ES256", "jwk": own_key}).to_string()), Err("forbidden_header")),
        ("a URL of certificates", head(r#"{"alg":"ES256","kid":"ec","x5u":"https://x"}"#), Err("forbidden_header")),
        ("certificates", head(r#"{"alg":"ES256","kid":"ec","x5c":["AAAA"]}"#), Err("forbidden_header")),
        (
            "what has to be understood",
            head(r#"{"alg":"ES256","kid":"ec","crit":["exp"],"exp":1}"#),
            Err("forbidden_header"),
        ),
        ("an unencoded payload", head(r#"{"alg":"ES256","kid":"ec","b64":false}"#), Err("forbidden_header")),
        ("a compressed payload", head(r#"{"alg":"ES256","kid":"ec","zip":"DEF"}"#), Err("malformed")),
        ("a token of another kind", head(r#"{"alg":"ES256","kid":"ec","typ":"logout+jwt"}"#), Err("malformed")),
        // The key.
        (
            "a key of somebody else under our `kid`",
            bearer(token(&theirs, "ES256", "ec", json!({}))),
            Err("bad_signature"),
        ),
        ("a `kid` nobody has", bearer(token(&ec, "ES256", "nobody", json!({}))), Err("unknown_key")),
        ("a `kid` that is a path", bearer(token(&ec, "ES256", "../../dev/null", json!({}))), Err("unknown_key")),
        ("a `kid` of another issuer's", bearer(token(&theirs, "ES256", "theirs", json!({}))), Err("unknown_key")),
        (
            "our key under another issuer's name",
            bearer(token(&ec, "ES256", "ec", json!({"iss": OTHER_ISSUER}))),
            Err("bad_signature"),
        ),
        ("no `kid`, and two keys fit", head(r#"{"alg":"ES256"}"#), Err("unknown_key")),
        ("a `kid` that is no text", head(r#"{"alg":"ES256","kid":1}"#), Err("malformed")),
        ("an empty `kid`", head(r#"{"alg":"ES256","kid":""}"#), Err("unknown_key")),
        (
            "a key for encryption",
            bearer(token(&for_encryption, "ES256", "for-encryption", json!({}))),
            Err("unknown_key"),
        ),
        ("a key that may not verify", bearer(token(&unnamed, "ES256", "for-wrapping", json!({}))), Err("unknown_key")),
        ("a key whose private part is known", bearer(token(&leaked, "ES256", "leaked", json!({}))), Err("unknown_key")),
        (
            "a key for another algorithm",
            bearer(token(&only_es384, "ES256", "only-es384", json!({}))),
            Err("unknown_key"),
        ),
        ("a key off its curve", bearer(token(&ec, "ES256", "off-the-curve", json!({}))), Err("unknown_key")),
        ("a key that is too short", bearer(token(&rsa, "RS256", "small", json!({}))), Err("unknown_key")),
        // The signature.
        ("no signature", bearer(format!("{message}.")), Err("bad_signature")),
        ("a signature of zeros", bearer(format!("{message}.{}", b64([0; 64]))), Err("bad_signature")),
        ("a signature in ASN.1", bearer(format!("{message}.{der}")), Err("bad_signature")),
        ("a signature with a byte more", bearer(format!("{message}.{}", b64([1; 65]))), Err("bad_signature")),
        (
            "the signature of another token",
            bearer(format!("{message}.{}", token(&ec, "ES256", "ec", json!({"sub": "x"})).rsplit_once('.').unwrap().1)),
            Err("bad_signature"),
        ),
        (
            "another subject under the same signature",
            bearer(format!("{good_header}.{}.{signature}", b64(claims(json!({"sub": "rollup"})).to_string()))),
            Err("bad_signature"),
        ),
        ("PKCS #1 v1.5 passed off as PSS", bearer(token(&rsa, "PS384", "rsa", json!({}))), Err("bad_signature")),
        // Who it is from and for.
        ("no issuer", plain(json!({"iss": null})), Err("unknown_issuer")),
        ("an issuer nobody knows", plain(json!({"iss": "https://evil.example"})), Err("unknown_issuer")),
        ("an issuer with a slash more", plain(json!({"iss": format!("{ISSUER}/")})), Err("unknown_issuer")),
        ("an issuer in capitals", plain(json!({"iss": ISSUER.to_uppercase()})), Err("unknown_issuer")),
        ("an issuer in a list", plain(json!({"iss": [ISSUER]})), Err("malformed")),
        ("no audience", plain(json!({"aud": null})), Err("wrong_audience")),
        ("another audience", plain(json!({"aud": "billing-api"})), Err("wrong_audience")),
        ("an audience that begins so", plain(json!({"aud": "subscriber-api.evil"})), Err("wrong_audience")),
        ("a list without the audience", plain(json!({"aud": ["x", "y"]})), Err("wrong_audience")),
        ("an empty list of audiences", plain(json!({"aud": []})), Err("wrong_audience")),
        ("the audience in a list in a list", plain(json!({"aud": [["subscriber-api"]]})), Err("malformed")),
        ("an audience that is no text", plain(json!({"aud": {"subscriber-api": 1}})), Err("malformed")),
        ("no subject", plain(json!({"sub": null})), Err("malformed")),
        ("an empty subject", plain(json!({"sub": ""})), Err("malformed")),
        ("a subject that is no text", plain(json!({"sub": 7})), Err("malformed")),
        ("a subject that could be any", plain(json!({"sub": "*"})), Err("malformed")),
        ("a subject with a blank", plain(json!({"sub": "care desk"})), Err("malformed")),
        ("a subject with a NUL", plain(json!({"sub": "care-desk\0"})), Err("malformed")),
        // Times.
        ("no end", plain(json!({"exp": null})), Err("expired")),
        ("an end a second ago", plain(json!({"exp": now() - 1})), Err("expired")),
        ("an end now", plain(json!({"exp": now()})), Err("expired")),
        ("an end before 1970", plain(json!({"exp": -1})), Err("expired")),
        ("an end in text", plain(json!({"exp": (now() + 600).to_string()})), Err("malformed")),
        ("an end that is `true`", plain(json!({"exp": true})), Err("malformed")),
        ("an end in milliseconds", plain(json!({"exp": (now() + 600) * 1000})), Err("malformed")),
        ("an end beyond all numbers", raw(&text.replace("\"exp\":", "\"exp\":1e999,\"x\":")), Err("malformed")),
        ("an end beyond all years", raw(&text.replace("\"exp\":", "\"exp\":1e300,\"x\":")), Err("malformed")),
        ("a beginning to come", plain(json!({"nbf": now() + 300})), Err("not_yet_valid")),
        ("a beginning in text", plain(json!({"nbf": "0"})), Err("malformed")),
        // Twice.
        ("two subjects", with(r#""sub":"rollup""#), Err("duplicate_claim")),
        ("two ends", with(r#""exp":4000000000"#), Err("duplicate_claim")),
        ("two ends, one spelt with an escape", with(r#""e\u0078p":4000000000"#), Err("duplicate_claim")),
        ("a claim twice that nobody asks for", with(r#""x":1,"x":2"#), Err("duplicate_claim")),
        ("two algorithms", head(r#"{"alg":"ES256","kid":"ec","alg":"none"}"#), Err("duplicate_claim")),
        ("two `kid`", head(r#"{"alg":"ES256","kid":"second","kid":"ec"}"#), Err("duplicate_claim")),
        // The form.
        ("too long", plain(json!({"x": "x".repeat(9000)})), Err("too_large")),
        ("padding", bearer(ec_padded(&ec, &text)), Err("malformed")),
        ("another alphabet", bearer(good_rsa.replace(['-', '_'], "+")), Err("malformed")),
        ("bits that do not count", bearer(non_canonical), Err("malformed")),
        ("two parts", bearer(message.to_owned()), Err("malformed")),
        ("four parts", bearer(format!("{good}.{signature}")), Err("malformed")),
        ("a dot before it", bearer(format!(".{good}")), Err("malformed")),
        ("an empty payload", bearer(format!("{good_header}..{signature}")), Err("malformed")),
        ("an empty header", bearer(format!(".{good_payload}.{signature}")), Err("malformed")),
        (
            "an encrypted token",
            bearer(format!("{}.AAAA.AAAA.AAAA.AAAA", b64(r#"{"alg":"dir","enc":"A256GCM"}"#))),
            Err("malformed"),
        ),
        ("an encrypted one in three parts", head(r#"{"alg":"ES256","kid":"ec","enc":"A256GCM"}"#), Err("malformed")),
        ("a payload that is a list", raw(&format!("[{text}]")), Err("malformed")),
        ("a payload that is a token", raw(&good), Err("malformed")),
        ("two payloads", raw(&format!("{text}{text}")), Err("malformed")),
        ("a comment in the JSON", raw(&format!("{text}//")), Err("malformed")),
        ("a byte order mark", raw(&format!("\u{feff}{text}")), Err("malformed")),
        ("half a surrogate pair", with(r#""dpa_purpose":"\ud800""#), Err("malformed")),
        (
            "bytes that are no text",
            bearer(ec.token(r#"{"alg":"ES256","kid":"ec"}"#, b"{\"x\":{\"y\":\"\xff\"}}")),
            Err("malformed"),
        ),
        ("brackets without an end", with(&"\"x\":[".repeat(3)), Err("malformed")),
        // Claims that were agreed, of another type.
        ("a purpose that is a list", plain(json!({"dpa_purpose": ["customer_support"]})), Err("malformed")),
        ("a purpose that is null", with(r#""dpa_purpose":null"#), Err("malformed")),
        ("a customer that is a number", plain(json!({"dpa_customer": 7})), Err("malformed")),
        ("a customer in a list of maps", plain(json!({"dpa_customer": [{"id": 1}]})), Err("malformed")),
        (
            "17 customers",
            plain(json!({"dpa_customer": (0..17).map(|n| n.to_string()).collect::<Vec<_>>()})),
            Err("malformed"),
        ),
        ("an instruction that is a map", plain(json!({"dpa_instruction": {}})), Err("malformed")),
        ("a location that is a list", plain(json!({"dpa_location": ["US"]})), Err("malformed")),
    ];
    assert!(table.len() > 100, "{}", table.len());
    let mut wrong = Vec::new();
    for (name, authorization, expected) in &table {
        let (answer, record) = ask(&sidecar, authorization);
        let found = who(&record);
        let (status, told) = match expected {
            Ok("a third party") => (403, "recipient_unknown"),
            Ok(_) => (200, ""),
            Err(_) => (401, "caller_unidentified"),
        };
        let is_told = status == 200 || answer.reason() == told;
        if found != *expected || answer.status != status || !is_told {
            wrong.push(format!("{name}: {found:?} instead of {expected:?}, status {}", answer.status));
        }
        if status != 200 {
            let everything = answer.everything();
            let piece = authorization.iter().flat_map(|value| pieces(value)).find(|piece| everything.contains(piece));
            assert_eq!(piece, None, "{name}: a piece of the token came back");
        }
        if status == 401 {
            assert_eq!(answer.value("www-authenticate"), Some("Bearer"), "{name}");
        }
        if status == 200 {
            assert_eq!(upstream.last().head.value("authorization"), None, "{name}: the token went on");
            assert_eq!(record["sources"]["caller"], "token", "{name}");
            assert_eq!(record["transport"]["proof"], "token", "{name}");
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let told = readiness(&given);
    assert!(told.contains(&format!("[+] keys: {ISSUER}: 5 keys (10 passed over), read ")), "{told}");

    let sent: Vec<String> = table.iter().flat_map(|(_, values, _)| values).flat_map(|value| pieces(value)).collect();
    // Of a PSS signature the library takes the same salt as its hash has bytes.
    let Signer::Rsa(pair, _) = rsa else { panic!() };
    let table: [(&str, &'static dyn RsaEncoding, Result<&str, &str>); 2] = [
        ("PS384", &RSA_PSS_SHA384, Ok("care-desk")),
        ("PS384 with another hash", &RSA_PSS_SHA256, Err("bad_signature")),
    ];
    let mut pair = Some(pair);
    for (name, encoding, expected) in table {
        let signer = Signer::Rsa(pair.take().unwrap(), encoding);
        let (_, record) = ask(&sidecar, &bearer(token(&signer, "PS384", "rsa", json!({}))));
        assert_eq!(who(&record), expected, "{name}");
        let Signer::Rsa(back, _) = signer else { panic!() };
        pair = Some(back);
    }
    nothing_of_them_is_anywhere(&given, sidecar, sent);
}

/// Three parts with the padding that base64 has elsewhere, and a signature over just that.
fn ec_padded(signer: &Signer, payload: &str) -> String {
    let payload = (0..3).map(|blanks| payload.to_owned() + &" ".repeat(blanks)).find(|text| text.len() % 3 != 0);
    let message = format!("{}.{}", b64(r#"{"alg":"ES256","kid":"ec"}"#), URL_SAFE.encode(payload.unwrap()));
    assert!(message.ends_with('='));
    format!("{message}.{}", b64(signer.sign(&message)))
}

/// Pieces of a value of `Authorization`, as they are and decoded, that occur nowhere by chance.
fn pieces(value: &str) -> Vec<String> {
    let parts = value.split([' ', '.', ',']).filter(|part| part.len() >= 16);
    let mut pieces = Vec::new();
    for part in parts {
        // The first bytes of all headers and payloads are alike, and so is a signature of zeros.
        pieces.push(part.chars().rev().take(24).collect::<Vec<_>>().into_iter().rev().collect());
        pieces.push(part.chars().take(16).collect());
        pieces.push(STANDARD.encode(part).chars().take(16).collect());
    }
    pieces
}

fn nothing_of_them_is_anywhere(given: &Given, sidecar: Sidecar, secrets: Vec<String>) {
    let told = readiness(given) + &health(given, "/metrics");
    assert!(told.contains("dpa_decisions_total"), "{told}");
    let stopped = sidecar.stop();
    let log = std::fs::read_to_string(stopped.folder.file("decisions.ndjson")).unwrap();
    assert!(log.contains("dpa.decision"));
    for secret in secrets {
        for (sink, text) in [
            ("log", &log),
            ("standard output", &stopped.stdout),
            ("standard error", &stopped.stderr),
            ("health listener", &told),
        ] {
            assert!(!text.contains(&secret), "{sink} holds {secret}");
        }
    }
}

/// What a request comes to: the context that the service gets, or the reason of a refusal.
type Comes = Result<&'static str, &'static str>;

#[test]
fn what_claims_say() {
    let ec = p256();
    let folder = Folder::new();
    folder.write("jwks.json", &set(&[ec.jwk(json!({"kid": "ec"}))]));
    let upstream = Upstream::ok();
    let given = Given::identity(&issuer("jwks_file: jwks.json"));
    let sidecar = given.start_in(&upstream, folder);

    let support = r#"customer="redwood-strand", purpose="customer_support""#;
    let instructed = r#"customer="redwood-strand", instruction="ins-001", purpose="customer_support""#;
    let both = json!({"dpa_customer": "redwood-strand", "dpa_purpose": "customer_support"});
    let customer = |customer: Value| json!({"dpa_customer": customer, "dpa_purpose": "customer_support"});
    let instruction = json!({"dpa_instruction": "ins-001"});
    let roaming = |location: Value| json!({"sub": "care-roaming", "dpa_location": location});
    let (claimed, fixed, stated) = ("/claimed/1a2b", "/fixed/1a2b", "/stated/1a2b");
    let table: [(&str, &str, &str, Value, Comes); 41] = [
        ("customer and purpose from claims", claimed, "", both.clone(), Ok(support)),
        ("a context that says the same", claimed, support, both.clone(), Ok(support)),
        ("a context with another purpose", claimed, "purpose=billing_payment", both.clone(), Err("request_unreadable")),
        ("a context with another customer", claimed, "customer=\"x\"", both.clone(), Err("request_unreadable")),
        ("no claims", claimed, "", json!({}), Err("customer_missing")),
        ("no claims, and a context does not stand in", claimed, support, json!({}), Err("customer_missing")),
        ("no claim of a purpose", claimed, "", json!({"dpa_customer": "redwood-strand"}), Err("purpose_missing")),
        ("one customer in a list", claimed, "", customer(json!(["redwood-strand"])), Ok(support)),
        (
            "one customer twice in a list",
            claimed,
            "",
            customer(json!(["redwood-strand", "redwood-strand"])),
            Ok(support),
        ),
        ("no customer in a list", claimed, "", customer(json!([])), Err("customer_missing")),
        ("a customer nobody knows", claimed, "", customer(json!("canaria-customer")), Err("customer_unknown")),
        ("an empty customer", claimed, "", customer(json!("")), Err("customer_unknown")),
        (
            "several customers",
            claimed,
            "",
            customer(json!(["redwood-strand", "kelp-sound"])),
            Err("cross_customer_combination"),
        ),
        (
            "several customers, in another order in the context",
            claimed,
            "customer=(\"kelp-sound\" redwood-strand)",
            customer(json!(["redwood-strand", "kelp-sound"])),
            Err("cross_customer_combination"),
        ),
        (
            "several customers, one of them in the context",
            claimed,
            "customer=redwood-strand",
            customer(json!(["redwood-strand", "kelp-sound"])),
            Err("request_unreadable"),
        ),
        (
            "a purpose nobody knows",
            claimed,
            "",
            json!({"dpa_customer": "redwood-strand", "dpa_purpose": "canaria-purpose"}),
            Err("purpose_unknown"),
        ),
        (
            "a purpose that is prohibited",
            claimed,
            "",
            json!({"dpa_customer": "redwood-strand", "dpa_purpose": "sale"}),
            Err("purpose_prohibited"),
        ),
        (
            "a purpose that is not the caller's",
            claimed,
            "",
            json!({"dpa_customer": "redwood-strand", "dpa_purpose": "billing_payment"}),
            Err("purpose_not_bound_to_caller"),
        ),
        ("the customer of the path", SUBSCRIBER, "purpose=customer_support", both.clone(), Ok(support)),
        (
            "another customer than the path",
            SUBSCRIBER,
            "purpose=customer_support",
            json!({"dpa_customer": "salt-flat"}),
            Err("request_unreadable"),
        ),
        (
            "more customers than the path",
            SUBSCRIBER,
            "purpose=customer_support",
            json!({"dpa_customer": ["redwood-strand", "salt-flat"]}),
            Err("request_unreadable"),
        ),
        (
            "no customer, where the path has one",
            SUBSCRIBER,
            "purpose=customer_support",
            json!({"dpa_customer": []}),
            Err("request_unreadable"),
        ),
        (
            "another purpose than the context",
            SUBSCRIBER,
            "purpose=customer_support",
            json!({"dpa_purpose": "account_management"}),
            Err("request_unreadable"),
        ),
        ("the purpose of the route", fixed, "", both.clone(), Ok(support)),
        (
            "another purpose than the route's",
            fixed,
            "",
            json!({"dpa_purpose": "account_management"}),
            Err("request_unreadable"),
        ),
        ("a claim does not stand in for the context", stated, "", both.clone(), Err("customer_missing")),
        ("a claim and the context", stated, support, both, Ok(support)),
        ("an instruction", fixed, "", instruction.clone(), Ok(instructed)),
        (
            "an instruction that the context names too",
            fixed,
            "instruction=\"ins-001\"",
            instruction.clone(),
            Ok(instructed),
        ),
        (
            "another instruction in the context",
            fixed,
            "instruction=\"ins-004\"",
            instruction,
            Err("request_unreadable"),
        ),
        (
            "an instruction nobody knows",
            fixed,
            "",
            json!({"dpa_instruction": "canaria-instruction"}),
            Err("instruction_invalid"),
        ),
        ("a location in the agreement", fixed, "", roaming(json!("US-WA")), Ok(support)),
        ("a country", fixed, "", roaming(json!("CA")), Ok(support)),
        ("a location outside the agreement", fixed, "", roaming(json!("FR")), Err("residency_access")),
        ("no location", fixed, "", roaming(Value::Null), Err("location_unknown")),
        ("a location that is no ISO code", fixed, "", roaming(json!("canaria-location")), Err("location_unknown")),
        ("a location in small letters", fixed, "", roaming(json!("us-wa")), Err("location_unknown")),
        ("a bare state", fixed, "", roaming(json!("WA")), Err("location_unknown")),
        (
            "a location that nobody reads, since the policy has one",
            fixed,
            "",
            json!({"dpa_location": "FR"}),
            Ok(support),
        ),
        (
            "a stranger with all claims",
            claimed,
            "",
            json!({"sub": "canaria-subject", "dpa_customer": "redwood-strand", "dpa_purpose": "customer_support"}),
            Err("recipient_unknown"),
        ),
        (
            "outside the agreement nothing is compared",
            "/assets/logo.svg",
            support,
            json!({"dpa_customer": "salt-flat"}),
            Ok(""),
        ),
    ];
    let mut wrong = Vec::new();
    for (name, target, context, changes, expected) in table {
        let head = bearing(target, &token(&ec, "ES256", "ec", changes));
        let head = if context.is_empty() { head } else { head.with("DPA-Context", context) };
        let (answer, record) = recorded(&sidecar, head);
        let reason = record["reason"].as_str().unwrap_or_default().to_owned();
        let found = match answer.status {
            200 => Ok(upstream.last().head.value("dpa-context").unwrap_or_default().to_owned()),
            _ => Err(reason.clone()),
        };
        if found != expected.map(str::to_owned).map_err(str::to_owned) {
            wrong.push(format!("{name}: {found:?} instead of {expected:?}"));
        }
        let at = |pointer: &str| record.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        match name {
            "customer and purpose from claims" => {
                assert_eq!((at("/sources/customer"), at("/sources/purpose")), ("claim".into(), "claim".into()));
            }
            "the customer of the path" => {
                assert_eq!((at("/sources/customer"), at("/sources/purpose")), ("path".into(), "context".into()));
            }
            "an instruction" => {
                assert_eq!((at("/instruction_id"), at("/sources/instruction")), ("ins-001".into(), "claim".into()));
            }
            "a location in the agreement" => {
                assert_eq!((at("/location/access"), at("/sources/location")), ("US-WA".into(), "claim".into()));
            }
            "a location that is no ISO code" => assert_eq!(at("/unknown/location/why"), "malformed"),
            "no location" => assert_eq!(at("/unknown/location/why"), "missing"),
            "a location that nobody reads, since the policy has one" => {
                assert_eq!((at("/location/access"), at("/sources/location")), ("US-OR".into(), String::new()));
            }
            "a purpose nobody knows" => assert_eq!(record["unknown"]["purpose"]["length"], 15),
            _ => {}
        }
        if answer.status != 200 {
            assert!(!answer.everything().contains("canaria"), "{name}: {answer:?}");
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    nothing_of_them_is_anywhere(&given, sidecar, vec!["canaria".to_owned()]);
}

/// Name, identity in the header, token, who it is, reason of a refusal.
type Beside<'t> = (&'t str, Option<&'t str>, Option<String>, Result<&'t str, &'t str>, &'t str);

#[test]
fn a_token_beside_another_proof() {
    let ec = p256();
    let folder = Folder::new();
    folder.write("jwks.json", &set(&[ec.jwk(json!({"kid": "ec"}))]));
    let upstream = Upstream::ok();
    let header = "{header: {name: DPA-Caller, trusted_peers: [127.0.0.1/32]}}";
    let given = Given::identity(&format!("{}, {header}", issuer("jwks_file: jwks.json")));
    let sidecar = given.start_in(&upstream, folder);
    let token = |changes| token(&ec, "ES256", "ec", changes);
    let care_desk = token(json!({"dpa_customer": "redwood-strand", "dpa_purpose": "customer_support"}));
    let table: [Beside<'_>; 7] = [
        ("a token alone", None, Some(care_desk.clone()), Ok("care-desk"), ""),
        ("a header alone has no claims", Some(CARE_DESK), None, Ok("care-desk"), "customer_missing"),
        ("both name one party", Some(CARE_DESK), Some(care_desk.clone()), Ok("care-desk"), ""),
        ("they name two parties", Some(ROLLUP), Some(care_desk), Err("contradicted"), "caller_unidentified"),
        (
            "one names nobody who is party to the agreement",
            Some(CARE_DESK),
            Some(token(json!({"sub": "stranger"}))),
            Err("contradicted"),
            "caller_unidentified",
        ),
        (
            "a token that has ended is not overlooked",
            Some(CARE_DESK),
            Some(token(json!({"exp": 1, "dpa_customer": "redwood-strand", "dpa_purpose": "customer_support"}))),
            Err("expired"),
            "caller_unidentified",
        ),
        ("neither", None, None, Err("missing"), "caller_unidentified"),
    ];
    for (name, header, token, expected, reason) in table {
        let head = Head::bare("GET", "/claimed/1a2b");
        let head = header.into_iter().fold(head, |head, value| head.with("DPA-Caller", value));
        let head = token.iter().fold(head, |head, token| head.with("Authorization", &format!("Bearer {token}")));
        let (answer, record) = recorded(&sidecar, head);
        assert_eq!(who(&record), expected, "{name}");
        assert_eq!(record["reason"].as_str().unwrap_or_default(), reason, "{name}");
        if answer.status == 401 {
            assert_eq!(answer.value("www-authenticate"), Some("Bearer, DPA-Caller"), "{name}");
        }
    }
}

#[test]
fn what_becomes_of_the_header_authorization() {
    let ec = p256();
    let upstream = Upstream::ok();
    let entry = issuer("jwks_file: jwks.json");
    let good = format!("Bearer {}", token(&ec, "ES256", "ec", json!({})));
    let basic = "Basic dXNlcjpwYXNz";
    let old = format!("bearer {}", token(&ec, "ES256", "ec", json!({"exp": 1})));
    let table: [(&str, bool, &'static str, &str, Option<&str>); 8] = [
        ("a token stops here", false, "enforce", &good, None),
        ("a token that proves nothing stops here too", false, "observe", &old, None),
        ("one of another kind too", false, "observe", "Bearer opaque", None),
        ("without a blank", false, "observe", "Bearer", None),
        ("a header of another scheme passes", false, "observe", basic, Some(basic)),
        ("`forward: true` lets a token pass", true, "enforce", &good, Some(&good)),
        ("also one that proves nothing, where it is only observed", true, "observe", &old, Some(&old)),
        ("and another scheme", true, "observe", basic, Some(basic)),
    ];
    for (name, forward, enforcement, value, expected) in table {
        let folder = Folder::new();
        folder.write("jwks.json", &set(&[ec.jwk(json!({"kid": "ec"}))]));
        let entry = if forward {
            entry.replace("keys, ", "").replace("claims:", "forward: true, claims:")
        } else {
            entry.clone()
        };
        let given = Given { enforcement, ..Given::identity(&entry) };
        let sidecar = given.start_in(&upstream, folder);
        let head = Head::bare("GET", "/fixed/1a2b").with("Authorization", value).with("Connection", "keep-alive");
        let (answer, _) = recorded(&sidecar, head);
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        assert_eq!(upstream.last().head.value("authorization"), expected, "{name}");
    }
}

/// What `check` says of a sidecar.yaml with this.
fn checked(identity: &str, more: &'static str, change: impl Fn(String) -> String) -> (Option<i32>, String) {
    let folder = Folder::new();
    folder.write("policy.yaml", &policy());
    folder.write("jwks.json", &set(&[p256().jwk(json!({}))]));
    folder.write("secret.json", &set(&[Signer::Secret(vec![7; 32]).jwk(json!({}))]));
    folder.write("ca.pem", "no certificate");
    let given = Given { more, ..Given::identity(identity) };
    let settings = folder.write("sidecar.yaml", &change(given.text("127.0.0.1:1")));
    let output = run(&folder.file("."), &["check", settings.to_str().unwrap()]);
    (output.status.code(), out(&output))
}

#[test]
fn settings_of_tokens() {
    let good = issuer("jwks_file: jwks.json");
    let url = |url: &str| issuer(&format!("jwks_url: '{url}'"));
    let change = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        good.replace(from, to)
    };
    let two = |other: &str| format!("{good}, {other}");
    let wrong = "cannot be fetched from";
    let table: [(&str, String, &str); 42] = [
        ("all in order", good.clone(), ""),
        ("a URL", url("https://id.lumenfield.example/jwks?v=1"), ""),
        ("a URL with a port", url("https://id.lumenfield.example:8443/jwks"), ""),
        ("http on this machine", url("http://127.0.0.1:9/jwks"), ""),
        ("http on this machine, by name", url("http://localhost:9/jwks"), ""),
        ("http on this machine, the other family", url("http://[::1]:9/jwks"), ""),
        ("http elsewhere", url("http://id.lumenfield.example/jwks"), wrong),
        ("http to a name that begins so", url("http://localhost.evil.example/jwks"), wrong),
        ("http to an address that begins so", url("http://127.0.0.1.evil.example/jwks"), wrong),
        ("http to this machine, as user information", url("http://127.0.0.1@evil.example/jwks"), wrong),
        ("a password in the URL", url("https://a:b@id.lumenfield.example/jwks"), wrong),
        ("another scheme", url("file:///jwks.json"), wrong),
        ("no scheme", url("id.lumenfield.example"), wrong),
        ("no keys", issuer("forward: false"), "DPA021"),
        ("keys from two places", issuer("jwks_file: jwks.json, jwks_url: 'https://a.example/'"), "DPA021"),
        ("a file of authorities for no server", issuer("jwks_file: jwks.json, jwks_ca: ca.pem"), "DPA021"),
        ("a file of authorities without one", issuer("jwks_url: 'https://a.example/', jwks_ca: ca.pem"), "DPA046"),
        ("a file that is not there", issuer("jwks_file: nowhere.json"), "DPA046"),
        ("a file that is no key set", issuer("jwks_file: policy.yaml"), "DPA046"),
        ("a key set of secrets", issuer("jwks_file: secret.json"), "none of its 1 keys can verify a token"),
        ("`none`", change("ES256", "none"), "anybody can write such a token"),
        ("`None`", change("ES256", "None"), "anybody can write such a token"),
        ("a shared secret", change("ES256", "HS256"), "who can check such a token can make one"),
        ("a shared secret in small letters", change("ES256", "hs512"), "who can check such a token can make one"),
        ("an algorithm nobody knows", change("ES256", "ES512"), "is not an algorithm of tokens here"),
        ("an algorithm in small letters", change("ES256", "es256"), "is not an algorithm of tokens here"),
        ("no algorithm", good.replace("[RS256, PS384, ES256, ES384, EdDSA]", "[]"), "DPA017"),
        ("the same issuer twice", two(&good), "DPA011"),
        ("two issuers", two(&change(ISSUER, OTHER_ISSUER)), ""),
        (
            "two that differ in `forward`",
            two(&good.replace(ISSUER, OTHER_ISSUER).replace("claims:", "forward: true, claims:")),
            "differ in `forward`",
        ),
        ("an issuer with a blank", change(ISSUER, "my issuer"), "is not an issuer"),
        ("an issuer with a bar", change(ISSUER, "a|b"), "is not an issuer"),
        ("an issuer that could be any", change(ISSUER, "https://*.example"), "is not an issuer"),
        ("an empty audience", change("subscriber-api", "''"), "the audience is empty"),
        ("a claim with a meaning of its own", change("dpa_purpose", "sub"), "cannot say this"),
        ("a claim without a name", change("dpa_purpose", "''"), "cannot say this"),
        ("one claim for two things", change("dpa_purpose", "dpa_customer"), "DPA011"),
        ("a claim nobody knows", change("purpose: dpa_purpose", "reason: dpa_purpose"), "DPA004"),
        (
            "two ways in one entry",
            good.replace("{token:", "{header: {name: A, trusted_peers: [::1]}, token:"),
            "DPA021",
        ),
        (
            "no claim of a purpose, where a route wants it",
            change("purpose: dpa_purpose, ", ""),
            "warning[DPA031]: no token has a claim for the purpose",
        ),
        (
            "no claim of a location, where a caller needs it",
            change(", location: dpa_location", ""),
            "warning[DPA031]: the caller `care-roaming` has no `location`",
        ),
        (
            "no tokens at all",
            "{header: {name: A, trusted_peers: [127.0.0.1]}}".to_owned(),
            "warning[DPA031]: no token has a claim for the customer",
        ),
    ];
    for (name, identity, expected) in table {
        let (code, text) = checked(&identity, "", |text| text);
        let is_good = expected.is_empty() || expected.starts_with("warning");
        assert_eq!(code, Some(if is_good { 0 } else { 1 }), "{name}: {text}");
        if expected.is_empty() {
            assert!(!text.contains("no token has") && !text.contains("care-roaming"), "{name}: {text}");
        }
        assert!(text.contains(expected), "{name}: {text}");
    }
    let table = [
        ("a limit", "limits: {token_bytes: 4KiB}", ""),
        ("a limit that no token keeps", "limits: {token_bytes: 100}", "DPA008"),
    ];
    for (name, more, expected) in table {
        let (code, text) = checked(&good, more, |text| text);
        assert_eq!(code, Some(if expected.is_empty() { 0 } else { 1 }), "{name}: {text}");
        assert!(text.contains(expected), "{name}: {text}");
    }
    let table = [
        ("a subscriber from a claim", "subscriber: {from: path, name: id}", "subscriber: {from: claim}"),
        ("the name of a claim in a route", "purpose: {from: claim}", "purpose: {from: claim, name: dpa_purpose}"),
    ];
    for (name, from, to) in table {
        let (code, text) = checked(&good, "", |text| text.replace(from, to));
        assert!(code == Some(1) && text.contains("DPA042"), "{name}: {text}");
    }
}

#[test]
fn a_limit_holds_for_tokens() {
    let ec = p256();
    let folder = Folder::new();
    folder.write("jwks.json", &set(&[ec.jwk(json!({"kid": "ec"}))]));
    let upstream = Upstream::ok();
    let given = Given { more: "limits: {token_bytes: 1KiB}", ..Given::identity(&issuer("jwks_file: jwks.json")) };
    let sidecar = given.start_in(&upstream, folder);
    let fits = token(&ec, "ES256", "ec", json!({"x": "x".repeat(500)}));
    let beyond = token(&ec, "ES256", "ec", json!({"x": "x".repeat(700)}));
    assert!(fits.len() <= 1024 && beyond.len() > 1024, "{} {}", fits.len(), beyond.len());
    for (token, expected) in [(fits, Ok("care-desk")), (beyond, Err("too_large"))] {
        let (_, record) = ask(&sidecar, &[format!("Bearer {token}")]);
        assert_eq!(who(&record), expected);
    }
}

#[test]
fn times_are_those_of_the_request_not_of_the_machine() {
    let ec = p256();
    let keys = KeySet::read(set(&[ec.jwk(json!({"kid": "ec"}))]).as_bytes()).unwrap();
    let issuer = Issuer {
        name: ISSUER.to_owned(),
        audience: "subscriber-api".to_owned(),
        algorithms: vec![Algorithm::Es256],
        claims: ClaimNames::default(),
        keys: Arc::new(ArcSwap::from_pointee(keys)),
    };
    let source = dpa_sidecar::policy::problem::Source {
        path: "policy.yaml".to_owned(),
        text: std::fs::read_to_string(repository("config/policy.yaml")).unwrap(),
    };
    let policy = dpa_sidecar::policy::compile(&[source], &["policy.yaml".to_owned()], None, None).0.unwrap();
    let tokens = Tokens { issuers: vec![issuer], most_bytes: 8192, are_forwarded: false };
    let trust = Trust { ways: vec![Way::Tokens(tokens)] };
    let transport = Transport { tls: None, client_certificate: false, is_unix: false };
    let peer = Peer { address: None, transport, certificate: Fact::Unknown(Why::Missing), until: None };
    let mut headers = HeaderMap::new();
    headers.insert("host", "data.example".parse().unwrap());
    let bearer = format!("Bearer {}", token(&ec, "ES256", "ec", json!({"nbf": 1_000_000_000, "exp": 1_000_000_600})));
    headers.insert("authorization", bearer.parse().unwrap());
    let table = [
        ("long before", 900_000_000, 0, Err(Why::Flawed(Flaw::NotYetValid))),
        ("31 seconds before", 1_000_000_000 - 31, 0, Err(Why::Flawed(Flaw::NotYetValid))),
        ("30 seconds before", 1_000_000_000 - 30, 0, Ok(())),
        ("as it begins", 1_000_000_000, 0, Ok(())),
        ("the last nanosecond", 1_000_000_599, 999_999_999, Ok(())),
        ("as it ends", 1_000_000_600, 0, Err(Why::Flawed(Flaw::Expired))),
        ("after it", 1_000_000_601, 0, Err(Why::Flawed(Flaw::Expired))),
    ];
    for (name, second, nanosecond, expected) in table {
        let (target, host) = Target::read(&Uri::from_static("/"), &headers, Version::HTTP_11).unwrap();
        let seen = Observed {
            method: &Method::GET,
            target,
            host,
            headers: &headers,
            peer: &peer,
            egress: None,
            storage: "US".parse().unwrap(),
            time: jiff::Timestamp::new(second, nanosecond).unwrap(),
        };
        let found = match identify(&seen, &trust, &policy).identity {
            Fact::Known(..) => Ok(()),
            Fact::Unknown(why) => Err(why),
            Fact::None => panic!(),
        };
        assert_eq!(found, expected, "{name}");
    }
}
