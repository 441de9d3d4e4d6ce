//! Step 3: says who calls.
//!
//! Tries every way that the settings trust and takes the strongest proof. Two proofs that contradict
//! each other prove nothing, and one that is presented and flawed is not overlooked.

pub mod certificate;
pub mod forwarded;
mod header;
pub mod key_set;
mod peers;
pub mod token;

use http::HeaderName;

use self::certificate::TrustDomain;
pub use self::peers::TrustedPeers;
use self::token::Tokens;
use crate::decide::facts::Carried;
use crate::decide::facts::Carrier;
use crate::decide::facts::Fact;
use crate::decide::facts::Source;
use crate::decide::facts::Why;
use crate::observed::Observed;
use crate::policy::Policy;
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
    /// The client certificate that a proxy tells of in `X-Forwarded-Client-Cert`.
    ForwardedCertificate {
        /// The proxies whose word is taken for it.
        trusted_peers: TrustedPeers,
    },
    /// A header that names the identity.
    Header {
        /// Its name.
        name: HeaderName,
        /// The peers whose word is taken for it.
        trusted_peers: TrustedPeers,
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
    /// What it says in the same proof, signed.
    pub claims: Claims,
    /// Who carried the request, and what was not believed.
    pub carried: Carried,
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
            Way::Certificate { .. } | Way::ForwardedCertificate { .. } | Way::Header { .. } | Way::Stated { .. } => {
                None
            }
        })
    }

    /// The headers whose word is taken, from some peers.
    pub fn headers(&self) -> impl Iterator<Item = &HeaderName> {
        self.ways.iter().filter_map(|way| match way {
            Way::Header { name, .. } => Some(name),
            Way::Certificate { .. } | Way::Tokens(_) | Way::ForwardedCertificate { .. } | Way::Stated { .. } => None,
        })
    }

    /// What somebody without a proof may try, for `WWW-Authenticate`.
    #[must_use]
    pub fn challenge(&self) -> &'static str {
        match (self.tokens(), self.headers().next().is_some()) {
            (Some(_), true) => "Bearer, DPA-Caller",
            (Some(_), false) => "Bearer",
            (None, _) => "DPA-Caller",
        }
    }
}

impl Proven {
    /// An identity, or none, without claims.
    fn alone(identity: Fact<Identity>) -> Self {
        Self { identity, claims: Claims::default(), carried: Carried::default() }
    }
}

impl Way {
    /// Its place among the ways, the strongest first.
    fn place(&self) -> u8 {
        match self {
            Self::Stated { .. } => 0,
            Self::Certificate { .. } => 1,
            Self::Tokens(_) => 2,
            Self::ForwardedCertificate { .. } => 3,
            Self::Header { .. } => 4,
        }
    }

    /// The peers that may speak for others in this way.
    #[must_use]
    pub fn trusted_peers(&self) -> Option<&TrustedPeers> {
        match self {
            Self::ForwardedCertificate { trusted_peers } | Self::Header { trusted_peers, .. } => Some(trusted_peers),
            Self::Certificate { .. } | Self::Tokens(_) | Self::Stated { .. } => None,
        }
    }

    /// Whether it is about the other end of the connection itself, not about somebody it speaks of.
    fn is_of_the_connection(&self) -> bool {
        match self {
            Self::Certificate { .. } => true,
            Self::Tokens(_) | Self::ForwardedCertificate { .. } | Self::Header { .. } | Self::Stated { .. } => false,
        }
    }

    /// Whether this way could ever prove this identity, or one that this pattern means.
    #[must_use]
    pub fn can_prove(&self, identity: &Identity) -> bool {
        match self {
            Self::Certificate { trust_domains } => {
                let named = Fact::Known(identity.clone(), Source::Certificate);
                let is_of_a_certificate = identity.is_spiffe() || identity.is_dns();
                is_of_a_certificate && certificate::within(&named, trust_domains).known().is_some()
            }
            Self::ForwardedCertificate { .. } => identity.is_spiffe() || identity.is_dns(),
            Self::Tokens(tokens) => tokens.issuers.iter().any(|issuer| identity.issuer() == Some(&issuer.name)),
            Self::Header { .. } => true,
            Self::Stated { identity: stated, .. } => identity.covers(stated),
        }
    }

