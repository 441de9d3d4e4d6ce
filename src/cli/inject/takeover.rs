//! Puts ports of a service behind the sidecar: which they are, what is in the way, and what has to follow.

use std::fmt::Write as _;

use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use http::Uri;
use http::Version;
use http::header::HOST;

use super::edit::Edits;
use super::edit::Plain;
use super::edit::at;
use super::edit::items;
use super::edit::word;
use super::settings::Entrance;
use super::settings::Wanted;
use super::workload::Declared;
use super::workload::Service;
use super::workload::containers;
use super::workload::declared;
use crate::establish::route::Routes;
use crate::observed::Target;
use crate::policy::problem::Code;
use crate::policy::problem::Problem;
use crate::yaml::Node;

/// The name of the port of the health listener.
pub(super) const HEALTH: &str = "dpa-health";

/// A port of the service, and the port of the sidecar that stands for it.
#[derive(Clone, Debug)]
pub(super) struct Taken {
    /// Port of the sidecar.
    pub(super) listen: u16,
    /// Its name.
    pub(super) name: String,
    /// Port of the service.
    pub(super) app: u16,
    /// The port's entry: the path of its container, and the name that it had.
    from: Option<(String, Option<String>)>,
    entrance: Entrance,
}

impl Taken {
    /// The name that has moved to the sidecar's port.
    pub(super) fn moved_name(&self) -> Option<&str> {
        self.from.as_ref().and_then(|(_, name)| name.as_deref())
    }

    /// As the report says it.
    pub(super) fn told(&self) -> String {
        let Self { listen, app, .. } = self;
        let mut text = format!("port {app} of the service is behind {listen} of the sidecar");
        if let Some(name) = self.moved_name() {
            // Writing to a String cannot fail.
            let _infallible = write!(text, ", and so is the name `{name}`");
        }
        text
    }
}

/// What one workload is asked for, beside [`Wanted`].
pub(super) struct Terms<'t> {
    pub(super) wanted: &'t Wanted,
    /// Whether the service listens on 127.0.0.1 only.
    pub(super) loopback: bool,
    /// Whether its pods end by themselves.
    pub(super) is_job: bool,
    /// The Services that select it.
    pub(super) services: Vec<&'t Service>,
}

fn refuse(at: &Node, message: impl Into<String>, help: impl Into<String>) -> Problem {
    Problem::error(Code::Workload, at.at, message, help)
}

/// The ports that go behind the sidecar.
///
/// # Errors
///
/// Ports that nobody can tell, and ports that are taken.
pub(super) fn taken(template: &Node, terms: &Terms<'_>) -> Result<Vec<Taken>, Vec<Problem>> {
    let all = declared(template);
    let mut found = Vec::new();
    let mut problems = Vec::new();
    for entrance in &terms.wanted.entrances {
        match behind(entrance, template, &all, terms) {
            Ok(Some(app)) => {
                // A second entrance to the same port: its name has moved already.
                let is_named = found.iter().any(|other: &Taken| other.app == app);
                found.push(take(entrance, app, if is_named { &[] } else { &all }));
            }
            Ok(None) => {}
            Err(problem) => problems.push(problem),
        }
    }
    let mut ours: Vec<u16> = terms.wanted.entrances.iter().map(|entrance| entrance.listen).collect();
    ours.push(terms.wanted.health);
    ours.extend(&terms.wanted.others);
    for port in &all {
        let is_own = |taken: &Taken| terms.loopback && taken.app == port.number && taken.listen == port.number;
        if port.is_tcp && ours.contains(&port.number) && !found.iter().any(is_own) {
            let message =
                format!("port {} is taken by `{}`, and the sidecar would listen there", port.number, port.container);
            problems.push(refuse(port.node, message, way_out(port.number, terms)));
        }
        let is_taken = found.iter().any(|taken| taken.app == port.number) && port.is_tcp;
        if is_taken && let Some(host) = port.node.get("hostPort").filter(|_| word(port.node, "hostPort") != Some("0")) {
            let message = format!("the `hostPort` of port {} leads around the sidecar", port.number);
            problems.push(refuse(host, message, "remove it, and let a Service point to the port"));
        }
        let is_new_name = |name: &str| is_taken && name == new_name(port.number);
        if let Some(name) = port.name.filter(|name| *name == HEALTH || is_new_name(name)) {
            let message = format!("the name `{name}` is one that the sidecar needs");
            problems.push(refuse(port.node, message, "give the port another name"));
        }
    }
    for taken in &found {
        let is_declared = all.iter().any(|port| port.is_tcp && port.number == taken.app);
        if taken.app == terms.wanted.health || (taken.app == taken.listen && !is_declared && !terms.loopback) {
            let message = format!("the service listens on port {}, and the sidecar would as well", taken.app);
            problems.push(refuse(template, message, way_out(taken.app, terms)));
        }
    }
    if problems.is_empty() { Ok(found) } else { Err(problems) }
}

