//! The settings in force: their values, and where these are from.

use std::collections::BTreeMap;

use dpa_sidecar::config;
use dpa_sidecar::policy::problem::Source;
use serde_json::Value;

use crate::support::Folder;
use crate::support::Setup;
use crate::support::err;
use crate::support::out;
use crate::support::repository;
use crate::support::run;

fn effective(text: &str, environment: &[(&str, &str)]) -> config::Effective {
    let of = |name: &str| environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    let source = Source { path: "sidecar.yaml".to_owned(), text: text.to_owned() };
    let (settings, problems) = config::compile(&source, &of);
    settings.unwrap_or_else(|| panic!("{}", problems.render(&[source], false))).effective
}

/// Key, value and origin of each.
fn entries(effective: &config::Effective) -> BTreeMap<String, (String, String)> {
    let entry = |it: &config::Entry| (it.key.clone(), (it.value.clone(), it.origin.to_string()));
    effective.entries.iter().map(entry).collect()
}

#[test]
fn where_each_value_is_from() {
    let text = Setup::to("127.0.0.1:3000").text()
        + "health: {address: \"${HEALTH:-127.0.0.1:9901}\"}\n\
           drain_timeout: ${DRAIN}\n\
           limits: {headers: 50}\n";
    let found = entries(&effective(&text, &[("DRAIN", "40s")]));
    let line = |what: &str| 1 + text.lines().position(|line| line.starts_with(what)).unwrap();
    let table = [
        ("in the file", "limits.headers", "50", format!("sidecar.yaml:{}", line("limits"))),
        ("in a list", "listeners[0].name", "main", format!("sidecar.yaml:{}", line("listeners"))),
        (
            "in a route",
            "routes[0].customer.from",
            "path",
            format!("sidecar.yaml:{}", 2 + line("  - path: /v1/customers") - 1),
        ),
        ("from the environment", "drain_timeout", "40s", format!("${{DRAIN}} in sidecar.yaml:{}", line("drain"))),
        (
            "where that says nothing",
            "health.address",
            "127.0.0.1:9901",
            format!("${{HEALTH}} in sidecar.yaml:{}", line("health")),
        ),
        ("by default", "limits.header_bytes", "64KiB", "default".to_owned()),
        ("by default of an upstream", "upstreams[0].idle_timeout", "15s", "default".to_owned()),
    ];
    for (name, key, value, origin) in table {
        assert_eq!(found.get(key), Some(&(value.to_owned(), origin)), "{name}");
    }
}

#[test]
fn what_the_short_form_stands_for() {
    let folder = Folder::new();
    let policy = repository("config/policy.yaml");
    let policy = policy.to_str().unwrap();
    let arguments = ["run", "--policy", policy, "--upstream", "127.0.0.1:3000", "--observe", "--print-config"];
    let output = run(&folder.file("."), &arguments);
    let printed = out(&output);
    assert_eq!(output.status.code(), Some(0), "{printed}{}", err(&output));
    let table = [
        ("policy.file", policy, "--policy"),
        ("upstreams[0].address", "127.0.0.1:3000", "--upstream"),
        ("enforcement", "observe", "--observe"),
        ("service.storage_location", "US", "short form"),
        ("routes[0].path", "/{*rest}", "short form"),
        ("decision_log.stdout", "true", "short form"),
        ("drain_timeout", "25s", "default"),
    ];
    for (key, value, origin) in table {
        let line = printed.lines().find(|line| line.starts_with(&format!("{key} "))).unwrap();
        let words: Vec<&str> = line.split("  ").map(str::trim).filter(|word| !word.is_empty()).collect();
        assert_eq!(words, [key, value, origin], "{line}");
    }
    folder.write("sidecar.yaml", "service: {name: a}\n");
    let output = run(&folder.file("."), &["run", "--config", "sidecar.yaml", "--print-config"]);
    assert_eq!((output.status.code(), out(&output).as_str()), (Some(1), ""), "what is wrong is told, and nothing else");
    assert!(err(&output).contains("error[DPA005]"), "{}", err(&output));
}

#[test]
fn what_is_a_secret_is_not_shown() {
    let ways = ", {token: {issuer: 'https://id.example', audience: a, algorithms: [ES256], \
                jwks_url: 'http://127.0.0.1:9/keys', claims: {purpose: '${API_TOKEN}', customer: '${MY_SECRET_NAME:-customer}'}}}";
    let text = Setup { ways, ..Setup::to("127.0.0.1:3000") }.text();
    let effective = effective(&text, &[("API_TOKEN", "hunter2")]);
    for shown in [effective.text(), effective.json()] {
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("(masked)") && shown.contains("http://127.0.0.1:9/keys"), "{shown}");
    }
    let found = entries(&effective);
    assert_eq!(found["identity[1].token.claims.purpose"].0, "(masked)");
    assert_eq!(found["identity[1].token.forward"], ("false".to_owned(), "default".to_owned()));
}

