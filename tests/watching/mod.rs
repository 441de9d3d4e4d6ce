//! What is asked from beside the way of requests: health, metrics, the admin listener, and what is told of them.

mod admin;
mod documents;
mod healthcheck;
mod metrics;
mod settings;
mod start;

use std::sync::Mutex;
use std::sync::mpsc;

use crate::support::Answer;
use crate::support::CEILING;
use crate::support::Connection;
use crate::support::Setup;
use crate::support::Sidecar;
use crate::support::Upstream;
use crate::support::wait_for;

/// A sidecar with a health and an admin listener, in front of the data service at this address.
fn watched(setup: &Setup) -> Sidecar {
    let more = "health: {address: '127.0.0.1:0'}\nadmin: {address: '127.0.0.1:0'}\n";
    setup.start_with(&(setup.text() + more), crate::support::Folder::new())
}

/// Where one of its listeners listens, as it says at the start.
fn told(sidecar: &Sidecar, what: &str) -> String {
    wait_for(what, || {
        let text = sidecar.stderr.text();
        let line = text.lines().find_map(|line| line.trim_start().strip_prefix(what))?;
        text.contains("\n  warnings").then(|| line.trim().to_owned())
    })
}

/// What is answered there.
fn ask(address: &str, path: &str) -> Answer {
    say(address, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
}

fn say(address: &str, request: &str) -> Answer {
    let mut connection = Connection::to(address);
    connection.send(request);
    connection.answer().unwrap_or_else(|| panic!("no answer to {request}"))
}

/// A data service that says when it was asked, and answers when it is told.
fn holding() -> (Upstream, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (begun, beginnings) = mpsc::channel();
    let (allow, allowed) = mpsc::channel::<()>();
    let allowed = Mutex::new(allowed);
    let upstream = Upstream::start(move |exchange| {
        begun.send(()).unwrap();
        allowed.lock().unwrap().recv_timeout(CEILING).unwrap();
        exchange.ok("ok")
    });
    (upstream, beginnings, allow)
}

/// The lines of a scrape.
fn scrape(sidecar: &Sidecar) -> String {
    ask(&told(sidecar, "health"), "/metrics").text()
}

/// The value of a line of a scrape.
fn value(text: &str, line: &str) -> Option<f64> {
    text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' ')?.parse().ok())
}
