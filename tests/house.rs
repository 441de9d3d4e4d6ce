//! How the modules lie above each other. A module may import those of a lower rank, and itself.

use std::path::Path;
use std::path::PathBuf;

use crate::support::repository;

/// The ranks; the first word is what a module does.
const RANKS: [(&str, u8); 28] = [
    ("yaml", 0),
    ("schema", 0),
    ("telemetry", 0),
    ("files", 0),
    ("sockets", 0),
    ("pace", 0),
    ("signature", 0),
    ("policy", 1),
    ("decide", 2),
    ("observed", 3),
    ("identify", 4),
    ("establish", 5),
    ("record", 6),
    ("keys", 6),
    ("standing", 6),
    ("gate", 7),
    ("tls", 7),
    ("forward", 8),
    ("respond", 9),
    ("doors", 10),
    ("accept", 11),
    ("admin", 12),
    ("config", 12),
    ("reload", 12),
    ("serve", 13),
    ("cli", 14),
    ("lib", 15),
    ("main", 15),
];

/// No I/O, no clock, nothing asynchronous.
const QUIET: [&str; 5] = ["tokio", "hyper", "std::fs", "async fn", "::now("];

/// Lines of a file that a person can hold in mind.
const MOST_LINES: usize = 1_000;

/// Every file of `src`, with the module at its top.
fn files() -> Vec<(String, PathBuf)> {
    fn below(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                below(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let src = repository("src");
    let mut paths = Vec::new();
    below(&src, &mut paths);
    paths.sort();
    let module = |path: &PathBuf| {
        let first = path.strip_prefix(&src).unwrap().components().next().unwrap().as_os_str().to_str().unwrap();
        first.trim_end_matches(".rs").to_owned()
    };
    paths.into_iter().map(|path| (module(&path), path)).collect()
}

/// Lines of code, with their numbers: without comments.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(place, line)| (place + 1, line))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// Everything in one file that the house does not allow.
fn faults(module: &str, path: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let Some((_, rank)) = RANKS.iter().find(|(name, _)| *name == module) else {
        return vec![format!("{path}: the module `{module}` has no rank; give it one in tests/house.rs")];
    };
    if text.lines().count() > MOST_LINES {
        faults.push(format!("{path}: {} lines, the most is {MOST_LINES}", text.lines().count()));
    }
    let banned: Vec<&str> = match module {
        "policy" | "decide" => QUIET.iter().copied().chain(["http::"]).collect(),
        "observed" | "identify" | "establish" => QUIET.to_vec(),
        _ => Vec::new(),
    };
    for (line, code) in code(text) {
        for (place, _) in code.match_indices("crate::") {
            let rest = &code[place + "crate::".len()..];
            let name: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            if name.is_empty() {
                faults.push(format!(
                    "{path}:{line}: a grouped import; write one `use` a line, so that this test sees it"
                ));
                continue;
            }
            match RANKS.iter().find(|(known, _)| *known == name) {
                _ if name == module => {}
                Some((_, other)) if other < rank => {}
                Some((_, other)) => faults.push(format!(
                    "{path}:{line}: `{module}` (rank {rank}) imports `{name}` (rank {other}): imports point down only"
                )),
                None => faults.push(format!("{path}:{line}: `crate::{name}` is no module with a rank")),
            }
        }
        for word in banned.iter().filter(|word| code.contains(**word)) {
            faults.push(format!("{path}:{line}: `{module}` is a quiet step and may not say `{word}`"));
        }
        for word in ["println!", "print!("].iter().filter(|word| code.contains(**word)) {
            if module != "cli" {
                faults.push(format!("{path}:{line}: only `cli` may say `{word}`"));
            }
        }
    }
    faults
}

#[test]
fn the_house_stands() {
    let src = repository("src");
    let mut found = Vec::new();
    let files = files();
    assert!(files.len() > 30, "where is the code?");
    for (module, path) in files {
        let shown = Path::new("src").join(path.strip_prefix(&src).unwrap());
        found.extend(faults(&module, &shown.display().to_string(), &std::fs::read_to_string(&path).unwrap()));
    }
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn the_architecture_names_the_same_ranks() {
    let text = std::fs::read_to_string(repository("ARCHITECTURE.md")).unwrap();
    let row = |rank: u8| text.lines().find(|line| line.starts_with(&format!("| {rank} | `"))).unwrap_or_default();
    let wrong: Vec<_> = RANKS.iter().filter(|(name, rank)| !row(*rank).contains(&format!("`{name}`"))).collect();
    assert!(wrong.is_empty(), "ARCHITECTURE.md does not give these their rank: {wrong:?}");
}

#[test]
fn what_the_house_does_not_allow_is_seen() {
    let long = "x\n".repeat(MOST_LINES + 1);
    let table = [
        ("an import that points up", "decide", "use crate::gate::Gate;", 1),
        ("an import of the same rank", "admin", "use crate::config::Settings;", 1),
        ("an import that points down", "gate", "use crate::decide::decide;", 0),
        ("an import of itself", "gate", "use crate::gate::Gate;", 0),
        ("a path in an expression", "policy", "let x = crate::serve::start();", 1),
        ("a grouped import", "gate", "use crate::{decide, policy};", 1),
        ("a module nobody knows", "gate", "use crate::novelty::Thing;", 1),
        ("a file nobody knows", "novelty", "", 1),
        ("a clock", "decide", "let now = Timestamp::now();", 1),
        ("a file", "establish", "std::fs::read(path)", 1),
        ("http where it may be", "observed", "use http::HeaderMap;", 0),
        ("http where it may not be", "policy", "use http::HeaderMap;", 1),
        ("a comment", "decide", "/// Unlike tokio, crate::gate and Timestamp::now().", 0),
        ("print in a step", "record", "println!(\"x\");", 1),
        ("print in a command", "cli", "println!(\"x\");", 0),
        ("a long file", "cli", long.as_str(), 1),
    ];
    for (name, module, text, expected) in table {
        let found = faults(module, "src/x.rs", text);
        assert_eq!(found.len(), expected, "{name}: {found:?}");
    }
}
