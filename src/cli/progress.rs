//! How far work on files has come, on a terminal.

use std::io;
use std::io::IsTerminal as _;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long work takes before its progress is shown, and how often that is drawn.
const UNSEEN: Duration = Duration::from_secs(1);

/// Shows how far work has come, on a terminal, once it takes its time.
pub(super) fn with_progress<T>(size: u64, bytes: &AtomicU64, work: impl FnOnce() -> T) -> T {
    if !io::stderr().is_terminal() {
        return work();
    }
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let shown = scope.spawn(|| {
            std::thread::park_timeout(UNSEEN);
            if is_done.load(Ordering::Relaxed) {
                return;
            }
            let bar = indicatif::ProgressBar::new(size);
            let form = "{wide_bar} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
            if let Ok(style) = indicatif::ProgressStyle::with_template(form) {
                bar.set_style(style);
            }
            while !is_done.load(Ordering::Relaxed) {
                bar.set_position(bytes.load(Ordering::Relaxed));
                std::thread::park_timeout(UNSEEN / 10);
            }
            bar.finish_and_clear();
        });
        let result = work();
        is_done.store(true, Ordering::Relaxed);
        shown.thread().unpark();
        result
    })
}
