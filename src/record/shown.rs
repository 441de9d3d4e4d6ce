//! What a record shows of the facts of a request: words of the policy or the settings, and reasons and lengths of
//! what is not known.

use schemars::JsonSchema;
use serde::Serialize;

use crate::decide::facts::Caller;
use crate::decide::facts::Carrier;
use crate::decide::facts::Customers;
use crate::decide::facts::Direction;
use crate::decide::facts::Fact;
use crate::decide::facts::Facts;
use crate::decide::facts::Flaw;
use crate::decide::facts::Scope;
use crate::decide::facts::Source;
use crate::decide::facts::Why;
use crate::policy::Party;
use crate::policy::Policy;
use crate::policy::terms::Identity;
use crate::policy::terms::Location;

#[derive(Serialize, JsonSchema)]
pub(super) struct Recipient<'a> {
    /// Who that is to the processor.
    #[schemars(extend("enum" = ["internal", "subprocessor", "customer", "third_party"]))]
    r#type: &'static str,
    /// Its id.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Places {
    /// Where the data is kept.
    storage: String,
    /// From where the caller reaches it; several with blanks between.
    #[serde(skip_serializing_if = "Option::is_none")]
    access: Option<String>,
    /// From where the recipient does, if the service sends it out.
    #[serde(skip_serializing_if = "Option::is_none")]
    recipient: Option<String>,
}

impl Places {
    /// Those of a request.
    pub(super) fn of(facts: &Facts<'_>, policy: &Policy) -> Self {
        Self {
            storage: words(&[facts.storage]),
            access: access(facts, policy),
            recipient: recipient_places(facts, policy),
        }
    }
}

#[derive(Serialize, JsonSchema)]
pub(super) struct TransportRecord<'a> {
    /// The TLS version of the connection.
    #[schemars(extend("enum" = ["none", "unix", "1.2", "1.3"]))]
    tls_version: &'static str,
    /// Where the identity comes from.
    #[schemars(extend("enum" = ["none", "certificate", "token", "forwarded_certificate", "header"]))]
    proof: &'static str,
    /// Whether a client certificate was proven on the connection itself; only with TLS and another proof.
    #[serde(skip_serializing_if = "Option::is_none")]
    client_certificate: Option<bool>,
    /// The peer, if it is one of the `trusted_peers`: the SPIFFE ID or `dns:` name that its own certificate proves,
    /// or `address`, if it is listed with its address.
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<&'a str>,
    /// There if a header named a caller and came from a peer whose word is not taken for it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    unproven: bool,
}

#[derive(Default, Serialize, JsonSchema)]
pub(super) struct Sources {
    /// Of the caller.
    #[schemars(with = "Option<Source>")]
    #[serde(skip_serializing_if = "Option::is_none")]
    caller: Option<&'static str>,
    /// Of the customer.
    #[schemars(with = "Option<Source>")]
    #[serde(skip_serializing_if = "Option::is_none")]
    customer: Option<&'static str>,
    /// Of the purpose.
    #[schemars(with = "Option<Source>")]
    #[serde(skip_serializing_if = "Option::is_none")]
    purpose: Option<&'static str>,
    /// Of the operation.
    #[schemars(with = "Option<Source>")]
    #[serde(skip_serializing_if = "Option::is_none")]
    operation: Option<&'static str>,
    /// Of the subscriber.
    #[schemars(with = "Option<Source>")]
    #[serde(skip_serializing_if = "Option::is_none")]
    subscriber: Option<&'static str>,
    /// Of the instruction.
    #[schemars(with = "Option<Source>")]
    #[serde(skip_serializing_if = "Option::is_none")]
    instruction: Option<&'static str>,
    /// Of the reference of a request.
    #[schemars(with = "Option<Source>")]
    #[serde(skip_serializing_if = "Option::is_none")]
    request_ref: Option<&'static str>,
    /// Of the location.
    #[schemars(with = "Option<Source>")]
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<&'static str>,
}

