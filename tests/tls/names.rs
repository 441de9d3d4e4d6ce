//! The names in a certificate, and the caller that they make.

use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::ExtendedKeyUsagePurpose;
use rcgen::IsCa;
use rcgen::KeyUsagePurpose;
use rcgen::SanType;

use super::Tls;
use super::material::Caller;
use super::material::der;
use super::material::names;
use super::material::raw_extension;
use super::material::raw_names;
use super::request;
use crate::support::CARE_DESK;
use crate::support::STRANGER;
use crate::support::Sidecar;
use crate::support::Upstream;

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().unwrap())
}

fn one(text: &str) -> CertificateParams {
    names(&[uri(text)])
}

fn with(mut params: CertificateParams, change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    change(&mut params);
    params
}

/// What a certificate comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comes {
    /// To this caller of the policy.
    Is(&'static str),
    /// To somebody proven who is no party.
    ToStranger,
    /// To nobody, for this reason.
    ToNobody(&'static str),
    /// Not through the handshake.
    NotIn,
}

use Comes::Is;
use Comes::NotIn;
use Comes::ToNobody;
use Comes::ToStranger;

const URI: u8 = 0x86;
const DNS: u8 = 0x82;
const MAIL: u8 = 0x81;

/// A list of names in DER.
fn raw(entries: &[(u8, &[u8])]) -> CertificateParams {
    let content: Vec<u8> = entries.iter().flat_map(|(tag, bytes)| der(*tag, bytes)).collect();
    raw_names(der(0x30, &content))
}

fn table() -> Vec<(&'static str, CertificateParams, Comes)> {
    let desk = CARE_DESK.as_bytes();
    let long_path = format!("spiffe://lumenfield.example/{}", "a".repeat(2048 - 28));
    let too_long = format!("{long_path}a");
    let key_usage =
        |usage| with(one(CARE_DESK), |params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature, usage]);
    let purpose = |usage| with(one(CARE_DESK), |params| params.extended_key_usages = vec![usage]);
    vec![
        ("one SPIFFE ID", one(CARE_DESK), Is("care-desk")),
        ("one SPIFFE ID beside a DNS name", names(&[dns("a.example"), uri(CARE_DESK)]), Is("care-desk")),
        (
            "one SPIFFE ID beside two DNS names",
            names(&[dns("a.example"), dns("b.example"), uri(CARE_DESK)]),
            Is("care-desk"),
        ),
        ("one SPIFFE ID beside a mail address", raw(&[(MAIL, b"a@b.example"), (URI, desk)]), Is("care-desk")),
        ("a leaf that says so", with(one(CARE_DESK), |params| params.is_ca = IsCa::ExplicitNoCa), Is("care-desk")),
        ("for signatures and agreement", key_usage(KeyUsagePurpose::KeyAgreement), Is("care-desk")),
        ("for callers", purpose(ExtendedKeyUsagePurpose::ClientAuth), Is("care-desk")),
        ("a SPIFFE ID of no party", one(STRANGER), ToStranger),
        ("a path that goes on", one("spiffe://lumenfield.example/ns/care/sa/care-desk/x"), ToStranger),
        ("a path in capitals", one("spiffe://lumenfield.example/ns/care/sa/Care-Desk"), ToStranger),
        ("2,048 bytes", one(&long_path), ToStranger),
        ("2,049 bytes", one(&too_long), ToNobody("malformed")),
        ("two SPIFFE IDs", names(&[uri(CARE_DESK), uri(STRANGER)]), ToNobody("several_identities")),
        ("the same SPIFFE ID twice", names(&[uri(CARE_DESK), uri(CARE_DESK)]), ToNobody("several_identities")),
        (
            "a SPIFFE ID and a web address",
            names(&[uri(CARE_DESK), uri("https://a.example/")]),
            ToNobody("several_identities"),
        ),
        ("a web address", one("https://lumenfield.example/ns/care/sa/care-desk"), ToNobody("malformed")),
        (
            "a web address beside a DNS name",
            names(&[uri("https://a.example/"), dns("desk.lumenfield.example")]),
            ToNobody("malformed"),
        ),
        ("an identity of a token", one("jwt:https://issuer.example|care-desk"), ToNobody("malformed")),
        ("a DNS name as URI", one("dns:desk.lumenfield.example"), ToNobody("malformed")),
        ("a trust domain alone", one("spiffe://lumenfield.example"), ToNobody("malformed")),
        ("a trust domain and a slash", one("spiffe://lumenfield.example/"), ToNobody("malformed")),
        ("a slash at the end", one("spiffe://lumenfield.example/ns/care/sa/care-desk/"), ToNobody("malformed")),
        ("a trust domain in capitals", one("spiffe://Lumenfield.example/ns/care/sa/care-desk"), ToNobody("malformed")),
        ("a scheme in capitals", one("SPIFFE://lumenfield.example/ns/care/sa/care-desk"), ToNobody("malformed")),
        ("a port", one("spiffe://lumenfield.example:443/ns/care/sa/care-desk"), ToNobody("malformed")),
        ("user information", one("spiffe://desk@lumenfield.example/ns/care/sa/care-desk"), ToNobody("malformed")),
        ("a query", one("spiffe://lumenfield.example/ns/care/sa/care-desk?a=b"), ToNobody("malformed")),
        ("a fragment", one("spiffe://lumenfield.example/ns/care/sa/care-desk#a"), ToNobody("malformed")),
        ("percent-encoding", one("spiffe://lumenfield.example/ns/care/sa/care%2Ddesk"), ToNobody("malformed")),
        ("a dot segment", one("spiffe://lumenfield.example/ns/x/../care/sa/care-desk"), ToNobody("malformed")),
        ("a single dot", one("spiffe://lumenfield.example/ns/./care/sa/care-desk"), ToNobody("malformed")),
        ("an empty segment", one("spiffe://lumenfield.example/ns//care/sa/care-desk"), ToNobody("malformed")),
        ("a star for a segment", one("spiffe://lumenfield.example/ns/care/sa/*"), ToNobody("malformed")),
        ("no trust domain", one("spiffe:///ns/care/sa/care-desk"), ToNobody("malformed")),
        ("an empty URI", one(""), ToNobody("malformed")),
        ("a NUL in it", raw(&[(URI, b"spiffe://lumenfield.example/ns/care/sa/care-desk\0.b")]), ToNobody("malformed")),
        ("no text", raw(&[(URI, b"spiffe://lumenfield.example/\xff\xfe")]), ToNobody("malformed")),
        (
            "letters like others",
            raw(&[(URI, "spiffe://lumenfield.example/ns/c\u{430}re".as_bytes())]),
            ToNobody("malformed"),
        ),
        ("a DNS name", names(&[dns("desk.lumenfield.example")]), Is("care-desk")),
        ("a DNS name in capitals", names(&[dns("DESK.Lumenfield.Example")]), Is("care-desk")),
        ("a DNS name of no party", names(&[dns("bid.adsync.example")]), ToStranger),
        ("two DNS names", names(&[dns("desk.lumenfield.example"), dns("b.example")]), ToNobody("several_identities")),
        ("a DNS name with a star", names(&[dns("*.lumenfield.example")]), ToNobody("malformed")),
        ("a DNS name with a dot at its end", names(&[dns("desk.lumenfield.example.")]), ToNobody("malformed")),
        ("a DNS name with a NUL", raw(&[(DNS, b"desk.lumenfield.example\0.b.example")]), ToNobody("malformed")),
        ("no names but the common name", names(&[]), ToNobody("missing")),
        ("a mail address alone", raw(&[(MAIL, b"a@b.example")]), ToNobody("missing")),
        ("an empty list of names", raw(&[]), ToNobody("missing")),
        ("a list of names that is none", raw_names(b"\x04\x02ab".to_vec()), NotIn),
        ("a list of names that is cut off", raw_names(b"\x30\x7fab".to_vec()), NotIn),
        ("two lists of names", raw_extension(one(CARE_DESK), &[2, 5, 29, 17], der(0x30, &der(URI, desk))), NotIn),
        ("may sign certificates", key_usage(KeyUsagePurpose::KeyCertSign), ToNobody("not_a_leaf")),
        ("may sign lists", key_usage(KeyUsagePurpose::CrlSign), ToNobody("not_a_leaf")),
        (
            "a DNS name that may sign",
            with(names(&[dns("desk.lumenfield.example")]), |params| {
                params.key_usages = vec![KeyUsagePurpose::KeyCertSign]
            }),
            ToNobody("not_a_leaf"),
        ),
        (
            "an authority",
            with(one(CARE_DESK), |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            NotIn,
        ),
        ("for services", purpose(ExtendedKeyUsagePurpose::ServerAuth), NotIn),
        (
            "an unknown extension that counts",
            with(raw_extension(one(CARE_DESK), &[1, 3, 6, 1, 4, 1, 99_999], vec![5, 0]), |params| {
                params.custom_extensions[0].set_criticality(true)
            }),
            NotIn,
        ),
    ]
}

fn comes(sidecar: &Sidecar, asked: Result<crate::support::Answer, String>) -> Result<Comes, String> {
    let Ok(answer) = asked else { return Ok(NotIn) };
    let record = sidecar.decision(&answer.decision_id());
    let why = record["unknown"]["caller"]["why"].as_str().map(str::to_owned);
    let proof = record["transport"]["proof"].as_str().unwrap();
    let known = Comes::ALL.iter().copied();
    match (answer.status, record["caller_id"].as_str(), why) {
        (200, Some("care-desk"), None) if proof == "certificate" => Ok(Is("care-desk")),
        (403, _, None) if answer.reason() == "recipient_unknown" && proof == "certificate" => Ok(ToStranger),
        (401, None, Some(why)) if proof == "none" => {
            known.into_iter().find(|comes| *comes == ToNobody(word(&why))).ok_or_else(|| why.clone())
        }
        _ => Err(record.to_string()),
    }
}

impl Comes {
    const ALL: [Self; 5] = [
        ToNobody("malformed"),
        ToNobody("several_identities"),
        ToNobody("not_a_leaf"),
        ToNobody("foreign_trust_domain"),
        ToNobody("missing"),
    ];
}

/// The word itself, if it is one of those that are looked for.
fn word(why: &str) -> &'static str {
    ["malformed", "several_identities", "not_a_leaf", "foreign_trust_domain", "missing"]
        .into_iter()
        .find(|word| *word == why)
        .unwrap_or("something else")
}

