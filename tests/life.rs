//! How a sidecar begins, goes on and ends: signals, readiness, Unix sockets, and what is scarce.

use std::io::BufReader;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;

use crate::support::Answer;
use crate::support::CEILING;
use crate::support::Connection;
use crate::support::Folder;
use crate::support::Head;
use crate::support::SUBSCRIBER;
use crate::support::Setup;
use crate::support::Sidecar;
use crate::support::Upstream;
use crate::support::permitted;
use crate::support::records_in;
use crate::support::wait_for;

fn signal(sidecar: &Sidecar, name: &str) {
    let sent = Command::new("kill").args([name, &sidecar.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

fn health(address: &str, path: &str) -> Option<Answer> {
    let mut probe = Connection::on(std::net::TcpStream::connect(address).ok()?);
    probe.try_send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).ok()?;
    probe.answer()
}

/// A data service that answers when it is told, and says when it was asked.
fn waiting() -> (Upstream, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (asked, is_asked) = mpsc::channel();
    let (allow, allowed) = mpsc::channel::<()>();
    let allowed = Mutex::new(allowed);
    let upstream = Upstream::start(move |exchange| {
        asked.send(()).unwrap();
        let _stopped_at_once = allowed.lock().unwrap().recv_timeout(CEILING);
        exchange.ok("late")
    });
    (upstream, is_asked, allow)
}

#[test]
fn readiness_before_during_and_after_the_drain() {
    let (upstream, is_asked, allow) = waiting();
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let setup = Setup::to(&upstream.address);
    let text = format!("{}health: {{address: '{address}'}}\n", setup.text());
    let mut sidecar = setup.start_with(&text, Folder::new());
    assert_eq!(health(&address, "/readyz").unwrap().status, 200);
    let mut connection = sidecar.connect();
    connection.send(permitted());
    is_asked.recv_timeout(CEILING).unwrap();
    signal(&sidecar, "-TERM");
    wait_for("not ready", || (health(&address, "/readyz")?.status == 503).then_some(()));
    let told = health(&address, "/readyz?verbose").unwrap().text();
    assert!(told.contains("[-] serving: stopping"), "{told}");
    assert_eq!(health(&address, "/livez").unwrap().status, 200, "it lives until the last answer");
    // Who has not yet heard of it is answered once.
    let mut late = sidecar.connect();
    late.send(permitted());
    is_asked.recv_timeout(CEILING).unwrap();
    for connection in [&mut connection, &mut late] {
        allow.send(()).unwrap();
        let answer = connection.answer().unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "late"));
        assert_eq!(answer.value("connection"), Some("close"), "{:?}", answer.head);
        assert!(connection.is_closed());
    }
    assert_eq!(sidecar.ended(), Some(0));
    assert!(health(&address, "/readyz").is_none(), "gone");
}

#[test]
fn a_second_signal_stops_at_once() {
    for (first, second) in [("-TERM", "-TERM"), ("-INT", "-TERM"), ("-TERM", "-INT")] {
        let (upstream, is_asked, allow) = waiting();
        let mut sidecar = Setup::to(&upstream.address).start();
        let mut connection = sidecar.connect();
        connection.send(permitted());
        is_asked.recv_timeout(CEILING).unwrap();
        signal(&sidecar, first);
        wait_for("the drain", || sidecar.stderr.text().contains("stopping").then_some(()));
        signal(&sidecar, "-HUP");
        signal(&sidecar, second);
        assert_eq!(sidecar.ended(), Some(1), "{first} {second}");
        assert!(connection.answer().is_none(), "{first} {second}");
        drop(allow);
    }
}

/// SIGHUP asks a daemon to read its files again. Nobody heard it, so it ended the process.
#[test]
fn sighup_ended_the_process() {
    let upstream = Upstream::ok();
    let mut sidecar = Setup::to(&upstream.address).start();
    let mut connection = sidecar.connect();
    for round in 1..=3 {
        signal(&sidecar, "-HUP");
        wait_for("the word of it", || {
            let said =
                sidecar.stderr.text().matches("SIGHUP: the policy, certificates and keys are read again").count();
            (said == round).then_some(())
        });
        connection.send(permitted());
        assert_eq!(connection.answer().unwrap().status, 200);
    }
    sidecar.is_sound();
    assert_eq!(sidecar.stop().code, Some(0));
}

