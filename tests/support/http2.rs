//! A data service that speaks HTTP/2: by the library, or frame by frame.

use std::future::Future;
use std::io::Read as _;
use std::io::Write as _;
use std::net::TcpListener;
use std::net::TcpStream;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::HeaderMap;
use http::Method;
use http::Request;
use http::Response;
use http::Uri;
use http::request::Parts;
use tokio::sync::Notify;
use tokio::task::LocalSet;

use super::wait_for;

/// What was asked.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    /// The place of its connection, from 0.
    pub(crate) connection: usize,
}

impl Asked {
    fn of(head: &Parts, connection: usize) -> Self {
        let Parts { method, uri, headers, .. } = head;
        Self { method: method.clone(), uri: uri.clone(), headers: headers.clone(), connection }
    }

    /// The value of a header that occurs at most once.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        assert!(self.headers.get_all(name).iter().count() < 2, "{name}: {:?}", self.headers);
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// One request that wants an answer.
pub(crate) struct Call {
    pub(crate) asked: Asked,
    pub(crate) body: RecvStream,
    pub(crate) respond: SendResponse<Bytes>,
    /// Has its connection say `GOAWAY`, and serve on what it has.
    pub(crate) going: Arc<Notify>,
}

impl Call {
    /// The body and its trailers, if it comes to its end.
    pub(crate) async fn read(&mut self) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
        let mut body = Vec::new();
        while let Some(piece) = self.body.data().await {
            let piece = piece?;
            self.body.flow_control().release_capacity(piece.len()).unwrap();
            body.extend_from_slice(&piece);
        }
        Ok((body, self.body.trailers().await?))
    }

    /// The head of the answer, and a body of these pieces, each sent once there is room.
    pub(crate) async fn answer(&mut self, head: Response<()>, pieces: &[&[u8]], trailers: Option<HeaderMap>) {
        let mut stream = self.respond.send_response(head, pieces.is_empty() && trailers.is_none()).unwrap();
        for (place, piece) in pieces.iter().enumerate() {
            let is_last = place + 1 == pieces.len() && trailers.is_none();
            if !send(&mut stream, Bytes::copy_from_slice(piece), is_last).await {
                return;
            }
        }
        if let Some(trailers) = trailers {
            let _gone = stream.send_trailers(trailers);
        }
    }
}

/// Sends a piece as there is room; whether it could.
pub(crate) async fn send(stream: &mut h2::SendStream<Bytes>, mut piece: Bytes, is_last: bool) -> bool {
    while !piece.is_empty() {
        stream.reserve_capacity(piece.len());
        match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(Ok(room)) => {
                let now = piece.split_to(room.min(piece.len()));
                if stream.send_data(now, false).is_err() {
                    return false;
                }
            }
            Some(Err(_)) | None => return false,
        }
    }
    !is_last || stream.send_data(Bytes::new(), true).is_ok()
}

pub(crate) type Answering = Pin<Box<dyn Future<Output = ()>>>;

/// The data service.
#[derive(Clone, Debug)]
pub(crate) struct Http2Upstream {
    /// Where it listens.
    pub(crate) address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    connections: Arc<Mutex<usize>>,
}

impl Http2Upstream {
    /// Serves each request with this, all on one thread.
    pub(crate) fn start(
        builder: &h2::server::Builder,
        tls: Option<Arc<rustls::ServerConfig>>,
        serve: impl Fn(Call) -> Answering + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let upstream = Self {
            address: listener.local_addr().unwrap().to_string(),
            asked: Arc::default(),
            connections: Arc::default(),
        };
        let (shared, builder) = (upstream.clone(), builder.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            LocalSet::new().block_on(&runtime, async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let serve = std::rc::Rc::new(serve);
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    stream.set_nodelay(true).unwrap();
                    let place = {
                        let mut connections = shared.connections.lock().unwrap();
                        *connections += 1;
                        *connections - 1
                    };
                    let (serve, asked, builder) =
                        (std::rc::Rc::clone(&serve), Arc::clone(&shared.asked), builder.clone());
                    match tls.clone() {
                        None => drop(tokio::task::spawn_local(connection(builder, stream, place, asked, serve))),
                        Some(tls) => drop(tokio::task::spawn_local(async move {
                            if let Ok(stream) = tokio_rustls::TlsAcceptor::from(tls).accept(stream).await {
                                connection(builder, stream, place, asked, serve).await;
                            }
                        })),
                    }
                }
            });
        });
        upstream
    }

    /// What it was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// What it was asked last, once it was asked.
    pub(crate) fn last(&self) -> Asked {
        wait_for("a request at the upstream", || self.asked().last().cloned())
    }

    /// How many connections were made to it.
    pub(crate) fn connections(&self) -> usize {
        *self.connections.lock().unwrap()
    }
}

async fn connection<S, F>(
    builder: h2::server::Builder,
    stream: S,
    place: usize,
    asked: Arc<Mutex<Vec<Asked>>>,
    serve: std::rc::Rc<F>,
) where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
    F: Fn(Call) -> Answering + 'static,
{
    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
    let going = Arc::new(Notify::new());
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            () = going.notified() => {
                connection.graceful_shutdown();
                continue;
            }
        };
        let Some(Ok((request, respond))) = accepted else { return };
        let (head, body): (Parts, RecvStream) = Request::into_parts(request);
        let told = Asked::of(&head, place);
        asked.lock().unwrap().push(told.clone());
        let call = Call { asked: told, body, respond, going: Arc::clone(&going) };
        tokio::task::spawn_local(serve(call));
    }
}

/// A connection of the sidecar, frame by frame (RFC 9113 section 4.1).
#[derive(Debug)]
pub(crate) struct Frames {
    stream: TcpStream,
}

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
/// `:status: 200`, of the static table of HPACK.
pub(crate) const STATUS_200: u8 = 0x88;

impl Frames {
    /// Takes a connection, reads the preface and says these settings.
    pub(crate) fn accept(listener: &TcpListener, settings: &[(u16, u32)]) -> Self {
        let (stream, _) = listener.accept().unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(super::CEILING)).unwrap();
        let mut frames = Self { stream };
        let mut preface = [0; 24];
        frames.stream.read_exact(&mut preface).unwrap();
        assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let payload = settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat());
        frames.send(SETTINGS, 0, 0, &payload.collect::<Vec<_>>());
        frames
    }

    /// Writes a frame.
    pub(crate) fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        let _gone = self.stream.write_all(&[&head, payload].concat());
    }

    /// The next frame; none, if the connection is closed.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).ok()?;
        let mut payload = vec![0; usize::try_from(u32::from_be_bytes([0, head[0], head[1], head[2]])).unwrap()];
        self.stream.read_exact(&mut payload).ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let frame = Frame { kind: head[3], flags: head[4], stream, payload };
        if frame.kind == SETTINGS && frame.flags == 0 {
            self.send(SETTINGS, 1, 0, &[]);
        }
        Some(frame)
    }

    /// The next frame of this kind; others are passed over.
    pub(crate) fn await_one(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().unwrap_or_else(|| panic!("no frame of kind {kind}"));
            if frame.kind == kind {
                return frame;
            }
        }
    }
}
