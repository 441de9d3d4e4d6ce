//! Changes a tree of YAML, and keeps what was there, so that it can be put back.
//!
//! A place is a path such as `spec/containers/app/ports/3000/name`: keys of maps, and of lists the entry of that name
//! or, for ports, of that TCP port.

use serde::Deserialize;
use serde::Serialize;

use super::write::is_plainly_text;
use crate::yaml::At;
use crate::yaml::Key;
use crate::yaml::Node;
use crate::yaml::Value;

/// What has been changed in one object. It travels in an annotation of the object.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Original {
    /// The form of this text.
    v: u8,
    /// Values that were replaced or added, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    set: Vec<Was>,
    /// Maps and lists that were not there, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    made: Vec<Made>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Was {
    at: String,
    /// Missing: there was nothing, or no value.
    #[serde(skip_serializing_if = "Option::is_none")]
    was: Option<Plain>,
    now: Plain,
    /// Whether the key was there and had no value.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    null: bool,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Made {
    at: String,
    /// Whether the key was there and had no value.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    null: bool,
}

/// What may stand in a place that is changed.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(super) enum Plain {
    /// A whole number.
    Number(u64),
    /// Text.
    Text(String),
}

impl Plain {
    /// What stands there, if it is one of the two.
    pub(super) fn of(node: &Node) -> Option<Self> {
        match &node.value {
            Value::Scalar { text, quoted: false } if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                text.parse().ok().map(Self::Number)
            }
            Value::Scalar { quoted: false, .. } if is_null(node) => None,
            Value::Scalar { text, quoted } if *quoted || is_plainly_text(text) => Some(Self::Text(text.clone())),
            Value::Scalar { .. } | Value::List(_) | Value::Map(_) => None,
        }
    }

    fn node(&self) -> Node {
        match self {
            Self::Number(number) => scalar(number.to_string(), false),
            Self::Text(text) => scalar(text.clone(), true),
        }
    }
}

fn scalar(text: String, quoted: bool) -> Node {
    Node { at: At::default(), value: Value::Scalar { text, quoted } }
}

fn key(text: &str) -> Key {
    Key { at: At::default(), text: text.to_owned(), quoted: true }
}

/// Whether this is a key without a value, however that is written.
pub(super) fn is_null(node: &Node) -> bool {
    let Value::Scalar { text, quoted: false } = &node.value else { return false };
    matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL")
}

/// Whether this is anything but off. Kubernetes reads YAML 1.1, in which `yes` and `On` are true; so what is not
/// certainly off counts as on.
pub(super) fn is_on(node: &Node) -> bool {
    let off = ["false", "no", "off", "n"];
    !is_null(node) && !node.text().is_some_and(|text| off.iter().any(|word| text.eq_ignore_ascii_case(word)))
}

/// The entries, if this is a list; of anything else none.
pub(super) fn items(node: Option<&Node>) -> &[Node] {
    match node.map(|node| &node.value) {
        Some(Value::List(items)) => items,
        Some(Value::Scalar { .. } | Value::Map(_)) | None => &[],
    }
}

/// The text under a key, if there is one.
pub(super) fn word<'n>(node: &'n Node, key: &str) -> Option<&'n str> {
    node.get(key).filter(|node| !is_null(node)).and_then(Node::text)
}

/// Whether an entry of `ports` speaks TCP.
pub(super) fn is_tcp(port: &Node) -> bool {
    word(port, "protocol").is_none_or(|protocol| protocol == "TCP")
}

/// Whether a step of a path means this entry of a list.
fn is_meant(entry: &Node, step: &str) -> bool {
    let is_port = || ["containerPort", "port"].into_iter().any(|key| word(entry, key) == Some(step)) && is_tcp(entry);
    word(entry, "name") == Some(step) || is_port()
}

/// The node at a place.
pub(super) fn at<'n>(node: &'n Node, path: &str) -> Option<&'n Node> {
    path.split('/').filter(|step| !step.is_empty()).try_fold(node, |node, step| match &node.value {
        Value::Map(_) => node.get(step),
        Value::List(items) => items.iter().find(|entry| is_meant(entry, step)),
        Value::Scalar { .. } => None,
    })
}

/// The node at a place, to be changed.
pub(super) fn at_mut<'n>(node: &'n mut Node, path: &str) -> Option<&'n mut Node> {
    path.split('/').filter(|step| !step.is_empty()).try_fold(node, |node, step| match &mut node.value {
        Value::Map(entries) => entries.iter_mut().find(|(key, _)| key.text == step).map(|(_, node)| node),
        Value::List(items) => items.iter_mut().find(|entry| is_meant(entry, step)),
        Value::Scalar { .. } => None,
    })
}

