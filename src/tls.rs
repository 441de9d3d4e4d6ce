//! Step 2: proves the two ends of a connection to each other.
//!
//! Certificates, keys, authorities and revocation lists are PEM files. What is made of them is replaced whole when
//! the files change: a new handshake takes the new. A connection that stands goes on as long as its caller's chain
//! holds with the new too; one to an upstream is not used again once what verified it has changed.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::SignedDuration;
use jiff::Timestamp;
use rustls::CertificateError;
use rustls::ClientConfig;
use rustls::DigitallySignedStruct;
use rustls::DistinguishedName;
use rustls::InconsistentKeys;
use rustls::ProtocolVersion;
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::SignatureScheme;
use rustls::SupportedProtocolVersion;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::UnixTime;
use rustls::pki_types::pem::PemObject;
use rustls::server::NoServerSessionStorage;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerified;
use rustls::server::danger::ClientCertVerifier;
use rustls::version::TLS12;
use rustls::version::TLS13;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::TlsConnector;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::decide::facts::Fact;
use crate::decide::facts::Transport;
use crate::decide::facts::Why;
use crate::files;
use crate::identify::certificate;
use crate::policy::TlsVersion;
use crate::policy::terms::Identity;
use crate::yaml::At;
use crate::yaml::Spanned;

/// A PEM file, and where the settings name it.
pub type PemFile = Spanned<PathBuf>;

/// What a listener shows, and what it asks for.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// Its certificate chain, its own first.
    pub certificate: PemFile,
    /// The key of the first of them.
    pub private_key: PemFile,
    /// Whom it lets prove who they are; none: it asks for no certificate.
    pub clients: Option<Clients>,
    /// The lowest version that it speaks.
    pub min_version: TlsVersion,
}

/// Which client certificates a listener takes.
#[derive(Clone, Debug)]
pub struct Clients {
    /// Who vouches for them.
    pub ca: PemFile,
    /// What they have taken back. With any list, each authority of a chain needs one that has not expired.
    pub crl: Vec<PemFile>,
    /// Whether there is no connection without one.
    pub are_required: bool,
}

/// How an upstream is known, and what is shown to it.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// Who vouches for it.
    pub ca: PemFile,
    /// Whether that is the bundle of the machine, in which a certificate that nobody can read is passed over.
    pub is_system: bool,
    /// The name that its certificate has to bear.
    pub server_name: ServerName<'static>,
    /// Certificate chain and key that it may ask for.
    pub own: Option<(PemFile, PemFile)>,
    /// The one protocol that is offered to it (ALPN, RFC 7301).
    pub protocol: &'static [u8],
}

/// HTTP/1.1 over TLS, by its name in RFC 7301 section 6. Who names no protocol speaks it.
pub const HTTP1: &[u8] = b"http/1.1";

/// A file that does not do what it is named for.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Unusable {
    /// Where the settings name it.
    pub at: At,
    /// What is wrong with it, without a word of its content.
    pub message: String,
    /// What it should be.
    pub help: &'static str,
    /// Why it cannot be read, if that is it.
    pub source: Option<io::Error>,
}

/// Until when something in a file holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ending {
    /// What, in the words of the settings, such as `listener main: certificate`.
    pub what: String,
    /// Where the settings name the file.
    pub at: At,
    /// Until when.
    pub until: Timestamp,
    /// How long a revocation list holds in all: it is made anew so often that its end is near at all times.
    pub list: Option<SignedDuration>,
}

/// Files that belong together, and are renewed together: a fault in one of them holds up no others.
#[derive(Clone, Debug)]
pub struct Part {
    /// For the operational log, such as `listener main: certificate`.
    pub name: String,
    /// The files.
    pub paths: Vec<PathBuf>,
    /// Their places among all files of the listener or upstream.
    places: Range<usize>,
    /// Whether connections that stand go by them too.
    is_for_all: bool,
}

