//! The guides that a newcomer takes: each command in them is typed here, or stands in a table of those that need more
//! than this machine.

use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

use serde_json::Value;

use crate::docs::Block;
use crate::docs::beside_the_sample_policy;
use crate::docs::document;
use crate::docs::resetting;
use crate::policy_reload::free_address;
use crate::policy_reload::health;
use crate::readme::commands;
use crate::story::are_alike;
use crate::support::Folder;
use crate::support::Head;
use crate::support::Setup;
use crate::support::Upstream;
use crate::support::repository;
use crate::support::wait_for;

const KUBERNETES: &str = "docs/kubernetes.md";
const OBSERVE: &str = "docs/observe-first.md";
const DEPLOY: &str = "docs/deploy.md";

/// Commands that are not typed here: the guide, how it begins, and why.
const ELSEWHERE: [(&str, &str, &str); 11] = [
    (KUBERNETES, "kubectl get pods", "a kubelet runs pods"),
    (KUBERNETES, "kubectl logs deploy/subscriber-api", "a kubelet keeps what a container prints"),
    (KUBERNETES, "kubectl port-forward", "a kubelet forwards; what is asked then, is asked of a sidecar here"),
    (DEPLOY, "docker build", "an engine for containers; tests/peers/image.sh builds with buildah"),
    (DEPLOY, "docker run --rm --read-only registry.example/dpa-sidecar:0.1.0 demo", "the same"),
    (DEPLOY, "docker run --rm --read-only -v", "the same"),
    (DEPLOY, "kubectl apply -k", "an API server; tests/peers/manifests.py renders the same folder"),
    (DEPLOY, "kubectl -n dpa-demo rollout", "an API server, and a kubelet"),
    (DEPLOY, "kubectl -n dpa-demo port-forward", "a kubelet forwards"),
    (DEPLOY, "curl -i http://127.0.0.1:8080", "it asks the pod of the demo; tests/peers/pod.py asks the same of one"),
    (DEPLOY, "kubectl -n dpa-demo logs", "a kubelet keeps what a container prints"),
];

/// Commands that end with another code than 0: the guide, how they begin, the code, and why that is right.
const EXITS: [(&str, &str, i32, &str); 4] = [
    (OBSERVE, "dpa-sidecar explain", 1, "it was denied"),
    (OBSERVE, "dpa-sidecar diff", 1, "one more purpose is weaker"),
    (OBSERVE, "dpa-sidecar replay", 1, "the observed request would be permitted"),
    (OBSERVE, "dpa-sidecar coverage", 1, "what is observed is not enforced"),
];

/// `kubectl` as far as the guides need it: objects in a file, names of ConfigMaps and Secrets in another. It knows
/// nothing else, so that a new command has to be looked at.
const KUBECTL: &str = r#"#!/usr/bin/env bash
set -eu
cd "$CLUSTER"
case "$*" in
'create configmap '*) kind=configmap name=$3 files=("${@:4}") ;;
'create secret tls '*) kind=secret name=$4 files=("${@:5}") ;;
'get deploy/subscriber-api svc/subscriber-api -o yaml') exec cat objects.yaml ;;
'apply -f -')
    cat >applied.yaml
    mv applied.yaml objects.yaml
    echo 'deployment.apps/subscriber-api configured'
    echo 'service/subscriber-api configured'
    exit
    ;;
*)
    echo "this kubectl has not heard of: $*" >&2
    exit 64
    ;;
esac
for file in "${files[@]}"; do
    case "$file" in
    --from-file=* | --cert=* | --key=*) test -s "$DESK/${file#*=}" ;;
    *) exit 64 ;;
    esac
done
echo "$kind $name" >>names
echo "$kind/$name created"
"#;

/// Whoever takes a guide: a folder with the files that it names, and what a terminal there knows.
struct Desk {
    folder: Folder,
    /// The stand-ins, and what is in the cluster.
    cluster: Folder,
    /// What is put in the place of an address, a path or an id of the guide.
    replaced: Vec<(String, String)>,
}

