//! What is asked from beside the way of requests: `health` for the kubelet and Prometheus, `admin` for a person on this
//! machine. Both have one thread, apart from the workers.

mod health;
mod inside;
pub mod metrics;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use http::Request;
use http::Response;
use http::StatusCode;
use http::header;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::task::LocalSet;

pub use self::health::Health;
pub use self::inside::Inside;
pub use self::metrics::Scrape;
use crate::sockets;
use crate::sockets::Accepted;

/// Connections that are open at once, of each listener. Where one more comes, the oldest is closed: a probe does not
/// wait.
pub const MOST_CONNECTIONS: usize = 16;

/// How long one may last, its answer included.
const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of the head of a request, and its lines.
const HEAD_BYTES: usize = 16 * 1024;
const HEAD_LINES: usize = 64;

/// What is asked.
struct Question<'q> {
    path: &'q str,
    query: Option<&'q str>,
}

/// What is answered.
struct Reply {
    status: StatusCode,
    kind: &'static str,
    text: String,
}

impl Reply {
    fn plain(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, kind: "text/plain; charset=utf-8", text: text.into() }
    }

    fn json(text: String) -> Self {
        Self { status: StatusCode::OK, kind: "application/json", text }
    }
}

/// The thread that answers; told to end, and waited for, when this is dropped.
#[derive(Debug)]
pub struct Running {
    stop: Option<oneshot::Sender<Infallible>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(Err(_)) = self.thread.take().map(std::thread::JoinHandle::join) {
            tracing::error!("the thread of `health` and `admin` panicked");
        }
    }
}

/// Starts the thread that answers, until what this returns is dropped.
///
/// # Errors
///
/// If the thread or its runtime cannot be made.
pub fn start(
    health: Option<(sockets::Bound, Health)>,
    inside: Option<(sockets::Bound, Inside)>,
) -> io::Result<Option<Running>> {
    if health.is_none() && inside.is_none() {
        return Ok(None);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = oneshot::channel::<Infallible>();
    let serve = move || {
        LocalSet::new().block_on(&runtime, async move {
            let health = async {
                let Some((socket, health)) = health else { return };
                serve(&socket, move |question| health.answer(&question), |_| true).await;
            };
            let inside = async {
                let Some((socket, inside)) = inside else { return };
                // Whoever can open a Unix socket is no page in a browser.
                let is_tcp = matches!(socket, sockets::Bound::Tcp(_));
                serve(&socket, move |question| inside.answer(&question), move |head| !is_tcp || is_asked_here(head))
                    .await;
            };
            tokio::select! {
                _ = stopped => {}
                ((), ()) = async { tokio::join!(health, inside) } => {}
            }
        });
    };
    let thread = std::thread::Builder::new().name("dpa-admin".to_owned()).spawn(serve)?;
    Ok(Some(Running { stop: Some(stop), thread: Some(thread) }))
}

async fn serve(
    socket: &sockets::Bound,
    answer: impl Fn(Question<'_>) -> Option<Reply> + 'static,
    is_for_us: impl Fn(&HeaderMap) -> bool + 'static,
) {
    let listener = match socket.share() {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "`health` or `admin` cannot be served");
            return;
        }
    };
    let answer = Rc::new(move |request: &Request<Incoming>| reply(request, &answer, &is_for_us));
    let mut open: VecDeque<JoinHandle<()>> = VecDeque::new();
    loop {
        let Ok(accepted) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        open.retain(|connection| !connection.is_finished());
        if open.len() >= MOST_CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
            // Its descriptor is free by then.
            let _aborted = oldest.await;
        }
        let answer = Rc::clone(&answer);
        open.push_back(tokio::task::spawn_local(async move {
            match accepted {
                Accepted::Tcp(stream, _) => one(stream, answer).await,
                Accepted::Unix(stream) => one(stream, answer).await,
            }
        }));
    }
}

/// Serves one connection, which has one request.
async fn one<S>(stream: S, answer: Rc<impl Fn(&Request<Incoming>) -> Response<Full<Bytes>>>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let answered = answer(&request);
        async move { Ok::<_, Infallible>(answered) }
    });
    let mut http = http1::Builder::new();
    http.header_read_timeout(None).keep_alive(false).max_buf_size(HEAD_BYTES).max_headers(HEAD_LINES);
    let mut served = http.serve_connection(TokioIo::new(stream), service);
    let served = poll_fn(|cx| std::pin::Pin::new(&mut served).poll(cx));
    // Who goes away early has its answer already or does not want it.
    let _gone = tokio::time::timeout(PATIENCE, served).await;
}

fn reply(
    request: &Request<Incoming>,
    answer: &impl Fn(Question<'_>) -> Option<Reply>,
    is_for_us: &impl Fn(&HeaderMap) -> bool,
) -> Response<Full<Bytes>> {
    let uri = request.uri();
    let is_reading = matches!(*request.method(), Method::GET | Method::HEAD);
    let Reply { status, kind, text } = if uri.authority().is_some() || !uri.path().starts_with('/') {
        Reply::plain(StatusCode::BAD_REQUEST, "ask for a path, such as /livez or /config_dump\n")
    } else if !is_for_us(request.headers()) {
        Reply::plain(StatusCode::FORBIDDEN, "ask as 127.0.0.1, [::1] or localhost: `Host` names somebody else\n")
    } else if !is_reading {
        Reply::plain(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD only: nothing can be changed here\n")
    } else {
        let reply = answer(Question { path: uri.path(), query: uri.query() });
        reply.unwrap_or_else(|| Reply::plain(StatusCode::NOT_FOUND, "there is nothing at this path\n"))
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

/// Whether a request means this machine. A page in a browser can have its own name lead to 127.0.0.1, and reads what it
/// is answered then; its requests bear that name (DNS rebinding).
fn is_asked_here(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    host.to_str().is_ok_and(is_of_this_machine)
}

fn is_of_this_machine(host: &str) -> bool {
    if let Ok(address) = host.parse::<std::net::SocketAddr>() {
        return address.ip().is_loopback();
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => name,
        _ => host,
    };
    let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_is_not_of_this_machine_is_seen() {
        let table = [
            ("an address", "127.0.0.1", true),
            ("with a port", "127.0.0.1:9902", true),
            ("another of them", "127.8.8.8:9902", true),
            ("of version 6", "[::1]", true),
            ("of version 6, with a port", "[::1]:9902", true),
            ("a name", "localhost", true),
            ("a name in capitals, with a port", "LocalHost:9902", true),
            ("nothing", "", false),
            ("a page's own name", "rebound.example", false),
            ("with a port", "rebound.example:9902", false),
            ("a name that begins like it", "localhost.rebound.example", false),
            ("a name that ends like it", "rebound.localhost:9902", false),
            ("an address of somebody else", "10.0.0.1:9902", false),
            ("all addresses", "0.0.0.0:9902", false),
            ("an address as a number", "2130706433", false),
            ("a user before it", "127.0.0.1@rebound.example", false),
            ("a port that is none", "127.0.0.1:port", false),
        ];
        for (name, host, expected) in table {
            assert_eq!(is_of_this_machine(host), expected, "{name}: {host}");
        }
    }
}
