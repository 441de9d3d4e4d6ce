//! The health listener: `/livez`, `/readyz` and `/metrics`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::StatusCode;
use jiff::Timestamp;
use tokio::sync::watch;

use super::Question;
use super::Reply;
use super::metrics::Page;
use super::metrics::Scrape;
use crate::doors::proxy::Clock;
use crate::keys::KeySource;
use crate::record::log::Counters;
use crate::record::policy_event::Why;
use crate::standing::InForce;
use crate::standing::RefusedLoad;
use crate::standing::Standing;
use crate::tls;

/// What the health listener knows.
#[derive(Clone, Debug)]
pub struct Health {
    /// Whether the sidecar is stopping.
    pub draining: watch::Receiver<bool>,
    /// How the decision log fares.
    pub log: Arc<Counters>,
    /// The policy in force, and why a newer one is not.
    pub standing: Arc<Standing>,
    /// The keys of the issuers of tokens.
    pub keys: Vec<Arc<KeySource>>,
    /// The certificates.
    pub tls: tls::All,
    /// What time it is.
    pub clock: Clock,
    /// The metrics.
    pub page: Arc<Page>,
}

impl Health {
    /// Of a sidecar of which all this is counted.
    #[must_use]
    pub fn of(scrape: Scrape, keys: Vec<Arc<KeySource>>) -> Self {
        Self {
            draining: scrape.draining.clone(),
            log: Arc::clone(&scrape.log),
            standing: Arc::clone(&scrape.standing),
            keys,
            tls: scrape.tls.clone(),
            clock: scrape.clock,
            page: Arc::new(Page::of(scrape)),
        }
    }

    pub(super) fn answer(&self, question: &Question<'_>) -> Option<Reply> {
        match question.path {
            "/livez" => Some(Reply::plain(StatusCode::OK, "ok\n")),
            "/readyz" => {
                let (status, text) = self.ready(question.query == Some("verbose"));
                Some(Reply::plain(status, text))
            }
            "/metrics" => Some(Reply {
                status: StatusCode::OK,
                kind: "text/plain; version=0.0.4; charset=utf-8",
                text: self.page.text(),
            }),
            _ => None,
        }
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
    // Whoever reaches this port is told nothing of customers.
    let text =
        if *why == Why::Weaker.as_str() { "the log and `/policy` of admin say what, and for whom" } else { text };
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
