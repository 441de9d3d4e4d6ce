//! TLS: who is let in, who that is, what is shown to whom, and what changes while requests go on.

mod forwarded;
mod http2;
mod material;
mod names;
mod renewal;
mod tunnel;
mod upstream;

use std::io::Read as _;
use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use self::material::Authority;
use self::material::Caller;
use self::material::ONLY_1_2;
use self::material::ONLY_1_3;
use self::material::Pair;
use crate::support::Answer;
use crate::support::CARE_DESK;
use crate::support::Folder;
use crate::support::Head;
use crate::support::SUBSCRIBER;
use crate::support::Sidecar;
use crate::support::Upstream;
use crate::support::err;
use crate::support::out;
use crate::support::repository;
use crate::support::run;
use crate::support::wait_for;

/// What a sidecar of these tests is made of. Paths are of its folder.
struct Tls {
    folder: Folder,
    authority: Authority,
    /// `tls` of the listener.
    listener: String,
    /// The upstream's address.
    upstream: String,
    /// More keys of the upstream, each with a comma before it.
    upstream_keys: &'static str,
    /// The ways of identity.
    identity: &'static str,
    /// More of the policy.
    policy: &'static str,
    /// More settings.
    more: String,
}

const SHOWN: &str = "certificate: tls.crt, private_key: tls.key";

impl Tls {
    /// A listener that requires certificates of `ca.crt`, and takes callers by them.
    fn to(upstream: &str) -> Self {
        let folder = Folder::new();
        let authority = Authority::new("Test Authority");
        let tls = Self {
            listener: format!("{{{SHOWN}, client_ca: ca.crt}}"),
            upstream: upstream.to_owned(),
            upstream_keys: "",
            identity: "certificate: {}",
            policy: "",
            more: String::new(),
            folder,
            authority,
        };
        tls.folder.write("ca.crt", &tls.authority.pem);
        tls.show(&tls.authority.server());
        tls
    }

    /// What the listener shows.
    fn show(&self, pair: &Pair) {
        self.folder.write("tls.crt", &pair.chain);
        self.folder.write("tls.key", &pair.key);
    }

    fn settings(&self) -> String {
        let Self { listener, upstream, upstream_keys, identity, more, .. } = self;
        let policy = std::fs::read_to_string(repository("config/policy.yaml")).unwrap();
        let also = format!("identities: [\"{CARE_DESK}\", \"dns:desk.lumenfield.example\"]");
        let policy = policy.replace(&format!("identities: [\"{CARE_DESK}\"]"), &also);
        assert!(policy.contains("dns:desk"), "the sample policy has changed");
        self.folder.write("policy.yaml", &(policy + self.policy));
        format!(
            "service: {{name: subscriber-api, storage_location: US-OR, instance: pod-0}}
workers: 2
policy: {{file: policy.yaml}}
listeners: [{{name: main, address: '127.0.0.1:0', upstream: app, tls: {listener}}}]
upstreams: [{{name: app, address: '{upstream}', connect_timeout: 5s{upstream_keys}}}]
identity: [{identity}]
routes:
  - path: /v1/customers/{{customer}}/subscribers/{{id}}
    customer: {{from: path, name: customer}}
    subscriber: {{from: path, name: id}}
    purpose: {{from: context}}
    data_categories: [user.contact]
decision_log: {{file: {{path: decisions.ndjson}}}}
{more}
"
        )
    }

    /// Starts it; its authority stays with the test.
    fn start(self) -> (Sidecar, Authority) {
        let settings = self.settings();
        (Sidecar::start(self.folder, &settings, &[]), self.authority)
    }

    /// What `check` and `run` say, which has to be the same refusal.
    fn refused(&self) -> String {
        self.folder.write("sidecar.yaml", &self.settings());
        let folder = self.folder.file(".");
        let (checked, ran) = (run(&folder, &["check", "sidecar.yaml"]), run(&folder, &["run", "-c", "sidecar.yaml"]));
        assert_eq!((checked.status.code(), ran.status.code()), (Some(1), Some(1)), "{}{}", out(&checked), err(&ran));
        let said: Vec<String> =
            out(&checked).lines().filter(|line| line.contains(": error[")).map(str::to_owned).collect();
        for line in &said {
            assert!(err(&ran).contains(line), "`run` does not say {line}: {}", err(&ran));
        }
        said.join("\n")
    }
}

