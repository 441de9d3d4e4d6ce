//! The metrics, as a scrape of a running sidecar has them.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use dpa_sidecar::admin::metrics::FAMILIES;
use dpa_sidecar::admin::metrics::Kind;
use serde_json::Value;

use super::scrape;
use super::value;
use super::watched;
use crate::http2::raw::DATA;
use crate::http2::raw::END_HEADERS;
use crate::http2::raw::END_STREAM;
use crate::http2::raw::HEADERS;
use crate::http2::raw::RST_STREAM;
use crate::http2::raw::Raw;
use crate::http2::raw::block;
use crate::http2::raw::frame;
use crate::http2::raw::get;
use crate::http2::raw::request;
use crate::segments::segments_beside;
use crate::support::Head;
use crate::support::SUBSCRIBER;
use crate::support::Setup;
use crate::support::Then;
use crate::support::Upstream;
use crate::support::denied;
use crate::support::http2::Http2Upstream;
use crate::support::permitted;
use crate::support::repository;
use crate::support::wait_for;

/// A line of a scrape: the name, and the labels with their values.
fn sample(line: &str) -> (String, Vec<(String, String)>) {
    let (name, rest) = line.split_once(['{', ' ']).unwrap();
    if !line[name.len()..].starts_with('{') {
        return (name.to_owned(), Vec::new());
    }
    let (labels, _) = rest.rsplit_once('}').unwrap();
    let labels = labels.split("\",").map(|label| {
        let (name, value) = label.split_once("=\"").unwrap();
        (name.to_owned(), value.trim_end_matches('"').to_owned())
    });
    (name.to_owned(), labels.collect())
}

/// The names that a family has in a scrape.
fn names(name: &str, kind: Kind) -> Vec<String> {
    match kind {
        Kind::Counter | Kind::Gauge => vec![name.to_owned()],
        Kind::Histogram => ["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")).to_vec(),
    }
}

/// All decisions that were counted.
fn decided(text: &str) -> f64 {
    let lines = text.lines().filter(|line| line.starts_with("dpa_decisions_total{"));
    lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
}

/// What was decided while its caller went away stood in the log, and was not counted.
#[test]
fn decisions_whose_callers_went_away_were_not_counted() {
    let upstream = Upstream::ok();
    let sidecar = watched(&Setup::to(&upstream.address));
    let mut raw = Raw::begun(&sidecar);
    for stream in (1..40).step_by(2) {
        raw.send([get(stream), frame(RST_STREAM, 0, stream, 8_u32.to_be_bytes())].concat());
    }
    raw.send(get(41));
    assert!(raw.answers(41));
    wait_for("as many as there are records", || {
        let records = sidecar.records().iter().filter(|record| record["event"] == "dpa.decision").count();
        let records = f64::from(u32::try_from(records).unwrap());
        (records > 1.0 && decided(&scrape(&sidecar)) == records).then_some(())
    });
}

#[test]
fn each_metric_is_in_each_scrape_under_its_name_with_its_labels() {
    let upstream = Upstream::ok();
    let sidecar = watched(&Setup::to(&upstream.address));
    let text = scrape(&sidecar);
    let mut kinds = BTreeMap::new();
    let mut found: BTreeMap<String, BTreeSet<Vec<String>>> = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(kinds.insert(name.to_owned(), kind.to_owned()), None, "{name} stands twice");
        } else if !line.starts_with('#') {
            let (name, labels) = sample(line);
            found.entry(name).or_default().insert(labels.into_iter().map(|(name, _)| name).collect());
        }
    }
    let known: BTreeMap<_, _> = FAMILIES.iter().map(|it| (it.name.to_owned(), it.kind.as_str().to_owned())).collect();
    assert_eq!(kinds, known);
    // What nothing is set up for has no lines.
    let absent = ["dpa_certificate_expiry_timestamp_seconds", "dpa_issuer_keys"];
    for family in FAMILIES.iter().filter(|it| !absent.contains(&it.name)) {
        for name in names(family.name, family.kind) {
            let mut labels: Vec<String> = family.labels.iter().map(|&label| label.to_owned()).collect();
            if name.ends_with("_bucket") {
                labels.insert(0, "le".to_owned());
            }
            let mut lines = found.remove(&name).unwrap_or_else(|| panic!("{name} has no line, even of zero"));
            lines = lines
                .into_iter()
                .map(|mut line| {
                    line.sort();
                    line
                })
                .collect();
            labels.sort();
            assert_eq!(lines.into_iter().collect::<Vec<_>>(), [labels], "{name}");
        }
    }
    assert_eq!(found, BTreeMap::new(), "these are of no family");
    assert!(text.lines().count() < 400, "{} lines: a sidecar has few", text.lines().count());
    assert!(text.lines().all(|line| line.starts_with('#') || !line.contains("redwood")), "no customer is a label");
}

