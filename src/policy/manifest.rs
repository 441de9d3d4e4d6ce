//! The manifest of a policy: every file that it is made of, with its hash. The manifest is what is signed.
//!
//! It is checked before anything else is parsed: first the signature of its bytes, then the hash of each file.

use std::collections::HashSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::Serialize;

use super::Policy;
use crate::signature::Signer;
use crate::signature::Verifier;
use crate::signature::sha256;

/// What is added to the name of the policy's file: there its manifest is.
pub const MANIFEST: &str = ".manifest.json";

/// What is added to the name of the policy's file: there the signature of the manifest is, 64 bytes in base64.
pub const SIGNATURE: &str = ".manifest.sig";

/// The version of the form that this program reads and writes.
const VERSION: u64 = 1;

/// Why files are not what was signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsigned {
    /// The manifest or its signature is not there, or cannot be read.
    #[error("`{path}` cannot be read: {why}")]
    Unreadable {
        /// Its path.
        path: String,
        /// What the system says.
        why: String,
    },
    /// The signature file is cut, or something else.
    #[error("the signature is not one line of 88 characters in base64")]
    NoSignature,
    /// Another key, or another manifest.
    #[error(
        "the signature is not one of this manifest by the key {key_id}: it was made with another key, or the manifest was changed"
    )]
    WrongSignature {
        /// The key it should be made with.
        key_id: String,
    },
    /// What is signed is no manifest.
    #[error("what is signed is no manifest of this version: {0}")]
    NoManifest(String),
    /// A file that is not listed.
    #[error("`{0}` is not in the manifest")]
    Unlisted(String),
    /// A file with other content.
    #[error("`{name}` is not as it was signed: its SHA-256 is {sha256}")]
    Changed {
        /// Its name.
        name: String,
        /// SHA-256 of what it holds.
        sha256: String,
    },
    /// A file that is listed and is no part of the policy.
    #[error("`{0}` is in the manifest and not there, or no `customer_files` names it")]
    Missing(String),
    /// The policy says another name or revision than its manifest.
    #[error("the manifest is of {signed}, and the policy says {says}")]
    Another {
        /// What was signed.
        signed: String,
        /// What the policy says.
        says: String,
    },
}

/// The files that a policy was made of when it was signed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    version: u64,
    /// `metadata.name`.
    name: String,
    /// `metadata.revision`.
    revision: u64,
    files: Vec<File>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// From the folder of the policy.
    name: String,
    /// SHA-256 of its bytes, 64 hex digits in lower case.
    sha256: String,
}

impl Manifest {
    /// Of a policy that was compiled from these files; `files` are names and contents.
    #[must_use]
    pub fn of<'f>(policy: &Policy, files: impl Iterator<Item = (&'f str, &'f [u8])>) -> Self {
        let mut files: Vec<File> =
            files.map(|(name, bytes)| File { name: name.to_owned(), sha256: sha256(bytes) }).collect();
        files.sort();
        Self { version: VERSION, name: policy.name.to_string(), revision: policy.revision, files }
    }

    /// Its text, a JSON object, and the signature of that, one line in base64.
    #[must_use]
    pub fn signed(&self, signer: &Signer) -> (String, String) {
        // A struct of text and numbers always serializes.
        let text = serde_json::to_string_pretty(self).unwrap_or_default() + "\n";
        let signature = STANDARD.encode(signer.signature(text.as_bytes())) + "\n";
        (text, signature)
    }

    /// Reads a manifest whose signature is good: nothing of one that has another is looked at.
    ///
    /// # Errors
    ///
    /// [`Unsigned`].
    pub fn verified(text: &[u8], signature: &[u8], key: &Verifier) -> Result<Self, Unsigned> {
        let signature = STANDARD.decode(signature.trim_ascii()).ok().filter(|bytes| bytes.len() == 64);
        let signature = signature.ok_or(Unsigned::NoSignature)?;
        if !key.is_signature(text, &signature) {
            return Err(Unsigned::WrongSignature { key_id: key.id().to_owned() });
        }
        let manifest: Self = serde_json::from_slice(text).map_err(|error| Unsigned::NoManifest(error.to_string()))?;
        if manifest.version != VERSION {
            return Err(Unsigned::NoManifest(format!("version {}", manifest.version)));
        }
        let mut pairs = manifest.files.iter().zip(manifest.files.iter().skip(1));
        if let Some((_, file)) = pairs.find(|(one, next)| one.name >= next.name) {
            return Err(Unsigned::NoManifest(format!("`{}` stands twice, or out of order", file.name)));
        }
        Ok(manifest)
    }

    /// Whether a file is one of those that were signed, whatever is in it.
    ///
    /// # Errors
    ///
    /// [`Unsigned::Unlisted`].
    pub fn lists(&self, name: &str) -> Result<(), Unsigned> {
        self.file(name).map(drop)
    }

    /// Whether a file has the content that was signed.
    ///
    /// # Errors
    ///
    /// [`Unsigned::Unlisted`], [`Unsigned::Changed`].
    pub fn holds(&self, name: &str, bytes: &[u8]) -> Result<(), Unsigned> {
        let sha256 = sha256(bytes);
        if self.file(name)?.sha256 == sha256 {
            Ok(())
        } else {
            Err(Unsigned::Changed { name: name.to_owned(), sha256 })
        }
    }

    fn file(&self, name: &str) -> Result<&File, Unsigned> {
        let place = self.files.binary_search_by(|file| file.name.as_str().cmp(name));
        let listed = place.ok().and_then(|place| self.files.get(place));
        listed.ok_or_else(|| Unsigned::Unlisted(name.to_owned()))
    }

    /// Whether each file that is listed is one of these.
    ///
    /// # Errors
    ///
    /// [`Unsigned::Missing`].
    pub fn is_whole(&self, names: &[String]) -> Result<(), Unsigned> {
        let names: HashSet<&str> = names.iter().map(String::as_str).collect();
        let missing = self.files.iter().find(|file| !names.contains(file.name.as_str()));
        missing.map_or(Ok(()), |file| Err(Unsigned::Missing(file.name.clone())))
    }

    /// Whether the policy that was compiled is the one that was signed.
    ///
    /// # Errors
    ///
    /// [`Unsigned::Another`].
    pub fn is_of(&self, policy: &Policy) -> Result<(), Unsigned> {
        if self.name == policy.name.as_str() && self.revision == policy.revision {
            return Ok(());
        }
        Err(Unsigned::Another {
            signed: format!("{} revision {}", self.name, self.revision),
            says: format!("{} revision {}", policy.name, policy.revision),
        })
    }
}
