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
    /// DPA060: a test case that asks for something impossible.
    Case,
}

impl Code {
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
            Self::Environment => "DPA040",
            Self::RouteConflict => "DPA041",
            Self::FactSource => "DPA042",
            Self::NotYet => "DPA043",
            Self::NoSink => "DPA044",
            Self::BelowPolicy => "DPA045",
            Self::Unreadable => "DPA046",
            Self::Case => "DPA060",
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
                let help = "indent with blanks, close every quote and bracket, put text with `: ` or ` #` in quotes";
                Self::error(Code::Syntax, at, message, help)
            }
            What::Unsupported(what) => Self::error(
                Code::Unsupported,
                at,
                format!("{what} is not allowed here"),
                "write the value out: what is read has to be what is meant",
            ),
            What::TooDeep => Self::error(
                Code::TooMuch,
                at,
                "lists and maps are nested deeper than 32",
                "no place in these files is deeper than 8: look for a bracket that is not closed",
            ),
            What::DuplicateKey(key, _) => Self::error(
                Code::DuplicateKey,
                at,
                format!("the key `{key}` stands twice in this map"),
                "remove one of the two, or join their values",
            ),
            What::UnknownField(field, known) => {
                let help = nearest(&field, known.iter().map(String::as_str)).map_or_else(
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
                let help = nearest(&word, known.iter().map(String::as_str))
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

/// What was found in the files that were read together.
#[derive(Clone, Debug, Default)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// Whether a file with these problems cannot be used.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|problem| problem.severity == Severity::Error)
    }

    /// Adds one.
    pub fn push(&mut self, problem: Problem) {
        self.0.push(problem);
    }

    /// Adds the faults of a file's form.
    pub fn extend_faults(&mut self, faults: Vec<Fault>) {
        self.0.extend(faults.into_iter().map(Problem::from));
    }

    /// The problems as a person reads them: `path:line:col: error[CODE]: message`, the line, a caret,
    /// help; in file order.
    #[must_use]
    pub fn render(&self, sources: &[Source], colour: bool) -> String {
        let mut sorted: Vec<&Problem> = self.0.iter().collect();
        sorted.sort_by_key(|problem| (problem.at, problem.code));
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let mut out = String::new();
        for problem in sorted {
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

/// The known name that is nearest to a misspelt one, if any is near.
#[must_use]
pub fn nearest<'n>(given: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let limit = (given.chars().count() / 3).max(1);
    known
        .filter(|name| name.len().abs_diff(given.len()) <= limit)
        .map(|name| (distance(given, name), name))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, name)| name)
}

/// Edits (insert, delete, replace, swap of neighbours) between two short names.
fn distance(one: &str, two: &str) -> usize {
    let two: Vec<char> = two.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=two.len()).collect();
    let mut last = None;
    for (i, a) in one.chars().enumerate() {
        let mut next = vec![i + 1];
        for (j, b) in two.iter().enumerate() {
            let cell = |row: &[usize], at: usize| row.get(at).copied().unwrap_or(usize::MAX / 2);
            let mut best = (cell(&row, j) + usize::from(a != *b)).min(cell(&row, j + 1) + 1).min(cell(&next, j) + 1);
            if j > 0 && last == Some(*b) && two.get(j - 1) == Some(&a) {
                best = best.min(cell(&before, j - 1) + 1);
            }
            next.push(best);
        }
        last = Some(a);
        before = std::mem::replace(&mut row, next);
    }
    row.last().copied().unwrap_or(0)
}
