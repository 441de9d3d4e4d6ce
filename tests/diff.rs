//! `diff`: held against `decide` over random pairs of policies, and as a person or a program reads it.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::sync::LazyLock;

use dpa_sidecar::decide::decide;
use dpa_sidecar::decide::decision::Outcome;
use dpa_sidecar::decide::facts::Customers;
use dpa_sidecar::decide::facts::Fact;
use dpa_sidecar::decide::facts::Transport;
use dpa_sidecar::policy;
use dpa_sidecar::policy::Enforcement;
use dpa_sidecar::policy::Policy;
use dpa_sidecar::policy::TlsVersion;
use dpa_sidecar::policy::diff::Change;
use dpa_sidecar::policy::diff::Concerns;
use dpa_sidecar::policy::diff::Direction;
use dpa_sidecar::policy::diff::Kind;
use dpa_sidecar::policy::diff::diff;
use dpa_sidecar::policy::places::Place;
use dpa_sidecar::policy::problem;
use dpa_sidecar::policy::terms::Operation;
use dpa_sidecar::policy::weakening::refused;
use dpa_sidecar::yaml;
use jiff::Timestamp;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::sample::subsequence;

use crate::properties::Asked;
use crate::properties::CATEGORIES;
use crate::properties::CUSTOMERS;
use crate::properties::LOCATIONS;
use crate::properties::OWN;
use crate::properties::PURPOSES;
use crate::properties::SAMPLE;
use crate::properties::SUBPROCESSORS;
use crate::properties::print;
use crate::support::Folder;
use crate::support::as_golden;
use crate::support::err;
use crate::support::out;
use crate::support::repository;
use crate::support::run;

/// Names that the sample has not, beside those that it has.
const NEW_CUSTOMER: &str = "birch-lake";
const NEW_CALLER: &str = "night-desk";
const NEW_SUBPROCESSOR: &str = "sp-13";

/// Days on which something of the sample or of a mutation begins or ends.
const DATES: [&str; 12] = [
    "2021-02-01",
    "2022-07-01",
    "2024-01-10",
    "2024-09-01",
    "2026-04-30",
    "2026-05-31",
    "2026-06-05",
    "2026-06-10",
    "2026-06-15",
    "2026-06-19",
    "2026-07-01",
    "2027-01-01",
];

/// Identities of the sample, and some that could be anybody's.
const IDENTITIES: [&str; 12] = [
    "spiffe://lumenfield.example/ns/care/sa/care-desk",
    "spiffe://lumenfield.example/ns/bill/sa/biller",
    "spiffe://lumenfield.example/ns/insights/sa/rollup",
    "spiffe://ticketriver.example/sa/sync",
    "spiffe://meridian.example/sa/pull",
    "spiffe://outardes.example/sa/portal",
    "spiffe://adsync.example/sa/bid",
    "spiffe://new.example/sa/one",
    "spiffe://new.example/sa/two",
    "spiffe://new.example/sa/*",
    "spiffe://meridian.example/*/pull",
    "spiffe://lumenfield.example/ns/*/sa/biller",
];

// ---- pairs of policies -----------------------------------------------------------------------------

/// One thing laid over a policy, or taken out of it.
#[derive(Clone, Debug)]
pub(crate) struct Mutation {
    /// Keys, and ids of list entries.
    path: Vec<String>,
    /// What is there then; none: nothing.
    value: Option<String>,
}

fn set(path: &str, value: impl Into<String>) -> Mutation {
    Mutation { path: path.split('/').map(str::to_owned).collect(), value: Some(value.into()) }
}

fn remove(path: &str) -> Mutation {
    Mutation { path: path.split('/').map(str::to_owned).collect(), value: None }
}

/// Applies a mutation to a tree; one that finds no place changes nothing.
fn apply(node: &mut yaml::Node, path: &[String], value: Option<&yaml::Node>) {
    let [key, rest @ ..] = path else { return };
    let has_id = |entry: &yaml::Node| entry.get("id").and_then(yaml::Node::text) == Some(key.as_str());
    match &mut node.value {
        yaml::Value::Map(entries) => {
            let at = entries.iter().position(|(known, _)| known.text == *key);
            match (at, rest, value) {
                (Some(at), [], Some(value)) => entries[at].1 = value.clone(),
                (Some(at), [], None) => {
                    entries.remove(at);
                }
                (Some(at), rest, value) => apply(&mut entries[at].1, rest, value),
                (None, [], Some(value)) => {
                    entries
                        .push((yaml::Key { at: yaml::At::default(), text: key.clone(), quoted: false }, value.clone()));
                }
                // An entry of a list that is not there yet.
                (None, [_], Some(value)) if key == "instructions" => {
                    let list = yaml::Node { at: yaml::At::default(), value: yaml::Value::List(vec![value.clone()]) };
                    entries.push((yaml::Key { at: yaml::At::default(), text: key.clone(), quoted: false }, list));
                }
                (None, ..) => {}
            }
        }
        yaml::Value::List(items) => {
            let at = items.iter().position(has_id);
            match (at, rest, value) {
                (Some(at), [], Some(value)) => items[at] = value.clone(),
                (Some(at), [], None) => {
                    items.remove(at);
                }
                (Some(at), rest, value) => apply(&mut items[at], rest, value),
                (None, [], Some(value)) => items.push(value.clone()),
                (None, ..) => {}
            }
        }
        yaml::Value::Scalar { .. } => {}
    }
}

fn compiled(text: &str) -> Option<Policy> {
    let source = problem::Source { path: "policy.yaml".to_owned(), text: text.to_owned() };
    policy::compile(&[source], &["policy.yaml".to_owned()], None, None).0
}

/// The text after the mutations, and its policy. Those that would leave no policy are passed over.
fn mutated(text: &str, mutations: &[Mutation]) -> (String, Policy) {
    let with = |text: &str, mutations: &[Mutation]| {
        let mut root = yaml::read(text, 0).unwrap();
        for Mutation { path, value } in mutations {
            let value = value.as_ref().map(|value| yaml::read(value, 0).unwrap_or_else(|_| panic!("{value}")));
            apply(&mut root, path, value.as_ref());
        }
        let text = print(&root, 0);
        compiled(&text).map(|policy| (text, policy))
    };
    if let Some(done) = with(text, mutations) {
        return done;
    }
    let mut done = (text.to_owned(), compiled(text).unwrap());
    for mutation in mutations {
        if let Some(next) = with(&done.0, std::slice::from_ref(mutation)) {
            done = next;
        }
    }
    done
}

fn date() -> impl Strategy<Value = String> {
    select(&DATES[..]).prop_map(str::to_owned)
}

fn list(names: &'static [&'static str], count: std::ops::Range<usize>) -> impl Strategy<Value = String> {
    subsequence(names.to_vec(), count).prop_map(|names| format!("[{}]", names.join(", ")))
}

/// Purposes that a list may name.
fn purposes() -> impl Strategy<Value = String> {
    (list(&PURPOSES[..19], 0..6), any::<bool>()).prop_map(|(list, base)| match (base, list.as_str()) {
        (true, "[]") => "[base]".to_owned(),
        (true, list) => list.replacen('[', "[base, ", 1),
        (false, list) => list.to_owned(),
    })
}

fn operations() -> impl Strategy<Value = String> {
    list(&["retrieve", "query", "store", "export", "disclose"], 1..5)
}

fn categories() -> impl Strategy<Value = String> {
    list(&CATEGORIES, 1..4)
}

fn places() -> impl Strategy<Value = String> {
    list(&LOCATIONS, 1..4)
}

fn residency() -> impl Strategy<Value = String> {
    let transfer = (list(&LOCATIONS, 1..3), proptest::option::of(select(&SUBPROCESSORS[..])));
    (places(), places(), proptest::collection::vec(transfer, 0..3)).prop_map(|(storage, access, transfers)| {
        let transfers: Vec<String> = transfers
            .into_iter()
            .map(|(to, whom)| {
                let whom = whom.map(|whom| format!(", subprocessor: {whom}")).unwrap_or_default();
                format!("{{to: {to}, mechanism: scc, ref: scc-1{whom}}}")
            })
            .collect();
        let transfers =
            if transfers.is_empty() { String::new() } else { format!(", transfers: [{}]", transfers.join(", ")) };
        format!("{{storage_locations: {storage}, access_locations: {access}, source: dpa{transfers}}}")
    })
}

