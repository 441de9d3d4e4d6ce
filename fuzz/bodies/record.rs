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
        // What may be anything is a stream once, and a file otherwise.
        let is_stream = file == 1;
        let plan = Plan { file, log: look.log, first: look.first, keys, anchors, fork: None, is_stream };
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
    forked(data);
}

/// A log in two segments, of which the second begins because a sync of the first failed, and goes on before the
/// first one's last lines: those are not of the log, and a bit of any other is.
fn forked(data: &[u8]) {
    let mut head = Head::NONE;
    let mut first = Vec::new();
    head.seal(OPENED.as_bytes(), &mut first);
    let lines: Vec<&[u8]> = data.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"{\"")).collect();
    let (before, behind) = lines.split_at(lines.len() / 2);
    before.iter().for_each(|line| head.seal(line, &mut first));
    let (fork, end) = (head, first.len());
    behind.iter().for_each(|line| head.seal(line, &mut first));
    let mut second = Vec::new();
    head = fork;
    let opened = OPENED.replace(r#""segment":1,"why":"new""#, r#""segment":2,"why":"sync_failed""#);
    head.seal(opened.as_bytes(), &mut second);
    behind.iter().for_each(|line| head.seal(line, &mut second));

    let verified = |first: &[u8], second: &[u8]| {
        let (keys, anchors) = (Keys::default(), Anchors::default());
        let files = [first, second];
        let looks = files.map(|bytes| run::look(&mut BufReader::new(bytes)).unwrap());
        let next = looks[1].opening.as_ref().filter(|next| next.why == "sync_failed" && looks[0].log == looks[1].log);
        let forks = [next.map(|next| next.after), None];
        let read = |file: usize| {
            let (keys, anchors, look) = (&keys, &anchors, &looks[file]);
            let (log, first, fork) = (look.log, look.first, forks[file]);
            let plan = Plan { file, log, first, keys, anchors, fork, is_stream: false };
            let runs = run::read(&mut BufReader::with_capacity(13, files[file]), &plan).unwrap();
            Piece { is_named: false, runs }
        };
        judge(vec![read(0), read(1)], &keys, &anchors)
    };
    let report = verified(&first, &second);
    let beyond: u64 = report.logs.iter().flat_map(|log| &log.beyond).map(|(_, lines)| lines).sum();
    if report.count() > 0 || report.logs.len() != 1 {
        return;
    }
    assert_eq!(beyond, u64::try_from(behind.len()).unwrap());
    let place = data.iter().fold(5381_usize, |sum, byte| sum.wrapping_mul(33) ^ usize::from(*byte));
    let at = place % (end + second.len());
    let (file, at) = if at < end { (&mut first, at) } else { (&mut second, at - end) };
    file[at] ^= 1 << (place % 8);
    assert!(verified(&first, &second).count() > 0, "bit {} of byte {at} is another, and nobody sees it", place % 8);
}
