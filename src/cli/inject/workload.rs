//! Finds workloads and Services among the objects of a stream.

use std::collections::HashMap;

use super::edit::at;
use super::edit::at_mut;
use super::edit::is_null;
use super::edit::is_tcp;
use super::edit::items;
use super::edit::word;
use crate::yaml::Node;
use crate::yaml::Value;

/// The objects of a stream, in order: also those within lists, as `kubectl get` prints them.
pub(super) fn objects(documents: &mut [Node]) -> impl Iterator<Item = &mut Node> {
    let mut found = Vec::new();
    let mut left: Vec<&mut Node> = documents.iter_mut().rev().collect();
    while let Some(object) = left.pop() {
        if !word(object, "kind").is_some_and(|kind| kind.ends_with("List")) {
            found.push(object);
        } else if let Some(Value::List(items)) = at_mut(object, "items").map(|items| &mut items.value) {
            left.extend(items.iter_mut().rev());
        }
    }
    found.into_iter()
}

/// Kind and name, as kubectl writes them: `deployment/web`.
pub(super) fn named(object: &Node) -> String {
    let kind = word(object, "kind").unwrap_or("object").to_ascii_lowercase();
    let metadata = object.get("metadata");
    let name = metadata.and_then(|it| word(it, "name").or_else(|| word(it, "generateName")));
    format!("{kind}/{}", name.unwrap_or("(no name)"))
}

/// The kind that every object of this group and kind is.
fn kind_of(object: &Node) -> Option<(&str, &str)> {
    let (version, kind) = (word(object, "apiVersion")?, word(object, "kind")?);
    Some((version.split_once('/').map_or("", |(group, _)| group), kind))
}

/// Where the pod template of a workload is; nothing for what is none. A Pod is its own template.
pub(super) fn template_of(object: &Node) -> Option<&'static str> {
    match kind_of(object)? {
        ("", "Pod") => Some(""),
        ("", "ReplicationController")
        | ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
        | ("batch", "Job") => Some("spec/template"),
        ("batch", "CronJob") => Some("spec/jobTemplate/spec/template"),
        _ => None,
    }
}

/// Whether pods of this workload end by themselves.
pub(super) fn is_job(object: &Node) -> bool {
    matches!(kind_of(object), Some(("batch", "Job" | "CronJob")))
}

/// Who has made an object and will make it anew: a change of it would not last.
pub(super) fn owner_of(object: &Node) -> Option<String> {
    let owner = items(at(object, "metadata/ownerReferences")).first()?;
    Some(format!("{}/{}", word(owner, "kind")?.to_ascii_lowercase(), word(owner, "name")?))
}

fn namespace(object: &Node) -> &str {
    object.get("metadata").and_then(|metadata| word(metadata, "namespace")).unwrap_or_default()
}

/// Entries of a map of texts.
fn texts(node: Option<&Node>) -> impl Iterator<Item = (&str, &str)> {
    let entries = match node.map(|node| &node.value) {
        Some(Value::Map(entries)) => entries.as_slice(),
        Some(Value::Scalar { .. } | Value::List(_)) | None => &[],
    };
    entries.iter().filter_map(|(key, value)| Some((key.text.as_str(), value.text()?)))
}

/// A Service that has a selector.
#[derive(Debug)]
pub(super) struct Service {
    /// As [`named`].
    pub(super) name: String,
    namespace: String,
    selector: Vec<(String, String)>,
    /// Whether its name stands for the pods themselves: callers dial their ports.
    pub(super) is_headless: bool,
    /// Its ports of TCP.
    pub(super) ports: Vec<ServicePort>,
}

/// A port of a Service.
#[derive(Debug)]
pub(super) struct ServicePort {
    /// Its number.
    pub(super) port: u16,
    /// Number or name of the port of the pod.
    pub(super) target: String,
}

impl Service {
    /// Nothing, if the object is none, or selects nothing.
    pub(super) fn of(object: &Node) -> Option<Self> {
        if kind_of(object) != Some(("", "Service")) {
            return None;
        }
        let spec = object.get("spec")?;
        let selector: Vec<_> =
            texts(spec.get("selector")).map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let port = |entry: &Node| {
            let port = word(entry, "port")?;
            let target = word(entry, "targetPort").unwrap_or(port);
            Some(ServicePort { port: port.parse().ok()?, target: target.to_owned() })
        };
        let ports = items(spec.get("ports")).iter().filter(|entry| is_tcp(entry)).filter_map(port).collect();
        let is_headless = word(spec, "clusterIP") == Some("None");
        (!selector.is_empty()).then(|| Self {
            name: named(object),
            namespace: namespace(object).to_owned(),
            selector,
            is_headless,
            ports,
        })
    }
}

