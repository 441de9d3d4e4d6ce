//! Document to policy: resolves every name, reports all mistakes at once, drops nothing.

use std::collections::HashMap;
use std::collections::HashSet;
use std::fmt::Write as _;

use jiff::Timestamp;

use super::CallerId;
use super::CcpaPurpose;
use super::Customer;
use super::CustomerId;
use super::Enforcement;
use super::Instruction;
use super::MAX_PURPOSES;
use super::Notice;
use super::OwnCaller;
use super::Party;
use super::Period;
use super::Permits;
use super::Policy;
use super::Purpose;
use super::PurposeId;
use super::PurposeKind;
use super::PurposeSet;
use super::Residency;
use super::SecurityMeasures;
use super::Subprocessor;
use super::SubprocessorId;
use super::Transfer;
use super::Weakening;
use super::document;
use super::identities::Tree;
use super::problem::Code;
use super::problem::Problem;
use super::problem::Problems;
use super::problem::Source;
use super::problem::nearest;
use super::terms::Date;
use super::terms::Id;
use super::terms::Identity;
use crate::signature::sha256;
use crate::yaml;
use crate::yaml::At;
use crate::yaml::List;
use crate::yaml::Node;
use crate::yaml::Section;
use crate::yaml::Spanned;

/// The globs under `customer_files` of a policy file, if it can be read that far.
#[must_use]
pub fn customer_file_globs(text: &str) -> Vec<(String, At)> {
    // Most policies have none, and need not be read twice to know.
    if !text.contains("customer_files") {
        return Vec::new();
    }
    let Ok(root) = yaml::read_entries(text, 0, "customers", &mut drop) else { return Vec::new() };
    let Some(Node { value: yaml::Value::List(globs), .. }) = root.get("customer_files") else { return Vec::new() };
    globs.iter().filter_map(|glob| Some((glob.text()?.to_owned(), glob.at))).collect()
}

/// Compiles `policy.yaml` (the first source) and its customer files (the others).
///
/// `names` are the names under which the files count for the digest, one for each source; `amend` is
/// laid over the policy first (see [`Node::merge`]), for tests of a policy.
///
/// `look_out` is the moment from which to look for what ends soon; without one nothing is warned of.
///
/// The policy is there unless a problem is an error.
#[must_use]
pub fn compile(
    sources: &[Source],
    names: &[String],
    amend: Option<&Node>,
    look_out: Option<Timestamp>,
) -> (Option<Policy>, Problems) {
    let mut compiler = Compiler { look_out, ..Compiler::default() };
    let policy = compiler.compile(sources, names, amend);
    let problems = compiler.problems;
    if problems.has_errors() { (None, problems) } else { (policy, problems) }
}

/// The digest of a policy of these files, see [`Policy::digest`].
#[must_use]
pub fn digest(sources: &[Source], names: &[String]) -> Box<str> {
    let mut lines: Vec<(&String, String)> =
        names.iter().zip(sources).map(|(name, source)| (name, sha256(source.text.as_bytes()))).collect();
    lines.sort();
    let list: String = lines.iter().fold(String::new(), |mut list, (name, hash)| {
        let _infallible = writeln!(list, "{hash}  {name}");
        list
    });
    sha256(list.as_bytes()).into()
}

#[derive(Default)]
struct Compiler {
    problems: Problems,
    purposes: Vec<Purpose>,
    purpose_ids: HashMap<Id, PurposeId>,
    sets: HashMap<Id, PurposeSet>,
    subprocessor_ids: HashMap<Id, SubprocessorId>,
    /// The names that each section defines, also in entries with a fault: a reference to such an entry
    /// is no second mistake.
    defined: HashSet<(&'static str, String)>,
    identities: Vec<(Spanned<Identity>, Party)>,
    look_out: Option<Timestamp>,
    /// Whether there is any customer, good or bad.
    has_customers: bool,
    /// Purposes that customers or instructions permit, and that parties are there for.
    permitted: PurposeSet,
    served: PurposeSet,
    /// Customers that go by the default residency.
    without_residency: u32,
    /// Where each party's purposes stand.
    party_purposes: Vec<(At, PurposeSet)>,
}

/// Customers that are named for going by the default residency; of further ones the number is told.
const MOST_DEFAULTS: u32 = 20;

/// Where a list of purposes stands, which decides what it may name.
#[derive(Clone, Copy, PartialEq)]
enum PurposeList {
    Set,
    Party,
    Customer,
    Instruction,
}

impl Compiler {
    fn error(&mut self, code: Code, at: At, message: impl Into<String>, help: impl Into<String>) {
        self.problems.push(Problem::error(code, at, message, help));
    }

