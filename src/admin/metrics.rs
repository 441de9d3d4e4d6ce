//! The metrics: what each is called and means, and its values at a scrape.
//!
//! Names, labels and the sets of values that labels have are bounded by the code and the settings. Customers, callers
//! and whatever a request says are no labels.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::MetricEncoder;
use prometheus_client::encoding::NoLabelSet;
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;
use tokio::sync::watch;

use crate::doors::proxy::Clock;
use crate::doors::tally as door;
use crate::forward::Destination;
use crate::keys::KeySource;
use crate::policy::Enforcement;
use crate::record::entry::Action;
use crate::record::log::Counters;
use crate::record::policy_event::Why;
use crate::record::tally::Primary;
use crate::record::tally::Sum;
use crate::record::tally::Tallies;
use crate::respond::FAILURES;
use crate::standing;
use crate::standing::Standing;
use crate::telemetry::Metrics;
use crate::telemetry::Times;
use crate::tls;

/// What a metric counts or shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, until the process ends.
    Counter,
    /// It is as it is.
    Gauge,
    /// Seconds, by how many they are.
    Histogram,
}

impl Kind {
    /// The word in the text format of Prometheus.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A metric.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// What it counts or shows.
    pub kind: Kind,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it means.
    pub help: &'static str,
}

macro_rules! families {
    ($($place:ident: $kind:ident $name:literal $labels:tt, $help:literal;)*) => {
        $(const $place: Family = Family { name: $name, kind: Kind::$kind, labels: &$labels, help: $help };)*
        /// Every metric, in the order of a scrape.
        pub const FAMILIES: &[Family] = &[$($place),*];
    };
}

