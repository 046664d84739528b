//! Words, ids and JSON in the form that every command prints.

use serde::Serialize;

use crate::output::table::printable;
use crate::output::view::ProgramView;

/// The output form of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListFormat {
    /// Tables and trees.
    Table,
    /// One JSON document.
    Json,
    /// Only ids, one per line.
    Quiet,
}

/// JSON as every command prints it: indented, with a final newline.
pub fn json(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("views have string keys and no failing serializers");
    text.push('\n');
    text
}

pub fn verdict(program: &ProgramView) -> String {
    match &program.by {
        Some(by) => format!("verified by {}", printable(by)),
        None => "accepted unsigned".to_owned(),
    }
}

pub fn id(id: Option<u32>) -> String {
    id.map_or_else(|| "-".to_owned(), |id| id.to_string())
}

/// The word that represents a value in JSON.
pub fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}
