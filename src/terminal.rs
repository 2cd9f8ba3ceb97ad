//! What commands write for people: lines, tables and a progress bar.

use std::io::Write;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use unicode_width::UnicodeWidthStr;

/// Writes to standard output, at once: an error that came later would be
/// nobody's. A reader that has gone away (`| head`) is a broken pipe.
pub fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// A line on standard error; nobody has to read it.
pub fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Text that others wrote, on one line and without what a terminal obeys.
pub fn plain(text: &str) -> String {
    let plain = |c: char| match c {
        '\t' | '\n' | '\r' => ' ',
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    text.chars().map(plain).collect()
}

/// A progress bar on standard error, counting units of work.
pub fn bar(of: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    lay_out(
        &bar,
        "{spinner} {prefix} [{bar:32}] {pos}/{len} units  {msg}  {elapsed}",
    );
    bar.set_prefix(plain(of));
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// Lays a bar out by an indicatif template.
pub fn lay_out(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
}

/// Columns padded to the widest cell, three spaces apart, as kubectl prints them.
pub fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let rows: Vec<[String; N]> = rows
        .iter()
        .map(|row| row.each_ref().map(|cell| plain(cell)))
        .collect();
    let widths: Vec<usize> = (0..N)
        .map(|column| {
            rows.iter()
                .map(|row| row[column].width())
                .max()
                .unwrap_or(0)
        })
        .collect();
    rows.iter()
        .map(|row| {
            let line: String = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| {
                    let padding = width - cell.width() + 3;
                    format!("{cell}{:padding$}", "")
                })
                .collect();
            format!("{}\n", line.trim_end())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_by_the_room_that_they_take() {
        let rows = [["A".to_string(), "B".into()], ["long".into(), "x".into()]];
        assert_eq!(aligned(&rows), "A      B\nlong   x\n");
        let rows = [["表格".to_string(), "B".into()], ["abc".into(), "x".into()]];
        assert_eq!(aligned(&rows), "表格   B\nabc    x\n");
    }

    #[test]
    fn a_terminal_is_told_nothing_by_what_others_wrote() {
        assert_eq!(
            plain("a\u{1b}[2J\r\nb\u{9b}c é表"),
            "a\u{fffd}[2J  b\u{fffd}c é表"
        );
        let rows = [["x\u{7}\ny".to_string()]];
        assert_eq!(aligned(&rows), "x\u{fffd} y\n");
    }
}
