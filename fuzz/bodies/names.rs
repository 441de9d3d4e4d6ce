//! A certificate's names, and a URI by itself: what is an identity is one that the policy could name.

use dpa_sidecar::decide::facts::Fact;
use dpa_sidecar::decide::facts::Source;
use dpa_sidecar::identify::certificate::identity;
use dpa_sidecar::identify::certificate::spiffe_id;
use dpa_sidecar::policy::terms::Identity;

fn is_sound(identity: &Identity) {
    let text = identity.as_str();
    assert_eq!(text.parse::<Identity>().as_ref(), Ok(identity));
    assert!(text.len() <= 2048 && !identity.is_pattern() && text.bytes().all(|b| b.is_ascii_graphic()), "{text}");
    assert!(!text.contains(['%', '?', '#', '@', '*', '\\']), "{text}");
    match text.strip_prefix("spiffe://") {
        Some(rest) => {
            let (domain, path) = rest.split_once('/').unwrap();
            assert!(!domain.contains(|c: char| c.is_ascii_uppercase() || c == ':'), "{text}");
            assert!(path.split('/').all(|segment| !matches!(segment, "" | "." | "..")), "{text}");
        }
        None => assert!(text.starts_with("dns:") && !text.bytes().any(|b| b.is_ascii_uppercase()), "{text}"),
    }
}

/// Bytes are a certificate, or the text of a URI, or neither.
pub(crate) fn run(data: &[u8]) {
    match identity(data) {
        Fact::Known(identity, source) => {
            assert_eq!(source, Source::Certificate);
            is_sound(&identity);
        }
        Fact::Unknown(_) => {}
        Fact::None => panic!("a certificate has a name, or not"),
    }
    if let Some(identity) = std::str::from_utf8(data).ok().and_then(spiffe_id) {
        assert!(identity.is_spiffe());
        is_sound(&identity);
    }
}
