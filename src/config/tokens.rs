//! `identity.token`: issuers of tokens, their keys, and the claims that are asked.

use std::net::IpAddr;
use std::sync::Arc;

use http::Uri;

use super::Compiler;
use super::document;
use crate::identify::Way;
use crate::identify::key_set::Algorithm;
use crate::identify::token::ClaimNames;
use crate::identify::token::Issuer;
use crate::identify::token::REGISTERED_CLAIMS;
use crate::identify::token::Tokens;
use crate::keys::KeySource;
use crate::keys::Origin;
use crate::policy::problem::Code;
use crate::policy::problem::Problem;
use crate::yaml::At;
use crate::yaml::Spanned;

/// What the entries of `identity` come to.
#[derive(Default)]
pub(super) struct Believed {
    /// The ways but tokens.
    pub(super) ways: Vec<Way>,
    /// All tokens are one way.
    pub(super) tokens: Option<Tokens>,
    /// One for each issuer, in the order of [`Tokens::issuers`].
    pub(super) key_sources: Vec<Arc<KeySource>>,
    /// Whether the first entry of a token says `forward`.
    forward: Option<bool>,
}

impl Believed {
    fn issuers(&self) -> &[Issuer] {
        self.tokens.as_ref().map_or(&[], |tokens| tokens.issuers.as_slice())
    }
}