/// What one caller sent and heard.
#[derive(Default)]
struct Heard {
    answered: Vec<String>,
    /// The connection was closed before an answer began.
    unanswered: Vec<String>,
}

/// Asks on one connection after another, paced, until the sidecar is gone.
fn ask_until_gone(address: &str, is_over: &AtomicBool, answered: &AtomicUsize) -> Heard {
    let mut heard = Heard::default();
    while let Ok(stream) = std::net::TcpStream::connect(address) {
        let mut connection = Connection::on(stream);
        loop {
            let id = uuid::Uuid::new_v4().to_string();
            let request = Head::permitted("POST", SUBSCRIBER).with("X-Request-Id", &id).body("hello");
            // A connection that was closed while it was idle takes no request: the caller may send it again.
            if connection.try_send(request).is_err() {
                break;
            }
            let Some(answer) = connection.answer() else {
                heard.unanswered.push(id);
                break;
            };
            assert_eq!((answer.status, answer.is_whole), (200, true), "{answer:?}");
            assert_eq!(answer.text(), "ok");
            heard.answered.push(id);
            answered.fetch_add(1, Ordering::Relaxed);
            if answer.value("connection") == Some("close") {
                break;
            }
            std::thread::sleep(Duration::from_millis(4));
        }
        // Who asks again goes where readiness sends it.
        if is_over.load(Ordering::Relaxed) {
            return heard;
        }
    }
    heard
}

/// About 1,000 requests a second when SIGTERM comes. A request without an answer is one that was never read: it lost
/// the race for a connection that was idle, and nothing of it happened.
#[test]
fn a_drain_under_load_loses_nothing() {
    let upstream = Upstream::ok();
    let mut sidecar = Setup::to(&upstream.address).start();
    let (is_over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (address, is_over, answered) = (sidecar.address.clone(), Arc::clone(&is_over), Arc::clone(&answered));
            std::thread::spawn(move || ask_until_gone(&address, &is_over, &answered))
        })
        .collect();
    wait_for("load", || (answered.load(Ordering::Relaxed) > 400).then_some(()));
    signal(&sidecar, "-TERM");
    is_over.store(true, Ordering::Relaxed);
    let all: Vec<Heard> = callers.into_iter().map(|caller| caller.join().unwrap()).collect();
    let log = sidecar.log();
    assert_eq!(sidecar.ended(), Some(0), "{}", sidecar.stderr.text());
    let records = records_in(&std::fs::read_to_string(log).unwrap());
    let decided = |id: &str| {
        records.iter().find(|record| record["event"] == "dpa.decision" && record["request_id"] == id).cloned()
    };
    let seen: Vec<String> =
        upstream.seen().iter().filter_map(|seen| seen.head.value("x-request-id").map(str::to_owned)).collect();
    for id in all.iter().flat_map(|heard| &heard.answered) {
        assert!(decided(id).is_some(), "answered and not recorded");
    }
    for id in all.iter().flat_map(|heard| &heard.unanswered) {
        assert_eq!(decided(id), None, "read and not answered");
        assert!(!seen.contains(id), "forwarded and not answered");
    }
    let of = |event: &'static str| records.iter().filter(move |record| record["event"] == event);
    let mut outcomes: Vec<&Value> = of("dpa.outcome").map(|record| &record["decision_id"]).collect();
    let mut decisions: Vec<&Value> = of("dpa.decision").map(|record| &record["decision_id"]).collect();
    outcomes.sort_by_key(|id| id.to_string());
    decisions.sort_by_key(|id| id.to_string());
    assert_eq!(outcomes, decisions, "each decision has its outcome");
    assert!(of("dpa.outcome").all(|record| record["outcome"] == "completed"));
}

