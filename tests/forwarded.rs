//! Callers that somebody else tells of: who is believed, and what is never sent on.

use serde_json::Value;

use crate::support::Answer;
use crate::support::CARE_DESK;
use crate::support::Connection;
use crate::support::Folder;
use crate::support::Head;
use crate::support::ROLLUP;
use crate::support::STRANGER;
use crate::support::SUBSCRIBER;
use crate::support::Setup;
use crate::support::Sidecar;
use crate::support::Upstream;
use crate::support::repository;
use crate::support::run;

/// The proxy in front, whose word is taken.
const PROXY: [u8; 4] = [127, 0, 0, 2];
/// Somebody on the same machine.
const ANYBODY: [u8; 4] = [127, 0, 0, 1];

const GATEWAY: &str = "spiffe://mesh.example/ns/edge/sa/gateway";
const XFCC: &str = "X-Forwarded-Client-Cert";

/// In front of the data service; the proxy is trusted with both headers.
fn setup(upstream: &Upstream) -> Setup {
    let ways = ", {forwarded_certificate: {trusted_peers: [127.0.0.2/32, 'spiffe://mesh.example/ns/*/sa/gateway']}}";
    Setup { peers: "127.0.0.2/32", ways, ..Setup::to(&upstream.address) }
}

/// Sends a request from an address, with these headers, and gives back the answer and its record.
fn asked(sidecar: &Sidecar, from: [u8; 4], headers: &[(&str, &str)]) -> (Answer, Value) {
    let head = Head::bare("GET", SUBSCRIBER).with("DPA-Context", "purpose=customer_support");
    let head = headers.iter().fold(head, |head, (name, value)| head.with(name, value));
    let mut connection = Connection::from(from, &sidecar.address);
    connection.send(head.end());
    let answer = connection.answer().unwrap_or_else(|| panic!("no answer to {headers:?}"));
    let record = sidecar.decision(&answer.decision_id());
    (answer, record)
}

/// The caller of a record and where it is known from, or why it is not.
fn caller(record: &Value) -> Result<(&str, &str), &str> {
    match record["unknown"]["caller"]["why"].as_str() {
        Some(why) => Err(why),
        None => {
            let id = record["caller_id"].as_str().unwrap_or("(not shown)");
            Ok((id, record["sources"]["caller"].as_str().unwrap()))
        }
    }
}

/// On the connection itself such a certificate has always named nobody, see `tls::names`.
#[test]
fn a_certificate_was_another_caller_behind_a_proxy() {
    let upstream = Upstream::ok();
    let sidecar = setup(&upstream).start();
    let table = [
        ("a web address beside a DNS name", (XFCC, "URI=https://a.example/x;DNS=a.example")),
        ("a web address alone", (XFCC, "URI=https://a.example/x")),
        ("a trust domain", (XFCC, "URI=spiffe://lumenfield.example")),
        ("a trust domain, in a header", ("DPA-Caller", "spiffe://lumenfield.example")),
    ];
    for (name, header) in table {
        let (answer, record) = asked(&sidecar, PROXY, &[header]);
        assert_eq!((answer.status, caller(&record)), (401, Err("malformed")), "{name}: {record}");
    }
}

#[test]
fn a_record_did_not_say_who_vouched_for_the_caller() {
    let upstream = Upstream::ok();
    let sidecar = setup(&upstream).start();
    let forwarded = (XFCC, &*format!("URI={CARE_DESK}"));
    let nothing = Value::Null;
    let table = [
        ("a trusted address that names a caller", PROXY, vec![forwarded], "address".into(), nothing.clone()),
        ("a trusted address that names nobody", PROXY, vec![], "address".into(), nothing.clone()),
        ("anybody who names a caller", ANYBODY, vec![forwarded], nothing.clone(), true.into()),
        (
            "anybody who names a caller in a header",
            ANYBODY,
            vec![("DPA-Caller", CARE_DESK)],
            nothing.clone(),
            true.into(),
        ),
        ("anybody who names nobody", ANYBODY, vec![], nothing.clone(), nothing),
    ];
    for (name, from, headers, peer, unproven) in table {
        let (_, record) = asked(&sidecar, from, &headers);
        let transport = &record["transport"];
        assert_eq!((&transport["peer"], &transport["unproven"]), (&peer, &unproven), "{name}: {record}");
    }
}

