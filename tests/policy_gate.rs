//! What a policy could once carry past those who have to agree: each test is named after what happened.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use dpa_sidecar::policy;
use dpa_sidecar::policy::problem::Source;
use dpa_sidecar::reload::agreed::Former;
use dpa_sidecar::reload::agreed::Offer;
use dpa_sidecar::signature;
use serde_json::Value;
use serde_json::json;

use crate::policy_reload::Office;
use crate::policy_reload::SIGNED;
use crate::policy_reload::loaded;
use crate::policy_reload::policy_events;
use crate::policy_reload::refused;
use crate::policy_reload::revision;
use crate::policy_reload::settings;
use crate::policy_reload::start;
use crate::support::Folder;
use crate::support::Setup;
use crate::support::Upstream;
use crate::support::err;
use crate::support::out;
use crate::support::records_in;
use crate::support::run;
use crate::support::wait_for;

/// A text with something else in one place.
pub(crate) fn with(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "{from}");
    text.replace(from, to)
}

/// A policy without a customer.
fn without(text: &str, id: &str) -> String {
    let begin = text.find(&format!("  - id: {id}\n")).unwrap();
    let end = text[begin..].find("\n\n").unwrap();
    format!("{}{}", &text[..begin], &text[begin + end..])
}

/// A policy with another customer, first in its list.
fn and_customer(text: &str, more: &str) -> String {
    let customer = format!(
        "\ncustomers:\n  - id: birch-lake\n    legal_name: Birch Lake Fiber\n    dpa: {{version: \"3\", accepted_at: 2024-05-01, \
         contract_ref: MSA-0600}}\n    permitted_purposes: [base]\n{more}"
    );
    with(text, "\ncustomers:\n", &customer)
}

const NOTCH: &str =
    "    permitted_purposes: [base, customer_analytics]\n    residency:\n      storage_locations: [US]\n";
pub(crate) const REDWOOD: &str =
    "    permitted_purposes: [base, customer_analytics, customer_marketing, quality_improvement]\n";