impl Desk {
    fn new(folder: Folder) -> Self {
        let cluster = Folder::new();
        symlink(env!("CARGO_BIN_EXE_dpa-sidecar"), cluster.file("dpa-sidecar")).unwrap();
        let kubectl = cluster.write("kubectl", KUBECTL);
        std::fs::set_permissions(kubectl, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { folder, cluster, replaced: Vec::new() }
    }

    fn put(&mut self, shown: &str, meant: &str) {
        self.replaced.push((shown.to_owned(), meant.to_owned()));
    }

    fn meant(&self, text: &str) -> String {
        self.replaced.iter().fold(text.to_owned(), |text, (shown, meant)| text.replace(shown, meant))
    }

    /// Types one command: exit code, standard output, standard error.
    fn typed(&self, command: &str) -> (Option<i32>, String, String) {
        let path = format!("{}:{}", self.cluster.file(".").display(), std::env::var("PATH").unwrap());
        let file = |name: &str| self.cluster.file(name);
        // It takes the place of the shell, so that it can be ended.
        let is_endless = command.contains(" tail -f");
        let command = if is_endless { format!("exec {command}") } else { command.to_owned() };
        let mut child = Command::new("bash")
            .args(["-o", "pipefail", "-c", &command])
            .current_dir(self.folder.file("."))
            .env("PATH", path)
            .env("CLUSTER", file("."))
            .env("DESK", self.folder.file("."))
            .stdin(Stdio::null())
            .stdout(File::create(file("out")).unwrap())
            .stderr(File::create(file("err")).unwrap())
            .spawn()
            .unwrap();
        let said = |name: &str| std::fs::read_to_string(file(name)).unwrap();
        let code = if is_endless {
            wait_for("what goes on", || said("out").ends_with('\n').then_some(()));
            child.kill().unwrap();
            child.wait().unwrap();
            Some(0)
        } else {
            child.wait().unwrap().code()
        };
        (code, said("out"), said("err"))
    }

    /// Types all commands of a guide. What is shown after one is what comes; so is a block that says `said`, on
    /// standard error.
    fn take(&self, guide: &str, blocks: &[Block]) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut last = String::new();
        for Block { line, language, what, text } in blocks {
            if what == "said" && *text != last {
                wrong.push(format!("{guide}:{line}: this was said:\n{last}"));
            }
            for (command, shown) in commands(text).iter().filter(|_| language == "console") {
                if is_elsewhere(guide, command) {
                    continue;
                }
                let (code, out, err) = self.typed(&self.meant(command));
                let exit = EXITS.iter().find(|(of, start, ..)| *of == guide && command.starts_with(start));
                let expected = exit.map_or(0, |(_, _, code, _)| *code);
                if code != Some(expected) {
                    wrong.push(format!("{guide}:{line}: {command}: {code:?}, not {expected}\n{out}{err}"));
                }
                let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
                let came: Vec<&str> = out.lines().chain(err.lines()).collect();
                if !shown.is_empty() && !are_alike(&shown, &came) {
                    wrong.push(format!("{guide}:{line}: {command}:\nshown: {shown:#?}\ncame: {came:#?}"));
                }
                last = err;
            }
        }
        wrong
    }
}

fn is_elsewhere(guide: &str, command: &str) -> bool {
    ELSEWHERE.iter().any(|(of, start, _)| *of == guide && command.starts_with(start))
}

/// The first piece of YAML of a guide.
fn settings(guide: &str) -> String {
    document(guide).into_iter().find(|block| block.language == "yaml").unwrap().text
}

