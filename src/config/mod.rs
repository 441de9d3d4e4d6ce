//! Settings: `sidecar.yaml`, checked, as the steps want them.
//!
//! The only place that reads the environment.

mod admin;
mod document;
mod effective;
mod egress;
mod headers;
mod identity;
mod policy;
mod tls;
mod tokens;

use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use jiff::Timestamp;

use self::document::From;
use self::document::Later;
use self::document::Take as TakeDocument;
pub use self::document::schema;
pub use self::effective::Effective;
pub use self::effective::Entry;
pub use self::effective::health_address;
use self::egress::Ends;
use self::egress::help_for;
use self::policy::MAX_KEY;
pub use self::policy::PolicyTerms;
use self::tokens::Believed;
use self::tokens::Claimed;
use crate::accept::Limits;
use crate::accept::Patience;
use crate::accept::StreamLimits;
use crate::doors::egress::Egress;
use crate::establish::route;
use crate::establish::route::Passage;
use crate::establish::route::Route;
use crate::establish::route::RouteError;
use crate::establish::route::Routes;
use crate::establish::route::Subject;
use crate::establish::route::Take;
use crate::files;
use crate::forward::Address;
use crate::forward::LEAST_BUFFER;
use crate::forward::Protocol;
use crate::forward::UpstreamSettings;
use crate::forward::headers::HeaderRules;
use crate::identify::Trust;
use crate::identify::Way;
use crate::keys::KeySource;
use crate::policy::Durability;
use crate::policy::Enforcement;
use crate::policy::Policy;
use crate::policy::problem::Code;
use crate::policy::problem::Problem;
use crate::policy::problem::Problems;
use crate::policy::problem::Source;
use crate::policy::problem::nearest;
use crate::policy::terms::Identity;
use crate::policy::terms::Location;
use crate::record::log::Copy;
use crate::record::log::FileSettings;
use crate::record::log::LogSettings;
use crate::signature::Signer;
use crate::sockets;
use crate::telemetry::chain;
use crate::tls::ServerSettings;
use crate::yaml;
use crate::yaml::At;
use crate::yaml::List;
use crate::yaml::Section;
use crate::yaml::Spanned;
use crate::yaml::What;

/// Where requests come in.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub address: sockets::Address,
    /// Place of its upstream in [`Settings::upstreams`].
    pub upstream: usize,
    /// What it shows and asks for; none: it listens in clear.
    pub tls: Option<ServerSettings>,
    /// Who sends to whom through it; none: requests come in.
    pub egress: Option<Egress>,
    /// Where in the settings it is named.
    pub at: At,
}

/// The settings of one sidecar.
#[derive(Debug)]
pub struct Settings {
    /// `service.name`.
    pub service: String,
    /// `service.instance`.
    pub instance: String,
    /// `service.storage_location`.
    pub storage_location: Location,
    /// Worker threads.
    pub workers: usize,
    /// The policy file.
    pub policy_file: PathBuf,
    /// Where in the settings it is named.
    pub policy_file_at: At,
    /// What else `policy` says.
    pub policy: PolicyTerms,
    /// `enforcement`.
    pub enforcement: Enforcement,
    /// `listeners`.
    pub listeners: Vec<Listener>,
    /// `upstreams`.
    pub upstreams: Vec<UpstreamSettings>,
    /// `identity`.
    pub trust: Trust,
    /// Where the keys of the issuers come from, in the order of the issuers.
    pub key_sources: Vec<Arc<KeySource>>,
    /// `routes` and `probes`.
    pub routes: Arc<Routes>,
    /// `decision_log`.
    pub log: LogSettings,
    /// `health.address`.
    pub health: Option<SocketAddr>,
    /// `admin.address`.
    pub admin: Option<sockets::Address>,
    /// `headers`, and what `identity` says of headers.
    pub headers: HeaderRules,
    /// `limits`.
    pub limits: Limits,
    /// `drain_timeout`.
    pub drain_timeout: Duration,
    /// All of them, and where each is from.
    pub effective: Effective,
    token_bytes: usize,
    /// Constants that have to be in the policy.
    constants: Vec<(Constant, Spanned<String>)>,
    /// Where each route stands.
    route_places: Vec<At>,
    identity_at: At,
    log_at: At,
}

