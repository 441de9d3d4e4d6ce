//! What is wrong in a file that an operator wrote: stable code, place, message, help.

use std::fmt;
use std::fmt::Write as _;

use annotate_snippets::AnnotationKind;
use annotate_snippets::Group;
use annotate_snippets::Level;
use annotate_snippets::Renderer;
use annotate_snippets::Snippet;

use crate::yaml::At;
use crate::yaml::Fault;
use crate::yaml::MOST_FAULTS;
use crate::yaml::What;

/// A file as it was read; [`At::file`] is its place in the list that was read together.
#[derive(Clone, Debug)]
pub struct Source {
    /// The path, as the operator wrote it.
    pub path: String,
    /// The text.
    pub text: String,
}

/// What kind of mistake; the code is stable and never used again for something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    /// DPA001: not YAML.
    Syntax,
    /// DPA002: YAML that these files do not use: anchors, aliases, tags, several documents.
    Unsupported,
    /// DPA003: a key twice in one map.
    DuplicateKey,
    /// DPA004: a key nobody knows.
    UnknownField,
    /// DPA005: a key that has to be there.
    MissingField,
    /// DPA006: a word out of a closed list.
    UnknownWord,
    /// DPA007: another shape than expected.
    WrongShape,
    /// DPA008: a value that does not parse.
    Invalid,
    /// DPA009: too deep, too large, too many.
    TooMuch,
    /// DPA010: the file's version.
    Version,
    /// DPA011: an id twice.
    DuplicateId,
    /// DPA012: a reference to something that is not there.
    UnknownReference,
    /// DPA013: a built-in prohibition that a file would permit.
    Prohibited,
    /// DPA014: a purpose that only an instruction can permit.
    InstructionOnly,
    /// DPA015: a name that is taken.
    NameTaken,
    /// DPA016: an identity that could belong to two parties.
    AmbiguousIdentity,
    /// DPA017: an empty list.
    EmptyList,
    /// DPA018: no customers.
    NoCustomers,
    /// DPA019: dates that do not fit together.
    Dates,
    /// DPA020: `customer_files` that name no file, or an unreadable one.
    CustomerFiles,
    /// DPA021: two keys of which exactly one has to be there.
    OneOf,
    /// DPA030: something that ends soon, or has ended.
    EndsSoon,
    /// DPA031: something that can never take effect.
    NeverWorks,
    /// DPA032: a customer that goes by the default residency.
    DefaultResidency,
    /// DPA033: a restriction that a route cannot see.
    UnseenRestriction,
    /// DPA034: a route outside the agreement that takes everything.
    CatchAll,
    /// DPA035: somebody who may say or read more than was surely meant.
    TooTrusting,
    /// DPA040: an environment variable that is not set.
    Environment,
    /// DPA041: routes that nobody can tell apart.
    RouteConflict,
    /// DPA042: a fact that cannot come from where the route takes it.
    FactSource,
    /// DPA043: a setting that this version does not have yet.
    NotYet,
    /// DPA044: the decision log has nowhere to go.
    NoSink,
    /// DPA045: the settings give less than the policy demands.
    BelowPolicy,
    /// DPA046: a file that a setting names cannot be read.
    Unreadable,
    /// DPA050: a certificate, key or revocation list that does not do what it is named for.
    Credentials,
    /// DPA051: a policy that is not as it was signed.
    Signature,
    /// DPA052: a policy that may not follow the one that was agreed last.
    Baseline,
    /// DPA060: a test case that asks for something impossible.
    Case,
    /// DPA070: a workload that the sidecar cannot be put into.
    Workload,
}