fn instruction() -> impl Strategy<Value = (String, String)> {
    let id = select(&["ins-001", "ins-004", "ins-005", "ins-007", "ins-008", "ins-900"][..]);
    let permits = (
        proptest::option::of(list(&PURPOSES[..19], 1..4)),
        proptest::option::of(operations()),
        proptest::option::of(list(&SUBPROCESSORS, 1..4)),
        proptest::option::of(categories()),
        any::<bool>(),
    );
    let restricts = proptest::option::weighted(0.3, select(&["7c1e", "1a2b"][..]));
    let dates = (date(), proptest::option::of(date()), proptest::option::weighted(0.9, date()));
    (id, proptest::option::weighted(0.8, permits), restricts, dates).prop_map(|(id, permits, restricts, dates)| {
        let mut text =
            format!("{{id: {id}, issuer_role: x, reference: R-1, received_at: 2020-01-01, valid_from: {}", dates.0);
        text += &dates.1.map(|until| format!(", valid_until: {until}")).unwrap_or_default();
        text += &dates.2.map(|accepted| format!(", accepted_at: {accepted}")).unwrap_or_default();
        if let Some((purposes, operations, subprocessors, categories, trains)) = permits {
            let purposes = purposes.map(|list| if trains { list.replacen('[', "[model_training, ", 1) } else { list });
            let lists = [
                ("purposes", purposes),
                ("operations", operations),
                ("subprocessors", subprocessors),
                ("data_categories", categories),
            ];
            let lists: Vec<String> =
                lists.into_iter().filter_map(|(key, list)| Some(format!("{key}: {}", list?))).collect();
            text += &format!(", permits: {{{}}}", lists.join(", "));
        }
        text += &restricts.map(|who| format!(", restricts: {{subscriber: \"{who}\"}}")).unwrap_or_default();
        (id.to_owned(), text + "}")
    })
}

fn of_the_whole() -> BoxedStrategy<Mutation> {
    prop_oneof![
        select(&["\"1.2\"", "\"1.3\""][..])
            .prop_map(|tls| set("security_measures", format!("{{min_tls_version: {tls}}}"))),
        select(&["required", "optional"][..]).prop_map(|word| set(
            "security_measures",
            format!("{{client_authentication: {word}, min_tls_version: \"1.2\"}}")
        )),
        Just(remove("security_measures")),
        select(&["enforce", "observe"][..]).prop_map(|word| set("defaults/enforcement", word)),
        residency().prop_map(|it| set("defaults/residency", it)),
        (
            select(&["data_return", "erasure", "customer_analytics", "customer_support", "rights_fulfilment"][..]),
            any::<bool>()
        )
            .prop_map(|(purpose, is)| set(&format!("purposes/{purpose}/requires_instruction"), is.to_string())),
        select(&["debugging", "transient_use", "ad_audit", "rights_fulfilment"][..])
            .prop_map(|purpose| remove(&format!("purposes/{purpose}"))),
        Just(set("purposes/debugging/ccpa_business_purpose", "legal")),
        list(&PURPOSES[..19], 1..12).prop_map(|it| set("purpose_sets/base", it)),
    ]
    .boxed()
}

fn of_a_caller() -> BoxedStrategy<Mutation> {
    let id = prop_oneof![4 => select(&OWN[..]), 1 => Just(NEW_CALLER)];
    let one = prop_oneof![
        3 => purposes().prop_map(|it| ("permitted_purposes", Some(it))),
        1 => Just(("permitted_purposes", Some("[customer_analytics, model_training]".to_owned()))),
        2 => proptest::option::of(operations()).prop_map(|it| ("operations", it)),
        2 => proptest::option::of(select(&LOCATIONS[..]).prop_map(str::to_owned)).prop_map(|it| ("location", it)),
        2 => proptest::option::of((date(), date())).prop_map(|dates| ("human_access", dates.map(|(from, until)| format!(
            "{{group: g, confidentiality: {{ref: N, signed_on: {from}, expires_on: {until}}}}}"
        )))),
        2 => select(&IDENTITIES[..]).prop_map(|it| ("identities", Some(format!("[\"{it}\"]")))),
    ];
    let one = (id.clone(), one).prop_map(|(id, (key, value))| Mutation {
        path: vec!["callers".to_owned(), id.to_owned(), key.to_owned()],
        value,
    });
    let whole = (purposes(), select(&LOCATIONS[..]), select(&IDENTITIES[6..10])).prop_map(|(purposes, place, identity)| {
        set(&format!("callers/{NEW_CALLER}"), format!(
            "{{id: {NEW_CALLER}, identities: [\"{identity}\"], location: {place}, permitted_purposes: {purposes}}}"
        ))
    });
    prop_oneof![6 => one, 1 => whole, 1 => id.prop_map(|id| remove(&format!("callers/{id}")))].boxed()
}

fn of_a_subprocessor() -> BoxedStrategy<Mutation> {
    let id = prop_oneof![6 => select(&SUBPROCESSORS[..]), 1 => Just(NEW_SUBPROCESSOR)];
    let agreement =
        (date(), proptest::option::of(date()), proptest::bool::weighted(0.8)).prop_map(|(from, until, flows)| {
            let until = until.map(|until| format!(", expires_on: {until}")).unwrap_or_default();
            format!("{{ref: A, signed_on: {from}{until}, flow_down: {flows}}}")
        });
    let one = prop_oneof![
        3 => purposes().prop_map(|it| ("permitted_purposes", Some(it))),
        2 => proptest::option::of(operations()).prop_map(|it| ("operations", it)),
        2 => categories().prop_map(|it| ("data_categories", Some(it))),
        2 => places().prop_map(|it| ("storage_locations", Some(it))),
        2 => places().prop_map(|it| ("access_locations", Some(it))),
        2 => proptest::option::weighted(0.8, agreement).prop_map(|it| ("agreement", it)),
        2 => date().prop_map(|it| ("effective_at", Some(it))),
        2 => proptest::option::of(date()).prop_map(|it| ("removed_at", it)),
        1 => select(&IDENTITIES[..]).prop_map(|it| ("identities", Some(format!("[\"{it}\"]")))),
    ];
    let one = (id.clone(), one).prop_map(|(id, (key, value))| Mutation {
        path: vec!["subprocessors".to_owned(), id.to_owned(), key.to_owned()],
        value,
    });
    let whole = (purposes(), categories(), places(), date()).prop_map(|(purposes, categories, places, date)| {
        set(&format!("subprocessors/{NEW_SUBPROCESSOR}"), format!(
            "{{id: {NEW_SUBPROCESSOR}, legal_name: N, service: S, identities: [\"spiffe://new.example/sa/one\"], \
             permitted_purposes: {purposes}, data_categories: {categories}, storage_locations: {places}, \
             access_locations: {places}, agreement: {{ref: A, signed_on: 2020-01-01, flow_down: true}}, effective_at: {date}}}"
        ))
    });
    prop_oneof![8 => one, 1 => whole, 1 => id.prop_map(|id| remove(&format!("subprocessors/{id}")))].boxed()
}

