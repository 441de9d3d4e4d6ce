//! `audit verify`: whether decision logs are as they were written.

use std::io;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;

use super::super::CliError;
use super::super::Exit;
use super::super::Output;
use super::super::colour;
use super::super::progress::with_progress;
use super::files;
use super::files::Files;
use super::said::Said;
use crate::record::verify::Anchors;
use crate::record::verify::Keys;
use crate::record::verify::judge::judge;
use crate::signature::Verifier;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dpa-sidecar audit verify /var/lib/dpa-sidecar              all logs in a folder
  dpa-sidecar audit verify --key audit.key.pub /var/lib/dpa-sidecar
  dpa-sidecar audit verify --key audit.key.pub --checkpoint kept.ndjson /var/lib/dpa-sidecar
  kubectl logs POD | dpa-sidecar audit verify -              a log on standard output, among other lines
  zcat decisions-*.gz | dpa-sidecar audit verify -           segments one after another

Without --key, whoever can write the files could have made the chain anew. Without --checkpoint,
nobody sees that its end was cut off. The output says what is proven and what is not.

Exit codes: 0 nothing is wrong, 1 something is, 2 could not tell (usage, unreadable file, no log, or
a checkpoint that was kept elsewhere is older than what is left of the log).")]
pub(super) struct Arguments {
    /// Segments, folders of segments, or `-` for standard input.
    #[arg(required = true, value_name = "FILE|DIR")]
    paths: Vec<PathBuf>,
    /// The public key that checkpoints have to be signed with (PEM); several times if it was renewed.
    #[arg(long, value_name = "PUB")]
    key: Vec<PathBuf>,
    /// Checkpoints that were kept elsewhere (`decision_log.checkpoint_copy`); the last line of them is enough.
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// The form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

pub(super) fn verify(arguments: &Arguments, out: &mut dyn Write, err: &mut dyn Write) -> Result<Exit, CliError> {
    let mut keys = Keys::default();
    for path in &arguments.key {
        let pem = std::fs::read(path).map_err(|source| CliError::Log { path: path.clone(), source })?;
        let key = Verifier::read(&pem).map_err(|source| CliError::BadKey { path: path.clone(), source })?;
        keys.0.push(key);
    }
    let anchors = arguments.checkpoint.as_deref().map(anchors).transpose()?;
    let files = Files::find(&arguments.paths, arguments.checkpoint.as_deref())?;
    if files.found.is_empty() {
        return Err(CliError::Usage("there is no decision log in it: name its file, or the folder that it lies in"));
    }
    let bytes = AtomicU64::new(0);
    let nothing = Anchors::default();
    let held = anchors.as_ref().unwrap_or(&nothing);
    let read = with_progress(files.size(), &bytes, || files.read(&keys, held, &bytes));
    let mut pieces = Vec::new();
    let mut unread = Vec::new();
    for piece in read {
        match piece {
            Ok(piece) => pieces.push(piece),
            Err(error) => unread.push(error),
        }
    }
    if !unread.is_empty() {
        for error in &unread {
            writeln!(err, "error: {}", crate::telemetry::chain(error))?;
        }
        return Ok(Exit::Unable);
    }
    let report = judge(pieces, &keys, held);
    if report.logs.is_empty() && report.count() == 0 {
        return Err(CliError::Usage("there is no decision log in it: no line of it is a record"));
    }
    let said = Said::new(&report, &files, &keys, anchors.as_ref());
    match arguments.output {
        Output::Json => {
            serde_json::to_writer_pretty(&mut *out, &said).map_err(io::Error::from)?;
            writeln!(out)?;
        }
        Output::Text => said.print(out, colour(&io::stdout()))?,
    }
    if let Some(anchors) = anchors.filter(|anchors| anchors.passed_over > 0 || anchors.has_more) {
        let more = if anchors.has_more { ", and more checkpoints than are compared: the newest were" } else { "" };
        writeln!(err, "what was kept elsewhere has {} lines that are no checkpoint{more}", anchors.passed_over)?;
    }
    Ok(match (report.count(), report.is_unknown()) {
        (0, false) => Exit::Yes,
        (0, true) => Exit::Unable,
        _ => Exit::No,
    })
}

fn anchors(path: &Path) -> Result<Anchors, CliError> {
    let read = files::open(path).and_then(|mut reader| Anchors::read(&mut reader));
    let anchors = read.map_err(|source| CliError::Log { path: path.to_path_buf(), source })?;
    match anchors.is_empty() {
        true => Err(CliError::Usage("the file of --checkpoint holds no checkpoint")),
        false => Ok(anchors),
    }
}
