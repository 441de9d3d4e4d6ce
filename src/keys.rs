//! Key sets of the issuers of tokens: read from files, fetched from the issuers, renewed while requests go on.
//!
//! What is good stays until something good replaces it: an issuer that is down, and an answer that is no key
//! set, change nothing.

use std::error::Error;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::HeaderValue;
use http::Request;
use http::StatusCode;
use http::Uri;
use http::header;
use http_body_util::BodyExt as _;
use http_body_util::Empty;
use http_body_util::Limited;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject as _;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::sync::watch;

use crate::files;
use crate::identify::key_set::KeySet;
use crate::identify::key_set::KeySetError;
use crate::telemetry::chain;
use crate::yaml::At;

/// How long a fetched set counts as fresh, give or take a tenth, so that many sidecars do not ask at once.
const REFRESH: Duration = Duration::from_secs(5 * 60);

/// How soon a fetch that failed is tried again, and how soon requests with unknown keys may cause another
/// one: made-up tokens must not become a load on the issuer.
const AGAIN: Duration = Duration::from_secs(30);

/// How long a request waits for keys that are being fetched.
const WAIT: Duration = Duration::from_secs(1);

/// How long a fetch may take, from the look-up of the name to the last byte.
const FETCH_TIME: Duration = Duration::from_secs(5);

/// Largest key set. A key has less than 2 KiB.
pub const MAX_BYTES: u64 = 1024 * 1024;

/// Where the keys of an issuer are.
#[derive(Clone, Debug)]
pub enum Origin {
    /// In a file.
    File(PathBuf),
    /// At a URL, `https` or on this machine.
    Url {
        /// The URL.
        url: Uri,
        /// Certificates (PEM) of the authorities that its server is believed by; none: the system's.
        ca: Option<PathBuf>,
    },
}

