//! Services that speak TLS.

use std::io::BufReader;
use std::io::Write as _;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;

use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::ServerConnection;
use rustls::StreamOwned;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::WebPkiClientVerifier;

use super::Tls;
use super::material::Authority;
use super::material::Pair;
use super::material::names;
use crate::support::Folder;
use crate::support::MessageHead;
use crate::support::Sidecar;
use crate::support::err;
use crate::support::out;
use crate::support::permitted;
use crate::support::run;
use crate::support::wait_for;

/// A service behind TLS. Answers `200` and `ok`.
pub(super) struct Service {
    /// `HOST:PORT`.
    pub(super) address: String,
    /// Of each connection that came to a request: the certificate that was shown.
    pub(super) shown: Arc<Mutex<Vec<Option<Vec<u8>>>>>,
}

impl Service {
    /// Shows this, and asks for a certificate of this authority.
    pub(super) fn start(pair: &Pair, client_ca: Option<&str>) -> Self {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(rustls::ALL_VERSIONS)
            .unwrap();
        let builder = match client_ca {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.unwrap())
            }
        };
        let chain = CertificateDer::pem_slice_iter(pair.chain.as_bytes()).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
        let config = Arc::new(builder.with_single_cert(chain, key).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shown = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&shown);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (config, shown, stream) = (Arc::clone(&config), Arc::clone(&shared), stream.unwrap());
                std::thread::spawn(move || serve(stream, config, &shown));
            }
        });
        Self { address, shown }
    }
}

fn serve(stream: TcpStream, config: Arc<ServerConfig>, shown: &Mutex<Vec<Option<Vec<u8>>>>) {
    stream.set_nodelay(true).unwrap();
    let session = ServerConnection::new(config).unwrap();
    let mut reader = BufReader::new(StreamOwned::new(session, stream));
    let mut is_first = true;
    while let Some(head) = MessageHead::read(&mut reader) {
        if std::mem::replace(&mut is_first, false) {
            let leaf = reader.get_ref().conn.peer_certificates().map(|chain| chain[0].to_vec());
            shown.lock().unwrap().push(leaf);
        }
        assert!(head.line.ends_with("HTTP/1.1"), "{head:?}");
        if reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_err() {
            return;
        }
    }
}

/// A sidecar that listens in clear in front of a service with TLS.
fn start(mut tls: Tls, keys: &'static str, environment: &[(&str, &str)]) -> Sidecar {
    tls.upstream_keys = keys;
    tls.identity = "header: {name: DPA-Caller, trusted_peers: [127.0.0.1/32]}";
    let settings = tls.settings().replace(&format!(", tls: {}", tls.listener), "");
    Sidecar::start(tls.folder, &settings, environment)
}

