//! `identity`: whose word is taken, and whom nobody can prove.

use http::HeaderName;
use http::header;
use ipnet::IpNet;

use super::Compiler;
use super::Listener;
use super::Settings;
use super::document;
use crate::establish::context::DPA_CONTEXT;
use crate::gate::DPA_DECISION_ID;
use crate::identify::TrustedPeers;
use crate::identify::Way;
use crate::identify::forwarded::X_FORWARDED_CLIENT_CERT;
use crate::policy::Policy;
use crate::policy::problem::Code;
use crate::policy::problem::Problem;
use crate::policy::problem::Problems;
use crate::policy::terms::Identity;
use crate::yaml::List;
use crate::yaml::Spanned;

/// Headers that no identity is read from: a request without them is another one.
const NO_IDENTITY: [HeaderName; 6] =
    [header::CONNECTION, header::CONTENT_LENGTH, header::HOST, header::TRANSFER_ENCODING, DPA_CONTEXT, DPA_DECISION_ID];

impl Compiler<'_> {
    pub(super) fn forwarded_certificate(&mut self, way: &document::ForwardedCertificate) -> Way {
        Way::ForwardedCertificate { trusted_peers: self.trusted_peers(&way.trusted_peers) }
    }

    pub(super) fn header(&mut self, way: &document::Header) -> Option<Way> {
        let document::Header { name, trusted_peers } = way;
        let trusted_peers = self.trusted_peers(trusted_peers);
        let Ok(header) = HeaderName::from_bytes(name.value.as_bytes()) else {
            let message = format!("`{}` is not the name of a header", name.value);
            self.error(Code::Invalid, name.at, message, "write a name such as `DPA-Caller`");
            return None;
        };
        if header == X_FORWARDED_CLIENT_CERT {
            let help = "write `forwarded_certificate: {trusted_peers: […]}` instead of `header`";
            self.error(Code::Invalid, name.at, "this header is no identity, and has its own way", help);
        } else if NO_IDENTITY.contains(&header) {
            let message = format!("`{header}` says something else than who calls");
            let help = "write a header of its own, such as `DPA-Caller`: it is taken out of every request";
            self.error(Code::Invalid, name.at, message, help);
        }
        Some(Way::Header { name: header, trusted_peers })
    }

    /// Whether a listener asks for the certificates that trusted peers are told by.
    pub(super) fn peers_asked_for(&mut self, ways: &[Spanned<document::Identity>], listeners: &[Listener]) {
        if listeners.iter().any(Listener::asks_for_certificates) {
            return;
        }
        let forwarded =
            ways.iter().filter_map(|way| way.value.forwarded_certificate.as_ref()).map(|it| &it.trusted_peers);
        let headers = ways.iter().filter_map(|way| way.value.header.as_ref()).map(|it| &it.trusted_peers);
        for peer in forwarded.chain(headers).flat_map(|peers| &peers.items) {
            if peer.value.parse::<Identity>().is_ok() {
                let message = format!("`{}` is told by its certificate, and no listener asks for one", peer.value);
                let help = "give a listener `tls` with `client_ca: …`, or write the peer's network";
                self.problems.push(Problem::warning(Code::NeverWorks, peer.at, message, help));
            }
        }
    }

    /// Peers that are trusted with more than one header: a proxy mostly sets one of them, and may let the other through.
    pub(super) fn peers_of_one_header(&mut self, ways: &[Spanned<document::Identity>]) {
        let headers = ways.iter().flat_map(|way| {
            let document::Identity { certificate: _, token: _, forwarded_certificate, header } = &way.value;
            let forwarded = forwarded_certificate.as_ref().map(|way| ("X-Forwarded-Client-Cert", &way.trusted_peers));
            let header = header.as_ref().map(|way| (way.name.value.as_str(), &way.trusted_peers));
            forwarded.into_iter().chain(header)
        });
        let headers: Vec<_> = headers.collect();
        for (place, (name, peers)) in headers.iter().enumerate() {
            let before = headers.iter().take(place).filter(|(other, _)| !other.eq_ignore_ascii_case(name));
            let twice = |(other, others): &(&str, &List<Spanned<String>>)| {
                let known =
                    |peer: &&Spanned<String>| others.items.iter().any(|other| overlap(&peer.value, &other.value));
                peers.items.iter().find(known).map(|peer| (peer, (*other).to_owned()))
            };
            let Some((peer, other)) = before.clone().find_map(twice) else { continue };
            let message = format!("`{}` may name callers in `{name}` and in `{other}`", peer.value);
            let help = "use one of the two ways; or be sure that this peer removes from what comes in the header that it does not set";
            self.problems.push(Problem::warning(Code::TooTrusting, peer.at, message, help));
        }
    }

    pub(super) fn trusted_peers(&mut self, list: &List<Spanned<String>>) -> TrustedPeers {
        self.not_empty(list);
        let mut peers = TrustedPeers::default();
        for Spanned { value, at } in &list.items {
            if value == "unix" {
                peers.on_unix_sockets = true;
                continue;
            }
            let is_identity = ["spiffe:", "dns:", "jwt:"].iter().any(|kind| value.starts_with(kind));
            match (network(value), value.parse::<Identity>()) {
                (Some(network), _) if network == network.trunc() => peers.networks.push(network),
                (Some(network), _) => {
                    let message =
                        format!("`{value}` names one address and means the whole network {}", network.trunc());
                    let help = format!(
                        "write `{}` for the one address, or `{}` for the network",
                        IpNet::from(network.addr()),
                        network.trunc()
                    );
                    self.error(Code::Invalid, *at, message, help);
                }
                (None, Ok(identity)) if identity.issuer().is_none() => peers.identities.push(identity),
                (None, Ok(_)) => {
                    let message = format!("`{value}` is not an identity that a connection can prove");
                    let help = "write what the peer's own certificate names: a SPIFFE ID or `dns:NAME`; or its network";
                    self.error(Code::Invalid, *at, message, help);
                }
                (None, Err(error)) if is_identity => self.error(Code::Invalid, *at, error.wrong, error.help),
                (None, Err(_)) => {
                    let message = format!("`{value}` is neither a network nor an identity");
                    let help = "write a CIDR such as `127.0.0.1/32`, `unix`, or the SPIFFE ID or `dns:NAME` that the peer's own certificate names";
                    self.error(Code::Invalid, *at, message, help);
                }
            }
        }
        peers
    }
}

