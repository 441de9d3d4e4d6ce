//! The report as one page that needs nothing beside it: no script, no font, no picture from elsewhere.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io;
use std::io::Write;

use super::found::Status;
use super::said::Said;
use super::said::SaidFile;
use super::said::SaidFound;
use super::said::SaidGap;
use super::said::SaidHeld;
use super::said::SaidNote;
use super::said::SaidObligation;
use super::said::SaidPolicy;
use super::said::SaidService;
use super::said::Summary;
use super::said::status_named;

/// Colours with a contrast of at least 4.5:1 on their ground, and never as the only signal: each status has its word.
const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#57606a;--line:#d0d7de;--ground:#fff;--row:#f6f8fa;\
--good:#116329;--good-bg:#dafbe1;--warn:#7d4e00;--warn-bg:#fff1c2;--bad:#a40e26;--bad-bg:#ffe3e6}
@media (prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9da7b3;--line:#3d444d;--ground:#0d1117;--row:#161b22;\
--good:#7ee2a0;--good-bg:#12331f;--warn:#f0c561;--warn-bg:#3a2d0b;--bad:#ffa3ab;--bad-bg:#4a1a20}}
*{box-sizing:border-box}
body{margin:0 auto;padding:2rem 1.25rem 3rem;max-width:72rem;background:var(--ground);color:var(--ink);\
font:15px/1.5 system-ui,-apple-system,\"Segoe UI\",Roboto,\"Helvetica Neue\",Arial,sans-serif}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .25rem}
a{color:inherit}
h2{font-size:1.15rem;margin:2rem 0 .6rem}
p{margin:.25rem 0}
.soft,dt,.clause{color:var(--soft)}
code{font:.88em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
ul.sums{display:flex;flex-wrap:wrap;gap:.5rem;list-style:none;margin:1.2rem 0 0;padding:0}
ul.sums li{border:1px solid var(--line);border-radius:.4rem;padding:.4rem .8rem;min-width:7rem}
ul.sums b{display:block;font-size:1.5rem;line-height:1.2}
dl{display:grid;grid-template-columns:7rem 1fr;gap:.15rem 1rem;margin:.4rem 0 0}
dl+dl{margin-top:1rem}
ol{margin:0;padding-left:2.2rem}
ol li{margin:.5rem 0}
ol li .soft{display:block}
dd{margin:0;min-width:0;overflow-wrap:anywhere}
table{border-collapse:collapse;width:100%}
caption{text-align:left;color:var(--soft);padding-bottom:.4rem}
th,td{text-align:left;vertical-align:top;padding:.6rem .7rem;border-top:1px solid var(--line)}
thead th{border-top:0;border-bottom:2px solid var(--line);font-size:.85rem}
tbody tr:nth-child(even){background:var(--row)}
tbody th{width:30%;font-weight:400}
tbody th strong{display:block}
td.status{width:7.5rem;white-space:nowrap}
td ul{margin:0;padding-left:1.1rem}
td li{margin:.15rem 0}
td h3{font-size:.95rem;margin:.6rem 0 .2rem}
td h3:first-child{margin-top:0}
.mark{display:inline-block;border-radius:.3rem;padding:.1rem .5rem;font-weight:600;font-size:.85rem}
.good{color:var(--good);background:var(--good-bg)}
.none{color:var(--soft);background:var(--row)}
.warn{color:var(--warn);background:var(--warn-bg)}
.bad{color:var(--bad);background:var(--bad-bg)}
.names{overflow-wrap:anywhere}
.n{white-space:nowrap}
.wide{overflow-x:auto}
.note{color:var(--soft)}
footer{margin-top:2rem;border-top:1px solid var(--line);padding-top:.8rem;color:var(--soft);font-size:.88rem}
@page{size:A4;margin:14mm 12mm}
@media print{:root{color-scheme:light;--ink:#000;--soft:#444;--line:#999;--ground:#fff;--row:#fff;--good:#0b4a1d;\
--good-bg:#fff;--warn:#5c3a00;--warn-bg:#fff;--bad:#8c0a1e;--bad-bg:#fff}
html{font-size:9pt}body{padding:0;max-width:none;font-size:1rem;line-height:1.35}
h2{margin:1.2rem 0 .4rem}h2,h3{break-after:avoid}
th,td{padding:4pt 5pt}tr,li,dl{break-inside:avoid}footer{break-before:avoid}thead{display:table-header-group}
.mark{border:1px solid currentColor}ul.sums li{padding:3pt 8pt;min-width:0}.wide{overflow:visible}}
";

/// Text of a page: nothing in it is a tag.
fn text(plain: &str) -> Cow<'_, str> {
    if !plain.contains(['&', '<', '>', '"', '\'']) {
        return Cow::Borrowed(plain);
    }
    let escaped = |out: String, c: char| match c {
        '&' => out + "&amp;",
        '<' => out + "&lt;",
        '>' => out + "&gt;",
        '"' => out + "&quot;",
        '\'' => out + "&#39;",
        c => {
            let mut out = out;
            out.push(c);
            out
        }
    };
    Cow::Owned(plain.chars().fold(String::new(), escaped))
}

/// The same, with what stands between backticks as code.
fn prose(plain: &str) -> String {
    let pieces = plain.split('`').enumerate();
    pieces.fold(String::new(), |page, (place, piece)| {
        let piece = text(piece);
        if place % 2 == 1 { page + "<code>" + &piece + "</code>" } else { page + &piece }
    })
}

/// How many obligations have a status: none that is not met is nothing to look at.
fn sum(status: &str, count: usize) -> String {
    let mark = mark(status);
    let mark = if count == 0 { mark.replacen("mark bad", "mark none", 1) } else { mark };
    format!("<li><b>{count}</b> {mark}</li>")
}

fn mark(status: &str) -> String {
    let class = match status {
        "not_met" => "bad",
        "observed" => "warn",
        _ => "good",
    };
    format!("<span class=\"mark {class}\">{}</span>", status_named(status).text())
}

/// Writes the page.
pub(super) fn print(said: &Said, out: &mut dyn Write) -> io::Result<()> {
    let mut page = String::new();
    // Writing to a string cannot fail.
    let _infallible = write(said, &mut page);
    out.write_all(page.as_bytes())
}

fn write(said: &Said, page: &mut String) -> std::fmt::Result {
    let names: Vec<&str> = said.services.iter().map(|service| service.service.as_str()).collect();
    let names = text(&names.join(", ")).into_owned();
    writeln!(page, "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">")?;
    writeln!(page, "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">")?;
    writeln!(page, "<meta name=\"referrer\" content=\"no-referrer\">")?;
    writeln!(
        page,
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    )?;
    writeln!(page, "<title>Coverage of the agreement: {names}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>")?;
    writeln!(page, "<header>\n<h1>Coverage of the data processing agreement</h1>")?;
    let (at, read) = (text(&said.at), said.at.replace('T', " ").replace('Z', " UTC"));
    writeln!(page, "<p class=\"soft\">{names}, as of <time datetime=\"{at}\">{}</time></p>", text(&read))?;
    let Summary { enforced, gated, recorded, observed, not_met } = &said.summary;
    let sums = [
        ("not_met", not_met),
        ("observed", observed),
        ("enforced", enforced),
        ("recorded", recorded),
        ("gated", gated),
    ];
    writeln!(page, "<ul class=\"sums\" aria-label=\"Obligations by status\">")?;
    for (status, count) in sums.into_iter().filter(|(status, count)| **count > 0 || *status == "not_met") {
        writeln!(page, "{}", sum(status, *count))?;
    }
    writeln!(page, "</ul>\n</header>\n<main>")?;
    write_missing(said, page)?;
    writeln!(page, "<h2>What was looked at</h2>")?;
    for service in &said.services {
        write_service(service, page)?;
    }
    writeln!(page, "<h2>Obligations</h2>\n<div class=\"wide\">\n<table>")?;
    writeln!(
        page,
        "<caption>All {} obligations, in our words, with the clauses of the agreement.</caption>",
        said.obligations.len()
    )?;
    writeln!(page, "<thead><tr><th scope=\"col\">Obligation</th><th scope=\"col\">Status</th>")?;
    writeln!(page, "<th scope=\"col\">By what, for whom, and why not</th></tr></thead>\n<tbody>")?;
    for obligation in &said.obligations {
        write_obligation(obligation, said.services.len() == 1, page)?;
    }
    writeln!(page, "</tbody>\n</table>\n</div>\n<h2>The words</h2>\n<dl>")?;
    let words = [
        ("enforced", "What breaks it is blocked, request by request."),
        ("gated", "A change that would weaken it is held back."),
        ("recorded", "There is evidence in the decision log."),
        ("observed", "What breaks it passes, and is written down."),
        ("not_met", "Something is missing. The report says what."),
    ];
    for (status, meaning) in words {
        writeln!(page, "<dt>{}</dt><dd>{meaning}</dd>", mark(status))?;
    }
    writeln!(page, "</dl>\n</main>\n<footer>")?;
    writeln!(
        page,
        "<p>Computed by {} from the settings and the policy alone. It says what the sidecar does with requests that pass \
         through it, and nothing of what passes beside it. Whether requests did comply, the decision log says.</p>",
        said.program
    )?;
    writeln!(page, "</footer>\n</body>\n</html>")
}

/// Each thing that is missing once, with all obligations that it concerns.
fn write_missing(said: &Said, page: &mut String) -> std::fmt::Result {
    let mut missing: Vec<(&SaidGap, &str, Vec<&str>)> = Vec::new();
    for SaidObligation { obligation, services, .. } in &said.obligations {
        for SaidFound { service, gaps, .. } in services {
            for gap in gaps {
                let known = missing.iter_mut().find(|(known, of, _)| *known == gap && of == service);
                match known {
                    Some((.., concerned)) => concerned.push(obligation),
                    None => missing.push((gap, service, vec![obligation])),
                }
            }
        }
    }
    // What is not met before what is only observed.
    missing.sort_by_key(|(gap, ..)| gap.status != Status::NotMet.as_str());
    writeln!(page, "<h2>What is missing</h2>")?;
    if missing.is_empty() {
        return writeln!(page, "<p>Nothing: each obligation is enforced, gated or recorded.</p>");
    }
    writeln!(page, "<ol>")?;
    for (SaidGap { code, status, text: says, names }, service, concerned) in missing {
        let of = if said.services.len() == 1 { String::new() } else { format!("<strong>{}</strong> ", text(service)) };
        writeln!(page, "<li>{of}{} {}", mark(status), named(says, names))?;
        let concerned: Vec<String> = concerned.iter().map(|it| format!("<a href=\"#{it}\">{it}</a>")).collect();
        writeln!(page, "<span class=\"soft\">at {} (<code>{code}</code>)</span></li>", concerned.join(", "))?;
    }
    writeln!(page, "</ol>")
}

fn write_service(service: &SaidService, page: &mut String) -> std::fmt::Result {
    let SaidService { service, storage_location, files, policy, enforced_customers, observed_customers, .. } = service;
    let SaidPolicy { name, revision, digest } = policy;
    writeln!(page, "<dl>\n<dt>Service</dt><dd>{}, keeps data in {}</dd>", text(service), text(storage_location))?;
    writeln!(page, "<dt>Policy</dt><dd>{} revision {revision}, digest <code>{}</code></dd>", text(name), text(digest))?;
    for SaidFile { path, sha256 } in files {
        writeln!(page, "<dt>File</dt><dd><code>{}</code>, SHA-256 <code>{}</code></dd>", text(path), text(sha256))?;
    }
    for (what, customers) in [("Enforced for", enforced_customers), ("Observed for", observed_customers)] {
        if !customers.is_empty() {
            let count = customers.len();
            let plural = if count == 1 { "" } else { "s" };
            writeln!(page, "<dt>{what}</dt><dd>{count} customer{plural}: {}</dd>", names_of(customers))?;
        }
    }
    writeln!(page, "</dl>")
}

/// Names that the page shows of each list; the JSON has all.
const MOST_NAMED: usize = 50;

/// Characters of a name that stays on one line.
const MOST_UNBROKEN: usize = 32;

fn names_of(names: &[String]) -> String {
    // A short one is not broken at its hyphens.
    let class = |name: &String| if name.len() <= MOST_UNBROKEN { " class=\"n\"" } else { "" };
    let code = |name: &String| format!("<code{}>{}</code>", class(name), text(name));
    let shown: Vec<String> = names.iter().take(MOST_NAMED).map(code).collect();
    let more = names.len().saturating_sub(MOST_NAMED);
    shown.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}

fn write_obligation(obligation: &SaidObligation, is_one: bool, page: &mut String) -> std::fmt::Result {
    let SaidObligation { obligation, clauses, text: says, status, rules, services } = obligation;
    let plural = if clauses.len() == 1 { "" } else { "s" };
    writeln!(page, "<tr id=\"{obligation}\"><th scope=\"row\"><strong>{obligation}</strong>")?;
    writeln!(page, "<span class=\"clause\">Clause{plural} {}.</span> {}</th>", clauses.join(", "), prose(says))?;
    writeln!(page, "<td class=\"status\">{}</td><td>", mark(status))?;
    for SaidFound { service, status, held, gaps, notes } in services {
        if !is_one {
            writeln!(page, "<h3>{} {}</h3>", text(service), mark(status))?;
        }
        writeln!(page, "<ul>")?;
        for SaidGap { status, text, names, .. } in gaps {
            let status = status_named(status).text();
            writeln!(page, "<li><strong>{status}:</strong> {}</li>", named(text, names))?;
        }
        for SaidHeld { status, text } in held {
            writeln!(page, "<li>{}: {}</li>", status_named(status).text(), prose(text))?;
        }
        for SaidNote { text, names, .. } in notes {
            writeln!(page, "<li class=\"note\">note: {}</li>", named(text, names))?;
        }
        writeln!(page, "</ul>")?;
    }
    if !rules.is_empty() {
        let rules: Vec<String> = rules.iter().map(|rule| format!("<code>{rule}</code>")).collect();
        let plural = if rules.len() == 1 { "" } else { "s" };
        writeln!(page, "<p class=\"soft\">Rule{plural}: {}</p>", rules.join(", "))?;
    }
    writeln!(page, "</td></tr>")
}

fn named(says: &str, names: &[String]) -> String {
    if names.is_empty() || names.iter().any(|name| says.contains(&format!("`{name}`"))) {
        return prose(says);
    }
    format!("{}: <span class=\"names\">{}</span>", prose(says), names_of(names))
}
