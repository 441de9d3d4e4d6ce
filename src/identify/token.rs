//! A signed token (JWT, RFC 7519) in `Authorization: Bearer`, and what its claims say.
//!
//! One form is taken and no other: a compact JWS (RFC 7515) of an issuer that the settings list, by an
//! algorithm that they list for it, with a key of that issuer's own set. Nothing in a token chooses its key
//! or its algorithm. Times are held against the time of the request.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::HeaderMap;
use http::HeaderValue;
use http::header;
use jiff::SignedDuration;
use jiff::Timestamp;
use serde::Deserialize;
use serde::Deserializer;
use serde::de;
use serde::de::IgnoredAny;

use super::Claims;
use super::Proven;
use super::key_set::Algorithm;
use super::key_set::KeySet;
use super::key_set::decoded;
use crate::decide::facts::Fact;
use crate::decide::facts::Flaw;
use crate::decide::facts::Source;
use crate::decide::facts::Why;
use crate::observed::Observed;
use crate::policy::terms::Identity;

/// How far the clock of an issuer may be ahead: a token that is used as soon as it is made has a `nbf` of
/// now. What has expired gets no time on top.
const NOT_BEFORE_LEEWAY: SignedDuration = SignedDuration::from_secs(30);

/// Most customers that a claim may name: as many as `DPA-Context` may.
const MAX_CUSTOMERS: usize = 16;

/// Headers of a token that would choose its key, or that change what is signed and have to be understood
/// (RFC 7515 sections 4.1.2 to 4.1.6 and 4.1.11, RFC 7797).
const FORBIDDEN_HEADERS: [&str; 6] = ["jku", "jwk", "x5u", "x5c", "crit", "b64"];

/// Claims with a meaning of their own (RFC 7519 section 4.1): none of them can be mapped.
pub const REGISTERED_CLAIMS: [&str; 7] = ["iss", "sub", "aud", "exp", "nbf", "iat", "jti"];

/// Issuers whose tokens are believed.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// Each issuer once.
    pub issuers: Vec<Issuer>,
    /// Longest token, in bytes.
    pub most_bytes: usize,
    /// Whether they are passed on to the service, proven or not.
    pub are_forwarded: bool,
}

/// One issuer.
#[derive(Clone, Debug)]
pub struct Issuer {
    /// `iss` of its tokens, to the letter.
    pub name: String,
    /// What `aud` has to name.
    pub audience: String,
    /// How it signs.
    pub algorithms: Vec<Algorithm>,
    /// What its claims are called.
    pub claims: ClaimNames,
    /// Its keys; swapped whole when they are renewed.
    pub keys: Arc<ArcSwap<KeySet>>,
}

/// Names of claims that say something about the request; none: it is not asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimNames {
    /// Text.
    pub purpose: Option<String>,
    /// Text, or a list of texts.
    pub customer: Option<String>,
    /// Text.
    pub instruction: Option<String>,
    /// Text: an ISO 3166 code.
    pub location: Option<String>,
}

/// What the header `Authorization` holds for us.
enum Bearer<'r> {
    /// Nothing, or something of another scheme.
    Nothing,
    /// One token.
    Token(&'r str),
    /// A token that no token looks like.
    Malformed,
    /// More than one line, one of them with a token.
    Several,
}

/// Whether a value of `Authorization` is of the scheme `Bearer` (RFC 6750 section 2.1), however it goes on.
#[must_use]
pub fn is_bearer(value: &HeaderValue) -> bool {
    // RFC 9110 section 5.6.2.
    let in_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let bytes = value.as_bytes().trim_ascii_start();
    let word = bytes.split(|byte| !in_word(byte)).next().unwrap_or_default();
    word.eq_ignore_ascii_case(b"bearer")
}

fn bearer(headers: &HeaderMap) -> Bearer<'_> {
    let values = headers.get_all(header::AUTHORIZATION);
    if !values.iter().any(is_bearer) {
        return Bearer::Nothing;
    }
    let mut values = values.iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Bearer::Several };
    match value.to_str().ok().and_then(|text| text.split_once(' ')) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Bearer::Token(token.trim_start_matches(' ')),
        Some(_) | None => Bearer::Malformed,
    }
}

