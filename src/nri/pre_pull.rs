//! The images of `--pre-pull`: fetched and verified when the plugin starts, before a pod requests them.

use std::path::Path;

use crate::model::reference::Reference;
use crate::output::error::CommandError;
use crate::sys::fsutil;

/// Maximum size of a list file in bytes.
const LIST_MAX: usize = 1 << 20;

/// The images: each value is a reference, or the absolute path of a file with one reference per line.
///
/// # Errors
/// If a file cannot be read, or a reference is not an image in a registry.
pub fn images(values: &[String]) -> Result<Vec<String>, CommandError> {
    let mut images = Vec::new();
    for value in values {
        if !value.starts_with('/') {
            add(value, "--pre-pull", &mut images)?;
            continue;
        }
        let text = fsutil::read_text(Path::new(value), LIST_MAX)?;
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if !line.is_empty() && !line.starts_with('#') {
                add(line, &format!("{value}:{}", number + 1), &mut images)?;
            }
        }
    }
    Ok(images)
}

fn add(text: &str, at: &str, images: &mut Vec<String>) -> Result<(), CommandError> {
    let reference = Reference::parse(text).map_err(CommandError::doing(at))?;
    if reference.on_host() {
        let problem = "is on the host and is not fetched; name an image in a registry";
        return Err(CommandError::new(format!("{at}: {text} {problem}")));
    }
    let image = reference.to_string();
    if !images.contains(&image) {
        images.push(image);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_and_lists_are_read_without_duplicates() {
        let directory = tempfile::tempdir().unwrap();
        let list = directory.path().join("list");
        let value = list.display().to_string();
        std::fs::write(&list, "# probes\nregistry.example/a:v1\n\n  registry.example/b:v1\n").unwrap();
        let found = images(&["registry.example/b:v1".into(), value.clone()]).unwrap();
        assert_eq!(found, ["registry.example/b:v1", "registry.example/a:v1"]);
        for (text, says) in [("registry.example/a:v1\noci:/srv/x\n", ":2: oci:/srv/x is on the host"), ("?\n", ":1: ")] {
            std::fs::write(&list, text).unwrap();
            let error = images(std::slice::from_ref(&value)).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        assert!(images(&["/nowhere/list".into()]).unwrap_err().to_string().contains("/nowhere/list"));
    }
}
