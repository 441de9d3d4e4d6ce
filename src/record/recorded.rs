//! What the record of a decision says, and the facts that it was made of.
//!
//! A record holds what a request was about by the names of the policy of its time. Another policy may know a name that
//! was unknown then, or ask for what no rule asked for then. Nothing is guessed: such a fact has every value that it
//! may have had, and who decides again has to decide with each of them.

use std::borrow::Cow;
use std::fmt;

use jiff::Timestamp;
use serde::Deserialize;
use serde::Deserializer;
use serde::de;
use uuid::Uuid;

use super::entry::POLICY_STALE;
use super::entry::REQUEST_UNREADABLE;
use crate::decide::decision::Authority;
use crate::decide::facts::Caller;
use crate::decide::facts::Carried;
use crate::decide::facts::Customers;
use crate::decide::facts::Direction;
use crate::decide::facts::Fact;
use crate::decide::facts::Facts;
use crate::decide::facts::Scope;
use crate::decide::facts::Source;
use crate::decide::facts::Transport;
use crate::decide::facts::Why;
use crate::decide::is_exempt_of_restrictions;
use crate::decide::reason::Class;
use crate::decide::reason::Code;
use crate::policy::Customer;
use crate::policy::Enforcement;
use crate::policy::Party;
use crate::policy::Policy;
use crate::policy::PurposeId;
use crate::policy::TlsVersion;
use crate::policy::terms::DataCategory;
use crate::policy::terms::Id;
use crate::policy::terms::Identity;
use crate::policy::terms::Location;
use crate::policy::terms::Operation;

/// How the record of a decision begins.
pub const DECISION: &[u8] = b"{\"event\":\"dpa.decision\"";

/// Most facts that a record is tried with. One that leaves more open is not decided.
const MOST_TRIED: usize = 64;

/// A text of a record, as it stands in the line unless it has escapes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Word<'l>(Cow<'l, str>);

impl Word<'_> {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de: 'l, 'l> Deserialize<'de> for Word<'l> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> de::Visitor<'de> for Text {
            type Value = Word<'de>;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a text")
            }
            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Word<'de>, E> {
                Ok(Word(Cow::Borrowed(text)))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Word<'de>, E> {
                Ok(Word(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// What is read of a `dpa.decision` record.
#[derive(Debug, Deserialize)]
pub struct Recorded<'l> {
    /// Which kind of record.
    #[serde(borrow)]
    pub event: Word<'l>,
    /// When the request was seen, RFC 3339.
    #[serde(default)]
    pub time: Word<'l>,
    /// The decision's id.
    pub decision_id: Option<Uuid>,
    /// `permit` or `deny`.
    #[serde(default)]
    pub decision: Word<'l>,
    /// `allowed`, `denied` or `observed`.
    #[serde(default)]
    pub action: Word<'l>,
    /// Whether a denial blocked.
    #[serde(default)]
    pub enforcement: Word<'l>,
    /// `sidecar`, if the sidecar as a whole observed.
    pub observed_by: Option<Word<'l>>,
    /// On what a permit rested.
    pub authority: Option<Word<'l>>,
    /// The transfer that it needed.
    pub transfer_ref: Option<Word<'l>>,
    /// The first reason of a denial.
    pub reason: Option<Word<'l>>,
    /// All of them.
    #[serde(default)]
    pub reasons: Vec<RecordedReason<'l>>,
    /// The customer.
    pub customer_id: Option<Word<'l>>,
    /// How many customers were named, if more than one.
    pub customers: Option<usize>,
    /// The caller: a party's id, or a SPIFFE ID.
    pub caller_id: Option<Word<'l>>,
    /// What a party's identity was listed as.
    pub caller_identity: Option<Word<'l>>,
    /// Who got the data.
    pub recipient: Option<RecordedRecipient<'l>>,
    /// What for.
    pub purpose: Option<Word<'l>>,
    /// Doing what.
    pub operation: Option<Word<'l>>,
    /// With which data.
    #[serde(default)]
    pub data_categories: Vec<Word<'l>>,
    /// The instruction, if it was the customer's.
    pub instruction_id: Option<Word<'l>>,
    /// The reference of a subscriber's request.
    pub request_ref: Option<Word<'l>>,
    /// Where data was kept, and from where it was reached.
    pub location: Option<RecordedPlaces<'l>>,
    /// How the caller came.
    pub transport: Option<RecordedTransport<'l>>,
    /// The template of the route.
    pub route: Option<Word<'l>>,
    /// Where each known fact came from.
    #[serde(default)]
    pub sources: RecordedSources<'l>,
    /// Why a fact was not known.
    #[serde(default)]
    pub unknown: RecordedUnknowns<'l>,
    /// The policy that decided.
    pub policy: Option<RecordedPolicy<'l>>,
}

/// A rule that did not hold.
#[derive(Debug, Deserialize)]
pub struct RecordedReason<'l> {
    /// Its code.
    #[serde(borrow)]
    pub code: Word<'l>,
    /// The clause.
    pub clause: Word<'l>,
    /// The obligation.
    pub obligation: Word<'l>,
    /// `violation` or `gap`.
    pub kind: Word<'l>,
}