impl Listener {
    /// Whether callers may be told by their certificates here. On egress nobody is.
    fn asks_for_certificates(&self) -> bool {
        self.egress.is_none() && self.tls.as_ref().is_some_and(|tls| tls.clients.is_some())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Constant {
    Customer,
    Purpose,
    /// `service.caller`.
    Caller,
    /// `recipient` of an upstream.
    Recipient,
}

/// Reads a variable of the environment.
#[must_use]
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Compiles the text of a `sidecar.yaml`. Relative paths in it count from its folder.
///
/// The settings are there unless a problem is an error.
#[must_use]
pub fn compile(source: &Source, environment: &dyn Fn(&str) -> Option<String>) -> (Option<Settings>, Problems) {
    let mut compiler = Compiler {
        problems: Problems::default(),
        folder: folder_of(&source.path),
        defined_upstreams: Vec::new(),
        claimed: Vec::new(),
        is_http2_alone: false,
        environment,
    };
    let settings = compiler.compile(source);
    let problems = compiler.problems;
    if problems.has_errors() { (None, problems) } else { (settings, problems) }
}

impl Settings {
    /// What the policy demands at this moment and these settings do not give, and names in routes that it does not have.
    #[must_use]
    pub fn check_against(&self, policy: &Policy, now: Timestamp) -> Problems {
        let mut problems = Problems::default();
        let mut below =
            |at, message: &str, help: &str| problems.push(Problem::error(Code::BelowPolicy, at, message, help));
        if policy.require_enforce && self.enforcement == Enforcement::Observe {
            let help = "write `enforcement: enforce`; what the policy requires is for its owner to say";
            below(self.policy_file_at, "the policy requires `enforce`, and this sidecar would only observe", help);
        }
        if policy.security.decision_log > self.log.durability {
            let help = "write `durability: synced`, or ask the policy's owner what was promised";
            below(self.log_at, "the policy promises a decision log that is `synced` to disk", help);
        }
        self.check_policy_terms(policy, now, &mut problems);
        for (constant, Spanned { value, at }) in &self.constants {
            let (found, what, help) = help_for(*constant, value, policy);
            if !found {
                let message = format!("the policy has no {what} `{value}`");
                problems.push(Problem::error(Code::UnknownReference, *at, message, help));
            }
        }
        self.look_out(policy, &mut problems);
        self.look_out_for_callers(policy, &mut problems);
        problems
    }

    /// Reads the keys of issuers that are in files, and what else of tokens is.
    #[must_use]
    pub fn read_keys(&self) -> Problems {
        let mut problems = Problems::default();
        for source in &self.key_sources {
            if let Err(error) = source.read_files() {
                let message = format!("there are no keys of `{}`: {}", source.issuer, chain(&error));
                let help = "correct the path from the folder of this file, or ask the issuer for its JWK Set";
                problems.push(Problem::error(Code::Unreadable, source.at, message, help));
            }
        }
        problems
    }

    /// What can never pass, and what cannot be seen.
    fn look_out(&self, policy: &Policy, problems: &mut Problems) {
        for (constant, Spanned { value, at }) in &self.constants {
            let Some(purpose) = policy.purpose_named(value).filter(|_| *constant == Constant::Purpose) else {
                continue;
            };
            if !policy.is_permitted_anywhere(purpose) {
                let message = format!("no customer permits `{value}`, so nothing passes on this route");
                let help = "correct the purpose, or remove the route";
                problems.push(Problem::warning(Code::NeverWorks, *at, message, help));
            }
        }
        self.check_transport(policy, problems);
        self.check_authorities(policy, problems);
        self.look_out_for_egress(policy, problems);
        let issuers = self.trust.tokens().map_or(&[][..], |tokens| &tokens.issuers);
        let says_where = |identity: &Identity| {
            let named = identity.as_str().strip_prefix("jwt:").and_then(|rest| rest.split_once('|'));
            let issuer = named.and_then(|(name, _)| issuers.iter().find(|issuer| issuer.name == name));
            issuer.is_some_and(|issuer| issuer.claims.location.is_some())
        };
        for (caller, identities) in policy.callers_without_location() {
            if identities.into_iter().any(says_where) {
                continue;
            }
            let message = format!("the caller `{caller}` has no `location`, and no claim can say where it is");
            let help = "its requests are denied as `location_unknown`: write its location in the policy, or let its token say it: `claims: {location: …}`";
            problems.push(Problem::warning(Code::NeverWorks, self.policy_file_at, message, help));
        }
        for (route, at) in self.routes.all().iter().zip(&self.route_places) {
            let establishes_none = route.subject.as_ref().is_some_and(|subject| subject.subscriber.is_none());
            if establishes_none && policy.restricts_subscribers() {
                let message = format!("`{}` does not say which subscriber a request is about", route.path);
                let help = "instructions restrict subscribers and are not seen here; add `subscriber: …` if the request says it";
                problems.push(Problem::warning(Code::UnseenRestriction, *at, message, help));
            }
            if route.subject.is_none() && route.path.starts_with("/{*") {
                let message = format!("`{}` lets every path pass that no other route maps", route.path);
                let help = "name the paths without subscriber data, such as `/assets/{*rest}`";
                problems.push(Problem::warning(Code::CatchAll, *at, message, help));
            }
        }
    }
}

/// Fewest bytes of a segment: some records more than its first ones.
const LEAST_SEGMENT: usize = 16 * 1024;

fn folder_of(path: &str) -> PathBuf {
    Path::new(path).parent().map(Path::to_path_buf).unwrap_or_default()
}

struct Compiler<'e> {
    problems: Problems,
    folder: PathBuf,
    /// The names of all upstreams, also of those with a fault: a listener that names one makes no mistake.
    defined_upstreams: Vec<String>,
    /// What routes take from claims, and where they say so.
    claimed: Vec<(Claimed, At)>,
    /// Whether no upstream speaks HTTP/1.1.
    is_http2_alone: bool,
    environment: &'e dyn Fn(&str) -> Option<String>,
}

/// How many bytes that is.
fn bytes(size: Option<Spanned<document::Size>>) -> Option<Spanned<usize>> {
    size.map(|size| Spanned { value: size.value.0, at: size.at })
}

impl Compiler<'_> {
    fn error(&mut self, code: Code, at: At, message: impl Into<String>, help: impl Into<String>) {
        self.problems.push(Problem::error(code, at, message, help));
    }

