//! Inputs that the fuzz targets began with or found, put through the same functions: see `fuzz/`.

use std::panic::catch_unwind;

use crate::support::repository;

#[path = "../fuzz/bodies/context.rs"]
mod context;
#[path = "../fuzz/bodies/frames.rs"]
mod frames;
#[path = "../fuzz/bodies/framing.rs"]
mod framing;
#[path = "../fuzz/bodies/headers.rs"]
mod headers;
#[path = "../fuzz/bodies/names.rs"]
mod names;
#[path = "../fuzz/bodies/policy.rs"]
mod policy;
#[path = "../fuzz/bodies/record.rs"]
mod record;
#[path = "../fuzz/bodies/request.rs"]
mod request;
#[path = "../fuzz/bodies/settings.rs"]
mod settings;
#[path = "../fuzz/bodies/token.rs"]
mod token;
#[path = "../fuzz/bodies/xfcc.rs"]
mod xfcc;

/// The body of a target.
type Run = fn(&[u8]);

#[test]
fn what_was_found_stays_mended() {
    let table: [(&str, Run); 11] = [
        ("context", context::run),
        ("frames", frames::run),
        ("framing", framing::run),
        ("headers", headers::run),
        ("names", names::run),
        ("policy", policy::run),
        ("record", record::run),
        ("request", request::run),
        ("settings", settings::run),
        ("token", token::run),
        ("xfcc", xfcc::run),
    ];
    let mut failed = Vec::new();
    for (target, run) in table {
        let entries = std::fs::read_dir(repository("fuzz/corpus").join(target)).unwrap();
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        assert!(!paths.is_empty(), "{target}: no inputs");
        for path in paths {
            let input = std::fs::read(&path).unwrap();
            if catch_unwind(|| run(&input)).is_err() {
                failed.push(path);
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}
