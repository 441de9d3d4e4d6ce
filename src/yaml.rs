//! Reads YAML text into a tree of nodes that know where they stand, and decodes it entry by entry.
//!
//! The only user of the YAML crate. A scalar stays text until somebody says what it should be, so
//! `1.10` is never a number by accident and `NO` never a boolean. Anchors, aliases, tags and
//! repeated keys are refused. [`List`] and [`Table`] go on after a bad entry, so that one reading
//! reports the first fault of each.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;

use schemars::JsonSchema;
use schemars::Schema;
use schemars::SchemaGenerator;
use serde::Deserialize;
use serde::Deserializer;
use serde::de;
use serde::de::IntoDeserializer;
use serde::de::Visitor;
use serde_yaml::granit_parser::ErrorKind;
use serde_yaml::granit_parser::Event;
use serde_yaml::granit_parser::Options;
use serde_yaml::granit_parser::Parser;
use serde_yaml::granit_parser::ScalarStyle;
use serde_yaml::granit_parser::Span;

/// Deepest nesting of lists and maps. The deepest place of our own files is 7.
const MAX_DEPTH: usize = 32;

/// The same for [`read_all`]: files of others describe types that hold types, which come to about 60.
const MAX_DEPTH_OF_OTHERS: usize = 200;

/// Faults of one file that are noted; no person reads further.
pub const MOST_FAULTS: usize = 10_000;

/// A range of bytes in one of the files that were read together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct At {
    /// Which file, as the caller of [`read`] numbered it.
    pub file: u16,
    /// First byte.
    pub start: u32,
    /// First byte behind it.
    pub end: u32,
}

/// A value with the place it stands in.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where.
    pub at: At,
    /// What.
    pub value: Value,
}

/// The three shapes of YAML.
#[derive(Clone, Debug)]
pub enum Value {
    /// Text; `quoted` if it was written in quotes or as a block.
    Scalar {
        /// The text, escapes resolved.
        text: String,
        /// Whether it can only be text.
        quoted: bool,
    },
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in file order, keys unique.
    Map(Vec<(Key, Node)>),
}

/// The key of a map entry.
#[derive(Clone, Debug)]
pub struct Key {
    /// Where.
    pub at: At,
    /// Its text.
    pub text: String,
    /// Whether it can only be text.
    pub quoted: bool,
}

/// What is wrong with a file's form, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where.
    pub at: At,
    /// What.
    pub what: What,
}

/// The ways a file's form can be wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Not YAML; the parser's words.
    Syntax(String),
    /// An anchor `&x`, an alias `*x`, a tag `!x` or a second document.
    Unsupported(&'static str),
    /// Nested deeper than so many.
    TooDeep(usize),
    /// A key that stood before in the same map, and where.
    DuplicateKey(String, At),
    /// A key that nobody knows, and the keys that would be known.
    UnknownField(String, &'static [&'static str]),
    /// A key that has to be there.
    MissingField(&'static str),
    /// A word out of a closed list, and the list.
    UnknownWord(String, &'static [&'static str]),
    /// Another shape than expected: what was found, what was expected.
    WrongShape(String, String),
    /// A value that does not parse: what is wrong, what to write instead.
    Invalid(String, String),
}

/// Reads one document.
///
/// # Errors
///
/// The first fault that keeps the text from being a tree, and every repeated key.
pub fn read(text: &str, file: u16) -> Result<Node, Vec<Fault>> {
    read_apart(text, file, None)
}

/// Reads all documents of a file that others wrote, in order; none if there is nothing in it. They may be nested deeper.
///
/// # Errors
///
/// As [`read`].
pub fn read_all(text: &str, file: u16) -> Result<Vec<Node>, Vec<Fault>> {
    let mut tree = Tree::new(file, MAX_DEPTH_OF_OTHERS, None);
    tree.done = Some(Vec::new());
    tree.read(text)?;
    let mut all = tree.done.unwrap_or_default();
    all.extend(tree.root);
    if tree.faults.is_empty() { Ok(all) } else { Err(tree.faults) }
}

