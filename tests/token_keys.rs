//! Keys of the issuers of tokens: renewed from files and URLs, and never lost.

use std::io::Read as _;
use std::io::Write as _;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use serde_json::json;

use crate::support::CEILING;
use crate::support::Folder;
use crate::support::Head;
use crate::support::SUBSCRIBER;
use crate::support::Sidecar;
use crate::support::Then;
use crate::support::Upstream;
use crate::support::wait_for;
use crate::tokens::Given;
use crate::tokens::ISSUER;
use crate::tokens::Signer;
use crate::tokens::ask;
use crate::tokens::issuer;
use crate::tokens::p256;
use crate::tokens::readiness;
use crate::tokens::set;
use crate::tokens::token;
use crate::tokens::who;

/// Who the sidecar takes the care desk for, with a token of this key.
fn believed(sidecar: &Sidecar, signer: &Signer, kid: &str) -> Result<String, String> {
    let bearer = format!("Bearer {}", token(signer, "ES256", kid, json!({})));
    let (_, record) = ask(sidecar, &[bearer]);
    who(&record).map(str::to_owned).map_err(str::to_owned)
}

fn care_desk() -> Result<String, String> {
    Ok("care-desk".to_owned())
}

fn unknown_key() -> Result<String, String> {
    Err("unknown_key".to_owned())
}

/// An answer, as it is on the wire.
fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// A server of keys that says what it is told, and counts.
struct Issuing {
    server: Upstream,
    says: Arc<Mutex<String>>,
}

impl Issuing {
    fn saying(text: String) -> Self {
        let says = Arc::new(Mutex::new(text));
        let shared = Arc::clone(&says);
        let server = Upstream::start(move |exchange| {
            let text = shared.lock().unwrap().clone();
            exchange.send(text);
            Then::Close
        });
        Self { server, says }
    }

    fn keys(keys: &[(&Signer, &str)]) -> String {
        let keys: Vec<_> = keys.iter().map(|(signer, kid)| signer.jwk(json!({"kid": kid}))).collect();
        answer("200 OK", &set(&keys))
    }

    fn say(&self, text: String) {
        *self.says.lock().unwrap() = text;
    }

    fn given(&self) -> Given {
        Given::identity(&issuer(&format!("jwks_url: 'http://{}/jwks?v=1'", self.server.address)))
    }

    fn count(&self) -> usize {
        self.server.seen().len()
    }
}

#[test]
fn a_file_of_keys_is_taken_up_when_it_changes() {
    let (old, new) = (p256(), p256());
    let jwks = |keys: &[(&Signer, &str)]| {
        set(&keys.iter().map(|(signer, kid)| signer.jwk(json!({"kid": kid}))).collect::<Vec<_>>())
    };
    let folder = Folder::new();
    folder.write("a.json", &jwks(&[(&old, "old")]));
    folder.write("b.json", &jwks(&[(&new, "new")]));
    let path = folder.file("jwks.json");
    let link = |to: &str| {
        let new = path.with_extension("new");
        std::os::unix::fs::symlink(to, &new).unwrap();
        std::fs::rename(&new, &path).unwrap();
    };
    link("a.json");
    let upstream = Upstream::ok();
    let given = Given::identity(&issuer("jwks_file: jwks.json"));
    let sidecar = given.start_in(&upstream, folder);
    assert_eq!(believed(&sidecar, &old, "old"), care_desk());
    assert_eq!(believed(&sidecar, &new, "new"), unknown_key());

    link("b.json");
    wait_for("the new key", || believed(&sidecar, &new, "new").ok());
    assert_eq!(believed(&sidecar, &old, "old"), unknown_key(), "a key that is gone is no key");

    let refused = |times: usize| {
        wait_for("a refusal in the log", || {
            (sidecar.stderr.text().matches("changed files are refused").count() == times).then_some(())
        });
    };
    for (place, bad) in
        ["{\"keys\": []}", "no JSON", "{\"keys\": [{\"kty\": \"oct\", \"k\": \"AAAA\"}]}"].into_iter().enumerate()
    {
        std::fs::write(&path, bad).unwrap();
        refused(place + 1);
        assert_eq!(believed(&sidecar, &new, "new"), care_desk(), "{bad}");
    }
    assert!(readiness(&given).contains("; the last try failed"), "{}", readiness(&given));
    std::fs::remove_file(&path).unwrap();
    assert_eq!(believed(&sidecar, &new, "new"), care_desk(), "a file that is gone takes no key away");
    std::fs::write(&path, jwks(&[(&old, "old"), (&new, "new")])).unwrap();
    wait_for("both keys", || believed(&sidecar, &old, "old").ok());
    assert!(readiness(&given).contains(&format!("[+] keys: {ISSUER}: 2 keys, read ")), "{}", readiness(&given));
}