/// What was made of files, and until when they hold.
#[derive(Debug)]
struct Made<C> {
    config: Arc<C>,
    endings: Vec<Ending>,
    own: Option<Own>,
    /// Verifies the certificates of callers; none towards an upstream, and where none are asked for.
    callers: Option<Arc<ByTime>>,
}

/// From when until when the certificate holds that the sidecar shows.
#[derive(Debug)]
struct Own {
    from: Timestamp,
    until: Timestamp,
    at: At,
    /// What to say where that is not now.
    message: String,
}

impl Own {
    fn of(file: &PemFile, chain: &[CertificateDer<'_>]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(chain.first()?).ok()?;
        let from = Timestamp::from_second(certificate.validity().not_before.timestamp()).ok()?;
        let until = Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()?;
        let message = format!("the certificate in `{}` holds from {from} to {until}, and that is not now", shown(file));
        Some(Self { from, until, at: file.at, message })
    }

    fn is_valid(&self, now: Timestamp) -> bool {
        (self.from..=self.until).contains(&now)
    }
}

/// What is in force, and the content of the files that it was made of.
#[derive(Debug)]
struct InForce<C> {
    made: ArcSwap<Made<C>>,
    contents: Mutex<Vec<Vec<u8>>>,
    /// How often something was renewed that connections that stand go by too.
    renewals: watch::Sender<u64>,
}

/// The TLS of a listener.
#[derive(Debug)]
pub struct Server {
    name: String,
    settings: ServerSettings,
    in_force: InForce<ServerConfig>,
}

/// The TLS towards an upstream.
#[derive(Debug)]
pub struct Client {
    name: String,
    settings: ClientSettings,
    in_force: InForce<ClientConfig>,
}

/// HTTP/2 over TLS, by its name in RFC 9113 section 3.1.
pub const HTTP2: &[u8] = b"h2";

/// A connection that a caller made.
pub type FromCaller = tokio_rustls::server::TlsStream<TcpStream>;
/// A connection to an upstream.
pub type ToUpstream = tokio_rustls::client::TlsStream<TcpStream>;

/// All TLS of a sidecar.
#[derive(Clone, Debug, Default)]
pub struct All {
    /// Of its listeners.
    pub servers: Vec<Arc<Server>>,
    /// Towards its upstreams.
    pub clients: Vec<Arc<Client>>,
}

impl All {
    /// Until when what is in the files holds; that of the machine's bundle is left out.
    #[must_use]
    pub fn endings(&self) -> Vec<Ending> {
        let servers = self.servers.iter().flat_map(|server| server.endings());
        servers.chain(self.clients.iter().flat_map(|client| client.endings())).collect()
    }
}

/// How near an end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Nearness {
    /// At most 14 days.
    Fortnight,
    /// At most a day.
    Day,
    /// It is over.
    Over,
}

impl Ending {
    /// How near it is; none: not near.
    #[must_use]
    pub fn nearness(&self, now: Timestamp) -> Option<Nearness> {
        let left = self.until.duration_since(now);
        if !left.is_positive() {
            Some(Nearness::Over)
        } else if let Some(whole) = self.list {
            // A list is made anew long before a tenth of its time is left.
            (left <= (whole / 10).min(SignedDuration::from_hours(24))).then_some(Nearness::Day)
        } else if left <= SignedDuration::from_hours(24) {
            Some(Nearness::Day)
        } else if left <= SignedDuration::from_hours(14 * 24) {
            Some(Nearness::Fortnight)
        } else {
            None
        }
    }
}

/// Warns of ends when they come nearer: once for each step, and not again for what is renewed for a short time only.
#[derive(Debug, Default)]
pub struct LookOut {
    told: BTreeMap<String, Nearness>,
}