    fn compile(&mut self, source: &Source) -> Option<Settings> {
        let mut root = match yaml::read(&source.text, 0) {
            Ok(root) => root,
            Err(faults) => {
                self.problems.extend_faults(faults);
                return None;
            }
        };
        let (environment, written) = (self.environment, root.clone());
        let change = |text: &str| substitute(text, environment);
        if let Err(faults) = root.rewrite(&change) {
            for fault in faults {
                let mut problem = Problem::from(fault);
                problem.code = Code::Environment;
                self.problems.push(problem);
            }
        }
        if let Some(yaml::Value::List(upstreams)) = root.get("upstreams").map(|node| &node.value) {
            let names = upstreams.iter().filter_map(|upstream| upstream.get("name")?.text());
            self.defined_upstreams = names.map(str::to_owned).collect();
        }
        let (document, faults) = root.decode::<document::Document>();
        self.problems.extend_faults(faults);
        let mut settings = self.document(document?, root.at)?;
        settings.effective = Effective::of(&settings, &root, &written, source);
        Some(settings)
    }

    fn document(&mut self, document: document::Document, root_at: At) -> Option<Settings> {
        let document::Document {
            service,
            workers,
            policy,
            enforcement,
            listeners,
            upstreams,
            identity,
            routes,
            probes,
            decision_log,
            health,
            admin,
            headers,
            limits,
            drain_timeout,
        } = document;
        let service = self.needed(service, "service", root_at);
        let policy = self.needed(policy, "policy", root_at);
        let listeners = self.needed(listeners, "listeners", root_at);
        let upstreams = self.needed(upstreams, "upstreams", root_at).map(|list| list.items).unwrap_or_default();
        let identity = self.needed(identity, "identity", root_at);
        let routes = self.needed(routes, "routes", root_at);
        let decision_log = self.needed(decision_log, "decision_log", root_at);
        let workers = workers.given();
        let policy_terms = policy.as_ref().map(|policy| self.policy_terms(policy));
        if let Some(Spanned { value: 0, at }) = workers {
            self.error(Code::Invalid, at, "there has to be a worker", "write 1 or more, or leave `workers` out");
        }
        let upstream_names: Vec<Spanned<String>> = upstreams.iter().map(|it| named(&it.name)).collect();
        self.distinct(&upstream_names);
        let recipients: Vec<_> = upstreams.iter().map(|it| it.recipient.as_ref().map(named)).collect();
        let caller = service.as_ref().and_then(|service| service.caller.as_ref()).map(named);
        let upstreams: Vec<_> = upstreams.into_iter().map(|upstream| self.upstream(upstream)).collect();
        self.is_http2_alone = !upstreams.is_empty() && upstreams.iter().all(|it| it.protocol == Protocol::Http2);
        let listeners = listeners.map(|list| self.filled(list)).unwrap_or_default();
        self.distinct(&listeners.iter().map(|it| named(&it.name)).collect::<Vec<_>>());
        let ends = Ends { caller: caller.as_ref(), upstreams: &upstreams, recipients: &recipients };
        let listeners: Vec<_> =
            listeners.into_iter().filter_map(|it| self.listener(it, &upstream_names, &ends)).collect();
        let egress_hosts = listeners.iter().filter_map(|it| it.egress.as_ref()).map(|it| it.host.clone()).collect();
        let identity_at = identity.as_ref().map(|list| list.at);
        let identity = identity.map(|list| self.filled(list)).unwrap_or_default();
        self.certificates_asked_for(&identity, &listeners);
        self.peers_asked_for(&identity, &listeners);
        self.peers_of_one_header(&identity);
        let recipients = recipients.into_iter().flatten().map(|recipient| (Constant::Recipient, recipient));
        let mut constants: Vec<_> =
            caller.map(|caller| (Constant::Caller, caller)).into_iter().chain(recipients).collect();
        let routes = routes.map(|list| self.filled(list)).unwrap_or_default();
        let (routes, route_places) = self.routes(routes, probes.given(), &mut constants);
        let workers = workers.map_or_else(default_workers, |workers| usize::from(workers.value));
        // Each worker holds one connection's place on each listener while it waits for the next.
        let (limits, token_bytes) = self.limits(limits.given().unwrap_or_default(), workers * listeners.len());
        let mut believed = Believed::default();
        for way in identity {
            self.way(way, token_bytes, &mut believed);
        }
        self.claims_are_mapped(&believed);
        let Believed { mut ways, tokens, key_sources, .. } = believed;
        ways.extend(tokens.map(Way::Tokens));
        let trust = Trust::new(ways);
        let headers = self.headers(headers.given().unwrap_or_default(), &trust);
        let health = health.given().and_then(|health| self.address(&health.address));
        let admin = admin.given().and_then(|admin| self.admin(&admin.address));
        let log_at = decision_log.as_ref().map(|log| log.at);
        let log = decision_log.map(|log| self.log(log));
        let (service, policy) = (service?, policy?);
        Some(Settings {
            service: service.name.to_string(),
            instance: service.instance.map_or_else(host_name, |instance| instance.to_string()),
            storage_location: service.storage_location,
            workers,
            policy_file: self.folder.join(&policy.file.value),
            policy_file_at: policy.file.at,
            policy: policy_terms?,
            enforcement: enforcement.given().unwrap_or(Enforcement::Enforce),
            listeners,
            upstreams,
            trust,
            key_sources,
            routes: Arc::new(routes.with_egress_hosts(egress_hosts)),
            log: log?,
            health,
            admin,
            headers,
            limits,
            drain_timeout: drain_timeout.given().map_or(Duration::from_secs(25), |span| span.0),
            effective: Effective::default(),
            token_bytes,
            constants,
            route_places,
            identity_at: identity_at?,
            log_at: log_at?,
        })
    }

