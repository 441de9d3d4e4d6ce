//! `replay`: records of one policy, decided with another.

use std::process::Command;
use std::process::Stdio;

use dpa_sidecar::decide::decide;
use dpa_sidecar::decide::facts::Caller;
use dpa_sidecar::decide::facts::Direction;
use dpa_sidecar::decide::facts::Fact;
use dpa_sidecar::decide::facts::Facts;
use dpa_sidecar::decide::facts::Source;
use dpa_sidecar::decide::facts::Transport;
use dpa_sidecar::decide::facts::Why;
use dpa_sidecar::gate::act;
use dpa_sidecar::policy::Enforcement;
use dpa_sidecar::policy::Party;
use dpa_sidecar::policy::Policy;
use dpa_sidecar::policy::TlsVersion;
use dpa_sidecar::policy::terms::Operation;
use dpa_sidecar::record::Batch;
use dpa_sidecar::record::chain::Head;
use dpa_sidecar::record::entry;
use dpa_sidecar::record::entry::About;
use dpa_sidecar::record::entry::Action;
use dpa_sidecar::record::entry::POLICY_STALE;
use dpa_sidecar::record::entry::Writer;
use dpa_sidecar::record::recorded::Recorded;
use dpa_sidecar::record::recorded::Undecidable;
use http::Method;
use proptest::prelude::*;
use serde_json::Value;
use uuid::Uuid;

use crate::diff::Dice;
use crate::diff::Pair;
use crate::diff::agreed_and_next;
use crate::diff::mutation;
use crate::docs::document;
use crate::properties::Asked;
use crate::properties::OWN;
use crate::properties::SAMPLE;
use crate::properties::compile;
use crate::support::Folder;
use crate::support::Head as Ask;
use crate::support::SUBSCRIBER;
use crate::support::Setup;
use crate::support::Upstream;
use crate::support::as_golden;
use crate::support::err;
use crate::support::out;
use crate::support::repository;
use crate::support::run;

/// A request as it came, whatever the policy.
#[derive(Clone, Debug)]
struct Came {
    asked: Asked,
    transport: Transport,
    /// On egress: the caller as the settings name it.
    service: Option<&'static str>,
    route: Option<&'static str>,
    /// Why the service denied it, whatever the rules say.
    denied_by_service: Option<&'static str>,
}

impl Came {
    fn facts<'a>(&'a self, policy: &Policy) -> Facts<'a> {
        let mut facts = self.asked.facts(policy);
        facts.transport = self.transport;
        facts.route = self.route;
        if let Some(name) = self.asked.recipient {
            facts.direction = policy.subprocessor_named(name).map_or(Direction::EgressToNobody, Direction::Egress);
            let service = self.service.unwrap_or("subscriber-api");
            facts.caller = match policy.caller_named(service) {
                Some(id) => Fact::Known(Caller { identity: None, party: Some(Party::Own(id)) }, Source::Settings),
                None => Fact::Unknown(Why::NotInPolicy { length: service.len() }),
            };
            facts.location = Fact::Unknown(Why::Missing);
        }
        facts
    }

    fn id(place: usize) -> Uuid {
        Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + u128::try_from(place).unwrap())
    }

    /// The lines of its records.
    fn record(&self, place: usize, policy: &Policy, sidecar: Enforcement, head: &mut Head) -> Vec<u8> {
        let facts = self.facts(policy);
        let decision = decide(policy, &facts, self.asked.now);
        let (enforcement, mut action) = act(&decision, sidecar);
        let is_stale = self.denied_by_service.is_some();
        if is_stale && action == Action::Allowed {
            action = if enforcement == Enforcement::Observe { Action::Observed } else { Action::Denied };
        }
        let writer = Writer {
            service: "subscriber-api".to_owned(),
            instance: "pod-0".to_owned(),
            log: Uuid::from_u128(7),
            on_failure: "deny",
            durability: "written",
            enforcement: sidecar,
        };
        let about = About {
            time: self.asked.now,
            decision_id: Self::id(place),
            request_id: Uuid::from_u128(8),
            trace_id: "2435d99c1e1242cca8ffeb1026da02d1",
            is_stale,
            method: &Method::GET,
        };
        let mut batch = Batch::default();
        entry::decision(&mut batch, &writer, &about, policy, &facts, &decision, enforcement, action);
        let mut lines = Vec::new();
        batch.records().for_each(|record| {
            let text = String::from_utf8(record.to_vec()).unwrap();
            head.seal(text.replace(POLICY_STALE, self.denied_by_service.unwrap_or_default()).as_bytes(), &mut lines);
        });
        lines
    }
}

