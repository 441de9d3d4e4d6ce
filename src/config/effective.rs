//! The settings that are in force, each with where it is from: the file, the environment, or the default.

use std::collections::HashSet;
use std::fmt;
use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;
use serde::Serializer;

use super::Settings;
use super::substitute;
use crate::forward::Protocol;
use crate::policy::problem::Source;
use crate::signature::sha256;
use crate::standing::OnStale;
use crate::yaml;
use crate::yaml::Node;
use crate::yaml::Value;

/// Where a value is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The settings file, in this line.
    File(String, usize),
    /// These variables of the environment, or what the file says for a variable that is not set.
    Environment(Vec<String>, String, usize),
    /// This flag.
    Flag(&'static str),
    /// The short form of `run` stands for it.
    ShortForm,
    /// Nobody said otherwise.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, line) => write!(out, "{path}:{line}"),
            Self::Environment(names, path, line) => {
                write!(out, "${{{}}} in {path}:{line}", names.join("}, ${"))
            }
            Self::Flag(name) => out.write_str(name),
            Self::ShortForm => out.write_str("short form"),
            Self::Default => out.write_str("default"),
        }
    }
}

impl Serialize for Origin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Its place, such as `limits.headers` or `listeners[0].address`.
    pub key: String,
    /// Its value, as it would be written.
    pub value: String,
    /// Where that is from.
    pub origin: Origin,
}

/// The settings in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effective {
    /// Each of them that is set, or has a default: those of the file first, in its order.
    pub entries: Vec<Entry>,
    /// SHA-256, in hex, of keys and values: the same settings have the same one, wherever they are from. A name of the
    /// machine that stands for `service.instance` is left out.
    pub digest: String,
}

/// As `/config_dump` shows them.
#[derive(Serialize)]
struct Dump<'e> {
    version: &'static str,
    commit: Option<&'static str>,
    digest: &'e str,
    settings: &'e [Entry],
}

/// What stands for a value that is nobody's business.
const MASKED: &str = "(masked)";

/// What a variable is called whose value is a secret.
const SECRETS: [&str; 7] = ["SECRET", "TOKEN", "PASS", "PWD", "KEY", "CREDENTIAL", "PRIVATE"];

impl Effective {
    /// Of these settings: `root` is their tree, `written` the same before the environment was put in.
    pub(super) fn of(settings: &Settings, root: &Node, written: &Node, source: &Source) -> Self {
        let mut leaves = Leaves { path: &source.path, lines: line_ends(&source.text), found: Vec::new() };
        leaves.add(&mut String::new(), root, written);
        let mut entries = leaves.found;
        let ways = match root.get("identity").map(|node| &node.value) {
            Some(Value::List(ways)) => ways.as_slice(),
            Some(Value::Scalar { .. } | Value::Map(_)) | None => &[],
        };
        let tokens = ways.iter().enumerate().filter(|(_, way)| way.get("token").is_some());
        let forwards = tokens.map(|(place, _)| (format!("identity[{place}].token.forward"), "false".to_owned()));
        let said: HashSet<String> = entries.iter().map(|entry| entry.key.clone()).collect();
        let defaults = settings.defaults().into_iter().chain(forwards).filter(|(key, _)| !said.contains(key));
        entries.extend(defaults.map(|(key, value)| Entry { key, value, origin: Origin::Default }));
        let mut lines: Vec<String> = entries
            .iter()
            .filter(|entry| entry.key != "service.instance" || entry.origin != Origin::Default)
            .map(|entry| format!("{}={}\n", entry.key, entry.value))
            .collect();
        lines.sort();
        let digest = sha256(lines.concat().as_bytes());
        Self { entries, digest }
    }

    /// The same for settings that no file says: those of the short form, of which flags say some.
    #[must_use]
    pub fn of_short_form(mut self, flags: &[(&str, &'static str)]) -> Self {
        for entry in self.entries.iter_mut().filter(|entry| entry.origin != Origin::Default) {
            let flag = flags.iter().find(|(key, _)| *key == entry.key);
            entry.origin = flag.map_or(Origin::ShortForm, |(_, flag)| Origin::Flag(flag));
        }
        self
    }

    /// A line a setting: key, value, and where it is from.
    #[must_use]
    pub fn text(&self) -> String {
        let widest = |width: &dyn Fn(&Entry) -> usize| self.entries.iter().map(width).max().unwrap_or(0).min(48);
        let (keys, values) = (widest(&|it| it.key.chars().count()), widest(&|it| it.value.chars().count()));
        let mut text = String::new();
        for Entry { key, value, origin } in &self.entries {
            let _infallible = writeln!(text, "{key:keys$}  {value:values$}  {origin}");
        }
        let _infallible = writeln!(text, "digest {}", self.digest);
        text
    }

    /// The same as a JSON object.
    #[must_use]
    pub fn json(&self) -> String {
        let version = env!("CARGO_PKG_VERSION");
        let dump = Dump { version, commit: crate::telemetry::COMMIT, digest: &self.digest, settings: &self.entries };
        let mut text = serde_json::to_string_pretty(&dump).unwrap_or_default();
        text.push('\n');
        text
    }
}

/// Where each line ends.
fn line_ends(text: &str) -> Vec<usize> {
    text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(place, _)| place).collect()
}

/// Collects scalars.
struct Leaves<'s> {
    path: &'s str,
    lines: Vec<usize>,
    found: Vec<Entry>,
}

