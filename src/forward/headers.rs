//! Which headers pass, and which the sidecar sets.

use std::fmt::Write as _;
use std::net::IpAddr;

use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Request;
use http::Version;
use http::header;
use http_body::Body;
use jiff::Timestamp;

use crate::establish::context::DPA_CONTEXT;
use crate::gate::DPA_DECISION_ID;
use crate::gate::Ids;
use crate::gate::TRACEPARENT;
use crate::gate::X_REQUEST_ID;
use crate::gate::id_value;
use crate::gate::only;
use crate::identify::TrustedPeers;
use crate::identify::forwarded::X_FORWARDED_CLIENT_CERT;
use crate::identify::token::is_bearer;
use crate::observed::Peer;

/// What the settings say about headers; the same for every request.
#[derive(Clone, Debug, Default)]
pub struct HeaderRules {
    /// Headers that name identities; they never pass.
    pub identity: Vec<HeaderName>,
    /// Whether `Authorization: Bearer` is for the sidecar alone, and stops here.
    pub keeps_tokens: bool,
    /// Headers that pass from some peers only.
    pub trusted: Vec<TrustedHeader>,
    /// Whether answers tell how long the sidecar took.
    pub server_timing: bool,
}

/// A header of the fate [`Fate::NotBelieved`] or [`Fate::Rewrites`] that passes if one of these peers sends it.
#[derive(Clone, Debug)]
pub struct TrustedHeader {
    /// Its name.
    pub name: HeaderName,
    /// Who may set it.
    pub peers: TrustedPeers,
}

/// What is known of a request whose headers are made anew.
#[derive(Clone, Copy, Debug)]
pub struct Proven<'r> {
    /// Who sent it.
    pub peer: &'r Peer,
    /// In which version of HTTP.
    pub version: Version,
    /// When it was seen.
    pub time: Timestamp,
    /// Its ids.
    pub ids: &'r Ids,
    /// `DPA-Context` as established.
    pub context: Option<&'r HeaderValue>,
}

/// What becomes of a header that a request brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on to the service.
    Passes,
    /// It is for the sidecar or for one connection alone.
    Stops,
    /// The sidecar says it itself, from what is proven.
    Set,
    /// It states where a request came from or who sent it: believed from nobody, unless the settings name a peer.
    NotBelieved,
    /// It would make it another request than the one that is decided on: another method, path or host. Removed,
    /// unless the settings name a peer.
    Rewrites,
}

