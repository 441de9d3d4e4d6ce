//! Authorities, certificates, lists, and who shows them.

use std::io::BufReader;
use std::io::Write as _;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::CertificateRevocationListParams;
use rcgen::CustomExtension;
use rcgen::DnType;
use rcgen::IsCa;
use rcgen::Issuer;
use rcgen::KeyIdMethod;
use rcgen::KeyPair;
use rcgen::KeyUsagePurpose;
use rcgen::RevokedCertParams;
use rcgen::SanType;
use rcgen::SerialNumber;
use rcgen::date_time_ymd;
use rustls::ClientConfig;
use rustls::ClientConnection;
use rustls::RootCertStore;
use rustls::StreamOwned;
use rustls::SupportedProtocolVersion;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject as _;
use rustls::sign::CertifiedKey;
use rustls::sign::SingleCertAndKey;

use crate::support::Answer;
use crate::support::CEILING;

/// Who signs.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate, and those above it but the root's.
    chain: Vec<String>,
    /// Its own certificate.
    pub(super) pem: String,
}

/// A certificate with its key.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    /// The chain as PEM: its own first.
    pub(super) chain: String,
    /// The key as PEM.
    pub(super) key: String,
    /// Its own as DER.
    pub(super) der: Vec<u8>,
    /// Its number.
    pub(super) number: u64,
}

/// A moment as `rcgen` has it.
macro_rules! moment {
    ($seconds:expr) => {
        date_time_ymd(1970, 1, 1) + Duration::from_secs($seconds)
    };
}

fn next_number() -> u64 {
    static NUMBER: AtomicU64 = AtomicU64::new(1_000);
    NUMBER.fetch_add(1, Ordering::Relaxed)
}

fn now() -> u64 {
    u64::try_from(Timestamp::now().as_second()).unwrap()
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

impl Authority {
    /// A root.
    pub(super) fn new(name: &str) -> Self {
        let (params, key) = (authority_params(name), KeyPair::generate().unwrap());
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), chain: Vec::new(), pem }
    }

    /// A root that ends after so many seconds.
    pub(super) fn ending(name: &str, seconds: u64) -> Self {
        let (mut params, key) = (authority_params(name), KeyPair::generate().unwrap());
        params.not_after = moment!(now() + seconds);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), chain: Vec::new(), pem }
    }

    /// One that this one vouches for.
    pub(super) fn below(&self, name: &str) -> (Self, u64) {
        self.below_with(authority_params(name))
    }

    /// The same, that ends after so many seconds.
    pub(super) fn below_for(&self, name: &str, seconds: u64) -> (Self, u64) {
        let mut params = authority_params(name);
        params.not_after = moment!(now() + seconds);
        self.below_with(params)
    }

    fn below_with(&self, mut params: CertificateParams) -> (Self, u64) {
        let (key, number) = (KeyPair::generate().unwrap(), next_number());
        params.serial_number = Some(SerialNumber::from(number));
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        let chain = [pem.clone()].into_iter().chain(self.chain.iter().cloned()).collect();
        (Self { issuer: Issuer::new(params, key), chain, pem }, number)
    }

    /// Signs a certificate.
    pub(super) fn sign(&self, mut params: CertificateParams) -> Pair {
        let (key, number) = (KeyPair::generate().unwrap(), next_number());
        params.serial_number = Some(SerialNumber::from(number));
        let signed = params.signed_by(&key, &self.issuer).unwrap();
        let chain = [signed.pem()].into_iter().chain(self.chain.iter().cloned()).collect();
        Pair { chain, key: key.serialize_pem(), der: signed.der().to_vec(), number }
    }

    /// One for the sidecar or a service, under the names `data.example` and 127.0.0.1.
    pub(super) fn server(&self) -> Pair {
        self.sign(CertificateParams::new(["data.example".to_owned(), "127.0.0.1".to_owned()]).unwrap())
    }

    /// The same, that ends after so many seconds.
    pub(super) fn server_for(&self, seconds: u64) -> Pair {
        let mut params = CertificateParams::new(["data.example".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.not_after = moment!(now() + seconds);
        self.sign(params)
    }

    /// One for a caller with this URI name.
    pub(super) fn caller(&self, uri: &str) -> Pair {
        self.sign(names(&[SanType::URI(uri.try_into().unwrap())]))
    }

    /// The same, that ends after so many seconds.
    pub(super) fn caller_for(&self, uri: &str, seconds: u64) -> Pair {
        let mut params = names(&[SanType::URI(uri.try_into().unwrap())]);
        params.not_after = moment!(now() + seconds);
        self.sign(params)
    }

    /// What it has taken back. `seconds` from now it expires, or has before.
    pub(super) fn list(&self, numbers: &[u64], seconds: i64) -> String {
        let revoked = |number: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*number),
            revocation_time: date_time_ymd(2026, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2026, 1, 1),
            next_update: moment!(now().saturating_add_signed(seconds)),
            crl_number: SerialNumber::from(next_number()),
            issuing_distribution_point: None,
            revoked_certs: numbers.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

/// A certificate with these names.
pub(super) fn names(names: &[SanType]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "care-desk");
    params.subject_alt_names = names.to_vec();
    params
}

/// Bytes in DER, with their tag.
pub(super) fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    let head = match length {
        [0, short @ 0..128] => vec![tag, short],
        [0, long] => vec![tag, 0x81, long],
        [high, low] => vec![tag, 0x82, high, low],
    };
    head.into_iter().chain(content.iter().copied()).collect()
}

