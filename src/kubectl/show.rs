//! How far a refresh is, on standard error: a bar on a terminal, lines in a
//! pipe, of which progress alone makes no more than one every few seconds.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use super::status::view;
use crate::resources::MaterializedViewRefresh;
use crate::terminal;

/// How often a line tells of nothing but progress.
const PROGRESS_LINES: Duration = Duration::from_secs(5);

/// See the module.
pub struct Show {
    bar: Option<ProgressBar>,
    told: String,
    progress: String,
    told_at: Instant,
}

impl Show {
    /// For one refresh.
    pub fn of(refresh: &MaterializedViewRefresh) -> Self {
        let bar = std::io::stderr()
            .is_terminal()
            .then(|| terminal::bar(&view(refresh)));
        Self {
            bar,
            told: String::new(),
            progress: String::new(),
            told_at: Instant::now(),
        }
    }

    /// Shows how it stands now.
    pub fn now(&mut self, refresh: &MaterializedViewRefresh) {
        if refresh.phase().is_terminal() {
            return;
        }
        let status = refresh.status.clone().unwrap_or_default();
        let message = status.message.unwrap_or_default();
        let state = match message.as_str() {
            "" => format!("{:?}", status.phase),
            message => format!("{:?}: {}", status.phase, terminal::plain(message)),
        };
        let progress = status.progress.unwrap_or_default();
        match &self.bar {
            Some(bar) if progress.units_total > 0 => {
                terminal::lay_out(
                    bar,
                    "{spinner} {prefix} [{bar:32}] {pos}/{len} units  {wide_msg}  {elapsed}",
                );
                bar.set_length(unsigned(progress.units_total));
                bar.set_position(unsigned(progress.units_done));
                bar.set_message(format!("{} rows  {state}", progress.rows_written));
            }
            Some(bar) => {
                terminal::lay_out(bar, "{spinner} {prefix}  {wide_msg}  {elapsed}");
                bar.set_message(state);
            }
            None => {
                let waited = self.told_at.elapsed() >= PROGRESS_LINES;
                let moved = progress.summary != self.progress && !progress.summary.is_empty();
                if state != self.told || (moved && waited) {
                    let units = match progress.summary.as_str() {
                        "" => String::new(),
                        units => format!(" ({units} units, {} rows)", progress.rows_written),
                    };
                    line(&format!("{state}{units}"));
                    self.told = state;
                    self.progress = progress.summary;
                    self.told_at = Instant::now();
                }
            }
        }
    }

    /// Something is in the way, and it is tried again.
    pub fn trouble(&mut self, why: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(format!("still trying: {}", terminal::plain(why))),
            None if self.told == why => {}
            None => {
                line(&format!("still trying: {why}"));
                self.told = why.to_string();
            }
        }
    }

    /// Shows how it ended.
    pub fn ended(&mut self, refresh: &MaterializedViewRefresh) {
        let name = refresh.metadata.name.as_deref().unwrap_or_default();
        let message = refresh.status.as_ref().and_then(|s| s.message.clone());
        let message = message.map(|m| format!(": {m}")).unwrap_or_default();
        self.leave(&format!("refresh {name} {:?}{message}", refresh.phase()));
    }

    /// Takes the bar away and says a last sentence.
    pub fn leave(&mut self, sentence: &str) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        if !sentence.is_empty() {
            line(sentence);
        }
    }
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// A line on standard error; nobody has to read it.
pub fn line(text: &str) {
    terminal::complain(&terminal::plain(text));
}
