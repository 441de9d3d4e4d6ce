//! What the README tells a newcomer to type, typed, and what it shows, held against what comes.

use std::fmt::Write as _;
use std::process::Command;

use crate::docs::document;
use crate::story::are_alike;
use crate::support::Folder;
use crate::support::repository;

/// The commands of a block, each with what is shown after it. One may go on over several lines: after a backslash, or
/// where another program takes what comes.
pub(crate) fn commands(text: &str) -> Vec<(String, Vec<String>)> {
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    for line in text.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            found.push((command.to_owned(), Vec::new()));
        } else if let Some((command, shown)) = found.last_mut() {
            let goes_on = shown.is_empty() && command.ends_with(['\\', '|']);
            match goes_on {
                true => *command = format!("{} {}", command.trim_end_matches('\\').trim_end(), line.trim_start()),
                false => shown.push(line.to_owned()),
            }
        }
    }
    found
}

/// A port that nobody listens on. Somebody else could take it before it is used; then the test says so.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Headers, ids and digests differ each time, and a long line may be shown in part.
fn comparable(line: &str) -> String {
    let line = line.trim_end();
    let has_id = ["dpa-decision-id: ", "{\"type\":"].iter().find(|start| line.starts_with(**start));
    has_id.map_or_else(|| line.to_owned(), |start| (*start).to_owned())
}

#[test]
fn the_commands_of_the_readme_do_what_it_shows() {
    let folder = Folder::new();
    let blocks = document("README.md");
    for inner in ["config", "try"] {
        std::fs::create_dir(folder.file(inner)).unwrap();
    }
    folder.write("config/policy.yaml", &std::fs::read_to_string(repository("config/policy.yaml")).unwrap());
    let (sidecar, service) = (free_port().to_string(), free_port().to_string());
    let ported = |text: &str| text.replace("8080", &sidecar).replace("3000", &service);
    let settings = &blocks.iter().find(|block| block.language == "yaml").unwrap().text;
    folder.write("try/sidecar.yaml", &ported(settings));
    let first = blocks.iter().filter(|block| block.language == "console" && block.text.contains("try/")).take(1);
    let rest = blocks.iter().filter(|block| block.language == "console" && block.text.contains("curl -si"));
    let explained =
        blocks.iter().filter(|block| block.language == "console" && block.text.contains("$ dpa-sidecar explain"));
    let all: Vec<_> = first.chain(rest).chain(explained).flat_map(|block| commands(&block.text)).collect();
    assert_eq!(all.len(), 9, "{all:?}");

    // Like a terminal: one shell, in which each goes on from the one before.
    let mut script =
        format!("dpa-sidecar() {{ '{}' \"$@\"; }}\ntrap 'kill $(jobs -p)' EXIT\n", env!("CARGO_BIN_EXE_dpa-sidecar"));
    for (number, (command, _)) in all.iter().enumerate() {
        let mut command = ported(command);
        if let Some(id) = command.strip_prefix("dpa-sidecar explain ").and_then(|rest| rest.split(' ').next()) {
            command = command.replace(id, "\"$id\"");
        }
        if let Some(background) = command.strip_suffix('&') {
            let port = if background.contains("http.server") { &service } else { &sidecar };
            // A person takes that long to type the next one.
            let wait =
                format!("for _ in {{1..600}}; do (: </dev/tcp/127.0.0.1/{port}) 2>/dev/null && break; sleep 0.1; done");
            write!(script, "{background} >{number}.out 2>&1 &\n{wait}\n").unwrap();
        } else {
            writeln!(script, "{{ {command}; }} >{number}.out 2>{number}.err").unwrap();
            let id = format!("id=$(tr -d '\\r' <{number}.out | sed -n 's/^dpa-decision-id: //p')\n");
            script.push_str(if command.contains("curl -si") { &id } else { "" });
        }
    }
    let shell = Command::new("bash").arg("-c").arg(&script).current_dir(folder.file(".")).output().unwrap();
    let said = |number: usize, ending: &str| {
        std::fs::read_to_string(folder.file(&format!("{number}.{ending}"))).unwrap_or_default()
    };
    for (number, (command, shown)) in all.iter().enumerate() {
        let shown: Vec<String> = shown.iter().map(|line| comparable(line)).collect();
        // The rest of a problem document is shown on a second line.
        let shown: Vec<&str> =
            shown.iter().map(String::as_str).filter(|line| !line.starts_with("purpose.\",")).collect();
        if shown.is_empty() || command.ends_with('&') {
            continue;
        }
        let mut came: Vec<String> = said(number, "out").lines().map(comparable).collect();
        came.extend(said(number, "err").lines().map(comparable));
        let came: Vec<&str> = came.iter().map(String::as_str).collect();
        assert!(are_alike(&shown, &came), "{command}\nshown: {shown:#?}\ncame: {came:#?}\n{script}\n{shell:?}");
    }
}