/// `GET` for customer support, from whom the connection says.
fn request() -> String {
    Head::bare("GET", SUBSCRIBER).with("DPA-Context", "purpose=customer_support").end()
}

/// A connection that comes about while a list is renewed is closed; the next is refused.
fn is_revoked(asked: Result<Answer, String>) -> Option<()> {
    asked.err()?.contains("CertificateRevoked").then_some(())
}

fn transport(sidecar: &Sidecar, answer: &Answer) -> (String, String) {
    let record = sidecar.decision(&answer.decision_id());
    let word = |name: &str| record["transport"][name].as_str().unwrap().to_owned();
    (word("tls_version"), word("proof"))
}

#[test]
fn a_caller_is_known_by_its_certificate() {
    let upstream = Upstream::ok();
    let (sidecar, authority) = Tls::to(&upstream.address).start();
    let caller = Caller::new(&authority.pem, Some(&authority.caller(CARE_DESK)));
    let mut connection = caller.connect(&sidecar.address).unwrap();
    for _ in 0..3 {
        let answer = connection.ask(&request()).unwrap();
        assert_eq!((answer.status, answer.text()), (200, "ok".to_owned()), "{answer:?}");
        let record = sidecar.decision(&answer.decision_id());
        assert_eq!(record["caller_id"], "care-desk", "{record}");
        assert_eq!(record["sources"]["caller"], "certificate", "{record}");
        assert_eq!(transport(&sidecar, &answer), ("1.3".to_owned(), "certificate".to_owned()));
    }
    assert_eq!(connection.session().alpn_protocol(), None, "none was offered");
    assert_eq!(upstream.last().head.value("x-forwarded-proto"), Some("https"));
}

#[test]
fn curl_gets_through_with_a_certificate() {
    let upstream = Upstream::ok();
    let (sidecar, authority) = Tls::to(&upstream.address).start();
    let folder = Folder::new();
    let pair = authority.caller(CARE_DESK);
    folder.write("ca.crt", &authority.pem);
    folder.write("caller.crt", &pair.chain);
    folder.write("caller.key", &pair.key);
    let (_, port) = sidecar.address.split_once(':').unwrap();
    let curl = |arguments: &[&str]| {
        let mut command = Command::new("curl");
        command.args(["-sS", "--noproxy", "*", "--cacert", "ca.crt", "-H", "DPA-Context: purpose=customer_support"]);
        command.args(["--connect-to", &format!("data.example:443:127.0.0.1:{port}"), "-w", "\n%{http_code}"]);
        command.args(arguments).arg(format!("https://data.example{SUBSCRIBER}"));
        command.current_dir(folder.file(".")).output().unwrap()
    };
    let with = curl(&["--cert", "caller.crt", "--key", "caller.key"]);
    assert_eq!(out(&with), "ok\n200", "{}", err(&with));
    for (version, spoken) in [("--http2", " 2"), ("--http1.1", " 1.1")] {
        let with = curl(&[version, "--cert", "caller.crt", "--key", "caller.key", "-w", " %{http_version}"]);
        assert!(out(&with).starts_with("ok") && out(&with).ends_with(spoken), "{}{}", out(&with), err(&with));
    }
    let without = curl(&[]);
    assert_ne!(without.status.code(), Some(0), "{}", out(&without));
}

