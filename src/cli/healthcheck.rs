//! `healthcheck`: asks the health listener, for a container that has no other program to ask with.

use std::io;
use std::io::Read as _;
use std::io::Write;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use super::CliError;
use super::Exit;
use crate::config;
use crate::reload;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dpa-sidecar healthcheck --config sidecar.yaml
  dpa-sidecar healthcheck --address 127.0.0.1:9901
  dpa-sidecar healthcheck --live --timeout 1s

In an image that holds nothing else:
  HEALTHCHECK --timeout=3s CMD [\"/dpa-sidecar\", \"healthcheck\", \"-c\", \"/etc/dpa-sidecar/sidecar.yaml\"]

Exit codes: 0 ready, 1 not ready, 2 could not tell (nobody answers, no `health` in the settings, unreadable file).")]
pub(super) struct Arguments {
    /// The settings: their `health.address` is asked.
    #[arg(short, long, env = "DPA_CONFIG")]
    config: Option<PathBuf>,
    /// Where the health listener listens, whatever the settings say.
    #[arg(short, long)]
    address: Option<SocketAddr>,
    /// Ask whether the process lives (/livez), not whether it is ready (/readyz).
    #[arg(long)]
    live: bool,
    /// How long the answer may take: a whole number and `ms`, `s` or `m`.
    #[arg(long, default_value = "2s", value_parser = time)]
    timeout: Duration,
}

fn time(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).unwrap_or((text, ""));
    let scale = match unit {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" => Some(60_000),
        _ => None,
    };
    let millis = number.parse::<u64>().ok().zip(scale).and_then(|(number, scale)| number.checked_mul(scale));
    match millis {
        Some(1..=3_600_000) => Ok(Duration::from_millis(millis.unwrap_or_default())),
        Some(_) | None => {
            Err("write a whole number above 0 with `ms`, `s` or `m`, such as `2s`; an hour at most".into())
        }
    }
}

/// Most bytes of an answer that are read.
const MOST_BYTES: u64 = 64 * 1024;

pub(super) fn healthcheck(arguments: &Arguments, out: &mut dyn Write) -> Result<Exit, CliError> {
    let address = match (arguments.address, &arguments.config) {
        (Some(address), _) => address,
        (None, Some(config)) => {
            let source = reload::read(config)?;
            let found = config::health_address(&source, &config::environment).map_err(CliError::Unknown)?;
            found.ok_or(CliError::Usage("the settings have no `health`: add `health: {address: …}`"))?
        }
        (None, None) => return Err(CliError::Usage("give `--config sidecar.yaml`, or `--address IP:PORT`")),
    };
    let path = if arguments.live { "/livez" } else { "/readyz?verbose" };
    let asked = ask(reached_at(address), path, Instant::now() + arguments.timeout);
    let (status, text) = asked.map_err(|source| CliError::Probe { address, source })?;
    out.write_all(text.as_bytes())?;
    match status {
        200 => Ok(Exit::Yes),
        503 => Ok(Exit::No),
        _ => Err(CliError::Unknown(format!("`{address}` answers {status}: it is not the health listener"))),
    }
}

/// Where this machine reaches what listens at all its addresses.
fn reached_at(address: SocketAddr) -> SocketAddr {
    let here = match address.ip() {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let ip = if address.ip().is_unspecified() { here } else { address.ip() };
    SocketAddr::new(ip, address.port())
}

/// The status and the body of the answer.
fn ask(address: SocketAddr, path: &str, deadline: Instant) -> io::Result<(u16, String)> {
    let left = || match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::Error::from(io::ErrorKind::TimedOut)),
        left => Ok(left),
    };
    let mut stream = TcpStream::connect_timeout(&address, left()?)?;
    stream.set_write_timeout(Some(left()?))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        // Each read has what is left of the time: an answer that trickles has no more than one that does not come.
        stream.set_read_timeout(Some(left()?))?;
        let count = match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        answer.extend_from_slice(chunk.get(..count).unwrap_or_default());
        if u64::try_from(answer.len()).unwrap_or(u64::MAX) > MOST_BYTES {
            break;
        }
    }
    let text = String::from_utf8_lossy(&answer);
    let no_answer = || io::Error::new(io::ErrorKind::InvalidData, "what it says is no HTTP");
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(no_answer)?;
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.split(' ').next()?.get(..3)?.parse().ok());
    // Somebody else's answer does not reach the terminal as it is.
    let body = body.chars().filter(|c| *c == '\n' || !c.is_control()).collect();
    Ok((status.ok_or_else(no_answer)?, body))
}
