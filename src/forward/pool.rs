//! Connections to a data service: each worker keeps its own, all workers together keep to the limit and share what
//! is known of whether it can be reached.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use socket2::TcpKeepalive;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::Address;
use super::ForwardError;
use super::Protocol;
use super::UpstreamSettings;
use super::relay::Outgoing;
use super::shared::Shared;
use super::shared::Sharing;
use crate::policy::terms::Location;
use crate::sockets::Sips;
use crate::sockets::Thirst;
use crate::tls;

/// How long a connection from the pool may take to be ready.
const READY_TIME: Duration = Duration::from_millis(100);

/// After so many failures to connect in a row an upstream counts as down.
const FAILURES: u32 = 3;

/// How long after a failure an upstream that is down is tried again: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Fewest bytes that a connection buffers in each direction: the library demands them.
pub const LEAST_BUFFER: usize = 8 * 1024;

/// A connection for which workers wait is given up after so many exchanges, so that another worker gets its turn.
const TURNS: u32 = 32;

/// How the other end of a shared connection is found to be gone while its streams are silent: asked after so long, so
/// often, so many times. By the kernel: servers of gRPC close upon those who send more than a `PING` in five minutes.
const ASKED_AFTER: Duration = Duration::from_secs(30);
const ASKED_EVERY: Duration = Duration::from_secs(10);
const ASKED_TIMES: u32 = 3;

/// A data service, as all workers see it.
#[derive(Debug)]
pub struct Destination {
    settings: UpstreamSettings,
    tls: Option<Arc<tls::Client>>,
    /// One for each connection that may be made.
    places: Arc<Semaphore>,
    /// Requests that wait for a connection.
    waiting: AtomicUsize,
    /// Told when one begins to wait: another worker may have a connection that it does not use.
    wanted: Notify,
    reach: Mutex<Reach>,
}

/// Whether a data service can be reached.
#[derive(Debug, Default)]
struct Reach {
    /// Failures to connect since the last success.
    failures: u32,
    /// Whether a probe is under way, on one of the workers.
    is_probed: bool,
    /// How often it was reached, and was not, since the start of the process.
    connects: (u64, u64),
}

/// A data service at one moment, for the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glance {
    /// Connections to it, those that are being made among them.
    pub connections: usize,
    /// Requests that wait for one.
    pub waiting: usize,
    /// Whether requests to it are refused, since it cannot be reached.
    pub is_down: bool,
    /// Connections that came about, since the start of the process.
    pub reached: u64,
    /// Those that did not.
    pub missed: u64,
}

impl Destination {
    /// Nobody has tried to reach it yet.
    #[must_use]
    pub fn new(settings: UpstreamSettings, tls: Option<Arc<tls::Client>>) -> Self {
        Self {
            places: Arc::new(Semaphore::new(settings.max_connections.min(Semaphore::MAX_PERMITS))),
            settings,
            tls,
            waiting: AtomicUsize::new(0),
            wanted: Notify::new(),
            reach: Mutex::default(),
        }
    }

    /// How it is known, if it is spoken to over TLS.
    #[must_use]
    pub fn tls(&self) -> Option<&Arc<tls::Client>> {
        self.tls.as_ref()
    }

    /// Its settings.
    #[must_use]
    pub fn settings(&self) -> &UpstreamSettings {
        &self.settings
    }

    /// How it is at this moment.
    #[must_use]
    pub fn glance(&self) -> Glance {
        let most = self.settings.max_connections.min(Semaphore::MAX_PERMITS);
        let (is_down, (reached, missed)) = (self.is_down(), self.reach().connects);
        Glance {
            connections: most.saturating_sub(self.places.available_permits()),
            waiting: self.waiting.load(Ordering::Relaxed),
            is_down,
            reached,
            missed,
        }
    }

    fn reach(&self) -> MutexGuard<'_, Reach> {
        self.reach.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_down(&self) -> bool {
        self.reach().failures >= FAILURES
    }