#[test]
fn a_service_is_known_by_its_certificate() {
    let other = Authority::new("Other Authority");
    let by = ", tls: {ca: ca.crt, server_name: data.example}";
    let expired = |authority: &Authority| {
        let mut params = rcgen::CertificateParams::new(["data.example".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        authority.sign(params)
    };
    type Show<'a> = &'a dyn Fn(&Authority) -> Pair;
    let table: [(&str, Show<'_>, &str, Option<&str>); 8] = [
        ("under its name", &Authority::server, by, None),
        ("under its address", &Authority::server, ", tls: {ca: ca.crt}", None),
        (
            "under another name",
            &Authority::server,
            ", tls: {ca: ca.crt, server_name: b.example}",
            Some("not valid for name"),
        ),
        ("of another authority", &|_| other.server(), by, Some("UnknownIssuer")),
        ("expired", &expired, by, Some("expired")),
        ("without names", &|authority| authority.sign(names(&[])), by, Some("not valid for name")),
        ("in clear behind it", &Authority::server, "", Some("")),
        ("for callers alone", &for_callers, by, Some("invalid peer certificate")),
    ];
    for (name, pair, keys, expected) in table {
        let tls = Tls::to("");
        let service = Service::start(&pair(&tls.authority), None);
        let tls = Tls { upstream: service.address.clone(), ..tls };
        let sidecar = start(tls, keys, &[]);
        for _ in 0..3 {
            let answer = sidecar.ask(permitted());
            let Some(expected) = expected else {
                assert_eq!((answer.status, answer.text()), (200, "ok".to_owned()), "{name}: {}", sidecar.stderr.text());
                continue;
            };
            assert_eq!((answer.status, answer.reason()), (502, "upstream_unavailable".to_owned()), "{name}");
            // What is answered may be here before what is logged.
            let told =
                if keys.is_empty() { expected.to_owned() } else { "no TLS with the upstream `app`: ".to_owned() };
            let is_told = |line: &str| line.contains(&told) && line.contains(expected);
            wait_for(name, || sidecar.stderr.text().lines().any(is_told).then_some(()));
            let outcome = sidecar.outcome(&answer.decision_id());
            assert!(keys.is_empty() || outcome["outcome"] == "not_forwarded", "{name}: {outcome}");
        }
        let connections = service.shown.lock().unwrap().len();
        // Each of two workers keeps one.
        let is_right = if expected.is_none() { (1..=2).contains(&connections) } else { connections == 0 };
        assert!(is_right, "{name}: {connections} connections came to a request");
    }
}

fn for_callers(authority: &Authority) -> Pair {
    let mut params = rcgen::CertificateParams::new(["data.example".to_owned()]).unwrap();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    authority.sign(params)
}

#[test]
fn the_bundle_of_the_machine() {
    let tls = Tls::to("");
    let service = Service::start(&tls.authority.server(), None);
    let bundle = Folder::new();
    let other = Authority::new("Other Authority");
    let keys = ", tls: {ca: system, server_name: data.example}";
    // Beside what can be read stands what cannot.
    let odd = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let with = bundle.write("with.crt", &format!("{}{odd}{}", other.pem, tls.authority.pem));
    let without = bundle.write("without.crt", &other.pem);
    let address = service.address.clone();
    let sidecar = start(Tls { upstream: address.clone(), ..tls }, keys, &[("SSL_CERT_FILE", with.to_str().unwrap())]);
    assert_eq!(sidecar.ask(permitted()).status, 200, "{}", sidecar.stderr.text());
    let tls = Tls::to(&address);
    let sidecar = start(tls, keys, &[("SSL_CERT_FILE", without.to_str().unwrap())]);
    assert_eq!(sidecar.ask(permitted()).reason(), "upstream_unavailable");
}

#[test]
fn the_sidecar_shows_who_it_is() {
    let tls = Tls::to("");
    let own = tls.authority.caller("spiffe://lumenfield.example/sa/sidecar");
    let next = tls.authority.caller("spiffe://lumenfield.example/sa/sidecar");
    let service = Service::start(&tls.authority.server(), Some(&tls.authority.pem));
    tls.folder.write("own.crt", &own.chain);
    tls.folder.write("own.key", &own.key);
    let (certificate, key) = (tls.folder.file("own.crt"), tls.folder.file("own.key"));
    let keys = ", tls: {ca: ca.crt, server_name: data.example, certificate: own.crt, private_key: own.key}";
    let sidecar = start(Tls { upstream: service.address.clone(), ..tls }, keys, &[]);
    assert_eq!(sidecar.ask(permitted()).status, 200, "{}", sidecar.stderr.text());
    assert_eq!(service.shown.lock().unwrap().as_slice(), [Some(own.der)]);
    std::fs::write(certificate, &next.chain).unwrap();
    std::fs::write(key, &next.key).unwrap();
    wait_for("the new certificate", || {
        assert_eq!(sidecar.ask(permitted()).status, 200);
        service.shown.lock().unwrap().last().is_some_and(|shown| shown.as_ref() == Some(&next.der)).then_some(())
    });
}

#[test]
fn a_service_that_wants_a_certificate_gets_none() {
    let tls = Tls::to("");
    let service = Service::start(&tls.authority.server(), Some(&tls.authority.pem));
    let sidecar =
        start(Tls { upstream: service.address, ..tls }, ", tls: {ca: ca.crt, server_name: data.example}", &[]);
    let answer = sidecar.ask(permitted());
    assert_eq!((answer.status, answer.reason()), (502, "upstream_unavailable".to_owned()));
    wait_for("the reason", || sidecar.stderr.text().contains("CertificateRequired").then_some(()));
}

#[test]
fn settings_of_upstreams_that_cannot_be() {
    let table = [
        ("a certificate alone", "{ca: ca.crt, certificate: tls.crt}", "[DPA005]"),
        ("no authority", "{server_name: data.example}", "[DPA005]"),
        ("not verified", "{ca: none}", "[DPA046]"),
        ("a key of another", "{ca: ca.crt, certificate: ca.crt, private_key: tls.key}", "[DPA050]"),
        ("over a Unix socket", "{ca: ca.crt, server_name: data.example}", "[DPA021]"),
        ("a word that is no key", "{ca: ca.crt, insecure: true}", "[DPA004]"),
    ];
    for (name, keys, expected) in table {
        let tls = Tls::to("127.0.0.1:1");
        let address = if name.contains("Unix") { "unix:app.sock" } else { "127.0.0.1:1" };
        let text = tls.settings().replace("address: '127.0.0.1:1'", &format!("address: '{address}', tls: {keys}"));
        tls.folder.write("sidecar.yaml", &text);
        let checked = run(&tls.folder.file("."), &["check", "sidecar.yaml"]);
        assert_eq!(checked.status.code(), Some(1), "{name}: {}", err(&checked));
        assert!(out(&checked).contains(expected), "{name}: {}", out(&checked));
    }
}
