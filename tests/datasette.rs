//! In front of a data service that nobody here wrote: Datasette on a database of made-up subscribers.
//!
//! Datasette is the executable that `DPA_DATASETTE` names, or one that is installed into
//! `target/peers/datasette`. Where neither can be had, the test says why and does nothing, except in CI
//! (`CI` is set), where it fails.

#![cfg(test)]

use std::collections::BTreeMap;
use std::env;
use std::error::Error;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::fs::File;
use std::io;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// How long a process may take to say that it is ready: an outer bound, not a wait.
const READY: Duration = Duration::from_secs(60);

/// Subscribers of each customer: enough that Datasette streams the export in several pieces.
const SUBSCRIBERS: u32 = 4000;

/// The first id. Ids count up from here in hex and so include 7c1e, about whom the policy has a restriction.
const FIRST_ID: u32 = 0x7000;

const CARE_DESK: &str = "spiffe://lumenfield.example/ns/care/sa/care-desk";
const HELP_DESK: &str = "spiffe://ticketriver.example/sa/sync";
const NIGHT_SUPPORT: &str = "spiffe://helpwright.example/sa/agent";
const STRANGER: &str = "spiffe://stranger.example/sa/x";

const EXPORT: &str = "/redwood-strand/subscribers.csv?_stream=on";

/// What reaches Datasette, and comes back as Datasette said it: name, method, who asks, target, status, media
/// type.
const PERMITTED: [(&str, &str, &str, &str, u16, &str); 9] = [
    ("a table", "GET", CARE_DESK, "/redwood-strand/subscribers.json?_shape=array&_size=100", 200, "application/json"),
    (
        "a later page",
        "GET",
        CARE_DESK,
        "/redwood-strand/subscribers.json?_shape=array&_next=7100",
        200,
        "application/json",
    ),
    (
        "a filter",
        "GET",
        CARE_DESK,
        "/redwood-strand/subscribers.json?_shape=array&email__endswith=42%40example.test",
        200,
        "application/json",
    ),
    ("a row", "GET", CARE_DESK, "/redwood-strand/subscriber.json?id=7001&_shape=array", 200, "application/json"),
    (
        "a row, for the help desk",
        "GET",
        HELP_DESK,
        "/redwood-strand/subscriber.json?id=7002&_shape=array",
        200,
        "application/json",
    ),
    ("an export", "GET", CARE_DESK, EXPORT, 200, "text/plain"),
    ("a head only", "HEAD", CARE_DESK, "/redwood-strand/subscribers.json?_shape=array", 200, "application/json"),
    ("what Datasette does not have", "GET", CARE_DESK, "/redwood-strand/nothing.json", 404, "application/json"),
    (
        "what Datasette refuses",
        "GET",
        CARE_DESK,
        "/redwood-strand.json?sql=delete+from+subscribers",
        400,
        "application/json",
    ),
];

