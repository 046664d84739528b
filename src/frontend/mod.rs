//! Doors: input, one call into the lifecycle, output. No decisions.

pub mod policy;