fn ask_on(path: &std::path::Path, request: &str) -> Option<Answer> {
    let mut stream = UnixStream::connect(path).ok()?;
    stream.set_read_timeout(Some(CEILING)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    Answer::read(&mut BufReader::new(stream))
}

#[test]
fn a_unix_socket_is_listened_on() {
    let upstream = Upstream::ok();
    let setup = Setup { peers: "unix", ..Setup::to(&upstream.address) };
    let on_both = |setup: &Setup| {
        setup.text().replace("{name: main,", "{name: local, address: 'unix:in.sock', upstream: app}, {name: main,")
    };
    let folder = Folder::new();
    let path = folder.file("in.sock");
    let text = on_both(&setup);
    let sidecar = setup.start_with(&text, folder);
    let answer = ask_on(&path, &permitted()).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let record = sidecar.decision(&answer.decision_id());
    assert_eq!(record["transport"]["tls_version"], "unix");
    let seen = upstream.last();
    assert_eq!(seen.head.value("x-forwarded-for"), None, "it has no address");
    assert_eq!(seen.head.value("forwarded"), Some("host=data.example;proto=http"));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    // By TCP, who is trusted on the socket is not.
    assert_eq!(sidecar.ask(permitted()).status, 401);
    // Nobody takes the socket of a sidecar that lives.
    let (code, stderr) = {
        let other = Folder::new();
        let text = text.replace("unix:in.sock", &format!("unix:{}", path.display()));
        setup.refused_with(&text, &other)
    };
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("cannot listen on `unix:"), "{stderr}");

    let mut sidecar = sidecar;
    signal(&sidecar, "-KILL");
    sidecar.ended();
    assert!(path.exists(), "left behind");
    let folder = sidecar.into_folder();
    let sidecar = setup.start_with(&text, folder);
    assert_eq!(ask_on(&path, &permitted()).unwrap().status, 200);
    let stopped = sidecar.stop();
    assert_eq!(stopped.code, Some(0));
    assert!(!path.exists(), "taken away");
}

/// Processor time of a process so far, in ticks.
fn ticks(sidecar: &Sidecar) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/stat", sidecar.id())).unwrap();
    let fields: Vec<&str> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// More connections than the process may open files: what is open is served, the log goes on to new files, nothing
/// turns in circles, and afterwards all is as before.
#[test]
fn when_descriptors_run_out() {
    if Command::new("prlimit").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "prlimit is missing");
        return;
    }
    let upstream = Upstream::ok();
    let setup = Setup {
        decision_log: "{file: {path: decisions.ndjson, rotate_bytes: 16KiB}}".to_owned(),
        wrapper: ["prlimit", "--nofile=96:96"].map(str::to_owned).to_vec(),
        ..Setup::to(&upstream.address)
    };
    let mut sidecar = setup.start();
    assert!(sidecar.stderr.text().contains("fewer connections than `limits.connections`"), "{}", sidecar.stderr.text());
    let mut first = sidecar.connect();
    first.send(permitted());
    assert_eq!(first.answer().unwrap().status, 200);
    let crowd: Vec<Connection> = (0..200).map(|_| sidecar.connect()).collect();
    let before = ticks(&sidecar);
    for _ in 0..200 {
        first.send(permitted());
        let answer = first.answer().unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let rotated = std::fs::read_dir(sidecar.log().parent().unwrap()).unwrap();
    let rotated =
        rotated.filter(|entry| entry.as_ref().unwrap().file_name().to_str().unwrap().starts_with("decisions-"));
    assert!(rotated.count() >= 3, "the log went on to new files");
    // Two seconds of two processors would be 400; answering 200 requests is a part of one.
    std::thread::sleep(Duration::from_secs(2));
    let spent = ticks(&sidecar) - before;
    assert!(spent < 200, "{spent} ticks: it turns in circles");
    let text = sidecar.stderr.text();
    assert!(!text.contains("cannot accept") && !text.contains("cannot be written"), "{text}");
    drop(crowd);
    wait_for("a new connection", || {
        let mut connection = sidecar.connect();
        connection.try_send(permitted()).ok()?;
        (connection.answer()?.status == 200).then_some(())
    });
    sidecar.is_sound();
    assert_eq!(sidecar.stop().code, Some(0));
}