impl LookOut {
    /// Says what has come nearer since the last time.
    pub fn look(&mut self, endings: &[Ending], now: Timestamp) {
        let mut near: BTreeMap<String, Nearness> = BTreeMap::new();
        for ending in endings {
            let Some(nearness) = ending.nearness(now) else { continue };
            let told = self.told.get(&ending.what);
            let (what, until) = (&ending.what, ending.until);
            match nearness {
                _ if told.is_some_and(|told| *told >= nearness) => {}
                Nearness::Fortnight => tracing::warn!(what, %until, "ends within 14 days"),
                Nearness::Day => tracing::warn!(what, %until, "ends within a day"),
                Nearness::Over => tracing::error!(what, %until, "has ended: no connection comes about with it"),
            }
            let most = near.entry(what.clone()).or_insert(nearness);
            *most = nearness.max(*most);
        }
        self.told = near;
    }
}

impl Server {
    /// Reads the files of a listener.
    ///
    /// # Errors
    ///
    /// [`Unusable`], of the first file that is.
    pub fn load(listener: &str, settings: ServerSettings) -> Result<Self, Unusable> {
        let name = format!("listener {listener}");
        let contents = read_all(&settings.files())?;
        let in_force = InForce::new(make_server(&name, &settings, &contents)?, contents);
        Ok(Self { name, settings, in_force })
    }

    /// Its name, for the operational log.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The files, as they are renewed.
    #[must_use]
    pub fn parts(&self) -> Vec<Part> {
        let ServerSettings { certificate, private_key, clients, min_version: _ } = &self.settings;
        let mut parts = Parts::of(&self.name);
        // A connection that stands has seen the sidecar's certificate, and asks for no other.
        parts.push("certificate", &[certificate, private_key], false);
        if let Some(Clients { ca, crl, are_required: _ }) = clients {
            parts.push("client_ca", &[ca], true);
            parts.push("crl", &crl.iter().collect::<Vec<_>>(), true);
        }
        parts.all
    }

    /// Takes the new content of a part, and all else as it is in force. A certificate of its own that is not valid
    /// `now` does not take the place of one that is.
    ///
    /// # Errors
    ///
    /// [`Unusable`]; what was there stays.
    pub fn renew(&self, part: &Part, contents: &[Vec<u8>], now: Timestamp) -> Result<(), Unusable> {
        self.in_force.renew(part, contents, now, |contents| make_server(&self.name, &self.settings, contents))
    }

    /// Until when its files hold.
    #[must_use]
    pub fn endings(&self) -> Vec<Ending> {
        self.in_force.made.load().endings.clone()
    }

    /// Tells when the authorities or their lists are renewed.
    #[must_use]
    pub fn renewals(&self) -> watch::Receiver<u64> {
        self.in_force.renewals.subscribe()
    }

    /// Whether a chain that was verified once, its own certificate first, holds with the authorities and lists that
    /// are in force now. Without a chain there is nothing that could have stopped to hold.
    #[must_use]
    pub fn still_holds(&self, chain: &[CertificateDer<'_>]) -> bool {
        let made = self.in_force.made.load();
        match (chain.split_first(), &made.callers) {
            (None, _) => true,
            (Some((leaf, others)), Some(callers)) => callers.verify_client_cert(leaf, others, UnixTime::now()).is_ok(),
            (Some(_), None) => false,
        }
    }

    /// Shakes hands. Without a bound in time.
    ///
    /// # Errors
    ///
    /// Whatever the other side lacks, or if it goes away.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<FromCaller> {
        let config = Arc::clone(&self.in_force.made.load().config);
        let shaken = TlsAcceptor::from(config).accept(stream).into_fallible().await;
        match shaken {
            Ok(stream) => Ok(stream),
            Err((error, stream)) => {
                let _gone = tokio::time::timeout(LAST_WORDS, hear_out(stream)).await;
                Err(error)
            }
        }
    }
}

/// How long who failed to shake hands may go on before the connection is closed, and how much it may say.
const LAST_WORDS: Duration = Duration::from_millis(500);
const LAST_BYTES: u64 = 64 * 1024;

/// Lets the other side read the alert that says what was wrong. A connection that is closed with unread bytes is reset,
/// and the alert is lost with it.
async fn hear_out(mut stream: TcpStream) -> io::Result<()> {
    stream.shutdown().await?;
    tokio::io::copy(&mut stream.take(LAST_BYTES), &mut tokio::io::sink()).await?;
    Ok(())
}