/// Reads one document and hands over the entries of the list under one key of its root as they come, instead
/// of keeping them: the list is empty in the tree. What is long is then never in memory as a whole.
///
/// # Errors
///
/// As [`read`]. Entries before a fault have been handed over.
pub fn read_entries(text: &str, file: u16, key: &str, take: &mut dyn FnMut(Node)) -> Result<Node, Vec<Fault>> {
    read_apart(text, file, Some((key, take)))
}

/// The key of a long list, and who takes its entries.
type Apart<'a> = (&'a str, &'a mut dyn FnMut(Node));

fn read_apart(text: &str, file: u16, apart: Option<Apart<'_>>) -> Result<Node, Vec<Fault>> {
    let mut tree = Tree::new(file, MAX_DEPTH, apart);
    tree.read(text)?;
    match tree.root {
        Some(root) if tree.faults.is_empty() => Ok(root),
        Some(_) => Err(tree.faults),
        None => Err(vec![Fault { at: tree.at(0, 0), what: What::Syntax("the file is empty".to_owned()) }]),
    }
}

struct Tree<'a> {
    file: u16,
    open: Vec<Open>,
    root: Option<Node>,
    /// Documents before the one that is open, if there may be any.
    done: Option<Vec<Node>>,
    most_depth: usize,
    faults: Vec<Fault>,
    apart: Option<Apart<'a>>,
}

enum Open {
    List(At, Vec<Node>),
    Map(At, Vec<(Key, Node)>, Option<Key>, Keys),
}

/// Where each key of a map stands, once the map is too long to look through.
type Keys = HashMap<String, At>;

/// Keys up to which a map is looked through: nearly all maps of our files, without a table for each.
const FEW_KEYS: usize = 16;

impl<'a> Tree<'a> {
    fn new(file: u16, most_depth: usize, apart: Option<Apart<'a>>) -> Self {
        Self { file, open: Vec::new(), root: None, done: None, most_depth, faults: Vec::new(), apart }
    }

    /// Takes all of a text, or up to the first fault that keeps it from being a tree.
    fn read(&mut self, text: &str) -> Result<(), Vec<Fault>> {
        let mut options = Options::default();
        options.emit_anchor_events = false;
        options.emit_unresolved_aliases = true;
        options.emit_comments = false;
        for next in Parser::new_from_str_with_options(text, options) {
            let taken = match next {
                Ok((event, span)) => self.take(event, &span),
                Err(error) => {
                    let start = error.marker().byte_offset().unwrap_or(text.len());
                    let is_too_deep = *error.kind() == ErrorKind::RecursionLimitExceeded;
                    let what = if is_too_deep { What::TooDeep(self.most_depth) } else { What::Syntax(error.info()) };
                    Err(Fault { at: self.at(start, start + 1), what })
                }
            };
            if let Err(fault) = taken {
                self.faults.push(fault);
                return Err(std::mem::take(&mut self.faults));
            }
        }
        Ok(())
    }

    fn at(&self, start: usize, end: usize) -> At {
        let byte = |offset: usize| u32::try_from(offset).unwrap_or(u32::MAX);
        At { file: self.file, start: byte(start), end: byte(end) }
    }

    fn take(&mut self, event: Event<'_>, span: &Span) -> Result<(), Fault> {
        let range = span.byte_range().unwrap_or(0..0);
        let at = self.at(range.start, range.end);
        let refuse = |what| Err(Fault { at, what: What::Unsupported(what) });
        if event.tag().is_some() {
            return refuse("a tag (`!…`)");
        }
        match event {
            Event::Scalar(.., 1.., _) | Event::SequenceStart(_, 1.., _) | Event::MappingStart(_, 1.., _) => {
                refuse("an anchor (`&…`)")
            }
            Event::Alias(_) | Event::UnresolvedAlias(_) | Event::Anchor(..) => refuse("an alias (`*…`)"),
            Event::Scalar(text, style, ..) => {
                let quoted = style != ScalarStyle::Plain;
                self.put(Node { at, value: Value::Scalar { text: text.into_owned(), quoted } })
            }
            Event::SequenceStart(..) => self.open(Open::List(at, Vec::new())),
            Event::MappingStart(..) => self.open(Open::Map(at, Vec::new(), None, Keys::new())),
            Event::SequenceEnd | Event::MappingEnd => {
                let node = match self.open.pop() {
                    Some(Open::List(from, items)) => {
                        Node { at: At { end: at.end.max(from.end), ..from }, value: Value::List(items) }
                    }
                    Some(Open::Map(from, entries, ..)) => {
                        Node { at: At { end: at.end.max(from.end), ..from }, value: Value::Map(entries) }
                    }
                    None => return Ok(()),
                };
                self.put(node)
            }
            Event::DocumentStart(..) if self.root.is_some() => match &mut self.done {
                Some(done) => {
                    done.extend(self.root.take());
                    Ok(())
                }
                None => refuse("a second document (`---`)"),
            },
            Event::StreamStart | Event::StreamEnd | Event::DocumentStart(..) | Event::DocumentEnd | _ => Ok(()),
        }
    }