#[test]
fn what_is_done_is_counted() {
    let upstream = Upstream::start(|exchange| match exchange.head.value("x-mark") {
        Some("broken") => {
            exchange.send("no HTTP\r\n\r\n");
            Then::Close
        }
        _ => exchange.ok("ok"),
    });
    let sidecar = watched(&Setup::to(&upstream.address));
    let none = "dpa_decisions_total{decision=\"permit\",action=\"allowed\",reason=\"none\",enforcement=\"enforce\"}";
    let of = |reason: &str| {
        format!(
            "dpa_decisions_total{{decision=\"deny\",action=\"denied\",reason=\"{reason}\",enforcement=\"enforce\"}}"
        )
    };
    let broken = Head::permitted("GET", SUBSCRIBER).with("X-Mark", "broken").end();
    let table = [
        ("a permit", permitted(), 200, vec![none.to_owned(), "dpa_outcomes_total{outcome=\"completed\"}".to_owned()]),
        ("a denial", denied(), 403, vec![of("purpose_not_bound_to_caller")]),
        ("somebody unidentified", Head::bare("GET", SUBSCRIBER).end(), 401, vec![of("caller_unidentified")]),
        (
            "one that can be read in two ways",
            Head::permitted("GET", "/v1//x").end(),
            400,
            vec![of("request_unreadable")],
        ),
        (
            "a service that speaks no HTTP",
            broken,
            502,
            vec![
                none.to_owned(),
                "dpa_requests_failed_total{upstream=\"app\",reason=\"upstream_unavailable\"}".to_owned(),
                "dpa_outcomes_total{outcome=\"aborted\"}".to_owned(),
            ],
        ),
    ];
    for (name, request, status, lines) in table {
        let before = scrape(&sidecar);
        assert_eq!(sidecar.ask(request).status, status, "{name}");
        let class = format!("dpa_requests_total{{listener=\"main\",status=\"{}xx\"}}", status / 100);
        let after = wait_for(name, || {
            let after = scrape(&sidecar);
            let grew = |line: &String| value(&after, line).unwrap() == value(&before, line).unwrap() + 1.0;
            lines.iter().chain([&class]).all(grew).then_some(after)
        });
        assert_eq!(decided(&after), decided(&before) + 1.0, "{name}: it is counted once");
        let timed = "dpa_decision_duration_seconds_count";
        assert_eq!(value(&after, timed).unwrap(), value(&before, timed).unwrap() + 1.0, "{name}");
    }
    let text = scrape(&sidecar);
    for (line, expected) in [
        ("dpa_request_duration_seconds_count", 2.0),
        ("dpa_upstream_duration_seconds_count{upstream=\"app\"}", 1.0),
        ("dpa_log_wait_seconds_count", 5.0),
        ("dpa_connections_taken_total{listener=\"main\"}", 5.0),
        ("dpa_upstream_connects_total{upstream=\"app\",result=\"missed\"}", 0.0),
        ("dpa_upstream_reachable{upstream=\"app\"}", 1.0),
        ("dpa_requests_in_flight", 0.0),
        ("dpa_requests_in_flight_limit", 2000.0),
        ("dpa_policy_revision", 12.0),
        ("dpa_policy_held_back", 0.0),
        ("dpa_sidecar_observes", 0.0),
        ("dpa_ready", 1.0),
        ("dpa_log_failing", 0.0),
    ] {
        assert_eq!(value(&text, line), Some(expected), "{line}: {text}");
    }
    wait_for("the end of all connections", || {
        (value(&scrape(&sidecar), "dpa_connections{listener=\"main\"}") == Some(0.0)).then_some(())
    });
    let kept = sidecar.connect();
    wait_for("a connection", || {
        (value(&scrape(&sidecar), "dpa_connections{listener=\"main\"}") == Some(1.0)).then_some(())
    });
    drop(kept);
    let written = value(&scrape(&sidecar), "dpa_log_records_total").unwrap();
    assert!(written >= 9.0, "the opening, the policy, five decisions, two outcomes: {written}");
    wait_for("a checkpoint", || value(&scrape(&sidecar), "dpa_log_checkpoints_total").filter(|count| *count >= 1.0));
}

