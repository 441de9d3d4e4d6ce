//! `direction: egress`: who sends, who receives, and what both have to be in the policy.

use std::net::IpAddr;

use http::HeaderValue;

use super::Compiler;
use super::Constant;
use super::Listener;
use super::Settings;
use super::document;
use crate::doors::egress::Egress;
use crate::forward::Address;
use crate::forward::UpstreamSettings;
use crate::policy::Policy;
use crate::policy::problem::Code;
use crate::policy::problem::Problem;
use crate::policy::problem::Problems;
use crate::policy::problem::nearest;
use crate::policy::terms::Id;
use crate::sockets;
use crate::yaml::At;
use crate::yaml::Spanned;

/// What the listeners need of the rest of the file.
pub(super) struct Ends<'d> {
    /// `service.caller`.
    pub(super) caller: Option<&'d Spanned<String>>,
    /// The upstreams, in file order.
    pub(super) upstreams: &'d [UpstreamSettings],
    /// `recipient` of each.
    pub(super) recipients: &'d [Option<Spanned<String>>],
}

impl Compiler<'_> {
    /// A listener through which the service sends, or none: `Err` if it is one and cannot be.
    pub(super) fn egress(
        &mut self,
        direction: Option<Spanned<document::Way>>,
        address: &Spanned<sockets::Address>,
        upstream: &Spanned<usize>,
        ends: &Ends<'_>,
    ) -> Result<Option<Egress>, ()> {
        let Some(settings) = ends.upstreams.get(upstream.value) else { return Err(()) };
        let name = &settings.name;
        let recipient = ends.recipients.get(upstream.value).and_then(Option::as_ref);
        let Some(Spanned { at, .. }) = direction.filter(|direction| direction.value == document::Way::Egress) else {
            if let Some(recipient) = recipient {
                let message = format!("requests that come in would go to the subprocessor `{}`", recipient.value);
                let help = "write `direction: egress` if the service sends here, or remove the upstream's `recipient`";
                self.error(Code::OneOf, upstream.at, message, help);
            }
            return Ok(None);
        };
        // Whoever reaches it is taken for the service.
        let is_local = match &address.value {
            sockets::Address::Tcp(address) => address.ip().to_canonical().is_loopback(),
            sockets::Address::Unix(_) => true,
        };
        if !is_local {
            let message = "whoever reaches this address could send as the service";
            let help = "write an address of the pod's own, such as `127.0.0.1:9101`";
            self.error(Code::TooTrusting, address.at, message, help);
        }
        if ends.caller.is_none() {
            let help = "add `caller: …` to `service`: its id among the `callers` of the policy";
            self.error(Code::MissingField, at, "the service sends, and nothing says who it is in the policy", help);
        }
        if recipient.is_none() {
            let message = format!("the service sends to `{name}`, and nothing says which subprocessor that is");
            let help = "add `recipient: …` to the upstream: its id among the `subprocessors` of the policy";
            self.error(Code::MissingField, upstream.at, message, help);
        }
        let host = host_of(settings);
        if host.is_none() {
            let message = format!("the upstream `{name}` has no name that could stand in `Host`");
            self.error(Code::Invalid, upstream.at, message, "write its address as `HOST:PORT`");
        }
        let (Some(caller), Some(recipient), Some((host, host_header))) = (ends.caller, recipient, host) else {
            return Err(());
        };
        Ok(Some(Egress { caller: caller.value.clone(), recipient: recipient.value.clone(), host, host_header }))
    }
}

/// The name by which an upstream knows itself, in small letters, and the same as `Host`: what its certificate has to
/// bear, or without TLS the host of its address, with the port if that is not the scheme's own (RFC 9110 section 7.2).
fn host_of(upstream: &UpstreamSettings) -> Option<(String, HeaderValue)> {
    let Address::Tcp(address) = &upstream.address else { return None };
    let (host, port) = address.rsplit_once(':')?;
    let port = port.parse::<u16>().ok()?;
    let host = upstream.tls.as_ref().map_or(host.into(), |tls| tls.server_name.to_str());
    let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    let host = host.strip_suffix('.').unwrap_or(&host);
    let host = match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) => format!("[{address}]"),
        Ok(IpAddr::V4(_)) | Err(_) => host.to_owned(),
    };
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'[' | b']' | b':');
    if host.is_empty() || !host.bytes().all(is_plain) {
        return None;
    }
    let own_port = if upstream.tls.is_some() { 443 } else { 80 };
    let header = if port == own_port { host.clone() } else { format!("{host}:{port}") };
    Some((host, HeaderValue::try_from(header).ok()?))
}

