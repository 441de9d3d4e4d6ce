//! Builds the steps from the settings and runs them until they are drained.

use std::io;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use http::HeaderName;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::sync::watch;
use tokio::task::LocalSet;
use uuid::Uuid;

use crate::accept;
use crate::accept::Limits;
use crate::admin;
use crate::admin::Health;
use crate::config::Settings;
use crate::doors::proxy::Clock;
use crate::doors::proxy::Proxy;
use crate::forward::Upstream;
use crate::forward::UpstreamSettings;
use crate::gate::Gate;
use crate::gate::Rules;
use crate::identify::Way;
use crate::policy::Policy;
use crate::policy::terms::Location;
use crate::record::Batch;
use crate::record::entry;
use crate::record::entry::Writer;
use crate::record::log::Closing;
use crate::record::log::Counters;
use crate::record::log::Log;
use crate::record::log::OpenError;
use crate::record::recorder::Recorder;
use crate::reload;
use crate::telemetry::Metrics;
use crate::tls;

/// Why a sidecar cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address is taken, or not of this machine.
    #[error("cannot listen on `{address}`")]
    Listen {
        /// The address.
        address: SocketAddr,
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
    pub addresses: Vec<(String, SocketAddr)>,
    health: Option<(TcpListener, Health)>,
    draining: watch::Sender<bool>,
    workers: Vec<JoinHandle<()>>,
    closing: Closing,
}

/// What each worker gets.
#[derive(Clone)]
struct Share {
    rules: Arc<Rules>,
    listeners: Arc<Vec<Bound>>,
    upstreams: Arc<Vec<(UpstreamSettings, Option<Arc<tls::Client>>)>>,
    storage: Location,
    limits: Limits,
    slots: accept::Slots,
    metrics: Metrics,
    unread: Arc<accept::UnreadCounters>,
    clock: Clock,
    drain_timeout: Duration,
    draining: watch::Receiver<bool>,
}

/// A listener that is bound.
struct Bound {
    socket: TcpListener,
    tls: Option<Arc<tls::Server>>,
    /// Place of its upstream.
    upstream: usize,
}

/// Starts a sidecar. When it returns, the sockets are bound, the log is open and the workers run.
///
/// # Errors
///
/// [`StartError`].
pub fn start(settings: Settings, policy: Policy, clock: Clock) -> Result<Sidecar, StartError> {
    let now = clock.now();
    let mut addresses = Vec::new();
    let mut listeners = Vec::new();
    for listener in &settings.listeners {
        let socket = listen(listener.address)?;
        let address = socket.local_addr().unwrap_or(listener.address);
        addresses.push((listener.name.clone(), address));
        let load = |tls| tls::Server::load(&listener.name, tls).map(Arc::new);
        let tls = listener.tls.clone().map(load).transpose()?;
        listeners.push(Bound { socket, tls, upstream: listener.upstream });
    }
    let mut upstreams = Vec::new();
    for upstream in settings.upstreams {
        let load = |tls| tls::Client::load(&upstream.name, tls).map(Arc::new);
        let tls = upstream.tls.clone().map(load).transpose()?;
        upstreams.push((upstream, tls));
    }
    let all_tls = tls::All {
        servers: listeners.iter().filter_map(|bound| bound.tls.clone()).collect(),
        clients: upstreams.iter().filter_map(|(_, tls)| tls.clone()).collect(),
    };
    let health_socket = settings.health.map(listen).transpose()?;
    let writer = Writer {
        service: settings.service,
        instance: settings.instance,
        log: Uuid::now_v7(),
        on_failure: settings.log.on_failure.as_str(),
        durability: settings.log.durability.as_str(),
    };
    let metrics = Metrics::default();
    let enforcement = settings.enforcement;
    let loaded = |batch: &mut Batch, writer: &Writer| entry::policy_event(batch, writer, now, &policy, enforcement);
    let counters = Counters::new(metrics.unrecorded.clone(), policy.digest.clone());
    if settings.log.signer.is_none() {
        let help = "set `decision_log.signing_key`: who can write the log's files could write the whole chain anew";
        tracing::warn!(help, "the decision log is chained and its checkpoints are not signed");
    }
    let (log, closing) = Log::open(&settings.log, writer, Box::new(move || clock.now()), counters, loaded)?;
    let (draining, drained) = watch::channel(false);
    let health = health_socket.map(|socket| {
        let policy = format!("{} revision {} digest {}", policy.name, policy.revision, policy.digest);
        let keys = settings.key_sources.clone();
        let (log, metrics, tls) = (Arc::clone(log.counters()), metrics.clone(), all_tls.clone());
        (socket, Health { draining: drained.clone(), log, metrics, policy, tls, clock, keys })
    });
    let rules = Rules {
        policy: Arc::new(policy),
        trust: settings.trust,
        keys: settings.key_sources.clone(),
        routes: settings.routes,
        enforcement: settings.enforcement,
        on_failure: settings.log.on_failure,
    };
    let share = Share {
        rules: Arc::new(rules),
        listeners: Arc::new(listeners),
        upstreams: Arc::new(upstreams),
        storage: settings.storage_location,
        limits: settings.limits,
        slots: accept::Slots::new(settings.limits.connections),
        unread: Arc::new(accept::UnreadCounters::new(metrics.clone())),
        metrics,
        clock,
        drain_timeout: settings.drain_timeout,
        draining: drained,
    };
    reload::start(all_tls, settings.key_sources, clock, share.draining.clone()).map_err(StartError::Thread)?;
    let mut workers = Vec::new();
    for number in 0..settings.workers {
        let recorder = log.recorder();
        let share = share.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Thread)?;
        let thread = std::thread::Builder::new()
            .name(format!("dpa-worker-{number}"))
            .spawn(move || work(&runtime, share, &recorder, number == 0))
            .map_err(StartError::Thread)?;
        workers.push(thread);
    }
    Ok(Sidecar { addresses, health, draining, workers, closing })
}

