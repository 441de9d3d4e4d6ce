//! Files that change while requests go on, and what of them ends.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use super::SHOWN;
use super::Tls;
use super::material::Authority;
use super::material::Caller;
use super::material::Pair;
use super::request;
use crate::support::CARE_DESK;
use crate::support::Connection;
use crate::support::Sidecar;
use crate::support::Upstream;
use crate::support::out;
use crate::support::run;
use crate::support::wait_for;

/// Files as a ConfigMap or Secret is mounted: `data` is a link to a folder, and is swapped whole.
struct Mounted<'f> {
    folder: &'f Path,
}

impl Mounted<'_> {
    fn swap(&self, number: usize, files: &[(&str, &str)]) {
        let version = self.folder.join(format!("version-{number}"));
        std::fs::create_dir(&version).unwrap();
        for (name, text) in files {
            std::fs::write(version.join(name), text).unwrap();
        }
        let (fresh, data) = (self.folder.join("data.new"), self.folder.join("data"));
        std::os::unix::fs::symlink(&version, &fresh).unwrap();
        std::fs::rename(fresh, data).unwrap();
    }

    fn show(&self, number: usize, pair: &Pair, ca: &str) {
        self.swap(number, &[("tls.crt", &pair.chain), ("tls.key", &pair.key), ("ca.crt", ca)]);
    }
}

const MOUNTED: &str = "{certificate: data/tls.crt, private_key: data/tls.key, client_ca: data/ca.crt}";

