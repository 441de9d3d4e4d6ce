//! Checkpoints: signed statements of how far the log has come, which may be kept elsewhere.
//!
//! A checkpoint is a record `{"event":"dpa.checkpoint",…,"key_id":"K","signature":"S"}`. `S` is the Ed25519
//! signature (RFC 8032) over the line's bytes before `,"signature":`, in hex.

pub use crate::signature::Signer;
pub use crate::signature::Verifier;
pub use crate::signature::generate;
use crate::signature::hex;
use crate::signature::unhex;

impl Signer {
    /// Adds key id and signature to a checkpoint, an object without its closing brace.
    #[must_use]
    pub fn sign(&self, record: &[u8]) -> Vec<u8> {
        let mut signed = record.to_vec();
        signed.extend_from_slice(format!(",\"key_id\":\"{}\"", self.id()).as_bytes());
        let signature = self.signature(&signed);
        signed.extend_from_slice(format!(",\"signature\":\"{}\"", hex(&signature)).as_bytes());
        signed
    }
}

impl Verifier {
    /// Whether this key made the signature that stands at the end of a checkpoint, an object without its
    /// closing brace.
    #[must_use]
    pub fn is_signed(&self, record: &[u8]) -> bool {
        const KEY: &[u8] = b",\"signature\":\"";
        let parts = || {
            let rest = record.strip_suffix(b"\"")?;
            let (rest, digits) = rest.split_at_checked(rest.len().checked_sub(128)?)?;
            Some((rest.strip_suffix(KEY)?, unhex(str::from_utf8(digits).ok()?)?))
        };
        parts().is_some_and(|(signed, signature)| self.is_signature(signed, &signature))
    }
}