families! {
    DECISIONS: Counter "dpa_decisions_total" ["decision", "action", "reason", "enforcement"],
        "Decisions, by what was decided, what was done, the primary reason (none for a permit) and the enforcement";
    UNRECORDED: Counter "dpa_decisions_unrecorded_total" [],
        "Requests that were let through before their record was there";
    REFUSED: Counter "dpa_decisions_refused_total" [],
        "Requests that were refused because their decision could not be written down";
    DECISION: Histogram "dpa_decision_duration_seconds" [],
        "From the head of a request until it may be forwarded or is refused, the wait for its record included";
    OUTCOMES: Counter "dpa_outcomes_total" ["outcome"],
        "Permitted requests that ended, by how";
    REQUEST: Histogram "dpa_request_duration_seconds" [],
        "From the head of a permitted request to the end of its answer";
    ANSWERS: Counter "dpa_requests_total" ["listener", "status"],
        "Requests that were answered, by the first digit of the status; a refusal of gRPC has 2xx; what is wrong or too much for the library of HTTP/2 stands in dpa_requests_unread_total alone";
    UNREAD: Counter "dpa_requests_unread_total" ["why"],
        "Requests and handshakes that were refused before a decision";
    IN_FLIGHT: Gauge "dpa_requests_in_flight" [],
        "Requests under way, each until its answer has ended";
    IN_FLIGHT_MOST: Gauge "dpa_requests_in_flight_limit" [],
        "Requests that may be under way: limits.concurrent_requests";
    CONNECTIONS: Gauge "dpa_connections" ["listener"],
        "Connections of callers that are open";
    TAKEN: Counter "dpa_connections_taken_total" ["listener"],
        "Connections of callers that came in";
    CONNECTIONS_MOST: Gauge "dpa_connections_limit" [],
        "Connections that callers may have open: limits.connections, or fewer if the process may open fewer files";
    UPSTREAM_CONNECTIONS: Gauge "dpa_upstream_connections" ["upstream"],
        "Connections to the upstream, those that are being made included";
    UPSTREAM_MOST: Gauge "dpa_upstream_connections_limit" ["upstream"],
        "Connections that there may be to the upstream: max_connections";
    UPSTREAM_WAITING: Gauge "dpa_upstream_waiting_requests" ["upstream"],
        "Requests that wait for a connection to the upstream";
    UPSTREAM_REACHABLE: Gauge "dpa_upstream_reachable" ["upstream"],
        "0 while requests to the upstream are refused because it could not be reached several times in a row";
    UPSTREAM_CONNECTS: Counter "dpa_upstream_connects_total" ["upstream", "result"],
        "Connections to the upstream that came about (reached), or did not (missed)";
    UPSTREAM: Histogram "dpa_upstream_duration_seconds" ["upstream"],
        "From when a request is permitted to the head of its answer, the wait for a connection included";
    FAILED: Counter "dpa_requests_failed_total" ["upstream", "reason"],
        "Permitted requests that have no answer of the upstream";
    RECORDS: Counter "dpa_log_records_total" [],
        "Records that were written to the decision log";
    BYTES: Counter "dpa_log_bytes_total" [],
        "Bytes that were written to the decision log";
    WRITES: Histogram "dpa_log_write_duration_seconds" [],
        "Writes to the decision log, each of many records; under synced the sync is part of one";
    WAIT: Histogram "dpa_log_wait_seconds" [],
        "How long requests waited for their record";
    CHECKPOINTS: Counter "dpa_log_checkpoints_total" [],
        "Checkpoints that were written to the decision log";
    LOG_FAILURES: Counter "dpa_log_failures_total" [],
        "Writes to the decision log that failed, tries to write again included";
    LOG_FAILING: Gauge "dpa_log_failing" [],
        "1 while the decision log takes no records";
    OUTCOMES_LOST: Counter "dpa_log_outcomes_lost_total" [],
        "Outcomes that are missing in the decision log, for want of room while it took no records";
    POLICY: Gauge "dpa_policy_info" ["name", "digest", "key_id"],
        "The policy in force; an empty key_id: it is not signed";
    POLICY_REVISION: Gauge "dpa_policy_revision" [],
        "Revision of the policy in force";
    POLICY_LOADED: Gauge "dpa_policy_loaded_timestamp_seconds" [],
        "When the policy in force took effect";
    POLICY_AGE: Gauge "dpa_policy_age_seconds" [],
        "Since the policy in force was issued, or took effect if it does not say when it was issued";
    POLICY_STALE: Gauge "dpa_policy_stale" [],
        "1 while the policy in force is older than policy.max_age";
    POLICY_LOADS: Counter "dpa_policy_loads_total" [],
        "Policies that took effect";
    POLICY_REFUSED: Counter "dpa_policy_refused_total" ["why"],
        "Policies that were refused; the one in force stayed";
    POLICY_HELD_BACK: Gauge "dpa_policy_held_back" [],
        "1 while the files hold a policy that was refused, so that an older one is in force";
    OBSERVES: Gauge "dpa_sidecar_observes" [],
        "1 if this sidecar as a whole only observes: denied requests pass";
    READY: Gauge "dpa_ready" [],
        "1 if /readyz says so";
    CERTIFICATE: Gauge "dpa_certificate_expiry_timestamp_seconds" ["side", "name", "file"],
        "When the first certificate or revocation list in a file ends; side and name say of which listener or upstream";
    ISSUER: Gauge "dpa_issuer_keys" ["issuer"],
        "Keys of an issuer of tokens that are known; without one nobody is known by its tokens";
    SETTINGS: Gauge "dpa_settings_info" ["digest"],
        "The settings in force, by the digest that /config_dump shows";
    BUILD: Gauge "dpa_build_info" ["version", "commit"],
        "The program; an empty commit: its build did not say";
    STARTED: Gauge "dpa_start_timestamp_seconds" [],
        "When the process started";
}

/// A listener, as the metrics see it.
#[derive(Clone, Debug)]
pub struct ListenerCounts {
    /// Its name.
    pub name: String,
    /// Its upstream, by its place.
    pub upstream: usize,
    /// What each worker counts there.
    pub tallies: Vec<Arc<door::Tally>>,
}

