//! `X-Forwarded-Client-Cert`: any bytes.

use dpa_sidecar::decide::facts::Flaw;
use dpa_sidecar::decide::facts::Why;
use dpa_sidecar::identify::TrustedPeers;
use dpa_sidecar::identify::forwarded::Element;
use dpa_sidecar::identify::forwarded::caller;
use dpa_sidecar::identify::forwarded::elements;

/// The same elements, written anew: only what names callers, all in quotes.
fn written(elements: &[Element]) -> Vec<u8> {
    let pair = |key: &str, value: &[u8]| {
        let mut text = format!("{key}=\"").into_bytes();
        value
            .iter()
            .for_each(|byte| text.extend(if matches!(byte, b'"' | b'\\') { vec![b'\\', *byte] } else { vec![*byte] }));
        text.push(b'"');
        text
    };
    let element = |element: &Element| {
        let uris = element.uris.iter().map(|uri| pair("URI", uri));
        let names = element.names.iter().map(|name| pair("DNS", name));
        std::iter::once(b"Hash=0".to_vec()).chain(uris).chain(names).collect::<Vec<_>>().join(&b';')
    };
    elements.iter().map(element).collect::<Vec<_>>().join(&b',')
}

/// What is read is read again from what it would be written as; whatever a caller writes before the element of the
/// nearest proxy, that element names who calls, or nobody does; a name is one that a certificate can have.
pub(crate) fn run(data: &[u8]) {
    let gateway: TrustedPeers = TrustedPeers {
        identities: vec!["spiffe://mesh.example/*/gateway".parse().unwrap()],
        ..TrustedPeers::default()
    };
    let read = elements(data);
    let named = caller(data, &gateway);
    match &read {
        Ok(read) => {
            assert!((1..=16).contains(&read.len()), "{} elements", read.len());
            // In quotes it may grow beyond the bound.
            let again = written(read);
            assert!(elements(&again) == Ok(read.clone()) || again.len() > 32 * 1024, "{again:?}");
        }
        Err(why) => {
            assert!(matches!(why, Why::Malformed | Why::Flawed(Flaw::TooLarge)), "{why:?}");
            assert_eq!(named.as_ref().err(), Some(why));
        }
    }
    if let Ok(identity) = &named {
        assert!((identity.is_spiffe() || identity.is_dns()) && !identity.is_pattern(), "{identity}");
    }
    for last in ["URI=spiffe://a.example/b", "By=x;Hash=0;Subject=\"CN=\\\"a\";URI=spiffe://a.example/b;DNS=c.example"]
    {
        let appended = caller(&[data, b",", last.as_bytes()].concat(), &gateway);
        if let Ok(identity) = &appended {
            assert_eq!(identity.as_str(), "spiffe://a.example/b", "what was written before the last element counts");
        }
        assert!(
            appended.is_ok() || read.as_ref().map_or(true, |read| read.len() == 16) || data.len() > 32_000,
            "{appended:?}"
        );
    }
}
