//! What the proxy door knows where the service sends to a subprocessor.

use http::HeaderValue;

use crate::observed;

/// The two ends of an egress listener, as the settings name them.
///
/// Names, not ids of a policy: each request looks them up in the policy that it is decided with.
#[derive(Clone, Debug)]
pub struct Egress {
    /// The service, by its id among the callers of the policy.
    pub caller: String,
    /// Where it sends, by its id among the subprocessors.
    pub recipient: String,
    /// The subprocessor's own host, in small letters and without a port: what routes are matched by.
    pub host: String,
    /// `Host` of what is sent on: the same, with its port if that is not the scheme's own.
    pub host_header: HeaderValue,
}

impl Egress {
    /// The two ends of a request.
    #[must_use]
    pub fn ends(&self) -> observed::Egress<'_> {
        observed::Egress { caller: Some(&self.caller), recipient: &self.recipient }
    }
}