/// Their outcomes had the status 400, which nobody got, and it was counted as an answer.
#[test]
fn calls_that_were_taken_back_were_recorded_as_answered() {
    let cancel = frame(RST_STREAM, 0, 1, 8_u32.to_be_bytes());
    let by_http1 = Upstream::start(|exchange| {
        exchange.until_closed();
        Then::Close
    });
    let by_http2 = Http2Upstream::start(&h2::server::Builder::new(), None, |mut call| {
        Box::pin(async move { drop(call.read().await) })
    });
    let trailers = frame(HEADERS, END_STREAM | END_HEADERS, 1, block(&[("x-sum", " 1")]));
    let length: &[(&str, &str)] = &[("content-length", "3")];
    // What its head says of its body, and what is sent behind; nothing: the connection is closed.
    let table = [
        ("the stream is reset", length, cancel.clone(), None),
        ("the stream is reset behind a piece", length, [frame(DATA, 0, 1, b"x"), cancel].concat(), None),
        ("the connection is closed", length, Vec::new(), None),
        ("more than it says", length, frame(DATA, END_STREAM, 1, b"four"), None),
        ("less than it says", length, frame(DATA, END_STREAM, 1, b"x"), None),
        ("trailers that are none", &[], [frame(DATA, 0, 1, b"all"), trailers].concat(), Some(400)),
    ];
    for (address, upstream_keys) in [(&by_http1.address, ""), (&by_http2.address, ", protocol: http2")] {
        for (what, fields, then, status) in &table {
            let what = format!("{what}{upstream_keys}");
            let asked = || by_http1.seen().len() + by_http2.asked().len();
            let before = asked();
            let sidecar = watched(&Setup { upstream_keys, ..Setup::to(address) });
            let mut raw = Raw::begun(&sidecar);
            raw.send(frame(HEADERS, END_HEADERS, 1, request("POST", fields)));
            wait_for(&what, || (asked() > before).then_some(()));
            if then.is_empty() {
                drop(raw);
            } else {
                raw.send(then);
            }
            let outcome = sidecar.record(&what, |record| record["event"] == "dpa.outcome");
            assert_eq!((&outcome["outcome"], outcome["status"].as_u64()), (&"aborted".into(), *status), "{what}");
            wait_for(&format!("{what}: what is counted"), || {
                let text = scrape(&sidecar);
                let lines = [
                    "dpa_requests_total{listener=\"main\",status=\"4xx\"}",
                    "dpa_requests_failed_total{upstream=\"app\",reason=\"request_unreadable\"}",
                ];
                let expected = if status.is_some() { 1.0 } else { 0.0 };
                lines.iter().all(|line| value(&text, line) == Some(expected)).then_some(())
            });
        }
    }
}

/// Heads over a limit, and such as nobody can read, were answered and not among the answers.
#[test]
fn heads_that_were_refused_were_not_counted_as_answered() {
    let upstream = Upstream::ok();
    let sidecar = watched(&Setup::to(&upstream.address));
    let many: String = (0..101).map(|number| format!("x-{number}: y\r\n")).collect();
    let fields: Vec<(&'static str, &'static str)> = vec![("x", "y"); 101];
    let begin = "GET / HTTP/1.1\r\nHost: data.example\r\n";
    let table: [(&str, Vec<u8>, u16); 4] = [
        ("many lines", format!("{begin}{many}\r\n").into(), 431),
        ("a long line", format!("{begin}x: {}\r\n\r\n", "y".repeat(70_000)).into(), 431),
        ("no HTTP", format!("{begin}x y: z\r\n\r\n").into(), 400),
        ("many fields of HTTP/2", frame(HEADERS, END_STREAM | END_HEADERS, 1, request("GET", &fields)), 431),
    ];
    for (place, (what, bytes, status)) in table.into_iter().enumerate() {
        if what.ends_with("HTTP/2") {
            let mut raw = Raw::begun(&sidecar);
            raw.send(bytes);
            assert!(raw.answers(1), "{what}");
        } else {
            let mut connection = sidecar.connect();
            connection.send(bytes);
            assert_eq!(connection.answer().unwrap().status, status, "{what}");
        }
        let all = f64::from(u32::try_from(place + 1).unwrap());
        wait_for(what, || {
            let text = scrape(&sidecar);
            let count = value(&text, "dpa_requests_total{listener=\"main\",status=\"4xx\"}");
            let unread = ["too_large", "malformed"]
                .map(|why| value(&text, &format!("dpa_requests_unread_total{{why=\"{why}\"}}")));
            (count == Some(all) && unread.into_iter().flatten().sum::<f64>() == all).then_some(())
        });
    }
}

/// The first record of each segment was missing.
#[test]
fn the_bytes_of_the_log_were_less_than_its_files() {
    let upstream = Upstream::ok();
    let decision_log = "{file: {path: decisions.ndjson, rotate_bytes: 16KiB, keep: 100}}".to_owned();
    let sidecar = watched(&Setup { decision_log, ..Setup::to(&upstream.address) });
    for _ in 0..40 {
        assert_eq!(sidecar.ask(permitted()).status, 200);
    }
    wait_for("as many as lie in the files", || {
        let counted = value(&scrape(&sidecar), "dpa_log_bytes_total")?;
        let logs: Vec<u64> = segments_beside(&sidecar.log())
            .iter()
            .map(|file| std::fs::metadata(file).map_or(0, |about| about.len()))
            .collect();
        let all: u64 = logs.iter().sum();
        (logs.len() > 1 && counted == f64::from(u32::try_from(all).unwrap())).then_some(())
    });
}

