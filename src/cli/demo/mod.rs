//! `demo`: a data service, the sample agreement, the sidecar in front, and a scripted tour.
//!
//! Nothing is short-cut: the files are written to a folder and read from there, requests go through
//! sockets, and what is shown was read from the decision log. With `--tls` the certificates are files too.

mod certificates;
mod service;
mod tour;

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;

use jiff::Timestamp;

use self::certificates::Certificates;
use self::service::Service;
use self::tour::Caller;
use self::tour::Tour;
use super::CliError;
use super::Exit;
use super::run::Prepared;
use super::run::prepare;
use crate::doors::proxy::Clock;
use crate::reload;
use crate::serve;
use crate::serve::StartError;
use crate::sockets::Address;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dpa-sidecar demo          walk the tour, then keep serving for you to try
  dpa-sidecar demo --once   walk the tour and stop
  dpa-sidecar demo --tls    the same, with a certificate for each caller, and five more requests

Exit codes: 0 every outcome was as the tour says, 1 one was not, 2 the demo could not run.")]
pub(super) struct Arguments {
    /// Stop after the tour.
    #[arg(long)]
    once: bool,
    /// Over mutual TLS: callers prove who they are by certificates, which the demo makes.
    #[arg(long)]
    tls: bool,
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
    let certificates = arguments.tls.then(|| Certificates::make(&folder, tour::callers().into_values()));
    let certificates = certificates.transpose().map_err(unprepared)?;

    let begin = CLOCK.parse().unwrap_or(Timestamp::UNIX_EPOCH);
    // The first port that a newcomer would try, or any if somebody has it.
    let mut port = if arguments.tls { 8443 } else { 8080 };
    let signals = serve::Signals::listen()?;
    let sidecar = loop {
        std::fs::write(&settings_file, settings(&service, port, arguments.tls)).map_err(unprepared)?;
        let Some(Prepared { settings, accepted, warnings: _ }) =
            prepare(&reload::read(&settings_file)?, &mut std::io::stderr())?
        else {
            return Ok(Exit::Unable);
        };
        match serve::start(settings, accepted, Clock::starting_at(begin)) {
            Err(StartError::Listen { .. }) if port != 0 => port = 0,
            started => break started?,
        }
    };
    let log = folder.join("decisions.ndjson");
    let tls = certificates.as_ref();
    let tcp = |(name, address): &(String, Address)| match address {
        Address::Tcp(address) => Some((name.clone(), *address)),
        Address::Unix(_) => None,
    };
    let addresses: Vec<(String, SocketAddr)> = sidecar.addresses.iter().filter_map(tcp).collect();
    introduce(&folder, &addresses, tls, out)?;
    let as_told = Tour { listeners: &addresses, service: &service, log: &log, certificates: tls }.walk(out)?;
    if arguments.once {
        sidecar.stop();
        // What is left behind is a folder of the system's own temporary ones.
        let _left = std::fs::remove_dir_all(&folder);
    } else {
        invite(&addresses, tls, &log, out)?;
        sidecar.run_until_stopped(signals);
    }
    Ok(if as_told { Exit::Yes } else { Exit::No })
}

const IDENTITY: &str = "  - header: {name: DPA-Caller, trusted_peers: [127.0.0.1/32]}
";
const IDENTITY_TLS: &str =
    "  # In the demo one authority signs for all. If yours does, list the `trust_domains` that count.
  - certificate: {}
";
/// Optional, so that the tour can show what becomes of a caller without a certificate.
const LISTENER_TLS: &str = ", tls: {
      certificate: tls/server.crt, private_key: tls/server.key,
      client_ca: tls/ca.crt, client_authentication: optional}";

