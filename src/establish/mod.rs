//! Step 4: says what a request is about.

pub mod context;
pub mod route;

use crate::decide::facts::Caller;
use crate::decide::facts::Customers;
use crate::decide::facts::Direction;
use crate::decide::facts::Fact;
use crate::decide::facts::Facts;
use crate::decide::facts::Scope;
use crate::decide::facts::Source;
use crate::decide::facts::Why;
use crate::identify::Claims;
use crate::identify::Proven;
use crate::observed::Observed;
use crate::observed::Unreadable;
use crate::observed::decode;
use crate::observed::is_call;
use crate::policy::Party;
use crate::policy::Policy;
use crate::policy::PurposeId;
use crate::policy::terms::Identity;

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
    let caller = match seen.egress.and_then(|egress| egress.caller) {
        Some(service) => named(service, policy),
        None => caller(proven.identity, policy),
    };
    let claims = if caller.known().is_some() { proven.claims } else { Claims::default() };
    let host = if seen.egress.is_none() { routes.host_on_ingress(&seen.host) } else { Some(seen.host.as_str()) };
    let found = routes.find(seen.method, host, &seen.target);
    let subject = found.as_ref().and_then(|found| found.route.subject.as_ref());
    let mut facts = Facts {
        direction: match seen.egress {
            None => Direction::Ingress,
            Some(egress) => {
                policy.subprocessor_named(egress.recipient).map_or(Direction::EgressToNobody, Direction::Egress)
            }
        },
        transport: seen.peer.transport,
        carried: proven.carried,
        caller,
        scope: match (&found, subject) {
            (None, _) => Scope::Unmapped,
            (Some(_), None) => Scope::Outside,
            (Some(_), Some(_)) => Scope::Within,
        },
        route: found.as_ref().map(|found| found.route.path.as_str()),
        route_place: found.as_ref().map(|found| found.place),
        customers: Fact::None,
        purpose: Fact::None,
        operation: Fact::None,
        data_categories: &[],
        subscriber: Fact::None,
        instruction: Fact::None,
        request_ref: Fact::None,
        location: claims.location.clone(),
        storage: seen.storage,
    };
    let (Some(found), Some(subject)) = (&found, subject) else { return Ok(facts) };
    facts.data_categories = &subject.data_categories;
    // Every call of gRPC is a POST.
    let by_method = operation_of(seen.method).filter(|_| !is_call(seen.headers));
    facts.operation = match (subject.operation, by_method) {
        (Some(operation), _) => Fact::Known(operation, Source::Route),
        (None, Some(operation)) => Fact::Known(operation, Source::Method),
        (None, None) => Fact::Unknown(Why::Missing),
    };
    facts.customers = customers(seen, found, subject, &context, &claims, policy)?;
    facts.purpose = purpose(seen, found, subject, &context, &claims, policy)?;
    facts.subscriber = match &subject.subscriber {
        None => Fact::None,
        Some(take) => match taken(seen, found, take)? {
            Some((subscriber, source)) => Fact::Known(subscriber, source),
            None => Fact::Unknown(Why::Missing),
        },
    };
    facts.instruction = instruction(&context, &claims, &facts.customers, policy)?;
    facts.request_ref = match context.request_ref.filter(|text| is_request_ref(text)) {
        Some(text) => Fact::Known(text, Source::Context),
        None => Fact::None,
    };
    Ok(facts)
}

/// Who that is in the agreement.
fn caller(identity: Fact<Identity>, policy: &Policy) -> Fact<Caller> {
    match identity {
        Fact::Known(identity, source) => {
            let party = policy.party(&identity);
            Fact::Known(Caller { identity: Some(identity), party }, source)
        }
        Fact::None => Fact::None,
        Fact::Unknown(why) => Fact::Unknown(why),
    }
}

