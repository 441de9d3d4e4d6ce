//! `inject`: puts the sidecar into the manifests of a workload, and takes it out again.

mod edit;
mod settings;
mod sidecar;
mod takeover;
mod workload;
mod write;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io;
use std::io::Write;
use std::path::PathBuf;

use self::edit::Edits;
use self::edit::Original;
use self::edit::Plain;
use self::edit::at;
use self::edit::at_mut;
use self::edit::is_null;
use self::edit::is_on;
use self::edit::items;
use self::edit::word;
use self::settings::Entrance;
use self::settings::Wanted;
use self::sidecar::Shape;
use self::takeover::Taken;
use self::takeover::Terms;
use self::workload::Service;
use self::workload::Services;
use super::CliError;
use super::Exit;
use super::colour;
use super::print_problems;
use crate::policy::problem::Code;
use crate::policy::problem::Problem;
use crate::policy::problem::Problems;
use crate::policy::problem::Source;
use crate::reload;
use crate::yaml;
use crate::yaml::Fault;
use crate::yaml::Node;
use crate::yaml::Value;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kubectl get deploy/api svc/api -o yaml |
    dpa-sidecar inject --policy-configmap dpa-policy --settings-configmap api-sidecar --settings sidecar.yaml - |
    kubectl apply -f -

  dpa-sidecar inject --policy-configmap dpa-policy --settings-configmap api-sidecar --port http deploy.yaml service.yaml
  dpa-sidecar inject --classic …                              for clusters before Kubernetes 1.33
  kubectl get deploy/api svc/api -o yaml | dpa-sidecar inject --uninject - | kubectl apply -f -

Standard output has all objects of all files, in order, as YAML. Deployments, StatefulSets, DaemonSets, ReplicaSets,
ReplicationControllers, Jobs, CronJobs and Pods get the sidecar, also within Lists, unless another object owns them;
Services that point to the service's port by its number then point to the sidecar's. All else passes unchanged; only
comments are lost. Standard error says what was changed, and what a person has to look at. If one object is refused,
nothing is written.

The settings have to fit: listen on 0.0.0.0:8443 for callers, name the service as 127.0.0.1:PORT, have health on
0.0.0.0:9901, and write the log to /var/log/dpa-sidecar. With `--settings` they are read, and the flags of ports are not
needed. See docs/kubernetes.md.