/// Decision, first reason, whether a denial blocks.
type Said = (bool, Option<&'static str>, Enforcement);

fn said(policy: &Policy, facts: &Facts<'_>, now: jiff::Timestamp) -> Said {
    let decision = decide(policy, facts, now);
    let reasons = decision.reasons();
    (reasons.is_empty(), reasons.first().map(|reason| reason.code.as_str()), decision.enforcement)
}

fn parse(lines: &[u8]) -> Vec<Recorded<'_>> {
    lines.split_inclusive(|byte| *byte == b'\n').map(|line| serde_json::from_slice(line).unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 400, ..ProptestConfig::default() })]

    /// What one policy recorded, another one decides as it would have decided the request itself. Where the record
    /// leaves something open, that decision is among those that are possible.
    #[test]
    fn a_record_says_what_a_request_was(
        before in proptest::collection::vec(mutation(), 0..4),
        mutations in proptest::collection::vec(mutation(), 1..4),
        seed in any::<u64>(),
    ) {
        let pair = Pair::of(&before, &mutations);
        let mut dice = Dice(seed | 1);
        let (mut decided, mut open) = (0, 0);
        for (place, request) in pair.requests(seed, 150).into_iter().enumerate() {
            let service = dice.one(&OWN).copied();
            let came = Came { asked: request.asked, transport: request.transport, service, route: Some("/"), denied_by_service: None };
            let lines = came.record(place, &pair.old, Enforcement::Enforce, &mut Head::NONE.clone());
            let records = parse(&lines);
            let (first, others) = records.split_first().unwrap();
            let data = first.data().unwrap();
            prop_assert_eq!(first.at().unwrap(), came.asked.now);
            for (policy, was) in [(&*pair.old, None), (&pair.new, None), (&pair.new, Some(&*pair.old))] {
                let expected = said(policy, &came.facts(policy), came.asked.now);
                let possible = match first.facts(others, &data, policy, was, came.asked.now) {
                    Ok(possible) => possible,
                    Err(why) => {
                        prop_assert!(matches!(why, Undecidable::Lacks(_)), "{came:?}: {}", String::from_utf8_lossy(&lines));
                        open += 1;
                        continue;
                    }
                };
                let all: Vec<Said> = possible.facts.iter().map(|facts| said(policy, facts, came.asked.now)).collect();
                let one_of = all.contains(&expected);
                prop_assert!(one_of, "{expected:?} is none of {all:?}: {came:?}: {}", String::from_utf8_lossy(&lines));
                prop_assert_eq!(possible.lacks.is_empty(), possible.facts.len() == 1);
                let is_decided = all.iter().all(|one| *one == expected);
                if is_decided { decided += 1 } else { open += 1 }
                // The policy that recorded it decides it as it did.
                let is_of_it = std::ptr::eq(policy, &raw const *pair.old);
                prop_assert!(!is_of_it || is_decided, "{:?}: {}", possible.lacks, String::from_utf8_lossy(&lines));
            }
        }
        prop_assert!(decided > open, "{decided} are decided and {open} are open: this says little");
    }
}

const CARE_DESK: &str = "spiffe://lumenfield.example/ns/care/sa/care-desk";

/// The care desk supports a customer: permitted.
fn permitted() -> Came {
    Came {
        asked: Asked {
            caller: Some(CARE_DESK.to_owned()),
            customers: vec!["redwood-strand"],
            purpose: Some("customer_support"),
            operation: Some(Operation::Retrieve),
            data_categories: vec!["user.contact".parse().unwrap()],
            subscriber: None,
            instruction: None,
            has_request_ref: false,
            location: None,
            storage: "US-OR".parse().unwrap(),
            recipient: None,
            now: "2026-07-21T12:00:00Z".parse().unwrap(),
        },
        transport: Transport { tls: None, client_certificate: false, is_unix: false },
        service: None,
        route: Some("/v1/customers/{customer}/contacts.json"),
        denied_by_service: None,
    }
}

/// One thing otherwise.
fn with(change: impl FnOnce(&mut Asked)) -> Came {
    let mut came = permitted();
    change(&mut came.asked);
    came
}

fn from(caller: &str, purpose: &'static str, customer: &'static str) -> Came {
    with(|asked| {
        asked.caller = Some(caller.to_owned());
        asked.purpose = Some(purpose);
        asked.customers = vec![customer];
    })
}