    fn compile(&mut self, sources: &[Source], names: &[String], amend: Option<&Node>) -> Option<Policy> {
        // Customers are passed over here and read one by one once all that they refer to is known.
        let mut roots = Vec::new();
        let numbered = |(file, source)| (u16::try_from(file).unwrap_or(u16::MAX), source);
        for (file, source) in sources.iter().enumerate().map(numbered) {
            let read = match amend {
                // What is laid over finds its entries in the tree.
                Some(_) if file == 0 => yaml::read(&source.text, file),
                Some(_) | None => {
                    let mut note = |_| self.has_customers = true;
                    yaml::read_entries(&source.text, file, "customers", &mut note)
                }
            };
            match read {
                Ok(root) => roots.push(root),
                Err(faults) => self.problems.extend_faults(faults),
            }
        }
        if roots.len() != sources.len() {
            return None;
        }
        let (first, others) = roots.split_first_mut()?;
        if let Some(amend) = amend {
            first.merge(amend);
        }
        let root_at = first.at;
        self.note_ids(first);
        let lists = std::iter::once(&*first).chain(&*others).filter_map(|root| root.get("customers"));
        self.has_customers |=
            lists.into_iter().any(|list| !matches!(&list.value, yaml::Value::List(list) if list.is_empty()));

        let (document, faults) = first.decode::<document::Document>();
        self.problems.extend_faults(faults);
        for root in others.iter() {
            let (_, faults) = root.decode::<document::CustomerFile>();
            self.problems.extend_faults(faults);
        }
        let rest = if amend.is_some() { 1 } else { 0 };
        let apart = sources.iter().enumerate().map(numbered).skip(rest).collect();
        self.document(document?, apart, root_at, digest(sources, names))
    }

    fn note_ids(&mut self, root: &Node) {
        for section in ["purposes", "purpose_sets", "subprocessors"] {
            let names: Vec<&str> = match root.get(section).map(|node| &node.value) {
                Some(yaml::Value::Map(entries)) => entries.iter().map(|(key, _)| key.text.as_str()).collect(),
                Some(yaml::Value::List(entries)) => {
                    entries.iter().filter_map(|entry| entry.get("id")?.text()).collect()
                }
                Some(yaml::Value::Scalar { .. }) | None => Vec::new(),
            };
            self.defined.extend(names.into_iter().map(|name| (section, name.to_owned())));
        }
    }

    fn is_defined(&self, section: &'static str, id: &Id) -> bool {
        self.defined.contains(&(section, id.as_str().to_owned()))
    }