#[test]
fn who_calls_by_a_forwarded_certificate() {
    let upstream = Upstream::ok();
    let sidecar = setup(&upstream).start();
    let uri = |uri: &str| format!("URI={uri}");
    let chain = |elements: &[&str]| elements.join(",");
    let hash = "Hash=468ed33be74eee6556d90c0149c1309e9ba61d6425303443c0748a02dd8de688";
    let table: Vec<(&str, String, Result<&str, &str>)> = vec![
        ("a SPIFFE ID alone", uri(CARE_DESK), Ok("care-desk")),
        (
            "as Envoy writes it",
            format!(
                "By={GATEWAY};{hash};Subject=\"CN=care, O=Lumenfield\";URI={CARE_DESK};DNS=a.example;DNS=b.example"
            ),
            Ok("care-desk"),
        ),
        ("in quotes", format!("URI=\"{CARE_DESK}\""), Ok("care-desk")),
        ("with a certificate", format!("Cert=\"-----BEGIN%20CERTIFICATE-----%0A\";URI={CARE_DESK}"), Ok("care-desk")),
        ("keys in other letters", format!("by=x;uri={CARE_DESK}"), Ok("care-desk")),
        (
            "blanks around pairs and elements",
            format!(" By=x ; URI={CARE_DESK} , Hash=1;\tURI={CARE_DESK} "),
            Ok("care-desk"),
        ),
        ("a proxy with several names", format!("By=spiffe://a.example/x;By=dns:b;URI={CARE_DESK}"), Ok("care-desk")),
        ("a subject with everything in it", format!("Subject=\"a\\\",URI=x;b\\\\\";URI={CARE_DESK}"), Ok("care-desk")),
        ("a subject that is no text", format!("Subject=\"CN=\u{e9}\";URI={CARE_DESK}"), Ok("care-desk")),
        ("an empty DNS", format!("DNS=;URI={CARE_DESK}"), Ok("care-desk")),
        ("no party to the agreement", uri(STRANGER), Ok(STRANGER)),
        ("a DNS name, which is not shown", "URI=;DNS=Billing.Example".to_owned(), Ok("(not shown)")),
        ("a URI of another kind, and a DNS name", "URI=https://a.example/x;DNS=a.example".to_owned(), Err("malformed")),
        // The nearest proxy wrote the last element.
        ("two elements", chain(&[&uri(ROLLUP), &uri(CARE_DESK)]), Ok("care-desk")),
        ("an element of its own making before it", chain(&[&uri(CARE_DESK), &uri(STRANGER)]), Ok(STRANGER)),
        ("a gateway behind the proxy, for a caller", chain(&[&uri(CARE_DESK), &uri(GATEWAY)]), Ok("care-desk")),
        ("a gateway for itself", uri(GATEWAY), Ok(GATEWAY)),
        (
            "two gateways for a caller that named somebody",
            chain(&[&uri(CARE_DESK), &uri(ROLLUP), "URI=spiffe://mesh.example/ns/b/sa/gateway", &uri(GATEWAY)]),
            Ok("rollup"),
        ),
        ("a gateway for a caller without a name", chain(&[&uri(CARE_DESK), hash, &uri(GATEWAY)]), Err("malformed")),
        ("the last has no name", chain(&[&uri(CARE_DESK), hash]), Err("malformed")),
        ("the last is empty", chain(&[&uri(CARE_DESK), ""]), Err("malformed")),
        ("an empty one before the last", chain(&["", &uri(CARE_DESK)]), Err("malformed")),
        ("nothing", String::new(), Err("malformed")),
        ("names that are empty", "URI=;DNS=".to_owned(), Err("malformed")),
        ("no pair", CARE_DESK.to_owned(), Err("malformed")),
        ("no key", format!("={CARE_DESK}"), Err("malformed")),
        ("a key that nobody knows", format!("SAN={CARE_DESK};URI={CARE_DESK}"), Err("malformed")),
        ("a blank before the `=`", format!("URI ={CARE_DESK}"), Err("malformed")),
        ("a `;` at the end", format!("URI={CARE_DESK};"), Err("malformed")),
        ("a quote that is not closed", format!("Subject=\"CN=a;URI={CARE_DESK}"), Err("malformed")),
        ("a quote in the middle", format!("Subject=CN\"a\";URI={CARE_DESK}"), Err("malformed")),
        ("something behind a quote", format!("Subject=\"CN\"a;URI={CARE_DESK}"), Err("malformed")),
        ("an escape outside quotes", format!("Subject=a\\;b;URI={CARE_DESK}"), Err("malformed")),
        ("a `=` outside quotes", format!("Subject=CN=a;URI={CARE_DESK}"), Err("malformed")),
        (
            "a caller that opens a quote to hide what the proxy wrote",
            chain(&[&format!("URI={CARE_DESK};Subject=\""), &format!("By=x;Subject=\"CN=a\";URI={STRANGER}")]),
            Err("malformed"),
        ),
        ("a SPIFFE ID that is none", "URI=spiffe://Lumenfield.example/x;DNS=a.example".to_owned(), Err("malformed")),
        ("a SPIFFE ID of capitals", "URI=SPIFFE://lumenfield.example/x;DNS=a.example".to_owned(), Err("malformed")),
        ("a trust domain", uri("spiffe://lumenfield.example"), Err("malformed")),
        ("a pattern", uri("spiffe://lumenfield.example/ns/care/sa/*"), Err("malformed")),
        ("a DNS name with a wildcard", "DNS=*.example".to_owned(), Err("malformed")),
        ("the identity of a token", uri("jwt:https://id.example|x"), Err("malformed")),
        ("JSON", format!("[{{\"uri\":\"{CARE_DESK}\"}}]"), Err("malformed")),
        ("two URIs", format!("URI={CARE_DESK};URI={ROLLUP}"), Err("several_identities")),
        ("one URI twice", format!("URI={CARE_DESK};URI={CARE_DESK}"), Err("several_identities")),
        ("one of two URIs a SPIFFE ID", format!("URI={CARE_DESK};URI=https://a.example"), Err("several_identities")),
        ("two DNS names", "DNS=a.example;DNS=b.example".to_owned(), Err("several_identities")),
        ("too long", format!("Cert=\"{}\";URI={CARE_DESK}", "x".repeat(33_000)), Err("too_large")),
        ("too many proxies", chain(&[uri(CARE_DESK).as_str(); 17]), Err("too_large")),
        ("as many as may be", chain(&[uri(CARE_DESK).as_str(); 16]), Ok("care-desk")),
    ];
    for (name, value, expected) in &table {
        let (answer, record) = asked(&sidecar, PROXY, &[(XFCC, value)]);
        assert_eq!(caller(&record), expected.map(|id| (id, "forwarded_certificate")), "{name}: {record}");
        let status = match expected {
            Ok("care-desk") => 200,
            Ok(_) => 403,
            Err(_) => 401,
        };
        assert_eq!(answer.status, status, "{name}");
        // The same from anybody else proves nothing.
        let (answer, record) = asked(&sidecar, ANYBODY, &[(XFCC, value)]);
        assert_eq!((answer.status, caller(&record)), (401, Err("unproven")), "{name}, from anybody");
    }
    for seen in upstream.seen() {
        assert!(seen.head.value(XFCC).is_none(), "{:?}", seen.head);
    }
}

