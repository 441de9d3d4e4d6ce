//! Gateways that prove who they are by their own certificates and speak for callers.

use super::SHOWN;
use super::Tls;
use super::material::Caller;
use crate::support::CARE_DESK;
use crate::support::Head;
use crate::support::ROLLUP;
use crate::support::STRANGER;
use crate::support::SUBSCRIBER;
use crate::support::Upstream;
use crate::support::out;
use crate::support::run;

const GATEWAY: &str = "spiffe://mesh.example/ns/edge/sa/gateway";
const XFCC: &str = "X-Forwarded-Client-Cert";

/// What it is, whose certificate, which headers, and the caller with where it is known from.
type Row<'a> = (&'a str, &'a str, Vec<(&'a str, String)>, Result<(&'a str, &'a str), &'a str>);

#[test]
fn a_gateway_speaks_for_callers_and_a_caller_for_itself() {
    let upstream = Upstream::ok();
    let mut tls = Tls::to(&upstream.address);
    // Callers are of one trust domain, the gateway of another. The order in the file does not matter.
    tls.identity = "{header: {name: DPA-Caller, trusted_peers: ['spiffe://mesh.example/ns/*/sa/gateway']}}, \
        {forwarded_certificate: {trusted_peers: ['spiffe://mesh.example/ns/*/sa/gateway']}}, \
        {certificate: {trust_domains: [lumenfield.example, adsync.example]}}";
    let (sidecar, authority) = tls.start();
    let xfcc = |identity: &str| (XFCC, format!("By={GATEWAY};Hash=00;URI={identity}"));
    let header = |identity: &str| ("DPA-Caller", identity.to_owned());
    let table: Vec<Row<'_>> = vec![
        ("a caller", CARE_DESK, vec![], Ok(("care-desk", "certificate"))),
        ("a gateway for a caller", GATEWAY, vec![xfcc(CARE_DESK)], Ok(("care-desk", "forwarded_certificate"))),
        ("a gateway for a caller, by a header", GATEWAY, vec![header(CARE_DESK)], Ok(("care-desk", "header"))),
        (
            "a gateway for a caller, by both",
            GATEWAY,
            vec![header(CARE_DESK), xfcc(CARE_DESK)],
            Ok(("care-desk", "forwarded_certificate")),
        ),
        ("a gateway for two callers", GATEWAY, vec![header(ROLLUP), xfcc(CARE_DESK)], Err("contradicted")),
        ("a gateway for a stranger", GATEWAY, vec![xfcc(STRANGER)], Ok((STRANGER, "forwarded_certificate"))),
        ("a gateway whose word is malformed", GATEWAY, vec![(XFCC, "URI".to_owned())], Err("malformed")),
        ("a gateway for nobody", GATEWAY, vec![], Err("foreign_trust_domain")),
        ("a caller that names another", CARE_DESK, vec![xfcc(ROLLUP)], Ok(("care-desk", "certificate"))),
        ("a stranger that names a caller", STRANGER, vec![xfcc(CARE_DESK)], Ok((STRANGER, "certificate"))),
        (
            "a stranger that names a caller behind a gateway",
            STRANGER,
            vec![(XFCC, format!("URI={CARE_DESK},URI={GATEWAY}")), header(CARE_DESK)],
            Ok((STRANGER, "certificate")),
        ),
    ];
    for (name, certificate, headers, expected) in table {
        let pair = authority.caller(certificate);
        let head = Head::bare("GET", SUBSCRIBER).with("DPA-Context", "purpose=customer_support");
        let head = headers.iter().fold(head, |head, (name, value)| head.with(name, value));
        let answer = Caller::new(&authority.pem, Some(&pair)).ask(&sidecar.address, &head.end()).unwrap();
        let record = sidecar.decision(&answer.decision_id());
        let caller = match record["unknown"]["caller"]["why"].as_str() {
            Some(why) => Err(why),
            None => Ok((record["caller_id"].as_str().unwrap(), record["sources"]["caller"].as_str().unwrap())),
        };
        assert_eq!(caller, expected, "{name}: {record}");
        // Who vouched, and what nobody vouched for.
        let transport = &record["transport"];
        let carrier = (certificate == GATEWAY).then_some(GATEWAY);
        assert_eq!(transport["peer"].as_str(), carrier, "{name}: {record}");
        let is_ignored = carrier.is_none() && !headers.is_empty();
        assert_eq!(transport["unproven"].as_bool(), is_ignored.then_some(true), "{name}: {record}");
        let status = match expected {
            Ok(("care-desk", _)) => 200,
            Ok(_) => 403,
            Err(_) => 401,
        };
        assert_eq!(answer.status, status, "{name}");
    }
    for seen in upstream.seen() {
        assert!(seen.head.value(XFCC).is_none() && seen.head.value("DPA-Caller").is_none(), "{:?}", seen.head);
    }
}

#[test]
fn a_gateway_whose_certificate_nobody_asks_for_is_warned_of() {
    let mut tls = Tls::to("127.0.0.1:9");
    tls.identity = "{header: {name: DPA-Caller, trusted_peers: [127.0.0.1, 'dns:gateway.example']}}";
    let said = |tls: &Tls| {
        tls.folder.write("sidecar.yaml", &tls.settings());
        out(&run(&tls.folder.file("."), &["check", "sidecar.yaml"]))
    };
    let told = "warning[DPA031]: `dns:gateway.example` is told by its certificate, and no listener asks for one";
    assert!(!said(&tls).contains(told), "{}", said(&tls));
    tls.listener = format!("{{{SHOWN}}}");
    assert!(said(&tls).contains(told), "{}", said(&tls));
}

#[test]
fn an_authority_could_name_callers_of_another_and_nobody_was_told() {
    let mut tls = Tls::to("127.0.0.1:9");
    let said = |tls: &Tls| {
        tls.folder.write("sidecar.yaml", &tls.settings());
        out(&run(&tls.folder.file("."), &["check", "sidecar.yaml"]))
    };
    let told = "warning[DPA035]: each of these authorities may vouch for callers of every trust domain and name";
    let one = tls.authority.pem.clone();
    let two = one.clone() + &super::material::Authority::new("Another Authority").pem;
    // The policy of these tests has a DNS name.
    let table = [
        ("one authority", &one, "certificate: {}", false),
        ("two", &two, "certificate: {}", true),
        ("one, twice in the file", &(one.clone() + &one), "certificate: {}", false),
        ("two, one trust domain, and a DNS name", &two, "certificate: {trust_domains: [lumenfield.example]}", true),
        ("two, and no certificate counts", &two, "header: {name: DPA-Caller, trusted_peers: [127.0.0.1]}", false),
        (
            "two, and a peer by its certificate",
            &two,
            "header: {name: DPA-Caller, trusted_peers: ['dns:a.example']}",
            true,
        ),
    ];
    for (name, bundle, identity, expected) in table {
        tls.folder.write("ca.crt", bundle);
        tls.identity = identity;
        let said = said(&tls);
        assert_eq!(said.contains(told), expected, "{name}: {said}");
    }
}
