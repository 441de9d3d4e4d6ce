//! TLS in the settings: of listeners, towards upstreams, and what their files hold.

use std::collections::HashSet;
use std::path::Path;

use jiff::SignedDuration;
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject as _;
use schemars::JsonSchema;
use serde::Deserialize;

use super::Compiler;
use super::Listener;
use super::Settings;
use super::Way;
use super::document;
use crate::files;
use crate::forward::Protocol;
use crate::policy::Policy;
use crate::policy::TlsVersion;
use crate::policy::problem::Code;
use crate::policy::problem::Problem;
use crate::policy::problem::Problems;
use crate::policy::terms::Identity;
use crate::tls;
use crate::tls::Clients;
use crate::tls::PemFile;
use crate::tls::Unusable;
use crate::yaml::At;
use crate::yaml::List;
use crate::yaml::Spanned;

/// What a listener shows and asks for. Files are PEM, paths count from the folder of this file.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("dependentRequired" = {"crl": ["client_ca"]}))]
pub(super) struct ListenerTls {
    /// The sidecar's own certificate first, then those that vouch for it.
    certificate: Spanned<String>,
    /// The key of the first certificate, without a passphrase.
    private_key: Spanned<String>,
    /// The authorities that vouch for callers. Default: none, and no certificate is asked for.
    client_ca: Option<Spanned<String>>,
    /// Whether a caller shows a certificate. Default: required with `client_ca`, else none.
    client_authentication: Option<Spanned<ClientAuthentication>>,
    /// The lowest version that is spoken. Default: 1.3.
    min_version: Option<TlsVersion>,
    /// What the authorities have taken back: a list of each. Default: nothing is looked up.
    #[schemars(length(min = 1))]
    crl: Option<List<Spanned<String>>>,
}

#[derive(Clone, Copy, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum ClientAuthentication {
    /// No connection without a certificate.
    Required,
    /// A certificate that is shown is verified.
    Optional,
    /// No certificate is asked for.
    None,
}

/// How an upstream is known. It is always verified.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("dependentRequired" = {"certificate": ["private_key"], "private_key": ["certificate"]}))]
pub(super) struct UpstreamTls {
    /// A PEM file of the authorities that vouch for it, or `system`: the bundle of the machine.
    ca: Spanned<String>,
    /// The name that its certificate has to bear. Default: the host of `address`.
    server_name: Option<Spanned<String>>,
    /// The certificate that the sidecar shows, if asked: its own first. Default: none.
    certificate: Option<Spanned<String>>,
    /// The key of that certificate, without a passphrase.
    private_key: Option<Spanned<String>>,
}

impl UpstreamTls {
    /// A place in it.
    pub(super) fn at(&self) -> At {
        self.ca.at
    }
}

/// A caller is who its client certificate names.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CertificateWay {
    /// The trust domains whose SPIFFE IDs count. Default: all that a listener's `client_ca` vouches for.
    #[schemars(length(min = 1))]
    trust_domains: Option<List<Spanned<String>>>,
}

/// Where systems keep the authorities that they trust: Debian and Alpine, Fedora, openSUSE, BSD.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// How long before its end `check` speaks of a certificate.
const SOON: SignedDuration = SignedDuration::from_hours(30 * 24);

