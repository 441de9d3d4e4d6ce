//! Step 3: says who calls.
//!
//! Tries every way that the settings trust and takes the strongest proof. Two proofs that contradict
//! each other prove nothing.

pub mod certificate;
mod header;

use http::HeaderName;
use ipnet::IpNet;

use self::certificate::TrustDomain;
use crate::decide::facts::Fact;
use crate::decide::facts::Source;
use crate::decide::facts::Why;
use crate::observed::Observed;
use crate::policy::terms::Identity;
use crate::policy::terms::Location;

/// The ways in which a caller may prove who it is, strongest first.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// The ways.
    pub ways: Vec<Way>,
}

/// One way.
#[derive(Clone, Debug)]
pub enum Way {
    /// The client certificate of the connection.
    Certificate {
        /// Whose SPIFFE IDs count; empty: those of any trust domain.
        trust_domains: Vec<TrustDomain>,
    },
    /// A header that names the identity, believed only from these peers.
    Header {
        /// Its name.
        name: HeaderName,
        /// The networks of the peers.
        trusted_peers: Vec<IpNet>,
    },
    /// Stated by a test case, with its location claim. No settings file can say this.
    Stated {
        /// Who.
        identity: Identity,
        /// Where it says it is.
        location: Fact<Location>,
    },
}

/// Who calls, and what was proven along with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    /// Who.
    pub identity: Fact<Identity>,
    /// What it says in the same proof, signed.
    pub claims: Claims,
}

/// The mapped claims of a token whose signature, times, issuer and audience hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// For whom; used only by a route that takes its customer from `claim`.
    pub customer: Option<Vec<String>>,
    /// What for; used only by a route that takes its purpose from `claim`.
    pub purpose: Option<String>,
    /// On which instruction.
    pub instruction: Option<String>,
    /// Where the caller is.
    pub location: Fact<Location>,
}

impl Default for Claims {
    fn default() -> Self {
        Self { customer: None, purpose: None, instruction: None, location: Fact::Unknown(Why::Missing) }
    }
}

impl Proven {
    /// An identity, or none, without claims.
    fn alone(identity: Fact<Identity>) -> Self {
        Self { identity, claims: Claims::default() }
    }
}

/// Says who calls, from the strongest proof at hand.
///
/// A header counts only from a peer in `trusted_peers`; from anyone else it is [`Why::Unproven`], not
/// ignored, so that the record shows it.
#[must_use]
pub fn identify(seen: &Observed<'_>, trust: &Trust) -> Proven {
    let mut proven = Proven::alone(Fact::Unknown(Why::Missing));
    for way in &trust.ways {
        let found = match way {
            Way::Certificate { trust_domains } => {
                Proven::alone(certificate::within(&seen.peer.certificate, trust_domains))
            }
            Way::Header { name, trusted_peers } => Proven::alone(header::identify(seen, name, trusted_peers)),
            Way::Stated { identity, location } => Proven {
                identity: Fact::Known(identity.clone(), Source::Case),
                claims: Claims { location: location.clone(), ..Claims::default() },
            },
        };
        match (proven.identity.known(), found.identity.known()) {
            (Some(stronger), Some(weaker)) if stronger != weaker => {
                proven.identity = Fact::Unknown(Why::Contradicted);
                return proven;
            }
            (Some(_), _) => {}
            (None, Some(_)) => proven = found,
            // The first way that says more than "nothing there" tells why nobody is known.
            (None, None) if proven.identity == Fact::Unknown(Why::Missing) => proven.identity = found.identity,
            (None, None) => {}
        }
    }
    proven
}