impl Leaves<'_> {
    /// Each scalar below a node.
    fn add(&mut self, key: &mut String, node: &Node, written: &Node) {
        let length = key.len();
        match (&node.value, &written.value) {
            (Value::Scalar { text, .. }, Value::Scalar { text: before, .. }) => {
                let start = usize::try_from(node.at.start).unwrap_or(usize::MAX);
                let line = 1 + self.lines.partition_point(|end| *end < start);
                let names = variables(before);
                let is_secret = |name: &String| SECRETS.iter().any(|word| name.to_ascii_uppercase().contains(word));
                let value = if names.iter().any(is_secret) { MASKED.to_owned() } else { shown(text) };
                let origin = match names.is_empty() {
                    true => Origin::File(self.path.to_owned(), line),
                    false => Origin::Environment(names, self.path.to_owned(), line),
                };
                self.found.push(Entry { key: key.clone(), value, origin });
            }
            (Value::List(items), Value::List(before)) => {
                for (place, (item, before)) in items.iter().zip(before).enumerate() {
                    let _infallible = write!(key, "[{place}]");
                    self.add(key, item, before);
                    key.truncate(length);
                }
            }
            (Value::Map(entries), Value::Map(before)) => {
                for ((name, item), (_, before)) in entries.iter().zip(before) {
                    let dot = if key.is_empty() { "" } else { "." };
                    let _infallible = write!(key, "{dot}{}", name.text);
                    self.add(key, item, before);
                    key.truncate(length);
                }
            }
            // The environment changes texts only.
            (Value::Scalar { .. } | Value::List(_) | Value::Map(_), _) => {}
        }
    }
}

/// The names in `${NAME}` and `${NAME:-default}`.
fn variables(text: &str) -> Vec<String> {
    let parts = text.split("${").skip(1).filter_map(|rest| rest.split_once('}'));
    parts.map(|(inner, _)| inner.split_once(":-").map_or(inner, |(name, _)| name).to_owned()).collect()
}

/// A value without what a URL may hold of secrets: user and password, and the query.
fn shown(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let (place, query) = rest.split_once('?').map_or((rest, None), |(place, query)| (place, Some(query)));
    let end = place.find('/').unwrap_or(place.len());
    let (authority, path) = place.split_at_checked(end).unwrap_or((place, ""));
    let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    let user = if user.is_some() { format!("{MASKED}@") } else { String::new() };
    let query = if query.is_some() { format!("?{MASKED}") } else { String::new() };
    format!("{scheme}://{user}{host}{path}{query}")
}

/// A length of time, as it would be written.
fn time(time: Duration) -> String {
    let millis = time.as_millis();
    // A minute is mostly written as 60s.
    let units = [(86_400_000, 1, "d"), (3_600_000, 1, "h"), (60_000, 2, "m"), (1_000, 1, "s")];
    let found = units.into_iter().find(|(scale, least, _)| millis >= scale * least && millis.is_multiple_of(*scale));
    found.map_or_else(|| format!("{millis}ms"), |(scale, _, unit)| format!("{}{unit}", millis / scale))
}

/// A number of bytes, as it would be written.
fn size(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let found = units.into_iter().find(|(scale, _)| bytes >= *scale && bytes.is_multiple_of(*scale));
    found.map_or_else(|| bytes.to_string(), |(scale, unit)| format!("{}{unit}", bytes / scale))
}

fn sized(bytes: usize) -> String {
    size(u64::try_from(bytes).unwrap_or(u64::MAX))
}