#[test]
fn certificates_are_swapped_under_requests() {
    let upstream = Upstream::ok();
    let mut tls = Tls::to(&upstream.address);
    tls.listener = MOUNTED.to_owned();
    let folder = tls.folder.file(".");
    let mounted = Mounted { folder: &folder };
    mounted.show(0, &tls.authority.server(), &tls.authority.pem);
    let (sidecar, authority) = tls.start();
    let pair = authority.caller(CARE_DESK);
    let caller = Arc::new(Caller::new(&authority.pem, Some(&pair)));
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let askers: Vec<_> = (0..3)
        .map(|number| {
            let (caller, stop, asked) = (Arc::clone(&caller), Arc::clone(&stop), Arc::clone(&asked));
            let address = sidecar.address.clone();
            std::thread::spawn(move || {
                let mut kept = caller.connect(&address).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    // One goes on with its first connection, the others shake hands each time.
                    let answer = if number == 0 { kept.ask(&request()) } else { caller.ask(&address, &request()) };
                    assert_eq!(answer.unwrap().status, 200);
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for number in 1..=4 {
        let next = authority.server();
        mounted.show(number, &next, &authority.pem);
        wait_for("the new certificate", || {
            (caller.connect(&sidecar.address).unwrap().shown() == next.der).then_some(())
        });
    }
    wait_for("a few hundred requests", || (asked.load(Ordering::Relaxed) > 300).then_some(()));
    stop.store(true, Ordering::Relaxed);
    for asker in askers {
        asker.join().unwrap();
    }
    assert!(!sidecar.stderr.text().contains("refused"), "{}", sidecar.stderr.text());
    // Every request has its record: none was lost in a handshake.
    let asked = asked.load(Ordering::Relaxed);
    assert_eq!(upstream.seen().len(), asked);
    let decisions = sidecar.records().iter().filter(|record| record["event"] == "dpa.decision").count();
    assert_eq!(decisions, asked);
}

#[test]
fn what_does_not_fit_changes_nothing_and_is_told_once() {
    let upstream = Upstream::ok();
    let mut tls = Tls::to(&upstream.address);
    tls.listener = MOUNTED.to_owned();
    let folder = tls.folder.file(".");
    let mounted = Mounted { folder: &folder };
    let (first, second) = (tls.authority.server(), tls.authority.server());
    mounted.show(0, &first, &tls.authority.pem);
    let (sidecar, authority) = tls.start();
    let caller = Caller::new(&authority.pem, Some(&authority.caller(CARE_DESK)));
    let refused = |what: &str, count: usize| {
        wait_for(what, || {
            let text = sidecar.stderr.text();
            let told = text.matches("changed files are refused").count();
            (told == count).then_some(text)
        })
    };
    let spoilt = [
        ("the certificate of another key", second.chain.clone(), first.key.clone(), authority.pem.clone()),
        ("half a certificate", first.chain[..100].to_owned(), first.key.clone(), authority.pem.clone()),
        ("an empty key", first.chain.clone(), String::new(), authority.pem.clone()),
        ("an empty authority", first.chain.clone(), first.key.clone(), String::new()),
    ];
    for (number, (name, chain, key, ca)) in spoilt.iter().enumerate() {
        mounted.swap(number + 1, &[("tls.crt", chain), ("tls.key", key), ("ca.crt", ca)]);
        refused(name, number + 1);
        let mut connection = caller.connect(&sidecar.address).unwrap();
        assert_eq!(connection.shown(), first.der, "{name}");
        assert_eq!(connection.ask(&request()).unwrap().status, 200, "{name}");
    }
    // And files that are not there.
    std::fs::remove_file(folder.join("data")).unwrap();
    // The certificate and its key are one thing, the authority another.
    let told = refused("no files", spoilt.len() + 2);
    assert!(!told.contains("BEGIN"), "{told}");
    assert_eq!(caller.ask(&sidecar.address, &request()).unwrap().status, 200);
    mounted.show(9, &second, &authority.pem);
    wait_for("what fits", || (caller.connect(&sidecar.address).unwrap().shown() == second.der).then_some(()));
    assert_eq!(sidecar.stderr.text().matches("changed files are refused").count(), spoilt.len() + 2, "told once each");
}

/// An expired certificate that came late took the place of the one that held.
#[test]
fn a_certificate_that_is_over_replaced_a_good_one() {
    let upstream = Upstream::ok();
    let mut tls = Tls::to(&upstream.address);
    tls.listener = MOUNTED.to_owned();
    let folder = tls.folder.file(".");
    let mounted = Mounted { folder: &folder };
    let (first, over, next) = (tls.authority.server(), tls.authority.server_for(0), tls.authority.server());
    mounted.show(0, &first, &tls.authority.pem);
    let (sidecar, authority) = tls.start();
    let caller = Caller::new(&authority.pem, Some(&authority.caller(CARE_DESK)));
    mounted.show(1, &over, &authority.pem);
    wait_for("the refusal", || sidecar.stderr.text().contains("and that is not now").then_some(()));
    assert_eq!(caller.connect(&sidecar.address).unwrap().shown(), first.der);
    mounted.show(2, &next, &authority.pem);
    wait_for("a good one", || (caller.connect(&sidecar.address).unwrap().shown() == next.der).then_some(()));
}

#[test]
fn a_broken_key_does_not_hold_up_a_revocation() {
    let upstream = Upstream::ok();
    let mut tls = Tls::to(&upstream.address);
    tls.listener = format!("{{{SHOWN}, client_ca: ca.crt, crl: [root.crl]}}");
    let path = tls.folder.write("root.crl", &tls.authority.list(&[], 3_600));
    let key = tls.folder.file("tls.key");
    let (sidecar, authority) = tls.start();
    let pair = authority.caller(CARE_DESK);
    let caller = Caller::new(&authority.pem, Some(&pair));
    assert_eq!(caller.ask(&sidecar.address, &request()).unwrap().status, 200);
    std::fs::remove_file(key).unwrap();
    wait_for("the broken key", || sidecar.stderr.text().contains("changed files are refused").then_some(()));
    std::fs::write(path, authority.list(&[pair.number], 3_600)).unwrap();
    wait_for("the revocation", || super::is_revoked(caller.ask(&sidecar.address, &request())));
}

#[test]
fn another_authority_is_believed_from_then_on() {
    let upstream = Upstream::ok();
    let (sidecar, first) = {
        let mut tls = Tls::to(&upstream.address);
        tls.listener = format!("{{{SHOWN}, client_ca: ca.crt}}");
        tls.start()
    };
    let second = Authority::new("Second Authority");
    let (old, new) = (first.caller(CARE_DESK), second.caller(CARE_DESK));
    let (old, new) = (Caller::new(&first.pem, Some(&old)), Caller::new(&first.pem, Some(&new)));
    let mut kept = old.connect(&sidecar.address).unwrap();
    assert_eq!(kept.ask(&request()).unwrap().status, 200);
    assert!(new.ask(&sidecar.address, &request()).is_err());
    let both = format!("{}{}", first.pem, second.pem);
    std::fs::write(sidecar.log().with_file_name("ca.crt"), both).unwrap();
    wait_for("the second authority", || new.ask(&sidecar.address, &request()).ok());
    assert_eq!(old.ask(&sidecar.address, &request()).unwrap().status, 200, "both count");
    assert_eq!(kept.ask(&request()).unwrap().status, 200, "a connection whose chain holds goes on");
    std::fs::write(sidecar.log().with_file_name("ca.crt"), &second.pem).unwrap();
    wait_for("the first authority to go", || old.ask(&sidecar.address, &request()).err());
    // A request that is there at that moment is answered.
    wait_for("a connection that stands to end too", || kept.ask(&request()).err());
}

/// A connection once stood for as long as it was used, whatever became of its certificate.
#[test]
fn a_revoked_caller_kept_its_connection() {
    let upstream = Upstream::ok();
    let mut tls = Tls::to(&upstream.address);
    tls.listener = format!("{{{SHOWN}, client_ca: ca.crt, crl: [root.crl]}}");
    let path = tls.folder.write("root.crl", &tls.authority.list(&[], 3_600));
    let (sidecar, authority) = tls.start();
    let (good, bad) = (authority.caller(CARE_DESK), authority.caller(CARE_DESK));
    let revoked = authority.list(&[bad.number], 3_600);
    let (good, bad) = (Caller::new(&authority.pem, Some(&good)), Caller::new(&authority.pem, Some(&bad)));
    let mut kept = bad.connect(&sidecar.address).unwrap();
    assert_eq!(kept.ask(&request()).unwrap().status, 200);
    let mut goes_on = good.connect(&sidecar.address).unwrap();
    assert_eq!(goes_on.ask(&request()).unwrap().status, 200);
    std::fs::write(path, revoked).unwrap();
    wait_for("the connection to end", || kept.ask(&request()).err());
    // A list that is renewed once cut every connection, and with it requests that were just being sent.
    assert_eq!(goes_on.ask(&request()).unwrap().status, 200, "nobody took this one back");
    wait_for("the revocation", || super::is_revoked(bad.ask(&sidecar.address, &request())));
    assert_eq!(good.ask(&sidecar.address, &request()).unwrap().status, 200);
    // Whatever was asked was decided on and forwarded, also when the connection ended.
    let decisions = sidecar.records().iter().filter(|record| record["event"] == "dpa.decision").count();
    assert_eq!(upstream.seen().len(), decisions);
}

/// The same, where nothing is renewed and time alone passes.
#[test]
fn a_connection_outlived_its_certificate() {
    let upstream = Upstream::ok();
    let (sidecar, authority) = Tls::to(&upstream.address).start();
    for is_its_own in [true, false] {
        let pair = match is_its_own {
            true => authority.caller_for(CARE_DESK, 4),
            false => authority.below_for("Middle Authority", 4).0.caller(CARE_DESK),
        };
        let caller = Caller::new(&authority.pem, Some(&pair));
        let mut kept = caller.connect(&sidecar.address).unwrap();
        assert_eq!(kept.ask(&request()).unwrap().status, 200, "its own: {is_its_own}");
        wait_for("the end", || match kept.ask(&request()) {
            Ok(answer) if answer.status == 200 => None,
            // In the moment before it is closed.
            Ok(answer) => (answer.status == 401).then_some(()),
            Err(_) => Some(()),
        });
        wait_for("a refusal", || caller.ask(&sidecar.address, &request()).err()?.contains("Expired").then_some(()));
    }
}

/// rustls does not look at the time of an authority in the file: it vouched for callers for good.
#[test]
fn an_authority_that_had_ended_went_on_vouching() {
    let upstream = Upstream::ok();
    for has_another in [true, false] {
        let tls = Tls::to(&upstream.address);
        let ending = Authority::ending("Ending Authority", 6);
        let other = if has_another { tls.authority.pem.as_str() } else { "" };
        tls.folder.write("ca.crt", &format!("{}{other}", ending.pem));
        let (sidecar, authority) = tls.start();
        let caller = Caller::new(&authority.pem, Some(&ending.caller(CARE_DESK)));
        assert_eq!(caller.ask(&sidecar.address, &request()).unwrap().status, 200, "another: {has_another}");
        wait_for("the authority to end", || {
            caller.ask(&sidecar.address, &request()).err()?.contains("UnknownCA").then_some(())
        });
        let other = Caller::new(&authority.pem, Some(&authority.caller(CARE_DESK)));
        assert_eq!(other.ask(&sidecar.address, &request()).is_ok(), has_another, "another: {has_another}");
    }
}

#[test]
fn the_authority_of_an_upstream_is_renewed() {
    let mut tls = Tls::to("");
    let second = Authority::new("Second Authority");
    let service = super::upstream::Service::start(&second.server(), None);
    tls.upstream.clone_from(&service.address);
    tls.upstream_keys = ", tls: {ca: service.crt, server_name: data.example}";
    let path = tls.folder.write("service.crt", &tls.authority.pem);
    let (sidecar, authority) = tls.start();
    let caller = Caller::new(&authority.pem, Some(&authority.caller(CARE_DESK)));
    assert_eq!(caller.ask(&sidecar.address, &request()).unwrap().status, 502);
    std::fs::write(path, &second.pem).unwrap();
    wait_for("the new authority", || (caller.ask(&sidecar.address, &request()).unwrap().status == 200).then_some(()));
}

/// A connection to the upstream that was busy enough was never verified again.
#[test]
fn an_upstream_whose_authority_is_gone_kept_its_connections() {
    let mut tls = Tls::to("");
    let service = super::upstream::Service::start(&tls.authority.server(), None);
    tls.upstream.clone_from(&service.address);
    tls.upstream_keys = ", tls: {ca: service.crt, server_name: data.example}";
    let path = tls.folder.write("service.crt", &tls.authority.pem);
    let (sidecar, authority) = tls.start();
    let caller = Caller::new(&authority.pem, Some(&authority.caller(CARE_DESK)));
    let mut kept = caller.connect(&sidecar.address).unwrap();
    assert_eq!(kept.ask(&request()).unwrap().status, 200);
    std::fs::write(path, Authority::new("Second Authority").pem).unwrap();
    wait_for("the first authority to go", || (kept.ask(&request()).unwrap().status == 502).then_some(()));
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn what_ends_is_told() {
    let table = [
        ("in a year", 365 * 86_400, "+", None),
        ("in ten days", 10 * 86_400, "!", Some("ends within 14 days")),
        ("in an hour", 3_600, "!", Some("ends within a day")),
    ];
    for (name, seconds, sign, expected) in table {
        let mut tls = Tls::to("127.0.0.1:1");
        tls.show(&tls.authority.server_for(seconds));
        let port = free_port();
        tls.more = format!("health: {{address: '127.0.0.1:{port}'}}\n");
        tls.listener = format!("{{{SHOWN}, client_ca: ca.crt, crl: [root.crl]}}");
        tls.folder.write("root.crl", &tls.authority.list(&[], 3 * 86_400));
        let (sidecar, _) = tls.start();
        let mut health = wait_for("the health listener", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).ok().map(|_| Connection::to(&format!("127.0.0.1:{port}")))
        });
        health.send("GET /readyz?verbose HTTP/1.1\r\nHost: a\r\n\r\n");
        let text = health.answer().unwrap().text();
        let line =
            |what: &str| text.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("{name}: {text}"));
        assert!(line("listener main: certificate: ends 20").starts_with(&format!("[{sign}]")), "{name}: {text}");
        assert!(line("listener main: client_ca: ends 4096-01-01").starts_with("[+]"), "{name}: {text}");
        assert!(
            line("listener main: crl: ends 20").starts_with("[+]"),
            "{name}: a list is near its end on the last day only: {text}"
        );
        assert!(text.ends_with("ok\n"), "{name}: it tells, and does not count: {text}");
        let told = |log: &str| {
            log.lines().any(|line| line.contains("listener main: certificate") && line.contains("ends within"))
        };
        match expected {
            Some(expected) => wait_for("the warning", || sidecar.stderr.text().contains(expected).then_some(())),
            None => assert!(!told(&sidecar.stderr.text()), "{name}"),
        }
        check_tells(&sidecar, name, seconds < 30 * 86_400);
    }
}

fn check_tells(sidecar: &Sidecar, name: &str, is_soon: bool) {
    let log = sidecar.log();
    let checked = run(log.parent().unwrap(), &["check", "sidecar.yaml"]);
    assert_eq!(checked.status.code(), Some(0), "{name}: {}", out(&checked));
    let is_told = out(&checked).contains("warning[DPA030]: listener main: certificate ends: ");
    assert_eq!(is_told, is_soon, "{name}: {}", out(&checked));
}
