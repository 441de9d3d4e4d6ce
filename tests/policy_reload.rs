//! The policy changes while requests go on: who may change it, what may change, and which policy decided what.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dpa_sidecar::signature;
use dpa_sidecar::signature::NewKey;
use dpa_sidecar::signature::Signer;
use serde_json::Value;
use serde_json::json;

use crate::support::Answer;
use crate::support::Connection;
use crate::support::Folder;
use crate::support::Head;
use crate::support::SUBSCRIBER;
use crate::support::Setup;
use crate::support::Sidecar;
use crate::support::Upstream;
use crate::support::denied;
use crate::support::err;
use crate::support::out;
use crate::support::permitted;
use crate::support::records_in;
use crate::support::repository;
use crate::support::run;
use crate::support::wait_for;

/// The sample policy with this revision.
pub(crate) fn revision(number: u64) -> String {
    let text = std::fs::read_to_string(repository("config/policy.yaml")).unwrap();
    let changed =
        text.replace("revision: 12, issued_at: 2026-06-01", &format!("revision: {number}, issued_at: 2020-06-01"));
    assert_ne!(changed, text, "the sample policy has changed");
    changed
}

/// A sidecar.yaml whose `policy` is this.
pub(crate) fn settings(upstream: &str, policy: &str, enforcement: &'static str) -> String {
    let setup = Setup { enforcement, ..Setup::to(upstream) };
    let text = setup.text();
    let line = text.lines().find(|line| line.starts_with("policy:")).unwrap();
    text.replace(line, &format!("policy: {policy}"))
}

pub(crate) fn start(folder: Folder, upstream: &str, policy: &str) -> Sidecar {
    Setup::to(upstream).start_with(&settings(upstream, policy, "enforce"), folder)
}

