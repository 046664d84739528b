//! The only code that orders effects: acquire, release, reconcile.

pub mod policy_files;
