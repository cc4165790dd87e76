//! How far a load is: a bar for each layer on a terminal, plain lines elsewhere, or nothing.

use std::io::IsTerminal;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::human_size;
use crate::archive::progress::{LayerProgress, Progress};

/// Bytes from which a plain line is worth it.
const WORTH_A_LINE: u64 = 1 << 20;

/// Progress on stderr.
pub(super) struct Shown {
    bars: MultiProgress,
    how: How,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Bars,
    Lines,
    Not,
}

impl Shown {
    pub(super) fn new(quiet: bool) -> Self {
        let how = match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => How::Not,
            (false, true) => How::Bars,
            (false, false) => How::Lines,
        };
        let target = match how {
            How::Bars => ProgressDrawTarget::stderr(),
            How::Lines | How::Not => ProgressDrawTarget::hidden(),
        };
        Self { bars: MultiProgress::with_draw_target(target), how }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        let _ = self.bars.clear(); // bars are for the time being
    }
}

impl Progress for Shown {
    fn layer(&self, name: &str, doing: &str, size: u64) -> Box<dyn LayerProgress> {
        if self.how == How::Lines && size >= WORTH_A_LINE {
            eprintln!("{name}: {doing} {}", human_size(size));
        }
        let bar = self.bars.add(ProgressBar::new(size));
        let style = "{prefix} {msg:7} [{wide_bar}] {decimal_bytes:>9}/{decimal_total_bytes:9} \
                     {decimal_bytes_per_sec:>12}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(name.to_owned());
        bar.set_message(doing.to_owned());
        Box::new(Bar(bar))
    }

    fn phase(&self, doing: &str) {
        let bar = self.bars.add(ProgressBar::new_spinner());
        bar.set_message(doing.to_owned());
        bar.tick();
    }
}

struct Bar(ProgressBar);

impl LayerProgress for Bar {
    fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish();
    }
}
