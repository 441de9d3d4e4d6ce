//! What one policy permits beyond another, rule by rule.
//!
//! `from` and `to` are the old and the new policy, or the other way round: what is gained one way is lost the
//! other way.

use std::collections::HashMap;
use std::collections::HashSet;

use jiff::Timestamp;

use super::Change;
use super::Concerns;
use super::Direction;
use super::Kind;
use super::reach::all_open;
use super::reach::bound_by;
use super::reach::first;
use super::reach::kept;
use super::reach::of_caller;
use super::reach::of_subprocessor;
use super::reach::open;
use super::reach::reached;
use super::reach::reaches;
use super::reach::starts;
use super::reach::unended;
use super::reach::unsuspended;
use super::sets::all;
use super::sets::filtered;
use super::sets::gained_data;
use super::sets::gained_operations;
use super::sets::in_words;
use super::sets::listed;
use super::sets::may;
use super::sets::same_places;
use super::spans::Span;
use super::spans::told;
use crate::policy::CallerId;
use crate::policy::Customer;
use crate::policy::CustomerId;
use crate::policy::Enforcement;
use crate::policy::Instruction;
use crate::policy::OwnCaller;
use crate::policy::Party;
use crate::policy::Permits;
use crate::policy::Policy;
use crate::policy::PurposeId;
use crate::policy::PurposeKind;
use crate::policy::PurposeSet;
use crate::policy::Residency;
use crate::policy::Subprocessor;
use crate::policy::SubprocessorId;
use crate::policy::TlsVersion;
use crate::policy::places::Place;
use crate::policy::terms::Identity;
use crate::policy::terms::Location;
use crate::policy::terms::Operation;

/// What `to` permits beyond `from`; `direction` is what that is to the reader.
pub(super) fn gains(from: &Policy, to: &Policy, since: Timestamp, direction: Direction) -> Vec<Change> {
    gained(from, to, since, direction, false)
}

/// The same, if in `to` nothing were closed to anybody by another rule than the one that is changed.
pub(super) fn gains_if_open(from: &Policy, to: &Policy, since: Timestamp) -> Vec<Change> {
    gained(from, to, since, Direction::Weaker, true)
}

fn gained(from: &Policy, to: &Policy, since: Timestamp, direction: Direction, is_all_open: bool) -> Vec<Change> {
    let mut both = Vec::new();
    for (id, customer) in (0..).map(CustomerId).zip(&to.customers) {
        let Some(before) = from.customer_named(customer.id.as_str()).and_then(|id| from.customer(id)) else { continue };
        let open = if is_all_open { all_open(to, since) } else { open(to, customer, since) };
        both.push(Both { id, from: before, to: customer, open });
    }
    let mut gains = Gains { from, to, since, direction, is_all_open, both, changes: Vec::new() };
    gains.measures();
    gains.enforcement();
    gains.whole_customers();
    gains.purposes();
    gains.callers();
    gains.subprocessors();
    gains.identities();
    gains.default_residency();
    for at in 0..gains.both.len() {
        gains.customer(at);
    }
    gains.changes
}

/// While a rule on an agreement's dates lets a kind of purpose pass.
type Rule = fn(&Customer, PurposeKind) -> Span;

/// A customer of both policies.
struct Both<'p> {
    id: CustomerId,
    from: &'p Customer,
    to: &'p Customer,
    open: Open,
}

/// What requests for a customer may be for in `to`, and when, as far as the rules looked at so far allow it.
#[derive(Clone)]
pub(super) struct Open(pub(super) Vec<(PurposeId, Span)>);

impl Open {
    /// What of it lies in a list of purposes and in a span of time.
    pub(super) fn and(&self, purposes: PurposeSet, window: Span) -> Self {
        let within = self.0.iter().filter(|(id, _)| purposes.contains(*id)).map(|(id, span)| (*id, span.and(window)));
        Self(within.filter(|(_, span)| !span.is_empty()).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn has(&self, purpose: PurposeId) -> bool {
        self.0.iter().any(|(id, _)| *id == purpose)
    }

    fn meets(&self, purposes: PurposeSet) -> bool {
        self.0.iter().any(|(id, _)| purposes.contains(*id))
    }

    /// What of some spans lies in it.
    fn during(&self, spans: &[Span]) -> Vec<Span> {
        let meets = |span: &&Span| self.0.iter().any(|(_, open)| !open.and(**span).is_empty());
        spans.iter().filter(meets).copied().collect()
    }
}

struct Gains<'p> {
    from: &'p Policy,
    to: &'p Policy,
    /// Nothing before it counts.
    since: Timestamp,
    direction: Direction,
    /// Whether callers and subprocessors reach all that there is.
    is_all_open: bool,
    both: Vec<Both<'p>>,
    changes: Vec<Change>,
}

impl Gains<'_> {
    /// Notes a gain, unless nobody is concerned. The words say what is gained, or else what is lost.
    fn note(
        &mut self,
        kind: Kind,
        place: Place,
        concerns: Concerns,
        values: Vec<String>,
        (gained, lost): (String, String),
    ) {
        if matches!(&concerns, Concerns::Nobody) || matches!(&concerns, Concerns::Customers(ids) if ids.is_empty()) {
            return;
        }
        let text = if self.direction == Direction::Weaker { gained } else { lost };
        self.changes.push(Change { kind, direction: self.direction, concerns, values, text, place });
    }