#[test]
fn who_is_let_in() {
    let upstream = Upstream::ok();
    let other = Authority::new("Other Authority");
    let far = Authority::new("Test Authority");
    let table = [
        ("required, a certificate", "", Some(0), Ok(200)),
        ("required, none", "", None, Err("CertificateRequired")),
        ("required, of another authority", "", Some(1), Err("UnknownCA")),
        ("required, of one with the same name", "", Some(2), Err("UnknownCA")),
        ("required, expired", "", Some(3), Err("CertificateExpired")),
        ("optional, a certificate", ", client_authentication: optional", Some(0), Ok(200)),
        ("optional, none", ", client_authentication: optional", None, Ok(401)),
        ("optional, of another authority", ", client_authentication: optional", Some(1), Err("UnknownCA")),
        ("not asked", ", client_authentication: none", Some(0), Ok(401)),
    ];
    for (name, keys, pair, expected) in table {
        let mut tls = Tls::to(&upstream.address);
        tls.listener = format!("{{{SHOWN}, client_ca: ca.crt{keys}}}");
        let (sidecar, authority) = tls.start();
        let mut expired = material::names(&[rcgen::SanType::URI(CARE_DESK.try_into().unwrap())]);
        expired.not_after = rcgen::date_time_ymd(2020, 1, 1);
        let pairs =
            [authority.caller(CARE_DESK), other.caller(CARE_DESK), far.caller(CARE_DESK), authority.sign(expired)];
        let caller = Caller::new(&authority.pem, pair.map(|place: usize| &pairs[place]));
        let asked = caller.ask(&sidecar.address, &request());
        match (&asked, expected) {
            (Ok(answer), Ok(status)) => {
                assert_eq!(answer.status, status, "{name}: {answer:?}");
                if status == 401 {
                    assert_eq!(answer.reason(), "caller_unidentified", "{name}");
                }
            }
            (Err(error), Err(alert)) => {
                // OpenSSL and rustls name a wrong signature of an authority differently.
                let is_it = error.contains(alert) || (alert == "UnknownCA" && error.contains("DecryptError"));
                assert!(is_it, "{name}: {error}");
                sidecar.unread("handshake");
                let told = wait_for("the log", || {
                    let text = sidecar.stderr.text();
                    text.lines().find(|line| line.contains("a TLS handshake failed")).map(str::to_owned)
                });
                assert!(told.contains("listener main") && !told.contains("127.0.0.1"), "{name}: {told}");
            }
            (Ok(_), Err(_)) | (Err(_), Ok(_)) => panic!("{name}: {asked:?}"),
        }
    }
}

