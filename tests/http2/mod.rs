//! HTTP/2 from callers.

mod conformance;
mod floods;
pub(crate) mod raw;
mod slow;
mod translation;
