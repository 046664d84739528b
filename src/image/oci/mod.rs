//! The parts of bytecode images: documents, layouts, layers, the object.

pub mod content;
pub mod document;
pub mod layout;
pub mod object;
pub mod tar_end;
pub(crate) mod written;