#[test]
fn certificates_and_their_callers() {
    let upstream = Upstream::ok();
    let (sidecar, authority) = Tls::to(&upstream.address).start();
    let mut wrong = Vec::new();
    for (name, params, expected) in table() {
        let pair = authority.sign(params);
        let asked = Caller::new(&authority.pem, Some(&pair)).ask(&sidecar.address, &request());
        let got = comes(&sidecar, asked);
        if got != Ok(expected) {
            wrong.push(format!("{name}: expected {expected:?}, got {got:?}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn trust_domains_that_are_listed() {
    let upstream = Upstream::ok();
    let mut tls = Tls::to(&upstream.address);
    tls.identity = "certificate: {trust_domains: [lumenfield.example, outardes.example]}";
    let (sidecar, authority) = tls.start();
    let table = [
        ("listed", one(CARE_DESK), Is("care-desk")),
        ("not listed", one(STRANGER), ToNobody("foreign_trust_domain")),
        (
            "below one that is listed",
            one("spiffe://a.lumenfield.example/ns/care/sa/care-desk"),
            ToNobody("foreign_trust_domain"),
        ),
        ("begins like one that is listed", one("spiffe://lumenfield.example.org/a"), ToNobody("foreign_trust_domain")),
        ("a DNS name is in none", names(&[dns("desk.lumenfield.example")]), Is("care-desk")),
        ("malformed goes first", one("spiffe://adsync.example/a//b"), ToNobody("malformed")),
    ];
    for (name, params, expected) in table {
        let pair = authority.sign(params);
        let asked = Caller::new(&authority.pem, Some(&pair)).ask(&sidecar.address, &request());
        assert_eq!(comes(&sidecar, asked), Ok(expected), "{name}");
    }
}

/// A caller with a certificate cannot name somebody else in a header, even from a trusted address.
#[test]
fn a_header_beside_a_certificate() {
    let upstream = Upstream::ok();
    let mut tls = Tls::to(&upstream.address);
    tls.identity = "{certificate: {}}, {header: {name: DPA-Caller, trusted_peers: [127.0.0.1/32]}}";
    let (sidecar, authority) = tls.start();
    let caller = Caller::new(&authority.pem, Some(&authority.caller(STRANGER)));
    let said = crate::support::permitted();
    let answer = caller.ask(&sidecar.address, &said).unwrap();
    let record = sidecar.decision(&answer.decision_id());
    assert_eq!((answer.status, &record["unknown"]["caller"]["why"]), (401, &"contradicted".into()), "{record}");
    let caller = Caller::new(&authority.pem, Some(&authority.caller(CARE_DESK)));
    assert_eq!(caller.ask(&sidecar.address, &said).unwrap().status, 200, "both name the same");
}
