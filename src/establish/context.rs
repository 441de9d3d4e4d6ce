//! `DPA-Context`: an RFC 9651 dictionary that says what a request is for.

use std::convert::Infallible;

use http::HeaderMap;
use http::HeaderName;
use sfv::BareItem;
use sfv::InnerList;
use sfv::Item;
use sfv::KeyRef;
use sfv::Parser;
use sfv::visitor::DictionaryVisitor;
use sfv::visitor::EntryVisitor;
use sfv::visitor::InnerListVisitor;
use sfv::visitor::ItemVisitor;

use crate::observed::Unreadable;

/// The header's name.
pub const DPA_CONTEXT: HeaderName = HeaderName::from_static("dpa-context");

/// Most customers that a request may name. More than one is denied in any case and recorded once for each,
/// so a longer list would only be a way to fill the decision log.
pub const MAX_CUSTOMERS: usize = 16;

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
        let mut members = Members::default();
        let parsed = Parser::new(line.as_bytes()).parse_dictionary_with_visitor(&mut members);
        if let Some(fault) = members.fault {
            return Err(fault);
        }
        parsed.map_err(|_| Unreadable::ContextMalformed)?;
        let mut context = Self::default();
        for member in &members.all {
            match member.key {
                Key::Customer => context.customers = Some(customers(member)?),
                Key::Purpose => context.purpose = Some(single(member)?),
                Key::Instruction => context.instruction = Some(single(member)?),
                Key::RequestRef => context.request_ref = Some(single(member)?),
            }
        }
        Ok(context)
    }
}

fn customers(member: &Member) -> Result<Vec<String>, Unreadable> {
    let Some(list) = &member.list else { return Ok(vec![single(member)?]) };
    if !list.params.is_empty() {
        return Err(Unreadable::ContextMalformed);
    }
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

fn single(member: &Member) -> Result<String, Unreadable> {
    member.item.as_ref().ok_or(Unreadable::ContextMalformed).and_then(text)
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

/// What a member says.
#[derive(Clone, Copy, PartialEq)]
enum Key {
    Customer,
    Purpose,
    Instruction,
    RequestRef,
}

/// The members in the order in which they stand there. It stops at the first that may not be there: one that nobody
/// knows, or one that would hide an earlier one of its name (RFC 9651 section 4.2.2).
#[derive(Default)]
struct Members {
    all: Vec<Member>,
    fault: Option<Unreadable>,
}

impl<'de> DictionaryVisitor<'de> for &mut Members {
    type Out = ();
    type Error = Unreadable;

    fn entry(&mut self, key: &'de KeyRef) -> Result<impl EntryVisitor<'de>, Unreadable> {
        let key = match key.as_str() {
            "customer" => Ok(Key::Customer),
            "purpose" => Ok(Key::Purpose),
            "instruction" => Ok(Key::Instruction),
            "request_ref" => Ok(Key::RequestRef),
            _ => Err(Unreadable::ContextMember),
        };
        let key = key.and_then(|key| match self.all.iter().any(|known| known.key == key) {
            true => Err(Unreadable::ContextKeyTwice),
            false => Ok(key),
        });
        match key {
            Ok(key) => {
                self.all.push(Member { key, item: None, list: None });
                Ok(self.all.last_mut())
            }
            Err(fault) => {
                self.fault = Some(fault);
                Err(fault)
            }
        }
    }

    fn finish(self) -> Result<(), Unreadable> {
        Ok(())
    }
}

/// What a member turned out to be.
struct Member {
    key: Key,
    item: Option<Item>,
    list: Option<InnerList>,
}

impl<'de> EntryVisitor<'de> for &mut Member {
    type Error = Infallible;

    fn item(self) -> Result<impl ItemVisitor<'de>, Infallible> {
        Ok(self.item.insert(Item::new(false)))
    }

    fn inner_list(self) -> Result<impl InnerListVisitor<'de>, Infallible> {
        Ok(self.list.insert(InnerList::default()))
    }
}