fn of_a_customer() -> BoxedStrategy<Mutation> {
    let id = prop_oneof![8 => select(&CUSTOMERS[..]), 1 => Just(NEW_CUSTOMER)];
    let about = |key: &'static str| {
        proptest::collection::vec((select(&SUBPROCESSORS[..]), date()), 0..4).prop_map(move |list| {
            let since = if key == "objections" { "effective_at" } else { "given_at" };
            let list: Vec<String> =
                list.into_iter().map(|(sp, date)| format!("{{subprocessor: {sp}, {since}: {date}, ref: X}}")).collect();
            (key, Some(format!("[{}]", list.join(", "))))
        })
    };
    let dpa = (proptest::option::weighted(0.9, date()), proptest::option::weighted(0.3, date()), any::<u8>()).prop_map(
        |(accepted, suspended, ending)| {
            let mut text = "{version: \"3\", contract_ref: C".to_owned();
            text += &accepted.map(|it| format!(", accepted_at: {it}")).unwrap_or_default();
            text += &suspended.map(|it| format!(", suspended_by_law_at: {it}")).unwrap_or_default();
            let at = usize::from(ending % 22);
            if at < DATES.len() - 1 {
                text +=
                    &format!(", terminated_at: {}, return_until: {}", DATES[at], DATES[(at + 2).min(DATES.len() - 1)]);
            }
            ("dpa", Some(text + "}"))
        },
    );
    let one = prop_oneof![
        3 => purposes().prop_map(|it| ("permitted_purposes", Some(it))),
        4 => proptest::option::of(residency()).prop_map(|it| ("residency", it)),
        2 => about("objections"),
        2 => about("consents"),
        2 => dpa,
        2 => proptest::option::of(select(&["enforce", "observe"][..]).prop_map(str::to_owned)).prop_map(|it| ("enforcement", it)),
        2 => proptest::option::of(select(&IDENTITIES[..])).prop_map(|it| ("identities", it.map(|it| format!("[\"{it}\"]")))),
    ];
    let one = (id.clone(), one).prop_map(|(id, (key, value))| Mutation {
        path: vec!["customers".to_owned(), id.to_owned(), key.to_owned()],
        value,
    });
    let instructed = (id.clone(), instruction())
        .prop_map(|(id, (name, value))| set(&format!("customers/{id}/instructions/{name}"), value));
    let uninstructed = (id.clone(), select(&["ins-004", "ins-005", "ins-007", "ins-008", "ins-900"][..]))
        .prop_map(|(id, name)| remove(&format!("customers/{id}/instructions/{name}")));
    let whole = (purposes(), proptest::option::of(residency()), any::<bool>(), any::<bool>()).prop_map(|(purposes, residency, observes, accepted)| {
        let residency = residency.map(|it| format!(", residency: {it}")).unwrap_or_default();
        let observes = if observes { ", enforcement: observe" } else { "" };
        let accepted = if accepted { ", accepted_at: 2022-01-01" } else { "" };
        set(&format!("customers/{NEW_CUSTOMER}"), format!(
            "{{id: {NEW_CUSTOMER}, legal_name: N, dpa: {{version: \"1\", contract_ref: C{accepted}}}, permitted_purposes: {purposes}{residency}{observes}}}"
        ))
    });
    prop_oneof![9 => one, 4 => instructed, 1 => uninstructed, 1 => whole, 1 => id.prop_map(|id| remove(&format!("customers/{id}")))]
        .boxed()
}

pub(crate) fn mutation() -> BoxedStrategy<Mutation> {
    prop_oneof![2 => of_the_whole(), 2 => of_a_caller(), 3 => of_a_subprocessor(), 5 => of_a_customer()].boxed()
}

// ---- requests --------------------------------------------------------------------------------------

/// Any numbers will do, as long as the seed reproduces them.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from((self.0 >> 11) % u64::try_from(sides.max(1)).unwrap()).unwrap()
    }

    pub(crate) fn one<'t, T>(&mut self, list: &'t [T]) -> Option<&'t T> {
        let at = self.roll(list.len());
        list.get(at)
    }

    /// Whether one of so many rolls is meant.
    fn seldom(&mut self, sides: usize) -> bool {
        self.roll(sides) == 0
    }
}

/// A request, and what protects its connection.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) asked: Asked,
    pub(crate) transport: Transport,
}

fn name_in(names: &[&'static str], id: &str) -> Option<&'static str> {
    names.iter().find(|name| **name == id).copied()
}

fn known<const N: usize>(names: [&'static str; N], new: &'static str) -> Vec<&'static str> {
    names.into_iter().chain([new]).collect()
}

/// What a change names: whoever its place is of, and its values.
fn names(change: &Change) -> Vec<String> {
    let place = match &change.place {
        Place::Caller(id, _) | Place::Subprocessor(id, _) | Place::Customer(id, _) | Place::Residency(id) => {
            vec![id.clone()]
        }
        Place::Instruction(customer, id) => vec![customer.clone(), id.clone()],
        Place::Purpose(id) => vec![id.clone()],
        Place::Key(path) => path.clone(),
        Place::Top(_) => vec![],
    };
    change.values.iter().cloned().chain(place).collect()
}

/// A request that a policy might permit, and that may be about a change: what goes together is asked together, and one thing may be any.
fn likely(policy: &Policy, dice: &mut Dice, about: Option<&Change>) -> Request {
    let customers = known(CUSTOMERS, NEW_CUSTOMER);
    let named: Vec<String> = about.map(names).unwrap_or_default();
    let concerned: Vec<&'static str> = match about.map(|change| &change.concerns) {
        Some(Concerns::Customers(ids)) => ids.iter().filter_map(|id| name_in(&customers, id)).collect(),
        Some(Concerns::All | Concerns::Unnamed | Concerns::Nobody) | None => vec![],
    };
    let customer_name = *dice.one(&concerned).or_else(|| dice.one(&customers)).unwrap();
    let customer = policy.customer_named(customer_name).and_then(|id| policy.customer(id));
    let mut identities: Vec<String> = policy
        .all_identities()
        .filter(|(_, party)| match party {
            policy::Party::Own(id) => named.iter().any(|name| policy.caller_named(name) == Some(*id)),
            policy::Party::Subprocessor(id) => named.iter().any(|name| policy.subprocessor_named(name) == Some(*id)),
            policy::Party::Customer(_) => false,
        })
        .map(|(it, _)| it.as_str().replace('*', "care"))
        .collect();
    if identities.is_empty() || dice.seldom(4) {
        identities = policy.all_identities().map(|(it, _)| it.as_str().replace('*', "care")).collect();
    }
    identities.sort();
    let mut identity = dice.one(&identities).cloned();
    if dice.seldom(6) {
        identity = dice.one(&IDENTITIES).map(|it| it.replace('*', "any"));
    }
    let party = identity.as_ref().and_then(|it| policy.party(&it.parse().unwrap()));
    let subprocessors = known(SUBPROCESSORS, NEW_SUBPROCESSOR);
    let mut recipient = None;
    let entry = match party {
        Some(policy::Party::Subprocessor(id)) => policy.subprocessor(id),
        Some(policy::Party::Own(_) | policy::Party::Customer(_)) | None => {
            recipient = dice.one(&subprocessors).copied().filter(|_| dice.seldom(4));
            recipient.and_then(|name| policy.subprocessor_named(name)).and_then(|id| policy.subprocessor(id))
        }
    };
    let fits = |name: &&&str| {
        policy.purpose_named(name).is_some_and(|id| {
            let own = match party {
                Some(policy::Party::Own(caller)) => {
                    policy.caller(caller).is_some_and(|it| it.permitted_purposes.contains(id))
                }
                Some(policy::Party::Subprocessor(_) | policy::Party::Customer(_)) | None => true,
            };
            own && entry.is_none_or(|entry| entry.permitted_purposes.contains(id))
                && customer.is_none_or(|it| {
                    it.permitted_purposes.contains(id)
                        || it.instructions.iter().any(|it| {
                            it.permits.as_ref().and_then(|it| it.purposes).is_some_and(|set| set.contains(id))
                        })
                })
        })
    };
    let purposes: Vec<&'static str> = PURPOSES.iter().filter(fits).copied().collect();
    let mut purpose = dice.one(&purposes).copied();
    if purpose.is_none() || dice.seldom(8) {
        purpose = dice.one(&PURPOSES).copied();
    }
    if dice.seldom(8) && policy.purpose_named("rights_fulfilment").is_some() {
        purpose = Some("rights_fulfilment");
    }
    let allowed: Vec<String> = customer
        .map(|it| policy.residency(it).storage_locations.iter().map(ToString::to_string).collect())
        .unwrap_or_default();
    let storage = dice
        .one(&allowed)
        .cloned()
        .filter(|_| dice.roll(6) > 0)
        .unwrap_or_else(|| dice.one(&LOCATIONS).unwrap().to_string());
    let mut data: Vec<String> =
        entry.map(|it| it.data_categories.iter().map(ToString::to_string).collect()).unwrap_or_default();
    if data.is_empty() || dice.seldom(3) {
        data = CATEGORIES.iter().map(ToString::to_string).collect();
    }
    let data = dice.one(&data).unwrap().parse().unwrap();
    let instructions = ["ins-001", "ins-004", "ins-005", "ins-007", "ins-008", "ins-900"];
    let own: Vec<&'static str> = customer
        .map(|it| it.instructions.iter().filter_map(|it| name_in(&instructions, it.id.as_str())).collect())
        .unwrap_or_default();
    let named: Vec<&'static str> = named.iter().filter_map(|name| name_in(&instructions, name)).collect();
    let mut instruction = dice.one(&named).or_else(|| dice.one(&own)).copied().filter(|_| dice.roll(2) > 0);
    if dice.seldom(10) {
        instruction = dice.one(&instructions).copied();
    }
    let day: Timestamp = format!("{}T00:00:00Z", dice.one(&DATES).unwrap()).parse().unwrap();
    let now = Timestamp::from_second(day.as_second() + [-1, 0, 43_200, 86_400][dice.roll(4)]).unwrap();
    let others = match dice.roll(12) {
        0 => vec![],
        1 => vec![customer_name, "redwood-strand"],
        2 => vec!["nobody-known"],
        _ => vec![customer_name],
    };
    Request {
        asked: Asked {
            caller: identity,
            customers: others,
            purpose,
            operation: dice.one(&Operation::ALL).copied(),
            data_categories: vec![data],
            subscriber: [None, Some(None), Some(Some("7c1e")), Some(Some("1a2b"))][dice.roll(4)],
            instruction,
            has_request_ref: dice.roll(2) > 0,
            location: dice.one(&LOCATIONS).filter(|_| dice.roll(2) > 0).map(|it| it.parse().unwrap()),
            storage: storage.parse().unwrap(),
            recipient,
            now,
        },
        transport: Transport {
            tls: [None, Some(TlsVersion::V1_2), Some(TlsVersion::V1_3), Some(TlsVersion::V1_3)][dice.roll(4)],
            client_certificate: dice.roll(2) > 0,
            is_unix: false,
        },
    }
}

/// How far a request comes: refused, passed on though denied, permitted.
fn answer(request: &Request, policy: &Policy) -> u8 {
    let mut facts = request.asked.facts(policy);
    facts.transport = request.transport;
    // Who is no subprocessor of this policy gets nothing by it.
    if request.asked.recipient.is_some_and(|name| policy.subprocessor_named(name).is_none()) {
        facts.direction = dpa_sidecar::decide::facts::Direction::EgressToNobody;
    }
    let decision = decide(policy, &facts, request.asked.now);
    match (&decision.outcome, decision.enforcement) {
        (Outcome::Permit { .. }, _) => 2,
        (Outcome::Deny(_), Enforcement::Observe) => 1,
        (Outcome::Deny(_), Enforcement::Enforce) => 0,
    }
}

/// What a request may do by itself, and without the name of an instruction: a name that opens nothing is no gain.
fn at_most(request: &Request, policy: &Policy) -> u8 {
    let unnamed = Request { asked: Asked { instruction: None, ..request.asked.clone() }, ..request.clone() };
    answer(request, policy).max(answer(&unnamed, policy))
}

/// Whether a change is for the customers of a request.
fn is_for(change: &Change, request: &Request, policies: [&Policy; 2]) -> bool {
    let names = &request.asked.customers;
    match &change.concerns {
        Concerns::All => true,
        Concerns::Nobody => false,
        Concerns::Customers(customers) => names.iter().any(|name| customers.iter().any(|id| id == name)),
        Concerns::Unnamed => policies.iter().any(|policy| match request.asked.facts(policy).customers {
            Fact::Known(Customers::One(_), _) => false,
            Fact::Known(Customers::Several { unknown, .. }, _) => unknown > 0,
            Fact::None | Fact::Unknown(_) => true,
        }),
    }
}

/// The sample as the mutations print it, and compiled.
static PRINTED: LazyLock<(String, Arc<Policy>)> = LazyLock::new(|| {
    let (text, policy) = mutated(SAMPLE, &[]);
    (text, Arc::new(policy))
});

pub(crate) struct Pair {
    pub(crate) old: Arc<Policy>,
    pub(crate) new: Policy,
    changes: Vec<Change>,
}

impl Pair {
    pub(crate) fn of(before: &[Mutation], mutations: &[Mutation]) -> Self {
        let (text, old) = if before.is_empty() {
            PRINTED.clone()
        } else {
            let (text, policy) = mutated(&PRINTED.0, before);
            (text, Arc::new(policy))
        };
        let (_, new) = mutated(&text, mutations);
        let changes = diff(&old, &new, None);
        Self { old, new, changes }
    }

    /// The kinds of the changes that account for a flip; `None`: the request does not flip that way.
    fn accounts(&self, request: &Request, direction: Direction) -> Option<BTreeSet<Kind>> {
        let (before, after): (&Policy, &Policy) =
            if direction == Direction::Weaker { (&self.old, &self.new) } else { (&self.new, &self.old) };
        (answer(request, after) > at_most(request, before)).then(|| {
            let accounting = self.changes.iter().filter(|it| it.direction == direction);
            accounting.filter(|it| is_for(it, request, [before, after])).map(|it| it.kind).collect()
        })
    }

    /// Requests that some policy of the pair might permit.
    pub(crate) fn requests(&self, seed: u64, count: usize) -> Vec<Request> {
        let mut dice = Dice(seed | 1);
        (0..count)
            .map(|_| {
                let policy: &Policy = if dice.roll(2) == 0 { &self.old } else { &self.new };
                let about = dice.one(&self.changes).filter(|_| dice.roll(3) > 0);
                let mut request = likely(policy, &mut dice, about);
                for _ in 0..20 {
                    if answer(&request, policy) == 2 {
                        break;
                    }
                    request = likely(policy, &mut dice, about);
                }
                request
            })
            .collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 400, ..ProptestConfig::default() })]

    /// What passes only with the new policy lies in a change that is called weaker for its customer; and what passes
    /// only with the old one, in a change that is called tighter.
    #[test]
    fn each_flip_lies_in_a_change_that_says_so(
        before in proptest::collection::vec(mutation(), 0..4),
        mutations in proptest::collection::vec(mutation(), 1..4),
        seed in any::<u64>(),
    ) {
        let pair = Pair::of(&before, &mutations);
        for request in pair.requests(seed, 150) {
            for direction in [Direction::Weaker, Direction::Tighter] {
                let accounts = pair.accounts(&request, direction);
                prop_assert!(accounts.is_none_or(|kinds| !kinds.is_empty()), "{direction:?}: {request:?} {:?}", pair.changes);
            }
        }
    }
}

