//! Keys and signatures: Ed25519 (RFC 8032), with keys in PEM (RFC 8410). Checkpoints of the decision log and the
//! manifest of a policy are signed so.

use std::fmt;

use aws_lc_rs::digest;
use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::signature;
use aws_lc_rs::signature::Ed25519KeyPair;
use aws_lc_rs::signature::KeyPair as _;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject as _;

/// Why a key cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The file is no such PEM.
    #[error("there is no `{0}` in it: write one with `dpa-sidecar keygen`")]
    NotPem(&'static str),
    /// It is another kind of key.
    #[error("it is not an Ed25519 key: write one with `dpa-sidecar keygen`")]
    NotEd25519,
    /// There is no randomness.
    #[error("the system gives no randomness")]
    NoRandomness,
}

/// The id of a key: the first 16 hex digits of SHA-256 over the 32 bytes of its public half.
#[must_use]
pub fn key_id(public: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, public).as_ref().get(..8).unwrap_or_default())
}

/// SHA-256, in lower-case hex.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

/// One hex digit, in lower case.
#[must_use]
pub fn digit(nibble: u8) -> u8 {
    if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 }
}

/// Bytes in lower-case hex.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).map(char::from).collect()
}

/// Reads hex digits, two a byte.
#[must_use]
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(value(*high)? << 4 | value(*low)?)).collect()
}

/// Signs: the private half of a key pair.
pub struct Signer {
    pair: Ed25519KeyPair,
    id: String,
}

impl fmt::Debug for Signer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Signer {{ {} }}", self.id)
    }
}

impl Signer {
    /// Reads a private key: PEM, PKCS #8 (RFC 8410).
    ///
    /// # Errors
    ///
    /// [`KeyError`].
    pub fn read(pem: &[u8]) -> Result<Self, KeyError> {
        let key = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| KeyError::NotPem("PRIVATE KEY"))?;
        let der = key.secret_pkcs8_der();
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map_err(|_| KeyError::NotEd25519)?;
        let id = key_id(pair.public_key().as_ref());
        Ok(Self { pair, id })
    }

    /// The key's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The signature of these bytes, 64 bytes.
    #[must_use]
    pub fn signature(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }
}

/// Checks signatures: the public half of a key pair.
#[derive(Clone, Debug)]
pub struct Verifier {
    public: Vec<u8>,
    id: String,
}

/// The DER of an Ed25519 public key (RFC 8410 section 4) before its 32 bytes.
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

impl Verifier {
    /// Reads a public key: PEM, SubjectPublicKeyInfo (RFC 8410).
    ///
    /// # Errors
    ///
    /// [`KeyError`].
    pub fn read(pem: &[u8]) -> Result<Self, KeyError> {
        let key = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| KeyError::NotPem("PUBLIC KEY"))?;
        let public = key.as_ref().strip_prefix(&SPKI_PREFIX).filter(|bytes| bytes.len() == 32);
        let public = public.ok_or(KeyError::NotEd25519)?.to_vec();
        let id = key_id(&public);
        Ok(Self { public, id })
    }

    /// The key's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether this key made the signature of these bytes.
    #[must_use]
    pub fn is_signature(&self, message: &[u8], signature: &[u8]) -> bool {
        let key = signature::UnparsedPublicKey::new(&signature::ED25519, &self.public);
        key.verify(message, signature).is_ok()
    }
}

/// A new key pair.
#[derive(Debug)]
pub struct NewKey {
    /// The private half: PEM, PKCS #8.
    pub private: String,
    /// The public half: PEM, SubjectPublicKeyInfo.
    pub public: String,
    /// Its id.
    pub id: String,
}

/// Makes a key pair.
///
/// # Errors
///
/// [`KeyError::NoRandomness`].
pub fn generate() -> Result<NewKey, KeyError> {
    let pair = Ed25519KeyPair::generate().map_err(|_| KeyError::NoRandomness)?;
    let private = pair.to_pkcs8v1().map_err(|_| KeyError::NoRandomness)?;
    let public = pair.public_key().as_der().map_err(|_| KeyError::NoRandomness)?;
    Ok(NewKey {
        private: pem("PRIVATE KEY", private.as_ref()),
        public: pem("PUBLIC KEY", public.as_ref()),
        id: key_id(pair.public_key().as_ref()),
    })
}

/// RFC 7468.
fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| str::from_utf8(line).ok()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
