//! Properties of a decision: what may never widen it.
//!
//! Requests over the sample agreement are made up of every name that it has and some that it has not;
//! policies are the sample with one thing added or narrowed.

use std::sync::LazyLock;

use dpa_sidecar::decide::decide;
use dpa_sidecar::decide::decision::Decision;
use dpa_sidecar::decide::decision::Outcome;
use dpa_sidecar::decide::facts::Caller;
use dpa_sidecar::decide::facts::Carried;
use dpa_sidecar::decide::facts::Customers;
use dpa_sidecar::decide::facts::Direction;
use dpa_sidecar::decide::facts::Fact;
use dpa_sidecar::decide::facts::Facts;
use dpa_sidecar::decide::facts::Scope;
use dpa_sidecar::decide::facts::Source;
use dpa_sidecar::decide::facts::Transport;
use dpa_sidecar::decide::facts::Why;
use dpa_sidecar::policy;
use dpa_sidecar::policy::Policy;
use dpa_sidecar::policy::problem;
use dpa_sidecar::policy::terms::DataCategory;
use dpa_sidecar::policy::terms::Identity;
use dpa_sidecar::policy::terms::Location;
use dpa_sidecar::policy::terms::Operation;
use dpa_sidecar::yaml;
use jiff::Timestamp;
use proptest::prelude::*;
use proptest::sample::select;

pub(crate) const SAMPLE: &str = include_str!("../config/policy.yaml");

static POLICY: LazyLock<Policy> = LazyLock::new(|| compile(SAMPLE, None));

pub(crate) fn compile(text: &str, amend: Option<&str>) -> Policy {
    let source = problem::Source { path: "policy.yaml".to_owned(), text: text.to_owned() };
    let amend = amend.map(|amend| yaml::read(amend, 0).unwrap());
    let (policy, problems) = policy::compile(&[source], &["policy.yaml".to_owned()], amend.as_ref(), None);
    policy.unwrap_or_else(|| panic!("{amend:?} {:?}", problems.0))
}

pub(crate) const OWN: [&str; 7] =
    ["care-desk", "care-temp", "care-roaming", "biller", "rollup", "exporter", "subscriber-api"];
pub(crate) const SUBPROCESSORS: [&str; 12] =
    ["sp-01", "sp-02", "sp-03", "sp-04", "sp-05", "sp-06", "sp-07", "sp-08", "sp-09", "sp-10", "sp-11", "sp-12"];
pub(crate) const CUSTOMERS: [&str; 7] =
    ["redwood-strand", "fibre-outardes", "granite-notch", "cedar-hollow", "kelp-sound", "dusty-fork", "salt-flat"];
pub(crate) const PURPOSES: [&str; 23] = [
    "service_provision",
    "account_management",
    "customer_support",
    "billing_payment",
    "service_notification",
    "customer_analytics",
    "storage_hosting",
    "security_integrity",
    "fraud_prevention",
    "debugging",
    "transient_use",
    "ad_audit",
    "customer_marketing",
    "internal_research",
    "quality_improvement",
    "rights_fulfilment",
    "legal_compliance",
    "data_return",
    "erasure",
    "sale",
    "cross_context_behavioral_advertising",
    "own_purpose",
    "model_training",
];
pub(crate) const CATEGORIES: [&str; 8] = [
    "user",
    "user.name",
    "user.contact",
    "user.contact.address",
    "user.account",
    "user.financial",
    "user.device",
    "user.telemetry",
];
pub(crate) const LOCATIONS: [&str; 10] = ["US", "CA", "US-OR", "US-WA", "US-VA", "CA-QC", "CA-ON", "CA-NB", "DE", "PH"];
const INSTRUCTIONS: [&str; 8] =
    ["ins-001", "ins-002", "ins-003", "ins-004", "ins-005", "ins-006", "ins-007", "ins-008"];

/// A request, by name: the same words can be asked of several policies.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) caller: Option<String>,
    pub(crate) customers: Vec<&'static str>,
    pub(crate) purpose: Option<&'static str>,
    pub(crate) operation: Option<Operation>,
    pub(crate) data_categories: Vec<DataCategory>,
    /// `None`: the route establishes none; `Some(None)`: none is named.
    pub(crate) subscriber: Option<Option<&'static str>>,
    pub(crate) instruction: Option<&'static str>,
    pub(crate) has_request_ref: bool,
    pub(crate) location: Option<Location>,
    pub(crate) storage: Location,
    pub(crate) recipient: Option<&'static str>,
    pub(crate) now: Timestamp,
}