    /// A section that has to be there.
    fn needed<T>(&mut self, section: Section<T>, key: &'static str, root_at: At) -> Option<T> {
        self.problems.0.extend(section.missing(key, root_at).map(Problem::from));
        section.given()
    }

    fn filled<T>(&mut self, list: List<T>) -> Vec<T> {
        self.not_empty(&list);
        list.items
    }

    fn later(&mut self, key: &str, setting: &Later) {
        if let Some(setting) = setting {
            let message = format!("this version does not have `{key}` yet");
            self.error(Code::NotYet, setting.at, message, "remove the key: the sidecar does not start half configured");
        }
    }

    fn not_empty<T>(&mut self, list: &List<T>) {
        if list.is_empty {
            self.error(Code::EmptyList, list.at, "this list is empty", "name at least one");
        }
    }

    fn distinct(&mut self, names: &[Spanned<String>]) {
        for (place, name) in names.iter().enumerate() {
            if names.iter().take(place).any(|earlier| earlier.value == name.value) {
                let message = format!("the name `{}` stands twice in this list", name.value);
                self.error(Code::DuplicateId, name.at, message, "give each entry a name of its own");
            }
        }
    }

    fn address(&mut self, Spanned { value, at }: &Spanned<String>) -> Option<SocketAddr> {
        if value.starts_with("unix:") {
            let message = "this listener may have no Unix socket";
            self.error(Code::Invalid, *at, message, "write an address such as `127.0.0.1:9901`");
            return None;
        }
        let address = value.parse().ok();
        if address.is_none() {
            let message = format!("`{value}` is not an address to listen on");
            let help = "write an IP address and a port such as `0.0.0.0:8443`, `127.0.0.1:8080` or `[::]:8443`";
            self.error(Code::Invalid, *at, message, help);
        }
        address
    }

    fn listener(
        &mut self,
        listener: document::Listener,
        upstreams: &[Spanned<String>],
        ends: &Ends<'_>,
    ) -> Option<Listener> {
        let document::Listener { name, address, upstream, direction, tls } = listener;
        let tls = tls.map(|tls| self.listener_tls(tls));
        let place = upstreams.iter().position(|known| known.value == upstream.value.as_str());
        if place.is_none() && !self.defined_upstreams.iter().any(|name| name == upstream.value.as_str()) {
            let names = upstreams.iter().map(|known| known.value.as_str());
            let near = self.problems.are_few().then(|| nearest(upstream.value.as_str(), names)).flatten();
            let help = near.map_or_else(
                || "name one that stands under `upstreams`".to_owned(),
                |near| format!("did you mean `{near}`?"),
            );
            let message = format!("there is no upstream `{}`", upstream.value);
            self.error(Code::UnknownReference, upstream.at, message, help);
        }
        let address = match address.value.strip_prefix("unix:") {
            None => Spanned { at: address.at, value: sockets::Address::Tcp(self.address(&address)?) },
            Some("") => {
                let help = "write `unix:` and a path, such as `unix:/run/dpa-sidecar/in.sock`";
                self.error(Code::Invalid, address.at, "this Unix socket has no path", help);
                return None;
            }
            Some(path) => {
                if tls.is_some() {
                    let help =
                        "remove `tls`: a Unix socket never leaves the machine; who may connect is up to its file";
                    self.error(Code::OneOf, address.at, "there is no TLS on a Unix socket", help);
                }
                Spanned { at: address.at, value: sockets::Address::Unix(self.folder.join(path)) }
            }
        };
        let place = Spanned { value: place?, at: upstream.at };
        let egress = self.egress(direction, &address, &place, ends).ok()?;
        let (name, at) = (name.value.to_string(), name.at);
        Some(Listener { name, address: address.value, upstream: place.value, tls, egress, at })
    }