    /// What it finds.
    fn find(&self, seen: &Observed<'_>) -> Proven {
        match self {
            Self::Certificate { trust_domains } => {
                Proven::alone(certificate::within(&seen.peer.proven(seen.time), trust_domains))
            }
            Self::Tokens(tokens) => token::identify(seen, tokens),
            Self::ForwardedCertificate { trusted_peers } => Proven::alone(forwarded::identify(seen, trusted_peers)),
            Self::Header { name, trusted_peers } => Proven::alone(header::identify(seen, name, trusted_peers)),
            Self::Stated { identity, location } => Proven {
                identity: Fact::Known(identity.clone(), Source::Case),
                claims: Claims { location: location.clone(), ..Claims::default() },
                carried: Carried::default(),
            },
        }
    }
}

impl Trust {
    /// These ways, the strongest first: certificate, token, forwarded certificate, header.
    #[must_use]
    pub fn new(mut ways: Vec<Way>) -> Self {
        ways.sort_by_key(Way::place);
        Self { ways }
    }

    /// Whether any way could ever prove this identity, or one that this pattern means.
    #[must_use]
    pub fn can_prove(&self, identity: &Identity) -> bool {
        self.ways.iter().any(|way| way.can_prove(identity))
    }

    /// Whether a peer with this identity may speak for others.
    fn lets_speak(&self, identity: &Identity) -> bool {
        self.ways.iter().filter_map(Way::trusted_peers).any(|peers| peers.name(identity))
    }
}

/// Says who calls, from the strongest proof at hand.
///
/// - What is presented has to hold: a flawed proof is not overlooked for a good one beside it.
/// - A header from a peer that is not trusted is no proof. It changes nothing, but for [`Why::Unproven`] where
///   there is no other.
/// - All proofs have to speak of one caller: the same identity, or the same party of the policy. Else they are
///   [`Why::Contradicted`].
/// - On egress the settings say who calls: nothing is read, since a token there is for the subprocessor.
/// - The certificate of a trusted peer says who carried the request. It gives way to the caller that the peer
///   names, or whose token it carries, and adds nothing to what that caller may do.
#[must_use]
pub fn identify(seen: &Observed<'_>, trust: &Trust, policy: &Policy) -> Proven {
    if seen.egress.is_some_and(|egress| egress.caller.is_some()) {
        return Proven::alone(Fact::None);
    }
    let of_the_connection = seen.peer.proven(seen.time);
    let carrier = of_the_connection.known().filter(|identity| trust.lets_speak(identity));
    let is_carrier = |way: &Way| carrier.is_some() && way.is_of_the_connection();
    let found: Vec<_> = trust.ways.iter().map(|way| (way.find(seen), is_carrier(way))).collect();
    let has_unproven = found.iter().any(|(found, _)| found.identity == Fact::Unknown(Why::Unproven));
    let is_listed = trust.ways.iter().filter_map(Way::trusted_peers).any(|peers| peers.include(seen.peer, seen.time));
    let by = carrier.cloned().map(Carrier::Identity).or(is_listed.then_some(Carrier::Address));
    Proven { carried: Carried { by, has_unproven }, ..strongest(found.into_iter(), policy) }
}

