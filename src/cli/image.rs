//! Arguments of the commands `image …`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::cli::{Format, Formatted, Listing, PullArgs, RegistryArgs};

/// `image WHAT`.
#[derive(Debug, Clone, Subcommand)]
pub enum ImageCommand {
    /// List cached images
    #[command(alias = "ls")]
    List(Listing),
    /// Show a local image: programs, maps, labels, required kernel
    Inspect(ImageInspectArgs),
    /// Ask this kernel's verifier about the programs of a local image; attaches nothing
    Test(ImageTestArgs),
    /// Show for each signature of an image why it is accepted or rejected; exit 1 if no rule is satisfied
    Verify(ImageVerifyArgs),
    /// Same as `pull`
    Pull(PullArgs),
    /// Build an image from object files, without a container engine
    Build(ImageBuildArgs),
    /// Sign the programs of an object file, for kernels that check it
    Sign(ImageSignArgs),
    /// Make the node's keyring for signed programs, of /etc/bpfman-hook/program-keys; run at boot
    Keyring(ImageKeyringArgs),
    /// Push an image with its signatures to a registry
    Push(ImagePushArgs),
    /// Print the build arguments for bpfman's Containerfile.bytecode
    GenerateBuildArgs(GenerateBuildArgs),
    /// Remove images from the cache
    #[command(alias = "remove")]
    Rm(ImageRmArgs),
    /// Remove unreferenced images, but none that an owner uses
    Prune(ImagePruneArgs),
    /// Write a cached image with its signatures to one file
    Export(ImageExportArgs),
    /// Import the images of an exported file into the cache, verified against the policy
    Import(ImageImportArgs),
}

/// `image inspect`.
#[derive(Debug, Clone, Args)]
pub struct ImageInspectArgs {
    /// An image in the cache, oci:/dir[:tag], oci-archive:/file[:tag] or file:/path
    #[arg(value_name = "REF")]
    pub reference: String,
    /// Format.
    #[command(flatten)]
    pub format: Formatted,
}

/// `image test`.
#[derive(Debug, Clone, Args)]
pub struct ImageTestArgs {
    /// An image in the cache, oci:/dir[:tag], oci-archive:/file[:tag] or file:/path
    #[arg(value_name = "REF")]
    pub reference: String,
    /// Only these programs
    #[arg(long, value_name = "FUNCTION", num_args = 1..)]
    pub programs: Vec<String>,
    /// Also print the verifier's logs
    #[arg(short, long)]
    pub verbose: bool,
    /// Format.
    #[command(flatten)]
    pub format: Formatted,
}

/// `image verify`.
#[derive(Debug, Clone, Args)]
pub struct ImageVerifyArgs {
    /// An image reference, as for `pull`; the registry is queried, and nothing is cached
    #[arg(value_name = "REF")]
    pub reference: String,
    /// Required signers, instead of the policy's.
    #[command(flatten)]
    pub signers: SignerArgs,
    /// Credentials.
    #[command(flatten)]
    pub registry: RegistryArgs,
    /// Format.
    #[command(flatten)]
    pub format: Formatted,
}

/// Required signers: one of them suffices; without any of these flags, the policy decides.
#[derive(Debug, Clone, Args)]
pub struct SignerArgs {
    /// Required signer, instead of the policy's: a public key in PEM; may be repeated
    #[arg(long = "key", value_name = "FILE")]
    pub keys: Vec<PathBuf>,
    /// Required signer: the e-mail address or URI in the certificate
    #[arg(long, value_name = "TEXT", group = "signing", requires = "vouching", conflicts_with = "certificate_identity_regexp")]
    pub certificate_identity: Option<String>,
    /// Required signer: a regular expression that must match the whole identity
    #[arg(long, value_name = "REGEXP", group = "signing", requires = "vouching")]
    pub certificate_identity_regexp: Option<String>,
    /// The OIDC issuer of the identity
    #[arg(
        long,
        value_name = "URL",
        group = "vouching",
        requires = "signing",
        conflicts_with = "certificate_oidc_issuer_regexp"
    )]
    pub certificate_oidc_issuer: Option<String>,
    /// A regular expression that must match the whole OIDC issuer
    #[arg(long, value_name = "REGEXP", group = "vouching", requires = "signing")]
    pub certificate_oidc_issuer_regexp: Option<String>,
    /// The trusted authorities and logs [default: /etc/bpfman-hook/trusted_root.json]
    #[arg(long, value_name = "FILE", requires = "signing")]
    pub trusted_root: Option<PathBuf>,
}

