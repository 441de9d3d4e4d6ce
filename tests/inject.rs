//! `inject`: manifests as they are met, with the sidecar and without.

use proptest::prelude::*;
use serde_json::Value;

use crate::support::Folder;
use crate::support::as_golden;
use crate::support::err;
use crate::support::out;
use crate::support::repository;
use crate::support::run;

/// The flags that are always needed.
const MAPS: [&str; 4] = ["--policy-configmap", "dpa-policy", "--settings-configmap", "api-sidecar"];

/// What it is, the manifest and how the golden is called, further flags.
const GOOD: [(&str, &str, &str, &[&str]); 19] = [
    ("a port with a name, which its Service goes by", "named-port.yaml", "named-port", &[]),
    ("as `kubectl get -o yaml` prints it, a Service that goes by the number", "by-number.yaml", "by-number", &[]),
    ("a StatefulSet behind a headless Service, stopped too soon", "statefulset.yaml", "statefulset", &[]),
    ("a DaemonSet with keys that have no value", "daemonset.yaml", "daemonset", &[]),
    ("a Job, which has no port", "job.yaml", "job", &["--egress"]),
    ("a CronJob, which has no port, and nobody says so", "cronjob.yaml", "cronjob", &[]),
    ("a Pod with two containers and a probe of gRPC", "pod.yaml", "pod", &[]),
    ("as `kubectl get -o json` prints it", "kubectl.json", "kubectl-json", &[]),
    (
        "a whole application, with text that looks like something else",
        "whole-application.yaml",
        "whole-application",
        &["--port", "web"],
    ),
    (
        "a service on loopback, on the number of the sidecar",
        "loopback.yaml",
        "loopback",
        &["--loopback", "--listen", "8080"],
    ),
    ("a service on loopback, on another number", "loopback.yaml", "loopback-elsewhere", &["--loopback"]),
    ("with other sidecars, of which one is native", "meshed.yaml", "meshed", &["--port", "4000"]),
    ("beside the other containers", "named-port.yaml", "classic", &["--classic"]),
    (
        "beside the other containers, for very old clusters",
        "by-number.yaml",
        "classic-old",
        &["--classic", "--pre-stop", "0"],
    ),
    (
        "two listeners and a slow drain, read from the settings",
        "several-ports.yaml",
        "several-ports",
        &[
            "--settings",
            "several-ports.sidecar.yaml",
            "--env",
            "PLACE=US-OR",
            "--secret",
            "api-tls",
            "--secret",
            "api-log-key",
        ],
    ),
    ("almost nothing, in one line", "bare.yaml", "bare", &[]),
    ("one of several workloads; what others make stays", "owned.yaml", "one-of-several", &["--only", "deployment/web"]),
    (
        "image, memory and log of one's own",
        "bare.yaml",
        "own-sizes",
        &[
            "--image",
            "registry.example/dpa-sidecar@sha256:0f",
            "--memory",
            "1Gi",
            "--log-size",
            "20Gi",
            "--health-port",
            "9000",
            "--drain-timeout",
            "50",
        ],
    ),
    ("a port that no container says", "cronjob.yaml", "undeclared", &["--port", "8080"]),
];

fn inject(folder: &std::path::Path, flags: &[&str], file: &str) -> (Option<i32>, String, String) {
    let output = run(folder, &[&["inject"], MAPS.as_slice(), flags, &[file]].concat());
    (output.status.code(), out(&output), err(&output))
}

