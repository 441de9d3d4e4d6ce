//! Reads files from disk: the policy's once, certificates and keys again when they change.

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;

use crate::doors::proxy::Clock;
use crate::keys::KeySource;
use crate::keys::Origin;
use crate::policy;
use crate::policy::Policy;
use crate::policy::problem::Code;
use crate::policy::problem::Problem;
use crate::policy::problem::Problems;
use crate::policy::problem::Source;
use crate::telemetry::chain;
use crate::tls;
use crate::yaml::Node;

/// A file that cannot be read at all.
#[derive(Debug, thiserror::Error)]
#[error("cannot read `{path}`")]
pub struct ReadError {
    /// The file.
    pub path: String,
    /// Why.
    pub source: std::io::Error,
}

/// A policy as it was read, or what is wrong with it.
#[derive(Debug)]
pub struct Loaded {
    /// The files, the policy first.
    pub sources: Vec<Source>,
    /// The policy, unless a problem is an error.
    pub policy: Option<Policy>,
    /// What was found.
    pub problems: Problems,
}

/// Reads a file of at most 16 MiB; `-` is standard input.
///
/// # Errors
///
/// [`ReadError`], also if it is larger or no UTF-8.
pub fn read(path: &Path) -> Result<Source, ReadError> {
    use std::io::Read as _;
    let shown = path.display().to_string();
    let failed = |source| ReadError { path: shown.clone(), source };
    let mut bytes = Vec::new();
    if path.as_os_str() == "-" {
        std::io::stdin().lock().take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    } else {
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    }
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_BYTES {
        return Err(failed(std::io::Error::other("it is larger than 16 MiB; customers may go to `customer_files`")));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let before = error.as_bytes().iter().take(error.utf8_error().valid_up_to());
        let line = 1 + before.filter(|byte| **byte == b'\n').count();
        failed(std::io::Error::other(format!("line {line} is not UTF-8; save the file in that encoding")))
    })?;
    Ok(Source { path: shown, text })
}

/// Largest file that is read. A policy of 10,000 customers has about 6 MiB.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// Reads and compiles a policy with its customer files. See [`policy::compile`] for `amend` and `look_out`.
///
/// # Errors
///
/// [`ReadError`] if the policy file itself cannot be read; all else is a problem with a place.
pub fn load(path: &Path, amend: Option<&Node>, look_out: Option<Timestamp>) -> Result<Loaded, ReadError> {
    let first = read(path)?;
    Ok(compile(first, amend, look_out))
}

/// Compiles a policy that was read, with its customer files.
#[must_use]
pub fn compile(first: Source, amend: Option<&Node>, look_out: Option<Timestamp>) -> Loaded {
    let folder = Path::new(&first.path).parent().map(Path::to_path_buf).unwrap_or_default();
    let mut names = vec![Path::new(&first.path).file_name().unwrap_or_default().to_string_lossy().into_owned()];
    let mut problems = Problems::default();
    let globs = policy::customer_file_globs(&first.text);
    let mut sources = vec![first];
    for (glob, at) in globs {
        let mut wrong =
            |message: String, help: &str| problems.push(Problem::error(Code::CustomerFiles, at, message, help));
        let pattern = Path::new(&glob::Pattern::escape(&folder.to_string_lossy())).join(&glob);
        let Ok(paths) = glob::glob(&pattern.to_string_lossy()) else {
            wrong(format!("`{glob}` is not a pattern of file names"), "write one such as `customers.d/*.yaml`");
            continue;
        };
        let mut found = false;
        for path in paths {
            let read = path.map_err(std::io::Error::from).and_then(|path| {
                let name = path.strip_prefix(&folder).unwrap_or(&path).to_string_lossy().into_owned();
                read(&path).map(|source| (name, source)).map_err(|error| error.source)
            });
            match read {
                Ok((name, _)) if names.first() == Some(&name) => {}
                Ok((name, _)) if names.contains(&name) => found = true,
                Ok((name, source)) => {
                    found = true;
                    names.push(name);
                    sources.push(source);
                }
                Err(error) => {
                    found = true;
                    wrong(format!("a file of `{glob}` cannot be read: {error}"), "make it readable, or remove it");
                }
            }
        }
        if !found {
            wrong(format!("no file matches `{glob}`"), "correct the pattern, or add the file");
        }
    }
    let (policy, more) = policy::compile(&sources, &names, amend, look_out);
    problems.0.extend(more.0);
    let policy = policy.filter(|_| !problems.has_errors());
    Loaded { sources, policy, problems }
}

/// How often files are looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Files that belong together, and what to do when one of them has other content than before.
pub struct Watched {
    /// For the operational log.
    pub name: String,
    /// The files. A symbolic link is followed anew each time, so that a swapped volume is seen.
    pub paths: Vec<PathBuf>,
    /// Takes the new content, one entry a path, or says why it cannot: then what was there stays in force.
    pub renew: Renew,
}

/// Takes the content of files.
pub type Renew = Box<dyn FnMut(&[Vec<u8>]) -> Result<(), String> + Send>;