/// The connection was closed with unread bytes, so it was reset: curl never came to read why.
#[test]
fn who_went_on_sending_behind_a_failed_handshake_was_reset() {
    let upstream = Upstream::ok();
    let mut tls = Tls::to(&upstream.address);
    tls.listener = format!("{{{SHOWN}, client_ca: ca.crt}}");
    let (sidecar, authority) = tls.start();
    let stranger = Authority::new("Other Authority").caller(CARE_DESK);
    let mut stream = Caller::new(&authority.pem, Some(&stranger)).connect(&sidecar.address).unwrap().into_stream();
    for _ in 0..3 {
        stream.write_all(&[b'x'; 1024]).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    let error = stream.read(&mut [0]).unwrap_err().to_string();
    assert!(error.contains("UnknownCA"), "{error}");
}

#[test]
fn what_is_taken_back_is_refused() {
    let upstream = Upstream::ok();
    for is_below in [false, true] {
        let mut tls = Tls::to(&upstream.address);
        let (middle, middle_number) = tls.authority.below("Middle Authority");
        let signer = if is_below { &middle } else { &tls.authority };
        let (good, bad) = (signer.caller(CARE_DESK), signer.caller(CARE_DESK));
        let lists = if is_below { ", crl: [root.crl, middle.crl]" } else { ", crl: [root.crl]" };
        tls.listener = format!("{{{SHOWN}, client_ca: ca.crt{lists}}}");
        let (of_root, of_middle): (Vec<u64>, Vec<u64>) =
            if is_below { (Vec::new(), vec![bad.number]) } else { (vec![bad.number], Vec::new()) };
        tls.folder.write("root.crl", &tls.authority.list(&of_root, 3_600));
        tls.folder.write("middle.crl", &middle.list(&of_middle, 3_600));
        let (ca, path) = (tls.authority.pem.clone(), tls.folder.file("root.crl"));
        let ask = |sidecar: &Sidecar, pair: &Pair| Caller::new(&ca, Some(pair)).ask(&sidecar.address, &request());
        let whole = tls.authority.list(&[middle_number], 3_600);
        let expired = tls.authority.list(&of_root, -60);
        let (sidecar, _) = tls.start();
        assert_eq!(ask(&sidecar, &good).unwrap().status, 200, "below: {is_below}");
        let refused = ask(&sidecar, &bad).unwrap_err();
        assert!(refused.contains("CertificateRevoked"), "below: {is_below}: {refused}");
        if is_below {
            std::fs::write(&path, whole).unwrap();
            wait_for("the new list, of the authority in the middle", || is_revoked(ask(&sidecar, &good)));
        } else {
            std::fs::write(&path, expired).unwrap();
            // A list that has expired tells nothing, so nobody gets in.
            wait_for("the expired list", || ask(&sidecar, &good).err());
        }
    }
}

#[test]
fn an_authority_without_a_list_lets_nobody_in_beside_one_with_a_list() {
    let upstream = Upstream::ok();
    let mut tls = Tls::to(&upstream.address);
    let (middle, _) = tls.authority.below("Middle Authority");
    tls.listener = format!("{{{SHOWN}, client_ca: ca.crt, crl: [root.crl]}}");
    tls.folder.write("root.crl", &tls.authority.list(&[], 3_600));
    let (sidecar, authority) = tls.start();
    let known = Caller::new(&authority.pem, Some(&authority.caller(CARE_DESK)));
    assert_eq!(known.ask(&sidecar.address, &request()).unwrap().status, 200);
    let unknown = Caller::new(&authority.pem, Some(&middle.caller(CARE_DESK)));
    assert!(unknown.ask(&sidecar.address, &request()).is_err());
}

#[test]
fn no_session_is_resumed_where_certificates_are_asked_for() {
    let upstream = Upstream::ok();
    for (name, keys, is_resumed) in [("required", ", client_ca: ca.crt", false), ("none", "", true)] {
        for versions in [ONLY_1_2, ONLY_1_3] {
            let mut tls = Tls::to(&upstream.address);
            tls.listener = format!("{{{SHOWN}{keys}, min_version: \"1.2\"}}");
            let (sidecar, authority) = tls.start();
            let caller = Caller::speaking(versions, &authority.pem, Some(&authority.caller(CARE_DESK)));
            let mut kinds = Vec::new();
            for _ in 0..3 {
                let mut connection = caller.connect(&sidecar.address).unwrap();
                connection.ask(&request()).unwrap();
                kinds.push(connection.session().handshake_kind());
            }
            let resumed = kinds.contains(&Some(rustls::HandshakeKind::Resumed));
            assert_eq!(resumed, is_resumed, "{name}: {kinds:?}");
        }
    }
}

#[test]
fn versions_of_tls_against_what_the_policy_promises() {
    let upstream = Upstream::ok();
    let floor_2 = "\nsecurity_measures: {min_tls_version: \"1.2\"}\n";
    let floor_3 = "\nsecurity_measures: {min_tls_version: \"1.3\"}\n";
    let promised = "\nsecurity_measures: {client_authentication: required}\n";
    let table = [
        ("1.2 where 1.3 alone is spoken", "", "", ONLY_1_2, None, None),
        ("1.3", "", "", ONLY_1_3, Some(CARE_DESK), Some((200, "1.3"))),
        ("1.2 where it is spoken", ", min_version: \"1.2\"", "", ONLY_1_2, Some(CARE_DESK), Some((200, "1.2"))),
        ("1.2 is promised", ", min_version: \"1.2\"", floor_2, ONLY_1_2, Some(CARE_DESK), Some((200, "1.2"))),
        ("1.3 is promised, 1.2", ", min_version: \"1.2\"", floor_3, ONLY_1_2, Some(CARE_DESK), Some((403, "1.2"))),
        ("1.3 is promised, 1.3", ", min_version: \"1.2\"", floor_3, ONLY_1_3, Some(CARE_DESK), Some((200, "1.3"))),
        ("a certificate is promised", "", promised, ONLY_1_3, Some(CARE_DESK), Some((200, "1.3"))),
        (
            "a certificate is promised, and none is there",
            ", client_authentication: optional",
            promised,
            ONLY_1_3,
            None,
            Some((401, "1.3")),
        ),
    ];
    for (name, keys, policy, versions, uri, expected) in table {
        let mut tls = Tls::to(&upstream.address);
        tls.listener = format!("{{{SHOWN}, client_ca: ca.crt{keys}}}");
        tls.policy = policy;
        let (sidecar, authority) = tls.start();
        let pair = uri.map(|uri| authority.caller(uri));
        let asked = Caller::speaking(versions, &authority.pem, pair.as_ref()).ask(&sidecar.address, &request());
        match (asked, expected) {
            (Err(_), None) => {}
            (Ok(answer), Some((status, version))) => {
                assert_eq!((answer.status, transport(&sidecar, &answer).0.as_str()), (status, version), "{name}");
                let record = sidecar.decision(&answer.decision_id());
                let codes: Vec<&str> =
                    record["reasons"].as_array().into_iter().flatten().map(|it| it["code"].as_str().unwrap()).collect();
                let expected: &[&str] = match status {
                    403 => &["transport_too_weak"],
                    401 => &["caller_unidentified", "transport_too_weak"],
                    _ => &[],
                };
                assert_eq!(codes, expected, "{name}: {record}");
            }
            (asked, expected) => panic!("{name}: {asked:?}, expected {expected:?}"),
        }
    }
}

#[test]
fn in_clear_below_what_the_policy_promises() {
    let upstream = Upstream::ok();
    let mut tls = Tls::to(&upstream.address);
    tls.policy = "\nsecurity_measures: {min_tls_version: \"1.2\", client_authentication: required}\n";
    tls.identity = "header: {name: DPA-Caller, trusted_peers: [127.0.0.1/32]}";
    let settings = tls.settings().replace(&format!(", tls: {}", tls.listener), "");
    tls.folder.write("sidecar.yaml", &settings);
    let checked = run(&tls.folder.file("."), &["check", "sidecar.yaml"]);
    let text = out(&checked);
    assert_eq!(checked.status.code(), Some(0), "{text}");
    assert!(text.contains("promises TLS 1.2, and the listener `main` speaks in clear"), "{text}");
    assert!(text.contains("promises client certificates, and the listener `main` asks for none"), "{text}");
    let sidecar = Sidecar::start(tls.folder, &settings, &[]);
    let answer = sidecar.ask(crate::support::permitted());
    assert_eq!((answer.status, answer.reason()), (403, "transport_too_weak".to_owned()));
    assert_eq!(transport(&sidecar, &answer), ("none".to_owned(), "header".to_owned()));
}

#[test]
fn what_check_says_of_a_listener_below_the_policy() {
    let table = [
        ("1.3", "", "min_tls_version: \"1.3\"", None),
        ("1.2", ", min_version: \"1.2\"", "min_tls_version: \"1.3\"", Some("[DPA045]: the policy promises TLS 1.3")),
        ("required", "", "client_authentication: required", None),
        (
            "optional",
            ", client_authentication: optional",
            "client_authentication: required",
            Some("[DPA045]: the policy promises client certificates"),
        ),
        (
            "none",
            ", client_authentication: none",
            "client_authentication: required",
            Some("[DPA031]: the policy promises client certificates"),
        ),
    ];
    for (name, keys, measure, expected) in table {
        let mut tls = Tls::to("127.0.0.1:1");
        tls.listener = format!("{{{SHOWN}, client_ca: ca.crt{keys}}}");
        tls.folder.write("sidecar.yaml", &tls.settings());
        let policy = std::fs::read_to_string(tls.folder.file("policy.yaml")).unwrap();
        tls.folder.write("policy.yaml", &format!("{policy}\nsecurity_measures: {{{measure}}}\n"));
        let text = out(&run(&tls.folder.file("."), &["check", "sidecar.yaml"]));
        let found = text.lines().find(|line| line.contains("the policy promises"));
        match expected {
            None => assert_eq!(found, None, "{name}"),
            Some(expected) => assert!(found.is_some_and(|found| found.contains(expected)), "{name}: {text}"),
        }
    }
}

#[test]
fn files_that_do_not_fit() {
    let other = Authority::new("Other Authority").server();
    let listed = "certificate: tls.crt, private_key: tls.key, client_ca: ca.crt, crl: [root.crl]";
    type Spoil<'a> = &'a dyn Fn(&Tls);
    let table: [(&str, Spoil<'_>, &str); 11] = [
        ("the key of another", &|tls| drop(tls.folder.write("tls.key", &other.key)), "[DPA050]: the key in "),
        ("no key", &|tls| drop(tls.folder.write("tls.key", &other.chain)), "holds no private key"),
        ("an empty key", &|tls| drop(tls.folder.write("tls.key", "\n")), "tls.key` is empty"),
        ("an empty certificate", &|tls| drop(tls.folder.write("tls.crt", "")), "tls.crt` is empty"),
        ("half a certificate", &|tls| drop(tls.folder.write("tls.crt", &other.chain[..200])), "is not whole PEM"),
        (
            "a certificate of nothing",
            &|tls| drop(tls.folder.write("tls.crt", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")),
            "holds a certificate that cannot be read",
        ),
        (
            "no certificate file",
            &|tls| std::fs::remove_file(tls.folder.file("tls.crt")).unwrap(),
            "[DPA046]: cannot read",
        ),
        ("a folder", &|tls| std::fs::create_dir(tls.folder.file("root.d")).unwrap(), ""),
        ("no authority", &|tls| drop(tls.folder.write("ca.crt", "nothing")), "ca.crt` holds no certificate"),
        ("no list", &|tls| drop(tls.folder.write("root.crl", &other.chain)), "root.crl` holds no revocation list"),
        (
            "a list of nothing",
            &|tls| drop(tls.folder.write("root.crl", "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n")),
            "root.crl` is not a revocation list",
        ),
    ];
    for (name, spoil, expected) in table {
        let mut tls = Tls::to("127.0.0.1:1");
        tls.listener = format!("{{{listed}}}");
        tls.folder.write("root.crl", &tls.authority.list(&[], 3_600));
        spoil(&tls);
        if name == "a folder" {
            tls.listener = tls.listener.replace("root.crl", "root.d");
        }
        let said = tls.refused();
        assert!(said.contains(expected) && said.starts_with("sidecar.yaml:4:"), "{name}: {said}");
        assert_eq!(said.lines().count(), 1, "{name}: {said}");
    }
}

#[test]
fn a_silent_connection_does_not_hold_up_the_drain() {
    let upstream = Upstream::ok();
    let (sidecar, authority) = Tls::to(&upstream.address).start();
    let mut silent = sidecar.connect();
    let caller = Caller::new(&authority.pem, Some(&authority.caller(CARE_DESK)));
    let mut kept = caller.connect(&sidecar.address).unwrap();
    assert_eq!(kept.ask(&request()).unwrap().status, 200);
    let stopped = sidecar.stop();
    assert_eq!(stopped.code, Some(0), "{}", stopped.stderr);
    assert!(!stopped.stderr.contains("were cut"), "{}", stopped.stderr);
    assert!(silent.is_closed());
    assert!(kept.ask(&request()).is_err());
}

#[test]
fn half_a_handshake_holds_nobody_up_and_ends() {
    let upstream = Upstream::ok();
    let mut tls = Tls::to(&upstream.address);
    tls.more = "limits: {handshake_timeout: 2s}\n".to_owned();
    let (sidecar, authority) = tls.start();
    let silent: Vec<_> = (0..20).map(|_| sidecar.connect()).collect();
    let mut begun = sidecar.connect();
    begun.send([0x16, 3, 1, 2, 0, 1]);
    let mut nonsense = sidecar.connect();
    nonsense.send("GET / HTTP/1.1\r\n\r\n");
    let caller = Caller::new(&authority.pem, Some(&authority.caller(CARE_DESK)));
    assert_eq!(caller.ask(&sidecar.address, &request()).unwrap().status, 200);
    assert!(begun.is_closed() && nonsense.answer().is_none());
    for mut connection in silent {
        assert!(connection.is_closed());
    }
    let count =
        |text: &str| crate::support::records_in(text).iter().filter_map(|record| record["handshake"].as_u64()).sum();
    // A look whether the port is open: nobody counts it.
    drop(sidecar.connect());
    let sum = wait_for("all", || {
        let sum: u64 = count(&std::fs::read_to_string(sidecar.log()).unwrap());
        (sum >= 22).then_some(sum)
    });
    assert_eq!(sum, 22);
    let stopped = sidecar.stop();
    let text = std::fs::read_to_string(stopped.folder.file("decisions.ndjson")).unwrap();
    assert_eq!((stopped.code, count(&text)), (Some(0), 22));
}

/// Whoever opened connections and said nothing took all of them, and a caller waited for the first to time out.
#[test]
fn silent_connections_take_no_more_than_half_of_all() {
    let upstream = Upstream::ok();
    let mut tls = Tls::to(&upstream.address);
    // Longer than anybody waits here.
    tls.more = "limits: {connections: 8, handshake_timeout: 10m}\n".to_owned();
    let (sidecar, authority) = tls.start();
    let caller = Caller::new(&authority.pem, Some(&authority.caller(CARE_DESK)));
    let mut kept = caller.connect(&sidecar.address).unwrap();
    assert_eq!(kept.ask(&request()).unwrap().status, 200);
    for begin in [&[][..], &[0x16, 3, 1, 2, 0, 1]] {
        let _held: Vec<_> = (0..20)
            .map(|_| {
                let mut connection = sidecar.connect();
                connection.send(begin);
                connection
            })
            .collect();
        assert_eq!(caller.ask(&sidecar.address, &request()).unwrap().status, 200, "{begin:?}");
        assert_eq!(kept.ask(&request()).unwrap().status, 200, "{begin:?}: one that stands is no handshake");
    }
    sidecar.unread("handshake");
}
