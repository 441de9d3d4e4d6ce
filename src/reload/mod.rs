//! Reads files from disk, and again when they change: the policy's, certificates, keys.

pub mod agreed;
mod find;
pub mod gather;
mod policy;

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::sync::watch;

pub use self::agreed::Baseline;
pub use self::agreed::held_against;
pub use self::gather::Gathered;
pub use self::gather::PolicySource;
pub use self::policy::Accepted;
pub use self::policy::PolicyWatch;
pub use self::policy::Refusal;
use crate::doors::proxy::Clock;
use crate::files;
use crate::keys::KeySource;
use crate::keys::Origin;
use crate::policy::Policy;
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
    let shown = path.display().to_string();
    let failed = |source| ReadError { path: shown.clone(), source };
    let read = match path.as_os_str() == "-" {
        true => files::bounded(std::io::stdin().lock(), MAX_BYTES),
        false => files::read(path, MAX_BYTES),
    };
    let bytes = read.map_err(failed)?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let before = error.as_bytes().iter().take(error.utf8_error().valid_up_to());
        let line = 1 + before.filter(|byte| **byte == b'\n').count();
        failed(std::io::Error::other(format!("line {line} is not UTF-8; save the file in that encoding")))
    })?;
    Ok(Source { path: shown, text })
}

/// Largest file that is read. A policy of 10,000 customers has about 6 MiB.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// Reads and compiles a policy with its customer files, signed or not. See [`crate::policy::compile`] for `amend` and
/// `look_out`.
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
    Gathered::around(first).compile(amend, look_out)
}

/// How often files are looked at again. What is the same at two looks is taken.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// After how many looks content that was refused is tried again: its time may have come.
const TRY_AGAIN: u32 = 60;

/// Files that belong together, and what to do when one of them has other content than before.
pub struct Watched {
    /// For the operational log.
    pub name: String,
    /// The files. A symbolic link is followed anew each time, so that a swapped volume is seen.
    pub paths: Vec<PathBuf>,
    /// Most bytes of each.
    pub most: u64,
    /// Takes the new content, one entry a path, or says why it cannot: then what was there stays in force.
    pub renew: Renew,
}

/// Takes the content of files.
pub type Renew = Box<dyn FnMut(&[Vec<u8>]) -> Result<(), String> + Send>;

/// The content of files; none where they cannot be read.
type Contents = Option<Vec<Vec<u8>>>;

/// What the looks at files saw.
#[derive(Default)]
struct Seen {
    /// What was dealt with last, and whether it was taken.
    settled: Option<(Contents, bool)>,
    /// Other content, as the last look saw it: files may be half written.
    fresh: Option<Contents>,
    /// Looks since the last refusal.
    looks: u32,
}

/// Looks at the files twice a second and renews what changed and has settled, until the drain begins.
///
/// By content: neither the time stamps nor the names of files count. A file that cannot be read, and content
/// that is refused, change nothing, and are told once. What is there at the first looks is taken too: it may have
/// changed since it was read at the start.
///
/// `again` is somebody who says that the files are whole: then they are taken at once, also what was refused before.
pub async fn watch(mut all: Vec<Watched>, mut draining: watch::Receiver<bool>, again: &Notify) {
    let mut seen: Vec<Seen> = all.iter().map(|_| Seen::default()).collect();
    loop {
        for (watched, seen) in all.iter_mut().zip(&mut seen) {
            look(watched, seen);
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_AGAIN) => {}
            () = again.notified() => for (watched, seen) in all.iter_mut().zip(&mut seen) {
                seen.looks = TRY_AGAIN;
                // Two looks: this one, and the next round's.
                look(watched, seen);
            },
            // Without its sender the sidecar is gone.
            changed = draining.changed() => if changed.is_err() || *draining.borrow() { return },
        }
    }
}

