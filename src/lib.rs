//! A sidecar that lets a request pass only if the data processing agreement with the customer allows it.
//!
//! The way of a request, one module a step, each making one value that only it can make:
//!
//! 1. [`accept`] takes a connection,
//! 2. [`tls`] proves the peer,
//! 3. [`identify`] says who calls,
//! 4. [`establish`] says what the request is about,
//! 5. [`decide`] holds that against the agreement ([`policy`]),
//! 6. [`record`] writes the decision down,
//! 7. [`forward`] sends the request on,
//! 8. [`respond`] answers.
//!
//! [`gate`] is steps 3 to 6 in one place; [`doors`] translate the wire into what was observed and the
//! verdict into an answer. Imports point down only, and `tests/house.rs` holds the ranks.

// The agreement and the decision: no I/O, no http, no async, no clock.
pub mod decide;
pub mod policy;

// Quiet steps: http types, still no I/O, no clock, no async.
pub mod establish;
pub mod identify;
pub mod observed;

// The way through the machine.
pub mod accept;
pub mod doors;
pub mod files;
pub mod forward;
pub mod gate;
pub mod keys;
pub mod pace;
pub mod record;
pub mod respond;
pub mod tls;

// Putting it together.
pub mod admin;
pub mod cli;
pub mod config;
pub mod reload;
pub mod schema;
pub mod serve;
pub mod signature;
pub mod sockets;
pub mod standing;
pub mod telemetry;
pub mod yaml;