/// What it is, from where, with which headers, and the caller with where it is known from.
type Row<'a> = (&'a str, [u8; 4], Vec<(&'a str, &'a str)>, Result<(&'a str, &'a str), &'a str>);

#[test]
fn who_calls_by_several_headers() {
    let upstream = Upstream::ok();
    let sidecar = setup(&upstream).start();
    let care = format!("URI={CARE_DESK}");
    let care = care.as_str();
    let forwarded = |id| Ok((id, "forwarded_certificate"));
    let table: [Row<'_>; 14] = [
        ("none", PROXY, vec![], Err("missing")),
        ("a header", PROXY, vec![("DPA-Caller", CARE_DESK)], Ok(("care-desk", "header"))),
        ("a header from anybody", ANYBODY, vec![("DPA-Caller", CARE_DESK)], Err("unproven")),
        ("both from anybody", ANYBODY, vec![(XFCC, care), ("DPA-Caller", CARE_DESK)], Err("unproven")),
        // The file has the header first: the stronger wins all the same.
        ("both, of one caller", PROXY, vec![("DPA-Caller", CARE_DESK), (XFCC, care)], forwarded("care-desk")),
        ("both, of two callers", PROXY, vec![(XFCC, care), ("DPA-Caller", ROLLUP)], Err("contradicted")),
        ("both, the header of a stranger", PROXY, vec![(XFCC, care), ("DPA-Caller", STRANGER)], Err("contradicted")),
        ("both, the header malformed", PROXY, vec![(XFCC, care), ("DPA-Caller", "care-desk")], Err("malformed")),
        ("both, the certificate malformed", PROXY, vec![(XFCC, "x"), ("DPA-Caller", CARE_DESK)], Err("malformed")),
        ("two lines of certificates", PROXY, vec![(XFCC, care), (XFCC, care)], Err("contradicted")),
        (
            "two lines of headers",
            PROXY,
            vec![("DPA-Caller", CARE_DESK), ("dpa-caller", CARE_DESK)],
            Err("contradicted"),
        ),
        ("spelt otherwise", PROXY, vec![("DPA_Caller", CARE_DESK), ("x_forwarded_client_cert", care)], Err("missing")),
        (
            "spelt otherwise beside the right ones",
            PROXY,
            vec![(XFCC, care), ("x_forwarded_client_cert", "URI=x"), ("dpa_caller", ROLLUP), ("DPA_Context", "x=1")],
            forwarded("care-desk"),
        ),
        (
            "named in Connection",
            PROXY,
            vec![("Connection", "x-forwarded-client-cert, dpa-caller, dpa-context"), (XFCC, care)],
            forwarded("care-desk"),
        ),
    ];
    for (name, from, headers, expected) in &table {
        let (answer, record) = asked(&sidecar, *from, headers);
        assert_eq!(caller(&record), *expected, "{name}: {record}");
        assert_eq!(answer.status, if expected.is_ok() { 200 } else { 401 }, "{name}");
    }
    for seen in upstream.seen() {
        let names: Vec<String> = seen.head.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
        let context = seen.head.value("dpa-context");
        assert_eq!(context, Some("customer=\"redwood-strand\", purpose=\"customer_support\""));
        for banned in ["caller", "client-cert", "client_cert", "dpa_"] {
            assert!(!names.iter().any(|name| name.contains(banned)), "{names:?}");
        }
    }
}

