//! Mermaid, which wikis and issue trackers draw.

use std::fmt::Write as _;

use super::Graph;

/// A flowchart from left to right.
pub fn text(graph: &Graph) -> String {
    let mut text = String::from("flowchart LR\n");
    for (n, node) in graph.nodes.iter().enumerate() {
        let lines: Vec<String> = node.lines.iter().map(|line| escaped(line)).collect();
        // Writing to a string does not fail.
        _ = writeln!(text, "    n{n}[\"{}\"]", lines.join("<br/>"));
    }
    for (from, to) in &graph.edges {
        _ = writeln!(text, "    n{from} --> n{to}");
    }
    text
}

/// Text for XML, and for Mermaid, which takes the same entities.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
