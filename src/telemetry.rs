//! What operators watch: the operational log and the metrics. Decisions go to the decision log, never
//! here.

use std::error::Error;
use std::fmt;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

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

/// Counters of the process. A clone counts into the same.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Permitted, recorded, and sent on.
    pub allowed: Counter,
    /// Denied or unreadable, recorded, and refused.
    pub denied: Counter,
    /// Denied, recorded, and sent on all the same.
    pub observed: Counter,
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
    decisions: Family<[(&'static str, &'static str); 1], Counter>,
    unread: Family<[(&'static str, &'static str); 1], Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let decisions = Family::<_, Counter>::default();
        let unread = Family::<_, Counter>::default();
        let action = |word| decisions.get_or_create(&[("action", word)]).clone();
        let why = |word| unread.get_or_create(&[("why", word)]).clone();
        Self {
            allowed: action("allowed"),
            denied: action("denied"),
            observed: action("observed"),
            unrecorded: Counter::default(),
            malformed: why("malformed"),
            too_large: why("too_large"),
            timed_out: why("timed_out"),
            handshake: why("handshake"),
            overloaded: why("overloaded"),
            panicked: why("panicked"),
            gone: why("gone"),
            refused: why("refused"),
            flooded: why("flooded"),
            decisions,
            unread,
        }
    }
}

impl Metrics {
    /// The counters in the text format of Prometheus.
    #[must_use]
    pub fn text(&self) -> String {
        let mut registry = Registry::default();
        registry.register("dpa_decisions", "Decisions by what was done about them", self.decisions.clone());
        registry.register(
            "dpa_decisions_unrecorded",
            "Requests that were let through before their record was there",
            self.unrecorded.clone(),
        );
        registry.register("dpa_requests_unread", "Requests refused before a decision", self.unread.clone());
        let mut text = String::new();
        let _infallible = encode(&mut text, &registry);
        text
    }
}