#[test]
fn an_issuer_with_a_new_key_is_asked_once() {
    let (old, new, made_up) = (p256(), p256(), p256());
    let issuing = Issuing::saying(Issuing::keys(&[(&old, "old")]));
    let upstream = Upstream::ok();
    let given = issuing.given();
    let sidecar = given.start_in(&upstream, Folder::new());
    assert_eq!(believed(&sidecar, &old, "old"), care_desk());
    assert_eq!(issuing.count(), 1);
    let asked = issuing.server.last().head;
    assert_eq!(asked.line, "GET /jwks?v=1 HTTP/1.1");
    assert_eq!(asked.value("host"), Some(issuing.server.address.as_str()));

    issuing.say(Issuing::keys(&[(&old, "old"), (&new, "new")]));
    assert_eq!(believed(&sidecar, &new, "new"), care_desk(), "the first request with the new key waits for it");
    assert_eq!(issuing.count(), 2);
    for number in 0..25 {
        assert_eq!(believed(&sidecar, &made_up, &format!("made-up-{number}")), unknown_key());
    }
    assert_eq!(issuing.count(), 2, "made-up keys are a load on the issuer");
    assert_eq!(believed(&sidecar, &old, "old"), care_desk());
    assert!(readiness(&given).contains(&format!("[+] keys: {ISSUER}: 2 keys, fetched ")), "{}", readiness(&given));
}

#[test]
fn many_requests_with_a_new_key_wait_for_one_fetch() {
    let (old, new) = (p256(), p256());
    let issuing = Issuing::saying(Issuing::keys(&[(&old, "old")]));
    let upstream = Upstream::ok();
    let sidecar = issuing.given().start_in(&upstream, Folder::new());
    assert_eq!(believed(&sidecar, &old, "old"), care_desk());
    issuing.say(Issuing::keys(&[(&new, "new")]));
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| assert_eq!(believed(&sidecar, &new, "new"), care_desk()));
        }
    });
    assert_eq!(issuing.count(), 2);
}

#[test]
fn a_sidecar_starts_while_an_issuer_is_down() {
    let signer = p256();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let upstream = Upstream::ok();
    let given = Given::identity(&issuer(&format!("jwks_url: 'http://{address}/jwks'")));
    let sidecar = given.start_in(&upstream, Folder::new());
    wait_for("the failure in the log", || sidecar.stderr.text().contains("cannot fetch the keys").then_some(()));
    let told = readiness(&given);
    assert!(told.starts_with("HTTP/1.1 200"), "an issuer that is down takes the service down: {told}");
    assert!(told.contains(&format!("[-] keys: {ISSUER}: no keys yet; the last try failed")), "{told}");

    let listener = TcpListener::bind(address).unwrap();
    let body = Issuing::keys(&[(&signer, "key")]);
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = [0; 4096];
        let _head = stream.read(&mut head).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
    });
    assert_eq!(believed(&sidecar, &signer, "key"), care_desk());
    server.join().unwrap();
    // Now it is down again, for good.
    assert_eq!(believed(&sidecar, &signer, "key"), care_desk());
    assert_eq!(believed(&sidecar, &signer, "other"), unknown_key());
    assert!(sidecar.stderr.text().contains("fetched the keys of an issuer"));
}

#[test]
fn what_is_no_key_set_changes_nothing() {
    let (good, other) = (p256(), p256());
    let elsewhere = Issuing::saying(Issuing::keys(&[(&other, "other")]));
    let location = format!("Location: http://{}/jwks\r\n", elsewhere.server.address);
    let moved = |status: &str| format!("HTTP/1.1 {status}\r\n{location}Content-Length: 0\r\n\r\n");
    let huge =
        format!("{{\"x\": \"{}\", {}", "x".repeat(1024 * 1024), &set(&[other.jwk(json!({"kid": "other"}))])[1..]);
    let whole = Issuing::keys(&[(&other, "other")]);
    let many: Vec<_> =
        (0..300).map(|n| other.jwk(json!({"kid": if n == 0 { "other".into() } else { n.to_string() }}))).collect();
    let twice = set(&[other.jwk(json!({"kid": "other"}))]).replace("\"kid\":", "\"kid\":\"x\",\"kid\":");
    let table: [(&str, String); 12] = [
        ("an error", answer("500 Internal Server Error", &set(&[other.jwk(json!({"kid": "other"}))]))),
        ("another status of success", answer("203 Maybe", &set(&[other.jwk(json!({"kid": "other"}))]))),
        ("a redirect", moved("302 Found")),
        ("a redirect for good", moved("308 Permanent Redirect")),
        ("no JSON", answer("200 OK", "<html></html>")),
        ("no keys", answer("200 OK", "{\"keys\": []}")),
        ("a list", answer("200 OK", "[]")),
        ("a member twice", answer("200 OK", &twice)),
        ("too many keys", answer("200 OK", &set(&many))),
        ("more than 1 MiB", answer("200 OK", &huge)),
        ("half of it", whole[..whole.len() - 20].to_owned()),
        ("no HTTP", "hello\r\n\r\n".to_owned()),
    ];
    let upstream = Upstream::ok();
    for (name, bad) in table {
        let issuing = Issuing::saying(Issuing::keys(&[(&good, "good")]));
        let sidecar = issuing.given().start_in(&upstream, Folder::new());
        assert_eq!(believed(&sidecar, &good, "good"), care_desk(), "{name}");
        issuing.say(bad);
        assert_eq!(believed(&sidecar, &other, "other"), unknown_key(), "{name}");
        wait_for("the failure in the log", || sidecar.stderr.text().contains("cannot fetch the keys").then_some(()));
        assert_eq!(believed(&sidecar, &good, "good"), care_desk(), "{name}");
        assert_eq!(issuing.count(), 2, "{name}");
    }
    assert_eq!(elsewhere.count(), 0, "a redirect was followed");
}