/// The strongest of what was found, if all of it goes together. Beside each stands whether it is about a trusted
/// peer, who may only have carried the request.
fn strongest(all: impl Iterator<Item = (Proven, bool)>, policy: &Policy) -> Proven {
    let unknown = |why| Proven::alone(Fact::Unknown(why));
    let mut proven: Option<Proven> = None;
    let mut carrier = None;
    let mut absence = Why::Missing;
    for (found, is_carrier) in all {
        if is_carrier {
            carrier = Some(found);
            continue;
        }
        let identity = match &found.identity {
            Fact::Known(identity, _) => identity,
            Fact::None | Fact::Unknown(Why::Missing) => continue,
            Fact::Unknown(Why::Unproven) => {
                absence = Why::Unproven;
                continue;
            }
            Fact::Unknown(why @ (Why::Malformed | Why::Contradicted | Why::NotInPolicy { .. } | Why::Flawed(_))) => {
                return unknown(*why);
            }
        };
        let Some(stronger) = &mut proven else {
            proven = Some(found);
            continue;
        };
        if !stronger.identity.known().is_some_and(|stronger| is_one(stronger, identity, policy)) {
            return unknown(Why::Contradicted);
        }
        if found.identity.source() == Some(Source::Token) {
            stronger.claims = found.claims;
        }
    }
    proven.or(carrier).unwrap_or_else(|| unknown(absence))
}

