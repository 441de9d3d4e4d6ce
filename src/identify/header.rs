//! An identity that a trusted peer asserts in a header.

use http::HeaderName;

use super::TrustedPeers;
use super::certificate;
use crate::decide::facts::Fact;
use crate::decide::facts::Source;
use crate::decide::facts::Why;
use crate::observed::Observed;
use crate::policy::terms::Identity;

/// Reads the header, if exactly one stands there and the peer may assert it.
pub(super) fn identify(seen: &Observed<'_>, name: &HeaderName, trusted_peers: &TrustedPeers) -> Fact<Identity> {
    let mut values = seen.headers.get_all(name).iter();
    let Some(value) = values.next() else { return Fact::Unknown(Why::Missing) };
    if !trusted_peers.include(seen.peer, seen.time) {
        return Fact::Unknown(Why::Unproven);
    }
    if values.next().is_some() {
        return Fact::Unknown(Why::Contradicted);
    }
    match value.to_str().ok().and_then(certificate::caller) {
        Some(identity) => Fact::Known(identity, Source::Header),
        None => Fact::Unknown(Why::Malformed),
    }
}