fn uninject(folder: &std::path::Path, file: &str) -> String {
    let output = run(folder, &["inject", "--uninject", file]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    out(&output)
}

/// The documents of a stream, each as values.
fn values(text: &str) -> Vec<Value> {
    text.split("\n---\n").map(|document| serde_yaml::from_str(document).unwrap()).collect()
}

#[test]
fn manifests_with_the_sidecar_and_without() {
    let manifests = repository("tests/inject");
    let folder = Folder::new();
    let mut wrong = Vec::new();
    for (name, file, golden, flags) in GOOD {
        let (code, text, told) = inject(&manifests, flags, file);
        if code != Some(0) {
            wrong.push(format!("{name}: {code:?}\n{told}"));
            continue;
        }
        wrong.extend(as_golden(&format!("inject/{golden}.yaml"), &text));
        wrong.extend(as_golden(&format!("inject/{golden}.txt"), &told));
        let first = uninject(&manifests, file);
        folder.write("injected.yaml", &text);
        // The settings are named from where they are.
        let here: Vec<String> = flags
            .iter()
            .map(|flag| match flag.ends_with(".yaml") {
                true => manifests.join(flag).to_str().unwrap().to_owned(),
                false => (*flag).to_owned(),
            })
            .collect();
        let here: Vec<&str> = here.iter().map(String::as_str).collect();
        let table = [
            ("once more changes nothing", inject(&folder.file("."), &here, "injected.yaml").1, text.clone()),
            ("what was there is back", uninject(&folder.file("."), "injected.yaml"), first.clone()),
        ];
        for (what, found, expected) in table {
            if found != expected {
                wrong.push(format!("{name}: {what}:\n{found}\ninstead of\n{expected}"));
            }
        }
        // As a cluster gives it back: keys sorted, defaults filled in.
        let mut objects = values(&text);
        objects.iter_mut().for_each(fill_in_defaults);
        folder.write("sorted.json", &serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects.iter().flat_map(|it| match it["items"].as_array() { Some(items) => items.clone(), None => vec![it.clone()] }).collect::<Vec<_>>()}).to_string());
        let back = values(&uninject(&folder.file("."), "sorted.json"));
        let was: Vec<Value> = values(&first)
            .into_iter()
            .flat_map(|it| match it["items"].as_array() {
                Some(items) => items.clone(),
                None => vec![it],
            })
            .collect();
        if back[0]["items"] != Value::from(was.clone()) {
            wrong.push(format!("{name}: out of a cluster:\n{}\ninstead of\n{was:?}", back[0]["items"]));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Gives every container of the sidecar what the API server adds to it.
fn fill_in_defaults(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.get("name") == Some(&Value::from("dpa-sidecar")) && map.contains_key("image") {
                map.insert("imagePullPolicy".to_owned(), "IfNotPresent".into());
                map.insert("terminationMessagePath".to_owned(), "/dev/termination-log".into());
            }
            map.values_mut().for_each(fill_in_defaults);
        }
        Value::Array(items) => items.iter_mut().for_each(fill_in_defaults),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A Deployment whose pod has these lines, 6 columns in, and whose container these, 10 columns in.
fn deployment(pod: &str, container: &str) -> String {
    let indented = |text: &str, columns: usize| {
        text.lines().map(|line| format!("{}{line}\n", " ".repeat(columns))).collect::<String>()
    };
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
{}      containers:
        - name: web
{}",
        indented(pod, 6),
        indented(container, 10)
    )
}

#[test]
fn what_is_refused_and_where() {
    const HTTP: &str = "ports: [{containerPort: 3000, name: http}]";
    let settings = |changed: &str, to: &str| {
        let text = std::fs::read_to_string(repository("tests/inject/several-ports.sidecar.yaml")).unwrap();
        assert!(text.contains(changed), "{changed}");
        text.replace(changed, to)
    };
    let from_settings = ["--settings", "sidecar.yaml", "--env", "PLACE=US-OR"];
    let two = "ports: [{containerPort: 3000}, {containerPort: 3001}]";
    let table: [(&str, String, &[&str], &str); 32] = [
        ("the network of the node", deployment("hostNetwork: true", HTTP), &[], "m.yaml:8:20: error[DPA070]: with `hostNetwork`"),
        ("Windows", deployment("os: {name: windows}", HTTP), &[], "m.yaml:8:18: error[DPA070]: the sidecar runs on Linux"),
        ("the network of the node, as YAML 1.1 writes it", deployment("hostNetwork: True", HTTP), &[], "m.yaml:8:20: error[DPA070]: with `hostNetwork`"),
        ("the network of the node, in another word", deployment("hostNetwork: on", HTTP), &[], "error[DPA070]: with `hostNetwork`"),
        ("Windows, by the nodes that are chosen", deployment("nodeSelector: {kubernetes.io/os: windows}", HTTP), &[], "error[DPA070]: the sidecar runs on Linux"),
        ("a port in hexadecimal digits", deployment("", "ports: [{containerPort: 0x20fb}, {containerPort: 80}]"), &["--port", "80"], "error[DPA070]: this is no plain number of a port"),
        ("a port that is octal to Kubernetes", deployment("", "ports: [{containerPort: 03000}]"), &[], "write it in decimal digits"),
        ("the sidecar's port is taken", deployment("", "ports: [{containerPort: 8443}, {containerPort: 80}]"), &["--port", "80"], "m.yaml:10:19: error[DPA070]: port 8443 is taken by `spec/containers/web`"),
        ("the sidecar's port is that of the service", deployment("", "ports: [{containerPort: 8443}]"), &[], "or see `--loopback`"),
        ("so it is, and nobody declares it", deployment("", "image: x"), &["--port", "8443"], "the service listens on port 8443"),
        ("the health port is taken", deployment("", "ports: [{containerPort: 9901}, {containerPort: 80}]"), &["--port", "80"], "--health-port"),
        ("the name of the health port is taken", deployment("", "ports: [{containerPort: 80}, {containerPort: 81, name: dpa-health}]"), &["--port", "80"], "the name `dpa-health`"),
        ("a container of that name", deployment("initContainers: [{name: dpa-sidecar, image: x}]", HTTP), &[], "m.yaml:8:24: error[DPA070]: `initContainers` has a `dpa-sidecar` already"),
        ("a volume of that name", deployment("volumes: [{name: dpa-sidecar-log}]", HTTP), &[], "`volumes` has a `dpa-sidecar-log` already"),
        ("a port of the node", deployment("", "ports: [{containerPort: 80, hostPort: 80}]"), &[], "m.yaml:10:49: error[DPA070]: the `hostPort` of port 80"),
        ("no port", deployment("", "image: x"), &[], "`--port NUMBER`; or `--egress`"),
        ("too many ports", deployment("", two), &[], "There are 3000, 3001"),
        ("a port that is not there", deployment("", HTTP), &["--port", "https"], "no container has a port `https`"),
        ("a probe of TCP for a service on loopback", deployment("", &format!("{HTTP}\nlivenessProbe: {{tcpSocket: {{port: http}}}}")), &["--loopback"], "m.yaml:11:38: error[DPA070]: the kubelet does not come to loopback"),
        ("a Job that would never end", "apiVersion: batch/v1\nkind: Job\nmetadata: {name: j}\nspec: {template: {spec: {containers: [{name: j}]}}}\n".to_owned(), &["--classic"], "a Job never ends"),
        ("no pods at all", "apiVersion: v1\nkind: Service\nmetadata: {name: s}\n".to_owned(), &[], "m.yaml:1:1: error[DPA070]: no object here has pods"),
        ("none of the one that is meant", deployment("", HTTP), &["--only", "deployment/api"], "no object here is one of `--only`"),
        (
            "a Service of two workloads of which one stays as it is",
            format!(
                "{}---\n{}---\napiVersion: v1\nkind: Service\nmetadata: {{name: s}}\nspec: {{selector: {{app: web}}, ports: [{{port: 80}}]}}\n",
                deployment("", HTTP),
                deployment("", HTTP).replace("metadata: {name: web}", "metadata: {name: canary}")
            ),
            &["--only", "deployment/canary"],
            "m.yaml:23:1: error[DPA070]: this Service also selects deployment/web",
        ),
        ("no containers", "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {}\n".to_owned(), &[], "this workload has no containers"),
        ("no pod template", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n".to_owned(), &[], "this workload has no pod template"),
        ("an anchor", "a: &a 1\nb: *a\n".to_owned(), &[], "error[DPA002]: an anchor"),
        ("a key twice", "a: 1\na: 2\n".to_owned(), &[], "error[DPA003]"),
        ("a note that nobody can read", deployment("", HTTP).replace("labels: {app: web}", "annotations: {dpa-sidecar.example/original: \"{\"}"), &[], "cannot be read"),
        ("settings that nobody reaches", settings("0.0.0.0:8443", "127.0.0.1:8443"), &from_settings, "sidecar.yaml:4:27: error[DPA070]: nobody reaches the listener `http`"),
        ("settings without health for the kubelet", settings("0.0.0.0:9911", "127.0.0.1:9911"), &from_settings, "the kubelet asks the health listener"),
        ("a log that cannot be written", settings("/var/log/dpa-sidecar/decisions", "/tmp/decisions"), &from_settings, "in the pod only /var/log/dpa-sidecar"),
        ("settings with a mistake", settings("drain_timeout", "drain_time"), &from_settings, "error[DPA004]"),
    ];
    for (name, text, flags, expected) in table {
        let folder = Folder::new();
        let is_settings = flags.first() == Some(&"--settings");
        folder.write(if is_settings { "sidecar.yaml" } else { "m.yaml" }, &text);
        if is_settings {
            folder.write("m.yaml", &std::fs::read_to_string(repository("tests/inject/several-ports.yaml")).unwrap());
        }
        let (code, written, told) = inject(&folder.file("."), flags, "m.yaml");
        assert!(told.contains(expected), "{name}: {expected}\n{told}");
        assert_eq!((code, written.as_str()), (Some(1), ""), "{name}: {told}");
    }
}

#[test]
fn probes_of_a_service_on_loopback_that_the_settings_let_through() {
    let tls = ", tls: {certificate: tls.crt, private_key: tls.key";
    let table = [
        ("a path that is listed", "/healthz", "", Ok("HTTP")),
        ("a path that is not", "/readyz", "", Err("add `probes: [/readyz]`")),
        ("over TLS", "/healthz", &format!("{tls}}}"), Ok("HTTPS")),
        (
            "with certificates",
            "/healthz",
            &format!("{tls}, client_ca: ca.crt}}"),
            Err("the kubelet has no certificate"),
        ),
    ];
    let text = std::fs::read_to_string(repository("tests/inject/several-ports.sidecar.yaml")).unwrap();
    for (name, path, tls, expected) in table {
        let folder = Folder::new();
        folder.write("sidecar.yaml", &text.replace("upstream: http}", &format!("upstream: http{tls}}}")));
        let probe = format!(
            "ports: [{{containerPort: 3000}}, {{containerPort: 3001}}]\nlivenessProbe: {{httpGet: {{path: {path}, port: 3000}}}}"
        );
        folder.write("m.yaml", &deployment("", &probe));
        let flags = ["--loopback", "--settings", "sidecar.yaml", "--env", "PLACE=US-OR"];
        let (_, written, told) = inject(&folder.file("."), &flags, "m.yaml");
        match expected {
            Err(expected) => assert!(told.contains(expected) && written.is_empty(), "{name}: {told}"),
            Ok(scheme) => {
                let probe =
                    &values(&written)[0]["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["httpGet"];
                assert_eq!(probe["port"], 8443, "{name}: {told}");
                assert_eq!(probe["scheme"].as_str().unwrap_or("HTTP"), scheme, "{name}: {told}");
            }
        }
    }
}

#[test]
fn other_flags_replace_those_of_before() {
    let manifests = repository("tests/inject");
    let folder = Folder::new();
    let (_, first, _) = inject(&manifests, &["--classic", "--listen", "8000"], "named-port.yaml");
    folder.write("m.yaml", &first);
    let (_, second, _) = inject(&folder.file("."), &[], "m.yaml");
    assert_eq!(second, inject(&manifests, &[], "named-port.yaml").1);
}

#[test]
fn what_somebody_has_changed_since_stays() {
    let folder = Folder::new();
    let (_, text, _) = inject(&repository("tests/inject"), &[], "statefulset.yaml");
    folder.write("m.yaml", &text.replace("terminationGracePeriodSeconds: 30", "terminationGracePeriodSeconds: 120"));
    let output = run(&folder.file("."), &["inject", "--uninject", "m.yaml"]);
    assert!(out(&output).contains("terminationGracePeriodSeconds: 120"), "{}", out(&output));
    assert!(err(&output).contains("`spec/terminationGracePeriodSeconds` was changed since"), "{}", err(&output));
}

#[test]
fn the_service_of_a_workload_that_keeps_its_sidecar_pointed_around_it() {
    let folder = Folder::new();
    let (_, text, _) = inject(&repository("tests/inject"), &[], "by-number.yaml");
    folder.write("m.yaml", &(text + "---\n" + &deployment("", "ports: [{containerPort: 3000}]")));
    let (code, written, told) = inject(&folder.file("."), &["--only", "deployment/web"], "m.yaml");
    assert_eq!(code, Some(0), "{told}");
    assert_eq!(values(&written)[0]["items"][1]["spec"]["ports"][0]["targetPort"], 8443, "{told}");
}

#[test]
fn standard_input_and_several_files_are_one_stream() {
    let output = run(&repository("tests/inject"), &["inject", "--uninject", "job.yaml", "cronjob.yaml"]);
    let kinds: Vec<_> = values(&out(&output)).iter().map(|object| object["kind"].clone()).collect();
    assert_eq!(kinds, ["Job", "CronJob"]);
    assert!(err(&output).contains("no object has a sidecar"), "{}", err(&output));
}

fn port() -> impl Strategy<Value = (u16, Option<&'static str>)> {
    (
        prop_oneof![Just(80), Just(3000), Just(8080), Just(9090)],
        proptest::option::of(prop_oneof![Just("http"), Just("grpc")]),
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a pod is like: with the sidecar once or twice is the same, and without it everything is as it was.
    #[test]
    fn whatever_it_is_it_comes_back(
        ports in proptest::collection::vec(port(), 0..3),
        probe in prop_oneof![Just("http"), Just("grpc"), Just("3000"), Just("80"), Just("9")],
        lists in proptest::sample::subsequence(vec!["volumes: []", "initContainers: null", "volumes:", "terminationGracePeriodSeconds: 5", "terminationGracePeriodSeconds: null"], 0..3),
        flags in proptest::sample::subsequence(vec!["--classic", "--loopback"], 0..2),
        target in prop_oneof![Just("targetPort: http"), Just("targetPort: 3000"), Just("targetPort: null"), Just("name: x")],
    ) {
        let ports: Vec<_> = ports.iter().enumerate().map(|(place, (number, name))| {
            let number = number + u16::try_from(place).unwrap();
            name.map_or(format!("{{containerPort: {number}}}"), |name| format!("{{name: {name}, containerPort: {number}}}"))
        }).collect();
        let container = format!("image: x\nports: [{}]\nreadinessProbe: {{httpGet: {{port: {probe}}}}}", ports.join(", "));
        let service = format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{selector: {{app: web}}, ports: [{{port: 80, {target}}}]}}\n");
        let folder = Folder::new();
        folder.write("m.yaml", &(deployment(&lists.join("\n"), &container) + &service));
        let (code, text, _) = inject(&folder.file("."), &flags, "m.yaml");
        if code == Some(0) {
            let first = uninject(&folder.file("."), "m.yaml");
            folder.write("injected.yaml", &text);
            prop_assert_eq!(inject(&folder.file("."), &flags, "injected.yaml").1, text);
            prop_assert_eq!(uninject(&folder.file("."), "injected.yaml"), first);
        }
    }
}

#[test]
fn a_name_in_a_manifest_wrote_lines_into_the_report() {
    let forged = r#"metadata: {name: "web\e[31mRED\nfake: injected"}"#;
    let text = deployment("", "ports: [{containerPort: 3000}]").replace("metadata: {name: web}", forged);
    let folder = Folder::new();
    folder.write("m.yaml", &text);
    let (code, _, told) = inject(&folder.file("."), &[], "m.yaml");
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("fake: injected"), "{told}");
    assert!(!told.lines().any(|line| line.starts_with("fake")) && !told.contains('\u{1b}'), "{told}");
}

#[test]
fn a_list_within_a_list_passed_without_a_sidecar() {
    let inner = deployment("", "ports: [{containerPort: 3000}]");
    let inner = inner.trim_end().replace('\n', "\n      ");
    let text =
        format!("apiVersion: v1\nkind: List\nitems:\n  - apiVersion: v1\n    kind: List\n    items:\n    - {inner}\n");
    let folder = Folder::new();
    folder.write("m.yaml", &text);
    let (code, written, told) = inject(&folder.file("."), &[], "m.yaml");
    assert_eq!(code, Some(0), "{told}\n{text}");
    assert!(written.contains("name: dpa-sidecar"), "{written}");
}

#[test]
fn two_listeners_of_one_port_gave_a_container_one_name_twice() {
    let settings = std::fs::read_to_string(repository("tests/inject/several-ports.sidecar.yaml")).unwrap();
    let one = r#"  - {name: grpc, address: "${POD_IP}:8444", upstream: grpc}"#;
    assert!(settings.contains(one), "{settings}");
    let folder = Folder::new();
    folder.write("sidecar.yaml", &settings.replace(one, &one.replace("upstream: grpc", "upstream: http")));
    folder.write("m.yaml", &deployment("", "ports: [{containerPort: 3000, name: http}]"));
    let flags = ["--settings", "sidecar.yaml", "--env", "PLACE=US-OR"];
    let (code, written, told) = inject(&folder.file("."), &flags, "m.yaml");
    assert_eq!(code, Some(0), "{told}");
    let of_name = |name: &str| written.lines().filter(|line| line.trim().trim_start_matches("- ") == name).count();
    let is_there = |text: &str| written.contains(text);
    assert!(is_there("8443") && is_there("8444") && is_there("dpa-8444"), "{written}");
    assert_eq!(of_name("name: http"), 1, "{written}");
}

#[test]
fn three_thousand_objects_took_a_quarter_of_a_minute() {
    // Whether each Service has an entry of its own, shares one with all others, or selects all there are.
    for (name, label, selector, count) in [
        ("labels of its own", "{app: web-N}", "{app: web-N}", 2_000),
        ("a label that all have", "{part: shop, app: web-N}", "{part: shop, app: web-N}", 2_000),
        ("each selects all", "{part: shop}", "{part: shop}", 400),
    ] {
        let all: String = (0..count)
            .map(|number| {
                let text = deployment("", "ports: [{containerPort: 3000}]").replace("{app: web}", label)
                    + "---\napiVersion: v1\nkind: Service\nmetadata: {name: web}\n"
                    + &format!("spec: {{selector: {selector}, ports: [{{port: 80, targetPort: 3000}}]}}\n---\n");
                text.replace("name: web}", &format!("name: web-{number}}}")).replace("-N", &format!("-{number}"))
            })
            .collect();
        let folder = Folder::new();
        folder.write("m.yaml", &all);
        let began = std::time::Instant::now();
        let (code, written, told) = inject(&folder.file("."), &[], "m.yaml");
        // Far more than it takes, and far less than it would take if every Service were held against every workload.
        assert!(began.elapsed().as_secs() < 60, "{name}: {:?}", began.elapsed());
        assert_eq!(code, Some(0), "{name}: {told}");
        assert_eq!(written.matches("targetPort: 8443").count(), count, "{name}");
    }
}

/// The kinds of the sentence in a text that says which get the sidecar, each in the singular.
fn kinds_in(text: &str) -> Vec<String> {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (before, _) = words.split_once(" get the sidecar, also within").unwrap();
    let list = &before[before.rfind("Deployments").unwrap()..];
    list.replace(" and ", ", ").split(", ").map(|kind| kind.trim_end_matches('s').to_owned()).collect()
}

#[test]
fn the_kinds_that_are_said_to_get_the_sidecar_are_those_that_do() {
    let version = |kind: &str| match kind {
        "Pod" | "ReplicationController" => "v1",
        "Job" | "CronJob" => "batch/v1",
        _ => "apps/v1",
    };
    let pod = "spec: {containers: [{name: web, image: x, ports: [{containerPort: 3000}]}]}";
    let does = |kind: &str| {
        let spec = match kind {
            "Pod" => pod.to_owned(),
            "CronJob" => format!("spec: {{jobTemplate: {{spec: {{template: {{{pod}}}}}}}}}"),
            _ => format!("spec: {{template: {{{pod}}}}}"),
        };
        let folder = Folder::new();
        folder.write(
            "m.yaml",
            &format!("apiVersion: {}\nkind: {kind}\nmetadata: {{name: web}}\n{spec}\n", version(kind)),
        );
        let (code, written, told) = inject(&folder.file("."), &[], "m.yaml");
        let refused = told.contains("no object here has pods");
        assert_eq!((code == Some(0), written.contains("name: dpa-sidecar")), (!refused, !refused), "{kind}: {told}");
        (!refused, told)
    };
    let help = out(&run(&repository("tests/inject"), &["inject", "--help"]));
    let guide = std::fs::read_to_string(repository("docs/kubernetes.md")).unwrap();
    let said = kinds_in(&help);
    assert_eq!(said, kinds_in(&guide));
    assert_eq!(said.len(), 8, "{said:?}");
    for kind in &said {
        assert!(does(kind).0, "{kind}");
    }
    // Whatever else has a template of pods, or looks so.
    for kind in ["PodTemplate", "Rollout", "ControllerRevision", "Service", "Node"] {
        let (does, told) = does(kind);
        assert!(!does && !said.iter().any(|said| said == kind), "{kind}");
        assert!(said.iter().all(|kind| told.contains(kind.as_str())), "{told}");
    }
}

/// Why `inject` does not write the label by which the component's NetworkPolicy finds pods: it would cut callers off.
#[test]
fn the_policy_of_the_component_does_not_let_callers_in_where_inject_listens() {
    let read = |path: &str| -> Value {
        let text = std::fs::read_to_string(repository(path)).unwrap();
        serde_yaml::from_str(text.split("\n---\n").next().unwrap()).unwrap()
    };
    let policy = read("deploy/kustomize/components/sidecar/networkpolicy.yaml");
    let (label, value) = policy["spec"]["podSelector"]["matchLabels"].as_object().unwrap().iter().next().unwrap();
    let open: Vec<_> = policy["spec"]["ingress"][0]["ports"].as_array().unwrap().iter().map(|it| &it["port"]).collect();
    let before = read("tests/inject/named-port.yaml");
    let injected = read("tests/golden/inject/named-port.yaml");
    let listens = &injected["spec"]["template"]["spec"]["initContainers"][0]["ports"][0]["containerPort"];
    assert!(listens.is_u64() && !open.contains(&listens), "{open:?}");
    let labels = |object: &Value| object["spec"]["template"]["metadata"]["labels"].clone();
    assert_eq!(labels(&injected), labels(&before));

    // Who listens where that policy lets callers in may write the label: it stays, with the sidecar and without.
    let labelled = format!("labels: {{app: web, {label}: {value}}}");
    let folder = Folder::new();
    folder.write("m.yaml", &deployment("", "ports: [{containerPort: 3000}]").replace("labels: {app: web}", &labelled));
    let (code, text, told) = inject(&folder.file("."), &["--listen", "8080"], "m.yaml");
    assert_eq!(code, Some(0), "{told}");
    folder.write("injected.yaml", &text);
    for text in [text, uninject(&folder.file("."), "injected.yaml")] {
        assert_eq!(labels(&values(&text)[0])[label], *value, "{text}");
    }
}