/// Reads the token and takes its word, if all of it holds.
pub(super) fn identify(seen: &Observed<'_>, tokens: &Tokens) -> Proven {
    let verified = match bearer(seen.headers) {
        Bearer::Nothing => Err(Why::Missing),
        Bearer::Malformed => Err(Why::Malformed),
        Bearer::Several => Err(Why::Flawed(Flaw::SeveralIdentities)),
        Bearer::Token(text) => tokens.verified(text, seen.time),
    };
    match verified {
        Ok((identity, claims)) => Proven { claims, ..Proven::alone(Fact::Known(identity, Source::Token)) },
        Err(why) => Proven::alone(Fact::Unknown(why)),
    }
}

impl Tokens {
    /// The place of the issuer whose keys have to be renewed before this request's token can be verified.
    /// Nothing of the token is believed: an issuer and a key that it lacks are named, no more.
    #[must_use]
    pub fn lacks_key(&self, headers: &HeaderMap) -> Option<usize> {
        let Bearer::Token(text) = bearer(headers) else { return None };
        let parts = Parts::of(text, self.most_bytes).ok()?;
        let header = Header::read(parts.header).ok()?;
        let lacks = |issuer: &Issuer| issuer.keys.load().lacks(header.kid.as_deref(), header.algorithm);
        if !self.issuers.iter().any(lacks) {
            return None;
        }
        let payload = Object::read(parts.payload).ok()?;
        let (place, issuer) = self.issuer(&payload).ok()?;
        (issuer.algorithms.contains(&header.algorithm) && lacks(issuer)).then_some(place)
    }

    fn issuer(&self, payload: &Object) -> Result<(usize, &Issuer), Why> {
        let name = payload.text("iss")?.ok_or(Why::Flawed(Flaw::UnknownIssuer))?;
        let mut known = self.issuers.iter().enumerate();
        known.find(|(_, issuer)| issuer.name == name).ok_or(Why::Flawed(Flaw::UnknownIssuer))
    }

    fn verified(&self, text: &str, now: Timestamp) -> Result<(Identity, Claims), Why> {
        let parts = Parts::of(text, self.most_bytes)?;
        let Header { algorithm, kid } = Header::read(parts.header)?;
        let payload = Object::read(parts.payload)?;
        let (_, issuer) = self.issuer(&payload)?;
        if !issuer.algorithms.contains(&algorithm) {
            return Err(Why::Flawed(Flaw::WrongAlgorithm));
        }
        let keys = issuer.keys.load();
        let key = keys.pick(kid.as_deref(), algorithm).map_err(Why::Flawed)?;
        if !key.verifies(parts.message.as_bytes(), parts.signature, algorithm) {
            return Err(Why::Flawed(Flaw::BadSignature));
        }
        issuer.read(&payload, now)
    }
}

impl Issuer {
    /// What a payload says whose signature is this issuer's.
    fn read(&self, payload: &Object, now: Timestamp) -> Result<(Identity, Claims), Why> {
        // RFC 7519 section 4.1.4: not "on or after".
        if payload.moment("exp")?.is_none_or(|end| end <= now) {
            return Err(Why::Flawed(Flaw::Expired));
        }
        if payload.moment("nbf")?.is_some_and(|begin| begin.duration_since(now) > NOT_BEFORE_LEEWAY) {
            return Err(Why::Flawed(Flaw::NotYetValid));
        }
        if !payload.texts("aud")?.is_some_and(|audiences| audiences.contains(&self.audience.as_str())) {
            return Err(Why::Flawed(Flaw::WrongAudience));
        }
        let subject = payload.text("sub")?.filter(|subject| !subject.is_empty()).ok_or(Why::Malformed)?;
        let identity: Identity = format!("jwt:{}|{subject}", self.name).parse().map_err(|_| Why::Malformed)?;
        Ok((identity, self.claims.read(payload)?))
    }
}

