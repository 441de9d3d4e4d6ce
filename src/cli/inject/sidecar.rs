//! The container of the sidecar and its volumes, as they are written into a pod.

use std::fmt::Write as _;

use super::settings::FOLDER;
use super::settings::LOG_FOLDER;
use super::takeover::HEALTH;
use super::takeover::Taken;
use crate::yaml;
use crate::yaml::Fault;
use crate::yaml::Node;

/// The name of the container.
pub(super) const NAME: &str = "dpa-sidecar";
/// The volume of what the sidecar reads.
pub(super) const FILES: &str = "dpa-sidecar-files";
/// The volume of the log.
pub(super) const LOG: &str = "dpa-sidecar-log";

/// What the container is made of.
pub(super) struct Shape<'s> {
    pub(super) image: &'s str,
    pub(super) env: &'s [(String, String)],
    /// Memory that it may use.
    pub(super) memory: &'s str,
    /// Listeners for callers.
    pub(super) taken: &'s [Taken],
    /// Listeners for callers that no port of the service is behind.
    pub(super) others: &'s [u16],
    pub(super) health: u16,
    /// Whether it stands among the containers, and for how many seconds it waits before it stops.
    pub(super) classic: Option<u64>,
}

/// As text that is safe in any place of YAML.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The container.
///
/// Pod Security *restricted* admits it. It starts before the service, which waits until it is ready.
pub(super) fn container(shape: &Shape<'_>) -> Result<Node, Vec<Fault>> {
    let Shape { image, env, memory, taken, others, health, classic } = shape;
    let mut text = format!(
        "name: {NAME}
image: {image}
args: [run, --config, {FOLDER}/sidecar.yaml]
",
        image = quoted(image),
    );
    // Writing to a String cannot fail.
    let mut add = |more: &str| text.push_str(more);
    match classic {
        None => add("restartPolicy: Always\n"),
        Some(0) => {}
        Some(seconds) => add(&format!("lifecycle: {{preStop: {{sleep: {{seconds: {seconds}}}}}}}\n")),
    }
    add("env:\n- {name: POD_IP, valueFrom: {fieldRef: {apiVersion: v1, fieldPath: status.podIP}}}\n");
    for (name, value) in *env {
        add(&format!("- {{name: {}, value: {}}}\n", quoted(name), quoted(value)));
    }
    add("ports:\n");
    for Taken { listen, name, .. } in *taken {
        add(&format!("- {{name: {}, containerPort: {listen}, protocol: TCP}}\n", quoted(name)));
    }
    for listen in *others {
        add(&format!("- {{name: dpa-{listen}, containerPort: {listen}, protocol: TCP}}\n"));
    }
    let _infallible = write!(
        text,
        "- {{name: {HEALTH}, containerPort: {health}, protocol: TCP}}
startupProbe:
  httpGet: {{path: /readyz, port: {HEALTH}}}
  periodSeconds: 1
  failureThreshold: 120
readinessProbe:
  httpGet: {{path: /readyz, port: {HEALTH}}}
  periodSeconds: 5
livenessProbe:
  httpGet: {{path: /livez, port: {HEALTH}}}
  periodSeconds: 10
resources:
  requests: {{cpu: 10m, memory: 32Mi}}
  limits: {{memory: {memory}}}
securityContext:
  allowPrivilegeEscalation: false
  capabilities: {{drop: [ALL]}}
  privileged: false
  readOnlyRootFilesystem: true
  runAsGroup: 65532
  runAsNonRoot: true
  runAsUser: 65532
  seccompProfile: {{type: RuntimeDefault}}
terminationMessagePolicy: FallbackToLogsOnError
volumeMounts:
- {{name: {FILES}, mountPath: {FOLDER}, readOnly: true}}
- {{name: {LOG}, mountPath: {LOG_FOLDER}}}
"
    );
    yaml::read(&text, 0)
}

/// The two volumes: everything that is read, in one folder, which the kubelet swaps whole; and the log.
pub(super) fn volumes(config_maps: &[&str], secrets: &[String], log_size: &str) -> Result<[Node; 2], Vec<Fault>> {
    let mut text = format!("name: {FILES}\nprojected:\n  sources:\n");
    let mut add = |kind: &str, name: &str| {
        let _infallible = writeln!(text, "  - {kind}: {{name: {}}}", quoted(name));
    };
    config_maps.iter().for_each(|name| add("configMap", name));
    secrets.iter().for_each(|name| add("secret", name));
    let log = format!("name: {LOG}\nemptyDir: {{sizeLimit: {log_size}}}\n");
    Ok([yaml::read(&text, 0)?, yaml::read(&log, 0)?])
}
