//! `audit`: what an auditor does with decision logs.

pub(super) mod files;
mod said;
mod tail;
mod verify;

use std::borrow::Cow;
use std::io::Write;

use clap::Subcommand;

use super::CliError;
use super::Exit;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dpa-sidecar audit verify /var/lib/dpa-sidecar            is the log as it was written?
  dpa-sidecar audit tail -f /var/lib/dpa-sidecar/decisions.ndjson")]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say whether decision logs are as they were written, and how far that is proven.
    Verify(verify::Arguments),
    /// Print the last decisions of a log, one line each.
    Tail(tail::Arguments),
}

pub(super) fn audit(arguments: &Arguments, out: &mut dyn Write, err: &mut dyn Write) -> Result<Exit, CliError> {
    match &arguments.command {
        Command::Verify(verify) => verify::verify(verify, out, err),
        Command::Tail(tail) => tail::tail(tail, out, err),
    }
}

/// A word of a log as it may go to a terminal: nothing in it moves the cursor or turns the writing round.
pub(super) fn plain(word: &str) -> Cow<'_, str> {
    let is_plain = |c: char| c == ' ' || (c.is_alphanumeric() || c.is_ascii_graphic());
    if word.chars().all(is_plain) {
        return Cow::Borrowed(word);
    }
    let escaped = |c: char| if is_plain(c) { c.to_string() } else { c.escape_unicode().to_string() };
    Cow::Owned(word.chars().map(escaped).collect())
}
