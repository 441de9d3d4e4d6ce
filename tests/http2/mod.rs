//! HTTP/2 from callers.

mod conformance;
mod raw;
