//! Step 4: says what a request is about.

pub mod context;
pub mod route;

use crate::decide::facts::Caller;
use crate::decide::facts::Customers;
use crate::decide::facts::Fact;
use crate::decide::facts::Facts;
use crate::decide::facts::Scope;
use crate::decide::facts::Source;
use crate::decide::facts::Why;
use crate::identify::Proven;
use crate::observed::Observed;
use crate::observed::Unreadable;
use crate::observed::decode;
use crate::policy::Policy;

use self::context::Context;
use self::route::Match;
use self::route::Routes;
use self::route::Subject;
use self::route::Take;
use self::route::operation_of;

/// Says what a request is about, from its route, its method, `DPA-Context` and the caller's claims.
///
/// # Errors
///
/// [`Unreadable`] if `DPA-Context` is, or if two sources of one fact differ.
pub fn establish<'a>(
    seen: &Observed<'_>,
    proven: Proven,
    routes: &'a Routes,
    policy: &Policy,
) -> Result<Facts<'a>, Unreadable> {
    let context = Context::read(seen.headers)?;
    let found = routes.find(seen.method, &seen.host, &seen.target);
    let subject = found.as_ref().and_then(|found| found.route.subject.as_ref());
    let mut facts = Facts {
        direction: seen.direction,
        transport: seen.peer.transport,
        caller: caller(proven.identity, policy),
        scope: match (&found, subject) {
            (None, _) => Scope::Unmapped,
            (Some(_), None) => Scope::Outside,
            (Some(_), Some(_)) => Scope::Within,
        },
        route: found.as_ref().map(|found| found.route.path.as_str()),
        customers: Fact::None,
        purpose: Fact::None,
        operation: Fact::None,
        data_categories: &[],
        subscriber: Fact::None,
        instruction: Fact::None,
        request_ref: Fact::None,
        location: proven.claims.location,
        storage: seen.storage,
    };
    let (Some(found), Some(subject)) = (&found, subject) else { return Ok(facts) };
    facts.data_categories = &subject.data_categories;
    facts.operation = match (subject.operation, operation_of(seen.method)) {
        (Some(operation), _) => Fact::Known(operation, Source::Route),
        (None, Some(operation)) => Fact::Known(operation, Source::Method),
        (None, None) => Fact::Unknown(Why::Missing),
    };
    facts.customers = customers(seen, found, subject, &context, policy)?;
    facts.purpose = purpose(seen, found, subject, &context, policy)?;
    facts.subscriber = match &subject.subscriber {
        None => Fact::None,
        Some(take) => match taken(seen, found, take)? {
            Some((subscriber, source)) => Fact::Known(subscriber, source),
            None => Fact::Unknown(Why::Missing),
        },
    };
    facts.instruction = instruction(&context, &facts.customers, policy);
    facts.request_ref = match context.request_ref.filter(|text| is_request_ref(text)) {
        Some(text) => Fact::Known(text, Source::Context),
        None => Fact::None,
    };
    Ok(facts)
}

fn caller(identity: Fact<crate::policy::terms::Identity>, policy: &Policy) -> Fact<Caller> {
    match identity {
        Fact::Known(identity, source) => {
            let party = policy.party(&identity);
            Fact::Known(Caller { identity, party }, source)
        }
        Fact::None => Fact::None,
        Fact::Unknown(why) => Fact::Unknown(why),
    }
}

/// What a route takes from anywhere but `DPA-Context`.
fn taken(seen: &Observed<'_>, found: &Match<'_>, take: &Take) -> Result<Option<(String, Source)>, Unreadable> {
    Ok(match take {
        Take::Constant(text) => Some((text.clone(), Source::Route)),
        Take::Path(name) => {
            let value = found.value(name).map(|value| decode(value, false)).transpose()?;
            value.filter(|value| !value.is_empty()).map(|value| (value, Source::Path))
        }
        Take::Query(name) => {
            let value = seen.target.query_value(name)?;
            value.filter(|value| !value.is_empty()).map(|value| (value, Source::Query))
        }
        Take::Context | Take::Claim => None,
    })
}

