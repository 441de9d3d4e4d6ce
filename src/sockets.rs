//! Where the sidecar listens: an address of this machine, or a Unix socket.

use std::fmt;
use std::io;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::io::Take;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::net::UnixListener;
use tokio::net::UnixStream;

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// IP address and port.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(out, "{address}"),
            Self::Unix(path) => write!(out, "unix:{}", path.display()),
        }
    }
}

/// A socket that listens; each worker has a [`Listener`] of it. The file of a Unix socket goes with it.
#[derive(Debug)]
pub enum Bound {
    /// By TCP.
    Tcp(std::net::TcpListener),
    /// On a Unix socket at this path.
    Unix(std::os::unix::net::UnixListener, PathBuf),
}

/// Connections that wait to be accepted: a burst of them, since one that does not fit waits a second to try again.
const BACKLOG: i32 = 4096;

/// Bytes of an answer that the kernel takes over before they are on their way.
#[cfg(target_os = "linux")]
const UNSENT: u32 = 64 * 1024;

/// When the kernel begins to ask whether the other side of a silent connection is still there, how often, and how many
/// times in vain: a caller that vanished without a word does not keep its stream for good.
const SILENT: Duration = Duration::from_secs(60);
const ASKED_EVERY: Duration = Duration::from_secs(10);
#[cfg(target_os = "linux")]
const ASKED_IN_VAIN: u32 = 4;

/// Who may connect to a Unix socket: the user and the group of the sidecar.
const MODE: u32 = 0o660;

impl Bound {
    /// Listens. What an earlier sidecar left of a Unix socket is replaced, unless somebody listens on it still.
    ///
    /// # Errors
    ///
    /// If somebody else listens there, or the address is not of this machine.
    pub fn listen(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => tcp(*address).map(Self::Tcp),
            Address::Unix(path) => unix(path).map(|socket| Self::Unix(socket, path.clone())),
        }
    }

    /// Where it really listens.
    ///
    /// # Errors
    ///
    /// If the system does not tell.
    pub fn address(&self) -> io::Result<Address> {
        match self {
            Self::Tcp(socket) => socket.local_addr().map(Address::Tcp),
            Self::Unix(_, path) => Ok(Address::Unix(path.clone())),
        }
    }

    /// A worker's share of it. Needs a runtime.
    ///
    /// # Errors
    ///
    /// If the process has no more descriptors.
    pub fn share(&self) -> io::Result<Listener> {
        match self {
            Self::Tcp(socket) => socket.try_clone().and_then(TcpListener::from_std).map(Listener::Tcp),
            Self::Unix(socket, _) => socket.try_clone().and_then(UnixListener::from_std).map(Listener::Unix),
        }
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // What is left is replaced at the next start.
            let _left_over = std::fs::remove_file(path);
        }
    }
}

fn tcp(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    // Accepted connections have it from here: what a caller does not take piles up where it is seen.
    #[cfg(target_os = "linux")]
    socket.set_tcp_notsent_lowat(UNSENT)?;
    let keep_alive = socket2::TcpKeepalive::new().with_time(SILENT).with_interval(ASKED_EVERY);
    #[cfg(target_os = "linux")]
    let keep_alive = keep_alive.with_retries(ASKED_IN_VAIN);
    socket.set_tcp_keepalive(&keep_alive)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn unix(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    if std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket()) {
        match std::os::unix::net::UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
            Ok(_) | Err(_) => return Err(io::ErrorKind::AddrInUse.into()),
        }
    }
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&socket2::SockAddr::unix(path)?)?;
    // Before anybody can connect.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A worker's share of a socket that listens.
#[derive(Debug)]
pub enum Listener {
    /// By TCP.
    Tcp(TcpListener),
    /// On a Unix socket.
    Unix(UnixListener),
}

/// A connection that was accepted.
#[derive(Debug)]
pub enum Accepted {
    /// By TCP, from this address.
    Tcp(TcpStream, SocketAddr),
    /// On a Unix socket.
    Unix(UnixStream),
}

impl Listener {
    /// Waits for the next connection.
    ///
    /// # Errors
    ///
    /// Mostly if the process has no more descriptors.
    pub async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Accepted::Tcp(stream, address))
            }
            Self::Unix(listener) => listener.accept().await.map(|(stream, _unnamed)| Accepted::Unix(stream)),
        }
    }
}

/// Most bytes of a body that are read at once. The HTTP library would read as much as it may keep of a head, and pass
/// that on in one piece, however many streams there are.
const SIP: u64 = 8 * 1024;

/// Most bytes that are read at once for who waits for them. A piece is read ahead, too: for who does not take them, that
/// one is small.
const GULP: u64 = 16 * 1024;

/// Whether who gets what is read from a stream has taken all of it, and waits for more.
#[derive(Clone, Debug, Default)]
pub struct Thirst(Arc<AtomicBool>);

impl Thirst {
    /// From now on it is so, or not.
    pub fn set(&self, is_thirsty: bool) {
        self.0.store(is_thirsty, Relaxed);
    }
}

/// A stream that is read in small pieces.
#[derive(Debug)]
pub struct Sips<S> {
    stream: Take<S>,
    thirst: Thirst,
}

impl<S: AsyncRead> Sips<S> {
    /// Reads this stream so.
    pub fn of(stream: S) -> Self {
        Self { stream: stream.take(SIP), thirst: Thirst::default() }
    }

    /// What is to be told of who gets what is read.
    pub fn thirst(&self) -> Thirst {
        self.thirst.clone()
    }

    /// The stream.
    #[must_use]
    pub fn get_ref(&self) -> &S {
        self.stream.get_ref()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Sips<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let most = if self.thirst.0.load(Relaxed) { GULP } else { SIP };
        if u64::try_from(buffer.remaining()).is_ok_and(|room| room <= most) {
            return Pin::new(self.stream.get_mut()).poll_read(cx, buffer);
        }
        self.stream.set_limit(most);
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Sips<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self.stream.get_mut()).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(self.stream.get_mut()).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.get_ref().is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_shutdown(cx)
    }
}
