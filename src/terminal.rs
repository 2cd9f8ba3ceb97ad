//! What commands write for people: lines, tables and a progress bar.

use std::io::Write;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Writes to standard output. False if its reader has gone away (`| head`):
/// then there is nobody to go on for, and that is no error.
pub fn print(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .is_ok()
}

/// A progress bar on standard error, counting units of work.
pub fn bar(of: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    lay_out(
        &bar,
        "{spinner} {prefix} [{bar:32}] {pos}/{len} units  {msg}  {elapsed}",
    );
    bar.set_prefix(of.to_string());
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
    let widths: Vec<usize> = (0..N)
        .map(|column| {
            rows.iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    rows.iter()
        .map(|row| {
            let line: String = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:width$}   "))
                .collect();
            format!("{}\n", line.trim_end())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["A".to_string(), "B".into()], ["long".into(), "x".into()]];
        assert_eq!(aligned(&rows), "A      B\nlong   x\n");
    }
}
