//! Keys of an issuer of tokens: a JWK Set (RFC 7517) as it was read, and the one key that a token needs.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED;
use aws_lc_rs::signature::ECDSA_P384_SHA384_FIXED;
use aws_lc_rs::signature::ED25519;
use aws_lc_rs::signature::ParsedPublicKey;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::decide::facts::Flaw;

/// How a token may be signed (RFC 7518 section 3.1, RFC 8037 section 3.1): with a private key only, so that
/// who can check a token cannot make one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// RSA PKCS #1 v1.5 with SHA-256.
    Rs256,
    /// RSA PKCS #1 v1.5 with SHA-384.
    Rs384,
    /// RSA PKCS #1 v1.5 with SHA-512.
    Rs512,
    /// RSA PSS with SHA-256.
    Ps256,
    /// RSA PSS with SHA-384.
    Ps384,
    /// RSA PSS with SHA-512.
    Ps512,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Es256,
        Self::Es384,
        Self::EdDsa,
    ];

    /// Its name in tokens and settings.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::EdDsa => "EdDSA",
        }
    }

    /// The one of this name, to the letter.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.as_str() == name)
    }

    fn of_library(self) -> jsonwebtoken::Algorithm {
        match self {
            Self::Rs256 => jsonwebtoken::Algorithm::RS256,
            Self::Rs384 => jsonwebtoken::Algorithm::RS384,
            Self::Rs512 => jsonwebtoken::Algorithm::RS512,
            Self::Ps256 => jsonwebtoken::Algorithm::PS256,
            Self::Ps384 => jsonwebtoken::Algorithm::PS384,
            Self::Ps512 => jsonwebtoken::Algorithm::PS512,
            Self::Es256 => jsonwebtoken::Algorithm::ES256,
            Self::Es384 => jsonwebtoken::Algorithm::ES384,
            Self::EdDsa => jsonwebtoken::Algorithm::EdDSA,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

impl FromStr for Algorithm {
    type Err = String;
    /// For settings: what is wrong, and on a second line what to write instead.
    fn from_str(text: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::as_str).join(", ");
        let shared = ["HS256", "HS384", "HS512"];
        match Self::named(text) {
            Some(algorithm) => Ok(algorithm),
            None if text.eq_ignore_ascii_case("none") => Err(format!(
                "`{text}` is no signature: anybody can write such a token\nwrite what the issuer signs with, of {}",
                known()
            )),
            None if shared.iter().any(|name| text.eq_ignore_ascii_case(name)) => Err(format!(
                "`{text}` signs with a shared secret: who can check such a token can make one\nlet the issuer sign with a private key, and write one of {}",
                known()
            )),
            None => Err(format!("`{text}` is not an algorithm of tokens here\nwrite one of {}", known())),
        }
    }
}

/// Most keys of a set. Issuers have two or three.
const MAX_KEYS: usize = 256;

/// Why a key set is refused. Nothing of it is in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// Not the form of RFC 7517 section 5, or a member twice.
    #[error("it is no JWK Set, a JSON object with a list of `keys` (line {line}, column {column})")]
    Malformed {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// Too many keys.
    #[error("it has more than {MAX_KEYS} keys")]
    TooMany,
    /// Nothing in it could ever verify a token.
    #[error(
        "none of its {count} keys can verify a token: public keys are needed, RSA of 2048 to 8192 bits, P-256, P-384 or Ed25519"
    )]
    NoneUsable {
        /// How many there are.
        count: usize,
    },
}

/// The keys of one issuer that can verify tokens.
#[derive(Debug, Default)]
pub struct KeySet {
    keys: Vec<Key>,
    passed_over: usize,
}

/// One key.
#[derive(Debug)]
pub struct Key {
    kid: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

impl Key {
    /// Whether this is the signature of the message. `signature` is base64url as in the token.
    pub(super) fn verifies(&self, message: &[u8], signature: &str, algorithm: Algorithm) -> bool {
        let verified = jsonwebtoken::crypto::verify(signature, message, &self.key, algorithm.of_library());
        self.algorithms.contains(&algorithm) && verified.unwrap_or(false)
    }
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Jwk>,
}

/// RFC 7517 section 4, RFC 7518 section 6, RFC 8037 section 2. What is not named here is ignored, as they say.
#[derive(Deserialize)]
struct Jwk {
    kty: Option<String>,
    r#use: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    kid: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
    d: Option<IgnoredAny>,
}

impl KeySet {
    /// Reads a JWK Set.
    ///
    /// Keys that cannot verify a token here are passed over and counted, as RFC 7517 section 5 wants it: of
    /// another type or curve, too short, for encryption, with a private part.
    ///
    /// # Errors
    ///
    /// [`KeySetError`].
    pub fn read(bytes: &[u8]) -> Result<Self, KeySetError> {
        let document: Document = serde_json::from_slice(bytes)
            .map_err(|error| KeySetError::Malformed { line: error.line(), column: error.column() })?;
        let count = document.keys.len();
        if count > MAX_KEYS {
            return Err(KeySetError::TooMany);
        }
        let keys: Vec<Key> = document.keys.into_iter().filter_map(usable).collect();
        if keys.is_empty() {
            return Err(KeySetError::NoneUsable { count });
        }
        Ok(Self { passed_over: count - keys.len(), keys })
    }