impl Compiler<'_> {
    fn pem(&self, Spanned { value, at }: Spanned<String>) -> PemFile {
        Spanned { value: self.folder.join(value), at }
    }

    pub(super) fn listener_tls(&mut self, tls: ListenerTls) -> tls::ServerSettings {
        let ListenerTls { certificate, private_key, client_ca, client_authentication, min_version, crl } = tls;
        let crl = crl.map(|list| (list.at, self.filled(list)));
        let asked = client_authentication.as_ref().map_or(ClientAuthentication::Required, |asked| asked.value);
        let clients = match (client_ca, asked) {
            (Some(ca), ClientAuthentication::Required | ClientAuthentication::Optional) => Some(Clients {
                ca: self.pem(ca),
                crl: crl.into_iter().flat_map(|(_, files)| files).map(|file| self.pem(file)).collect(),
                are_required: asked == ClientAuthentication::Required,
            }),
            (Some(ca), ClientAuthentication::None) => {
                let message = "this listener asks for no certificate, so `client_ca` is not used";
                let help = "remove `client_ca`, or write `client_authentication: optional`";
                self.problems.push(Problem::warning(Code::NeverWorks, ca.at, message, help));
                None
            }
            (None, ClientAuthentication::Required | ClientAuthentication::Optional) => {
                let help = "add `client_ca: …`, a PEM file of the authorities that vouch for callers";
                if let Some(asked) = client_authentication {
                    let message = "certificates are asked for, and nobody vouches for them";
                    self.error(Code::MissingField, asked.at, message, help);
                } else if let Some((at, _)) = crl {
                    self.error(Code::MissingField, at, "no certificate is asked for that `crl` could be about", help);
                }
                None
            }
            (None, ClientAuthentication::None) => {
                if let Some((at, _)) = crl {
                    let message = "no certificate is asked for that `crl` could be about";
                    self.error(Code::OneOf, at, message, "remove `crl`, or ask for certificates");
                }
                None
            }
        };
        let min_version = min_version.unwrap_or(TlsVersion::V1_3);
        tls::ServerSettings {
            certificate: self.pem(certificate),
            private_key: self.pem(private_key),
            clients,
            min_version,
        }
    }

    pub(super) fn upstream_tls(
        &mut self,
        tls: UpstreamTls,
        address: &Spanned<String>,
        protocol: Protocol,
    ) -> Option<tls::ClientSettings> {
        let UpstreamTls { ca, server_name, certificate, private_key } = tls;
        let own = match (certificate, private_key) {
            (Some(certificate), Some(private_key)) => Some((self.pem(certificate), self.pem(private_key))),
            (None, None) => None,
            (Some(Spanned { at, .. }), None) | (None, Some(Spanned { at, .. })) => {
                let message = "certificate and key go together, and one of them is missing";
                self.error(Code::MissingField, at, message, "add `certificate: …` or `private_key: …`");
                None
            }
        };
        let is_system = ca.value == "system";
        let ca = if is_system { self.system_bundle(ca.at) } else { Some(self.pem(ca)) };
        let host = address.value.rsplit_once(':').map_or("", |(host, _)| host);
        let host = Spanned { value: host.trim_start_matches('[').trim_end_matches(']').to_owned(), at: address.at };
        let name = server_name.unwrap_or(host);
        let server_name = ServerName::try_from(name.value.clone()).ok();
        // What is wrong with an address has been said.
        if server_name.is_none() && !name.value.is_empty() {
            let message = format!("`{}` is not a name that a certificate can bear", name.value);
            self.error(Code::Invalid, name.at, message, "write `server_name: …` with a DNS name or an IP address");
        }
        let protocol = match protocol {
            Protocol::Http1 => tls::HTTP1,
            Protocol::Http2 => tls::HTTP2,
        };
        Some(tls::ClientSettings { ca: ca?, is_system, server_name: server_name?, own, protocol })
    }

    fn system_bundle(&mut self, at: At) -> Option<PemFile> {
        let named = (self.environment)("SSL_CERT_FILE").filter(|path| !path.is_empty());
        let found = named.or_else(|| BUNDLES.into_iter().find(|path| Path::new(path).exists()).map(str::to_owned));
        if found.is_none() {
            let message = "this machine has no bundle of authorities where one is looked for";
            let help = "install one (`ca-certificates`), set SSL_CERT_FILE, or name a PEM file";
            self.error(Code::Unreadable, at, message, help);
        }
        Some(Spanned { value: found?.into(), at })
    }

    /// Whether a listener asks for the certificates that callers are told by.
    pub(super) fn certificates_asked_for(&mut self, ways: &[Spanned<document::Identity>], listeners: &[Listener]) {
        let way = ways.iter().find_map(|way| way.value.certificate.as_ref());
        if let Some(Spanned { at, .. }) = way.filter(|_| !listeners.iter().any(Listener::asks_for_certificates)) {
            let message = "callers are told by their certificates, and no listener asks for one";
            let help = "give a listener `tls` with `client_ca: …`, or remove this way";
            self.problems.push(Problem::warning(Code::NeverWorks, *at, message, help));
        }
    }

    pub(super) fn certificate_way(&mut self, way: CertificateWay) -> Way {
        let listed = way.trust_domains.map(|list| self.filled(list)).unwrap_or_default();
        let mut trust_domains = Vec::new();
        for Spanned { value, at } in listed {
            match value.parse() {
                Ok(domain) => trust_domains.push(domain),
                Err(_) => {
                    let message = format!("`{value}` is not a trust domain");
                    let help = "write small letters, digits, `.`, `-` and `_`, without `spiffe://` and path";
                    self.error(Code::Invalid, at, message, help);
                }
            }
        }
        Way::Certificate { trust_domains }
    }
}

impl Settings {
    /// What is wrong with the PEM files that the settings name, and what of them ends soon after `look_out`.
    #[must_use]
    pub fn check_files(&self, look_out: Timestamp) -> Problems {
        let mut problems = Problems::default();
        let mut check = |loaded: Result<Vec<tls::Ending>, Unusable>| match loaded {
            Ok(endings) => endings.iter().for_each(|ending| problems.0.extend(ends_soon(ending, look_out))),
            Err(unusable) => problems.push(problem(&unusable)),
        };
        for listener in &self.listeners {
            let server = |tls| tls::Server::load(&listener.name, tls).map(|server| server.endings());
            listener.tls.clone().map(server).into_iter().for_each(&mut check);
        }
        for upstream in &self.upstreams {
            let client = |tls| tls::Client::load(&upstream.name, tls).map(|client| client.endings());
            upstream.tls.clone().map(client).into_iter().for_each(&mut check);
        }
        problems
    }

