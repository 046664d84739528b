//! `graph`: a picture of what a container, or this host, has: owner, image with its signer, programs, links, maps,
//! bpffs.

use std::process::ExitCode;

use crate::cli::graph::{GraphArgs, GraphFormat};
use crate::commands::list::SeenOwner;
use crate::commands::records;
use crate::kernel::inspect;
use crate::lifecycle::manual::kernel_program;
use crate::output::error::CommandError;
use crate::output::format::{id, verdict, word};
use crate::output::print;
use crate::output::table::printable;
use crate::output::view::OwnerView;
use crate::paths::Paths;

mod mermaid;
mod svg;

/// The column of a node, from left to right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum GraphColumn {
    Owner,
    Image,
    Program,
    Link,
    Map,
    Bpffs,
}

impl GraphColumn {
    const ALL: [Self; 6] = [Self::Owner, Self::Image, Self::Program, Self::Link, Self::Map, Self::Bpffs];
}

/// One box: where it is, and its lines.
#[derive(Debug, Clone, PartialEq, Eq)]
struct GraphNode {
    column: GraphColumn,
    lines: Vec<String>,
}

/// The boxes, and the lines between them by the numbers of the boxes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Graph {
    nodes: Vec<GraphNode>,
    edges: Vec<(usize, usize)>,
}

impl Graph {
    fn add(&mut self, column: GraphColumn, lines: Vec<String>) -> usize {
        self.nodes.push(GraphNode { column, lines: lines.iter().map(|line| printable(line)).collect() });
        self.nodes.len() - 1
    }

    /// The box with these lines, which several others may lead to.
    fn shared(&mut self, column: GraphColumn, lines: Vec<String>) -> usize {
        let same = |node: &GraphNode| node.column == column && node.lines == lines;
        self.nodes.iter().position(same).unwrap_or_else(|| self.add(column, lines))
    }

    fn join(&mut self, from: usize, to: usize) {
        if !self.edges.contains(&(from, to)) {
            self.edges.push((from, to));
        }
    }

    /// Adds an owner; `maps_of` asks the kernel which maps a program uses, None if it does not say.
    fn add_owner(&mut self, view: &OwnerView<'_>, maps_of: &dyn Fn(u32) -> Option<Vec<u32>>) {
        let owner = self.add(GraphColumn::Owner, owner_lines(view));
        let maps: Vec<(Option<u32>, usize)> = view
            .maps
            .iter()
            .map(|map| (map.id, self.add(GraphColumn::Map, vec![format!("map {}", id(map.id)), map.name.clone()])))
            .collect();
        for program in &view.programs {
            let image = self.shared(GraphColumn::Image, vec![program.image.to_string(), verdict(program)]);
            let scope = format!("{} scope", word(&program.scope));
            let lines =
                vec![format!("program {}", id(program.id)), format!("{} {}", program.kind, program.shown_name()), scope];
            let node = self.add(GraphColumn::Program, lines);
            self.join(owner, image);
            self.join(image, node);
            for link in &program.links {
                let link = self.add(GraphColumn::Link, vec![format!("link {}", id(link.id)), link.place()]);
                self.join(node, link);
            }
            let used = program.id.and_then(maps_of);
            for (map, at) in &maps {
                if used.as_ref().is_none_or(|used| map.is_some_and(|map| used.contains(&map))) {
                    self.join(node, *at);
                }
            }
        }
        if let Some(bpffs) = &view.bpffs {
            let delegated = bpffs.summary.clone().unwrap_or_else(|| "private".to_owned());
            let node = self.add(GraphColumn::Bpffs, vec![format!("bpffs {}", bpffs.path), delegated]);
            self.join(owner, node);
            for (map, (_, at)) in view.maps.iter().zip(&maps) {
                if map.shown_as.is_some() {
                    self.join(*at, node);
                }
            }
        }
    }
}

fn owner_lines(view: &OwnerView<'_>) -> Vec<String> {
    let mut lines = vec![format!("{} {}", view.owner.kind, view.owner.short())];
    lines.push(match view.engine {
        Some(engine) => format!("{engine}, {}", word(&view.state)),
        None => word(&view.state),
    });
    lines
}

/// `graph CONTAINER|--all`
pub fn run(paths: &Paths, args: &GraphArgs) -> Result<ExitCode, CommandError> {
    let seen = records::seen_owners(paths, args.container.as_deref())?;
    if let (Some(wanted), true) = (&args.container, seen.is_empty()) {
        let problem = "no container with programs or a bpffs has this name, or an id that begins with it";
        return Err(CommandError::new(format!("draw {wanted:?}: {problem}; see `bpfman-hook list containers`")));
    }
    let maps_of = |program: u32| Some(kernel_program(&inspect::program_by_id(program).ok()?).map_ids);
    let graph = graph_of(&seen, &maps_of);
    print(&match args.output {
        GraphFormat::Mermaid => mermaid::text(&graph),
        GraphFormat::Svg => svg::text(&graph),
    })
}

fn graph_of(seen: &[SeenOwner], maps_of: &dyn Fn(u32) -> Option<Vec<u32>>) -> Graph {
    let mut graph = Graph::default();
    seen.iter().for_each(|seen| graph.add_owner(&seen.view(), maps_of));
    graph
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::list::tests::records;
    use crate::lifecycle::health::Health;

    fn graph() -> Graph {
        let seen = |record| SeenOwner { record, health: Health::default(), name: None };
        let seen: Vec<_> = records().into_iter().map(seen).collect();
        graph_of(&seen, &|program| (program == 71).then(|| vec![61]))
    }

    #[test]
    fn a_picture_shows_the_way_from_the_owner_to_the_bpffs() {
        let text = mermaid::text(&graph());
        for part in [
            "flowchart LR\n",
            "[\"container web<br/>containerd, ready\"]",
            "[\"oci:/images/count:v1<br/>verified by /etc/k?.pub\"]",
            "[\"program 71<br/>cgroup_skb out<br/>container scope\"]",
            "[\"link 82<br/>eth0 in generic mode (skb)\"]",
            "[\"map 61<br/>packets\"]",
            "[\"bpffs /sys/fs/bpf<br/>private\"]",
        ] {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
        let graph = graph();
        let at = |first: &str| graph.nodes.iter().position(|node| node.lines[0] == first).unwrap();
        assert!(graph.edges.contains(&(at("program 71"), at("map 61"))), "the kernel says so");
        assert!(!graph.edges.contains(&(at("program 71"), at("map 62"))));
        assert!(graph.edges.contains(&(at("map 61"), at("bpffs /sys/fs/bpf"))), "it is shown there");
        assert_eq!(text.matches(" --> ").count(), graph.edges.len());
    }

    #[test]
    fn an_svg_has_each_box_and_escapes_its_text() {
        let mut graph = graph();
        graph.add(GraphColumn::Owner, vec!["a <b> & \"c\"".to_owned()]);
        let text = svg::text(&graph);
        assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n"), "{text}");
        assert_eq!(text.matches("<rect").count(), graph.nodes.len());
        assert_eq!(text.matches("<path").count(), graph.edges.len());
        assert!(text.contains("a &lt;b&gt; &amp; &quot;c&quot;"), "{text}");
        let mermaid = mermaid::text(&graph);
        assert!(mermaid.contains("a &lt;b&gt; &amp; &quot;c&quot;"), "{mermaid}");
    }
}