/// Everything that metrics are made of.
#[derive(Clone, Debug)]
pub struct Scrape {
    /// What each worker counts of its decisions.
    pub tallies: Tallies,
    /// What is rare.
    pub metrics: Metrics,
    /// How the decision log fares.
    pub log: Arc<Counters>,
    /// The listeners.
    pub listeners: Vec<ListenerCounts>,
    /// The upstreams, in the order of the settings.
    pub upstreams: Vec<Arc<Destination>>,
    /// A place for each request under way, and how many there are.
    pub places: (Arc<Semaphore>, usize),
    /// Connections that callers may have open.
    pub connections: usize,
    /// The policy in force.
    pub standing: Arc<Standing>,
    /// The keys of the issuers of tokens.
    pub keys: Vec<Arc<KeySource>>,
    /// The certificates.
    pub tls: tls::All,
    /// `enforcement`.
    pub enforcement: Enforcement,
    /// Digest of the settings.
    pub settings: String,
    /// Whether the sidecar is stopping.
    pub draining: watch::Receiver<bool>,
    /// What time it is.
    pub clock: Clock,
    /// When the process started.
    pub started: jiff::Timestamp,
}

/// What `/metrics` answers.
#[derive(Debug)]
pub struct Page(Registry);

impl Page {
    /// Of all that is counted.
    #[must_use]
    pub fn of(scrape: Scrape) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(scrape));
        Self(registry)
    }

    /// The metrics at this moment, in the text format of Prometheus (0.0.4).
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::with_capacity(32 * 1024);
        let _infallible = encode_registry(&mut text, &self.0);
        text
    }
}

/// One line of a metric.
type Labels<'a> = Vec<(&'static str, &'a str)>;

/// Writes metrics.
struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    fn begin<'s>(&'s mut self, family: &'s Family) -> Result<MetricEncoder<'s>, fmt::Error> {
        let kind = match family.kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
            Kind::Histogram => MetricType::Histogram,
        };
        self.0.encode_descriptor(family.name, family.help, None, kind)
    }

    /// Counters too: their names end as the text format wants it, and the library would add that once more.
    fn numbers<'l>(
        &mut self,
        family: &Family,
        lines: impl IntoIterator<Item = (Labels<'l>, i64)>,
    ) -> Result<(), fmt::Error> {
        let mut encoder = self.begin(family)?;
        for (labels, value) in lines {
            match labels.is_empty() {
                true => encoder.encode_gauge(&value)?,
                false => encoder.encode_family(&labels)?.encode_gauge(&value)?,
            }
        }
        Ok(())
    }

    fn number(&mut self, family: &Family, value: i64) -> Result<(), fmt::Error> {
        self.numbers(family, [(Vec::new(), value)])
    }

    fn times<'l>(
        &mut self,
        family: &Family,
        lines: impl IntoIterator<Item = (Labels<'l>, Times)>,
    ) -> Result<(), fmt::Error> {
        let mut encoder = self.begin(family)?;
        for (labels, times) in lines {
            let (sum, count, buckets) = (times.seconds(), times.count(), times.buckets().collect::<Vec<_>>());
            match labels.is_empty() {
                true => encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?,
                false => encoder.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?,
            }
        }
        Ok(())
    }
}

/// A counter that passes what a number of the text format is taken as would have counted for centuries.
fn whole(count: impl TryInto<i64>) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut out = Writer(encoder);
        let sum = self.tallies.sum();
        self.requests(&sum, &mut out)?;
        self.upstreams(&mut out)?;
        self.log(&sum, &mut out)?;
        self.policy(&mut out)?;
        self.rest(&mut out)
    }
}

