//! Finds the files that a pattern names, and does not look through more of the file system than a policy can have.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use glob::Pattern;

/// Most entries of folders that the patterns of one policy are held against: a policy has at most 65,535 files, and
/// others may lie beside them. A pattern such as `/**/*.yaml` would be held against all that the machine has.
pub(super) const MOST_ENTRIES: usize = 100_000;

/// Why a pattern finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotFound {
    /// It is no pattern.
    NoPattern,
    /// It leads through too many entries.
    TooMuch,
}

/// A part of a pattern, between two slashes.
enum Part {
    /// A name.
    Name(OsString),
    /// A name with wildcards.
    Like(Pattern),
    /// `**`: any folders, or none.
    Folders,
}

fn parts(pattern: &str) -> Result<Vec<Part>, NotFound> {
    let mut parts = Vec::new();
    for text in pattern.split('/').filter(|text| !text.is_empty()) {
        let like = Pattern::new(text).map_err(|_| NotFound::NoPattern)?;
        match text {
            "**" if matches!(parts.last(), Some(Part::Folders)) => {}
            "**" => parts.push(Part::Folders),
            _ if text.contains(['*', '?', '[']) => parts.push(Part::Like(like)),
            _ => parts.push(Part::Name(text.into())),
        }
    }
    Ok(parts)
}

/// What a pattern finds from a folder, in a row that is always the same; a folder that cannot be read is an error in
/// its place. What is looked at is taken off `room`.
///
/// # Errors
///
/// [`NotFound`], also if there is not enough room.
pub(super) fn find(folder: &Path, pattern: &str, room: &mut usize) -> Result<Vec<io::Result<PathBuf>>, NotFound> {
    let parts = parts(pattern)?;
    let begin = if pattern.starts_with('/') { Path::new("/") } else { folder };
    let mut found = Vec::new();
    // Paths, and the parts that are still to be held against what is below them; the next one last.
    let mut left = vec![(begin.to_path_buf(), parts.as_slice())];
    while let Some((path, parts)) = left.pop() {
        let Some((part, rest)) = parts.split_first() else {
            found.push(Ok(path));
            continue;
        };
        let next = match part {
            Part::Name(name) => {
                let next = path.join(name);
                if next.symlink_metadata().is_ok() { vec![(next, rest)] } else { Vec::new() }
            }
            Part::Like(_) | Part::Folders if !is_folder(&path) => Vec::new(),
            Part::Like(like) => match entries(&path, room) {
                Ok(names) => {
                    let like = |name: &OsString| name.to_str().is_some_and(|name| like.matches(name));
                    names?.into_iter().filter(like).map(|name| (path.join(name), rest)).collect()
                }
                Err(error) => {
                    found.push(Err(error));
                    Vec::new()
                }
            },
            Part::Folders => match entries(&path, room) {
                Ok(names) => {
                    let below = names?.into_iter().map(|name| path.join(name)).filter(|path| is_folder(path));
                    let below: Vec<PathBuf> = below.collect();
                    if rest.is_empty() {
                        // At the end of a pattern it stands for the folders themselves.
                        found.extend(below.iter().cloned().map(Ok));
                    }
                    let here = Some((path, rest)).filter(|_| !rest.is_empty());
                    here.into_iter().chain(below.into_iter().map(|path| (path, parts))).collect()
                }
                Err(error) => {
                    found.push(Err(error));
                    Vec::new()
                }
            },
        };
        left.extend(next.into_iter().rev());
    }
    Ok(found)
}

fn is_folder(path: &Path) -> bool {
    path.as_os_str().is_empty() || path.is_dir()
}

/// The names in a folder, sorted. The folder itself counts as one.
fn entries(folder: &Path, room: &mut usize) -> io::Result<Result<Vec<OsString>, NotFound>> {
    let here = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(here)? {
        let Some(left) = room.checked_sub(1) else { return Ok(Err(NotFound::TooMuch)) };
        *room = left;
        names.push(entry?.file_name());
    }
    names.sort();
    let Some(left) = room.checked_sub(1) else { return Ok(Err(NotFound::TooMuch)) };
    *room = left;
    Ok(Ok(names))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_pattern_finds() {
        let folder = std::env::temp_dir().join(format!("dpa-sidecar-find-{}", std::process::id()));
        for path in ["b.yaml", "a.yaml", "a.txt", "x/a.yaml", "x/y/b.yaml", "x/y/z/c.yaml", "[v]/a.yaml"] {
            let path = folder.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        std::os::unix::fs::symlink(folder.join("x"), folder.join("link")).unwrap();
        let absolute = format!("{}/*.txt", folder.display());
        let table: [(&str, &str, &[&str]); 16] = [
            ("a name", "a.yaml", &["a.yaml"]),
            ("a name that is not there", "c.yaml", &[]),
            ("names, sorted", "*.yaml", &["a.yaml", "b.yaml"]),
            ("one letter", "?.txt", &["a.txt"]),
            ("letters", "[ab].yaml", &["a.yaml", "b.yaml"]),
            ("a folder by its name", "x/*.yaml", &["x/a.yaml"]),
            ("also through a link", "link/*.yaml", &["link/a.yaml"]),
            ("folders by wildcards", "x/*/*.yaml", &["x/y/b.yaml"]),
            ("the file of one is no folder", "a.yaml/*", &[]),
            ("any folders below, and the one itself", "x/**/*.yaml", &["x/a.yaml", "x/y/b.yaml", "x/y/z/c.yaml"]),
            ("the same twice", "x/**/**/c.yaml", &["x/y/z/c.yaml"]),
            ("folders at the end", "x/**", &["x/y", "x/y/z"]),
            ("one up", "x/../*.txt", &["x/../a.txt"]),
            ("from the root", &absolute, &["a.txt"]),
            ("a folder that looks like a pattern", "[[]v]/*", &["[v]/a.yaml"]),
            ("nothing", "", &[""]),
        ];
        for (name, pattern, expected) in table {
            let found = find(&folder, pattern, &mut 1_000).unwrap();
            let found: Vec<PathBuf> = found.into_iter().map(Result::unwrap).collect();
            let expected: Vec<PathBuf> = expected.iter().map(|path| folder.join(path)).collect();
            let same = found.iter().map(PathBuf::as_path).eq(expected.iter().map(PathBuf::as_path));
            assert!(same, "{name}: {found:?}");
        }
        // Eight entries beside each other, and the folder itself.
        for (name, pattern, room, expected) in [
            ("enough room", "*.yaml", 7, Ok(0)),
            ("not enough", "*.yaml", 6, Err(NotFound::TooMuch)),
            ("a name needs none", "x/a.yaml", 0, Ok(0)),
            ("all folders", "**/*.txt", 20, Err(NotFound::TooMuch)),
            ("no pattern", "a***", 1_000, Err(NotFound::NoPattern)),
            ("no pattern either", "x**/a", 1_000, Err(NotFound::NoPattern)),
        ] {
            let mut room = room;
            assert_eq!(find(&folder, pattern, &mut room).map(|_| room), expected, "{name}");
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
