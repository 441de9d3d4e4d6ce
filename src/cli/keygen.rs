//! `keygen`: a key pair that signs policies, or checkpoints of the decision log.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::path::PathBuf;

use super::CliError;
use super::Exit;
use crate::signature;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dpa-sidecar keygen audit.key                     writes audit.key (keep it secret) and audit.key.pub
  dpa-sidecar audit verify --key audit.key.pub /var/lib/dpa-sidecar

  dpa-sidecar keygen policy.key                    writes policy.key and policy.key.pub
  dpa-sidecar sign --key policy.key policy.yaml

For the log, sidecar.yaml names the private key: `decision_log: {…, signing_key: audit.key}`. Give auditors the
public one and the key id, by a way that nobody who can write the log can change. For policies, it names the public
key: `policy: {…, public_key: policy.key.pub}`. The private one stays with whoever may change the agreement, and never
comes near a sidecar. Take a key for each.

Exit codes: 0 written, 2 not (a file is there already, or cannot be written).")]
pub(super) struct Arguments {
    /// Where the private key goes; the public one goes to PATH.pub. Neither may be there.
    #[arg(value_name = "PATH")]
    path: PathBuf,
}

pub(super) fn keygen(arguments: &Arguments, out: &mut dyn Write) -> Result<Exit, CliError> {
    let private = &arguments.path;
    let mut name = private.clone().into_os_string();
    name.push(".pub");
    let public = PathBuf::from(name);
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| CliError::Key { path, source }
    };
    let key = signature::generate().map_err(|error| CliError::Unknown(error.to_string()))?;
    let mut private_file = create(private, 0o600).map_err(failed(private))?;
    // What was made here and holds no whole key goes away again.
    let mut public_file = create(&public, 0o644).map_err(failed(&public)).inspect_err(|_| {
        let _left_over = std::fs::remove_file(private);
    })?;
    let written = private_file.write_all(key.private.as_bytes()).and_then(|()| private_file.sync_all());
    let written = written.map_err(failed(private)).and_then(|()| {
        public_file.write_all(key.public.as_bytes()).and_then(|()| public_file.sync_all()).map_err(failed(&public))
    });
    written.inspect_err(|_| {
        let _left_over = std::fs::remove_file(private).and_then(|()| std::fs::remove_file(&public));
    })?;
    writeln!(out, "{}", key.id)?;
    Ok(Exit::Yes)
}

fn create(path: &Path, mode: u32) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(mode).open(path)
}