/// `check` of a policy against another one: what is not agreed, by kind, and for whom.
pub(crate) fn not_agreed(old: &str, new: &str) -> Vec<String> {
    let folder = Folder::new();
    folder.write("old.yaml", old);
    folder.write("new.yaml", new);
    let output =
        run(&folder.file("."), &["check", "new.yaml", "--against", "old.yaml", "--at", "2026-10-01", "-o", "json"]);
    let said: Value = serde_json::from_str(&out(&output)).unwrap_or_else(|_| panic!("{}", err(&output)));
    let errors = said["problems"].as_array().unwrap().iter().filter(|it| it["severity"] == "error");
    assert_eq!(errors.count(), 0, "{said}");
    let all: Vec<String> = said["refused"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| {
            let customers: Vec<&str> = it["customers"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
            format!("{}: {}", it["kind"].as_str().unwrap(), customers.join(" "))
        })
        .collect();
    assert_eq!(output.status.code(), Some(i32::from(!all.is_empty())), "{said}");
    all
}

#[test]
fn a_customer_that_was_dropped_came_back_wider_in_a_second_load() {
    let upstream = Upstream::ok();
    let folder = Folder::new();
    let policy = folder.write("policy.yaml", &revision(12));
    let sidecar = start(folder, &upstream.address, "{file: policy.yaml}");
    let put = |text: &str| std::fs::write(&policy, text).unwrap();
    put(&without(&revision(13), "granite-notch"));
    loaded(&sidecar, 13);
    // Something else in between.
    put(&without(&and_customer(&revision(14), ""), "granite-notch"));
    loaded(&sidecar, 14);
    let wider = |number| with(&revision(number), NOTCH, &NOTCH.replace("customer_analytics", "quality_improvement"));
    put(&wider(15));
    let record = refused(&sidecar, "weaker");
    assert_eq!(record["changes"][0]["kind"], "customer_purpose");
    assert_eq!(record["changes"][0]["customers"], json!(["granite-notch"]));
    assert!(record["text"].as_str().unwrap().starts_with("held against the policy of the start: weaker"), "{record}");
    // As it was, it may come back. From then on the policy in force says what was agreed with it.
    put(&revision(16));
    loaded(&sidecar, 16);
    put(&wider(17));
    let record = sidecar.record("revision 17", |it| it["offered"]["revision"] == 17);
    assert!(record["text"].as_str().unwrap().starts_with("weaker and not agreed"), "{record}");
    // Who came and went since the start.
    let base = "    permitted_purposes: [base]\n    enforcement: enforce\n";
    let lake = |number| and_customer(&revision(number), "    enforcement: enforce\n");
    put(&with(&lake(18), base, &base.replace("[base]", "[base, customer_analytics]")));
    let record = sidecar.record("revision 18", |it| it["offered"]["revision"] == 18);
    assert_eq!(record["changes"][0]["customers"], json!(["birch-lake"]));
    assert!(record["text"].as_str().unwrap().starts_with("held against a policy since the start: weaker"), "{record}");
    put(&lake(19));
    loaded(&sidecar, 19);
}

/// What is closed lets nothing pass, so nothing was weaker when it was changed; and to open it again needs no word.
#[test]
fn what_was_closed_was_widened_and_opened_again() {
    let upstream = Upstream::ok();
    let binds = "    dpa: {version: \"2\", accepted_at: 2023-03-15, contract_ref: MSA-0264}\n";
    let paper = "    agreement: {ref: SPA-2025-01, signed_on: 2025-01-10, flow_down: true}\n";
    type Change = fn(&str) -> String;
    let table: [(&str, &str, Change, &str); 2] = [
        (
            "a customer whose agreement did not bind for a while",
            binds,
            |text| with(text, NOTCH, &NOTCH.replace("customer_analytics", "quality_improvement")),
            "customer_purpose",
        ),
        (
            "a subprocessor whose agreement was over for a while",
            paper,
            |text| with(text, "Brightpost Marketing, Inc.", "Harrow Data Brokers, Inc."),
            "subprocessor_name",
        ),
    ];
    for (name, open, change, kind) in table {
        let folder = Folder::new();
        let policy = folder.write("policy.yaml", &revision(12));
        let sidecar = start(folder, &upstream.address, "{file: policy.yaml}");
        let closed = open.replace("accepted_at: 2023-03-15, ", "").replace("flow", "expires_on: 2026-01-10, flow");
        std::fs::write(&policy, change(&with(&revision(13), open, &closed))).unwrap();
        loaded(&sidecar, 13);
        std::fs::write(&policy, change(&revision(14))).unwrap();
        let record = refused(&sidecar, "weaker");
        assert_eq!(record["changes"][0]["kind"], kind, "{name}");
        assert!(
            record["text"].as_str().unwrap().starts_with("held against the policy of the start: "),
            "{name}: {record}"
        );
        // What is tighter only is held against the policy in force alone.
        std::fs::write(&policy, change(&with(&revision(15), open, &closed))).unwrap();
        loaded(&sidecar, 15);
    }
}

/// A policy in which a customer consents to a subprocessor, on each of these days of June.
fn consenting(text: &str, customer: &str, subprocessor: &str, days: &[u8]) -> String {
    let entry = text.find(&format!("  - id: {customer}\n")).unwrap();
    let at = entry + text[entry..].find("    permitted_purposes:").unwrap();
    let consents: Vec<String> = days
        .iter()
        .map(|day| format!("{{subprocessor: {subprocessor}, given_at: 2026-06-{day}, ref: C-{day}}}"))
        .collect();
    format!("{}    consents: [{}]\n{}", &text[..at], consents.join(", "), &text[at..])
}

/// What one rule opened was closed by another one still, so it was not weaker; and that the other one went needs no word,
/// or one about something else. What was agreed in between was no word on it.
#[test]
fn of_two_rules_that_closed_the_same_each_was_taken_away_by_itself() {
    const EFFECTIVE: &str = "    effective_at: 2021-06-01\n";
    let until = |text: &str, end: &str| with(text, EFFECTIVE, &format!("{EFFECTIVE}    removed_at: {end}\n"));
    let leaving = |text: &str, paper: &str, end: &str| {
        with(text, paper, &format!("{paper}, terminated_at: {end}, return_until: 2098-01-31"))
    };
    let all = |text: &str, days: &[u8], of_granite: &[u8]| {
        let text = consenting(&consenting(text, "redwood-strand", "sp-05", days), "cedar-hollow", "sp-05", days);
        if of_granite.is_empty() { text } else { consenting(&text, "granite-notch", "sp-05", of_granite) }
    };
    let notch = "accepted_at: 2023-03-15, contract_ref: MSA-0264";
    let lake = |number| and_customer(&revision(number), "");
    let mail = |number, more: &str| {
        let own = "    permitted_purposes: [customer_marketing]\n    data_categories: [user.name, user.contact";
        let wider = own.replace("customer_marketing", &format!("customer_marketing{more}")) + ", user.device";
        with(&revision(number), own, &wider)
    };
    let instructed = |text: &str, days: &[u8]| {
        let first = "    instructions:\n      - id: ins-001\n";
        let dates = "received_at: 2026-06-02, accepted_at: 2026-06-02, valid_from: 2026-06-02";
        let own = format!(
            "    instructions:\n      - {{id: ins-900, issuer_role: x, reference: R-1, {dates}, permits: {{purposes: [ad_audit]}}}}\n"
        );
        let text = with(text, first, &first.replace("    instructions:\n", &own));
        consenting(&with(&text, REDWOOD, &REDWOOD.replace("[base", "[base, ad_audit")), "redwood-strand", "sp-09", days)
    };
    let table: [(&str, [String; 5], &str, &str); 4] = [
        (
            "the end of a subprocessor, and that of a customer's agreement",
            [
                until(&revision(12), "2096-12-31"),
                leaving(&until(&all(&revision(13), &[20], &[20]), "2097-12-31"), notch, "2097-12-31"),
                leaving(&all(&revision(14), &[20, 21], &[20]), notch, "2097-12-31"),
                all(&revision(15), &[20, 21], &[20]),
                all(&revision(16), &[20, 21], &[20, 22]),
            ],
            "subprocessor_period",
            "granite-notch",
        ),
        (
            "the same, in two steps",
            [
                until(&revision(12), "2096-12-31"),
                leaving(&until(&all(&revision(13), &[20], &[20]), "2097-12-31"), notch, "2096-12-31"),
                leaving(&all(&revision(14), &[20, 21], &[20]), notch, "2096-12-31"),
                leaving(&all(&revision(15), &[20, 21], &[20]), notch, "2098-01-15"),
                all(&revision(16), &[20, 21], &[20, 22]),
            ],
            "subprocessor_period",
            "granite-notch",
        ),
        (
            "the same, of a customer that came after the start",
            [
                until(&revision(12), "2096-12-31"),
                until(&leaving(&lake(13), "MSA-0600", "2096-12-31"), "2096-12-31"),
                leaving(&all(&lake(14), &[20], &[20]), "MSA-0600", "2096-12-31"),
                all(&lake(15), &[20], &[20]),
                consenting(&all(&lake(16), &[20], &[20]), "birch-lake", "sp-05", &[20]),
            ],
            "subprocessor_period",
            "birch-lake",
        ),
        (
            "a purpose of a subprocessor, and what a customer permits",
            [
                revision(12),
                consenting(&mail(13, ""), "redwood-strand", "sp-09", &[20]),
                consenting(&mail(14, ", ad_audit"), "redwood-strand", "sp-09", &[20]),
                instructed(&mail(15, ", ad_audit"), &[20]),
                instructed(&mail(16, ", ad_audit"), &[20, 21]),
            ],
            "subprocessor_purpose",
            "redwood-strand",
        ),
    ];
    let upstream = Upstream::ok();
    for (name, [start_with, one, two, both, agreed], kind, customer) in table {
        let folder = Folder::new();
        let policy = folder.write("policy.yaml", &start_with);
        let sidecar = start(folder, &upstream.address, "{file: policy.yaml}");
        for (number, text) in [(13, one), (14, two)] {
            std::fs::write(&policy, text).unwrap();
            loaded(&sidecar, number);
        }
        std::fs::write(&policy, both).unwrap();
        let record = sidecar.record(name, |it| it["policy"]["revision"] == 15 || it["offered"]["revision"] == 15);
        assert_eq!(record["why"], "weaker", "{name}: {record}");
        assert_eq!(record["changes"].as_array().unwrap().len(), 1, "{name}: {record}");
        assert_eq!(record["changes"][0]["kind"], kind, "{name}");
        assert_eq!(record["changes"][0]["customers"], json!([customer]), "{name}");
        let text = record["text"].as_str().unwrap();
        assert!(text.starts_with("held against a policy since the start: weaker"), "{name}: {text}");
        std::fs::write(&policy, agreed).unwrap();
        loaded(&sidecar, 16);
    }
    // Given with the first of both, the word is there when the second goes; and who only leaves, or stays away, needs none.
    let folder = Folder::new();
    let policy = folder.write("policy.yaml", &until(&revision(12), "2096-12-31"));
    let sidecar = start(folder, &upstream.address, "{file: policy.yaml}");
    for (number, text) in [
        (13, leaving(&until(&all(&revision(13), &[20], &[20]), "2097-12-31"), notch, "2097-12-31")),
        (14, leaving(&all(&revision(14), &[20, 21], &[20, 21]), notch, "2097-12-31")),
        (15, leaving(&all(&revision(15), &[20, 21], &[20, 21]), notch, "2097-06-30")),
        (16, all(&revision(16), &[20, 21], &[20, 21])),
    ] {
        std::fs::write(&policy, text).unwrap();
        loaded(&sidecar, number);
    }
}

#[test]
fn what_only_the_baseline_knew_came_back_wider_while_the_sidecar_ran() {
    let upstream = Upstream::ok();
    let folder = Folder::new();
    folder.write("agreed.yaml", &revision(12));
    let policy = folder.write("policy.yaml", &without(&revision(13), "granite-notch"));
    let baseline = folder.file("agreed.yaml");
    let sidecar = start(folder, &upstream.address, "{file: policy.yaml, baseline: agreed.yaml}");
    let wider = |number| with(&revision(number), NOTCH, &NOTCH.replace("customer_analytics", "quality_improvement"));
    std::fs::write(&policy, wider(14)).unwrap();
    let record = refused(&sidecar, "weaker");
    assert!(record["text"].as_str().unwrap().starts_with("held against the baseline: weaker"), "{record}");
    // A baseline that is gone holds everything up.
    std::fs::remove_file(&baseline).unwrap();
    std::fs::write(&policy, revision(15)).unwrap();
    assert_eq!(refused(&sidecar, "baseline")["offered"]["revision"], 15);
    // It is read anew: what it says now was agreed.
    std::fs::write(&baseline, wider(14)).unwrap();
    std::fs::write(&policy, wider(16)).unwrap();
    loaded(&sidecar, 16);
}

#[test]
fn a_new_customer_was_put_on_observe_without_its_word() {
    let upstream = Upstream::ok();
    let folder = Folder::new();
    let policy = folder.write("policy.yaml", &revision(12));
    let sidecar = start(folder, &upstream.address, "{file: policy.yaml}");
    let put = |text: &str| std::fs::write(&policy, text).unwrap();
    put(&and_customer(&revision(13), "    enforcement: observe\n"));
    let record = refused(&sidecar, "weaker");
    assert_eq!(record["changes"][0]["kind"], "enforcement");
    assert_eq!(record["changes"][0]["customers"], json!(["birch-lake"]));
    let word = "    consents: [{weakening: enforcement, given_at: 2020-01-01, ref: C-1}]\n    enforcement: observe\n";
    put(&and_customer(&revision(14), word));
    loaded(&sidecar, 14);
    // Where its data may be is its own contract.
    let folder = "    residency: {storage_locations: [MX], access_locations: [MX], source: dpa}\n";
    put(&and_customer(&revision(15), word).replace("birch-lake", "amber-fall"));
    loaded(&sidecar, 15);
    put(&and_customer(&revision(16), folder).replace("birch-lake", "birch-run"));
    loaded(&sidecar, 16);
}

#[test]
fn another_company_took_the_place_of_a_subprocessor_without_a_word() {
    let redwood = |more: &str| format!("{REDWOOD}    consents: [{more}]\n");
    let word = |day: &str| redwood(&format!("{{subprocessor: sp-09, given_at: {day}, ref: C-1}}"));
    let (old, next) = (revision(12), revision(13));
    let name = |text: &str| with(text, "Brightpost Marketing, Inc.", "Harrow Data Brokers, Inc.");
    let (mail, desk) =
        ("\"spiffe://brightpost.example/sa/mail\"", "\"spiffe://lumenfield.example/ns/care/sa/care-desk\"");
    let other = |text: &str| with(text, mail, "\"spiffe://harrow.example/sa/pull\"");
    let both = |text: &str| with(text, mail, &format!("{mail}, \"spiffe://harrow.example/sa/pull\""));
    let consented = with(&old, REDWOOD, &word("2024-01-01"));
    let temps = "    human_access:\n      group: care-temps\n      confidentiality: {ref: NDA-11, signed_on: 2025-06-01, expires_on: 2026-05-31}\n";
    let served = "redwood-strand granite-notch cedar-hollow";
    let renamed = |text: &str| with(text, "  - id: care-temp\n", "  - id: care-temps\n");
    let table: [(&str, &str, String, Vec<String>); 13] = [
        ("another legal name", &old, name(&next), vec!["subprocessor_name: redwood-strand".into()]),
        ("another identity", &old, other(&next), vec!["subprocessor_identity: redwood-strand".into()]),
        ("one more identity", &old, both(&next), vec!["subprocessor_identity: redwood-strand".into()]),
        ("with its consent", &old, with(&name(&next), REDWOOD, &word("2026-09-01")), vec![]),
        (
            "with a consent that stood there before",
            &consented,
            with(&name(&next), REDWOOD, &word("2024-01-01")),
            vec!["subprocessor_name: redwood-strand".into()],
        ),
        ("with a newer one", &consented, with(&name(&next), REDWOOD, &word("2026-09-01")), vec![]),
        (
            "what it is said to do: its purposes and data say that",
            &old,
            with(&next, "Campaigns for", "Letters for"),
            vec![],
        ),
        (
            "its identity asks as the care desk",
            &old,
            with(&with(&next, mail, "\"spiffe://brightpost.example/sa/old\""), desk, &format!("{desk}, {mail}")),
            vec!["subprocessor_identity: redwood-strand".into(), format!("subprocessor_identity: {served}")],
        ),
        (
            "a machine more of the processor's own",
            &old,
            with(&next, desk, &format!("{desk}, \"spiffe://lumenfield.example/ns/care/sa/new\"")),
            vec![],
        ),
        (
            "an undertaking that was renewed",
            &old,
            with(&next, "expires_on: 2026-05-31}\n", "expires_on: 2028-05-31}\n"),
            vec![],
        ),
        ("people who are bound no more", &old, with(&next, temps, ""), vec![format!("human_access: {served}")]),
        ("the same people under another name", &old, renamed(&next), vec![]),
        (
            "people who are bound no more, under another name",
            &old,
            renamed(&with(&next, temps, "")),
            vec![format!("human_access: {served}")],
        ),
    ];
    let mut wrong = Vec::new();
    for (name, old, new, expected) in table {
        let got = not_agreed(old, &new);
        if got != expected {
            wrong.push(format!("{name}: expected {expected:?}, got {got:?}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn one_consent_covered_every_later_step_of_a_measure() {
    let tls = |text: &str, version: &str| {
        with(text, "\ndefaults:\n", &format!("\nsecurity_measures: {{min_tls_version: \"{version}\"}}\ndefaults:\n"))
    };
    // One customer, so that one word is enough.
    let single = |number| {
        let text = revision(number);
        let begin = text.find("  - id: fibre-outardes\n").unwrap();
        text[..begin].to_owned()
    };
    let word = |text: &str, consents: &str| with(text, REDWOOD, &format!("{REDWOOD}    consents: [{consents}]\n"));
    let step = |from: &str, to: &str| {
        format!("{{weakening: min_tls_version, from: \"{from}\", to: \"{to}\", given_at: 2024-01-01, ref: C-1}}")
    };
    let refused = || vec!["min_tls_version: redwood-strand".to_owned()];
    let observe = "    enforcement: observe\n    residency:\n      storage_locations: [US, CA]\n      access_locations: [US, CA]\n      source: instruction\n";
    let enforce = observe.replace("    enforcement: observe\n", "");
    let observed = |number, consent: &str| word(&with(&single(number), &enforce, observe), consent);
    let table = [
        ("the step it names", tls(&single(12), "1.3"), word(&tls(&single(13), "1.2"), &step("1.3", "1.2")), vec![]),
        ("a later step", tls(&single(12), "1.2"), word(&single(13), &step("1.3", "1.2")), refused()),
        ("a longer step", tls(&single(12), "1.3"), word(&single(13), &step("1.3", "1.2")), refused()),
        (
            "two steps, one after the other",
            tls(&single(12), "1.3"),
            word(&single(13), &format!("{}, {}", step("1.2", "none"), step("1.3", "1.2"))),
            vec![],
        ),
        (
            "it names no step, and there are several",
            tls(&single(12), "1.3"),
            word(&tls(&single(13), "1.2"), "{weakening: min_tls_version, given_at: 2024-01-01, ref: C-1}"),
            refused(),
        ),
        (
            "it names no step, and there is one",
            single(12),
            observed(13, "{weakening: enforcement, given_at: 2020-06-02, ref: C-1}"),
            vec![],
        ),
        (
            "it was given before the policy that enforces",
            single(12),
            observed(13, "{weakening: enforcement, given_at: 2020-05-30, ref: C-1}"),
            vec!["enforcement: redwood-strand".to_owned()],
        ),
        (
            "the same, and it names the step",
            single(12),
            observed(13, "{weakening: enforcement, from: enforce, to: observe, given_at: 2020-05-30, ref: C-1}"),
            vec![],
        ),
    ];
    for (name, old, new, expected) in table {
        assert_eq!(not_agreed(&old, &new), expected, "{name}");
    }
    for (name, consent) in [
        ("half a step", "{weakening: min_tls_version, from: \"1.3\", given_at: 2024-01-01, ref: C-1}"),
        (
            "a step to a subprocessor",
            "{subprocessor: sp-09, from: \"1.3\", to: \"1.2\", given_at: 2024-01-01, ref: C-1}",
        ),
    ] {
        let folder = Folder::new();
        folder.write("policy.yaml", &word(&revision(13), consent));
        let output = run(&folder.file("."), &["check", "policy.yaml"]);
        assert_eq!(output.status.code(), Some(1), "{name}");
        assert!(out(&output).contains("one is nothing without the other"), "{name}: {}", out(&output));
    }
}

#[test]
fn an_instruction_that_stood_there_before_opened_a_new_place() {
    let old = revision(12);
    let places = "      access_locations: [US, CA]\n      source: instruction\n      ref: ins-001\n";
    let wider = |instruction: &str| {
        let new =
            format!("      access_locations: [US, CA, MX]\n      source: instruction\n      ref: {instruction}\n");
        with(&revision(13), places, &new)
    };
    let dates = "        received_at: 2026-06-02\n        accepted_at: 2026-06-02\n        valid_from: 2026-06-02\n";
    let later = dates.replace("06-02", "09-01");
    for (name, new, expected) in [
        ("the one it rests on", wider("ins-001"), vec!["access_location: redwood-strand".to_owned()]),
        ("an old one about something else", wider("ins-007"), vec!["access_location: redwood-strand".to_owned()]),
        (
            "the same, given anew",
            with(&wider("ins-007"), dates, &later),
            vec!["access_location: redwood-strand".to_owned()],
        ),
    ] {
        assert_eq!(not_agreed(&old, &new), expected, "{name}");
    }
}

fn pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn a_pipe_that_a_glob_found_held_up_reloads_for_good() {
    let upstream = Upstream::ok();
    let folder = Folder::new();
    let with_files = |number| revision(number) + "\ncustomer_files: [\"customers.d/*.yaml\"]\n";
    let policy = folder.write("policy.yaml", &with_files(12));
    std::fs::create_dir(folder.file("customers.d")).unwrap();
    let customer = "customers:\n  - {id: brook-lane, legal_name: N, dpa: {version: \"3\", contract_ref: C}, permitted_purposes: [base]}\n";
    folder.write("customers.d/a.yaml", customer);
    let in_the_way = folder.file("customers.d/b.yaml");
    let sidecar = start(folder, &upstream.address, "{file: policy.yaml}");
    pipe(&in_the_way);
    let record = refused(&sidecar, "invalid");
    assert_eq!(record["problems"][0]["code"], "DPA020");
    std::fs::remove_file(&in_the_way).unwrap();
    std::fs::write(&policy, with_files(13)).unwrap();
    loaded(&sidecar, 13);
}

#[test]
fn a_pipe_in_the_place_of_a_file_was_waited_for() {
    let text = settings("127.0.0.1:1", "{file: policy.yaml}", "enforce");
    let table = [
        ("the policy", with(&text, "policy: {file: policy.yaml}", "policy: {file: pipe}")),
        ("its key", with(&text, "policy: {file: policy.yaml}", "policy: {file: policy.yaml, public_key: pipe}")),
        ("its baseline", with(&text, "policy: {file: policy.yaml}", "policy: {file: policy.yaml, baseline: pipe}")),
        ("the key of the log", with(&text, "decisions.ndjson}", "decisions.ndjson}, signing_key: pipe")),
        (
            "a certificate",
            with(
                &text,
                "address: '127.0.0.1:0'",
                "address: '127.0.0.1:0', tls: {certificate: pipe, private_key: pipe}",
            ),
        ),
        (
            "keys of an issuer",
            with(
                &text,
                "identity: [",
                "identity: [{token: {issuer: \"https://id.example\", audience: a, algorithms: [ES256], jwks_file: pipe}}, ",
            ),
        ),
    ];
    for (name, text) in table {
        let folder = Folder::new();
        folder.write("policy.yaml", &revision(12));
        folder.write("sidecar.yaml", &text);
        pipe(&folder.file("pipe"));
        let output = run(&folder.file("."), &["check", "sidecar.yaml"]);
        let said = out(&output) + &err(&output);
        assert_eq!(output.status.code(), Some(1), "{name}: {said}");
        assert!(said.contains("it is no regular file"), "{name}: {said}");
    }
}

#[test]
fn a_second_tampering_of_the_same_kind_was_not_recorded() {
    let upstream = Upstream::ok();
    let (office, stranger) = (Office::new(), Office::new());
    let folder = Folder::new();
    office.open(&folder, 12);
    let here = folder.file(".");
    let sidecar = start(folder, &upstream.address, SIGNED);
    let write = |name: &str, text: &str| std::fs::write(here.join(name), text).unwrap();
    let good = revision(12);
    let refusals = |count: usize| {
        let records = policy_events(&sidecar, 1 + count);
        assert!(records.iter().skip(1).all(|it| it["why"] == "signature"), "{records:?}");
    };
    write("policy.yaml", &format!("{good}\n# one\n"));
    refusals(1);
    write("policy.yaml", &format!("{good}\n# two\n"));
    refusals(2);
    let forged = |number| {
        let (manifest, signature) = stranger.signed(number, &[("policy.yaml", &good)]);
        write("policy.yaml.manifest.sig", &signature);
        write("policy.yaml.manifest.json", &manifest);
    };
    // The text is the same for both of these.
    forged(12);
    refusals(3);
    forged(13);
    refusals(4);
    // All is well again, and then it is what it was before.
    let (manifest, signature) = office.signed(12, &[("policy.yaml", &good)]);
    write("policy.yaml", &good);
    write("policy.yaml.manifest.json", &manifest);
    write("policy.yaml.manifest.sig", &signature);
    wait_for("peace", || sidecar.stderr.text().contains("the files say again what is in force").then_some(()));
    write("policy.yaml", &format!("{good}\n# one\n"));
    refusals(5);
}

#[test]
fn a_policy_of_another_name_took_the_place_of_the_agreed_one() {
    let upstream = Upstream::ok();
    let folder = Folder::new();
    let other = |number| with(&revision(number), "name: lumenfield-dpa", "name: harrow-dpa");
    let policy = folder.write("policy.yaml", &revision(12));
    let sidecar = start(folder, &upstream.address, "{file: policy.yaml}");
    std::fs::write(&policy, other(13)).unwrap();
    let record = refused(&sidecar, "name");
    assert_eq!(
        (&record["offered"]["name"], &record["policy"]["name"]),
        (&json!("harrow-dpa"), &json!("lumenfield-dpa"))
    );
    assert!(record["text"].as_str().unwrap().contains("write `metadata: {name: lumenfield-dpa, …}`"), "{record}");
    // The same at a start.
    let folder = Folder::new();
    folder.write("policy.yaml", &other(13));
    folder.write("agreed.yaml", &revision(12));
    let text = settings("127.0.0.1:1", "{file: policy.yaml, baseline: agreed.yaml}", "enforce");
    let (code, said) = Setup::to("127.0.0.1:1").refused_with(&text, &folder);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("error[DPA052]") && said.contains("is another policy than"), "{said}");
}

fn issued(number: u64, at: &str) -> String {
    with(&revision(number), "issued_at: 2020-06-01", &format!("issued_at: {at}"))
}

#[test]
fn a_policy_from_the_future_was_never_too_old() {
    let upstream = Upstream::ok();
    let now = jiff::Timestamp::now();
    let soon = (now + jiff::SignedDuration::from_mins(2)).to_string();
    for (name, keys, at, is_good) in [
        ("from the future, with an age", ", max_age: 30d", "2999-01-01", false),
        ("as clocks differ", ", max_age: 30d", soon.as_str(), true),
        ("from the future, and nobody asks for its age", "", "2999-01-01", true),
    ] {
        let folder = Folder::new();
        folder.write("policy.yaml", &issued(12, at));
        folder.write("sidecar.yaml", &settings("127.0.0.1:1", &format!("{{file: policy.yaml{keys}}}"), "enforce"));
        let output = run(&folder.file("."), &["check", "sidecar.yaml"]);
        assert_eq!(output.status.success(), is_good, "{name}: {}", out(&output));
        assert_eq!(out(&output).contains("issued later than now"), !is_good, "{name}: {}", out(&output));
    }
    let folder = Folder::new();
    let policy = folder.write("policy.yaml", &issued(12, &now.to_string()));
    let sidecar = start(folder, &upstream.address, "{file: policy.yaml, max_age: 30d}");
    std::fs::write(&policy, issued(13, "2999-01-01")).unwrap();
    assert_eq!(refused(&sidecar, "settings")["offered"]["revision"], 13);
}

#[test]
fn customer_files_were_read_without_end() {
    let folder = Folder::new();
    folder.write("policy.yaml", &(revision(12) + "\ncustomer_files: [\"customers.d/*.yaml\"]\n"));
    std::fs::create_dir(folder.file("customers.d")).unwrap();
    for number in 0..18 {
        let file = std::fs::File::create(folder.file(&format!("customers.d/{number}.yaml"))).unwrap();
        file.set_len(16 << 20).unwrap();
    }
    let output = run(&folder.file("."), &["check", "policy.yaml"]);
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    assert!(out(&output).contains("or 256 MiB in all of them"), "{}", out(&output));
}

/// Folders that lead into each other have no end; nor, for whom waits, has a whole machine.
#[test]
fn a_pattern_without_bound_held_up_reloads() {
    let upstream = Upstream::ok();
    let folder = Folder::new();
    let wide = |number| revision(number) + "\ncustomer_files: [\"**/*.nothing\"]\n";
    let policy = folder.write("policy.yaml", &revision(12));
    for name in ["one", "two", "three"] {
        std::fs::create_dir_all(folder.file("around")).unwrap();
        symlink("..", folder.file(&format!("around/{name}"))).unwrap();
    }
    folder.write("wide.yaml", &wide(13));
    let output = run(&folder.file("."), &["check", "wide.yaml"]);
    let said = out(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("error[DPA020]: `**/*.nothing` leads through more than 100000 files and folders"), "{said}");
    assert!(said.contains("write `customers.d/*.yaml`"), "{said}");
    let sidecar = start(folder, &upstream.address, "{file: policy.yaml}");
    std::fs::write(&policy, wide(13)).unwrap();
    assert_eq!(refused(&sidecar, "invalid")["problems"][0]["code"], "DPA020");
    std::fs::write(&policy, revision(14)).unwrap();
    loaded(&sidecar, 14);
}

#[test]
fn customer_files_were_counted_in_sixteen_bits() {
    let folder = Folder::new();
    folder.write("policy.yaml", &(revision(12) + "\ncustomer_files: [\"customers.d/*.yaml\"]\n"));
    std::fs::create_dir(folder.file("customers.d")).unwrap();
    for number in 0..65_535 {
        std::fs::File::create(folder.file(&format!("customers.d/{number}.yaml"))).unwrap();
    }
    let output = run(&folder.file("."), &["check", "policy.yaml"]);
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    assert!(out(&output).contains("the policy is more than 65535 files"), "{}", out(&output));
}

#[test]
fn customers_that_were_dropped_were_remembered_without_end() {
    let policy = |first: usize, more: &str| {
        let text = revision(12);
        let (head, _) = text.split_once("\ncustomers:\n").unwrap();
        let customers: String = (first..80)
            .map(|number| {
                format!(
                    "  - {{id: c-{number}, legal_name: C, dpa: {{version: \"3\", accepted_at: 2024-05-01, contract_ref: M}}, permitted_purposes: [base]{more}}}\n"
                )
            })
            .collect();
        let source = Source { path: "policy.yaml".into(), text: format!("{head}\ncustomers:\n{customers}") };
        policy::compile(&[source], &["policy.yaml".to_owned()], None, None).0.unwrap()
    };
    let now = "2026-10-01T00:00:00Z".parse().unwrap();
    let mut former = Former::default();
    for first in 0..70 {
        former = former.after((&policy(first, ""), now), &policy(first + 1, ""), now);
    }
    // 70 loads took one out each; 64 of them are remembered.
    let old = policy(70, "");
    for first in [0, 5, 6, 69] {
        let back = policy(first, "").with_only(|customer| customer.id.as_str() == format!("c-{first}"));
        assert!(former.held_against(&Offer::of(&back, &old, now)).is_ok(), "{first}: as it was");
        let wider = policy(first, ", enforcement: observe");
        let wider = wider.with_only(|customer| customer.id.as_str() == format!("c-{first}"));
        assert_eq!(former.held_against(&Offer::of(&wider, &old, now)).is_err(), first >= 6, "{first}: wider");
    }
}

#[test]
fn a_file_that_nobody_signed_was_read_before_it_was_refused() {
    let office = Office::new();
    let folder = Folder::new();
    office.open(&folder, 12);
    let text = revision(12) + "\ncustomer_files: [\"customers.d/*.yaml\"]\n";
    office.put(&folder, 12, &text);
    // Nobody can read this one.
    std::fs::create_dir_all(folder.file("customers.d/a.yaml")).unwrap();
    folder.write("sidecar.yaml", &settings("127.0.0.1:1", SIGNED, "enforce"));
    let output = run(&folder.file("."), &["check", "sidecar.yaml"]);
    assert_eq!(output.status.code(), Some(1), "{}", out(&output));
    assert!(out(&output).contains("`customers.d/a.yaml` is not in the manifest"), "{}", out(&output));
}

#[test]
fn a_policy_that_became_too_old_again_was_recorded_once() {
    let upstream = Upstream::ok();
    let folder = Folder::new();
    let now = || jiff::Timestamp::now().to_string();
    let policy = folder.write("policy.yaml", &issued(12, &now()));
    let text = settings(&upstream.address, "{file: policy.yaml, max_age: 3s, on_stale: warn}", "enforce");
    let sidecar = Setup::to(&upstream.address).start_with(&text, folder);
    let stale = |sidecar: &crate::support::Sidecar, number: u64, count: usize| {
        wait_for("it is too old", || {
            let is_it = |it: &&Value| it["what"] == "stale" && it["policy"]["revision"] == number;
            (sidecar.records().iter().filter(is_it).count() == count).then_some(())
        });
    };
    stale(&sidecar, 12, 1);
    std::fs::write(&policy, issued(13, &now())).unwrap();
    stale(&sidecar, 13, 1);
    // One that is too old already follows.
    std::fs::write(&policy, issued(14, "2020-06-01")).unwrap();
    stale(&sidecar, 14, 1);
    // And at the next start.
    let stopped = sidecar.stop();
    let sidecar = Setup::to(&upstream.address).start_with(&text, stopped.folder);
    stale(&sidecar, 14, 2);
}

#[test]
fn a_start_that_was_refused_left_no_record() {
    let good = revision(12);
    let plain = "{file: policy.yaml}";
    let held = "{file: policy.yaml, baseline: agreed.yaml}";
    type Row = (&'static str, &'static str, Option<String>, Option<String>, &'static str, &'static str);
    let table: [Row; 7] = [
        ("it does not compile", plain, Some(good.clone() + "\nnonsense: 1\n"), None, "enforce", "invalid"),
        ("it is not there", plain, None, None, "enforce", "unreadable"),
        (
            "the settings do not fit it",
            plain,
            Some(good.clone() + "\nrequire_enforce: true\n"),
            None,
            "observe",
            "settings",
        ),
        ("the baseline is not there", held, Some(good.clone()), None, "enforce", "baseline"),
        ("the baseline has mistakes", held, Some(good.clone()), Some("nonsense: 1\n".into()), "enforce", "baseline"),
        ("an older revision", held, Some(good.clone()), Some(revision(13)), "enforce", "revision"),
        (
            "it has to be signed",
            "{file: policy.yaml, public_key: policy.pub}",
            Some(good.clone()),
            None,
            "enforce",
            "signature",
        ),
    ];
    let key = signature::generate().unwrap();
    for (name, terms, policy, agreed, enforcement, why) in table {
        let folder = Folder::new();
        folder.write("policy.pub", &key.public);
        for (file, text) in [("policy.yaml", policy), ("agreed.yaml", agreed)] {
            text.map(|text| folder.write(file, &text));
        }
        let text = settings("127.0.0.1:1", terms, enforcement);
        let (code, said) = Setup::to("127.0.0.1:1").refused_with(&text, &folder);
        assert_eq!(code, Some(1), "{name}: {said}");
        let records = records_in(&std::fs::read_to_string(folder.file("decisions.ndjson")).unwrap());
        let record = records.iter().find(|record| record["event"] == "dpa.policy").unwrap();
        assert_eq!((&record["what"], &record["why"]), (&json!("refused"), &json!(why)), "{name}");
    }
    // Another process writes the log: then nothing can be recorded, and the answer is the same.
    let upstream = Upstream::ok();
    let folder = Folder::new();
    let policy = folder.write("policy.yaml", &good);
    let sidecar = start(folder, &upstream.address, plain);
    std::fs::write(&policy, "nonsense: 1\n").unwrap();
    let config = policy.with_file_name("sidecar.yaml");
    let output = run(policy.parent().unwrap(), &["run", "--config", config.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    assert!(err(&output).contains("the refusal is not recorded: "), "{}", err(&output));
    sidecar.still_serves();
}

#[test]
fn sign_wrote_through_a_link_that_lay_in_its_way() {
    let folder = Folder::new();
    folder.write("policy.yaml", &revision(12));
    let victim = folder.write("victim", "untouched");
    for what in ["manifest.json", "manifest.sig"] {
        symlink(&victim, folder.file(&format!("policy.yaml.{what}.new"))).unwrap();
        symlink(&victim, folder.file(&format!("policy.yaml.{what}"))).unwrap();
    }
    let here = folder.file(".");
    assert_eq!(run(&here, &["keygen", "policy.key"]).status.code(), Some(0));
    let signed = run(&here, &["sign", "--key", "policy.key", "policy.yaml"]);
    assert_eq!(signed.status.code(), Some(0), "{}", err(&signed));
    assert_eq!(std::fs::read_to_string(victim).unwrap(), "untouched");
    let count = std::fs::read_dir(&here).unwrap().count();
    assert_eq!(count, 8, "policy, victim, two keys, manifest and signature, and the two links: nothing is left over");
}

#[test]
fn check_against_a_baseline_passed_what_no_load_would_take() {
    let other = with(&revision(13), "name: lumenfield-dpa", "name: harrow-dpa");
    for (name, new, says) in [
        ("the same revision with another text", revision(12) + "\n# more\n", "revision 12 is not what it was"),
        ("a lower revision", revision(11), "revision 11 is lower than 12"),
        ("another policy", other, "`harrow-dpa` is another policy than `lumenfield-dpa`"),
        ("the same, in a file of another name", revision(12), ""),
        ("a higher revision", revision(13), ""),
    ] {
        let folder = Folder::new();
        folder.write("old.yaml", &revision(12));
        folder.write("new.yaml", &new);
        for form in ["text", "json"] {
            let output = run(&folder.file("."), &["check", "new.yaml", "--against", "old.yaml", "-o", form]);
            let said = out(&output);
            assert_eq!(output.status.code(), Some(i32::from(!says.is_empty())), "{name}: {said}");
            assert!(said.contains(says), "{name}: {said}");
            assert_eq!(said.contains("DPA052"), !says.is_empty(), "{name}: {said}");
        }
    }
}

#[test]
fn a_policy_was_held_against_itself() {
    let files = "\ncustomer_files: [\"customers.d/*.yaml\"]\n";
    let customer = "customers:\n  - {id: brook-lane, legal_name: N, dpa: {version: \"3\", contract_ref: C}, permitted_purposes: [base]}\n";
    for (name, baseline, is_good) in [
        ("the policy's own file", "policy.yaml", false),
        ("a link to it", "link.yaml", false),
        ("another file, with the same customers' files", "agreed.yaml", false),
        ("a folder whose customers' files are a link", "linked/agreed.yaml", false),
        ("a folder of its own", "own/agreed.yaml", true),
    ] {
        let folder = Folder::new();
        let text = revision(12) + files;
        folder.write("policy.yaml", &text);
        folder.write("agreed.yaml", &text);
        for sub in ["customers.d", "linked", "own/customers.d"] {
            std::fs::create_dir_all(folder.file(sub)).unwrap();
        }
        folder.write("customers.d/a.yaml", customer);
        folder.write("own/customers.d/a.yaml", customer);
        folder.write("linked/agreed.yaml", &text);
        folder.write("own/agreed.yaml", &text);
        symlink(folder.file("policy.yaml"), folder.file("link.yaml")).unwrap();
        symlink(folder.file("customers.d"), folder.file("linked/customers.d")).unwrap();
        let terms = format!("{{file: policy.yaml, baseline: {baseline}}}");
        folder.write("sidecar.yaml", &settings("127.0.0.1:1", &terms, "enforce"));
        for command in [&["check", "sidecar.yaml"][..], &["coverage", "sidecar.yaml"]] {
            let output = run(&folder.file("."), command);
            let said = out(&output) + &err(&output);
            assert_eq!(said.contains("the policy is held against itself"), !is_good, "{name}: {said}");
            assert!(
                is_good || output.status.code() == Some(if command[0] == "check" { 1 } else { 2 }),
                "{name}: {said}"
            );
        }
        if !is_good {
            let text = settings("127.0.0.1:1", &terms, "enforce");
            let (code, said) = Setup::to("127.0.0.1:1").refused_with(&text, &folder);
            assert_eq!(code, Some(1), "{name}: {said}");
            assert!(said.contains("error[DPA052]"), "{name}: {said}");
        }
    }
}

#[test]
fn a_transfer_to_where_a_subprocessor_was_not_yet_let_it_go_there() {
    let rests = "      source: instruction\n      ref: ins-001\n";
    let transfer = "      transfers: [{to: [IN], mechanism: scc, ref: x, subprocessor: sp-03}]\n";
    let opened = with(&revision(13), rests, &format!("{rests}{transfer}"));
    assert_eq!(not_agreed(&revision(12), &opened), ["transfer: redwood-strand"]);
}

#[test]
fn one_notice_was_good_for_ever_and_for_who_was_never_told() {
    let notice = |text: &str, day: &str| {
        format!(
            "{text}\nweakening_notices:\n  - {{measure: enforcement, from: enforce, to: observe, notice_given_at: {day}}}\n"
        )
    };
    let granite =
        |text: &str, more: &str| with(text, "  - id: granite-notch\n", &format!("  - id: granite-notch\n{more}"));
    let word = |day: &str| {
        format!("    consents: [{{weakening: enforcement, from: enforce, to: observe, given_at: {day}, ref: C-1}}]\n")
    };
    let observe = "    enforcement: observe\n";
    let old = issued(12, "2026-09-15");
    let next = granite(&revision(13), observe);
    let newcomer = and_customer(&revision(13), observe);
    let refused = |id: &str| vec![format!("enforcement: {id}")];
    let (words, still) = (granite(&old, &word("2026-09-01")), granite(&old, &word("2026-09-20")));
    let table = [
        ("a notice that came with the change", old.clone(), notice(&next, "2026-06-01"), vec![]),
        (
            "a notice that was due before the policy in which it stood was issued",
            notice(&old, "2026-06-01"),
            notice(&next, "2026-06-01"),
            refused("granite-notch"),
        ),
        ("one that became due since", notice(&old, "2026-06-20"), notice(&next, "2026-06-20"), vec![]),
        (
            "a policy that does not say when it was issued",
            with(&notice(&old, "2026-06-20"), ", issued_at: 2026-09-15", ""),
            notice(&next, "2026-06-20"),
            refused("granite-notch"),
        ),
        ("given anew", notice(&old, "2026-06-01"), notice(&next, "2026-06-02"), vec![]),
        ("before the customer accepted", old.clone(), notice(&next, "2023-03-14"), refused("granite-notch")),
        ("a new customer, told before it was one", old.clone(), notice(&newcomer, "2024-04-30"), refused("birch-lake")),
        ("a new customer, told since", old.clone(), notice(&newcomer, "2024-05-01"), vec![]),
        (
            "a consent that stood there, of before that policy",
            words,
            granite(&revision(13), &format!("{observe}{}", word("2026-09-01"))),
            refused("granite-notch"),
        ),
        (
            "a consent that stood there, of after it",
            still,
            granite(&revision(13), &format!("{observe}{}", word("2026-09-20"))),
            vec![],
        ),
    ];
    for (name, old, new, expected) in table {
        assert_eq!(not_agreed(&old, &new), expected, "{name}");
    }
}