/// What the last look at files saw.
#[derive(Default)]
enum Seen {
    /// There was none.
    #[default]
    Nothing,
    /// Content that was taken.
    Taken(Vec<Vec<u8>>),
    /// Content that was refused, or none where files cannot be read. It is told when it is seen again: files that
    /// are written one after the other do not fit each other for a moment.
    Refused(Option<Vec<Vec<u8>>>, bool),
}

/// Looks at the files once a second and renews what changed, until the drain begins.
///
/// By content: neither the time stamps nor the names of files count. A file that cannot be read, and content
/// that is refused, change nothing, and are told once. The first look takes all that is there: it may have changed
/// since it was read at the start.
pub async fn watch(mut all: Vec<Watched>, mut draining: watch::Receiver<bool>) {
    let mut seen: Vec<Seen> = all.iter().map(|_| Seen::default()).collect();
    loop {
        for (watched, seen) in all.iter_mut().zip(&mut seen) {
            look(watched, seen);
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_AGAIN) => {}
            // Without its sender the sidecar is gone.
            changed = draining.changed() => if changed.is_err() || *draining.borrow() { return },
        }
    }
}

fn look(watched: &mut Watched, seen: &mut Seen) {
    let now = contents(&watched.paths);
    let is_known = match seen {
        Seen::Nothing | Seen::Refused(_, false) => false,
        Seen::Taken(before) => now.as_ref().is_ok_and(|now| now == before),
        Seen::Refused(before, true) => now.as_ref().ok() == before.as_ref(),
    };
    if is_known {
        return;
    }
    let refused = match now {
        Err(error) => (None, error.to_string()),
        Ok(now) => match (watched.renew)(&now) {
            Err(error) => (Some(now), error),
            Ok(()) => {
                if !matches!(seen, Seen::Nothing) {
                    tracing::info!(what = watched.name, "renewed from changed files");
                }
                *seen = Seen::Taken(now);
                return;
            }
        },
    };
    let (content, error) = refused;
    let is_told = match seen {
        Seen::Refused(before, false) if *before == content => {
            tracing::error!(what = watched.name, error, "changed files are refused; the former stay in force");
            true
        }
        Seen::Nothing | Seen::Taken(_) | Seen::Refused(..) => false,
    };
    *seen = Seen::Refused(content, is_told);
}

/// How often ends of certificates are looked for.
const LOOK_OUT: Duration = Duration::from_secs(60);

/// Starts the thread `dpa-reload`, which renews what is made of files and warns of what in them ends. It goes away
/// when the drain begins.
///
/// # Errors
///
/// If the thread or its runtime cannot be made.
pub fn start(
    all: tls::All,
    keys: Vec<Arc<KeySource>>,
    clock: Clock,
    draining: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let servers = all.servers.iter().flat_map(of_server);
    let clients = all.clients.iter().flat_map(of_client);
    let watched: Vec<Watched> = servers.chain(clients).chain(keys.iter().filter_map(of_keys)).collect();
    if watched.is_empty() && keys.is_empty() {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let look_out = async move {
        let mut look_out = tls::LookOut::default();
        loop {
            look_out.look(&all.endings(), clock.now());
            tokio::time::sleep(LOOK_OUT).await;
        }
    };
    let look = move || {
        runtime.block_on(async {
            for source in keys {
                tokio::spawn(source.keep_fetched(draining.clone()));
            }
            tokio::select! {
                () = watch(watched, draining) => {}
                () = look_out => {}
            }
        });
    };
    std::thread::Builder::new().name("dpa-reload".to_owned()).spawn(look).map(drop)
}

fn of_keys(source: &Arc<KeySource>) -> Option<Watched> {
    let path = match &source.origin {
        Origin::File(path) => path.clone(),
        Origin::Url { .. } => return None,
    };
    let (source, name) = (Arc::clone(source), format!("keys of {}", source.issuer));
    let renew = move |contents: &[Vec<u8>]| match contents {
        [bytes] => source.take(bytes).map_err(|error| chain(&error).to_string()),
        _ => Ok(()),
    };
    Some(Watched { name, paths: vec![path], renew: Box::new(renew) })
}

fn of_server(server: &Arc<tls::Server>) -> impl Iterator<Item = Watched> {
    server.parts().into_iter().map(|part| {
        let (server, name, paths) = (Arc::clone(server), part.name.clone(), part.paths.clone());
        let renew = move |contents: &[Vec<u8>]| server.renew(&part, contents).map_err(|error| error.to_string());
        Watched { name, paths, renew: Box::new(renew) }
    })
}

fn of_client(client: &Arc<tls::Client>) -> impl Iterator<Item = Watched> {
    client.parts().into_iter().map(|part| {
        let (client, name, paths) = (Arc::clone(client), part.name.clone(), part.paths.clone());
        let renew = move |contents: &[Vec<u8>]| client.renew(&part, contents).map_err(|error| error.to_string());
        Watched { name, paths, renew: Box::new(renew) }
    })
}

fn contents(paths: &[PathBuf]) -> std::io::Result<Vec<Vec<u8>>> {
    use std::io::Read as _;
    let read = |path: &PathBuf| {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    paths.iter().map(read).collect()
}
