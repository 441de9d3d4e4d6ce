//! What the tests are made of: the program, a data service, a raw connection, the decision log.
//!
//! Everything waits for an event, at most [`CEILING`].

pub(crate) mod http2;
mod message;
mod sidecar;
mod upstream;

use std::fmt::Write as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;
use std::time::Duration;
use std::time::Instant;

pub(crate) use self::message::Answer;
pub(crate) use self::message::Connection;
pub(crate) use self::message::Head as MessageHead;
pub(crate) use self::sidecar::Folder;
pub(crate) use self::sidecar::Setup;
pub(crate) use self::sidecar::Sidecar;
pub(crate) use self::sidecar::records_in;
pub(crate) use self::upstream::Exchange;
pub(crate) use self::upstream::Then;
pub(crate) use self::upstream::Upstream;

/// Longest wait for anything. Not a measure of speed: what takes this long does not come.
pub(crate) const CEILING: Duration = Duration::from_secs(10);

/// The identity of `care-desk`, one of the processor's own callers.
pub(crate) const CARE_DESK: &str = "spiffe://lumenfield.example/ns/care/sa/care-desk";
/// Of `rollup`, which may do analytics only.
pub(crate) const ROLLUP: &str = "spiffe://lumenfield.example/ns/insights/sa/rollup";
/// Of nobody who is party to the agreement.
pub(crate) const STRANGER: &str = "spiffe://adsync.example/sa/bid";
/// A subscriber of a customer that permits `customer_support`.
pub(crate) const SUBSCRIBER: &str = "/v1/customers/redwood-strand/subscribers/1a2b";

/// A file of the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Runs the program in a folder, to its end.
pub(crate) fn run(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dpa-sidecar"));
    command.args(arguments).current_dir(folder).env_remove("DPA_CONFIG").output().unwrap()
}

/// What it wrote to standard output.
pub(crate) fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What it wrote to standard error.
pub(crate) fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Compares with the text in `tests/golden`: what is wrong, if anything is. `BLESS=1` writes the text anew.
pub(crate) fn as_golden(name: &str, text: &str) -> Option<String> {
    let golden = repository("tests/golden").join(name);
    if std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all(golden.parent().unwrap()).unwrap();
        std::fs::write(&golden, text).unwrap();
        return None;
    }
    let differs = std::fs::read_to_string(&golden).unwrap_or_default() != text;
    differs.then(|| format!("not as in {} (BLESS=1 writes it anew):\n{text}", golden.display()))
}

/// Asks until there is something.
pub(crate) fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(begin.elapsed() < CEILING, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A request head, to be completed.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    text: String,
}

impl Head {
    /// With a Host and nothing else.
    pub(crate) fn bare(method: &str, target: &str) -> Self {
        Self { text: format!("{method} {target} HTTP/1.1\r\nHost: data.example\r\n") }
    }

    /// From the care desk, for customer support: permitted.
    pub(crate) fn permitted(method: &str, target: &str) -> Self {
        Self::bare(method, target).with("DPA-Caller", CARE_DESK).with("DPA-Context", "purpose=customer_support")
    }

    /// From the care desk, for a purpose that is not its own: denied.
    pub(crate) fn denied(method: &str, target: &str) -> Self {
        Self::bare(method, target).with("DPA-Caller", CARE_DESK).with("DPA-Context", "purpose=customer_analytics")
    }

    /// One more header line.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        write!(self.text, "{name}: {value}\r\n").unwrap();
        self
    }

    /// The whole head.
    pub(crate) fn end(self) -> String {
        self.text + "\r\n"
    }

    /// The whole head, and a body with its length.
    pub(crate) fn body(self, body: &str) -> String {
        let length = body.len().to_string();
        self.with("Content-Length", &length).end() + body
    }
}

/// `GET`, permitted.
pub(crate) fn permitted() -> String {
    Head::permitted("GET", SUBSCRIBER).end()
}

/// `GET`, denied.
pub(crate) fn denied() -> String {
    Head::denied("GET", SUBSCRIBER).end()
}
