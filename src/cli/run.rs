//! `run`: the sidecar itself.

use std::fmt::Write as _;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use jiff::Timestamp;

use super::CliError;
use super::Exit;
use super::ask::Ask;
use super::ask::AskedSubscriber;
use super::ask::CLEAR;
use super::colour;
use super::offered::offered;
use super::print_problems;
use super::summary::Summary;
use crate::config;
use crate::config::Settings;
use crate::decide::facts::Fact;
use crate::decide::facts::Why;
use crate::doors::proxy::Clock;
use crate::policy::Party;
use crate::policy::Policy;
use crate::policy::problem::Source;
use crate::policy::terms::Identity;
use crate::policy::terms::Location;
use crate::policy::terms::Operation;
use crate::reload;
use crate::reload::Accepted;
use crate::serve;
use crate::telemetry::LogFormat;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dpa-sidecar run --config sidecar.yaml
  dpa-sidecar run --policy policy.yaml --upstream 127.0.0.1:3000
  dpa-sidecar run --policy policy.yaml --upstream 127.0.0.1:3000 --observe
  dpa-sidecar run --config sidecar.yaml --print-config

The short form (without --config) has one route for every path; customer and purpose come from the header
DPA-Context, the caller from the header DPA-Caller, believed from this machine only; decisions go to
standard output.

Exit codes: 0 stopped cleanly, 1 refused to start, 2 could not start (usage, unreadable file, address taken).")]
pub(super) struct Arguments {
    /// The settings: a sidecar.yaml.
    #[arg(short, long, env = "DPA_CONFIG", conflicts_with_all = ["policy", "upstream", "observe", "listen", "storage_location"])]
    config: Option<PathBuf>,
    /// Print the settings in force, each with where it is from, and stop.
    #[arg(long)]
    print_config: bool,
    /// Short form: the policy.
    #[arg(long, requires = "upstream")]
    policy: Option<PathBuf>,
    /// Short form: the data service, HOST:PORT.
    #[arg(long, requires = "policy")]
    upstream: Option<String>,
    /// Short form: write denials down and let the requests pass.
    #[arg(long)]
    observe: bool,
    /// Short form: where to listen.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Short form: where the data service keeps its data [default: the policy's first default location].
    #[arg(long)]
    storage_location: Option<Location>,
}

pub(super) fn run(arguments: &Arguments, format: LogFormat, err: &mut dyn Write) -> Result<Exit, CliError> {
    let (source, is_short) = match (&arguments.config, &arguments.policy, &arguments.upstream) {
        (Some(config), ..) => (reload::read(config)?, false),
        (None, Some(policy), Some(upstream)) => (short_form(arguments, policy, upstream)?, true),
        (None, ..) => {
            return Err(CliError::Usage(
                "give `--config sidecar.yaml`, or `--policy policy.yaml --upstream HOST:PORT`; see `dpa-sidecar run --help`",
            ));
        }
    };
    if arguments.print_config {
        return print_config(&source, is_short.then_some(arguments), err);
    }
    let Some(Prepared { settings, accepted, warnings }) = prepare(&source, err)? else { return Ok(Exit::No) };
    let summary = Summary::of(&settings, &accepted, warnings);
    let policy = &accepted.policy;
    if settings.enforcement == crate::policy::Enforcement::Observe {
        tracing::warn!("this sidecar observes: denied requests are recorded and pass");
    }
    tracing::info!(
        policy = %policy.name, revision = policy.revision, digest = %policy.digest,
        signed = accepted.key_id.is_some(), "policy loaded"
    );
    let told = is_short.then(|| how_to_try(arguments, &settings, policy));
    let signals = serve::Signals::listen()?;
    let sidecar = serve::start(settings, accepted, Clock::default())?;
    for (name, address) in &sidecar.addresses {
        tracing::info!(%name, %address, "listening");
    }
    let summary = summary.listening(&sidecar);
    match format {
        LogFormat::Json => summary.log(),
        LogFormat::Text if tracing::enabled!(tracing::Level::INFO) => err.write_all(summary.text().as_bytes())?,
        LogFormat::Text => {}
    }
    if let Some(told) = told {
        err.write_all(told.as_bytes())?;
    }
    sidecar.run_until_stopped(signals);
    Ok(Exit::Yes)
}

/// What the settings come to, each key with its value and where that is from.
fn print_config(source: &Source, short: Option<&Arguments>, err: &mut dyn Write) -> Result<Exit, CliError> {
    let (settings, problems) = config::compile(source, &config::environment);
    let Some(settings) = settings else {
        print_problems(err, &problems, std::slice::from_ref(source), colour(&std::io::stderr()))?;
        return Ok(Exit::No);
    };
    let effective = match short {
        None => settings.effective,
        Some(arguments) => {
            let mut flags = vec![
                ("policy.file", "--policy"),
                ("upstreams[0].address", "--upstream"),
                ("listeners[0].address", "--listen"),
            ];
            flags.extend(arguments.observe.then_some(("enforcement", "--observe")));
            let storage = arguments.storage_location.map(|_| ("service.storage_location", "--storage-location"));
            flags.extend(storage);
            settings.effective.of_short_form(&flags)
        }
    };
    std::io::stdout().lock().write_all(effective.text().as_bytes())?;
    Ok(Exit::Yes)
}

/// What can be started.
pub(super) struct Prepared {
    pub(super) settings: Settings,
    pub(super) accepted: Accepted,
    /// How much in settings and policy is worth a look.
    pub(super) warnings: usize,
}