    /// It was reached.
    fn reached(&self) {
        let mut reach = self.reach();
        reach.connects.0 += 1;
        let failures = std::mem::take(&mut reach.failures);
        drop(reach);
        if failures >= FAILURES {
            tracing::info!(upstream = self.settings.name, "an upstream can be reached again");
        }
    }

    /// It was not reached. Whether a probe has to begin.
    fn missed(&self, error: &ForwardError) -> bool {
        let mut reach = self.reach();
        reach.failures = reach.failures.saturating_add(1);
        reach.connects.1 += 1;
        let (is_down, is_new) = (reach.failures >= FAILURES, reach.failures == FAILURES);
        let begins = is_down && !std::mem::replace(&mut reach.is_probed, is_down);
        drop(reach);
        if is_new {
            let error = crate::telemetry::chain(error);
            tracing::warn!(upstream = self.settings.name, %error, "an upstream cannot be reached: requests to it are refused until it can");
        }
        begins
    }

    /// Whether the probe has still something to find out; else it is over.
    fn is_sought(&self) -> bool {
        let mut reach = self.reach();
        reach.is_probed = reach.failures >= FAILURES;
        reach.is_probed
    }

    pub(super) fn place(&self) -> Option<Place> {
        Arc::clone(&self.places).try_acquire_owned().ok().map(Arc::new)
    }

    pub(super) fn places(&self) -> &Arc<Semaphore> {
        &self.places
    }
}

/// The place of one connection among those that may be made; free again when the connection is closed.
pub(super) type Place = Arc<OwnedSemaphorePermit>;

/// A connection to the upstream and the task that drives it. Dropped, it is closed at once: nothing more of a
/// request goes on after its outcome is recorded.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) sender: SendRequest<Outgoing>,
    /// Of who takes the answer.
    pub(super) thirst: Thirst,
    task: AbortHandle,
    /// Which renewal of the upstream's TLS it came about with.
    renewal: u64,
    /// How often it was kept after an exchange.
    turns: u32,
    /// Held by the task too: what has been aborted is not closed yet.
    _place: Place,
}

