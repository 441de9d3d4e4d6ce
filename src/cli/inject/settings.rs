//! What a sidecar.yaml says that its pod has to fit: ports, health, drain, log.

use std::net::SocketAddr;
use std::path::Path;

use super::super::CliError;
use super::edit::items;
use super::edit::word;
use super::write::write;
use crate::config;
use crate::config::Settings;
use crate::establish::route::Routes;
use crate::forward;
use crate::policy::problem::Code;
use crate::policy::problem::Problem;
use crate::policy::problem::Problems;
use crate::policy::problem::Source;
use crate::reload;
use crate::sockets;
use crate::yaml;
use crate::yaml::At;
use crate::yaml::Node;
use crate::yaml::Value;

/// Where the files of the ConfigMaps and Secrets are, all in one folder.
pub(super) const FOLDER: &str = "/etc/dpa-sidecar";
/// Where the log is.
pub(super) const LOG_FOLDER: &str = "/var/log/dpa-sidecar";

/// A listener that callers reach.
#[derive(Clone, Debug)]
pub(super) struct Entrance {
    /// Its port.
    pub(super) listen: u16,
    /// The port of the service behind it: a number or a name; nothing: one that the manifests tell.
    pub(super) behind: Option<String>,
    /// Whether it speaks TLS.
    pub(super) tls: bool,
    /// Whether it takes nobody without a certificate.
    pub(super) asks_for_certificates: bool,
}

/// What a pod has to fit.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Listeners for callers.
    pub(super) entrances: Vec<Entrance>,
    /// Ports of listeners that no port of the service is behind.
    pub(super) others: Vec<u16>,
    /// The port of the health listener.
    pub(super) health: u16,
    /// Seconds that a drain may take.
    pub(super) drain: u64,
    /// What probes may ask for through the sidecar; nothing: not known.
    pub(super) routes: Option<std::sync::Arc<Routes>>,
    /// What a person should know.
    pub(super) notes: Vec<String>,
}

/// What is wanted, or what is wrong with the settings.
type Read = Result<Wanted, (Source, Problems)>;

/// Reads a sidecar.yaml as it will be seen in the pod: there are the files of the ConfigMaps and Secrets, and these
/// variables.
///
/// # Errors
///
/// If the file cannot be read. What does not fit a pod is in the problems.
pub(super) fn read(path: &Path, env: &[(String, String)], log_bytes: u64) -> Result<Read, CliError> {
    let source = reload::read(path)?;
    let environment = |name: &str| match name {
        // Any address that callers reach stands for the one that the pod will have.
        "POD_IP" => Some("0.0.0.0".to_owned()),
        "HOSTNAME" => Some("pod".to_owned()),
        name => env.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone()),
    };
    let mut problems = Problems::default();
    let root = match yaml::read(&source.text, 0) {
        Ok(root) => root,
        Err(faults) => {
            problems.extend_faults(faults);
            return Ok(Err((source, problems)));
        }
    };
    // The key that signs the log is in the cluster and nowhere else: nothing here needs it.
    let without_key =
        Source { path: format!("{FOLDER}/sidecar.yaml"), text: write(&without(&root, "decision_log", "signing_key")) };
    let (Some(settings), _) = config::compile(&without_key, &environment) else {
        let (_, mut problems) = config::compile(&source, &environment);
        let key = root.get("decision_log").and_then(|log| log.get("signing_key")).map(|key| key.at);
        problems.0.retain(|problem| Some(problem.at) != key);
        return Ok(Err((source, problems)));
    };
    let wanted = wanted(&settings, &root, log_bytes, &mut problems);
    Ok(if problems.has_errors() { Err((source, problems)) } else { Ok(wanted) })
}

/// The tree without a key of one of its maps.
fn without(root: &Node, section: &str, name: &str) -> Node {
    let mut root = root.clone();
    if let Some(Node { value: Value::Map(entries), .. }) = super::edit::at_mut(&mut root, section) {
        entries.retain(|(key, _)| key.text != name);
    }
    root
}

