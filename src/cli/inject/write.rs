//! Writes a tree of YAML so that every reader, of YAML 1.1 or 1.2, finds the values that were read.
//!
//! What stood without quotes is written as it stood, letter by letter: whoever reads it makes of it what it made of it
//! before. Text that stood in quotes gets quotes, unless no reader could take it for anything but text.

use std::fmt::Write as _;

use crate::yaml::Key;
use crate::yaml::Node;
use crate::yaml::Value;

/// One document, with a line break at its end.
pub(super) fn write(node: &Node) -> String {
    let mut out = String::new();
    match &node.value {
        Value::Map(entries) if !entries.is_empty() => map(entries, 0, &mut out),
        Value::List(items) if !items.is_empty() => list(items, 0, &mut out),
        Value::Scalar { .. } | Value::Map(_) | Value::List(_) => {
            out.push_str(&flat(node));
            out.push('\n');
        }
    }
    out
}

/// Whether no reader could take this for anything but text, even without quotes: words of letters, digits and a few
/// signs, that begin with a letter or a slash and are none of the words that mean something.
pub(super) fn is_plainly_text(text: &str) -> bool {
    const WORDS: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    let begins = text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '/');
    let ends = text.ends_with(|last: char| last.is_ascii_alphanumeric() || "/._-)+".contains(last));
    let inside = |c: char| c.is_ascii_alphanumeric() || "/._-:@=+()$, ".contains(c);
    begins
        && ends
        && text.chars().all(inside)
        && !text.contains(": ")
        && text.len() <= 200
        && !WORDS.iter().any(|word| text.eq_ignore_ascii_case(word))
}

fn pad(indent: usize, out: &mut String) {
    out.extend(std::iter::repeat_n(' ', indent));
}

/// The entries of a map. The first stands where the cursor is, which is this many columns in; so with [`list`].
fn map(entries: &[(Key, Node)], indent: usize, out: &mut String) {
    for (place, (key, node)) in entries.iter().enumerate() {
        if place > 0 {
            pad(indent, out);
        }
        out.push_str(&scalar(&key.text, key.quoted));
        out.push(':');
        match &node.value {
            Value::Map(entries) if !entries.is_empty() => {
                out.push('\n');
                pad(indent + 2, out);
                map(entries, indent + 2, out);
            }
            Value::List(items) if !items.is_empty() => {
                out.push('\n');
                pad(indent, out);
                list(items, indent, out);
            }
            Value::Scalar { .. } | Value::Map(_) | Value::List(_) => {
                out.push(' ');
                leaf(node, indent, out);
            }
        }
    }
}

fn list(items: &[Node], indent: usize, out: &mut String) {
    for (place, node) in items.iter().enumerate() {
        if place > 0 {
            pad(indent, out);
        }
        out.push_str("- ");
        match &node.value {
            Value::Map(entries) if !entries.is_empty() => map(entries, indent + 2, out),
            Value::List(items) if !items.is_empty() => list(items, indent + 2, out),
            Value::Scalar { .. } | Value::Map(_) | Value::List(_) => leaf(node, indent, out),
        }
    }
}

/// A value that has nothing below it, and the end of its line.
fn leaf(node: &Node, indent: usize, out: &mut String) {
    match &node.value {
        Value::Scalar { text, quoted: true } if fits_a_block(text) => {
            let (body, sign) = text.strip_suffix('\n').map_or((text.as_str(), "|-"), |body| (body, "|"));
            out.push_str(sign);
            for line in body.split('\n') {
                out.push('\n');
                if !line.is_empty() {
                    pad(indent + 2, out);
                    out.push_str(line);
                }
            }
        }
        Value::Scalar { .. } | Value::Map(_) | Value::List(_) => out.push_str(&flat(node)),
    }
    out.push('\n');
}

fn flat(node: &Node) -> String {
    match &node.value {
        Value::Scalar { text, quoted } => scalar(text, *quoted),
        Value::Map(_) => "{}".to_owned(),
        Value::List(_) => "[]".to_owned(),
    }
}

/// Whether every reader reads this back from a literal block: several lines of which none is made of blanks alone, and
/// of which the first is not indented.
fn fits_a_block(text: &str) -> bool {
    let body = text.strip_suffix('\n').unwrap_or(text);
    text.contains('\n')
        && !body.is_empty()
        && !body.starts_with([' ', '\t', '\n'])
        && !body.ends_with('\n')
        && body.split('\n').all(|line| line.is_empty() || !line.trim_matches([' ', '\t']).is_empty())
        && body.chars().all(|c| c == '\n' || c == '\t' || is_printable(c))
}