/// The Services of a stream, found by what they select. Each is known by its place among them.
pub(super) struct Services {
    all: Vec<Service>,
    /// Places by namespace and the entry of the selector that fewest Services have: each stands under one entry, so a
    /// workload meets few that do not select it.
    by_entry: HashMap<(String, String, String), Vec<usize>>,
}

impl Services {
    /// Those among the objects of a stream, in order.
    pub(super) fn of(documents: &mut [Node]) -> Self {
        let all: Vec<Service> = objects(documents).filter_map(|object| Service::of(object)).collect();
        let entry = |service: &Service, (key, value): &(String, String)| {
            (service.namespace.clone(), key.clone(), value.clone())
        };
        let mut counts: HashMap<_, usize> = HashMap::new();
        for service in &all {
            for pair in &service.selector {
                let count = counts.entry(entry(service, pair)).or_default();
                *count = count.saturating_add(1);
            }
        }
        let mut by_entry: HashMap<_, Vec<usize>> = HashMap::new();
        for (place, service) in all.iter().enumerate() {
            let entries = service.selector.iter().map(|pair| entry(service, pair));
            if let Some(rarest) = entries.min_by_key(|entry| counts.get(entry).copied()) {
                by_entry.entry(rarest).or_default().push(place);
            }
        }
        Self { all, by_entry }
    }

    /// Those that select the pods of a workload, in order.
    pub(super) fn selecting(&self, workload: &Node) -> Vec<(usize, &Service)> {
        let template = template_of(workload).and_then(|path| at(workload, path));
        let labels: HashMap<_, _> = texts(template.and_then(|template| at(template, "metadata/labels"))).collect();
        let namespace = namespace(workload);
        let met = labels.iter().filter_map(|(key, value)| {
            self.by_entry.get(&(namespace.to_owned(), (*key).to_owned(), (*value).to_owned()))
        });
        let has = |(key, value): &(String, String)| labels.get(key.as_str()) == Some(&value.as_str());
        let mut found: Vec<_> = met
            .flatten()
            .filter_map(|place| Some((*place, self.all.get(*place)?)))
            .filter(|(_, service)| service.selector.iter().all(has))
            .collect();
        found.sort_by_key(|(place, _)| *place);
        found
    }
}

/// A port that a container says it has.
#[derive(Clone, Debug)]
pub(super) struct Declared<'n> {
    /// The path of its container within the template.
    pub(super) container: String,
    /// Number.
    pub(super) number: u16,
    /// Name.
    pub(super) name: Option<&'n str>,
    /// Whether it speaks TCP.
    pub(super) is_tcp: bool,
    /// Where it stands.
    pub(super) node: &'n Node,
}

/// The containers that run as long as the pod does, with their paths; those without a name are none.
pub(super) fn containers(template: &Node) -> impl Iterator<Item = (String, &Node)> {
    let lasting = |container: &&Node| word(container, "restartPolicy") == Some("Always");
    let first = items(at(template, "spec/initContainers")).iter().filter(lasting);
    let path = |list: &str, container: &Node| Some(format!("spec/{list}/{}", word(container, "name")?));
    let first = first.filter_map(move |it| Some((path("initContainers", it)?, it)));
    let rest = items(at(template, "spec/containers")).iter();
    first.chain(rest.filter_map(move |it| Some((path("containers", it)?, it))))
}

/// The ports that containers say they have.
pub(super) fn declared(template: &Node) -> Vec<Declared<'_>> {
    containers(template)
        .flat_map(|(container, node)| {
            items(node.get("ports")).iter().filter(|port| !is_null(port)).filter_map(move |port| {
                Some(Declared {
                    container: container.clone(),
                    number: word(port, "containerPort")?.parse().ok()?,
                    name: word(port, "name"),
                    is_tcp: is_tcp(port),
                    node: port,
                })
            })
        })
        .collect()
}
