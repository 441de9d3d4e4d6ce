//! The certificate of a caller, as a trusted proxy tells of it in `X-Forwarded-Client-Cert`.
//!
//! The format is Envoy's: elements with `,` between them, one for each proxy on the way, the nearest last; in an
//! element pairs `Key=value` with `;` between them. A value may stand in double quotes, where `\` takes the next
//! byte as it is; a value with `,`, `;`, `=` or `"` has to. The whole value has to have this form, so that there
//! is one way only to tell its last element from what a caller may have written before it.

use http::HeaderName;

use super::TrustedPeers;
use super::certificate;
use crate::decide::facts::Fact;
use crate::decide::facts::Flaw;
use crate::decide::facts::Source;
use crate::decide::facts::Why;
use crate::observed::Observed;
use crate::policy::terms::Identity;

/// `X-Forwarded-Client-Cert`.
pub const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Most bytes that are read: certificates with their chains, percent-encoded, of a few proxies.
const MOST_BYTES: usize = 32 * 1024;

/// Most proxies on the way.
const MOST_ELEMENTS: usize = 16;

/// Reads the header, if exactly one stands there and the peer may speak for others.
///
/// Two lines may have been written by two hands, and nobody can tell which came first: they are
/// [`Why::Contradicted`], not joined as RFC 9110 section 5.3 would allow.
pub(super) fn identify(seen: &Observed<'_>, trusted_peers: &TrustedPeers) -> Fact<Identity> {
    let mut values = seen.headers.get_all(X_FORWARDED_CLIENT_CERT).iter();
    let Some(value) = values.next() else { return Fact::Unknown(Why::Missing) };
    if !trusted_peers.include(seen.peer, seen.time) {
        return Fact::Unknown(Why::Unproven);
    }
    if values.next().is_some() {
        return Fact::Unknown(Why::Contradicted);
    }
    match caller(value.as_bytes(), trusted_peers) {
        Ok(identity) => Fact::Known(identity, Source::ForwardedCertificate),
        Err(why) => Fact::Unknown(why),
    }
}

/// Who calls, from the value of the header.
///
/// The last element was written by the peer itself. One further to the left counts only if the certificate to its
/// right is that of a trusted peer, which then wrote it. A trusted peer with nothing to its left calls for itself.
///
/// # Errors
///
/// Why the value names nobody.
pub fn caller(value: &[u8], trusted_peers: &TrustedPeers) -> Result<Identity, Why> {
    let mut elements = elements(value)?.into_iter().rev();
    let mut caller = elements.next().ok_or(Why::Malformed)?.identity()?;
    for element in elements {
        if !trusted_peers.name(&caller) {
            break;
        }
        caller = element.identity()?;
    }
    Ok(caller)
}

/// What one element says of a certificate, as far as it may name a caller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Element {
    /// Its URI names (`URI`), without empty ones.
    pub uris: Vec<Vec<u8>>,
    /// Its DNS names (`DNS`), without empty ones.
    pub names: Vec<Vec<u8>>,
}

impl Element {
    /// Who that is, as if the certificate were that of the connection.
    ///
    /// # Errors
    ///
    /// Why it names nobody. Without any name the element is [`Why::Malformed`]: the proxy was there to name somebody.
    pub fn identity(&self) -> Result<Identity, Why> {
        certificate::named(&self.uris, &self.names).map_err(|why| match why {
            Why::Missing => Why::Malformed,
            Why::Malformed | Why::Unproven | Why::Contradicted | Why::NotInPolicy { .. } | Why::Flawed(_) => why,
        })
    }
}

/// The elements of a value, as they stand.
///
/// # Errors
///
/// [`Why::Malformed`] if any of it has another form, [`Why::Flawed`] if it is too long.
pub fn elements(value: &[u8]) -> Result<Vec<Element>, Why> {
    if value.len() > MOST_BYTES {
        return Err(Why::Flawed(Flaw::TooLarge));
    }
    let mut reader = Reader { rest: value };
    let mut elements = Vec::new();
    let mut element = Element::default();
    loop {
        let (key, value) = (reader.key()?, reader.value()?);
        match key {
            Key::Uri if !value.is_empty() => element.uris.push(value),
            Key::Dns if !value.is_empty() => element.names.push(value),
            // Envoy writes `URI=` for a certificate without one.
            Key::Uri | Key::Dns | Key::Other => {}
        }
        match reader.byte() {
            Some(b';') => {}
            Some(b',') if elements.len() + 1 < MOST_ELEMENTS => elements.push(std::mem::take(&mut element)),
            Some(b',') => return Err(Why::Flawed(Flaw::TooLarge)),
            Some(_) => return Err(Why::Malformed),
            None => {
                elements.push(element);
                return Ok(elements);
            }
        }
    }
}

/// What a pair is about.
enum Key {
    Uri,
    Dns,
    /// `By`, `Hash`, `Cert`, `Chain`, `Subject`: they name no caller.
    Other,
}

/// What is left of a value.
struct Reader<'v> {
    rest: &'v [u8],
}

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*byte)
    }

    /// Blanks around a pair are passed over (RFC 9110 section 5.6.1 has them around elements).
    fn blanks(&mut self) {
        while let [b' ' | b'\t', rest @ ..] = self.rest {
            self.rest = rest;
        }
    }

    /// A key and its `=`. Keys have no case here, so that nobody reads another spelling otherwise.
    fn key(&mut self) -> Result<Key, Why> {
        self.blanks();
        let mut key = Vec::new();
        loop {
            match self.byte() {
                Some(b'=') => break,
                Some(letter) if letter.is_ascii_alphabetic() && key.len() < 8 => key.push(letter.to_ascii_lowercase()),
                Some(_) | None => return Err(Why::Malformed),
            }
        }
        match key.as_slice() {
            b"uri" => Ok(Key::Uri),
            b"dns" => Ok(Key::Dns),
            b"by" | b"hash" | b"cert" | b"chain" | b"subject" => Ok(Key::Other),
            _ => Err(Why::Malformed),
        }
    }

    fn value(&mut self) -> Result<Vec<u8>, Why> {
        let mut value = Vec::new();
        if let [b'"', rest @ ..] = self.rest {
            self.rest = rest;
            loop {
                match self.byte().ok_or(Why::Malformed)? {
                    b'"' => break,
                    b'\\' => value.push(self.byte().ok_or(Why::Malformed)?),
                    byte => value.push(byte),
                }
            }
        } else {
            while let [byte, rest @ ..] = self.rest {
                match byte {
                    b',' | b';' | b' ' | b'\t' => break,
                    b'"' | b'=' | b'\\' => return Err(Why::Malformed),
                    byte => value.push(*byte),
                }
                self.rest = rest;
            }
        }
        self.blanks();
        Ok(value)
    }
}