    fn document(
        &mut self,
        document: document::Document,
        apart: Vec<(u16, &Source)>,
        root_at: At,
        digest: Box<str>,
    ) -> Option<Policy> {
        let document::Document {
            version,
            metadata,
            processor,
            agreement,
            defaults,
            require_enforce,
            security_measures,
            weakening_notices,
            purposes,
            purpose_sets,
            callers,
            subprocessors,
            customers,
            ..
        } = document;
        if let Some(version) = self.needed(version, "version", root_at)
            && version.value != 1
        {
            let message = format!("version {} is not known", version.value);
            self.error(Code::Version, version.at, message, "write `version: 1`");
        }
        self.needed(processor, "processor", root_at);
        let metadata = self.needed(metadata, "metadata", root_at);
        let defaults = self.needed(defaults, "defaults", root_at);
        let purposes = self.needed(purposes, "purposes", root_at).unwrap_or_default();
        let agreement = agreement.given().unwrap_or_default();
        if let Some(hash) = &agreement.document_sha256
            && !(hash.value.len() == 64 && hash.value.bytes().all(|byte| byte.is_ascii_hexdigit()))
        {
            let message = "`document_sha256` is not a SHA-256 in hex";
            self.error(Code::Invalid, hash.at, message, "write the 64 characters that `sha256sum` prints");
        }
        let named: Vec<Spanned<String>> = purposes.entries.iter().map(|(name, _)| name.clone()).collect();
        self.purposes(purposes);
        let known = |name: Spanned<String>| Some((self.purpose_ids.get(name.value.as_str()).copied(), name));
        let named: Vec<_> = named.into_iter().filter_map(known).filter_map(|(id, name)| Some((name, id?))).collect();
        self.purpose_sets(purpose_sets.given().unwrap_or_default());
        let subprocessor_docs = subprocessors.given().map(|list| list.items).unwrap_or_default();
        self.subprocessor_ids = self.number(subprocessor_docs.iter().map(|entry| &entry.id), SubprocessorId);
        let caller_docs = callers.given().map(|list| list.items).unwrap_or_default();
        let caller_ids = self.number(caller_docs.iter().map(|entry| &entry.id), CallerId);
        if !self.has_customers {
            let help = "name at least one under `customers`, or in a file that `customer_files` names";
            self.error(Code::NoCustomers, root_at, "the policy has no customers", help);
        }

        let enforcement = defaults.as_ref().map_or(Enforcement::Enforce, |defaults| defaults.enforcement);
        let residency = defaults.map(|defaults| self.residency(defaults.residency));
        let callers = caller_docs.into_iter().map(|caller| self.caller(caller, &caller_ids)).collect();
        let subprocessors = subprocessor_docs.into_iter().map(|entry| self.subprocessor(entry)).collect();
        let in_tree = customers.given().map(|list| list.items).unwrap_or_default();
        let (customers, customer_ids) = self.customers(in_tree, apart, enforcement, root_at);
        let (identities, identity_patterns) = self.distinct_identities();
        if self.look_out.is_some() && !self.problems.has_errors() {
            self.never_works(&named);
        }
        let document::SecurityMeasures { min_tls_version, client_authentication, decision_log, signed_policy } =
            security_measures.given().unwrap_or_default();
        let metadata = metadata?;
        Some(Policy {
            name: metadata.name,
            revision: metadata.revision,
            issued_at: metadata.issued_at.map(Date::begins),
            digest,
            enforcement,
            require_enforce: require_enforce.given().unwrap_or_default(),
            security: SecurityMeasures {
                min_tls_version,
                client_certificate_required: client_authentication == Some(document::ClientAuthentication::Required),
                decision_log: decision_log.unwrap_or_default(),
                signed_policy,
            },
            notices: weakening_notices
                .given()
                .into_iter()
                .flat_map(|list| list.items)
                .map(|notice| Notice {
                    measure: notice.measure,
                    from: notice.from.into(),
                    to: notice.to.into(),
                    given_at: notice.notice_given_at.begins(),
                })
                .collect(),
            residency: residency?,
            clauses: agreement
                .clauses
                .entries
                .into_iter()
                .map(|(clause, text)| (clause.value.into(), text.into()))
                .collect(),
            purposes: std::mem::take(&mut self.purposes),
            callers,
            subprocessors,
            customers,
            purpose_ids: std::mem::take(&mut self.purpose_ids),
            subprocessor_ids: std::mem::take(&mut self.subprocessor_ids),
            customer_ids,
            caller_ids,
            identities,
            identity_patterns,
        })
    }

    /// A section that has to be there.
    fn needed<T>(&mut self, section: Section<T>, key: &'static str, root_at: At) -> Option<T> {
        self.problems.0.extend(section.missing(key, root_at).map(Problem::from));
        section.given()
    }

