//! `headers`: what passes besides what everybody may send, and what answers tell.

use http::HeaderName;

use super::Compiler;
use super::document;
use crate::forward::headers::Fate;
use crate::forward::headers::HeaderRules;
use crate::forward::headers::TrustedHeader;
use crate::forward::headers::fate;
use crate::identify::Trust;
use crate::policy::problem::Code;
use crate::policy::problem::Problem;
use crate::yaml::Spanned;

impl Compiler<'_> {
    pub(super) fn headers(&mut self, headers: document::Headers, trust: &Trust) -> HeaderRules {
        let document::Headers { trusted, server_timing } = headers;
        let identity: Vec<HeaderName> = trust.headers().cloned().collect();
        let trusted = trusted.map(|list| self.filled(list)).unwrap_or_default();
        let lower = |it: &Spanned<String>| Spanned { value: it.value.to_ascii_lowercase(), at: it.at };
        self.distinct(&trusted.iter().map(|header| lower(&header.name)).collect::<Vec<_>>());
        let trusted = trusted.into_iter().filter_map(|header| self.trusted_header(header, &identity)).collect();
        HeaderRules {
            trusted,
            identity,
            keeps_tokens: trust.tokens().is_some_and(|tokens| !tokens.are_forwarded),
            server_timing: server_timing.is_some_and(|timing| timing.value),
        }
    }

    fn trusted_header(&mut self, header: document::TrustedHeader, identity: &[HeaderName]) -> Option<TrustedHeader> {
        let document::TrustedHeader { name: Spanned { value, at }, trusted_peers } = header;
        let peers = self.trusted_peers(&trusted_peers);
        let Ok(name) = HeaderName::from_bytes(value.as_bytes()) else {
            let message = format!("`{value}` is not the name of a header");
            self.error(Code::Invalid, at, message, "write a name such as `X-Real-Ip`");
            return None;
        };
        let plain = name.as_str().replace('_', "-");
        let is_identity = identity.iter().any(|known| known.as_str().replace('_', "-") == plain);
        let (message, help) = match fate(&plain) {
            _ if is_identity => (
                format!("`{value}` names callers to the sidecar, and never passes"),
                "remove the entry: the service reads who called from the decision log",
            ),
            Fate::Stops => (
                format!("`{value}` is for the sidecar or for one connection alone, and never passes"),
                "remove the entry; let the proxy in front use a header of its own",
            ),
            Fate::Set => (
                format!("the sidecar sets `{value}` itself, from what is proven"),
                "let the proxy in front write another one, such as `X-Real-Ip`",
            ),
            Fate::Passes => {
                (format!("`{value}` passes from everybody"), "remove the entry: it does not make the header safer")
            }
            Fate::NotBelieved | Fate::Rewrites if plain != name.as_str() => (
                format!("`{value}` is spelt with `_`, which some servers read as `-`"),
                "write `-`, and let the proxy in front do the same",
            ),
            Fate::Rewrites => {
                let message = format!("`{value}` makes it another request than the one that was decided on");
                let help = "be sure that the service does not act on it, or that these peers set it to what they send";
                self.problems.push(Problem::warning(Code::TooTrusting, at, message, help));
                return Some(TrustedHeader { name, peers });
            }
            Fate::NotBelieved => return Some(TrustedHeader { name, peers }),
        };
        self.error(Code::Invalid, at, message, help);
        None
    }
}