/// Whether two identities are one caller's.
fn is_one(one: &Identity, other: &Identity, policy: &Policy) -> bool {
    one == other || policy.party(one).is_some_and(|party| policy.party(other) == Some(party))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::facts::Flaw;
    use crate::policy;
    use crate::policy::problem::Source as File;

    const GATEWAY: &str = "spiffe://mesh.example/ns/edge/sa/gateway";
    const CARE: &str = "spiffe://lumenfield.example/sa/care-desk";
    const CARE_TOKEN: &str = "jwt:https://id.lumenfield.example|care-desk";
    const SYNC: &str = "spiffe://ticketriver.example/sa/sync";
    const STRANGER: &str = "dns:stranger.example";

    fn policy() -> Policy {
        let more = format!("[\"{CARE}\", \"{CARE_TOKEN}\"]");
        let text = include_str!("../../tests/valid-policy.yaml").replace(&format!("[\"{CARE}\"]"), &more);
        let source = File { path: "policy.yaml".to_owned(), text };
        policy::compile(&[source], &["policy.yaml".to_owned()], None, None).0.unwrap()
    }

    /// Found, and whether it is the certificate of the gateway.
    fn by(source: Source, identity: &str) -> (Proven, bool) {
        let purpose = (source == Source::Token).then(|| "customer_support".to_owned());
        let claims = Claims { purpose, ..Claims::default() };
        let is_carrier = source == Source::Certificate && identity == GATEWAY;
        (Proven { claims, ..Proven::alone(Fact::Known(identity.parse().unwrap(), source)) }, is_carrier)
    }

    #[test]
    fn what_is_proven_goes_together() {
        use Source::Certificate;
        use Source::ForwardedCertificate as Forwarded;
        use Source::Header;
        use Source::Token;
        let without = |why| (Proven::alone(Fact::Unknown(why)), false);
        let foreign_gateway = || (Proven::alone(Fact::Unknown(Why::Flawed(Flaw::ForeignTrustDomain))), true);
        let flawed = |flaw| without(Why::Flawed(flaw));
        let missing = || without(Why::Missing);
        let unproven = || without(Why::Unproven);
        let known = |source, identity: &str| Ok((source, identity.to_owned()));
        // What was found; who calls and whether the token's claims count, or why nobody is known.
        let table = [
            ("nothing", vec![missing(), missing()], Err(Why::Missing), false),
            ("a header from anybody", vec![missing(), unproven()], Err(Why::Unproven), false),
            ("a certificate", vec![by(Certificate, CARE)], known(Certificate, CARE), false),
            ("a token", vec![missing(), by(Token, CARE_TOKEN)], known(Token, CARE_TOKEN), true),
            (
                "a certificate and a token of one party",
                vec![by(Certificate, CARE), by(Token, CARE_TOKEN)],
                known(Certificate, CARE),
                true,
            ),
            (
                "a certificate and a token of two parties",
                vec![by(Certificate, SYNC), by(Token, CARE_TOKEN)],
                Err(Why::Contradicted),
                false,
            ),
            (
                "the same one, who is no party, twice",
                vec![by(Certificate, STRANGER), by(Header, STRANGER)],
                known(Certificate, STRANGER),
                false,
            ),
            (
                "two who are no party",
                vec![by(Certificate, STRANGER), by(Header, "dns:other.example")],
                Err(Why::Contradicted),
                false,
            ),
            (
                "a party and one who is none",
                vec![by(Certificate, STRANGER), by(Header, CARE)],
                Err(Why::Contradicted),
                false,
            ),
            (
                "a certificate, and a header from anybody",
                vec![by(Certificate, CARE), unproven()],
                known(Certificate, CARE),
                false,
            ),
            (
                "a certificate, and a token that is over",
                vec![by(Certificate, CARE), flawed(Flaw::Expired)],
                Err(Why::Flawed(Flaw::Expired)),
                false,
            ),
            (
                "a flawed certificate, and a good header",
                vec![flawed(Flaw::NotALeaf), by(Header, CARE)],
                Err(Why::Flawed(Flaw::NotALeaf)),
                false,
            ),
            (
                "a certificate, and a malformed forwarded one of a trusted peer",
                vec![by(Certificate, GATEWAY), without(Why::Malformed)],
                Err(Why::Malformed),
                false,
            ),
            ("a gateway for itself", vec![by(Certificate, GATEWAY), missing()], known(Certificate, GATEWAY), false),
            (
                "a gateway that sends on a header it is not trusted with",
                vec![by(Certificate, GATEWAY), unproven()],
                known(Certificate, GATEWAY),
                false,
            ),
            (
                "a gateway for a caller",
                vec![by(Certificate, GATEWAY), by(Forwarded, CARE)],
                known(Forwarded, CARE),
                false,
            ),
            (
                "a gateway with a caller's token",
                vec![by(Certificate, GATEWAY), by(Token, CARE_TOKEN)],
                known(Token, CARE_TOKEN),
                true,
            ),
            (
                "a gateway with the token of one caller and the certificate of another",
                vec![by(Certificate, GATEWAY), by(Token, CARE_TOKEN), by(Forwarded, SYNC)],
                Err(Why::Contradicted),
                false,
            ),
            (
                "a gateway with the certificate of one caller and a header that names another",
                vec![by(Certificate, GATEWAY), by(Forwarded, CARE), by(Header, SYNC)],
                Err(Why::Contradicted),
                false,
            ),
            (
                "a gateway whose token is that of the caller it names",
                vec![by(Certificate, GATEWAY), by(Token, CARE_TOKEN), by(Forwarded, CARE)],
                known(Token, CARE_TOKEN),
                true,
            ),
            (
                "one who is no gateway, for a caller",
                vec![by(Certificate, SYNC), by(Forwarded, CARE)],
                Err(Why::Contradicted),
                false,
            ),
            (
                "a gateway of another trust domain than callers may be of, for a caller",
                vec![foreign_gateway(), by(Forwarded, CARE)],
                known(Forwarded, CARE),
                false,
            ),
            (
                "the same for itself",
                vec![foreign_gateway(), missing()],
                Err(Why::Flawed(Flaw::ForeignTrustDomain)),
                false,
            ),
        ];
        let policy = policy();
        for (name, found, expected, has_claims) in table {
            let proven = strongest(found.into_iter(), &policy);
            let identity = match &proven.identity {
                Fact::Known(identity, source) => Ok((*source, identity.to_string())),
                Fact::Unknown(why) => Err(*why),
                Fact::None => panic!("{name}: no caller is never a fact"),
            };
            assert_eq!(identity, expected, "{name}");
            assert_eq!(proven.claims.purpose.is_some(), has_claims, "{name}");
        }
    }

    /// All of it at once: a connection with a certificate, headers, the ways in any order.
    #[test]
    fn who_carries_a_request_is_told_from_who_calls() {
        let peers = |peers: &[&str]| TrustedPeers {
            networks: vec!["127.0.0.2/32".parse().unwrap()],
            identities: peers.iter().map(|peer| peer.parse().unwrap()).collect(),
            ..TrustedPeers::default()
        };
        let header = |trusted_peers| Way::Header { name: HeaderName::from_static("dpa-caller"), trusted_peers };
        let forwarded = |trusted_peers| Way::ForwardedCertificate { trusted_peers };
        let gateway = || peers(&["spiffe://mesh.example/ns/*/sa/gateway"]);
        let all = || vec![header(gateway()), forwarded(gateway()), Way::Certificate { trust_domains: vec![] }];
        let xfcc = |identity: &str| ("x-forwarded-client-cert", format!("Hash=0;URI={identity}"));
        let known = |identity: &str, source| Ok((identity.to_owned(), source));
        let table = [
            (
                "a gateway for a caller",
                all(),
                (GATEWAY, "127.0.0.1"),
                vec![xfcc(CARE)],
                known(CARE, Source::ForwardedCertificate),
            ),
            ("a gateway for itself", all(), (GATEWAY, "127.0.0.1"), vec![], known(GATEWAY, Source::Certificate)),
            (
                "a caller that names another",
                all(),
                (SYNC, "127.0.0.1"),
                vec![xfcc(CARE)],
                known(SYNC, Source::Certificate),
            ),
            (
                "a caller at a trusted address that names another",
                all(),
                (SYNC, "127.0.0.2"),
                vec![xfcc(CARE)],
                Err(Why::Contradicted),
            ),
            (
                "a gateway trusted by its address, where certificates count",
                vec![forwarded(peers(&[])), Way::Certificate { trust_domains: vec![] }],
                (GATEWAY, "127.0.0.2"),
                vec![xfcc(CARE)],
                Err(Why::Contradicted),
            ),
            (
                "a gateway trusted by its address, where certificates do not count",
                vec![forwarded(peers(&[]))],
                (GATEWAY, "127.0.0.2"),
                vec![xfcc(CARE)],
                known(CARE, Source::ForwardedCertificate),
            ),
            (
                "a gateway that is trusted with one header and sends another",
                vec![forwarded(gateway()), header(peers(&[])), Way::Certificate { trust_domains: vec![] }],
                (GATEWAY, "127.0.0.1"),
                vec![("dpa-caller", CARE.to_owned())],
                known(GATEWAY, Source::Certificate),
            ),
            (
                "a gateway that names two callers",
                all(),
                (GATEWAY, "127.0.0.1"),
                vec![xfcc(CARE), ("dpa-caller", SYNC.to_owned())],
                Err(Why::Contradicted),
            ),
            (
                "a gateway that names one caller twice",
                all(),
                (GATEWAY, "127.0.0.1"),
                vec![("dpa-caller", CARE_TOKEN.to_owned()), xfcc(CARE)],
                known(CARE, Source::ForwardedCertificate),
            ),
            (
                "a gateway whose word is malformed",
                all(),
                (GATEWAY, "127.0.0.1"),
                vec![("x-forwarded-client-cert", "Hash=0".to_owned())],
                Err(Why::Malformed),
            ),
        ];
        let policy = policy();
        for (name, ways, (certificate, address), lines, expected) in table {
            let mut headers = http::HeaderMap::from_iter([(http::header::HOST, "a.example".parse().unwrap())]);
            headers.extend(lines.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())));
            let uri = http::Uri::from_static("/");
            let (target, host) = crate::observed::Target::read(&uri, &headers, http::Version::HTTP_11).unwrap();
            let peer = peer(Some(address), Some(certificate));
            let seen = Observed {
                method: &http::Method::GET,
                target,
                host,
                headers: &headers,
                peer: &peer,
                egress: None,
                storage: "US".parse().unwrap(),
                time: jiff::Timestamp::UNIX_EPOCH,
            };
            let proven = identify(&seen, &Trust::new(ways), &policy);
            let found = match proven.identity {
                Fact::Known(identity, source) => Ok((identity.to_string(), source)),
                Fact::Unknown(why) => Err(why),
                Fact::None => panic!("{name}: no caller is never a fact"),
            };
            assert_eq!(found, expected, "{name}");
        }
    }

    fn peer(address: Option<&str>, certificate: Option<&str>) -> crate::observed::Peer {
        crate::observed::Peer {
            address: address.map(|address| address.parse().unwrap()),
            transport: crate::decide::facts::Transport { tls: None, client_certificate: true, is_unix: false },
            certificate: certificate.map_or(Fact::Unknown(Why::Missing), |identity| {
                Fact::Known(identity.parse().unwrap(), Source::Certificate)
            }),
            until: certificate.map(|_| END),
        }
    }

    #[test]
    fn a_certificate_that_ended_while_its_connection_stood_proves_nothing() {
        let gateway = || TrustedPeers { identities: vec![GATEWAY.parse().unwrap()], ..TrustedPeers::default() };
        let certificates = || Way::Certificate { trust_domains: vec![] };
        let forwarded = || Way::ForwardedCertificate { trusted_peers: gateway() };
        let expired = Why::Flawed(Flaw::Expired);
        let table = [
            ("a caller", vec![certificates()], SYNC, Some(SYNC), expired),
            ("a gateway for itself", vec![certificates(), forwarded()], GATEWAY, Some(CARE), expired),
            ("a gateway that is known by its certificate", vec![forwarded()], GATEWAY, Some(CARE), Why::Unproven),
        ];
        let policy = policy();
        for (name, ways, certificate, expected, why) in table {
            let mut headers = http::HeaderMap::from_iter([(http::header::HOST, "a.example".parse().unwrap())]);
            if certificate == GATEWAY {
                headers.insert("x-forwarded-client-cert", format!("Hash=0;URI={CARE}").parse().unwrap());
            }
            let uri = http::Uri::from_static("/");
            let peer = peer(Some("127.0.0.1"), Some(certificate));
            let trust = Trust::new(ways);
            let at = |time| {
                let (target, host) = crate::observed::Target::read(&uri, &headers, http::Version::HTTP_11).unwrap();
                let seen = Observed {
                    method: &http::Method::GET,
                    target,
                    host,
                    headers: &headers,
                    peer: &peer,
                    egress: None,
                    storage: "US".parse().unwrap(),
                    time,
                };
                identify(&seen, &trust, &policy).identity
            };
            assert_eq!(at(END).known().map(ToString::to_string).as_deref(), expected, "{name}, to the last moment");
            let after = END + jiff::SignedDuration::from_nanos(1);
            assert_eq!(at(after), Fact::Unknown(why), "{name}, afterwards");
        }
    }

    /// When certificates end here.
    const END: jiff::Timestamp = jiff::Timestamp::UNIX_EPOCH;

    #[test]
    fn who_is_a_trusted_peer() {
        let peers = TrustedPeers {
            networks: vec!["127.0.0.2/32".parse().unwrap(), "10.1.0.0/16".parse().unwrap()],
            identities: vec![
                "spiffe://mesh.example/ns/*/sa/gateway".parse().unwrap(),
                "dns:edge.example".parse().unwrap(),
            ],
            ..TrustedPeers::default()
        };
        let table = [
            ("an address", Some("127.0.0.2"), None, true),
            ("an address within a network", Some("10.1.2.3"), None, true),
            ("another address", Some("127.0.0.1"), None, false),
            ("no address: a Unix socket", None, None, false),
            ("a SPIFFE ID", Some("127.0.0.1"), Some(GATEWAY), true),
            ("a SPIFFE ID that lacks a segment", None, Some("spiffe://mesh.example/sa/gateway"), false),
            ("a SPIFFE ID that goes on", None, Some("spiffe://mesh.example/ns/edge/sa/gateway/x"), false),
            ("another trust domain", None, Some("spiffe://mash.example/ns/edge/sa/gateway"), false),
            ("a DNS name", None, Some("dns:edge.example"), true),
            ("a DNS name below it", None, Some("dns:a.edge.example"), false),
        ];
        for (name, address, identity, expected) in table {
            assert_eq!(peers.include(&peer(address, identity), END), expected, "{name}");
        }
    }
}
