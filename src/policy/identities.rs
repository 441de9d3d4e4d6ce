//! Identities in a tree of their segments, so that finding one costs its length, however many there are.

use std::collections::HashMap;

use super::Party;
use super::terms::Identity;

/// Identities and whose they are; `*` segments in a branch of their own.
#[derive(Default)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    entries: Vec<(Identity, Party)>,
}

#[derive(Default)]
struct Node {
    fixed: HashMap<Box<str>, usize>,
    any: Option<usize>,
    entry: Option<usize>,
}

impl Tree {
    /// Adds an identity; one that is there already stays.
    pub(super) fn insert(&mut self, identity: Identity, party: Party) {
        if self.nodes.is_empty() {
            self.nodes.push(Node::default());
        }
        let mut at = 0;
        for segment in identity.segments() {
            let next = self.nodes.len();
            let Some(node) = self.nodes.get_mut(at) else { return };
            at = match segment {
                "*" => *node.any.get_or_insert(next),
                segment => match node.fixed.get(segment) {
                    Some(known) => *known,
                    None => *node.fixed.entry(segment.into()).or_insert(next),
                },
            };
            if at == next {
                self.nodes.push(Node::default());
            }
        }
        let entry = self.entries.len();
        if let Some(node) = self.nodes.get_mut(at)
            && node.entry.is_none()
        {
            node.entry = Some(entry);
            self.entries.push((identity, party));
        }
    }

    /// An identity that means something that `identity` means too, taking `*` on either side as any segment.
    pub(super) fn find(&self, identity: &Identity) -> Option<(&Identity, Party)> {
        self.find_where(identity, &|_| true)
    }

    /// The same, of somebody else.
    pub(super) fn find_of_other(&self, identity: &Identity, party: Party) -> Option<(&Identity, Party)> {
        self.find_where(identity, &|other| other != party)
    }

    fn find_where(&self, identity: &Identity, is_meant: &dyn Fn(Party) -> bool) -> Option<(&Identity, Party)> {
        let segments: Vec<&str> = identity.segments().collect();
        let mut open = vec![(0, 0)];
        while let Some((at, depth)) = open.pop() {
            let Some(node) = self.nodes.get(at) else { continue };
            match segments.get(depth) {
                None => {
                    let entry = node.entry.and_then(|entry| self.entries.get(entry));
                    if let Some((identity, party)) = entry.filter(|(_, party)| is_meant(*party)) {
                        return Some((identity, *party));
                    }
                }
                Some(&"*") => open.extend(node.fixed.values().chain(&node.any).map(|next| (*next, depth + 1))),
                Some(segment) => {
                    open.extend(node.any.iter().chain(node.fixed.get(*segment)).map(|next| (*next, depth + 1)));
                }
            }
        }
        None
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = &(Identity, Party)> {
        self.entries.iter()
    }
}
