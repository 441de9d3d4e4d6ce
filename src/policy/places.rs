//! Where in the files something stands. A running sidecar keeps no places; who explains reads the files
//! again.

use std::collections::HashMap;

use super::problem::Source;
use crate::yaml;
use crate::yaml::At;
use crate::yaml::Node;
use crate::yaml::Value;

/// Something that a policy says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A key of an entry of `callers`.
    Caller(String, &'static str),
    /// A key of an entry of `subprocessors`.
    Subprocessor(String, &'static str),
    /// A key of an entry of `customers`.
    Customer(String, &'static str),
    /// An instruction of a customer.
    Instruction(String, String),
    /// A customer's residency, or the default that it goes by.
    Residency(String),
    /// A purpose.
    Purpose(String),
    /// A key of the whole file.
    Top(&'static str),
    /// Keys, and ids of list entries, one below the other from the top.
    Key(Vec<String>),
}

/// The files of a policy as trees.
pub struct Places<'s> {
    sources: &'s [Source],
    roots: Vec<Node>,
    /// Where the lines of each file begin: a long file is not counted through for each place.
    lines: Vec<Vec<usize>>,
    /// Where each entry with an id is: section, id; root, place in the list.
    entries: HashMap<&'static str, HashMap<String, (usize, usize)>>,
}

/// The lists whose entries have ids.
const SECTIONS: [&str; 3] = ["callers", "subprocessors", "customers"];

impl<'s> Places<'s> {
    /// Reads the files; one that cannot be read has no places.
    #[must_use]
    pub fn new(sources: &'s [Source]) -> Self {
        let read = |(file, source): (u16, &Source)| yaml::read(&source.text, file).ok();
        let roots: Vec<Node> = (0..).zip(sources).filter_map(read).collect();
        let by_id = |section: &str| {
            let lists = roots.iter().enumerate().filter_map(|(root, node)| Some((root, list(node.get(section)?))));
            let entries =
                lists.flat_map(|(root, list)| list.iter().enumerate().map(move |(at, node)| (node, (root, at))));
            // The first of an id counts.
            let mut by_id = HashMap::new();
            for (node, place) in entries {
                let Some(id) = node.get("id").and_then(Node::text) else { continue };
                by_id.entry(id.to_owned()).or_insert(place);
            }
            by_id
        };
        let entries = SECTIONS.map(|section| (section, by_id(section))).into_iter().collect();
        let breaks =
            |text: &str| text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1).collect();
        let starts = |source: &Source| std::iter::once(0).chain::<Vec<usize>>(breaks(&source.text)).collect();
        Self { sources, roots, lines: sources.iter().map(starts).collect(), entries }
    }

    /// `path:line` of a place. A key that an entry leaves out is where the entry is.
    #[must_use]
    pub fn find(&self, place: &Place) -> Option<String> {
        let (path, line, _) = self.position(self.at(place)?)?;
        Some(format!("{path}:{line}"))
    }

    /// Path, line and column, both from 1.
    #[must_use]
    pub fn position(&self, at: At) -> Option<(&str, usize, usize)> {
        let source = self.sources.get(usize::from(at.file))?;
        let starts = self.lines.get(usize::from(at.file))?;
        let byte = usize::try_from(at.start).unwrap_or(usize::MAX).min(source.text.len());
        let line = starts.partition_point(|start| *start <= byte);
        let before = source.text.as_bytes().get(*starts.get(line.checked_sub(1)?)?..byte)?;
        Some((&source.path, line, String::from_utf8_lossy(before).chars().count() + 1))
    }

    /// Where a place is. A key that an entry leaves out is where the entry is.
    #[must_use]
    pub fn at(&self, place: &Place) -> Option<At> {
        match place {
            Place::Caller(id, key) => self.key("callers", id, key),
            Place::Subprocessor(id, key) => self.key("subprocessors", id, key),
            Place::Customer(id, key) => self.key("customers", id, key),
            Place::Instruction(customer, id) => {
                let instructions = self.entry("customers", customer)?.get("instructions")?;
                list(instructions).iter().find(|entry| has_id(entry, id)).map(|entry| entry.at)
            }
            Place::Residency(customer) => {
                let own = self.entry("customers", customer).and_then(|entry| entry.get("residency"));
                let default = || self.roots.iter().find_map(|root| root.get("defaults")?.get("residency"));
                own.or_else(default).map(|node| node.at)
            }
            Place::Purpose(name) => {
                self.roots.iter().find_map(|root| root.get("purposes")?.get(name)).map(|node| node.at)
            }
            Place::Top(key) => self.roots.iter().find_map(|root| root.get(key)).map(|node| node.at),
            Place::Key(path) => self.below(path),
        }
    }

    /// The deepest node of a path that is there.
    fn below(&self, path: &[String]) -> Option<At> {
        let (first, rest) = path.split_first()?;
        let (mut node, rest) = match rest {
            [id, rest @ ..] if SECTIONS.contains(&first.as_str()) => (self.entry(first, id)?, rest),
            rest => (self.roots.iter().find_map(|root| root.get(first))?, rest),
        };
        for key in rest {
            let next = node.get(key).or_else(|| list(node).iter().find(|entry| has_id(entry, key)));
            let Some(next) = next else { break };
            node = next;
        }
        Some(node.at)
    }

    /// The keys of the first file, which is the policy itself.
    pub(super) fn top_keys(&self) -> impl Iterator<Item = &str> {
        let keys = self.roots.first().into_iter().flat_map(|root| match &root.value {
            Value::Map(entries) => entries.as_slice(),
            Value::List(_) | Value::Scalar { .. } => &[],
        });
        // Customers may be in other files only.
        keys.map(|(key, _)| key.text.as_str()).filter(|key| *key != "customers").chain(["customers"])
    }

    /// What stands under a key in each of the files.
    pub(super) fn all(&self, key: &str) -> Vec<&Node> {
        self.roots.iter().filter_map(|root| root.get(key)).collect()
    }

    fn entry(&self, section: &str, id: &str) -> Option<&Node> {
        let (root, at) = self.entries.get(section)?.get(id)?;
        list(self.roots.get(*root)?.get(section)?).get(*at)
    }

    fn key(&self, section: &'static str, id: &str, key: &str) -> Option<At> {
        let entry = self.entry(section, id)?;
        Some(entry.get(key).map_or(entry.at, |node| node.at))
    }
}

fn has_id(entry: &Node, id: &str) -> bool {
    entry.get("id").and_then(Node::text) == Some(id)
}

fn list(node: &Node) -> &[Node] {
    match &node.value {
        Value::List(items) => items,
        Value::Map(_) | Value::Scalar { .. } => &[],
    }
}
