//! `sign`: the manifest of a policy, and its signature.

use std::io;
use std::io::Write;
use std::path::PathBuf;

use super::CliError;
use super::Exit;
use super::colour;
use super::print_problems;
use crate::files;
use crate::policy::manifest::MANIFEST;
use crate::policy::manifest::Manifest;
use crate::policy::manifest::SIGNATURE;
use crate::reload::PolicySource;
use crate::reload::gather::NotGathered;
use crate::reload::gather::beside;
use crate::signature::KeyError;
use crate::signature::Signer;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dpa-sidecar keygen policy.key                    once: writes policy.key (keep it secret) and policy.key.pub
  dpa-sidecar sign --key policy.key policy.yaml    after each change

Writes POLICY.manifest.json, which lists every file of the policy with its SHA-256, and POLICY.manifest.sig, the
signature of that. Bring them along wherever the policy goes, and name the public key in sidecar.yaml:
`policy: {file: policy.yaml, public_key: policy.key.pub}`.

A policy with mistakes is not signed.

Exit codes: 0 signed, 1 the policy has mistakes, 2 not (a file cannot be read or written, or the key is none).")]
pub(super) struct Arguments {
    /// The private key, as `keygen` writes it.
    #[arg(long, value_name = "PRIVATE-KEY")]
    key: PathBuf,
    /// The policy.
    policy: PathBuf,
}

/// Most bytes of a private key; one has 119.
const MAX_KEY: u64 = 64 * 1024;

pub(super) fn sign(arguments: &Arguments, out: &mut dyn Write, err: &mut dyn Write) -> Result<Exit, CliError> {
    let Arguments { key, policy: path } = arguments;
    if path.as_os_str() == "-" {
        return Err(CliError::Usage("a policy on standard input has no name that its manifest could give it"));
    }
    let unread = |source| CliError::UnreadKey { path: key.clone(), source };
    let bad = |source: KeyError| CliError::BadKey { path: key.clone(), source };
    let signer = Signer::read(&files::read(key, MAX_KEY).map_err(unread)?).map_err(bad)?;
    let gathered = match (PolicySource { path: path.clone(), key: None }).gather() {
        Ok(gathered) => gathered,
        Err(NotGathered::Unread(error)) => return Err(error.into()),
        Err(NotGathered::Unsigned(error)) => return Err(CliError::Unknown(error.to_string())),
    };
    let names = gathered.names().to_vec();
    let loaded = gathered.compile(None, None);
    let Some(policy) = &loaded.policy else {
        print_problems(err, &loaded.problems, &loaded.sources, colour(&io::stderr()))?;
        return Ok(Exit::No);
    };
    let files = names.iter().zip(&loaded.sources).map(|(name, source)| (name.as_str(), source.text.as_bytes()));
    let (manifest, signature) = Manifest::of(policy, files).signed(&signer);
    for (what, text) in [(MANIFEST, &manifest), (SIGNATURE, &signature)] {
        let path = beside(path, what);
        files::replace(&path, text.as_bytes()).map_err(|source| CliError::Put { path: path.clone(), source })?;
    }
    let many = if names.len() == 1 { "" } else { "s" };
    writeln!(out, "{}, {} file{many}, signed by {}", policy.named(), names.len(), signer.id())?;
    Ok(Exit::Yes)
}
