//! The health listener: `/livez`, `/readyz` and `/metrics`, for the kubelet and Prometheus.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::Response;
use http::StatusCode;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::doors::proxy::Clock;
use crate::keys::KeySource;
use crate::record::log::Counters;
use crate::standing;
use crate::standing::InForce;
use crate::standing::RefusedLoad;
use crate::standing::Standing;
use crate::telemetry::Metrics;
use crate::tls;

/// What the health listener knows.
#[derive(Clone, Debug)]
pub struct Health {
    /// Whether the sidecar is stopping.
    pub draining: watch::Receiver<bool>,
    /// How the decision log fares.
    pub log: Arc<Counters>,
    /// The counters.
    pub metrics: Metrics,
    /// The policy in force, and why a newer one is not.
    pub standing: Arc<Standing>,
    /// The keys of the issuers of tokens.
    pub keys: Vec<Arc<KeySource>>,
    /// The certificates.
    pub tls: tls::All,
    /// What time it is.
    pub clock: Clock,
}

/// Connections that are open at once. Where one more comes, the oldest is closed: a probe does not wait.
pub const MOST_CONNECTIONS: usize = 16;

/// How long one may last, its answer included.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves until it is dropped. Needs a `LocalSet`.
pub async fn serve(listener: TcpListener, health: Health) {
    let health = Arc::new(health);
    let mut open: VecDeque<JoinHandle<()>> = VecDeque::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        open.retain(|connection| !connection.is_finished());
        if open.len() >= MOST_CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
            // Its descriptor is free by then.
            let _aborted = oldest.await;
        }
        let health = Arc::clone(&health);
        open.push_back(tokio::task::spawn_local(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = health.answer(request.uri().path(), request.uri().query() == Some("verbose"));
                async move { Ok::<_, Infallible>(answer) }
            });
            let mut http = http1::Builder::new();
            http.header_read_timeout(None).keep_alive(false);
            // A probe that goes away early has its answer already or does not want it.
            let _gone = tokio::time::timeout(PATIENCE, http.serve_connection(TokioIo::new(stream), service)).await;
        }));
    }
}

impl Health {
    fn answer(&self, path: &str, verbose: bool) -> Response<Full<Bytes>> {
        let (status, text) = match path {
            "/livez" => (StatusCode::OK, "ok\n".to_owned()),
            "/readyz" => self.ready(verbose),
            "/metrics" => (StatusCode::OK, self.metrics()),
            _ => (StatusCode::NOT_FOUND, "known: /livez, /readyz, /metrics\n".to_owned()),
        };
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        let kind = http::HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
        response
    }

    fn metrics(&self) -> String {
        let (in_force, now) = (self.standing.in_force(), self.clock.now());
        let age = standing::age(&in_force.policy, now).unwrap_or_else(|| now.duration_since(in_force.since));
        self.metrics.policy_is_old(age.as_secs());
        self.metrics.text()
    }

    fn ready(&self, verbose: bool) -> (StatusCode, String) {
        let is_failing = self.log.is_failing.load(Ordering::Relaxed);
        let is_draining = *self.draining.borrow();
        let (in_force, now) = (self.standing.in_force(), self.clock.now());
        let is_stale = self.standing.is_stale(&in_force.policy, now);
        let policy = policy_line(&in_force, is_stale);
        let checks = [
            ("policy", !self.standing.denies(&in_force.policy, now), policy.as_str()),
            ("decision_log", !is_failing, if is_failing { "the last write failed" } else { "takes records" }),
            ("serving", !is_draining, if is_draining { "stopping" } else { "takes requests" }),
        ];
        let is_ready = checks.iter().all(|(_, good, _)| *good);
        let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let line =
            |(name, good, what): &(&str, bool, &str)| format!("[{}] {name}: {what}\n", if *good { "+" } else { "-" });
        let mut text: String = if verbose { checks.iter().map(line).collect() } else { String::new() };
        if let Some(refused) = self.standing.refused().filter(|_| verbose) {
            text.push_str(&refused_line(&refused));
        }
        if verbose {
            text.extend(self.tls.endings().iter().map(|ending| end_line(ending, self.clock.now())));
        }
        // An issuer that is down takes nobody else's requests out of the service, so it does not count.
        for source in self.keys.iter().filter(|_| verbose) {
            let (has_keys, told) = source.told();
            text.push_str(&line(&("keys", has_keys, &told)));
        }
        text.push_str(if is_ready { "ok\n" } else { "not ready\n" });
        (status, text)
    }
}

fn policy_line(InForce { policy, since, key_id }: &InForce, is_stale: bool) -> String {
    let signed = key_id.as_ref().map_or_else(|| "not signed".to_owned(), |key| format!("signed by {key}"));
    let stale = if is_stale { ", older than `policy.max_age`" } else { "" };
    format!("{}, {signed}, in force since {since:.0}{stale}", policy.named())
}

/// Why what the files say is not in force. It tells, and does not count for readiness: what is in force is good.
fn refused_line(RefusedLoad { at, offered, why, text }: &RefusedLoad) -> String {
    let which =
        offered.as_ref().map_or_else(|| "what the files say".to_owned(), |it| format!("revision {}", it.revision));
    format!("[!] policy: {which} was refused at {at:.0}: {why}: {text}\n")
}

/// When something ends; `!` if that is near. It tells, and does not count for readiness.
fn end_line(ending: &tls::Ending, now: Timestamp) -> String {
    let sign = if ending.nearness(now).is_some() { "!" } else { "+" };
    let left = ending.until.duration_since(now);
    let hours = left.as_hours();
    let when = match hours {
        _ if !left.is_positive() => "has ended".to_owned(),
        0..48 => format!("{hours} hours left"),
        _ => format!("{} days left", hours / 24),
    };
    format!("[{sign}] {}: ends {}, {when}\n", ending.what, ending.until)
}