    /// How many keys can verify tokens.
    #[must_use]
    pub fn count(&self) -> usize {
        self.keys.len()
    }

    /// How many keys were passed over.
    #[must_use]
    pub fn passed_over(&self) -> usize {
        self.passed_over
    }

    /// The one key that a token with this header means.
    ///
    /// # Errors
    ///
    /// [`Flaw::UnknownKey`] if there is none, or without `kid` more than one; [`Flaw::WrongAlgorithm`] if the key
    /// of that `kid` is not for this algorithm.
    pub fn pick(&self, kid: Option<&str>, algorithm: Algorithm) -> Result<&Key, Flaw> {
        let named = |key: &&Key| kid.is_none() || key.kid.as_deref() == kid;
        let mut fitting = self.keys.iter().filter(named).filter(|key| key.algorithms.contains(&algorithm));
        match (fitting.next(), fitting.next()) {
            (Some(key), None) => Ok(key),
            (None, _) if kid.is_some() && self.keys.iter().any(|key| named(&key)) => Err(Flaw::WrongAlgorithm),
            (None, _) | (Some(_), Some(_)) => Err(Flaw::UnknownKey),
        }
    }

    /// Whether a newer set might have the key that this one lacks.
    #[must_use]
    pub fn lacks(&self, kid: Option<&str>, algorithm: Algorithm) -> bool {
        match kid {
            Some(_) => !self.keys.iter().any(|key| key.kid.as_deref() == kid),
            None => !self.keys.iter().any(|key| key.algorithms.contains(&algorithm)),
        }
    }
}

/// The key, if it can verify a token.
fn usable(jwk: Jwk) -> Option<Key> {
    let Jwk { kty, r#use, key_ops, alg, kid, crv, x, y, n, e, d } = jwk;
    let is_to_verify = r#use.is_none_or(|meant| meant == "sig")
        && key_ops.is_none_or(|meant| meant.iter().any(|operation| operation == "verify"));
    // Who holds a private key can sign: one that lies about in a published set is nobody's alone any more.
    if !is_to_verify || d.is_some() {
        return None;
    }
    let (mut algorithms, key) = match (kty.as_deref()?, crv.as_deref()) {
        ("RSA", None) => (
            vec![
                Algorithm::Rs256,
                Algorithm::Rs384,
                Algorithm::Rs512,
                Algorithm::Ps256,
                Algorithm::Ps384,
                Algorithm::Ps512,
            ],
            rsa(&n?, &e?)?,
        ),
        ("EC", Some("P-256")) => {
            let point = point(&x?, &y?, 32)?;
            ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &point).ok()?;
            (vec![Algorithm::Es256], DecodingKey::from_ec_der(&point))
        }
        ("EC", Some("P-384")) => {
            let point = point(&x?, &y?, 48)?;
            ParsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, &point).ok()?;
            (vec![Algorithm::Es384], DecodingKey::from_ec_der(&point))
        }
        ("OKP", Some("Ed25519")) => {
            let bytes = decoded(&x?).filter(|bytes| bytes.len() == 32)?;
            ParsedPublicKey::new(&ED25519, &bytes).ok()?;
            (vec![Algorithm::EdDsa], DecodingKey::from_ed_der(&bytes))
        }
        _ => return None,
    };
    if let Some(alg) = alg {
        algorithms.retain(|algorithm| algorithm.as_str() == alg);
    }
    (!algorithms.is_empty()).then_some(Key { kid, algorithms, key })
}

/// An uncompressed point (SEC 1 section 2.3.3): both coordinates at their full length.
fn point(x: &str, y: &str, length: usize) -> Option<Vec<u8>> {
    let coordinate = |text| decoded(text).filter(|bytes| bytes.len() == length);
    Some([vec![4], coordinate(x)?, coordinate(y)?].concat())
}

/// NIST SP 800-131A: 2048 bits at least. 8192 at most, since a longer one makes each check slow.
fn rsa(n: &str, e: &str) -> Option<DecodingKey> {
    let (n, e) = (decoded(n)?, decoded(e)?);
    let bits = n.len() * 8 - usize::try_from(n.first()?.leading_zeros()).ok()?;
    let is_odd = |bytes: &[u8]| bytes.last().is_some_and(|last| last % 2 == 1);
    let good = n.first() != Some(&0)
        && (2048..=8192).contains(&bits)
        && (1..=4).contains(&e.len())
        && e.first() != Some(&0)
        && e != [1]
        && is_odd(&n)
        && is_odd(&e);
    good.then(|| DecodingKey::from_rsa_raw_components(&n, &e))
}

/// base64url without padding, in its one canonical form (RFC 7515 section 2, RFC 4648 section 3.5).
pub(super) fn decoded(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}