    fn upstream(&mut self, upstream: document::Upstream) -> UpstreamSettings {
        let document::Upstream {
            name,
            address,
            protocol,
            tls,
            storage_location,
            recipient,
            connect_timeout,
            response_timeout,
            idle_timeout,
            max_connections,
            header_bytes,
        } = upstream;
        let protocol = match protocol.map(|protocol| protocol.value) {
            Some(document::Protocol::Http2) => Protocol::Http2,
            Some(document::Protocol::Http1) | None => Protocol::Http1,
        };
        let tls_at = tls.as_ref().map(|tls| tls.at());
        let tls = tls.and_then(|tls| self.upstream_tls(tls, &address, protocol));
        let address = self.upstream_address(address, tls_at);
        let or = |span: Option<document::Span>, default| span.map_or(Duration::from_secs(default), |span| span.0);
        if let Some(recipient) = recipient.filter(|_| storage_location.is_some()) {
            let message = format!("where `{}` keeps data stands in the policy", recipient.value);
            let help = "remove `storage_location` here: the `storage_locations` of the subprocessor count";
            self.error(Code::OneOf, recipient.at, message, help);
        }
        UpstreamSettings {
            name: name.value.to_string(),
            address,
            protocol,
            storage_location,
            connect_timeout: or(connect_timeout, 1),
            response_timeout: response_timeout.map(|span| span.0),
            idle_timeout: or(idle_timeout, 15),
            max_connections: self.at_least(1, max_connections, 256),
            header_bytes: self.at_least(LEAST_BUFFER, bytes(header_bytes), 16 * 1024),
            tls,
        }
    }

