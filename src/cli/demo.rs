//! draft
use super::*;
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[arg(long)]
    once: bool,
}
pub(super) fn demo(_arguments: &Arguments, _out: &mut dyn Write) -> Result<Exit, CliError> {
    Err(CliError::Usage("x"))
}