/// Facts that are needed and not known, each with why.
#[derive(Default, Serialize, JsonSchema)]
pub(super) struct Unknowns {
    /// The caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    caller: Option<Unknown>,
    /// The customer.
    #[serde(skip_serializing_if = "Option::is_none")]
    customer: Option<Unknown>,
    /// The purpose.
    #[serde(skip_serializing_if = "Option::is_none")]
    purpose: Option<Unknown>,
    /// The operation.
    #[serde(skip_serializing_if = "Option::is_none")]
    operation: Option<Unknown>,
    /// The subscriber.
    #[serde(skip_serializing_if = "Option::is_none")]
    subscriber: Option<Unknown>,
    /// The instruction.
    #[serde(skip_serializing_if = "Option::is_none")]
    instruction: Option<Unknown>,
    /// Where the caller is, if a claim has to say so.
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<Unknown>,
}

impl Unknowns {
    /// Those of a request.
    pub(super) fn of(facts: &Facts<'_>, policy: &Policy) -> Self {
        Self {
            caller: Unknown::of(&facts.caller).filter(|_| facts.scope != Scope::Outside),
            customer: Unknown::of(&facts.customers),
            purpose: Unknown::of(&facts.purpose),
            operation: Unknown::of(&facts.operation),
            subscriber: Unknown::of(&facts.subscriber),
            instruction: Unknown::of(&facts.instruction),
            location: Unknown::of(&facts.location)
                .filter(|_| facts.scope == Scope::Within && is_location_claimed(facts, policy)),
        }
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        let Self { caller, customer, purpose, operation, subscriber, instruction, location } = self;
        [caller, customer, purpose, operation, subscriber, instruction, location]
            .iter()
            .all(|unknown| unknown.is_none())
    }
}

/// Every word of [`Why`].
fn whys() -> Vec<&'static str> {
    let plain = [Why::Missing, Why::NotInPolicy { length: 0 }, Why::Malformed, Why::Unproven, Why::Contradicted];
    plain.into_iter().chain(Flaw::ALL.map(Why::Flawed)).map(Why::as_str).collect()
}

#[derive(Serialize, JsonSchema)]
struct Unknown {
    /// Why it is not known.
    #[schemars(extend("enum" = whys()))]
    why: &'static str,
    /// Bytes of a value that the policy does not have; the value itself is never recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    length: Option<usize>,
}

impl Unknown {
    fn of<T>(fact: &Fact<T>) -> Option<Self> {
        match fact {
            Fact::Known(..) | Fact::None => None,
            Fact::Unknown(why) => Some(Self {
                why: why.as_str(),
                length: match why {
                    Why::NotInPolicy { length } => Some(*length),
                    Why::Missing | Why::Malformed | Why::Unproven | Why::Contradicted | Why::Flawed(_) => None,
                },
            }),
        }
    }
}
/// Who sent the request, as a word that may be logged: a party's id, or the SPIFFE ID of a third party.
pub(super) fn caller_id<'a>(caller: &'a Caller, policy: &'a Policy) -> Option<&'a str> {
    match caller.party {
        Some(Party::Own(id)) => policy.caller(id).map(|caller| caller.id.as_str()),
        Some(Party::Subprocessor(id)) => policy.subprocessor(id).map(|entry| entry.id.as_str()),
        Some(Party::Customer(id)) => policy.customer(id).map(|customer| customer.id.as_str()),
        None => caller.identity.as_ref().filter(|identity| identity.is_spiffe()).map(Identity::as_str),
    }
}

/// What the policy lists a party's identity as: a word of the policy, never more of what was proven.
pub(super) fn listed_identity<'a>(caller: &'a Caller, policy: &'a Policy) -> Option<&'a str> {
    caller.party?;
    caller.identity.as_ref().and_then(|identity| policy.listed_as(identity)).map(Identity::as_str)
}

