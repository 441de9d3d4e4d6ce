//! The files of a policy, read once each at one moment, and verified before anything in them is parsed.

use std::collections::HashSet;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;

use super::Loaded;
use super::ReadError;
use super::find::MOST_ENTRIES;
use super::find::NotFound;
use super::find::find;
use super::read;
use crate::files;
use crate::policy;
use crate::policy::manifest::MANIFEST;
use crate::policy::manifest::Manifest;
use crate::policy::manifest::SIGNATURE;
use crate::policy::manifest::Unsigned;
use crate::policy::problem::Code;
use crate::policy::problem::Problem;
use crate::policy::problem::Problems;
use crate::policy::problem::Source;
use crate::signature::Verifier;
use crate::signature::sha256;
use crate::yaml::At;
use crate::yaml::Node;

/// Where a policy is, and whose signature it needs.
#[derive(Clone, Debug)]
pub struct PolicySource {
    /// Its file.
    pub path: PathBuf,
    /// The key that its manifest has to be signed with; none: nobody has to have signed it.
    pub key: Option<Arc<Verifier>>,
}

/// Why files do not come as far as being parsed.
#[derive(Debug, thiserror::Error)]
pub enum NotGathered {
    /// The policy's file cannot be read.
    #[error(transparent)]
    Unread(#[from] ReadError),
    /// The files are not what was signed.
    #[error(transparent)]
    Unsigned(#[from] Unsigned),
}

/// The files of a policy as they were read.
#[derive(Debug)]
pub struct Gathered {
    /// The files, the policy first.
    pub sources: Vec<Source>,
    names: Vec<String>,
    globs: Vec<String>,
    problems: Problems,
    manifest: Option<Manifest>,
}

/// Most bytes of all files of a policy together: one of 100,000 customers has about 60 MiB.
const MOST_BYTES: usize = 256 * 1024 * 1024;

/// Most files of a policy: places count them in 16 bits.
const MOST_FILES: usize = 65_535;

/// Most bytes of a signature file; a good one has 89.
const MAX_SIGNATURE: u64 = 1024;

/// A path with something added to the name of its file.
#[must_use]
pub fn beside(path: &Path, what: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(what);
    PathBuf::from(name)
}

impl PolicySource {
    /// Reads the files, and verifies them if they have to be signed.
    ///
    /// # Errors
    ///
    /// [`NotGathered`]; a customer file that cannot be read is a problem with a place.
    pub fn gather(&self) -> Result<Gathered, NotGathered> {
        let Some(key) = &self.key else { return Ok(Gathered::around(read(&self.path)?)) };
        let read_beside = |what, most| {
            let path = beside(&self.path, what);
            let why = |error: std::io::Error| error.to_string();
            let bytes = files::read(&path, most).map_err(why);
            bytes.map_err(|why| Unsigned::Unreadable { path: path.display().to_string(), why })
        };
        let manifest = read_beside(MANIFEST, super::MAX_BYTES)?;
        let signature = read_beside(SIGNATURE, MAX_SIGNATURE)?;
        let manifest = Manifest::verified(&manifest, &signature, key)?;
        let first = read(&self.path)?;
        manifest.holds(&file_name(&first.path), first.text.as_bytes())?;
        let mut gathered = Gathered::around_listed(first, Some(&manifest))?;
        manifest.is_whole(&gathered.names)?;
        gathered.manifest = Some(manifest);
        Ok(gathered)
    }

    /// A hash over the files that say what the others have to be: the policy's, and what signs it. What cannot be read
    /// counts as empty. With why a policy cannot be gathered, it says whether that is the same one as before.
    #[must_use]
    pub fn mark(&self) -> String {
        let hash = |path: &PathBuf| sha256(&files::read(path, super::MAX_BYTES).unwrap_or_default());
        sha256(self.paths(&[]).iter().map(hash).collect::<String>().as_bytes())
    }

    /// What there is to look at: the policy's file, what signs it, and the files that these globs find.
    #[must_use]
    pub fn paths(&self, globs: &[String]) -> Vec<PathBuf> {
        let mut paths = vec![self.path.clone()];
        if self.key.is_some() {
            paths.extend([MANIFEST, SIGNATURE].map(|what| beside(&self.path, what)));
        }
        let folder = self.path.parent().map(Path::to_path_buf).unwrap_or_default();
        let mut room = MOST_ENTRIES;
        let found = globs.iter().filter_map(|glob| find(&folder, glob, &mut room).ok());
        paths.extend(found.flatten().flatten());
        paths
    }
}

fn file_name(path: &str) -> String {
    Path::new(path).file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl Gathered {
    /// The files of the policy whose first one is this.
    #[must_use]
    pub fn around(first: Source) -> Self {
        // Without a manifest no file can be missing in it.
        Self::around_listed(first, None).unwrap_or_else(|_| Self {
            sources: Vec::new(),
            names: Vec::new(),
            globs: Vec::new(),
            problems: Problems::default(),
            manifest: None,
        })
    }

    fn around_listed(first: Source, manifest: Option<&Manifest>) -> Result<Self, Unsigned> {
        let folder = Path::new(&first.path).parent().map(Path::to_path_buf).unwrap_or_default();
        let own = file_name(&first.path);
        let mut problems = Problems::default();
        let globs = policy::customer_file_globs(&first.text);
        let mut bytes = first.text.len();
        let (mut names, mut sources) = (vec![own.clone()], vec![first]);
        let mut known = HashSet::from([own.clone()]);
        let (mut room, mut is_too_wide) = (MOST_ENTRIES, false);
        'all: for (glob, at) in &globs {
            let mut wrong =
                |message: String, help: &str| problems.push(Problem::error(Code::CustomerFiles, *at, message, help));
            let paths = match find(&folder, glob, &mut room) {
                Ok(paths) => paths,
                Err(NotFound::NoPattern) => {
                    wrong(format!("`{glob}` is not a pattern of file names"), "write one such as `customers.d/*.yaml`");
                    continue;
                }
                Err(NotFound::TooMuch) => {
                    let message = format!("`{glob}` leads through more than {MOST_ENTRIES} files and folders");
                    wrong(message, "keep customer files in a folder of their own, and write `customers.d/*.yaml`");
                    is_too_wide = true;
                    break;
                }
            };
            let mut is_any = false;
            for path in paths {
                let name = |path: &Path| path.strip_prefix(&folder).unwrap_or(path).to_string_lossy().into_owned();
                let read = match path {
                    Ok(path) if name(&path) == own => continue,
                    Ok(path) => {
                        is_any = true;
                        let name = name(&path);
                        if !known.insert(name.clone()) {
                            continue;
                        }
                        // What is not listed is not even read.
                        manifest.map_or(Ok(()), |manifest| manifest.lists(&name))?;
                        read(&path).map(|source| (name, source)).map_err(|error| error.source)
                    }
                    Err(error) => Err(error),
                };
                is_any = true;
                match read {
                    Ok((name, source)) => {
                        bytes = bytes.saturating_add(source.text.len());
                        if bytes > MOST_BYTES || names.len() >= MOST_FILES {
                            let message = format!(
                                "the policy is more than {MOST_FILES} files, or {} MiB in all of them",
                                MOST_BYTES / (1024 * 1024)
                            );
                            wrong(message, "put several customers into a file, or split the policy between sidecars");
                            break 'all;
                        }
                        manifest.map_or(Ok(()), |manifest| manifest.holds(&name, source.text.as_bytes()))?;
                        names.push(name);
                        sources.push(source);
                    }
                    Err(error) => {
                        wrong(format!("a file of `{glob}` cannot be read: {error}"), "make it readable, or remove it");
                    }
                }
            }
            if !is_any {
                wrong(format!("no file matches `{glob}`"), "correct the pattern, or add the file");
            }
        }
        let globs = globs.into_iter().map(|(glob, _): (String, At)| glob).filter(|_| !is_too_wide).collect();
        Ok(Self { sources, names, globs, problems, manifest: None })
    }

    /// Compiles them. See [`policy::compile`] for `amend` and `look_out`.
    #[must_use]
    pub fn compile(self, amend: Option<&Node>, look_out: Option<Timestamp>) -> Loaded {
        let Self { sources, names, globs: _, mut problems, manifest: _ } = self;
        let (policy, more) = policy::compile(&sources, &names, amend, look_out);
        problems.0.extend(more.0);
        let policy = policy.filter(|_| !problems.has_errors());
        Loaded { sources, policy, problems }
    }

    /// The same, as if the policy's file had this name: names count for the digest.
    #[must_use]
    pub fn called(mut self, name: &Path) -> Self {
        if let Some(first) = self.names.first_mut() {
            *first = file_name(&name.to_string_lossy());
        }
        self
    }

    /// The names of the files, from the folder of the policy, in the order of the sources.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The globs of its customer files, to look at what they find; none, if that is too much to look at often.
    #[must_use]
    pub fn globs(&self) -> &[String] {
        &self.globs
    }

    /// What was signed, if that was asked for.
    #[must_use]
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref()
    }

    /// Whether some file of it is not there or cannot be read: more may be on its way.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.problems.has_errors()
    }

    /// The digest that the policy will have; with it, what else is wrong. The same files have the same one.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut text = policy::digest(&self.sources, &self.names).into_string();
        text.extend(self.problems.0.iter().map(|problem| problem.message.as_str()));
        text
    }
}