/// Constants of the settings that the policy has to have, with what is said if it has not.
pub(super) fn help_for(constant: Constant, value: &str, policy: &Policy) -> (bool, &'static str, String) {
    let or = |near: Option<&str>, otherwise: &str| match near {
        Some(near) => format!("did you mean `{near}`?"),
        None => otherwise.to_owned(),
    };
    let of_route = "name one of the policy, or take it from the request: `{from: context}`".to_owned();
    match constant {
        Constant::Customer => (policy.customer_named(value).is_some(), "customer", of_route),
        Constant::Purpose => (policy.purpose_named(value).is_some(), "purpose", of_route),
        Constant::Caller => {
            let near = nearest(value, policy.caller_names().map(Id::as_str));
            let help = or(near, "name one of its `callers`: the service, as the processor's own");
            (policy.caller_named(value).is_some(), "caller", help)
        }
        Constant::Recipient => {
            let near = nearest(value, policy.subprocessor_names().map(Id::as_str));
            let help = or(near, "name one of its `subprocessors`: nobody else may be sent data");
            (policy.subprocessor_named(value).is_some(), "subprocessor", help)
        }
    }
}

impl Settings {
    /// What would deny all that the service sends, and what the policy promises of connections.
    pub(super) fn look_out_for_egress(&self, policy: &Policy, problems: &mut Problems) {
        for Listener { name, upstream, egress, at, .. } in &self.listeners {
            let Some(Egress { caller, .. }) = egress else { continue };
            let mut warn = |code, at: At, message: String, help: &str| {
                problems.push(Problem::warning(code, at, message, help));
            };
            let entry = policy.caller_named(caller).and_then(|id| policy.caller(id));
            if entry.is_some_and(|entry| entry.location.is_none()) {
                let message =
                    format!("the caller `{caller}` has no `location`, so nothing passes on the listener `{name}`");
                let help = "its requests are denied as `location_unknown`: write its location in the policy; no claim can say it here";
                warn(Code::NeverWorks, *at, message, help);
            }
            let in_clear = self.upstreams.get(*upstream).filter(|upstream| upstream.tls.is_none());
            if let (Some(floor), Some(to)) = (policy.security.min_tls_version, in_clear)
                && !is_here(&to.address)
            {
                let floor = floor.as_str();
                let message = format!("the policy promises TLS {floor}, and data goes to `{}` in clear", to.name);
                warn(Code::BelowPolicy, *at, message, "give the upstream `tls: {ca: …}`");
            }
        }
    }
}

/// Whether an upstream is on this machine, such as a proxy that speaks TLS for it.
fn is_here(address: &Address) -> bool {
    let Address::Tcp(address) = address else { return true };
    let host = address.rsplit_once(':').map_or("", |(host, _)| host);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::forward::Protocol;
    use crate::tls::ClientSettings;

    #[test]
    fn how_a_subprocessor_is_called() {
        let table = [
            ("in clear on its own port", "api.example:80", None, Some(("api.example", "api.example"))),
            ("in clear on another", "api.example:443", None, Some(("api.example", "api.example:443"))),
            ("TLS on its own port", "api.example:443", Some("api.example"), Some(("api.example", "api.example"))),
            ("TLS on another", "api.example:8443", Some("api.example"), Some(("api.example", "api.example:8443"))),
            ("through an address", "10.1.2.3:443", Some("Api.Example"), Some(("api.example", "api.example"))),
            ("a dot at its end", "api.example.:80", None, Some(("api.example", "api.example"))),
            ("IPv4", "10.1.2.3:8080", None, Some(("10.1.2.3", "10.1.2.3:8080"))),
            ("IPv6", "[2001:DB8::1]:443", Some("2001:db8::1"), Some(("[2001:db8::1]", "[2001:db8::1]"))),
            ("IPv6 in clear", "[2001:db8::1]:443", None, Some(("[2001:db8::1]", "[2001:db8::1]:443"))),
            ("a blank", "api example:80", None, None),
            ("no port", "api.example", None, None),
            ("a socket of this machine", "unix:/run/a.sock", None, None),
        ];
        for (name, address, server_name, expected) in table {
            let tls = server_name.map(|name| ClientSettings {
                ca: Spanned { value: "ca.crt".into(), at: At::default() },
                is_system: false,
                server_name: name.to_owned().try_into().unwrap(),
                own: None,
                protocol: crate::tls::HTTP1,
            });
            let second = Duration::from_secs(1);
            let upstream = UpstreamSettings {
                name: "api".to_owned(),
                address: match address.strip_prefix("unix:") {
                    Some(path) => Address::Unix(path.into()),
                    None => Address::Tcp(address.to_owned()),
                },
                max_connections: 1,
                storage_location: None,
                connect_timeout: second,
                response_timeout: None,
                idle_timeout: second,
                header_bytes: 16 * 1024,
                protocol: Protocol::Http1,
                tls,
            };
            let found = host_of(&upstream).map(|(host, header)| (host, header.to_str().unwrap().to_owned()));
            let expected = expected.map(|(host, header)| (host.to_owned(), header.to_owned()));
            assert_eq!(found, expected, "{name}");
        }
    }
}
