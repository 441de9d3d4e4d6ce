//! A request that is stated, not received: by a test case, by flags, by the short form that looks for one
//! that passes. It goes the way of every request: identify, establish, decide.

use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use http::Uri;
use http::Version;
use http::header;
use jiff::Timestamp;

use crate::decide::decision::Decision;
use crate::decide::facts::Fact;
use crate::decide::facts::Facts;
use crate::decide::facts::Transport;
use crate::decide::facts::Why;
use crate::establish::context::DPA_CONTEXT;
use crate::establish::route::Route;
use crate::establish::route::Routes;
use crate::establish::route::Subject;
use crate::establish::route::Take;
use crate::gate::weigh;
use crate::identify::Trust;
use crate::identify::Way;
use crate::observed::Egress;
use crate::observed::Observed;
use crate::observed::Peer;
use crate::observed::Target;
use crate::observed::Unreadable;
use crate::policy::Party;
use crate::policy::Policy;
use crate::policy::problem::nearest;
use crate::policy::terms::DataCategory;
use crate::policy::terms::Id;
use crate::policy::terms::Identity;
use crate::policy::terms::Location;
use crate::policy::terms::Operation;

/// Whom a request is about.
#[derive(Clone, Debug)]
pub(super) enum AskedSubscriber {
    /// The route establishes no subscriber.
    NotEstablished,
    /// The route does, and the request names none.
    NotNamed,
    /// The route does, and the request names this one.
    Named(String),
}

/// What is stated.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    /// Who asks, and where a claim says it is; nobody: no proof.
    pub(super) caller: Option<(Identity, Fact<Location>)>,
    /// Names of customers, and whether they stand in a list.
    pub(super) customers: Option<(Vec<String>, bool)>,
    pub(super) purpose: Option<String>,
    pub(super) instruction: Option<String>,
    pub(super) request_ref: Option<String>,
    pub(super) operation: Option<Operation>,
    pub(super) data_categories: Vec<DataCategory>,
    pub(super) subscriber: AskedSubscriber,
    /// The subprocessor that the service sends it to; none: it comes in.
    pub(super) recipient: Option<String>,
    pub(super) transport: Transport,
    pub(super) storage: Location,
    /// Whether a route has its path.
    pub(super) is_mapped: bool,
}

/// A connection in clear from somewhere.
pub(super) const CLEAR: Transport = Transport { tls: None, client_certificate: false, is_unix: false };

/// The request that says what was stated.
pub(super) struct Asked {
    trust: Trust,
    routes: Routes,
    headers: HeaderMap,
    target: Target,
    host: String,
    peer: Peer,
    recipient: Option<String>,
    storage: Location,
}

impl Ask {
    /// Puts it into a request.
    ///
    /// # Errors
    ///
    /// [`Unreadable`] if no request can say it: a name outside printable ASCII.
    pub(super) fn asked(self) -> Result<Asked, Unreadable> {
        let mut headers = HeaderMap::new();
        if let Some(context) = self.context() {
            headers.insert(DPA_CONTEXT, HeaderValue::from_str(&context).map_err(|_| Unreadable::ContextMalformed)?);
        }
        let query = match &self.subscriber {
            AskedSubscriber::Named(name) => {
                name.bytes().fold("?subscriber=".to_owned(), |query, byte| query + &format!("%{byte:02X}"))
            }
            AskedSubscriber::NotNamed | AskedSubscriber::NotEstablished => String::new(),
        };
        let uri = Uri::try_from(format!("/{query}")).map_err(|_| Unreadable::TargetByte)?;
        let mut host = HeaderMap::new();
        host.insert(header::HOST, HeaderValue::from_static("stated"));
        let (target, host) = Target::read(&uri, &host, Version::HTTP_11)?;
        let subscriber = match self.subscriber {
            AskedSubscriber::NotEstablished => None,
            AskedSubscriber::NotNamed | AskedSubscriber::Named(_) => Some(Take::Query("subscriber".to_owned())),
        };
        let subject = Subject {
            customer: Take::Context,
            subscriber,
            purpose: Take::Context,
            operation: self.operation,
            data_categories: self.data_categories,
        };
        let route = Route::at("/", Some(subject));
        let routes = if self.is_mapped { vec![route] } else { Vec::new() };
        Ok(Asked {
            trust: Trust {
                ways: self.caller.into_iter().map(|(identity, location)| Way::Stated { identity, location }).collect(),
            },
            routes: Routes::new(routes).map_err(|_| Unreadable::TargetForm)?,
            headers,
            target,
            host,
            peer: Peer {
                address: None,
                transport: self.transport,
                certificate: Fact::Unknown(Why::Missing),
                until: None,
            },
            recipient: self.recipient,
            storage: self.storage,
        })
    }

    /// `DPA-Context` as the request carries it.
    fn context(&self) -> Option<String> {
        let quoted = |text: &String| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
        let customers = self.customers.as_ref().map(|(names, is_list)| {
            let names: Vec<String> = names.iter().map(quoted).collect();
            if *is_list { format!("customer=({})", names.join(" ")) } else { format!("customer={}", names.concat()) }
        });
        let named =
            [("purpose", &self.purpose), ("instruction", &self.instruction), ("request_ref", &self.request_ref)];
        let named = named.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", quoted(value.as_ref()?))));
        let members: Vec<String> = customers.into_iter().chain(named).collect();
        (!members.is_empty()).then(|| members.join(", "))
    }
}

impl Asked {
    /// Identify, establish, decide.
    ///
    /// # Errors
    ///
    /// [`Unreadable`], as for any request.
    pub(super) fn weigh<'a>(
        &'a self,
        policy: &'a Policy,
        now: Timestamp,
    ) -> Result<(Facts<'a>, Decision<'a>), Unreadable> {
        let seen = Observed {
            // A method without an operation of its own: the stated operation counts, or none.
            method: &Method::OPTIONS,
            target: self.target.clone(),
            host: self.host.clone(),
            headers: &self.headers,
            peer: &self.peer,
            egress: self.recipient.as_deref().map(|recipient| Egress { caller: None, recipient }),
            storage: self.storage,
            time: now,
        };
        weigh(&seen, policy, &self.trust, &self.routes)
    }
}

/// The identity that a named caller proves: one that is written out, or the first of a party.
///
/// # Errors
///
/// What is wrong with the name, and what to write instead.
pub(super) fn identity(name: &str, policy: &Policy) -> Result<Identity, (String, String)> {
    if name.contains(':') {
        let identity = name.parse::<Identity>().map_err(|error| (error.wrong, error.help))?;
        if identity.is_pattern() {
            return Err((format!("`{name}` is a pattern"), "write one identity, without `*`".to_owned()));
        }
        return Ok(identity);
    }
    let party = policy
        .caller_named(name)
        .map(Party::Own)
        .or_else(|| policy.subprocessor_named(name).map(Party::Subprocessor))
        .or_else(|| policy.customer_named(name).map(Party::Customer));
    let Some(party) = party else {
        let near = nearest(name, policy.party_names().map(Id::as_str));
        let help = near.map_or_else(
            || "name a caller, subprocessor or customer of the policy, or an identity".to_owned(),
            |near| format!("did you mean `{near}`?"),
        );
        return Err((format!("`{name}` is no party of the policy"), help));
    };
    policy.identity_of(party).ok_or_else(|| {
        let help = "give it one, or write an identity here".to_owned();
        (format!("`{name}` has no identity in the policy"), help)
    })
}
