//! What is believed about a request, each fact with its source, or why it is not known.

use schemars::JsonSchema;

use crate::policy::CustomerId;
use crate::policy::Party;
use crate::policy::PurposeId;
use crate::policy::SubprocessorId;
use crate::policy::TlsVersion;
use crate::policy::terms::DataCategory;
use crate::policy::terms::Identity;
use crate::policy::terms::Location;
use crate::policy::terms::Operation;

/// A fact: known, not named and not needed, or unknown. Never a default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact<T> {
    /// Believed.
    Known(T, Source),
    /// Not named, and no rule needs it.
    None,
    /// Needed, and not known.
    Unknown(Why),
}

impl<T> Fact<T> {
    /// The value, if it is known.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value, _) => Some(value),
            Self::None | Self::Unknown(_) => None,
        }
    }

    /// Where a known fact comes from.
    pub fn source(&self) -> Option<Source> {
        match self {
            Self::Known(_, source) => Some(*source),
            Self::None | Self::Unknown(_) => None,
        }
    }
}

/// Where a fact comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum Source {
    /// The client certificate of the connection.
    Certificate,
    /// A signed token.
    Token,
    /// A client certificate that a trusted peer speaks of (`X-Forwarded-Client-Cert`).
    ForwardedCertificate,
    /// An identity header of a trusted peer.
    Header,
    /// A segment of the path.
    Path,
    /// A parameter of the query.
    Query,
    /// `DPA-Context`.
    Context,
    /// A signed claim of the caller.
    Claim,
    /// A constant of the route.
    Route,
    /// The request method.
    Method,
    /// A constant of the settings.
    Settings,
    /// Stated by a test case.
    Case,
}

impl Source {
    /// The word in records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Token => "token",
            Self::ForwardedCertificate => "forwarded_certificate",
            Self::Header => "header",
            Self::Path => "path",
            Self::Query => "query",
            Self::Context => "context",
            Self::Claim => "claim",
            Self::Route => "route",
            Self::Method => "method",
            Self::Settings => "settings",
            Self::Case => "case",
        }
    }
}

/// Why a fact is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Nobody named it.
    Missing,
    /// The policy does not have the value. Only its length in bytes is kept: the value may be personal.
    NotInPolicy {
        /// Bytes.
        length: usize,
    },
    /// The value has not the form it needs.
    Malformed,
    /// It was claimed by somebody who is not trusted to.
    Unproven,
    /// It was claimed twice, and differently.
    Contradicted,
    /// There is a credential, and it proves nothing.
    Flawed(Flaw),
}

/// Why a certificate or a token proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum Flaw {
    /// More than one identity: two URI names in a certificate, or a claim or header twice.
    SeveralIdentities,
    /// A certificate of an authority, or one that may sign others (X.509-SVID section 4.1).
    NotALeaf,
    /// A SPIFFE ID of a trust domain that the settings do not list.
    ForeignTrustDomain,
    /// Longer than a token may be, or `X-Forwarded-Client-Cert`.
    TooLarge,
    /// An issuer that the settings do not list.
    UnknownIssuer,
    /// For another audience, or for none.
    WrongAudience,
    /// An algorithm that the settings do not list for this issuer, or none at all.
    WrongAlgorithm,
    /// A header that would choose its own key (`jku`, `jwk`, `x5u`, `x5c`), or one that must be understood (`crit`).
    ForbiddenHeader,
    /// No key of the issuer has this `kid`.
    UnknownKey,
    /// The signature is not the issuer's.
    BadSignature,
    /// Its time is over, or it does not say when that is.
    Expired,
    /// Its time has not begun.
    NotYetValid,
    /// A claim twice.
    DuplicateClaim,
}