    /// The customers of the tree, then those of the sources: each is compiled before the next is decoded.
    fn customers(
        &mut self,
        in_tree: Vec<document::Customer>,
        apart: Vec<(u16, &Source)>,
        enforcement: Enforcement,
        root_at: At,
    ) -> (Vec<Customer>, HashMap<Id, CustomerId>) {
        let mut customers = Vec::new();
        let mut ids = HashMap::new();
        let mut add = |compiler: &mut Self, customer: document::Customer| {
            let id = CustomerId(u32::try_from(customers.len()).unwrap_or(u32::MAX));
            compiler.add_id(&mut ids, &customer.id, id);
            customers.push(compiler.customer(customer, enforcement, id));
        };
        in_tree.into_iter().for_each(|customer| add(self, customer));
        for (file, source) in apart {
            let mut take = |entry: Node| {
                let (customer, faults) = entry.decode::<document::Customer>();
                self.problems.extend_faults(faults);
                customer.into_iter().for_each(|customer| add(self, customer));
            };
            // It was read before, and its faults are known.
            let _known = yaml::read_entries(&source.text, file, "customers", &mut take);
        }
        if self.look_out.is_some() && self.without_residency > MOST_DEFAULTS {
            let message = format!("{} more customers go by the default", self.without_residency - MOST_DEFAULTS);
            let help = "write their `residency`, so that a change of the default does not move their data";
            self.problems.push(Problem::warning(Code::DefaultResidency, root_at, message, help));
        }
        customers.shrink_to_fit();
        ids.shrink_to_fit();
        (customers, ids)
    }

    /// Numbers the entries of a list in file order. Parties of one kind may not share an id.
    fn number<'d, I: Copy>(&mut self, ids: impl Iterator<Item = &'d Spanned<Id>>, id: fn(u32) -> I) -> HashMap<Id, I> {
        let mut numbers = HashMap::new();
        for (number, entry) in (0..).zip(ids) {
            self.add_id(&mut numbers, entry, id(number));
        }
        numbers
    }

    fn add_id<I>(&mut self, ids: &mut HashMap<Id, I>, entry: &Spanned<Id>, id: I) {
        if ids.insert(entry.value.clone(), id).is_some() {
            let message = format!("the id `{}` stands twice in this list", entry.value);
            self.error(Code::DuplicateId, entry.at, message, "give each entry an id of its own");
        }
    }

    fn purposes(&mut self, purposes: yaml::Table<document::Purpose>) {
        for (name, kind) in PurposeKind::BUILT_IN {
            if let Ok(id) = name.parse() {
                self.add_purpose(Purpose { id, kind, is_legal: false, requires_instruction: false });
            }
        }
        for (name, purpose) in purposes.entries {
            let id = match name.value.parse::<Id>() {
                Ok(id) => id,
                Err(error) => {
                    self.error(Code::Invalid, name.at, error.wrong, error.help);
                    continue;
                }
            };
            let kind = PurposeKind::of(id.as_str());
            if self.purpose_ids.contains_key(&id) {
                let message = format!("the purpose `{id}` is built in and cannot be defined");
                self.error(Code::NameTaken, name.at, message, "remove it, or give yours another name");
            } else if self.purposes.len() >= MAX_PURPOSES {
                let message = format!("more than {MAX_PURPOSES} purposes");
                self.error(Code::TooMuch, name.at, message, "join purposes that are permitted together");
            } else {
                let is_legal = purpose.ccpa_business_purpose == CcpaPurpose::Legal;
                self.add_purpose(Purpose { id, kind, is_legal, requires_instruction: purpose.requires_instruction });
            }
        }
    }

    fn add_purpose(&mut self, purpose: Purpose) {
        let number = u32::try_from(self.purposes.len()).unwrap_or(u32::MAX);
        self.purpose_ids.insert(purpose.id.clone(), PurposeId(number));
        self.purposes.push(purpose);
    }

