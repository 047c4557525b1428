//! A picture of the log as it grows: what `onced bench log --json` says, in SVG.

use std::fmt::Write as _;

use serde_json::Value;

const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 200.0;
/// Around each panel: for the axes' numbers and titles.
const MARGIN: f64 = 50.0;
const COLOURS: [&str; 2] = ["#1f6feb", "#bc4c00"];

/// The cost of one kind of work at each size.
struct Line {
    name: &'static str,
    points: Vec<(f64, f64)>,
}

/// Keys a second, and microseconds of processor time a key, over the number of keys.
pub fn draw(log: &Value) -> String {
    let rows = log["rows"].as_array().cloned().unwrap_or_default();
    let line = |name, begins: &str, figure: &str| Line {
        name,
        points: rows.iter().filter_map(|row| point(row, begins, figure)).collect(),
    };
    let panels = [("thousand keys a second", "per_second", 1e-3), ("CPU us a key", "cpu_us", 1.0)];
    let mut picture = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" role="img" font-family="sans-serif" font-size="12" fill="#1f2328"><title>The dedup log as it grows</title><rect width="100%" height="100%" fill="#ffffff"/>"##,
        2.0 * (WIDTH + 2.0 * MARGIN),
        HEIGHT + 2.0 * MARGIN,
    );
    for ((title, figure, scale), left) in panels.into_iter().zip([0.0, WIDTH + 2.0 * MARGIN]) {
        let lines = [
            line("new keys", "new, up to ", figure),
            line("duplicates", "duplicates, of ", figure),
        ];
        panel(&mut picture, left + MARGIN, title, scale, &lines);
    }
    picture + "</svg>\n"
}

/// The number of keys, and the figure.
fn point(row: &Value, begins: &str, figure: &str) -> Option<(f64, f64)> {
    let size = row["what"].as_str()?.strip_prefix(begins)?;
    let (number, unit) = size.split_once(' ').unwrap_or((size, ""));
    let unit = match unit {
        "M" => 1e6,
        "k" => 1e3,
        _ => 1.0,
    };
    Some((number.parse::<f64>().ok()? * unit, row[figure].as_f64()?))
}

fn panel(picture: &mut String, left: f64, title: &str, scale: f64, lines: &[Line]) {
    let points = || lines.iter().flat_map(|line| &line.points);
    let most = points().map(|(_, figure)| figure * scale).fold(0.0, f64::max).max(1e-9);
    let (low, high) = points().fold((f64::MAX, 0.0_f64), |(low, high), (keys, _)| {
        (low.min(keys.log10()), high.max(keys.log10()))
    });
    let x = |keys: f64| left + WIDTH * (keys.log10() - low) / (high - low).max(1e-9);
    let y = |figure: f64| MARGIN + HEIGHT * (1.0 - figure * scale / most);
    let bottom = MARGIN + HEIGHT;
    let _ = write!(picture, r#"<text x="{left}" y="{}">{title}</text>"#, MARGIN - 25.0);
    for (at, text) in [(most / scale, format!("{most:.1}")), (0.0, "0".to_owned())] {
        let right = left + WIDTH;
        let (y, x) = (y(at), left - 5.0);
        let _ = write!(
            picture,
            r##"<path d="M{left} {y:.1}H{right}" stroke="#d0d7de"/><text x="{x}" y="{:.1}" text-anchor="end">{text}</text>"##,
            y + 4.0,
        );
    }
    for (keys, _) in &lines[0].points {
        let _ = write!(
            picture,
            r#"<text x="{:.1}" y="{}" text-anchor="middle">{} M</text>"#,
            x(*keys),
            bottom + 18.0,
            keys / 1e6,
        );
    }
    for ((line, colour), place) in lines.iter().zip(COLOURS).zip(0_u8..) {
        let mut path = String::new();
        for (keys, figure) in &line.points {
            let command = if path.is_empty() { 'M' } else { 'L' };
            let _ = write!(path, "{command}{:.1} {:.1}", x(*keys), y(*figure));
            let _ = write!(
                picture,
                r#"<circle cx="{:.1}" cy="{:.1}" r="3" fill="{colour}"/>"#,
                x(*keys),
                y(*figure),
            );
        }
        // Told apart without their colours too.
        let dashes = if place == 0 { "none" } else { "6 3" };
        let _ = write!(
            picture,
            r#"<path d="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"/><text x="{}" y="{}" fill="{colour}">{}</text>"#,
            left + 90.0 * f64::from(place) + WIDTH - 170.0,
            MARGIN - 25.0,
            line.name,
        );
    }
}