impl Code {
    /// All of them.
    pub const ALL: [Self; 39] = [
        Self::Syntax,
        Self::Unsupported,
        Self::DuplicateKey,
        Self::UnknownField,
        Self::MissingField,
        Self::UnknownWord,
        Self::WrongShape,
        Self::Invalid,
        Self::TooMuch,
        Self::Version,
        Self::DuplicateId,
        Self::UnknownReference,
        Self::Prohibited,
        Self::InstructionOnly,
        Self::NameTaken,
        Self::AmbiguousIdentity,
        Self::EmptyList,
        Self::NoCustomers,
        Self::Dates,
        Self::CustomerFiles,
        Self::OneOf,
        Self::EndsSoon,
        Self::NeverWorks,
        Self::DefaultResidency,
        Self::UnseenRestriction,
        Self::CatchAll,
        Self::TooTrusting,
        Self::Environment,
        Self::RouteConflict,
        Self::FactSource,
        Self::NotYet,
        Self::NoSink,
        Self::BelowPolicy,
        Self::Unreadable,
        Self::Credentials,
        Self::Signature,
        Self::Baseline,
        Self::Case,
        Self::Workload,
    ];

    /// The stable code.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Syntax => "DPA001",
            Self::Unsupported => "DPA002",
            Self::DuplicateKey => "DPA003",
            Self::UnknownField => "DPA004",
            Self::MissingField => "DPA005",
            Self::UnknownWord => "DPA006",
            Self::WrongShape => "DPA007",
            Self::Invalid => "DPA008",
            Self::TooMuch => "DPA009",
            Self::Version => "DPA010",
            Self::DuplicateId => "DPA011",
            Self::UnknownReference => "DPA012",
            Self::Prohibited => "DPA013",
            Self::InstructionOnly => "DPA014",
            Self::NameTaken => "DPA015",
            Self::AmbiguousIdentity => "DPA016",
            Self::EmptyList => "DPA017",
            Self::NoCustomers => "DPA018",
            Self::Dates => "DPA019",
            Self::CustomerFiles => "DPA020",
            Self::OneOf => "DPA021",
            Self::EndsSoon => "DPA030",
            Self::NeverWorks => "DPA031",
            Self::DefaultResidency => "DPA032",
            Self::UnseenRestriction => "DPA033",
            Self::CatchAll => "DPA034",
            Self::TooTrusting => "DPA035",
            Self::Environment => "DPA040",
            Self::RouteConflict => "DPA041",
            Self::FactSource => "DPA042",
            Self::NotYet => "DPA043",
            Self::NoSink => "DPA044",
            Self::BelowPolicy => "DPA045",
            Self::Unreadable => "DPA046",
            Self::Credentials => "DPA050",
            Self::Signature => "DPA051",
            Self::Baseline => "DPA052",
            Self::Case => "DPA060",
            Self::Workload => "DPA070",
        }
    }
}

