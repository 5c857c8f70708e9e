//! The report as a page that opens from disk: one file, without scripts, with plots drawn in.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::plot;
use crate::report::{Report, Row, show};
use crate::scale::{self, Curve};
use crate::workload::{Better, Metric};

const STYLE: &str = "
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 0.5em 0 }
th, td { text-align: right; padding: 0.15em 0.8em; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
code { overflow-wrap: anywhere }
.missed { color: #b00 }
.note { color: #666 }
svg { max-width: 100%; height: auto }
";

/// The page.
pub(crate) fn page(report: &Report) -> anyhow::Result<String> {
    let mut sections = vec![];
    let mut workload = None;
    for (metric, rows) in report.rows() {
        let first = workload != Some(metric.workload);
        workload = Some(metric.workload);
        if first {
            sections.push(html! { h2 id=(metric.workload.name()) { (metric.workload.name()) } });
            let curves = report.curves(metric.workload);
            if !curves.is_empty() {
                let svg = plot::curves(&curves)?;
                sections.push(html! { figure { (PreEscaped(svg)) } });
            }
        }
        sections.push(section(report, metric, &rows)?);
    }
    let scale = scale::section(&report.scale)?;
    let body = html! {
        (about(report))
        (targets(report))
        @for line in report.failed() { p.missed { (line) } }
        (scale)
        @for section in sections { (section) }
    };
    Ok(document("vswitch side by side", &body))
}

/// A page of curves alone.
pub(crate) fn scale_page(about: &[(String, String)], curves: &[Curve]) -> anyhow::Result<String> {
    let section = scale::section(curves)?;
    let body = html! {
        table {
            @for (name, value) in about { tr { td { (name) } td { code { (value) } } } }
        }
        (section)
    };
    Ok(document("vswitch at scale", &body))
}

/// A page with its head.
fn document(title: &str, body: &Markup) -> String {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { (title) }
                (body)
            }
        }
    }
    .into_string()
}

fn about(report: &Report) -> Markup {
    html! {
        table {
            @for (name, value) in report.about() {
                tr { td { (name) } td { code { (value) } } }
            }
            tr { td { "rounds" } td { (report.rounds) } }
        }
    }
}

fn targets(report: &Report) -> Markup {
    let targets = report.targets();
    html! {
        @if !targets.is_empty() {
            h2 { "Targets" }
            p.note { "Medians of ratios within a round." }
            @for (line, met) in targets {
                div class=(if met { "met" } else { "missed" }) { code { (line) } }
            }
        }
    }
}

fn section(report: &Report, metric: Metric, rows: &[Row]) -> anyhow::Result<Markup> {
    let better = match metric.better {
        Better::Higher => "more is better",
        Better::Lower => "less is better",
    };
    let svg = plot::bars(rows)?;
    Ok(html! {
        h3 { (metric.name) ", " (metric.unit) " " span.note { "(" (better) ")" } }
        figure { (PreEscaped(svg)) }
        table {
            tr {
                th { "peer" } th { "median" } th { "min" } th { "max" }
                th { "ratio" } th { "min" } th { "max" } th { "to" }
            }
            @for row in rows {
                tr {
                    td { (row.peer.name()) }
                    td { (show(row.figure.median)) }
                    td { (show(row.figure.min)) }
                    td { (show(row.figure.max)) }
                    @if let Some(r) = &row.ratio {
                        td { (show(r.median)) } td { (show(r.min)) } td { (show(r.max)) }
                        td { (report.base(row.peer).name()) }
                    } @else {
                        td {} td {} td {} td {}
                    }
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::Peer;
    use crate::workload::{Figure, Sample, Workload};

    #[test]
    fn the_page_holds_what_was_measured_and_nothing_unescaped() {
        let mut report = Report::new("compare <b>".into(), None, vec![]);
        let metric = Metric {
            workload: Workload::Rtt,
            name: "p50",
            unit: "us",
            better: Better::Lower,
        };
        let figures = vec![Figure {
            metric,
            value: 41.25,
        }];
        let curve = vec![(0.0, 30.0), (50.0, 41.25), (99.0, 80.0)];
        report.add(Workload::Rtt, Peer::Bridge, 0, Sample { figures, curve });
        let page = page(&report).unwrap();
        assert!(page.contains("compare &lt;b&gt;"));
        assert!(page.contains("<td>41.2</td>") || page.contains("<td>41.3</td>"));
        assert_eq!(page.matches("<svg").count(), 2);
    }
}