/// Who got the data.
#[derive(Debug, Deserialize)]
pub struct RecordedRecipient<'l> {
    /// Who that was to the processor.
    #[serde(borrow)]
    pub r#type: Word<'l>,
    /// Its id.
    pub id: Option<Word<'l>>,
}

/// Where data was kept, and from where it was reached.
#[derive(Debug, Deserialize)]
pub struct RecordedPlaces<'l> {
    /// Where the service kept it.
    #[serde(borrow)]
    pub storage: Word<'l>,
    /// From where the caller reached it.
    pub access: Option<Word<'l>>,
    /// From where the recipient reached it.
    pub recipient: Option<Word<'l>>,
}

/// How the caller came.
#[derive(Debug, Deserialize)]
pub struct RecordedTransport<'l> {
    /// `none`, `unix`, `1.2` or `1.3`.
    #[serde(borrow)]
    pub tls_version: Word<'l>,
    /// What proved the caller.
    #[serde(default)]
    pub proof: Word<'l>,
    /// Whether a client certificate was proven on the connection itself.
    pub client_certificate: Option<bool>,
}

/// Where each known fact came from.
#[derive(Debug, Default, Deserialize)]
pub struct RecordedSources<'l> {
    /// Of the caller.
    #[serde(borrow)]
    pub caller: Option<Word<'l>>,
    /// Of the customer.
    pub customer: Option<Word<'l>>,
    /// Of the purpose.
    pub purpose: Option<Word<'l>>,
    /// Of the operation.
    pub operation: Option<Word<'l>>,
    /// Of the subscriber.
    pub subscriber: Option<Word<'l>>,
    /// Of the instruction.
    pub instruction: Option<Word<'l>>,
    /// Of the reference of a request.
    pub request_ref: Option<Word<'l>>,
    /// Of the location that a claim says.
    pub location: Option<Word<'l>>,
}

/// Why a fact was not known.
#[derive(Debug, Default, Deserialize)]
pub struct RecordedUnknowns<'l> {
    /// The caller.
    #[serde(borrow)]
    pub caller: Option<RecordedUnknown<'l>>,
    /// The customer.
    pub customer: Option<RecordedUnknown<'l>>,
    /// The purpose.
    pub purpose: Option<RecordedUnknown<'l>>,
    /// The operation.
    pub operation: Option<RecordedUnknown<'l>>,
    /// The subscriber.
    pub subscriber: Option<RecordedUnknown<'l>>,
    /// The instruction.
    pub instruction: Option<RecordedUnknown<'l>>,
    /// Where the caller is.
    pub location: Option<RecordedUnknown<'l>>,
}

/// Why one fact was not known.
#[derive(Debug, Deserialize)]
pub struct RecordedUnknown<'l> {
    /// The word for it.
    #[serde(borrow)]
    pub why: Word<'l>,
    /// Bytes of a name that the policy did not have.
    pub length: Option<usize>,
}

