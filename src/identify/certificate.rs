//! The identity in a client certificate: one of the names of its leaf, once its chain is verified.
//!
//! A SPIFFE ID goes by the rules for leaves of X.509-SVID (sections 2, 3.1, 4 and 5.2). The common name is
//! never read.

use std::str::FromStr;

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::extensions::ParsedExtension;
use x509_parser::extensions::X509Extension;
use x509_parser::oid_registry::OID_X509_EXT_BASIC_CONSTRAINTS;
use x509_parser::oid_registry::OID_X509_EXT_KEY_USAGE;
use x509_parser::oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME;
use x509_parser::oid_registry::Oid;
use x509_parser::prelude::FromDer as _;

use crate::decide::facts::Fact;
use crate::decide::facts::Flaw;
use crate::decide::facts::Source;
use crate::decide::facts::Why;
use crate::policy::terms::Identity;

/// Tags of names in a certificate (RFC 5280 section 4.2.1.6).
const DNS_NAME: u32 = 2;
const URI: u32 = 6;

/// A SPIFFE trust domain, in small letters, without scheme and path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustDomain(Box<str>);

/// A text that is no trust domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a trust domain")]
pub struct NotATrustDomain;

impl FromStr for TrustDomain {
    type Err = NotATrustDomain;
    fn from_str(text: &str) -> Result<Self, NotATrustDomain> {
        let is_one = !text.contains('/') && format!("spiffe://{text}").parse::<Identity>().is_ok();
        if is_one { Ok(Self(text.into())) } else { Err(NotATrustDomain) }
    }
}

/// Who a certificate names. Its chain has to be verified before.
///
/// One URI name: it has to be a SPIFFE ID with a path, and other names do not count. No URI name: the one DNS
/// name, in small letters. More than one of either is [`Flaw::SeveralIdentities`], even if they are equal; an
/// authority, and who may sign others, is [`Flaw::NotALeaf`].
#[must_use]
pub fn identity(leaf: &[u8]) -> Fact<Identity> {
    match name(leaf) {
        Ok(identity) => Fact::Known(identity, Source::Certificate),
        Err(why) => Fact::Unknown(why),
    }
}

fn name(leaf: &[u8]) -> Result<Identity, Why> {
    let Ok(([], certificate)) = X509Certificate::from_der(leaf) else { return Err(Why::Malformed) };
    is_leaf(&certificate)?;
    let (mut uris, mut names) = (Vec::new(), Vec::new());
    if let Some(extension) = extension(&certificate, &OID_X509_EXT_SUBJECT_ALT_NAME)? {
        let ParsedExtension::SubjectAlternativeName(all) = extension.parsed_extension() else {
            return Err(Why::Malformed);
        };
        for name in &all.general_names {
            if let GeneralName::URI(uri) = name {
                uris.push(*uri);
            } else if let GeneralName::DNSName(name) = name {
                names.push(*name);
            } else if let GeneralName::Invalid(tag, _) = name
                && matches!(tag.0, DNS_NAME | URI)
            {
                return Err(Why::Malformed);
            }
        }
    }
    named(&uris, &names)
}

/// Who the URI and DNS names of a certificate name, wherever they were read: in it, or in what a proxy tells of it.
///
/// # Errors
///
/// Why they name nobody.
pub(super) fn named<T: AsRef<[u8]>>(uris: &[T], names: &[T]) -> Result<Identity, Why> {
    match (uris, names) {
        ([uri], _) => std::str::from_utf8(uri.as_ref()).ok().and_then(spiffe_id).ok_or(Why::Malformed),
        ([], [name]) => {
            let name = std::str::from_utf8(name.as_ref()).map_err(|_| Why::Malformed)?;
            caller(&format!("dns:{}", name.to_ascii_lowercase())).ok_or(Why::Malformed)
        }
        ([], []) => Err(Why::Missing),
        ([_, ..], _) | ([], [_, ..]) => Err(Why::Flawed(Flaw::SeveralIdentities)),
    }
}

/// X.509-SVID section 5.2.
fn is_leaf(certificate: &X509Certificate<'_>) -> Result<(), Why> {
    if let Some(extension) = extension(certificate, &OID_X509_EXT_BASIC_CONSTRAINTS)? {
        let ParsedExtension::BasicConstraints(constraints) = extension.parsed_extension() else {
            return Err(Why::Malformed);
        };
        if constraints.ca {
            return Err(Why::Flawed(Flaw::NotALeaf));
        }
    }
    if let Some(extension) = extension(certificate, &OID_X509_EXT_KEY_USAGE)? {
        let ParsedExtension::KeyUsage(usage) = extension.parsed_extension() else { return Err(Why::Malformed) };
        if usage.key_cert_sign() || usage.crl_sign() {
            return Err(Why::Flawed(Flaw::NotALeaf));
        }
    }
    Ok(())
}

/// An extension that occurs at most once (RFC 5280 section 4.2).
fn extension<'c, 'd>(
    certificate: &'c X509Certificate<'d>,
    oid: &Oid<'_>,
) -> Result<Option<&'c X509Extension<'d>>, Why> {
    certificate.get_extension_unique(oid).map_err(|_| Why::Malformed)
}

/// The SPIFFE ID that a URI is; one without a path names a trust domain and no caller.
#[must_use]
pub fn spiffe_id(uri: &str) -> Option<Identity> {
    caller(uri).filter(Identity::is_spiffe)
}

/// The identity that a text is, if it is a caller's: no pattern, and no trust domain (X.509-SVID section 2).
pub(super) fn caller(text: &str) -> Option<Identity> {
    let is_domain = text.strip_prefix("spiffe://").is_some_and(|rest| !rest.contains('/'));
    text.parse::<Identity>().ok().filter(|identity| !identity.is_pattern() && !is_domain)
}

/// The same, unless it is a SPIFFE ID of another trust domain than these. Without any listed, all count that the
/// authority of the listener vouches for. A DNS name is in no trust domain.
pub(super) fn within(named: &Fact<Identity>, trust_domains: &[TrustDomain]) -> Fact<Identity> {
    let domain = named.known().and_then(|identity| identity.as_str().strip_prefix("spiffe://")?.split('/').next());
    match domain {
        Some(domain) if !trust_domains.is_empty() && !trust_domains.iter().any(|listed| *listed.0 == *domain) => {
            Fact::Unknown(Why::Flawed(Flaw::ForeignTrustDomain))
        }
        Some(_) | None => named.clone(),
    }
}