impl Compiler<'_> {
    /// All issuers are one way: the token itself says whose it is.
    pub(super) fn token(&mut self, token: document::Token, at: At, most_bytes: usize, believed: &mut Believed) {
        let document::Token { issuer, audience, algorithms, jwks_file, jwks_url, jwks_ca, claims, forward } = token;
        let is_forwarded = forward.as_ref().is_some_and(|forward| forward.value);
        if *believed.forward.get_or_insert(is_forwarded) != is_forwarded {
            let help = "write the same `forward` in each entry: there is one header, and it passes or it does not";
            let at = forward.map_or(at, |forward| forward.at);
            self.error(Code::Invalid, at, "entries for tokens differ in `forward`", help);
        }
        self.issuer(&issuer, believed.issuers());
        if audience.value.is_empty() {
            let help = "write what the issuer puts into `aud` for this service";
            self.error(Code::Invalid, audience.at, "the audience is empty", help);
        }
        let algorithms: Vec<Algorithm> = self.filled(algorithms);
        let origin = self.origin(at, jwks_file, jwks_url, jwks_ca);
        let claims = self.claims(claims.unwrap_or_default());
        let Some((origin, origin_at)) = origin else { return };
        let keys = Arc::default();
        let source = KeySource::new(issuer.value.clone(), origin, origin_at, Arc::clone(&keys));
        believed.key_sources.push(Arc::new(source));
        let issuer = Issuer { name: issuer.value, audience: audience.value, algorithms, claims, keys };
        let first = || Tokens { issuers: Vec::new(), most_bytes, are_forwarded: is_forwarded };
        believed.tokens.get_or_insert_with(first).issuers.push(issuer);
    }

    fn issuer(&mut self, Spanned { value, at }: &Spanned<String>, known: &[Issuer]) {
        // As in `jwt:ISSUER|SUBJECT`, where the first `|` ends the issuer.
        if format!("jwt:{value}|x").parse::<crate::policy::terms::Identity>().is_err() || value.contains('|') {
            let message = format!("`{value}` is not an issuer");
            let help = "write what stands in `iss`, such as `https://id.example.org`: no blanks, no `|`, no `*`";
            self.error(Code::Invalid, *at, message, help);
        }
        if known.iter().any(|issuer| issuer.name == *value) {
            let message = format!("the issuer `{value}` stands here twice");
            self.error(Code::DuplicateId, *at, message, "give each issuer one entry, with one audience");
        }
    }

    fn origin(
        &mut self,
        at: At,
        file: Option<Spanned<String>>,
        url: Option<Spanned<String>>,
        ca: Option<Spanned<String>>,
    ) -> Option<(Origin, At)> {
        match (file, url) {
            (Some(file), None) => {
                if let Some(ca) = ca {
                    let help = "remove it: no server is asked for the keys";
                    self.error(Code::OneOf, ca.at, "`jwks_ca` stands beside `jwks_file`", help);
                }
                Some((Origin::File(self.folder.join(file.value)), file.at))
            }
            (None, Some(Spanned { value, at })) => {
                let url = value.parse::<Uri>().ok().filter(may_be_asked);
                if url.is_none() {
                    let message = format!("keys cannot be fetched from `{value}`");
                    let help = "write an `https` URL such as `https://id.example.org/jwks.json`; `http` only from this machine: who can change an answer on its way could sign any token";
                    self.error(Code::Invalid, at, message, help);
                }
                let ca = ca.map(|ca| self.folder.join(ca.value));
                Some((Origin::Url { url: url?, ca }, at))
            }
            (Some(_), Some(Spanned { at, .. })) => {
                self.error(Code::OneOf, at, "keys come from a file or from a URL, not from both", "remove one of them");
                None
            }
            (None, None) => {
                let help = "add `jwks_url: https://…`, or `jwks_file: …` with the issuer's public keys";
                self.error(Code::OneOf, at, "this does not say where the issuer's keys are", help);
                None
            }
        }
    }

    fn claims(&mut self, claims: document::ClaimNames) -> ClaimNames {
        let document::ClaimNames { purpose, customer, instruction, location } = claims;
        let mut names: Vec<String> = Vec::new();
        let mut checked = |name: Option<Spanned<String>>| {
            let Spanned { value, at } = name?;
            if value.is_empty() || REGISTERED_CLAIMS.contains(&value.as_str()) {
                let message = format!("the claim `{value}` cannot say this");
                let help = "name a claim of your own, such as `dpa_purpose`; `iss`, `sub`, `aud`, `exp`, `nbf`, `iat` and `jti` have a meaning";
                self.error(Code::Invalid, at, message, help);
            }
            if names.contains(&value) {
                let message = format!("the claim `{value}` stands here twice");
                self.error(Code::DuplicateId, at, message, "let each claim say one thing");
            }
            names.push(value.clone());
            Some(value)
        };
        ClaimNames {
            purpose: checked(purpose),
            customer: checked(customer),
            instruction: checked(instruction),
            location: checked(location),
        }
    }

    /// Routes that take a fact from a claim that nobody asks for.
    pub(super) fn claims_are_mapped(&mut self, believed: &Believed) {
        for (key, at) in std::mem::take(&mut self.claimed) {
            let is_mapped = |claims: &ClaimNames| match key {
                Claimed::Customer => claims.customer.is_some(),
                Claimed::Purpose => claims.purpose.is_some(),
            };
            if !believed.issuers().iter().any(|issuer| is_mapped(&issuer.claims)) {
                let word = key.as_str();
                let message = format!("no token has a claim for the {word}, so nothing passes on this route");
                let help = format!("name it in `identity`: `token: {{…, claims: {{{word}: NAME}}}}`");
                self.problems.push(Problem::warning(Code::NeverWorks, at, message, help));
            }
        }
    }
}

/// What a route takes from a claim.
#[derive(Clone, Copy)]
pub(super) enum Claimed {
    Customer,
    Purpose,
}

impl Claimed {
    fn as_str(self) -> &'static str {
        match self {
            Self::Customer => "customer",
            Self::Purpose => "purpose",
        }
    }
}

fn may_be_asked(url: &Uri) -> bool {
    let host = url.host().unwrap_or_default();
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let is_here = host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    let has_user = url.authority().is_some_and(|authority| authority.as_str().contains('@'));
    match url.scheme_str() {
        Some("https") => !host.is_empty() && !has_user,
        Some("http") => is_here && !has_user,
        Some(_) | None => false,
    }
}