    fn purpose_sets(&mut self, sets: yaml::Table<List<Spanned<Id>>>) {
        for (name, purposes) in sets.entries {
            let id = match name.value.parse::<Id>() {
                Ok(id) => id,
                Err(error) => {
                    self.error(Code::Invalid, name.at, error.wrong, error.help);
                    continue;
                }
            };
            if self.purpose_ids.contains_key(&id) {
                let message = format!("the set `{id}` bears the name of a purpose");
                self.error(Code::NameTaken, name.at, message, "give the set another name");
            }
            self.not_empty(&purposes);
            let set = self.purpose_list(&purposes, PurposeList::Set);
            self.sets.insert(id, set);
        }
    }

    fn purpose_list(&mut self, list: &List<Spanned<Id>>, place: PurposeList) -> PurposeSet {
        let mut set = PurposeSet::default();
        for Spanned { value: id, at } in &list.items {
            let in_sets = matches!(place, PurposeList::Party | PurposeList::Customer);
            if let Some(members) = self.sets.get(id).filter(|_| in_sets) {
                set.join(*members);
                continue;
            }
            let Some(purpose) = self.purpose_ids.get(id).copied() else {
                self.unknown_purpose(id, *at, place);
                continue;
            };
            let kind = PurposeKind::of(id.as_str());
            if kind.is_prohibited() {
                let message = format!("`{id}` is prohibited by the agreement itself and cannot be permitted");
                self.error(Code::Prohibited, *at, message, "remove it: no file and no instruction can permit it");
            } else if kind == PurposeKind::ModelTraining && matches!(place, PurposeList::Set | PurposeList::Customer) {
                let message = format!("`{id}` can only be permitted by an accepted instruction");
                let help = "remove it here, and name it under `permits.purposes` of the customer's instruction";
                self.error(Code::InstructionOnly, *at, message, help);
            } else {
                set.insert(purpose);
            }
        }
        set
    }

    fn unknown_purpose(&mut self, id: &Id, at: At, place: PurposeList) {
        if self.sets.contains_key(id) {
            let message = format!("`{id}` is a set, and a set cannot be named here");
            self.error(Code::UnknownReference, at, message, "name its purposes one by one");
            return;
        }
        if self.is_defined("purposes", id) || (place != PurposeList::Set && self.is_defined("purpose_sets", id)) {
            return;
        }
        let help = {
            let names = self.purpose_ids.keys().chain(self.sets.keys()).map(Id::as_str);
            let near = self.problems.are_few().then(|| nearest(id.as_str(), names)).flatten();
            near.map_or_else(
                || "define it under `purposes`, or name one that is defined there".to_owned(),
                |near| format!("did you mean `{near}`?"),
            )
        };
        let message = format!("there is no purpose `{id}` in this policy");
        self.error(Code::UnknownReference, at, message, help);
    }

    fn subprocessor_named(&mut self, Spanned { value: id, at }: &Spanned<Id>) -> Option<SubprocessorId> {
        let found = self.subprocessor_ids.get(id).copied();
        if found.is_none() && !self.is_defined("subprocessors", id) {
            let names = self.subprocessor_ids.keys().map(Id::as_str);
            let near = self.problems.are_few().then(|| nearest(id.as_str(), names)).flatten();
            let help = near.map_or_else(
                || "list it under `subprocessors`, or name one that is listed there".to_owned(),
                |near| format!("did you mean `{near}`?"),
            );
            let message = format!("there is no subprocessor `{id}` in this policy");
            self.error(Code::UnknownReference, *at, message, help);
        }
        found
    }

    /// A list that is there has entries: an empty one reads like "anything" to some and "nothing" to others.
    fn not_empty<T>(&mut self, list: &List<T>) {
        if list.is_empty {
            let help = "name at least one; where the key is optional, leave it out to set no limit";
            self.error(Code::EmptyList, list.at, "this list is empty", help);
        }
    }

    fn filled<T>(&mut self, list: List<T>) -> Vec<T> {
        self.not_empty(&list);
        list.items
    }