/// What each party is there for, by the word of a proxy: a purpose that is named selects, and never adds.
#[test]
fn purposes_are_those_of_the_caller_that_is_named() {
    let upstream = Upstream::ok();
    let sidecar = setup(&upstream).start();
    let in_quebec = Setup { upstream_keys: ", storage_location: CA-QC", ..setup(&upstream) }.start();
    let at = |customer: &str| format!("/v1/customers/{customer}/subscribers/1a2b");
    let table = [
        ("an own caller, its purpose", CARE_DESK, "redwood-strand", "customer_support", "permit"),
        (
            "an own caller, another's purpose",
            CARE_DESK,
            "redwood-strand",
            "billing_payment",
            "purpose_not_bound_to_caller",
        ),
        ("an own caller, a purpose that nobody may have", CARE_DESK, "redwood-strand", "sale", "purpose_prohibited"),
        (
            "people whose undertaking is over",
            "spiffe://lumenfield.example/ns/care/sa/care-temp",
            "redwood-strand",
            "customer_support",
            "confidentiality_missing",
        ),
        (
            "people who travel, without a claim of where they are",
            "spiffe://lumenfield.example/ns/care/sa/care-roaming",
            "redwood-strand",
            "customer_support",
            "location_unknown",
        ),
        (
            "a subprocessor, its purpose",
            "spiffe://ticketriver.example/sa/sync",
            "redwood-strand",
            "customer_support",
            "permit",
        ),
        (
            "a subprocessor, another purpose",
            "spiffe://ticketriver.example/sa/sync",
            "redwood-strand",
            "billing_payment",
            "subprocessor_scope",
        ),
        (
            "a customer's own caller, with its own data",
            "spiffe://outardes.example/sa/portal",
            "fibre-outardes",
            "customer_support",
            "permit",
        ),
        (
            "a customer's own caller, with another's",
            "spiffe://outardes.example/sa/portal",
            "redwood-strand",
            "customer_support",
            "customer_mismatch",
        ),
        ("no party", STRANGER, "redwood-strand", "customer_support", "recipient_unknown"),
    ];
    for (name, identity, customer, purpose, expected) in table {
        for (header, value) in [(XFCC, format!("URI={identity}")), ("DPA-Caller", identity.to_owned())] {
            let head = Head::bare("GET", &at(customer)).with("DPA-Context", &format!("purpose={purpose}"));
            let sidecar = if customer == "fibre-outardes" { &in_quebec } else { &sidecar };
            let mut connection = Connection::from(PROXY, &sidecar.address);
            connection.send(head.with(header, &value).end());
            let answer = connection.answer().unwrap();
            let record = sidecar.decision(&answer.decision_id());
            let codes: Vec<&str> = record["reasons"].as_array().map_or(vec!["permit"], |reasons| {
                reasons.iter().map(|reason| reason["code"].as_str().unwrap()).collect()
            });
            assert!(codes.contains(&expected), "{name}, {header}: {codes:?}");
            assert_eq!(answer.status == 200, expected == "permit", "{name}, {header}");
        }
    }
}