    fn open(&mut self, open: Open) -> Result<(), Fault> {
        let (Open::List(at, _) | Open::Map(at, ..)) = &open;
        if self.open.len() >= self.most_depth {
            return Err(Fault { at: *at, what: What::TooDeep(self.most_depth) });
        }
        self.open.push(open);
        Ok(())
    }

    fn put(&mut self, node: Node) -> Result<(), Fault> {
        if let Some((long, take)) = &mut self.apart
            && let [Open::Map(_, _, Some(key), _), Open::List(..)] = self.open.as_slice()
            && key.text == *long
        {
            take(node);
            return Ok(());
        }
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::List(_, items)) => items.push(node),
            Some(Open::Map(_, entries, key @ None, keys)) => {
                let Value::Scalar { text, quoted } = node.value else {
                    return Err(Fault { at: node.at, what: What::Unsupported("a key that is no text") });
                };
                let first = if entries.len() < FEW_KEYS {
                    entries.iter().find(|(key, _)| key.text == text).map(|(key, _)| key.at)
                } else {
                    if keys.is_empty() {
                        keys.extend(entries.iter().map(|(key, _)| (key.text.clone(), key.at)));
                    }
                    keys.insert(text.clone(), node.at)
                };
                if let Some(first) = first {
                    note(&mut self.faults, Fault { at: node.at, what: What::DuplicateKey(text.clone(), first) });
                }
                *key = Some(Key { at: node.at, text, quoted });
            }
            Some(Open::Map(_, entries, key, _)) => {
                if let Some(key) = key.take() {
                    entries.push((key, node));
                }
            }
        }
        Ok(())
    }
}

impl Node {
    /// The value of a key, if this is a map that has it.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(known, _)| known.text == key).map(|(_, node)| node),
            Value::List(_) | Value::Scalar { .. } => None,
        }
    }

    /// The text, if this is a scalar.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, .. } => Some(text),
            Value::List(_) | Value::Map(_) => None,
        }
    }

    /// Applies `change` to the text of every scalar value (keys stay as they are).
    ///
    /// # Errors
    ///
    /// Each scalar that `change` refused, in file order.
    pub fn rewrite(&mut self, change: &dyn Fn(&str) -> Result<Option<String>, What>) -> Result<(), Vec<Fault>> {
        let mut faults = Vec::new();
        self.rewrite_into(change, &mut faults);
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    fn rewrite_into(&mut self, change: &dyn Fn(&str) -> Result<Option<String>, What>, faults: &mut Vec<Fault>) {
        match &mut self.value {
            Value::Scalar { text, quoted } => match change(text) {
                Ok(None) => {}
                // Quotes may have been needed for what was replaced only.
                Ok(Some(new)) => (*text, *quoted) = (new, false),
                Err(what) => faults.push(Fault { at: self.at, what }),
            },
            Value::List(items) => items.iter_mut().for_each(|node| node.rewrite_into(change, faults)),
            Value::Map(entries) => entries.iter_mut().for_each(|(_, node)| node.rewrite_into(change, faults)),
        }
    }

    /// Lays `over` on top: maps merge key by key, list entries that have the same `id` merge, a list
    /// without ids and a scalar are replaced.
    pub fn merge(&mut self, over: &Node) {
        match (&mut self.value, &over.value) {
            (Value::Map(entries), Value::Map(new)) => {
                for (key, node) in new {
                    match entries.iter_mut().find(|(known, _)| known.text == key.text) {
                        Some((_, old)) => old.merge(node),
                        None => entries.push((key.clone(), node.clone())),
                    }
                }
            }
            (Value::List(items), Value::List(new))
                if !new.is_empty() && new.iter().all(|node| node.get("id").is_some()) =>
            {
                for node in new {
                    let id = node.get("id").and_then(Node::text);
                    match items.iter_mut().find(|old| old.get("id").and_then(Node::text) == id) {
                        Some(old) => old.merge(node),
                        None => items.push(node.clone()),
                    }
                }
            }
            _ => *self = over.clone(),
        }
    }

    /// Decodes the tree.
    ///
    /// # Errors
    ///
    /// What could not be decoded; with [`List`] and [`Table`] in `T`, the first fault of each entry.
    /// The value is there beside the faults if nothing outside such an entry was wrong.
    pub fn decode<'de, T: Deserialize<'de>>(&'de self) -> (Option<T>, Vec<Fault>) {
        let sink = RefCell::new(Vec::new());
        let result = T::deserialize(Decoder { node: self, sink: &sink });
        let mut faults = sink.into_inner();
        match result {
            Ok(value) => (Some(value), faults),
            Err(Error(fault)) => {
                faults.push(fault.unwrap_or(self.at));
                (None, faults)
            }
        }
    }
}