/// Why there are no new keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file.
    #[error("cannot read `{path}`")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// No certificate in the file of authorities.
    #[error("`{path}` has no certificate in PEM")]
    NoAuthority {
        /// The file.
        path: String,
    },
    /// What was read.
    #[error("it cannot be used as a key set")]
    KeySet(#[from] KeySetError),
    /// The host has no name that a certificate could have.
    #[error("the host of the URL is no name for a certificate")]
    Name,
    /// No connection, or no TLS on it.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// The TLS library refuses the settings.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// The exchange broke off.
    #[error("the exchange broke off")]
    Broken(#[from] hyper::Error),
    /// The request cannot be built of this URL.
    #[error("the URL cannot be asked for")]
    Url(#[from] http::Error),
    /// Another status than 200; redirects are not followed.
    #[error("it answered {0}, not 200")]
    Status(StatusCode),
    /// The body broke off, or has more than 1 MiB.
    #[error("the body broke off, or is larger than 1 MiB")]
    Body(#[source] Box<dyn Error + Send + Sync>),
    /// It took too long.
    #[error("it took more than 5 s")]
    TimedOut,
}

/// The keys of one issuer, and where they come from.
#[derive(Debug)]
pub struct KeySource {
    /// The issuer.
    pub issuer: String,
    /// Where its keys are.
    pub origin: Origin,
    /// Where the settings say so.
    pub at: At,
    keys: Arc<ArcSwap<KeySet>>,
    state: Mutex<State>,
    asked: Notify,
    fetches: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    /// When the keys were taken that are in force.
    taken: Option<Instant>,
    /// When a request last caused a fetch.
    asked: Option<Instant>,
    /// Whether a fetch is under way or about to be.
    is_fetching: bool,
    /// Whether the last try failed.
    has_failed: bool,
    /// Whether nobody fetches any more.
    has_ended: bool,
}

impl KeySource {
    /// No keys yet. What is taken goes to `keys`.
    #[must_use]
    pub fn new(issuer: String, origin: Origin, at: At, keys: Arc<ArcSwap<KeySet>>) -> Self {
        // The first fetch begins with the sidecar, and early requests wait for it.
        let is_fetching = matches!(origin, Origin::Url { .. });
        let state = State { taken: None, asked: None, is_fetching, has_failed: false, has_ended: false };
        Self { issuer, origin, at, keys, state: Mutex::new(state), asked: Notify::new(), fetches: watch::channel(0).0 }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the files that the settings name, before anything is served. Keys at a URL are not asked for.
    ///
    /// # Errors
    ///
    /// [`KeysError`].
    pub fn read_files(&self) -> Result<(), KeysError> {
        match &self.origin {
            Origin::File(path) => self.take(&read(path)?),
            Origin::Url { ca: Some(ca), .. } => authorities(ca).map(drop),
            Origin::Url { ca: None, .. } => Ok(()),
        }
    }

    /// Takes a key set. One that is refused changes nothing.
    ///
    /// # Errors
    ///
    /// [`KeysError`].
    pub fn take(&self, bytes: &[u8]) -> Result<(), KeysError> {
        let set = KeySet::read(bytes);
        let mut state = self.state();
        state.has_failed = set.is_err();
        self.keys.store(Arc::new(set?));
        state.taken = Some(Instant::now());
        Ok(())
    }

    /// Waits, at most a second, for a fetch that may bring a key that is missing: one that is under way, or
    /// one that this causes. Returns at once where there is nothing to wait for.
    pub async fn renewed(&self) {
        let mut fetches = self.fetches.subscribe();
        if !self.is_worth_waiting() {
            return;
        }
        // Whether it came or not: the token is verified with the keys that are there then.
        let _too_late = tokio::time::timeout(WAIT, fetches.changed()).await;
    }

    fn is_worth_waiting(&self) -> bool {
        if matches!(self.origin, Origin::File(_)) {
            return false;
        }
        let mut state = self.state();
        if state.has_ended {
            return false;
        }
        if state.is_fetching {
            return true;
        }
        if state.asked.is_some_and(|asked| asked.elapsed() < AGAIN) {
            return false;
        }
        state.asked = Some(Instant::now());
        state.is_fetching = true;
        self.asked.notify_one();
        true
    }

    /// Fetches the keys now, every five minutes, and when a request asks for it; until the drain begins.
    pub async fn keep_fetched(self: Arc<Self>, mut draining: watch::Receiver<bool>) {
        let Origin::Url { url, ca } = &self.origin else { return };
        let _keeping = Keeping(&self);
        let forever = async {
            loop {
                self.state().is_fetching = true;
                let has_failed = self.fetch(url, ca.as_deref()).await;
                let pause = spread(if has_failed { AGAIN } else { REFRESH });
                tokio::select! { () = tokio::time::sleep(pause) => {}, () = self.asked.notified() => {} }
            }
        };
        // Without its sender the sidecar is gone.
        let drain = async { drop(draining.wait_for(|draining| *draining).await) };
        tokio::select! { () = forever => {}, () = drain => {} }
    }

    async fn fetch(&self, url: &Uri, ca: Option<&Path>) -> bool {
        let fetched = tokio::time::timeout(FETCH_TIME, fetch(url, ca)).await;
        let before = self.keys.load_full();
        let taken = fetched.unwrap_or(Err(KeysError::TimedOut)).and_then(|bytes| self.take(&bytes));
        let issuer = self.issuer.as_str();
        match &taken {
            Ok(()) if before.count() == 0 => {
                tracing::info!(issuer, keys = self.keys.load().count(), "fetched the keys of an issuer");
            }
            Ok(()) => {}
            Err(error) => {
                let keys = before.count();
                tracing::error!(issuer, keys, error = %chain(error), "cannot fetch the keys of an issuer; the former stay");
            }
        }
        let mut state = self.state();
        state.has_failed = taken.is_err();
        state.is_fetching = false;
        drop(state);
        self.fetches.send_modify(|fetches| *fetches = fetches.wrapping_add(1));
        taken.is_err()
    }

    /// How many keys are known.
    #[must_use]
    pub fn count(&self) -> usize {
        self.keys.load().count()
    }

    /// Whether there are keys, and how they are, for `/readyz?verbose`.
    #[must_use]
    pub fn told(&self) -> (bool, String) {
        let set = self.keys.load();
        let state = self.state();
        let verb = match self.origin {
            Origin::File(_) => "read",
            Origin::Url { .. } => "fetched",
        };
        let keys = match state.taken {
            Some(taken) => {
                let plural = if set.count() == 1 { "" } else { "s" };
                let over = match set.passed_over() {
                    0 => String::new(),
                    count => format!(" ({count} passed over)"),
                };
                format!("{} key{plural}{over}, {verb} {} s ago", set.count(), taken.elapsed().as_secs())
            }
            None => "no keys yet".to_owned(),
        };
        let failed = if state.has_failed { "; the last try failed" } else { "" };
        (set.count() > 0, format!("{}: {keys}{failed}", self.issuer))
    }
}

/// As long as it is there, keys are fetched. Dropped, also in the middle of a fetch, it lets nobody wait any more.
struct Keeping<'k>(&'k KeySource);

impl Drop for Keeping<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        (state.is_fetching, state.has_ended) = (false, true);
        drop(state);
        self.0.fetches.send_modify(|fetches| *fetches = fetches.wrapping_add(1));
    }
}

/// Somewhere within a tenth of it.
fn spread(time: Duration) -> Duration {
    let [first, ..] = uuid::Uuid::new_v4().into_bytes();
    time.mul_f64(0.9 + 0.2 * f64::from(first) / 255.0)
}

fn read(path: &Path) -> Result<Vec<u8>, KeysError> {
    files::read(path, MAX_BYTES).map_err(|source| KeysError::Read { path: path.display().to_string(), source })
}

/// The certificates in a file, to be believed instead of the system's.
fn authorities(path: &Path) -> Result<RootCertStore, KeysError> {
    let bytes = read(path)?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        let good = certificate.ok().and_then(|certificate| roots.add(certificate).ok());
        if good.is_none() {
            return Err(KeysError::NoAuthority { path: path.display().to_string() });
        }
    }
    if roots.is_empty() { Err(KeysError::NoAuthority { path: path.display().to_string() }) } else { Ok(roots) }
}