impl Client {
    /// Reads the files for an upstream.
    ///
    /// # Errors
    ///
    /// [`Unusable`], of the first file that is.
    pub fn load(upstream: &str, settings: ClientSettings) -> Result<Self, Unusable> {
        let name = format!("upstream {upstream}");
        let contents = read_all(&settings.files())?;
        let in_force = InForce::new(make_client(&name, &settings, &contents)?, contents);
        Ok(Self { name, settings, in_force })
    }

    /// The files, as they are renewed.
    #[must_use]
    pub fn parts(&self) -> Vec<Part> {
        let ClientSettings { ca, is_system: _, server_name: _, own, protocol: _ } = &self.settings;
        let mut parts = Parts::of(&self.name);
        parts.push("ca", &[ca], true);
        if let Some((certificate, private_key)) = own {
            parts.push("certificate", &[certificate, private_key], true);
        }
        parts.all
    }

    /// Takes the new content of a part, and all else as it is in force. A certificate of its own that is not valid
    /// `now` does not take the place of one that is.
    ///
    /// # Errors
    ///
    /// [`Unusable`]; what was there stays.
    pub fn renew(&self, part: &Part, contents: &[Vec<u8>], now: Timestamp) -> Result<(), Unusable> {
        self.in_force.renew(part, contents, now, |contents| make_client(&self.name, &self.settings, contents))
    }

    /// Until when its files hold.
    #[must_use]
    pub fn endings(&self) -> Vec<Ending> {
        self.in_force.made.load().endings.clone()
    }

    /// Counts what was renewed: with another number, connections came about with what is no longer in force.
    #[must_use]
    pub fn renewal(&self) -> u64 {
        *self.in_force.renewals.borrow()
    }

    /// Shakes hands and holds the other side against its name and authorities. Without a bound in time.
    ///
    /// # Errors
    ///
    /// If it is somebody else, does not speak HTTP/2 where that is asked for, or goes away.
    pub async fn connect(&self, stream: TcpStream) -> io::Result<ToUpstream> {
        let config = Arc::clone(&self.in_force.made.load().config);
        let stream = TlsConnector::from(config).connect(self.settings.server_name.clone(), stream).await?;
        let chosen = stream.get_ref().1.alpn_protocol();
        if self.settings.protocol == HTTP2 && chosen != Some(HTTP2) {
            return Err(io::Error::other(
                "it did not choose HTTP/2 (ALPN): write `protocol: http1`, or enable `h2` there",
            ));
        }
        Ok(stream)
    }
}

/// What a connection proves about who made it.
#[derive(Clone, Debug)]
pub struct Proven {
    /// What protects it.
    pub transport: Transport,
    /// Who its client certificate names.
    pub identity: Fact<Identity>,
    /// When the first certificate of the chain ends that the caller has shown.
    pub until: Option<Timestamp>,
    /// That chain, its own certificate first; empty if it has shown none.
    pub chain: Vec<CertificateDer<'static>>,
}

/// What a connection proves that has come about `now`.
#[must_use]
pub fn proven(stream: &FromCaller, now: Timestamp) -> Proven {
    let (_, session) = stream.get_ref();
    let tls = match session.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => Some(TlsVersion::V1_3),
        Some(ProtocolVersion::TLSv1_2) => Some(TlsVersion::V1_2),
        // rustls speaks no others; an unknown one protects nothing.
        Some(_) | None => None,
    };
    // There is one only after the verifier took its whole chain.
    let chain = session.peer_certificates().unwrap_or_default();
    let leaf = chain.first();
    let ends = chain.iter().enumerate().filter_map(|(place, der)| Some((place, not_after(der)?)));
    // One above the leaf that has ended by now was not needed for the proof.
    let until = ends.filter(|(place, end)| *place == 0 || *end >= now).map(|(_, end)| end).min();
    let identity = leaf.map_or(Fact::Unknown(Why::Missing), |leaf| certificate::identity(leaf));
    let transport = Transport { tls, client_certificate: leaf.is_some(), is_unix: false };
    Proven { transport, identity, until, chain: chain.to_vec() }
}

