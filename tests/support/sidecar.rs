//! The program, started in a folder of its own.

use std::io::Read;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use serde_json::Value;

use super::Answer;
use super::Connection;
use super::repository;
use super::wait_for;

/// A folder that goes away with its owner.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// A new one.
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// A file in it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file in it.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.file(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _left_over = std::fs::remove_dir_all(&self.0);
    }
}

/// The pieces of a sidecar.yaml.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// `enforcement`.
    pub(crate) enforcement: &'static str,
    /// `trusted_peers` of the header that names the caller.
    pub(crate) peers: &'static str,
    /// More entries of `identity`, each with a comma before it.
    pub(crate) ways: &'static str,
    /// The upstream's address.
    pub(crate) upstream: String,
    /// More keys of the upstream, each with a comma before it.
    pub(crate) upstream_keys: &'static str,
    /// `decision_log`, in flow style.
    pub(crate) decision_log: String,
    /// More settings.
    pub(crate) more: &'static str,
    /// More arguments before the program: a wrapper that ends in starting it.
    pub(crate) wrapper: Vec<String>,
}

/// Routes of every kind.
const ROUTES: &str = "
  - path: /v1/customers/{customer}/subscribers/{id}
    customer: {from: path, name: customer}
    subscriber: {from: path, name: id}
    purpose: {from: context}
    data_categories: [user.contact]
  - path: /v1/search
    customer: {from: query, name: customer}
    subscriber: {from: query, name: subscriber}
    purpose: {from: context}
    data_categories: [user.contact]
  - path: /v1/usage/{*rest}
    customer: {from: context}
    purpose: {from: context}
    data_categories: [user.telemetry]
  - path: /v1/support
    customer: redwood-strand
    purpose: customer_support
    operation: retrieve
    data_categories: [user.contact]
  - {path: '/assets/{*rest}', methods: [GET, BREW], subscriber_data: false}
";

impl Setup {
    /// In front of the data service at this address; a decision log in a file.
    pub(crate) fn to(upstream: &str) -> Self {
        Self {
            enforcement: "enforce",
            peers: "127.0.0.1/32",
            ways: "",
            upstream: upstream.to_owned(),
            upstream_keys: "",
            decision_log: "{file: {path: decisions.ndjson}}".to_owned(),
            more: "",
            wrapper: Vec::new(),
        }
    }

    /// The sidecar.yaml.
    pub(crate) fn text(&self) -> String {
        let Self { enforcement, peers, ways, upstream, upstream_keys, decision_log, more, wrapper: _ } = self;
        let policy = Value::from(repository("config/policy.yaml").to_str().unwrap());
        format!(
            "service: {{name: subscriber-api, storage_location: US-OR, instance: pod-0}}
workers: 2
policy: {{file: {policy}}}
enforcement: {enforcement}
listeners: [{{name: main, address: '127.0.0.1:0', upstream: app}}]
upstreams: [{{name: app, address: '{upstream}'{upstream_keys}}}]
identity: [{{header: {{name: DPA-Caller, trusted_peers: [{peers}]}}}}{ways}]
routes:{ROUTES}probes: [/healthz]
decision_log: {decision_log}
{more}
"
        )
    }

    fn spawn_with(&self, text: &str, folder: &Folder) -> Child {
        let settings = folder.write("sidecar.yaml", text);
        let program = env!("CARGO_BIN_EXE_dpa-sidecar");
        let mut words = self.wrapper.iter().map(String::as_str).chain([program, "run", "--config"]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).arg(settings).env_remove("DPA_CONFIG").env("RUST_LOG", "info");
        piped(&mut command)
    }

    /// Starts it in a new folder and waits until it listens.
    pub(crate) fn start(&self) -> Sidecar {
        self.start_in(Folder::new())
    }

    /// Starts it in this folder and waits until it listens.
    pub(crate) fn start_in(&self, folder: Folder) -> Sidecar {
        self.start_with(&self.text(), folder)
    }

