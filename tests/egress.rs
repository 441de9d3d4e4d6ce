//! `direction: egress`: what the service sends to subprocessors, over TLS, through the real program.

use std::fmt::Write as _;
use std::io::BufReader;
use std::io::Read as _;
use std::io::Write as _;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;

use dpa_sidecar::decide::decision::Decision;
use dpa_sidecar::decide::facts::Fact;
use dpa_sidecar::decide::facts::Transport;
use dpa_sidecar::decide::facts::Why;
use dpa_sidecar::establish::route::Route;
use dpa_sidecar::establish::route::Routes;
use dpa_sidecar::establish::route::Subject;
use dpa_sidecar::establish::route::Take;
use dpa_sidecar::gate::weigh;
use dpa_sidecar::identify::Trust;
use dpa_sidecar::observed::Egress;
use dpa_sidecar::observed::Observed;
use dpa_sidecar::observed::Peer;
use dpa_sidecar::observed::Target;
use dpa_sidecar::policy;
use dpa_sidecar::policy::problem::Source;
use dpa_sidecar::policy::terms::Operation;
use http::HeaderMap;
use http::Method;
use http::Uri;
use http::Version;
use http::header;
use rustls::ServerConfig;
use rustls::ServerConnection;
use rustls::StreamOwned;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;
use serde_json::json;

use crate::support::Answer;
use crate::support::CARE_DESK;
use crate::support::Connection;
use crate::support::Folder;
use crate::support::Head;
use crate::support::MessageHead;
use crate::support::SUBSCRIBER;
use crate::support::Sidecar;
use crate::support::Upstream;
use crate::support::err;
use crate::support::out;
use crate::support::repository;
use crate::support::run;

/// Usage data of a customer, as it is sent to a subprocessor.
const USAGE: &str = "/v1/customers/redwood-strand/usage";
const ANALYTICS: &str = "purpose=customer_analytics";

/// Heads and bodies, as they came in.
type Seen = Vec<(MessageHead, Vec<u8>)>;

/// A subprocessor's service: TLS under its own name, `200` and `thanks` for everything.
struct Subprocessor {
    address: String,
    /// Its certificate, which vouches for itself.
    certificate: String,
    seen: Arc<Mutex<Seen>>,
}

impl Subprocessor {
    fn start(name: &str) -> Self {
        let shown = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let key = PrivateKeyDer::from_pem_slice(shown.signing_key.serialize_pem().as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![shown.cert.der().clone()], key)
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (config, seen, stream) = (Arc::clone(&config), Arc::clone(&shared), stream.unwrap());
                std::thread::spawn(move || serve(stream, config, &seen));
            }
        });
        Self { address, certificate: shown.cert.pem(), seen }
    }

    fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }

    /// `Host` of its own: its name, with its port since that is not 443.
    fn host(&self, name: &str) -> String {
        format!("{name}:{}", self.address.rsplit_once(':').unwrap().1)
    }
}

fn serve(stream: TcpStream, config: Arc<ServerConfig>, seen: &Mutex<Seen>) {
    stream.set_nodelay(true).unwrap();
    let mut reader = BufReader::new(StreamOwned::new(ServerConnection::new(config).unwrap(), stream));
    while let Some(head) = MessageHead::read(&mut reader) {
        let length = head.value("content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        seen.lock().unwrap().push((head, body));
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nDPA-Decision-Id: forged\r\nDPA-Other: 1\r\n\
            X-DPA-Other: 1\r\nAlt-Svc: h3=\":443\"\r\n\r\nthanks";
        if reader.get_mut().write_all(answer).is_err() {
            return;
        }
    }
}

const IDENTITY: &str = "header: {name: X-Caller, trusted_peers: [127.0.0.1/32]}";

/// A sidecar in front of a service, through which the service also sends to sp-07 and sp-10.
struct Setup<'s> {
    folder: Folder,
    analytics: &'s Subprocessor,
    support: &'s Subprocessor,
    service: String,
    identity: &'static str,
    more: &'static str,
}

impl<'s> Setup<'s> {
    fn new(analytics: &'s Subprocessor, support: &'s Subprocessor, service: &str) -> Self {
        let (service, folder) = (service.to_owned(), Folder::new());
        Self { folder, analytics, support, service, identity: IDENTITY, more: "" }
    }

