//! Step 3: says who calls.
//!
//! Tries every way that the settings trust and takes the strongest proof. Two proofs that name different
//! parties prove nothing: `establish` sees to that, who knows the parties.

pub mod certificate;
mod header;
pub mod key_set;
pub mod token;

use http::HeaderName;
use ipnet::IpNet;

use self::certificate::TrustDomain;
use self::token::Tokens;
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
    /// A signed token, of any of these issuers.
    Tokens(Tokens),
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
    /// Who, by the strongest proof.
    pub identity: Fact<Identity>,
    /// Who by weaker proofs, where they name it otherwise: they have to be the same party.
    pub others: Vec<Identity>,
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

impl Trust {
    /// The tokens that are believed, if any are.
    #[must_use]
    pub fn tokens(&self) -> Option<&Tokens> {
        self.ways.iter().find_map(|way| match way {
            Way::Tokens(tokens) => Some(tokens),
            Way::Certificate { .. } | Way::Header { .. } | Way::Stated { .. } => None,
        })
    }

    /// What somebody without a proof may try, for `WWW-Authenticate`.
    #[must_use]
    pub fn challenge(&self) -> &'static str {
        let has_header = self.ways.iter().any(|way| match way {
            Way::Header { .. } => true,
            Way::Certificate { .. } | Way::Tokens(_) | Way::Stated { .. } => false,
        });
        match (self.tokens(), has_header) {
            (Some(_), true) => "Bearer, DPA-Caller",
            (Some(_), false) => "Bearer",
            (None, _) => "DPA-Caller",
        }
    }
}

impl Proven {
    /// An identity, or none, without claims.
    fn alone(identity: Fact<Identity>) -> Self {
        Self { identity, others: Vec::new(), claims: Claims::default() }
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
            Way::Tokens(tokens) => token::identify(seen, tokens),
            Way::Header { name, trusted_peers } => Proven::alone(header::identify(seen, name, trusted_peers)),
            Way::Stated { identity, location } => Proven {
                identity: Fact::Known(identity.clone(), Source::Case),
                others: Vec::new(),
                claims: Claims { location: location.clone(), ..Claims::default() },
            },
        };
        match (proven.identity.known(), found.identity.known()) {
            (Some(stronger), Some(weaker)) => {
                if stronger != weaker {
                    proven.others.push(weaker.clone());
                }
                if proven.claims == Claims::default() {
                    proven.claims = found.claims;
                }
            }
            (Some(_), None) => {}
            (None, Some(_)) => proven = found,
            // The first way that says more than "nothing there" tells why nobody is known.
            (None, None) if proven.identity == Fact::Unknown(Why::Missing) => proven.identity = found.identity,
            (None, None) => {}
        }
    }
    proven
}
