//! The counters of images, and the event of a fetch.

use crate::image::ImageError;
use crate::model::bytecode::{Bytecode, ImageVerdict};
use crate::model::event::Event;
use crate::model::metrics_table;
use crate::model::metrics_table::{EventKind, Verification, Worked};
use crate::sys::export;

/// Counts the answer to a request for an image.
pub(super) fn answered(answer: &Result<Bytecode, ImageError>) {
    let result = match answer {
        Ok(Bytecode { verdict: ImageVerdict::Verified { .. }, .. }) => Verification::Verified,
        Ok(Bytecode { verdict: ImageVerdict::Unsigned, .. }) => Verification::Unsigned,
        Err(error) if error.is_about_signatures() => Verification::Refused,
        Err(_) => return,
    };
    export::count(metrics_table::verification(result), 1);
}

/// Counts the result of fetching an image from a registry.
pub(super) fn pulled(image: &str, answer: &Result<Bytecode, ImageError>) {
    let Some(export) = export::here() else { return };
    let worked = if answer.is_ok() { Worked::Ok } else { Worked::Failed };
    export.count(metrics_table::pull(worked), 1);
    if let Ok(bytecode) = answer {
        let digest = Some(bytecode.digest.to_string());
        export.tell(EventKind::Pulled, Event { image: Some(image.to_owned()), digest, ..Event::new(EventKind::Pulled) });
    }
}
