//! Which headers pass, and which the sidecar sets.

use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::header;

use crate::identify::token::is_bearer;

/// Headers that speak of one connection only (RFC 9110 section 7.6.1), whether or not `Connection`
/// names them.
const HOP_BY_HOP: [HeaderName; 10] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Headers that state where a request came from or who sent it, or would make it another request: another
/// method, another path. Believed from nobody, so set anew or not at all.
const NOT_BELIEVED: [&str; 11] = [
    "client-cert",
    "client-cert-chain",
    "forwarded",
    "via",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-url",
    "x-real-ip",
    "x-rewrite-url",
    "x-spiffe-id",
];

/// The same, by the beginning of the name: ours and its look-alike, those of proxies and meshes.
const NOT_BELIEVED_FROM: [&str; 5] = ["dpa-", "l5d-", "x-dpa-", "x-envoy-", "x-forwarded-"];

/// Headers that a sender cannot have removed by naming them in `Connection`: without them the request would
/// be another one, or its record would not be found.
const NOT_HOP_BY_HOP: [HeaderName; 5] = [
    header::HOST,
    header::CONTENT_LENGTH,
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("x-request-id"),
];

/// Takes out of a request what may not pass: hop-by-hop headers, those that `Connection` names, everything
/// that begins with `DPA-`, `X-Forwarded-` and the like, the identity headers of the settings, and what would make it
/// another request; also spelt with `_`, which some servers read as `-`.
///
/// `Expect` is answered by this side (RFC 9110 section 10.1.1), so it stops here.
pub fn clean_request(headers: &mut HeaderMap, identity_headers: &[HeaderName]) {
    remove_hop_by_hop(headers);
    remove(headers, |name| {
        name == header::EXPECT
            || NOT_BELIEVED_FROM.iter().any(|prefix| name.starts_with(prefix))
            || NOT_BELIEVED.contains(&name)
            || identity_headers.iter().any(|identity| identity.as_str().replace('_', "-") == name)
    });
}

/// Takes out the tokens that the sidecar reads. A value of another scheme is not ours, and passes, unless a token
/// stands beside it.
pub fn remove_tokens(headers: &mut HeaderMap) {
    if headers.get_all(header::AUTHORIZATION).iter().any(is_bearer) {
        headers.remove(header::AUTHORIZATION);
    }
}

/// Takes out of an answer what may not pass.
pub fn clean_response(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers);
    remove(headers, |name| name.starts_with("dpa-"));
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
            .filter(|name| !NOT_HOP_BY_HOP.contains(name))
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    remove(headers, |name| HOP_BY_HOP.iter().any(|hop| hop == name));
}

/// Removes the headers whose name, with `-` for `_`, is meant.
fn remove(headers: &mut HeaderMap, is_meant: impl Fn(&str) -> bool) {
    let is_meant = |name: &&HeaderName| match name.as_str() {
        name if name.contains('_') => is_meant(&name.replace('_', "-")),
        name => is_meant(name),
    };
    let meant: Vec<HeaderName> = headers.keys().filter(is_meant).cloned().collect();
    for name in meant {
        headers.remove(name);
    }
}

/// Sets a header, replacing what is there.
pub fn set(headers: &mut HeaderMap, name: HeaderName, value: Option<HeaderValue>) {
    match value {
        Some(value) => {
            headers.insert(name, value);
        }
        None => {
            headers.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes() {
        let table = [
            ("an ordinary header", "accept", "*/*", true),
            ("a hop-by-hop header", "keep-alive", "timeout=5", false),
            ("named in Connection", "x-hop", "1", false),
            ("our own", "dpa-context", "purpose=x", false),
            ("our own, spelt otherwise", "dpa_context", "purpose=x", false),
            ("one that only looks like ours", "dpapi", "1", true),
            ("an identity header", "x-caller", "spiffe://a/b", false),
            ("where it came from", "x-forwarded-for", "1.2.3.4", false),
            ("expect", "expect", "100-continue", false),
            ("a hop-by-hop header, spelt otherwise", "transfer_encoding", "chunked", false),
            ("an identity header that the settings spell with `_`", "x_login", "root", false),
            ("the same, spelt otherwise", "x-login", "root", false),
            ("an identity header, spelt otherwise", "x_caller", "spiffe://a/b", false),
            ("where it came from, spelt otherwise", "x_forwarded_for", "1.2.3.4", false),
            ("who sent it", "x-forwarded-user", "root", false),
            ("another method", "x-http-method-override", "DELETE", false),
            ("another path", "x-original-url", "/admin", false),
            ("named in Connection, and needed", "traceparent", "00-1-1-00", true),
        ];
        for (name, header, value, passes) in table {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static("a"));
            headers.insert(header::CONNECTION, HeaderValue::from_static("close, X-Hop,,bad name, traceparent, host"));
            headers.insert(HeaderName::from_static(header), HeaderValue::from_static(value));
            clean_request(&mut headers, &["x-caller", "x_login"].map(HeaderName::from_static));
            assert_eq!(headers.contains_key(header), passes, "{name}");
            assert!(!headers.contains_key(header::CONNECTION), "{name}");
            assert!(headers.contains_key(header::HOST), "{name}");
        }
    }
}