/// The demo's sidecar.yaml: one listener for each place where the data service keeps data, and one through which it
/// sends data to a subprocessor.
fn settings(service: &Service, port: u16, is_tls: bool) -> String {
    let (tls, identity) = if is_tls { (LISTENER_TLS, IDENTITY_TLS) } else { ("", IDENTITY) };
    format!(
        "# The demo's settings. The shipped example, config/sidecar.yaml, explains each key.
service: {{name: subscriber-api, storage_location: US-OR, caller: subscriber-api}}
policy: {{file: policy.yaml}}
listeners:
  - {{name: subscriber-api, address: 127.0.0.1:{port}, upstream: oregon{tls}}}
  - {{name: subscriber-api-ca, address: 127.0.0.1:0, upstream: quebec{tls}}}
  # What the service itself sends goes through the sidecar as well. Nobody else reaches this address.
  - {{name: to-meridian, address: 127.0.0.1:0, upstream: meridian, direction: egress}}
upstreams:
  - {{name: oregon, address: {oregon}, storage_location: US-OR}}
  - {{name: quebec, address: {quebec}, storage_location: CA-QC}}
  # In clear here, since the demo plays the subprocessor too. Yours has `tls: {{ca: system}}`.
  - {{name: meridian, address: {meridian}, recipient: sp-07}}
identity:
{identity}routes:
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
  - path: /v1/customers/{{customer}}/events
    methods: [POST]
    customer: {{from: path, name: customer}}
    purpose: {{from: context}}
    operation: disclose
    data_categories: [user.telemetry]
  - {{path: \"/docs/{{*rest}}\", methods: [GET], subscriber_data: false}}
decision_log: {{file: {{path: decisions.ndjson}}}}
",
        oregon = service.oregon,
        quebec = service.quebec,
        meridian = service.meridian,
    )
}

fn introduce(
    folder: &Path,
    listeners: &[(String, SocketAddr)],
    tls: Option<&Certificates>,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    writeln!(
        out,
        "dpa-sidecar demo{}

A data service with made-up subscribers runs behind a sidecar with a sample agreement. Each request below is a
real one. The sidecar finds out who asks, for which customer, for what purpose and from where, holds that
against the agreement, writes the decision down, and then forwards the request or refuses it.
",
        if tls.is_some() { " --tls" } else { "" }
    )?;
    if tls.is_some() {
        writeln!(
            out,
            "Every connection that comes in is TLS. A caller is who its certificate names: the demo has made an authority, and with it a
certificate for the sidecar and one for each caller, which hold for a day.
"
        )?;
    }
    let more = if tls.is_some() { ", tls" } else { "" };
    writeln!(out, "  files      {} (policy.yaml, sidecar.yaml, decisions.ndjson{more})", folder.display())?;
    if tls.is_some() {
        let names: Vec<&str> = tour::callers().into_keys().collect();
        let (some, others) = names.split_at(names.len().div_ceil(2));
        writeln!(
            out,
            "  tls        ca.crt, the authority; server.crt and .key, of the sidecar; and of each caller NAME.crt and .key:
             {},
             {}",
            some.join(", "),
            others.join(", ")
        )?;
    }
    writeln!(out, "  clock      starts at {CLOCK}, around which the agreement's dates lie")?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let places = [
        (scheme, "data kept in Oregon, US"),
        (scheme, "data kept in Québec, Canada"),
        ("http", "what the service sends to sp-07, a subprocessor"),
    ];
    for ((name, address), (scheme, place)) in listeners.iter().zip(places) {
        writeln!(out, "  listener   {scheme}://{address}  {name}, {place}")?;
    }
    writeln!(out)?;
    Ok(())
}

fn invite(
    listeners: &[(String, SocketAddr)],
    tls: Option<&Certificates>,
    log: &Path,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let Some((_, address)) = listeners.first() else { return Ok(()) };
    match tls {
        None => invite_in_clear(*address, out)?,
        Some(_) => invite_with_certificates(*address, log, out)?,
    }
    writeln!(out, "\n  # what was written down\n  tail -f {}", log.display())?;
    out.flush()?;
    Ok(())
}

fn invite_in_clear(address: SocketAddr, out: &mut dyn Write) -> Result<(), CliError> {
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
    -H 'DPA-Context: purpose=customer_marketing'"
    )?;
    Ok(())
}

fn invite_with_certificates(address: SocketAddr, log: &Path, out: &mut dyn Write) -> Result<(), CliError> {
    let folder = log.parent().unwrap_or(log).display();
    writeln!(out, "\nStill serving; Ctrl-C stops, and removes the certificates. Try it:\n\n  cd '{folder}'")?;
    let support = "DPA-Context: purpose=customer_support";
    let marketing = "DPA-Context: purpose=customer_marketing";
    let claim = "DPA-Caller: spiffe://lumenfield.example/ns/care/sa/care-desk";
    let table: [(&str, Option<&Caller>, &[&str]); 5] = [
        ("permitted", tour::CARE_DESK, &[support]),
        ("refused: not a purpose of this caller", tour::CARE_DESK, &[marketing]),
        ("refused: the biller stays the biller, whatever a header says", tour::BILLER, &[support, claim]),
        ("refused: no certificate", None, &[support]),
        ("no connection, `unknown ca`: names the care desk, but not signed by ca.crt", tour::IMPOSTOR, &[support]),
    ];
    for (says, caller, headers) in table {
        let options = Certificates::curl_options(caller);
        write!(
            out,
            "\n  # {says}\n  curl -i https://{address}/v1/customers/redwood-strand/subscribers/1a2b \\\n    {options}"
        )?;
        for header in headers {
            write!(out, " \\\n    -H '{header}'")?;
        }
        writeln!(out)?;
    }
    Ok(())
}
