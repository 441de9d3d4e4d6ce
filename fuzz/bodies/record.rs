//! Lines of a decision log: taken apart, chained anew, verified, and verified again with a bit changed.

use std::io::BufReader;

use dpa_sidecar::record::chain::Head;
use dpa_sidecar::record::chain::Sealed;
use dpa_sidecar::record::checkpoint::Signer;
use dpa_sidecar::record::checkpoint::Verifier;
use dpa_sidecar::record::verify::Anchors;
use dpa_sidecar::record::verify::Keys;
use dpa_sidecar::record::verify::judge::Piece;
use dpa_sidecar::record::verify::judge::Report;
use dpa_sidecar::record::verify::judge::judge;
use dpa_sidecar::record::verify::run;
use dpa_sidecar::record::verify::run::Plan;

const OPENED: &str = r#"{"event":"dpa.log","what":"opened","time":"2026-11-23T05:51:48Z","log":"01a206f5-e4b9-731f-9735-af4d76753c68","segment":1,"why":"new""#;

fn verified(files: &[&[u8]], keys: &Keys, anchors: &Anchors) -> Report {
    let mut pieces = Vec::new();
    for (file, bytes) in files.iter().enumerate() {
        // As small a buffer as there is, so that every line is read in pieces.
        let look = run::look(&mut BufReader::with_capacity(7, *bytes)).unwrap();
        let plan = Plan { file, log: look.log, first: look.first, keys, anchors, fork: None };
        let runs = run::read(&mut BufReader::with_capacity(13, *bytes), &plan).unwrap();
        pieces.push(Piece { is_named: file == 0, runs });
    }
    judge(pieces, keys, anchors)
}

/// A line that is whole is what its parts are sealed to; a log that verifies does not once a bit of it is another;
/// and nothing that is verified, whatever it is, breaks the verifier.
pub(crate) fn run(data: &[u8]) {
    let _no_key = (Signer::read(data).is_ok(), Verifier::read(data).is_ok());
    for line in data.split(|byte| *byte == b'\n') {
        let Some(sealed) = Sealed::read(line).filter(Sealed::is_whole) else { continue };
        let mut again = Vec::new();
        Head { seq: sealed.seq - 1, hash: sealed.prev }.seal(sealed.record, &mut again);
        assert_eq!(again.strip_suffix(b"\n"), Some(line));
    }
    let anchors = Anchors::read(&mut BufReader::new(data)).unwrap();
    let halves = data.split_at(data.len() / 2);
    for fault in verified(&[data, halves.0, halves.1], &Keys::default(), &anchors).strays.kept {
        assert!(!fault.fault.to_string().is_empty());
    }

    let mut head = Head::NONE;
    let mut log = Vec::new();
    head.seal(OPENED.as_bytes(), &mut log);
    for line in data.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"{\"")) {
        head.seal(line, &mut log);
    }
    let nothing = Anchors::default();
    let report = verified(&[&log], &Keys::default(), &nothing);
    let records: u64 = report.logs.iter().map(|log| log.records).sum();
    let lines = log.iter().filter(|byte| **byte == b'\n').count();
    if report.count() == 0 && report.logs.len() == 1 {
        assert_eq!(records, u64::try_from(lines).unwrap());
        let place = data.iter().fold(5381_usize, |sum, byte| sum.wrapping_mul(33) ^ usize::from(*byte));
        let at = place % log.len();
        log[at] ^= 1 << (place % 8);
        let report = verified(&[&log], &Keys::default(), &nothing);
        assert!(report.count() > 0, "bit {} of byte {at} is another, and nobody sees it", place % 8);
    }
}
