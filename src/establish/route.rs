//! Routes: what a path and a method say about a request.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use matchit::Router;

use crate::observed::Target;
use crate::observed::canonical_path;
use crate::policy::terms::DataCategory;
use crate::policy::terms::Operation;

/// Where a route takes a fact from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Take {
    /// Written in the route.
    Constant(String),
    /// A `{name}` of the path template.
    Path(String),
    /// A parameter of the query.
    Query(String),
    /// `DPA-Context`.
    Context,
    /// A claim of the caller's proof.
    Claim,
}

/// What a route says about a request with subscriber data.
#[derive(Clone, Debug)]
pub struct Subject {
    /// For whom.
    pub customer: Take,
    /// About whom; none: the route establishes no subscriber.
    pub subscriber: Option<Take>,
    /// What for.
    pub purpose: Take,
    /// Doing what; none: as the method says.
    pub operation: Option<Operation>,
    /// With which data.
    pub data_categories: Vec<DataCategory>,
}

/// What may be exchanged on a route once a request is permitted; no rule of the agreement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passage {
    /// Protocols that a connection may be switched to (RFC 9110 section 7.8), in small letters; empty: none.
    pub upgrade: Vec<String>,
    /// Most bytes of a request's body; none: no limit.
    pub body_limit: Option<u64>,
    /// Instead of the upstream's.
    pub response_timeout: Option<Duration>,
}

/// One route.
#[derive(Clone, Debug)]
pub struct Route {
    /// The path template, as written: what records name.
    pub path: String,
    /// Its methods; empty: any.
    pub methods: Vec<Method>,
    /// The host, in small letters, without a port; none: any.
    pub host: Option<String>,
    /// What it is about; none: outside the agreement (`subscriber_data: false`).
    pub subject: Option<Subject>,
    /// What may be exchanged on it.
    pub passage: Arc<Passage>,
}

impl Route {
    /// For any method and host, with nothing said of what may be exchanged.
    #[must_use]
    pub fn at(path: &str, subject: Option<Subject>) -> Self {
        Self { path: path.to_owned(), methods: Vec::new(), host: None, subject, passage: Arc::default() }
    }
}

/// A path template that cannot be one, or two routes that nobody can tell apart.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// The template of the route at this place in the list.
    #[error("`{path}` is not a path template: {why}")]
    Template {
        /// Place in the list.
        index: usize,
        /// The template.
        path: String,
        /// What is wrong.
        why: &'static str,
    },
    /// The route at `index` matches what the one at `other` matches.
    #[error("`{path}` cannot be told apart from another route: same path, host and method")]
    Conflict {
        /// Place in the list.
        index: usize,
        /// Place of the other.
        other: usize,
        /// The template.
        path: String,
    },
}

/// All routes, ready to match. The most specific path wins: a fixed segment before `{name}` before
/// `{*rest}`; of the routes of one path, one with a `host` before one without.
#[derive(Debug, Default)]
pub struct Routes {
    routes: Vec<Route>,
    /// Positional templates (`{p0}`, `{p1}`, `{*p2}`) to the routes that have them.
    paths: Router<Vec<usize>>,
    /// The names in the template of each route, in order.
    names: Vec<Vec<String>>,
    /// Hosts of subprocessors that the service sends to.
    egress_hosts: Vec<String>,
}

/// A route that matched, and the values of its template's names.
#[derive(Debug)]
pub struct Match<'r> {
    /// The route.
    pub route: &'r Route,
    /// Its place in the settings.
    pub place: usize,
    /// The names in its template, in order.
    names: &'r [String],
    /// Their values, still percent-encoded.
    values: Vec<String>,
}

impl Match<'_> {
    /// The value of a `{name}` of the template, still percent-encoded.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&str> {
        let place = self.names.iter().position(|known| known == name)?;
        self.values.get(place).map(String::as_str)
    }
}