/// A network, or the one of a single address.
fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<std::net::IpAddr>().map(IpNet::from).ok())
}

/// Whether two entries of trusted peers mean a peer in common, as far as their texts tell.
fn overlap(one: &str, other: &str) -> bool {
    match (network(one), network(other), one.parse::<Identity>(), other.parse::<Identity>()) {
        (Some(one), Some(other), ..) => one.contains(&other) || other.contains(&one),
        (_, _, Ok(one), Ok(other)) => one.covers(&other) || other.covers(&one),
        _ => false,
    }
}

impl Settings {
    /// Identities of the policy that no way of these settings can ever prove: one warning for each kind.
    pub(super) fn look_out_for_callers(&self, policy: &Policy, problems: &mut Problems) {
        let mut kinds: [(&str, Vec<&Identity>); 3] =
            [("SPIFFE IDs", vec![]), ("DNS names", vec![]), ("tokens", vec![])];
        for (identity, _) in policy.all_identities().filter(|(identity, _)| !self.trust.can_prove(identity)) {
            let [spiffe, dns, token] = &mut kinds;
            let (_, kind) = if identity.is_spiffe() {
                spiffe
            } else if identity.is_dns() {
                dns
            } else {
                token
            };
            kind.push(identity);
        }
        for (kind, identities) in kinds {
            let Some(first) = identities.iter().min() else { continue };
            let others = match identities.len() - 1 {
                0 => String::new(),
                count => format!(", nor {count} more of the {kind} of the policy"),
            };
            let message = format!("no way of `identity` can prove `{first}`{others}");
            let help =
                "whoever has no other identity is `caller_unidentified` here: add a way that proves it, or leave it so";
            problems.push(Problem::warning(Code::NeverWorks, self.identity_at, message, help));
        }
    }
}