fn look(watched: &mut Watched, seen: &mut Seen) {
    let (now, unread) =
        match watched.paths.iter().map(|path| files::read(path, watched.most)).collect::<std::io::Result<_>>() {
            Ok(now) => (Some(now), String::new()),
            Err(error) => (None, error.to_string()),
        };
    let known = seen.settled.as_ref().filter(|(before, _)| *before == now).map(|(_, is_taken)| *is_taken);
    if known.is_some() {
        seen.fresh = None;
        seen.looks = seen.looks.saturating_add(1);
        if known == Some(true) || seen.looks < TRY_AGAIN {
            return;
        }
    } else if seen.fresh.as_ref() != Some(&now) {
        seen.fresh = Some(now);
        return;
    }
    let is_first = seen.settled.is_none();
    let refused = match &now {
        None => Some(unread),
        Some(now) => (watched.renew)(now).err(),
    };
    match &refused {
        Some(error) if known.is_none() => {
            tracing::error!(what = watched.name, error, "changed files are refused; the former stay in force");
        }
        None if !is_first => tracing::info!(what = watched.name, "renewed from changed files"),
        Some(_) | None => {}
    }
    *seen = Seen { settled: Some((now, refused.is_none())), fresh: None, looks: 0 };
}

/// Somebody who says that the files are whole: they are read again at once.
#[derive(Debug, Default)]
pub struct Again {
    credentials: Notify,
    policy: Notify,
}

impl Again {
    /// Has all files read again.
    pub fn now(&self) {
        self.credentials.notify_one();
        self.policy.notify_one();
    }
}

/// How often ends of certificates are looked for.
const LOOK_OUT: Duration = Duration::from_secs(60);

/// Starts the thread `dpa-reload`, which renews what is made of files, the policy too, and warns of what in them ends.
/// It goes away when the drain begins.
///
/// # Errors
///
/// If the thread or its runtime cannot be made.
pub fn start(
    all: tls::All,
    keys: Vec<Arc<KeySource>>,
    policy: PolicyWatch,
    clock: Clock,
    draining: watch::Receiver<bool>,
    again: Arc<Again>,
) -> std::io::Result<()> {
    let servers = all.servers.iter().flat_map(|server| of_server(server, clock));
    let clients = all.clients.iter().flat_map(|client| of_client(client, clock));
    let watched: Vec<Watched> = servers.chain(clients).chain(keys.iter().filter_map(of_keys)).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().thread_name("dpa-files").build()?;
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
                () = watch(watched, draining.clone(), &again.credentials) => {}
                () = policy.watch(draining, &again.policy) => {}
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
    Some(Watched { name, paths: vec![path], most: crate::keys::MAX_BYTES, renew: Box::new(renew) })
}

fn of_server(server: &Arc<tls::Server>, clock: Clock) -> impl Iterator<Item = Watched> {
    server.parts().into_iter().map(move |part| {
        let (server, name, paths) = (Arc::clone(server), part.name.clone(), part.paths.clone());
        let renew =
            move |contents: &[Vec<u8>]| server.renew(&part, contents, clock.now()).map_err(|error| error.to_string());
        Watched { name, paths, most: tls::MAX_BYTES, renew: Box::new(renew) }
    })
}

fn of_client(client: &Arc<tls::Client>, clock: Clock) -> impl Iterator<Item = Watched> {
    client.parts().into_iter().map(move |part| {
        let (client, name, paths) = (Arc::clone(client), part.name.clone(), part.paths.clone());
        let renew =
            move |contents: &[Vec<u8>]| client.renew(&part, contents, clock.now()).map_err(|error| error.to_string());
        Watched { name, paths, most: tls::MAX_BYTES, renew: Box::new(renew) }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A bundle that was being written ended between two certificates when it was looked at.
    #[test]
    fn half_a_bundle_was_taken_at_the_first_look() {
        let path = std::env::temp_dir().join(format!("dpa-sidecar-bundle-{}", std::process::id()));
        let taken = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&taken);
        let renew = move |contents: &[Vec<u8>]| {
            let text = String::from_utf8(contents.concat()).unwrap();
            let is_good = text != "bad";
            shared.lock().unwrap().push(text);
            if is_good { Ok(()) } else { Err("bad".to_owned()) }
        };
        let mut watched =
            Watched { name: "a bundle".to_owned(), paths: vec![path.clone()], most: 100, renew: Box::new(renew) };
        let mut seen = Seen::default();
        let steps = [("one", 3), ("one two", 1), ("one two three", 3), ("bad", TRY_AGAIN + 4), ("one", 2)];
        for (text, looks) in steps {
            std::fs::write(&path, text).unwrap();
            for _ in 0..looks {
                look(&mut watched, &mut seen);
            }
        }
        std::fs::remove_file(&path).unwrap();
        // What is refused is tried again, since its time may come.
        assert_eq!(*taken.lock().unwrap(), ["one", "one two three", "bad", "bad", "one"]);
    }
}
