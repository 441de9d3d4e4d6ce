//! Peers whose word is taken for who calls: proxies that prove callers themselves.

use ipnet::IpNet;
use jiff::Timestamp;

use crate::observed::Peer;
use crate::policy::terms::Identity;

/// Peers that may speak for others. Nobody, unless the settings list somebody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedPeers {
    /// Their networks.
    pub networks: Vec<IpNet>,
    /// Their identities, as their own certificates prove them; `*` stands for one whole segment.
    pub identities: Vec<Identity>,
    /// Whether whoever can connect to a Unix socket of the sidecar is one of them.
    pub on_unix_sockets: bool,
}

impl TrustedPeers {
    /// Whether this peer is one of them at this time: by its address, or by the certificate of the connection itself.
    #[must_use]
    pub fn include(&self, peer: &Peer, time: Timestamp) -> bool {
        (peer.transport.is_unix && self.on_unix_sockets)
            || peer.address.is_some_and(|address| self.networks.iter().any(|network| network.contains(&address)))
            || peer.proven(time).known().is_some_and(|identity| self.name(identity))
    }

    /// Whether one of them has this identity.
    #[must_use]
    pub fn name(&self, identity: &Identity) -> bool {
        self.identities.iter().any(|known| known.covers(identity))
    }
}