/// Whether both sides have agreed on HTTP/2.
#[must_use]
pub fn is_http2(stream: &FromCaller) -> bool {
    let (_, session) = stream.get_ref();
    session.alpn_protocol() == Some(HTTP2)
}

impl<C> InForce<C> {
    fn new(made: Made<C>, contents: Vec<Vec<u8>>) -> Self {
        Self { made: ArcSwap::from_pointee(made), contents: Mutex::new(contents), renewals: watch::Sender::new(0) }
    }

    fn renew(
        &self,
        part: &Part,
        contents: &[Vec<u8>],
        now: Timestamp,
        make: impl FnOnce(&[Vec<u8>]) -> Result<Made<C>, Unusable>,
    ) -> Result<(), Unusable> {
        let mut in_force = self.contents.lock().unwrap_or_else(PoisonError::into_inner);
        let before = in_force.iter().take(part.places.start);
        let behind = in_force.iter().skip(part.places.end);
        let all: Vec<Vec<u8>> = before.chain(contents).chain(behind).cloned().collect();
        if *in_force == all {
            return Ok(());
        }
        let made = make(&all)?;
        if let (Some(own), Some(before)) = (&made.own, &self.made.load().own)
            && !own.is_valid(now)
            && before.is_valid(now)
        {
            return Err(Unusable { at: own.at, message: own.message.clone(), help: HELP_VALID, source: None });
        }
        self.made.store(Arc::new(made));
        *in_force = all;
        if part.is_for_all {
            self.renewals.send_modify(|renewals| *renewals = renewals.wrapping_add(1));
        }
        Ok(())
    }
}

/// Parts that are being listed.
struct Parts<'n> {
    name: &'n str,
    all: Vec<Part>,
    next: usize,
}

impl<'n> Parts<'n> {
    fn of(name: &'n str) -> Self {
        Self { name, all: Vec::new(), next: 0 }
    }

    fn push(&mut self, what: &str, files: &[&PemFile], is_for_all: bool) {
        let places = self.next..self.next + files.len();
        self.next = places.end;
        if !files.is_empty() {
            let paths = files.iter().map(|file| file.value.clone()).collect();
            self.all.push(Part { name: format!("{}: {what}", self.name), paths, places, is_for_all });
        }
    }
}

impl ServerSettings {
    fn files(&self) -> Vec<&PemFile> {
        let Self { certificate, private_key, clients, min_version: _ } = self;
        let clients = clients.iter().flat_map(|Clients { ca, crl, are_required: _ }| [ca].into_iter().chain(crl));
        [certificate, private_key].into_iter().chain(clients).collect()
    }
}

impl ClientSettings {
    fn files(&self) -> Vec<&PemFile> {
        let own = self.own.iter().flat_map(|(certificate, private_key)| [certificate, private_key]);
        [&self.ca].into_iter().chain(own).collect()
    }
}

const HELP_READ: &str =
    "name a file that the sidecar's user may read; a relative path counts from the folder of this file";
const HELP_CERTIFICATE: &str =
    "write PEM that begins with `-----BEGIN CERTIFICATE-----`: its own certificate first, then those that vouch for it";
const HELP_KEY: &str =
    "write PEM such as `-----BEGIN PRIVATE KEY-----`, without a passphrase: RSA from 2048 bits, ECDSA P-256 or P-384";
const HELP_PAIR: &str = "name the key that the first certificate of the file was made for";
const HELP_VALID: &str = "name one whose time it is; the former stays in force as long as it holds";
const HELP_CA: &str = "write PEM with the certificates of the authorities that vouch for the other side";
const HELP_CRL: &str = "write PEM that begins with `-----BEGIN X509 CRL-----`, as the authority issued it";

