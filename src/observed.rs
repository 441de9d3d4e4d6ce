//! A request as seen on the wire, whichever door it came through: not yet believed.
//!
//! [`Target`] is the one canonical form that is matched, decided on and sent on. What could be read in
//! two ways is [`Unreadable`] and refused with 400.

use std::fmt::Write as _;
use std::net::IpAddr;

use http::HeaderMap;
use http::Method;
use http::Uri;
use http::Version;
use http::header;
use jiff::Timestamp;

use crate::decide::facts::Fact;
use crate::decide::facts::Flaw;
use crate::decide::facts::Transport;
use crate::decide::facts::Why;
use crate::policy::terms::Identity;
use crate::policy::terms::Location;

/// The other end of a connection, once it stands.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address; none on a Unix socket.
    pub address: Option<IpAddr>,
    /// What protects the connection.
    pub transport: Transport,
    /// Who its client certificate named when its chain was verified; [`Self::proven`] says whether it still holds.
    pub certificate: Fact<Identity>,
    /// When the first certificate of that chain ends; none: there is no certificate.
    pub until: Option<Timestamp>,
}

impl Peer {
    /// Who its client certificate names, as long as the whole chain holds: a connection may outlive it.
    #[must_use]
    pub fn proven(&self, time: Timestamp) -> Fact<Identity> {
        match self.until {
            Some(until) if until < time => Fact::Unknown(Why::Flawed(Flaw::Expired)),
            Some(_) | None => self.certificate.clone(),
        }
    }
}

/// Two ends of a request that goes out, as the settings name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Egress<'r> {
    /// The service, by its id among the callers; none: who sends it is proven as on any request.
    pub caller: Option<&'r str>,
    /// Where it goes, by its id among the subprocessors.
    pub recipient: &'r str,
}

/// A request as seen.
#[derive(Debug)]
pub struct Observed<'r> {
    /// The method.
    pub method: &'r Method,
    /// The canonical target.
    pub target: Target,
    /// The host it is for, in small letters, without its port.
    pub host: String,
    /// Its headers, nobody's word taken for them.
    pub headers: &'r HeaderMap,
    /// Who sent it.
    pub peer: &'r Peer,
    /// To whom the service sends it; none: it comes in, to the service.
    pub egress: Option<Egress<'r>>,
    /// Where the service keeps its data.
    pub storage: Location,
    /// When it was seen.
    pub time: Timestamp,
}

/// Why a request is refused with 400: it could be read in two ways, or in none.
///
/// The texts are constant: nothing of the request gets into an answer or a record through them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// RFC 9112 section 3.2.
    #[error("the request has no Host header")]
    HostMissing,
    /// RFC 9112 section 3.2.
    #[error("the request has more than one Host header")]
    HostTwice,
    /// RFC 3986 section 3.2.2.
    #[error("the Host header is no host name or address with an optional port")]
    HostMalformed,
    /// RFC 9112 section 3.2.2.
    #[error("the authority of the target differs from the Host header")]
    AuthorityDiffers,
    /// RFC 9110 section 4.2.4.
    #[error("the target holds user information")]
    Userinfo,
    /// RFC 9110 section 9.3.6: what follows would be for a tunnel, and there is none.
    #[error("the method is CONNECT")]
    Connect,
    /// RFC 9112 section 3.2: only origin form and absolute form are proxied.
    #[error("the target is neither a path nor an absolute URI")]
    TargetForm,
    /// RFC 3986 section 3.3 and 3.4.
    #[error("the target holds a byte that has to be percent-encoded")]
    TargetByte,
    /// RFC 3986 section 2.1.
    #[error("the target holds a `%` that two hex digits do not follow")]
    TargetEscape,
    /// A path that a server might split again.
    #[error("the path holds an encoded slash, backslash or control character")]
    PathEncoded,
    /// Decoders differ in what they make of it.
    #[error("the path is no UTF-8 once it is decoded")]
    PathEncoding,
    /// Some servers trim it.
    #[error("a segment of the path begins or ends with a blank")]
    PathBlank,
    /// RFC 3986 section 5.2.4.
    #[error("the path holds a `.` or `..` segment")]
    PathDots,
    /// Servers differ in whether they join the slashes.
    #[error("the path holds an empty segment (`//`)")]
    PathEmptySegment,
    /// Servers differ in whether they cut the segment there.
    #[error("the path holds a `;`")]
    PathSemicolon,
    /// RFC 9112 section 6.1.
    #[error("the Transfer-Encoding is something other than one `chunked`")]
    TransferEncoding,
    /// RFC 9112 section 6.3.
    #[error("the request has more than one Content-Length")]
    ContentLength,
    /// A parameter that a fact comes from.
    #[error("a query parameter that says what the request is about occurs twice or is not readable")]
    QueryParameter,
    /// Two header lines.
    #[error("the request has more than one DPA-Context header")]
    ContextTwice,
    /// RFC 9651.
    #[error("DPA-Context is no dictionary of tokens and strings, for example `customer=\"id\", purpose=name`")]
    ContextMalformed,
    /// A member twice.
    #[error("DPA-Context names a member twice")]
    ContextKeyTwice,
    /// A member nobody knows.
    #[error("DPA-Context has a member other than customer, purpose, instruction and request_ref")]
    ContextMember,
    /// A list of customers that is too long.
    #[error("DPA-Context names more than 16 customers")]
    ContextCustomers,
    /// Two sources of one fact.
    #[error("two of DPA-Context, the route and the claims of the caller speak of the same fact and differ")]
    Contradiction,
}