/// The policy that decided.
#[derive(Debug, Deserialize)]
pub struct RecordedPolicy<'l> {
    /// Its name.
    #[serde(borrow, default)]
    pub name: Word<'l>,
    /// Its revision.
    #[serde(default)]
    pub revision: u64,
    /// The digest of its files.
    pub digest: Word<'l>,
}

/// A fact that a record does not tell, and that another policy asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lack {
    /// Whose identity the caller's is now.
    Caller,
    /// To whom the service sent it: the policy of then did not have the name.
    Recipient,
    /// A name that the policy of then did not have.
    Customer,
    /// A name that the policy of then did not have.
    Purpose,
    /// A name that the policy of then did not have for this customer.
    Instruction,
    /// Subscribers are never recorded, and an instruction restricts one.
    Subscriber,
    /// What a claim said of the caller's place: nothing asked for it.
    Location,
    /// Whether there was one on the connection.
    ClientCertificate,
}

impl Lack {
    /// The word in outputs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Recipient => "recipient",
            Self::Customer => "customer",
            Self::Purpose => "purpose",
            Self::Instruction => "instruction",
            Self::Subscriber => "subscriber",
            Self::Location => "location",
            Self::ClientCertificate => "client_certificate",
        }
    }

    /// What a record does not say, for people.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Caller => "whose the caller's identity is in this policy: the record does not have the identity",
            Self::Recipient => "to whom it was sent: the policy of then had no such subprocessor, and this one may",
            Self::Customer => "which customer was named: the policy of then had no such one, and this one may",
            Self::Purpose => "which purpose was named: the policy of then had no such one, and this one may",
            Self::Instruction => "which instruction was named: the policy of then had no such one, and this one may",
            Self::Subscriber => "which subscriber: none is ever recorded, and this policy restricts one",
            Self::Location => "where a claim said the caller is: the policy of then did not ask",
            Self::ClientCertificate => "whether the connection had a client certificate",
        }
    }
}

/// Why a record cannot be decided again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Undecidable {
    /// It says something that no record of this version says.
    Unreadable,
    /// It leaves more open than is tried.
    Lacks(Vec<Lack>),
}

/// The facts of a request, as far as its record tells them.
#[derive(Debug)]
pub struct Possible<'a> {
    /// One of these; never empty.
    pub facts: Vec<Facts<'a>>,
    /// What they differ in.
    pub lacks: Vec<Lack>,
}

