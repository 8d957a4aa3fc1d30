//! Progress of long runs, on a terminal.

use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

/// Runs that take less need no progress.
const PATIENCE: Duration = Duration::from_millis(500);

/// A progress bar that appears when a run turns out to be long, and only on a terminal.
pub(crate) struct Progress {
    total: u64,
    started: Instant,
    next: u64,
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(crate) fn new(total: u64) -> Self {
        Self { total, started: Instant::now(), next: 1, bar: None }
    }

    /// Says how many runs are done.
    #[inline]
    pub(crate) fn update(&mut self, done: u64) {
        if done >= self.next {
            self.show(done);
        }
    }

    #[cold]
    fn show(&mut self, done: u64) {
        // Seldom enough to cost nothing, however short a run is; often enough, however long.
        self.next = done + done / 64 + 1;
        let elapsed = self.started.elapsed();
        if elapsed < PATIENCE {
            return;
        }
        // indicatif draws on stderr, nothing if it is no terminal, and not more often than a reader sees.
        let bar = self.bar.get_or_insert_with(|| {
            let template = "{wide_bar} {human_pos} of {human_len} runs, {msg} left";
            let style = ProgressStyle::with_template(template);
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(self.total).with_style(style)
        });
        // Its own estimate would begin with the bar, which is later than the runs.
        let left = elapsed.as_secs_f64() / done as f64 * self.total.saturating_sub(done) as f64;
        let left = Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX);
        bar.set_position(done);
        bar.set_message(HumanDuration(left).to_string());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
