//! What a word of a customer covers, for how long, and what needs one: each test is named after what happened.

use serde_json::Value;
use serde_json::json;

use crate::policy_gate::REDWOOD;
use crate::policy_gate::not_agreed;
use crate::policy_gate::with;
use crate::policy_reload::loaded;
use crate::policy_reload::refused;
use crate::policy_reload::revision;
use crate::policy_reload::settings;
use crate::policy_reload::start;
use crate::support::Folder;
use crate::support::Sidecar;
use crate::support::Upstream;
use crate::support::err;
use crate::support::out;
use crate::support::run;
use crate::support::wait_for;

/// The entry before which a new subprocessor is put.
const LAST: &str = "  # No longer used. The entry stays";

/// The dates of an instruction.
const GIVEN: &str = "received_at: 2026-06-02, accepted_at: 2026-06-02, valid_from: 2026-06-02";

/// A policy with another instruction of `redwood-strand`, first in its list.
fn instructed(text: &str, more: &str) -> String {
    let first = "    instructions:\n      - id: ins-001\n";
    let own = format!("    instructions:\n      - {{id: ins-900, issuer_role: x, reference: R-1, {GIVEN}{more}}}\n");
    with(text, first, &first.replace("    instructions:\n", &own))
}

/// `redwood-strand` permits these purposes too.
fn permitting(text: &str, more: &str) -> String {
    with(text, REDWOOD, &REDWOOD.replace("[base", &format!("[{more}, base")))
}

/// A policy with a subprocessor that is new, of which the others want nothing.
fn lampwick(text: &str, more: &str) -> String {
    let entry = format!(
        "  - id: sp-13\n    legal_name: Lampwick Support, Inc.\n    service: Help desk\n    \
         identities: [\"spiffe://lampwick.example/sa/desk\"]\n    permitted_purposes: [customer_marketing, quality_improvement]\n    \
         storage_locations: [US-NV]\n    access_locations: [US-NV]\n{more}\n"
    );
    with(text, LAST, &(entry + LAST))
}

/// Its data, its agreement, and from when until when it may have data.
fn terms(data: &str, flows: bool, period: &str) -> String {
    format!(
        "    data_categories: [{data}]\n    agreement: {{ref: SPA-9, signed_on: 2026-06-01, flow_down: {flows}}}\n    {period}\n"
    )
}

const SINCE_MAY: &str = "effective_at: 2026-05-01";