impl Recorded<'_> {
    /// Whether the service sent it: then the settings say who calls, and nothing else does.
    #[must_use]
    pub fn is_egress(&self) -> bool {
        let is_named = self.sources.caller.as_ref().is_some_and(|source| source.as_str() == Source::Settings.as_str());
        // On ingress, nobody gets anything where nobody is proven.
        is_named || self.recipient.is_some() && self.sources.caller.is_none() && self.unknown.caller.is_some()
    }

    /// Whether no rule of any policy was asked: it was refused with 400, or its route is outside the agreement.
    #[must_use]
    pub fn is_unweighed(&self) -> bool {
        self.reason.as_ref().is_some_and(|reason| reason.as_str() == REQUEST_UNREADABLE)
            || self.authority.as_ref().is_some_and(|it| it.as_str() == Authority::OutOfScope.as_str())
    }

    /// The reason of a denial that no rule gave: a service reason such as `policy_stale`, or one that this version does
    /// not know. It says nothing of the policy.
    #[must_use]
    pub fn service_reason(&self) -> Option<&str> {
        let reason = self.reason.as_ref().filter(|_| self.decision.as_str() == "deny")?.as_str();
        (!is_rule(reason) && reason != REQUEST_UNREADABLE).then_some(reason)
    }

    /// The first rule that did not hold then, beside a service reason, if any did not; `None` if the record does not
    /// tell. Behind `policy_stale` stand the reasons of all rules; behind no other service reason does anybody say so.
    #[must_use]
    pub fn rules_behind(&self) -> Option<Option<&str>> {
        let (stale, rules) = self.reasons.split_first()?;
        let is_told = self.service_reason() == Some(POLICY_STALE)
            && stale.code.as_str() == POLICY_STALE
            && rules.iter().all(|reason| is_rule(reason.code.as_str()));
        is_told.then(|| rules.first().map(|reason| reason.code.as_str()))
    }

    /// Whether these are the files that decided then.
    #[must_use]
    pub fn is_by(&self, policy: &Policy) -> bool {
        self.policy.as_ref().is_some_and(|then| then.digest.as_str() == &*policy.digest)
    }

    /// When the request was seen.
    ///
    /// # Errors
    ///
    /// [`Undecidable::Unreadable`].
    pub fn at(&self) -> Result<Timestamp, Undecidable> {
        self.time.as_str().parse().map_err(|_| Undecidable::Unreadable)
    }

    /// The data that it was about.
    ///
    /// # Errors
    ///
    /// [`Undecidable::Unreadable`].
    pub fn data(&self) -> Result<Vec<DataCategory>, Undecidable> {
        self.data_categories.iter().map(|data| data.as_str().parse().map_err(|_| Undecidable::Unreadable)).collect()
    }

    /// The facts of the request, in the terms of this policy, at the moment `now`. `others` are the further records of
    /// the same decision: one for each further customer. `then` is the policy that decided, if it is at hand: a name
    /// that it has is none that was unknown to it, and whom it restricts it knew.
    ///
    /// # Errors
    ///
    /// [`Undecidable`].
    pub fn facts<'a>(
        &'a self,
        others: &[Recorded<'_>],
        data_categories: &'a [DataCategory],
        policy: &Policy,
        then: Option<&Policy>,
        now: Timestamp,
    ) -> Result<Possible<'a>, Undecidable> {
        let then = if self.is_by(policy) { Some(policy) } else { then.filter(|then| self.is_by(then)) };
        if self.customers.is_none() && !others.is_empty() {
            return Err(Undecidable::Lacks(vec![Lack::Customer]));
        }
        let is_egress = self.is_egress();
        let transport = self.transport.as_ref().ok_or(Undecidable::Unreadable)?;
        let scope = if self.location.is_some() { Scope::Within } else { Scope::Unmapped };
        let storage = match &self.location {
            Some(places) => places.storage.as_str(),
            // Nobody asks for it where there is no route.
            None => "US",
        };
        let operation = self.operation.as_ref().map(|word| {
            let operation = Operation::ALL.into_iter().find(|operation| operation.as_str() == word.as_str());
            operation.ok_or(Undecidable::Unreadable)
        });
        let base = Facts {
            direction: Direction::Ingress,
            transport: Transport {
                tls: match transport.tls_version.as_str() {
                    "1.2" => Some(TlsVersion::V1_2),
                    "1.3" => Some(TlsVersion::V1_3),
                    "none" | "unix" => None,
                    _ => return Err(Undecidable::Unreadable),
                },
                client_certificate: false,
                is_unix: transport.tls_version.as_str() == "unix",
            },
            carried: Carried::default(),
            caller: Fact::Unknown(Why::Missing),
            scope,
            route: self.route.as_ref().map(Word::as_str),
            route_place: None,
            customers: Fact::None,
            purpose: Fact::None,
            operation: match operation.transpose()? {
                Some(operation) => Fact::Known(operation, Source::Route),
                None => Fact::Unknown(Why::Missing),
            },
            data_categories,
            subscriber: Fact::None,
            instruction: Fact::None,
            request_ref: match &self.request_ref {
                Some(reference) => Fact::Known(reference.as_str().to_owned(), Source::Context),
                None => Fact::None,
            },
            location: Fact::Unknown(Why::Missing),
            storage: storage.parse().map_err(|_| Undecidable::Unreadable)?,
        };
        let mut possible = Possible { facts: vec![base], lacks: Vec::new() };
        if is_egress {
            let to = self.directions(policy, then)?;
            possible.spread(Lack::Recipient, |_| to.clone(), |facts, to| facts.direction = to)?;
        }
        let certificates = self.certificates(transport, policy);
        let certify = |facts: &mut Facts<'a>, is_there| facts.transport.client_certificate = is_there;
        possible.spread(Lack::ClientCertificate, |_| certificates.clone(), certify)?;
        let callers = self.callers(is_egress, policy, then)?;
        possible.spread(Lack::Caller, |_| callers.clone(), |facts, caller| facts.caller = caller)?;
        if scope == Scope::Unmapped {
            return Ok(possible);
        }
        let customers = self.customers(others, policy, then);
        possible.spread(Lack::Customer, |_| customers.clone(), |facts, customers| facts.customers = customers)?;
        let purposes = self.purposes(policy, then);
        possible.spread(Lack::Purpose, |_| purposes.clone(), |facts, purpose| facts.purpose = purpose)?;
        let instructions = |facts: &Facts<'_>| self.instructions(facts, policy, then);
        possible.spread(Lack::Instruction, instructions, |facts, instruction| facts.instruction = instruction)?;
        let subscribers = |facts: &Facts<'_>| self.subscribers(facts, policy, then, now);
        possible.spread(Lack::Subscriber, subscribers, |facts, subscriber| facts.subscriber = subscriber)?;
        let claimed = self.claimed()?;
        let locations = |facts: &Facts<'_>| match claimed {
            Some(place) => vec![Fact::Known(place, Source::Claim)],
            None if is_egress => vec![Fact::Unknown(Why::Missing)],
            None => self.locations(facts, policy),
        };
        possible.spread(Lack::Location, locations, |facts, location| facts.location = location)?;
        Ok(possible)
    }

    fn directions(&self, policy: &Policy, then: Option<&Policy>) -> Result<Vec<Direction>, Undecidable> {
        let recipient = self.recipient.as_ref().ok_or(Undecidable::Unreadable)?;
        let to = |name: &str| policy.subprocessor_named(name).map_or(Direction::EgressToNobody, Direction::Egress);
        Ok(match &recipient.id {
            Some(id) => vec![to(id.as_str())],
            None => {
                let is_known = |id: &&Id| then.is_some_and(|then| then.subprocessor_named(id.as_str()).is_some());
                let names = policy.subprocessor_names().filter(|id| !is_known(id)).take(MOST_TRIED);
                names.map(|id| to(id.as_str())).chain([Direction::EgressToNobody]).collect()
            }
        })
    }

    fn certificates(&self, transport: &RecordedTransport<'_>, policy: &Policy) -> Vec<bool> {
        let is_proof = transport.proof.as_str() == Source::Certificate.as_str();
        let has_tls = !matches!(transport.tls_version.as_str(), "none" | "unix");
        match transport.client_certificate {
            _ if is_proof => vec![true],
            Some(is_there) => vec![is_there],
            None if has_tls && policy.security.client_certificate_required => vec![false, true],
            None => vec![false],
        }
    }

    /// Who the caller is in this policy.
    fn callers(
        &self,
        is_egress: bool,
        policy: &Policy,
        then: Option<&Policy>,
    ) -> Result<Vec<Fact<Caller>>, Undecidable> {
        let known = |party: Option<Party>| Fact::Known(Caller { identity: None, party }, Source::Settings);
        let unknown = || Fact::Unknown(Why::Missing);
        let id = self.caller_id.as_ref().map(Word::as_str);
        if self.sources.caller.is_none() {
            let length = self.unknown.caller.as_ref().and_then(|unknown| unknown.length).filter(|_| is_egress);
            let is_known = |name: &str| then.is_some_and(|then| then.caller_named(name).is_some());
            let names = names_of(length, policy.caller_names(), is_known);
            let callers = names.filter_map(|name| policy.caller_named(name)).map(|id| known(Some(Party::Own(id))));
            return Ok([unknown()].into_iter().chain(callers).collect());
        }
        if is_egress {
            let caller = id.and_then(|id| policy.caller_named(id));
            return Ok(vec![caller.map_or_else(unknown, |id| known(Some(Party::Own(id))))]);
        }
        let parsed = |text: &str| text.parse::<Identity>().map_err(|_| Undecidable::Unreadable);
        let kind = self.recipient.as_ref().map(|recipient| recipient.r#type.as_str());
        let parties = match (&self.caller_identity, kind, id) {
            (Some(identity), _, _) => policy.parties_of(&parsed(identity.as_str())?),
            (None, Some("third_party"), Some(identity)) => vec![policy.party(&parsed(identity)?)],
            (None, Some("third_party"), None) => {
                // A name that is no SPIFFE ID is not recorded.
                let is_known = |identity: &Identity| then.is_some_and(|then| then.party(identity).is_some());
                let mut parties = vec![None];
                for (_, party) in policy.all_identities().filter(|(it, _)| !it.is_spiffe() && !is_known(it)) {
                    if !parties.contains(&Some(party)) && parties.len() <= MOST_TRIED {
                        parties.push(Some(party));
                    }
                }
                parties
            }
            (None, Some(kind), Some(id)) if self.is_by(policy) => vec![match kind {
                "internal" => policy.caller_named(id).map(Party::Own),
                "subprocessor" => policy.subprocessor_named(id).map(Party::Subprocessor),
                "customer" => policy.customer_named(id).map(Party::Customer),
                _ => return Err(Undecidable::Unreadable),
            }],
            (None, Some(_), Some(_)) => return Err(Undecidable::Lacks(vec![Lack::Caller])),
            (None, _, _) => return Err(Undecidable::Unreadable),
        };
        Ok(parties.into_iter().map(known).collect())
    }

    fn customers(&self, others: &[Recorded<'_>], policy: &Policy, then: Option<&Policy>) -> Vec<Fact<Customers>> {
        let fact = |customers| Fact::Known(customers, Source::Context);
        if let Some(count) = self.customers {
            let ids = || std::iter::once(self).chain(others).filter_map(|record| record.customer_id.as_ref());
            let known: Vec<_> = ids().filter_map(|id| policy.customer_named(id.as_str())).collect();
            let unknown = count.saturating_sub(known.len());
            let nameless = count.saturating_sub(ids().count());
            let mut all = vec![fact(Customers::Several { known: known.clone(), unknown })];
            if nameless == 0 {
                return all;
            }
            // Names that were unknown then may be customers of this policy. Rules ask only whether all are known, and
            // whether all are observed.
            let is_new = |id: &&Id| then.is_none_or(|then| then.customer_named(id.as_str()).is_none());
            for enforcement in [Enforcement::Enforce, Enforcement::Observe] {
                let some = policy.customer_names().filter(is_new).filter_map(|id| policy.customer_named(id.as_str()));
                let is_such = |id: &_| policy.customer(*id).is_some_and(|customer| customer.enforcement == enforcement);
                let Some(one) = some.filter(|id| !known.contains(id)).find(is_such) else { continue };
                let more = || known.iter().copied().chain([one]).collect();
                all.push(fact(Customers::Several { known: more(), unknown: unknown.saturating_sub(nameless) }));
                all.push(fact(Customers::Several { known: more(), unknown: unknown.saturating_sub(1) }));
            }
            return all;
        }
        if let Some(id) = &self.customer_id {
            let length = id.as_str().len();
            return vec![match policy.customer_named(id.as_str()) {
                Some(id) => fact(Customers::One(id)),
                None => Fact::Unknown(Why::NotInPolicy { length }),
            }];
        }
        let unknown = self.unknown.customer.as_ref();
        let is_known = |name: &str| then.is_some_and(|then| then.customer_named(name).is_some());
        let names = names_of(unknown.and_then(|it| it.length), policy.customer_names(), is_known);
        let customers = names.filter_map(|name| policy.customer_named(name)).map(|id| fact(Customers::One(id)));
        [Fact::Unknown(why(unknown))].into_iter().chain(customers).collect()
    }

    fn purposes(&self, policy: &Policy, then: Option<&Policy>) -> Vec<Fact<PurposeId>> {
        if let Some(name) = &self.purpose {
            let length = name.as_str().len();
            return vec![match policy.purpose_named(name.as_str()) {
                Some(id) => Fact::Known(id, Source::Context),
                None => Fact::Unknown(Why::NotInPolicy { length }),
            }];
        }
        let unknown = self.unknown.purpose.as_ref();
        let is_known = |name: &str| then.is_some_and(|then| then.purpose_named(name).is_some());
        let names = names_of(unknown.and_then(|it| it.length), policy.purpose_names(), is_known);
        let purposes = names.filter_map(|name| policy.purpose_named(name)).map(|id| Fact::Known(id, Source::Context));
        [Fact::Unknown(why(unknown))].into_iter().chain(purposes).collect()
    }

    fn instructions(&self, facts: &Facts<'_>, policy: &Policy, then: Option<&Policy>) -> Vec<Fact<usize>> {
        let all = one(facts, policy).map_or(&[][..], |customer| &customer.instructions);
        let place = |name: &str| all.iter().position(|instruction| instruction.id.as_str() == name);
        let fact = |place: Option<usize>, length| match place {
            Some(place) => Fact::Known(place, Source::Context),
            None => Fact::Unknown(Why::NotInPolicy { length }),
        };
        match (&self.instruction_id, &self.unknown.instruction) {
            (Some(name), _) => vec![fact(place(name.as_str()), name.as_str().len())],
            (None, None) => vec![Fact::None],
            (None, Some(unknown)) => {
                // What was not this customer's then may have been nobody's.
                let before = self.customer_then(then).map(|customer| &customer.instructions);
                let is_known = |name: &str| before.is_some_and(|all| all.iter().any(|it| it.id.as_str() == name));
                let names = names_of(unknown.length, all.iter().map(|instruction| &instruction.id), is_known);
                let places = names.map(|name| fact(place(name), 0));
                [fact(None, unknown.length.unwrap_or(0))].into_iter().chain(places).collect()
            }
        }
    }

    /// Its one customer, in the policy that decided.
    fn customer_then<'p>(&self, then: Option<&'p Policy>) -> Option<&'p Customer> {
        let then = then?;
        then.customer(then.customer_named(self.customer_id.as_ref()?.as_str())?).filter(|_| self.customers.is_none())
    }

    /// Whom the policy of then restricted, and whether the request was about one of them; nothing if it did not ask.
    fn asked_of_subscriber<'p>(&self, then: Option<&'p Policy>) -> Option<(Vec<&'p str>, bool)> {
        if self.service_reason().is_some() && self.rules_behind().is_none() {
            // Nobody says which rules held.
            return None;
        }
        let customer = self.customer_then(then)?;
        let purpose = then.and_then(|then| then.purpose(then.purpose_named(self.purpose.as_ref()?.as_str())?))?;
        let codes =
            || Code::ALL.into_iter().filter(|code| self.reasons.iter().any(|it| it.code.as_str() == code.as_str()));
        let is_asked = !is_exempt_of_restrictions(purpose.kind) && codes().all(|code| code.class() > Class::Agreement);
        let restricted = restricted(customer, self.at().ok()?);
        is_asked.then(|| (restricted, codes().any(|code| code == Code::SubscriberRestricted)))
    }

    /// One that no instruction restricts and, if some instruction of the customer restricts one now, that one. Less, if
    /// the policy of then is at hand and asked.
    fn subscribers(
        &self,
        facts: &Facts<'_>,
        policy: &Policy,
        then: Option<&Policy>,
        now: Timestamp,
    ) -> Vec<Fact<String>> {
        match (&self.sources.subscriber, &self.unknown.subscriber) {
            (None, None) => return vec![Fact::None],
            (None, Some(_)) => return vec![Fact::Unknown(Why::Missing)],
            (Some(_), _) => {}
        }
        let mut restricted = one(facts, policy).map(|customer| restricted(customer, now)).unwrap_or_default();
        // Longer than each of them, so none of them.
        let other = restricted.concat() + ".";
        let known = |name: &str| Fact::Known(name.to_owned(), Source::Path);
        match self.asked_of_subscriber(then) {
            Some((before, true)) if !before.is_empty() => return before.into_iter().map(known).collect(),
            Some((before, false)) => restricted.retain(|name| !before.contains(name)),
            Some((_, true)) | None => {}
        }
        [known(&other)].into_iter().chain(restricted.first().map(|name| known(name))).collect()
    }

    /// Where a claim said the caller is, if the policy of then asked for it.
    fn claimed(&self) -> Result<Option<Location>, Undecidable> {
        if self.sources.location.is_none() {
            return Ok(None);
        }
        let place = self.location.as_ref().and_then(|places| places.access.as_ref()).ok_or(Undecidable::Unreadable)?;
        place.as_str().parse().map(Some).map_err(|_| Undecidable::Unreadable)
    }

    /// Nowhere known and, if this policy asks for a claim and that of then did not, a place that was agreed on, and one
    /// that nobody agrees on.
    fn locations(&self, facts: &Facts<'_>, policy: &Policy) -> Vec<Fact<Location>> {
        let nowhere = Fact::Unknown(Why::Missing);
        let party = facts.caller.known().and_then(|caller| caller.party);
        let is_asked = match party {
            Some(Party::Own(id)) => policy.caller(id).is_some_and(|caller| caller.location.is_none()),
            Some(Party::Subprocessor(_) | Party::Customer(_)) | None => false,
        };
        if !is_asked || self.unknown.location.is_some() {
            return vec![nowhere];
        }
        let agreed = one(facts, policy).and_then(|customer| policy.residency(customer).access_locations.first());
        let antarctica: Option<Location> = "AQ".parse().ok();
        let places = agreed.copied().into_iter().chain(antarctica);
        [nowhere].into_iter().chain(places.map(|place| Fact::Known(place, Source::Claim))).collect()
    }
}

