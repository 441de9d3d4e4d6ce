//! Builds the steps from the settings and runs them until they are drained.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use rustix::process::Resource;
use rustix::process::Rlimit;
use rustix::process::getrlimit;
use rustix::process::setrlimit;
use tokio::signal::unix::Signal;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::sync::Semaphore;
use tokio::sync::watch;
use tokio::task::LocalSet;
use uuid::Uuid;

use crate::accept;
use crate::accept::Limits;
use crate::admin;
use crate::admin::Health;
use crate::admin::Inside;
use crate::admin::Scrape;
use crate::admin::metrics::ListenerCounts;
use crate::config::Settings;
use crate::doors::egress::Egress;
use crate::doors::proxy::Clock;
use crate::doors::proxy::Proxy;
use crate::doors::tally::Tally;
use crate::forward::Destination;
use crate::forward::Upstream;
use crate::forward::headers::HeaderRules;
use crate::gate::Gate;
use crate::gate::Rules;
use crate::policy::terms::Location;
use crate::record::Batch;
use crate::record::entry;
use crate::record::entry::Writer;
use crate::record::log::Closing;
use crate::record::log::Counters;
use crate::record::log::Log;
use crate::record::log::OpenError;
use crate::record::policy_event;
use crate::record::recorder::Recorder;
use crate::reload;
use crate::reload::Accepted;
use crate::reload::Again;
use crate::reload::Baseline;
use crate::reload::PolicySource;
use crate::reload::PolicyWatch;
use crate::reload::Refusal;
use crate::sockets;
use crate::sockets::Address;
use crate::standing::InForce;
use crate::standing::Standing;
use crate::telemetry::Metrics;
use crate::tls;

