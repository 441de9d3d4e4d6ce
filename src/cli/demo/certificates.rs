//! The certificates of `demo --tls`: those of an authority, of the sidecar and of each caller of the tour.
//!
//! The key of the authority is written nowhere, so nobody can make more of them.

use std::fs::DirBuilder;
use std::fs::OpenOptions;
use std::io;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::SystemTime;

use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::DistinguishedName;
use rcgen::DnType;
use rcgen::ExtendedKeyUsagePurpose;
use rcgen::IsCa;
use rcgen::Issuer;
use rcgen::KeyPair;
use rcgen::KeyUsagePurpose;
use rcgen::SanType;
use rustls::pki_types::IpAddr;
use rustls::pki_types::ServerName;

use super::tour::Caller;
use crate::cli::CliError;
use crate::tls;
use crate::tls::PemFile;
use crate::yaml::At;

/// Where they are, in the demo's folder.
pub(super) const FOLDER: &str = "tls";

/// How long they hold, in seconds; and how long before now they began, for a clock that is set back.
const LIFE: u64 = 24 * 60 * 60;
const BEFORE: u64 = 60;

/// The files. They go when this goes: nobody needs them after the demo.
pub(super) struct Certificates {
    folder: PathBuf,
}

/// Who signs.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate, as PEM.
    pem: String,
}

impl Certificates {
    /// Makes and writes them, below this folder.
    pub(super) fn make<'c>(folder: &Path, callers: impl IntoIterator<Item = &'c Caller>) -> io::Result<Self> {
        let certificates = Self { folder: folder.join(FOLDER) };
        DirBuilder::new().mode(0o700).create(&certificates.folder)?;
        let authority = Authority::new("Demo Authority").map_err(io::Error::other)?;
        let stranger = Authority::new("Authority Nobody Trusts").map_err(io::Error::other)?;
        std::fs::write(certificates.file("ca.crt"), &authority.pem)?;
        let names = vec![
            SanType::IpAddress(Ipv4Addr::LOCALHOST.into()),
            SanType::DnsName("localhost".try_into().map_err(io::Error::other)?),
        ];
        certificates.write(&authority, "server", names, ExtendedKeyUsagePurpose::ServerAuth)?;
        for caller in callers {
            let authority = if caller.is_vouched_for { &authority } else { &stranger };
            let names = vec![SanType::URI(caller.identity.try_into().map_err(io::Error::other)?)];
            certificates.write(authority, caller.name, names, ExtendedKeyUsagePurpose::ClientAuth)?;
        }
        Ok(certificates)
    }

    fn write(
        &self,
        authority: &Authority,
        name: &str,
        names: Vec<SanType>,
        usage: ExtendedKeyUsagePurpose,
    ) -> io::Result<()> {
        let (certificate, key) = authority.sign(name, names, usage).map_err(io::Error::other)?;
        std::fs::write(self.file(&format!("{name}.crt")), certificate)?;
        let key_file = self.file(&format!("{name}.key"));
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(key_file)?.write_all(key.as_bytes())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// What a caller needs to speak with the sidecar; nobody shows no certificate.
    pub(super) fn client(&self, caller: Option<&Caller>) -> Result<tls::Client, CliError> {
        let pem = |name: &str| PemFile { value: self.file(name), at: At::default() };
        let settings = tls::ClientSettings {
            ca: pem("ca.crt"),
            is_system: false,
            server_name: ServerName::IpAddress(IpAddr::from(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST))),
            own: caller.map(|caller| (pem(&format!("{}.crt", caller.name)), pem(&format!("{}.key", caller.name)))),
            protocol: tls::HTTP1,
        };
        tls::Client::load("sidecar", settings).map_err(|error| CliError::Demo(io::Error::other(error)))
    }

    /// The same as options of curl, from the demo's folder.
    pub(super) fn curl_options(caller: Option<&Caller>) -> String {
        let own = caller.map(|Caller { name, .. }| format!(" --cert {FOLDER}/{name}.crt --key {FOLDER}/{name}.key"));
        format!("--cacert {FOLDER}/ca.crt{}", own.unwrap_or_default())
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        // What is left is of no use from tomorrow on.
        let _left = std::fs::remove_dir_all(&self.folder);
    }
}

impl Authority {
    fn new(name: &str) -> Result<Self, rcgen::Error> {
        let mut params = params(name, Vec::new());
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    /// A certificate and its key, as PEM.
    fn sign(
        &self,
        name: &str,
        names: Vec<SanType>,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<(String, String), rcgen::Error> {
        let mut params = params(name, names);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
    }
}

/// What all of them have: TLS goes by the time of the machine, not by the demo's clock.
fn params(name: &str, names: Vec<SanType>) -> CertificateParams {
    let mut params = CertificateParams::default();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let begin = Duration::from_secs(now.as_secs().saturating_sub(BEFORE));
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + begin;
    params.not_after = params.not_before + Duration::from_secs(BEFORE + LIFE);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = names;
    params
}