fn tls(ca: Option<&Path>) -> Result<ClientConfig, KeysError> {
    let roots = match ca {
        Some(ca) => authorities(ca)?,
        None => {
            let mut roots = RootCertStore::empty();
            // What the system has and nobody can read is no authority.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            roots
        }
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

async fn fetch(url: &Uri, ca: Option<&Path>) -> Result<Bytes, KeysError> {
    let host = url.host().unwrap_or_default();
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let is_tls = url.scheme_str() == Some("https");
    let port = url.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let stream = TcpStream::connect((host, port)).await.map_err(KeysError::Connect)?;
    if !is_tls {
        return exchange(stream, url).await;
    }
    let name = ServerName::try_from(host.to_owned()).map_err(|_| KeysError::Name)?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls(ca)?));
    exchange(connector.connect(name, stream).await.map_err(KeysError::Connect)?, url).await
}

async fn exchange(stream: impl AsyncRead + AsyncWrite + Send + Unpin, url: &Uri) -> Result<Bytes, KeysError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let target = url.path_and_query().map_or("/", |target| target.as_str());
    let request = Request::get(target)
        .header(header::HOST, url.authority().map_or("", |authority| authority.as_str()))
        .header(header::ACCEPT, HeaderValue::from_static("application/jwk-set+json, application/json"))
        .header(header::CONNECTION, HeaderValue::from_static("close"))
        .body(Empty::<Bytes>::new())?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        if response.status() != StatusCode::OK {
            return Err(KeysError::Status(response.status()));
        }
        let most = usize::try_from(MAX_BYTES).unwrap_or(usize::MAX);
        let body = Limited::new(response.into_body(), most).collect().await.map_err(KeysError::Body)?;
        Ok(body.to_bytes())
    };
    let (mut exchange, connection) = (std::pin::pin!(exchange), std::pin::pin!(connection));
    tokio::select! {
        biased;
        fetched = exchange.as_mut() => fetched,
        // What came in before it closed is still to be read.
        _ended = connection => exchange.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The drain once cut a fetch short, and each request with an unknown key waited for it from then on.
    #[tokio::test]
    async fn nobody_waits_for_a_fetch_that_was_cut_short() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/keys", silent.local_addr().unwrap()).parse().unwrap();
        let origin = Origin::Url { url, ca: None };
        let source = KeySource::new("https://issuer.example".to_owned(), origin, At::default(), Arc::default());
        let source = Arc::new(source);
        let (_draining, drained) = watch::channel(false);
        let fetching = tokio::spawn(Arc::clone(&source).keep_fetched(drained));
        let reached = tokio::task::spawn_blocking(move || silent.accept().unwrap());
        let _held = reached.await.unwrap();
        assert!(source.is_worth_waiting());
        fetching.abort();
        assert!(fetching.await.unwrap_err().is_cancelled());
        assert!(!source.is_worth_waiting());
    }
}
