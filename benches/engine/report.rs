//! Medians and ratios, as Markdown tables.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::Args;
use crate::changes::Change;
use crate::peers::{Peer, Sample};

/// What one change cost each peer.
pub struct Line {
    /// The workload's name.
    pub workload: &'static str,
    /// Rows that the source started with.
    pub rows: u64,
    /// Whether the source has stable row ids.
    pub stable_row_ids: bool,
    /// The change.
    pub change: Change,
    /// Each peer's samples.
    pub samples: BTreeMap<Peer, Vec<Sample>>,
}

impl Line {
    fn median(&self, peer: Peer, figure: fn(&Sample) -> f64) -> Option<f64> {
        self.samples
            .get(&peer)
            .map(|samples| median(samples.iter().map(figure).collect()))
    }
}

/// The middle of `figures`; of two middle ones, the larger.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Everything that was measured.
pub struct Report {
    text: String,
    lines: Vec<Line>,
    table_is_open: bool,
}

impl Report {
    /// Starts with the machine and the date.
    pub fn new(args: &Args) -> Report {
        let mut report = Report {
            text: String::new(),
            lines: Vec::new(),
            table_is_open: false,
        };
        report.say("# What a refresh costs\n");
        report.say(&machine());
        report.say(&format!(
            "\nMedians of {} rounds; all peers in turn within each round. Seconds on the clock, and \
             in brackets seconds of processor time. A ratio is relance's time by the other's.\n",
            args.rounds
        ));
        report
    }

    /// Prints a line and keeps it.
    pub fn say(&mut self, line: &str) {
        println!("{line}");
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// Starts a section.
    pub fn heading(&mut self, title: &str) {
        self.table_is_open = false;
        self.say(&format!("\n## {title}\n"));
    }

    /// Adds a line to the section's table.
    pub fn line(&mut self, line: Line) {
        if !self.table_is_open {
            let mut head = "| change |".to_string();
            let mut rule = "|---|".to_string();
            for (peer, name) in Peer::ALL {
                let _ = write!(head, " {name} |");
                rule.push_str("---:|");
                if peer != Peer::Relance {
                    head.push_str(" ratio |");
                    rule.push_str("---:|");
                }
            }
            self.say(&format!("{head} what relance did |"));
            self.say(&format!("{rule}---|"));
            self.table_is_open = true;
        }
        let mut text = format!("| {} |", line.change.name());
        let ours = line.median(Peer::Relance, |s| s.wall);
        for (peer, _) in Peer::ALL {
            match (
                line.median(peer, |s| s.wall),
                line.median(peer, |s| s.cpu),
                ours,
            ) {
                (Some(wall), Some(cpu), Some(ours)) => {
                    let _ = write!(text, " {} ({}) |", seconds(wall), seconds(cpu));
                    if peer != Peer::Relance {
                        let _ = write!(text, " {:.3} |", ours / wall);
                    }
                }
                (Some(wall), Some(cpu), None) => {
                    let _ = write!(text, " {} ({}) | |", seconds(wall), seconds(cpu));
                }
                _ => text.push_str(if peer == Peer::Relance { " |" } else { " | |" }),
            }
        }
        let mode = line.samples.get(&Peer::Relance).and_then(|s| s.last());
        let _ = write!(text, " {} |", mode.map_or("", |s| s.mode.as_str()));
        self.say(&text);
        self.lines.push(line);
    }

    /// How the cost of each change grows with the size of the source.
    pub fn growth(&mut self) {
        let sized = |change: Change| -> Vec<(u64, f64)> {
            let mut found: Vec<(u64, f64)> = self
                .lines
                .iter()
                .filter(|l| l.workload == "rows" && l.stable_row_ids && l.change == change)
                .filter_map(|l| Some((l.rows, l.median(Peer::Relance, |s| s.wall)?)))
                .collect();
            found.sort_by_key(|(rows, _)| *rows);
            found
        };
        let tables: Vec<(Change, Vec<(u64, f64)>)> =
            Change::ALL.into_iter().map(|c| (c, sized(c))).collect();
        let Some((_, sizes)) = tables.first().filter(|(_, sizes)| sizes.len() > 1) else {
            return;
        };
        let heads: Vec<String> = sizes.iter().map(|(rows, _)| rows.to_string()).collect();
        let rule = "---:|".repeat(heads.len() + 1);
        self.heading("How relance's time grows with the source");
        self.say(&format!(
            "| change | {} | largest by smallest |",
            heads.join(" | ")
        ));
        self.say(&format!("|---|{rule}"));
        for (change, sizes) in tables {
            let cells: Vec<String> = sizes.iter().map(|(_, wall)| seconds(*wall)).collect();
            if let (Some((_, least)), Some((_, most))) = (sizes.first(), sizes.last()) {
                self.say(&format!(
                    "| {} | {} | {:.2} |",
                    change.name(),
                    cells.join(" | "),
                    most / least
                ));
            }
        }
    }

    /// Ends with how busy the machine was, and writes the file that was asked for.
    pub fn finish(mut self, args: &Args) {
        self.say(&format!("\nLoad average at the end: {}.", load()));
        if let Some(path) = &args.write {
            std::fs::write(path, &self.text).expect("the report is written");
        }
    }
}

fn seconds(figure: f64) -> String {
    if figure < 1.0 {
        format!("{figure:.3}")
    } else {
        format!("{figure:.2}")
    }
}

fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| -> String {
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.split_once(':'));
        value.map_or("unknown", |(_, v)| v.trim()).to_string()
    };
    let kib: u64 = field(&read("/proc/meminfo"), "MemTotal")
        .trim_end_matches(" kB")
        .parse()
        .unwrap_or(0);
    format!(
        "{}, {} processors ({}), {:.0} GiB of memory, {} build; load average at the start: {}.",
        jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC"),
        std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        field(&read("/proc/cpuinfo"), "model name"),
        kib as f64 / f64::from(1 << 20),
        if cfg!(debug_assertions) {
            "debug"
        } else {
            "release"
        },
        load(),
    )
}

fn load() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let figures: Vec<&str> = load.split_whitespace().take(3).collect();
    figures.join(" ")
}
