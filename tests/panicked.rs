//! A panic in the middle of a request: it is answered and recorded, and takes nothing else with it.
//!
//! No request is known at which the program panics, so the door stands where one of its parts cannot work: outside a
//! `LocalSet`, in which the connection to the upstream has to be driven.

use std::rc::Rc;
use std::sync::Arc;

use dpa_sidecar::config;
use dpa_sidecar::config::Settings;
use dpa_sidecar::decide::facts::Fact;
use dpa_sidecar::decide::facts::Transport;
use dpa_sidecar::decide::facts::Why;
use dpa_sidecar::doors::entrance::entrance;
use dpa_sidecar::doors::proxy::Clock;
use dpa_sidecar::doors::proxy::Proxy;
use dpa_sidecar::forward::Destination;
use dpa_sidecar::forward::Upstream as Pool;
use dpa_sidecar::gate::Gate;
use dpa_sidecar::gate::Rules;
use dpa_sidecar::observed::Peer;
use dpa_sidecar::pace::Upload;
use dpa_sidecar::policy::problem::Source;
use dpa_sidecar::record::entry::Writer;
use dpa_sidecar::record::log::Counters;
use dpa_sidecar::record::log::Log;
use dpa_sidecar::record::recorder::Recorder;
use dpa_sidecar::reload;
use dpa_sidecar::standing::InForce;
use dpa_sidecar::standing::Standing;
use dpa_sidecar::telemetry::Metrics;
use hyper::body::Incoming;
use hyper::service::Service as _;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::sync::Semaphore;

use crate::support::Connection;
use crate::support::Folder;
use crate::support::Setup;
use crate::support::Upstream;
use crate::support::denied;
use crate::support::permitted;
use crate::support::records_in;

fn door(settings: Settings, recorder: Recorder) -> Proxy {
    let policy = reload::load(&settings.policy_file, None, None).unwrap().policy.unwrap();
    let in_force = InForce { policy: Arc::new(policy), since: jiff::Timestamp::now(), key_id: None };
    let rules = Rules {
        standing: Arc::new(Standing::new(in_force, None)),
        trust: settings.trust,
        keys: settings.key_sources,
        routes: settings.routes,
        enforcement: settings.enforcement,
        on_failure: settings.log.on_failure,
    };
    Proxy {
        gate: Gate::new(Arc::new(rules), recorder, Metrics::default()),
        upstream: Rc::new(Pool::new(Arc::new(Destination::new(settings.upstreams[0].clone(), None)))),
        tally: Arc::default(),
        places: Arc::new(Semaphore::new(1)),
        storage: settings.storage_location,
        egress: None,
        headers: Arc::new(settings.headers),
        clock: Clock::default(),
    }
}

fn writer() -> Writer {
    Writer {
        service: "subscriber-api".into(),
        instance: "pod-0".into(),
        log: uuid::Uuid::now_v7(),
        on_failure: "deny",
        durability: "written",
        enforcement: dpa_sidecar::policy::Enforcement::Enforce,
    }
}

#[test]
fn a_panic_takes_nothing_else_with_it() {
    let upstream = Upstream::ok();
    let folder = Folder::new();
    let path = folder.write("sidecar.yaml", &Setup::to(&upstream.address).text());
    let source = Source { path: path.display().to_string(), text: std::fs::read_to_string(&path).unwrap() };
    let settings = config::compile(&source, &config::environment).0.unwrap();
    let counters = Counters::new(Metrics::default().unrecorded, "digest".into());
    let clock = Box::new(jiff::Timestamp::now);
    let (log, closing) = Log::open(&settings.log, writer(), clock, counters, |_, _| {}).unwrap();
    let recorder = log.recorder();
    drop(log);

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    listener.set_nonblocking(true).unwrap();
    let worker = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let handing_over = tokio::spawn(recorder.clone().hand_over());
            let door = Rc::new(door(settings, recorder.clone()));
            for _ in 0..2 {
                let (stream, peer) = listener.accept().await.unwrap();
                let transport = Transport { tls: None, client_certificate: false, is_unix: false };
                let address = Some(peer.ip());
                let peer = Peer { address, transport, certificate: Fact::Unknown(Why::Missing), until: None };
                let entrance = entrance(Rc::clone(&door), Rc::new(peer), || panic!("there was a place"));
                let service = service_fn(|request: http::Request<Incoming>| entrance.call(request.map(Upload::of)));
                let http = hyper::server::conn::http1::Builder::new();
                http.serve_connection(TokioIo::new(stream), service).await.unwrap();
            }
            recorder.finish(handing_over, recorder.deadline()).await;
        });
    });
    let mut ids = Vec::new();
    for _ in 0..2 {
        let mut connection = Connection::to(&address);
        // There is one place: a panic gives it back.
        for (name, request, expected) in [
            ("panics", permitted(), 500),
            ("panics on the same connection", permitted(), 500),
            ("another request", denied(), 403),
        ] {
            connection.send(request);
            let answer = connection.answer().unwrap_or_else(|| panic!("{name}: no answer"));
            assert_eq!(answer.status, expected, "{name}: {}", answer.text());
            if expected == 500 {
                assert_eq!(answer.reason(), "internal_error", "{name}");
                assert_eq!(answer.problem()["instance"], format!("urn:uuid:{}", answer.decision_id()), "{name}");
                ids.push(answer.decision_id());
            }
        }
    }
    worker.join().unwrap();
    closing.wait(std::time::Instant::now() + crate::support::CEILING);
    let records = records_in(&std::fs::read_to_string(folder.file("decisions.ndjson")).unwrap());
    for id in ids {
        let of_it: Vec<_> = records.iter().filter(|record| record["decision_id"] == id.as_str()).collect();
        let [decision, outcome] = of_it.as_slice() else { panic!("{of_it:?}") };
        assert_eq!((&decision["event"], &decision["action"]), (&"dpa.decision".into(), &"allowed".into()));
        assert_eq!((&outcome["event"], &outcome["outcome"]), (&"dpa.outcome".into(), &"panicked".into()));
    }
    assert!(upstream.seen().is_empty(), "nothing was sent on");
}