Exit codes: 0 written, 1 refused (it says where and why), 2 could not (usage, unreadable file).")]
pub(super) struct Arguments {
    /// Manifests: YAML or JSON, any number of documents; `-` is standard input.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Take the sidecar out again, and put back what was there.
    #[arg(long, conflicts_with_all = ["policy_configmap", "settings_configmap", "settings"])]
    uninject: bool,
    /// The ConfigMap that has policy.yaml; several, if its customer files are in others.
    #[arg(long, value_name = "NAME", required_unless_present = "uninject")]
    policy_configmap: Vec<String>,
    /// The ConfigMap that has sidecar.yaml.
    #[arg(long, value_name = "NAME", required_unless_present = "uninject")]
    settings_configmap: Option<String>,
    /// The sidecar.yaml that is in it: ports, health, drain and log are then taken from it, and checked.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["port", "listen", "health_port", "drain_timeout", "egress"])]
    settings: Option<PathBuf>,
    /// A Secret whose files go beside sidecar.yaml: certificates, keys. More than once for several.
    #[arg(long, value_name = "NAME")]
    secret: Vec<String>,
    /// The port of the service that goes behind the sidecar, by number or name [default: the only one it has, or the
    /// one that its Service points to].
    #[arg(long, value_name = "PORT")]
    port: Option<String>,
    /// The port that the sidecar listens on for callers.
    #[arg(long, value_name = "PORT", default_value_t = 8443, value_parser = clap::value_parser!(u16).range(1..))]
    listen: u16,
    /// The port of the sidecar's health listener.
    #[arg(long, value_name = "PORT", default_value_t = 9901, value_parser = clap::value_parser!(u16).range(1..))]
    health_port: u16,
    /// `drain_timeout` of the settings, in seconds: the pod gets 5 s more than that to stop.
    #[arg(long, value_name = "SECONDS", default_value_t = 25, value_parser = clap::value_parser!(u64).range(..=86_400))]
    drain_timeout: u64,
    /// No port goes behind the sidecar: the service only sends through it.
    #[arg(long, conflicts_with_all = ["port", "loopback"])]
    egress: bool,
    /// The service listens on 127.0.0.1 only: probes go through the sidecar, which may then have the service's own
    /// port number.
    #[arg(long)]
    loopback: bool,
    /// A container beside the others, instead of a native sidecar: for clusters before Kubernetes 1.33.
    #[arg(long)]
    classic: bool,
    /// How long a classic sidecar waits before it stops, so that the service can send to the end; 0 for clusters before
    /// Kubernetes 1.30.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, requires = "classic", value_parser = clap::value_parser!(u64).range(..=3_600))]
    pre_stop: u64,
    /// The image of the sidecar.
    #[arg(long, default_value = concat!("dpa-sidecar:", env!("CARGO_PKG_VERSION")))]
    image: String,
    /// Memory that the sidecar may use. 10,000 idle connections take 150 MiB, over TLS 300.
    #[arg(long, value_name = "SIZE", default_value = "384Mi", value_parser = size)]
    memory: Size,
    /// Size of the volume of the decision log. A pod that writes more is evicted.
    #[arg(long, value_name = "SIZE", default_value = "1Gi", value_parser = size)]
    log_size: Size,
    /// A variable that the settings use.
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Only this workload, such as `deployment/api`. More than once for several.
    #[arg(long, value_name = "KIND/NAME")]
    only: Vec<String>,
}

/// A size as Kubernetes writes it.
#[derive(Clone, Debug)]
struct Size {
    text: String,
    bytes: u64,
}

