//! Images: `images`, `pull`, `image WHAT`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::cli::{Format, Formatted, Listing, PullArgs, RegistryArgs};

/// `image WHAT`.
#[derive(Debug, Clone, Subcommand)]
pub enum ImageCommand {
    /// List cached images (`images`)
    #[command(alias = "ls")]
    List(Listing),
    /// Show an image of this machine: programs, maps, labels, needed kernel
    Inspect(ImageInspectArgs),
    /// Say of each signature of an image why it counts or does not; exit 1 if no rule is satisfied
    Verify(ImageVerifyArgs),
    /// Fetch images and verify them as policy says (`pull`)
    Pull(PullArgs),
    /// Make an image of object files, without a container engine
    Build(ImageBuildArgs),
    /// Put an image with its signatures into a registry
    Push(ImagePushArgs),
    /// Print the build arguments for bpfman's Containerfile.bytecode
    GenerateBuildArgs(GenerateBuildArgs),
    /// Remove images from the cache
    #[command(alias = "remove")]
    Rm(ImageRmArgs),
    /// Remove what no reference leads to; never what an owner uses
    Prune(ImagePruneArgs),
    /// Write a cached image with its signatures into one file
    Export(ImageExportArgs),
    /// Bring the images of such a file into the cache, verified as policy says
    Import(ImageImportArgs),
}

/// `image inspect`.
#[derive(Debug, Clone, Args)]
pub struct ImageInspectArgs {
    /// An image of the cache, oci:/dir[:tag], oci-archive:/file[:tag] or file:/path
    #[arg(value_name = "REF")]
    pub reference: String,
    /// Format.
    #[command(flatten)]
    pub format: Formatted,
}

/// `image verify`.
#[derive(Debug, Clone, Args)]
pub struct ImageVerifyArgs {
    /// As for `pull`; a registry is asked, and nothing is kept
    #[arg(value_name = "REF")]
    pub reference: String,
    /// Who must have signed, instead of what policy says.
    #[command(flatten)]
    pub signers: SignerArgs,
    /// Credentials.
    #[command(flatten)]
    pub registry: RegistryArgs,
    /// Format.
    #[command(flatten)]
    pub format: Formatted,
}

/// Who must have signed; any of them suffices, and without any of these policy says it.
#[derive(Debug, Clone, Args)]
pub struct SignerArgs {
    /// Who must have signed, instead of what policy says: a public key, PEM; may be repeated
    #[arg(long = "key", value_name = "FILE")]
    pub keys: Vec<PathBuf>,
    /// The same: the e-mail address or URI in the certificate
    #[arg(long, value_name = "TEXT", group = "signing", requires = "vouching", conflicts_with = "certificate_identity_regexp")]
    pub certificate_identity: Option<String>,
    /// The same, as an expression that matches all of it
    #[arg(long, value_name = "REGEXP", group = "signing", requires = "vouching")]
    pub certificate_identity_regexp: Option<String>,
    /// The OIDC issuer that vouched for the identity
    #[arg(
        long,
        value_name = "URL",
        group = "vouching",
        requires = "signing",
        conflicts_with = "certificate_oidc_issuer_regexp"
    )]
    pub certificate_oidc_issuer: Option<String>,
    /// The same, as an expression that matches all of it
    #[arg(long, value_name = "REGEXP", group = "vouching", requires = "signing")]
    pub certificate_oidc_issuer_regexp: Option<String>,
    /// The authorities and logs that are believed; /etc/bpfman-hook/trusted_root.json without it
    #[arg(long, value_name = "FILE", requires = "signing")]
    pub trusted_root: Option<PathBuf>,
}

/// `image build`.
#[derive(Debug, Clone, Args)]
pub struct ImageBuildArgs {
    /// What it is called in the cache, or where it goes: oci:/dir[:tag], oci-archive:/file[:tag]
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// Object files; several make an index with one entry each
    #[arg(required = true, value_name = "[linux/ARCH=]FILE")]
    pub files: Vec<String>,
    /// Where it goes, under the name IMAGE, instead of into the cache
    #[arg(long, value_name = "oci:/DIR|oci-archive:/FILE")]
    pub to: Option<String>,
    /// Push it to IMAGE's registry, instead of into the cache
    #[arg(long, conflicts_with = "to")]
    pub push: bool,
    /// Credentials, for --push.
    #[command(flatten)]
    pub registry: RegistryArgs,
    /// Print the digest only
    #[arg(short, long, conflicts_with = "output")]
    pub quiet: bool,
    /// Output format
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    pub output: Format,
}

/// `image push`.
#[derive(Debug, Clone, Args)]
pub struct ImagePushArgs {
    /// An image of the cache, oci:/dir[:tag] or oci-archive:/file[:tag]
    #[arg(value_name = "SRC")]
    pub source: String,
    /// registry/repository:tag; without it, SRC's own name
    #[arg(value_name = "DEST")]
    pub destination: Option<String>,
    /// Credentials.
    #[command(flatten)]
    pub registry: RegistryArgs,
    /// Print the digest only
    #[arg(short, long, conflicts_with = "output")]
    pub quiet: bool,
    /// Output format
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    pub output: Format,
}

/// `image generate-build-args`.
#[derive(Debug, Clone, Args)]
pub struct GenerateBuildArgs {
    /// Object files, as for `image build`
    #[arg(required = true, value_name = "[linux/ARCH=]FILE")]
    pub files: Vec<String>,
    /// Format.
    #[command(flatten)]
    pub format: Formatted,
}

/// `image rm`.
#[derive(Debug, Clone, Args)]
pub struct ImageRmArgs {
    /// References, or digests (sha256:…): all references to them
    #[arg(required = true, value_name = "REF|DIGEST")]
    pub images: Vec<String>,
    /// Format.
    #[command(flatten)]
    pub format: Formatted,
}

/// `image prune`.
#[derive(Debug, Clone, Copy, Args)]
pub struct ImagePruneArgs {
    /// All images that no container, pod or person uses now, referenced or not
    #[arg(short, long)]
    pub all: bool,
    /// Say what would be removed, and remove nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Format.
    #[command(flatten)]
    pub format: Formatted,
}

/// `image export`.
#[derive(Debug, Clone, Args)]
pub struct ImageExportArgs {
    /// An image of the cache, oci:/dir[:tag] or oci-archive:/file[:tag]
    #[arg(value_name = "REF")]
    pub reference: String,
    /// An OCI archive, written anew; with or without `oci-archive:` before it
    #[arg(value_parser = archive)]
    pub file: PathBuf,
    /// What it is called in the file, for REFs without a registry's name
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Print nothing
    #[arg(short, long)]
    pub quiet: bool,
}

/// `image import`.
#[derive(Debug, Clone, Args)]
pub struct ImageImportArgs {
    /// An OCI archive, as `image export`, skopeo and podman write it; with or without `oci-archive:` before it
    #[arg(value_parser = archive)]
    pub file: PathBuf,
    /// What its image is to be called, where the file has one and no name for it
    #[arg(value_name = "REF")]
    pub reference: Option<String>,
    /// Print digests only
    #[arg(short, long, conflicts_with = "output")]
    pub quiet: bool,
    /// Output format
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    pub output: Format,
}

/// The path of an archive, also where it is written as other commands take it.
fn archive(text: &str) -> Result<PathBuf, String> {
    match text.strip_prefix("oci-archive:").unwrap_or(text) {
        "" => Err("it names no file".to_owned()),
        path => Ok(path.into()),
    }
}