impl Flaw {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::SeveralIdentities,
        Self::NotALeaf,
        Self::ForeignTrustDomain,
        Self::TooLarge,
        Self::UnknownIssuer,
        Self::WrongAudience,
        Self::WrongAlgorithm,
        Self::ForbiddenHeader,
        Self::UnknownKey,
        Self::BadSignature,
        Self::Expired,
        Self::NotYetValid,
        Self::DuplicateClaim,
    ];

    /// The word in records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SeveralIdentities => "several_identities",
            Self::NotALeaf => "not_a_leaf",
            Self::ForeignTrustDomain => "foreign_trust_domain",
            Self::TooLarge => "too_large",
            Self::UnknownIssuer => "unknown_issuer",
            Self::WrongAudience => "wrong_audience",
            Self::WrongAlgorithm => "wrong_algorithm",
            Self::ForbiddenHeader => "forbidden_header",
            Self::UnknownKey => "unknown_key",
            Self::BadSignature => "bad_signature",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::DuplicateClaim => "duplicate_claim",
        }
    }
}

impl Why {
    /// The word in records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::NotInPolicy { .. } => "not_in_policy",
            Self::Malformed => "malformed",
            Self::Unproven => "unproven",
            Self::Contradicted => "contradicted",
            Self::Flawed(flaw) => flaw.as_str(),
        }
    }
}

/// Who asks: what was proven, and who that is in the agreement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// What was proven; none: the settings say who it is.
    pub identity: Option<Identity>,
    /// Who that is; nobody: a third party.
    pub party: Option<Party>,
}

/// For whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Customers {
    /// One customer of the policy.
    One(CustomerId),
    /// More than one name, known or not.
    Several {
        /// The known ones, each once.
        known: Vec<CustomerId>,
        /// How many names the policy does not have.
        unknown: usize,
    },
}

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Somebody asks the service.
    Ingress,
    /// The service sends to this subprocessor.
    Egress(SubprocessorId),
    /// The service sends to somebody who is no subprocessor of the policy.
    EgressToNobody,
}

/// What protects the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// Its TLS version; none is cleartext.
    pub tls: Option<TlsVersion>,
    /// Whether a client certificate was proven on the connection itself.
    pub client_certificate: bool,
    /// Whether it is a Unix socket, which never leaves the machine.
    pub is_unix: bool,
}

/// Who carried a request, and what it said of its caller without being believed. No rule looks at it; it is recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// The peer, if its word is taken for who calls.
    pub by: Option<Carrier>,
    /// Whether a header named a caller, and came from a peer whose word is not taken for it.
    pub has_unproven: bool,
}

/// A peer whose word is taken for who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// Listed with this identity, which its own certificate proves.
    Identity(Identity),
    /// Listed with its address, which is never recorded.
    Address,
}

impl Carrier {
    /// The word in records: its identity, or `address`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Identity(identity) => identity.as_str(),
            Self::Address => "address",
        }
    }
}

/// Whether a route was found, and whether the agreement has to do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// No route has this path and method.
    Unmapped,
    /// A route with subscriber data.
    Within,
    /// A route declared `subscriber_data: false`.
    Outside,
}

/// Everything a decision needs.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// Which way.
    pub direction: Direction,
    /// How the connection is protected.
    pub transport: Transport,
    /// Who carried it, and what was not believed.
    pub carried: Carried,
    /// Who.
    pub caller: Fact<Caller>,
    /// Whether a route was found.
    pub scope: Scope,
    /// The path template of the route.
    pub route: Option<&'a str>,
    /// The place of that route in the settings; no rule asks for it.
    pub route_place: Option<usize>,
    /// For whom.
    pub customers: Fact<Customers>,
    /// What for.
    pub purpose: Fact<PurposeId>,
    /// Doing what.
    pub operation: Fact<Operation>,
    /// With which data.
    pub data_categories: &'a [DataCategory],
    /// About whom. `None`: the route establishes no subscriber.
    pub subscriber: Fact<String>,
    /// On which instruction: its place in the customer's list.
    pub instruction: Fact<usize>,
    /// On which request of a subscriber.
    pub request_ref: Fact<String>,
    /// Where the caller says it is; used only for callers whose entry does not say it.
    pub location: Fact<Location>,
    /// Where the service keeps its data.
    pub storage: Location,
}
