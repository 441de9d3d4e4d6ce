//! Step 2: proves the two ends of a connection to each other.
//!
//! Certificates, keys, authorities and revocation lists are PEM files. What is made of them is replaced whole when
//! the files change: a new handshake takes the new. A connection that stands goes on, unless what its other end was
//! verified with has changed; then it ends after the request that is under way.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use arc_swap::ArcSwap;
use jiff::SignedDuration;
use jiff::Timestamp;
use rustls::ClientConfig;
use rustls::InconsistentKeys;
use rustls::ProtocolVersion;
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::SupportedProtocolVersion;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use rustls::server::NoServerSessionStorage;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::version::TLS12;
use rustls::version::TLS13;
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
}

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
    /// Whether it is a revocation list: made anew so often that its end is near at all times.
    pub is_list: bool,
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
        } else if self.is_list {
            None
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

    /// Takes the new content of a part, and all else as it is in force.
    ///
    /// # Errors
    ///
    /// [`Unusable`]; what was there stays.
    pub fn renew(&self, part: &Part, contents: &[Vec<u8>]) -> Result<(), Unusable> {
        self.in_force.renew(part, contents, |contents| make_server(&self.name, &self.settings, contents))
    }

    /// Until when its files hold.
    #[must_use]
    pub fn endings(&self) -> Vec<Ending> {
        self.in_force.made.load().endings.clone()
    }

    /// Tells when the authorities or their lists are renewed: callers have to prove anew who they are.
    #[must_use]
    pub fn renewals(&self) -> watch::Receiver<u64> {
        self.in_force.renewals.subscribe()
    }

    /// Shakes hands. Without a bound in time.
    ///
    /// # Errors
    ///
    /// Whatever the other side lacks, or if it goes away.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<FromCaller> {
        let config = Arc::clone(&self.in_force.made.load().config);
        TlsAcceptor::from(config).accept(stream).await
    }
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
        let ClientSettings { ca, is_system: _, server_name: _, own } = &self.settings;
        let mut parts = Parts::of(&self.name);
        parts.push("ca", &[ca], true);
        if let Some((certificate, private_key)) = own {
            parts.push("certificate", &[certificate, private_key], true);
        }
        parts.all
    }

    /// Takes the new content of a part, and all else as it is in force.
    ///
    /// # Errors
    ///
    /// [`Unusable`]; what was there stays.
    pub fn renew(&self, part: &Part, contents: &[Vec<u8>]) -> Result<(), Unusable> {
        self.in_force.renew(part, contents, |contents| make_client(&self.name, &self.settings, contents))
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
    /// If it is somebody else, or goes away.
    pub async fn connect(&self, stream: TcpStream) -> io::Result<ToUpstream> {
        let config = Arc::clone(&self.in_force.made.load().config);
        TlsConnector::from(config).connect(self.settings.server_name.clone(), stream).await
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
    Proven { transport, identity, until }
}

impl<C> InForce<C> {
    fn new(made: Made<C>, contents: Vec<Vec<u8>>) -> Self {
        Self { made: ArcSwap::from_pointee(made), contents: Mutex::new(contents), renewals: watch::Sender::new(0) }
    }

    fn renew(
        &self,
        part: &Part,
        contents: &[Vec<u8>],
        make: impl FnOnce(&[Vec<u8>]) -> Result<Made<C>, Unusable>,
    ) -> Result<(), Unusable> {
        let mut in_force = self.contents.lock().unwrap_or_else(PoisonError::into_inner);
        let before = in_force.iter().take(part.places.start);
        let behind = in_force.iter().skip(part.places.end);
        let all: Vec<Vec<u8>> = before.chain(contents).chain(behind).cloned().collect();
        if *in_force == all {
            return Ok(());
        }
        self.made.store(Arc::new(make(&all)?));
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
const HELP_CA: &str = "write PEM with the certificates of the authorities that vouch for the other side";
const HELP_CRL: &str = "write PEM that begins with `-----BEGIN X509 CRL-----`, as the authority issued it";

/// Largest file that is read: revocation lists of large authorities have some MiB.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

fn read_all(files: &[&PemFile]) -> Result<Vec<Vec<u8>>, Unusable> {
    use std::io::Read as _;
    let read = |file: &&PemFile| {
        let mut bytes = Vec::new();
        let read = std::fs::File::open(&file.value).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes));
        let message = || format!("cannot read `{}`", file.value.display());
        match read {
            Ok(_) => Ok(bytes),
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
        Some(Ending { what, at: file.at, until, is_list: false })
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
    let versions: &[&SupportedProtocolVersion] = match min_version {
        TlsVersion::V1_2 => &[&TLS13, &TLS12],
        TlsVersion::V1_3 => &[&TLS13],
    };
    let unfit = |error: rustls::Error| misfit(certificate, private_key, &error);
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(versions).map_err(unfit)?;
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
                endings.extend(lists.iter().filter_map(|list| list_ends(name, file, list)));
                all.extend(lists);
            }
            let unread = |_| unusable(&clients.ca, format!("`{}` vouches for nobody", shown(&clients.ca)), HELP_CA);
            builder.with_client_cert_verifier(verifier(clients, &roots, all).map_err(unread)?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(unfit)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    if clients.is_some() {
        // A resumed session would carry a certificate past its revocation.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(Made { config: Arc::new(config), endings })
}

fn list_ends(name: &str, file: &PemFile, list: &CertificateRevocationListDer<'_>) -> Option<Ending> {
    let (_, list) = CertificateRevocationList::from_der(list).ok()?;
    let until = Timestamp::from_second(list.next_update()?.timestamp()).ok()?;
    Some(Ending { what: format!("{name}: crl"), at: file.at, until, is_list: true })
}

fn make_client(name: &str, settings: &ClientSettings, contents: &[Vec<u8>]) -> Result<Made<ClientConfig>, Unusable> {
    let mut contents = contents.iter().map(Vec::as_slice);
    let mut next = || contents.next().unwrap_or_default();
    let ClientSettings { ca, is_system, server_name: _, own } = settings;
    let (roots, certificates) = roots(ca, next(), *is_system)?;
    let mut endings = Vec::new();
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
            builder.with_client_auth_cert(chain, key).map_err(|error| misfit(certificate, private_key, &error))?
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Made { config: Arc::new(config), endings })
}
