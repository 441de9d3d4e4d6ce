//! What settings and policy do about each obligation of the agreement. Everything is read off them: nothing is said
//! of an obligation that does not change when the thing is switched off.

use jiff::SignedDuration;
use jiff::Timestamp;

use crate::config::Settings;
use crate::decide::obligation::Obligation;
use crate::establish::route::Route;
use crate::establish::route::Take;
use crate::forward;
use crate::identify::Way;
use crate::policy::Customer;
use crate::policy::Durability;
use crate::policy::Enforcement;
use crate::policy::OwnCaller;
use crate::policy::Period;
use crate::policy::Policy;
use crate::policy::PurposeId;
use crate::policy::PurposeKind;
use crate::policy::Subprocessor;
use crate::policy::terms::Location;
use crate::record::log::OnFailure;
use crate::sockets;
use crate::standing::MaxAge;
use crate::standing::OnStale;

/// How an obligation is held. The last is the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Status {
    /// A rule blocks what breaks it.
    Enforced,
    /// A change that would weaken it is held back.
    Gated,
    /// There is evidence.
    Recorded,
    /// Something breaks it and passes, and is written down.
    Observed,
    /// Something is missing.
    NotMet,
}

impl Status {
    /// All of them.
    pub(super) const ALL: [Self; 5] = [Self::Enforced, Self::Gated, Self::Recorded, Self::Observed, Self::NotMet];

    /// The word in JSON.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Enforced => "enforced",
            Self::Gated => "gated",
            Self::Recorded => "recorded",
            Self::Observed => "observed",
            Self::NotMet => "not_met",
        }
    }

    /// For people.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::NotMet => "not met",
            Self::Enforced | Self::Gated | Self::Recorded | Self::Observed => self.as_str(),
        }
    }
}

/// Something that was found, with a stable code.
#[derive(Clone, Debug)]
pub(super) struct Finding {
    pub(super) code: &'static str,
    /// Of a note, what it stands beside.
    pub(super) status: Status,
    pub(super) text: String,
    /// Customers, routes, listeners and the like that it is about.
    pub(super) names: Vec<String>,
}

/// What is done about one obligation.
#[derive(Debug)]
pub(super) struct Found {
    /// The worst of the gaps; without one, the strongest of what holds.
    pub(super) status: Status,
    /// The codes of the rules.
    pub(super) rules: Vec<&'static str>,
    /// What holds.
    pub(super) held: Vec<(Status, String)>,
    /// What does not: not met, or observed only.
    pub(super) gaps: Vec<Finding>,
    /// What somebody who relies on it should know.
    pub(super) notes: Vec<Finding>,
}

/// One service with its policy, at a time.
pub(super) struct Service<'s> {
    pub(super) settings: &'s Settings,
    pub(super) policy: &'s Policy,
    pub(super) now: Timestamp,
}

/// What is being put together about one obligation.
#[derive(Default)]
struct Draft {
    held: Vec<(Status, String)>,
    gaps: Vec<Finding>,
    notes: Vec<Finding>,
}

impl Draft {
    fn hold(&mut self, status: Status, text: &str) {
        self.held.push((status, text.to_owned()));
    }

    fn gap(&mut self, is_there: bool, code: &'static str, text: impl Into<String>, names: Vec<String>) {
        if is_there {
            self.gaps.push(Finding { code, status: Status::NotMet, text: text.into(), names });
        }
    }

    /// A gap for each of some names; none without a name.
    fn gap_for(&mut self, names: Vec<String>, code: &'static str, text: &str) {
        self.gap(!names.is_empty(), code, text, names);
    }

    fn observed_for(&mut self, is_there: bool, code: &'static str, text: &str, names: Vec<String>) {
        if is_there {
            self.gaps.push(Finding { code, status: Status::Observed, text: text.to_owned(), names });
        }
    }

    fn note(&mut self, is_there: bool, code: &'static str, text: impl Into<String>, names: Vec<String>) {
        if is_there {
            self.notes.push(Finding { code, status: Status::Recorded, text: text.into(), names });
        }
    }

