//! `image inspect REF`: the contents and requirements of a local image.

use std::fmt::Write as _;
use std::process::ExitCode;

use serde::Serialize;

use crate::cli::Format;
use crate::cli::image::ImageInspectArgs;
use crate::image::{Details, Labelled};
use crate::kernel::{Survey, survey};
use crate::output::error::CommandError;
use crate::output::format::json;
use crate::output::print;
use crate::output::table::{Table, printable};
use crate::paths::Paths;

/// An image as `-o json` prints it.
#[derive(Debug, Serialize)]
struct ImageView {
    reference: String,
    digest: String,
    media_type: Option<String>,
    platforms: Vec<String>,
    size: u64,
    signatures: usize,
    object_size: usize,
    #[serde(flatten)]
    object: Survey,
    /// None for a plain file, which has no labels.
    labels: Option<ShownLabels>,
}

#[derive(Debug, Serialize)]
struct ShownLabels {
    programs: std::collections::BTreeMap<String, String>,
    maps: std::collections::BTreeMap<String, String>,
    /// Differences between labels and object, one sentence each.
    differences: Vec<String>,
}

/// `image inspect REF`
pub fn run(paths: &Paths, args: &ImageInspectArgs) -> Result<ExitCode, CommandError> {
    let reference = super::reference(&args.reference)?;
    let details = super::images(paths).details(&reference)?;
    let object = survey(&details.object).map_err(CommandError::doing(format!("inspect {reference}")))?;
    let view = view(details, object);
    print(&match args.format.output {
        Format::Json => json(&view),
        Format::Table => text(&view),
    })
}

fn view(details: Details, object: Survey) -> ImageView {
    ImageView {
        reference: details.reference,
        digest: details.digest.to_string(),
        media_type: details.media_type,
        platforms: details.platforms,
        size: details.size,
        signatures: details.signatures,
        object_size: details.object.len(),
        labels: details.labels.map(|labels| {
            let differences = differences(&labels, &object);
            ShownLabels { programs: labels.programs, maps: labels.maps, differences }
        }),
        object,
    }
}

/// The differences between labels and object. The words for types vary, so only names count, and types that would break
/// something: a program's type decides how it is attached.
fn differences(labels: &Labelled, object: &Survey) -> Vec<String> {
    let mut found = Vec::new();
    if labels.programs.is_empty() && labels.maps.is_empty() {
        return vec![
            "the image has no labels: bpfman's own loader accepts only images with io.ebpf.programs and io.ebpf.maps"
                .to_owned(),
        ];
    }
    for (name, kind) in &labels.programs {
        match object.programs.iter().find(|program| program.name == *name) {
            None => found.push(format!("program {name} is not in the object")),
            Some(program) if !same_kind(kind, &program.kind) => {
                found.push(format!("program {name} is labelled {kind} but is {}", program.kind));
            }
            Some(_) => {}
        }
    }
    for program in object.programs.iter().filter(|program| !labels.programs.contains_key(&program.name)) {
        found.push(format!("program {} is not in the labels", program.name));
    }
    for name in labels.maps.keys().filter(|name| !object.maps.iter().any(|map| map.name == **name)) {
        // Older versions of bpfman's tools list data sections as maps.
        if !name.starts_with('.') && !name.contains(".rodata") && !name.contains(".bss") && !name.contains(".data") {
            found.push(format!("map {name} is not in the object"));
        }
    }
    for map in object.maps.iter().filter(|map| !labels.maps.contains_key(&map.name)) {
        found.push(format!("map {} is not in the labels", map.name));
    }
    found
}

/// tc and tcx are the same program type, attached in two ways.
fn same_kind(label: &str, kind: &str) -> bool {
    let plain = |word: &str| match word {
        "tcx" | "classifier" => "tc".to_owned(),
        word => word.to_owned(),
    };
    plain(label) == plain(kind)
}

fn text(view: &ImageView) -> String {
    let mut text = format!("{}\n", printable(&view.reference));
    let mut line = |key: &str, value: &str| _ = writeln!(text, "  {key:<11} {}", printable(value));
    line("digest", &view.digest);
    if let Some(media_type) = &view.media_type {
        line("type", media_type);
    }
    if !view.platforms.is_empty() {
        line("platforms", &view.platforms.join(", "));
    }
    line("size", &format!("{}, object {}", super::size(view.size), super::size(view.object_size as u64)));
    if view.labels.is_some() {
        line("signatures", &format!("{} (not verified here: see image verify)", view.signatures));
    }
    let object = &view.object;
    line("license", if object.license.is_empty() { "none: the kernel refuses GPL-only helpers" } else { &object.license });
    line("kernel", &format!("{} or newer; distributions may backport features", object.kernel));
    let types = match (object.btf, object.core) {
        (_, true) => "yes, with CO-RE relocations",
        (true, false) => "yes, without CO-RE relocations",
        (false, false) => "none",
    };
    line("btf", types);
    if !object.globals.is_empty() {
        line("globals", &object.globals.join(", "));
    }
    if !object.kernel_symbols.is_empty() {
        line("externs", &object.kernel_symbols.join(", "));
    }
    match view.labels.as_ref().map(|labels| labels.differences.as_slice()) {
        None => {}
        Some([]) => line("labels", "agree with the object"),
        Some(differences) => differences.iter().for_each(|difference| line("labels", difference)),
    }
    let mut table = Table::new(&["PROGRAM", "TYPE", "SECTION", "INSTRUCTIONS"]);
    for program in &object.programs {
        table.row([program.name.clone(), program.kind.clone(), program.section.clone(), program.instructions.to_string()]);
    }
    _ = write!(text, "\n{table}");
    if !object.maps.is_empty() {
        let mut table = Table::new(&["MAP", "TYPE", "KEY", "VALUE", "ENTRIES"]);
        for map in &object.maps {
            let numbers = [map.key_size, map.value_size, map.max_entries].map(|number| number.to_string());
            let [key, value, entries] = numbers;
            table.row([map.name.clone(), map.kind.clone(), key, value, entries]);
        }
        _ = write!(text, "\n{table}");
    }
    if !object.needs.is_empty() {
        let mut table = Table::new(&["NEEDS", "SINCE"]);
        for need in &object.needs {
            table.row([need.what.clone(), need.since.clone()]);
        }
        _ = write!(text, "\n{table}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn differences_between_labels_and_object_are_reported() {
        let object = survey(include_bytes!("../../../tests/data/images/pass.bpfel.o")).unwrap();
        let labels = |programs: &[(&str, &str)], maps: &[&str]| {
            let programs = programs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
            let mut all: BTreeMap<String, String> = maps.iter().map(|name| ((*name).to_owned(), "array".into())).collect();
            all.extend(object.maps.iter().map(|map| (map.name.clone(), map.kind.clone())));
            Labelled { programs, maps: all }
        };
        for (labels, expected) in [
            (labels(&[("pass", "xdp")], &[".rodata"]), &[][..]),
            (labels(&[("pass", "tc")], &[]), &["program pass is labelled tc but is xdp"][..]),
            (
                labels(&[("other", "xdp")], &["gone"]),
                &["program other is not in the object", "program pass is not in the labels", "map gone is not in the object"][..],
            ),
        ] {
            assert_eq!(differences(&labels, &object), expected);
        }
        assert!(differences(&Labelled::default(), &object)[0].starts_with("the image has no labels"));
    }
}
