//! Curves for people: a table in the terminal, a section of the page.

use std::fmt::Write;

use maud::{Markup, PreEscaped, html};

use super::Curve;
use crate::plot;
use crate::report::show;

/// What the curves are, for those who read them.
const ABOUT: &str = "Each point is a vswitchd with real TAP ports; the cost is its processor time, system calls included. The growth is the \
                     median of the ratios to the first point within a round.";

/// For the terminal.
pub(crate) fn table(curves: &[Curve]) -> String {
    let mut text = String::new();
    for curve in curves {
        let (of, per) = curve.axis.title();
        let title = format!("scale {}: cost per {per}", curve.axis.name());
        let _ = writeln!(
            text,
            "\n{title:<38} {of:>14} {:>10} {:>10} {:>10} {:>8} {:>10} {:>10} {:>10}",
            "ns", "min", "max", "x first", "kfps", "MiB", "start ms"
        );
        for point in &curve.points {
            let Some((cost, rate, growth)) = curve.summary(point) else {
                continue;
            };
            let _ = writeln!(
                text,
                "{:<38} {:>14} {:>10} {:>10} {:>10} {:>8} {:>10} {:>10.1} {:>10.1}",
                "",
                point.size,
                show(cost.median),
                show(cost.min),
                show(cost.max),
                growth.map_or_else(String::new, |g| format!("{:.2}", g.median)),
                show(rate.median),
                point.resident_mib,
                point.start_ms,
            );
        }
        for failure in &curve.failures {
            let _ = writeln!(text, "scale {} couldn't run: {failure}", curve.axis.name());
        }
    }
    text
}

/// For the page.
pub(crate) fn section(curves: &[Curve]) -> anyhow::Result<Markup> {
    let mut sections = vec![];
    for curve in curves {
        let (of, per) = curve.axis.title();
        let points: Vec<(f64, crate::stats::Summary)> = curve
            .points
            .iter()
            .filter_map(|p| Some((f64::from(p.size), curve.summary(p)?.0)))
            .collect();
        let svg = if points.is_empty() {
            String::new()
        } else {
            plot::growth(&points, of, &format!("ns per {per}"))?
        };
        sections.push(html! {
            h3 id={ "scale-" (curve.axis.name()) } { "Cost per " (per) " by number of " (of) }
            figure { (PreEscaped(svg)) }
            table {
                tr {
                    th { (of) } th { "ns per " (per) } th { "min" } th { "max" } th { "x first" }
                    th { "thousand frames/s" } th { "resident, MiB" } th { "start, ms" }
                }
                @for point in &curve.points {
                    @if let Some((cost, rate, growth)) = curve.summary(point) {
                        tr {
                            td { (point.size) }
                            td { (show(cost.median)) } td { (show(cost.min)) } td { (show(cost.max)) }
                            td { @if let Some(g) = growth { (format!("{:.2}", g.median)) } }
                            td { (show(rate.median)) }
                            td { (format!("{:.1}", point.resident_mib)) }
                            td { (format!("{:.1}", point.start_ms)) }
                        }
                    }
                }
            }
            @for failure in &curve.failures { p.missed { "couldn't run: " (failure) } }
        });
    }
    Ok(html! {
        @if !curves.is_empty() {
            h2 id="scale" { "Cost per frame against table size" }
            p.note { (ABOUT) }
            @for section in sections { (section) }
        }
    })
}