/// How many customers a request names, if more than one.
pub(super) fn customers_named(facts: &Facts<'_>) -> Option<usize> {
    match facts.customers.known()? {
        Customers::One(_) => None,
        Customers::Several { known, unknown } => Some(known.len() + unknown),
    }
}

pub(super) fn recipient<'a>(facts: &'a Facts<'_>, policy: &'a Policy) -> Option<Recipient<'a>> {
    Some(match facts.direction {
        Direction::Egress(id) => {
            Recipient { r#type: "subprocessor", id: policy.subprocessor(id).map(|entry| entry.id.as_str()) }
        }
        Direction::EgressToNobody => Recipient { r#type: "third_party", id: None },
        Direction::Ingress => {
            let caller = facts.caller.known()?;
            let kind = match caller.party {
                Some(Party::Own(_)) => "internal",
                Some(Party::Subprocessor(_)) => "subprocessor",
                Some(Party::Customer(_)) => "customer",
                None => "third_party",
            };
            Recipient { r#type: kind, id: caller_id(caller, policy) }
        }
    })
}

/// Where the caller is: by the policy, or by its claim.
fn access(facts: &Facts<'_>, policy: &Policy) -> Option<String> {
    match facts.caller.known()?.party? {
        Party::Own(id) => {
            let location = policy.caller(id)?.location.or(facts.location.known().copied())?;
            Some(words(&[location]))
        }
        Party::Subprocessor(id) => Some(words(&policy.subprocessor(id)?.access_locations)),
        Party::Customer(_) => None,
    }
}

/// Where the recipient of what the service sends reaches it from.
fn recipient_places(facts: &Facts<'_>, policy: &Policy) -> Option<String> {
    match facts.direction {
        Direction::Egress(id) => policy.subprocessor(id).map(|entry| words(&entry.access_locations)),
        Direction::Ingress | Direction::EgressToNobody => None,
    }
}

fn words(places: &[Location]) -> String {
    let mut text = String::with_capacity(places.len() * 7);
    for place in places {
        if !text.is_empty() {
            text.push(' ');
        }
        place.write(&mut text);
    }
    text
}

/// Whether a claim says where the caller is: only for callers of the processor's own whose entry does not.
fn is_location_claimed(facts: &Facts<'_>, policy: &Policy) -> bool {
    match facts.caller.known().and_then(|caller| caller.party) {
        Some(Party::Own(id)) => policy.caller(id).is_some_and(|caller| caller.location.is_none()),
        Some(Party::Subprocessor(_) | Party::Customer(_)) | None => false,
    }
}

pub(super) fn sources(facts: &Facts<'_>, policy: &Policy) -> Sources {
    let word = |source: Option<Source>| source.map(Source::as_str);
    Sources {
        caller: word(facts.caller.source()),
        customer: word(facts.customers.source()),
        purpose: word(facts.purpose.source()),
        operation: word(facts.operation.source()),
        subscriber: word(facts.subscriber.source()),
        instruction: word(facts.instruction.source()),
        request_ref: word(facts.request_ref.source()),
        location: word(facts.location.source().filter(|_| is_location_claimed(facts, policy))),
    }
}

pub(super) fn transport<'a>(facts: &'a Facts<'_>) -> TransportRecord<'a> {
    let tls_version = match (facts.transport.tls, facts.transport.is_unix) {
        (Some(version), _) => version.as_str(),
        (None, true) => "unix",
        (None, false) => "none",
    };
    TransportRecord {
        tls_version,
        proof: facts.caller.source().map_or("none", Source::as_str),
        // One that is the proof was there.
        client_certificate: (facts.transport.tls.is_some() && facts.caller.source() != Some(Source::Certificate))
            .then_some(facts.transport.client_certificate),
        peer: facts.carried.by.as_ref().map(Carrier::as_str),
        unproven: facts.carried.has_unproven,
    }
}