impl Settings {
    /// Each key that has a default, and what holds: that, or what the file says instead.
    fn defaults(&self) -> Vec<(String, String)> {
        let mut all: Vec<(String, String)> = Vec::new();
        let mut add = |key: &str, value: String| all.push((key.to_owned(), value));
        add("service.instance", self.instance.clone());
        add("workers", self.workers.to_string());
        if let Some(most) = &self.policy.max_age {
            let word = match most.then {
                OnStale::Deny => "deny",
                OnStale::Warn => "warn",
            };
            add("policy.on_stale", word.to_owned());
        }
        add("enforcement", self.enforcement.as_str().to_owned());
        for (place, listener) in self.listeners.iter().enumerate() {
            let direction = if listener.egress.is_some() { "egress" } else { "ingress" };
            add(&format!("listeners[{place}].direction"), direction.to_owned());
            if let Some(tls) = &listener.tls {
                let asked = match &tls.clients {
                    Some(clients) if clients.are_required => "required",
                    Some(_) => "optional",
                    None => "none",
                };
                add(&format!("listeners[{place}].tls.client_authentication"), asked.to_owned());
                add(&format!("listeners[{place}].tls.min_version"), tls.min_version.as_str().to_owned());
            }
        }
        for (place, upstream) in self.upstreams.iter().enumerate() {
            let mut add = |key: &str, value: String| add(&format!("upstreams[{place}].{key}"), value);
            let is_http2 = match upstream.protocol {
                Protocol::Http1 => false,
                Protocol::Http2 => true,
            };
            add("protocol", if is_http2 { "http2" } else { "http1" }.to_owned());
            let is_subprocessor = self.listeners.iter().any(|it| it.egress.is_some() && it.upstream == place);
            if !is_subprocessor {
                add("storage_location", upstream.storage_location.unwrap_or(self.storage_location).to_string());
            }
            add("connect_timeout", time(upstream.connect_timeout));
            add("response_timeout", upstream.response_timeout.map_or_else(|| "30s; 1h for gRPC".to_owned(), time));
            add("idle_timeout", time(upstream.idle_timeout));
            add("max_connections", upstream.max_connections.to_string());
            add("header_bytes", sized(upstream.header_bytes));
            if let Some(tls) = &upstream.tls {
                add("tls.server_name", tls.server_name.to_str().into_owned());
            }
        }
        // Behind the routes stand the probes, which are about no subscriber.
        for (place, route) in self.routes.all().iter().enumerate() {
            if route.subject.is_some() {
                add(&format!("routes[{place}].subscriber_data"), "true".to_owned());
            }
        }
        self.log_and_limits(&mut add);
        all
    }

    fn log_and_limits(&self, add: &mut dyn FnMut(&str, String)) {
        let log = &self.log;
        if let Some(file) = &log.file {
            add("decision_log.file.rotate_bytes", size(file.rotate_bytes));
        }
        add("decision_log.stdout", log.stdout.to_string());
        add("decision_log.durability", log.durability.as_str().to_owned());
        add("decision_log.timeout", time(log.timeout));
        add("decision_log.on_failure", log.on_failure.as_str().to_owned());
        add("decision_log.checkpoint_every", time(log.checkpoint_every));
        add("headers.server_timing", self.headers.server_timing.to_string());
        let limits = &self.limits;
        add("limits.header_bytes", sized(limits.header_bytes));
        add("limits.headers", limits.headers.to_string());
        add("limits.token_bytes", sized(self.token_bytes));
        add("limits.header_timeout", time(limits.patience.head));
        add("limits.idle_timeout", time(limits.patience.idle));
        add("limits.stall_timeout", time(limits.patience.stall));
        add("limits.stall_bytes", sized(limits.patience.stall_bytes));
        add("limits.handshake_timeout", time(limits.handshake_timeout));
        add("limits.connections", limits.connections.to_string());
        add("limits.tunnel_idle_timeout", time(limits.tunnel_idle_timeout));
        add("limits.concurrent_requests", limits.concurrent_requests.to_string());
        add("limits.streams", limits.http2.streams.to_string());
        add("limits.wrong_streams", limits.http2.wrong_streams.to_string());
        add("limits.spare_frames", limits.http2.spare_frames.to_string());
        add("limits.stream_window", size(u64::from(limits.http2.stream_window)));
        add("limits.connection_window", size(u64::from(limits.http2.connection_window)));
        add("drain_timeout", time(self.drain_timeout));
    }
}

/// The address of the health listener in the text of a `sidecar.yaml`, if it has one. Nothing else of it is looked at: a
/// probe asks often.
///
/// # Errors
///
/// What keeps it from being read, as a sentence.
pub fn health_address(
    source: &Source,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<std::net::SocketAddr>, String> {
    let Ok(root) = yaml::read(&source.text, 0) else { return Err(format!("`{}` is not YAML", source.path)) };
    let Some(address) = root.get("health").and_then(|health| health.get("address")).and_then(Node::text) else {
        return Ok(None);
    };
    let replaced = substitute(address, environment)
        .map_err(|_unset| "the environment lacks what `health.address` takes from it".to_owned())?;
    let address = replaced.as_deref().unwrap_or(address);
    address.parse().map(Some).map_err(|_| format!("`health.address` is no address: `{}`", source.path))
}