pub(crate) fn hang_up(sidecar: &Sidecar) {
    let sent = Command::new("kill").args(["-HUP", &sidecar.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// The records of event `dpa.policy`, once there are so many.
pub(crate) fn policy_events(sidecar: &Sidecar, count: usize) -> Vec<Value> {
    wait_for(&format!("{count} records about policies"), || {
        let text = std::fs::read_to_string(sidecar.log()).unwrap();
        let lines: String =
            text.split_inclusive('\n').filter(|line| line.starts_with("{\"event\":\"dpa.policy\"")).collect();
        let records = records_in(&lines);
        (records.len() >= count).then_some(records)
    })
}

pub(crate) fn loaded(sidecar: &Sidecar, revision: u64) -> Value {
    sidecar.record(&format!("revision {revision}"), |record| {
        record["event"] == "dpa.policy" && record["what"] == "loaded" && record["policy"]["revision"] == revision
    })
}

pub(crate) fn refused(sidecar: &Sidecar, why: &str) -> Value {
    sidecar.record(&format!("a refusal: {why}"), |record| record["what"] == "refused" && record["why"] == why)
}

/// The revision that decided a request.
fn decided_with(sidecar: &Sidecar, answer: &Answer) -> u64 {
    sidecar.decision(&answer.decision_id())["policy"]["revision"].as_u64().unwrap()
}

/// Waits until requests are decided with this revision: its record comes first.
fn decides(sidecar: &Sidecar, revision: u64) {
    loaded(sidecar, revision);
    wait_for("a decision with it", || (decided_with(sidecar, &sidecar.ask(permitted())) == revision).then_some(()));
}

/// Replaces what the link `..data` leads to, as the kubelet does.
fn swap(folder: &Path, generation: &str, files: &[(&str, &str)]) {
    let target = folder.join(format!("..{generation}"));
    std::fs::create_dir(&target).unwrap();
    for (name, text) in files {
        std::fs::create_dir_all(target.join(name).parent().unwrap()).unwrap();
        std::fs::write(target.join(name), text).unwrap();
    }
    let fresh = folder.join("..data.new");
    symlink(format!("..{generation}"), &fresh).unwrap();
    std::fs::rename(fresh, folder.join("..data")).unwrap();
}

#[test]
fn each_way_of_changing() {
    let upstream = Upstream::ok();
    type Change = fn(&Path, &Sidecar);
    let table: [(&str, Change); 4] = [
        ("an edit in place", |policy, _| std::fs::write(policy, revision(13)).unwrap()),
        ("a file renamed over it", |policy, _| {
            let fresh = policy.with_extension("new");
            std::fs::write(&fresh, revision(13)).unwrap();
            std::fs::rename(fresh, policy).unwrap();
        }),
        ("gone, and there again", |policy, _| {
            std::fs::remove_file(policy).unwrap();
            std::thread::sleep(Duration::from_millis(700));
            std::fs::write(policy, revision(13)).unwrap();
        }),
        ("a SIGHUP", |policy, sidecar| {
            std::fs::write(policy, revision(13)).unwrap();
            hang_up(sidecar);
        }),
    ];
    for (name, change) in table {
        let folder = Folder::new();
        let policy = folder.write("policy.yaml", &revision(12));
        let sidecar = start(folder, &upstream.address, "{file: policy.yaml}");
        assert_eq!(decided_with(&sidecar, &sidecar.ask(permitted())), 12, "{name}");
        change(&policy, &sidecar);
        let record = loaded(&sidecar, 13);
        assert_eq!(record["signed"], false, "{name}");
        assert_eq!(record["against"]["revision"], 12, "{name}");
        assert_eq!(record["weaker"], 0, "{name}");
        decides(&sidecar, 13);
        assert_eq!(policy_events(&sidecar, 2).len(), 2, "{name}: nothing was refused on the way");
        assert!(sidecar.stderr.text().contains("the policy is not signed"), "{name}");
    }
}

#[test]
fn a_mounted_volume_is_swapped_with_its_customer_files() {
    let upstream = Upstream::ok();
    let with_files = |number| revision(number) + "\ncustomer_files: [\"customers.d/*.yaml\"]\n";
    let customer = |id: &str| {
        format!(
            "customers:\n  - {{id: {id}, legal_name: N, dpa: {{version: \"3\", contract_ref: C}}, permitted_purposes: [base]}}\n"
        )
    };
    let folder = Folder::new();
    let mount = folder.file("mount");
    std::fs::create_dir(&mount).unwrap();
    for name in ["policy.yaml", "customers.d"] {
        symlink(format!("..data/{name}"), mount.join(name)).unwrap();
    }
    let (first, second) = (customer("brook-lane"), customer("amber-fall"));
    swap(&mount, "1", &[("policy.yaml", &with_files(12)), ("customers.d/a.yaml", &first)]);
    let sidecar = start(folder, &upstream.address, "{file: mount/policy.yaml}");
    swap(
        &mount,
        "2",
        &[("policy.yaml", &with_files(13)), ("customers.d/a.yaml", &first), ("customers.d/b.yaml", &second)],
    );
    let before = loaded(&sidecar, 12)["policy"]["digest"].clone();
    assert_ne!(loaded(&sidecar, 13)["policy"]["digest"], before);
    // A file of its own, of the folder that the link leads to.
    std::fs::write(mount.join("..data/customers.d/b.yaml"), customer("birch-run")).unwrap();
    let record = refused(&sidecar, "revision");
    assert_eq!(record["offered"]["revision"], 13, "another content needs another revision");
    std::fs::write(mount.join("..data/policy.yaml"), with_files(14)).unwrap();
    loaded(&sidecar, 14);
    std::fs::remove_file(mount.join("..data/customers.d/b.yaml")).unwrap();
    std::fs::write(mount.join("..data/policy.yaml"), with_files(15)).unwrap();
    loaded(&sidecar, 15);
    assert_eq!(policy_events(&sidecar, 5).iter().filter(|it| it["what"] == "refused").count(), 1);
}

/// A key, and what it signs.
pub(crate) struct Office {
    key: NewKey,
    signer: Signer,
}

impl Office {
    pub(crate) fn new() -> Self {
        let key = signature::generate().unwrap();
        Self { signer: Signer::read(key.private.as_bytes()).unwrap(), key }
    }

    /// Manifest and signature of these files, whatever they hold.
    pub(crate) fn signed(&self, revision: u64, files: &[(&str, &str)]) -> (String, String) {
        use base64::Engine as _;
        let files: BTreeMap<_, _> = files.iter().copied().collect();
        let files: Vec<Value> = files
            .iter()
            .map(|(name, text)| json!({"name": name, "sha256": signature::sha256(text.as_bytes())}))
            .collect();
        let manifest =
            json!({"version": 1, "name": "lumenfield-dpa", "revision": revision, "files": files}).to_string();
        let signature = self.signer.signature(manifest.as_bytes());
        (manifest, base64::engine::general_purpose::STANDARD.encode(signature))
    }

    /// The public key, a signed policy of this revision, and nothing else.
    pub(crate) fn open(&self, folder: &Folder, number: u64) {
        folder.write("policy.pub", &self.key.public);
        self.put(folder, number, &revision(number));
    }

    pub(crate) fn put(&self, folder: &Folder, number: u64, text: &str) {
        let (manifest, signature) = self.signed(number, &[("policy.yaml", text)]);
        folder.write("policy.yaml", text);
        folder.write("policy.yaml.manifest.json", &manifest);
        folder.write("policy.yaml.manifest.sig", &signature);
    }
}

pub(crate) const SIGNED: &str = "{file: policy.yaml, public_key: policy.pub}";

#[test]
fn what_is_not_as_it_was_signed() {
    let (office, stranger) = (Office::new(), Office::new());
    let policy = revision(12);
    let (manifest, signature) = office.signed(12, &[("policy.yaml", &policy)]);
    let more = office.signed(12, &[("policy.yaml", &policy), ("zz.yaml", "x")]);
    let other_revision = office.signed(13, &[("policy.yaml", &policy)]);
    let by_another = stranger.signed(12, &[("policy.yaml", &policy)]);
    let no_manifest = {
        use base64::Engine as _;
        let text = "{\"event\":\"dpa.checkpoint\"}".to_owned();
        let signature = office.signer.signature(text.as_bytes());
        (text, base64::engine::general_purpose::STANDARD.encode(signature))
    };
    let blank = String::new();
    let with_files = policy.clone() + "\ncustomer_files: [\"customers.d/*.yaml\"]\n";
    let unlisted = office.signed(12, &[("policy.yaml", &with_files)]);
    let as_signed = "the policy is not as it was signed";
    let table: [(&str, &str, &str, &str, &str); 13] = [
        ("as it was signed", &policy, &manifest, &signature, ""),
        (
            "a byte more in the policy",
            &format!("{policy}\n"),
            &manifest,
            &signature,
            "`policy.yaml` is not as it was signed",
        ),
        ("no YAML: it is not even parsed", "[", &manifest, &signature, "`policy.yaml` is not as it was signed"),
        ("no manifest", &policy, &blank, &signature, "cannot be read"),
        ("no signature", &policy, &manifest, &blank, "cannot be read"),
        ("a signature that is cut", &policy, &manifest, &signature[..40], "not one line of 88 characters"),
        ("a signature of nothing", &policy, &manifest, "AAAA", "not one line of 88 characters"),
        ("a signature in another form", &policy, &manifest, "not base64 at all!", "not one line of 88 characters"),
        (
            "signed by somebody else",
            &policy,
            &by_another.0,
            &by_another.1,
            "made with another key, or the manifest was changed",
        ),
        (
            "a manifest that was changed",
            &policy,
            &manifest.replace("lumen", "tumen"),
            &signature,
            "made with another key, or the manifest was changed",
        ),
        (
            "a file that is listed and not there",
            &policy,
            &more.0,
            &more.1,
            "`zz.yaml` is in the manifest and not there",
        ),
        (
            "the manifest of another revision",
            &policy,
            &other_revision.0,
            &other_revision.1,
            "the manifest is of lumenfield-dpa revision 13",
        ),
        (
            "something else that the key has signed",
            &policy,
            &no_manifest.0,
            &no_manifest.1,
            "what is signed is no manifest",
        ),
    ];
    let check = |name: &str, text: &str, manifest: &str, signature: &str, customer: bool| {
        let folder = Folder::new();
        folder.write("policy.pub", &office.key.public);
        folder.write("policy.yaml", text);
        if customer {
            std::fs::create_dir(folder.file("customers.d")).unwrap();
            folder.write("customers.d/a.yaml", "customers: []\n");
        }
        for (file, text) in [("policy.yaml.manifest.json", manifest), ("policy.yaml.manifest.sig", signature)] {
            if !text.is_empty() {
                folder.write(file, text);
            }
        }
        folder.write("sidecar.yaml", &settings("127.0.0.1:1", SIGNED, "enforce"));
        let output = run(&folder.file("."), &["check", "sidecar.yaml"]);
        (output.status.code(), format!("{name}: {}{}", out(&output), err(&output)))
    };
    for (name, text, manifest, signature, expected) in table {
        let (code, said) = check(name, text, manifest, signature, false);
        assert_eq!(code, Some(i32::from(!expected.is_empty())), "{said}");
        if !expected.is_empty() {
            assert!(said.contains("error[DPA051]") && said.contains(as_signed) && said.contains(expected), "{said}");
            assert!(!said.contains("DPA001"), "{said}");
        }
    }
    let (_, said) = check("a file that is not listed", &with_files, &unlisted.0, &unlisted.1, true);
    assert!(said.contains("`customers.d/a.yaml` is not in the manifest"), "{said}");
}

#[test]
fn a_start_with_a_policy_that_is_not_as_it_was_signed_is_refused_and_recorded() {
    let office = Office::new();
    let folder = Folder::new();
    office.open(&folder, 12);
    folder.write("policy.yaml", &revision(13));
    let text = settings("127.0.0.1:1", SIGNED, "enforce");
    let (code, said) = Setup::to("127.0.0.1:1").refused_with(&text, &folder);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("DPA051"), "{said}");
    let records = records_in(&std::fs::read_to_string(folder.file("decisions.ndjson")).unwrap());
    let record = records.iter().find(|record| record["event"] == "dpa.policy").unwrap();
    assert_eq!((&record["what"], &record["why"]), (&json!("refused"), &json!("signature")));
    assert_eq!(record["policy"], Value::Null, "none is in force");
    // With the right files it starts, and the log goes on.
    office.open(&folder, 13);
    let sidecar = Setup::to("127.0.0.1:1").start_with(&text, folder);
    assert_eq!(loaded(&sidecar, 13)["signed"], true);
    assert_eq!(loaded(&sidecar, 13)["key_id"], office.key.id);
    assert!(!sidecar.stderr.text().contains("the policy is not signed"));
}

#[test]
fn the_command_signs_what_the_sidecar_takes() {
    let folder = Folder::new();
    folder.write("policy.yaml", &(revision(12) + "\ncustomer_files: [\"customers.d/*.yaml\"]\n"));
    std::fs::create_dir(folder.file("customers.d")).unwrap();
    let customer = "customers:\n  - {id: brook-lane, legal_name: N, dpa: {version: \"3\", contract_ref: C}, permitted_purposes: [base]}\n";
    folder.write("customers.d/a.yaml", customer);
    folder
        .write("sidecar.yaml", &settings("127.0.0.1:1", "{file: policy.yaml, public_key: policy.key.pub}", "enforce"));
    let here = folder.file(".");
    assert_eq!(run(&here, &["keygen", "policy.key"]).status.code(), Some(0));
    let signed = run(&here, &["sign", "--key", "policy.key", "policy.yaml"]);
    assert_eq!(signed.status.code(), Some(0), "{}", err(&signed));
    assert!(out(&signed).starts_with("lumenfield-dpa revision 12 digest "), "{}", out(&signed));
    assert!(out(&signed).contains(", 2 files, signed by "), "{}", out(&signed));
    let manifest = std::fs::read_to_string(folder.file("policy.yaml.manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest["files"][0]["name"], "customers.d/a.yaml");
    assert_eq!(manifest["files"][0]["sha256"], signature::sha256(customer.as_bytes()));
    assert_eq!(manifest["files"][1]["name"], "policy.yaml");
    assert_eq!((&manifest["version"], &manifest["revision"]), (&json!(1), &json!(12)));
    let checked = run(&here, &["check", "sidecar.yaml"]);
    assert_eq!(checked.status.code(), Some(0), "{}", out(&checked));
    folder.write("customers.d/a.yaml", &customer.replace("brook", "brock"));
    let checked = run(&here, &["check", "sidecar.yaml"]);
    assert!(out(&checked).contains("`customers.d/a.yaml` is not as it was signed"), "{}", out(&checked));
    // What cannot be signed.
    for (name, arguments, code, expected) in [
        ("the public key", ["sign", "--key", "policy.key.pub", "policy.yaml"], 2, "there is no `PRIVATE KEY` in it"),
        ("no key", ["sign", "--key", "nothing", "policy.yaml"], 2, "cannot read the key `nothing`"),
        ("no policy", ["sign", "--key", "policy.key", "nothing"], 2, "cannot read `nothing`"),
        ("standard input", ["sign", "--key", "policy.key", "-"], 2, "has no name"),
        ("no policy at all", ["sign", "--key", "policy.key", "policy.key"], 1, "error[DPA"),
    ] {
        let output = run(&here, &arguments);
        assert_eq!(output.status.code(), Some(code), "{name}: {}", err(&output));
        assert!(err(&output).contains(expected), "{name}: {}", err(&output));
    }
}

#[test]
fn no_way_back_over_a_restart() {
    let weaker =
        |number| revision(number).replace("defaults:\n", "security_measures: {min_tls_version: \"1.2\"}\ndefaults:\n");
    let agreed = revision(13).replace("defaults:\n", "security_measures: {min_tls_version: \"1.3\"}\ndefaults:\n");
    let policy = "{file: policy.yaml, baseline: agreed.yaml}";
    let table: [(&str, String, Option<&str>); 5] = [
        ("what was agreed", agreed.clone(), None),
        ("a lower revision", agreed.replace("revision: 13", "revision: 12"), Some("revision")),
        ("the same revision with other content", format!("{agreed}\n# more\n"), Some("revision")),
        ("a measure that is weaker", weaker(14), Some("weaker")),
        (
            "the same, with a notice that is old enough",
            weaker(14)
                + "weakening_notices:\n  - {measure: min_tls_version, from: \"1.3\", to: \"1.2\", notice_given_at: 2026-07-01}\n",
            None,
        ),
    ];
    for (name, text, why) in table {
        let folder = Folder::new();
        folder.write("policy.yaml", &text);
        folder.write("agreed.yaml", &agreed);
        let settings = settings("127.0.0.1:1", policy, "enforce");
        folder.write("sidecar.yaml", &settings);
        let checked = run(&folder.file("."), &["check", "sidecar.yaml"]);
        assert_eq!(checked.status.code(), Some(i32::from(why.is_some())), "{name}: {}", out(&checked));
        let Some(why) = why else {
            let sidecar = Setup::to("127.0.0.1:1").start_with(&settings, folder);
            let record = policy_events(&sidecar, 1).remove(0);
            assert_eq!(record["what"], "loaded", "{name}");
            assert_eq!(record["against"]["revision"], 13, "{name}");
            assert_eq!(record["weaker"], u64::from(name != "what was agreed"), "{name}");
            continue;
        };
        let (code, said) = Setup::to("127.0.0.1:1").refused_with(&settings, &folder);
        assert_eq!(code, Some(1), "{name}: {said}");
        for text in [&said, &out(&checked)] {
            assert!(text.contains("error[DPA052]"), "{name}: {text}");
            assert_eq!(text.contains("not agreed: "), why == "weaker", "{name}: {text}");
        }
        let records = records_in(&std::fs::read_to_string(folder.file("decisions.ndjson")).unwrap());
        let record = records.iter().find(|record| record["event"] == "dpa.policy").unwrap();
        assert_eq!((&record["what"], &record["why"]), (&json!("refused"), &json!(why)), "{name}");
        if why == "weaker" {
            assert_eq!(record["changes"][0]["kind"], "min_tls_version", "{name}");
            assert_eq!(record["changes"][0]["customers"].as_array().unwrap().len(), 7, "{name}");
        }
    }
}

#[test]
fn what_the_settings_do_not_give_is_refused_at_a_reload_too() {
    let upstream = Upstream::ok();
    let folder = Folder::new();
    let policy = folder.write("policy.yaml", &revision(12));
    let text = settings(&upstream.address, "{file: policy.yaml}", "observe");
    let sidecar = Setup::to(&upstream.address).start_with(&text, folder);
    assert_eq!(loaded(&sidecar, 12)["enforcement"], "observe");
    let table = [
        ("enforce is required", "require_enforce: true\n", "DPA045"),
        ("it has to be signed", "security_measures: {signed_policy: true}\n", "DPA045"),
    ];
    for (number, (name, more, code)) in (13..).zip(table) {
        std::fs::write(&policy, revision(number) + more).unwrap();
        let record = sidecar.record(name, |record| record["offered"]["revision"] == number);
        assert_eq!((&record["what"], &record["why"]), (&json!("refused"), &json!("settings")), "{name}");
        assert_eq!(record["problems"][0]["code"], code, "{name}");
        assert_eq!(record["enforcement"], "observe", "{name}");
        assert_eq!(record["policy"]["revision"], 12, "{name}: what stays");
    }
    assert_eq!(decided_with(&sidecar, &sidecar.ask(permitted())), 12);
}

pub(crate) fn health(address: &str, path: &str) -> Answer {
    wait_for("the health listener", || {
        let mut probe = Connection::on(std::net::TcpStream::connect(address).ok()?);
        probe.try_send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).ok()?;
        probe.answer()
    })
}

pub(crate) fn free_address() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn what_is_in_force_and_why_a_newer_one_is_not() {
    let upstream = Upstream::ok();
    let folder = Folder::new();
    let policy = folder.write("policy.yaml", &revision(12));
    let address = free_address();
    let text =
        format!("{}health: {{address: '{address}'}}\n", settings(&upstream.address, "{file: policy.yaml}", "enforce"));
    let sidecar = Setup::to(&upstream.address).start_with(&text, folder);
    let ready = || health(&address, "/readyz?verbose").text();
    assert!(ready().contains("[+] policy: lumenfield-dpa revision 12 digest "), "{}", ready());
    assert!(ready().contains(", not signed, in force since 20"), "{}", ready());
    let table = [
        ("a lower revision", revision(11), "revision 11 was refused at ", "revision: revision 11 is lower than 12"),
        (
            "a mistake",
            revision(13) + "\nnonsense: 1\n",
            "what the files say was refused at ",
            "invalid: DPA004 at policy.yaml:",
        ),
        ("nothing", String::new(), "what the files say was refused at ", "invalid: DPA001 at policy.yaml:1;"),
        (
            "something weaker",
            revision(13).replace("\n  enforcement: enforce\n", "\n  enforcement: observe\n"),
            "revision 13 was refused at ",
            "weaker: the log and `/policy` of admin say what, and for whom",
        ),
    ];
    for (name, text, which, why) in table {
        std::fs::write(&policy, text).unwrap();
        let told = wait_for(name, || Some(ready()).filter(|text| text.contains(why)));
        assert!(told.contains(which) && told.contains("revision 12 digest"), "{name}: {told}");
        assert!(told.ends_with("ok\n"), "{name}: what is in force is good: {told}");
        assert!(!told.contains("redwood-strand"), "{name}: it told strangers who the customers are: {told}");
    }
    let metrics = health(&address, "/metrics").text();
    for line in [
        "dpa_policy_revision 12",
        "dpa_policy_loads_total 1",
        "dpa_policy_refused_total{why=\"revision\"} 1",
        "dpa_policy_refused_total{why=\"invalid\"} 2",
    ] {
        assert!(metrics.lines().any(|said| said == line), "{line}: {metrics}");
    }
    let age = metrics.lines().find_map(|line| line.strip_prefix("dpa_policy_age_seconds ")).unwrap();
    assert!(age.parse::<i64>().unwrap() > 86_400, "counted from issued_at: {age}");
    // Back to what is in force: nothing is loaded, and nothing is wrong any more.
    std::fs::write(&policy, revision(12)).unwrap();
    wait_for("peace", || (!ready().contains("was refused")).then_some(()));
    assert_eq!(policy_events(&sidecar, 5).len(), 5);
    hang_up(&sidecar);
    std::fs::write(&policy, revision(13)).unwrap();
    loaded(&sidecar, 13);
    wait_for("the new one", || ready().contains("revision 13 digest").then_some(()));
}

/// A refusal that stood was recorded at each look once.
#[test]
fn a_refusal_is_recorded_once() {
    let upstream = Upstream::ok();
    let folder = Folder::new();
    let policy = folder.write("policy.yaml", &revision(12));
    let sidecar = start(folder, &upstream.address, "{file: policy.yaml}");
    std::fs::write(&policy, revision(11)).unwrap();
    refused(&sidecar, "revision");
    // Who asks is told each time.
    let told = |count: usize| {
        wait_for("the word of it", || {
            (sidecar.stderr.text().matches("the one in force stays why=\"revision\"").count() >= count).then_some(())
        });
    };
    for round in 1..=3 {
        told(round);
        hang_up(&sidecar);
    }
    told(4);
    // Another refusal, and the first again.
    std::fs::write(&policy, "[").unwrap();
    refused(&sidecar, "invalid");
    std::fs::write(&policy, revision(11)).unwrap();
    told(5);
    let fresh = policy.with_extension("new");
    std::fs::write(&fresh, revision(13)).unwrap();
    std::fs::rename(fresh, &policy).unwrap();
    loaded(&sidecar, 13);
    let whats: Vec<Value> = policy_events(&sidecar, 4).iter().map(|record| record["why"].clone()).collect();
    assert_eq!(whats, [Value::Null, json!("revision"), json!("invalid"), Value::Null]);
    let record = refused(&sidecar, "invalid");
    assert_eq!(record["problems"][0]["code"], "DPA001");
    assert_eq!((&record["problems"][0]["file"], &record["problems"][0]["line"]), (&json!("policy.yaml"), &json!(1)));
}

#[test]
fn a_policy_that_is_too_old() {
    let upstream = Upstream::ok();
    let outside = || Head::bare("GET", "/assets/logo.svg").end();
    let nobody = || Head::bare("GET", SUBSCRIBER).with("DPA-Context", "purpose=customer_support").end();
    type Row = (&'static str, &'static str, &'static str, u16, &'static str, Option<&'static str>);
    let table: [Row; 3] = [
        ("deny", "max_age: 1d", "enforce", 503, "denied", Some("policy_stale")),
        ("warn", "max_age: 1d, on_stale: warn", "enforce", 200, "allowed", None),
        ("observe", "max_age: 1d, on_stale: deny", "observe", 200, "observed", Some("policy_stale")),
    ];
    for (name, keys, enforcement, status, action, reason) in table {
        let folder = Folder::new();
        let policy = folder.write("policy.yaml", &revision(12));
        let address = free_address();
        let text = settings(&upstream.address, &format!("{{file: policy.yaml, {keys}}}"), enforcement);
        let text = format!("{text}health: {{address: '{address}'}}\n");
        let sidecar = Setup::to(&upstream.address).start_with(&text, folder);
        let answer = sidecar.ask(permitted());
        assert_eq!(answer.status, status, "{name}: {}", answer.text());
        let record = sidecar.decision(&answer.decision_id());
        assert_eq!((&record["action"], &record["reason"]), (&json!(action), &json!(reason)), "{name}");
        if let Some(reason) = reason {
            assert_eq!(record["decision"], "deny", "{name}");
            assert_eq!(record["reasons"][0]["obligation"], "cannot-comply-notice", "{name}");
            assert_eq!(record["customer_id"], "redwood-strand", "{name}: the facts are there");
            assert_eq!(record["authority"], Value::Null, "{name}");
            if status == 503 {
                assert_eq!(answer.reason(), reason, "{name}");
                assert_eq!(answer.value("retry-after"), Some("1"), "{name}");
            }
        }
        // Who is nobody learns nothing of it; what is outside the agreement does not rest on it.
        assert_eq!(sidecar.ask(nobody()).status, if enforcement == "observe" { 200 } else { 401 }, "{name}");
        assert_eq!(sidecar.ask(outside()).status, 200, "{name}");
        let answer = sidecar.ask(denied());
        let codes: Vec<Value> = sidecar.decision(&answer.decision_id())["reasons"]
            .as_array()
            .unwrap()
            .iter()
            .map(|reason| reason["code"].clone())
            .collect();
        assert_eq!(codes.len(), 1 + usize::from(reason.is_some()), "{name}: {codes:?}");
        let ready = health(&address, "/readyz?verbose");
        assert_eq!(ready.status == 200, name == "warn", "{name}: {}", ready.text());
        assert!(ready.text().contains("older than `policy.max_age`"), "{name}: {}", ready.text());
        sidecar.record("stale", |record| record["event"] == "dpa.policy" && record["what"] == "stale");
        // A newer one ends it.
        let today = jiff::Timestamp::now().to_string();
        std::fs::write(&policy, revision(13).replace("issued_at: 2020-06-01", &format!("issued_at: {today}"))).unwrap();
        decides(&sidecar, 13);
        assert_eq!(sidecar.ask(permitted()).status, 200, "{name}");
        assert_eq!(health(&address, "/readyz").status, 200, "{name}");
    }
}

#[test]
fn an_age_that_nobody_knows() {
    let text = revision(12).replace(", issued_at: 2020-06-01", "");
    for (name, keys, expected) in [
        ("the policy says no date", "max_age: 30d", "does not say when it was issued"),
        ("`on_stale` alone", "on_stale: warn", "`on_stale` says what happens"),
    ] {
        let folder = Folder::new();
        folder.write("policy.yaml", &text);
        folder.write("sidecar.yaml", &settings("127.0.0.1:1", &format!("{{file: policy.yaml, {keys}}}"), "enforce"));
        let checked = run(&folder.file("."), &["check", "sidecar.yaml"]);
        assert_eq!(checked.status.code(), Some(1), "{name}");
        assert!(out(&checked).contains("DPA005") && out(&checked).contains(expected), "{name}: {}", out(&checked));
    }
}

/// Callers that ask for the same things again and again, each on its own connection.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    callers: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    /// The requests, and the statuses that they may be answered with.
    pub(crate) fn of(sidecar: &Sidecar, requests: Vec<(String, Vec<u16>)>, callers: usize) -> Self {
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let requests = Arc::new(requests);
        let callers = (0..callers)
            .map(|_| {
                let (stop, asked, requests) = (Arc::clone(&stop), Arc::clone(&asked), Arc::clone(&requests));
                let address = sidecar.address.clone();
                std::thread::spawn(move || {
                    let mut connection = Connection::to(&address);
                    while !stop.load(Ordering::Relaxed) {
                        for (request, statuses) in &*requests {
                            connection.send(request);
                            let answer = connection.answer().unwrap();
                            assert!(statuses.contains(&answer.status), "{answer:?}");
                            asked.fetch_add(1, Ordering::Relaxed);
                        }
                        std::thread::sleep(Duration::from_millis(15));
                    }
                })
            })
            .collect();
        Self { stop, asked, callers }
    }

    /// How many it has asked by now.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// Stops; how many were asked, each of them answered as expected.
    pub(crate) fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.callers.into_iter().for_each(|caller| caller.join().unwrap());
        self.asked.load(Ordering::Relaxed)
    }
}

#[test]
fn a_hundred_reloads_under_requests() {
    let upstream = Upstream::ok();
    let (office, stranger) = (Office::new(), Office::new());
    let folder = Folder::new();
    office.open(&folder, 100);
    let at = folder.file(".");
    let path = |what: &str| at.join(what);
    let sidecar = start(folder, &upstream.address, SIGNED);
    let load = Load::of(&sidecar, vec![(permitted(), vec![200]), (denied(), vec![403])], 3);
    let put = |text: &str, (manifest, signature): (String, String)| {
        std::fs::write(path("policy.yaml"), text).unwrap();
        std::fs::write(path("policy.yaml.manifest.json"), manifest).unwrap();
        std::fs::write(path("policy.yaml.manifest.sig"), signature).unwrap();
    };
    let signed = |number: u64, text: &str| office.signed(number, &[("policy.yaml", text)]);
    let mut number = 100;
    let mut good = BTreeSet::from([100]);
    for step in 0..100 {
        let next = revision(number + 1);
        let before = policy_events(&sidecar, 1 + step).len();
        assert_eq!(before, 1 + step, "one record a step");
        let expected = match step % 10 {
            0 | 8 => {
                put(&next, signed(number + 1, &next));
                "loaded"
            }
            1 => {
                let text = next.clone() + "\nnonsense: 1\n";
                put(&text, signed(number + 1, &text));
                "invalid"
            }
            2 => {
                put("", signed(number + 1, ""));
                "invalid"
            }
            3 => {
                put(&next[..next.len() / 2], signed(number + 1, &next));
                "signature"
            }
            4 => {
                let bomb =
                    "a: &a [x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\nc: [*b, *b, *b, *b]\n";
                put(bomb, signed(number + 1, bomb));
                "invalid"
            }
            5 => {
                put(&next, signed(number + 1, &next));
                std::fs::remove_file(path("policy.yaml.manifest.sig")).unwrap();
                "signature"
            }
            6 => {
                let old = revision(7);
                put(&old, signed(7, &old));
                "revision"
            }
            7 => {
                put(&next, stranger.signed(number + 1, &[("policy.yaml", &next)]));
                "signature"
            }
            // Half of the volume is swapped, and some time later the rest of it. Nobody says that it is whole.
            _ => {
                std::fs::write(path("policy.yaml"), &next).unwrap();
                std::thread::sleep(Duration::from_millis(900));
                put(&next, signed(number + 1, &next));
                "loaded"
            }
        };
        if step % 10 != 9 {
            hang_up(&sidecar);
        }
        let record = policy_events(&sidecar, before + 1).remove(before);
        let said = if record["what"] == "loaded" { "loaded" } else { record["why"].as_str().unwrap() };
        assert_eq!(said, expected, "step {step}: {record}");
        if expected == "loaded" {
            number += 1;
            good.insert(number);
            assert_eq!(record["policy"]["revision"], number, "step {step}");
        } else {
            assert_eq!(record["policy"]["revision"], number, "step {step}: what stays");
        }
    }
    assert_eq!(good.len(), 31);
    let asked = load.end();
    assert!(asked > 1_000, "only {asked} requests");
    // The last outcomes are written.
    let stopped = sidecar.stop();
    assert_eq!(stopped.code, Some(0), "{}", stopped.stderr);
    let records = records_in(&std::fs::read_to_string(stopped.folder.file("decisions.ndjson")).unwrap());
    let schema = jsonschema::validator_for(&dpa_sidecar::record::entry::schema().to_value()).unwrap();
    for record in records.iter().filter(|record| record["event"] == "dpa.policy") {
        let faults: Vec<String> = schema.iter_errors(record).map(|error| error.to_string()).collect();
        assert!(faults.is_empty(), "{record}: {faults:?}");
    }
    let mut in_force = BTreeSet::new();
    let (mut decisions, mut with) = (0, BTreeSet::new());
    for record in &records {
        let digest = record["policy"]["digest"].as_str();
        match (record["event"].as_str().unwrap(), record["what"].as_str()) {
            ("dpa.policy", Some("loaded")) => _ = in_force.insert(digest.unwrap().to_owned()),
            ("dpa.decision", _) => {
                decisions += 1;
                let digest = digest.unwrap();
                assert!(in_force.contains(digest), "decided before it was in force: {record}");
                with.insert(digest.to_owned());
            }
            _ => {}
        }
    }
    assert_eq!(decisions, asked, "every request has its record, and none failed");
    assert_eq!(upstream.seen().len(), asked / 2);
    assert_eq!(in_force.len(), good.len(), "nothing else was ever in force");
    assert!(with.len() > 20, "only {} of them decided anything", with.len());
}
