//! The demo's data service: made-up subscribers of the sample agreement's customers, as JSON over HTTP.
//! It knows nothing of agreements, and keeps the decision ids of what reached it. On a third port it plays a
//! subprocessor, which is told no ids: there it keeps paths.

use std::collections::HashSet;
use std::convert::Infallible;
use std::io;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use bytes::Bytes;
use http::HeaderValue;
use http::Request;
use http::Response;
use http::StatusCode;
use http::header;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use serde_json::json;
use tokio::task::LocalSet;

use crate::gate::DPA_DECISION_ID;

/// A running data service.
pub(super) struct Service {
    /// Where it keeps data in Oregon.
    pub(super) oregon: SocketAddr,
    /// Where it keeps data in Québec.
    pub(super) quebec: SocketAddr,
    /// Where a subprocessor takes data.
    pub(super) meridian: SocketAddr,
    reached: Reached,
}

type Reached = Arc<Mutex<HashSet<String>>>;

impl Service {
    /// Starts it on three ports of this machine. It ends with the process.
    pub(super) fn start() -> io::Result<Self> {
        let reached = Reached::default();
        let oregon = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let quebec = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let meridian = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let addresses = (oregon.local_addr()?, quebec.local_addr()?, meridian.local_addr()?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let seen = Arc::clone(&reached);
        std::thread::Builder::new().name("demo-service".to_owned()).spawn(move || {
            let listeners = LocalSet::new();
            listeners.block_on(&runtime, async {
                let (first, second) = (Arc::clone(&seen), Arc::clone(&seen));
                tokio::join!(serve(oregon, first), serve(quebec, second), serve(meridian, seen));
            });
        })?;
        Ok(Self { oregon: addresses.0, quebec: addresses.1, meridian: addresses.2, reached })
    }

    /// Whether the request of a decision reached the service; or the request for a path, the subprocessor.
    pub(super) fn was_reached_by(&self, decision_id_or_path: &str) -> bool {
        self.reached.lock().unwrap_or_else(PoisonError::into_inner).contains(decision_id_or_path)
    }
}

async fn serve(listener: TcpListener, reached: Reached) {
    let listener = match listener.set_nonblocking(true).and_then(|()| tokio::net::TcpListener::from_std(listener)) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the demo's data service cannot listen");
            return;
        }
    };
    while let Ok((stream, _)) = listener.accept().await {
        let reached = Arc::clone(&reached);
        tokio::task::spawn_local(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let id = request.headers().get(DPA_DECISION_ID).and_then(|id| id.to_str().ok());
                let mark = id.unwrap_or(request.uri().path()).to_owned();
                reached.lock().unwrap_or_else(PoisonError::into_inner).insert(mark);
                let response = answer(request.uri().path());
                async move { Ok::<_, Infallible>(response) }
            });
            let _gone = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn answer(path: &str) -> Response<Full<Bytes>> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let found = match parts.as_slice() {
        ["v1", "customers", customer, "subscribers", id] => {
            subscribers(customer).into_iter().find(|subscriber| subscriber.get("id") == Some(&json!(id)))
        }
        ["v1", "customers", customer, "usage" | "export"] | ["v1", "customers", customer, "usage", "export"] => {
            Some(Value::Array(subscribers(customer)))
        }
        ["v1", "customers", _, "events"] => Some(json!({"taken": true})),
        ["docs", ..] => Some(json!({"about": "the subscriber data service of the demo"})),
        _ => None,
    };
    let status = if found.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND };
    let body = found.unwrap_or_else(|| json!({"error": "there is nothing here"})).to_string();
    let mut response = Response::new(Full::new(Bytes::from(body + "\n")));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Three subscribers for each customer.
fn subscribers(customer: &str) -> Vec<Value> {
    let people = [
        ("1a2b", "Ada Sample", "ada@subscribers.example", 41),
        ("7c1e", "Bo Sample", "bo@subscribers.example", 220),
        ("9f3d", "Cleo Sample", "cleo@subscribers.example", 87),
    ];
    let person = |(id, name, email, gigabytes): (&str, &str, &str, u32)| json!({"id": id, "customer": customer, "name": name, "email": email, "gigabytes_this_month": gigabytes});
    people.into_iter().map(person).collect()
}
