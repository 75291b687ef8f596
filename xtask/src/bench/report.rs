//! The figures as Markdown tables, and their place in `docs/performance.md`.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::lab::Who;
use super::result::{Outcome, Row, Series, Verdict};
use super::subject::Class;

/// The generated part of the page stands between these lines.
const BEGIN: &str = "<!-- Written by `cargo xtask bench --write`: begin -->";
const END: &str = "<!-- Written by `cargo xtask bench --write`: end -->";

/// A title, which rows a table has, and how it is written.
type Table<'a> = (&'a str, fn(&Row) -> bool, fn(&[&Row]) -> String);

/// The tables of all classes that have rows.
pub fn tables(rows: &[Row]) -> String {
    let mut text = String::new();
    let all: [Table<'_>; 3] = [
        ("Actions that only answer", |row| row.subject.class == Class::Short, short_table),
        ("Actions that move data", |row| row.subject.class == Class::Data, data_table),
        (
            "Actions on a VM's disk, on a host with a warm connection",
            |row| row.subject.class == Class::Disk,
            data_table,
        ),
    ];
    for (title, belongs, table) in all {
        let rows: Vec<&Row> = rows.iter().filter(|row| belongs(row)).collect();
        if !rows.is_empty() {
            let _ = write!(text, "### {title}\n\n{}\n", table(&rows));
        }
    }
    text + &notes(rows)
}