impl ClaimNames {
    /// A claim of another type than was agreed spoils the whole token: to pass over it would be to pass over
    /// what it might contradict.
    fn read(&self, payload: &Object) -> Result<Claims, Why> {
        let text = |name: &Option<String>| match name {
            Some(name) => payload.text(name).map(|text| text.map(str::to_owned)),
            None => Ok(None),
        };
        let location = match text(&self.location)? {
            Some(text) => text.parse().map_or(Fact::Unknown(Why::Malformed), |place| Fact::Known(place, Source::Claim)),
            None => Fact::Unknown(Why::Missing),
        };
        let customers = match &self.customer {
            Some(name) => payload.texts(name)?,
            None => None,
        };
        if customers.as_ref().is_some_and(|names| names.len() > MAX_CUSTOMERS) {
            return Err(Why::Malformed);
        }
        Ok(Claims {
            customer: customers.map(|names| names.into_iter().map(str::to_owned).collect()),
            purpose: text(&self.purpose)?,
            instruction: text(&self.instruction)?,
            location,
        })
    }
}

/// The parts of a compact JWS (RFC 7515 section 7.1), the first two decoded.
struct Parts<'t> {
    message: &'t str,
    header: &'t str,
    payload: &'t str,
    signature: &'t str,
}

impl<'t> Parts<'t> {
    fn of(text: &'t str, most_bytes: usize) -> Result<Self, Why> {
        if text.len() > most_bytes {
            return Err(Why::Flawed(Flaw::TooLarge));
        }
        let (message, signature) = text.rsplit_once('.').ok_or(Why::Malformed)?;
        let (header, payload) = message.split_once('.').ok_or(Why::Malformed)?;
        // More dots, and the five parts of a JWE, do not get past this; nor does padding.
        if payload.contains('.') || decoded(signature).is_none() {
            return Err(Why::Malformed);
        }
        Ok(Self { message, header, payload, signature })
    }
}

/// What counts of a token's header.
struct Header {
    algorithm: Algorithm,
    kid: Option<String>,
}

impl Header {
    fn read(part: &str) -> Result<Self, Why> {
        let object = Object::read(part)?;
        if FORBIDDEN_HEADERS.iter().any(|name| object.0.contains_key(*name)) {
            return Err(Why::Flawed(Flaw::ForbiddenHeader));
        }
        // Of encrypted and of compressed tokens (RFC 7516 sections 4.1.2 and 4.1.3).
        if object.0.contains_key("enc") || object.0.contains_key("zip") {
            return Err(Why::Malformed);
        }
        // A token that was made for something else proves nothing here (RFC 8725 section 3.11).
        let kind = object.text("typ")?.map(str::to_ascii_lowercase);
        let kind = kind.as_deref().map(|kind| kind.strip_prefix("application/").unwrap_or(kind));
        if !matches!(kind, None | Some("jwt" | "at+jwt")) {
            return Err(Why::Malformed);
        }
        let algorithm = object.text("alg")?.and_then(Algorithm::named).ok_or(Why::Flawed(Flaw::WrongAlgorithm))?;
        Ok(Self { algorithm, kid: object.text("kid")?.map(str::to_owned) })
    }
}

/// The members of a JSON object, no name twice.
struct Object(BTreeMap<String, Member>);

/// A value, as far as anything here needs it.
enum Member {
    Text(String),
    Moment(Timestamp),
    Texts(Vec<String>),
    Other,
}

impl Object {
    fn read(part: &str) -> Result<Self, Why> {
        let bytes = decoded(part).ok_or(Why::Malformed)?;
        // The JSON library does not look at the bytes of values that it passes over.
        let text = std::str::from_utf8(&bytes).map_err(|_| Why::Malformed)?;
        let Members { members, is_twice } = serde_json::from_str(text).map_err(|_| Why::Malformed)?;
        if is_twice { Err(Why::Flawed(Flaw::DuplicateClaim)) } else { Ok(Self(members)) }
    }

