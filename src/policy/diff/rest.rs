//! What two policies write otherwise without any decision being another.

use std::collections::HashSet;

use super::Change;
use super::Concerns;
use super::Direction;
use super::Kind;
use crate::policy::places::Place;
use crate::policy::places::Places;
use crate::yaml::At;
use crate::yaml::Node;
use crate::yaml::Value;

/// Every key that differs and that none of `changes` is about.
#[must_use]
pub fn rest(old: &Places<'_>, new: &Places<'_>, changes: &[Change]) -> Vec<Change> {
    let ats = |places: &Places<'_>| changes.iter().filter_map(|change| places.at(&change.place)).collect();
    let mut walk = Walk { old_told: ats(old), new_told: ats(new), found: Vec::new() };
    let mut keys: Vec<&str> = Vec::new();
    for key in old.top_keys().chain(new.top_keys()) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    for key in keys {
        let mut path = vec![key.to_owned()];
        let (old, new) = (old.all(key), new.all(key));
        match key {
            "callers" | "subprocessors" | "customers" => walk.entries(&mut path, &old, &new, true),
            _ => walk.keys(&mut path, old.first().copied(), new.first().copied()),
        }
    }
    walk.found
}

struct Walk {
    old_told: HashSet<At>,
    new_told: HashSet<At>,
    found: Vec<Change>,
}

impl Walk {
    /// Lists of entries with ids, of all files.
    fn entries(&mut self, path: &mut Vec<String>, old: &[&Node], new: &[&Node], are_open: bool) {
        let (old, new) = (ids(old), ids(new));
        let known: HashSet<&str> = old.iter().map(|(id, _)| *id).collect();
        let others: std::collections::HashMap<&str, &Node> = new.iter().copied().collect();
        let added = new.iter().filter(|(id, _)| !known.contains(id)).map(|(id, node)| (*id, None, Some(*node)));
        let kept = old.iter().map(|(id, node)| (*id, Some(*node), others.get(id).copied()));
        for (id, old, new) in kept.chain(added) {
            path.push(id.to_owned());
            if are_open {
                self.keys(path, old, new)
            } else {
                self.compare(path, old, new)
            }
            path.pop();
        }
    }

    /// The keys of a map.
    fn keys(&mut self, path: &mut Vec<String>, old: Option<&Node>, new: Option<&Node>) {
        let (Some(Value::Map(old_keys)), Some(Value::Map(new_keys))) =
            (old.map(|node| &node.value), new.map(|node| &node.value))
        else {
            self.compare(path, old, new);
            return;
        };
        let new_only = new_keys.iter().filter(|(key, _)| !old_keys.iter().any(|(known, _)| known.text == key.text));
        for (key, _) in old_keys.iter().chain(new_only) {
            path.push(key.text.clone());
            let old = old.and_then(|node| node.get(&key.text));
            let new = new.and_then(|node| node.get(&key.text));
            if let [section, _] = path.as_slice()
                && section == "purposes"
            {
                self.purpose(path, old, new);
            } else if key.text == "instructions" {
                self.entries(path, old.as_slice(), new.as_slice(), false);
            } else {
                self.compare(path, old, new);
            }
            path.pop();
        }
    }

    /// A purpose: what it is under the CCPA is more than wording, even where no decision changes by it.
    fn purpose(&mut self, path: &[String], old: Option<&Node>, new: Option<&Node>) {
        let mapped = |node: Option<&Node>| node?.get(MAPPED)?.text().map(str::to_owned);
        let Some((before, after)) = mapped(old).zip(mapped(new)).filter(|(before, after)| before != after) else {
            self.compare(path, old, new);
            return;
        };
        let name = path.last().cloned().unwrap_or_default();
        let [old_mapped, new_mapped] = [old, new].map(|node| node.and_then(|node| node.get(MAPPED)));
        if !self.is_told(old_mapped, new_mapped) {
            let place = Place::Key(path.iter().cloned().chain([MAPPED.to_owned()]).collect());
            self.found.push(Change {
                kind: Kind::BusinessPurpose,
                direction: Direction::Neutral,
                concerns: Concerns::Nobody,
                text: format!("`{name}` is `{after}` instead of `{before}`; no decision changes by it"),
                values: vec![before, after],
                place,
            });
        }
        self.compare(path, old.map(unmapped).as_ref(), new.map(unmapped).as_ref());
    }

    fn is_told(&self, old: Option<&Node>, new: Option<&Node>) -> bool {
        old.is_some_and(|node| self.old_told.contains(&node.at))
            || new.is_some_and(|node| self.new_told.contains(&node.at))
    }

    fn compare(&mut self, path: &[String], old: Option<&Node>, new: Option<&Node>) {
        let is_told = self.is_told(old, new);
        let what = match (old, new) {
            (Some(old), Some(new)) if same(old, new) => return,
            (None, None) => return,
            (Some(_), Some(_)) => "is written otherwise",
            (None, Some(_)) => "is new",
            (Some(_), None) => "is gone",
        };
        if is_told {
            return;
        }
        self.found.push(Change {
            kind: Kind::Wording,
            direction: Direction::Neutral,
            concerns: Concerns::Nobody,
            values: Vec::new(),
            text: format!("`{}` {what}; no decision changes by it alone", path.join(".")),
            place: Place::Key(path.to_vec()),
        });
    }
}

/// The key that says what a purpose is under the CCPA.
const MAPPED: &str = "ccpa_business_purpose";

/// A purpose without that key.
fn unmapped(node: &Node) -> Node {
    let mut node = node.clone();
    if let Value::Map(keys) = &mut node.value {
        keys.retain(|(key, _)| key.text != MAPPED);
    }
    node
}

/// Entries by id, in file order.
fn ids<'n>(lists: &[&'n Node]) -> Vec<(&'n str, &'n Node)> {
    let entries = lists.iter().flat_map(|list| match &list.value {
        Value::List(items) => items.as_slice(),
        Value::Map(_) | Value::Scalar { .. } => &[],
    });
    entries.filter_map(|entry| Some((entry.get("id")?.text()?, entry))).collect()
}

/// Whether two nodes say the same, wherever they stand.
fn same(one: &Node, two: &Node) -> bool {
    match (&one.value, &two.value) {
        (Value::Scalar { text: one, .. }, Value::Scalar { text: two, .. }) => one == two,
        (Value::List(one), Value::List(two)) => {
            one.len() == two.len() && one.iter().zip(two).all(|(one, two)| same(one, two))
        }
        (Value::Map(keys), Value::Map(others)) => {
            keys.len() == others.len()
                && keys.iter().all(|(key, one)| two.get(&key.text).is_some_and(|two| same(one, two)))
        }
        (Value::Scalar { .. } | Value::List(_) | Value::Map(_), _) => false,
    }
}