/// Largest file that is read: revocation lists of large authorities have some MiB.
pub const MAX_BYTES: u64 = 16 * 1024 * 1024;

fn read_all(files: &[&PemFile]) -> Result<Vec<Vec<u8>>, Unusable> {
    let read = |file: &&PemFile| {
        let message = || format!("cannot read `{}`", file.value.display());
        match files::read(&file.value, MAX_BYTES) {
            Ok(bytes) => Ok(bytes),
            Err(source) => Err(Unusable { source: Some(source), ..unusable(file, message(), HELP_READ) }),
        }
    };
    files.iter().map(read).collect()
}

fn unusable(file: &PemFile, message: impl Into<String>, help: &'static str) -> Unusable {
    Unusable { at: file.at, message: message.into(), help, source: None }
}

/// Why what TLS says about a file goes no further: it may quote it.
fn shown(file: &PemFile) -> impl std::fmt::Display + '_ {
    file.value.display()
}

/// All items of a kind in a file; at least one.
fn items<T: PemObject>(file: &PemFile, bytes: &[u8], kind: &str, help: &'static str) -> Result<Vec<T>, Unusable> {
    match T::pem_slice_iter(bytes).collect::<Result<Vec<T>, _>>() {
        Ok(items) if !items.is_empty() => Ok(items),
        Ok(_) if bytes.iter().all(u8::is_ascii_whitespace) => {
            Err(unusable(file, format!("`{}` is empty", shown(file)), help))
        }
        Ok(_) => Err(unusable(file, format!("`{}` holds no {kind}", shown(file)), help)),
        Err(_) => Err(unusable(file, format!("`{}` is not whole PEM", shown(file)), help)),
    }
}

fn not_after(der: &[u8]) -> Option<Timestamp> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()
}

/// When the certificates of a file end.
fn certificates_end<'c>(
    what: &'c str,
    file: &'c PemFile,
    all: &'c [CertificateDer<'_>],
) -> impl Iterator<Item = Ending> + 'c {
    all.iter().enumerate().filter_map(move |(place, der)| {
        let until = not_after(der)?;
        let what = match all.len() {
            1 => what.to_owned(),
            count => format!("{what} {} of {count}", place + 1),
        };
        Some(Ending { what, at: file.at, until, list: None })
    })
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// The chain and its key, which fit each other.
fn pair(
    certificate: (&PemFile, &[u8]),
    private_key: (&PemFile, &[u8]),
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Unusable> {
    let chain = items(certificate.0, certificate.1, "certificate", HELP_CERTIFICATE)?;
    let mut keys = items(private_key.0, private_key.1, "private key", HELP_KEY)?;
    Ok((chain, keys.swap_remove(0)))
}

/// What TLS says of a chain and its key, as something that is wrong with one of the two files.
fn misfit(certificate: &PemFile, private_key: &PemFile, error: &rustls::Error) -> Unusable {
    if let rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) = error {
        let message =
            format!("the key in `{}` is not that of the certificate in `{}`", shown(private_key), shown(certificate));
        unusable(private_key, message, HELP_PAIR)
    } else if let rustls::Error::InvalidCertificate(_) = error {
        let message = format!("`{}` holds a certificate that cannot be read", shown(certificate));
        unusable(certificate, message, HELP_CERTIFICATE)
    } else {
        unusable(private_key, format!("the key in `{}` is not of a kind that is used", shown(private_key)), HELP_KEY)
    }
}

fn roots(
    file: &PemFile,
    bytes: &[u8],
    is_system: bool,
) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), Unusable> {
    let certificates: Vec<CertificateDer<'static>> = items(file, bytes, "certificate", HELP_CA)?;
    let mut roots = RootCertStore::empty();
    let (_, unread) = roots.add_parsable_certificates(certificates.iter().cloned());
    if roots.is_empty() || (unread > 0 && !is_system) {
        let message = format!("`{}` holds a certificate that cannot be read", shown(file));
        return Err(unusable(file, message, HELP_CA));
    }
    Ok((roots, certificates))
}