/// Kinds that no decision of a request rests on.
const NO_DECISION: [Kind; 6] = [
    Kind::DecisionLog,
    Kind::SignedPolicy,
    Kind::RequireEnforce,
    Kind::SubprocessorName,
    Kind::BusinessPurpose,
    Kind::Wording,
];

/// What is changed, a line a change: direction, kind, for whom.
fn told(changes: &[Change]) -> String {
    let line = |change: &Change| {
        let whom = match &change.concerns {
            Concerns::All => "all".to_owned(),
            Concerns::Unnamed => "unnamed".to_owned(),
            Concerns::Nobody => "nobody".to_owned(),
            Concerns::Customers(customers) => customers.join(" "),
        };
        format!("{} {}: {whom}", change.direction.as_str(), change.kind.as_str())
    };
    changes.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A sentence, what was changed before, the change, what it is called. Lines are sorted by direction, then kind.
fn table() -> Vec<(&'static str, Vec<Mutation>, Vec<Mutation>, &'static str)> {
    let sp = |id: &str, key: &str, value: &str| set(&format!("subprocessors/{id}/{key}"), value);
    let customer = |id: &str, key: &str, value: &str| set(&format!("customers/{id}/{key}"), value);
    let caller = |id: &str, key: &str, value: &str| set(&format!("callers/{id}/{key}"), value);
    let redwood = |key: &str, value: &str| customer("redwood-strand", key, value);
    let measures = |value: &str| set("security_measures", value);
    let new_sp = set(
        "subprocessors/sp-13",
        "{id: sp-13, legal_name: N, service: S, identities: [\"spiffe://new.example/sa/one\"], \
        permitted_purposes: [customer_support], data_categories: [user.contact], storage_locations: [US-NV], access_locations: [US-NV], \
        agreement: {ref: A, signed_on: 2026-01-01, flow_down: true}, effective_at: 2026-07-20}",
    );
    let objects = customer(
        "granite-notch",
        "objections",
        "[{subprocessor: sp-09, effective_at: 2025-02-01, ref: OBJ-5}, {subprocessor: sp-13, effective_at: 2026-06-01, ref: OBJ-6}]",
    );
    let accepts = redwood("consents", "[{subprocessor: sp-13, given_at: 2026-06-20, ref: C}]");
    let export = |until: &str, operations: &str| {
        set(
            "customers/redwood-strand/instructions/ins-004",
            format!(
                "{{id: ins-004, issuer_role: x, reference: R, received_at: 2026-06-01, accepted_at: 2026-06-01, valid_from: 2026-06-01, valid_until: {until}, \
         permits: {{purposes: [customer_analytics], operations: {operations}, subprocessors: [sp-07], data_categories: [user.telemetry]}}}}"
            ),
        )
    };
    let dpa = |more: &str| redwood("dpa", &format!("{{version: \"3\", contract_ref: C{more}}}"));
    vec![
        ("nothing", vec![], vec![set("metadata/revision", "13")], ""),
        (
            "people who are bound to confidentiality no more",
            vec![],
            vec![remove("callers/care-temp/human_access")],
            "weaker human_access: redwood-strand granite-notch cedar-hollow salt-flat",
        ),
        (
            "another company behind the same id",
            vec![],
            vec![sp("sp-09", "legal_name", "X")],
            "weaker subprocessor_name: redwood-strand\ntighter subprocessor_name: redwood-strand",
        ),
        (
            "a new customer on observe, where others are enforced",
            vec![],
            vec![set(
                "customers/birch-lake",
                "{id: birch-lake, legal_name: N, dpa: {version: \"3\", contract_ref: C}, permitted_purposes: [base], enforcement: observe}",
            )],
            "weaker enforcement: birch-lake\nweaker customer: birch-lake",
        ),
        (
            "another order of a list, a set spelled out",
            vec![],
            vec![
                caller("care-desk", "permitted_purposes", "[rights_fulfilment, customer_support, account_management]"),
                set("purpose_sets/all_of_it", "[debugging]"),
            ],
            "",
        ),
        (
            "a lower TLS floor",
            vec![measures("{min_tls_version: \"1.3\"}")],
            vec![measures("{min_tls_version: \"1.2\"}")],
            "weaker min_tls_version: all",
        ),
        (
            "measures where there were none",
            vec![],
            vec![
                measures("{client_authentication: required, decision_log: synced, signed_policy: true}"),
                set("require_enforce", "true"),
            ],
            "tighter client_authentication: all\ntighter decision_log: all\ntighter signed_policy: all\ntighter require_enforce: all",
        ),
        (
            "a client certificate no longer required",
            vec![measures("{client_authentication: required}")],
            vec![measures("{client_authentication: optional}")],
            "weaker client_authentication: all",
        ),
        (
            "the default observes, and customers have none of their own",
            vec![],
            vec![set("defaults/enforcement", "observe")],
            "weaker default_enforcement: unnamed\nweaker enforcement: redwood-strand\nweaker enforcement: fibre-outardes\n\
             weaker enforcement: granite-notch\nweaker enforcement: kelp-sound\nweaker enforcement: dusty-fork\nweaker enforcement: salt-flat",
        ),
        (
            "a customer leaves observe",
            vec![],
            vec![remove("customers/cedar-hollow/enforcement")],
            "tighter enforcement: cedar-hollow",
        ),
        (
            "a customer is new, and has accepted",
            vec![],
            vec![set(
                "customers/birch-lake",
                "{id: birch-lake, legal_name: N, dpa: {version: \"1\", contract_ref: C, accepted_at: 2026-07-01}, permitted_purposes: [base]}",
            )],
            "weaker customer: birch-lake",
        ),
        ("a customer is gone", vec![], vec![remove("customers/granite-notch")], "tighter customer: granite-notch"),
        (
            "a customer is gone that was enforced, under a default that observes",
            vec![set("defaults/enforcement", "observe"), redwood("enforcement", "enforce")],
            vec![remove("customers/redwood-strand")],
            "weaker enforcement: redwood-strand\ntighter customer: redwood-strand",
        ),
        (
            "a customer accepts",
            vec![],
            vec![customer("dusty-fork", "dpa", "{version: \"3\", contract_ref: C, accepted_at: 2026-07-01}")],
            "weaker acceptance: dusty-fork",
        ),
        (
            "what was never accepted is widened",
            vec![],
            vec![customer("dusty-fork", "permitted_purposes", "[base, customer_analytics]")],
            "",
        ),
        (
            "the law bars the service later",
            vec![],
            vec![customer(
                "salt-flat",
                "dpa",
                "{version: \"3\", contract_ref: C, accepted_at: 2024-05-01, suspended_by_law_at: 2026-06-01}",
            )],
            "weaker suspension: salt-flat",
        ),
        (
            "an agreement ends",
            vec![],
            vec![dpa(", accepted_at: 2024-01-10, terminated_at: 2026-12-31, return_until: 2027-03-31")],
            "tighter termination: redwood-strand",
        ),
        (
            "a longer return window",
            vec![],
            vec![
                customer(
                    "kelp-sound",
                    "dpa",
                    "{version: \"2\", contract_ref: C, accepted_at: 2022-02-01, terminated_at: 2026-03-31, return_until: 2026-07-31}",
                ),
                set("customers/kelp-sound/instructions/ins-005/valid_until", "2026-07-31"),
            ],
            "weaker termination: kelp-sound\nweaker instruction: kelp-sound",
        ),
        (
            "one purpose in, one out",
            vec![],
            vec![redwood("permitted_purposes", "[base, customer_analytics, quality_improvement, internal_research]")],
            "weaker customer_purpose: redwood-strand\ntighter customer_purpose: redwood-strand",
        ),
        (
            "a set grows",
            vec![],
            vec![set(
                "purpose_sets/base",
                "[service_provision, account_management, customer_support, billing_payment, \
            service_notification, storage_hosting, security_integrity, fraud_prevention, debugging, rights_fulfilment, legal_compliance, transient_use]",
            )],
            "weaker customer_purpose: redwood-strand\nweaker customer_purpose: fibre-outardes\nweaker customer_purpose: granite-notch\n\
             weaker customer_purpose: cedar-hollow\nweaker customer_purpose: salt-flat",
        ),
        (
            "a purpose that needs an instruction all the same",
            vec![],
            vec![redwood(
                "permitted_purposes",
                "[base, customer_analytics, customer_marketing, quality_improvement, data_return]",
            )],
            "",
        ),
        (
            "a subscriber's right needs no list",
            vec![],
            vec![customer(
                "kelp-sound",
                "permitted_purposes",
                "[data_return, erasure, legal_compliance, rights_fulfilment]",
            )],
            "",
        ),
        (
            "a purpose needs no instruction any more",
            vec![],
            vec![set("purposes/data_return/requires_instruction", "false")],
            "weaker requires_instruction: kelp-sound salt-flat",
        ),
        (
            "a country instead of its part",
            vec![redwood("residency", "{storage_locations: [US-OR], access_locations: [US, CA], source: dpa}")],
            vec![redwood("residency", "{storage_locations: [US], access_locations: [US, CA], source: dpa}")],
            "weaker storage_location: redwood-strand",
        ),
        (
            "two parts that a country covered",
            vec![],
            vec![redwood(
                "residency",
                "{storage_locations: [US-OR, US-WA, CA], access_locations: [US, CA], source: dpa}",
            )],
            "tighter storage_location: redwood-strand",
        ),
        (
            "the default moves those that have none of their own",
            vec![customer("dusty-fork", "dpa", "{version: \"3\", contract_ref: C, accepted_at: 2026-01-01}")],
            vec![set(
                "defaults/residency",
                "{storage_locations: [US, CA], access_locations: [US, CA, DE], source: dpa}",
            )],
            "weaker access_location: dusty-fork salt-flat",
        ),
        (
            "a transfer is gone",
            vec![],
            vec![customer(
                "fibre-outardes",
                "residency",
                "{storage_locations: [CA-QC], access_locations: [CA-QC], source: dpa}",
            )],
            "tighter transfer: fibre-outardes",
        ),
        (
            "a transfer to where that subprocessor is not",
            vec![],
            vec![customer(
                "fibre-outardes",
                "residency",
                "{storage_locations: [CA-QC], access_locations: [CA-QC], source: dpa, \
            transfers: [{to: [CA-NB, CA-YT], mechanism: pia, ref: pia-17, subprocessor: sp-04}]}",
            )],
            "weaker transfer: fibre-outardes\ntighter transfer: fibre-outardes",
        ),
        (
            "a transfer for anybody",
            vec![],
            vec![redwood(
                "residency",
                "{storage_locations: [US, CA], access_locations: [US, CA], source: dpa, transfers: [{to: [MX], mechanism: scc, ref: scc-1}]}",
            )],
            "weaker transfer: redwood-strand",
        ),
        (
            "an objection is dropped",
            vec![],
            vec![remove("customers/granite-notch/objections")],
            "weaker objection: granite-notch",
        ),
        (
            "an objection is dropped that kept something out",
            vec![],
            vec![
                remove("customers/granite-notch/objections"),
                customer("granite-notch", "permitted_purposes", "[base, customer_analytics, customer_marketing]"),
            ],
            "weaker customer_purpose: granite-notch\nweaker objection: granite-notch",
        ),
        (
            "an objection",
            vec![],
            vec![redwood("objections", "[{subprocessor: sp-07, effective_at: 2026-07-01, ref: O}]")],
            "tighter objection: redwood-strand",
        ),
        ("a consent ahead of time", vec![new_sp.clone()], vec![accepts.clone()], "weaker consent: redwood-strand"),
        (
            "a consent after the date",
            vec![],
            vec![redwood("consents", "[{subprocessor: sp-07, given_at: 2026-06-01, ref: C}]")],
            "",
        ),
        (
            "an instruction runs longer",
            vec![export("2026-06-10", "[export]")],
            vec![export("2026-06-20", "[export]")],
            "weaker instruction: redwood-strand",
        ),
        (
            "an instruction runs longer and permits less: both",
            vec![export("2026-06-10", "[export, disclose]")],
            vec![export("2026-06-20", "[export]")],
            "weaker instruction: redwood-strand\ntighter instruction: redwood-strand",
        ),
        (
            "an instruction that says nothing that was not so",
            vec![],
            vec![set(
                "customers/redwood-strand/instructions/ins-900",
                "{id: ins-900, issuer_role: x, reference: R, received_at: 2026-06-01, accepted_at: 2026-06-01, valid_from: 2026-06-01, permits: {purposes: [customer_support]}}",
            )],
            "",
        ),
        (
            "an instruction is accepted",
            vec![],
            vec![set(
                "customers/cedar-hollow/instructions/ins-006",
                "{id: ins-006, issuer_role: x, reference: R, received_at: 2026-05-15, accepted_at: 2026-06-15, valid_from: 2026-05-15, permits: {purposes: [model_training]}}",
            )],
            "weaker instruction: cedar-hollow",
        ),
        (
            "a restriction",
            vec![],
            vec![set(
                "customers/granite-notch/instructions/ins-900",
                "{id: ins-900, issuer_role: x, reference: R, received_at: 2026-06-01, accepted_at: 2026-06-01, valid_from: 2026-06-01, restricts: {subscriber: \"1a2b\"}}",
            )],
            "tighter restriction: granite-notch",
        ),
        (
            "a restriction is lifted",
            vec![],
            vec![remove("customers/redwood-strand/instructions/ins-007")],
            "weaker restriction: redwood-strand",
        ),
        (
            "a restriction goes on under another instruction",
            vec![],
            vec![
                remove("customers/redwood-strand/instructions/ins-007"),
                set(
                    "customers/redwood-strand/instructions/ins-900",
                    "{id: ins-900, issuer_role: x, reference: R, received_at: 2026-06-01, accepted_at: 2026-06-01, valid_from: 2026-06-01, restricts: {subscriber: \"7c1e\"}}",
                ),
            ],
            "tighter restriction: redwood-strand",
        ),
        (
            "a customer's own caller",
            vec![],
            vec![redwood("identities", "[\"spiffe://new.example/sa/one\"]")],
            "weaker customer_identity: redwood-strand",
        ),
        (
            "another name of a caller",
            vec![],
            vec![caller("biller", "identities", "[\"spiffe://new.example/sa/*\"]")],
            "weaker caller_identity: redwood-strand granite-notch cedar-hollow salt-flat\n\
             tighter caller_identity: redwood-strand granite-notch cedar-hollow salt-flat",
        ),
        (
            "a name within a pattern",
            vec![caller("biller", "identities", "[\"spiffe://new.example/sa/*\"]")],
            vec![caller("biller", "identities", "[\"spiffe://new.example/sa/one\"]")],
            "tighter caller_identity: redwood-strand granite-notch cedar-hollow salt-flat",
        ),
        (
            "an identity moves to another caller",
            vec![],
            vec![
                caller("biller", "identities", "[\"spiffe://new.example/sa/one\"]"),
                caller("care-temp", "identities", "[\"spiffe://lumenfield.example/ns/bill/sa/biller\"]"),
            ],
            "weaker caller_identity: redwood-strand granite-notch cedar-hollow salt-flat\n\
             weaker caller_identity: redwood-strand granite-notch cedar-hollow salt-flat\n\
             tighter caller_identity: redwood-strand granite-notch cedar-hollow salt-flat\n\
             tighter caller_identity: redwood-strand granite-notch cedar-hollow salt-flat\n\
             tighter human_access: redwood-strand granite-notch cedar-hollow salt-flat",
        ),
        ("a caller is gone", vec![], vec![remove("callers/exporter")], "tighter caller: kelp-sound salt-flat"),
        (
            "a caller for a purpose that some permit",
            vec![],
            vec![caller("biller", "permitted_purposes", "[billing_payment, customer_marketing]")],
            "weaker caller_purpose: redwood-strand",
        ),
        (
            "a caller for a purpose that none permits",
            vec![],
            vec![caller("biller", "permitted_purposes", "[billing_payment, ad_audit]")],
            "",
        ),
        (
            "fewer operations of a caller",
            vec![],
            vec![caller("exporter", "operations", "[export, erase]")],
            "tighter caller_operation: kelp-sound salt-flat",
        ),
        (
            "a caller may only read",
            vec![],
            vec![caller("care-desk", "operations", "[retrieve]")],
            "tighter caller_operation: redwood-strand granite-notch cedar-hollow salt-flat",
        ),
        (
            "another name of a subprocessor",
            vec![],
            vec![sp(
                "sp-03",
                "identities",
                "[\"spiffe://ticketriver.example/sa/sync\", \"spiffe://new.example/sa/one\"]",
            )],
            "weaker subprocessor_identity: redwood-strand granite-notch cedar-hollow salt-flat",
        ),
        (
            "a subprocessor for one purpose more",
            vec![],
            vec![sp("sp-03", "permitted_purposes", "[customer_support, debugging]")],
            "weaker subprocessor_purpose: redwood-strand granite-notch cedar-hollow salt-flat",
        ),
        (
            "a subprocessor reaches data from an agreed place",
            vec![sp("sp-08", "storage_locations", "[US-OR]")],
            vec![sp("sp-08", "access_locations", "[US-OR]")],
            "weaker subprocessor_access: redwood-strand granite-notch salt-flat",
        ),
        (
            "a caller moves to where some customers are",
            vec![],
            vec![caller("care-desk", "location", "CA-QC")],
            "weaker caller_location: fibre-outardes kelp-sound\ntighter caller_location: granite-notch",
        ),
        (
            "an undertaking is renewed",
            vec![],
            vec![set(
                "callers/care-temp/human_access",
                "{group: g, confidentiality: {ref: NDA-12, signed_on: 2025-06-01, expires_on: 2027-05-31}}",
            )],
            "weaker confidentiality: redwood-strand granite-notch cedar-hollow",
        ),
        (
            "a subprocessor is new: not for who refuses it, who has no US, and whose law bars it by then",
            vec![],
            vec![new_sp.clone(), objects],
            "weaker subprocessor: redwood-strand cedar-hollow",
        ),
        (
            "a subprocessor is new",
            vec![],
            vec![new_sp.clone()],
            "weaker subprocessor: redwood-strand granite-notch cedar-hollow",
        ),
        (
            "a subprocessor may have one category below another",
            vec![],
            vec![sp("sp-05", "data_categories", "[user.contact, user.contact.email]")],
            "",
        ),
        (
            "a subprocessor may have more data",
            vec![],
            vec![sp("sp-05", "data_categories", "[user]")],
            "weaker subprocessor_data: redwood-strand granite-notch cedar-hollow salt-flat",
        ),
        (
            "a subprocessor may do anything",
            vec![],
            vec![remove("subprocessors/sp-07/operations")],
            "weaker subprocessor_operation: redwood-strand granite-notch cedar-hollow",
        ),
        (
            "a subprocessor leaves a place that somebody did not allow",
            vec![],
            vec![sp("sp-08", "storage_locations", "[US-OR]"), sp("sp-08", "access_locations", "[US-OR]")],
            "weaker subprocessor_storage: redwood-strand granite-notch salt-flat\nweaker subprocessor_access: redwood-strand granite-notch salt-flat",
        ),
        (
            "a subprocessor keeps data in one place more",
            vec![],
            vec![sp("sp-05", "storage_locations", "[US-CA, DE]")],
            "tighter subprocessor_storage: redwood-strand granite-notch salt-flat",
        ),
        (
            "an agreement is renewed",
            vec![],
            vec![sp("sp-11", "agreement", "{ref: S, signed_on: 2022-12-01, expires_on: 2028-05-31, flow_down: true}")],
            "weaker subprocessor_agreement: redwood-strand cedar-hollow",
        ),
        (
            "a subprocessor is removed",
            vec![],
            vec![sp("sp-07", "removed_at", "2026-07-31")],
            "tighter subprocessor_period: redwood-strand granite-notch cedar-hollow",
        ),
        (
            "a later start, which a consent goes ahead of",
            vec![new_sp.clone(), accepts],
            vec![sp("sp-13", "effective_at", "2026-08-20")],
            "tighter subprocessor_period: granite-notch cedar-hollow",
        ),
        (
            "the right of subscribers is named, and a customer has callers of its own",
            vec![
                set("purpose_sets/base", "[customer_support]"),
                caller("care-desk", "permitted_purposes", "[customer_support]"),
                remove("purposes/rights_fulfilment"),
            ],
            vec![set("purposes/rights_fulfilment", "{ccpa_business_purpose: legal, necessity: N}")],
            "weaker purpose: fibre-outardes",
        ),
        (
            "a purpose that the law is said to demand",
            vec![],
            vec![set("purposes/customer_marketing/ccpa_business_purpose", "legal")],
            "weaker business_purpose: redwood-strand",
        ),
        (
            "one that the law demands no more",
            vec![set("purposes/customer_marketing/ccpa_business_purpose", "legal")],
            vec![set("purposes/customer_marketing/ccpa_business_purpose", "contract")],
            "tighter business_purpose: redwood-strand",
        ),
    ]
}

#[test]
fn what_a_change_is_called() {
    let mut wrong = Vec::new();
    for (name, before, after, expected) in table() {
        let changes = Pair::of(&before, &after).changes;
        let got = told(&changes);
        if got != expected {
            wrong.push(format!("{name}:\n--- expected\n{expected}\n--- got\n{got}\n"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Without this, the property could hold because nothing flips: for each kind of change there is a request that flips,
/// and that no other kind accounts for.
#[test]
fn each_kind_of_change_is_needed_for_some_flip() {
    let mut missing: BTreeSet<Kind> = Kind::ALL.iter().copied().filter(|kind| !NO_DECISION.contains(kind)).collect();
    for (name, before, after, _) in table() {
        let pair = Pair::of(&before, &after);
        let kinds: BTreeSet<Kind> = pair.changes.iter().map(|change| change.kind).collect();
        if kinds.is_disjoint(&missing) {
            continue;
        }
        for request in (1..20).flat_map(|seed| pair.requests(seed, 100)) {
            for direction in [Direction::Weaker, Direction::Tighter] {
                let Some(kinds) = pair.accounts(&request, direction) else { continue };
                assert!(!kinds.is_empty(), "{name}: {request:?}");
                if let [kind] = kinds.iter().copied().collect::<Vec<_>>().as_slice() {
                    missing.remove(kind);
                }
            }
            if kinds.is_disjoint(&missing) {
                break;
            }
        }
    }
    assert!(missing.is_empty(), "no flip shows {missing:?}");
}

/// A sentence, what is on record beside the change, the change; what is missing and for whom.
#[test]
fn what_has_to_be_agreed() {
    let now: Timestamp = "2026-10-01T00:00:00Z".parse().unwrap();
    let measures = |tls: &str| set("security_measures", format!("{{min_tls_version: \"{tls}\"}}"));
    let notice = |measure: &str, from: &str, to: &str, day: &str| {
        set(
            "weakening_notices",
            format!("[{{measure: {measure}, from: \"{from}\", to: \"{to}\", notice_given_at: {day}}}]"),
        )
    };
    let redwood = |key: &str, value: &str| set(&format!("customers/redwood-strand/{key}"), value);
    let instruction = |id: &str, more: &str| {
        set(
            &format!("customers/redwood-strand/instructions/{id}"),
            format!(
                "{{id: {id}, issuer_role: x, reference: R, received_at: 2026-06-01, accepted_at: 2026-06-01, valid_from: 2026-06-01{more}}}"
            ),
        )
    };
    let observe = redwood("enforcement", "observe");
    let consent = |to: &str, day: &str| redwood("consents", &format!("[{{{to}, given_at: {day}, ref: C-1}}]"));
    let research = redwood(
        "permitted_purposes",
        "[base, customer_analytics, customer_marketing, quality_improvement, internal_research]",
    );
    let places = |source: &str| {
        redwood("residency", &format!("{{storage_locations: [US, CA], access_locations: [US, CA, MX], {source}}}"))
    };
    let marketing = set("subprocessors/sp-09/data_categories", "[user.name, user.contact, user.device]");
    let all = "redwood-strand fibre-outardes granite-notch cedar-hollow kelp-sound dusty-fork salt-flat";
    let nobody: [Mutation; 0] = [];
    let table: [(&str, Vec<Mutation>, Vec<Mutation>, String); 23] = [
        ("tighter needs nothing", vec![], vec![measures("1.3")], String::new()),
        ("a weaker measure", vec![measures("1.3")], vec![measures("1.2")], format!("min_tls_version: {all}")),
        (
            "with a notice of 90 days ago",
            vec![measures("1.3")],
            vec![measures("1.2"), notice("min_tls_version", "1.3", "1.2", "2026-07-03")],
            String::new(),
        ),
        (
            "with a notice of 89 days ago",
            vec![measures("1.3")],
            vec![measures("1.2"), notice("min_tls_version", "1.3", "1.2", "2026-07-04")],
            format!("min_tls_version: {all}"),
        ),
        (
            "with a notice of a smaller step",
            vec![measures("1.3")],
            vec![remove("security_measures"), notice("min_tls_version", "1.3", "1.2", "2026-01-01")],
            format!("min_tls_version: {all}"),
        ),
        (
            "with a notice of another measure",
            vec![measures("1.3")],
            vec![measures("1.2"), notice("decision_log", "1.3", "1.2", "2026-01-01")],
            format!("min_tls_version: {all}"),
        ),
        (
            "one customer consents of seven",
            vec![measures("1.3")],
            vec![measures("1.2"), consent("weakening: min_tls_version, from: \"1.3\", to: \"1.2\"", "2026-09-01")],
            format!("min_tls_version: {}", all.replace("redwood-strand ", "")),
        ),
        ("a customer moves to observe", vec![], vec![observe.clone()], "enforcement: redwood-strand".to_owned()),
        (
            "a customer moves to observe and consents",
            vec![],
            vec![observe.clone(), consent("weakening: enforcement", "2026-09-01")],
            String::new(),
        ),
        (
            "the consent is of tomorrow",
            vec![],
            vec![observe.clone(), consent("weakening: enforcement", "2026-10-02")],
            "enforcement: redwood-strand".to_owned(),
        ),
        (
            "the consent is to something else",
            vec![],
            vec![observe, consent("weakening: decision_log", "2026-09-01")],
            "enforcement: redwood-strand".to_owned(),
        ),
        (
            "requests without a customer: nobody can consent",
            CUSTOMERS.iter().map(|id| set(&format!("customers/{id}/enforcement"), "enforce")).collect(),
            vec![set("defaults/enforcement", "observe"), consent("weakening: enforcement", "2026-09-01")],
            "default_enforcement: ".to_owned(),
        ),
        ("a purpose", vec![], vec![research.clone()], "customer_purpose: redwood-strand".to_owned()),
        (
            "a purpose that an instruction names",
            vec![],
            vec![research.clone(), instruction("ins-900", ", permits: {purposes: [internal_research]}")],
            String::new(),
        ),
        (
            "the instruction has ended",
            vec![],
            vec![
                research,
                instruction("ins-900", ", valid_until: 2026-06-30, permits: {purposes: [internal_research]}"),
            ],
            "customer_purpose: redwood-strand".to_owned(),
        ),
        (
            "a place",
            vec![],
            vec![places("source: instruction, ref: ins-001")],
            "access_location: redwood-strand".to_owned(),
        ),
        (
            "a place on another instruction",
            vec![],
            vec![places("source: instruction, ref: ins-900"), instruction("ins-900", "")],
            String::new(),
        ),
        (
            "a place on an instruction that is not there",
            vec![],
            vec![places("source: instruction, ref: ins-900")],
            "access_location: redwood-strand".to_owned(),
        ),
        (
            "a place that the agreement is said to have",
            vec![],
            vec![places("source: dpa, ref: ins-900"), instruction("ins-900", "")],
            "access_location: redwood-strand".to_owned(),
        ),
        (
            "more data for a subprocessor",
            vec![],
            vec![marketing.clone()],
            "subprocessor_data: redwood-strand".to_owned(),
        ),
        (
            "more data, with a consent",
            vec![],
            vec![marketing.clone(), consent("subprocessor: sp-09", "2026-09-01")],
            String::new(),
        ),
        (
            "more data, with an instruction",
            vec![],
            vec![marketing, instruction("ins-900", ", permits: {subprocessors: [sp-09]}")],
            String::new(),
        ),
        (
            "a caller within what is permitted",
            vec![],
            vec![set("callers/biller/permitted_purposes", "[billing_payment, customer_support]")],
            String::new(),
        ),
    ];
    let mut wrong = Vec::new();
    for (name, before, after, expected) in &table {
        let pair = Pair::of(before, after);
        let refused = refused(&diff(&pair.old, &pair.new, Some(now)), &pair.old, &pair.new, now);
        let got: Vec<String> =
            refused.iter().map(|it| format!("{}: {}", it.change.kind.as_str(), it.customers.join(" "))).collect();
        if got.join("\n") != *expected {
            wrong.push(format!("{name}: expected {expected:?}, got {got:?}"));
        }
        for it in &refused {
            assert!(yaml::read(&it.example, 0).is_ok() && !it.missing.is_empty(), "{name}: {}", it.example);
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert!(Pair::of(&nobody, &nobody).changes.is_empty());
}

/// The sample as it was agreed, and as somebody would change it, each with a customer in a file of its own.
pub(crate) fn agreed_and_next() -> Folder {
    let folder = Folder::new();
    let of_its_own = |enforcement: &str| {
        format!(
            "customers:\n  - id: {NEW_CUSTOMER}\n    legal_name: Birch Lake Fiber\n    dpa: {{version: \"3\", accepted_at: 2026-05-01, \
             contract_ref: MSA-0600}}\n    permitted_purposes: [base]\n    enforcement: {enforcement}\n"
        )
    };
    let files = "\ncustomer_files: [\"customers.d/*.yaml\"]\n";
    let changes = [
        ("revision: 12", "revision: 13"),
        ("legal_name: TicketRiver LLC", "legal_name: TicketRiver, Inc."),
        (
            "permitted_purposes: [base, customer_analytics, customer_marketing, quality_improvement]",
            "permitted_purposes: [base, customer_analytics, quality_improvement, internal_research]",
        ),
        (
            "  # No longer used. The entry stays",
            "  - id: sp-13\n    legal_name: Lampwick Support, Inc.\n    service: Help desk\n    \
             identities: [\"spiffe://lampwick.example/sa/desk\"]\n    permitted_purposes: [customer_support]\n    \
             data_categories: [user.name, user.contact]\n    storage_locations: [US-NV]\n    access_locations: [US-NV]\n    \
             agreement: {ref: SPA-2026-02, signed_on: 2026-06-01, flow_down: true}\n    effective_at: 2026-07-20\n\n  \
             # No longer used. The entry stays",
        ),
        (
            "{subprocessor: sp-09, effective_at: 2025-02-01, ref: OBJ-5}",
            "{subprocessor: sp-13, effective_at: 2026-06-10, ref: OBJ-7}",
        ),
    ];
    let next = changes.iter().fold(SAMPLE.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replacen(from, to, 1)
    });
    for (name, text, enforcement) in [("agreed", SAMPLE.to_owned(), "enforce"), ("next", next, "observe")] {
        std::fs::create_dir_all(folder.file(&format!("{name}/customers.d"))).unwrap();
        folder.write(&format!("{name}/policy.yaml"), &(text + files));
        folder.write(&format!("{name}/customers.d/birch-lake.yaml"), &of_its_own(enforcement));
    }
    folder.write("bad.yaml", "version: 1\nnonsense: true\n");
    folder.write(
        "requests.yaml",
        "\
version: 1
policy: next/policy.yaml
clock: 2026-07-21
services: {api: {storage_location: US-OR}}
defaults: {service: api, operation: retrieve, subscriber: 1a2b}
cases:
  - name: the help desk that is new
    request: {customer: redwood-strand, caller: sp-13, purpose: customer_support, data_categories: [user.contact]}
    expect: {decision: permit}
  - name: the help desk that is new, for who refuses it
    request: {customer: granite-notch, caller: sp-13, purpose: customer_support, data_categories: [user.contact]}
    expect: {decision: deny}
  - name: a campaign
    request: {customer: redwood-strand, caller: sp-09, purpose: customer_marketing, data_categories: [user.contact]}
    expect: {decision: deny}
  - name: the care desk looks at bills of somebody on observe
    request: {customer: birch-lake, caller: care-desk, purpose: billing_payment, data_categories: [user.contact]}
    expect: {decision: deny}
  - name: the care desk
    request: {customer: redwood-strand, caller: care-desk, purpose: customer_support, data_categories: [user.contact]}
    expect: {decision: permit}
  - name: about another policy
    amend: {metadata: {revision: 14}}
    request: {customer: redwood-strand, caller: care-desk, purpose: customer_support, data_categories: [user.contact]}
    expect: {decision: permit}
",
    );
    folder
}

/// A sentence as the name of its files, the arguments, the exit code; text and JSON.
#[test]
fn what_is_said_of_changes() {
    let folder = agreed_and_next();
    let table: [(&str, &[&str], i32); 5] = [
        ("a-change", &["diff", "agreed/policy.yaml", "next/policy.yaml", "--requests", "requests.yaml"], 1),
        ("the-way-back", &["diff", "next/policy.yaml", "agreed/policy.yaml", "--since", "2026-06-15"], 1),
        ("nothing-changed", &["diff", "agreed/policy.yaml", "agreed/policy.yaml"], 0),
        ("not-agreed", &["check", "next/policy.yaml", "--against", "agreed/policy.yaml", "--at", "2026-06-15"], 1),
        ("agreed", &["check", "agreed/policy.yaml", "--against", "agreed/policy.yaml", "--at", "2026-06-15"], 0),
    ];
    let mut wrong = Vec::new();
    for (name, arguments, expected) in table {
        let text = run(&folder.file("."), arguments);
        let json = run(&folder.file("."), &[arguments, &["-o", "json"]].concat());
        if (text.status.code(), json.status.code()) != (Some(expected), Some(expected)) {
            wrong.push(format!("{name}: {} {}: {}", text.status, json.status, err(&text)));
        }
        let parsed: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap_or_default();
        if parsed["schema_version"] != 1 {
            wrong.push(format!("{name}: no JSON"));
        }
        wrong.extend(as_golden(&format!("diff/{name}.txt"), &out(&text)));
        wrong.extend(as_golden(&format!("diff/{name}.json"), &out(&json)));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn exit_codes_of_diff() {
    let folder = agreed_and_next();
    let table: [(&str, &[&str], i32); 8] = [
        ("nothing weaker", &["diff", "agreed/policy.yaml", "agreed/policy.yaml"], 0),
        ("something weaker", &["diff", "agreed/policy.yaml", "next/policy.yaml"], 1),
        ("a bad policy", &["diff", "agreed/policy.yaml", "bad.yaml"], 2),
        ("a bad policy before", &["diff", "bad.yaml", "agreed/policy.yaml"], 2),
        ("no policy", &["diff", "nowhere.yaml", "agreed/policy.yaml"], 2),
        ("standard input twice", &["diff", "-", "-"], 2),
        ("requests that are none", &["diff", "agreed/policy.yaml", "next/policy.yaml", "--requests", "bad.yaml"], 2),
        ("a bad baseline", &["check", "agreed/policy.yaml", "--against", "bad.yaml"], 2),
    ];
    for (name, arguments, expected) in table {
        let output = run(&folder.file("."), arguments);
        assert_eq!(output.status.code(), Some(expected), "{name}: {}{}", out(&output), err(&output));
        assert_eq!(expected == 2, out(&output).is_empty(), "{name}: talk goes to standard error");
    }
    let policy = std::fs::File::open(repository("config/policy.yaml")).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_dpa-sidecar"))
        .args(["diff", "-", repository("config/policy.yaml").to_str().unwrap()])
        .stdin(policy)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}{}", out(&output), err(&output));
}

#[test]
fn each_kind_is_in_the_documentation() {
    let text = std::fs::read_to_string(repository("docs/change-a-policy.md")).unwrap();
    let missing: Vec<_> =
        Kind::ALL.iter().filter(|kind| !text.contains(&format!("\n| `{}` | ", kind.as_str()))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
