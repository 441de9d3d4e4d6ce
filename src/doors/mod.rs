//! The doors: each translates the wire into what was observed, and the verdict into an answer. A door
//! holds no rule.

pub mod egress;
pub mod entrance;
pub mod proxy;
pub mod tally;
