//! `DPA-Context`: an RFC 9651 dictionary that says what a request is for.

use http::HeaderMap;
use http::HeaderName;
use sfv::BareItem;
use sfv::Dictionary;
use sfv::Item;
use sfv::KeyRef;
use sfv::ListEntry;
use sfv::Parser;
use sfv::visitor::DictionaryVisitor;
use sfv::visitor::EntryVisitor;
use sfv::visitor::Ignored;

use crate::observed::Unreadable;

/// The header's name.
pub const DPA_CONTEXT: HeaderName = HeaderName::from_static("dpa-context");

/// Most customers that a request may name. More than one is denied in any case and recorded once for each,
/// so a longer list would only be a way to fill the decision log.
const MAX_CUSTOMERS: usize = 16;

/// What the header says, as it stands there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// The customers, each name once; `None` if there is no such member.
    pub customers: Option<Vec<String>>,
    /// The purpose.
    pub purpose: Option<String>,
    /// The instruction's id.
    pub instruction: Option<String>,
    /// The reference of a subscriber's request.
    pub request_ref: Option<String>,
}

impl Context {
    /// Reads the header; no header is an empty context.
    ///
    /// # Errors
    ///
    /// [`Unreadable`] if it stands there twice, is no dictionary, has a member twice, with parameters, of
    /// another type than Token or String, or one that nobody knows.
    pub fn read(headers: &HeaderMap) -> Result<Self, Unreadable> {
        let mut lines = headers.get_all(DPA_CONTEXT).iter();
        let Some(line) = lines.next() else { return Ok(Self::default()) };
        if lines.next().is_some() {
            return Err(Unreadable::ContextTwice);
        }
        let mut keys = Keys { seen: Vec::new(), fault: None };
        let parsed = Parser::new(line.as_bytes()).parse_dictionary_with_visitor(&mut keys);
        if let Some(fault) = keys.fault {
            return Err(fault);
        }
        parsed.map_err(|_| Unreadable::ContextMalformed)?;
        let dictionary: Dictionary = Parser::new(line.as_bytes()).parse().map_err(|_| Unreadable::ContextMalformed)?;
        let mut context = Self::default();
        for (key, entry) in &dictionary {
            match key.as_str() {
                "customer" => context.customers = Some(customers(entry)?),
                "purpose" => context.purpose = Some(single(entry)?),
                "instruction" => context.instruction = Some(single(entry)?),
                "request_ref" => context.request_ref = Some(single(entry)?),
                _ => return Err(Unreadable::ContextMember),
            }
        }
        Ok(context)
    }
}

fn customers(entry: &ListEntry) -> Result<Vec<String>, Unreadable> {
    match entry {
        ListEntry::Item(item) => Ok(vec![text(item)?]),
        ListEntry::InnerList(list) if list.params.is_empty() => {
            if list.items.len() > MAX_CUSTOMERS {
                return Err(Unreadable::ContextCustomers);
            }
            let mut names = Vec::new();
            for item in &list.items {
                let name = text(item)?;
                if !names.contains(&name) {
                    names.push(name);
                }
            }
            Ok(names)
        }
        ListEntry::InnerList(_) => Err(Unreadable::ContextMalformed),
    }
}

fn single(entry: &ListEntry) -> Result<String, Unreadable> {
    match entry {
        ListEntry::Item(item) => text(item),
        ListEntry::InnerList(_) => Err(Unreadable::ContextMalformed),
    }
}

fn text(item: &Item) -> Result<String, Unreadable> {
    if !item.params.is_empty() {
        return Err(Unreadable::ContextMalformed);
    }
    match &item.bare_item {
        BareItem::Token(token) => Ok(token.as_str().to_owned()),
        BareItem::String(string) => Ok(string.as_str().to_owned()),
        BareItem::Decimal(_)
        | BareItem::Integer(_)
        | BareItem::ByteSequence(_)
        | BareItem::Boolean(_)
        | BareItem::Date(_)
        | BareItem::DisplayString(_) => Err(Unreadable::ContextMalformed),
    }
}

/// Sees every key, also those that a later one of the same name would hide (RFC 9651 section 4.2.2), and
/// stops at the first that may not be there.
struct Keys {
    seen: Vec<String>,
    fault: Option<Unreadable>,
}

impl<'de> DictionaryVisitor<'de> for &mut Keys {
    type Out = ();
    type Error = Unreadable;

    fn entry(&mut self, key: &'de KeyRef) -> Result<impl EntryVisitor<'de>, Unreadable> {
        let key = key.as_str();
        let fault = if self.seen.iter().any(|seen| seen == key) {
            Unreadable::ContextKeyTwice
        } else if matches!(key, "customer" | "purpose" | "instruction" | "request_ref") {
            self.seen.push(key.to_owned());
            return Ok(Ignored);
        } else {
            Unreadable::ContextMember
        };
        self.fault = Some(fault);
        Err(fault)
    }

    fn finish(self) -> Result<(), Unreadable> {
        Ok(())
    }
}
