//! `image build` and `image generate-build-args`: build images from object files.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use crate::cli::Format;
use crate::cli::image::{GenerateBuildArgs, ImageBuildArgs};
use crate::image::transfer::build;
use crate::image::transfer::build::{Described, Input};
use crate::image::{ByteOrder, ImageSet, MAX_OBJECT};
use crate::kernel::survey;
use crate::model::reference::Reference;
use crate::output::error::CommandError;
use crate::output::format::json;
use crate::output::print;
use crate::output::table::printable;
use crate::paths::Paths;
use crate::sys::fsutil::{ReadError, read_capped};

/// An input file of the command line.
#[derive(Debug)]
struct InputFile {
    /// The path as given.
    path: String,
    /// True if `linux/ARCH=` or the file name tells the architecture.
    placed: bool,
    input: Input,
}

/// The result, as `-o json` prints it.
#[derive(Debug, Serialize)]
struct Built {
    image: String,
    digest: String,
    platforms: Vec<String>,
    programs: BTreeMap<String, String>,
    maps: BTreeMap<String, String>,
}

/// `image build IMAGE [linux/ARCH=]FILE…`
pub fn run(paths: &Paths, args: &ImageBuildArgs) -> Result<ExitCode, CommandError> {
    let built = build(paths, args)?;
    print(&match (args.quiet, args.output) {
        (false, Format::Json) => json(&built),
        _ => format!("{}\n", built.digest),
    })
}

fn build(paths: &Paths, args: &ImageBuildArgs) -> Result<Built, CommandError> {
    let refused = |problem: String| Err(CommandError::new(problem));
    let name = super::reference(&args.image)?;
    let to = args.to.as_deref().map(super::reference).transpose()?;
    match (&name, &to) {
        (Reference::Registry(at), _) if at.digest.is_some() => {
            return refused(format!("build {name}: the digest is the result of building; write a tag"));
        }
        (Reference::Registry(_), Some(Reference::Registry(_) | Reference::File { .. })) => {
            return refused("build: --to takes oci:/directory or oci-archive:/file".to_owned());
        }
        (Reference::Registry(_), _) | (Reference::Layout { .. } | Reference::Archive { .. }, None) => {}
        _ => {
            return refused(format!(
                "build {name}: write registry/repository:tag, oci:/directory:tag or oci-archive:/file:tag"
            ));
        }
    }
    if args.registry.any() && !args.push {
        return refused(format!("build {name}: credentials are only for a registry; add --push or omit them"));
    }
    let files = read(&args.files)?;
    let index = files.len() > 1 || files.iter().any(|file| file.placed);
    let mut inputs: Vec<Input> = files.into_iter().map(|file| file.input).collect();
    sign(args, &mut inputs)?;
    let image_set = build::pack(&inputs, index, &args.annotations.iter().cloned().collect());
    let written = name.to_string();
    match (args.push, &name) {
        (true, Reference::Registry(at)) => {
            super::push::push(paths, &args.registry, &image_set, at, None)?;
        }
        (true, _) => return refused(format!("build {name}: only an image with a registry name can be pushed")),
        (false, _) => deliver(paths, &image_set, &name, to.as_ref())?,
    }
    let first = &inputs.first().expect("clap requires a file").described;
    Ok(Built {
        image: written,
        digest: image_set.digest.to_string(),
        platforms: inputs.iter().map(|input| format!("linux/{}", input.architecture)).collect(),
        programs: first.programs.clone(),
        maps: first.maps.clone(),
    })
}

/// Adds signatures and exclusive maps to the objects, if the command line asks for them.
fn sign(args: &ImageBuildArgs, inputs: &mut [Input]) -> Result<(), CommandError> {
    if args.sign_programs.is_none() && args.exclusive_maps.is_empty() && args.executables.is_empty() {
        return Ok(());
    }
    let key = args.sign_programs.as_deref().map(super::sign::key).transpose()?;
    let more = super::sign::Additions::read(&args.exclusive_maps, &args.executables)?;
    for input in inputs {
        let doing = format!("sign the programs of {}", printable(&input.name));
        let signed = super::sign::sign(&input.object, key.as_ref(), &more);
        (input.object, _) = signed.map_err(CommandError::doing(doing))?;
    }
    Ok(())
}

