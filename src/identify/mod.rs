//! Step 3: says who calls.
//!
//! Tries every way that the settings trust and takes the strongest proof. Two proofs that contradict
//! each other prove nothing.

mod header;

use http::HeaderName;
use ipnet::IpNet;

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
    /// Where a claim of the same proof says it is.
    pub location: Fact<Location>,
}

/// Says who calls, from the strongest proof at hand.
///
/// A header counts only from a peer in `trusted_peers`; from anyone else it is [`Why::Unproven`], not
/// ignored, so that the record shows it.
#[must_use]
pub fn identify(seen: &Observed<'_>, trust: &Trust) -> Proven {
    let mut proven = Proven { identity: Fact::Unknown(Why::Missing), location: Fact::Unknown(Why::Missing) };
    for way in &trust.ways {
        let found = match way {
            Way::Header { name, trusted_peers } => {
                Proven { identity: header::identify(seen, name, trusted_peers), location: Fact::Unknown(Why::Missing) }
            }
            Way::Stated { identity, location } => {
                Proven { identity: Fact::Known(identity.clone(), Source::Case), location: location.clone() }
            }
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