fn short_table(rows: &[&Row]) -> String {
    let mut text = String::from(
        "| Action | What | Wall | by link | CPU | Peak | Children | Other tree | its CPU | its peak | its children \
         | Times faster | Budgets |\n|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|\n",
    );
    for row in rows {
        let (ours, other) = (row.of(Who::Drivers), row.of(Who::Other));
        let cells = [
            format!("`{}`", row.subject.name),
            row.subject.what.to_owned(),
            wall(ours),
            wall(row.of(Who::Link)),
            cpu(ours),
            peak(ours),
            children(ours),
            wall(other),
            cpu(other),
            peak(other),
            children(other),
            times(row.times_faster()),
            verdicts(&row.verdicts()),
        ];
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text
}

fn data_table(rows: &[&Row]) -> String {
    let mut text = String::from(
        "| Action | What | Wall | CPU | Peak | Children | Plain tool | its time | ours by its | Other tree \
         | Times faster | Budgets |\n|---|---|--:|--:|--:|--:|---|--:|--:|--:|--:|---|\n",
    );
    for row in rows {
        let (ours, other) = (row.of(Who::Drivers), row.of(Who::Other));
        let lines = |each: &dyn Fn(&Series) -> String| {
            let all: Vec<String> = row.tools().map(each).collect();
            if all.is_empty() { "–".to_owned() } else { all.join("<br>") }
        };
        let cells = [
            format!("`{}`", row.subject.name),
            row.subject.what.to_owned(),
            wall(ours),
            cpu(ours),
            peak(ours),
            children(ours),
            lines(&|tool| tool.tool.map_or_else(String::new, |t| format!("`{}`", t.name()))),
            lines(&|tool| wall(Some(tool))),
            lines(&|tool| row.by_tool(tool).map_or_else(|| "–".to_owned(), |by| format!("{by:.2}"))),
            wall(other),
            times(row.times_faster()),
            verdicts(&row.verdicts()),
        ];
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text
}

/// Why a series has no figures, one line each.
fn notes(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        for series in &row.series {
            let who = match series.who {
                Who::Drivers => "the tree measured",
                Who::Link => "by link",
                Who::Other => "the other tree",
                Who::Tool => "the plain tool",
            };
            match &series.outcome {
                Outcome::Ran { .. } => {}
                Outcome::Failed(why) => {
                    let _ = writeln!(text, "- `{}`: {who} fails: {}", row.subject.name, escaped(why));
                }
                Outcome::NotRun(why) => {
                    let _ = writeln!(text, "- `{}`: {who} is not run: {}", row.subject.name, escaped(why));
                }
            }
        }
    }
    text
}

/// A wall time, or the word for there being none.
pub fn wall(series: Option<&Series>) -> String {
    match series.map(|s| (&s.outcome, s.wall())) {
        Some((Outcome::Ran { .. }, Some(seconds))) => time(seconds),
        Some((Outcome::Failed(_), _)) => "fails".to_owned(),
        Some(_) | None => "–".to_owned(),
    }
}

/// A time with three figures and the unit that suits it.
pub fn time(seconds: f64) -> String {
    match seconds {
        s if s >= 100.0 => format!("{s:.0} s"),
        s if s >= 10.0 => format!("{s:.1} s"),
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 0.1 => format!("{:.0} ms", s * 1e3),
        s if s >= 0.01 => format!("{:.1} ms", s * 1e3),
        s => format!("{:.2} ms", s * 1e3),
    }
}

fn cpu(series: Option<&Series>) -> String {
    series.and_then(Series::cpu).map_or_else(|| "–".to_owned(), time)
}

fn peak(series: Option<&Series>) -> String {
    let tenths = |bytes: u64| bytes * 10 / (1 << 20);
    let text = |bytes| format!("{}.{} MiB", tenths(bytes) / 10, tenths(bytes) % 10);
    series.and_then(Series::peak).map_or_else(|| "–".to_owned(), text)
}

fn children(series: Option<&Series>) -> String {
    series.and_then(Series::children).map_or_else(|| "–".to_owned(), |n| n.to_string())
}

fn times(times: Option<f64>) -> String {
    times.map_or_else(|| "–".to_owned(), |t| if t >= 10.0 { format!("{t:.0}") } else { format!("{t:.1}") })
}

fn verdicts(all: &[Verdict]) -> String {
    let one = |v: &Verdict| match v.kept {
        Some(true) => format!("{} ok", v.budget),
        Some(false) => format!("**{} OVER**", v.budget),
        None => format!("{} ?", v.budget),
    };
    all.iter().map(one).collect::<Vec<_>>().join("<br>")
}

/// Text of others in a Markdown line.
fn escaped(text: &str) -> String {
    format!("`{}`", text.replace('`', "'"))
}

/// Puts `text` between the markers of the page, which is made where it is missing.
///
/// # Errors
/// The page cannot be read or written, or has lost its markers.
pub fn write(page: &Path, text: &str) -> Result<()> {
    let part = format!("{BEGIN}\n\n{}\n\n{END}", text.trim());
    let whole = match std::fs::read_to_string(page) {
        Ok(old) => {
            let (head, rest) = old.split_once(BEGIN).with_context(|| lost(page, BEGIN))?;
            let (_, tail) = rest.split_once(END).with_context(|| lost(page, END))?;
            format!("{head}{part}{tail}")
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => format!("# Performance\n\n{part}\n"),
        Err(error) => return Err(error).with_context(|| format!("Cannot read {}", page.display())),
    };
    std::fs::write(page, whole).with_context(|| format!("Cannot write {}", page.display()))
}

fn lost(page: &Path, marker: &str) -> String {
    format!("{} has lost the line {marker}", page.display())
}

#[cfg(test)]
mod tests {
    use super::{BEGIN, END, tables, time, write};
    use crate::bench::lab::Who;
    use crate::bench::result::tests::series;
    use crate::bench::result::{Outcome, Row, Series};
    use crate::bench::subject::SUBJECTS;

    #[test]
    fn times_have_three_figures() {
        let shown = [0.001_234, 0.012_34, 0.1234, 1.234, 12.34, 123.4].map(time);
        assert_eq!(shown, ["1.23 ms", "12.3 ms", "123 ms", "1.23 s", "12.3 s", "123 s"]);
    }

    #[test]
    fn a_row_shows_its_figures_and_a_failure_its_reason() {
        let failed = Series { who: Who::Other, tool: None, outcome: Outcome::Failed("no `x`".into()) };
        let rows = [Row { subject: &SUBJECTS[0], series: vec![series(Who::Drivers, &[1.0, 2.0, 9.0]), failed] }];
        let text = tables(&rows);
        assert!(text.contains("| 2.00 ms | – | 1.00 ms | 5.0 MiB | 0 | fails |"), "{text}");
        assert!(text.contains("- `fs/monitor`: the other tree fails: `no 'x'`"), "{text}");
    }

    #[test]
    fn the_page_keeps_what_people_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let page = dir.path().join("page.md");
        std::fs::write(&page, format!("head\n{BEGIN}\nold\n{END}\ntail\n")).unwrap();
        write(&page, "new").unwrap();
        assert_eq!(std::fs::read_to_string(&page).unwrap(), format!("head\n{BEGIN}\n\nnew\n\n{END}\ntail\n"));
        std::fs::write(&page, "no markers").unwrap();
        assert!(write(&page, "new").is_err());
    }
}
