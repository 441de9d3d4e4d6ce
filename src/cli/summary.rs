//! What a sidecar says of itself when it has started: what it protects, how, and with what.

use std::fmt::Write as _;

use crate::config::Settings;
use crate::forward;
use crate::policy::Counts;
use crate::policy::Enforcement;
use crate::policy::Named;
use crate::reload::Accepted;
use crate::serve::Sidecar;

/// What is told.
pub(super) struct Summary {
    service: String,
    instance: String,
    storage: String,
    enforcement: Enforcement,
    policy: Named,
    key_id: Option<String>,
    counts: Counts,
    /// Each listener's name, what it does, and where it leads.
    listeners: Vec<(String, String)>,
    routes: usize,
    log: String,
    digest: String,
    warnings: usize,
    health: String,
    admin: String,
}

impl Summary {
    /// Of what is about to start.
    pub(super) fn of(settings: &Settings, accepted: &Accepted, warnings: usize) -> Self {
        let listeners = settings.listeners.iter().map(|listener| {
            let upstream = settings.upstreams.get(listener.upstream);
            let to = upstream.map_or_else(String::new, |it| format!("{} at {}", it.name, shown(&it.address)));
            let tls = match &listener.tls {
                None => "in clear",
                Some(tls) if tls.clients.as_ref().is_some_and(|clients| clients.are_required) => "mutual TLS",
                Some(_) => "TLS",
            };
            let direction = if listener.egress.is_some() { "egress" } else { "ingress" };
            (listener.name.clone(), format!("{direction}, {tls}, to {to}"))
        });
        Self {
            service: settings.service.clone(),
            instance: settings.instance.clone(),
            storage: settings.storage_location.to_string(),
            enforcement: settings.enforcement,
            policy: accepted.policy.named(),
            key_id: accepted.key_id.clone(),
            counts: accepted.policy.counts(),
            listeners: listeners.collect(),
            routes: settings.routes.all().len(),
            log: log(settings),
            digest: settings.effective.digest.clone(),
            warnings,
            health: String::new(),
            admin: String::new(),
        }
    }

    /// With where it really listens, now that it does.
    pub(super) fn listening(mut self, sidecar: &Sidecar) -> Self {
        for ((_, told), (_, address)) in self.listeners.iter_mut().zip(&sidecar.addresses) {
            *told = format!("{address}, {told}");
        }
        let or_none = |address: Option<String>| address.unwrap_or_else(|| "none".to_owned());
        self.health = or_none(sidecar.health.as_ref().map(ToString::to_string));
        self.admin = or_none(sidecar.admin.as_ref().map(ToString::to_string));
        self
    }

    fn listeners(&self) -> Vec<String> {
        self.listeners.iter().map(|(name, told)| format!("{name} {told}")).collect()
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let mode = match self.enforcement {
            Enforcement::Enforce => {
                "enforce: what the agreement does not allow does not pass, where the policy says so"
            }
            Enforcement::Observe => "OBSERVE: what the agreement does not allow is recorded, and PASSES",
        };
        let signed = self.key_id.as_ref().map_or_else(|| "not signed".to_owned(), |key| format!("signed by {key}"));
        let warnings = match self.warnings {
            0 => "none".to_owned(),
            count => format!("{count}: `dpa-sidecar check` shows them"),
        };
        let mut lines = vec![("mode", mode.to_owned()), ("policy", format!("{}, {signed}", self.policy))];
        lines.push(("", self.counts.to_string()));
        lines.extend(self.listeners().into_iter().enumerate().map(|(place, told)| {
            let name = if place == 0 { "listeners" } else { "" };
            (name, told)
        }));
        lines.push(("routes", format!("{} and probes", self.routes)));
        lines.push(("log", self.log.clone()));
        lines.push(("health", self.health.clone()));
        lines.push(("admin", self.admin.clone()));
        lines.push(("settings", format!("digest {}", self.digest)));
        lines.push(("warnings", warnings));
        let Self { service, instance, storage, .. } = self;
        let mut text =
            format!("dpa-sidecar {} protects {service} (instance {instance}, data in {storage})\n", *super::VERSION);
        for (name, told) in lines {
            let _infallible = writeln!(text, "  {name:<10} {told}");
        }
        text
    }

    /// As an event of the operational log.
    pub(super) fn log(&self) {
        let Counts { customers, subprocessors, callers, purposes, instructions } = self.counts;
        tracing::info!(
            version = super::VERSION.as_str(),
            service = self.service,
            instance = self.instance,
            storage_location = self.storage,
            enforcement = self.enforcement.as_str(),
            policy = self.policy.name,
            revision = self.policy.revision,
            digest = %self.policy.digest,
            key_id = self.key_id.as_deref().unwrap_or_default(),
            customers,
            subprocessors,
            callers,
            purposes,
            instructions,
            listeners = self.listeners().join("; "),
            routes = self.routes,
            decision_log = self.log,
            health = self.health,
            admin = self.admin,
            settings = self.digest,
            warnings = self.warnings,
            "started"
        );
    }
}

fn shown(address: &forward::Address) -> String {
    match address {
        forward::Address::Tcp(address) => address.clone(),
        forward::Address::Unix(path) => format!("unix:{}", path.display()),
    }
}

/// Where records go, and when one counts.
fn log(settings: &Settings) -> String {
    let log = &settings.log;
    let mut to: Vec<String> = log.file.iter().map(|file| file.path.display().to_string()).collect();
    if log.stdout {
        to.push("standard output".to_owned());
    }
    let signed = if log.signer.is_some() { "checkpoints signed" } else { "checkpoints not signed" };
    let (durability, on_failure) = (log.durability.as_str(), log.on_failure.as_str());
    format!("{}, {durability}, {signed}; without a record: {on_failure}", to.join(" and "))
}
