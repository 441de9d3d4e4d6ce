//! `DPA-Context`: any bytes, one line or several.

use dpa_sidecar::establish::context::Context;
use dpa_sidecar::establish::context::DPA_CONTEXT;
use dpa_sidecar::observed::Unreadable;
use http::HeaderMap;
use http::HeaderValue;

fn read(lines: &[&[u8]]) -> Option<Result<Context, Unreadable>> {
    let mut headers = HeaderMap::new();
    for line in lines {
        headers.append(DPA_CONTEXT, HeaderValue::from_bytes(line).ok()?);
    }
    Some(Context::read(&headers))
}

fn string(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// The same context, written anew.
fn written(context: &Context) -> String {
    let Context { customers, purpose, instruction, request_ref } = context;
    let list = |names: &Vec<String>| names.iter().map(|name| string(name)).collect::<Vec<_>>().join(" ");
    let customers = customers.as_ref().map(|names| format!("customer=({})", list(names)));
    let single = |key: &str, value: &Option<String>| value.as_ref().map(|value| format!("{key}={}", string(value)));
    let members =
        [customers, single("purpose", purpose), single("instruction", instruction), single("request_ref", request_ref)];
    members.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// What is read consists of printable ASCII, and is read again from what it would be written as.
pub(crate) fn run(data: &[u8]) {
    let lines: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    let Some(read_once) = read(&lines) else { return };
    let Ok(context) = read_once else { return };
    assert_eq!(lines.len(), 1, "two lines were read as one");
    let Context { customers, purpose, instruction, request_ref } = &context;
    let names = customers.iter().flatten();
    for text in names.chain(purpose).chain(instruction).chain(request_ref) {
        assert!(text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()), "{text:?}");
    }
    let names = customers.as_deref().unwrap_or_default();
    assert!(names.len() <= 16, "{} customers", names.len());
    assert!(names.iter().enumerate().all(|(place, name)| !names[..place].contains(name)), "a customer twice");
    assert_eq!(read(&[written(&context).as_bytes()]), Some(Ok(context)));
}