fn size(text: &str) -> Result<Size, String> {
    let of = |unit: &str, bytes: u64| text.strip_suffix(unit)?.parse::<u64>().ok()?.checked_mul(bytes);
    let bytes = of("Mi", 1 << 20).or_else(|| of("Gi", 1 << 30)).filter(|bytes| *bytes >= 32 << 20);
    let bytes = bytes.ok_or("write a whole number of Mi or Gi, at least 32Mi")?;
    Ok(Size { text: text.to_owned(), bytes })
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Which version has put the sidecar in.
const INJECTED: &str = "dpa-sidecar.example/injected";
/// What was there before.
const ORIGINAL: &str = "dpa-sidecar.example/original";

/// Seconds a pod has to stop, if it does not say.
const GRACE: u64 = 30;

pub(super) fn inject(arguments: &Arguments, out: &mut dyn Write, err: &mut dyn Write) -> Result<Exit, CliError> {
    let wanted = match wanted(arguments)? {
        Ok(wanted) => wanted,
        Err((source, problems)) => return refused(&problems, &[source], err),
    };
    let mut problems = Problems::default();
    let (mut sources, mut documents) = (Vec::new(), Vec::new());
    for path in &arguments.files {
        let source = reload::read(path)?;
        match yaml::read_all(&source.text, u16::try_from(sources.len()).unwrap_or(u16::MAX)) {
            Ok(read) => documents.extend(read.into_iter().filter(|document| !is_null(document))),
            Err(faults) => problems.extend_faults(faults),
        }
        sources.push(source);
    }
    let mut told = Vec::new();
    if !problems.has_errors() {
        change(arguments, &wanted, &mut documents, &mut told, &mut problems)?;
    }
    if problems.has_errors() {
        return refused(&problems, &sources, err);
    }
    for line in &told {
        // Names are as somebody wrote them, and a terminal would obey them.
        writeln!(err, "{}", line.replace(char::is_control, "\u{fffd}"))?;
    }
    for (place, document) in documents.iter().enumerate() {
        if place > 0 {
            writeln!(out, "---")?;
        }
        out.write_all(write::write(document).as_bytes())?;
    }
    Ok(Exit::Yes)
}

fn refused(problems: &Problems, sources: &[Source], err: &mut dyn Write) -> Result<Exit, CliError> {
    print_problems(err, problems, sources, colour(&io::stderr()))?;
    writeln!(err, "refused: nothing was written")?;
    Ok(Exit::No)
}

/// What pods have to fit: from the settings, else from the flags.
fn wanted(arguments: &Arguments) -> Result<Result<Wanted, (Source, Problems)>, CliError> {
    let Arguments { settings, port, listen, health_port, drain_timeout, egress, env, log_size, .. } = arguments;
    if let Some(path) = settings {
        return settings::read(path, env, log_size.bytes);
    }
    if listen == health_port {
        return Err(CliError::Usage("`--listen` and `--health-port` cannot be the same"));
    }
    let entrance = Entrance { listen: *listen, behind: port.clone(), tls: false, asks_for_certificates: false };
    Ok(Ok(Wanted {
        entrances: if *egress { Vec::new() } else { vec![entrance] },
        others: Vec::new(),
        health: *health_port,
        drain: *drain_timeout,
        routes: None,
        notes: Vec::new(),
    }))
}

/// Changes the objects, and tells what it did. Every object is brought back to what it was first: so it makes no
/// difference whether it had a sidecar.
fn change(
    arguments: &Arguments,
    wanted: &Wanted,
    documents: &mut [Node],
    told: &mut Vec<String>,
    problems: &mut Problems,
) -> Result<(), CliError> {
    let Arguments { uninject, only, .. } = arguments;
    let root = documents.first().map(|root| yaml::At { end: root.at.start, ..root.at });
    let is_meant = |object: &Node| {
        workload::template_of(object).is_some() && (only.is_empty() || only.contains(&workload::named(object)))
    };
    let services = Services::of(documents);
    let mut selected = BTreeSet::new();
    let mut met = 0_usize;
    for object in workload::objects(documents).filter(|object| is_meant(object)) {
        if let Some(owner) = workload::owner_of(object) {
            told.push(format!("{}: left as it is: {owner} makes it", workload::named(object)));
            continue;
        }
        met += 1;
        selected.extend(services.selecting(object).into_iter().map(|(place, _)| place));
        bring_back(object, *uninject, told, problems);
    }
    for (place, object) in workload::objects(documents).filter(|it| Service::of(it).is_some()).enumerate() {
        // A Service may serve a workload that keeps its sidecar: then it keeps pointing there.
        if selected.contains(&place) || *uninject && only.is_empty() {
            bring_back(object, *uninject, told, problems);
        }
    }
    if *uninject {
        if told.is_empty() {
            told.push("no object has a sidecar".to_owned());
        }
        return Ok(());
    }
    if met == 0 {
        let message = if only.is_empty() { "no object here has pods" } else { "no object here is one of `--only`" };
        let help = "give a Deployment, StatefulSet, DaemonSet, ReplicaSet, ReplicationController, Job, CronJob or Pod";
        let Some(at) = root else { return Err(CliError::Unknown("the manifests are empty".to_owned())) };
        problems.push(Problem::error(Code::Workload, at, message, help));
        return Ok(());
    }
    let services = Services::of(documents);
    let mut injected: Vec<Vec<Taken>> = Vec::new();
    // By the place of a Service: the places of those among `injected` that it selects.
    let mut redirects: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for object in workload::objects(documents) {
        let is_owned = workload::owner_of(object).is_some();
        let Some(path) = workload::template_of(object).filter(|_| !is_owned && is_meant(object)) else { continue };
        let mut lines = Vec::new();
        match put_in(object, path, arguments, wanted, &services, &mut lines) {
            Ok((taken, selected)) => {
                told.push(format!("{}: injected", workload::named(object)));
                told.extend(lines.into_iter().map(|line| format!("  {line}")));
                selected.into_iter().for_each(|place| redirects.entry(place).or_default().push(injected.len()));
                injected.push(taken);
            }
            Err(all) => all.into_iter().for_each(|problem| problems.push(problem)),
        }
    }
    let mut bare: BTreeMap<usize, String> = BTreeMap::new();
    for object in workload::objects(documents) {
        let is_workload = workload::template_of(object).is_some() && workload::owner_of(object).is_none();
        if is_workload && !has_sidecar(object) {
            for (place, _) in services.selecting(object) {
                bare.entry(place).or_insert_with(|| workload::named(object));
            }
        }
    }
    let found = workload::objects(documents).filter_map(|object| Some((Service::of(object)?, object)));
    for (place, (service, object)) in found.enumerate() {
        let taken: Vec<_> =
            redirects.get(&place).into_iter().flatten().filter_map(|place| injected.get(*place)).flatten().collect();
        problems.0.extend(redirect(object, &service, &taken, bare.get(&place).map(String::as_str), told));
    }
    told.extend(wanted.notes.iter().map(|note| format!("note: {note}")));
    if !arguments.classic && injected.iter().flatten().any(|it| it.moved_name().is_some()) {
        told.push(
            "note: before Kubernetes 1.33 Services do not find names of a native sidecar's ports: `--classic`"
                .to_owned(),
        );
    }
    Ok(())
}

fn has_sidecar(object: &Node) -> bool {
    let template = workload::template_of(object).and_then(|path| at(object, path));
    template.and_then(|it| at(it, "metadata/annotations")).is_some_and(|it| it.get(ORIGINAL).is_some())
}

/// Brings an object back to what it was, and tells so if that is what was asked for.
fn bring_back(object: &mut Node, uninject: bool, told: &mut Vec<String>, problems: &mut Problems) {
    match restore(object) {
        Ok(Some(changed)) if uninject => {
            told.push(format!("{}: as it was without the sidecar", workload::named(object)));
            told.extend(changed.iter().map(|path| format!("  `{path}` was changed since: left as it is")));
        }
        Ok(_) => {}
        Err(problem) => problems.push(problem),
    }
}

/// Brings an object back to what it was; nothing, if it has no sidecar; else what somebody has changed since.
fn restore(object: &mut Node) -> Result<Option<Vec<String>>, Problem> {
    let Some(root) = at_mut(object, workload::template_of(object).unwrap_or_default()) else { return Ok(None) };
    let Some(note) = at(root, "metadata/annotations").and_then(|annotations| annotations.get(ORIGINAL)) else {
        return Ok(None);
    };
    let original = Original::read(note.text().unwrap_or_default()).map_err(|error| {
        let message = format!("the annotation `{ORIGINAL}` cannot be read: {error}");
        Problem::error(Code::Workload, note.at, message, "take the manifest as it was before it was injected")
    })?;
    let ours: [(&str, &[&str]); 3] = [
        ("spec/initContainers", &[sidecar::NAME]),
        ("spec/containers", &[sidecar::NAME]),
        ("spec/volumes", &[sidecar::FILES, sidecar::LOG]),
    ];
    for (path, names) in ours {
        if let Some(Node { value: Value::List(items), .. }) = at_mut(root, path) {
            items.retain(|item| !word(item, "name").is_some_and(|name| names.contains(&name)));
        }
    }
    Ok(Some(original.restore(root, &[INJECTED, ORIGINAL])))
}

/// What keeps any sidecar out of a pod.
fn in_the_way(object: &Node, template: &Node, arguments: &Arguments) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut refuse = |at: &Node, message: &str, help: &str| {
        problems.push(Problem::error(Code::Workload, at.at, message, help));
    };
    let Some(spec) = template.get("spec").filter(|_| !items(at(template, "spec/containers")).is_empty()) else {
        refuse(template, "this workload has no containers", "give the whole object");
        return problems;
    };
    if let Some(host) = spec.get("hostNetwork").filter(|it| is_on(it)) {
        let message = "with `hostNetwork` everybody on the node reaches what only this pod should reach";
        refuse(host, message, "give the pod a network of its own: remove `hostNetwork`");
    }
    let chosen = spec.get("nodeSelector").and_then(|labels| labels.get("kubernetes.io/os"));
    for os in [at(spec, "os/name"), chosen].into_iter().flatten().filter(|os| os.text() == Some("windows")) {
        refuse(os, "the sidecar runs on Linux", "leave pods of Windows out: `--only`");
    }
    if arguments.classic && workload::is_job(object) {
        let message = "a Job never ends while a classic sidecar runs beside it";
        refuse(object, message, "leave `--classic` out (Kubernetes 1.29), or leave Jobs out: `--only`");
    }
    for (list, names) in [
        ("containers", [sidecar::NAME, sidecar::NAME]),
        ("initContainers", [sidecar::NAME, sidecar::NAME]),
        ("volumes", [sidecar::FILES, sidecar::LOG]),
    ] {
        for entry in items(spec.get(list)) {
            match word(entry, "name") {
                None => refuse(entry, "this entry has no name", "add `name: …`"),
                Some(name) if names.contains(&name) => {
                    let message = format!("`{list}` has a `{name}` already, which was not put in by `inject`");
                    refuse(entry, &message, "remove it, or give it another name");
                }
                Some(_) => {}
            }
        }
    }
    for port in workload::containers(template).flat_map(|(_, node)| items(node.get("ports"))) {
        for number in ["containerPort", "hostPort"].into_iter().filter_map(|key| port.get(key)) {
            let is_plain = number.text().is_some_and(|text| {
                text == "0" || !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit())
            });
            if !is_plain && !is_null(number) {
                refuse(number, "this is no plain number of a port", "write it in decimal digits, such as 8080");
            }
        }
    }
    if let Some(grace) = spec.get("terminationGracePeriodSeconds")
        && !is_null(grace)
        && !matches!(Plain::of(grace), Some(Plain::Number(_)))
    {
        refuse(grace, "this is no whole number of seconds", "write one, such as 30");
    }
    problems
}