impl Scrape {
    fn requests(&self, sum: &Sum, out: &mut Writer<'_>) -> Result<(), fmt::Error> {
        let decisions = sum.decisions.iter().map(|it| {
            let decision = if it.action == Action::Allowed { "permit" } else { "deny" };
            let (reason, enforcement) = (Primary::as_str(it.why), it.enforcement.as_str());
            let labels = vec![
                ("decision", decision),
                ("action", it.action.as_str()),
                ("reason", reason),
                ("enforcement", enforcement),
            ];
            (labels, whole(it.count))
        });
        out.numbers(&DECISIONS, decisions)?;
        out.number(&UNRECORDED, whole(self.metrics.unrecorded.get()))?;
        out.number(&REFUSED, whole(self.log.refused_in_all.get()))?;
        out.times(&DECISION, [(Vec::new(), sum.decision.clone())])?;
        let outcomes = sum.outcomes.iter().map(|(ending, count)| (vec![("outcome", ending.as_str())], whole(*count)));
        out.numbers(&OUTCOMES, outcomes)?;
        out.times(&REQUEST, [(Vec::new(), sum.request.clone())])?;

        let doors: Vec<(&str, door::Sum)> =
            self.listeners.iter().map(|it| (it.name.as_str(), door::Sum::of(&it.tallies))).collect();
        let answers = doors.iter().flat_map(|(name, sum)| {
            let counts = door::STATUSES.into_iter().zip(sum.answers);
            counts.map(|(status, count)| (vec![("listener", *name), ("status", status)], whole(count)))
        });
        out.numbers(&ANSWERS, answers)?;
        out.numbers(&UNREAD, self.metrics.unread().map(|(why, count)| (vec![("why", why)], whole(count))))?;
        let (places, most) = &self.places;
        out.number(&IN_FLIGHT, whole(most.saturating_sub(places.available_permits())))?;
        out.number(&IN_FLIGHT_MOST, whole(*most))?;
        out.numbers(&CONNECTIONS, doors.iter().map(|(name, sum)| (vec![("listener", *name)], whole(sum.open))))?;
        out.numbers(&TAKEN, doors.iter().map(|(name, sum)| (vec![("listener", *name)], whole(sum.taken))))?;
        out.number(&CONNECTIONS_MOST, whole(self.connections))
    }

    fn upstreams(&self, out: &mut Writer<'_>) -> Result<(), fmt::Error> {
        let all: Vec<_> = self.upstreams.iter().map(|it| (it.settings().name.as_str(), it.glance())).collect();
        let of = |name| vec![("upstream", name)];
        out.numbers(&UPSTREAM_CONNECTIONS, all.iter().map(|(name, it)| (of(*name), whole(it.connections))))?;
        let most = self.upstreams.iter().map(|it| (it.settings().name.as_str(), it.settings().max_connections));
        out.numbers(&UPSTREAM_MOST, most.map(|(name, most)| (of(name), whole(most))))?;
        out.numbers(&UPSTREAM_WAITING, all.iter().map(|(name, it)| (of(*name), whole(it.waiting))))?;
        out.numbers(&UPSTREAM_REACHABLE, all.iter().map(|(name, it)| (of(*name), i64::from(!it.is_down))))?;
        let connects = all.iter().flat_map(|(name, it)| {
            [("reached", it.reached), ("missed", it.missed)]
                .map(|(result, count)| (vec![("upstream", *name), ("result", result)], whole(count)))
        });
        out.numbers(&UPSTREAM_CONNECTS, connects)?;
        // What listeners that lead to the same upstream count is its own.
        let sums: Vec<(&str, door::Sum)> = all
            .iter()
            .enumerate()
            .map(|(place, (name, _))| {
                let here = self.listeners.iter().filter(|it| it.upstream == place);
                (*name, door::Sum::of(here.flat_map(|it| &it.tallies)))
            })
            .collect();
        out.times(&UPSTREAM, sums.iter().map(|(name, sum)| (of(*name), sum.upstream.clone())))?;
        let failures = sums.iter().flat_map(|(name, sum)| {
            let counts = FAILURES.into_iter().zip(sum.failures);
            counts.map(|(reason, count)| (vec![("upstream", *name), ("reason", reason)], whole(count)))
        });
        out.numbers(&FAILED, failures)
    }

