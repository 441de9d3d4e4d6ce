//! The commands. Each is a function that says [`Exit`]; data goes to `out`, talk to `err`.

mod ask;
mod audit;
mod check;
mod coverage;
mod demo;
mod diff;
mod explain;
mod healthcheck;
mod inject;
mod keygen;
mod offered;
mod progress;
mod replay;
mod run;
mod schema;
mod sign;
mod summary;
mod test;

use std::io;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::LazyLock;

use clap::Parser;
use clap::Subcommand;
use clap::ValueEnum;

use crate::policy::problem::Problems;
use crate::policy::problem::Source;
use crate::reload::ReadError;
use crate::serve::StartError;
use crate::signature::KeyError;
use crate::telemetry;
use crate::telemetry::LogFormat;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: yes, clean.
    Yes,
    /// 1: no, findings.
    No,
    /// 2: could not tell.
    Unable,
}

impl Exit {
    /// The exit code of the process.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Yes => 0,
            Self::No => 1,
            Self::Unable => 2,
        }
    }
}

/// What keeps a command from telling.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("cannot read the log `{path}`")]
    Log { path: PathBuf, source: io::Error },
    #[error("{0}")]
    Unknown(String),
    #[error("cannot write the output")]
    Write(#[from] io::Error),
    #[error("{0}")]
    Usage(&'static str),
    #[error("the demo cannot go on")]
    Demo(#[source] io::Error),
    #[error("cannot write the key `{path}`")]
    Key { path: PathBuf, source: io::Error },
    #[error("cannot read the key `{path}`")]
    UnreadKey { path: PathBuf, source: io::Error },
    #[error("cannot write `{path}`")]
    Put { path: PathBuf, source: io::Error },
    #[error("the key `{path}` cannot be used")]
    BadKey { path: PathBuf, source: KeyError },
    #[error("`{address}` does not tell how it is")]
    Probe { address: SocketAddr, source: io::Error },
    #[error("cannot prepare the demo in `{path}`")]
    Prepare { path: PathBuf, source: io::Error },
}

/// The version, and the commit if the build named it.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let version = env!("CARGO_PKG_VERSION");
    telemetry::COMMIT.map_or_else(|| version.to_owned(), |commit| format!("{version} ({commit})"))
});

const EXAMPLES: &str = "\
Examples:
  dpa-sidecar demo                                             see it at work, nothing to set up
  dpa-sidecar run --policy policy.yaml --upstream 127.0.0.1:3000
  dpa-sidecar run --config sidecar.yaml
  dpa-sidecar check sidecar.yaml policy.yaml
  dpa-sidecar test policy-tests.yaml
  dpa-sidecar diff agreed.yaml policy.yaml                     what a change permits, and for whom
  dpa-sidecar sign --key policy.key policy.yaml                so that nobody else can change it
  dpa-sidecar replay /var/lib/dpa-sidecar --policy policy.yaml what a change would have done to recorded requests
  dpa-sidecar coverage sidecar.yaml -o html > coverage.html    what is enforced of the agreement, and what is not
  dpa-sidecar audit tail -f decisions.ndjson                   decisions, as a person reads them
  dpa-sidecar audit verify --key audit.key.pub /var/lib/dpa-sidecar
  kubectl get deploy/api svc/api -o yaml | dpa-sidecar inject … - | kubectl apply -f -
  dpa-sidecar healthcheck --config sidecar.yaml                is it ready? for a probe that runs a program
  dpa-sidecar schema policy > policy.schema.json               for editors and validators

Exit codes: 0 yes or clean, 1 no or findings, 2 could not tell (usage, unreadable file).";

