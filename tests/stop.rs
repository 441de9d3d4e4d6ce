//! SIGTERM: what is under way is answered, the log is written last.

use std::process::Command;
use std::sync::Mutex;
use std::sync::mpsc;

use crate::support::CEILING;
use crate::support::Setup;
use crate::support::Upstream;
use crate::support::permitted;
use crate::support::records_in;
use crate::support::wait_for;

/// A worker that held the word "stop" for reading, and wanted to read it again while the main thread
/// wanted to write it, waited for itself: it never ended, not even after `drain_timeout`.
#[test]
fn workers_waited_for_themselves_when_stopped() {
    let upstream = Upstream::ok();
    for _ in 0..10 {
        let sidecar = Setup::to(&upstream.address).start();
        let connections: Vec<_> = (0..40)
            .map(|_| {
                let mut connection = sidecar.connect();
                connection.send(permitted());
                assert_eq!(connection.answer().unwrap().status, 200);
                connection
            })
            .collect();
        let stopped = sidecar.stop();
        assert_eq!(stopped.code, Some(0), "{}", stopped.stderr);
        drop(connections);
    }
}

#[test]
fn a_request_under_way_is_answered_before_the_end() {
    let (asked, is_asked) = mpsc::channel();
    let (allow, allowed) = mpsc::channel::<()>();
    let allowed = Mutex::new(allowed);
    let upstream = Upstream::start(move |exchange| {
        asked.send(()).unwrap();
        allowed.lock().unwrap().recv_timeout(CEILING).unwrap();
        exchange.ok("late")
    });
    let mut sidecar = Setup::to(&upstream.address).start();
    let mut connection = sidecar.connect();
    connection.send(permitted());
    is_asked.recv_timeout(CEILING).unwrap();
    assert!(Command::new("kill").arg(sidecar.id().to_string()).status().unwrap().success());
    wait_for("the drain", || sidecar.stderr.text().contains("stopping").then_some(()));
    allow.send(()).unwrap();
    let answer = connection.answer().unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "late"));
    assert!(connection.is_closed());
    let log = sidecar.log();
    let code = sidecar.ended();
    assert_eq!(code, Some(0));
    let records = records_in(&std::fs::read_to_string(log).unwrap());
    let [.., outcome, checkpoint] = records.as_slice() else { panic!("{records:?}") };
    assert_eq!(checkpoint["event"], "dpa.checkpoint");
    assert_eq!((&outcome["event"], &outcome["outcome"]), (&"dpa.outcome".into(), &"completed".into()));
}