#[test]
fn an_issuer_that_does_not_answer_holds_up_nobody_for_long() {
    let (good, other) = (p256(), p256());
    let is_slow = Arc::new(AtomicBool::new(false));
    let is_held = Arc::new(AtomicBool::new(false));
    let body = Issuing::keys(&[(&good, "good")]);
    let (slow, held) = (Arc::clone(&is_slow), Arc::clone(&is_held));
    let server = Upstream::start(move |exchange| {
        if slow.load(Ordering::SeqCst) {
            held.store(true, Ordering::SeqCst);
            exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{");
            exchange.until_closed();
            held.store(false, Ordering::SeqCst);
        } else {
            exchange.send(&body);
        }
        Then::Close
    });
    let upstream = Upstream::ok();
    let given = Given::identity(&issuer(&format!("jwks_url: 'http://{}/'", server.address)));
    let sidecar = given.start_in(&upstream, Folder::new());
    assert_eq!(believed(&sidecar, &good, "good"), care_desk());
    is_slow.store(true, Ordering::SeqCst);
    assert_eq!(believed(&sidecar, &other, "other"), unknown_key());
    assert!(is_held.load(Ordering::SeqCst), "the request waited as long as the fetch");
    assert_eq!(believed(&sidecar, &good, "good"), care_desk());
    wait_for("the end of the fetch", || (!is_held.load(Ordering::SeqCst)).then_some(()));
    wait_for("the failure in the log", || sidecar.stderr.text().contains("it took more than 5 s").then_some(()));
}

#[test]
fn a_request_that_went_away_while_it_waited_for_keys_left_no_trace() {
    let signer = p256();
    let (asked, was_asked) = std::sync::mpsc::channel();
    let server = Upstream::start(move |exchange| {
        asked.send(()).unwrap();
        exchange.until_closed();
        Then::Close
    });
    let upstream = Upstream::ok();
    let given = Given::identity(&issuer(&format!("jwks_url: 'http://{}/'", server.address)));
    let sidecar = given.start_in(&upstream, Folder::new());
    // The first fetch is under way, and goes on for longer than a request waits.
    was_asked.recv_timeout(CEILING).unwrap();
    let bearer = format!("Bearer {}", token(&signer, "ES256", "any", json!({})));
    let mut connection = sidecar.connect();
    connection.send(Head::bare("GET", SUBSCRIBER).with("Authorization", &bearer).end());
    drop(connection);
    let record = sidecar.unread("gone");
    assert_eq!(record["gone"], 1, "{record}");
}

#[test]
fn keys_over_tls_from_an_authority_of_ones_own() {
    let signer = p256();
    let table = [
        ("the authority of its certificate", "127.0.0.1", true, Ok("care-desk")),
        ("the system's authorities", "127.0.0.1", false, Err("unknown_key")),
        ("a certificate of another name", "id.lumenfield.example", true, Err("unknown_key")),
    ];
    for (name, subject, is_own, expected) in table {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed([subject.to_owned()]).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = rustls::pki_types::PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let body = Issuing::keys(&[(&signer, "key")]);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut stream = rustls::StreamOwned::new(connection, stream.unwrap());
                let mut head = [0; 4096];
                if stream.read(&mut head).is_ok() {
                    let _gone = stream.write_all(body.as_bytes()).and_then(|()| stream.flush());
                }
            }
        });
        let folder = Folder::new();
        folder.write("ca.pem", &cert.pem());
        let ca = if is_own { ", jwks_ca: ca.pem" } else { "" };
        let given = Given::identity(&issuer(&format!("jwks_url: 'https://{address}/jwks'{ca}")));
        let upstream = Upstream::ok();
        let sidecar = given.start_in(&upstream, folder);
        let found = believed(&sidecar, &signer, "key");
        assert_eq!(found.as_deref().map_err(String::as_str), expected, "{name}: {}", sidecar.stderr.text());
    }
}
