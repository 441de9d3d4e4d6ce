//! A policy, its customer files and something laid over it: compiled, asked, explained.
//!
//! Bytes that no UTF-8 has take the input apart: 0xFF between files, 0xFE before what is laid over.

use dpa_sidecar::decide::decide;
use dpa_sidecar::decide::decision::Outcome;
use dpa_sidecar::decide::explain::Names;
use dpa_sidecar::decide::explain::why;
use dpa_sidecar::decide::facts::Caller;
use dpa_sidecar::decide::facts::Carried;
use dpa_sidecar::decide::facts::Customers;
use dpa_sidecar::decide::facts::Direction;
use dpa_sidecar::decide::facts::Fact;
use dpa_sidecar::decide::facts::Facts;
use dpa_sidecar::decide::facts::Scope;
use dpa_sidecar::decide::facts::Source as From;
use dpa_sidecar::decide::facts::Transport;
use dpa_sidecar::decide::facts::Why;
use dpa_sidecar::policy;
use dpa_sidecar::policy::Party;
use dpa_sidecar::policy::Policy;
use dpa_sidecar::policy::places::Places;
use dpa_sidecar::policy::problem::Source;
use dpa_sidecar::policy::terms::Id;
use dpa_sidecar::policy::terms::Location;
use dpa_sidecar::policy::terms::Operation;
use dpa_sidecar::yaml;
use jiff::Timestamp;

/// Combinations of party, customer and purpose that are asked about, and that are looked through for them.
const ASKED: usize = 8;
const LOOKED_THROUGH: usize = 10_000;

/// The policy is there unless a problem is an error, every problem can be shown, and a permit rests on facts.
pub(crate) fn run(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == 0xFE);
    let mut sources = Vec::new();
    for text in parts.next().unwrap_or_default().split(|byte| *byte == 0xFF) {
        let Ok(text) = std::str::from_utf8(text) else { return };
        sources.push(Source { path: format!("policy-{}.yaml", sources.len()), text: text.to_owned() });
    }
    let amend = match parts.next().map(std::str::from_utf8) {
        None => None,
        Some(Err(_)) => return,
        Some(Ok(text)) => yaml::read(text, 0).ok(),
    };
    let names: Vec<String> = sources.iter().map(|source| source.path.clone()).collect();
    let now: Timestamp = "2026-06-15T12:00:00Z".parse().unwrap();
    let (policy, problems) = policy::compile(&sources, &names, amend.as_ref(), Some(now));
    assert_eq!(policy.is_none(), problems.has_errors(), "{problems:?}");
    for colour in [false, true] {
        assert_eq!(problems.render(&sources, colour).is_empty(), problems.0.is_empty(), "{problems:?}");
    }
    let globs = policy::customer_file_globs(&sources[0].text);
    assert!(globs.is_empty() || sources[0].text.contains("customer_files"));
    let Some(policy) = policy else { return };
    let (again, _) = policy::compile(&sources, &names, amend.as_ref(), None);
    assert_eq!(again.unwrap().digest, policy.digest, "it is another policy without a look-out");
    ask(&policy, &sources, now);
}

fn ask(policy: &Policy, sources: &[Source], now: Timestamp) {
    let places = Places::new(sources);
    let dates = [now, "2023-12-31T23:59:59.999Z".parse().unwrap(), Timestamp::MIN, Timestamp::MAX];
    // Mostly what may be permitted, from everywhere in the policy, and a few others.
    let is_permitted =
        |name: &Id| policy.purpose_named(name.as_str()).is_some_and(|id| policy.is_permitted_anywhere(id));
    let (likely, others): (Vec<_>, Vec<_>) =
        policy.combinations().take(LOOKED_THROUGH).partition(|(.., purpose)| is_permitted(purpose));
    let likely = likely.iter().step_by(likely.len().div_ceil(ASKED).max(1));
    for (place, (party, customer, purpose)) in likely.chain(others.iter().take(2)).copied().enumerate() {
        let identity = policy.identity_of(party);
        if let Some(identity) = &identity {
            assert_eq!(policy.party(identity), Some(party), "{identity}");
        }
        let customer = policy.customer_named(customer.as_str()).unwrap();
        let purpose = policy.purpose_named(purpose.as_str()).unwrap();
        let storage = policy.default_storage().unwrap_or_else(|| "US-OR".parse().unwrap());
        let instructions = policy.customer(customer).unwrap().instructions.len();
        let data_categories = ["user.contact".parse().unwrap()];
        let access: Location = "CA-QC".parse().unwrap();
        let facts = Facts {
            direction: match party {
                Party::Subprocessor(id) if place % 2 == 1 => Direction::Egress(id),
                Party::Own(_) | Party::Subprocessor(_) | Party::Customer(_) => Direction::Ingress,
            },
            transport: Transport { tls: None, client_certificate: false, is_unix: place % 3 == 0 },
            carried: Carried::default(),
            caller: identity.map_or(Fact::Unknown(Why::Missing), |identity| {
                Fact::Known(Caller { identity: Some(identity), party: Some(party) }, From::Header)
            }),
            scope: Scope::Within,
            route: None,
            route_place: None,
            customers: Fact::Known(Customers::One(customer), From::Path),
            purpose: Fact::Known(purpose, From::Context),
            operation: Fact::Known(if place % 2 == 0 { Operation::Retrieve } else { Operation::Export }, From::Method),
            data_categories: &data_categories,
            subscriber: Fact::Known("1a2b".to_owned(), From::Path),
            instruction: match place % (instructions + 1) {
                0 => Fact::None,
                some => Fact::Known(some - 1, From::Context),
            },
            request_ref: Fact::None,
            location: Fact::Known(access, From::Claim),
            storage,
        };
        for date in dates {
            let decision = decide(policy, &facts, date);
            match &decision.outcome {
                Outcome::Permit { .. } => assert!(facts.caller.known().is_some(), "nobody was permitted"),
                Outcome::Deny(reasons) => {
                    assert!(!reasons.is_empty(), "denied for nothing");
                    let names = Names::of(&facts, policy);
                    for reason in reasons {
                        let (text, found) = why(reason.code, reason.kind, &names);
                        assert!(!text.is_empty());
                        found.iter().for_each(|place| drop(places.find(place)));
                    }
                }
            }
        }
    }
}