impl Connection {
    /// Whether nothing was ever sent on it.
    pub(super) fn is_fresh(&self) -> bool {
        self.turns == 0
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One worker's connections to one upstream.
#[derive(Debug)]
pub struct Upstream {
    to: Arc<Destination>,
    /// The last one used is at the end.
    idle: RefCell<Vec<Idle>>,
    /// Requests of this worker that wait for a connection, the first one first.
    waiters: RefCell<VecDeque<oneshot::Sender<Connection>>>,
    /// Connections that many exchanges share, if it speaks HTTP/2.
    sharing: Sharing,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
}

/// What a request got that needs a connection.
enum Turn {
    Used(Connection),
    Fresh(Place),
}

impl Upstream {
    /// No connections yet.
    #[must_use]
    pub fn new(to: Arc<Destination>) -> Self {
        Self { to, idle: RefCell::default(), waiters: RefCell::default(), sharing: Sharing::default() }
    }

    /// Where it keeps data, if the settings say so.
    #[must_use]
    pub fn storage_location(&self) -> Option<Location> {
        self.to.settings.storage_location
    }

    /// Where it leads, and how.
    #[must_use]
    pub fn settings(&self) -> &UpstreamSettings {
        &self.to.settings
    }

    pub(super) fn to(&self) -> &Destination {
        &self.to
    }

    pub(super) fn sharing(&self) -> &Sharing {
        &self.sharing
    }

    /// A connection that was kept, or a fresh one.
    pub(super) async fn connection(self: &Rc<Self>) -> Result<Connection, ForwardError> {
        let mut deadline = None;
        loop {
            let turn = match self.take_idle() {
                Some(connection) => Turn::Used(connection),
                None if self.to.is_down() => return Err(ForwardError::Down { name: self.settings().name.clone() }),
                None => match self.to.place() {
                    Some(place) => Turn::Fresh(place),
                    None => {
                        let patience = self.settings().connect_timeout;
                        self.wait(*deadline.get_or_insert_with(|| Instant::now() + patience)).await?
                    }
                },
            };
            match turn {
                Turn::Used(mut connection) => {
                    if self.is_current(&connection) && is_ready(&mut connection).await {
                        return Ok(connection);
                    }
                }
                // In a box: it is large, and most requests have no need of it.
                Turn::Fresh(place) => return Box::pin(self.fresh(place)).await,
            }
        }
    }

    /// Waits until a connection or a place comes free.
    async fn wait(&self, deadline: Instant) -> Result<Turn, ForwardError> {
        // Before the channel, so that it is dropped after it, and finds its own end closed.
        let _waiting = Waiting::begin(self);
        let (give, mut given) = oneshot::channel();
        self.waiters.borrow_mut().push_back(give);
        let place = Arc::clone(&self.to.places).acquire_owned();
        let overloaded = || ForwardError::Overloaded { name: self.settings().name.clone() };
        tokio::select! {
            biased;
            Ok(connection) = &mut given => Ok(Turn::Used(connection)),
            place = place => place.map(|place| Turn::Fresh(Arc::new(place))).map_err(|_closed| overloaded()),
            () = tokio::time::sleep_until(deadline.into()) => Err(overloaded()),
        }
    }

    async fn fresh(self: &Rc<Self>, place: Place) -> Result<Connection, ForwardError> {
        let connected = self.connect(place).await;
        self.learn(connected.as_ref().err());
        connected
    }

    /// The same for a connection that many exchanges share.
    pub(super) async fn fresh_shared(self: &Rc<Self>, place: Place) -> Result<Rc<Shared>, ForwardError> {
        let connected = self.connect_shared(place).await;
        self.learn(connected.as_ref().err());
        connected
    }

    /// What it means for others that it was reached, or was not.
    fn learn(self: &Rc<Self>, missed: Option<&ForwardError>) {
        match missed {
            None => self.to.reached(),
            Some(error) if self.to.missed(error) => drop(tokio::task::spawn_local(Rc::clone(self).probe())),
            Some(_) => {}
        }
    }

    /// Tries to connect until somebody has: one connection at a time, of the whole process.
    async fn probe(self: Rc<Self>) {
        let mut pause = FIRST_PAUSE;
        loop {
            tokio::time::sleep(pause).await;
            if !self.to.is_sought() {
                return;
            }
            if let Some(place) = self.to.place() {
                match self.settings().protocol {
                    Protocol::Http1 => {
                        if let Ok(connection) = self.connect(place).await {
                            self.to.reached();
                            self.keep(connection);
                        }
                    }
                    Protocol::Http2 => {
                        if let Ok(connection) = self.connect_shared(place).await {
                            self.to.reached();
                            self.share(connection);
                        }
                    }
                }
            }
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    async fn connect(&self, place: Place) -> Result<Connection, ForwardError> {
        // TLS is part of it: both have to stand within one `connect_timeout`.
        let deadline = tokio::time::Instant::now() + self.settings().connect_timeout;
        let stream = match &self.settings().address {
            Address::Unix(path) => return self.speak(self.unix(path, deadline).await?, 0, place).await,
            Address::Tcp(address) => self.tcp(address, deadline).await?,
        };
        let Some(tls) = &self.to.tls else { return self.speak(stream, 0, place).await };
        // Before the handshake: what is renewed while it goes on makes the connection one of yesterday.
        let renewal = tls.renewal();
        self.speak(self.shake_hands(tls, stream, deadline).await?, renewal, place).await
    }

    /// The same, up to the settings that the upstream sends first.
    async fn connect_shared(&self, place: Place) -> Result<Rc<Shared>, ForwardError> {
        let deadline = tokio::time::Instant::now() + self.settings().connect_timeout;
        let settings = self.settings();
        let shared = match &settings.address {
            Address::Unix(path) => Shared::over(self.unix(path, deadline).await?, 0, place, deadline, settings).await,
            Address::Tcp(address) => {
                let stream = self.tcp(address, deadline).await?;
                let keepalive = TcpKeepalive::new().with_time(ASKED_AFTER).with_interval(ASKED_EVERY);
                let asked = SockRef::from(&stream).set_tcp_keepalive(&keepalive.with_retries(ASKED_TIMES));
                asked.map_err(|source| ForwardError::Connect { name: self.name(), source })?;
                match &self.to.tls {
                    None => Shared::over(stream, 0, place, deadline, settings).await,
                    Some(tls) => {
                        let renewal = tls.renewal();
                        Shared::over(self.shake_hands(tls, stream, deadline).await?, renewal, place, deadline, settings)
                            .await
                    }
                }
            }
        };
        shared.map_err(|source| ForwardError::Connect { name: self.name(), source })
    }

    async fn unix(&self, path: &Path, deadline: tokio::time::Instant) -> Result<UnixStream, ForwardError> {
        let stream = in_time(deadline, UnixStream::connect(path)).await;
        stream.map_err(|source| ForwardError::Connect { name: self.name(), source })
    }

    async fn tcp(&self, address: &str, deadline: tokio::time::Instant) -> Result<TcpStream, ForwardError> {
        let stream = in_time(deadline, TcpStream::connect(address)).await;
        let stream = stream.and_then(|stream| stream.set_nodelay(true).map(|()| stream));
        stream.map_err(|source| ForwardError::Connect { name: self.name(), source })
    }

    async fn shake_hands(
        &self,
        tls: &tls::Client,
        stream: TcpStream,
        deadline: tokio::time::Instant,
    ) -> Result<tls::ToUpstream, ForwardError> {
        let stream = in_time(deadline, tls.connect(stream)).await;
        stream.map_err(|source| ForwardError::Tls { name: self.name(), source })
    }

    /// HTTP/1.1 on a fresh connection.
    async fn speak<S>(&self, stream: S, renewal: u64, place: Place) -> Result<Connection, ForwardError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut http = hyper::client::conn::http1::Builder::new();
        http.max_buf_size(self.settings().header_bytes.max(LEAST_BUFFER));
        let stream = Sips::of(stream);
        let thirst = stream.thirst();
        let (sender, connection) = http
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| ForwardError::Broken { name: self.name(), source: error.into() })?;
        let held = Arc::clone(&place);
        let task = tokio::task::spawn_local(async move {
            // Its error is also the error of the request that is under way.
            let _told_elsewhere = connection.with_upgrades().await;
            drop(held);
        });
        Ok(Connection { sender, thirst, task: task.abort_handle(), renewal, turns: 0, _place: place })
    }

    fn take_idle(&self) -> Option<Connection> {
        loop {
            let Idle { connection, since } = self.idle.borrow_mut().pop()?;
            if since.elapsed() < self.settings().idle_timeout {
                return Some(connection);
            }
        }
    }

    /// Gives a connection whose exchange has ended to the next request of this worker. If only others wait, it is
    /// closed: a connection stays with its worker, and only its place can move.
    pub(super) fn keep(&self, mut connection: Connection) {
        if connection.sender.is_closed() {
            return;
        }
        connection.turns = connection.turns.saturating_add(1);
        let mut waiters = self.waiters.borrow_mut();
        let is_wanted_elsewhere = self.is_wanted_elsewhere(waiters.len());
        if is_wanted_elsewhere && connection.turns.is_multiple_of(TURNS) {
            return;
        }
        while let Some(waiter) = waiters.pop_front() {
            match waiter.send(connection) {
                Ok(()) => return,
                Err(gone) => connection = gone,
            }
        }
        if !is_wanted_elsewhere {
            self.idle.borrow_mut().push(Idle { connection, since: Instant::now() });
        }
    }

    /// Whether more wait for a connection than these of this worker.
    pub(super) fn is_wanted_elsewhere(&self, here: usize) -> bool {
        self.to.waiting.load(Ordering::Relaxed) > here
    }

    /// Whether its other end was verified with the authorities that are in force, and saw the certificate that is.
    fn is_current(&self, connection: &Connection) -> bool {
        self.is_of_today(connection.renewal)
    }

    /// Whether nothing was renewed since that renewal.
    pub(super) fn is_of_today(&self, renewal: u64) -> bool {
        self.to.tls.as_ref().is_none_or(|tls| tls.renewal() == renewal)
    }

    /// Closes what has been idle for too long, and what another worker needs more; for good.
    pub async fn tend(self: Rc<Self>) {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        loop {
            let mut wanted = std::pin::pin!(self.to.wanted.notified());
            // From here on nothing is missed.
            wanted.as_mut().enable();
            if self.to.waiting.load(Ordering::Relaxed) > 0 {
                let mut idle = self.idle.borrow_mut();
                let oldest = if idle.is_empty() { None } else { Some(idle.remove(0)) };
                drop(idle);
                drop(oldest);
                self.yield_shared();
            }
            tokio::select! {
                _ = second.tick() => {
                    self.reap();
                    self.reap_shared();
                }
                () = wanted => {}
            }
        }
    }

    /// Closes connections that have been idle for `idle_timeout` or whose TLS was renewed since, and forgets those
    /// that the upstream closed.
    fn reap(&self) {
        self.idle.borrow_mut().retain(|Idle { connection, since }| {
            let is_young = since.elapsed() < self.settings().idle_timeout;
            is_young && !connection.sender.is_closed() && self.is_current(connection)
        });
    }
}

/// A request that waits for a connection, until it is dropped.
pub(super) struct Waiting<'u>(&'u Upstream);

impl<'u> Waiting<'u> {
    pub(super) fn begin(upstream: &'u Upstream) -> Self {
        upstream.to.waiting.fetch_add(1, Ordering::Relaxed);
        upstream.to.wanted.notify_waiters();
        Self(upstream)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.to.waiting.fetch_sub(1, Ordering::Relaxed);
        self.0.waiters.borrow_mut().retain(|waiter| !waiter.is_closed());
    }
}

/// Both bodies of its last exchange have ended, so it is ready within a turn of the loop, or closed, or stuck: an
/// upstream that answered without reading leaves bytes that nobody takes.
async fn is_ready(connection: &mut Connection) -> bool {
    matches!(tokio::time::timeout(READY_TIME, connection.sender.ready()).await, Ok(Ok(())))
}

pub(super) async fn in_time<T>(
    deadline: tokio::time::Instant,
    work: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    tokio::time::timeout_at(deadline, work).await.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use super::super::Protocol;
    use super::*;

    /// It was removed with the next one, and until then counted as one of this worker's.
    #[test]
    fn a_waiter_that_gave_up_was_removed_one_too_late() {
        for protocol in [Protocol::Http1, Protocol::Http2] {
            let settings = UpstreamSettings {
                name: "app".to_owned(),
                address: Address::Tcp("127.0.0.1:9".to_owned()),
                protocol,
                storage_location: None,
                connect_timeout: Duration::from_millis(1),
                response_timeout: None,
                idle_timeout: Duration::from_secs(60),
                max_connections: 1,
                header_bytes: LEAST_BUFFER,
                tls: None,
            };
            let upstream = Rc::new(Upstream::new(Arc::new(Destination::new(settings, None))));
            let place = upstream.to.place();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
            let gave_up = runtime.map(|runtime| {
                runtime.block_on(async {
                    match protocol {
                        Protocol::Http1 => upstream.connection().await.err(),
                        Protocol::Http2 => upstream.stream().await.err(),
                    }
                })
            });
            assert!(matches!(gave_up, Ok(Some(ForwardError::Overloaded { .. }))), "{protocol:?}: {gave_up:?}");
            let waiting = (
                upstream.waiters.borrow().len(),
                upstream.sharing.waiters(),
                upstream.to.waiting.load(Ordering::Relaxed),
            );
            assert_eq!(waiting, (0, 0, 0), "{protocol:?}");
            drop(place);
        }
    }
}