impl<'a> Possible<'a> {
    /// Each of the facts with each of the values that it may have.
    fn spread<T>(
        &mut self,
        lack: Lack,
        values: impl Fn(&Facts<'a>) -> Vec<T>,
        set: impl Fn(&mut Facts<'a>, T),
    ) -> Result<(), Undecidable> {
        let mut all = Vec::with_capacity(self.facts.len());
        for mut facts in std::mem::take(&mut self.facts) {
            let mut values = values(&facts);
            if values.len() > 1 && !self.lacks.contains(&lack) {
                self.lacks.push(lack);
            }
            let last = values.pop();
            for value in values {
                let mut facts = facts.clone();
                set(&mut facts, value);
                all.push(facts);
            }
            last.into_iter().for_each(|value| set(&mut facts, value));
            all.push(facts);
        }
        self.facts = all;
        if self.facts.len() > MOST_TRIED { Err(Undecidable::Lacks(std::mem::take(&mut self.lacks))) } else { Ok(()) }
    }
}

/// Whether a code is one of `decide`.
fn is_rule(code: &str) -> bool {
    Code::ALL.into_iter().any(|known| known.as_str() == code)
}

/// The one customer of a request.
fn one<'p>(facts: &Facts<'_>, policy: &'p Policy) -> Option<&'p Customer> {
    match facts.customers.known()? {
        Customers::One(id) => policy.customer(*id),
        Customers::Several { .. } => None,
    }
}

/// Whose data instructions of a customer restrict at that time.
fn restricted(customer: &Customer, now: Timestamp) -> Vec<&str> {
    let in_force = customer.instructions.iter().filter(|it| it.in_force.is_some_and(|period| period.contains(now)));
    in_force.filter_map(|it| it.restricts.as_deref()).collect()
}

/// Names that a name of this length may have been, which the policy of then did not know.
fn names_of<'p>(
    length: Option<usize>,
    names: impl Iterator<Item = &'p Id>,
    is_known: impl Fn(&str) -> bool,
) -> impl Iterator<Item = &'p str> {
    names.map(Id::as_str).filter(move |name| Some(name.len()) == length && !is_known(name)).take(MOST_TRIED)
}

/// Why a name was not known. Rules ask only whether there was one.
fn why(unknown: Option<&RecordedUnknown<'_>>) -> Why {
    match unknown.map(|unknown| (unknown.why.as_str(), unknown.length)) {
        Some(("not_in_policy", length)) => Why::NotInPolicy { length: length.unwrap_or(0) },
        Some(("malformed", _)) => Why::Malformed,
        Some(_) | None => Why::Missing,
    }
}