/// Settings and policy, or nothing after what is wrong was told.
pub(super) fn prepare(source: &Source, err: &mut dyn Write) -> Result<Option<Prepared>, CliError> {
    let (settings, mut problems) = config::compile(source, &config::environment);
    let (sources, colour) = (std::slice::from_ref(source), colour(&std::io::stderr()));
    let Some(settings) = settings else {
        print_problems(err, &problems, sources, colour)?;
        return Ok(None);
    };
    let now = Timestamp::now();
    problems.0.extend(settings.read_keys().0);
    let offered = offered(&settings, Some(now), now, &mut problems);
    problems.0.extend(settings.check_files(now).0);
    let loaded = offered.loaded.as_ref();
    if problems.has_errors() || loaded.is_none_or(|loaded| loaded.policy.is_none()) {
        print_problems(err, &problems, sources, colour)?;
        if let Some(loaded) = loaded {
            print_problems(err, &loaded.problems, &loaded.sources, colour)?;
        }
        offered.print_weaker(&settings, err)?;
        // Another process may be writing the log, or there is no folder for it yet.
        if let Some(refusal) = &offered.refusal
            && let Err(error) = serve::record_refused(&settings, refusal, Clock::default())
        {
            writeln!(err, "error: the refusal is not recorded: {}", crate::telemetry::chain(&error))?;
        }
        return Ok(None);
    }
    let warnings = problems.0.len() + loaded.map_or(0, |loaded| loaded.problems.0.len());
    if warnings > 0 {
        tracing::warn!(count = warnings, "settings and policy have warnings: `dpa-sidecar check` shows them");
    }
    Ok(offered.accepted().map(|accepted| Prepared { settings, accepted, warnings }))
}

/// The settings that the short form stands for, as the text of a sidecar.yaml.
fn short_form(arguments: &Arguments, policy: &std::path::Path, upstream: &str) -> Result<Source, CliError> {
    let storage = match arguments.storage_location {
        Some(location) => location.to_string(),
        None => {
            let loaded = reload::load(policy, None, None)?;
            let first = loaded.policy.and_then(|policy| policy.default_storage().map(|place| place.to_string()));
            // A policy that does not load is told about when it is loaded to be run.
            first.unwrap_or_else(|| "US".to_owned())
        }
    };
    let policy = std::path::absolute(policy).unwrap_or_else(|_| policy.to_owned());
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let text = format!(
        "service: {{name: service, storage_location: {storage}}}
policy: {{file: {policy}}}
enforcement: {enforcement}
listeners: [{{name: main, address: {listen}, upstream: app}}]
upstreams: [{{name: app, address: {upstream}}}]
identity: [{{header: {{name: DPA-Caller, trusted_peers: [127.0.0.0/8, \"::1/128\"]}}}}]
routes:
  - path: /{{*rest}}
    customer: {{from: context}}
    purpose: {{from: context}}
    data_categories: [user]
decision_log: {{stdout: true}}
",
        policy = quoted(&policy.to_string_lossy()),
        enforcement = if arguments.observe { "observe" } else { "enforce" },
        listen = quoted(&arguments.listen.to_string()),
        upstream = quoted(upstream),
    );
    Ok(Source { path: "(short form)".to_owned(), text })
}

/// What the short form assumes, and a request that passes.
fn how_to_try(arguments: &Arguments, settings: &Settings, policy: &Policy) -> String {
    let mut text = format!(
        "
This is the short form of `run`. It assumes:
  listening on        {listen}
  every path          is one route with data category `user`; the method says the operation
  customer, purpose   from the header DPA-Context
  caller              from the header DPA-Caller, believed from this machine only
  data is kept in     {storage}
  decisions           one JSON line each on standard output
Write a sidecar.yaml to say more; `dpa-sidecar check` helps.
",
        listen = arguments.listen,
        storage = settings.storage_location,
    );
    let _infallible = match passing(settings.storage_location, policy, Timestamp::now()) {
        Some((caller, context)) => writeln!(
            text,
            "
A request that passes:
  curl -i http://{listen}/ \\
    -H 'DPA-Caller: {caller}' \\
    -H 'DPA-Context: {context}'
",
            listen = arguments.listen,
        ),
        None => writeln!(text, "\nFound no caller of this policy that may retrieve `user` data today.\n"),
    };
    text
}

/// Requests that are tried before the short form says that it found none that passes.
const MAX_TRIES: usize = 10_000;

/// Caller and `DPA-Context` of a GET that this policy permits under the short form's settings.
fn passing(storage: Location, policy: &Policy, now: Timestamp) -> Option<(String, String)> {
    let data_categories: Vec<_> = "user".parse().into_iter().collect();
    let mut known: Option<(Party, Option<Identity>)> = None;
    policy.combinations().take(MAX_TRIES).find_map(|(party, customer, purpose)| {
        if known.as_ref().is_none_or(|(known, _)| *known != party) {
            known = Some((party, policy.identity_of(party)));
        }
        let identity = known.as_ref().and_then(|(_, identity)| identity.clone())?;
        let ask = Ask {
            caller: Some((identity.clone(), Fact::Unknown(Why::Missing))),
            customers: Some((vec![customer.to_string()], false)),
            purpose: Some(purpose.to_string()),
            instruction: None,
            request_ref: None,
            operation: Some(Operation::Retrieve),
            data_categories: data_categories.clone(),
            subscriber: AskedSubscriber::NotEstablished,
            recipient: None,
            transport: CLEAR,
            storage,
            is_mapped: true,
        };
        let asked = ask.asked().ok()?;
        let (_, decision) = asked.weigh(policy, now).ok()?;
        let passes = decision.reasons().is_empty();
        passes.then(|| (identity.to_string(), format!("customer=\"{customer}\", purpose={purpose}")))
    })
}