/// What a workload takes over, and the places of the Services that select it.
type PutIn = (Vec<Taken>, Vec<usize>);

/// Puts the sidecar into one workload.
fn put_in(
    object: &mut Node,
    path: &str,
    arguments: &Arguments,
    wanted: &Wanted,
    services: &Services,
    told: &mut Vec<String>,
) -> Result<PutIn, Vec<Problem>> {
    let is_job = workload::is_job(object);
    let whole: &Node = object;
    let no_template =
        || vec![Problem::error(Code::Workload, whole.at, "this workload has no pod template", "give the whole object")];
    let template = at(whole, path).filter(|template| template.get("spec").is_some()).ok_or_else(no_template)?;
    let problems = in_the_way(whole, template, arguments);
    if !problems.is_empty() {
        return Err(problems);
    }
    let (selected, selecting): (Vec<usize>, Vec<&Service>) = services.selecting(whole).into_iter().unzip();
    let terms = Terms { wanted, loopback: arguments.loopback, is_job, services: selecting };
    let taken = takeover::taken(template, &terms)?;
    notes(template, arguments, &taken, &selected, told);

    let Some(template) = at_mut(object, path) else { return Ok((taken, selected)) };
    let mut edits = Edits::of(template);
    takeover::apply(&mut edits, &taken, &terms, told)?;
    let pre_stop = if arguments.classic { arguments.pre_stop } else { 0 };
    let needed = wanted.drain + pre_stop + 5;
    let grace = at(edits.root(), "spec/terminationGracePeriodSeconds").and_then(Plain::of);
    let has = match grace {
        Some(Plain::Number(seconds)) => seconds,
        Some(Plain::Text(_)) | None => GRACE,
    };
    if has < needed {
        told.push(format!("the pod gets {needed} s to stop (had {has})"));
        edits.set("spec/terminationGracePeriodSeconds", Plain::Number(needed));
    }
    let shape = Shape {
        image: &arguments.image,
        env: &arguments.env,
        memory: &arguments.memory.text,
        taken: &taken,
        others: &wanted.others,
        health: wanted.health,
        classic: arguments.classic.then_some(pre_stop),
    };
    let list = if arguments.classic { "spec/containers" } else { "spec/initContainers" };
    edits.insert(list, sidecar::container(&shape).map_err(ours)?, !arguments.classic);
    let mut maps: Vec<&str> = arguments.settings_configmap.iter().map(String::as_str).collect();
    maps.extend(
        arguments.policy_configmap.iter().map(String::as_str).filter(|name| !maps.contains(name)).collect::<Vec<_>>(),
    );
    for volume in sidecar::volumes(&maps, &arguments.secret, &arguments.log_size.text).map_err(ours)? {
        edits.insert("spec/volumes", volume, false);
    }
    edits.note(ORIGINAL, &[(INJECTED, env!("CARGO_PKG_VERSION"))]);
    Ok((taken, selected))
}

