//! What operators watch: the operational log, and what metrics are counted with. Decisions go to the decision log,
//! never here.

use std::error::Error;
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

/// The commit that the program was built from, if its build said so in the variable `DPA_COMMIT`.
pub const COMMIT: Option<&str> = option_env!("DPA_COMMIT");

/// How the operational log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts the operational log on standard error. `RUST_LOG` sets its level; the default is `info`. Panics go there too,
/// without what they say: that may be a part of a request.
pub fn start_log(format: LogFormat, colour: bool) {
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_default_directive(tracing::level_filters::LevelFilter::INFO.into())
        .from_env_lossy();
    // At `debug` the library of HTTP/2 tells what stands in heads that it refuses.
    let filter = match "h2=off".parse() {
        Ok(silent) => filter.add_directive(silent),
        Err(_) => filter,
    };
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // Somebody else's subscriber, in a test, stays.
    let _already_set = match format {
        LogFormat::Text => log.with_ansi(colour).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    std::panic::set_hook(Box::new(|panic| {
        let at = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current().name().unwrap_or_default().to_owned();
        tracing::error!(thread, at, "a thread panicked: a mistake in this program");
    }));
}

/// An error and its causes on one line, outermost first.
pub fn chain<'e>(error: &'e (dyn Error + 'static)) -> impl fmt::Display + 'e {
    fmt::from_fn(move |out| {
        write!(out, "{error}")?;
        let mut cause = error.source();
        while let Some(next) = cause {
            write!(out, ": {next}")?;
            cause = next.source();
        }
        Ok(())
    })
}

/// Counters of the process, of what is rare. A clone counts into the same. What each request counts, each worker counts
/// for itself.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Forwarded without a record.
    pub unrecorded: Counter,
    /// Heads that are no HTTP.
    pub malformed: Counter,
    /// Heads over a limit.
    pub too_large: Counter,
    /// Heads that did not come in time.
    pub timed_out: Counter,
    /// TLS handshakes that failed.
    pub handshake: Counter,
    /// Requests that came while too many were under way.
    pub overloaded: Counter,
    /// Requests that this program failed at before they were decided.
    pub panicked: Counter,
    /// Requests whose caller went away while they waited for keys.
    pub gone: Counter,
    /// Streams of HTTP/2 that the HTTP layer refused.
    pub refused: Counter,
    /// Connections of HTTP/2 that were closed since what came on them asked for next to nothing.
    pub flooded: Counter,
    /// Policies that took effect.
    pub policy_loads: Counter,
    policy_refused: ByWhy,
}

type ByWhy = Family<[(&'static str, &'static str); 1], Counter>;

impl Metrics {
    /// A policy took effect.
    pub fn policy_loaded(&self) {
        self.policy_loads.inc();
    }

    /// A policy was refused, for this reason.
    pub fn policy_refused(&self, why: &'static str) {
        self.policy_refused.get_or_create(&[("why", why)]).inc();
    }

    /// How often policies were refused for this reason.
    #[must_use]
    pub fn policies_refused(&self, why: &'static str) -> u64 {
        self.policy_refused.get_or_create(&[("why", why)]).get()
    }

    /// Requests that were refused before a decision: each reason, as `dpa.unread` names it, and how many.
    #[must_use]
    pub fn unread(&self) -> [(&'static str, u64); 9] {
        [
            ("malformed", &self.malformed),
            ("too_large", &self.too_large),
            ("timed_out", &self.timed_out),
            ("handshake", &self.handshake),
            ("overloaded", &self.overloaded),
            ("panicked", &self.panicked),
            ("gone", &self.gone),
            ("refused", &self.refused),
            ("flooded", &self.flooded),
        ]
        .map(|(why, counter)| (why, counter.get()))
    }
}

/// Upper bounds of the buckets of a [`Histogram`], in nanoseconds: from what a decision takes to how long a service may
/// keep silent.
const BOUNDS: [u64; 17] = [
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    10_000_000_000,
    30_000_000_000,
];

/// Lengths of time, counted by how long they are.
#[derive(Debug, Default)]
pub struct Histogram {
    /// One for each bound, and one for what is longer than all.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanos: AtomicU64,
}

impl Histogram {
    /// One that was so long.
    pub fn observe(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let place = BOUNDS.partition_point(|bound| *bound < nanos);
        if let Some(bucket) = self.buckets.get(place) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }
}

/// What several histograms counted together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Times {
    buckets: [u64; BOUNDS.len() + 1],
    nanos: u64,
}

impl Times {
    /// Adds what this one counted so far.
    pub fn add(&mut self, histogram: &Histogram) {
        for (sum, bucket) in self.buckets.iter_mut().zip(&histogram.buckets) {
            *sum += bucket.load(Ordering::Relaxed);
        }
        self.nanos = self.nanos.wrapping_add(histogram.nanos.load(Ordering::Relaxed));
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// All of them together, in seconds.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        Duration::from_nanos(self.nanos).as_secs_f64()
    }

    /// Upper bounds in seconds, the last one infinite, and how many are within each and above the one before.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = BOUNDS.iter().map(|nanos| Duration::from_nanos(*nanos).as_secs_f64());
        bounds.chain([f64::INFINITY]).zip(self.buckets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_lies_in_the_bucket_whose_bound_it_does_not_pass() {
        let table = [
            ("no time at all", Duration::ZERO, 0.000_05),
            ("exactly a bound", Duration::from_micros(50), 0.000_05),
            ("a little more", Duration::from_nanos(50_001), 0.000_1),
            ("the last bound", Duration::from_secs(30), 30.0),
            ("longer than all", Duration::from_secs(31), f64::INFINITY),
            ("longer than can be told", Duration::MAX, f64::INFINITY),
        ];
        for (name, time, expected) in table {
            let (histogram, mut times) = (Histogram::default(), Times::default());
            histogram.observe(time);
            times.add(&histogram);
            let found: Vec<_> = times.buckets().filter(|(_, count)| *count > 0).collect();
            assert_eq!((found, times.count()), (vec![(expected, 1)], 1), "{name}");
        }
    }
}
