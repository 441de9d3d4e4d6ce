//! The one integration-test binary: the real program, real sockets, real files.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stderr,
    reason = "a test says that it failed by failing"
)]

mod support;

mod audit;
mod bad_input;
mod bodies;
mod canary;
mod cli;
mod coverage;
mod datasette;
mod demo;
mod diff;
mod docs;
mod egress;
mod explain;
mod forged;
mod forwarded;
mod framing;
mod fuzz_corpus;
mod guides;
mod hostile_files;
mod house;
mod http2;
mod http2_ends;
mod http2_upstream;
mod inject;
mod life;
mod log_failures;
mod overload;
mod panicked;
mod policy_gate;
mod policy_reload;
mod policy_words;
mod pool;
mod properties;
mod proxy;
mod readme;
mod record;
mod replay;
mod said;
mod schema;
mod segments;
mod slow_callers;
mod steady_callers;
mod stop;
mod story;
mod tls;
mod token_keys;
mod tokens;
mod upgrade;
mod upstream_failures;
mod watching;