#[test]
fn the_digest_is_that_of_the_values() {
    let text = Setup::to("127.0.0.1:3000").text();
    let digest = |text: &str, environment: &[(&str, &str)]| effective(text, environment).digest;
    let first = digest(&text, &[]);
    let same = [
        ("said again", format!("{text}limits: {{headers: 100}}\n"), vec![]),
        ("in another order", format!("drain_timeout: 25s\n{text}"), vec![]),
        ("by the environment", format!("{text}drain_timeout: ${{DRAIN}}\n"), vec![("DRAIN", "25s")]),
        ("with a comment", format!("# comment\n{text}"), vec![]),
    ];
    for (name, text, environment) in same {
        assert_eq!(digest(&text, &environment), first, "{name}");
    }
    let others = [
        ("another limit", format!("{text}limits: {{headers: 101}}\n")),
        ("another mode", text.replace("enforcement: enforce", "enforcement: observe")),
        ("another instance that is named", text.replace("pod-0", "pod-1")),
    ];
    for (name, text) in others {
        assert_ne!(digest(&text, &[]), first, "{name}");
    }
    // Each replica has a host name of its own, and is configured as the others are.
    let unnamed = text.replace(", instance: pod-0", "");
    let shown = entries(&effective(&unnamed, &[]));
    assert_eq!(shown["service.instance"].1, "default");
    assert_ne!(digest(&unnamed, &[]), first);
}

/// The keys of a schema that have a default other than nothing: place, and default.
fn with_defaults(schema: &Value, of: &Value, key: &str, found: &mut BTreeMap<String, String>) {
    let of = match of.get("$ref").and_then(Value::as_str) {
        Some(reference) => schema.pointer(reference.trim_start_matches('#')).unwrap(),
        None => of,
    };
    for (name, property) in of.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
        let description = property.get("description").and_then(Value::as_str).unwrap_or_default();
        if let Some((_, default)) = description.rsplit_once("Default: ") {
            found.insert(key.clone(), default.trim_end_matches('.').to_owned());
        }
        let mut below = vec![(key.clone(), property)];
        below.extend(property.get("items").map(|items| (format!("{key}[]"), items)));
        for choice in ["anyOf", "allOf"] {
            let all = property.get(choice).and_then(Value::as_array).into_iter().flatten();
            below.extend(all.map(|it| (key.clone(), it)));
        }
        for (key, of) in below {
            with_defaults(schema, of, &key, found);
        }
    }
}

/// A default that nobody prints would be one that nobody can look up; one that differs from its description, a lie.
#[test]
fn each_default_is_shown_as_it_is_described() {
    let schema = serde_json::to_value(config::schema()).unwrap();
    let mut described = BTreeMap::new();
    with_defaults(&schema, &schema, "", &mut described);
    assert!(described.len() > 40, "{described:?}");
    let text = Setup::to("127.0.0.1:3000").text();
    let found = entries(&effective(&text, &[]));
    let of_lists = |key: &str| key.replace("[]", "[0]");
    let mut missing = Vec::new();
    let mut compared = 0;
    for (key, default) in &described {
        let shown = found.get(&of_lists(key));
        let plain = default.split([' ', ';', ',']).next().unwrap();
        let is_value = plain == "true"
            || plain == "false"
            || plain.starts_with(|c: char| c.is_ascii_digit())
            || ["deny", "enforce", "ingress", "http1", "written"].contains(&plain);
        match shown {
            Some((value, origin)) if origin == "default" => {
                compared += 1;
                let is_same = value == plain || value.starts_with(&format!("{plain};"));
                if is_value && !is_same && key != "workers" {
                    missing.push(format!("{key}: described as `{default}`, shown as `{value}`"));
                }
            }
            Some(_) => compared += 1,
            // What belongs to a section that these settings do not have.
            None if key.contains("tls") || key.starts_with("identity[].") || key == "policy.on_stale" => {}
            None if is_value => missing.push(format!("{key}: `{default}` is not shown")),
            None => {}
        }
    }
    assert!(missing.is_empty(), "\n{}", missing.join("\n"));
    assert!(compared >= 30, "only {compared} were compared");
}
