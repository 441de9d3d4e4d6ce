//! `demo`: a data service, the sample agreement, the sidecar in front, and a scripted tour.
//!
//! Nothing is short-cut: the files are written to a folder and read from there, requests go through
//! sockets, and what is shown was read from the decision log.

mod service;
mod tour;

use std::io::Write;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::path::Path;

use jiff::Timestamp;

use self::service::Service;
use self::tour::Tour;
use super::CliError;
use super::Exit;
use super::run::prepare;
use crate::doors::proxy::Clock;
use crate::reload;
use crate::serve;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dpa-sidecar demo          walk the tour, then keep serving for you to try
  dpa-sidecar demo --once   walk the tour and stop

Exit codes: 0 every outcome was as the tour says, 1 one was not, 2 the demo could not run.")]
pub(super) struct Arguments {
    /// Stop after the tour.
    #[arg(long)]
    once: bool,
}

/// The sample agreement's dates lie around this day, so the demo's clock starts on it.
const CLOCK: &str = "2026-06-15T12:00:00Z";
const POLICY: &str = include_str!("../../../config/policy.yaml");

pub(super) fn demo(arguments: &Arguments, out: &mut dyn Write) -> Result<Exit, CliError> {
    // A name that nobody could have prepared in a folder that all may write to.
    let folder = std::env::temp_dir().join(format!("dpa-sidecar-demo-{}", uuid::Uuid::new_v4().simple()));
    let unprepared = |source| CliError::Prepare { path: folder.clone(), source };
    std::fs::create_dir(&folder).map_err(unprepared)?;
    let service = Service::start().map_err(unprepared)?;
    let settings_file = folder.join("sidecar.yaml");
    std::fs::write(folder.join("policy.yaml"), POLICY).map_err(unprepared)?;
    std::fs::write(&settings_file, settings(&service)).map_err(unprepared)?;

    let Some((settings, policy)) = prepare(&reload::read(&settings_file)?, &mut std::io::stderr())? else {
        return Ok(Exit::Unable);
    };
    let begin = CLOCK.parse().unwrap_or(Timestamp::UNIX_EPOCH);
    let sidecar = serve::start(settings, policy, Clock::starting_at(begin))?;
    let log = folder.join("decisions.ndjson");
    introduce(&folder, &sidecar.addresses, out)?;
    let as_told = Tour { listeners: &sidecar.addresses, service: &service, log: &log }.walk(out)?;
    if arguments.once {
        sidecar.stop();
        // What is left behind is a folder of the system's own temporary ones.
        let _left = std::fs::remove_dir_all(&folder);
    } else {
        invite(&sidecar.addresses, &log, out)?;
        sidecar.run_until_stopped()?;
    }
    Ok(if as_told { Exit::Yes } else { Exit::No })
}

/// The demo's sidecar.yaml: one listener for each place where the data service keeps data.
fn settings(service: &Service) -> String {
    // The first address a newcomer would try, if nobody has it.
    let main: SocketAddr = (Ipv4Addr::LOCALHOST, 8080).into();
    let port = if std::net::TcpListener::bind(main).is_ok() { main.port() } else { 0 };
    format!(
        "# The demo's settings. The shipped example, config/sidecar.yaml, explains each key.
service: {{name: subscriber-api, storage_location: US-OR}}
policy: {{file: policy.yaml}}
listeners:
  - {{name: subscriber-api, address: 127.0.0.1:{port}, upstream: oregon}}
  - {{name: subscriber-api-ca, address: 127.0.0.1:0, upstream: quebec}}
upstreams:
  - {{name: oregon, address: {oregon}, storage_location: US-OR}}
  - {{name: quebec, address: {quebec}, storage_location: CA-QC}}
identity:
  - header: {{name: DPA-Caller, trusted_peers: [127.0.0.1/32]}}
routes:
  - path: /v1/customers/{{customer}}/subscribers/{{id}}
    methods: [GET]
    customer: {{from: path, name: customer}}
    subscriber: {{from: path, name: id}}
    purpose: {{from: context}}
    data_categories: [user.contact]
  - path: /v1/customers/{{customer}}/usage
    methods: [GET]
    customer: {{from: path, name: customer}}
    purpose: {{from: context}}
    data_categories: [user.telemetry]
  - path: /v1/customers/{{customer}}/usage/export
    methods: [GET]
    customer: {{from: path, name: customer}}
    purpose: {{from: context}}
    operation: export
    data_categories: [user.telemetry]
  - path: /v1/customers/{{customer}}/export
    methods: [GET]
    customer: {{from: path, name: customer}}
    purpose: {{from: context}}
    operation: export
    data_categories: [user]
  - {{path: \"/docs/{{*rest}}\", methods: [GET], subscriber_data: false}}
decision_log: {{file: {{path: decisions.ndjson}}}}
",
        oregon = service.oregon,
        quebec = service.quebec,
    )
}

fn introduce(folder: &Path, listeners: &[(String, SocketAddr)], out: &mut dyn Write) -> Result<(), CliError> {
    writeln!(
        out,
        "dpa-sidecar demo

A data service with made-up subscribers runs behind a sidecar with a sample agreement. Each request below is a
real one. The sidecar finds out who asks, for which customer, for what purpose and from where, holds that
against the agreement, writes the decision down, and then forwards the request or refuses it.

  files      {} (policy.yaml, sidecar.yaml, decisions.ndjson)
  clock      starts at {CLOCK}, around which the agreement's dates lie",
        folder.display()
    )?;
    let places = ["data kept in Oregon, US", "data kept in Québec, Canada"];
    for ((name, address), place) in listeners.iter().zip(places) {
        writeln!(out, "  listener   http://{address}  {name}, {place}")?;
    }
    writeln!(out)?;
    Ok(())
}

fn invite(listeners: &[(String, SocketAddr)], log: &Path, out: &mut dyn Write) -> Result<(), CliError> {
    let Some((_, address)) = listeners.first() else { return Ok(()) };
    writeln!(
        out,
        "
Still serving; Ctrl-C stops. Try it:

  # permitted
  curl -i http://{address}/v1/customers/redwood-strand/subscribers/1a2b \\
    -H 'DPA-Caller: spiffe://lumenfield.example/ns/care/sa/care-desk' \\
    -H 'DPA-Context: purpose=customer_support'

  # refused: change the purpose, the customer, or leave a header out
  curl -i http://{address}/v1/customers/redwood-strand/subscribers/1a2b \\
    -H 'DPA-Caller: spiffe://lumenfield.example/ns/care/sa/care-desk' \\
    -H 'DPA-Context: purpose=customer_marketing'

  # what was written down
  tail -f {}",
        log.display()
    )?;
    out.flush()?;
    Ok(())
}
