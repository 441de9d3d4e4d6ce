//! The one integration-test binary.

mod datasette;