    /// The same, with another sidecar.yaml.
    pub(crate) fn start_with(&self, text: &str, folder: Folder) -> Sidecar {
        let child = self.spawn_with(text, &folder);
        Sidecar::listening(child, folder)
    }

    /// Starts it where it must not start: exit code and standard error.
    pub(crate) fn refused_in(&self, folder: &Folder) -> (Option<i32>, String) {
        self.refused_with(&self.text(), folder)
    }

    /// The same, with another sidecar.yaml.
    pub(crate) fn refused_with(&self, text: &str, folder: &Folder) -> (Option<i32>, String) {
        let mut child = self.spawn_with(text, folder);
        let stderr = Output::of(child.stderr.take().unwrap());
        let begin = std::time::Instant::now();
        while child.try_wait().unwrap().is_none() {
            if begin.elapsed() > super::CEILING {
                child.kill().unwrap();
                panic!("it started: {}", stderr.text());
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let code = child.wait().unwrap().code();
        (code, wait_for("the end of standard error", || stderr.whole()))
    }
}

fn piped(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What a pipe brought so far.
#[derive(Clone, Debug)]
pub(crate) struct Output(Arc<Mutex<(Vec<u8>, bool)>>);

impl Output {
    fn of(mut pipe: impl Read + Send + 'static) -> Self {
        let output = Self(Arc::default());
        let shared = output.clone();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            loop {
                let count = pipe.read(&mut chunk).unwrap_or(0);
                let mut text = shared.0.lock().unwrap();
                if count == 0 {
                    text.1 = true;
                    return;
                }
                text.0.extend_from_slice(&chunk[..count]);
            }
        });
        output
    }

    /// So far.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap().0).into_owned()
    }

    /// All, if it has ended.
    pub(crate) fn whole(&self) -> Option<String> {
        let has_ended = self.0.lock().unwrap().1;
        has_ended.then(|| self.text())
    }
}

/// A running sidecar; killed when it goes out of scope.
#[derive(Debug)]
pub(crate) struct Sidecar {
    child: Child,
    folder: Folder,
    /// Where it listens.
    pub(crate) address: String,
    /// Its standard output.
    pub(crate) stdout: Output,
    /// Its operational log.
    pub(crate) stderr: Output,
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _has_ended = self.child.kill();
        let _has_ended = self.child.wait();
    }
}

/// The whole lines of a decision log.
pub(crate) fn records_in(text: &str) -> Vec<Value> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

impl Sidecar {
    /// Starts the program with these settings, and waits until it listens.
    pub(crate) fn start(folder: Folder, settings: &str, environment: &[(&str, &str)]) -> Self {
        let settings = folder.write("sidecar.yaml", settings);
        let mut command = Command::new(env!("CARGO_BIN_EXE_dpa-sidecar"));
        command.args(["run", "--config"]).arg(settings).env_remove("DPA_CONFIG").env("RUST_LOG", "debug");
        let child = piped(command.envs(environment.iter().copied()));
        Self::listening(child, folder)
    }

    /// The same, with an operational log of JSON objects.
    pub(crate) fn start_json(folder: Folder, settings: &str) -> Self {
        let settings = folder.write("sidecar.yaml", settings);
        let mut command = Command::new(env!("CARGO_BIN_EXE_dpa-sidecar"));
        command.args(["--log-format", "json", "run", "--config"]).arg(settings).env_remove("DPA_CONFIG");
        let mut child = piped(command.env("RUST_LOG", "info"));
        let stdout = Output::of(child.stdout.take().unwrap());
        let stderr = Output::of(child.stderr.take().unwrap());
        let address = wait_for("the address", || {
            let text = stderr.text();
            let line = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let listening = line.into_iter().find(|line| line["message"] == "listening" && line["name"] == "main")?;
            Some(listening["address"].as_str().unwrap().to_owned())
        });
        Self { child, folder, address, stdout, stderr }
    }

