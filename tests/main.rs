//! The one integration-test binary.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod properties;