impl Code {
    /// What it means, at length, with an example: `explain DPA0NN`.
    #[must_use]
    pub fn explanation(self) -> &'static str {
        match self {
            Self::Syntax => {
                r#"the file is not YAML.

A bracket or quote is not closed, a line is indented with a tab, or text with `: ` or ` #` in it stands
without quotes. Nothing of the file is used.

Example:
  necessity: Answer: questions   # wrong: `: ` inside plain text
  necessity: "Answer: questions" # right"#
            }
            Self::Unsupported => {
                r#"the file uses YAML that these files do not have.

Anchors, aliases, tags, several documents in one file and keys that are lists or maps are refused: what a
reader sees has to be what counts.

Example:
  permitted_purposes: *base      # wrong: an alias
  permitted_purposes: [base]     # right: a purpose set"#
            }
            Self::DuplicateKey => {
                r#"a key stands twice in one map.

Most YAML readers silently take the last of the two. Here neither is taken.

Example:
  enforcement: enforce
  enforcement: observe           # wrong: which of the two?"#
            }
            Self::UnknownField => {
                r#"a key nobody knows.

A misspelt key would be a rule that does not exist. The nearest known key is suggested.

Example:
  permited_purposes: [base]      # wrong
  permitted_purposes: [base]     # right"#
            }
            Self::MissingField => {
                r#"a key is missing.

The entry has to have this key; there is no default for it.

Example:
  dpa: {version: "3", contract_ref: MSA-1}   # an acceptance may be missing, `version` may not"#
            }
            Self::UnknownWord => {
                r#"a word is not one of a closed list.

The words that fit are listed in the message or in the documentation of the key.

Example:
  enforcement: strict            # wrong
  enforcement: enforce           # right"#
            }
            Self::WrongShape => {
                r#"a value has another shape than expected.

Text where a list has to stand, a number in quotes, or a key without a value. A key that is there has a
value: leave the key out to leave it unset.

Example:
  permitted_purposes: base       # wrong: text
  permitted_purposes: [base]     # right: a list"#
            }
            Self::Invalid => {
                r#"a value cannot be read.

Dates, ids, identities, data categories, addresses, sizes and times each have one form, which the message
names. A US state is written with its country.

Example:
  effective_at: 1 July 2026      # wrong
  effective_at: 2026-07-01       # right"#
            }
            Self::TooMuch => {
                r#"the file is too large, too deep or has too many of something.

A file has at most 16 MiB, 32 levels and 256 purposes.

Example:
  customer_files: ["customers.d/*.yaml"]   # for many customers"#
            }
            Self::Version => {
                r#"the version of the file's format is not known.

This program reads version 1.

Example:
  version: 1"#
            }
            Self::DuplicateId => {
                r#"an id stands twice.

Ids are what decisions, records and references go by, so each is given once in its list.

Example:
  - id: sp-07
  - id: sp-07                    # wrong"#
            }
            Self::UnknownReference => {
                r#"something is named that is not there.

A purpose, set, subprocessor, upstream or customer is referred to and not defined. The nearest name is
suggested. Nothing is guessed.

Example:
  objections: [{subprocessor: sp-7, …}]   # wrong, if the list has sp-07"#
            }
            Self::Prohibited => {
                r#"a built-in prohibition would be permitted.

`sale`, `cross_context_behavioral_advertising` and `own_purpose` are prohibited by the agreement itself
(clauses 7.1 and 7.3). No file and no instruction can permit them.

Example:
  permitted_purposes: [base, sale]   # wrong"#
            }
            Self::InstructionOnly => {
                r#"a purpose would be permitted that only an instruction can permit.

`model_training` is denied unless an accepted instruction of the customer names it.

Example:
  permits: {purposes: [model_training]}   # right: in an instruction"#
            }
            Self::NameTaken => {
                r#"a name is taken.

A purpose bears the name of a built-in one, or a set the name of a purpose.

Example:
  purposes: {sale: {…}}          # wrong"#
            }
            Self::AmbiguousIdentity => {
                r#"an identity could belong to two parties.

A caller has to be exactly one party. `*` stands for one whole path segment and may match more than meant.

Example:
  identities: ["spiffe://a.example/sa/*"]      # party one
  identities: ["spiffe://a.example/sa/pull"]   # wrong: party two matches as well"#
            }
            Self::EmptyList => {
                r#"a list is empty.

Some read an empty list as "nothing", some as "anything". Name an entry; where the key is optional, leave it
out to set no limit.

Example:
  operations: []                 # wrong"#
            }
            Self::NoCustomers => {
                r#"the policy has no customers.

Every request would be refused. Name customers in the file or in `customer_files`.

Example:
  customers: [{id: redwood-strand, …}]"#
            }
            Self::Dates => {
                r#"dates do not fit together.

Something ends before it begins, `terminated_at` and `return_until` are not both there, or a policy whose age counts
(`policy.max_age`) says that it was issued later than now.

Example:
  terminated_at: 2026-03-31
  return_until: 2026-06-30"#
            }
            Self::CustomerFiles => {
                r#"a customer file is missing or cannot be read.

A pattern of `customer_files` matches no file, or a file that it matches is unreadable or no regular file, or all of
them are too large together, or the patterns lead through more than 100,000 files and folders. Paths count from the
folder of the policy.

Example:
  customer_files: ["customers.d/*.yaml"]"#
            }
            Self::OneOf => {
                r#"keys exclude each other.

Exactly one of the keys has to be there, or one makes the other meaningless.

Example:
  consents: [{subprocessor: sp-10, weakening: min_tls_version, …}]   # wrong: one consent, one thing"#
            }
            Self::EndsSoon => {
                r#"something ends soon, or has ended (warning).

A subprocessor's agreement, an undertaking of confidentiality, an instruction or a certificate ends within 30
days, or has ended already. From that moment on requests that rest on it are denied; on a certificate that has
ended no connection comes about.

Example:
  agreement: {ref: SPA-1, signed_on: 2023-06-01, expires_on: 2026-06-30, flow_down: true}"#
            }
            Self::NeverWorks => {
                r#"something can never take effect (warning).

A purpose that no customer and no instruction permits or that no party is there for, a party whose purposes no
customer permits, a route with a purpose that no customer permits, or an identity that no way of the settings can
prove. Mostly a name was forgotten somewhere.

Example:
  purposes: {ad_audit: {…}}      # and nobody's `permitted_purposes` name it"#
            }
            Self::DefaultResidency => {
                r#"a customer says nothing about residency (warning).

It goes by `defaults.residency`. That is allowed; the customer's contract should say the same.

Example:
  - id: dusty-fork               # no `residency`: the default counts"#
            }
            Self::UnseenRestriction => {
                r#"a restriction of a subscriber cannot be seen on a route (warning).

An instruction restricts a subscriber, and the route does not say whom a request is about, so nothing on this
route is refused for it (clause 4.4).

Example:
  subscriber: {from: path, name: id}   # on the route, if its path has {id}"#
            }
            Self::CatchAll => {
                r#"a route outside the agreement takes everything (warning).

`subscriber_data: false` on a path that ends in `{*rest}` right below the root lets every path pass that no
other route maps.

Example:
  - {path: "/{*rest}", subscriber_data: false}        # nearly never meant
  - {path: "/assets/{*rest}", subscriber_data: false} # meant"#
            }
            Self::TooTrusting => {
                r#"somebody may say or read more than was surely meant (warning; an error on egress and for `admin`).

One peer is trusted with two headers that name callers: a proxy that sets one of them, and lets the other through
as it comes in, lets its callers name anybody. Use one way, or have the proxy remove the other header. Or several authorities stand
in one `client_ca`, and more than one trust domain counts: each may name callers of all of them. Or a listener with
`direction: egress` has an address that others reach: whoever does is taken for the service. Or other machines reach
the `admin` listener: what the settings say is for nobody else.

Example:
  - forwarded_certificate: {trusted_peers: [127.0.0.1]}
  - header: {name: DPA-Caller, trusted_peers: [127.0.0.1]}   # does this proxy remove both?"#
            }
            Self::Environment => {
                r#""an environment variable is not set.

`${NAME}` needs the variable; `${NAME:-default}` does not. An empty variable counts as not set.

Example:
  address: "127.0.0.1:${PORT:-8080}""#
            }
            Self::RouteConflict => {
                r#"two routes cannot be told apart.

They have the same path, host and a method in common.

Example:
  - {path: "/v1/{id}", methods: [GET], …}
  - {path: "/v1/{name}", methods: [GET], …}   # wrong"#
            }
            Self::FactSource => {
                r#"a fact cannot come from there.

The path has no such `{name}`, the part of the request is not named, or a subscriber would come from the
context, which the caller writes.

Example:
  customer: {from: path, name: customer}   # the path needs {customer}"#
            }
            Self::NotYet => {
                r#"the setting is not in this version.

The setting is planned and not built. A sidecar that ignored it would do less than its file says, so it does
not start.

Example:
  policy: {file: policy.yaml, candidate: next.yaml}   # `candidate`: not yet"#
            }
            Self::NoSink => {
                r#"the decision log has nowhere to go.

Without a record nothing is forwarded, so a sidecar without a log does not start.

Example:
  decision_log: {file: {path: decisions.ndjson}}"#
            }
            Self::BelowPolicy => {
                r#"the settings give less than the policy demands.

The policy promises the customer something (clause 3.1) that this sidecar would not do.

Example:
  require_enforce: true          # in the policy, and `enforcement: observe` in the settings"#
            }
            Self::Unreadable => {
                r#"a file cannot be read.

The path is wrong, or the sidecar's user may not read the file. Relative paths count from the folder of the
file that names them.

Example:
  policy: {file: policy.yaml}"#
            }
            Self::Credentials => {
                r#"a certificate, key or revocation list does not do what it is named for.

The file is empty, holds something else, is not whole PEM, or the key is not that of the certificate. Only files
that fit each other are taken, at the start and when they change.

Example:
  tls: {certificate: tls.crt, private_key: tls.key}   # made for each other"#
            }
            Self::Signature => {
                r#"the policy is not as it was signed.

With `policy.public_key`, the manifest beside the policy (`policy.yaml.manifest.json`) has to bear a good signature
(`policy.yaml.manifest.sig`) by that key, and list every file of the policy with its content. A file that is changed,
missing or not listed is refused before anything in it is parsed.

Example:
  dpa-sidecar sign --key policy.key policy.yaml   # after each change, by whoever has the key"#
            }
            Self::Baseline => {
                r#"the policy may not follow the one that was agreed last.

`policy.baseline` names that one. The policy has another name, a lower revision, or the same revision with another
content; or something in it is weaker without the consent, notice or instruction that it needs (clauses 2.2, 2.5, 2.8
and 3.2): one that was not used for something before, permits no less than what is added, and ends no sooner. Or the
baseline itself has mistakes, or shares a file with the policy.

Example:
  weakening_notices:             # 90 days before the measure is weakened
    - {measure: min_tls_version, from: "1.3", to: "1.2", notice_given_at: 2026-06-15}"#
            }
            Self::Case => {
                r#"a test case asks for something impossible.

It names a party, service or subprocessor that is not there, or what no request can say.

Example:
  caller: care-dsk               # wrong, if the policy has care-desk"#
            }
            Self::Workload => {
                r#"the sidecar cannot be put into this workload.

`inject` refuses what would not start, or what callers could walk around: the network of the node, ports that are
taken, a port that nobody can tell, a probe that cannot reach a service on loopback. It writes nothing then.

Example:
  hostNetwork: true              # loopback is that of the node: everybody there is taken for the service"#
            }
        }
    }
}