    /// The customers that some test holds for.
    fn concerned(&self, test: impl Fn(&Both<'_>) -> bool) -> Concerns {
        Concerns::Customers(self.both.iter().filter(|both| test(both)).map(|both| both.to.id.to_string()).collect())
    }

    /// A purpose of `to`, in `from`.
    fn before(&self, purpose: PurposeId) -> Option<PurposeId> {
        self.from.purpose_named(self.to.purpose(purpose)?.id.as_str())
    }

    /// The purposes of a set of `to` that a set of `from` has not.
    fn gained_purposes(&self, from: PurposeSet, to: PurposeSet) -> PurposeSet {
        filtered(to, |id| !self.before(id).is_some_and(|id| from.contains(id)))
    }

    fn names(&self, purposes: PurposeSet) -> Vec<String> {
        all(purposes).filter_map(|id| Some(self.to.purpose(id)?.id.to_string())).collect()
    }

    fn subprocessor_before(&self, id: SubprocessorId) -> Option<SubprocessorId> {
        self.from.subprocessor_named(self.to.subprocessor(id)?.id.as_str())
    }

    /// Whether two ids are those of one subprocessor.
    fn is_same(&self, from: SubprocessorId, to: SubprocessorId) -> bool {
        self.subprocessor_before(to) == Some(from)
    }

    // ---- the whole policy --------------------------------------------------------------------------

    fn measures(&mut self) {
        let (from, to) = (self.from.security, self.to.security);
        let tls = |version: Option<TlsVersion>| version.map_or("none", TlsVersion::as_str);
        let required = |is: bool| if is { "required" } else { "not required" };
        let measures = [
            (
                Kind::MinTlsVersion,
                to.min_tls_version < from.min_tls_version,
                tls(from.min_tls_version),
                tls(to.min_tls_version),
            ),
            (
                Kind::ClientAuthentication,
                from.client_certificate_required && !to.client_certificate_required,
                required(from.client_certificate_required),
                required(to.client_certificate_required),
            ),
            (
                Kind::DecisionLog,
                to.decision_log < from.decision_log,
                from.decision_log.as_str(),
                to.decision_log.as_str(),
            ),
            (Kind::SignedPolicy, from.signed_policy && !to.signed_policy, "true", "false"),
        ];
        for (kind, is_gained, from, to) in measures {
            if is_gained {
                let key = Place::Key(vec!["security_measures".to_owned(), kind.as_str().to_owned()]);
                self.measure(kind, key, from, to);
            }
        }
        if self.from.require_enforce && !self.to.require_enforce {
            self.measure(Kind::RequireEnforce, Place::Top("require_enforce"), "true", "false");
        }
    }

    /// A measure that holds no longer (or now, the other way round). Its values are the old one and the new one.
    fn measure(&mut self, kind: Kind, place: Place, from: &str, to: &str) {
        let (old, new) = if self.direction == Direction::Weaker { (from, to) } else { (to, from) };
        let text = format!("`{}` was {old} and is {new}", kind.as_str());
        let values = vec![old.to_owned(), new.to_owned()];
        self.note(kind, place, Concerns::All, values, (text.clone(), text));
    }

    fn enforcement(&mut self) {
        let moves = |from: Enforcement, to: Enforcement| from == Enforcement::Enforce && to == Enforcement::Observe;
        let word =
            |direction| if direction == Direction::Weaker { ("enforce", "observe") } else { ("observe", "enforce") };
        let (old, new) = word(self.direction);
        let values = || vec![old.to_owned(), new.to_owned()];
        let is_default = moves(self.from.enforcement, self.to.enforcement);
        let default = || Place::Key(vec!["defaults".to_owned(), "enforcement".to_owned()]);
        if is_default {
            let text = format!("requests that name no customer of the policy: from {old} to {new}");
            self.note(Kind::DefaultEnforcement, default(), Concerns::Unnamed, values(), (text.clone(), text));
        }
        for at in 0..self.both.len() {
            let Some(both) = self.both.get(at).filter(|both| moves(both.from.enforcement, both.to.enforcement)) else {
                continue;
            };
            let id = both.to.id.to_string();
            let text = match self.direction {
                Direction::Weaker => "what is denied passes and is only written down",
                Direction::Tighter | Direction::Neutral => "what is denied no longer passes",
            };
            let text = format!("`{id}` goes from {old} to {new}: {text}");
            let concerns = Concerns::Customers(vec![id.clone()]);
            self.note(Kind::Enforcement, Place::Customer(id, "enforcement"), concerns, values(), (text.clone(), text));
        }
    }

    fn whole_customers(&mut self) {
        for customer in &self.to.customers {
            if self.from.customer_named(customer.id.as_str()).is_some() {
                continue;
            }
            let id = customer.id.to_string();
            let concerns = || Concerns::Customers(vec![id.clone()]);
            // Requests for who was no customer went by the default.
            let is_observed =
                customer.enforcement == Enforcement::Observe && self.from.enforcement == Enforcement::Enforce;
            if is_observed {
                let words = (
                    format!("`{id}` is new and on observe: what is denied for it passes and is only written down"),
                    format!("`{id}` is gone, and with it its observe: what is denied for it no longer passes"),
                );
                let values = match self.direction {
                    Direction::Weaker => vec!["enforce".to_owned(), "observe".to_owned()],
                    Direction::Tighter | Direction::Neutral => vec!["observe".to_owned(), "enforce".to_owned()],
                };
                let place = Place::Customer(id.clone(), "enforcement");
                self.note(Kind::Enforcement, place, concerns(), values, words);
            }
            if is_observed || !open(self.to, customer, self.since).is_empty() {
                let words = (
                    format!("the customer `{id}` is new"),
                    format!("the customer `{id}` is gone: every request for it is denied"),
                );
                self.note(Kind::Customer, whole("customers", id.clone()), concerns(), Vec::new(), words);
            }
        }
        // Who is no customer any more goes by the default.
        for customer in &self.from.customers {
            let observed = customer.enforcement == Enforcement::Enforce && self.to.enforcement == Enforcement::Observe;
            if observed && self.to.customer_named(customer.id.as_str()).is_none() {
                let id = customer.id.to_string();
                let words = (
                    format!(
                        "`{id}` is no customer any more: requests for it are denied, and pass by the default observe"
                    ),
                    format!("`{id}` is a customer now, and no longer goes by the default observe"),
                );
                let concerns = Concerns::Customers(vec![id.clone()]);
                self.note(Kind::Enforcement, whole("customers", id), concerns, Vec::new(), words);
            }
        }
    }

    fn purposes(&mut self) {
        for (id, purpose) in (0..).map(PurposeId).zip(&self.to.purposes) {
            let before = self.before(id).and_then(|id| self.from.purpose(id));
            let name = purpose.id.to_string();
            if before.is_some_and(|before| !before.is_legal) && purpose.is_legal {
                let concerns = self.concerned(|both| both.open.has(id));
                let words = (
                    format!(
                        "`{name}` is the law's demand (`legal`): records name that as what a permit for it rests on"
                    ),
                    format!("`{name}` is the law's demand no more, and records name it no more"),
                );
                let place = Place::Key(vec!["purposes".to_owned(), name.clone(), "ccpa_business_purpose".to_owned()]);
                self.note(Kind::BusinessPurpose, place, concerns, vec![name.clone()], words);
            }
            if before.is_some_and(|before| before.requires_instruction) && !purpose.requires_instruction {
                let concerns = self.concerned(|both| both.open.has(id));
                let words = (
                    format!("`{name}` needs no instruction any more"),
                    format!("`{name}` needs an instruction that names it"),
                );
                self.note(
                    Kind::RequiresInstruction,
                    Place::Purpose(name),
                    concerns,
                    vec![purpose.id.to_string()],
                    words,
                );
            } else if before.is_none() && purpose.kind == PurposeKind::RightsFulfilment {
                // It passes whatever a customer permits, and a customer's own callers have no lists.
                let own: HashSet<CustomerId> = self
                    .to
                    .all_identities()
                    .filter_map(|(_, party)| match party {
                        Party::Customer(id) => Some(id),
                        Party::Own(_) | Party::Subprocessor(_) => None,
                    })
                    .collect();
                let concerns = self.concerned(|both| both.open.has(id) && own.contains(&both.id));
                let words = (
                    format!("a customer's own callers may ask for `{name}`"),
                    format!("a customer's own callers may no longer ask for `{name}`"),
                );
                self.note(Kind::Purpose, Place::Purpose(name), concerns, vec![purpose.id.to_string()], words);
            }
        }
    }

    // ---- the processor's own callers ---------------------------------------------------------------

    /// What a caller may do for a customer in `to`, and when.
    fn caller_reach(&self, caller: &OwnCaller, both: &Both<'_>) -> Open {
        if self.is_all_open {
            return both.open.clone();
        }
        of_caller(self.to, both.to, &both.open, caller)
    }

    fn callers(&mut self) {
        for caller in &self.to.callers {
            let id = caller.id.to_string();
            let Some(before) = self.from.caller_named(&id).and_then(|id| self.from.caller(id)) else {
                let concerns = self.concerned(|both| !self.caller_reach(caller, both).is_empty());
                let words = (format!("the caller `{id}` is new"), format!("the caller `{id}` is gone"));
                self.note(Kind::Caller, whole("callers", id), concerns, Vec::new(), words);
                continue;
            };
            let purposes = self.gained_purposes(before.permitted_purposes, caller.permitted_purposes);
            let concerns = self.concerned(|both| self.caller_reach(caller, both).meets(purposes));
            let values = self.names(purposes);
            let words = may(&id, "ask for", &values);
            self.note(Kind::CallerPurpose, Place::Caller(id.clone(), "permitted_purposes"), concerns, values, words);

            let values = gained_operations(before.operations, caller.operations);
            if !values.is_empty() {
                let concerns = self.concerned(|both| !self.caller_reach(caller, both).is_empty());
                let words = may(&id, "do", &values);
                self.note(Kind::CallerOperation, Place::Caller(id.clone(), "operations"), concerns, values, words);
            }
            self.caller_location(before, caller);
            let spans = bound_by(caller).minus(&[bound_by(before)]);
            let concerns = self.concerned(|both| !self.caller_reach(caller, both).during(&spans).is_empty());
            if before.undertaking.is_some() && caller.undertaking.is_none() {
                let words = (
                    format!("`{id}` has no people behind it any more who would have to be bound to confidentiality"),
                    format!("`{id}` has people behind it, who have to be bound to confidentiality"),
                );
                let place = Place::Caller(id, "human_access");
                self.note(Kind::HumanAccess, place, concerns, vec!["undertaking".to_owned(), "none".to_owned()], words);
                continue;
            }
            let words = (
                format!("the people behind `{id}` get in {}", told(&spans)),
                format!("the people behind `{id}` no longer get in {}", told(&spans)),
            );
            let place = Place::Caller(id, "human_access");
            self.note(Kind::Confidentiality, place, concerns, vec![told(&spans)], words);
        }
    }

    fn caller_location(&mut self, before: &OwnCaller, caller: &OwnCaller) {
        if before.location == caller.location {
            return;
        }
        // Without a place of its own a claim gives it: some would do, and none is a gap.
        let concerns = self.concerned(|both| {
            let did = before.location.is_some_and(|place| reached(self.from, both.from, place, None));
            !did && !self.caller_reach(caller, both).is_empty()
        });
        let place = |caller: &OwnCaller| caller.location.map_or("where a claim says".to_owned(), |it| it.to_string());
        let id = caller.id.to_string();
        let (gained, lost) = (place(caller), place(before));
        let words = (
            format!("`{id}` is {gained} instead of {lost}, which these customers allow"),
            format!("`{id}` is {lost} instead of {gained}, which these customers do not allow"),
        );
        self.note(Kind::CallerLocation, Place::Caller(id, "location"), concerns, vec![gained], words);
    }

    // ---- subprocessors -----------------------------------------------------------------------------

    /// What a subprocessor may have of a customer in `to`, and when.
    fn reach(&self, id: SubprocessorId, entry: &Subprocessor, both: &Both<'_>) -> Open {
        if self.is_all_open {
            return both.open.clone();
        }
        of_subprocessor(self.to, both.to, &both.open, id, entry)
    }

    fn subprocessors(&mut self) {
        for (number, entry) in (0..).map(SubprocessorId).zip(&self.to.subprocessors) {
            let id = entry.id.to_string();
            let before =
                self.subprocessor_before(number).and_then(|number| Some((number, self.from.subprocessor(number)?)));
            let Some((old_number, before)) = before else {
                let concerns = self.concerned(|both| !self.reach(number, entry, both).is_empty());
                let words = (format!("the subprocessor `{id}` is new"), format!("the subprocessor `{id}` is gone"));
                self.note(Kind::Subprocessor, whole("subprocessors", id), concerns, Vec::new(), words);
                continue;
            };
            if before.legal_name.trim() != entry.legal_name.trim() {
                let concerns = self.concerned(|both| !self.reach(number, entry, both).is_empty());
                let words = (
                    format!("behind `{id}` is another company: {}", entry.legal_name),
                    format!("behind `{id}` is no longer {}", entry.legal_name),
                );
                let place = Place::Subprocessor(id.clone(), "legal_name");
                self.note(Kind::SubprocessorName, place, concerns, vec![entry.legal_name.to_string()], words);
            }
            let purposes = self.gained_purposes(before.permitted_purposes, entry.permitted_purposes);
            let concerns = self.concerned(|both| self.reach(number, entry, both).meets(purposes));
            let values = self.names(purposes);
            let words = may(&id, "have data for", &values);
            let place = Place::Subprocessor(id.clone(), "permitted_purposes");
            self.note(Kind::SubprocessorPurpose, place, concerns, values, words);

            let values = gained_operations(before.operations, entry.operations);
            if !values.is_empty() {
                let concerns = self.concerned(|both| !self.reach(number, entry, both).is_empty());
                let words = may(&id, "have data by", &values);
                let place = Place::Subprocessor(id.clone(), "operations");
                self.note(Kind::SubprocessorOperation, place, concerns, values, words);
            }
            let values = gained_data(&before.data_categories, &entry.data_categories);
            if !values.is_empty() {
                let concerns = self.concerned(|both| !self.reach(number, entry, both).is_empty());
                let words = may(&id, "have", &values);
                let place = Place::Subprocessor(id.clone(), "data_categories");
                self.note(Kind::SubprocessorData, place, concerns, values, words);
            }
            self.subprocessor_places((old_number, before), (number, entry));
            self.subprocessor_times((old_number, before), (number, entry));
        }
    }

    fn subprocessor_places(
        &mut self,
        (old_number, before): (SubprocessorId, &Subprocessor),
        (number, entry): (SubprocessorId, &Subprocessor),
    ) {
        let id = entry.id.to_string();
        let words = |what: &str, gained: &[Location], lost: &[Location]| {
            let list = |places: &[Location]| listed(&places.iter().map(ToString::to_string).collect::<Vec<_>>());
            (
                format!("`{id}` {what} {} instead of {}: these customers allow that", list(gained), list(lost)),
                format!("`{id}` {what} {} instead of {}: these customers do not allow that", list(lost), list(gained)),
            )
        };
        let values = |places: &[Location]| places.iter().map(ToString::to_string).collect::<Vec<_>>();
        // A customer has to allow all of them: fewer places are weaker.
        if !same_places(&before.storage_locations, &entry.storage_locations) {
            let concerns = self
                .concerned(|both| !kept(self.from, both.from, before) && !self.reach(number, entry, both).is_empty());
            let words = words("keeps data in", &entry.storage_locations, &before.storage_locations);
            let place = Place::Subprocessor(id.clone(), "storage_locations");
            self.note(Kind::SubprocessorStorage, place, concerns, values(&entry.storage_locations), words);
        }
        if !same_places(&before.access_locations, &entry.access_locations) {
            let concerns = self.concerned(|both| {
                !reaches(self.from, both.from, old_number, before) && !self.reach(number, entry, both).is_empty()
            });
            let words = words("reaches data from", &entry.access_locations, &before.access_locations);
            let place = Place::Subprocessor(id.clone(), "access_locations");
            self.note(Kind::SubprocessorAccess, place, concerns, values(&entry.access_locations), words);
        }
    }

    fn subprocessor_times(
        &mut self,
        (old_number, before): (SubprocessorId, &Subprocessor),
        (number, entry): (SubprocessorId, &Subprocessor),
    ) {
        let id = entry.id.to_string();
        let spans = Span::of(entry.agreement).minus(&[Span::of(before.agreement)]);
        let concerns = self.concerned(|both| !self.reach(number, entry, both).during(&spans).is_empty());
        let words = (
            format!("the agreement with `{id}` holds {}", told(&spans)),
            format!("the agreement with `{id}` no longer holds {}", told(&spans)),
        );
        let place = Place::Subprocessor(id.clone(), "agreement");
        self.note(Kind::SubprocessorAgreement, place, concerns, vec![told(&spans)], words);

        if before.effective == entry.effective {
            return;
        }
        let holds = |customer: &Customer, number, entry: &Subprocessor| {
            Span::since(starts(customer, number, entry)).and(Span::before(entry.effective.until))
        };
        let concerns = self.concerned(|both| {
            let spans = holds(both.to, number, entry).minus(&[holds(both.from, old_number, before)]);
            !self.reach(number, entry, both).during(&spans).is_empty()
        });
        let spans = Span::of(Some(entry.effective)).minus(&[Span::of(Some(before.effective))]);
        let words = (
            format!("`{id}` may have data {}", told(&spans)),
            format!("`{id}` may no longer have data {}", told(&spans)),
        );
        // Where the date that differs stands.
        let key = if before.effective.from == entry.effective.from { "removed_at" } else { "effective_at" };
        self.note(Kind::SubprocessorPeriod, Place::Subprocessor(id, key), concerns, vec![told(&spans)], words);
    }

    // ---- identities --------------------------------------------------------------------------------

    /// Identities of `to` that were somebody else's, or nobody's. Those of a new party are part of it.
    fn identities(&mut self) {
        let mut theirs: HashMap<(u8, &str), Vec<&Identity>> = HashMap::new();
        for (identity, party) in self.from.all_identities().filter(|(identity, _)| identity.is_pattern()) {
            if let Some(key) = name(self.from, party) {
                theirs.entry(key).or_default().push(identity);
            }
        }
        let mut gained: HashMap<Party, Vec<String>> = HashMap::new();
        // What a subprocessor proves to be, and somebody else who is bound by no word on that subprocessor.
        let mut passed: Vec<(SubprocessorId, Party, &Identity)> = Vec::new();
        // A caller with people behind it who have to be bound, and one without who is the same to the proxy.
        let mut unbound: Vec<(CallerId, CallerId)> = Vec::new();
        for (identity, party) in self.to.all_identities() {
            let Some(key) = name(self.to, party) else { continue };
            let exact = self.from.identities.get(identity).and_then(|party| name(self.from, *party));
            let is_theirs = exact == Some(key)
                || theirs.get(&key).is_some_and(|list| list.iter().any(|known| known.covers(identity)));
            if !is_theirs {
                let before = self.from.all_identities_like(identity).and_then(|party| name(self.from, party));
                let moved = before.filter(|before| *before != key).map(|(_, id)| format!(" (of `{id}`)"));
                gained.entry(party).or_default().push(format!("{identity}{}", moved.unwrap_or_default()));
                for before in self.from.parties_of(identity) {
                    match (before, party) {
                        (Some(Party::Subprocessor(before)), Party::Own(_) | Party::Customer(_)) => {
                            passed.push((before, party, identity));
                        }
                        (Some(Party::Own(before)), Party::Own(now)) => unbound.push((before, now)),
                        (_, Party::Own(_) | Party::Subprocessor(_) | Party::Customer(_)) => {}
                    }
                }
            }
        }
        let mut gained: Vec<(Party, Vec<String>)> = gained.into_iter().collect();
        gained.sort_by_key(|(party, _)| *party);
        passed.sort();
        unbound.sort();
        unbound.dedup();
        for (party, mut values) in gained {
            values.sort();
            self.identities_of(party, values);
        }
        for (before, party, identity) in passed {
            self.passed_on(before, party, identity);
        }
        for (before, now) in unbound {
            self.unbound(before, now);
        }
    }

    /// People who have to be bound to confidentiality ask as a caller that has none behind it.
    fn unbound(&mut self, before: CallerId, now: CallerId) {
        let (Some(before), Some(caller)) = (self.from.caller(before), self.to.caller(now)) else { return };
        if before.undertaking.is_none() || caller.undertaking.is_some() || before.id == caller.id {
            return;
        }
        let (before, id) = (before.id.to_string(), caller.id.to_string());
        let words = (
            format!(
                "`{before}`, with people behind it who have to be bound to confidentiality, asks as `{id}`, with none"
            ),
            format!("`{id}` asks as `{before}`, with people behind it, who have to be bound to confidentiality"),
        );
        let values = vec!["undertaking".to_owned(), "none".to_owned()];
        let place = Place::Caller(before, "human_access");
        self.note(Kind::HumanAccess, place, self.reached_by(Party::Own(now)), values, words);
    }

    /// The customers whose data a party may have.
    fn reached_by(&self, party: Party) -> Concerns {
        match party {
            Party::Own(number) => self.concerned(|both| {
                self.to.caller(number).is_some_and(|caller| !self.caller_reach(caller, both).is_empty())
            }),
            Party::Subprocessor(number) => self.concerned(|both| {
                self.to.subprocessor(number).is_some_and(|entry| !self.reach(number, entry, both).is_empty())
            }),
            Party::Customer(number) => self.concerned(|both| both.id == number && !both.open.is_empty()),
        }
    }

    fn identities_of(&mut self, party: Party, values: Vec<String>) {
        let Some((_, id)) = name(self.to, party) else { return };
        let id = id.to_owned();
        let (kind, place, is_new) = match party {
            Party::Own(_) => {
                let is_new = self.from.caller_named(&id).is_none();
                (Kind::CallerIdentity, Place::Caller(id.clone(), "identities"), is_new)
            }
            Party::Subprocessor(number) => {
                let is_new = self.subprocessor_before(number).is_none();
                (Kind::SubprocessorIdentity, Place::Subprocessor(id.clone(), "identities"), is_new)
            }
            Party::Customer(_) => {
                let is_new = self.from.customer_named(&id).is_none();
                (Kind::CustomerIdentity, Place::Customer(id.clone(), "identities"), is_new)
            }
        };
        if is_new {
            return;
        }
        let list = listed(&values);
        let words = (format!("`{id}` is also {list}"), format!("`{id}` is no longer {list}"));
        self.note(kind, place, self.reached_by(party), values, words);
    }

    /// A subprocessor's identity is somebody else's now, and asks under that name.
    fn passed_on(&mut self, before: SubprocessorId, party: Party, identity: &Identity) {
        let (Some(before), Some((_, id))) = (self.from.subprocessor(before), name(self.to, party)) else { return };
        let before = before.id.to_string();
        let words = (
            format!("`{identity}` of the subprocessor `{before}` asks as `{id}`"),
            format!("`{identity}` asks as the subprocessor `{before}`, and no longer as `{id}`"),
        );
        let place = Place::Subprocessor(before, "identities");
        self.note(Kind::SubprocessorIdentity, place, self.reached_by(party), vec![identity.to_string()], words);
    }

    // ---- customers ---------------------------------------------------------------------------------

    /// One change for all customers that go by the default in both.
    fn default_residency(&mut self) {
        let goes_by_default =
            |both: &Both<'_>| both.from.residency.is_none() && both.to.residency.is_none() && !both.open.is_empty();
        let concerns = self.concerned(goes_by_default);
        let place = Place::Key(vec!["defaults".to_owned(), "residency".to_owned()]);
        self.residency("the default", &self.from.residency, &self.to.residency, &concerns, &place);
    }

    fn residency(&mut self, whose: &str, from: &Residency, to: &Residency, concerns: &Concerns, place: &Place) {
        let storage =
            to.storage_locations.iter().filter(|place| !from.storage_locations.iter().any(|it| it.covers(**place)));
        let values = in_words(storage);
        if !values.is_empty() {
            let list = listed(&values);
            let words = (
                format!("{whose} lets data be kept in {list}"),
                format!("{whose} no longer lets data be kept in {list}"),
            );
            self.note(Kind::StorageLocation, place.clone(), concerns.clone(), values, words);
        }
        let covered = |place: Location| from.access_locations.iter().any(|it| it.covers(place));
        let open = |place: Location, party: Option<SubprocessorId>| {
            from.transfers.iter().any(|transfer| {
                let is_for = match (transfer.subprocessor, party) {
                    (None, _) => true,
                    (Some(one), Some(two)) => self.is_same(one, two),
                    (Some(_), None) => false,
                };
                is_for && transfer.to.contains(&place)
            })
        };
        let access = to
            .access_locations
            .iter()
            .filter(|place| !covered(**place) && (place.is_country() || !open(**place, None)));
        let values = in_words(access);
        let mut transfers = Vec::new();
        for transfer in &to.transfers {
            let entry = transfer.subprocessor.and_then(|id| self.to.subprocessor(id));
            // Also where that subprocessor is not: it may go there at any time, and nothing is weaker then.
            let places = transfer.to.iter().filter(|place| !covered(**place) && !open(**place, transfer.subprocessor));
            let for_whom = entry.map_or_else(String::new, |entry| format!(" for {}", entry.id));
            transfers.extend(in_words(places).into_iter().map(|place| format!("{place}{for_whom}")));
        }
        if !values.is_empty() {
            let list = listed(&values);
            let words = (
                format!("{whose} lets data be reached from {list}"),
                format!("{whose} no longer lets data be reached from {list}"),
            );
            self.note(Kind::AccessLocation, place.clone(), concerns.clone(), values, words);
        }
        if !transfers.is_empty() {
            let list = listed(&transfers);
            let words = (
                format!("a transfer on record of {whose} opens {list}"),
                format!("no transfer on record of {whose} opens {list}"),
            );
            self.note(Kind::Transfer, place.clone(), concerns.clone(), transfers, words);
        }
    }

    fn customer(&mut self, at: usize) {
        let Some(both) = self.both.get(at) else { return };
        // Before its agreement binds, and after it has ended for all purposes, nothing passes.
        if both.open.is_empty() {
            return;
        }
        let (from, to) = (both.from, both.to);
        let id = to.id.to_string();
        let concerns = || Concerns::Customers(vec![id.clone()]);
        let purposes = self.gained_purposes(from.permitted_purposes, to.permitted_purposes);
        // A subscriber's right needs nobody's list; what needs an instruction is permitted by it.
        let purposes = filtered(purposes, |id| {
            let purpose = self.to.purpose(id).filter(|it| !it.requires_instruction);
            purpose.is_some_and(|it| it.kind != PurposeKind::RightsFulfilment) && both.open.has(id)
        });
        let values = self.names(purposes);
        if !values.is_empty() {
            let list = listed(&values);
            let words = (format!("`{id}` permits {list}"), format!("`{id}` no longer permits {list}"));
            let place = Place::Customer(id.clone(), "permitted_purposes");
            self.note(Kind::CustomerPurpose, place, concerns(), values, words);
        }
        if from.residency.is_some() || to.residency.is_some() {
            let whose = format!("`{id}`");
            let (old, new) = (self.from.residency(from), self.to.residency(to));
            self.residency(&whose, old, new, &concerns(), &Place::Residency(id.clone()));
        }
        self.agreement(at);
        self.objections(at);
        self.instructions(at);
        self.restrictions(at);
    }

    fn agreement(&mut self, at: usize) {
        let Some(Both { from, to, open, .. }) = self.both.get(at) else { return };
        let id = to.id.to_string();
        let rules: [(Kind, Rule, &str); 3] = [
            (Kind::Acceptance, |customer, _| Span::since(customer.accepted_at), "the agreement binds"),
            (Kind::Suspension, unsuspended, "no law bars the service"),
            (Kind::Termination, unended, "the agreement has not ended, for this purpose"),
        ];
        let mut found = Vec::new();
        for (kind, allowed, what) in rules {
            let mut all: Vec<Span> = Vec::new();
            for (purpose, span) in &open.0 {
                let Some(purpose) = self.to.purpose(*purpose).map(|purpose| purpose.kind) else { continue };
                let spans = allowed(to, purpose).minus(&[allowed(from, purpose)]);
                let spans = spans.into_iter().filter(|gained| !gained.and(*span).is_empty());
                let fresh: Vec<Span> = spans.filter(|span| !all.contains(span)).collect();
                all.extend(fresh);
            }
            if !all.is_empty() {
                found.push((kind, told(&all), what));
            }
        }
        for (kind, spans, what) in found {
            let words = (format!("`{id}`: {what} {spans}"), format!("`{id}`: it no longer holds that {what} {spans}"));
            let concerns = Concerns::Customers(vec![id.clone()]);
            self.note(kind, Place::Customer(id.clone(), "dpa"), concerns, vec![spans], words);
        }
    }

    fn objections(&mut self, at: usize) {
        let mut found = Vec::new();
        let Some(both) = self.both.get(at) else { return };
        // An entry that a list does not name changes nothing here.
        let named = both.to.consents.iter().map(|(id, _)| *id);
        let refused = both
            .from
            .objections
            .iter()
            .filter_map(|(id, _)| self.to.subprocessor_named(self.from.subprocessor(*id)?.id.as_str()));
        let mut numbers: Vec<SubprocessorId> = named.chain(refused).collect();
        numbers.sort();
        numbers.dedup();
        for number in numbers {
            let Some(entry) = self.to.subprocessor(number) else { continue };
            let Some(old_number) = self.subprocessor_before(number) else { continue };
            let Some(before) = self.from.subprocessor(old_number) else { continue };
            let reach = self.reach(number, entry, both);
            let lifted = Span::before(first(&both.to.objections, number))
                .minus(&[Span::before(first(&both.from.objections, old_number))]);
            let sooner = Span::since(first(&both.to.consents, number))
                .and(Span::before(Some(entry.effective.from)))
                .minus(&[Span::since(starts(both.from, old_number, before))]);
            // What a customer refused counts even while nothing else would let that subprocessor in.
            let (lifted, sooner) = (both.open.during(&lifted), reach.during(&sooner));
            found.push((entry.id.to_string(), lifted, sooner));
        }
        let id = both.to.id.to_string();
        for (subprocessor, lifted, sooner) in found {
            let concerns = || Concerns::Customers(vec![id.clone()]);
            if !lifted.is_empty() {
                let spans = told(&lifted);
                let words = (
                    format!("`{id}` does not refuse `{subprocessor}` any more {spans}"),
                    format!("`{id}` refuses `{subprocessor}` {spans}"),
                );
                let place = Place::Customer(id.clone(), "objections");
                self.note(Kind::Objection, place, concerns(), vec![subprocessor.clone()], words);
            }
            if !sooner.is_empty() {
                let spans = told(&sooner);
                let words = (
                    format!("`{id}` accepts `{subprocessor}` ahead of time, {spans}"),
                    format!("`{id}` no longer accepts `{subprocessor}` ahead of time, {spans}"),
                );
                let place = Place::Customer(id.clone(), "consents");
                self.note(Kind::Consent, place, concerns(), vec![subprocessor], words);
            }
        }
    }

    /// Whether an instruction of `to` lifts anything, or meets the need of one.
    fn opens(&self, customer: &Customer, permits: &Permits) -> bool {
        let needed = |id: PurposeId| {
            let purpose = self.to.purpose(id);
            let is_right = purpose.is_some_and(|it| it.kind == PurposeKind::RightsFulfilment);
            let is_needed = purpose.is_some_and(|it| it.requires_instruction);
            is_needed || !(is_right || customer.permitted_purposes.contains(id))
        };
        let lists = [permits.purposes.is_some(), permits.operations.is_some(), permits.data_categories.is_some()];
        permits.purposes.is_some_and(|set| all(set).any(needed))
            || (permits.subprocessors.is_some() && lists.contains(&true))
    }

    /// Whether a list of an instruction of `to` lies in that of `from`, or neither has one: one more list lifts more,
    /// one less limits less.
    fn is_within(&self, from: &Permits, to: &Permits) -> bool {
        fn lie<T>(from: Option<&T>, to: Option<&T>, within: impl Fn(&T, &T) -> bool) -> bool {
            match (from, to) {
                (None, None) => true,
                (Some(from), Some(to)) => within(from, to),
                (Some(_), None) | (None, Some(_)) => false,
            }
        }
        lie(from.purposes.as_ref(), to.purposes.as_ref(), |from, to| {
            self.gained_purposes(*from, *to) == PurposeSet::default()
        }) && lie(from.operations.as_ref(), to.operations.as_ref(), |from, to| {
            gained_operations(Some(*from), Some(*to)).is_empty()
        }) && lie(from.subprocessors.as_ref(), to.subprocessors.as_ref(), |from, to| {
            to.iter().all(|id| from.iter().any(|known| self.is_same(*known, *id)))
        }) && lie(from.data_categories.as_ref(), to.data_categories.as_ref(), |from, to| {
            gained_data(from, to).is_empty()
        })
    }

    fn instructions(&mut self, at: usize) {
        let Some(both) = self.both.get(at) else { return };
        let mut found = Vec::new();
        for instruction in &both.to.instructions {
            let Some(permits) = instruction.permits.as_ref().filter(|permits| self.opens(both.to, permits)) else {
                continue;
            };
            let before = both.from.instructions.iter().find(|it| it.id == instruction.id);
            let is_within =
                before.and_then(|before| before.permits.as_ref()).is_some_and(|before| self.is_within(before, permits));
            let held = before.filter(|_| is_within).map_or(Span::since(None), |before| Span::of(before.in_force));
            let spans = Span::of(instruction.in_force).minus(&[held]);
            let spans = match permits.purposes {
                Some(purposes) => both.open.and(purposes, Span::ALWAYS).during(&spans),
                None => both.open.during(&spans),
            };
            if !spans.is_empty() {
                found.push((instruction.id.to_string(), self.permitted(permits), told(&spans)));
            }
        }
        let id = both.to.id.to_string();
        for (instruction, what, spans) in found {
            let words = (
                format!("the instruction `{instruction}` of `{id}` permits {what}, {spans}"),
                format!("the instruction `{instruction}` of `{id}` no longer permits {what}, {spans}"),
            );
            let concerns = Concerns::Customers(vec![id.clone()]);
            let place = Place::Instruction(id.clone(), instruction.clone());
            self.note(Kind::Instruction, place, concerns, vec![instruction], words);
        }
    }

    /// What an instruction permits, for people.
    fn permitted(&self, permits: &Permits) -> String {
        let purposes = permits.purposes.map(|set| format!("for {}", listed(&self.names(set))));
        let operations = permits.operations.map(|set| {
            let words: Vec<String> =
                Operation::ALL.iter().filter(|it| set.contains(**it)).map(|it| it.as_str().to_owned()).collect();
            format!("to {}", words.join(", "))
        });
        let subprocessors = permits.subprocessors.as_ref().map(|list| {
            let names: Vec<String> =
                list.iter().filter_map(|id| Some(self.to.subprocessor(*id)?.id.to_string())).collect();
            format!("by {}", listed(&names))
        });
        let data = permits.data_categories.as_ref().map(|list| listed(&in_words(list.iter())));
        let parts: Vec<String> = [operations, data, purposes, subprocessors].into_iter().flatten().collect();
        parts.join(" ")
    }

    fn restrictions(&mut self, at: usize) {
        let Some(Both { from, to, open, .. }) = self.both.get(at) else { return };
        let restricted = |subscriber: &str| -> Vec<Span> {
            let restricts = |it: &&Instruction| it.restricts.as_deref() == Some(subscriber);
            to.instructions.iter().filter(restricts).map(|it| Span::of(it.in_force)).collect()
        };
        let exempt = [PurposeKind::RightsFulfilment, PurposeKind::LegalCompliance, PurposeKind::Erasure];
        let is_bound = |id: PurposeId| self.to.purpose(id).is_some_and(|purpose| !exempt.contains(&purpose.kind));
        let bound = Open(open.0.iter().filter(|(id, _)| is_bound(*id)).copied().collect());
        let id = to.id.to_string();
        let mut found = Vec::new();
        for instruction in &from.instructions {
            let Some(subscriber) = instruction.restricts.as_deref() else { continue };
            let spans = bound.during(&Span::of(instruction.in_force).minus(&restricted(subscriber)));
            if !spans.is_empty() {
                found.push((instruction.id.to_string(), told(&spans)));
            }
        }
        for (name, spans) in found {
            // Who it is about is nobody's business here.
            let words = (
                format!("the instruction `{name}` of `{id}` restricts no subscriber any more {spans}"),
                format!("the instruction `{name}` of `{id}` restricts a subscriber {spans}"),
            );
            let place = Place::Instruction(id.clone(), name.clone());
            let concerns = Concerns::Customers(vec![id.clone()]);
            self.note(Kind::Restriction, place, concerns, vec![name], words);
        }
    }
}

fn name(policy: &Policy, party: Party) -> Option<(u8, &str)> {
    match party {
        Party::Own(id) => Some((0, policy.caller(id)?.id.as_str())),
        Party::Subprocessor(id) => Some((1, policy.subprocessor(id)?.id.as_str())),
        Party::Customer(id) => Some((2, policy.customer(id)?.id.as_str())),
    }
}

/// A whole entry.
fn whole(section: &str, id: String) -> Place {
    Place::Key(vec![section.to_owned(), id])
}