    fn note_for(&mut self, names: Vec<String>, code: &'static str, text: &str) {
        self.note(!names.is_empty(), code, text, names);
    }
}

impl<'s> Service<'s> {
    fn customers(&self) -> impl Iterator<Item = &'s Customer> {
        let policy = self.policy;
        policy.customer_names().filter_map(|id| policy.customer(policy.customer_named(id.as_str())?))
    }

    fn subprocessors(&self) -> impl Iterator<Item = &'s Subprocessor> {
        let policy = self.policy;
        policy.subprocessor_names().filter_map(|id| policy.subprocessor(policy.subprocessor_named(id.as_str())?))
    }

    fn callers(&self) -> impl Iterator<Item = &'s OwnCaller> {
        let policy = self.policy;
        policy.caller_names().filter_map(|id| policy.caller(policy.caller_named(id.as_str())?))
    }

    fn purpose(&self, kind: PurposeKind) -> Option<PurposeId> {
        let named = |id: &crate::policy::terms::Id| self.policy.purpose_named(id.as_str());
        let is_it = |id: &PurposeId| self.policy.purpose(*id).is_some_and(|purpose| purpose.kind == kind);
        self.policy.purpose_names().filter_map(named).find(is_it)
    }

    /// The ids of customers of which something holds.
    fn customers_that(&self, is_so: impl Fn(&Customer) -> bool) -> Vec<String> {
        self.customers().filter(|customer| is_so(customer)).map(|customer| customer.id.to_string()).collect()
    }

    fn routes(&self, is_so: impl Fn(&Route) -> bool) -> Vec<String> {
        let routes = self.settings.routes.all().iter().filter(|route| is_so(route));
        routes
            .map(|route| {
                let methods: Vec<&str> = route.methods.iter().map(http::Method::as_str).collect();
                let methods = if methods.is_empty() { String::new() } else { format!(" ({})", methods.join(", ")) };
                let host = route.host.as_ref().map(|host| format!("{host} ")).unwrap_or_default();
                format!("{host}{}{methods}", route.path)
            })
            .collect()
    }

    fn is_observed(&self) -> bool {
        self.settings.enforcement == Enforcement::Observe
    }

    /// What becomes of requests, if the policy is older than the settings allow.
    fn stale(&self) -> Option<OnStale> {
        let most = self.settings.policy.max_age.filter(|most| most.is_over(self.policy, self.now));
        most.map(|most| most.then)
    }

    /// The customers whose violations are blocked, and those whose pass.
    pub(super) fn by_enforcement(&self) -> (Vec<String>, Vec<String>) {
        let observes = |customer: &Customer| self.is_observed() || customer.enforcement == Enforcement::Observe;
        (self.customers_that(|customer| !observes(customer)), self.customers_that(observes))
    }

    /// What is done about an obligation.
    pub(super) fn found(&self, obligation: Obligation) -> Found {
        let mut draft = Draft::default();
        let rules: Vec<&'static str> = obligation.rules().into_iter().map(|code| code.as_str()).collect();
        if !rules.is_empty() {
            self.rules(&mut draft);
        }
        match obligation {
            Obligation::Scope => self.scope(&mut draft),
            Obligation::AgreementInForce => {
                let blocked = self.customers_that(|it| it.accepted_at.is_none_or(|accepted| self.now < accepted));
                draft.note_for(
                    blocked,
                    "not_accepted",
                    "each request breaks this rule for customers that have not accepted the agreement",
                );
            }
            Obligation::NoThirdPartyRights => self.no_third_party_rights(&mut draft),
            Obligation::AcceptedDutiesOnly => {
                let proposed = |it: &Customer| it.instructions.iter().any(|instruction| instruction.in_force.is_none());
                draft.note_for(
                    self.customers_that(proposed),
                    "proposed_instructions",
                    "instructions that are not accepted permit and restrict nothing; customers that have some",
                );
            }
            Obligation::CustomerOwned => self.proofs(&mut draft),
            Obligation::OnBehalf => {
                self.proofs(&mut draft);
                let fixed = |route: &Route| {
                    route.subject.as_ref().is_some_and(|subject| matches!(subject.purpose, Take::Constant(_)))
                };
                draft.note_for(
                    self.routes(fixed),
                    "fixed_purpose",
                    "the route says the purpose, the caller does not declare it",
                );
            }
            Obligation::PurposePermitted
            | Obligation::NoSale
            | Obligation::NoCrossContextAdvertising
            | Obligation::DirectRelationshipOnly => {}
            Obligation::SubprocessorAuthorized => self.egress(&mut draft),
            Obligation::SubprocessorAgreement => {
                let without =
                    self.subprocessors().filter(|it| !it.agreement.is_some_and(|period| period.contains(self.now)));
                draft.note_for(
                    without.map(|it| it.id.to_string()).collect(),
                    "no_agreement_in_force",
                    "no agreement in force passes the duties on, so each request breaks this rule, of subprocessors",
                );
            }
            Obligation::SubprocessorObjection => {
                let later = self.subprocessors().filter(|it| self.now < it.effective.from);
                draft.note_for(
                    later.map(|it| it.id.to_string()).collect(),
                    "not_effective_yet",
                    "subprocessors that may not be used yet, except for customers that consented",
                );
                draft.note_for(
                    self.customers_that(|it| it.objections.iter().any(|(_, since)| *since <= self.now)),
                    "objections",
                    "customers that refused subprocessors",
                );
            }
            Obligation::StorageResidency => self.storage(&mut draft),
            Obligation::TransferResidency => {
                let without = self.callers().filter(|it| it.location.is_none()).map(|it| it.id.to_string());
                draft.note_for(
                    without.collect(),
                    "location_by_claim",
                    "a signed claim has to say where they are, since the policy does not: callers",
                );
            }
            Obligation::ReturnOrDelete => self.return_or_delete(&mut draft),
            Obligation::Confidentiality => self.confidentiality(&mut draft),
            Obligation::SecurityMeasures => self.measures(&mut draft),
            Obligation::Cooperation => self.cooperation(&mut draft),
            Obligation::ChangeOfLaw => {
                let suspended = |it: &Customer| it.suspended_at.is_some_and(|since| since <= self.now);
                draft.note_for(
                    self.customers_that(suspended),
                    "suspended",
                    "only return is open, since the law bars the service, for",
                );
                self.has_purpose(&mut draft, PurposeKind::DataReturn, "data_return");
                self.is_stopped(&mut draft);
            }
            Obligation::SubscriberRequests => self.subscriber_requests(&mut draft),
            Obligation::CannotComplyNotice => self.cannot_comply(&mut draft),
            Obligation::Audits => self.audits(&mut draft),
            Obligation::BreachNotice => self.breaches(&mut draft),
        }
        let Draft { held, gaps, notes } = draft;
        let worst = gaps.iter().map(|gap| gap.status).max();
        let best = held.iter().map(|(status, _)| *status).min();
        Found { status: worst.or(best).unwrap_or(Status::NotMet), rules, held, gaps, notes }
    }

    /// What all rules have in common: whether they block.
    fn rules(&self, draft: &mut Draft) {
        let (enforced, observed) = self.by_enforcement();
        if self.is_observed() {
            draft.gap(true, "sidecar_observes", SIDECAR_OBSERVES, Vec::new());
            return;
        }
        if !enforced.is_empty() {
            let all = enforced.len() + observed.len();
            draft.hold(
                Status::Enforced,
                &format!(
                    "each request is held against it, and what breaks it is blocked, for {} of {all} customers",
                    enforced.len()
                ),
            );
        }
        draft.gap(
            self.stale() == Some(OnStale::Warn),
            "policy_stale",
            "the policy is too old, and requests are decided by it all the same (`on_stale: warn`)",
            Vec::new(),
        );
        draft.observed_for(!observed.is_empty(), "customers_observed", CUSTOMERS_OBSERVED, observed);
    }

    fn scope(&self, draft: &mut Draft) {
        let is_outside = |route: &Route| route.subject.is_none();
        let is_catch_all = |route: &Route| is_outside(route) && route.path.starts_with("/{*");
        draft.gap_for(
            self.routes(is_catch_all),
            "catch_all",
            "every path that no other route maps passes outside the agreement, by",
        );
        draft.note_for(
            self.routes(|route| is_outside(route) && !is_catch_all(route)),
            "out_of_scope",
            "declared to be without subscriber data: requests pass, and are recorded, on",
        );
        draft.observed_for(
            self.policy.enforcement == Enforcement::Observe && !self.is_observed(),
            "default_observed",
            "requests that name no customer of the policy are only observed (`defaults.enforcement`)",
            Vec::new(),
        );
        let beside = self.ingress_upstreams().filter(|upstream| !is_near(&upstream.address)).map(|it| it.name.clone());
        draft.note_for(
            beside.collect(),
            "reachable_beside",
            "whoever can connect to it over the network walks around the sidecar; close that way to the upstream",
        );
    }

    fn ingress_upstreams(&self) -> impl Iterator<Item = &'s forward::UpstreamSettings> {
        let Settings { listeners, upstreams, .. } = self.settings;
        let is_of_ingress = move |place: usize| listeners.iter().any(|it| it.egress.is_none() && it.upstream == place);
        upstreams.iter().enumerate().filter(move |(place, _)| is_of_ingress(*place)).map(|(_, upstream)| upstream)
    }

    fn no_third_party_rights(&self, draft: &mut Draft) {
        draft.hold(
            Status::Recorded,
            "who is no party is told that and nothing else; its requests are recorded as those of a third party",
        );
        self.records(draft);
    }

    /// Whether records may be missing.
    fn records(&self, draft: &mut Draft) {
        draft.gap(
            self.settings.log.on_failure == OnFailure::Allow,
            "records_may_be_missing",
            "a permitted request passes without its record if the log cannot be written (`on_failure: allow`)",
            Vec::new(),
        );
        draft.gap(
            self.is_observed(),
            "records_may_be_missing_under_observe",
            "under observe a request passes without its record if the log cannot be written",
            Vec::new(),
        );
    }

    /// On what it rests that a caller is who it says.
    fn proofs(&self, draft: &mut Draft) {
        let (mut far, mut near) = (Vec::new(), Vec::new());
        for way in &self.settings.trust.ways {
            let (what, peers) = match way {
                Way::Header { name, trusted_peers } => (format!("header {name}"), trusted_peers),
                Way::ForwardedCertificate { trusted_peers } => ("X-Forwarded-Client-Cert".to_owned(), trusted_peers),
                Way::Certificate { .. } | Way::Tokens(_) | Way::Stated { .. } => continue,
            };
            for network in &peers.networks {
                let is_near = network.network().is_loopback() && network.broadcast().is_loopback();
                let list = if is_near { &mut near } else { &mut far };
                list.push(format!("{what} from {network}"));
            }
            if peers.on_unix_sockets {
                near.push(format!("{what} on a Unix socket"));
            }
        }
        draft.gap_for(
            far,
            "callers_by_address",
            "the address alone is believed: whoever sends from there can name any caller, by",
        );
        draft.note_for(
            near,
            "callers_by_this_machine",
            "this machine is believed: whatever else runs in the pod can name any caller, by",
        );
    }

    fn egress(&self, draft: &mut Draft) {
        let seen: Vec<&str> = self
            .settings
            .listeners
            .iter()
            .filter_map(|it| it.egress.as_ref())
            .map(|it| it.recipient.as_str())
            .collect();
        let unseen = self.subprocessors().filter(|it| it.effective.contains(self.now));
        let unseen = unseen.filter(|it| !seen.contains(&it.id.as_str())).map(|it| it.id.to_string());
        draft.note_for(
            unseen.collect(),
            "egress_unseen",
            "what the service itself sends to these is not seen here, since no listener with `direction: egress` is for them",
        );
    }

    fn storage(&self, draft: &mut Draft) {
        let mut places: Vec<Location> = vec![self.settings.storage_location];
        places.extend(self.ingress_upstreams().filter_map(|upstream| upstream.storage_location));
        let elsewhere = |customer: &Customer| {
            let agreed = &self.policy.residency(customer).storage_locations;
            places.iter().any(|place| !agreed.iter().any(|allowed| allowed.covers(*place)))
        };
        draft.note_for(
            self.customers_that(elsewhere),
            "kept_elsewhere",
            "each request breaks this rule for customers that did not agree to where this service keeps data",
        );
    }

    fn return_or_delete(&self, draft: &mut Draft) {
        draft.hold(Status::Recorded, "each return and each erasure is recorded with its outcome");
        let ended = |it: &Customer| it.ending.is_some_and(|(since, _)| since <= self.now);
        draft.note_for(
            self.customers_that(ended),
            "ended",
            "only return, erasure and legal duties are open, since the agreement has ended, for",
        );
        self.has_purpose(draft, PurposeKind::DataReturn, "data_return");
        self.has_purpose(draft, PurposeKind::Erasure, "erasure");
        self.is_stopped(draft);
    }

    /// What has to be carried out is denied with everything else while the policy is too old.
    fn is_stopped(&self, draft: &mut Draft) {
        let (enforced, _) = self.by_enforcement();
        if self.stale() == Some(OnStale::Deny) {
            let text = "the policy is too old, so each request is denied, these as well, for";
            draft.gap_for(enforced, "policy_stale", text);
        }
    }

    /// A purpose without which a duty cannot be carried out.
    fn has_purpose(&self, draft: &mut Draft, kind: PurposeKind, name: &str) {
        let is_there = self.purpose(kind).is_some();
        draft.gap(
            !is_there,
            "no_purpose",
            format!("the policy has no purpose `{name}`: nobody can carry it out"),
            vec![name.to_owned()],
        );
        let may = |id: PurposeId| self.callers().any(|caller| caller.permitted_purposes.contains(id));
        let nobody = self.purpose(kind).is_some_and(|id| !may(id));
        draft.gap(
            nobody,
            "nobody_may",
            format!("no caller of the processor's own may ask for `{name}`: nobody carries it out"),
            vec![name.to_owned()],
        );
        let serves = |route: &Route| match route.subject.as_ref().map(|subject| &subject.purpose) {
            Some(Take::Constant(purpose)) => purpose == name,
            Some(Take::Path(_) | Take::Query(_) | Take::Context | Take::Claim) => true,
            None => false,
        };
        draft.gap(
            is_there && self.routes(serves).is_empty(),
            "no_route",
            format!("no route lets a caller ask for `{name}`"),
            vec![name.to_owned()],
        );
    }

    fn confidentiality(&self, draft: &mut Draft) {
        let (people, without): (Vec<&OwnCaller>, Vec<&OwnCaller>) =
            self.callers().partition(|it| it.undertaking.is_some());
        let over = people.iter().filter(|it| !it.undertaking.is_some_and(|period| period.contains(self.now)));
        draft.note_for(
            over.map(|it| it.id.to_string()).collect(),
            "undertaking_not_in_force",
            "the people behind them have no undertaking in force, so each request breaks this rule, of callers",
        );
        draft.note_for(
            without.iter().map(|it| it.id.to_string()).collect(),
            "no_people_declared",
            "taken for machines, so that no undertaking is asked, since they say nothing of people (`human_access`): callers",
        );
    }

    fn measures(&self, draft: &mut Draft) {
        let security = &self.policy.security;
        if security.min_tls_version.is_none() && !security.client_certificate_required {
            // The rule has nothing to hold a connection against.
            draft.held.clear();
        }
        let in_clear: Vec<String> = self
            .settings
            .listeners
            .iter()
            .filter(|it| it.egress.is_none() && it.tls.is_none() && matches!(it.address, sockets::Address::Tcp(_)))
            .map(|it| format!("{} ({})", it.name, it.address))
            .collect();
        match security.min_tls_version {
            Some(floor) => {
                draft.hold(
                    Status::Enforced,
                    &format!("a connection below TLS {} is denied, request by request", floor.as_str()),
                );
                draft.note_for(in_clear, "denied_in_clear", "each request breaks this rule on listeners in clear");
            }
            None => {
                let text = "the policy promises no `security_measures.min_tls_version`: how a connection is protected is not asked";
                draft.gap(true, "no_transport_floor", text, Vec::new());
                draft.gap_for(
                    in_clear,
                    "listeners_in_clear",
                    "callers are not protected on their way to listeners in clear",
                );
            }
        }
        if security.client_certificate_required {
            draft.hold(Status::Enforced, "a connection without a client certificate is denied");
        }
        let upstreams = self.settings.upstreams.iter().filter(|it| it.tls.is_none() && !is_near(&it.address));
        draft.gap_for(
            upstreams.map(|it| it.name.clone()).collect(),
            "upstreams_in_clear",
            "data goes on in clear over the network to",
        );
        if self.policy.require_enforce {
            draft.hold(Status::Gated, "the sidecar does not start if it would only observe (`require_enforce`)");
        }
        let terms = &self.settings.policy;
        if terms.key.is_some() {
            draft.hold(Status::Gated, "a policy that is not signed is not taken");
        }
        draft.hold(
            Status::Gated,
            "a policy that is weaker than the one in force, without consent or notice, does not replace it",
        );
        if terms.baseline.is_some() {
            draft.hold(
                Status::Gated,
                "a policy that is weaker than the agreed one, without consent or notice, is not started with",
            );
        }
        draft.gap(
            terms.key.is_none(),
            "policy_unsigned",
            "the policy is not signed: whoever can write the file can weaken it",
            Vec::new(),
        );
        draft.gap(
            terms.baseline.is_none(),
            "no_baseline",
            "the policy is held against no agreed one at the start: `check --against` before a change is all that stops a weaker one",
            Vec::new(),
        );
    }

    fn cooperation(&self, draft: &mut Draft) {
        if self.purpose(PurposeKind::RightsFulfilment).is_some() {
            draft.hold(
                Status::Enforced,
                "a subscriber's request with its reference passes whatever purposes the customer lists; a denial is recorded",
            );
        }
        draft.hold(Status::Recorded, "each such request is recorded with its reference, and when it ended");
        self.has_purpose(draft, PurposeKind::RightsFulfilment, "rights_fulfilment");
        self.is_stopped(draft);
    }

    fn subscriber_requests(&self, draft: &mut Draft) {
        let establishes = |route: &Route| route.subject.as_ref().is_some_and(|it| it.subscriber.is_some());
        let blind = |route: &Route| route.subject.as_ref().is_some_and(|it| it.subscriber.is_none());
        draft.gap_for(
            self.routes(blind),
            "routes_without_subscriber",
            "a restriction is not seen on routes that do not say which subscriber a request is about",
        );
        if self.routes(establishes).is_empty() {
            draft.held.clear();
        }
        draft.gap(
            self.routes(|route| route.subject.is_some()).is_empty(),
            "no_route_with_data",
            "no route is inside the agreement: there is nothing that a restriction could be held against",
            Vec::new(),
        );
        let is_now = |period: Period| period.contains(self.now);
        let restricts =
            |it: &Customer| it.instructions.iter().any(|it| it.restricts.is_some() && it.in_force.is_some_and(is_now));
        draft.note_for(
            self.customers_that(restricts),
            "restrictions",
            "customers that restricted the data of subscribers",
        );
    }

    fn cannot_comply(&self, draft: &mut Draft) {
        draft.hold(
            Status::Recorded,
            "this report says what is not met; each denied and each observed decision is recorded",
        );
        draft.gap(self.is_observed(), "sidecar_observes", SIDECAR_OBSERVES, Vec::new());
        let (_, observed) = self.by_enforcement();
        let is_partly = !self.is_observed() && !observed.is_empty();
        draft.observed_for(is_partly, "customers_observed", CUSTOMERS_OBSERVED, observed);
        draft.gap(
            self.settings.policy.max_age.is_none(),
            "policy_never_stale",
            "nothing notices a policy that is no longer brought up to date (`policy.max_age`)",
            Vec::new(),
        );
        let Some(MaxAge { age, then }) = self.settings.policy.max_age else { return };
        let most = whole(age);
        if then == OnStale::Deny {
            let text =
                format!("when the policy is older than {most}, requests are denied, and recorded as `policy_stale`");
            draft.hold(Status::Recorded, &text);
        }
        draft.observed_for(
            then == OnStale::Warn,
            "stale_passes",
            "when the policy is too old, requests pass by it all the same (`on_stale: warn`): the log says since when",
            Vec::new(),
        );
        let issued = self.policy.issued_at.map(|issued| issued.to_string()).unwrap_or_default();
        let text = format!(
            "the policy is too old: issued at {issued}, it may be {most} old. What customers said since is not in it"
        );
        draft.gap(self.stale().is_some(), "policy_stale", text, Vec::new());
    }

    fn audits(&self, draft: &mut Draft) {
        let log = &self.settings.log;
        let durability = match log.durability {
            Durability::Written => "before a request moves, its record is with the kernel",
            Durability::Synced => "before a request moves, its record is on the disk",
        };
        draft.hold(Status::Recorded, &format!("each decision is in a log that is a chain of hashes; {durability}"));
        self.records(draft);
        draft.gap(
            log.signer.is_none(),
            "log_unsigned",
            "checkpoints of the log are not signed (`signing_key`): whoever can write its files could make it anew",
            Vec::new(),
        );
        draft.gap(
            log.checkpoint_copy.is_none(),
            "no_checkpoint_copy",
            "checkpoints are kept nowhere else (`checkpoint_copy`): a cut end, or an older copy put back, is not seen",
            Vec::new(),
        );
        draft.note(
            log.durability == Durability::Written,
            "lost_with_the_power",
            "records of the last seconds can be lost with the power (`durability: written`)",
            Vec::new(),
        );
        draft.note(
            log.file.is_none(),
            "log_on_stdout",
            "the log goes to standard output alone: whoever reads it has to keep it",
            Vec::new(),
        );
        let keep = log.file.as_ref().and_then(|file| file.keep);
        let text = keep.map(|keep| format!("of closed files of the log, {keep} are kept; older records are removed"));
        draft.note(text.is_some(), "retention", text.unwrap_or_default(), Vec::new());
    }

    fn breaches(&self, draft: &mut Draft) {
        draft.hold(
            Status::Recorded,
            "each access that was denied or observed is recorded, with its customer and caller",
        );
        self.records(draft);
        draft.note(
            true,
            "nobody_is_told",
            "the sidecar tells nobody by itself: `audit tail` and the metrics are to be watched",
            Vec::new(),
        );
    }
}

const SIDECAR_OBSERVES: &str =
    "the sidecar as a whole only observes (`enforcement: observe`): what breaks a rule passes";

const CUSTOMERS_OBSERVED: &str = "what breaks a rule passes, and is recorded, for customers on observe in the policy";

/// A time in words: in whole days where it is.
fn whole(age: SignedDuration) -> String {
    const HOURS: i64 = 24;
    match (age.as_hours() / HOURS, SignedDuration::from_hours(age.as_hours() / HOURS * HOURS) == age) {
        (1, true) => "1 day".to_owned(),
        (days, true) => format!("{days} days"),
        (_, false) => format!("{age:#}"),
    }
}

/// Whether an upstream is on this machine.
fn is_near(address: &forward::Address) -> bool {
    match address {
        forward::Address::Unix(_) => true,
        forward::Address::Tcp(address) => {
            let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
            let host = host.trim_start_matches('[').trim_end_matches(']');
            host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
        }
    }
}