#[test]
fn what_only_observes_says_so() {
    let upstream = Upstream::ok();
    let sidecar = watched(&Setup { enforcement: "observe", ..Setup::to(&upstream.address) });
    assert_eq!(sidecar.ask(denied()).status, 200);
    assert_eq!(sidecar.ask(permitted()).status, 200);
    let text = scrape(&sidecar);
    for line in [
        "dpa_decisions_total{decision=\"deny\",action=\"observed\",reason=\"purpose_not_bound_to_caller\",enforcement=\"observe\"}",
        "dpa_decisions_total{decision=\"permit\",action=\"allowed\",reason=\"none\",enforcement=\"observe\"}",
        "dpa_sidecar_observes",
    ] {
        assert_eq!(value(&text, line), Some(1.0), "{line}");
    }
}

/// A family that counts nothing was left out of a scrape, and the alert on it could never be raised.
#[test]
fn each_alert_and_panel_asks_for_a_metric_that_there_is() {
    let upstream = Upstream::ok();
    let sidecar = watched(&Setup::to(&upstream.address));
    let text = scrape(&sidecar);
    let known: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .flat_map(|(name, kind)| match kind {
            "histogram" => names(name, Kind::Histogram),
            _ => vec![name.to_owned()],
        })
        .collect();
    let labels: BTreeSet<&str> = FAMILIES.iter().flat_map(|family| family.labels).copied().collect();
    let rules: Value =
        serde_yaml::from_str(&std::fs::read_to_string(repository("deploy/prometheus/rules.yaml")).unwrap()).unwrap();
    let dashboard: Value =
        serde_json::from_str(&std::fs::read_to_string(repository("deploy/grafana/dpa-sidecar.json")).unwrap()).unwrap();
    let mut asked = BTreeSet::new();
    for (file, tree, least) in [("rules.yaml", &rules, 16), ("dpa-sidecar.json", &dashboard, 40)] {
        let mut found = Vec::new();
        expressions(tree, &mut found);
        assert!(found.len() >= least, "{file}: {} expressions", found.len());
        for expression in found {
            let words = words(&expression);
            let metrics: Vec<&String> = words.iter().filter(|word| word.starts_with("dpa_")).collect();
            assert!(!metrics.is_empty(), "{file}: no metric in {expression}");
            for metric in metrics {
                assert!(known.contains(metric), "{file}: there is no {metric}: {expression}");
                asked.insert(metric.clone());
            }
            for label in matched(&expression) {
                let is_there = labels.contains(label.as_str()) || ["job", "instance", "le"].contains(&label.as_str());
                assert!(is_there, "{file}: there is no label {label}: {expression}");
            }
        }
    }
    let unseen: Vec<_> = FAMILIES
        .iter()
        .filter(|family| !names(family.name, family.kind).iter().any(|name| asked.contains(name)))
        .map(|family| family.name)
        .collect();
    assert_eq!(unseen, Vec::<&str>::new(), "no panel shows these");
}

/// All that stands under `expr`.
fn expressions(tree: &Value, found: &mut Vec<String>) {
    match tree {
        Value::Object(map) => {
            for (key, value) in map {
                match value.as_str().filter(|_| key == "expr") {
                    Some(text) => found.push(text.to_owned()),
                    None => expressions(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| expressions(item, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The words of an expression, what stands in quotes aside.
fn words(expression: &str) -> Vec<String> {
    let plain: String = expression.split('"').step_by(2).collect::<Vec<_>>().join(" ");
    plain.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').map(str::to_owned).collect()
}

/// The labels that an expression matches or groups by.
fn matched(expression: &str) -> Vec<String> {
    let plain: String = expression.split('"').step_by(2).collect::<Vec<_>>().join(" ");
    let mut found = Vec::new();
    let between = |text: &str, open: &str, close: char| -> Vec<String> {
        text.split(open).skip(1).filter_map(|rest| Some(rest.split_once(close)?.0.to_owned())).collect()
    };
    for matchers in between(&plain, "{", '}') {
        found.extend(matchers.split(',').map(|it| it.split(['=', '!']).next().unwrap().trim().to_owned()));
    }
    for group in between(&plain, "by (", ')') {
        found.extend(group.split(',').map(|it| it.trim().to_owned()));
    }
    found.retain(|label| !label.is_empty());
    found
}