#[test]
fn kubernetes_in_ten_minutes() {
    let shown = resetting(&settings(KUBERNETES));
    let mut desk = Desk::new(beside_the_sample_policy());
    desk.folder.write("sidecar.yaml", &shown);
    let objects = std::fs::read_to_string(repository("tests/inject/named-port.yaml")).unwrap();
    desk.cluster.write("objects.yaml", &objects);

    // What the forwarded port leads to: the same settings, on loopback.
    let (entrance, admin, service) = (free_address(), free_address(), Upstream::ok());
    let mut ported = shown;
    for (from, to) in [
        ("0.0.0.0:8443", entrance.as_str()),
        ("0.0.0.0:9901", &admin),
        ("127.0.0.1:3000", &service.address),
        ("/var/log/dpa-sidecar/", ""),
    ] {
        assert!(ported.contains(from), "{from}: {ported}");
        ported = ported.replace(from, to);
    }
    let _sidecar = Setup::to("").start_with(&ported, beside_the_sample_policy());
    assert_eq!(health(&admin, "/readyz").status, 200);
    desk.put("127.0.0.1:9901", &admin);

    let blocks = document(KUBERNETES);
    let place = blocks.iter().position(|block| block.text.contains("--uninject")).unwrap();
    let (there, back) = blocks.split_at(place);
    let now = || -> Vec<Value> {
        let text = std::fs::read_to_string(desk.cluster.file("objects.yaml")).unwrap();
        text.split("\n---\n").map(|document| serde_yaml::from_str(document).unwrap()).collect()
    };
    let before = now();
    let mut wrong = desk.take(KUBERNETES, there);

    let pod = now()[0]["spec"]["template"]["spec"].clone();
    assert_eq!(pod["initContainers"][0]["name"], "dpa-sidecar", "{wrong:#?}");
    // Everything that the pod waits for has been made.
    let volumes = pod["volumes"].as_array().unwrap();
    let named: Vec<String> = volumes
        .iter()
        .flat_map(|volume| volume["projected"]["sources"].as_array().cloned().unwrap_or_default())
        .flat_map(|source| {
            let of = |key: &str| source[key]["name"].as_str().map(|name| format!("{} {name}", key.to_lowercase()));
            ["configMap", "secret"].into_iter().filter_map(of).collect::<Vec<_>>()
        })
        .collect();
    let made = std::fs::read_to_string(desk.cluster.file("names")).unwrap();
    assert_eq!(named.len(), 3, "{named:?}");
    for name in named {
        assert!(made.lines().any(|line| line == name), "{name}: {made}");
    }

    wrong.extend(desk.take(KUBERNETES, back));
    assert_eq!(now(), before);
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn observe_first_then_enforce() {
    let service = Upstream::ok();
    let mut desk = Desk::new(beside_the_sample_policy());
    let cases = std::fs::read_to_string(repository("config/policy-tests.yaml")).unwrap();
    desk.folder.write("policy-tests.yaml", &cases);
    // What is wrong is the policy: the desk was promised one more purpose.
    let (was, now) =
        ("account_management, rights_fulfilment]", "account_management, rights_fulfilment, customer_marketing]");
    let policy = std::fs::read_to_string(repository("config/policy.yaml")).unwrap();
    assert_eq!(policy.matches(was).count(), 1, "whose purposes?");
    std::fs::create_dir(desk.folder.file("new")).unwrap();
    desk.folder.write("new/policy.yaml", &policy.replace(was, now).replace("revision: 12", "revision: 13"));

    let observing = resetting(&settings(OBSERVE));
    assert!(observing.contains("enforcement: observe"), "{observing}");
    let ported = observing.replace("127.0.0.1:8080", "127.0.0.1:0").replace("127.0.0.1:3000", &service.address);
    let sidecar = Setup::to("").start_with(&ported, beside_the_sample_policy());
    let request = Head::bare("GET", "/v1/customers/redwood-strand/contacts.json")
        .with("DPA-Caller", "spiffe://lumenfield.example/ns/care/sa/care-desk")
        .with("DPA-Context", "purpose=customer_marketing");
    assert_eq!(sidecar.ask(request.end()).status, 200, "it is observed and passes");
    let record = sidecar.record("the observed one", |record| record["action"] == "observed");
    let stopped = sidecar.stop();
    std::fs::copy(stopped.folder.file("decisions.ndjson"), desk.folder.file("decisions.ndjson")).unwrap();
    desk.folder.write("sidecar.yaml", &ported);

    desk.put("/var/log/dpa-sidecar/", "");
    let blocks = document(OBSERVE);
    let shown = blocks.iter().flat_map(|block| block.text.split(' ')).find(|word| uuid::Uuid::try_parse(word).is_ok());
    desk.put(shown.unwrap(), record["decision_id"].as_str().unwrap());
    let wrong = desk.take(OBSERVE, &blocks);
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    let page: PathBuf = desk.folder.file("coverage.html");
    assert!(std::fs::read_to_string(page).unwrap().contains("observed"));
}

#[test]
fn what_is_not_typed_is_in_a_guide_and_every_command_is_seen() {
    let mut wrong = Vec::new();
    let mut all = Vec::new();
    for guide in [KUBERNETES, OBSERVE, DEPLOY] {
        for Block { line, language, text, .. } in document(guide) {
            let found = commands(&text);
            let is_console = language == "console";
            if is_console && !text.starts_with("$ ") || !is_console && !found.is_empty() {
                wrong.push(format!("{guide}:{line}: a command is in a `console` block, behind `$ `"));
            }
            // A command in a block that nobody types would be one that nobody has tried.
            let is_command = |line: &str| {
                let first = line.split(' ').next().unwrap_or_default();
                ["kubectl", "dpa-sidecar", "curl", "docker", "jq", "helm", "cargo"].contains(&first)
            };
            if language != "yaml" && text.lines().any(is_command) || !["yaml", "text", "console"].contains(&&*language)
            {
                wrong.push(format!("{guide}:{line}: this has commands that are not typed"));
            }
            all.extend(found.into_iter().map(|(command, _)| (guide, command)));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    // Those of `docs/deploy.md` all need more than this machine.
    let left: Vec<_> = all.iter().filter(|(guide, it)| *guide == DEPLOY && !is_elsewhere(guide, it)).collect();
    assert!(left.is_empty(), "neither typed nor told why not: {left:#?}");
    let rows = ELSEWHERE.iter().map(|(guide, start, _)| (guide, start));
    for (guide, start) in rows.chain(EXITS.iter().map(|(guide, start, ..)| (guide, start))) {
        let count = all.iter().filter(|(of, command)| of == guide && command.starts_with(start)).count();
        assert_eq!(count, 1, "{guide}: {start}");
    }
}
