//! HTTP/2 from callers.

mod conformance;
mod fields;
mod floods;
pub(crate) mod raw;
mod shared;
mod slow;
mod taken;
mod translation;