fn way_out(port: u16, terms: &Terms<'_>) -> &'static str {
    match (terms.wanted.routes.is_some(), port == terms.wanted.health) {
        (true, true) => "write another port into `health: {address: …}` of sidecar.yaml",
        (true, false) => "write another `address` of the listener into sidecar.yaml, or see `--loopback`",
        (false, true) => "choose another with `--health-port`, as in sidecar.yaml",
        (false, false) => "choose another with `--listen`, as in sidecar.yaml, or see `--loopback`",
    }
}

/// The port of the service behind an entrance; nothing for a job that has no port.
fn behind(
    entrance: &Entrance,
    template: &Node,
    all: &[Declared<'_>],
    terms: &Terms<'_>,
) -> Result<Option<u16>, Problem> {
    let of_service = |port: &&Declared<'_>| port.is_tcp && port.container.starts_with("spec/containers/");
    let ports: Vec<_> = all.iter().filter(of_service).collect();
    let listed = || {
        let one = |port: &&Declared<'_>| match port.name {
            Some(name) => format!("{} ({name})", port.number),
            None => port.number.to_string(),
        };
        ports.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    if let Some(given) = &entrance.behind {
        let known = number(given, all);
        let help = format!("its ports are: {}", if ports.is_empty() { "none".to_owned() } else { listed() });
        return known.map(Some).ok_or_else(|| refuse(template, format!("no container has a port `{given}`"), help));
    }
    let mut meant: Vec<u16> = match ports.as_slice() {
        [only] => vec![only.number],
        _ => terms.services.iter().flat_map(|it| &it.ports).filter_map(|port| number(&port.target, all)).collect(),
    };
    meant.sort_unstable();
    meant.dedup();
    match meant.as_slice() {
        [only] => Ok(Some(*only)),
        _ if ports.is_empty() && terms.is_job => Ok(None),
        _ if ports.is_empty() => {
            let message = "no container says which port it listens on";
            let help = "say it: `--port NUMBER`; or `--egress`, if nobody asks this service for anything";
            Err(refuse(template, message, help))
        }
        _ => {
            let message = format!("which port goes behind the sidecar? There are {}", listed());
            let help =
                "say it: `--port NUMBER` or `--port NAME`; several at once stand in a sidecar.yaml: `--settings`";
            Err(refuse(template, message, help))
        }
    }
}

/// The number of a port that is given by number or name.
fn number(given: &str, all: &[Declared<'_>]) -> Option<u16> {
    let named = || all.iter().find(|port| port.name == Some(given)).map(|port| port.number);
    given.parse().ok().filter(|number| *number > 0).or_else(named)
}

fn take(entrance: &Entrance, app: u16, all: &[Declared<'_>]) -> Taken {
    let entry = all.iter().find(|port| port.is_tcp && port.number == app);
    let from = entry.map(|port| (port.container.clone(), port.name.map(str::to_owned)));
    let name = from.as_ref().and_then(|(_, name)| name.clone()).unwrap_or_else(|| format!("dpa-{}", entrance.listen));
    Taken { listen: entrance.listen, name, app, from, entrance: entrance.clone() }
}

/// The name that the port of the service has from now on.
fn new_name(app: u16) -> String {
    format!("app-{app}")
}

/// Moves the names of ports, and lets probes follow.
///
/// # Errors
///
/// Probes that would not come to the service.
pub(super) fn apply(
    edits: &mut Edits<'_>,
    all: &[Taken],
    terms: &Terms<'_>,
    told: &mut Vec<String>,
) -> Result<(), Vec<Problem>> {
    let mut problems = Vec::new();
    let handlers = handlers(edits.root());
    for Handler { container, path, kind, target, by_name } in handlers {
        let Some(taken) = all.iter().find(|taken| taken.app == target) else { continue };
        let Some(handler) = at(edits.root(), &path) else { continue };
        if !terms.loopback {
            if by_name && taken.moved_name().is_some() {
                told.push(format!("`{}` asks the service at `{}`", shown(&path), new_name(taken.app)));
                edits.set(&format!("{path}/port"), Plain::Text(new_name(taken.app)));
            }
            continue;
        }
        if kind != "httpGet" || taken.entrance.asks_for_certificates {
            let (message, help) = why_not(kind, &path, &container);
            problems.push(refuse(handler, message, help));
            continue;
        }
        let asked = word(handler, "path").unwrap_or("/").to_owned();
        match &terms.wanted.routes {
            Some(routes) if !passes(routes, &asked) => {
                let message = format!("sidecar.yaml lets no probe of `{asked}` pass");
                problems.push(refuse(handler, message, format!("add `probes: [{asked}]` to it")));
                continue;
            }
            Some(_) => {}
            None => told.push(format!("sidecar.yaml needs `probes: [{asked}]` for `{}`", shown(&path))),
        }
        told.push(format!("`{}` goes through the sidecar, port {}", shown(&path), taken.listen));
        edits.set(&format!("{path}/port"), Plain::Number(u64::from(taken.listen)));
        let scheme = if taken.entrance.tls { "HTTPS" } else { "HTTP" };
        if word_at(edits.root(), &format!("{path}/scheme")).unwrap_or("HTTP") != scheme {
            edits.set(&format!("{path}/scheme"), Plain::Text(scheme.to_owned()));
        }
    }
    if problems.is_empty() {
        for taken in all {
            if let Some((container, Some(_))) = &taken.from {
                edits.set(&format!("{container}/ports/{}/name", taken.app), Plain::Text(new_name(taken.app)));
            }
        }
        Ok(())
    } else {
        Err(problems)
    }
}

fn word_at<'n>(node: &'n Node, path: &str) -> Option<&'n str> {
    at(node, path).and_then(Node::text)
}

/// The part of a path that a person knows.
fn shown(path: &str) -> &str {
    path.strip_prefix("spec/").and_then(|path| path.split_once('/')).map_or(path, |(_, rest)| rest)
}

fn why_not(kind: &str, path: &str, container: &str) -> (String, String) {
    let container = shown(container);
    if kind == "httpGet" {
        let message = format!("the kubelet has no certificate for `{}`, and the listener asks for one", shown(path));
        (message, format!("ask within `{container}` instead: `exec`; or write `client_authentication: optional`"))
    } else {
        let message = format!("the kubelet does not come to loopback, so `{}` of `{kind}` cannot work", shown(path));
        (message, "make it `httpGet`, which can go through the sidecar, or `exec`".to_owned())
    }
}

/// Whether a probe of this path passes through the sidecar.
fn passes(routes: &Routes, asked: &str) -> bool {
    let path = if asked.starts_with('/') { asked.to_owned() } else { format!("/{asked}") };
    let Ok(uri) = path.parse::<Uri>() else { return false };
    let headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static("probe"))]);
    let Ok((target, _)) = Target::read(&uri, &headers, Version::HTTP_11) else { return false };
    routes.find(&Method::GET, None, &target).is_some_and(|found| found.route.subject.is_none())
}

/// Something of a container that the kubelet asks over the network.
struct Handler {
    container: String,
    /// Where it is within the template.
    path: String,
    kind: &'static str,
    /// The number of the port.
    target: u16,
    by_name: bool,
}

fn handlers(template: &Node) -> Vec<Handler> {
    const PLACES: [&str; 5] =
        ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle/postStart", "lifecycle/preStop"];
    const KINDS: [&str; 3] = ["httpGet", "tcpSocket", "grpc"];
    let mut found = Vec::new();
    for (container, node) in containers(template) {
        let own = |name: &str| {
            let port = items(node.get("ports")).iter().find(|port| word(port, "name") == Some(name))?;
            word(port, "containerPort")?.parse().ok()
        };
        for place in PLACES {
            for kind in KINDS {
                let within = format!("{place}/{kind}");
                let Some(port) = at(node, &within).and_then(|handler| word(handler, "port")) else { continue };
                let by_number: Option<u16> = port.parse().ok();
                let Some(target) = by_number.or_else(|| own(port)) else { continue };
                let path = format!("{container}/{within}");
                found.push(Handler { container: container.clone(), path, kind, target, by_name: by_number.is_none() });
            }
        }
    }
    found
}