#[test]
fn an_instruction_in_its_limits_opened_something_without_limits() {
    let old = revision(12);
    let places = "      access_locations: [US, CA]\n      source: instruction\n      ref: ins-001\n";
    let place = |more: &str| {
        let wider = places.replace("CA]", "CA, MX]").replace("ins-001", "ins-900");
        instructed(&with(&revision(13), places, &wider), more)
    };
    let purpose = |more: &str| instructed(&permitting(&revision(13), "ad_audit"), more);
    let desk = |period: &str, more: &str| {
        instructed(&lampwick(&revision(13), &terms("user.name, user.contact", true, period)), more)
    };
    let mail = "    data_categories: [user.name, user.contact]\n    storage_locations: [US-IL]\n";
    let data = |more: &str| {
        instructed(&with(&revision(13), mail, &mail.replace("user.contact", "user.contact, user.device")), more)
    };
    let stood = instructed(&old, ", permits: {purposes: [ad_audit]}");
    let ends = "effective_at: 2026-05-01\n    removed_at: 2026-12-31";
    let table: [(&str, &str, String, &str); 27] = [
        ("a purpose, and nothing else", &old, purpose(", permits: {purposes: [ad_audit]}"), ""),
        ("that stood there before", &stood, purpose(", permits: {purposes: [ad_audit]}"), ""),
        (
            "with an end",
            &old,
            purpose(", valid_until: 2036-01-01, permits: {purposes: [ad_audit]}"),
            "customer_purpose",
        ),
        ("for an export", &old, purpose(", permits: {purposes: [ad_audit], operations: [export]}"), "customer_purpose"),
        ("by somebody", &old, purpose(", permits: {purposes: [ad_audit], subprocessors: [sp-07]}"), "customer_purpose"),
        (
            "of some data",
            &old,
            purpose(", permits: {purposes: [ad_audit], data_categories: [user.device]}"),
            "customer_purpose",
        ),
        ("another purpose", &old, purpose(", permits: {purposes: [debugging]}"), "customer_purpose"),
        ("a place, and nothing else", &old, place(""), ""),
        ("a place, with an end", &old, place(", valid_until: 2036-01-01"), "access_location"),
        ("it restricts a subscriber", &old, place(", restricts: {subscriber: \"abc\"}"), "access_location"),
        ("it permits a purpose", &old, place(", permits: {purposes: [debugging]}"), "access_location"),
        ("it lists who is new", &old, desk(SINCE_MAY, ", permits: {subprocessors: [sp-13]}"), ""),
        (
            "with an end",
            &old,
            desk(SINCE_MAY, ", valid_until: 2036-01-01, permits: {subprocessors: [sp-13]}"),
            "subprocessor",
        ),
        (
            "who is new goes before",
            &old,
            desk(ends, ", valid_until: 2026-12-31, permits: {subprocessors: [sp-13]}"),
            "",
        ),
        (
            "and a day after",
            &old,
            desk(ends, ", valid_until: 2026-12-30, permits: {subprocessors: [sp-13]}"),
            "subprocessor",
        ),
        (
            "for one of its purposes",
            &old,
            desk(SINCE_MAY, ", permits: {subprocessors: [sp-13], purposes: [customer_marketing]}"),
            "subprocessor",
        ),
        (
            "for all of them",
            &old,
            desk(SINCE_MAY, ", permits: {subprocessors: [sp-13], purposes: [quality_improvement, customer_marketing]}"),
            "",
        ),
        (
            "for an export",
            &old,
            desk(SINCE_MAY, ", permits: {subprocessors: [sp-13], operations: [export]}"),
            "subprocessor",
        ),
        (
            "with less data",
            &old,
            desk(SINCE_MAY, ", permits: {subprocessors: [sp-13], data_categories: [user.contact]}"),
            "subprocessor",
        ),
        ("with more data", &old, desk(SINCE_MAY, ", permits: {subprocessors: [sp-13], data_categories: [user]}"), ""),
        ("of somebody else", &old, desk(SINCE_MAY, ", permits: {subprocessors: [sp-07]}"), "subprocessor"),
        (
            "what is added to the data",
            &old,
            data(", permits: {subprocessors: [sp-09], data_categories: [user.device]}"),
            "",
        ),
        (
            "what was there already",
            &old,
            data(", permits: {subprocessors: [sp-09], data_categories: [user.contact]}"),
            "subprocessor_data",
        ),
        (
            "what is added, for its purpose",
            &old,
            data(", permits: {subprocessors: [sp-09], purposes: [customer_marketing], data_categories: [user.device]}"),
            "",
        ),
        (
            "what is added, for another purpose",
            &old,
            data(", permits: {subprocessors: [sp-09], purposes: [debugging], data_categories: [user.device]}"),
            "subprocessor_data",
        ),
        (
            "what is added, for a while",
            &old,
            data(", valid_until: 2036-01-01, permits: {subprocessors: [sp-09], data_categories: [user.device]}"),
            "subprocessor_data",
        ),
        // In its limits it needs no list: a request names it.
        (
            "in its limits, and the list as it was",
            &old,
            instructed(
                &revision(13),
                ", valid_until: 2036-01-01, permits: {purposes: [ad_audit], operations: [export]}",
            ),
            "",
        ),
    ];
    let mut wrong = Vec::new();
    for (name, old, new, expected) in table {
        let expected: Vec<String> =
            Some(format!("{expected}: redwood-strand")).filter(|_| !expected.is_empty()).into_iter().collect();
        let got = not_agreed(old, &new);
        if got != expected {
            wrong.push(format!("{name}: expected {expected:?}, got {got:?}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

fn put(sidecar: &Sidecar, name: &str, text: &str) {
    std::fs::write(sidecar.log().with_file_name(name), text).unwrap();
}

fn refused_at(sidecar: &Sidecar, revision: u64) -> Value {
    sidecar.record(&format!("a refusal of {revision}"), |it| {
        it["what"] == "refused" && it["offered"]["revision"] == revision
    })
}

#[test]
fn what_was_agreed_was_held_up_when_the_instruction_for_it_had_ended() {
    let upstream = Upstream::ok();
    let folder = Folder::new();
    folder.write("agreed.yaml", &revision(12));
    folder.write("policy.yaml", &revision(12));
    let sidecar = start(folder, &upstream.address, "{file: policy.yaml, baseline: agreed.yaml}");
    let put = |text: &str| put(&sidecar, "policy.yaml", text);
    let audit = |number| permitting(&revision(number), "ad_audit");
    put(&instructed(&audit(13), ", permits: {purposes: [ad_audit]}"));
    loaded(&sidecar, 13);
    // The customer takes its word back, and the list is not changed: that lets less pass, so it loads, and is told.
    let ended = |number| instructed(&audit(number), ", valid_until: 2026-06-30, permits: {purposes: [ad_audit]}");
    put(&ended(14));
    loaded(&sidecar, 14);
    wait_for("a warning", || {
        sidecar.stderr.text().contains("a start with this policy and this baseline").then_some(())
    });
    // Something else opens, which needs no word: what passes already is not held against it.
    let plain = "    location: US-OR\n    permitted_purposes: [billing_payment]\n";
    let wider = |number| {
        with(&ended(number), plain, &plain.replace("[billing_payment]", "[billing_payment, fraud_prevention]"))
    };
    put(&wider(15));
    assert_ne!(loaded(&sidecar, 15)["weaker"], 0);
    // What is new is held against all.
    put(&wider(16).replace("[ad_audit, base", "[ad_audit, transient_use, base"));
    assert_eq!(refused_at(&sidecar, 16)["changes"][0]["kind"], "customer_purpose");
    // Less passes, and what remains has no word: it loads.
    put(&with(&wider(17), "[ad_audit, base, customer_analytics", "[ad_audit, base"));
    loaded(&sidecar, 17);
    // A start knows nothing of what ran: then the word is missing.
    let here = sidecar.log().with_file_name("sidecar.yaml");
    let output = run(here.parent().unwrap(), &["check", "sidecar.yaml"]);
    assert_eq!(output.status.code(), Some(1), "{}", out(&output));
    assert!(out(&output).contains("permits `ad_audit`"), "{}", out(&output));
}

/// What is agreed stays so: no day that passes takes the word away.
#[test]
fn a_policy_was_refused_at_a_later_start_and_nobody_had_changed_it() {
    let ends = "effective_at: 2026-05-01\n    removed_at: 2026-12-31";
    let desk = lampwick(&revision(13), &terms("user.name", true, ends));
    let desk = instructed(&desk, ", valid_until: 2026-12-31, permits: {subprocessors: [sp-13]}");
    let audit = instructed(&permitting(&revision(13), "ad_audit"), ", permits: {purposes: [ad_audit]}");
    for (name, text) in [("a subprocessor for some months", desk), ("a purpose", audit)] {
        let folder = Folder::new();
        folder.write("policy.yaml", &text);
        folder.write("agreed.yaml", &revision(12));
        folder.write("sidecar.yaml", &settings("127.0.0.1:1", "{file: policy.yaml, baseline: agreed.yaml}", "enforce"));
        for day in ["2026-06-02", "2026-10-01", "2026-12-31", "2027-01-01", "2036-01-01"] {
            let output = run(&folder.file("."), &["check", "sidecar.yaml", "--at", day]);
            assert_eq!(output.status.code(), Some(0), "{name} {day}: {}{}", out(&output), err(&output));
        }
    }
}

/// The baseline was kept at what ran, so it had the widening of what was closed.
#[test]
fn what_was_widened_while_closed_was_opened_once_the_baseline_had_it() {
    let upstream = Upstream::ok();
    let folder = Folder::new();
    folder.write("agreed.yaml", &revision(12));
    folder.write("policy.yaml", &revision(12));
    let sidecar = start(folder, &upstream.address, "{file: policy.yaml, baseline: agreed.yaml}");
    let data = "    data_categories: [user.device]\n    storage_locations: [CA-ON, US-OR]\n";
    let wide = |number| with(&revision(number), data, &data.replace("user.device", "user"));
    put(&sidecar, "policy.yaml", &wide(13));
    loaded(&sidecar, 13);
    put(&sidecar, "agreed.yaml", &wide(13));
    let paper = "signed_on: 2022-12-01, expires_on: 2026-05-31";
    put(&sidecar, "policy.yaml", &with(&wide(14), paper, "signed_on: 2022-12-01, expires_on: 2036-05-31"));
    let record = refused(&sidecar, "weaker");
    assert_eq!(record["changes"][0]["kind"], "subprocessor_data");
    assert!(record["text"].as_str().unwrap().starts_with("held against the policy of the start: weaker"), "{record}");
    // Renewed as it was.
    put(&sidecar, "agreed.yaml", &revision(12));
    put(&sidecar, "policy.yaml", &with(&revision(15), paper, "signed_on: 2022-12-01, expires_on: 2036-05-31"));
    loaded(&sidecar, 15);
}

/// Nothing of it was there at the start, so only what ran since can say what was agreed.
#[test]
fn what_came_after_the_start_was_closed_and_came_back_wider_on_its_old_consents() {
    let upstream = Upstream::ok();
    let consented = |text: &str| {
        with(
            text,
            REDWOOD,
            &format!("{REDWOOD}    consents: [{{subprocessor: sp-13, given_at: 2026-06-02, ref: C-1}}]\n"),
        )
    };
    type Closed = fn(u64) -> String;
    let desk = |number, data: &str| lampwick(&revision(number), &terms(data, true, SINCE_MAY));
    let table: [(&str, Closed); 3] = [
        ("its agreement is over for a while", |number| {
            let consent = format!("{REDWOOD}    consents: [{{subprocessor: sp-13, given_at: 2026-06-02, ref: C-1}}]\n");
            let terms = terms("user", true, SINCE_MAY)
                .replace("signed_on: 2026-06-01", "signed_on: 2020-06-01, expires_on: 2020-07-01");
            with(&lampwick(&revision(number), &terms), REDWOOD, &consent)
        }),
        ("it is gone for a while, and the consent with it", revision),
        ("only the consent is gone for a while", |number| {
            lampwick(&revision(number), &terms("user.name", true, SINCE_MAY))
        }),
    ];
    for (name, closed) in table {
        let folder = Folder::new();
        folder.write("policy.yaml", &revision(12));
        let sidecar = start(folder, &upstream.address, "{file: policy.yaml}");
        put(&sidecar, "policy.yaml", &consented(&desk(13, "user.name")));
        loaded(&sidecar, 13);
        put(&sidecar, "policy.yaml", &closed(14));
        loaded(&sidecar, 14);
        put(&sidecar, "policy.yaml", &consented(&desk(15, "user")));
        let record = refused(&sidecar, "weaker");
        assert_eq!(record["changes"][0]["kind"], "subprocessor_data", "{name}");
        let text = record["text"].as_str().unwrap();
        assert!(text.starts_with("held against a policy since the start: weaker"), "{name}: {record}");
        // As it was agreed, it comes back.
        put(&sidecar, "policy.yaml", &consented(&desk(16, "user.name")));
        loaded(&sidecar, 16);
    }
}

#[test]
fn a_purpose_became_the_demand_of_the_law_by_a_word_of_the_file() {
    let mapped = |text: &str, to: &str| {
        let from = "  customer_marketing:\n    ccpa_business_purpose: e6\n";
        with(text, from, &from.replace("e6", to))
    };
    let word = ", permits: {purposes: [customer_marketing]}";
    let stood = instructed(&revision(12), word);
    let refused = || vec!["business_purpose: redwood-strand".to_owned()];
    let table = [
        ("nobody agreed", revision(12), mapped(&revision(13), "legal"), refused()),
        ("an instruction that permits it", revision(12), instructed(&mapped(&revision(13), "legal"), word), vec![]),
        ("one that stood there before", stood, instructed(&mapped(&revision(13), "legal"), word), refused()),
        (
            "one in its limits",
            revision(12),
            instructed(
                &mapped(&revision(13), "legal"),
                ", permits: {purposes: [customer_marketing], operations: [export]}",
            ),
            refused(),
        ),
        ("another business purpose", revision(12), mapped(&revision(13), "e7"), vec![]),
        ("the law's demand no more", mapped(&revision(12), "legal"), mapped(&revision(13), "contract"), vec![]),
    ];
    for (name, old, new, expected) in table {
        assert_eq!(not_agreed(&old, &new), expected, "{name}");
    }
    let necessity = "    necessity: Run the customer's own campaigns to its own subscribers.\n";
    let sold = |text: &str| with(text, necessity, "    necessity: Sell more.\n");
    let table = [
        ("to the law", "legal", json!(["weaker"]), 1),
        ("to another", "e7", json!(["neutral"]), 0),
        ("to another, and the necessity with it", "e1", json!(["neutral"]), 0),
    ];
    for (name, to, directions, code) in table {
        let folder = Folder::new();
        folder.write("old.yaml", &revision(12));
        let new = mapped(&revision(13), to);
        folder.write("new.yaml", &if to == "e1" { sold(&new) } else { new });
        let output = run(&folder.file("."), &["diff", "old.yaml", "new.yaml", "-o", "json"]);
        assert_eq!(output.status.code(), Some(code), "{name}: {}", err(&output));
        let said: Value = serde_json::from_str(&out(&output)).unwrap();
        let changes = said["changes"].as_array().unwrap();
        let found: Vec<&Value> = changes.iter().filter(|it| it["kind"] == "business_purpose").collect();
        assert_eq!(json!(found.iter().map(|it| it["direction"].clone()).collect::<Vec<_>>()), directions, "{name}");
        assert!(found[0]["new"]["line"].is_number() && found[0]["old"]["line"].is_number(), "{name}: {said}");
        let is_entry = |it: &&Value| it["text"].as_str().unwrap().contains("purposes.customer_marketing");
        assert_eq!(changes.iter().filter(is_entry).count(), usize::from(to == "e1"), "{name}: {said}");
    }
}

/// `sp-08` kept and reached data in Germany, which no customer with its data in the US allows.
#[test]
fn a_subprocessor_got_the_data_of_customers_that_never_said_a_word() {
    let places = "    storage_locations: [DE]\n    access_locations: [DE]\n    agreement";
    let moved = |number, to: &str| with(&revision(number), places, &places.replace("DE", to));
    let consented = |text: &str| {
        let mut text = text.to_owned();
        for id in ["redwood-strand", "granite-notch", "salt-flat"] {
            let name = format!("  - id: {id}\n");
            let consent = format!("{name}    consents: [{{subprocessor: sp-08, given_at: 2026-06-02, ref: C-1}}]\n");
            text = with(&text, &name, &consent);
        }
        text
    };
    let refused = |kind: &str, who: &str| format!("subprocessor_{kind}: {who}");
    let own = "redwood-strand granite-notch";
    let bare = |flows, more: &str| lampwick(&revision(13), &terms("user.name", flows, SINCE_MAY)) + more;
    let bound =
        |from: &str| from.replace("revision: 13", "revision: 14").replace("flow_down: false", "flow_down: true");
    let over = bare(true, "").replace("signed_on: 2026-06-01,", "signed_on: 2026-06-01, expires_on: 2026-06-30,");
    let renewed =
        over.replace("revision: 13", "revision: 14").replace("expires_on: 2026-06-30", "expires_on: 2036-06-30");
    let moved_on = moved(14, "US-OR");
    let table = [
        ("nobody agreed", revision(12), moved(13, "US-WA"), vec![refused("storage", own), refused("access", own)]),
        ("each consents", revision(12), consented(&moved(13, "US-WA")), vec![]),
        ("from one agreed place to another", moved(13, "US-WA"), moved_on, vec![]),
        (
            "bound for the first time",
            bare(false, ""),
            bound(&bare(false, "")),
            vec![refused("agreement", "redwood-strand")],
        ),
        ("an agreement is renewed", over, renewed, vec![]),
    ];
    for (name, old, new, expected) in table {
        assert_eq!(not_agreed(&old, &new), expected, "{name}");
    }
}

/// It had signed nothing, so it could agree to nothing.
#[test]
fn a_customer_that_signed_was_refused_for_consents_that_it_could_not_have_given() {
    let upstream = Upstream::ok();
    let folder = Folder::new();
    folder.write("policy.yaml", &revision(12));
    let sidecar = start(folder, &upstream.address, "{file: policy.yaml}");
    let offer = "contract_ref: MSA-0511}\n    permitted_purposes: [base]";
    let other = |number| with(&revision(number), offer, &offer.replace("[base]", "[base, customer_analytics]"));
    let signed = |text: &str| with(text, "contract_ref: MSA-0511}", "contract_ref: MSA-0511, accepted_at: 2026-06-20}");
    put(&sidecar, "policy.yaml", &other(13));
    loaded(&sidecar, 13);
    put(&sidecar, "policy.yaml", &signed(&other(14)));
    loaded(&sidecar, 14);
    // From here on it needs its word.
    let wide =
        offer.replace("}", ", accepted_at: 2026-06-20}").replace("[base]", "[base, customer_analytics, ad_audit]");
    let wider = with(&revision(15), offer, &wide);
    put(&sidecar, "policy.yaml", &wider);
    assert_eq!(refused_at(&sidecar, 15)["changes"][0]["kind"], "customer_purpose");
}

#[test]
fn a_consent_that_was_used_up_counted_again_once_it_was_written_otherwise() {
    let named = "from: enforce, to: observe, ";
    let policy = |number, issued: &str, mode: &str, step: &str, day: &str| {
        let text = revision(number).replace("issued_at: 2020-06-01", &format!("issued_at: {issued}"));
        let own = format!(
            "{REDWOOD}    enforcement: {mode}\n    consents: [{{weakening: enforcement, {step}given_at: {day}, ref: C-1}}]\n"
        );
        with(&text, REDWOOD, &own)
    };
    let refused = || vec!["enforcement: redwood-strand".to_owned()];
    let day = "2026-06-05";
    let table = [
        ("as it was", "", "", day, refused()),
        ("the step written in", "", named, day, refused()),
        ("the step left out", named, "", day, refused()),
        ("another one", "", named, "2026-07-02", vec![]),
    ];
    for (name, before, after, given, expected) in table {
        let old = policy(14, "2026-07-01", "enforce", before, day);
        assert_eq!(not_agreed(&old, &policy(15, "2026-07-03", "observe", after, given)), expected, "{name}");
    }
}

#[test]
fn a_hard_link_made_the_policy_its_own_baseline() {
    let folder = Folder::new();
    folder.write("policy.yaml", &revision(12));
    std::fs::hard_link(folder.file("policy.yaml"), folder.file("agreed.yaml")).unwrap();
    folder.write("sidecar.yaml", &settings("127.0.0.1:1", "{file: policy.yaml, baseline: agreed.yaml}", "enforce"));
    let output = run(&folder.file("."), &["check", "sidecar.yaml"]);
    assert_eq!(output.status.code(), Some(1), "{}", out(&output));
    assert!((out(&output) + &err(&output)).contains("held against itself"), "{}{}", out(&output), err(&output));
}
