//! Frames that ask for much and bring nothing: the connection ends, and it is told.

use super::raw::*;
use crate::support::CEILING;
use crate::support::Setup;
use crate::support::Sidecar;
use crate::support::Upstream;

/// Most frames that may pass before a connection ends.
const MOST: usize = 1_000;

/// What is sent, over and over.
type Step<'s> = &'s dyn Fn(u32) -> Vec<u8>;

/// How many steps went by until the connection ended; each waits for what comes back, so none is sent in vain.
fn until_ended(sidecar: &Sidecar, settings: &[u8], begin: &[u8], step: Step<'_>) -> usize {
    let mut raw = Raw::begun_with(sidecar, settings);
    raw.send(begin);
    let start = std::time::Instant::now();
    for number in 0..4 * MOST {
        assert!(start.elapsed() < CEILING, "it goes on for ever");
        raw.send(step(u32::try_from(number).unwrap()));
        if number % 10 == 9 {
            raw.send(frame(PING, 0, 0, b"are you?"));
            let is_there =
                raw.until(|frame| frame.kind == GOAWAY || (frame.kind == PING && frame.payload == b"are you?"));
            if is_there.is_none_or(|frame| frame.kind == GOAWAY) {
                return number;
            }
        }
    }
    usize::MAX
}

#[test]
fn floods_end_their_connection() {
    let upstream = Upstream::ok();
    let sidecar = Setup::to(&upstream.address).start();
    let stream = |number: u32| 2 * number + 1;
    let reset = |stream| frame(RST_STREAM, 0, stream, 8_u32.to_be_bytes());
    let table: [(&str, Vec<u8>, Vec<u8>, Step<'_>); 9] = [
        ("PING", vec![], vec![], &|_| frame(PING, 0, 0, [0; 8])),
        ("SETTINGS", vec![], vec![], &|_| frame(SETTINGS, 0, 0, [])),
        ("PRIORITY", vec![], vec![], &|_| frame(PRIORITY, 0, 1, [0, 0, 0, 0, 9])),
        ("WINDOW_UPDATE", vec![], vec![], &|_| frame(WINDOW_UPDATE, 0, 0, 1_u32.to_be_bytes())),
        ("frames of an unknown kind", vec![], vec![], &|_| frame(99, 0, 0, [])),
        ("empty DATA", vec![], post(1), &|_| frame(DATA, 0, 1, [])),
        ("requests that are taken back", vec![], vec![], &|number| {
            [get(stream(number)), reset(stream(number))].concat()
        }),
        ("requests that have to be reset", vec![], vec![], &|number| {
            [post(stream(number)), frame(WINDOW_UPDATE, 0, stream(number), [0; 4])].concat()
        }),
        ("requests whose answers have no room", setting(4, 0), vec![], &|number| get(stream(number))),
    ];
    for (place, (what, settings, begin, step)) in table.into_iter().enumerate() {
        let steps = until_ended(&sidecar, &settings, &begin, step);
        assert!(steps <= MOST, "{what}: {steps} steps");
        // Some are so wrong that the library ends them before they are many.
        let of = |record: &serde_json::Value, why: &str| record[why].as_u64().unwrap_or(0);
        let records = || sidecar.records().into_iter();
        let told = || records().map(|record| of(&record, "flooded") + of(&record, "malformed")).sum::<u64>();
        crate::support::wait_for(what, || (told() > u64::try_from(place).unwrap()).then_some(()));
    }
    sidecar.still_serves();
}

/// A table of 4 KiB that a short block names a thousand times, and a block that has no end.
#[test]
fn blocks_that_grow_end_their_connection() {
    let upstream = Upstream::ok();
    let sidecar = Setup::to(&upstream.address).start();
    let value = "b".repeat(3_000);
    let mut entry = vec![0x40, 1, b'x', 0x7f];
    let rest = value.len() - 127;
    entry.extend([u8::try_from(rest % 128).unwrap() | 128, u8::try_from(rest / 128).unwrap()]);
    entry.extend(value.as_bytes());
    let bomb = [request("GET", &[]), entry, vec![0xbe; 4_000]].concat();
    let mut raw = Raw::begun(&sidecar);
    raw.send(frame(HEADERS, END_STREAM | END_HEADERS, 1, bomb));
    assert!(raw.ends());

    let mut raw = Raw::begun(&sidecar);
    raw.send(frame(HEADERS, END_STREAM, 1, request("GET", &[])));
    for number in 0..100 {
        raw.send(frame(CONTINUATION, 0, 1, block(&[(&format!("x-{number}"), &"a".repeat(200))])));
    }
    assert!(raw.ends());
    assert!(upstream.seen().is_empty());
    assert_eq!(sidecar.unread("flooded")["event"], "dpa.unread");
}

/// Who asks for much and brings much is no flood: room for answers is given in many small pieces.
#[test]
fn a_caller_that_reads_in_small_pieces_is_served() {
    let upstream = Upstream::start(|exchange| exchange.ok(vec![b'x'; 1 << 20]));
    let sidecar = Setup::to(&upstream.address).start();
    let mut raw = Raw::begun(&sidecar);
    for stream in (1..20).step_by(2) {
        raw.send([get(stream), frame(PRIORITY, 0, stream, [0, 0, 0, 0, 9])].concat());
        let mut read = 0;
        while read < 1 << 20 {
            let data = raw.until(|frame| frame.kind == DATA && frame.stream == stream).unwrap();
            read += data.payload.len();
            if data.payload.is_empty() {
                continue;
            }
            let by = u32::try_from(data.payload.len()).unwrap().to_be_bytes();
            raw.send(
                [frame(WINDOW_UPDATE, 0, 0, by), frame(WINDOW_UPDATE, 0, stream, by), frame(PING, 0, 0, [1; 8])]
                    .concat(),
            );
        }
    }
}

#[test]
fn the_limits_take_effect() {
    let upstream = Upstream::ok();
    let more = "limits: {spare_frames: 100, wrong_streams: 3}";
    let sidecar = Setup { more, ..Setup::to(&upstream.address) }.start();
    let steps = until_ended(&sidecar, &[], &[], &|_| frame(PING, 0, 0, [0; 8]));
    assert!((80..=110).contains(&steps), "{steps}");
    let mut raw = Raw::begun(&sidecar);
    for stream in [1, 3, 5, 7] {
        raw.send(frame(HEADERS, END_STREAM | END_HEADERS, stream, request("GET", &[("X", "y")])));
    }
    let resets = std::cell::Cell::new(0);
    raw.until(|frame| {
        resets.set(resets.get() + u32::from(frame.kind == RST_STREAM));
        frame.kind == GOAWAY
    });
    assert!(resets.get() <= 3, "{}", resets.get());
    assert_eq!(sidecar.unread("refused")["event"], "dpa.unread");
}