// ---- decoding --------------------------------------------------------------------------------------

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Where.
    pub at: At,
}

/// A list whose bad entries are reported each, and left out.
#[derive(Clone, Debug)]
pub struct List<T> {
    /// Where the list stands.
    pub at: At,
    /// The good entries, in file order.
    pub items: Vec<T>,
    /// Whether the file has any entry, good or bad.
    pub is_empty: bool,
}

/// A map of names to values whose bad entries are reported each, and left out.
#[derive(Clone, Debug)]
pub struct Table<T> {
    /// The good entries, in file order.
    pub entries: Vec<(Spanned<String>, T)>,
}

/// A part of a file whose fault does not hide those of the other parts.
#[derive(Clone, Debug)]
pub enum Section<T> {
    /// It is there and good.
    Good(T),
    /// It is there, and its fault is reported.
    Bad,
    /// It is not there.
    Missing,
}

impl<T> Section<T> {
    /// What is there, if it is good.
    pub fn given(self) -> Option<T> {
        match self {
            Self::Good(value) => Some(value),
            Self::Bad | Self::Missing => None,
        }
    }

    /// The fault of a section that has to be there and is not; `root_at` is where the file is.
    #[must_use]
    pub fn missing(&self, key: &'static str, root_at: At) -> Option<Fault> {
        let at = At { end: root_at.start, ..root_at };
        matches!(self, Self::Missing).then_some(Fault { at, what: What::MissingField(key) })
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Section<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Part<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Part<T> {
            type Value = Section<T>;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a section")
            }
            // A derived struct asks like this for a key that is not there.
            fn visit_none<E: de::Error>(self) -> Result<Section<T>, E> {
                Ok(Section::Missing)
            }
            fn visit_some<D: Deserializer<'de>>(self, there: D) -> Result<Section<T>, D::Error> {
                Ok(match Entry::deserialize(there)? {
                    Entry::Good(value) => Section::Good(value),
                    Entry::Bad => Section::Bad,
                })
            }
        }
        deserializer.deserialize_option(Part(PhantomData))
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { entries: Vec::new() }
    }
}

/// As [`Section::Missing`]: what a schema says of a section that may be left out.
impl<T> Default for Section<T> {
    fn default() -> Self {
        Self::Missing
    }
}

macro_rules! schema_as {
    ($($ours:ident<T> as $known:ty),* $(,)?) => {$(
        impl<T: JsonSchema> JsonSchema for $ours<T> {
            fn inline_schema() -> bool {
                <$known>::inline_schema()
            }
            fn schema_name() -> Cow<'static, str> {
                <$known>::schema_name()
            }
            fn schema_id() -> Cow<'static, str> {
                <$known>::schema_id()
            }
            fn json_schema(generator: &mut SchemaGenerator) -> Schema {
                <$known>::json_schema(generator)
            }
        }
    )*};
}

