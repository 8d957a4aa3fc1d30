//! Progress of long runs, on a terminal.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Runs that take less need no progress.
const PATIENCE: Duration = Duration::from_millis(500);

/// How often a reader sees something new.
const INTERVAL: Duration = Duration::from_millis(100);

/// A progress bar that appears when all runs together, or a single one, turn out to be long.
///
/// A thread draws it, so that it moves even while a program does not come to an end, and counting costs no
/// more than a store. Without a terminal there is neither bar nor thread.
pub(crate) struct Progress {
    done: Arc<AtomicU64>,
    /// The thread ends when this is dropped.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// Progress on standard error.
    pub(crate) fn new(total: u64) -> Self {
        Self::on(ProgressDrawTarget::stderr(), total, PATIENCE)
    }

    fn on(target: ProgressDrawTarget, total: u64, patience: Duration) -> Self {
        let done = Arc::new(AtomicU64::new(0));
        let mut progress = Self { done: Arc::clone(&done), stop: None, thread: None };
        if !target.is_hidden() {
            let (stop, stopped) = mpsc::channel();
            let draw = move || draw(target, total, patience, &done, &stopped);
            // A run without progress is better than none.
            progress.thread = thread::Builder::new().name("progress".to_owned()).spawn(draw).ok();
            progress.stop = Some(stop);
        }
        progress
    }

    /// Says how many runs are done.
    #[inline]
    pub(crate) fn update(&self, done: u64) {
        self.done.store(done, Ordering::Relaxed);
    }
}

impl Drop for Progress {
    /// Takes the bar away.
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn draw(
    target: ProgressDrawTarget,
    total: u64,
    patience: Duration,
    done: &AtomicU64,
    stopped: &Receiver<()>,
) {
    let started = Instant::now();
    let is_over = |after| stopped.recv_timeout(after) != Err(RecvTimeoutError::Timeout);
    if is_over(patience) {
        return;
    }
    let style = ProgressStyle::with_template("{spinner} {wide_bar} {msg}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::with_draw_target(Some(total), target).with_style(style);
    loop {
        let done = done.load(Ordering::Relaxed);
        // In one piece, so that numbers fit each other in whatever is drawn.
        bar.set_message(message(started.elapsed(), done, total));
        bar.set_position(done);
        if is_over(INTERVAL) {
            break;
        }
    }
    bar.finish_and_clear();
}

/// How much is done, and how long the rest will take, or has taken where nothing can be said yet. The bar's
/// own estimate would begin with the bar, which is later than the runs.
fn message(elapsed: Duration, done: u64, total: u64) -> String {
    let runs = format!("{} of {} runs", HumanCount(done), HumanCount(total));
    if done == 0 {
        return format!("{runs}, {} so far", HumanDuration(elapsed));
    }
    let left = elapsed.as_secs_f64() / done as f64 * total.saturating_sub(done) as f64;
    let left = Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX);
    format!("{runs}, {} left", HumanDuration(left))
}

#[cfg(test)]
mod tests {
    use indicatif::InMemoryTerm;

    use super::*;

    /// Waits for a line of progress that is as it should be.
    fn wait_for(term: &InMemoryTerm, is_expected: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let line = term.contents();
            if is_expected(&line) {
                return;
            }
            assert!(Instant::now() < deadline, "{line:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn progress(total: u64, patience: Duration) -> (InMemoryTerm, Progress) {
        let term = InMemoryTerm::new(4, 80);
        let target = ProgressDrawTarget::term_like(Box::new(term.clone()));
        (term, Progress::on(target, total, patience))
    }

    #[test]
    fn a_single_run_that_does_not_end_is_seen_to_be_going_on() {
        let (term, _progress) = progress(1, Duration::ZERO);
        wait_for(&term, |line| line.ends_with("0 of 1 runs, 0 seconds so far"));
        let first = term.contents();
        wait_for(&term, |line| line.ends_with(" so far") && line != first);
    }

    #[test]
    fn position_and_time_left_follow_the_runs_and_vanish_with_them() {
        let (term, progress) = progress(1000, Duration::ZERO);
        progress.update(400);
        wait_for(&term, |line| line.contains(" 400 of 1,000 runs, ") && line.ends_with(" left"));
        progress.update(1000);
        wait_for(&term, |line| line.ends_with("1,000 of 1,000 runs, 0 seconds left"));
        drop(progress);
        assert_eq!(term.contents(), "");
    }

    #[test]
    fn what_is_over_soon_draws_nothing() {
        let (term, progress) = progress(1000, Duration::from_secs(3600));
        progress.update(1000);
        drop(progress);
        assert_eq!(term.moves_since_last_check(), "");
    }

    #[test]
    fn where_nobody_looks_nobody_draws() {
        let progress = Progress::on(ProgressDrawTarget::hidden(), 1000, Duration::ZERO);
        assert!(progress.thread.is_none());
    }

    #[test]
    fn the_time_left_is_estimated_from_all_runs() {
        let left = |done| message(Duration::from_secs(10), done, 100);
        assert_eq!(left(0), "0 of 100 runs, 10 seconds so far");
        assert_eq!(left(50), "50 of 100 runs, 10 seconds left");
        assert_eq!(left(100), "100 of 100 runs, 0 seconds left");
    }
}