    fn log(&self, sum: &Sum, out: &mut Writer<'_>) -> Result<(), fmt::Error> {
        let mut writes = Times::default();
        writes.add(&self.log.writes);
        out.number(&RECORDS, whole(self.log.records.get()))?;
        out.number(&BYTES, whole(self.log.bytes.get()))?;
        out.times(&WRITES, [(Vec::new(), writes)])?;
        out.times(&WAIT, [(Vec::new(), sum.wait.clone())])?;
        out.number(&CHECKPOINTS, whole(self.log.checkpoints.get()))?;
        out.number(&LOG_FAILURES, whole(self.log.failures.get()))?;
        out.number(&LOG_FAILING, i64::from(self.log.is_failing.load(Ordering::Relaxed)))?;
        out.number(&OUTCOMES_LOST, whole(self.log.outcomes_lost.get()))
    }

    fn policy(&self, out: &mut Writer<'_>) -> Result<(), fmt::Error> {
        let (in_force, now) = (self.standing.in_force(), self.clock.now());
        let policy = &in_force.policy;
        let age = standing::age(policy, now).unwrap_or_else(|| now.duration_since(in_force.since));
        let labels = vec![
            ("name", policy.name.as_str()),
            ("digest", &*policy.digest),
            ("key_id", in_force.key_id.as_deref().unwrap_or_default()),
        ];
        out.numbers(&POLICY, [(labels, 1)])?;
        out.number(&POLICY_REVISION, whole(policy.revision))?;
        out.number(&POLICY_LOADED, in_force.since.as_second())?;
        out.number(&POLICY_AGE, age.as_secs())?;
        out.number(&POLICY_STALE, i64::from(self.standing.is_stale(policy, now)))?;
        out.number(&POLICY_LOADS, whole(self.metrics.policy_loads.get()))?;
        let refused = Why::ALL.map(|why| (vec![("why", why.as_str())], self.metrics.policies_refused(why.as_str())));
        out.numbers(&POLICY_REFUSED, refused.map(|(labels, count)| (labels, whole(count))))?;
        out.number(&POLICY_HELD_BACK, i64::from(self.standing.refused().is_some()))
    }

    fn rest(&self, out: &mut Writer<'_>) -> Result<(), fmt::Error> {
        out.number(&OBSERVES, i64::from(self.enforcement == Enforcement::Observe))?;
        let (in_force, now) = (self.standing.in_force(), self.clock.now());
        let is_ready = !*self.draining.borrow()
            && !self.log.is_failing.load(Ordering::Relaxed)
            && !self.standing.denies(&in_force.policy, now);
        out.number(&READY, i64::from(is_ready))?;
        drop(in_force);
        out.numbers(&CERTIFICATE, soonest(&self.tls.endings()))?;
        let keys = self.keys.iter().map(|source| (vec![("issuer", source.issuer.as_str())], whole(source.count())));
        out.numbers(&ISSUER, keys)?;
        out.numbers(&SETTINGS, [(vec![("digest", self.settings.as_str())], 1)])?;
        let commit = crate::telemetry::COMMIT.unwrap_or_default();
        out.numbers(&BUILD, [(vec![("version", env!("CARGO_PKG_VERSION")), ("commit", commit)], 1)])?;
        out.number(&STARTED, self.started.as_second())
    }
}

/// The first end in each file: `listener main: certificate 1 of 2` is side, name and file.
fn soonest(endings: &[tls::Ending]) -> Vec<(Labels<'_>, i64)> {
    let mut found: Vec<(Labels<'_>, i64)> = Vec::new();
    for ending in endings {
        let Some((side, rest)) = ending.what.split_once(' ') else { continue };
        let Some((name, file)) = rest.split_once(": ") else { continue };
        let file = file.split(' ').next().unwrap_or_default();
        let (labels, until) = (vec![("side", side), ("name", name), ("file", file)], ending.until.as_second());
        match found.iter_mut().find(|(known, _)| *known == labels) {
            Some((_, first)) => *first = until.min(*first),
            None => found.push((labels, until)),
        }
    }
    found
}