    fn upstream_address(&mut self, Spanned { value, at }: Spanned<String>, tls_at: Option<At>) -> Address {
        if let Some(path) = value.strip_prefix("unix:") {
            if path.is_empty() || path.contains('\0') {
                let message = "a Unix socket has a path";
                self.error(Code::Invalid, at, message, "write it such as `unix:/run/app/http.sock`");
            }
            if let Some(at) = tls_at {
                let message = "a Unix socket is on this machine and is spoken to in clear";
                self.error(Code::OneOf, at, message, "remove `tls`, or write a host and a port");
            }
            return Address::Unix(self.folder.join(path));
        }
        let port = value.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>()));
        if !matches!(port, Some((host, Ok(1..))) if !host.is_empty() && !value.contains("://")) {
            let message = format!("`{value}` is not the address of an upstream");
            let help = "write a host and a port such as `127.0.0.1:3000`, or `unix:/run/app/http.sock`";
            self.error(Code::Invalid, at, message, help);
        }
        Address::Tcp(value)
    }

    fn way(&mut self, way: Spanned<document::Identity>, token_bytes: usize, believed: &mut Believed) {
        let Spanned { value: way, at } = way;
        let document::Identity { certificate, token, forwarded_certificate, header } = way;
        let named = [certificate.is_some(), token.is_some(), forwarded_certificate.is_some(), header.is_some()];
        match named.iter().filter(|is_named| **is_named).count() {
            0 => {
                let help = "write `certificate: {}`, `token: {issuer: …, …}`, `forwarded_certificate: {trusted_peers: […]}` or `header: {name: …, trusted_peers: […]}`";
                self.error(Code::OneOf, at, "this way of identity names none", help);
            }
            1 => {}
            _ => {
                let help = "give each its own entry, with its own `-`";
                self.error(Code::OneOf, at, "this way of identity names more than one", help);
            }
        }
        if let Some(token) = token {
            self.token(token.value, token.at, token_bytes, believed);
        }
        believed.ways.extend(certificate.map(|way| self.certificate_way(way.value)));
        believed.ways.extend(forwarded_certificate.map(|way| self.forwarded_certificate(&way)));
        believed.ways.extend(header.and_then(|way| self.header(&way)));
    }

    fn routes(
        &mut self,
        documents: Vec<document::Route>,
        probes: Option<List<Spanned<String>>>,
        constants: &mut Vec<(Constant, Spanned<String>)>,
    ) -> (Routes, Vec<At>) {
        let mut places = Vec::new();
        let mut routes = Vec::new();
        for document in documents {
            places.push(document.path.at);
            routes.push(self.route(document, constants));
        }
        for probe in probes.into_iter().flat_map(|list| list.items) {
            if probe.value.contains(['{', '}']) {
                let message = format!("the probe `{}` is not an exact path", probe.value);
                self.error(Code::Invalid, probe.at, message, "write a path without `{name}`");
            }
            places.push(probe.at);
            let methods = vec![Method::GET, Method::HEAD];
            routes.push(Route { methods, ..Route::at(&probe.value, None) });
        }
        match Routes::new(routes) {
            Ok(routes) => (routes, places),
            Err(errors) => {
                for error in errors {
                    let (code, index, help) = match &error {
                        RouteError::Template { index, .. } => {
                            (Code::Invalid, *index, "write a path such as `/v1/customers/{customer}/{*rest}`")
                        }
                        RouteError::Conflict { index, .. } => {
                            (Code::RouteConflict, *index, "remove one, or give them different methods or hosts")
                        }
                    };
                    let at = places.get(index).copied().unwrap_or_default();
                    self.error(code, at, error.to_string(), help);
                }
                (Routes::default(), places)
            }
        }
    }

    fn route(&mut self, route: document::Route, constants: &mut Vec<(Constant, Spanned<String>)>) -> Route {
        let document::Route {
            path,
            methods,
            host,
            customer,
            subscriber,
            purpose,
            operation,
            data_categories,
            subscriber_data,
            upgrade,
            body_limit,
            response_timeout,
        } = route;
        let passage = Arc::new(Passage {
            upgrade: upgrade.map(|list| self.upgrades(&list)).unwrap_or_default(),
            body_limit: body_limit.map(|size| u64::try_from(size.0).unwrap_or(u64::MAX)),
            response_timeout: response_timeout.map(|span| span.0),
        });
        let methods = methods.map(|list| self.methods(&list)).unwrap_or_default();
        let host = host.map(|Spanned { value, at }| {
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
            if value.is_empty() || value.ends_with('.') || !value.bytes().all(plain) {
                let message = format!("`{value}` is not a host");
                self.error(Code::Invalid, at, message, "write a name without a port such as `api.example.org`");
            }
            value.to_ascii_lowercase()
        });
        if subscriber_data.as_ref().is_some_and(|data| !data.value) {
            let facts = [&customer, &subscriber, &purpose].into_iter().flatten().map(|take| take.at);
            let data = data_categories.as_ref().map(|list| list.at);
            for at in facts.chain(operation.as_ref().map(|operation| operation.at)).chain(data) {
                let message = "a route outside the agreement has no facts";
                self.error(
                    Code::OneOf,
                    at,
                    message,
                    "if subscriber data passes here, remove `subscriber_data: false`; else remove this key",
                );
            }
            return Route { path: path.value, methods, host, subject: None, passage };
        }
        let mut needed = |key: &str, is_there: bool| {
            if !is_there {
                let message = format!("the route `{}` does not say `{key}`", path.value);
                let help = format!(
                    "add `{key}: …`; a route on which no subscriber data passes says so: `subscriber_data: false`"
                );
                self.error(Code::MissingField, path.at, message, help);
            }
        };
        needed("customer", customer.is_some());
        needed("purpose", purpose.is_some());
        needed("data_categories", data_categories.is_some());
        if let Some(list) = &data_categories {
            self.not_empty(list);
        }
        for (constant, take) in [(Constant::Customer, &customer), (Constant::Purpose, &purpose)] {
            if let Some(Spanned { value: TakeDocument::Constant(text), at }) = take {
                constants.push((constant, Spanned { value: text.clone(), at: *at }));
            }
        }
        let mut take = |key, take: Option<Spanned<TakeDocument>>| take.map(|take| self.take(key, take, &path.value));
        let subject = Subject {
            customer: take("customer", customer).unwrap_or(Take::Context),
            subscriber: take("subscriber", subscriber),
            purpose: take("purpose", purpose).unwrap_or(Take::Context),
            operation: operation.map(|operation| operation.value),
            data_categories: data_categories.map(|list| list.items).unwrap_or_default(),
        };
        Route { path: path.value, methods, host, subject: Some(subject), passage }
    }

    /// Protocols that are no further requests: those would be decided by nobody.
    fn upgrades(&mut self, list: &List<Spanned<String>>) -> Vec<String> {
        self.not_empty(list);
        if self.is_http2_alone {
            let message = "no upstream can switch protocols: HTTP/2 has no `Upgrade`";
            self.error(Code::OneOf, list.at, message, "remove `upgrade`, or give its upstream `protocol: http1`");
        }
        let mut protocols = Vec::new();
        for Spanned { value, at } in &list.items {
            let name = value.to_ascii_lowercase();
            // A token of RFC 9110 section 5.6.2, and a version of one.
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~/".contains(&b);
            if name.is_empty() || !name.bytes().all(plain) {
                let message = format!("`{value}` is not the name of a protocol");
                self.error(Code::Invalid, *at, message, "write one that stands in `Upgrade`, such as `websocket`");
            } else if ["h2c", "h2", "h3", "http", "tls"].contains(&name.split('/').next().unwrap_or_default()) {
                let message = format!("behind `{value}` further requests could come, and nobody would decide them");
                self.error(Code::Invalid, *at, message, "name only protocols that carry none, such as `websocket`");
            }
            protocols.push(name);
        }
        protocols
    }

    fn methods(&mut self, list: &List<Spanned<String>>) -> Vec<Method> {
        self.not_empty(list);
        let mut methods = Vec::new();
        for Spanned { value, at } in &list.items {
            match Method::from_bytes(value.as_bytes()) {
                Ok(Method::CONNECT) => {
                    let message = "`CONNECT` asks for a tunnel, and is refused whatever its route".to_owned();
                    self.error(Code::Invalid, *at, message, "remove it; protocols to switch to are named by `upgrade`");
                }
                Ok(method) if value.bytes().all(|b| b.is_ascii_uppercase() || b == b'-') => methods.push(method),
                Ok(_) | Err(_) => {
                    let message = format!("`{value}` is not a method");
                    self.error(Code::Invalid, *at, message, "write it in capitals, such as `GET`");
                }
            }
        }
        methods
    }

    fn take(&mut self, key: &str, Spanned { value, at }: Spanned<TakeDocument>, path: &str) -> Take {
        match value {
            TakeDocument::Constant(text) => Take::Constant(text),
            TakeDocument::From(From::Path, Some(name)) => {
                if !route::names(path).any(|known| known == name) {
                    let message = format!("the path `{path}` has no `{{{name}}}`");
                    self.error(Code::FactSource, at, message, "name a part of the path that stands in braces");
                }
                Take::Path(name)
            }
            TakeDocument::From(From::Query, Some(name)) => Take::Query(name),
            TakeDocument::From(From::Path | From::Query, None) => {
                let help = "add `name: …`: the part of the path, or the parameter of the query";
                self.error(Code::FactSource, at, "this does not say which part of the request it takes", help);
                Take::Context
            }
            TakeDocument::From(From::Context, _) => {
                if key == "subscriber" {
                    let message = "a subscriber is never taken from the context";
                    self.error(Code::FactSource, at, message, "take it from where the service reads it: path or query");
                }
                Take::Context
            }
            TakeDocument::From(From::Claim, name) => {
                match key {
                    "customer" => self.claimed.push((Claimed::Customer, at)),
                    "purpose" => self.claimed.push((Claimed::Purpose, at)),
                    _ => {
                        let help = "take it from where the service reads it: path or query";
                        self.error(Code::FactSource, at, "a subscriber is never taken from a claim", help);
                    }
                }
                if name.is_some() {
                    let message = "the name of the claim does not stand here";
                    let help =
                        "write `{from: claim}`; `identity` names the claim for each issuer: `token: {…, claims: {…}}`";
                    self.error(Code::FactSource, at, message, help);
                }
                Take::Claim
            }
        }
    }

    fn log(&mut self, Spanned { value: log, at }: Spanned<document::DecisionLog>) -> LogSettings {
        let document::DecisionLog {
            file,
            stdout,
            durability,
            timeout,
            on_failure,
            signing_key,
            checkpoint_every,
            checkpoint_copy,
        } = log;
        if file.is_none() && !stdout {
            let help = "add `file: {path: …}`, `stdout: true`, or both";
            self.error(Code::NoSink, at, "the decision log has nowhere to go", help);
        }
        let file = file.map(|file| {
            let bytes = bytes(file.rotate_bytes);
            FileSettings {
                path: self.folder.join(file.path),
                rotate_bytes: u64::try_from(self.at_least(LEAST_SEGMENT, bytes, 128 << 20)).unwrap_or(u64::MAX),
                rotate_after: file.rotate_after.map(|span| span.0),
                keep: file.keep.map(|keep| self.at_least(1, Some(keep), 1)),
            }
        });
        if file.is_none() && durability == Durability::Synced {
            let help = "add `file: {path: …}`, or write `durability: written`";
            self.error(
                Code::NoSink,
                at,
                "`durability: synced` needs a file: nobody knows when standard output is on a disk",
                help,
            );
        }
        let or = |span: Option<document::Span>, default| span.map_or(Duration::from_secs(default), |span| span.0);
        LogSettings {
            file,
            stdout,
            durability,
            timeout: or(timeout, 1),
            on_failure,
            signer: signing_key.and_then(|key| self.signer(&key)),
            checkpoint_every: or(checkpoint_every, 1),
            checkpoint_copy: checkpoint_copy.map(|to| match to.as_str() {
                "stdout" => Copy::Stdout,
                path => Copy::File(self.folder.join(path)),
            }),
        }
    }

    /// The key that signs checkpoints. It is read once, at the start.
    fn signer(&mut self, Spanned { value, at }: &Spanned<String>) -> Option<Arc<Signer>> {
        let path = self.folder.join(value);
        let read = files::read(&path, MAX_KEY).map_err(|error| error.to_string());
        let signer = read.and_then(|pem| Signer::read(&pem).map_err(|error| error.to_string()));
        match signer {
            Ok(signer) => Some(Arc::new(signer)),
            Err(error) => {
                let message = format!("the key `{}` cannot be used: {error}", path.display());
                self.error(
                    Code::Unreadable,
                    *at,
                    message,
                    "`dpa-sidecar keygen PATH` writes a key and its public half",
                );
                None
            }
        }
    }

    /// A limit that would let nobody in is a mistake.
    fn at_least(&mut self, least: usize, limit: Option<Spanned<usize>>, default: usize) -> usize {
        let Some(Spanned { value, at }) = limit else { return default };
        if value < least {
            let message = format!("a limit of {value} is too small to work");
            self.error(Code::Invalid, at, message, format!("write {least} or more; the default is {default}"));
        }
        value
    }

    /// A window of HTTP/2 (RFC 9113 section 6.9.1).
    fn window(&mut self, least: usize, limit: Option<Spanned<usize>>, default: usize) -> u32 {
        let most = u32::MAX >> 1;
        if let Some(Spanned { value, at }) = limit
            && u32::try_from(value).map_or(true, |value| value > most)
        {
            let message = format!("a window of {value} bytes is larger than HTTP/2 has");
            self.error(Code::Invalid, at, message, format!("write {most} or less; the default is {default}"));
        }
        u32::try_from(self.at_least(least, limit, default)).unwrap_or(most).min(most)
    }

    /// The limits of connections, and of a token.
    fn limits(&mut self, limits: document::Limits, least_connections: usize) -> (Limits, usize) {
        let document::Limits {
            header_bytes,
            headers,
            header_timeout,
            token_bytes,
            handshake_timeout,
            connections,
            tunnel_idle_timeout,
            idle_timeout,
            stall_timeout,
            stall_bytes,
            concurrent_requests,
            streams,
            wrong_streams,
            spare_frames,
            stream_window,
            connection_window,
        } = limits;
        let time = |span: Option<document::Span>, seconds| span.map_or(Duration::from_secs(seconds), |span| span.0);
        let small = |number| u32::try_from(number).unwrap_or(u32::MAX);
        let patience = Patience {
            head: time(header_timeout, 10),
            idle: time(idle_timeout, 60),
            stall: time(stall_timeout, 30),
            stall_bytes: self.at_least(1, bytes(stall_bytes), 1024),
        };
        let limits = Limits {
            header_bytes: self.at_least(1024, bytes(header_bytes), 64 * 1024),
            headers: self.at_least(10, headers, 100),
            patience,
            handshake_timeout: time(handshake_timeout, 10),
            connections: self.at_least(least_connections.max(1), connections, 10_000),
            tunnel_idle_timeout: tunnel_idle_timeout.map_or(Duration::from_secs(300), |span| span.0),
            concurrent_requests: self.at_least(1, concurrent_requests, 2_000),
            http2: StreamLimits {
                streams: small(self.at_least(1, streams, 100)),
                wrong_streams: self.at_least(1, wrong_streams, 100),
                spare_frames: small(self.at_least(100, spare_frames, 500)),
                stream_window: self.window(1024, bytes(stream_window), 64 * 1024),
                connection_window: self.window(64 * 1024, bytes(connection_window), 4 << 20),
            },
        };
        // No signed token is smaller than a header, a handful of claims and 64 bytes of signature.
        (limits, self.at_least(256, bytes(token_bytes), 8 * 1024))
    }
}