/// `image build`.
#[derive(Debug, Clone, Args)]
pub struct ImageBuildArgs {
    /// Name of the image in the cache, or its destination: oci:/dir[:tag], oci-archive:/file[:tag]
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// Object files; several files make an index with one entry each
    #[arg(required = true, value_name = "[linux/ARCH=]FILE")]
    pub files: Vec<String>,
    /// Sign each program with this private key; the PEM file has its certificate too
    #[arg(long, value_name = "FILE")]
    pub sign_programs: Option<PathBuf>,
    /// A map that only the one program may use that uses it here (Linux 6.18)
    #[arg(long = "exclusive-map", value_name = "MAP")]
    pub exclusive_maps: Vec<String>,
    /// An executable that may load programs, for policies that take them from images
    #[arg(long = "executable", value_name = "FILE")]
    pub executables: Vec<PathBuf>,
    /// Write the image here, under the name IMAGE, instead of into the cache
    #[arg(long, value_name = "oci:/DIR|oci-archive:/FILE")]
    pub to: Option<String>,
    /// An annotation of the manifests and the index, such as org.opencontainers.image.source=URL
    #[arg(long = "annotation", value_name = "KEY=VALUE", value_parser = super::key_value)]
    pub annotations: Vec<(String, String)>,
    /// Push the image to IMAGE's registry, instead of into the cache
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

/// `image sign`.
#[derive(Debug, Clone, Args)]
pub struct ImageSignArgs {
    /// The object file, whose signatures are replaced
    #[arg(value_name = "OBJECT")]
    pub object: PathBuf,
    /// The private key; the PEM file has its certificate too
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// A map that only the one program may use that uses it here (Linux 6.18)
    #[arg(long = "exclusive-map", value_name = "MAP")]
    pub exclusive_maps: Vec<String>,
    /// An executable that may load programs, for policies that take them from images
    #[arg(long = "executable", value_name = "FILE")]
    pub executables: Vec<PathBuf>,
    /// Write the signed object here instead of over OBJECT
    #[arg(long = "to", value_name = "FILE")]
    pub output_file: Option<PathBuf>,
    /// Output format
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    pub output: Format,
}

/// `image keyring`.
#[derive(Debug, Clone, Copy, Args)]
pub struct ImageKeyringArgs {
    /// Format.
    #[command(flatten)]
    pub format: Formatted,
}

/// `image push`.
#[derive(Debug, Clone, Args)]
pub struct ImagePushArgs {
    /// An image in the cache, oci:/dir[:tag] or oci-archive:/file[:tag]
    #[arg(value_name = "SRC")]
    pub source: String,
    /// registry/repository:tag [default: SRC's own name]
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
    /// References, or digests (sha256:…) to remove all references to them
    #[arg(required = true, value_name = "REF|DIGEST")]
    pub images: Vec<String>,
    /// Format.
    #[command(flatten)]
    pub format: Formatted,
}

/// `image prune`.
#[derive(Debug, Clone, Copy, Args)]
pub struct ImagePruneArgs {
    /// Remove all images that no container, pod or manual load uses, referenced or not
    #[arg(short, long)]
    pub all: bool,
    /// Show what would be removed, and remove nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Format.
    #[command(flatten)]
    pub format: Formatted,
}

/// `image export`.
#[derive(Debug, Clone, Args)]
pub struct ImageExportArgs {
    /// An image in the cache, oci:/dir[:tag] or oci-archive:/file[:tag]
    #[arg(value_name = "REF")]
    pub reference: String,
    /// The OCI archive to create, with or without an `oci-archive:` prefix
    #[arg(value_parser = archive)]
    pub file: PathBuf,
    /// The image's name in the file, for a REF without a registry name
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Print nothing
    #[arg(short, long)]
    pub quiet: bool,
}

/// `image import`.
#[derive(Debug, Clone, Args)]
pub struct ImageImportArgs {
    /// An OCI archive, as `image export`, skopeo and podman write it, with or without an `oci-archive:` prefix
    #[arg(value_parser = archive)]
    pub file: PathBuf,
    /// The image's name, if the file contains one image without a name
    #[arg(value_name = "REF")]
    pub reference: Option<String>,
    /// Print digests only
    #[arg(short, long, conflicts_with = "output")]
    pub quiet: bool,
    /// Output format
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    pub output: Format,
}

/// Accepts the path of an archive, also with the `oci-archive:` prefix that other commands take.
fn archive(text: &str) -> Result<PathBuf, String> {
    match text.strip_prefix("oci-archive:").unwrap_or(text) {
        "" => Err("the file name is missing".to_owned()),
        path => Ok(path.into()),
    }
}
