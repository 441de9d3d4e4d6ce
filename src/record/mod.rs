//! Step 6: writes the decision down, before anything is done with it.

pub mod chain;
pub mod checkpoint;
mod copies;
pub mod entry;
mod json;
pub mod log;
pub mod policy_event;
pub mod recorded;
pub mod recorder;
mod scribe;
pub mod segment;
mod shown;
pub mod tally;
pub mod verify;

pub use self::recorder::Batch;