/// Bytes of an answer that the kernel takes over before they are on their way.
#[cfg(target_os = "linux")]
const UNSENT: u32 = 64 * 1024;

/// Binds with a backlog that outlasts a burst: connections that do not fit wait a second to try again.
fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    let bind = || {
        let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        // Accepted connections have it from here: what a caller does not take piles up where it is seen.
        #[cfg(target_os = "linux")]
        socket.set_tcp_notsent_lowat(UNSENT)?;
        socket.bind(&address.into())?;
        socket.listen(4096)?;
        Ok(socket.into())
    };
    bind().map_err(|source| StartError::Listen { address, source })
}

/// One worker thread: its doors, its upstream connections, its end of the log.
fn work(runtime: &tokio::runtime::Runtime, share: Share, recorder: &Recorder, is_first: bool) {
    let local = LocalSet::new();
    local.block_on(runtime, async {
        let handing_over = tokio::task::spawn_local(recorder.clone().hand_over());
        if is_first {
            tokio::task::spawn_local(sum_up_unread(Arc::clone(&share.unread), recorder.clone(), share.clock));
        }
        let upstream = |(settings, tls): (UpstreamSettings, _)| Rc::new(Upstream::new(settings, tls));
        let upstreams: Vec<Rc<Upstream>> = share.upstreams.iter().cloned().map(upstream).collect();
        tokio::task::spawn_local(reap(upstreams.clone()));
        let mut doors = tokio::task::JoinSet::new();
        for Bound { socket, tls, upstream } in share.listeners.iter() {
            let Some(upstream) = upstreams.get(*upstream) else { continue };
            let listener = match socket.try_clone().and_then(tokio::net::TcpListener::from_std) {
                Ok(listener) => listener,
                Err(error) => {
                    tracing::error!(%error, "a worker cannot share a listener");
                    continue;
                }
            };
            let door = Rc::new(Proxy {
                gate: Gate::new(Arc::clone(&share.rules), recorder.clone(), share.metrics.clone()),
                upstream: Rc::clone(upstream),
                storage: upstream.storage_location().unwrap_or(share.storage),
                identity_headers: identity_headers(&share.rules),
                keeps_tokens: share.rules.trust.tokens().is_some_and(|tokens| !tokens.are_forwarded),
                clock: share.clock,
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
            () = deadline => tracing::warn!("connections were cut: they outlasted `drain_timeout`"),
        }
        doors.shutdown().await;
        if is_first {
            note_unread(&share.unread, recorder, share.clock);
        }
        recorder.finish(handing_over).await;
    });
    // What was cut writes its outcome when it is dropped, so the last flush comes after that.
    drop(local);
    runtime.block_on(recorder.flush_all());
}

fn identity_headers(rules: &Rules) -> Vec<HeaderName> {
    let name = |way: &Way| match way {
        Way::Header { name, .. } => Some(name.clone()),
        Way::Certificate { .. } | Way::Tokens(_) | Way::ForwardedCertificate { .. } | Way::Stated { .. } => None,
    };
    rules.trust.ways.iter().filter_map(name).collect()
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

/// Closes what has been idle for too long, also where no request comes by to notice.
async fn reap(upstreams: Vec<Rc<Upstream>>) {
    let mut second = tokio::time::interval(Duration::from_secs(1));
    loop {
        second.tick().await;
        upstreams.iter().for_each(|upstream| upstream.reap());
    }
}

impl Sidecar {
    /// Serves until SIGTERM or SIGINT, then drains: not ready, answers what is under way, writes the log
    /// last. A second signal stops at once.
    ///
    /// # Errors
    ///
    /// If the runtime of the calling thread cannot be made.
    pub fn run_until_stopped(mut self) -> Result<(), StartError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Thread)?;
        let local = LocalSet::new();
        let health = self.health.take();
        let finished = local.block_on(&runtime, async move {
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            if let Some((socket, health)) = health {
                let listener = tokio::net::TcpListener::from_std(socket)?;
                tokio::task::spawn_local(admin::serve(listener, health));
            }
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            tracing::info!("stopping: waiting for the requests under way; a second signal stops at once");
            let stopped = tokio::task::spawn_blocking(move || self.stop());
            tokio::select! {
                _ = stopped => Ok(()),
                _ = terminate.recv() => std::process::exit(1),
                _ = interrupt.recv() => std::process::exit(1),
            }
        });
        finished.map_err(StartError::Thread)
    }

    /// Drains and returns when the last record is with the kernel.
    pub fn stop(self) {
        let Self { addresses: _, health, draining, workers, closing } = self;
        drop(health);
        let _no_workers = draining.send(true);
        for worker in workers {
            if worker.join().is_err() {
                tracing::error!("a worker thread panicked");
            }
        }
        closing.wait();
    }
}