/// Headers that speak of one connection only (RFC 9110 section 7.6.1), whether or not `Connection`
/// names them; and `Expect`, which this side answers (section 10.1.1).
const OF_THE_CONNECTION: [HeaderName; 11] = [
    header::CONNECTION,
    header::EXPECT,
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

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Where a request came from, by whom it was sent.
const NOT_BELIEVED: [&str; 9] = [
    "client-ip",
    "forwarded-for",
    "remote-addr",
    "remote-user",
    "true-client-ip",
    "x-cluster-client-ip",
    "x-forward-for",
    "x-originating-ip",
    "x-real-ip",
];

/// The same, by the beginning of the name: what proxies and meshes tell of callers and their certificates.
const NOT_BELIEVED_FROM: [&str; 27] = [
    "cf-client-",
    "cf-connecting-",
    "client-cert",
    "fastly-client-",
    "l5d-",
    "spiffe-",
    "ssl-client",
    "tls-client-",
    "wl-proxy-",
    "x-amzn-mtls-",
    "x-amzn-oidc-",
    "x-arr-",
    "x-auth-request-",
    "x-authenticated-",
    "x-client-",
    "x-endpoint-api-",
    "x-envoy-",
    "x-forwarded",
    "x-goog-authenticated-",
    "x-istio-",
    "x-ms-client-principal",
    "x-mtls-",
    "x-remote-",
    "x-spiffe",
    "x-ssl-",
    "x-svid",
    "x-tls-",
];

const REWRITES: [&str; 9] = [
    "method-override",
    "x-host",
    "x-http-destinationurl",
    "x-http-method",
    "x-http-method-override",
    "x-http-path-override",
    "x-method",
    "x-method-override",
    "x-override-url",
];

const REWRITES_FROM: [&str; 2] = ["x-original-", "x-rewrite-"];

/// Headers that a sender cannot have removed by naming them in `Connection`: without them the request would
/// be another one, or its record would not be found.
const NOT_HOP_BY_HOP: [HeaderName; 5] = [header::HOST, header::CONTENT_LENGTH, TRACEPARENT, TRACESTATE, X_REQUEST_ID];

/// What becomes of a header, by its name in small letters, and `-` for `_`, which some servers take for each other.
#[must_use]
pub fn fate(name: &str) -> Fate {
    if name.starts_with("dpa-")
        || name.starts_with("x-dpa-")
        || name == X_FORWARDED_CLIENT_CERT
        // As `HTTP_PROXY` it would tell a CGI program where to send its own requests.
        || name == "proxy"
        || is_of_the_connection(name)
    {
        Fate::Stops
    } else if matches!(name, "forwarded" | "via" | "x-forwarded-for" | "x-forwarded-host" | "x-forwarded-proto") {
        Fate::Set
    } else if is_of(name, &REWRITES, &REWRITES_FROM) {
        Fate::Rewrites
    } else if is_of(name, &NOT_BELIEVED, &NOT_BELIEVED_FROM) {
        Fate::NotBelieved
    } else {
        Fate::Passes
    }
}

/// Whether a name, in small letters, is one of [`OF_THE_CONNECTION`].
fn is_of_the_connection(name: &str) -> bool {
    // As texts: names compare with a text letter by letter, whatever their case.
    OF_THE_CONNECTION.iter().any(|known| known.as_str() == name)
}

/// Whether a name is one of these names, or begins with one of these beginnings.
///
/// Both are sorted, and no beginning begins another: so only the last one that is not behind the name can begin it.
fn is_of(name: &str, names: &[&str], beginnings: &[&str]) -> bool {
    let not_behind = beginnings.partition_point(|beginning| *beginning <= name);
    let beginning = beginnings.get(..not_behind).and_then(<[&str]>::last);
    beginning.is_some_and(|beginning| name.starts_with(beginning)) || names.binary_search(&name).is_ok()
}

/// Makes the headers of a request anew: takes out what may not pass, and sets what is proven, each once.
pub fn rebuild_request(headers: &mut HeaderMap, rules: &HeaderRules, proven: &Proven<'_>) {
    clean_request(headers, rules, proven);
    let Proven { peer, version, ids, context, time: _ } = proven;
    match context {
        Some(context) => drop(headers.insert(DPA_CONTEXT, (*context).clone())),
        None => drop(headers.remove(DPA_CONTEXT)),
    }
    headers.insert(DPA_DECISION_ID, id_value(ids.decision));
    if let Some(traceparent) = &ids.new_traceparent {
        headers.insert(TRACEPARENT, traceparent.clone());
        headers.remove(TRACESTATE);
    }
    if !only(headers, &X_REQUEST_ID).is_some_and(is_request_id) {
        headers.insert(X_REQUEST_ID, id_value(ids.request));
    }
    let scheme = if peer.transport.tls.is_some() { "https" } else { "http" };
    let host = headers.get(header::HOST).cloned();
    // On loopback it is a process beside this one, whose address says nothing of a caller.
    let address = peer.address.filter(|address| !address.to_canonical().is_loopback());
    if let Ok(forwarded) = HeaderValue::try_from(forwarded(address, host.as_ref(), scheme)) {
        headers.insert(header::FORWARDED, forwarded);
    }
    if let Some(address) = address.and_then(|address| HeaderValue::try_from(address.to_string()).ok()) {
        headers.insert(X_FORWARDED_FOR, address);
    }
    if let Some(host) = host {
        headers.insert(X_FORWARDED_HOST, host);
    }
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
    // RFC 9110 section 7.6.3: the version in which the request came. Earlier hops are their own word, and go.
    let via = match *version {
        Version::HTTP_10 => "1.0 dpa-sidecar",
        Version::HTTP_2 => "2.0 dpa-sidecar",
        _ => "1.1 dpa-sidecar",
    };
    headers.insert(header::VIA, HeaderValue::from_static(via));
}

/// RFC 7239 section 4. A peer on a Unix socket or on loopback has no address.
fn forwarded(address: Option<IpAddr>, host: Option<&HeaderValue>, scheme: &str) -> String {
    let mut text = String::with_capacity(96);
    let _infallible = match address {
        Some(IpAddr::V4(address)) => write!(text, "for={address};"),
        Some(IpAddr::V6(address)) => write!(text, "for=\"[{address}]\";"),
        None => Ok(()),
    };
    if let Some(host) = host.and_then(|host| host.to_str().ok()).filter(|host| !host.contains(['"', '\\'])) {
        // With a port or an address of version 6 it is no token.
        let quote = if host.contains([':', '[']) { "\"" } else { "" };
        let _infallible = write!(text, "host={quote}{host}{quote};");
    }
    text.push_str("proto=");
    text.push_str(scheme);
    text
}

/// A request id that is passed on: up to 128 of `A-Z a-z 0-9 - _ . :`.
fn is_request_id(value: &HeaderValue) -> bool {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':');
    (1..=128).contains(&value.len()) && value.as_bytes().iter().all(plain)
}