fn customers(
    seen: &Observed<'_>,
    found: &Match<'_>,
    subject: &Subject,
    context: &Context,
    policy: &Policy,
) -> Result<Fact<Customers>, Unreadable> {
    let taken = taken(seen, found, &subject.customer)?.map(|(name, source)| (vec![name], source));
    let (names, source) = match (&taken, &context.customers) {
        (Some((ours, _)), Some(theirs)) if ours != theirs => return Err(Unreadable::Contradiction),
        (Some((ours, source)), _) => (ours.as_slice(), *source),
        (None, Some(theirs)) if subject.customer == Take::Context => (theirs.as_slice(), Source::Context),
        (None, _) => return Ok(Fact::Unknown(Why::Missing)),
    };
    let mut known = Vec::new();
    let mut unknown = 0;
    for name in names {
        match policy.customer_named(name) {
            Some(id) => known.push(id),
            None => unknown += 1,
        }
    }
    Ok(match (known.as_slice(), names) {
        (_, []) => Fact::Unknown(Why::Missing),
        ([id], [_]) => Fact::Known(Customers::One(*id), source),
        ([], [name]) => Fact::Unknown(Why::NotInPolicy { length: name.len() }),
        _ => Fact::Known(Customers::Several { known, unknown }, source),
    })
}

fn purpose(
    seen: &Observed<'_>,
    found: &Match<'_>,
    subject: &Subject,
    context: &Context,
    policy: &Policy,
) -> Result<Fact<crate::policy::PurposeId>, Unreadable> {
    let taken = taken(seen, found, &subject.purpose)?;
    let (name, source) = match (taken, &context.purpose) {
        (Some((ours, _)), Some(theirs)) if ours != *theirs => return Err(Unreadable::Contradiction),
        (Some((ours, source)), _) => (ours, source),
        (None, Some(theirs)) if subject.purpose == Take::Context => (theirs.clone(), Source::Context),
        (None, _) => return Ok(Fact::Unknown(Why::Missing)),
    };
    Ok(match policy.purpose_named(&name) {
        Some(id) => Fact::Known(id, source),
        None => Fact::Unknown(Why::NotInPolicy { length: name.len() }),
    })
}

/// The place of the named instruction in the customer's list. It is the customer's, or it is unknown.
fn instruction(context: &Context, customers: &Fact<Customers>, policy: &Policy) -> Fact<usize> {
    let Some(name) = &context.instruction else { return Fact::None };
    let customer = match customers.known() {
        Some(Customers::One(id)) => policy.customer(*id),
        Some(Customers::Several { .. }) | None => None,
    };
    let place = customer.and_then(|customer| {
        customer.instructions.iter().position(|instruction| instruction.id.as_str() == name.as_str())
    });
    match place {
        Some(place) => Fact::Known(place, Source::Context),
        None => Fact::Unknown(Why::NotInPolicy { length: name.len() }),
    }
}

/// The only shape of a reference that may be logged: `DSR-98`. Any other counts as absent.
fn is_request_ref(text: &str) -> bool {
    text.split_once('-').is_some_and(|(letters, digits)| {
        (2..=8).contains(&letters.len())
            && (1..=12).contains(&digits.len())
            && letters.bytes().all(|b| b.is_ascii_uppercase())
            && digits.bytes().all(|b| b.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_references() {
        let table = [
            ("DSR-98", true),
            ("DSR-", false),
            ("D-1", false),
            ("TOOLONGLETTERS-1", false),
            ("DSR-1234567890123", false),
            ("dsr-1", false),
            ("jane@example.com", false),
        ];
        for (text, expected) in table {
            assert_eq!(is_request_ref(text), expected, "{text}");
        }
    }
}