impl Asked {
    pub(crate) fn facts<'a>(&'a self, policy: &Policy) -> Facts<'a> {
        let one = |name: &str| policy.customer_named(name);
        let customers = match self.customers.as_slice() {
            [] => Fact::Unknown(Why::Missing),
            [name] => match one(name) {
                Some(id) => Fact::Known(Customers::One(id), Source::Context),
                None => Fact::Unknown(Why::NotInPolicy { length: name.len() }),
            },
            names => {
                let known: Vec<_> = names.iter().filter_map(|name| one(name)).collect();
                let unknown = names.len() - known.len();
                Fact::Known(Customers::Several { known, unknown }, Source::Context)
            }
        };
        let instruction = self.instruction.map_or(Fact::None, |name| {
            let place = match customers.known() {
                Some(Customers::One(id)) => policy
                    .customer(*id)
                    .and_then(|customer| customer.instructions.iter().position(|it| it.id.as_str() == name)),
                Some(Customers::Several { .. }) | None => None,
            };
            place.map_or(Fact::Unknown(Why::NotInPolicy { length: name.len() }), |place| {
                Fact::Known(place, Source::Context)
            })
        });
        Facts {
            direction: self
                .recipient
                .and_then(|name| policy.subprocessor_named(name))
                .map_or(Direction::Ingress, Direction::Egress),
            transport: Transport { tls: None, client_certificate: false, is_unix: false },
            carried: Carried::default(),
            caller: self.caller.as_ref().map_or(Fact::Unknown(Why::Missing), |identity| {
                let identity: Identity = identity.parse().unwrap();
                Fact::Known(Caller { party: policy.party(&identity), identity: Some(identity) }, Source::Header)
            }),
            scope: Scope::Within,
            route: None,
            route_place: None,
            customers,
            purpose: self.purpose.map_or(Fact::Unknown(Why::Missing), |name| {
                policy.purpose_named(name).map_or(Fact::Unknown(Why::NotInPolicy { length: name.len() }), |id| {
                    Fact::Known(id, Source::Context)
                })
            }),
            operation: self.operation.map_or(Fact::Unknown(Why::Missing), |it| Fact::Known(it, Source::Method)),
            data_categories: &self.data_categories,
            subscriber: match self.subscriber {
                None => Fact::None,
                Some(None) => Fact::Unknown(Why::Missing),
                Some(Some(name)) => Fact::Known(name.to_owned(), Source::Path),
            },
            instruction,
            request_ref: if self.has_request_ref {
                Fact::Known("DSR-98".to_owned(), Source::Context)
            } else {
                Fact::None
            },
            location: self.location.map_or(Fact::Unknown(Why::Missing), |it| Fact::Known(it, Source::Claim)),
            storage: self.storage,
        }
    }

    fn decide<'p>(&self, policy: &'p Policy) -> Decision<'p> {
        decide(policy, &self.facts(policy), self.now)
    }
}

pub(crate) fn permits(decision: &Decision<'_>) -> bool {
    matches!(decision.outcome, Outcome::Permit { .. })
}

fn identity_of(name: &str) -> String {
    let party = POLICY
        .caller_named(name)
        .map(policy::Party::Own)
        .or_else(|| POLICY.subprocessor_named(name).map(policy::Party::Subprocessor))
        .or_else(|| POLICY.customer_named(name).map(policy::Party::Customer))
        .unwrap();
    POLICY.identity_of(party).unwrap().to_string()
}

fn location() -> impl Strategy<Value = Location> {
    select(&LOCATIONS[..]).prop_map(|text| text.parse().unwrap())
}

fn caller() -> impl Strategy<Value = Option<String>> {
    prop_oneof![
        8 => select(&OWN[..]).prop_map(|name| Some(identity_of(name))),
        8 => select(&SUBPROCESSORS[..]).prop_map(|name| Some(identity_of(name))),
        1 => Just(Some(identity_of("fibre-outardes"))),
        1 => Just(Some("spiffe://adsync.example/sa/bid".to_owned())),
        1 => Just(None),
    ]
}