fn deliver(paths: &Paths, image_set: &ImageSet, name: &Reference, to: Option<&Reference>) -> Result<(), CommandError> {
    let images = super::images(paths);
    images.deliver(image_set, to.unwrap_or(name), Some(&name.to_string())).map_err(|err| match (to, name) {
        // The cache holds only what this machine can load.
        (None, Reference::Registry(_)) => {
            CommandError::with_remedy("write it elsewhere with --to oci:/directory, or push it with --push")(err)
        }
        _ => err.into(),
    })
}

/// `image generate-build-args [linux/ARCH=]FILE…`, in bpfman's format
pub fn print_arguments(args: &GenerateBuildArgs) -> Result<ExitCode, CommandError> {
    print(&arguments(&read(&args.files)?, args.format.output))
}

fn arguments(files: &[InputFile], format: Format) -> String {
    let placed = files.len() > 1 || files.iter().any(|file| file.placed);
    let key = |file: &InputFile| match placed {
        false => "BYTECODE_FILE".to_owned(),
        true => {
            let order = match build::byte_order_of(&file.input.architecture) {
                Some(ByteOrder::Big) => "EB",
                _ => "EL",
            };
            format!("BC_{}_{order}", file.input.architecture.to_uppercase())
        }
    };
    let arguments: BTreeMap<String, &str> = files.iter().map(|file| (key(file), file.path.as_str())).collect();
    let described = files.first().map(|file| &file.input.described).cloned().unwrap_or_default();
    match format {
        Format::Json => {
            let platforms: Vec<String> =
                files.iter().filter(|_| placed).map(|file| format!("linux/{}", file.input.architecture)).collect();
            json(&serde_json::json!({
                "platforms": platforms, "build_args": arguments, "programs": described.programs, "maps": described.maps,
            }))
        }
        Format::Table => {
            let table = |table: &BTreeMap<String, String>| serde_json::to_string(table).expect("strings are JSON");
            let mut text: String = files.iter().map(|file| format!("{}={}\n", key(file), printable(&file.path))).collect();
            text.push_str(&format!("PROGRAMS={}\nMAPS={}\n", table(&described.programs), table(&described.maps)));
            text
        }
    }
}

/// Reads the files and determines the architecture and the declarations of each.
fn read(arguments: &[String]) -> Result<Vec<InputFile>, CommandError> {
    let mut files = Vec::new();
    let arguments = with_directories(arguments)?;
    for argument in &arguments {
        files.push(file(argument, arguments.len() > 1)?);
    }
    for (nth, file) in files.iter().enumerate() {
        let same = |other: &&InputFile| other.input.architecture == file.input.architecture;
        if let Some(other) = files[..nth].iter().find(same) {
            return Err(CommandError::new(format!(
                "build an image: {} and {} are both for linux/{}",
                printable(&other.path),
                printable(&file.path),
                file.input.architecture
            )));
        }
    }
    describe(&mut files)?;
    Ok(files)
}

/// The arguments, with the object files of a directory in its place: bpf2go writes one for each architecture.
fn with_directories(arguments: &[String]) -> Result<Vec<String>, CommandError> {
    let mut files = Vec::new();
    for argument in arguments {
        if !Path::new(argument).is_dir() {
            files.push(argument.clone());
            continue;
        }
        let reading = format!("read the object files of {}", printable(argument));
        let entries = std::fs::read_dir(argument).map_err(CommandError::doing(&reading))?;
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(CommandError::doing(&reading))?.path();
            if path.extension().is_some_and(|extension| extension == "o") {
                found.push(path.to_string_lossy().into_owned());
            }
        }
        if found.is_empty() {
            return Err(CommandError::new(format!("{reading}: it has no file whose name ends in .o")));
        }
        found.sort();
        files.append(&mut found);
    }
    Ok(files)
}