/// What a day brings.
fn a_day() -> Vec<Came> {
    let (care, new) = (CARE_DESK, "spiffe://lampwick.example/sa/desk");
    let mut all = vec![permitted(), permitted(), permitted()];
    all.extend([
        // The new help desk, before it is in the policy.
        from(new, "customer_support", "redwood-strand"),
        from(new, "customer_support", "redwood-strand"),
        from(new, "customer_support", "granite-notch"),
        // A customer that only observes with the next policy.
        from(care, "billing_payment", "birch-lake"),
        // Purposes that the next policy adds or takes.
        from("spiffe://brightpost.example/sa/mail", "customer_marketing", "redwood-strand"),
        from("spiffe://brightpost.example/sa/mail", "customer_marketing", "granite-notch"),
        // Denied either way.
        from(care, "customer_analytics", "redwood-strand"),
        with(|asked| asked.caller = None),
        with(|asked| asked.customers = vec!["redwood-strand", "granite-notch"]),
        with(|asked| asked.customers = vec!["redwood-strand", "nobody-known"]),
        // Of a name of this length the next policy has one.
        with(|asked| asked.purpose = Some("jane@example.com")),
        with(|asked| asked.subscriber = Some(Some("7c1e"))),
        with(|asked| asked.subscriber = Some(Some("1a2b"))),
    ]);
    let egress = with(|asked| {
        asked.recipient = Some("sp-07");
        asked.purpose = Some("customer_analytics");
        asked.operation = Some(Operation::Disclose);
        asked.data_categories = vec!["user.telemetry".parse().unwrap()];
    });
    all.push(Came { service: Some("subscriber-api"), route: Some("/v1/pull"), ..egress });
    all
}

/// A log of some requests: one segment, with what else a segment holds.
fn log(came: &[Came], policy: &Policy, sidecar: Enforcement) -> Vec<u8> {
    let mut head = Head::NONE;
    let mut lines = Vec::new();
    let plain = |event: &str, lines: &mut Vec<u8>, head: &mut Head| {
        let record = format!(
            "{{\"event\":\"{event}\",\"what\":\"opened\",\"time\":\"2026-07-21T11:00:00.000000Z\",\"service\":\"subscriber-api\",\
             \"instance\":\"pod-0\",\"log\":\"{}\",\"segment\":1,\"why\":\"new\"",
            Uuid::from_u128(7)
        );
        head.seal(record.as_bytes(), lines);
    };
    plain("dpa.log", &mut lines, &mut head);
    plain("dpa.policy", &mut lines, &mut head);
    for (place, came) in came.iter().enumerate() {
        lines.extend(came.record(place, policy, sidecar, &mut head));
        plain("dpa.outcome", &mut lines, &mut head);
    }
    lines
}

/// Both policies of `diff`'s change, and logs of the first one.
fn folder() -> Folder {
    let folder = agreed_and_next();
    let agreed = dpa_sidecar::reload::load(&folder.file("agreed/policy.yaml"), None, None).unwrap().policy.unwrap();
    let write = |name: &str, lines: &[u8]| std::fs::write(folder.file(name), lines).unwrap();
    let whole = log(&a_day(), &agreed, Enforcement::Enforce);
    write("log.ndjson", &whole);
    write("observed.ndjson", &log(&a_day(), &agreed, Enforcement::Observe));
    let came = a_day().into_iter().map(|came| Came { denied_by_service: Some(POLICY_STALE), ..came });
    let stale: Vec<Came> = came.collect();
    write("stale.ndjson", &log(&stale, &agreed, Enforcement::Enforce));
    write("stale-observed.ndjson", &log(&stale, &agreed, Enforcement::Observe));
    let mut damaged = whole.clone();
    let at = damaged.len() / 2;
    damaged[at] ^= 1;
    damaged.splice(..0, *b"no record at all\n");
    damaged.truncate(damaged.len() - 20);
    write("damaged.ndjson", &damaged);
    folder
}