/// A fault in what this program wrote itself.
fn ours(faults: Vec<Fault>) -> Vec<Problem> {
    faults.into_iter().map(Problem::from).collect()
}

/// What a person should know of one workload.
fn notes(template: &Node, arguments: &Arguments, taken: &[Taken], services: &[usize], told: &mut Vec<String>) {
    if taken.is_empty() {
        told.push("no port is put behind the sidecar: only what the service sends through it is weighed".to_owned());
    }
    told.extend(taken.iter().map(Taken::told));
    for port in workload::declared(template) {
        if !taken.iter().any(|taken| taken.app == port.number && port.is_tcp) {
            let name = port.name.map(|name| format!(" ({name})")).unwrap_or_default();
            told.push(format!("port {}{name} is not behind the sidecar", port.number));
        }
    }
    for Taken { app, listen, .. } in taken.iter().filter(|taken| taken.app != taken.listen) {
        if services.is_empty() {
            told.push(format!("no Service here selects it: one that names {app} by number goes around the sidecar; let it name {listen}"));
        }
        if !arguments.loopback {
            told.push(format!(
                "who dials port {app} of the pod goes around the sidecar: a NetworkPolicy closes that, or 127.0.0.1"
            ));
        }
    }
    if at(template, "spec/shareProcessNamespace").is_some_and(is_on) {
        told.push("`shareProcessNamespace`: containers that run as root can read the sidecar's keys".to_owned());
    }
}