/// None: nobody vouches for anybody.
type SomeVerifier = Option<Arc<dyn ClientCertVerifier>>;

/// Verifies with the authorities whose own time it is: the chain below them is looked at by rustls, they are not.
#[derive(Debug)]
struct ByTime {
    /// With all of them.
    all: Arc<dyn ClientCertVerifier>,
    clients: Clients,
    authorities: Vec<CertificateDer<'static>>,
    /// From when until when each of them holds, in seconds since 1970.
    times: Vec<(i64, i64)>,
    lists: Vec<CertificateRevocationListDer<'static>>,
    /// What was made when some of them last held, and which.
    some: Mutex<(Vec<bool>, SomeVerifier)>,
}

impl ByTime {
    fn at(&self, now: UnixTime) -> SomeVerifier {
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let hold: Vec<bool> = self.times.iter().map(|(from, until)| (*from..=*until).contains(&now)).collect();
        if !hold.contains(&false) {
            return Some(Arc::clone(&self.all));
        }
        let mut some = self.some.lock().unwrap_or_else(PoisonError::into_inner);
        if some.0 != hold {
            let mut roots = RootCertStore::empty();
            let holding = self.authorities.iter().zip(&hold).filter(|(_, holds)| **holds);
            roots.add_parsable_certificates(holding.map(|(authority, _)| authority.clone()));
            let made = verifier(&self.clients, &Arc::new(roots), self.lists.clone()).ok();
            *some = (hold, made);
        }
        some.1.clone()
    }
}