/// A certificate whose list of names is this DER.
pub(super) fn raw_names(content: Vec<u8>) -> CertificateParams {
    raw_extension(names(&[]), &[2, 5, 29, 17], content)
}

/// The same certificate with one more extension.
pub(super) fn raw_extension(mut params: CertificateParams, oid: &[u64], content: Vec<u8>) -> CertificateParams {
    params.custom_extensions.push(CustomExtension::from_oid_content(oid, content));
    params
}

/// Somebody who speaks TLS.
pub(super) struct Caller {
    config: Arc<ClientConfig>,
}

/// A connection that stands.
pub(super) struct Secure {
    reader: BufReader<StreamOwned<ClientConnection, TcpStream>>,
}

/// TLS 1.2 alone.
pub(super) const ONLY_1_2: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];
/// TLS 1.3 alone.
pub(super) const ONLY_1_3: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

impl Caller {
    /// Believes this authority, and shows this certificate if it is asked.
    pub(super) fn new(ca: &str, pair: Option<&Pair>) -> Self {
        Self::speaking(&[&rustls::version::TLS13, &rustls::version::TLS12], ca, pair)
    }

    /// The same, with these versions.
    pub(super) fn speaking(versions: &[&'static SupportedProtocolVersion], ca: &str, pair: Option<&Pair>) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        let config = match pair {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let chain = CertificateDer::pem_slice_iter(pair.chain.as_bytes()).map(Result::unwrap).collect();
                let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
                let key = aws_lc_rs::sign::any_supported_type(&key).unwrap();
                // It shows what it is given, also what rustls would not show.
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key))))
            }
        };
        Self { config: Arc::new(config) }
    }

    /// The same, offering these protocols.
    pub(super) fn offering(&self, protocols: &[&str]) -> Self {
        let mut config = ClientConfig::clone(&self.config);
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Self { config: Arc::new(config) }
    }

    /// Connects. TLS 1.3 tells whether the other side takes the certificate only when something is read.
    pub(super) fn connect(&self, address: &str) -> Result<Secure, String> {
        let name = ServerName::try_from("data.example").unwrap();
        let mut session = ClientConnection::new(Arc::clone(&self.config), name).unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(CEILING)).unwrap();
        session.complete_io(&mut stream).map_err(|error| error.to_string())?;
        Ok(Secure { reader: BufReader::new(StreamOwned::new(session, stream)) })
    }

    /// One request on a connection of its own.
    pub(super) fn ask(&self, address: &str, request: &str) -> Result<Answer, String> {
        self.connect(address)?.ask(request)
    }
}

impl Secure {
    /// One request.
    pub(super) fn ask(&mut self, request: &str) -> Result<Answer, String> {
        self.reader.get_mut().write_all(request.as_bytes()).map_err(|error| error.to_string())?;
        // A refusal comes as an error of the read, which the reader of heads does not tell.
        if let Err(error) = std::io::BufRead::fill_buf(&mut self.reader) {
            return Err(error.to_string());
        }
        Answer::read(&mut self.reader).ok_or_else(|| "the connection was closed".to_owned())
    }

    /// Sends bytes to somebody who says the same.
    pub(super) fn echo(&mut self, text: &[u8]) -> std::io::Result<()> {
        self.reader.get_mut().write_all(text)?;
        let mut back = vec![0; text.len()];
        std::io::Read::read_exact(&mut self.reader, &mut back)?;
        assert_eq!(back, text);
        Ok(())
    }

    /// The stream, of which nothing was read.
    pub(super) fn into_stream(self) -> StreamOwned<ClientConnection, TcpStream> {
        self.reader.into_inner()
    }

    /// What was agreed on.
    pub(super) fn session(&self) -> &ClientConnection {
        &self.reader.get_ref().conn
    }

    /// The certificate that the other side showed.
    pub(super) fn shown(&self) -> Vec<u8> {
        self.session().peer_certificates().unwrap()[0].to_vec()
    }
}