/// Takes out of a request what may not pass: see [`Fate`]; also what `Connection` names, the identity headers of the
/// settings, each of these spelt with `_`, and what is spelt with `_` to look like another. What it says of trailers is
/// said anew, since those pass.
fn clean_request(headers: &mut HeaderMap, rules: &HeaderRules, proven: &Proven<'_>) {
    let takes_trailers = takes_trailers(headers);
    let trailer = announced(headers, |name| may_trail_request(name, rules));
    remove_named_in_connection(headers);
    let HeaderRules { identity, keeps_tokens, trusted, server_timing: _ } = rules;
    let trusted = trusted.iter().filter(|header| header.peers.include(proven.peer, proven.time));
    let trusted: Vec<&HeaderName> = trusted.map(|header| &header.name).collect();
    remove(headers, &trusted, |name| {
        fate(name) != Fate::Passes || identity.iter().any(|identity| identity.as_str().replace('_', "-") == name)
    });
    remove_look_alikes(headers);
    if *keeps_tokens {
        remove_tokens(headers);
    }
    if takes_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    trailer.into_iter().for_each(|trailer| drop(headers.insert(header::TRAILER, trailer)));
}

/// Whether a request says that trailers of its answer are taken (RFC 9110 section 10.1.4).
fn takes_trailers(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::TE).into_iter();
    lines
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .any(|word| word.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

/// What `Trailer` may say of the trailers that pass. Behind a body of a known length there are none in HTTP/1.1.
fn announced(headers: &HeaderMap, may: impl Fn(&str) -> bool) -> Option<HeaderValue> {
    if !headers.contains_key(header::TRAILER) || headers.contains_key(header::CONTENT_LENGTH) {
        return None;
    }
    let lines = headers.get_all(header::TRAILER).into_iter();
    let names = lines
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(|name| may(&name.as_str().replace('_', "-")));
    let names: Vec<HeaderName> = names.collect();
    let text = names.iter().map(HeaderName::as_str).collect::<Vec<_>>().join(", ");
    HeaderValue::try_from(text).ok().filter(|value| !value.is_empty())
}

/// What no trailer may say, since whoever takes it for a header would read another message, another caller or another
/// answer (RFC 9110 section 6.5.1).
const NOT_IN_TRAILERS: [&str; 24] = [
    "age",
    "authorization",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "expires",
    "host",
    "location",
    "max-forwards",
    "pragma",
    "range",
    "retry-after",
    "set-cookie",
    "strict-transport-security",
    "vary",
    "warning",
    "www-authenticate",
];

/// The same, by the beginning of the name.
const NOT_IN_TRAILERS_FROM: [&str; 5] = ["accept", "access-control-", "if-", "proxy-", "sec-"];

/// Whether a trailer of a request may pass: as a header of this name would, and says nothing of the message, of who
/// sent it, or of where it came from.
fn may_trail_request(name: &str, rules: &HeaderRules) -> bool {
    fate(name) == Fate::Passes
        && !rules.identity.iter().any(|identity| identity.as_str().replace('_', "-") == name)
        && !is_of(name, &NOT_IN_TRAILERS, &NOT_IN_TRAILERS_FROM)
        && !is_of(name, &OF_THE_PROCESSOR, &OF_THE_PROCESSOR_FROM)
}

/// Whether a trailer of an answer may pass.
fn may_trail_answer(name: &str) -> bool {
    !is_of_sidecar_or_connection(name) && !is_of(name, &NOT_IN_TRAILERS, &NOT_IN_TRAILERS_FROM)
}

/// Takes out of the trailers of a request what may not pass; no peer is trusted with one.
pub fn clean_request_trailers(trailers: &mut HeaderMap, rules: &HeaderRules) {
    remove(trailers, &[], |name| !may_trail_request(name, rules));
}

/// Takes outer blanks from what a service says by HTTP/2: nobody may send them on there (RFC 9113 section 8.2.1), and in
/// HTTP/1.1 they are no part of a value.
pub fn trim(headers: &mut HeaderMap) {
    for value in headers.values_mut() {
        let trimmed = value.as_bytes().trim_ascii();
        if trimmed.len() < value.len()
            && let Ok(trimmed) = HeaderValue::from_bytes(trimmed)
        {
            *value = trimmed;
        }
    }
}

/// Takes out of the trailers of an answer what may not pass.
pub fn clean_answer_trailers(trailers: &mut HeaderMap) {
    trim(trailers);
    remove(trailers, &[], |name| !may_trail_answer(name));
}

/// Takes out what a server that reads `_` as `-` would take for another header: for one that describes the body, for
/// the id of the request, or for one that is there too.
fn remove_look_alikes(headers: &mut HeaderMap) {
    let is_look_alike = |name: &&HeaderName| {
        name.as_str().contains('_') && {
            let plain = name.as_str().replace('_', "-");
            plain.starts_with("content-") || X_REQUEST_ID == *plain || headers.contains_key(plain)
        }
    };
    let found: Vec<HeaderName> = headers.keys().filter(is_look_alike).cloned().collect();
    for name in found {
        headers.remove(name);
    }
}

/// Takes out the tokens that the sidecar reads. A value of another scheme is not ours, and passes, unless a token
/// stands beside it.
fn remove_tokens(headers: &mut HeaderMap) {
    if headers.get_all(header::AUTHORIZATION).iter().any(is_bearer) {
        headers.remove(header::AUTHORIZATION);
    }
}

/// Headers that follow a request through the processor's own systems, or tell where in them it began: they mean nothing
/// to another company. `baggage` may hold anything (W3C Baggage section 4).
const OF_THE_PROCESSOR: [&str; 19] = [
    "b3",
    "baggage",
    "from",
    "grpc-tags-bin",
    "grpc-trace-bin",
    "newrelic",
    "origin",
    "referer",
    "sentry-trace",
    "server-timing",
    "traceparent",
    "tracestate",
    "uber-trace-id",
    "x-amzn-trace-id",
    "x-cloud-trace-context",
    "x-correlation-id",
    "x-ot-span-context",
    "x-request-id",
    "x-trace-id",
];

/// The same, by the beginning of the name.
const OF_THE_PROCESSOR_FROM: [&str; 6] =
    ["elastic-apm-", "ot-tracer-", "uberctx-", "x-b3-", "x-datadog-", "x-newrelic-"];

/// Makes the headers of a request those for a subprocessor: it is told its own name, and nothing of where the request
/// comes from but that a proxy stands between (RFC 9110 section 7.6.3), which is not named.
pub fn rebuild_for_subprocessor(headers: &mut HeaderMap, rules: &HeaderRules, proven: &Proven<'_>, host: HeaderValue) {
    clean_request(headers, rules, proven);
    remove(headers, &[], |name| is_of(name, &OF_THE_PROCESSOR, &OF_THE_PROCESSOR_FROM));
    headers.insert(header::HOST, host);
    let via = if proven.version == Version::HTTP_2 { "2.0 proxy" } else { "1.1 proxy" };
    headers.insert(header::VIA, HeaderValue::from_static(via));
}

/// Whether an answer is coded for the connection in no way but in chunks.
///
/// What is left of any other coding (RFC 9112 section 7) would pass as the body, since its name stops here.
#[must_use]
pub fn is_at_most_chunked(headers: &HeaderMap) -> bool {
    !headers.contains_key(header::TRANSFER_ENCODING)
        || only(headers, &header::TRANSFER_ENCODING)
            .is_some_and(|coding| coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"))
}

/// Takes out of an answer what may not pass. Its `Via` stays as it is: a gateway may leave itself out of answers
/// (RFC 9110 section 7.6.3), and `DPA-Decision-Id` says that it was there.
pub fn clean_response(headers: &mut HeaderMap) {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        // The chunks counted (RFC 9112 section 6.3); with this length a longer body would be cut, and look whole.
        headers.remove(header::CONTENT_LENGTH);
    }
    let trailer = announced(headers, may_trail_answer);
    remove_named_in_connection(headers);
    remove(headers, &[], is_of_sidecar_or_connection);
    trailer.into_iter().for_each(|trailer| drop(headers.insert(header::TRAILER, trailer)));
}

/// Whether a field of an answer is the sidecar's to set, or for one connection alone.
fn is_of_sidecar_or_connection(name: &str) -> bool {
    name.starts_with("dpa-")
        || name.starts_with("x-dpa-")
        // It names a way around the sidecar (RFC 7838).
        || name == header::ALT_SVC.as_str()
        || is_of_the_connection(name)
}

/// Says in the head of a request by HTTP/1.1 what frames its body, and that trailers of the answer are taken. Whether
/// trailers of its own pass: those that it announces, behind chunks.
pub(super) fn frame<B: Body>(request: &mut Request<B>, is_upgrade: bool) -> bool {
    let is_chunked = !request.body().is_end_stream() && request.body().size_hint().exact().is_none();
    let headers = request.headers_mut();
    if is_chunked {
        // hyper frames a GET without a length as one without a body, unless it is told. HTTP/2 needs none.
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        headers.remove(header::CONTENT_LENGTH);
    } else {
        headers.remove(header::TRAILER);
    }
    if is_upgrade {
        headers.remove(header::TE);
    } else if headers.contains_key(header::TE) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
    }
    is_chunked && headers.contains_key(header::TRAILER)
}