/// Why a sidecar cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address is taken, or not of this machine.
    #[error("cannot listen on `{address}`")]
    Listen {
        /// The address.
        address: Address,
        /// Why.
        source: io::Error,
    },
    /// The decision log.
    #[error(transparent)]
    Log(#[from] OpenError),
    /// A certificate, key or revocation list.
    #[error(transparent)]
    Tls(#[from] tls::Unusable),
    /// A thread or its runtime.
    #[error("cannot start a worker thread")]
    Thread(#[source] io::Error),
}

/// A running sidecar.
#[derive(Debug)]
pub struct Sidecar {
    /// Where each listener really listens, by name.
    pub addresses: Vec<(String, Address)>,
    /// Where the health listener really listens, if there is one.
    pub health: Option<Address>,
    /// Where the admin listener really listens, if there is one.
    pub admin: Option<Address>,
    /// Answers on both.
    watched: Option<admin::Running>,
    draining: watch::Sender<bool>,
    /// Has files read again at once.
    again: Arc<Again>,
    workers: Vec<JoinHandle<Instant>>,
    closing: Closing,
}

/// What each worker gets.
#[derive(Clone)]
struct Share {
    rules: Arc<Rules>,
    listeners: Arc<Vec<Bound>>,
    upstreams: Arc<Vec<Arc<Destination>>>,
    storage: Location,
    headers: Arc<HeaderRules>,
    egress_headers: Arc<HeaderRules>,
    limits: Limits,
    slots: accept::Slots,
    places: Arc<Semaphore>,
    metrics: Metrics,
    unread: Arc<accept::UnreadCounters>,
    clock: Clock,
    drain_timeout: Duration,
    draining: watch::Receiver<bool>,
}

/// A listener that is bound.
struct Bound {
    socket: sockets::Bound,
    tls: Option<Arc<tls::Server>>,
    /// Place of its upstream.
    upstream: usize,
    egress: Option<Egress>,
    /// What each worker counts there.
    tallies: Vec<Arc<Tally>>,
}

/// Starts a sidecar. When it returns, the sockets are bound, the log is open and the workers run.
///
/// # Errors
///
/// [`StartError`].
pub fn start(settings: Settings, accepted: Accepted, clock: Clock) -> Result<Sidecar, StartError> {
    let now = clock.now();
    let settings = Arc::new(settings);
    let mut addresses = Vec::new();
    let mut listeners = Vec::new();
    for listener in &settings.listeners {
        let socket = listen(&listener.address)?;
        let address = socket.address().unwrap_or_else(|_| listener.address.clone());
        addresses.push((listener.name.clone(), address));
        let load = |tls| tls::Server::load(&listener.name, tls).map(Arc::new);
        let tls = listener.tls.clone().map(load).transpose()?;
        let tallies = std::iter::repeat_with(Arc::default).take(settings.workers).collect();
        let (upstream, egress) = (listener.upstream, listener.egress.clone());
        listeners.push(Bound { socket, tls, upstream, egress, tallies });
    }
    let mut upstreams = Vec::new();
    for upstream in &settings.upstreams {
        let load = |tls| tls::Client::load(&upstream.name, tls).map(Arc::new);
        let tls = upstream.tls.clone().map(load).transpose()?;
        upstreams.push(Arc::new(Destination::new(upstream.clone(), tls)));
    }
    let all_tls = tls::All {
        servers: listeners.iter().filter_map(|bound| bound.tls.clone()).collect(),
        clients: upstreams.iter().filter_map(|upstream| upstream.tls().cloned()).collect(),
    };
    let health = settings.health.map(|address| listen(&Address::Tcp(address))).transpose()?;
    let inside = settings.admin.as_ref().map(listen).transpose()?;
    let metrics = Metrics::default();
    let enforcement = settings.enforcement;
    let loaded = |batch: &mut Batch, writer: &Writer| {
        accepted.recorded(|load| policy_event::loaded(batch, writer, now, enforcement, load));
    };
    let counters = Counters::new(metrics.unrecorded.clone(), accepted.policy.digest.clone());
    if accepted.key_id.is_none() {
        let help =
            "set `policy.public_key`, and sign it with `dpa-sidecar sign`: who can write its file could change it";
        tracing::warn!(help, "the policy is not signed");
    }
    if settings.log.signer.is_none() {
        let help = "set `decision_log.signing_key`: who can write the log's files could write the whole chain anew";
        tracing::warn!(help, "the decision log is chained and its checkpoints are not signed");
    }
    if settings.policy.baseline.is_none() {
        let help = "set `policy.baseline` to the policy that was agreed last";
        tracing::info!(help, "what the policy weakens since the last start is not looked at");
    }
    let (log, closing) = Log::open(&settings.log, writer(&settings), Box::new(move || clock.now()), counters, loaded)?;
    metrics.policy_loaded();
    let in_force = InForce { policy: Arc::new(accepted.policy), since: now, key_id: accepted.key_id };
    let standing = Arc::new(Standing::new(in_force, settings.policy.max_age));
    let (draining, drained) = watch::channel(false);
    let rules = Rules {
        standing: Arc::clone(&standing),
        trust: settings.trust.clone(),
        keys: settings.key_sources.clone(),
        routes: Arc::clone(&settings.routes),
        enforcement: settings.enforcement,
        on_failure: settings.log.on_failure,
    };
    let probes = usize::from(health.is_some()) + usize::from(inside.is_some());
    let connections = connections(settings.limits.connections, settings.workers, addresses.len(), probes);
    let concurrent = settings.limits.concurrent_requests.min(Semaphore::MAX_PERMITS);
    let places = Arc::new(Semaphore::new(concurrent));
    let counts = |(bound, (name, _)): (&Bound, &(String, Address))| ListenerCounts {
        name: name.clone(),
        upstream: bound.upstream,
        tallies: bound.tallies.clone(),
    };
    let scrape = Scrape {
        tallies: log.tallies(),
        metrics: metrics.clone(),
        log: Arc::clone(log.counters()),
        listeners: listeners.iter().zip(&addresses).map(counts).collect(),
        upstreams: upstreams.clone(),
        places: (Arc::clone(&places), concurrent),
        connections,
        standing: Arc::clone(&standing),
        keys: settings.key_sources.clone(),
        tls: all_tls.clone(),
        enforcement: settings.enforcement,
        settings: settings.effective.digest.clone(),
        draining: drained.clone(),
        clock,
        started: now,
    };
    let told = Inside {
        settings: settings.effective.json(),
        policy_file: settings.policy_file.display().to_string(),
        standing: Arc::clone(&standing),
        clock,
    };
    let share = Share {
        rules: Arc::new(rules),
        listeners: Arc::new(listeners),
        upstreams: Arc::new(upstreams),
        storage: settings.storage_location,
        // On egress a token is for the subprocessor, and no proxy stands in front.
        egress_headers: Arc::new(HeaderRules { keeps_tokens: false, trusted: Vec::new(), ..settings.headers.clone() }),
        headers: Arc::new(settings.headers.clone()),
        limits: settings.limits,
        slots: accept::Slots::new(connections),
        places,
        unread: Arc::new(accept::UnreadCounters::new(metrics.clone())),
        metrics,
        clock,
        drain_timeout: settings.drain_timeout,
        draining: drained,
    };
    let again = Arc::new(Again::default());
    let look_again = Arc::clone(&again);
    let policy = PolicyWatch {
        source: PolicySource { path: settings.policy_file.clone(), key: settings.policy.key.clone() },
        baseline: settings
            .policy
            .baseline
            .as_ref()
            .map(|it| Baseline { path: it.value.clone(), policy_file: settings.policy_file.clone() }),
        standing,
        enforcement: settings.enforcement,
        // Before the workers' own: the log takes what it says first.
        recorder: log.recorder(),
        log: Arc::clone(log.counters()),
        metrics: share.metrics.clone(),
        clock,
        demands: {
            let settings = Arc::clone(&settings);
            Arc::new(move |policy| settings.check_against(policy, clock.now()))
        },
    };
    reload::start(all_tls, settings.key_sources.clone(), policy, clock, share.draining.clone(), look_again)
        .map_err(StartError::Thread)?;
    let mut workers = Vec::new();
    for number in 0..settings.workers {
        let recorder = log.recorder();
        let share = share.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Thread)?;
        let thread = std::thread::Builder::new()
            .name(format!("dpa-worker-{number}"))
            .spawn(move || work(&runtime, share, &recorder, number))
            .map_err(StartError::Thread)?;
        workers.push(thread);
    }
    let at = |bound: &Option<sockets::Bound>| bound.as_ref().and_then(|bound| bound.address().ok());
    let (health_at, admin_at) = (at(&health), at(&inside));
    let health = health.map(|socket| (socket, Health::of(scrape, settings.key_sources.clone())));
    let inside = inside.map(|socket| (socket, told));
    let watched = admin::start(health, inside).map_err(StartError::Thread)?;
    Ok(Sidecar { addresses, health: health_at, admin: admin_at, watched, draining, again, workers, closing })
}

fn writer(settings: &Settings) -> Writer {
    Writer {
        service: settings.service.clone(),
        instance: settings.instance.clone(),
        log: Uuid::now_v7(),
        on_failure: settings.log.on_failure.as_str(),
        durability: settings.log.durability.as_str(),
        enforcement: settings.enforcement,
    }
}

/// What a checkpoint says of the policy while none is in force.
const NO_POLICY: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Writes down that the first policy of a start was refused; nothing starts.
///
/// # Errors
///
/// [`OpenError`].
pub fn record_refused(settings: &Settings, refusal: &Refusal, clock: Clock) -> Result<(), OpenError> {
    let (now, enforcement) = (clock.now(), settings.enforcement);
    let counters = Counters::new(Metrics::default().unrecorded, NO_POLICY.into());
    let refused = |batch: &mut Batch, writer: &Writer| {
        policy_event::refused(batch, writer, now, enforcement, &refusal.recorded(None));
    };
    let (log, closing) = Log::open(&settings.log, writer(settings), Box::new(move || clock.now()), counters, refused)?;
    drop(log);
    closing.wait(Instant::now() + settings.log.timeout);
    Ok(())
}

fn listen(address: &Address) -> Result<sockets::Bound, StartError> {
    sockets::Bound::listen(address).map_err(|source| StartError::Listen { address: address.clone(), source })
}

/// Descriptors that are for no connection and that are not open yet: a log that is rotated, files that are read
/// again, names that are looked up.
const SPARE_FILES: usize = 24;

/// Descriptors of a runtime.
const FILES_OF_A_RUNTIME: usize = 4;

/// How many connections there may be: as the settings say, but no more than the process may open files for, with one
/// to the upstream for each. So the log never goes without. Raises the limit of open files as far as it goes.
fn connections(wanted: usize, workers: usize, listeners: usize, probes: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let files = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    // Without a limit, or with one that no machine reaches.
    let Some(files) = files.and_then(|files| usize::try_from(files).ok()) else { return wanted };
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    // One more is accepted before the oldest is closed.
    let probes = probes * (admin::MOST_CONNECTIONS + 1);
    let taken = open + workers * (listeners + FILES_OF_A_RUNTIME) + 2 * FILES_OF_A_RUNTIME + probes + SPARE_FILES;
    let possible = (files.saturating_sub(taken) / 2).max(workers * listeners);
    if wanted > possible {
        let help = "raise the limit of open files (`ulimit -n`), or lower `limits.connections`";
        tracing::warn!(files, connections = possible, help, "fewer connections than `limits.connections` are taken");
    }
    wanted.min(possible)
}

/// One worker thread: its doors, its upstream connections, its end of the log. Gives back until when the log is waited
/// for.
fn work(runtime: &tokio::runtime::Runtime, share: Share, recorder: &Recorder, number: usize) -> Instant {
    let local = LocalSet::new();
    let deadline = local.block_on(runtime, async {
        let handing_over = tokio::task::spawn_local(recorder.clone().hand_over());
        if number == 0 {
            tokio::task::spawn_local(sum_up_unread(Arc::clone(&share.unread), recorder.clone(), share.clock));
        }
        let upstreams: Vec<_> = share.upstreams.iter().map(|to| Rc::new(Upstream::new(Arc::clone(to)))).collect();
        for upstream in &upstreams {
            tokio::task::spawn_local(Rc::clone(upstream).tend());
        }
        let mut doors = tokio::task::JoinSet::new();
        for Bound { socket, tls, upstream, egress, tallies } in share.listeners.iter() {
            let (Some(upstream), Some(tally)) = (upstreams.get(*upstream), tallies.get(number)) else { continue };
            let listener = match socket.share() {
                Ok(listener) => listener,
                Err(error) => {
                    tracing::error!(%error, "a worker cannot share a listener");
                    continue;
                }
            };
            let door = Rc::new(Proxy {
                gate: Gate::new(Arc::clone(&share.rules), recorder.clone(), share.metrics.clone()),
                upstream: Rc::clone(upstream),
                places: Arc::clone(&share.places),
                // An upstream on egress has none: the policy says where a subprocessor keeps data.
                storage: upstream.storage_location().unwrap_or(share.storage),
                headers: Arc::clone(if egress.is_some() { &share.egress_headers } else { &share.headers }),
                egress: egress.clone(),
                clock: share.clock,
                tally: Arc::clone(tally),
            });
            let (slots, unread) = (share.slots.clone(), Arc::clone(&share.unread));
            let (tls, draining) = (tls.clone(), share.draining.clone());
            doors.spawn_local(accept::serve(listener, tls, door, share.limits, slots, unread, draining));
        }
        let mut draining = share.draining.clone();
        let deadline = async {
            accept::drain_begins(&mut draining).await;
            tokio::time::sleep(share.drain_timeout).await;
        };
        tokio::select! {
            () = async { while doors.join_next().await.is_some() {} } => {}
            () = deadline => {
                tracing::warn!("connections were cut: they outlasted `drain_timeout`");
                recorder.cut();
            }
        }
        doors.shutdown().await;
        // Whoever ends last has the last ones.
        note_unread(&share.unread, recorder, share.clock);
        let deadline = recorder.deadline();
        recorder.finish(handing_over, deadline).await;
        deadline
    });
    // What was cut writes its outcome when it is dropped, so the last flush comes after that.
    drop(local);
    runtime.block_on(recorder.flush_all(deadline));
    deadline
}

async fn sum_up_unread(unread: Arc<accept::UnreadCounters>, recorder: Recorder, clock: Clock) {
    let mut second = tokio::time::interval(Duration::from_secs(1));
    loop {
        second.tick().await;
        note_unread(&unread, &recorder, clock);
    }
}

fn note_unread(unread: &accept::UnreadCounters, recorder: &Recorder, clock: Clock) {
    if let Some(sum) = unread.take() {
        let now = clock.now();
        recorder.note(|batch| entry::unread(batch, recorder.writer(), now, sum));
    }
}

/// The signals that a sidecar hears. From when they are made on, none of them ends the process by itself.
#[derive(Debug)]
pub struct Signals {
    runtime: tokio::runtime::Runtime,
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Begins to listen to SIGTERM, SIGINT and SIGHUP: before the sidecar starts, so that none comes too early.
    ///
    /// # Errors
    ///
    /// If the runtime of the calling thread cannot be made.
    pub fn listen() -> Result<Self, StartError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Thread)?;
        let entered = runtime.enter();
        let heard = |kind| signal(kind).map_err(StartError::Thread);
        let terminate = heard(SignalKind::terminate())?;
        let (interrupt, hangup) = (heard(SignalKind::interrupt())?, heard(SignalKind::hangup())?);
        drop(entered);
        Ok(Self { runtime, terminate, interrupt, hangup })
    }
}