/// Lets a request pass only if the data processing agreement with the customer allows it.
#[derive(Debug, Parser)]
#[command(name = "dpa-sidecar", version = VERSION.as_str(), after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// How the operational log on standard error is written.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, env = "DPA_LOG_FORMAT")]
    log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the sidecar.
    Run(run::Arguments),
    /// Show the sidecar at work: a data service, the sample agreement, a scripted tour.
    Demo(demo::Arguments),
    /// Check sidecar.yaml and policy.yaml files; a sidecar.yaml also checks the policy it names.
    Check(check::Arguments),
    /// Explain a decision: of a request given as flags, or of a decision id in a log; or a problem code.
    Explain(explain::Arguments),
    /// Run the cases of a policy test file against its policy, with a fixed clock.
    Test(test::Arguments),
    /// Compare two policies: what is weaker, what is tighter, and for whom.
    Diff(diff::Arguments),
    /// Decide the requests of a decision log again with another policy: what would have come out otherwise.
    Replay(replay::Arguments),
    /// Say of every obligation of the agreement whether it is enforced, observed, gated, recorded or not met, and why.
    Coverage(coverage::Arguments),
    /// Verify a decision log, or read it as it grows.
    Audit(audit::Arguments),
    /// Sign a policy: every file that it is made of.
    Sign(sign::Arguments),
    /// Make a key pair that signs policies, or the checkpoints of a decision log.
    Keygen(keygen::Arguments),
    /// Put the sidecar into Kubernetes manifests, and take it out again.
    Inject(inject::Arguments),
    /// Ask a running sidecar whether it is ready.
    Healthcheck(healthcheck::Arguments),
    /// Print the JSON Schema (draft 2020-12) of a file, or of the lines of the decision log.
    Schema(schema::Arguments),
}

/// The form of a command's output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// Reads the arguments of the process and runs the command.
#[must_use]
pub fn run() -> Exit {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let exit = if error.use_stderr() { Exit::Unable } else { Exit::Yes };
            // Nobody reads it: then nobody misses it.
            let _unread = error.print();
            return exit;
        }
    };
    let mut out = io::stdout().lock();
    let mut err = io::stderr();
    let result = match &arguments.command {
        Command::Run(run) => {
            telemetry::start_log(arguments.log_format, colour(&io::stderr()));
            // The decision log may go to standard output, which its writer thread locks.
            drop(out);
            return told(run::run(run, arguments.log_format, &mut err), &mut err);
        }
        Command::Demo(demo) => {
            drop(out);
            return told(demo::demo(demo, &mut io::stdout()), &mut err);
        }
        Command::Check(check) => check::check(check, &mut out, &mut err),
        Command::Explain(explain) => explain::explain(explain, &mut out, &mut err),
        Command::Test(test) => test::test(test, &mut out, &mut err),
        Command::Diff(diff) => diff::diff(diff, &mut out, &mut err),
        Command::Replay(replay) => replay::replay(replay, &mut out, &mut err),
        Command::Coverage(coverage) => coverage::coverage(coverage, &mut out, &mut err),
        Command::Audit(audit) => audit::audit(audit, &mut out, &mut err),
        Command::Sign(sign) => sign::sign(sign, &mut out, &mut err),
        Command::Healthcheck(healthcheck) => healthcheck::healthcheck(healthcheck, &mut out),
        Command::Keygen(keygen) => keygen::keygen(keygen, &mut out),
        Command::Inject(inject) => inject::inject(inject, &mut out, &mut err),
        Command::Schema(schema) => schema::schema(schema, &mut out),
    };
    told(result, &mut err)
}

fn told(result: Result<Exit, CliError>, err: &mut dyn Write) -> Exit {
    match result {
        Ok(exit) => exit,
        // Whoever read the output went away: not our failure, and nobody to tell.
        Err(CliError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Unable,
        Err(error) => {
            let _unread = writeln!(err, "error: {}", telemetry::chain(&error));
            Exit::Unable
        }
    }
}

/// Whether to colour what goes to this stream: a terminal, and nobody asked for none.
fn colour(stream: &impl io::IsTerminal) -> bool {
    stream.is_terminal()
        && crate::config::environment("NO_COLOR").is_none_or(|value| value.is_empty())
        && crate::config::environment("TERM").is_none_or(|term| term != "dumb")
}

fn print_problems(out: &mut dyn Write, problems: &Problems, sources: &[Source], colour: bool) -> io::Result<()> {
    out.write_all(problems.render(sources, colour).as_bytes())
}
