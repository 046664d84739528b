//! References to bytecode: where an image or object file is.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::model::ids::Digest;

/// Where bytecode is, normalised: two texts that mean the same place are the same reference.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "transport", rename_all = "snake_case")]
pub enum Reference {
    /// `registry/repo[:tag][@sha256:…]`, with or without `docker://`.
    Registry(RegistryReference),
    /// `oci:/dir[:tag]`: an OCI image layout.
    Layout {
        /// The directory, absolute and normal.
        path: PathBuf,
        /// `org.opencontainers.image.ref.name`; None where the layout has one image only.
        tag: Option<String>,
    },
    /// `oci-archive:/file[:tag]`: an OCI image layout in a tar file.
    Archive {
        /// The file, absolute and normal.
        path: PathBuf,
        /// As in a layout.
        tag: Option<String>,
    },
    /// `file:/path.o`: an object file without an image.
    File {
        /// The file, absolute and normal.
        path: PathBuf,
    },
}

/// An image in a registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RegistryReference {
    /// Host with optional port, lower case: `ghcr.io`, `127.0.0.1:5000`.
    pub registry: String,
    /// `acme/probes/xdp`.
    pub repository: String,
    /// The tag; None means `latest` where there is no digest.
    pub tag: Option<String>,
    /// The digest that was asked for; it wins over the tag.
    pub digest: Option<Digest>,
}
