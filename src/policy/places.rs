//! Where in the files something stands. A running sidecar keeps no places; who explains reads the files
//! again.

use super::problem::Source;
use super::problem::position;
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
}

/// The files of a policy as trees.
pub struct Places<'s> {
    sources: &'s [Source],
    roots: Vec<Node>,
}

impl<'s> Places<'s> {
    /// Reads the files; one that cannot be read has no places.
    #[must_use]
    pub fn new(sources: &'s [Source]) -> Self {
        let read = |(file, source): (u16, &Source)| yaml::read(&source.text, file).ok();
        Self { sources, roots: (0..).zip(sources).filter_map(read).collect() }
    }

    /// `path:line` of a place. A key that an entry leaves out is where the entry is.
    #[must_use]
    pub fn find(&self, place: &Place) -> Option<String> {
        let at = match place {
            Place::Caller(id, key) => self.entry("callers", id, key),
            Place::Subprocessor(id, key) => self.entry("subprocessors", id, key),
            Place::Customer(id, key) => self.entry("customers", id, key),
            Place::Instruction(customer, id) => {
                let customer = self.entries("customers").find(|entry| has_id(entry, customer))?;
                list(customer.get("instructions")?).iter().find(|entry| has_id(entry, id)).map(|entry| entry.at)
            }
            Place::Residency(customer) => {
                let own = self.entries("customers").find(|entry| has_id(entry, customer));
                let default = || self.roots.iter().find_map(|root| root.get("defaults")?.get("residency"));
                own.and_then(|entry| entry.get("residency")).or_else(default).map(|node| node.at)
            }
            Place::Purpose(name) => {
                self.roots.iter().find_map(|root| root.get("purposes")?.get(name)).map(|node| node.at)
            }
            Place::Top(key) => self.roots.iter().find_map(|root| root.get(key)).map(|node| node.at),
        }?;
        let source = self.sources.get(usize::from(at.file))?;
        let (line, _) = position(&source.text, at.start);
        Some(format!("{}:{line}", source.path))
    }

    fn entries(&self, section: &'static str) -> impl Iterator<Item = &Node> {
        self.roots.iter().filter_map(move |root| root.get(section)).flat_map(list)
    }

    fn entry(&self, section: &'static str, id: &str, key: &str) -> Option<At> {
        let entry = self.entries(section).find(|entry| has_id(entry, id))?;
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