/// Name, who asks, what for, target, status, reason.
type Refused = (&'static str, Option<&'static str>, &'static str, &'static str, u16, &'static str);

/// What never reaches Datasette.
const REFUSED: [Refused; 9] = [
    (
        "another purpose than the caller's",
        Some(CARE_DESK),
        "customer_analytics",
        EXPORT,
        403,
        "purpose_not_bound_to_caller",
    ),
    ("a purpose nobody may have", Some(CARE_DESK), "sale", EXPORT, 403, "purpose_prohibited"),
    ("no purpose", Some(CARE_DESK), "", EXPORT, 403, "purpose_missing"),
    ("no caller", None, "customer_support", EXPORT, 401, "caller_unidentified"),
    ("a stranger", Some(STRANGER), "customer_support", EXPORT, 403, "recipient_unknown"),
    (
        "a subprocessor that the customer objected to",
        Some(NIGHT_SUPPORT),
        "customer_support",
        "/fibre-outardes/subscribers.json",
        403,
        "subprocessor_objected",
    ),
    (
        "a subscriber who asked not to be used",
        Some(CARE_DESK),
        "customer_support",
        "/redwood-strand/subscriber.json?id=7c1e",
        403,
        "subscriber_restricted",
    ),
    (
        "a path that no route names",
        Some(CARE_DESK),
        "customer_support",
        "/redwood-strand/subscribers/7c1e.json",
        403,
        "route_unmapped",
    ),
    (
        "a target that may be read in two ways",
        Some(CARE_DESK),
        "customer_support",
        "/fibre-outardes/../redwood-strand/subscribers.json",
        400,
        "",
    ),
];

#[test]
fn in_front_of_datasette() -> Result<(), Box<dyn Error>> {
    let datasette = match datasette() {
        Ok(datasette) => datasette,
        Err(why) if env::var_os("CI").is_some() => return Err(why.into()),
        Err(why) => {
            writeln!(io::stderr(), "skipped: no Datasette: {why}")?;
            return Ok(());
        }
    };
    let folder = Folder::new("datasette")?;
    let (databases, access_log, decisions) =
        (folder.databases()?, folder.at("access.log"), folder.at("decisions.ndjson"));

    let mut command = Command::new(&datasette);
    command.args(["serve", "--host", "127.0.0.1", "--port", "0", "--metadata"]);
    command.arg(repository().join("tests/datasette/metadata.json")).args(databases);
    // Datasette says each request on standard output, and how it is doing on standard error.
    let service = Process::start(command.stdout(File::create(&access_log)?))?;
    let direct = service.address_behind("running on http://")?;

    let settings = folder.at("sidecar.yaml");
    fs::copy(repository().join("tests/datasette/sidecar.yaml"), &settings)?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_dpa-sidecar"));
    command.args(["run", "--config"]).arg(&settings).env("POLICY", repository().join("config/policy.yaml"));
    command.env("DATASETTE", direct.to_string()).env("LOG", &decisions);
    let mut sidecar = Process::start(command.stdout(Stdio::null()))?;
    let guarded = sidecar.address_behind("address=")?;

    let mut decided: BTreeMap<String, (&str, &str)> = BTreeMap::new();
    let mut reached: Vec<(&str, &str, u16)> = Vec::new();
    for (name, method, caller, target, status, media) in PERMITTED {
        let headers = [format!("DPA-Caller: {caller}"), "DPA-Context: purpose=customer_support".to_owned()];
        let through = curl(&folder, method, guarded, target, &headers)?;
        let there = curl(&folder, method, direct, target, &[])?;
        assert_eq!((through.status, there.status), (status, status), "{name}: {}", through.text());
        assert!(there.header("content-type").starts_with(media), "{name}: {}", there.header("content-type"));
        for (header, value) in &there.headers {
            // The date is the second of each answer; how the body is framed is each hop's own affair.
            if !["date", "transfer-encoding", "connection"].contains(&header.as_str()) {
                assert_eq!(through.header(header), value, "{name}: the header `{header}`");
            }
        }
        assert!(through.body == there.body, "{name}: the body differs: {}", through.text());
        assert_eq!(there.body.is_empty(), method == "HEAD", "{name}");
        if target == EXPORT {
            assert_eq!(through.body.split(|byte| *byte == b'\n').count(), usize::try_from(SUBSCRIBERS)? + 2, "{name}");
            assert!(through.body.len() > 256 * 1024, "{name}: too short to need streaming");
        }
        assert_eq!(decided.insert(through.header("dpa-decision-id").to_owned(), ("permit", "")), None, "{name}");
        reached.extend([(method, target, status); 2]);
    }
    for (name, caller, purpose, target, status, reason) in REFUSED {
        let mut headers: Vec<String> = caller.iter().map(|caller| format!("DPA-Caller: {caller}")).collect();
        if !purpose.is_empty() {
            headers.push(format!("DPA-Context: purpose={purpose}"));
        }
        let answer = curl(&folder, "GET", guarded, target, &headers)?;
        assert_eq!(answer.status, status, "{name}: {}", answer.text());
        assert_eq!(answer.header("content-type"), "application/problem+json", "{name}");
        let problem: serde_json::Value = serde_json::from_slice(&answer.body)?;
        if !reason.is_empty() {
            assert_eq!(problem["reason"], reason, "{name}: {problem}");
        }
        assert_eq!(decided.insert(answer.header("dpa-decision-id").to_owned(), ("deny", reason)), None, "{name}");
    }
    // A last request shows that the access log is complete up to here.
    let last = "/redwood-strand/subscribers.json?_shape=array&_size=1";
    assert_eq!(curl(&folder, "GET", direct, last, &[])?.status, 200);
    reached.push(("GET", last, 200));
    assert_eq!(
        accesses(&access_log)?,
        reached.iter().map(|(method, target, status)| format!("{method} {target} {status}")).collect::<Vec<_>>(),
        "what Datasette says that it was asked"
    );

    // SIGTERM: all is answered, so the sidecar ends, and writes its log last.
    assert!(Command::new("kill").arg(sidecar.child.id().to_string()).status()?.success());
    assert!(sidecar.child.wait()?.success(), "the sidecar did not stop cleanly");
    let log = fs::read_to_string(&decisions)?;
    let mut outcomes = 0;
    for line in log.lines() {
        let record: serde_json::Value = serde_json::from_str(line)?;
        let id = record["decision_id"].as_str().unwrap_or_default();
        match record["event"].as_str() {
            Some("dpa.decision") => {
                let (decision, reason) = decided.remove(id).ok_or_else(|| format!("decided, not answered: {line}"))?;
                assert_eq!(record["decision"], decision, "{line}");
                if !reason.is_empty() {
                    assert_eq!(record["reason"], reason, "{line}");
                }
            }
            Some("dpa.outcome") => {
                assert_eq!(record["outcome"], "completed", "{line}");
                outcomes += 1;
            }
            _ => {}
        }
    }
    assert!(decided.is_empty(), "answered, not in the decision log: {decided:?}");
    assert_eq!(outcomes, PERMITTED.len());
    for secret in ["example.test", "=7c1e", "subscribers.test"] {
        assert!(!log.contains(secret), "the decision log holds `{secret}`");
    }
    Ok(())
}

/// Method, target and status of each line of an access log such as
/// `INFO:     127.0.0.1:36850 - "GET /a.json HTTP/1.1" 200 OK`.
fn accesses(log: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let mut accesses = Vec::new();
    for line in fs::read_to_string(log)?.lines() {
        let (_, rest) = line.split_once(" - \"").ok_or_else(|| format!("no access: {line}"))?;
        let (asked, answered) = rest.split_once(" HTTP/1.1\" ").ok_or_else(|| format!("no access: {line}"))?;
        accesses.push(format!("{asked} {}", answered.split(' ').next().unwrap_or_default()));
    }
    Ok(accesses)
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The executable of Datasette, or why there is none.
fn datasette() -> Result<PathBuf, String> {
    if let Some(path) = env::var_os("DPA_DATASETTE") {
        return Ok(path.into());
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap_or(Path::new("target"));
    let folder = target.join("peers/datasette");
    let (executable, stamp) = (folder.join("bin/datasette"), folder.join("installed.txt"));
    let requirements = repository().join("tests/datasette/requirements.txt");
    let wanted = fs::read(&requirements).map_err(|error| error.to_string())?;
    // The stamp comes last: an installation that broke off is done again.
    if !fs::read(&stamp).is_ok_and(|installed| installed == wanted) {
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
        let mut pip = Command::new(folder.join("bin/pip"));
        run(pip.args(["install", "--quiet", "--disable-pip-version-check", "--requirement"]).arg(requirements))?;
        fs::write(&stamp, wanted).map_err(|error| error.to_string())?;
    }
    Ok(executable)
}

/// Runs a command to its end and returns what it printed; if it fails, what it said.
fn run(command: &mut Command) -> Result<Vec<u8>, String> {
    let name = command.get_program().to_owned();
    let output = command.output().map_err(|error| format!("{}: {error}", name.display()))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(format!("{}: {}: {}", name.display(), output.status, String::from_utf8_lossy(&output.stderr)))
}

/// A folder of one test, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> io::Result<Self> {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a database for each of two customers.
    fn databases(&self) -> Result<Vec<PathBuf>, String> {
        ["redwood-strand", "fibre-outardes"].into_iter().map(|customer| self.database(customer)).collect()
    }

    fn database(&self, customer: &str) -> Result<PathBuf, String> {
        let (path, script) = (self.at(&format!("{customer}.db")), self.at("subscribers.sql"));
        fs::write(&script, subscribers()).map_err(|error| error.to_string())?;
        let program = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).executescript(open(sys.argv[2]).read())";
        run(Command::new("python3").args(["-X", "utf8", "-c", program]).args([&path, &script]))?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Kept where somebody has to see what went wrong.
        if !thread::panicking() {
            let _left_behind = fs::remove_dir_all(&self.0);
        }
    }
}

/// Made-up subscribers, the same in every run: names that CSV has to quote, and letters beyond ASCII.
fn subscribers() -> String {
    const FIRST: [&str; 7] = ["Ada", "Émile", "Noor", "José", "Wren", "Zoë", "Ivo"];
    const LAST: [&str; 5] = ["Example", "O''Sample", "de la Forêt", "\"Skip\" Placeholder", "Muster, jr."];
    const PLANS: [&str; 3] = ["fibre 100", "fibre 1000", "copper"];
    let pick = |list: &[&'static str], number: u32| {
        let length = u32::try_from(list.len()).unwrap_or(1);
        usize::try_from(number % length).ok().and_then(|place| list.get(place).copied()).unwrap_or_default()
    };
    let mut script =
        "begin; create table subscribers (id text primary key, name text, email text, plan text, note text);\n"
            .to_owned();
    for number in 0..SUBSCRIBERS {
        let (first, last) = (pick(&FIRST, number), pick(&LAST, number / 3));
        let (id, plan) = (FIRST_ID + number, pick(&PLANS, number / 2));
        let note = "line fault reported and repaired; ".repeat(usize::try_from(number % 4).unwrap_or(0));
        let _infallible = writeln!(
            script,
            "insert into subscribers values ('{id:04x}', '{first} {last}', 's{number}@example.test', '{plan}', '{note}');"
        );
    }
    script.push_str("commit;\n");
    script
}

/// A server that is killed when it is dropped. What it says on standard error is read as it comes.
struct Process {
    child: Child,
    said: mpsc::Receiver<String>,
}

impl Process {
    fn start(command: &mut Command) -> Result<Self, Box<dyn Error>> {
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let errors = child.stderr.take().ok_or("no standard error")?;
        let (say, said) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                // Read on when nobody listens any more: a full pipe would stop the server.
                let _nobody_listens = say.send(line);
            }
        });
        Ok(Self { child, said })
    }

    /// Waits for a line that has an address behind `mark`.
    fn address_behind(&self, mark: &str) -> Result<SocketAddr, Box<dyn Error>> {
        let mut all = String::new();
        loop {
            let Ok(line) = self.said.recv_timeout(READY) else {
                return Err(format!("not ready; it said:\n{all}").into());
            };
            if let Some((_, address)) = line.split_once(mark) {
                let end = address.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':');
                return Ok(address.get(..end.unwrap_or(address.len())).unwrap_or_default().parse()?);
            }
            let _infallible = writeln!(all, "{line}");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _already_waited = self.child.wait();
    }
}

struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// The head of the body, for a message.
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).chars().take(500).collect()
    }
}

/// Asks with the curl of this machine. The Host is always the same, since Datasette writes it into links.
fn curl(
    folder: &Folder,
    method: &str,
    to: SocketAddr,
    target: &str,
    headers: &[String],
) -> Result<Answer, Box<dyn Error>> {
    let head = folder.at("head");
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--max-time", "60", "--noproxy", "*", "--path-as-is", "--globoff"]);
    if method == "HEAD" {
        curl.arg("--head").args(["--output", "/dev/null"]);
    } else {
        curl.args(["--request", method]);
    }
    curl.args([OsStr::new("--dump-header"), head.as_os_str()]).args(["--header", "Host: subscribers.test"]);
    for header in headers {
        curl.args(["--header", header]);
    }
    let body = run(curl.arg(format!("http://{to}{target}")))?;
    let head = fs::read_to_string(head)?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).ok_or("no status")?.parse()?;
    let fields = lines.filter_map(|line| line.split_once(':'));
    let headers = fields.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
    Ok(Answer { status, headers, body })
}