/// Whether a file with this problem can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// It cannot.
    Error,
    /// It can, but somebody should look.
    Warning,
}

impl Severity {
    /// The word in front of the code.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Whether it stops the file.
    pub severity: Severity,
    /// What kind.
    pub code: Code,
    /// Where.
    pub at: At,
    /// What is wrong, in one sentence without a period.
    pub message: String,
    /// What to write instead; may be empty.
    pub help: String,
}

impl Problem {
    /// An error.
    pub fn error(code: Code, at: At, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { severity: Severity::Error, code, at, message: message.into(), help: help.into() }
    }

    /// A warning.
    pub fn warning(code: Code, at: At, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, at, message, help) }
    }
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        let Fault { at, what } = fault;
        match what {
            What::Syntax(message) => {
                let help = "indent with blanks, close every quote and bracket, put text with `: `, ` #` or (within braces) `${…}` in quotes";
                Self::error(Code::Syntax, at, message, help)
            }
            What::Unsupported(what) => Self::error(
                Code::Unsupported,
                at,
                format!("{what} is not allowed here"),
                "write the value out: what is read has to be what is meant",
            ),
            What::TooDeep(most) => Self::error(
                Code::TooMuch,
                at,
                format!("lists and maps are nested deeper than {most}"),
                "no place in these files is deeper than 8: look for a bracket that is not closed",
            ),
            What::DuplicateKey(key, _) => Self::error(
                Code::DuplicateKey,
                at,
                format!("the key `{key}` stands twice in this map"),
                "remove one of the two, or join their values",
            ),
            What::UnknownField(field, known) => {
                let help = nearest(&field, known.iter().copied()).map_or_else(
                    || format!("known here: {}", known.join(", ")),
                    |near| format!("did you mean `{near}`?"),
                );
                Self::error(Code::UnknownField, at, format!("there is no key `{field}` here"), help)
            }
            What::MissingField(field) => Self::error(
                Code::MissingField,
                at,
                format!("the key `{field}` is missing"),
                format!("add `{field}: …`"),
            ),
            What::UnknownWord(word, known) => {
                let help = nearest(&word, known.iter().copied())
                    .map_or_else(|| format!("one of: {}", known.join(", ")), |near| format!("did you mean `{near}`?"));
                Self::error(Code::UnknownWord, at, format!("`{word}` is not one of the words that fit here"), help)
            }
            What::WrongShape(found, expected) => Self::error(
                Code::WrongShape,
                at,
                format!("found {found} where {expected} has to stand"),
                format!("write {expected}"),
            ),
            What::Invalid(wrong, help) => Self::error(Code::Invalid, at, wrong, help),
        }
    }
}