    /// What the policy promises of connections (clause 3.1) and a listener does not give.
    pub(super) fn check_transport(&self, policy: &Policy, problems: &mut Problems) {
        for listener in self.listeners.iter().filter(|listener| listener.egress.is_none()) {
            let name = &listener.name;
            let at = listener.at;
            let mut warn = |code, message: String, help: &str| {
                problems.push(Problem::warning(code, at, message, help));
            };
            let all = "every request is denied as `transport_too_weak`";
            if let Some(floor) = policy.security.min_tls_version {
                let lacks = |tls: &tls::ServerSettings| tls.min_version < floor;
                let floor = floor.as_str();
                match &listener.tls {
                    None => warn(
                        Code::NeverWorks,
                        format!("the policy promises TLS {floor}, and the listener `{name}` speaks in clear"),
                        &format!("{all}: give the listener `tls: {{certificate: …, private_key: …}}`"),
                    ),
                    Some(tls) if lacks(tls) => warn(
                        Code::BelowPolicy,
                        format!("the policy promises TLS {floor}, and the listener `{name}` also takes less"),
                        &format!("such requests are denied as `transport_too_weak`: write `min_version: \"{floor}\"`"),
                    ),
                    Some(_) => {}
                }
            }
            if policy.security.client_certificate_required {
                let clients = listener.tls.as_ref().and_then(|tls| tls.clients.as_ref());
                match clients {
                    None => warn(
                        Code::NeverWorks,
                        format!("the policy promises client certificates, and the listener `{name}` asks for none"),
                        &format!("{all}: give the listener `tls` with `client_ca: …`"),
                    ),
                    Some(Clients { are_required: false, .. }) => warn(
                        Code::BelowPolicy,
                        format!("the policy promises client certificates, and the listener `{name}` does without"),
                        "requests without one are denied as `transport_too_weak`: write `client_authentication: required`",
                    ),
                    Some(_) => {}
                }
            }
        }
    }
}

impl Settings {
    /// Listeners with several authorities, each of which may then name callers of every trust domain that counts.
    pub(super) fn check_authorities(&self, policy: &Policy, problems: &mut Problems) {
        let by_certificate = self.trust.ways.iter().find(|way| matches!(way, Way::Certificate { .. }));
        let peers = || self.trust.ways.iter().filter_map(Way::trusted_peers).flat_map(|peers| &peers.identities);
        let is_within =
            |identity: &Identity| identity.is_spiffe() && by_certificate.is_some_and(|way| way.can_prove(identity));
        let has_names = by_certificate.is_some() && policy.all_identities().any(|(identity, _)| identity.is_dns());
        let is_one = match by_certificate {
            Some(Way::Certificate { trust_domains }) => {
                trust_domains.len() == 1 && !has_names && peers().all(is_within)
            }
            Some(_) | None => peers().next().is_none(),
        };
        if is_one {
            return;
        }
        for clients in self.listeners.iter().filter_map(|listener| listener.tls.as_ref()?.clients.as_ref()) {
            let Spanned { value, at } = &clients.ca;
            if roots(value) > 1 {
                let message = "each of these authorities may vouch for callers of every trust domain and name";
                let help = "give each authority a listener of its own, or keep to one authority, or let one trust domain count";
                problems.push(Problem::warning(Code::TooTrusting, *at, message, help));
            }
        }
    }
}

/// How many different certificates a PEM file has; none, if it cannot be read.
fn roots(path: &Path) -> usize {
    let Ok(bytes) = files::read(path, tls::MAX_BYTES) else { return 0 };
    CertificateDer::pem_slice_iter(&bytes).map_while(Result::ok).collect::<HashSet<_>>().len()
}

fn ends_soon(ending: &tls::Ending, look_out: Timestamp) -> Option<Problem> {
    let left = ending.until.duration_since(look_out);
    if left > SOON || (ending.list.is_some() && ending.nearness(look_out).is_none()) {
        return None;
    }
    let tense = if left.is_positive() { "ends" } else { "has ended" };
    let message = format!("{} {tense}: {}", ending.what, ending.until);
    let help = "renew it: it is taken from the file without a restart";
    Some(Problem::warning(Code::EndsSoon, ending.at, message, help))
}

fn problem(unusable: &Unusable) -> Problem {
    let Unusable { at, message, help, source } = unusable;
    match source {
        Some(source) => Problem::error(Code::Unreadable, *at, format!("{message}: {source}"), *help),
        None => Problem::error(Code::Credentials, *at, message, *help),
    }
}