    fn settings(&self) -> String {
        let Self { folder, analytics, support, service, identity, more } = self;
        let policy = std::fs::read_to_string(repository("config/policy.yaml")).unwrap();
        // Row 39: the service is there for support too, and the subprocessor's first day is over.
        let own = "permitted_purposes: [customer_analytics]\n\n";
        assert_eq!(policy.matches(own).count(), 1, "the sample policy has changed");
        let policy = policy.replace(own, "permitted_purposes: [customer_analytics, customer_support]\n\n");
        let policy = policy.replace("effective_at: 2026-06-19", "effective_at: 2025-06-19");
        folder.write("policy.yaml", &policy.replace("announced_at: 2026-05-20", "announced_at: 2025-05-20"));
        folder.write("meridian.crt", &analytics.certificate);
        folder.write("helpwright.crt", &support.certificate);
        format!(
            "service: {{name: subscriber-api, storage_location: US-OR, instance: pod-0, caller: subscriber-api}}
workers: 2
policy: {{file: policy.yaml}}
listeners:
  - {{name: to-meridian, address: '127.0.0.1:0', upstream: meridian, direction: egress}}
  - {{name: to-helpwright, address: '127.0.0.1:0', upstream: helpwright, direction: egress}}
  - {{name: main, address: '127.0.0.1:0', upstream: app}}
upstreams:
  - {{name: app, address: '{service}'}}
  - {{name: meridian, address: '{}', recipient: sp-07, tls: {{ca: meridian.crt, server_name: API.meridian.example}}}}
  - {{name: helpwright, address: '{}', recipient: sp-10, tls: {{ca: helpwright.crt, server_name: api.helpwright.example}}}}
identity: [{identity}]
routes:
  - path: /v1/customers/{{customer}}/usage
    methods: [POST]
    customer: {{from: path, name: customer}}
    purpose: {{from: context}}
    operation: disclose
    data_categories: [user.telemetry]
  - path: /v1/customers/{{customer}}/contacts
    methods: [POST]
    host: api.helpwright.example
    customer: {{from: path, name: customer}}
    purpose: customer_support
    operation: disclose
    data_categories: [user.contact]
  - path: /v1/customers/{{customer}}/subscribers/{{id}}
    customer: {{from: path, name: customer}}
    subscriber: {{from: path, name: id}}
    purpose: {{from: context}}
    data_categories: [user.contact]
  - path: /v1/customers/{{customer}}/subscribers/{{id}}
    host: api.meridian.example
    customer: {{from: path, name: customer}}
    subscriber: {{from: path, name: id}}
    purpose: {{from: context}}
    operation: disclose
    data_categories: [user.telemetry]
decision_log: {{file: {{path: decisions.ndjson}}, stdout: true}}
{more}
",
            analytics.address, support.address,
        )
    }

    fn start(self) -> Running {
        let settings = self.settings();
        let sidecar = Sidecar::start(self.folder, &settings, &[]);
        let address = |name: &str| {
            let text = sidecar.stderr.text();
            let (_, rest) = text.split_once(&format!("listening name={name} address=")).unwrap();
            rest.split_once('\n').unwrap().0.trim().to_owned()
        };
        let (to_meridian, to_helpwright) = (address("to-meridian"), address("to-helpwright"));
        Running { sidecar, to_meridian, to_helpwright }
    }
}

struct Running {
    sidecar: Sidecar,
    to_meridian: String,
    to_helpwright: String,
}

impl Running {
    fn record(&self, answer: &Answer) -> Value {
        self.sidecar.decision(&answer.decision_id())
    }
}

fn ask(address: &str, request: &str) -> Answer {
    let mut connection = Connection::to(address);
    connection.send(request);
    connection.answer().unwrap()
}

/// What the service sends.
fn sends(target: &str, context: &str) -> Head {
    let head = Head::bare("POST", target);
    if context.is_empty() { head } else { head.with("DPA-Context", context) }
}

fn codes(record: &Value) -> Vec<&str> {
    record["reasons"].as_array().into_iter().flatten().map(|reason| reason["code"].as_str().unwrap()).collect()
}