fn named(name: &Spanned<crate::policy::terms::Id>) -> Spanned<String> {
    Spanned { value: name.value.to_string(), at: name.at }
}

/// min(4, what the machine has).
fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get).min(4)
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "unknown".to_owned() } else { name.to_owned() }
}

/// Replaces `${NAME}` and `${NAME:-default}`.
fn substitute(text: &str, environment: &dyn Fn(&str) -> Option<String>) -> Result<Option<String>, What> {
    if !text.contains("${") {
        return Ok(None);
    }
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        out.push_str(before);
        let Some((inner, behind)) = after.split_once('}') else {
            let help = "close it: `${NAME}` or `${NAME:-default}`";
            return Err(What::Invalid("a `${` is not closed".to_owned(), help.to_owned()));
        };
        let (name, default) = inner.split_once(":-").map_or((inner, None), |(name, default)| (name, Some(default)));
        let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !is_name {
            let wrong = format!("`{name}` is not the name of an environment variable");
            return Err(What::Invalid(wrong, "write `${NAME}` or `${NAME:-default}`".to_owned()));
        }
        match environment(name).filter(|value| !value.is_empty()).or_else(|| default.map(str::to_owned)) {
            Some(value) => out.push_str(&value),
            None => {
                let wrong = format!("the environment variable `{name}` is not set");
                return Err(What::Invalid(wrong, format!("set it, or write a default: `${{{name}:-…}}`")));
            }
        }
        rest = behind;
    }
    out.push_str(rest);
    Ok(Some(out))
}
