//! Images that users build and move: out of object files, and between the cache, layouts, archives and registries.

pub mod build;
pub mod image_set;
pub mod library;
pub mod push;
pub mod write;