    fn period(&mut self, from: &Spanned<Date>, until: Option<Date>) -> Period {
        let period = Period { from: from.value.begins(), until: until.map(Date::ends) };
        if period.until.is_some_and(|until| until <= period.from) {
            self.error(Code::Dates, from.at, "this begins after it ends", "swap the two dates, or correct one");
        }
        period
    }

    fn ends_soon(&mut self, end: &Spanned<Date>, even_if_ended: bool, what: &str) {
        let Some(now) = self.look_out else { return };
        let ends = end.value.ends();
        let days = ends.duration_since(now).as_hours() / 24;
        let when = match (ends <= now, days) {
            (true, _) if even_if_ended => "has ended".to_owned(),
            (false, 0..=30) => format!("ends in {days} days"),
            _ => return,
        };
        let help = "requests that rest on it are denied from then on: once a new one is signed, write its date here";
        self.problems.push(Problem::warning(Code::EndsSoon, end.at, format!("{what} {when}"), help));
    }

    /// The purposes of one of the processor's own callers or of a subprocessor.
    fn party_purposes(&mut self, list: &List<Spanned<Id>>) -> PurposeSet {
        let set = self.purpose_list(list, PurposeList::Party);
        self.served.join(set);
        self.party_purposes.push((list.at, set));
        set
    }

    /// Warns of what can never take effect. After everything was compiled.
    fn never_works(&mut self, names: &[(Spanned<String>, PurposeId)]) {
        let mut found = Vec::new();
        for (name, id) in names {
            let message = match (self.permitted.contains(*id), self.served.contains(*id)) {
                (true, true) => continue,
                (false, _) => format!("no customer and no instruction permits `{}`", name.value),
                (true, false) => format!("no caller and no subprocessor is there for `{}`", name.value),
            };
            let help = "nobody can use this purpose; the agreement says whether it should be here";
            found.push(Problem::warning(Code::NeverWorks, name.at, message, help));
        }
        for (at, set) in &self.party_purposes {
            if !set.intersects(self.permitted) {
                let message = "no customer permits any of these purposes";
                let help = "every request of this party is denied; the agreement says whether it should be";
                found.push(Problem::warning(Code::NeverWorks, *at, message, help));
            }
        }
        self.problems.0.extend(found);
    }

    fn residency(&mut self, document: document::Residency) -> Residency {
        let transfers = document.transfers.map(|list| self.filled(list)).unwrap_or_default();
        let is_instructed = document.source == document::ResidencySource::Instruction;
        Residency {
            instruction: document.r#ref.filter(|_| is_instructed).map(Into::into),
            storage_locations: self.filled(document.storage_locations),
            access_locations: self.filled(document.access_locations),
            transfers: transfers
                .into_iter()
                .map(|transfer| Transfer {
                    to: self.filled(transfer.to),
                    reference: transfer.r#ref.as_str().into(),
                    // A name that is not there is an error, so the transfer never opens to everybody.
                    subprocessor: transfer.subprocessor.and_then(|id| self.subprocessor_named(&id)),
                })
                .collect(),
        }
    }

    fn identities(&mut self, identities: List<Spanned<Identity>>, party: Option<Party>) {
        if let Some(party) = party {
            self.identities.extend(identities.items.into_iter().map(|identity| (identity, party)));
        }
    }

    fn caller(&mut self, caller: document::Caller, ids: &HashMap<Id, CallerId>) -> OwnCaller {
        let document::Caller { id, identities, location, permitted_purposes, operations, human_access } = caller;
        self.not_empty(&identities);
        self.identities(identities, ids.get(&id.value).copied().map(Party::Own));
        OwnCaller {
            location,
            permitted_purposes: self.party_purposes(&permitted_purposes),
            operations: operations.map(|list| self.filled(list).into_iter().collect()),
            undertaking: human_access.map(|access| access.confidentiality).map(|paper| {
                self.ends_soon(&paper.expires_on, true, "this undertaking");
                self.period(&paper.signed_on, Some(paper.expires_on.value))
            }),
            id: id.value,
        }
    }