/// What the content type of a call of gRPC begins with.
pub const GRPC: &str = "application/grpc";

/// The canonical path and query of a request.
///
/// Percent-encoded unreserved characters are decoded once (RFC 3986 section 6.2.2.2), other escapes are in
/// capitals. No dot segments, empty segments, `;`, backslashes or encoded slashes in the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    text: String,
    path_length: usize,
    uri: Uri,
}

impl Target {
    /// Reads the target and the host, and checks what frames the message.
    ///
    /// # Errors
    ///
    /// See [`Unreadable`].
    pub fn read(uri: &Uri, headers: &HeaderMap, version: Version) -> Result<(Self, String), Unreadable> {
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(Unreadable::Userinfo);
        }
        let host = host(headers)?;
        if let Some(authority) = uri.authority() {
            if !uri.scheme_str().is_some_and(|scheme| matches!(scheme, "http" | "https")) {
                return Err(Unreadable::TargetForm);
            }
            if !authority.as_str().eq_ignore_ascii_case(host) {
                return Err(Unreadable::AuthorityDiffers);
            }
        }
        framing(headers, version)?;
        let target = Self::canonical(uri.path(), uri.query())?;
        let name = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
        let name = name.map_or(host, |(name, _)| name);
        // `a.example.` is the same host as `a.example` (RFC 1034 section 3.1).
        Ok((target, name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()))
    }

    fn canonical(path: &str, query: Option<&str>) -> Result<Self, Unreadable> {
        if !path.starts_with('/') {
            return Err(Unreadable::TargetForm);
        }
        let mut text = canonical_path(path)?;
        let path_length = text.len();
        if let Some(query) = query {
            text.push('?');
            canonical_part(query, Part::Query, &mut text)?;
        }
        let uri = Uri::try_from(text.as_str()).map_err(|_| Unreadable::TargetByte)?;
        Ok(Self { text, path_length, uri })
    }

    /// The target as it is sent on: nothing but what was matched.
    #[must_use]
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// The path and the query, as they are sent on.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The path.
    #[must_use]
    pub fn path(&self) -> &str {
        self.text.get(..self.path_length).unwrap_or_default()
    }

    /// The value of a query parameter, decoded; `None` if it does not occur.
    ///
    /// # Errors
    ///
    /// If it occurs twice, or is no text once decoded, or the query is split by `;` too, which some
    /// servers take for `&`.
    pub fn query_value(&self, name: &str) -> Result<Option<String>, Unreadable> {
        let query = self.text.get(self.path_length + 1..).unwrap_or_default();
        let mut found = None;
        for pair in query.split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            if pair.contains(';') {
                return Err(Unreadable::QueryParameter);
            }
            if decode(key, true)? != name {
                continue;
            }
            if found.is_some() {
                return Err(Unreadable::QueryParameter);
            }
            found = Some(decode(value, true)?);
        }
        Ok(found)
    }
}

/// The canonical form of a path.
///
/// # Errors
///
/// See [`Unreadable`].
pub fn canonical_path(path: &str) -> Result<String, Unreadable> {
    let mut text = String::with_capacity(path.len());
    canonical_part(path, Part::Path, &mut text)?;
    if text.contains("//") {
        return Err(Unreadable::PathEmptySegment);
    }
    let segments = || text.as_bytes().split(|byte| *byte == b'/');
    if segments().any(|segment| matches!(segment, b"." | b"..")) {
        return Err(Unreadable::PathDots);
    }
    if !text.as_bytes().contains(&b'%') {
        return Ok(text);
    }
    if segments().any(|segment| segment.ends_with(b"%20") || segment.starts_with(b"%20")) {
        return Err(Unreadable::PathBlank);
    }
    if decode(&text, false).is_err() {
        return Err(Unreadable::PathEncoding);
    }
    Ok(text)
}