    fn listening(mut child: Child, folder: Folder) -> Self {
        let stdout = Output::of(child.stdout.take().unwrap());
        let stderr = Output::of(child.stderr.take().unwrap());
        let address = wait_for("the address", || {
            let text = stderr.text();
            let has_ended = child.try_wait().unwrap().is_some();
            assert!(!has_ended, "it did not start: {}", stderr.text());
            let (_, rest) = text.split_once("listening name=main address=")?;
            Some(rest.split_once('\n')?.0.trim().to_owned())
        });
        Self { child, folder, address, stdout, stderr }
    }

    /// Where it keeps its decision log.
    pub(crate) fn log(&self) -> PathBuf {
        self.folder.file("decisions.ndjson")
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// A new connection to it.
    pub(crate) fn connect(&self) -> Connection {
        Connection::to(&self.address)
    }

    /// Sends one request on a connection of its own and reads the answer.
    pub(crate) fn ask(&self, request: impl AsRef<[u8]>) -> Answer {
        let mut connection = self.connect();
        connection.send(request);
        connection.answer().unwrap_or_else(|| panic!("no answer; {}", self.stderr.text()))
    }

    /// All records so far.
    pub(crate) fn records(&self) -> Vec<Value> {
        records_in(&std::fs::read_to_string(self.log()).unwrap())
    }

    /// The first record like this, once it is there.
    pub(crate) fn record(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, || self.records().into_iter().find(|record| is_it(record)))
    }

    /// The first record of a decision.
    pub(crate) fn decision(&self, id: &str) -> Value {
        self.record("a decision", |record| record["event"] == "dpa.decision" && record["decision_id"] == id)
    }

    /// How a forwarded request ended.
    pub(crate) fn outcome(&self, id: &str) -> Value {
        self.record("an outcome", |record| record["event"] == "dpa.outcome" && record["decision_id"] == id)
    }

    /// A sum of unread requests in which this is counted.
    pub(crate) fn unread(&self, why: &str) -> Value {
        self.record("dpa.unread", |record| record["event"] == "dpa.unread" && record[why].as_u64() > Some(0))
    }

    /// Asks for something that is permitted: it still serves.
    pub(crate) fn still_serves(&self) {
        let answer = self.ask(super::permitted());
        assert_eq!(answer.status, 200, "it does not serve any more: {answer:?} {}", self.stderr.text());
    }

    /// Whether its threads all live.
    pub(crate) fn is_sound(&mut self) {
        assert!(!self.stderr.text().contains("panicked"), "{}", self.stderr.text());
        assert!(self.child.try_wait().unwrap().is_none(), "it has ended: {}", self.stderr.text());
    }

    /// Waits until it has ended by itself.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        wait_for("the end", || self.child.try_wait().unwrap()).code()
    }

    /// What an ended one left behind.
    pub(crate) fn into_folder(mut self) -> Folder {
        std::mem::replace(&mut self.folder, Folder(PathBuf::new()))
    }

    /// Stops it as Kubernetes does, and gives back its folder and all that it wrote.
    pub(crate) fn stop(mut self) -> Stopped {
        let terminated = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(terminated.success());
        let code = self.ended();
        let stdout = wait_for("the end of standard output", || self.stdout.whole());
        let stderr = wait_for("the end of standard error", || self.stderr.whole());
        let folder = std::mem::replace(&mut self.folder, Folder(PathBuf::new()));
        Stopped { folder, code, stdout, stderr }
    }
}

/// What a sidecar left behind.
#[derive(Debug)]
pub(crate) struct Stopped {
    /// Its folder.
    pub(crate) folder: Folder,
    /// Its exit code.
    pub(crate) code: Option<i32>,
    /// All of its standard output.
    pub(crate) stdout: String,
    /// All of its operational log.
    pub(crate) stderr: String,
}