/// Most problems that are shown: one slip of a generator makes thousands, and nobody reads them.
const MAX_SHOWN: usize = 100;

/// What was found in the files that were read together.
#[derive(Clone, Debug, Default)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// Whether a file with these problems cannot be used.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|problem| problem.severity == Severity::Error)
    }

    /// Whether a further problem would be seen by anybody: what helps with it is worth looking for only then.
    #[must_use]
    pub fn are_few(&self) -> bool {
        self.0.len() < MAX_SHOWN
    }

    /// Adds one, unless there are more already than anybody reads. Warnings never take the room of an error.
    pub fn push(&mut self, problem: Problem) {
        let most = match problem.severity {
            Severity::Warning => MOST_FAULTS,
            Severity::Error => 2 * MOST_FAULTS,
        };
        if self.0.len() < most {
            self.0.push(problem);
        }
    }

    /// Adds the faults of a file's form.
    pub fn extend_faults(&mut self, faults: Vec<Fault>) {
        faults.into_iter().for_each(|fault| self.push(fault.into()));
    }

    /// The problems as a person reads them: `path:line:col: error[CODE]: message`, the line, a caret,
    /// help; in file order.
    #[must_use]
    pub fn render(&self, sources: &[Source], colour: bool) -> String {
        let mut sorted: Vec<&Problem> = self.0.iter().collect();
        sorted.sort_by_key(|problem| (problem.at, problem.code));
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let mut out = String::new();
        let left = sorted.len().saturating_sub(MAX_SHOWN);
        if left > 0 {
            // Not to hide the one error behind a hundred warnings.
            sorted.sort_by_key(|problem| problem.severity == Severity::Warning);
        }
        for problem in sorted.into_iter().take(MAX_SHOWN) {
            let Some(source) = sources.get(usize::from(problem.at.file)) else { continue };
            let (line, column) = position(&source.text, problem.at.start);
            // Writing to a String cannot fail.
            let _infallible = writeln!(
                out,
                "{}:{line}:{column}: {}[{}]: {}",
                source.path,
                problem.severity.as_str(),
                problem.code.as_str(),
                problem.message
            );
            let level = match problem.severity {
                Severity::Error => Level::ERROR,
                Severity::Warning => Level::WARNING,
            };
            let shown = snippet(&source.text, problem.at);
            let mut group = Group::with_level(level).element(
                Snippet::source(shown.text)
                    .line_start(shown.line)
                    .annotation(AnnotationKind::Primary.span(shown.start..shown.end)),
            );
            if !problem.help.is_empty() {
                group = group.element(Level::HELP.message(problem.help.as_str()));
            }
            let _infallible = writeln!(out, "{}\n", renderer.render(&[group]));
        }
        if left > 0 {
            let _infallible = writeln!(out, "… and {left} more\n");
        }
        out
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}[{}]: {}", self.severity.as_str(), self.code.as_str(), self.message)
    }
}

