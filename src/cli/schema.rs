//! `schema`: prints the JSON Schemas of the files and of the decision log.

use std::io::Write;

use clap::ValueEnum;

use super::CliError;
use super::Exit;
use crate::config;
use crate::policy;
use crate::record::entry;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dpa-sidecar schema policy > policy.schema.json
  dpa-sidecar schema decision | jq .title

An editor with a YAML language server takes the schema of a file from its first line:
  # yaml-language-server: $schema=policy.schema.json

Exit codes: 0 printed, 2 could not write.")]
pub(super) struct Arguments {
    /// Of what.
    #[arg(value_enum)]
    of: Of,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Of {
    /// policy.yaml.
    Policy,
    /// A file that `customer_files` of a policy names.
    Customers,
    /// sidecar.yaml.
    Sidecar,
    /// A line of the decision log.
    Decision,
}

pub(super) fn schema(arguments: &Arguments, out: &mut dyn Write) -> Result<Exit, CliError> {
    let schema = match arguments.of {
        Of::Policy => policy::schema(),
        Of::Customers => policy::customers_schema(),
        Of::Sidecar => config::schema(),
        Of::Decision => entry::schema(),
    };
    serde_json::to_writer_pretty(&mut *out, &schema).map_err(std::io::Error::from)?;
    writeln!(out)?;
    Ok(Exit::Yes)
}
