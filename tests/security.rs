//! Checks docs/security.md against the tests: every test that it names must exist.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::fs;
use std::path::Path;

/// The `file::name` in code spans of a text: the tests that a document names.
fn named(text: &str) -> Vec<(&str, &str)> {
    let spans = text.split('`').skip(1).step_by(2);
    spans.filter_map(|span| span.split_once("::")).filter(|(file, _)| file.contains('/')).collect()
}

/// True if a source declares a test of that name: a function with the attribute, or one in a suite's list of cases; in
/// a script, a function.
fn declares(source: &str, name: &str) -> bool {
    let lines: Vec<_> = source.lines().map(str::trim).collect();
    let shell = format!("{name}()");
    if lines.iter().any(|line| line.starts_with(&shell)) {
        return true;
    }
    let function = format!("fn {name}(");
    let Some(at) = lines.iter().position(|line| line.starts_with(&function)) else { return false };
    let attributes = lines[..at].iter().rev().take_while(|line| line.starts_with("#["));
    if attributes.into_iter().any(|line| *line == "#[test]") {
        return true;
    }
    let listed = |line: &str| line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == name);
    let from = lines.iter().position(|line| line.contains("cases!"));
    from.is_some_and(|from| lines[from..].iter().take_while(|line| !line.starts_with("fn ")).any(|line| listed(line)))
}

#[test]
fn every_test_that_the_threat_model_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/security.md")).unwrap();
    let named = named(&text);
    assert!(named.len() > 30, "{}", named.len());
    let absent: Vec<_> = named
        .into_iter()
        .filter(|(file, name)| !fs::read_to_string(root.join(file)).is_ok_and(|source| declares(&source, name)))
        .collect();
    assert!(absent.is_empty(), "docs/security.md names tests that do not exist: {absent:#?}");
}

#[test]
fn every_threat_has_a_test() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/security.md")).unwrap();
    let section = text.split("\n## ").find(|section| section.starts_with("Threats\n")).unwrap();
    let rows: Vec<_> = section.lines().filter(|line| line.starts_with('|')).skip(2).collect();
    assert!(rows.len() > 15, "{}", rows.len());
    for row in rows {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").collect();
        assert!(cells.len() == 4 && !named(cells[3]).is_empty(), "a threat without its test: {row}");
    }
}

#[test]
fn only_tests_count_as_tests() {
    let source = "cases![listed, other];\nfn listed(world: &mut World) {}\nfn helper() {}\n#[test]\n#[ignore]\nfn unit() {}\n";
    for (name, expected) in [("listed", true), ("unit", true), ("helper", false), ("other", false), ("list", false)] {
        assert_eq!(declares(source, name), expected, "{name}");
    }
    assert!(declares("tokens_work() { # of the guest\n}\n", "tokens_work"));
    assert_eq!(named("`a/b.rs::c` and `Type::method`, `x`"), [("a/b.rs", "c")]);
}