    fn subprocessor(&mut self, entry: document::Subprocessor) -> Subprocessor {
        let document::Subprocessor {
            id,
            legal_name,
            identities,
            permitted_purposes,
            operations,
            data_categories,
            storage_locations,
            access_locations,
            agreement,
            effective_at,
            removed_at,
            ..
        } = entry;
        let party = self.subprocessor_ids.get(&id.value).copied().map(Party::Subprocessor);
        self.identities(identities, party);
        Subprocessor {
            legal_name: legal_name.into(),
            permitted_purposes: self.party_purposes(&permitted_purposes),
            operations: operations.map(|list| self.filled(list).into_iter().collect()),
            data_categories: self.filled(data_categories),
            storage_locations: self.filled(storage_locations),
            access_locations: self.filled(access_locations),
            agreement: agreement.filter(|agreement| agreement.flow_down).map(|agreement| {
                if let Some(expires_on) = &agreement.expires_on {
                    self.ends_soon(expires_on, true, "this agreement");
                }
                self.period(&agreement.signed_on, agreement.expires_on.map(|date| date.value))
            }),
            effective: self.period(&effective_at, removed_at),
            id: id.value,
        }
    }

    fn customer(&mut self, customer: document::Customer, default: Enforcement, number: CustomerId) -> Customer {
        let document::Customer {
            id,
            identities,
            dpa,
            permitted_purposes,
            residency,
            objections,
            consents,
            instructions,
            enforcement,
            ..
        } = customer;
        if let Some(identities) = identities {
            self.identities(identities, Some(Party::Customer(number)));
        }
        let ending = self.ending(&dpa);
        self.without_residency += u32::from(residency.is_none());
        if residency.is_none() && self.look_out.is_some() && self.without_residency <= MOST_DEFAULTS {
            let message = format!("`{}` says nothing about residency and goes by the default", id.value);
            let help = "write its `residency`, so that a change of the default does not move its data";
            self.problems.push(Problem::warning(Code::DefaultResidency, id.at, message, help));
        }
        let instructions = instructions.map(|list| list.items).unwrap_or_default();
        let consents = consents.map(|list| list.items).unwrap_or_default();
        self.number(instructions.iter().map(|instruction| &instruction.id), |number| number);
        Customer {
            accepted_at: dpa.accepted_at.map(Date::begins),
            suspended_at: dpa.suspended_by_law_at.map(Date::begins),
            ending,
            permitted_purposes: {
                let set = self.purpose_list(&permitted_purposes, PurposeList::Customer);
                self.permitted.join(set);
                set
            },
            residency: residency.map(|residency| Box::new(self.residency(residency))),
            objections: objections
                .into_iter()
                .flat_map(|list| list.items)
                .filter_map(|objection| {
                    Some((self.subprocessor_named(&objection.subprocessor)?, objection.effective_at.begins()))
                })
                .collect(),
            weakenings: consents.iter().filter_map(|consent| self.weakening(consent)).collect(),
            consents: consents.iter().filter_map(|consent| self.consent(consent)).collect(),
            instructions: instructions.into_iter().map(|instruction| self.instruction(instruction)).collect(),
            enforcement: enforcement.unwrap_or(default),
            id: id.value,
        }
    }

    fn ending(&mut self, dpa: &document::Dpa) -> Option<(Timestamp, Timestamp)> {
        match (&dpa.terminated_at, &dpa.return_until) {
            (None, None) => None,
            (Some(terminated), Some(until)) => {
                let ending = (terminated.value.begins(), until.value.ends());
                if ending.1 <= ending.0 {
                    let message = "the return window ends before the agreement does";
                    self.error(Code::Dates, until.at, message, "`return_until` comes after `terminated_at`");
                }
                Some(ending)
            }
            (Some(terminated), None) => {
                let help = "add `return_until: …`, the last day on which data may be returned";
                self.error(Code::Dates, terminated.at, "`terminated_at` needs `return_until`", help);
                None
            }
            (None, Some(until)) => {
                let help = "add `terminated_at: …`, or remove `return_until`";
                self.error(Code::Dates, until.at, "`return_until` without `terminated_at`", help);
                None
            }
        }
    }