/// A sentence as the name of its files, the arguments, the exit code; text and JSON.
#[test]
fn what_is_said_of_a_log() {
    let folder = folder();
    let table: [(&str, &[&str], i32); 9] = [
        ("with-the-policy-of-then", &["log.ndjson", "--policy", "next/policy.yaml", "--was", "agreed/policy.yaml"], 1),
        ("a-change", &["log.ndjson", "--policy", "next/policy.yaml"], 1),
        ("the-same-policy", &["log.ndjson", "--policy", "agreed/policy.yaml"], 0),
        ("a-sidecar-that-observed", &["observed.ndjson", "--policy", "next/policy.yaml"], 1),
        ("before-it-begins", &["log.ndjson", "--policy", "next/policy.yaml", "--at", "2026-07-19"], 1),
        (
            "a-policy-that-was-too-old",
            &["stale.ndjson", "--policy", "next/policy.yaml", "--was", "agreed/policy.yaml"],
            1,
        ),
        ("too-old-and-observed", &["stale-observed.ndjson", "--policy", "agreed/policy.yaml"], 0),
        ("a-damaged-log", &["damaged.ndjson", "--policy", "agreed/policy.yaml"], 2),
        ("a-year-later", &["log.ndjson", "--policy", "agreed/policy.yaml", "--at", "2027-07-21T12:00:00Z"], 0),
    ];
    let mut wrong = Vec::new();
    for (name, arguments, expected) in table {
        let arguments = [&["replay"], arguments].concat();
        let text = run(&folder.file("."), &arguments);
        let json = run(&folder.file("."), &[&arguments[..], &["-o", "json"]].concat());
        if (text.status.code(), json.status.code()) != (Some(expected), Some(expected)) {
            wrong.push(format!("{name}: {} {}: {}", text.status, json.status, err(&text)));
        }
        let parsed: Value = serde_json::from_slice(&json.stdout).unwrap_or_default();
        if parsed["schema_version"] != 1 {
            wrong.push(format!("{name}: no JSON"));
        }
        wrong.extend(as_golden(&format!("replay/{name}.txt"), &out(&text)));
        wrong.extend(as_golden(&format!("replay/{name}.json"), &out(&json)));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_example_of_the_documentation_is_what_is_said() {
    let golden = std::fs::read_to_string(repository("tests/golden/replay/with-the-policy-of-then.txt")).unwrap();
    let golden = golden.replace("next/policy.yaml", "policy.yaml");
    let block = document("docs/replay.md").into_iter().find(|block| block.language == "console").unwrap();
    let (_, shown) = block.text.split_once('\n').unwrap();
    for line in shown.lines().filter(|line| *line != "…") {
        assert!(golden.lines().any(|said| said == line), "docs/replay.md shows, and nothing says: {line}");
    }
}

fn replayed(folder: &Folder, log: &str, policy: &str) -> (Option<i32>, Value) {
    let output = run(&folder.file("."), &["replay", log, "--policy", policy, "-o", "json"]);
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", err(&output))))
}

/// A sentence, what came, what the new policy is laid over the sample, what the record lacks; nothing: it is decided.
#[test]
fn what_a_record_does_not_say_is_not_guessed() {
    let certificate = "security_measures: {client_authentication: required}";
    let tls = |client_certificate| Came {
        transport: Transport { tls: Some(TlsVersion::V1_3), client_certificate, is_unix: false },
        ..permitted()
    };
    let restricts = "customers: [{id: redwood-strand, instructions: [{id: ins-900, issuer_role: x, reference: R-1, \
                     received_at: 2021-01-01, accepted_at: 2021-01-01, valid_from: 2021-01-01, restricts: {subscriber: \"zz\"}}]}]";
    let named = "customers: [{id: redwood-strand, instructions: [{id: ins-901, issuer_role: x, reference: R-1, \
                 received_at: 2021-01-01, accepted_at: 2021-01-01, valid_from: 2021-01-01}]}]";
    let customer = "customers: [{id: tall-pine, legal_name: N, dpa: {version: \"1\", accepted_at: 2022-01-01, contract_ref: C}, \
                    permitted_purposes: [customer_support]}]";
    let purpose = "purposes: {night_watch: {ccpa_business_purpose: e5, necessity: x}}\n\
                   callers: [{id: care-desk, permitted_purposes: [customer_support, night_watch]}]\n\
                   customers: [{id: redwood-strand, permitted_purposes: [base, night_watch]}]";
    let dns = "callers: [{id: night-desk, identities: [\"dns:night.example\"], location: US-OR, permitted_purposes: [customer_support]}]";
    let table: Vec<(&str, Came, &str, Option<&str>)> = vec![
        ("nothing of it is asked", permitted(), "metadata: {revision: 99}", None),
        ("a client certificate that was there", tls(true), certificate, None),
        ("none that was there", tls(false), certificate, None),
        (
            "a subscriber, and one is restricted now",
            with(|asked| asked.subscriber = Some(Some("1a2b"))),
            restricts,
            Some("subscriber"),
        ),
        (
            "a subscriber of another customer",
            Came {
                ..with(|asked| {
                    asked.subscriber = Some(Some("1a2b"));
                    asked.customers = vec!["cedar-hollow"];
                })
            },
            restricts,
            None,
        ),
        (
            "a subscriber, and it is denied all the same",
            with(|asked| {
                asked.subscriber = Some(Some("1a2b"));
                asked.purpose = Some("customer_analytics");
            }),
            restricts,
            None,
        ),
        ("an instruction nobody knew", with(|asked| asked.instruction = Some("ins-901")), named, Some("instruction")),
        ("an instruction of another length", with(|asked| asked.instruction = Some("ins-1")), named, None),
        ("a customer nobody knew", with(|asked| asked.customers = vec!["tall-pine"]), customer, Some("customer")),
        ("a customer of another length", with(|asked| asked.customers = vec!["x"]), customer, None),
        (
            "a customer nobody knew, from a caller nobody knows",
            with(|asked| {
                asked.caller = None;
                asked.customers = vec!["tall-pine"];
            }),
            customer,
            None,
        ),
        (
            "two customers, one nobody knew: denied in any case",
            with(|asked| asked.customers = vec!["redwood-strand", "tall-pine"]),
            customer,
            None,
        ),
        ("a purpose nobody knew", with(|asked| asked.purpose = Some("night_watch")), purpose, Some("purpose")),
        (
            "a third party without a SPIFFE ID",
            with(|asked| asked.caller = Some("dns:night.example".to_owned())),
            dns,
            Some("caller"),
        ),
        ("a third party with one", with(|asked| asked.caller = Some("spiffe://x.example/a".to_owned())), dns, None),
        (
            "a place that nobody asked for",
            with(|asked| asked.caller = Some(CARE_DESK.to_owned())),
            "LESS callers/care-desk/location",
            Some("location"),
        ),
        (
            "a recipient nobody knew",
            Came {
                service: Some("subscriber-api"),
                ..with(|asked| {
                    asked.recipient = Some("sp-99");
                    asked.purpose = Some("customer_analytics");
                    asked.operation = Some(Operation::Disclose);
                    asked.data_categories = vec!["user.telemetry".parse().unwrap()];
                })
            },
            "metadata: {revision: 99}",
            Some("recipient"),
        ),
    ];
    let old = compile(SAMPLE, None);
    let folder = Folder::new();
    for (name, came, change, expected) in table {
        let text = match change.strip_prefix("LESS callers/care-desk/") {
            Some(_) => {
                let (before, behind) = SAMPLE.split_once("id: care-desk").unwrap();
                let (line, rest) = behind.split_once("location: US-OR").unwrap();
                format!("{before}id: care-desk{line}{rest}")
            }
            None => {
                let mut root = dpa_sidecar::yaml::read(SAMPLE, 0).unwrap();
                root.merge(&dpa_sidecar::yaml::read(change, 1).unwrap());
                crate::properties::print(&root, 0)
            }
        };
        folder.write("new.yaml", &text);
        std::fs::write(folder.file("log.ndjson"), log(std::slice::from_ref(&came), &old, Enforcement::Enforce))
            .unwrap();
        let (code, report) = replayed(&folder, "log.ndjson", "new.yaml");
        let lacks: Vec<&String> = report["undecidable"]["lacks"].as_object().unwrap().keys().collect();
        let expected: Vec<&str> = expected.into_iter().collect();
        assert_eq!(lacks, expected, "{name}: {report:#}");
        assert_eq!(report["undecidable"]["count"], expected.len(), "{name}");
        if let Ok(new) = std::panic::catch_unwind(|| compile(&text, None)) {
            let was = said(&old, &came.facts(&old), came.asked.now).0;
            let is = said(&new, &came.facts(&new), came.asked.now).0;
            let flips = (&report["deny_to_permit"]["count"], &report["permit_to_deny"]["count"]);
            if expected.is_empty() {
                assert_eq!(flips, (&u64::from(!was && is).into(), &u64::from(was && !is).into()), "{name}");
                assert_eq!(code, Some(i32::from(was != is)), "{name}");
            } else {
                assert_eq!((code, flips), (Some(2), (&0.into(), &0.into())), "{name}");
            }
        }
    }
}

/// A denial as `policy_stale` was counted as a flip: from deny to permit, though no rule had denied.
///
/// A sentence, why the service denied, what came, the policies, the exit code; by the rules alone: as they were, deny to
/// permit, permit to deny, not known; forwarded instead of refused, and not known whether forwarded.
#[test]
fn a_denial_by_the_service_is_no_flip() {
    let (care, now) = (CARE_DESK, "issued_at: 2026-06-01");
    let analyses = from(care, "customer_analytics", "redwood-strand");
    let granted = "permitted_purposes: [customer_support, account_management, rights_fulfilment, customer_analytics]";
    let taken = "permitted_purposes: [account_management, rights_fulfilment]";
    let support = "permitted_purposes: [customer_support, account_management, rights_fulfilment]";
    let old = |text: &str| text.replacen("revision: 12", "revision: 13", 1);
    let changed = |to: &str| old(SAMPLE).replacen(support, to, 1);
    type Expected = (i32, [u64; 4], u64, u64);
    let table: Vec<(&str, &str, Came, String, bool, Expected)> = vec![
        ("the rules are the same", POLICY_STALE, permitted(), old(SAMPLE), false, (2, [1, 0, 0, 0], 0, 1)),
        ("and the policy of then is at hand", POLICY_STALE, permitted(), old(SAMPLE), true, (0, [1, 0, 0, 0], 0, 0)),
        ("it is the policy of then", POLICY_STALE, permitted(), SAMPLE.to_owned(), false, (0, [1, 0, 0, 0], 0, 0)),
        (
            "an older policy is too old as well",
            POLICY_STALE,
            permitted(),
            old(SAMPLE).replace(now, "issued_at: 2026-05-01"),
            true,
            (0, [1, 0, 0, 0], 0, 0),
        ),
        (
            "how old a newer one may be is a setting",
            POLICY_STALE,
            permitted(),
            old(SAMPLE).replace(now, "issued_at: 2026-07-01"),
            true,
            (2, [1, 0, 0, 0], 0, 1),
        ),
        (
            "one that is issued later is never too old",
            POLICY_STALE,
            permitted(),
            old(SAMPLE).replace(now, "issued_at: 2026-07-22"),
            false,
            (1, [1, 0, 0, 0], 1, 0),
        ),
        ("a rule denied behind it", POLICY_STALE, analyses.clone(), old(SAMPLE), false, (0, [1, 0, 0, 0], 0, 0)),
        ("and holds now", POLICY_STALE, analyses.clone(), changed(granted), true, (1, [0, 1, 0, 0], 0, 0)),
        ("all held, and one denies now", POLICY_STALE, permitted(), changed(taken), false, (1, [0, 0, 1, 0], 0, 0)),
        ("a reason that no record has", "overloaded", permitted(), old(SAMPLE), false, (2, [0, 0, 0, 1], 0, 0)),
        ("asked of the policy of then", "overloaded", permitted(), old(SAMPLE), true, (2, [1, 0, 0, 0], 0, 1)),
        ("and it denies now", "policy_unavailable", permitted(), changed(taken), true, (1, [0, 0, 1, 0], 0, 0)),
    ];
    let then = compile(SAMPLE, None);
    let folder = Folder::new();
    for name in ["then", "new"] {
        std::fs::create_dir(folder.file(name)).unwrap();
    }
    folder.write("then/policy.yaml", SAMPLE);
    for (name, reason, came, policy, is_at_hand, expected) in table {
        let came = Came { denied_by_service: Some(reason), ..came };
        std::fs::write(folder.file("log.ndjson"), log(&[came], &then, Enforcement::Enforce)).unwrap();
        folder.write("new/policy.yaml", &policy);
        let was: &[&str] = if is_at_hand { &["--was", "then/policy.yaml"] } else { &[] };
        let arguments = [&["replay", "log.ndjson", "--policy", "new/policy.yaml", "-o", "json"], was].concat();
        let output = run(&folder.file("."), &arguments);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", err(&output)));
        let service = &report["service_reasons"];
        assert_eq!(service["reasons"], serde_json::json!({reason: 1}), "{name}");
        let by_rules =
            ["same", "deny_to_permit", "permit_to_deny", "not_known"].map(|key| service[key].as_u64().unwrap());
        let [forwarded, not_known] =
            ["refused_to_forwarded", "not_known"].map(|key| report["action"][key].as_u64().unwrap());
        assert_eq!((output.status.code().unwrap(), by_rules, forwarded, not_known), expected, "{name}: {report:#}");
        for key in ["deny_to_permit", "permit_to_deny", "undecidable"] {
            assert_eq!(report[key]["count"], 0, "{name}: {report:#}");
        }
        assert_eq!(report["requests"]["same"], 0, "{name}: it is counted apart");
    }
}

/// Replays lines that come one after the other, and says what was the most memory that it took.
fn streamed(count: usize, line: impl Fn(usize) -> String) -> (Option<i32>, Value, usize) {
    let folder = Folder::new();
    folder.write("policy.yaml", SAMPLE);
    let mut child = Command::new(env!("CARGO_BIN_EXE_dpa-sidecar"))
        .args(["replay", "-", "--policy", "policy.yaml", "-o", "json"])
        .current_dir(folder.file("."))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let (mut head, mut sealed) = (Head::NONE, Vec::new());
    for place in 0..count {
        sealed.clear();
        head.seal(line(place).as_bytes(), &mut sealed);
        std::io::Write::write_all(&mut input, &sealed).unwrap();
    }
    // It has read all of it but what the pipe holds, and waits for more.
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let most = most.trim().trim_end_matches(" kB").parse().unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap(), most)
}

/// A hostile log of one decision id was held in memory whole: 64 lines of 1 MiB for each piece. So were 10,000 names.
#[test]
fn no_log_is_held_in_memory() {
    let old = compile(SAMPLE, None);
    let record = permitted().record(0, &old, Enforcement::Enforce, &mut Head::NONE.clone());
    let record = String::from_utf8(record).unwrap();
    let (record, _) = record.split_once(",\"seq\":").unwrap();
    // As long as a line can be.
    let long = "x".repeat(1_000_000);
    let cores = std::thread::available_parallelism().unwrap().get();
    // What waits for the cores is bounded, and less than half of what comes.
    let (count, bound) = (260 + 150 * cores, (128 + 64 * cores) * 1024);

    let (code, report, most) = streamed(count, |_| format!("{record},\"more\":\"{long}\""));
    assert!(most < bound, "{most} KiB, of {count} MB");
    assert_eq!((code, &report["requests"]["count"]), (Some(2), &1.into()), "{report:#}");
    assert_eq!(report["undecidable"]["lacks"], serde_json::json!({"unreadable": 1}), "{report:#}");
    let damaged = report["damaged"]["count"].as_u64().unwrap();
    assert!((count - 16..count).contains(&usize::try_from(damaged).unwrap()), "{report:#}");
    assert_eq!(report["damaged"]["first"][0]["why"], "too_many", "{report:#}");

    let first = Came::id(0).to_string();
    let (code, report, most) = streamed(count, |place| {
        let record = record.replace(&first, &Came::id(place).to_string());
        record.replace("\"redwood-strand\"", &format!("\"{place}{long}\""))
    });
    assert!(most < bound, "{most} KiB, of {count} names of 1 MB");
    assert_eq!((code, &report["permit_to_deny"]["count"]), (Some(1), &count.into()));
    assert_eq!(report["permit_to_deny"]["others"], count);
}

/// Sixteen customers, as many as a request can name, are one decision; a seventeenth record is of none.
#[test]
fn as_many_records_as_a_decision_can_have() {
    let old = compile(SAMPLE, None);
    let folder = Folder::new();
    folder.write("policy.yaml", SAMPLE);
    let record = String::from_utf8(permitted().record(0, &old, Enforcement::Enforce, &mut Head::NONE.clone())).unwrap();
    let (record, _) = record.split_once(",\"seq\":").unwrap();
    let record = record.replace("\"customer_id\"", "\"customers\":16,\"customer_id\"");
    let other = record.replace(&Came::id(0).to_string(), &Came::id(1).to_string());
    for (name, count, damaged) in [("sixteen", 16, 0), ("seventeen", 17, 1), ("many", 5_000, 4_984)] {
        let mut head = Head::NONE;
        let mut lines = Vec::new();
        head.seal(other.as_bytes(), &mut lines);
        (0..count).for_each(|_| head.seal(record.as_bytes(), &mut lines));
        head.seal(other.as_bytes(), &mut lines);
        std::fs::write(folder.file("log.ndjson"), lines).unwrap();
        let (_, report) = replayed(&folder, "log.ndjson", "policy.yaml");
        assert_eq!(report["requests"]["count"], 3, "{name}: {report:#}");
        assert_eq!(report["damaged"]["count"], damaged, "{name}: {report:#}");
        assert_eq!(report["undecidable"]["count"], u64::from(damaged > 0), "{name}: {report:#}");
        if damaged > 0 {
            assert_eq!(
                report["damaged"]["first"][0],
                serde_json::json!({"file": "log.ndjson", "line": 18, "why": "too_many"})
            );
        }
    }
}

/// A caller whose identity is another party's with the new policy is that party.
#[test]
fn a_caller_is_who_its_identity_is() {
    let old = compile(SAMPLE, None);
    let folder = Folder::new();
    let came = [permitted(), from("spiffe://ticketriver.example/sa/sync", "customer_support", "redwood-strand")];
    std::fs::write(folder.file("log.ndjson"), log(&came, &old, Enforcement::Enforce)).unwrap();
    let moved = SAMPLE
        .replace(
            "spiffe://lumenfield.example/ns/care/sa/care-desk",
            "spiffe://lumenfield.example/ns/care/sa/other-desk",
        )
        .replace("spiffe://ticketriver.example/sa/sync", "spiffe://ticketriver.example/sa/*");
    folder.write("moved.yaml", &moved);
    let (code, report) = replayed(&folder, "log.ndjson", "moved.yaml");
    assert_eq!(code, Some(1));
    assert_eq!(report["permit_to_deny"]["reasons"], serde_json::json!({"recipient_unknown": 1}), "{report:#}");
}

/// What the sidecar itself wrote, from standard input and among other lines.
#[test]
fn a_log_of_a_sidecar_is_replayed() {
    let upstream = Upstream::ok();
    for enforcement in ["enforce", "observe"] {
        let sidecar = Setup { enforcement, ..Setup::to(&upstream.address) }.start();
        for _ in 0..3 {
            sidecar.ask(Ask::permitted("GET", SUBSCRIBER).end());
            sidecar.ask(Ask::denied("GET", SUBSCRIBER).end());
        }
        sidecar.ask(Ask::bare("GET", SUBSCRIBER).with("DPA-Context", "no dictionary(").end());
        sidecar.ask(Ask::bare("GET", "/nowhere").end());
        let text = std::fs::read(sidecar.log()).unwrap();
        let folder = sidecar.stop().folder;
        let policy = SAMPLE.to_owned();
        folder.write("policy.yaml", &policy);
        // Support is no purpose of the care desk any more, and analytics is.
        let changed = policy.replacen(
            "permitted_purposes: [customer_support, account_management, rights_fulfilment]",
            "permitted_purposes: [customer_analytics, account_management, rights_fulfilment]",
            1,
        );
        assert_ne!(policy, changed);
        folder.write("changed.yaml", &changed);
        let log = folder.file("decisions.ndjson");
        let (code, report) = replayed(&folder, log.to_str().unwrap(), "policy.yaml");
        assert_eq!((code, &report["requests"]["same"]), (Some(0), &8.into()), "{report:#}");
        let mut child = Command::new(env!("CARGO_BIN_EXE_dpa-sidecar"))
            .args(["replay", "-", "--policy", "changed.yaml", "--was", "policy.yaml", "-o", "json"])
            .current_dir(folder.file("."))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        std::io::Write::write_all(&mut input, &[&b"something else\n"[..], &text].concat()).unwrap();
        drop(input);
        let output = child.wait_with_output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{report:#}");
        assert_eq!(report["passed_over_lines"], 1);
        assert_eq!(report["deny_to_permit"]["customers"], serde_json::json!({"redwood-strand": 3}));
        assert_eq!(report["permit_to_deny"]["routes"].as_object().unwrap().len(), 1);
        let done = if enforcement == "enforce" { [3, 3] } else { [0, 0] };
        assert_eq!(
            report["action"],
            serde_json::json!({"refused_to_forwarded": done[0], "forwarded_to_refused": done[1], "not_known": 0}),
            "{enforcement}"
        );
        let id = report["deny_to_permit"]["examples"][0]["decision_id"].as_str().unwrap();
        let explained =
            run(&folder.file("."), &["explain", id, "--log", log.to_str().unwrap(), "--policy", "policy.yaml"]);
        assert_eq!(explained.status.code(), Some(1), "{}", err(&explained));
    }
}

/// What a sidecar wrote while its policy was too old: it is no change of the policy that lets these requests pass.
#[test]
fn a_log_from_when_the_policy_was_too_old() {
    let upstream = Upstream::ok();
    let folder = Folder::new();
    let policy = SAMPLE.replace("issued_at: 2026-06-01", "issued_at: 2020-06-01");
    folder.write("policy.yaml", &policy);
    let setup = Setup::to(&upstream.address);
    let text = setup.text();
    let line = text.lines().find(|line| line.starts_with("policy:")).unwrap();
    let settings = text.replace(line, "policy: {file: policy.yaml, max_age: 1d}");
    let sidecar = setup.start_with(&settings, folder);
    for _ in 0..2 {
        assert_eq!(sidecar.ask(Ask::permitted("GET", SUBSCRIBER).end()).reason(), POLICY_STALE);
        sidecar.ask(Ask::denied("GET", SUBSCRIBER).end());
    }
    sidecar.ask(Ask::bare("GET", "/assets/logo.svg").end());
    let folder = sidecar.stop().folder;
    let renewed = |day: &str| {
        let text = policy.replace("revision: 12", "revision: 13");
        folder.write("renewed.yaml", &text.replace("issued_at: 2020-06-01", &format!("issued_at: {day}")));
    };
    let service = |report: &Value| {
        let service = &report["service_reasons"];
        assert_eq!(service["reasons"], serde_json::json!({POLICY_STALE: 4}), "{report:#}");
        assert_eq!((&service["same"], &service["count"]), (&4.into(), &4.into()), "{report:#}");
        assert_eq!(report["requests"]["same"], 1, "what is outside the agreement: {report:#}");
        report["action"].clone()
    };
    let done = |forwarded: u64, not_known: u64| serde_json::json!({"refused_to_forwarded": forwarded, "forwarded_to_refused": 0, "not_known": not_known});
    // Which subscriber it was, the policy of then knew.
    let replayed = |policy: &str| {
        let arguments = ["replay", "decisions.ndjson", "--policy", policy, "--was", "policy.yaml", "-o", "json"];
        let output = run(&folder.file("."), &arguments);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", err(&output)));
        (output.status.code(), service(&report))
    };
    assert_eq!(replayed("policy.yaml"), (Some(0), done(0, 0)));
    // How old it may be, no record says: the one that was issued on the next day may be too old, or not.
    renewed("2020-06-02");
    assert_eq!(replayed("renewed.yaml"), (Some(2), done(0, 2)));
    // One that is issued after these requests would not have been.
    renewed("2199-01-01");
    assert_eq!(replayed("renewed.yaml"), (Some(1), done(2, 0)));
}

#[test]
fn exit_codes_of_replay() {
    let folder = folder();
    folder.write("empty.ndjson", "");
    let table: [(&str, &[&str], i32); 6] = [
        ("no such log", &["no-such-file", "--policy", "next/policy.yaml"], 2),
        ("no such policy", &["log.ndjson", "--policy", "no-such-file"], 2),
        ("a policy that cannot be used", &["log.ndjson", "--policy", "bad.yaml"], 2),
        ("no log", &["empty.ndjson", "--policy", "next/policy.yaml"], 2),
        ("no policy", &["log.ndjson"], 2),
        ("no date", &["log.ndjson", "--policy", "next/policy.yaml", "--at", "yesterday"], 2),
    ];
    for (name, arguments, expected) in table {
        let output = run(&folder.file("."), &[&["replay"], arguments].concat());
        assert_eq!(output.status.code(), Some(expected), "{name}: {}", err(&output));
        assert!(out(&output).is_empty() && !err(&output).is_empty(), "{name}");
    }
}