/// Line and column (in characters) of a byte, both from 1.
#[must_use]
pub fn position(text: &str, byte: u32) -> (usize, usize) {
    let byte = usize::try_from(byte).unwrap_or(usize::MAX).min(text.len());
    let before = text.as_bytes().get(..byte).unwrap_or_default();
    let line_start = before.iter().rposition(|b| *b == b'\n').map_or(0, |newline| newline + 1);
    let line = before.iter().filter(|b| **b == b'\n').count() + 1;
    let column = String::from_utf8_lossy(before.get(line_start..).unwrap_or_default()).chars().count() + 1;
    (line, column)
}

struct Shown<'t> {
    text: &'t str,
    line: usize,
    start: usize,
    end: usize,
}

/// The first line of a range, and the range within it.
fn snippet(text: &str, at: At) -> Shown<'_> {
    let limit = |offset: u32| floor_char(text, usize::try_from(offset).unwrap_or(usize::MAX).min(text.len()));
    let start = limit(at.start);
    let before = text.get(..start).unwrap_or_default();
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let rest = text.get(line_start..).unwrap_or_default();
    let line_text = rest.lines().next().unwrap_or_default();
    // A line of a megabyte (flow style, or an attack) is shown around the place only.
    let from = floor_char(line_text, (start - line_start).saturating_sub(60).min(line_text.len()));
    let from = if line_text.len() > 160 { from } else { 0 };
    let to = floor_char(line_text, (from + 160).min(line_text.len()));
    let shown = line_text.get(from..to).unwrap_or_default();
    let start_in = (start - line_start).saturating_sub(from).min(shown.len());
    let end_in = limit(at.end).saturating_sub(line_start + from).clamp(start_in, shown.len());
    Shown { text: shown, line: before.matches('\n').count() + 1, start: start_in, end: end_in }
}