fn remove_named_in_connection(headers: &mut HeaderMap) {
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
}

/// Removes the headers whose name, with `-` for `_`, is meant; not those that are kept, spelt as they are.
fn remove(headers: &mut HeaderMap, kept: &[&HeaderName], is_meant: impl Fn(&str) -> bool) {
    let is_meant = |name: &&HeaderName| match name.as_str() {
        text if text.contains('_') => is_meant(&text.replace('_', "-")),
        text => is_meant(text) && !kept.contains(name),
    };
    let meant: Vec<HeaderName> = headers.keys().filter(is_meant).cloned().collect();
    for name in meant {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::facts::Fact;
    use crate::decide::facts::Transport;
    use crate::decide::facts::Why;

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
            ("another host", "x-original-host", "admin.example", false),
            ("a certificate, as proxies tell of it", "ssl-client-verify", "SUCCESS", false),
            ("a certificate, as RFC 9440 tells of it", "client-cert", ":eA==:", false),
            ("one that this peer may set", "x-client-ip", "198.51.100.7", true),
            ("the same, spelt otherwise", "x_client_ip", "198.51.100.7", false),
            ("a length, spelt otherwise", "content_length", "7", false),
            ("a type, spelt otherwise", "content_type", "text/html", false),
            ("an id of the request, spelt otherwise", "x_request_id", "1", false),
            ("one that is there too, spelt otherwise", "x_there-too", "1", false),
            ("one that is not there", "x_tenant", "1", true),
            ("named in Connection, and needed", "traceparent", "00-1-1-00", true),
        ];
        let rules = HeaderRules {
            identity: ["x-caller", "x_login"].map(HeaderName::from_static).to_vec(),
            trusted: vec![TrustedHeader { name: HeaderName::from_static("x-client-ip"), peers: loopback() }],
            ..HeaderRules::default()
        };
        for (name, header, value, passes) in table {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static("a"));
            headers.insert("x-there-too", HeaderValue::from_static("1"));
            headers.insert(header::CONNECTION, HeaderValue::from_static("close, X-Hop,,bad name, traceparent, host"));
            headers.insert(HeaderName::from_static(header), HeaderValue::from_static(value));
            let ids = Ids::of(&headers, Timestamp::UNIX_EPOCH);
            let peer = peer("127.0.0.1");
            clean_request(&mut headers, &rules, &proven(&peer, &ids));
            assert_eq!(headers.contains_key(header), passes, "{name}");
            assert!(!headers.contains_key(header::CONNECTION), "{name}");
            assert!(headers.contains_key(header::HOST), "{name}");
        }
    }

    /// Each of these went on to the service.
    #[test]
    fn names_that_state_an_origin_or_another_request_passed() {
        let table = [
            (
                "who sent it, by its certificate",
                Fate::NotBelieved,
                "x-client-verify x-client-dn x-client-subject x-ssl-client x-ssl-cert ssl-client ssl-client-verify \
                 x-tls-client-cert tls-client-cert x-arr-clientcert x-mtls-client cf-client-cert wl-proxy-client-cert client-cert client-cert-chain",
            ),
            (
                "who sent it, by a mesh or by a proxy that asks people to log in",
                Fate::NotBelieved,
                "spiffe-id x-spiffe x-spiffe-id x-svid x-istio-attributes l5d-client-id x-auth-request-user remote-user \
                 x-goog-authenticated-user-email x-ms-client-principal x-ms-client-principal-id x-amzn-oidc-identity \
                 x-endpoint-api-userinfo x-remote-user \
                 x-forwarded-user x-authenticated-user",
            ),
            (
                "where it came from",
                Fate::NotBelieved,
                "fastly-client-ip cf-connecting-ip cf-connecting-ipv6 client-ip true-client-ip x-client-ip x-real-ip \
                 x-remote-addr remote-addr x-forwarded x-cluster-client-ip forwarded-for \
                 x-forward-for x-originating-ip x-envoy-external-address",
            ),
            (
                "another request",
                Fate::Rewrites,
                "x-original-uri x-original-path x-original-url x-original-forwarded-for x-rewrite-path x-rewrite-url \
                 x-override-url x-http-destinationurl x-http-method x-http-method-override x-method x-method-override \
                 x-http-path-override method-override x-host",
            ),
            ("another proxy", Fate::Stops, "proxy"),
            (
                "ordinary ones",
                Fate::Passes,
                "a accept cf-ray client clients content-type host l5 origin proxying ssl user-agent x x-api-key x-clients \
                 x-customer x-originals x-requested-with x-tenant x-ms-version x-methods zz",
            ),
        ];
        for (what, expected, names) in table {
            for name in names.split(' ') {
                assert_eq!(fate(name), expected, "{what}: {name}");
            }
        }
    }

    #[test]
    fn names_are_found_where_they_stand() {
        let lists = [
            (NOT_BELIEVED.as_slice(), NOT_BELIEVED_FROM.as_slice()),
            (&REWRITES, &REWRITES_FROM),
            (&OF_THE_PROCESSOR, &OF_THE_PROCESSOR_FROM),
            (&NOT_IN_TRAILERS, &NOT_IN_TRAILERS_FROM),
        ];
        for (names, beginnings) in lists {
            assert!(names.is_sorted() && beginnings.is_sorted(), "{names:?} {beginnings:?}");
            let one_begins_another = beginnings.windows(2).any(|pair| pair[1].starts_with(pair[0]));
            assert!(!one_begins_another, "{beginnings:?}");
            for name in names.iter().chain(beginnings) {
                assert!(is_of(name, names, beginnings), "{name}");
            }
        }
    }

    /// The sidecar said `127.0.0.1` of a process beside it, as somebody would who wants to be taken for one.
    #[test]
    fn the_address_of_a_neighbour_was_told_as_that_of_a_caller() {
        let table = [
            ("127.0.0.1", None),
            ("127.9.9.9", None),
            ("::1", None),
            ("::ffff:127.0.0.1", None),
            ("192.0.2.1", Some("192.0.2.1")),
            ("2001:db8::1", Some("2001:db8::1")),
        ];
        for (address, expected) in table {
            let mut headers = HeaderMap::from_iter([(X_FORWARDED_FOR, HeaderValue::from_static("127.0.0.1"))]);
            let (peer, ids) = (peer(address), Ids::of(&headers, Timestamp::UNIX_EPOCH));
            rebuild_request(&mut headers, &HeaderRules::default(), &proven(&peer, &ids));
            assert_eq!(headers.get(X_FORWARDED_FOR).map(|value| value.to_str().unwrap()), expected, "{address}");
            let forwarded = headers[header::FORWARDED].to_str().unwrap();
            assert_eq!(forwarded.starts_with("for="), expected.is_some(), "{address}: {forwarded}");
        }
    }

    fn loopback() -> TrustedPeers {
        TrustedPeers { networks: vec!["127.0.0.1/32".parse().unwrap()], ..TrustedPeers::default() }
    }

    fn peer(address: &str) -> Peer {
        Peer {
            address: Some(address.parse().unwrap()),
            transport: Transport { tls: None, client_certificate: false, is_unix: false },
            certificate: Fact::Unknown(Why::Missing),
            until: None,
        }
    }

    fn proven<'r>(peer: &'r Peer, ids: &'r Ids) -> Proven<'r> {
        Proven { peer, version: Version::HTTP_11, time: Timestamp::UNIX_EPOCH, ids, context: None }
    }

    #[test]
    fn a_peer_that_is_not_listed_cannot_set_what_another_may() {
        let name = HeaderName::from_static("x-client-ip");
        let rules = HeaderRules {
            trusted: vec![TrustedHeader { name: name.clone(), peers: loopback() }],
            ..HeaderRules::default()
        };
        for (address, passes) in [("127.0.0.1", true), ("127.0.0.2", false)] {
            let mut headers = HeaderMap::from_iter([(name.clone(), HeaderValue::from_static("198.51.100.7"))]);
            let (peer, ids) = (peer(address), Ids::of(&headers, Timestamp::UNIX_EPOCH));
            rebuild_request(&mut headers, &rules, &proven(&peer, &ids));
            assert_eq!(headers.contains_key(&name), passes, "{address}");
        }
    }

    #[test]
    fn forwarded_as_rfc_7239_writes_it() {
        let table = [
            (
                "an address and a name",
                Some("192.0.2.1"),
                Some("data.example"),
                "for=192.0.2.1;host=data.example;proto=http",
            ),
            ("a port", Some("192.0.2.1"), Some("a:80"), "for=192.0.2.1;host=\"a:80\";proto=http"),
            ("addresses of version 6", Some("::1"), Some("[::1]"), "for=\"[::1]\";host=\"[::1]\";proto=http"),
            ("a Unix socket", None, Some("a"), "host=a;proto=http"),
            ("a host that would end the quotes", None, Some("a\":b"), "proto=http"),
            ("nothing", None, None, "proto=http"),
        ];
        for (name, address, host, expected) in table {
            let host = host.map(|host| HeaderValue::from_str(host).unwrap());
            let address = address.map(|address| address.parse().unwrap());
            assert_eq!(forwarded(address, host.as_ref(), "http"), expected, "{name}");
        }
    }

    /// Only the first of two lines was looked at, and both went on.
    #[test]
    fn a_second_line_of_an_id_passed_unread() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let mut headers = HeaderMap::new();
        for value in ["good", "bad value"] {
            headers.append(X_REQUEST_ID, HeaderValue::from_static(value));
        }
        for value in [good, "spoofed"] {
            headers.append(TRACEPARENT, HeaderValue::from_static(value));
        }
        let (peer, ids) = (peer("127.0.0.1"), Ids::of(&headers, Timestamp::UNIX_EPOCH));
        rebuild_request(&mut headers, &HeaderRules::default(), &proven(&peer, &ids));
        assert_eq!(headers.get_all(X_REQUEST_ID).iter().collect::<Vec<_>>(), [&id_value(ids.request)]);
        assert_eq!(headers.get_all(TRACEPARENT).iter().collect::<Vec<_>>(), [ids.new_traceparent.as_ref().unwrap()]);
    }
}