/// What YAML 1.1 and 1.2 both let stand in a text as it is, apart from breaks and tabs.
fn is_printable(c: char) -> bool {
    !matches!(c, '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

fn scalar(text: &str, quoted: bool) -> String {
    let is_nothing = text.is_empty() || text == "~";
    match quoted {
        false if is_nothing => "null".to_owned(),
        false if stands_without_quotes(text) => text.to_owned(),
        true if is_plainly_text(text) => text.to_owned(),
        true | false => in_quotes(text),
    }
}

/// Whether what was read without quotes can be written so on one line. What cannot is text: it came from several lines.
fn stands_without_quotes(text: &str) -> bool {
    text.chars().all(|c| c == '\t' || is_printable(c))
        && !text.contains(": ")
        && !text.contains(" #")
        && !text.starts_with([' ', '\t', '#'])
        && !text.ends_with([' ', '\t', ':'])
}

/// In double quotes: the form that YAML 1.1, YAML 1.2 and, but for `\x`, JSON share.
fn in_quotes(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        // Writing to a String cannot fail.
        let _infallible = match c {
            '"' => write!(out, "\\\""),
            '\\' => write!(out, "\\\\"),
            '\n' => write!(out, "\\n"),
            '\t' => write!(out, "\\t"),
            '\r' => write!(out, "\\r"),
            c if is_printable(c) => write!(out, "{c}"),
            c => write!(out, "\\u{:04x}", u32::from(c)),
        };
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::yaml::At;
    use crate::yaml::read_all;

    fn node(value: Value) -> Node {
        Node { at: At::default(), value }
    }

    /// What a tree says, without places: plain nothing is one nothing, however it was written.
    fn said(node: &Node) -> String {
        let word = |text: &str, quoted: bool| match quoted {
            false if matches!(text, "" | "~" | "null") => "null".to_owned(),
            true if is_plainly_text(text) => format!("{text:?}"),
            false if is_plainly_text(text) => format!("{text:?}"),
            true => format!("{text:?}"),
            false => format!("plain {text:?}"),
        };
        match &node.value {
            Value::Scalar { text, quoted } => word(text, *quoted),
            Value::List(items) => format!("[{}]", items.iter().map(said).collect::<Vec<_>>().join(", ")),
            Value::Map(entries) => {
                let entry = |(key, node): &(Key, Node)| format!("{}: {}", word(&key.text, key.quoted), said(node));
                format!("{{{}}}", entries.iter().map(entry).collect::<Vec<_>>().join(", "))
            }
        }
    }

    fn text() -> impl Strategy<Value = String> {
        prop_oneof![
            "\\PC{0,12}",
            "[ -~\\n\\t]{0,40}",
            "(([a-z: #-]{0,8}|)\\n){0,4}[ a-z]{0,3}",
            any::<String>(),
            proptest::sample::select(vec![
                "yes",
                "No",
                "on",
                "OFF",
                "y",
                "null",
                "~",
                "",
                "=",
                "<<",
                "0o7",
                "010",
                "1:30",
                "1e3",
                ".inf",
                ".nan",
                "0x1f",
                "1_000",
                "+1",
                "-",
                "- a",
                "? a",
                ": a",
                "a: b",
                "a #b",
                "#a",
                "'",
                "\"",
                "[a]",
                "{a}",
                "*a",
                "&a",
                "!a",
                "%a",
                "@a",
                "`a",
                "|",
                ">",
                "2026-06-15",
                "---",
                "...",
                "a\n",
                "\na",
                "a\n\n",
                " a",
                "a ",
                "true",
                "12",
                "a,b",
                "a:b",
                "a:",
                "/a",
                "\u{85}",
                "\u{2028}",
                "\u{feff}",
                "\r\n",
                "a\r\nb",
                "\t",
            ])
            .prop_map(str::to_owned),
        ]
    }

    fn tree() -> impl Strategy<Value = Node> {
        let plain = proptest::sample::select(vec![
            "1",
            "8080",
            "1e3",
            "on",
            "yes",
            "true",
            "null",
            "~",
            "0o7",
            "1:30",
            "2026-06-15",
            "a b",
            "-1",
            ".5",
            "a:b",
            "http://a.example/b?c=d",
            "=",
            "<<",
            "100m",
            "64Mi",
        ]);
        let leaf = prop_oneof![
            text().prop_map(|text| node(Value::Scalar { text, quoted: true })),
            plain.prop_map(|text| node(Value::Scalar { text: text.to_owned(), quoted: false })),
        ];
        leaf.prop_recursive(5, 40, 5, |inner| {
            let key = prop_oneof!["[a-z]{1,8}".prop_map(|text| (text, false)), text().prop_map(|text| (text, true)),];
            let entry = |((text, quoted), node)| (Key { at: At::default(), text, quoted }, node);
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(|items| node(Value::List(items))),
                proptest::collection::vec((key, inner).prop_map(entry), 0..5).prop_map(|mut entries| {
                    let mut seen = std::collections::HashSet::new();
                    entries.retain(|(key, _)| seen.insert(key.text.clone()));
                    node(Value::Map(entries))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_as_it_was(tree in tree()) {
            let written = write(&tree);
            let read = read_all(&written, 0).map_err(|faults| TestCaseError::fail(format!("{faults:?}\n{written}")))?;
            let [back] = read.as_slice() else { return Err(TestCaseError::fail(written)) };
            prop_assert_eq!(said(back), said(&tree), "{}", written);
            prop_assert_eq!(write(back), written);
        }
    }
}
