//! SVG without any script, font or style sheet from elsewhere: columns of boxes, joined by curves.

use std::fmt::Write as _;

use super::mermaid::escaped;
use super::{Graph, GraphColumn, GraphNode};

/// Pixels.
const LINE: usize = 16;
const GLYPH: usize = 7;
const PADDING: usize = 8;
const GAP: usize = 16;
const BETWEEN_COLUMNS: usize = 56;
/// Longer lines are cut.
const LONGEST: usize = 44;

/// The place of a box.
#[derive(Clone, Copy)]
struct BoxPlace {
    x: usize,
    y: usize,
    width: usize,
    height: usize,
}

/// The picture.
pub fn text(graph: &Graph) -> String {
    let places = places(graph);
    let width = places.iter().map(|place| place.x + place.width).max().unwrap_or_default() + GAP;
    let height = places.iter().map(|place| place.y + place.height).max().unwrap_or_default() + GAP;
    // Writing to a string does not fail.
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"monospace\" font-size=\"12\">\n"
    );
    _ = writeln!(text, "<title>bpfman-hook graph</title>");
    for (from, to) in &graph.edges {
        let (from, to) = (places[*from], places[*to]);
        let (x1, y1) = (from.x + from.width, from.y + from.height / 2);
        let (x2, y2) = (to.x, to.y + to.height / 2);
        let middle = (x1 + x2) / 2;
        _ = writeln!(text, "<path d=\"M{x1} {y1} C{middle} {y1} {middle} {y2} {x2} {y2}\" fill=\"none\" stroke=\"#888\"/>");
    }
    for (node, place) in graph.nodes.iter().zip(&places) {
        let BoxPlace { x, y, width, height } = place;
        let fill = fill(node.column);
        _ = writeln!(
            text,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"4\" fill=\"{fill}\" stroke=\"#444\"/>"
        );
        for (n, line) in node.lines.iter().enumerate() {
            let (x, y) = (x + PADDING, y + PADDING + 12 + n * LINE);
            _ = writeln!(text, "<text x=\"{x}\" y=\"{y}\">{}</text>", escaped(&cut(line)));
        }
    }
    text.push_str("</svg>\n");
    text
}

/// Each column is as wide as its widest box; boxes are below one another in the order in which they were added.
fn places(graph: &Graph) -> Vec<BoxPlace> {
    let width = |node: &GraphNode| {
        let longest = node.lines.iter().map(|line| cut(line).chars().count()).max().unwrap_or_default();
        longest * GLYPH + 2 * PADDING + GLYPH
    };
    let mut x = GAP;
    let mut places = vec![BoxPlace { x: 0, y: 0, width: 0, height: 0 }; graph.nodes.len()];
    for column in GraphColumn::ALL {
        let inside: Vec<usize> = (0..graph.nodes.len()).filter(|n| graph.nodes[*n].column == column).collect();
        let Some(widest) = inside.iter().map(|n| width(&graph.nodes[*n])).max() else { continue };
        let mut y = GAP;
        for n in inside {
            let height = graph.nodes[n].lines.len() * LINE + 2 * PADDING;
            places[n] = BoxPlace { x, y, width: widest, height };
            y += height + GAP;
        }
        x += widest + BETWEEN_COLUMNS;
    }
    places
}

fn cut(line: &str) -> String {
    match line.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line.to_owned(),
    }
}

fn fill(column: GraphColumn) -> &'static str {
    match column {
        GraphColumn::Owner => "#e8eef7",
        GraphColumn::Image => "#f7f0e0",
        GraphColumn::Program => "#e6f4e6",
        GraphColumn::Link => "#f4e6f0",
        GraphColumn::Map => "#eeeeee",
        GraphColumn::Bpffs => "#e0f4f4",
    }
}