impl Routes {
    /// Builds the matcher.
    ///
    /// # Errors
    ///
    /// Every template that is none, and every conflict.
    pub fn new(routes: Vec<Route>) -> Result<Self, Vec<RouteError>> {
        let mut built = Self::default();
        let mut groups: Vec<(String, Vec<usize>)> = Vec::new();
        let mut group_of: HashMap<String, usize> = HashMap::new();
        let mut errors = Vec::new();
        for (index, route) in routes.iter().enumerate() {
            match positional(&route.path) {
                Err(why) => errors.push(RouteError::Template { index, path: route.path.clone(), why }),
                Ok(template) => match group_of.get(&template).and_then(|group| groups.get_mut(*group)) {
                    None => {
                        group_of.insert(template.clone(), groups.len());
                        groups.push((template, vec![index]));
                    }
                    Some((_, group)) => {
                        let other =
                            group.iter().find(|other| routes.get(**other).is_some_and(|it| overlaps(it, route)));
                        errors.extend(other.map(|other| RouteError::Conflict {
                            index,
                            other: *other,
                            path: route.path.clone(),
                        }));
                        group.push(index);
                    }
                },
            }
        }
        for (template, group) in groups {
            // `{*rest}` also stands for nothing at all behind the slash.
            if let Some((stem, _)) = template.split_once("{*")
                && !group_of.contains_key(stem)
            {
                // A stem that conflicts is one that another template matches already.
                let _covered = built.paths.insert(stem, group.clone());
            }
            if built.paths.insert(template, group.clone()).is_err() {
                let conflict = group.first().map(|index| RouteError::Template {
                    index: *index,
                    path: routes.get(*index).map(|route| route.path.clone()).unwrap_or_default(),
                    why: "another route has a `{name}` or a fixed part in the same place of the same segment",
                });
                errors.extend(conflict);
            }
        }
        built.names = routes.iter().map(|route| names(&route.path).map(str::to_owned).collect()).collect();
        built.routes = routes;
        if errors.is_empty() { Ok(built) } else { Err(errors) }
    }

    /// The same routes; those with one of these hosts, which are in small letters, count on egress alone.
    #[must_use]
    pub fn with_egress_hosts(self, egress_hosts: Vec<String>) -> Self {
        Self { egress_hosts, ..self }
    }

    /// The host that a request which comes in is matched by. Who sends one names any host, and shall not choose by it
    /// what the service itself may send to a subprocessor: that host counts as none.
    #[must_use]
    pub fn host_on_ingress<'h>(&self, host: &'h str) -> Option<&'h str> {
        (!self.egress_hosts.iter().any(|egress| egress == host)).then_some(host)
    }

    /// The route of a request for this host, or for none that a route could have; `None`: unmapped.
    #[must_use]
    pub fn find(&self, method: &Method, host: Option<&str>, target: &Target) -> Option<Match<'_>> {
        let found = self.paths.at(target.path()).ok()?;
        let fits = |route: &Route| route.methods.is_empty() || route.methods.contains(method);
        let candidates = || found.value.iter().filter_map(|place| Some((*place, self.routes.get(*place)?)));
        // As with paths: once a route has this host, the others do not count, whatever its methods are.
        let host = host.filter(|host| candidates().any(|(_, route)| route.host.as_deref() == Some(*host)));
        let (place, route) =
            candidates().filter(|(_, route)| fits(route)).find(|(_, route)| route.host.as_deref() == host)?;
        let names = self.names.get(place).map(Vec::as_slice).unwrap_or_default();
        Some(Match { route, place, names, values: found.params.iter().map(|(_, value)| value.to_owned()).collect() })
    }

    /// All routes, in file order.
    #[must_use]
    pub fn all(&self) -> &[Route] {
        &self.routes
    }
}

fn overlaps(one: &Route, two: &Route) -> bool {
    let shared = one.methods.is_empty()
        || two.methods.is_empty()
        || one.methods.iter().any(|method| two.methods.contains(method));
    shared && one.host == two.host
}

/// The names in a template, in order.
pub fn names(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|segment| segment.starts_with('{')).map(|segment| segment.trim_matches(['{', '}', '*']))
}

/// The template with its names replaced by numbers, so that routes of one shape share one entry.
fn positional(path: &str) -> Result<String, &'static str> {
    let Some(rest) = path.strip_prefix('/') else { return Err("it has to begin with `/`") };
    let mut template = String::new();
    let mut seen: Vec<&str> = Vec::new();
    let segments: Vec<&str> = rest.split('/').collect();
    for (place, segment) in segments.iter().enumerate() {
        let is_last = place + 1 == segments.len();
        template.push('/');
        match segment.strip_prefix('{').and_then(|name| name.strip_suffix('}')) {
            Some(name) => {
                let (star, name) = name.strip_prefix('*').map_or(("", name), |name| ("*", name));
                let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
                if name.is_empty() || !name.bytes().all(plain) {
                    return Err("a name in braces has letters, digits and `_`");
                }
                if !star.is_empty() && !is_last {
                    return Err("`{*name}` stands for the remainder and has to be last");
                }
                if seen.contains(&name) {
                    return Err("a name occurs twice");
                }
                let _infallible = write!(template, "{{{star}p{}}}", seen.len());
                seen.push(name);
            }
            None => {
                let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@%".contains(&b);
                if segment.is_empty() && !is_last {
                    return Err("it holds an empty segment (`//`)");
                }
                if !segment.bytes().all(plain) {
                    return Err("a segment is plain text, `{name}` or `{*rest}`");
                }
                // Requests are matched in canonical form, so anything else would never match.
                if canonical_path(segment).as_deref() != Ok(segment) {
                    return Err(
                        "a fixed part has plain characters as they are, other escapes in capitals, and is not `.` or `..`",
                    );
                }
                template.push_str(segment);
            }
        }
    }
    Ok(template)
}

