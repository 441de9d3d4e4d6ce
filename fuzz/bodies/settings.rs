//! Settings: compiled, held against the sample policy, asked for their routes.

use std::sync::LazyLock;

use dpa_sidecar::config;
use dpa_sidecar::establish::route::names;
use dpa_sidecar::observed::Target;
use dpa_sidecar::policy;
use dpa_sidecar::policy::Policy;
use dpa_sidecar::policy::problem::Problems;
use dpa_sidecar::policy::problem::Source;
use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use http::Uri;
use http::Version;
use http::header;
use jiff::Timestamp;

static POLICY: LazyLock<Policy> = LazyLock::new(|| {
    let text = include_str!("../../config/policy.yaml").to_owned();
    let source = Source { path: "policy.yaml".to_owned(), text };
    policy::compile(&[source], &["policy.yaml".to_owned()], None, None).0.unwrap()
});

fn shown(problems: &Problems, sources: &[Source]) {
    for colour in [false, true] {
        assert_eq!(problems.render(sources, colour).is_empty(), problems.0.is_empty(), "{problems:?}");
    }
}

fn environment(name: &str) -> Option<String> {
    match name {
        "EMPTY" => Some(String::new()),
        "PORT" => Some("8080".to_owned()),
        "LIST" => Some("[a, \"b\"".to_owned()),
        _ => None,
    }
}

/// The settings are there unless a problem is an error, every problem can be shown, and a path that is made
/// of a route's template has the values of all its names.
pub(crate) fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let sources = [Source { path: "folder/sidecar.yaml".to_owned(), text: text.to_owned() }];
    let (settings, problems) = config::compile(&sources[0], &environment);
    assert_eq!(settings.is_none(), problems.has_errors(), "{problems:?}");
    shown(&problems, &sources);
    let Some(settings) = settings else { return };
    shown(&settings.check_against(&POLICY, Timestamp::UNIX_EPOCH), &sources);
    for route in settings.routes.all() {
        let path: Vec<&str> =
            route.path.split('/').map(|part| if part.starts_with('{') { "x1" } else { part }).collect();
        // One that is too long for a target is never asked for.
        let Ok(uri) = Uri::try_from(path.join("/")) else { continue };
        let mut headers = HeaderMap::new();
        let host = route.host.as_deref().unwrap_or("data.example");
        headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
        let (target, host) = Target::read(&uri, &headers, Version::HTTP_11).unwrap();
        assert_eq!(target.as_str(), path.join("/"), "a route that no request can have");
        let method = route.methods.first().unwrap_or(&Method::GET);
        let Some(found) = settings.routes.find(method, Some(&host), &target) else { continue };
        for name in names(&found.route.path) {
            assert!(found.value(name).is_some(), "{} has no {name}", found.route.path);
        }
    }
}
