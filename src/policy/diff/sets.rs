//! Sets of the terms of a policy: what one has beyond another, and how it is told.

use crate::policy::MAX_PURPOSES;
use crate::policy::PurposeId;
use crate::policy::PurposeSet;
use crate::policy::terms::DataCategory;
use crate::policy::terms::Location;
use crate::policy::terms::Operation;
use crate::policy::terms::Operations;
use crate::policy::within;

pub(super) fn all(set: PurposeSet) -> impl Iterator<Item = PurposeId> {
    let count = u32::try_from(MAX_PURPOSES).unwrap_or(u32::MAX);
    (0..count).map(PurposeId).filter(move |id| set.contains(*id))
}

pub(super) fn filtered(set: PurposeSet, test: impl Fn(PurposeId) -> bool) -> PurposeSet {
    let mut left = PurposeSet::default();
    all(set).filter(|id| test(*id)).for_each(|id| left.insert(id));
    left
}

pub(super) fn gained_operations(from: Option<Operations>, to: Option<Operations>) -> Vec<String> {
    let gained = Operation::ALL.iter().filter(|it| within(to, **it) && !within(from, **it));
    gained.map(|it| it.as_str().to_owned()).collect()
}

pub(super) fn gained_data(from: &[DataCategory], to: &[DataCategory]) -> Vec<String> {
    in_words(to.iter().filter(|data| !from.iter().any(|known| known.covers(data))))
}

pub(super) fn same_places(one: &[Location], two: &[Location]) -> bool {
    one.iter().all(|place| two.contains(place)) && two.iter().all(|place| one.contains(place))
}

pub(super) fn in_words<'t, T: ToString + 't>(terms: impl Iterator<Item = &'t T>) -> Vec<String> {
    terms.map(ToString::to_string).collect()
}

/// Names, for people.
pub(super) fn listed(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

pub(super) fn may(id: &str, what: &str, values: &[String]) -> (String, String) {
    let list = listed(values);
    (format!("`{id}` may {what} {list}"), format!("`{id}` may no longer {what} {list}"))
}