schema_as!(
    Spanned<T> as T,
    List<T> as Vec<T>,
    Table<T> as BTreeMap<String, T>,
    Section<T> as T,
);

/// Decodes types from their text: [`FromStr`](std::str::FromStr), whose error is the fault.
macro_rules! decoded_from_text {
    ($($term:ty: $expecting:literal),* $(,)?) => {$(
        impl<'de> serde::Deserialize<'de> for $term {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl serde::de::Visitor<'_> for Text {
                    type Value = $term;
                    fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        out.write_str($expecting)
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$term, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
    )*};
}
pub(crate) use decoded_from_text;

const SPANNED: &str = "$yaml::Spanned";
const ENTRY: &str = "$yaml::Entry";

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Spanned<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Parts<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Parts<T> {
            type Value = Spanned<T>;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a value")
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut parts: A) -> Result<Spanned<T>, A::Error> {
                let lost = || de::Error::custom("a value has no place");
                let file = parts.next_element()?.ok_or_else(lost)?;
                let start = parts.next_element()?.ok_or_else(lost)?;
                let end = parts.next_element()?.ok_or_else(lost)?;
                let value = parts.next_element()?.ok_or_else(lost)?;
                Ok(Spanned { value, at: At { file, start, end } })
            }
        }
        deserializer.deserialize_newtype_struct(SPANNED, Parts(PhantomData))
    }
}

/// One entry of a list or map: the value, or nothing after its fault was noted.
enum Entry<T> {
    Good(T),
    Bad,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entry<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Noted<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Noted<T> {
            type Value = Entry<T>;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an entry")
            }
            fn visit_newtype_struct<D: Deserializer<'de>>(self, entry: D) -> Result<Entry<T>, D::Error> {
                // The decoder has noted the fault already; see `Noting`.
                Ok(T::deserialize(entry).map_or(Entry::Bad, Entry::Good))
            }
        }
        deserializer.deserialize_newtype_struct(ENTRY, Noted(PhantomData))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let all = Spanned::<Vec<Entry<T>>>::deserialize(deserializer)?;
        let is_empty = all.value.is_empty();
        let good = |entry| match entry {
            Entry::Good(value) => Some(value),
            Entry::Bad => None,
        };
        Ok(Self { at: all.at, items: all.value.into_iter().filter_map(good).collect(), is_empty })
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Table<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = Table<T>;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a map")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Table<T>, A::Error> {
                let mut entries = Vec::new();
                while let Some((key, value)) = map.next_entry::<Spanned<String>, Entry<T>>()? {
                    if let Entry::Good(value) = value {
                        entries.push((key, value));
                    }
                }
                Ok(Table { entries })
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

/// `Result::Err` of the decoder. The place is filled in by whoever knows it first.
#[derive(Debug)]
struct Error(Unplaced);

#[derive(Debug)]
struct Unplaced {
    at: Option<At>,
    what: What,
}

impl Unplaced {
    fn unwrap_or(self, at: At) -> Fault {
        Fault { at: self.at.unwrap_or(at), what: self.what }
    }
}

impl Error {
    fn new(what: What) -> Self {
        Self(Unplaced { at: None, what })
    }

    fn placed(mut self, at: At) -> Self {
        self.0.at.get_or_insert(at);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?}", self.0.what)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    /// A message of two lines is what is wrong, and what to write instead.
    fn custom<T: fmt::Display>(message: T) -> Self {
        let message = message.to_string();
        let (wrong, help) = message.split_once('\n').unwrap_or((&message, ""));
        Self::new(What::Invalid(wrong.to_owned(), help.to_owned()))
    }
    fn invalid_type(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(What::WrongShape(found.to_string(), expected.to_string()))
    }
    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::new(What::UnknownField(field.to_owned(), expected))
    }
    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::new(What::UnknownWord(variant.to_owned(), expected))
    }
    fn missing_field(field: &'static str) -> Self {
        Self::new(What::MissingField(field))
    }
}