fn wanted(settings: &Settings, root: &Node, log_bytes: u64, problems: &mut Problems) -> Wanted {
    let mut notes = Vec::new();
    let place =
        |path: &[&str]| path.iter().try_fold(root, |node, step| node.get(step)).map_or(root_at(root), |it| it.at);
    let mut error = |at, message: String, help: &str| problems.push(Problem::error(Code::Workload, at, message, help));
    let (mut entrances, mut others) = (Vec::new(), Vec::new());
    for listener in settings.listeners.iter().filter(|listener| listener.egress.is_none()) {
        let sockets::Address::Tcp(address) = &listener.address else { continue };
        if address.ip().is_loopback() {
            let at = address_of(root, &listener.name).unwrap_or_else(|| place(&["listeners"]));
            let message = format!("nobody reaches the listener `{}` from outside the pod", listener.name);
            error(at, message, "write `0.0.0.0:PORT`, or `${POD_IP}:PORT`");
            continue;
        }
        let behind = settings.upstreams.get(listener.upstream).and_then(|upstream| match &upstream.address {
            forward::Address::Tcp(address) => port_on_loopback(address),
            forward::Address::Unix(_) => None,
        });
        let Some(behind) = behind else {
            let name = &listener.name;
            notes.push(format!(
                "what is behind the listener `{name}` has no port on 127.0.0.1: no port is taken for it"
            ));
            others.push(address.port());
            continue;
        };
        entrances.push(Entrance {
            listen: address.port(),
            behind: Some(behind),
            tls: listener.tls.is_some(),
            asks_for_certificates: listener
                .tls
                .as_ref()
                .and_then(|tls| tls.clients.as_ref())
                .is_some_and(|it| it.are_required),
        });
    }
    let health = settings.health.filter(|address| !address.ip().is_loopback()).map_or(0, |it: SocketAddr| it.port());
    if health == 0 {
        let message = "the kubelet asks the health listener, and cannot reach one".to_owned();
        error(place(&["health"]), message, "write `health: {address: \"0.0.0.0:9901\"}`");
    }
    if !settings.policy_file.starts_with(FOLDER) {
        let message = format!("in the pod the policy is in {FOLDER}");
        error(place(&["policy", "file"]), message, "write `file: policy.yaml`");
    }
    if let Some(file) = &settings.log.file {
        if !file.path.starts_with(LOG_FOLDER) {
            let message = format!("in the pod only {LOG_FOLDER} can be written to");
            let help = "write `path: /var/log/dpa-sidecar/decisions.ndjson`";
            error(place(&["decision_log", "file", "path"]), message, help);
        }
        // One that is written, and one that is closed and not yet gone.
        let most = file.keep.and_then(|keep| file.rotate_bytes.checked_mul(u64::try_from(keep + 2).ok()?));
        if most.is_none_or(|most| most > log_bytes) {
            notes.push(
                "the log may outgrow its volume, and a pod whose volume is full is evicted: (`keep` + 2) times `rotate_bytes` should fit into --log-size"
                    .to_owned(),
            );
        }
    }
    let drain = settings.drain_timeout.as_secs();
    Wanted { entrances, others, health, drain, routes: Some(settings.routes.clone()), notes }
}

fn root_at(root: &Node) -> At {
    At { end: root.at.start, ..root.at }
}

fn address_of(root: &Node, listener: &str) -> Option<At> {
    let entry = items(root.get("listeners")).iter().find(|entry| word(entry, "name") == Some(listener))?;
    entry.get("address").map(|node| node.at)
}

/// The port of `HOST:PORT`, if the host is this pod.
fn port_on_loopback(address: &str) -> Option<String> {
    let (host, port) = address.rsplit_once(':')?;
    (host.starts_with("127.") || host == "localhost" || host == "[::1]").then(|| port.to_owned())
}