/// Decodes a part of a canonical target once.
///
/// # Errors
///
/// If it is no UTF-8 once decoded.
pub fn decode(text: &str, is_form: bool) -> Result<String, Unreadable> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => match (bytes.next().and_then(hex), bytes.next().and_then(hex)) {
                (Some(high), Some(low)) => high * 16 + low,
                _ => return Err(Unreadable::TargetEscape),
            },
            b'+' if is_form => b' ',
            other => other,
        });
    }
    String::from_utf8(decoded).map_err(|_| Unreadable::QueryParameter)
}

#[derive(Clone, Copy, PartialEq)]
enum Part {
    Path,
    Query,
}

fn canonical_part(text: &str, part: Part, out: &mut String) -> Result<(), Unreadable> {
    // Most have nothing but these.
    let plain = text.bytes().take_while(|byte| *byte == b'/' || is_unreserved(*byte)).count();
    let (plain, rest) = text.split_at_checked(plain).unwrap_or(("", text));
    out.push_str(plain);
    let mut bytes = rest.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let (Some(high), Some(low)) = (bytes.next().and_then(hex), bytes.next().and_then(hex)) else {
                    return Err(Unreadable::TargetEscape);
                };
                let byte = high * 16 + low;
                if is_unreserved(byte) {
                    out.push(char::from(byte));
                } else if byte == 0
                    || (part == Part::Path && (byte == b'/' || byte == b'\\' || byte.is_ascii_control()))
                {
                    return Err(Unreadable::PathEncoded);
                } else {
                    let _infallible = write!(out, "%{byte:02X}");
                }
            }
            b';' if part == Part::Path => return Err(Unreadable::PathSemicolon),
            b'/' | b':' | b'@' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' => {
                out.push(char::from(byte));
            }
            b'?' if part == Part::Query => out.push('?'),
            byte if is_unreserved(byte) => out.push(char::from(byte)),
            _ => return Err(Unreadable::TargetByte),
        }
    }
    Ok(())
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn hex(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

/// Whether a request is a call of gRPC: it says so in its content type, or in one of them, since a service may read any.
#[must_use]
pub fn is_call(headers: &HeaderMap) -> bool {
    kinds_of_call(headers).next().is_some()
}

/// Whether it is one of gRPC itself, which has statuses in the head of an answer; `application/grpc-web` has them in
/// its body.
#[must_use]
pub fn is_plain_call(headers: &HeaderMap) -> bool {
    kinds_of_call(headers).any(|kind| kind.first().is_none_or(|next| b"+; \t".contains(next)))
}

/// What its content types say behind [`GRPC`].
fn kinds_of_call(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    headers.get_all(header::CONTENT_TYPE).iter().filter_map(|kind| {
        let (kind, rest) = kind.as_bytes().trim_ascii_start().split_at_checked(GRPC.len())?;
        kind.eq_ignore_ascii_case(GRPC.as_bytes()).then_some(rest)
    })
}

/// Whether a value begins or ends with a blank, which nobody may send on (RFC 9113 section 8.2.1). In HTTP/1.1 it is no
/// part of the value.
#[must_use]
pub fn is_malformed(headers: &HeaderMap) -> bool {
    let is_blank = |byte: Option<&u8>| byte.is_some_and(|byte| matches!(byte, b' ' | b'\t'));
    headers.values().map(|value| value.as_bytes()).any(|value| is_blank(value.first()) || is_blank(value.last()))
}

fn host(headers: &HeaderMap) -> Result<&str, Unreadable> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next().ok_or(Unreadable::HostMissing)?;
    if hosts.next().is_some() {
        return Err(Unreadable::HostTwice);
    }
    let host = host.to_str().map_err(|_| Unreadable::HostMalformed)?;
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or(Unreadable::HostMalformed)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| Unreadable::HostMalformed)?;
            ("v6", port)
        }
        None => host.find(':').map_or((host, ""), |colon| host.split_at(colon)),
    };
    let port_good = port.is_empty()
        || port.strip_prefix(':').is_some_and(|port| port.len() < 6 && port.bytes().all(|b| b.is_ascii_digit()));
    if name.is_empty() || !name.bytes().all(good) || !port_good {
        return Err(Unreadable::HostMalformed);
    }
    Ok(host)
}