    /// A consent to a subprocessor. One to a weakened measure is read apart: no decision rests on it.
    fn consent(&mut self, consent: &document::Consent) -> Option<(SubprocessorId, Timestamp)> {
        match (&consent.subprocessor, consent.weakening) {
            (Some(subprocessor), None) => {
                Some((self.subprocessor_named(subprocessor)?, consent.given_at.value.begins()))
            }
            (None, Some(_)) => None,
            (None, None) | (Some(_), Some(_)) => {
                let help = "a consent names either `subprocessor: …` or `weakening: …`";
                self.error(Code::OneOf, consent.given_at.at, "this consent names neither, or both", help);
                None
            }
        }
    }

    /// A consent to a weakened measure.
    fn weakening(&mut self, consent: &document::Consent) -> Option<Weakening> {
        let document::Consent { weakening, from, to, given_at, .. } = consent;
        let is_whole = from.is_some() == to.is_some();
        if !is_whole || (weakening.is_none() && from.is_some()) {
            let message = "`from` and `to` are the step of a weakened measure, and one is nothing without the other";
            self.error(
                Code::OneOf,
                given_at.at,
                message,
                "write `{weakening: …, from: …, to: …, …}`, or leave out both",
            );
        }
        let step = from.as_deref().zip(to.as_deref()).map(|(from, to)| (from.into(), to.into()));
        weakening.map(|measure| Weakening { measure, step, given_at: given_at.value.begins() })
    }

    fn instruction(&mut self, instruction: document::Instruction) -> Instruction {
        let document::Instruction { id, reference, accepted_at, valid_from, valid_until, permits, restricts, .. } =
            instruction;
        if let Some(valid_until) = &valid_until {
            self.ends_soon(valid_until, false, "this instruction");
        }
        let valid = self.period(&valid_from, valid_until.map(|date| date.value));
        let has_reference = reference.is_some_and(|reference| !reference.trim().is_empty());
        let in_force = accepted_at
            .filter(|_| has_reference)
            .map(|accepted| Period { from: valid.from.max(accepted.begins()), ..valid });
        let permits = permits.map(|permits| Permits {
            purposes: permits.purposes.map(|list| {
                self.not_empty(&list);
                let set = self.purpose_list(&list, PurposeList::Instruction);
                self.permitted.join(set);
                set
            }),
            operations: permits.operations.map(|list| self.filled(list).into_iter().collect()),
            subprocessors: permits
                .subprocessors
                .map(|list| self.filled(list).iter().filter_map(|id| self.subprocessor_named(id)).collect()),
            data_categories: permits.data_categories.map(|list| self.filled(list)),
        });
        let restricts = restricts.map(|restricts| {
            let Spanned { value, at } = restricts.subscriber;
            if value.is_empty() {
                self.error(Code::Invalid, at, "this restricts nobody", "write the subscriber's reference");
            }
            value.into()
        });
        Instruction { id: id.value, in_force, permits, restricts }
    }

    /// All identities, each of one party only: for exact look-up, and those with a `*`.
    fn distinct_identities(&mut self) -> (HashMap<Identity, Party>, Tree) {
        let mut exact = HashMap::new();
        let mut patterns = Tree::default();
        let mut all = Tree::default();
        for (Spanned { value: identity, at }, party) in std::mem::take(&mut self.identities) {
            if let Some((other, _)) = all.find_of_other(&identity, party) {
                let message = if *other == identity {
                    format!("`{identity}` belongs to two parties")
                } else {
                    format!("`{identity}` could belong to two parties: another one has `{other}`")
                };
                let help = "give each party identities that no other party's entry matches";
                self.problems.push(Problem::error(Code::AmbiguousIdentity, at, message, help));
            }
            all.insert(identity.clone(), party);
            if identity.is_pattern() {
                patterns.insert(identity, party);
            } else {
                exact.insert(identity, party);
            }
        }
        (exact, patterns)
    }
}