/// The operation that a method means where the route says nothing.
#[must_use]
pub fn operation_of(method: &Method) -> Option<Operation> {
    match *method {
        Method::GET | Method::HEAD => Some(Operation::Retrieve),
        Method::POST => Some(Operation::Store),
        Method::PUT | Method::PATCH => Some(Operation::Modify),
        Method::DELETE => Some(Operation::Erase),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(path: &str, methods: &[Method], host: Option<&str>) -> Route {
        Route { methods: methods.to_vec(), host: host.map(str::to_owned), ..Route::at(path, None) }
    }

    fn target(path: &str) -> Target {
        let mut headers = http::HeaderMap::new();
        headers.insert(http::header::HOST, "a".parse().unwrap());
        Target::read(&path.parse().unwrap(), &headers, http::Version::HTTP_11).unwrap().0
    }

    #[test]
    fn the_most_specific_route_wins() {
        let routes = Routes::new(vec![
            route("/{*rest}", &[], None),
            route("/v1/{name}", &[Method::GET], None),
            route("/v1/{other}", &[Method::POST], None),
            route("/v1/fixed", &[Method::GET, Method::POST], None),
            route("/v1/fixed", &[Method::GET], Some("b.example")),
            route("/assets/{*rest}", &[Method::GET], None),
        ])
        .unwrap();
        let table = [
            ("a fixed segment before a name", Method::GET, "a", "/v1/fixed", Some("/v1/fixed")),
            ("a name before the remainder", Method::GET, "a", "/v1/x", Some("/v1/{name}")),
            ("each method has its own names", Method::POST, "a", "/v1/x", Some("/v1/{other}")),
            ("the remainder", Method::DELETE, "a", "/x/y/z", Some("/{*rest}")),
            ("nothing is a remainder too", Method::GET, "a", "/", Some("/{*rest}")),
            ("nothing behind a stem", Method::GET, "a", "/assets/", Some("/assets/{*rest}")),
            ("the most specific path has no such method", Method::DELETE, "a", "/v1/fixed", None),
            ("the host's route has no such method", Method::POST, "b.example", "/v1/fixed", None),
        ];
        for (name, method, host, path, expected) in table {
            let found = routes.find(&method, Some(host), &target(path));
            assert_eq!(found.map(|found| found.route.path.as_str()), expected, "{name}");
        }
        let found = routes.find(&Method::GET, Some("b.example"), &target("/v1/fixed")).unwrap();
        assert_eq!(found.route.host.as_deref(), Some("b.example"));
        let found = routes.find(&Method::POST, Some("a"), &target("/v1/x")).unwrap();
        assert_eq!(found.value("other"), Some("x"));
    }

    #[test]
    fn conflicts_are_errors() {
        let table = [
            ("the same route twice", vec![route("/a", &[], None), route("/a", &[Method::GET], None)]),
            ("other names", vec![route("/{a}", &[], None), route("/{b}", &[], None)]),
            ("the same host", vec![route("/a", &[], Some("h")), route("/a", &[], Some("h"))]),
            ("no slash", vec![route("a", &[], None)]),
            ("a name twice", vec![route("/{a}/{a}", &[], None)]),
            ("a remainder in the middle", vec![route("/{*a}/b", &[], None)]),
            ("a part of a segment", vec![route("/a-{b}", &[], None)]),
            ("an empty segment", vec![route("/a//b", &[], None)]),
            ("escapes that no request has", vec![route("/caf%c3%a9", &[], None)]),
            ("an escape that requests have decoded", vec![route("/%76", &[], None)]),
            ("a bad escape", vec![route("/a%zz", &[], None)]),
            ("dots", vec![route("/a/../b", &[], None)]),
        ];
        for (name, routes) in table {
            assert!(Routes::new(routes).is_err(), "{name}");
        }
    }
}
