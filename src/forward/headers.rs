//! Which headers pass, and which the sidecar sets.

use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::header;

/// Headers that speak of one connection only (RFC 9110 section 7.6.1), whether or not `Connection`
/// names them.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Headers that state where a request came from; believed from nobody, so set anew or not at all.
const FORWARDING: [HeaderName; 7] = [
    header::FORWARDED,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-forwarded-client-cert"),
    HeaderName::from_static("x-real-ip"),
];

/// Takes out of a request what may not pass: hop-by-hop headers, those that `Connection` names,
/// everything that begins with `DPA-` (also spelt with `_`), the identity headers of the settings, and
/// what states where the request came from.
///
/// `Expect` is answered by this side (RFC 9110 section 10.1.1), so it stops here.
pub fn clean_request(headers: &mut HeaderMap, identity_headers: &[HeaderName]) {
    remove_hop_by_hop(headers);
    remove_dpa(headers);
    headers.remove(header::EXPECT);
    for name in FORWARDING.iter().chain(identity_headers) {
        headers.remove(name);
    }
}

/// Takes out of an answer what may not pass.
pub fn clean_response(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers);
    remove_dpa(headers);
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
    headers.remove(header::TRAILER);
}

/// Some servers read `_` in a header name as `-`, so both spellings are ours.
fn remove_dpa(headers: &mut HeaderMap) {
    let is_ours = |name: &&HeaderName| matches!(name.as_str().as_bytes(), [b'd', b'p', b'a', b'-' | b'_', ..]);
    let ours: Vec<HeaderName> = headers.keys().filter(is_ours).cloned().collect();
    for name in ours {
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
        ];
        for (name, header, value, passes) in table {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONNECTION, HeaderValue::from_static("close, X-Hop,,bad name"));
            headers.insert(HeaderName::from_static(header), HeaderValue::from_static(value));
            clean_request(&mut headers, &[HeaderName::from_static("x-caller")]);
            assert_eq!(headers.contains_key(header), passes, "{name}");
            assert!(!headers.contains_key(header::CONNECTION), "{name}");
        }
    }
}