/// Rows 35, 36 and 39 of the sample agreement, and what else may stand against sending.
#[test]
fn what_a_service_may_send_to_whom() {
    let meridian = Subprocessor::start("api.meridian.example");
    let helpwright = Subprocessor::start("api.helpwright.example");
    let service = Upstream::ok();
    let running = Setup::new(&meridian, &helpwright, &service.address).start();
    let outardes = "/v1/customers/fibre-outardes/usage";
    let refused: &[&str] = &["purpose_not_permitted", "subprocessor_objected", "residency_storage", "residency_access"];
    let restricted = "/v1/customers/redwood-strand/subscribers/7c1e";
    let (to_meridian, to_helpwright) = (&running.to_meridian, &running.to_helpwright);
    let table: [(&str, &str, &str, &str, &[&str]); 9] = [
        ("35: to the analytics subprocessor", to_meridian, USAGE, ANALYTICS, &[]),
        ("36: of a customer that refused it", to_meridian, outardes, ANALYTICS, refused),
        (
            "39: to one that reads from a country not allowed",
            to_helpwright,
            "/v1/customers/redwood-strand/contacts",
            "",
            &["residency_access"],
        ),
        (
            "usage data to one that is there for support",
            to_helpwright,
            USAGE,
            ANALYTICS,
            &["subprocessor_scope", "residency_access"],
        ),
        (
            "for a purpose that is not the service's",
            to_meridian,
            USAGE,
            "purpose=service_notification",
            &["purpose_not_bound_to_caller", "subprocessor_scope"],
        ),
        ("for no purpose", to_meridian, USAGE, "", &["purpose_missing"]),
        ("of a subscriber that is restricted", to_meridian, restricted, ANALYTICS, &["subscriber_restricted"]),
        ("where no route leads", to_meridian, "/v1/elsewhere", ANALYTICS, &["route_unmapped"]),
        ("of a customer nobody knows", to_meridian, "/v1/customers/nobody/usage", ANALYTICS, &["customer_unknown"]),
    ];
    let mut sent = 0;
    for (name, address, target, context, reasons) in table {
        let answer = ask(address, &sends(target, context).body("[41, 220]"));
        let record = running.record(&answer);
        assert_eq!(codes(&record), reasons, "{name}: {record}");
        let recipient = if address == to_meridian { "sp-07" } else { "sp-10" };
        assert_eq!(record["recipient"], json!({"type": "subprocessor", "id": recipient}), "{name}");
        assert_eq!(record["caller_id"], "subscriber-api", "{name}");
        assert_eq!(record["sources"]["caller"], "settings", "{name}");
        assert_eq!(record["transport"], json!({"tls_version": "none", "proof": "settings"}), "{name}");
        if reasons != ["route_unmapped"] {
            let reads_from = if recipient == "sp-07" { "US-WA" } else { "PH" };
            let location = json!({"storage": "US-OR", "access": "US-OR", "recipient": reads_from});
            assert_eq!(record["location"], location, "{name}");
            assert_eq!(record["operation"], "disclose", "{name}");
        }
        if reasons.is_empty() {
            sent += 1;
            assert_eq!((answer.status, answer.text().as_str()), (200, "thanks"), "{name}");
            assert_eq!(record["authority"], "permitted_purpose", "{name}");
            assert_eq!(running.sidecar.outcome(&answer.decision_id())["outcome"], "completed", "{name}");
            let (_, body) = meridian.seen().pop().unwrap();
            assert_eq!(body, b"[41, 220]", "{name}");
        } else {
            assert_eq!((answer.status, answer.reason().as_str()), (403, reasons[0]), "{name}");
        }
        assert_eq!((meridian.seen().len(), helpwright.seen().len()), (sent, 0), "{name}");
    }
    assert_eq!((sent, service.seen().len()), (1, 0));
    // The other way the same sidecar serves as ever.
    let request =
        Head::bare("GET", SUBSCRIBER).with("X-Caller", CARE_DESK).with("DPA-Context", "purpose=customer_support");
    assert_eq!(running.sidecar.ask(request.end()).status, 200);
    assert_eq!(service.seen().len(), 1);
}

