//! Copies of what is written, for another place: a thread of its own writes them, so that a reader who stops reading,
//! or a file system that hangs, stops nothing else.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Write as _;
use std::sync::mpsc;
use std::thread::JoinHandle;

use super::log::Copy;
use super::log::OpenError;

/// Pieces that wait to be copied.
const MOST_WAITING: usize = 1024;

/// Writes one piece.
type Write = Box<dyn FnMut(&[u8]) -> io::Result<()> + Send>;

/// Where copies go.
#[derive(Debug)]
pub(super) struct Copies {
    lines: mpsc::SyncSender<Vec<u8>>,
    thread: JoinHandle<()>,
    what: &'static str,
    is_full: bool,
}

impl Copies {
    /// Copies go here: `what` they are, for the operational log.
    pub(super) fn to(
        place: Copy,
        what: &'static str,
        stdout: impl FnOnce() -> Result<File, OpenError>,
    ) -> Result<Self, OpenError> {
        let (lines, to_copy) = mpsc::sync_channel::<Vec<u8>>(MOST_WAITING);
        let mut write: Write = match place {
            Copy::Stdout => {
                let mut file = stdout()?;
                Box::new(move |lines| file.write_all(lines))
            }
            Copy::File(path) => Box::new(move |lines| {
                let file = OpenOptions::new().append(true).create(true).open(&path);
                file.and_then(|mut file| file.write_all(lines))
            }),
        };
        let copy = move || {
            for lines in to_copy {
                if let Err(error) = write(&lines) {
                    tracing::warn!(%error, what, "a copy could not be written");
                }
            }
        };
        let thread =
            std::thread::Builder::new().name("dpa-log-copy".to_owned()).spawn(copy).map_err(OpenError::Thread)?;
        Ok(Self { lines, thread, what, is_full: false })
    }

    /// Has these lines copied, if they can be in time.
    pub(super) fn send(&mut self, lines: Vec<u8>) {
        let was_full = self.is_full;
        self.is_full = self.lines.try_send(lines).is_err();
        if self.is_full && !was_full {
            let what = self.what;
            tracing::warn!(what, "copies are not taken any more where they go: some are missing there");
        }
    }

    /// Waits until all of it is copied.
    pub(super) fn finish(self) {
        drop(self.lines);
        // A panic has been told.
        let _ended = self.thread.join();
    }
}