fn file(argument: &str, one_of_several: bool) -> Result<InputFile, CommandError> {
    let (said, path) = match argument.split_once('=') {
        Some((platform, path)) if !platform.starts_with(['/', '.']) => {
            let known = platform.strip_prefix("linux/").filter(|word| build::byte_order_of(word).is_some());
            let known = known.ok_or_else(|| {
                let all: Vec<String> = build::ARCHITECTURES.iter().map(|(word, ..)| format!("linux/{word}")).collect();
                let problem = format!("is not an image platform; write one of {}", all.join(", "));
                CommandError::new(format!("{} {problem}", crate::model::text::quoted(platform)))
            })?;
            (Some(known.to_owned()), path)
        }
        _ => (None, argument),
    };
    let shown = printable(path);
    let name = Path::new(path).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let fits = name.ends_with(".o") && name.len() <= 100 && !name.chars().any(char::is_control);
    if !fits {
        let problem = "the name of an object file in an image must end in .o and have at most 100 bytes";
        return Err(CommandError::new(format!("read {shown}: {problem}")));
    }
    let reading = format!("read {shown}");
    let opened = std::fs::File::open(path).map_err(CommandError::doing(&reading))?;
    let object = read_capped(opened, MAX_OBJECT)
        .map_err(|err| match err {
            ReadError::Io(err) => err.into(),
            err @ ReadError::TooLarge { .. } => CommandError::new(format!("{err}, which is the limit")),
        })
        .map_err(CommandError::doing(&reading))?;
    let in_name = || build::architecture_of_name(&name).filter(|_| one_of_several).map(str::to_owned);
    let said = said.or_else(in_name);
    let placed = said.is_some();
    if !placed && one_of_several {
        let problem = format!("the architecture of {shown} is not known; write linux/amd64={shown}");
        return Err(CommandError::new(format!("build an image: {problem}")));
    }
    let architecture = said.unwrap_or_else(|| build::native().to_owned());
    build::check(&shown, &object, &architecture).map_err(CommandError::doing("build an image"))?;
    Ok(InputFile {
        path: path.to_owned(),
        placed,
        input: Input { architecture, name, object, described: Described::default() },
    })
}

/// Derives labels from the objects. An object of the other byte order cannot be read here: it gets the labels of the
/// first readable one.
fn describe(files: &mut [InputFile]) -> Result<(), CommandError> {
    let here = build::byte_order_of(build::native());
    let mut first = None;
    for file in files.iter_mut() {
        if build::byte_order_of(&file.input.architecture) != here {
            continue;
        }
        let shown = printable(&file.path);
        let found = survey(&file.input.object).map_err(CommandError::doing(format!("read {shown}")))?;
        if found.programs.is_empty() {
            return Err(CommandError::new(format!("read {shown}: it does not declare a program")));
        }
        file.input.described = Described {
            programs: found.programs.into_iter().map(|program| (program.name, program.kind)).collect(),
            maps: found.maps.into_iter().map(|map| (map.name, map.kind)).collect(),
        };
        first.get_or_insert_with(|| file.input.described.clone());
    }
    for file in files.iter_mut().filter(|file| build::byte_order_of(&file.input.architecture) != here) {
        let shown = printable(&file.path);
        let Some(described) = &first else {
            return Err(CommandError::new(format!(
                "read {shown}: this machine cannot read objects of the other byte order, and takes programs and maps from \
                 an object of its own byte order; add one"
            )));
        };
        file.input.described = described.clone();
        let missing = file.input.missing();
        if !missing.is_empty() {
            let problem = format!("{} is missing, which the other objects have", missing.join(", "));
            return Err(CommandError::new(format!("read {shown}: {problem}")));
        }
    }
    Ok(())
}