#[test]
fn identities_that_no_way_can_prove_are_warned_of() {
    let folder = Folder::new();
    let text = std::fs::read_to_string(repository("tests/valid-policy.yaml")).unwrap();
    let two =
        "[\"dns:sync.ticketriver.example\", \"jwt:https://id.ticketriver.example|a\", \"jwt:https://b.example|c\"]";
    folder.write("policy.yaml", &text.replace("[\"spiffe://ticketriver.example/sa/sync\"]", two));
    let settings = |ways: &str| {
        let setup = Setup::to("127.0.0.1:9");
        let (before, rest) = setup.text().split_once("identity:").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        let policy = Value::from(repository("config/policy.yaml").to_str().unwrap()).to_string();
        let rest = rest.split_once('\n').unwrap().1.to_owned();
        let text = format!("{before}identity: {ways}\n{rest}");
        folder.write("sidecar.yaml", &text.replace(&policy, "policy.yaml"));
        let output = run(&folder.file("."), &["check", "sidecar.yaml"]);
        assert_eq!(output.status.code(), Some(0), "{ways}: {}", crate::support::out(&output));
        crate::support::out(&output)
    };
    let header = "[{header: {name: DPA-Caller, trusted_peers: [127.0.0.1]}}]";
    assert!(!settings(header).contains("can prove"));
    let text = settings("[{forwarded_certificate: {trusted_peers: ['dns:edge.example']}}]");
    assert!(
        text.contains("warning[DPA031]: no way of `identity` can prove `jwt:https://b.example|c`, nor 1 more"),
        "{text}"
    );
    assert_eq!(text.matches("can prove").count(), 1, "{text}");
}