impl ClientCertVerifier for ByTime {
    fn offer_client_auth(&self) -> bool {
        self.all.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.all.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.all.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verifier = self.at(now).ok_or(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        verifier.verify_client_cert(leaf, others, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.all.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.all.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.all.supported_verify_schemes()
    }
}

fn verifier(
    clients: &Clients,
    roots: &Arc<RootCertStore>,
    lists: Vec<CertificateRevocationListDer<'static>>,
) -> Result<Arc<dyn ClientCertVerifier>, rustls::server::VerifierBuilderError> {
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider());
    // The whole chain is looked up; who is on no list is refused, and a list that has expired tells nothing.
    let builder = builder.with_crls(lists).enforce_revocation_expiration();
    if clients.are_required { builder.build() } else { builder.allow_unauthenticated().build() }
}

fn make_server(name: &str, settings: &ServerSettings, contents: &[Vec<u8>]) -> Result<Made<ServerConfig>, Unusable> {
    let mut contents = contents.iter().map(Vec::as_slice);
    let mut next = || contents.next().unwrap_or_default();
    let ServerSettings { certificate, private_key, clients, min_version } = settings;
    let (chain, key) = pair((certificate, next()), (private_key, next()))?;
    let mut endings: Vec<Ending> = certificates_end(&format!("{name}: certificate"), certificate, &chain).collect();
    let own_times = Own::of(certificate, &chain);
    let versions: &[&SupportedProtocolVersion] = match min_version {
        TlsVersion::V1_2 => &[&TLS13, &TLS12],
        TlsVersion::V1_3 => &[&TLS13],
    };
    let unfit = |error: rustls::Error| misfit(certificate, private_key, &error);
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(versions).map_err(unfit)?;
    let mut callers = None;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let (roots, certificates) = roots(&clients.ca, next(), false)?;
            endings.extend(certificates_end(&format!("{name}: client_ca"), &clients.ca, &certificates));
            let roots = Arc::new(roots);
            let mut all = Vec::new();
            for file in &clients.crl {
                let lists: Vec<CertificateRevocationListDer<'static>> =
                    items(file, next(), "revocation list", HELP_CRL)?;
                let unread = |_| unusable(file, format!("`{}` is not a revocation list", shown(file)), HELP_CRL);
                drop(verifier(clients, &roots, lists.clone()).map_err(unread)?);
                all.extend(lists.into_iter().map(|list| (file, list)));
            }
            let count = all.len();
            for (place, (file, list)) in all.iter().enumerate() {
                let what = match count {
                    1 => format!("{name}: crl"),
                    count => format!("{name}: crl {} of {count}", place + 1),
                };
                endings.extend(list_ends(what, file, list));
            }
            let all: Vec<CertificateRevocationListDer<'static>> = all.into_iter().map(|(_, list)| list).collect();
            let unread = |_| unusable(&clients.ca, format!("`{}` vouches for nobody", shown(&clients.ca)), HELP_CA);
            let times = certificates.iter().map(|der| {
                let (_, certificate) = X509Certificate::from_der(der).ok()?;
                let validity = certificate.validity();
                Some((validity.not_before.timestamp(), validity.not_after.timestamp()))
            });
            let by_time = Arc::new(ByTime {
                all: verifier(clients, &roots, all.clone()).map_err(unread)?,
                clients: clients.clone(),
                // What cannot be read was refused; if it were not, it would never hold.
                times: times.map(|times| times.unwrap_or((1, 0))).collect(),
                authorities: certificates,
                lists: all,
                some: Mutex::default(),
            });
            callers = Some(Arc::clone(&by_time));
            builder.with_client_cert_verifier(by_time)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(unfit)?;
    // The first one that the caller speaks too (RFC 7301 section 3.2).
    config.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
    if clients.is_some() {
        // A resumed session would carry a certificate past its revocation.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(Made { config: Arc::new(config), endings, own: own_times, callers })
}

fn list_ends(what: String, file: &PemFile, list: &CertificateRevocationListDer<'_>) -> Option<Ending> {
    let (_, list) = CertificateRevocationList::from_der(list).ok()?;
    let until = Timestamp::from_second(list.next_update()?.timestamp()).ok()?;
    let from = Timestamp::from_second(list.last_update().timestamp()).ok()?;
    Some(Ending { what, at: file.at, until, list: Some(until.duration_since(from)) })
}

fn make_client(name: &str, settings: &ClientSettings, contents: &[Vec<u8>]) -> Result<Made<ClientConfig>, Unusable> {
    let mut contents = contents.iter().map(Vec::as_slice);
    let mut next = || contents.next().unwrap_or_default();
    let ClientSettings { ca, is_system, server_name: _, own, protocol } = settings;
    let (roots, certificates) = roots(ca, next(), *is_system)?;
    let mut endings = Vec::new();
    let mut own_times = None;
    if !is_system {
        endings.extend(certificates_end(&format!("{name}: ca"), ca, &certificates));
    }
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13, &TLS12]);
    let builder = builder.map_err(|_| unusable(ca, "TLS cannot be set up", HELP_CA))?.with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some((certificate, private_key)) => {
            let (chain, key) = pair((certificate, next()), (private_key, next()))?;
            endings.extend(certificates_end(&format!("{name}: certificate"), certificate, &chain));
            own_times = Own::of(certificate, &chain);
            builder.with_client_auth_cert(chain, key).map_err(|error| misfit(certificate, private_key, &error))?
        }
    };
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(Made { config: Arc::new(config), endings, own: own_times, callers: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A list was told of only when it was over.
    #[test]
    fn a_list_is_near_its_end_when_a_tenth_of_its_time_is_left() {
        let hours = SignedDuration::from_hours;
        let table = [
            ("a tenth of ten hours", Some(hours(10)), hours(1), Some(Nearness::Day)),
            ("more of it", Some(hours(10)), hours(2), None),
            ("a day of a month", Some(hours(720)), hours(24), Some(Nearness::Day)),
            ("two days of a month", Some(hours(720)), hours(48), None),
            ("over", Some(hours(10)), hours(0), Some(Nearness::Over)),
            ("a certificate", None, hours(48), Some(Nearness::Fortnight)),
        ];
        for (name, list, left, expected) in table {
            let until = Timestamp::UNIX_EPOCH;
            let ending = Ending { what: String::new(), at: At::default(), until, list };
            assert_eq!(ending.nearness(until - left), expected, "{name}");
        }
    }
}