/// Lets a Service point to the sidecar where it pointed to the service by number. Of a Service that also selects a
/// workload without a sidecar, half of the requests would then come to a port that nobody listens on.
fn redirect(
    object: &mut Node,
    service: &Service,
    selected: &[&Taken],
    without: Option<&str>,
    told: &mut Vec<String>,
) -> Option<Problem> {
    if selected.is_empty() {
        return None;
    }
    if let Some(without) = without {
        let message = format!("this Service also selects {without}, which has no sidecar");
        return Some(Problem::error(Code::Workload, object.at, message, "inject all that it selects at once"));
    }
    let name = &service.name;
    let mut edits = Edits::of(object);
    for port in &service.ports {
        let by_number = selected.iter().find(|taken| port.target.parse() == Ok(taken.app));
        if let Some(Taken { listen, app, .. }) = by_number {
            if listen != app {
                told.push(format!("{name}: port {} goes to {listen} of the sidecar (was {app})", port.port));
                edits.set(&format!("spec/ports/{}/targetPort", port.port), Plain::Number(u64::from(*listen)));
            }
        } else if selected.iter().any(|taken| taken.moved_name() == Some(&port.target)) {
            told.push(format!("{name}: port {} follows the name `{}` to the sidecar", port.port, port.target));
        } else {
            told.push(format!("{name}: port {} goes to `{}`, which is not behind the sidecar", port.port, port.target));
        }
    }
    let moved: Vec<_> = selected.iter().filter(|it| it.listen != it.app).map(|it| it.listen.to_string()).collect();
    if service.is_headless && !moved.is_empty() {
        let moved = moved.join(", ");
        told.push(format!("{name}: it is headless: its callers dial ports of the pods, and have to dial {moved}"));
    }
    if !edits.are_none() {
        edits.note(ORIGINAL, &[]);
    }
    None
}