#[test]
fn what_a_subprocessor_is_told() {
    let meridian = Subprocessor::start("api.meridian.example");
    let running = Setup::new(&meridian, &meridian, "127.0.0.1:1").start();
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let table = [
        ("a key for the subprocessor", "Authorization", "Bearer meridian-key", true),
        ("another key for it", "X-Api-Key", "meridian-key", true),
        ("what the body is", "Content-Type", "application/json", true),
        ("so that it is done once", "Idempotency-Key", "7", true),
        ("our own, made up", "DPA-Whatever", "1", false),
        ("our own, spelt otherwise", "dpa_context", ANALYTICS, false),
        ("who calls", "X-Caller", CARE_DESK, false),
        ("whose request it follows", "X-Forwarded-For", "10.1.2.3", false),
        ("the same", "Forwarded", "for=10.1.2.3;by=10.1.2.4", false),
        ("a caller's certificate", "X-Forwarded-Client-Cert", "Hash=0;URI=spiffe://a.example/b", false),
        ("a trace", "traceparent", trace, false),
        ("more of it", "tracestate", "mesh=7", false),
        ("whatever a service hands on", "baggage", "subscriber=1a2b", false),
        ("the same of others", "X-B3-TraceId", "463ac35c9f6413ad", false),
        ("the same in one line", "b3", "463ac35c9f6413ad-a2fb4a1d1a96d312-1", false),
        ("the id of another request", "X-Request-Id", "req-7", false),
        ("another method", "X-HTTP-Method-Override", "DELETE", false),
        ("the same id, spelt otherwise", "X_Request_Id", "req-7", false),
        ("an id of several requests", "X-Correlation-Id", "corr-7", false),
        ("a trace, as others write it", "X-Trace-Id", "7", false),
        ("a trace of a cloud", "X-Amzn-Trace-Id", "Root=1-67891233-abcdef012345678912345678", false),
        ("a trace of another cloud", "X-Cloud-Trace-Context", "105445aa7843bc8bf206b12000100000/1;o=1", false),
        ("a trace, in one line", "uber-trace-id", "463ac35c9f6413ad:1:0:1", false),
        ("what goes along with it", "uberctx-customer", "redwood-strand", false),
        ("a trace of an older kind", "ot-tracer-traceid", "463ac35c9f6413ad", false),
        ("the same, whole", "X-Ot-Span-Context", "463ac35c9f6413ad", false),
        ("a trace, as gRPC writes it", "grpc-trace-bin", "AABL", false),
        ("a trace of a product that collects errors", "sentry-trace", "463ac35c9f6413ad-1", false),
        ("a trace of a product that collects traces", "X-Datadog-Trace-Id", "7", false),
        ("of another", "elastic-apm-traceparent", trace, false),
        ("of another yet", "newrelic", "eyJ2IjpbMCwxXX0=", false),
        ("where it began", "Referer", "http://internal.lumenfield.example/customers/redwood-strand", false),
        ("the same, in short", "Origin", "http://internal.lumenfield.example", false),
        ("a person", "From", "jane@lumenfield.example", false),
        ("how long it took", "Server-Timing", "db;dur=7", false),
        ("for the next hop", "Keep-Alive", "timeout=5", false),
    ];
    let head = table.iter().fold(sends(USAGE, ANALYTICS), |head, (_, name, value, _)| head.with(name, value));
    let answer = ask(&running.to_meridian, &head.with("Via", "1.1 mesh-7.internal").body("{}"));
    assert_eq!(answer.status, 200, "{answer:?}");
    let (seen, _) = meridian.seen().pop().unwrap();
    for (name, header, value, passes) in table {
        assert_eq!(seen.values(header), if passes { vec![value] } else { vec![] }, "{name}");
    }
    assert_eq!(seen.value("host"), Some(meridian.host("api.meridian.example").as_str()));
    assert_eq!(seen.value("via"), Some("1.1 proxy"));
    let mut names: Vec<&str> = seen.headers.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    let rest = ["authorization", "content-length", "content-type", "host", "idempotency-key", "via", "x-api-key"];
    assert_eq!(names, rest, "and nothing else");
    // The service gets the id of the decision, and nothing of ours from the subprocessor.
    for name in ["dpa-other", "x-dpa-other", "alt-svc"] {
        assert_eq!(answer.value(name), None, "{name}");
    }
    assert_eq!(running.record(&answer)["decision"], "permit");
    // The ids that stop here are on record all the same.
    assert_eq!(running.record(&answer)["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
}

/// A token on egress is the subprocessor's: it is not read, proves nothing and spoils nothing.
#[test]
fn a_token_for_a_subprocessor_is_not_taken_for_one_of_ours() {
    let meridian = Subprocessor::start("api.meridian.example");
    let mut setup = Setup::new(&meridian, &meridian, "127.0.0.1:1");
    let key = "{\"kty\":\"EC\",\"crv\":\"P-256\",\"kid\":\"1\",\"x\":\"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU\",\
               \"y\":\"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0\"}";
    setup.folder.write("jwks.json", &format!("{{\"keys\":[{key}]}}"));
    setup.identity = "{token: {issuer: https://id.lumenfield.example, audience: subscriber-api, algorithms: [ES256], jwks_file: jwks.json}}";
    let running = setup.start();
    for token in ["Bearer a.b.c", "Bearer opaque-key", "Basic bWVyaWRpYW46a2V5"] {
        let answer = ask(&running.to_meridian, &sends(USAGE, ANALYTICS).with("Authorization", token).body("{}"));
        assert_eq!(answer.status, 200, "{token}: {answer:?}");
        assert_eq!(meridian.seen().pop().unwrap().0.value("authorization"), Some(token));
        assert_eq!(running.record(&answer)["transport"]["proof"], "settings", "{token}");
    }
    // On the way in it is ours, and proves nothing.
    let request = Head::bare("GET", SUBSCRIBER).with("Authorization", "Bearer a.b.c");
    assert_eq!(running.sidecar.ask(request.with("DPA-Context", "purpose=customer_support").end()).status, 401);
}

/// Who calls the service names any host. Routes of a subprocessor's host say what the *service* may send.
#[test]
fn a_caller_cannot_choose_a_route_of_egress_by_its_host() {
    let meridian = Subprocessor::start("api.meridian.example");
    let service = Upstream::ok();
    let running = Setup::new(&meridian, &meridian, &service.address).start();
    let asked = |host: &str, target: &str| {
        let head = Head::bare("GET", target).end().replace("data.example", host);
        let caller = format!("X-Caller: {CARE_DESK}\r\nDPA-Context: purpose=customer_support\r\n\r\n");
        running.sidecar.ask(head.trim_end().to_owned() + "\r\n" + &caller)
    };
    let contacts = "/v1/customers/redwood-strand/contacts";
    let table = [
        ("its own host", "data.example", SUBSCRIBER, Some("retrieve")),
        ("a subprocessor's", "api.meridian.example", SUBSCRIBER, Some("retrieve")),
        ("the same with a port and a dot", "API.meridian.example.:443", SUBSCRIBER, Some("retrieve")),
        ("a path of egress alone", "api.helpwright.example", contacts, None),
    ];
    for (name, host, target, operation) in table {
        let record = running.record(&asked(host, target));
        assert_eq!(record["operation"].as_str(), operation, "{name}: {record}");
        let data = operation.map_or(Value::Null, |_| json!(["user.contact"]));
        assert_eq!(record["data_categories"], data, "{name}: {record}");
    }
    // The service is matched by the subprocessor's own host, whatever it wrote.
    for host in ["127.0.0.1:9101", "data.example", "api.helpwright.example"] {
        let request = sends(SUBSCRIBER, ANALYTICS).end().replace("data.example", host);
        let answer = ask(&running.to_meridian, &request);
        let record = running.record(&answer);
        assert_eq!((answer.status, &record["operation"]), (200, &json!("disclose")), "{host}: {record}");
        assert_eq!(record["data_categories"], json!(["user.telemetry"]), "{host}");
        let (seen, _) = meridian.seen().pop().unwrap();
        assert_eq!(seen.value("host"), Some(meridian.host("api.meridian.example").as_str()), "{host}");
    }
}

#[test]
fn a_subprocessor_that_is_somebody_else_gets_nothing() {
    let meridian = Subprocessor::start("api.meridian.example");
    let other = Subprocessor::start("api.meridian.example");
    let setup = Setup::new(&meridian, &other, "127.0.0.1:1");
    let settings = setup.settings().replace(&meridian.address, &other.address);
    let sidecar = Sidecar::start(setup.folder, &settings, &[]);
    let text = sidecar.stderr.text();
    let (_, rest) = text.split_once("listening name=to-meridian address=").unwrap();
    let answer = ask(rest.split_once('\n').unwrap().0.trim(), &sends(USAGE, ANALYTICS).body("{}"));
    assert_eq!((answer.status, answer.reason().as_str()), (502, "upstream_unavailable"));
    assert_eq!(sidecar.decision(&answer.decision_id())["decision"], "permit");
    assert_eq!(sidecar.outcome(&answer.decision_id())["outcome"], "not_forwarded");
    assert_eq!((meridian.seen().len(), other.seen().len()), (0, 0));
}

#[test]
fn what_is_observed_tells_a_subprocessor_no_more() {
    let meridian = Subprocessor::start("api.meridian.example");
    let mut setup = Setup::new(&meridian, &meridian, "127.0.0.1:1");
    setup.more = "enforcement: observe";
    let running = setup.start();
    let target = "/v1/customers/fibre-outardes/usage";
    let answer = ask(&running.to_meridian, &sends(target, ANALYTICS).body("{}"));
    let record = running.record(&answer);
    assert_eq!((answer.status, &record["decision"], &record["action"]), (200, &json!("deny"), &json!("observed")));
    let (seen, _) = meridian.seen().pop().unwrap();
    assert!(seen.headers.iter().all(|(name, _)| !name.starts_with("dpa-")), "{seen:?}");
}

/// No part of what is sent is in any log, and none of an answer of ours.
#[test]
fn nothing_that_is_sent_is_in_any_log() {
    let meridian = Subprocessor::start("api.meridian.example");
    let running = Setup::new(&meridian, &meridian, "127.0.0.1:1").start();
    let canaries = |head: Head| {
        let named = ["Authorization", "Cookie", "X-Api-Key", "Referer", "User-Agent", "baggage", "X-Request-Id"];
        let head = named.iter().fold(head, |head, name| head.with(name, "canaria"));
        head.with("Authorization", "Bearer canaria-token").body("canaria-body")
    };
    let table = [
        ("permitted", "/v1/customers/redwood-strand/usage?q=canaria", ANALYTICS),
        ("a subscriber", "/v1/customers/redwood-strand/subscribers/canaria", ANALYTICS),
        ("denied", "/v1/customers/fibre-outardes/usage?q=canaria", ANALYTICS),
        ("a customer nobody knows", "/v1/customers/canaria/usage", ANALYTICS),
        ("a purpose nobody knows", USAGE, "purpose=\"canaria@example.com\""),
        ("no dictionary", USAGE, "\"canaria"),
        ("no route", "/canaria", ANALYTICS),
    ];
    for (name, target, context) in table {
        let answer = ask(&running.to_meridian, &canaries(sends(target, context)));
        assert!(answer.status == 200 || !answer.everything().contains("canaria"), "{name}: {answer:?}");
    }
    let arrived = meridian.seen().iter().filter(|(_, body)| body == b"canaria-body").count();
    assert_eq!(arrived, 2, "what is permitted arrives");
    let stopped = running.sidecar.stop();
    let log = std::fs::read_to_string(stopped.folder.file("decisions.ndjson")).unwrap();
    for (sink, text) in [("the log", &log), ("standard output", &stopped.stdout), ("standard error", &stopped.stderr)] {
        assert_eq!(text.lines().find(|line| line.to_ascii_lowercase().contains("canaria")), None, "{sink}");
    }
    assert!(log.contains("sp-07"));
}

/// What was sent, and was not, is explained and shown from the log.
#[test]
fn records_of_egress_are_explained_and_shown() {
    let meridian = Subprocessor::start("api.meridian.example");
    let running = Setup::new(&meridian, &meridian, "127.0.0.1:1").start();
    let sent = ask(&running.to_meridian, &sends(USAGE, ANALYTICS).body("{}")).decision_id();
    let denied = ask(&running.to_helpwright, &sends("/v1/customers/redwood-strand/contacts", "").body("{}"));
    let denied = denied.decision_id();
    running.sidecar.outcome(&sent);
    let stopped = running.sidecar.stop();
    let folder = stopped.folder.file(".");
    let explain = |id: &str| {
        let output = run(&folder, &["explain", id, "--log", "decisions.ndjson", "--policy", "policy.yaml"]);
        (output.status.code(), out(&output) + &err(&output))
    };
    let (code, text) = explain(&sent);
    assert_eq!(code, Some(0), "{text}");
    for part in ["permit", "subscriber-api", "sp-07", "US-WA"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let (code, text) = explain(&denied);
    assert_eq!(code, Some(1), "{text}");
    for part in ["deny: residency_access", "sp-10", "PH", "clause 2.5"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let tail = out(&run(&folder, &["audit", "tail", "decisions.ndjson"]));
    for part in ["subscriber-api", "usage → sp-07", "contacts → sp-10"] {
        assert!(tail.contains(part), "{part}: {tail}");
    }
    let of_one = out(&run(&folder, &["audit", "tail", "decisions.ndjson", "--subprocessor", "sp-10"]));
    assert!(of_one.contains("residency_access") && !of_one.contains("sp-07"), "{of_one}");
}

/// A policy that lost one of the two names lets nothing out, whatever else it permits.
#[test]
fn a_policy_without_the_two_ends_lets_nothing_out() {
    let text = std::fs::read_to_string(repository("config/policy.yaml")).unwrap();
    let files = ["policy.yaml".to_owned()];
    let source =
        Source { path: "policy.yaml".to_owned(), text: text.split("customer_files:").next().unwrap().to_owned() };
    let policy = policy::compile(&[source], &files, None, None).0.unwrap();
    let subject = Subject {
        customer: Take::Constant("redwood-strand".to_owned()),
        subscriber: None,
        purpose: Take::Constant("customer_analytics".to_owned()),
        operation: Some(Operation::Disclose),
        data_categories: vec!["user.telemetry".parse().unwrap()],
    };
    let route = Route::at("/", Some(subject));
    let routes = Routes::new(vec![route]).unwrap();
    let headers = HeaderMap::from_iter([(header::HOST, "a.example".parse().unwrap())]);
    let transport = Transport { tls: None, client_certificate: false, is_unix: false };
    let peer = Peer { address: None, transport, certificate: Fact::Unknown(Why::Missing), until: None };
    let table = [
        ("both are there", "subscriber-api", "sp-07", vec![]),
        ("no such caller", "subscriber-ipa", "sp-07", vec!["caller_unidentified"]),
        ("no such subprocessor", "subscriber-api", "sp-70", vec!["recipient_unknown"]),
        ("a subprocessor as the caller", "sp-07", "sp-07", vec!["caller_unidentified"]),
        ("a customer as the subprocessor", "subscriber-api", "redwood-strand", vec!["recipient_unknown"]),
    ];
    for (name, caller, recipient, expected) in table {
        let (target, host) = Target::read(&Uri::from_static("/"), &headers, Version::HTTP_11).unwrap();
        let seen = Observed {
            method: &Method::POST,
            target,
            host,
            headers: &headers,
            peer: &peer,
            egress: Some(Egress { caller: Some(caller), recipient }),
            storage: "US-OR".parse().unwrap(),
            time: "2026-06-15T12:00:00Z".parse().unwrap(),
        };
        let trust = Trust::default();
        let (_, decision) = weigh(&seen, &policy, &trust, &routes).unwrap();
        let found: Vec<&str> = Decision::reasons(&decision).iter().map(|reason| reason.code.as_str()).collect();
        assert_eq!(found, expected, "{name}");
    }
}

/// `Host` of what is sent: the name that the certificate has to bear, or the address, and a port that is not usual.
#[test]
fn the_host_that_a_subprocessor_is_asked_for() {
    let subprocessor = Upstream::ok();
    let (_, port) = subprocessor.address.split_once(':').unwrap();
    let certificate = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
    let table = [
        ("in clear", format!("localhost:{port}"), format!("localhost:{port}")),
        ("in capitals", format!("LOCALHOST:{port}"), format!("localhost:{port}")),
        ("an address", format!("127.0.0.1:{port}"), format!("127.0.0.1:{port}")),
    ];
    for (name, address, expected) in table {
        let folder = Folder::new();
        folder.write("ca.crt", &certificate.cert.pem());
        let sidecar = Sidecar::start(folder, &one_listener(&address), &[]);
        let request = sends(USAGE, ANALYTICS).end();
        assert_eq!(ask(&sidecar.address, &request).status, 200, "{name}");
        assert_eq!(subprocessor.last().head.value("host"), Some(expected.as_str()), "{name}");
        // A service may also take it for a proxy, and write whom it means.
        let absolute = request.replace(USAGE, &format!("http://data.example{USAGE}"));
        assert_eq!(ask(&sidecar.address, &absolute).status, 200, "{name}");
        let last = subprocessor.last().head;
        assert_eq!(
            (last.line.as_str(), last.value("host")),
            ("POST /v1/customers/redwood-strand/usage HTTP/1.1", Some(expected.as_str()))
        );
    }
}

/// The transport floor is for what comes in; what `check` says of the connection that goes out.
#[test]
fn what_the_policy_promises_of_connections() {
    let meridian = Subprocessor::start("api.meridian.example");
    let mut setup = Setup::new(&meridian, &meridian, "127.0.0.1:1");
    let promise = "\nsecurity_measures: {min_tls_version: \"1.3\", client_authentication: required}\n";
    let settings = setup.settings();
    let policy = std::fs::read_to_string(setup.folder.file("policy.yaml")).unwrap() + promise;
    let nowhere = policy.replace("sa/subscriber-api\"]\n    location: US-OR", "sa/subscriber-api\"]");
    assert_ne!(policy, nowhere, "the sample policy has changed");
    let table = [
        (
            "over TLS",
            &policy,
            settings.clone(),
            vec!["DPA031 the policy promises TLS 1.3, and the listener `main` speaks in clear"],
        ),
        (
            "in clear to another machine",
            &policy,
            settings.replace(
                &format!(
                    "'{}', recipient: sp-07, tls: {{ca: meridian.crt, server_name: API.meridian.example}}",
                    meridian.address
                ),
                "'api.meridian.example:80', recipient: sp-07",
            ),
            vec!["DPA045 the policy promises TLS 1.3, and data goes to `meridian` in clear"],
        ),
        (
            "in clear to a proxy of this machine",
            &policy,
            settings.replace(", tls: {ca: meridian.crt, server_name: API.meridian.example}", ""),
            vec![],
        ),
        (
            "a service that is nowhere",
            &nowhere,
            settings.clone(),
            vec![
                "DPA031 the caller `subscriber-api` has no `location`, so nothing passes on the listener `to-meridian`",
            ],
        ),
    ];
    for (name, policy, settings, expected) in table {
        setup.folder.write("policy.yaml", policy);
        setup.folder.write("sidecar.yaml", &settings);
        let said = out(&run(&setup.folder.file("."), &["check", "sidecar.yaml"]));
        let said = said.replace("warning[", "").replace("]: ", " ");
        for line in &expected {
            assert!(said.contains(line), "{name}: {line}: {said}");
        }
        let is_said = expected.iter().any(|line| line.contains("data goes to"));
        assert_eq!(said.contains("data goes to"), is_said, "{name}: {said}");
        assert!(!said.contains("`to-meridian` speaks in clear"), "{name}: {said}");
    }
    setup.folder.write("policy.yaml", &policy);
    let folder = std::mem::replace(&mut setup.folder, Folder::new());
    let sidecar = Sidecar::start(folder, &settings, &[]);
    let text = sidecar.stderr.text();
    let (_, rest) = text.split_once("listening name=to-meridian address=").unwrap();
    assert_eq!(ask(rest.split_once('\n').unwrap().0.trim(), &sends(USAGE, ANALYTICS).body("{}")).status, 200);
    assert_eq!(
        sidecar.ask(Head::bare("GET", SUBSCRIBER).with("X-Caller", CARE_DESK).end()).reason(),
        "transport_too_weak"
    );
}

/// Egress alone, to an upstream in clear.
fn one_listener(address: &str) -> String {
    let policy = Value::from(repository("config/policy.yaml").to_str().unwrap());
    let mut text = String::new();
    write!(
        text,
        "service: {{name: subscriber-api, storage_location: US-OR, caller: subscriber-api}}
policy: {{file: {policy}}}
listeners: [{{name: main, address: '127.0.0.1:0', upstream: meridian, direction: egress}}]
upstreams: [{{name: meridian, address: '{address}', recipient: sp-07}}]
identity: [{{{IDENTITY}}}]
routes:
  - path: /v1/customers/{{customer}}/usage
    customer: {{from: path, name: customer}}
    purpose: {{from: context}}
    operation: disclose
    data_categories: [user.telemetry]
decision_log: {{file: {{path: decisions.ndjson}}}}
"
    )
    .unwrap();
    text
}