fn floor_char(text: &str, mut offset: usize) -> usize {
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

/// Most edits of a misspelling. Bounds what a look costs: the length of a name, not its square.
const MAX_EDITS: usize = 4;

/// The known name that is nearest to a misspelt one, if any is near.
#[must_use]
pub fn nearest<'n>(given: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    // A word of three letters is near to too many others.
    let limit = match given.chars().count() {
        0..=3 => return None,
        length => (length / 3).clamp(1, MAX_EDITS),
    };
    known
        .filter(|name| name.len().abs_diff(given.len()) <= limit)
        .filter_map(|name| Some((distance(given, name, limit)?, name)))
        .min()
        .map(|(_, name)| name)
}

/// Edits (insert, delete, replace, swap of neighbours) between two short names, if no more than `limit`.
fn distance(one: &str, two: &str, limit: usize) -> Option<usize> {
    const FAR: usize = usize::MAX / 2;
    let two: Vec<char> = two.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=two.len()).collect();
    let mut last = None;
    for (i, a) in one.chars().enumerate() {
        let mut next = Vec::with_capacity(row.len());
        next.push(i + 1);
        for (j, b) in two.iter().enumerate() {
            // So far from the diagonal, the difference of the lengths alone is more than `limit`.
            if i.abs_diff(j) > limit {
                next.push(FAR);
                continue;
            }
            let cell = |row: &[usize], at: usize| row.get(at).copied().unwrap_or(FAR);
            let mut best = (cell(&row, j) + usize::from(a != *b)).min(cell(&row, j + 1) + 1).min(cell(&next, j) + 1);
            if j > 0 && last == Some(*b) && two.get(j - 1) == Some(&a) {
                best = best.min(cell(&before, j - 1) + 1);
            }
            next.push(best);
        }
        last = Some(a);
        before = std::mem::replace(&mut row, next);
        if row.iter().chain(&before).min().is_some_and(|least| *least > limit) {
            return None;
        }
    }
    row.last().copied().filter(|edits| *edits <= limit)
}