/// The path of what holds a place, and the last step.
fn parted(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// Puts a value under a key of a map: in the place of the one that is there, or last.
fn put(map: &mut Node, name: &str, value: Node) {
    let Value::Map(entries) = &mut map.value else { return };
    match entries.iter_mut().find(|(key, _)| key.text == name) {
        Some((_, old)) => *old = value,
        None => entries.push((key(name), value)),
    }
}

/// Removes a key, or its value alone.
fn take_away(map: &mut Node, name: &str, null: bool) {
    match null {
        true => put(map, name, scalar("null".to_owned(), false)),
        false => remove(map, name),
    }
}

fn remove(map: &mut Node, name: &str) {
    if let Value::Map(entries) = &mut map.value {
        entries.retain(|(key, _)| key.text != name);
    }
}

/// One object, or a pod template, that is being changed.
pub(super) struct Edits<'n> {
    root: &'n mut Node,
    original: Original,
}

impl<'n> Edits<'n> {
    pub(super) fn of(root: &'n mut Node) -> Self {
        Self { root, original: Original { v: 1, set: Vec::new(), made: Vec::new() } }
    }

    pub(super) fn root(&self) -> &Node {
        self.root
    }

    /// Sets the value at a place whose map is there.
    pub(super) fn set(&mut self, path: &str, now: Plain) {
        let there = at(self.root, path);
        let (was, null) = (there.and_then(Plain::of), there.is_some_and(is_null));
        if was.as_ref() == Some(&now) {
            return;
        }
        let (holder, name) = parted(path);
        if let Some(holder) = at_mut(self.root, holder) {
            put(holder, name, now.node());
            self.original.set.push(Was { at: path.to_owned(), was, now, null });
        }
    }

    /// Puts an entry into the list at a place, first or last. The list is made if it is not there.
    pub(super) fn insert(&mut self, path: &str, entry: Node, first: bool) {
        self.make(path, Value::List(Vec::new()));
        if let Some(Node { value: Value::List(items), .. }) = at_mut(self.root, path) {
            items.insert(if first { 0 } else { items.len() }, entry);
        }
    }

    /// Makes a map or list at a place, and the maps around it, if nothing is there.
    fn make(&mut self, path: &str, value: Value) {
        let there = at(self.root, path);
        if there.is_some_and(|there| !is_null(there)) {
            return;
        }
        let null = there.is_some();
        let (holder, name) = parted(path);
        if !holder.is_empty() {
            self.make(holder, Value::Map(Vec::new()));
        }
        if let Some(holder) = at_mut(self.root, holder) {
            put(holder, name, Node { at: At::default(), value });
            self.original.made.push(Made { at: path.to_owned(), null });
        }
    }

    /// Whether nothing has been changed.
    pub(super) fn are_none(&self) -> bool {
        self.original.set.is_empty() && self.original.made.is_empty()
    }

    /// Writes down what was there, in the annotation of this name, beside others.
    pub(super) fn note(mut self, name: &str, others: &[(&str, &str)]) {
        let path = "metadata/annotations";
        self.make(path, Value::Map(Vec::new()));
        // Numbers and text always encode.
        let Ok(original) = serde_json::to_string(&self.original) else { return };
        if let Some(annotations) = at_mut(self.root, path) {
            for (name, text) in others.iter().chain(&[(name, original.as_str())]) {
                put(annotations, name, scalar((*text).to_owned(), true));
            }
        }
    }
}

impl Original {
    /// Puts back what was there. A value that somebody has changed since stays: its place is told.
    pub(super) fn restore(self, root: &mut Node, annotations: &[&str]) -> Vec<String> {
        let Self { v: _, set, made } = self;
        let mut changed = Vec::new();
        if let Some(all) = at_mut(root, "metadata/annotations") {
            annotations.iter().for_each(|name| remove(all, name));
        }
        for Was { at: path, was, now, null } in set.into_iter().rev() {
            if at(root, &path).and_then(Plain::of) != Some(now) {
                changed.push(path);
                continue;
            }
            let (holder, name) = parted(&path);
            let Some(holder) = at_mut(root, holder) else { continue };
            match was {
                Some(was) => put(holder, name, was.node()),
                None => take_away(holder, name, null),
            }
        }
        for Made { at: path, null } in made.into_iter().rev() {
            let is_empty = |node: &Node| match &node.value {
                Value::Map(entries) => entries.is_empty(),
                Value::List(items) => items.is_empty(),
                Value::Scalar { .. } => false,
            };
            if !at(root, &path).is_some_and(is_empty) {
                continue;
            }
            let (holder, name) = parted(&path);
            let Some(holder) = at_mut(root, holder) else { continue };
            take_away(holder, name, null);
        }
        changed
    }

    /// Reads the annotation.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let original: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if original.v != 1 {
            return Err(format!("it has the form {}, this program knows 1", original.v));
        }
        Ok(original)
    }
}