/// What the HTTP library lets through although it frames a message in an unusual way.
fn framing(headers: &HeaderMap, version: Version) -> Result<(), Unreadable> {
    let mut encodings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(encoding) = encodings.next() {
        let is_chunked = encoding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
        if !is_chunked || encodings.next().is_some() || version < Version::HTTP_11 {
            return Err(Unreadable::TransferEncoding);
        }
    }
    if headers.get_all(header::CONTENT_LENGTH).iter().count() > 1 {
        return Err(Unreadable::ContentLength);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let table: [(&str, &str, Result<&str, Unreadable>); 28] = [
            ("a plain path", "/v1/customers/a", Ok("/v1/customers/a")),
            ("a query is kept", "/v1?a=b&c=d", Ok("/v1?a=b&c=d")),
            ("an empty query is kept", "/v1?", Ok("/v1?")),
            ("unreserved characters are decoded once", "/%76%31/%7euser", Ok("/v1/~user")),
            ("a second layer stays", "/%2576", Ok("/%2576")),
            ("other escapes are in capitals", "/caf%c3%a9", Ok("/caf%C3%A9")),
            ("a trailing slash is kept", "/v1/", Ok("/v1/")),
            ("three dots are a name", "/.../x", Ok("/.../x")),
            ("an encoded slash in the query is data", "/v1?a=%2f", Ok("/v1?a=%2F")),
            ("an encoded slash", "/v1%2fadmin", Err(Unreadable::PathEncoded)),
            ("an encoded backslash", "/v1%5cadmin", Err(Unreadable::PathEncoded)),
            ("a NUL", "/v1%00", Err(Unreadable::PathEncoded)),
            ("a NUL in the query", "/v1?a=%00", Err(Unreadable::PathEncoded)),
            ("a newline", "/v1%0aadmin", Err(Unreadable::PathEncoded)),
            ("a backslash", "/v1\\admin", Err(Unreadable::TargetByte)),
            ("a brace", "/v1/{x}", Err(Unreadable::TargetByte)),
            ("a quote", "/v1/\"x\"", Err(Unreadable::TargetByte)),
            ("dots", "/v1/../admin", Err(Unreadable::PathDots)),
            ("a dot at the end", "/v1/.", Err(Unreadable::PathDots)),
            ("encoded dots", "/v1/%2e%2E/admin", Err(Unreadable::PathDots)),
            ("half encoded dots", "/v1/.%2e", Err(Unreadable::PathDots)),
            ("an empty segment", "/v1//admin", Err(Unreadable::PathEmptySegment)),
            ("a path parameter", "/v1;a=b/admin", Err(Unreadable::PathSemicolon)),
            ("a bad escape", "/v1/%zz", Err(Unreadable::TargetEscape)),
            ("a blank at the end of a segment", "/admin%20", Err(Unreadable::PathBlank)),
            ("a blank within a segment", "/a%20b", Ok("/a%20b")),
            ("an overlong encoding", "/%C0%AE%C0%AE%C0%AFadmin", Err(Unreadable::PathEncoding)),
            ("a cut escape", "/v1/%2", Err(Unreadable::TargetEscape)),
        ];
        for (name, given, expected) in table {
            let (path, query) = given.split_once('?').map_or((given, None), |(path, query)| (path, Some(query)));
            let target = Target::canonical(path, query);
            assert_eq!(target.as_ref().map(Target::as_str).map_err(|error| *error), expected, "{name}");
        }
    }

    #[test]
    fn query_values() {
        let table = [
            ("there", "/?id=7c1e&x=1", Ok(Some("7c1e"))),
            ("not there", "/?x=1", Ok(None)),
            ("no query", "/", Ok(None)),
            ("the name encoded", "/?%69d=7c1e", Ok(Some("7c1e"))),
            ("the value encoded", "/?id=7%63%31e", Ok(Some("7c1e"))),
            ("twice", "/?id=1&id=2", Err(Unreadable::QueryParameter)),
            ("twice, once encoded", "/?id=1&i%64=2", Err(Unreadable::QueryParameter)),
            ("split by a semicolon", "/?x=1;id=2", Err(Unreadable::QueryParameter)),
        ];
        for (name, given, expected) in table {
            let (path, query) = given.split_once('?').map_or((given, None), |(path, query)| (path, Some(query)));
            let value = Target::canonical(path, query).and_then(|target| target.query_value("id"));
            assert_eq!(value.as_ref().map(Option::as_deref).map_err(|error| *error), expected, "{name}");
        }
    }

    #[test]
    fn hosts() {
        let table = [
            ("a name", "api.example", None, true),
            ("a port", "api.example:8080", None, true),
            ("an address", "[::1]:8080", None, true),
            ("no name", ":80", None, false),
            ("user information", "a@b", None, false),
            ("a path", "a/b", None, false),
            ("two", "a", Some("a"), false),
            ("a dot at the end", "api.example.", None, true),
        ];
        for (name, first, second, good) in table {
            let mut headers = HeaderMap::new();
            headers.append(header::HOST, first.parse().unwrap());
            if let Some(second) = second {
                headers.append(header::HOST, second.parse().unwrap());
            }
            assert_eq!(host(&headers).is_ok(), good, "{name}");
        }
    }
}