    fn text(&self, name: &str) -> Result<Option<&str>, Why> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Member::Text(text)) => Ok(Some(text)),
            Some(Member::Moment(_) | Member::Texts(_) | Member::Other) => Err(Why::Malformed),
        }
    }

    /// One text or a list of them.
    fn texts(&self, name: &str) -> Result<Option<Vec<&str>>, Why> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Member::Text(text)) => Ok(Some(vec![text])),
            Some(Member::Texts(texts)) => {
                let mut distinct: Vec<&str> = Vec::new();
                for text in texts {
                    if !distinct.contains(&text.as_str()) {
                        distinct.push(text);
                    }
                }
                Ok(Some(distinct))
            }
            Some(Member::Moment(_) | Member::Other) => Err(Why::Malformed),
        }
    }

    fn moment(&self, name: &str) -> Result<Option<Timestamp>, Why> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Member::Moment(moment)) => Ok(Some(*moment)),
            Some(Member::Text(_) | Member::Texts(_) | Member::Other) => Err(Why::Malformed),
        }
    }
}

struct Members {
    members: BTreeMap<String, Member>,
    is_twice: bool,
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> de::Visitor<'de> for Each {
            type Value = Members;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut found = Members { members: BTreeMap::new(), is_twice: false };
                while let Some((name, member)) = map.next_entry::<String, Member>()? {
                    match found.members.entry(name) {
                        Entry::Vacant(place) => drop(place.insert(member)),
                        Entry::Occupied(_) => found.is_twice = true,
                    }
                }
                Ok(found)
            }
        }
        deserializer.deserialize_map(Each)
    }
}

/// A moment of RFC 7519 section 2 (`NumericDate`), in the years that dates here have. One beyond them, such
/// as one in milliseconds, is no moment.
fn moment(seconds: Option<i64>) -> Member {
    seconds.and_then(|seconds| Timestamp::from_second(seconds).ok()).map_or(Member::Other, Member::Moment)
}

impl<'de> Deserialize<'de> for Member {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> de::Visitor<'de> for Any {
            type Value = Member;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a value")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Member, E> {
                Ok(Member::Text(text.to_owned()))
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Member, E> {
                Ok(moment(Some(number)))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Member, E> {
                Ok(moment(i64::try_from(number).ok()))
            }
            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Member, E> {
                let since = SignedDuration::try_from_secs_f64(number).ok();
                let moment = since.and_then(|since| Timestamp::from_duration(since).ok());
                Ok(moment.map_or(Member::Other, Member::Moment))
            }
            fn visit_bool<E: de::Error>(self, _: bool) -> Result<Member, E> {
                Ok(Member::Other)
            }
            fn visit_unit<E: de::Error>(self) -> Result<Member, E> {
                Ok(Member::Other)
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Member, A::Error> {
                let mut texts = Some(Vec::new());
                while let Some(Element(text)) = seq.next_element()? {
                    match (text, &mut texts) {
                        (Some(text), Some(texts)) => texts.push(text),
                        (None, _) => texts = None,
                        (Some(_), None) => {}
                    }
                }
                Ok(texts.map_or(Member::Other, Member::Texts))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Member, A::Error> {
                pass_over_map(map).map(|()| Member::Other)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// An element of a list: text, or nothing that anybody needs.
struct Element(Option<String>);

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> de::Visitor<'de> for Any {
            type Value = Element;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a value")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Element, E> {
                Ok(Element(Some(text.to_owned())))
            }
            fn visit_i64<E: de::Error>(self, _: i64) -> Result<Element, E> {
                Ok(Element(None))
            }
            fn visit_u64<E: de::Error>(self, _: u64) -> Result<Element, E> {
                Ok(Element(None))
            }
            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Element, E> {
                Ok(Element(None))
            }
            fn visit_bool<E: de::Error>(self, _: bool) -> Result<Element, E> {
                Ok(Element(None))
            }
            fn visit_unit<E: de::Error>(self) -> Result<Element, E> {
                Ok(Element(None))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Element, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Element(None))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Element, A::Error> {
                pass_over_map(map).map(|()| Element(None))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// Nesting costs the JSON library no stack here, however deep it is.
fn pass_over_map<'de, A: de::MapAccess<'de>>(mut map: A) -> Result<(), A::Error> {
    while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
    Ok(())
}