impl Sidecar {
    /// Serves until SIGTERM or SIGINT, then drains: not ready, answers what is under way, writes the log
    /// last. A second signal stops at once. SIGHUP has the policy, certificates and keys read again.
    pub fn run_until_stopped(self, signals: Signals) {
        let Signals { runtime, mut terminate, mut interrupt, mut hangup } = signals;
        runtime.block_on(async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => break,
                    _ = interrupt.recv() => break,
                    _ = hangup.recv() => {
                        tracing::info!("SIGHUP: the policy, certificates and keys are read again");
                        self.again.now();
                    }
                }
            }
            tracing::info!("stopping: waiting for the requests under way; a second signal stops at once");
            let stopped = tokio::task::spawn_blocking(move || self.stop());
            tokio::select! {
                _ = stopped => {}
                _ = terminate.recv() => std::process::exit(1),
                _ = interrupt.recv() => std::process::exit(1),
            }
        });
    }

    /// Drains and returns when the last record is with the kernel.
    pub fn stop(self) {
        let Self { addresses: _, health: _, admin: _, watched, draining, again: _, workers, closing } = self;
        let _no_workers = draining.send(true);
        let mut deadline = None;
        for worker in workers {
            match worker.join() {
                Ok(until) => deadline = deadline.max(Some(until)),
                Err(_) => tracing::error!("a worker thread panicked"),
            }
        }
        closing.wait(deadline.unwrap_or_else(Instant::now));
        // Until then it says that the sidecar is stopping.
        drop(watched);
    }
}
