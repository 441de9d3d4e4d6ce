//! Step 6: writes the decision down, before anything is done with it.

pub mod entry;
pub mod log;

pub use self::log::Batch;