/// A file of nothing but faults is not kept as a whole.
fn note(faults: &mut Vec<Fault>, fault: Fault) {
    if faults.len() < MOST_FAULTS {
        faults.push(fault);
    }
}

#[derive(Clone, Copy)]
struct Decoder<'de, 's> {
    node: &'de Node,
    sink: &'s RefCell<Vec<Fault>>,
}

impl<'de> Decoder<'de, '_> {
    fn note(&self, fault: Fault) {
        note(&mut self.sink.borrow_mut(), fault);
    }

    fn found(&self) -> String {
        match &self.node.value {
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map".to_owned(),
            Value::Scalar { text, quoted: false } if matches!(text.as_str(), "" | "~" | "null") => {
                "no value".to_owned()
            }
            Value::Scalar { text, .. } => format!("`{text}`"),
        }
    }

    fn wrong<T>(&self, expected: impl fmt::Display) -> Result<T, Error> {
        Err(Error::new(What::WrongShape(self.found(), expected.to_string())).placed(self.node.at))
    }

    fn scalar(&self, expected: impl fmt::Display) -> Result<&'de str, Error> {
        match &self.node.value {
            Value::Scalar { text, quoted } if *quoted || !matches!(text.as_str(), "" | "~" | "null") => Ok(text),
            Value::Scalar { .. } | Value::List(_) | Value::Map(_) => self.wrong(expected),
        }
    }

    fn plain(&self, expected: &str) -> Result<&'de str, Error> {
        match &self.node.value {
            Value::Scalar { text, quoted: false } => Ok(text),
            Value::Scalar { .. } | Value::List(_) | Value::Map(_) => self.wrong(expected),
        }
    }
}

macro_rules! whole_numbers {
    ($($method:ident $visit:ident $number:ty),*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            let text = self.plain("a whole number")?;
            match text.parse::<$number>() {
                Ok(number) => visitor.$visit(number).map_err(|error: Error| error.placed(self.node.at)),
                Err(_) => self.wrong("a whole number"),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Decoder<'de, '_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let at = self.node.at;
        match &self.node.value {
            Value::Scalar { .. } => {
                let text = self.scalar(Expecting(&visitor))?;
                visitor.visit_borrowed_str(text)
            }
            Value::List(items) => visitor.visit_seq(Items { items: items.iter(), sink: self.sink }),
            Value::Map(entries) => {
                visitor.visit_map(Entries { entries: entries.iter(), fields: None, value: None, sink: self.sink })
            }
        }
        .map_err(|error| error.placed(at))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.plain("`true` or `false`")? {
            "true" => visitor.visit_bool(true),
            "false" => visitor.visit_bool(false),
            _ => self.wrong("`true` or `false`"),
        }
    }

    whole_numbers!(
        deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16, deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64, deserialize_i64 visit_i64 i64
    );

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let text = self.scalar(Expecting(&visitor))?;
        visitor.visit_borrowed_str(text).map_err(|error: Error| error.placed(self.node.at))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    /// A key that is there has a value: an empty one is an error, never "not given".
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Error> {
        match name {
            SPANNED => visitor.visit_seq(Parts { at: self.node.at, next: 0, inner: Some(self) }),
            ENTRY => visitor.visit_newtype_struct(Noting(self)),
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::List(_) => self.deserialize_any(visitor),
            Value::Scalar { .. } | Value::Map(_) => self.wrong("a list"),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Map(_) => self.deserialize_any(visitor),
            Value::Scalar { .. } | Value::List(_) => self.wrong("a map"),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let Value::Map(entries) = &self.node.value else { return self.wrong("a map") };
        for (key, _) in entries.iter().filter(|(key, _)| !fields.contains(&key.text.as_str())) {
            let what = What::UnknownField(key.text.clone(), fields);
            self.note(Fault { at: key.at, what });
        }
        let entries = Entries { entries: entries.iter(), fields: Some(fields), value: None, sink: self.sink };
        visitor.visit_map(entries).map_err(|error| error.placed(self.node.at))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let expected = variants.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
        let text = self.scalar(format!("one of {expected}"))?;
        visitor.visit_enum(text.into_deserializer()).map_err(|error: Error| error.placed(self.node.at))
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i128 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct ignored_any
    }
}

struct Expecting<'v, V>(&'v V);

impl<'de, V: Visitor<'de>> fmt::Display for Expecting<'_, V> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(out)
    }
}