/// The service itself, as the settings name it.
fn named(service: &str, policy: &Policy) -> Fact<Caller> {
    match policy.caller_named(service) {
        Some(id) => Fact::Known(Caller { identity: None, party: Some(Party::Own(id)) }, Source::Settings),
        None => Fact::Unknown(Why::NotInPolicy { length: service.len() }),
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
    claims: &Claims,
    policy: &Policy,
) -> Result<Fact<Customers>, Unreadable> {
    let taken = taken(seen, found, &subject.customer)?.map(|(name, source)| (vec![name], source));
    let of_route = taken.as_ref().map(|(names, _)| names.as_slice());
    let (of_context, of_claim) = (context.customers.as_deref(), claims.customer.as_deref());
    let is_same = |ours: &[String], theirs: &[String]| {
        ours.len() == theirs.len() && ours.iter().all(|name| theirs.contains(name))
    };
    agree(&[of_route, of_context, of_claim], is_same)?;
    let (names, source) = match (&taken, &subject.customer) {
        (Some((names, source)), _) => (Some(names.as_slice()), *source),
        (None, Take::Context) => (of_context, Source::Context),
        (None, Take::Claim) => (of_claim, Source::Claim),
        (None, Take::Constant(_) | Take::Path(_) | Take::Query(_)) => (None, Source::Route),
    };
    let Some(names) = names else { return Ok(Fact::Unknown(Why::Missing)) };
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
    claims: &Claims,
    policy: &Policy,
) -> Result<Fact<PurposeId>, Unreadable> {
    let taken = taken(seen, found, &subject.purpose)?;
    let of_route = taken.as_ref().map(|(name, _)| name.as_str());
    let (of_context, of_claim) = (context.purpose.as_deref(), claims.purpose.as_deref());
    agree(&[of_route, of_context, of_claim], |ours, theirs| ours == theirs)?;
    let (name, source) = match (&taken, &subject.purpose) {
        (Some((name, source)), _) => (Some(name.as_str()), *source),
        (None, Take::Context) => (of_context, Source::Context),
        (None, Take::Claim) => (of_claim, Source::Claim),
        (None, Take::Constant(_) | Take::Path(_) | Take::Query(_)) => (None, Source::Route),
    };
    let Some(name) = name else { return Ok(Fact::Unknown(Why::Missing)) };
    Ok(match policy.purpose_named(name) {
        Some(id) => Fact::Known(id, source),
        None => Fact::Unknown(Why::NotInPolicy { length: name.len() }),
    })
}

/// Whoever speaks of a fact has to say the same of it.
fn agree<T: ?Sized>(said: &[Option<&T>], is_same: impl Fn(&T, &T) -> bool) -> Result<(), Unreadable> {
    let mut said = said.iter().copied().flatten();
    let Some(first) = said.next() else { return Ok(()) };
    if said.all(|other| is_same(first, other)) { Ok(()) } else { Err(Unreadable::Contradiction) }
}

/// The place of the named instruction in the customer's list. It is the customer's, or it is unknown.
fn instruction(
    context: &Context,
    claims: &Claims,
    customers: &Fact<Customers>,
    policy: &Policy,
) -> Result<Fact<usize>, Unreadable> {
    let (of_context, of_claim) = (context.instruction.as_deref(), claims.instruction.as_deref());
    agree(&[of_context, of_claim], |ours, theirs| ours == theirs)?;
    let claimed = of_claim.map(|name| (name, Source::Claim));
    let Some((name, source)) = claimed.or(of_context.map(|name| (name, Source::Context))) else {
        return Ok(Fact::None);
    };
    let customer = match customers.known() {
        Some(Customers::One(id)) => policy.customer(*id),
        Some(Customers::Several { .. }) | None => None,
    };
    let place = customer
        .and_then(|customer| customer.instructions.iter().position(|instruction| instruction.id.as_str() == name));
    Ok(match place {
        Some(place) => Fact::Known(place, source),
        None => Fact::Unknown(Why::NotInPolicy { length: name.len() }),
    })
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