/// Any combination; seldom one that is permitted.
fn anything() -> impl Strategy<Value = Asked> {
    let customers = prop_oneof![
        8 => select(&CUSTOMERS[..]).prop_map(|name| vec![name]),
        1 => Just(vec![]),
        1 => Just(vec!["nobody-known"]),
        1 => Just(vec!["redwood-strand", "granite-notch"]),
        1 => Just(vec!["redwood-strand", "nobody-known"]),
    ];
    let purpose = prop_oneof![
        12 => select(&PURPOSES[..]).prop_map(Some),
        1 => Just(Some("jane@example.com")),
        1 => Just(None),
    ];
    let subscriber = prop_oneof![Just(None), Just(Some(None)), Just(Some(Some("7c1e"))), Just(Some(Some("1a2b")))];
    let now = (0_i64..2_400).prop_map(|day| {
        // Days from 2021 on, mostly around the dates of the sample.
        Timestamp::from_second(1_609_459_200 + day * 86_400 + 43_200).unwrap()
    });
    let now = prop_oneof![Just("2026-06-15T12:00:00Z".parse().unwrap()), now];
    let who = (caller(), customers, purpose);
    let what = (
        proptest::option::weighted(0.95, select(&Operation::ALL[..])),
        proptest::collection::vec(select(&CATEGORIES[..]).prop_map(|text| text.parse().unwrap()), 1..3),
        subscriber,
    );
    let with = (proptest::option::weighted(0.3, select(&INSTRUCTIONS[..])), any::<bool>());
    let places =
        (proptest::option::of(location()), location(), proptest::option::weighted(0.1, select(&SUBPROCESSORS[..])));
    (who, what, with, places, now).prop_map(|(who, what, with, places, now)| Asked {
        caller: who.0,
        customers: who.1,
        purpose: who.2,
        operation: what.0,
        data_categories: what.1,
        subscriber: what.2,
        instruction: with.0,
        has_request_ref: with.1,
        location: places.0,
        storage: places.1,
        recipient: places.2,
        now,
    })
}

/// Combinations that the sample permits, with one thing or nothing changed.
fn nearly_permitted() -> impl Strategy<Value = Asked> {
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    let base = |caller: &str, customer, purpose, category: &str, operation, storage: &str| Asked {
        caller: Some(identity_of(caller)),
        customers: vec![customer],
        purpose: Some(purpose),
        operation: Some(operation),
        data_categories: vec![category.parse().unwrap()],
        subscriber: Some(Some("1a2b")),
        instruction: None,
        has_request_ref: false,
        location: None,
        storage: storage.parse().unwrap(),
        recipient: None,
        now: at("2026-06-15T12:00:00Z"),
    };
    let get = Operation::Retrieve;
    let with = |asked: Asked, instruction| Asked { instruction: Some(instruction), ..asked };
    let table = vec![
        base("care-desk", "redwood-strand", "customer_support", "user.contact", get, "US-OR"),
        base("sp-03", "redwood-strand", "customer_support", "user.contact", get, "US-OR"),
        base("sp-07", "redwood-strand", "customer_analytics", "user.telemetry", get, "US-OR"),
        base("sp-04", "fibre-outardes", "customer_support", "user.contact", get, "CA-QC"),
        base("sp-08", "cedar-hollow", "debugging", "user.device", get, "US-OR"),
        base("fibre-outardes", "fibre-outardes", "customer_support", "user.contact", get, "CA-QC"),
        with(base("exporter", "kelp-sound", "data_return", "user", Operation::Export, "CA-QC"), "ins-005"),
        with(base("exporter", "salt-flat", "data_return", "user", Operation::Export, "US-OR"), "ins-008"),
        Asked {
            now: at("2026-06-05T00:00:00Z"),
            ..with(
                base("sp-07", "redwood-strand", "customer_analytics", "user.telemetry", Operation::Export, "US-OR"),
                "ins-004",
            )
        },
        Asked {
            has_request_ref: true,
            ..base("care-desk", "redwood-strand", "rights_fulfilment", "user.contact", get, "US-OR")
        },
        Asked {
            recipient: Some("sp-07"),
            ..base(
                "subscriber-api",
                "redwood-strand",
                "customer_analytics",
                "user.telemetry",
                Operation::Disclose,
                "US-OR",
            )
        },
        Asked {
            location: Some("US-WA".parse().unwrap()),
            ..base("care-roaming", "redwood-strand", "customer_support", "user.contact", get, "US-OR")
        },
        Asked {
            now: at("2026-05-31T12:00:00Z"),
            ..base("care-temp", "redwood-strand", "customer_support", "user.contact", get, "US-OR")
        },
    ];
    (select(table), anything(), 0_u8..14).prop_map(|(asked, other, change)| match change {
        0 => Asked { caller: other.caller, ..asked },
        1 => Asked { customers: other.customers, ..asked },
        2 => Asked { purpose: other.purpose, ..asked },
        3 => Asked { operation: other.operation, ..asked },
        4 => Asked { data_categories: other.data_categories, ..asked },
        5 => Asked { subscriber: other.subscriber, ..asked },
        6 => Asked { instruction: other.instruction, ..asked },
        7 => Asked { storage: other.storage, ..asked },
        8 => Asked { now: other.now, ..asked },
        9 => Asked { location: other.location, ..asked },
        _ => asked,
    })
}

