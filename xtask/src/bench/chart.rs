//! The figures as a bar chart: SVG text, a logarithmic axis, one group of bars a subject.

use std::fmt::Write as _;

use super::lab::Who;
use super::report::time;
use super::result::{Row, Series};

/// Pixels: left of the bars stand the names, right of them room for the largest label.
const LEFT: f64 = 170.0;
const WIDTH: f64 = 620.0;
const RIGHT: f64 = 90.0;
const TOP: f64 = 76.0;
const BAR: f64 = 13.0;
const GAP: f64 = 12.0;

/// Who is drawn, in which colour, under which name in the legend.
const DRAWN: [(Who, &str, &str); 3] = [
    (Who::Drivers, "#0b7285", "onestore"),
    (Who::Other, "#c2410c", "other tree"),
    (Who::Tool, "#868e96", "plain tool"),
];

/// Draws all rows in which the measured tree ran. `other` names the other tree. Shorter bars are better.
pub fn svg(rows: &[Row], ours: &str, other: &str) -> String {
    let rows: Vec<(&Row, Vec<Bar>)> = rows.iter().map(|row| (row, bars(row))).filter(|(_, b)| !b.is_empty()).collect();
    let walls = || rows.iter().flat_map(|(_, bars)| bars.iter().map(|b| b.seconds));
    // Whole powers of ten around all values.
    let low = walls().fold(f64::INFINITY, f64::min).log10().floor();
    let high = walls().fold(0.0, f64::max).log10().ceil().max(low + 1.0);
    let x = |seconds: f64| LEFT + (seconds.log10() - low) / (high - low) * WIDTH;
    let heights = rows.iter().map(|(_, bars)| count(bars.len()) * BAR + GAP);
    let bottom = TOP + heights.sum::<f64>();
    let (width, height) = (LEFT + WIDTH + RIGHT, bottom + 30.0);

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\" role=\"img\">\n\
         <title>Median wall time per driver call, logarithmic</title>\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"14\" y=\"24\" font-size=\"15\" font-weight=\"bold\" fill=\"#212529\">\
         Median wall time per driver call (logarithmic; shorter is better)</text>\n"
    );
    legend(&mut svg, &rows, ours, other);
    let mut power = low;
    while power <= high {
        let at = x(10f64.powf(power));
        let label = tick(power);
        let _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" y1=\"{:.1}\" x2=\"{at:.1}\" y2=\"{bottom:.1}\" stroke=\"#dee2e6\"/>\n\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#495057\">{label}</text>",
            TOP - 6.0,
            bottom + 16.0
        );
        power += 1.0;
    }
    let mut y = TOP;
    for (row, bars) in &rows {
        let middle = y + count(bars.len()) * BAR / 2.0 + 4.0;
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{middle:.1}\" text-anchor=\"end\" fill=\"#212529\">{}</text>",
            LEFT - 8.0,
            escaped(row.subject.name)
        );
        for bar in bars {
            let end = x(bar.seconds).max(LEFT + 1.0);
            let _ = writeln!(
                svg,
                "<rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"/>\n\
                 <text x=\"{:.1}\" y=\"{:.1}\" font-size=\"10\" fill=\"#212529\">{}</text>",
                y + 1.0,
                end - LEFT,
                BAR - 2.0,
                bar.colour,
                end + 4.0,
                y + BAR - 3.0,
                time(bar.seconds)
            );
            y += BAR;
        }
        y += GAP;
    }
    svg.push_str("</svg>\n");
    svg
}

struct Bar {
    who: Who,
    colour: &'static str,
    seconds: f64,
}

/// The bars of a row: none unless the measured tree ran. Of the tools the first is drawn.
fn bars(row: &Row) -> Vec<Bar> {
    if row.of(Who::Drivers).and_then(Series::wall).is_none() {
        return Vec::new();
    }
    let bar = |(who, colour, _): (Who, &'static str, &str)| {
        row.of(who).and_then(Series::wall).map(|seconds| Bar { who, colour, seconds })
    };
    DRAWN.into_iter().filter_map(bar).collect()
}

fn legend(svg: &mut String, rows: &[(&Row, Vec<Bar>)], ours: &str, other: &str) {
    let mut at = 14.0;
    for (who, colour, name) in DRAWN {
        if !rows.iter().any(|(_, bars)| bars.iter().any(|b| b.who == who)) {
            continue;
        }
        let name = match who {
            Who::Drivers => ours,
            Who::Other => other,
            Who::Tool | Who::Link => name,
        };
        let _ = writeln!(
            svg,
            "<rect x=\"{at}\" y=\"38\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\n\
             <text x=\"{:.1}\" y=\"48\" fill=\"#212529\">{}</text>",
            at + 17.0,
            escaped(name)
        );
        at += 40.0 + count(name.chars().count()) * 6.5;
    }
}

/// The label of a power of ten seconds.
fn tick(power: f64) -> String {
    if power < -3.0 {
        format!("{} µs", 10f64.powf(power + 6.0).round())
    } else if power < 0.0 {
        format!("{} ms", 10f64.powf(power + 3.0).round())
    } else {
        format!("{} s", 10f64.powf(power).round())
    }
}

/// A small number as a float.
fn count(n: usize) -> f64 {
    f64::from(u32::try_from(n).unwrap_or(u32::MAX))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::{svg, tick};
    use crate::bench::lab::Who;
    use crate::bench::result::Row;
    use crate::bench::result::tests::series;
    use crate::bench::subject::SUBJECTS;

    #[test]
    fn powers_are_labelled_with_their_unit() {
        assert_eq!([-4.0, -3.0, -1.0, 0.0, 2.0].map(tick), ["100 µs", "1 ms", "100 ms", "1 s", "100 s"]);
    }

    #[test]
    fn a_bar_is_as_long_as_the_logarithm_of_its_time() {
        let series = vec![series(Who::Drivers, &[1.0]), series(Who::Other, &[100.0])];
        let text = svg(&[Row { subject: &SUBJECTS[0], series }], "ours", "a <b>");
        // The axis goes from 1 ms to 100 ms: ours is as short as can be, the other as long.
        assert!(text.contains("width=\"1.0\"") && text.contains("width=\"620.0\""), "{text}");
        assert!(text.contains("a &lt;b&gt;"));
        assert_eq!(text.matches("<svg").count(), text.matches("</svg>").count());
    }
}