struct Items<'de, 's> {
    items: std::slice::Iter<'de, Node>,
    sink: &'s RefCell<Vec<Fault>>,
}

impl<'de> de::SeqAccess<'de> for Items<'de, '_> {
    type Error = Error;
    fn next_element_seed<S: de::DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        let Some(node) = self.items.next() else { return Ok(None) };
        seed.deserialize(Decoder { node, sink: self.sink }).map(Some).map_err(|error| error.placed(node.at))
    }
}

struct Entries<'de, 's> {
    entries: std::slice::Iter<'de, (Key, Node)>,
    /// The keys of a struct; others have been noted and are passed over.
    fields: Option<&'static [&'static str]>,
    value: Option<&'de Node>,
    sink: &'s RefCell<Vec<Fault>>,
}

impl<'de> de::MapAccess<'de> for Entries<'de, '_> {
    type Error = Error;

    fn next_key_seed<S: de::DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        let known = |key: &Key| self.fields.is_none_or(|fields| fields.contains(&key.text.as_str()));
        let Some((key, node)) = self.entries.find(|(key, _)| known(key)) else { return Ok(None) };
        self.value = Some(node);
        seed.deserialize(KeyDecoder(key)).map(Some).map_err(|error| error.placed(key.at))
    }

    fn next_value_seed<S: de::DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        let Some(node) = self.value.take() else { return Err(de::Error::custom("a value without a key")) };
        seed.deserialize(Decoder { node, sink: self.sink }).map_err(|error| error.placed(node.at))
    }
}

struct KeyDecoder<'de>(&'de Key);

impl<'de> Deserializer<'de> for KeyDecoder<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_borrowed_str(&self.0.text)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Error> {
        match name {
            SPANNED => visitor.visit_seq(Parts { at: self.0.at, next: 0, inner: Some(self) }),
            _ => visitor.visit_newtype_struct(self),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// File, start, end and then the value: what [`Spanned`] reads.
struct Parts<D> {
    at: At,
    next: u8,
    inner: Option<D>,
}

impl<'de, D: Deserializer<'de, Error = Error>> de::SeqAccess<'de> for Parts<D> {
    type Error = Error;
    fn next_element_seed<S: de::DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        self.next += 1;
        match self.next {
            1 => seed.deserialize(self.at.file.into_deserializer()).map(Some),
            2 => seed.deserialize(self.at.start.into_deserializer()).map(Some),
            3 => seed.deserialize(self.at.end.into_deserializer()).map(Some),
            _ => match self.inner.take() {
                Some(inner) => seed.deserialize(inner).map(Some),
                None => Ok(None),
            },
        }
    }
}

/// Decodes like [`Decoder`], and notes the fault before it returns one.
struct Noting<'de, 's>(Decoder<'de, 's>);

impl Noting<'_, '_> {
    fn note<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        result.map_err(|error| {
            let Error(unplaced) = error;
            let fault = unplaced.unwrap_or(self.0.node.at);
            self.0.note(fault.clone());
            Error(Unplaced { at: Some(fault.at), what: fault.what })
        })
    }
}

macro_rules! noted {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            let result = self.0.$method(visitor);
            self.note(result)
        }
    )*};
}

impl<'de> Deserializer<'de> for Noting<'de, '_> {
    type Error = Error;

    noted!(
        deserialize_any deserialize_bool deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
        deserialize_i64 deserialize_str deserialize_string deserialize_option deserialize_seq deserialize_map
        deserialize_identifier
    );

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Error> {
        let result = self.0.deserialize_newtype_struct(name, visitor);
        self.note(result)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let result = self.0.deserialize_struct(name, fields, visitor);
        self.note(result)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let result = self.0.deserialize_enum(name, variants, visitor);
        self.note(result)
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i128 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct ignored_any
    }
}