fn request() -> impl Strategy<Value = Asked> {
    prop_oneof![nearly_permitted(), anything()]
}

/// One thing added to, or narrowed in, the sample: a YAML fragment laid over it.
fn tightening() -> impl Strategy<Value = String> {
    let sp = || select(&SUBPROCESSORS[..]);
    let customer = || select(&CUSTOMERS[..]);
    let subset = |names: &'static [&'static str]| {
        proptest::sample::subsequence(names.to_vec(), 1..names.len())
            .prop_map(|names| format!("[{}]", names.join(", ")))
    };
    let operations = || subset(&["retrieve", "store", "export", "disclose"]);
    prop_oneof![
        // Added to the objections that are there already: the merged list keeps entries without ids only
        // if they are repeated, so each is written with those of the sample.
        (customer(), sp()).prop_map(|(customer, sp)| {
            let all: Vec<String> = [sp, "sp-07", "sp-09", "sp-10"]
                .iter()
                .map(|sp| format!("{{subprocessor: {sp}, effective_at: 2021-01-01, ref: OBJ-1}}"))
                .collect();
            format!("customers: [{{id: {customer}, objections: [{}]}}]", all.join(", "))
        }),
        sp().prop_map(|sp| format!("subprocessors: [{{id: {sp}, removed_at: 2026-06-20}}]")),
        sp().prop_map(|sp| format!(
            "subprocessors: [{{id: {sp}, agreement: {{ref: A, signed_on: 2020-01-01, expires_on: 2024-12-31, flow_down: true}}}}]"
        )),
        sp().prop_map(|sp| format!(
            "subprocessors: [{{id: {sp}, agreement: {{ref: A, signed_on: 2020-01-01, flow_down: false}}}}]"
        )),
        (customer(), select(&["1a2b", "7c1e"][..])).prop_map(|(customer, subscriber)| format!(
            "customers: [{{id: {customer}, instructions: [{{id: ins-900, issuer_role: x, reference: R-1, received_at: 2021-01-01, \
             accepted_at: 2021-01-01, valid_from: 2021-01-01, restricts: {{subscriber: \"{subscriber}\"}}}}]}}]"
        )),
        (select(&["care-desk", "rollup", "exporter", "subscriber-api"][..]), operations())
            .prop_map(|(caller, operations)| format!("callers: [{{id: {caller}, operations: {operations}}}]")),
        (select(&["sp-03", "sp-04", "sp-08"][..]), operations())
            .prop_map(|(sp, operations)| format!("subprocessors: [{{id: {sp}, operations: {operations}}}]")),
        select(&OWN[..]).prop_map(|caller| format!("callers: [{{id: {caller}, permitted_purposes: []}}]")),
        sp().prop_map(|sp| format!("subprocessors: [{{id: {sp}, permitted_purposes: []}}]")),
        sp().prop_map(|sp| format!("subprocessors: [{{id: {sp}, data_categories: [user.nothing]}}]")),
        customer().prop_map(|customer| format!("customers: [{{id: {customer}, permitted_purposes: []}}]")),
        customer().prop_map(|customer| format!(
            "customers: [{{id: {customer}, residency: {{storage_locations: [CA-YT], access_locations: [CA-YT], source: dpa, transfers: []}}}}]"
        ).replace(", transfers: []", "")),
        Just("callers: [{id: care-temp, human_access: {confidentiality: {expires_on: 2025-12-31}}}]".to_owned()),
        customer().prop_map(|customer| format!(
            "customers: [{{id: {customer}, dpa: {{terminated_at: 2022-01-01, return_until: 2022-02-01}}}}]"
        )),
        customer().prop_map(|customer| format!("customers: [{{id: {customer}, dpa: {{suspended_by_law_at: 2022-01-01}}}}]")),
        Just("security_measures: {min_tls_version: \"1.2\"}".to_owned()),
        Just("customers: [{id: redwood-strand, instructions: [{id: ins-004, valid_until: 2026-06-02}]}]".to_owned()),
        Just("customers: [{id: kelp-sound, instructions: [{id: ins-005, permits: {operations: [erase]}}]}]".to_owned()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn every_permit_has_an_authority_and_every_deny_a_clause(asked in request()) {
        let decision = asked.decide(&POLICY);
        match &decision.outcome {
            Outcome::Permit { authority, .. } => prop_assert!(!authority.as_str().is_empty()),
            Outcome::Deny(reasons) => {
                prop_assert!(!reasons.is_empty());
                prop_assert!(reasons.iter().all(|reason| !reason.clause.is_empty() && !reason.obligation.is_empty()));
                prop_assert!(reasons.is_sorted_by_key(|reason| reason.code), "in table order: {reasons:?}");
                prop_assert!(reasons.windows(2).all(|two| two[0].code != two[1].code), "each once: {reasons:?}");
            }
        }
    }

    #[test]
    fn a_fact_that_becomes_unknown_never_permits(asked in request(), which in 0_u8..8) {
        let facts = asked.facts(&POLICY);
        let before = decide(&POLICY, &facts, asked.now);
        let why = Why::Missing;
        let less = match which {
            0 => Facts { caller: Fact::Unknown(why), ..facts.clone() },
            1 => Facts { customers: Fact::Unknown(why), ..facts.clone() },
            2 => Facts { purpose: Fact::Unknown(why), ..facts.clone() },
            3 => Facts { operation: Fact::Unknown(why), ..facts.clone() },
            4 if facts.subscriber.known().is_some() => Facts { subscriber: Fact::Unknown(why), ..facts.clone() },
            5 if facts.instruction != Fact::None => Facts { instruction: Fact::Unknown(why), ..facts.clone() },
            6 => Facts { request_ref: Fact::Unknown(why), ..facts.clone() },
            _ => Facts { location: Fact::Unknown(why), ..facts.clone() },
        };
        let after = decide(&POLICY, &less, asked.now);
        prop_assert!(permits(&before) || !permits(&after), "{before:?} became {after:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_tighter_policy_never_permits_more(asked in proptest::collection::vec(request(), 40), amend in tightening()) {
        let tighter = compile(SAMPLE, Some(&amend));
        for asked in asked {
            let before = asked.decide(&POLICY);
            let after = asked.decide(&tighter);
            prop_assert!(permits(&before) || !permits(&after), "{amend}: {asked:?}: {before:?} became {after:?}");
        }
    }

    #[test]
    fn the_order_of_lists_changes_nothing(asked in proptest::collection::vec(request(), 40), seed in any::<u64>()) {
        let mut root = yaml::read(SAMPLE, 0).unwrap();
        shuffle(&mut root, &mut seed.max(1).clone(), None);
        let text = print(&root, 0);
        let shuffled = compile(&text, None);
        for asked in asked {
            let one = asked.decide(&POLICY);
            let two = asked.decide(&shuffled);
            prop_assert_eq!(one.outcome, two.outcome);
            prop_assert_eq!(one.enforcement, two.enforcement);
        }
    }
}

/// A random order for every list but `transfers`, whose order says which is named first.
fn shuffle(node: &mut yaml::Node, state: &mut u64, key: Option<&str>) {
    match &mut node.value {
        yaml::Value::Scalar { .. } => {}
        yaml::Value::List(items) => {
            for place in (1..items.len()).rev().filter(|_| key != Some("transfers")) {
                // xorshift64: any order will do, as long as the seed reproduces it.
                *state ^= *state << 13;
                *state ^= *state >> 7;
                *state ^= *state << 17;
                items.swap(place, usize::try_from(*state % (u64::try_from(place).unwrap() + 1)).unwrap());
            }
            items.iter_mut().for_each(|item| shuffle(item, state, None));
        }
        yaml::Value::Map(entries) => {
            entries.iter_mut().for_each(|(key, node)| shuffle(node, state, Some(&key.text)));
        }
    }
}

/// A tree as YAML again.
pub(crate) fn print(node: &yaml::Node, depth: usize) -> String {
    match &node.value {
        yaml::Value::Scalar { text, quoted: false } if text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') => {
            text.clone()
        }
        yaml::Value::Scalar { text, .. } => serde_json::Value::from(text.as_str()).to_string(),
        yaml::Value::List(items) => {
            let items: Vec<String> = items.iter().map(|item| print(item, depth + 1)).collect();
            format!("[{}]", items.join(", "))
        }
        yaml::Value::Map(entries) => {
            let open = |(key, node): &(yaml::Key, yaml::Node)| format!("{}: {}", key.text, print(node, depth + 1));
            let entries: Vec<String> = entries.iter().map(open).collect();
            if depth == 0 { entries.join("\n") } else { format!("{{{}}}", entries.join(", ")) }
        }
    }
}

#[test]
fn the_generator_makes_permitted_requests_too() {
    use proptest::strategy::ValueTree as _;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let permitted =
        (0..500).filter(|_| permits(&request().new_tree(&mut runner).unwrap().current().decide(&POLICY))).count();
    assert!(permitted > 100, "only {permitted} of 500 are permitted: the properties would say little");
}