#[test]
fn peers_that_cannot_be_meant_are_refused() {
    let table = [
        ("a host", "proxy", "neither a network nor an identity"),
        ("everybody", "'*'", "neither a network nor an identity"),
        ("a pattern of DNS names", "'dns:*.example'", "is not an identity"),
        ("a part of a segment", "'spiffe://mesh.example/gate*'", "is not an identity"),
        ("a token", "'jwt:https://id.example|a'", "is not an identity that a connection can prove"),
        ("nobody", "", "this list is empty"),
    ];
    for (name, peers, expected) in table {
        for way in ["forwarded_certificate: {", "header: {name: X-Caller, "] {
            let folder = Folder::new();
            let text = Setup::to("127.0.0.1:9").text();
            let ways = format!("identity: [{{{way}trusted_peers: [{peers}]}}}},");
            folder.write("sidecar.yaml", &text.replace("identity: [", &ways));
            let output = run(&folder.file("."), &["check", "sidecar.yaml"]);
            let text = crate::support::out(&output);
            assert!(output.status.code() == Some(1) && text.contains(expected), "{name}, {way}: {text}");
        }
    }
}

#[test]
fn headers_that_cannot_name_a_caller_are_refused() {
    let table = [
        ("what has a way of its own", "X-Forwarded-Client-Cert", "has its own way"),
        ("the host", "Host", "`host` says something else"),
        ("the context", "dpa-context", "`dpa-context` says something else"),
        ("a length", "Content-Length", "`content-length` says something else"),
        ("no name", "'DPA Caller'", "is not the name of a header"),
    ];
    for (name, header, expected) in table {
        let folder = Folder::new();
        let text = Setup::to("127.0.0.1:9").text().replace("name: DPA-Caller", &format!("name: {header}"));
        folder.write("sidecar.yaml", &text);
        let output = run(&folder.file("."), &["check", "sidecar.yaml"]);
        let text = crate::support::out(&output);
        assert!(output.status.code() == Some(1) && text.contains(expected), "{name}: {text}");
    }
}

/// Words that occur nowhere else are in no record, no answer and no log.
#[test]
fn nothing_of_a_certificate_that_is_told_of_is_written_down() {
    let upstream = Upstream::ok();
    let sidecar = setup(&upstream).start();
    let table = [
        (
            "beside a caller",
            format!("By=canaria;Hash=canaria;Subject=\"CN=canaria\";DNS=canaria.example;URI={CARE_DESK}"),
        ),
        ("a DNS name", "DNS=canaria.example".to_owned()),
        ("a URI of another kind", "URI=https://canaria.example".to_owned()),
        ("two URIs", "URI=spiffe://canaria.example/a;URI=spiffe://canaria.example/b".to_owned()),
        ("before the last", format!("URI=spiffe://canaria.example/a,URI={CARE_DESK}")),
        ("malformed", "canaria=\"canaria".to_owned()),
    ];
    for (name, value) in &table {
        for from in [PROXY, ANYBODY] {
            let (answer, _) = asked(&sidecar, from, &[(XFCC, value), ("DPA_Caller", "canaria")]);
            assert!(!answer.everything().contains("canaria"), "{name}: {answer:?}");
        }
    }
    let stopped = sidecar.stop();
    let log = std::fs::read_to_string(stopped.folder.file("decisions.ndjson")).unwrap();
    for (sink, text) in [("decision log", log), ("stdout", stopped.stdout), ("stderr", stopped.stderr)] {
        assert!(!text.to_ascii_lowercase().contains("canaria"), "{sink}: {text}");
    }
    assert!(!format!("{:?}", upstream.seen()).contains("canaria"));
}
