//! From layers to one ELF object: unpack by content, find the object, check that this machine can load it.
//!
//! Layers in practice: tar, gzip and zstd of a tar or of the bare object, and the bare object itself. umoci's tars lack
//! the padding of the last file and the end blocks. Media types are less reliable than magic numbers and are ignored.

use std::collections::BTreeMap;
use std::io::{self, Read};

use serde::Deserialize;

use crate::image::MAX_OBJECT;
use crate::image::error::LayerError;
use crate::image::oci::tar_end::ends_archive;
use crate::sys::fsutil::{ReadError, read_capped};

/// Limits the work that an archive of empty files can cause.
const MAX_FILES: usize = 4096;
/// The limit on the window size of a zstd frame: the format allows terabytes.
const MAX_WINDOW: u64 = 32 << 20;
/// `EM_BPF` of elf.h.
const EM_BPF: u16 = 247;
/// `ET_REL` of elf.h.
const ET_REL: u16 = 1;

/// The result of unpacking one layer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unpacked {
    /// The bytes are larger than [`MAX_OBJECT`].
    TooLarge,
    /// The candidates: names and contents.
    Files(LayerFiles),
}

/// The content of a layer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct LayerFiles {
    /// Regular files that may be the object.
    pub objects: Vec<(String, Vec<u8>)>,
    /// Names of everything else, for messages.
    pub others: Vec<String>,
}

/// The labels of an image about its object. Advisory: the object decides, and a difference is logged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ImageLabels {
    /// Function to type.
    pub programs: BTreeMap<String, String>,
    /// Map to type.
    pub maps: BTreeMap<String, String>,
    /// The name of the object's file, if a layer has several.
    pub filename: Option<String>,
}

impl ImageLabels {
    /// Reads the labels of an image config. Other kinds of configs have none.
    pub fn of_config(config: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct LabelConfig {
            #[serde(default, alias = "Config")]
            config: Option<Inner>,
        }
        #[derive(Deserialize)]
        struct Inner {
            #[serde(default, alias = "Labels")]
            labels: Option<BTreeMap<String, String>>,
        }
        let parsed = serde_json::from_slice::<LabelConfig>(config).ok();
        let mut labels = parsed.and_then(|c| c.config).and_then(|c| c.labels).unwrap_or_default();
        let table = |text: Option<&String>| text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let mut programs: BTreeMap<String, String> = table(labels.get("io.ebpf.programs"));
        if programs.is_empty() {
            let function = labels.remove("io.ebpf.bpf_function_name").or_else(|| labels.remove("io.ebpf.program_name"));
            if let (Some(function), Some(kind)) = (function, labels.remove("io.ebpf.program_type")) {
                programs.insert(function, kind);
            }
        }
        Self { programs, maps: table(labels.get("io.ebpf.maps")), filename: labels.remove("io.ebpf.filename") }
    }
}

/// Unpacks one layer; `name` is used for a bare object.
pub(crate) fn unpack(layer: Vec<u8>, name: &str) -> Result<Unpacked, LayerError> {
    let plain = match PackedForm::of(&layer) {
        PackedForm::Gzip => inflate(flate2::read::MultiGzDecoder::new(layer.as_slice()))?,
        PackedForm::Zstd => unzstd(&layer)?,
        PackedForm::Elf | PackedForm::Tar | PackedForm::Other => Some(layer),
    };
    let Some(plain) = plain else { return Ok(Unpacked::TooLarge) };
    if plain.len() > MAX_OBJECT {
        return Ok(Unpacked::TooLarge);
    }
    Ok(Unpacked::Files(match PackedForm::of(&plain) {
        PackedForm::Elf => LayerFiles { objects: vec![(name.to_owned(), plain)], others: Vec::new() },
        PackedForm::Tar => untar(&plain)?,
        PackedForm::Gzip | PackedForm::Zstd | PackedForm::Other => {
            LayerFiles { objects: Vec::new(), others: vec![name.to_owned()] }
        }
    }))
}

/// Takes the one object out of the files of all layers.
pub(crate) fn single(mut files: LayerFiles, labels: &ImageLabels) -> Result<(String, Vec<u8>), LayerError> {
    if files.objects.len() > 1
        && let Some(named) = labels.filename.as_deref()
        && let Some(at) =
            files.objects.iter().position(|(name, _)| name == named.trim_start_matches("./").trim_start_matches('/'))
    {
        return Ok(files.objects.swap_remove(at));
    }
    match files.objects.len() {
        0 => Err(LayerError::None(files.others.into_iter().take(8).collect())),
        1 => Ok(files.objects.swap_remove(0)),
        _ => Err(LayerError::Several(files.objects.into_iter().map(|(name, _)| name).take(8).collect())),
    }
}

/// Checks that bytes are a relocatable BPF object in this machine's byte order.
pub(crate) fn check(name: &str, object: &[u8]) -> Result<(), LayerError> {
    let wanted = if cfg!(target_endian = "little") { ByteOrder::Little } else { ByteOrder::Big };
    match byte_order(name, object)? {
        found if found == wanted => Ok(()),
        found => Err(LayerError::ByteOrder { name: name.to_owned(), found: found.word(), wanted: wanted.word() }),
    }
}

/// The byte order of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteOrder {
    /// `bpfel`
    Little,
    /// `bpfeb`
    Big,
}

impl ByteOrder {
    /// The name used in messages.
    pub fn word(self) -> &'static str {
        match self {
            Self::Little => "little",
            Self::Big => "big",
        }
    }

    /// The suffix in bpf2go's file names.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::Little => "bpfel",
            Self::Big => "bpfeb",
        }
    }
}

/// The byte order of a relocatable BPF object; an error for other content.
pub(crate) fn byte_order(name: &str, object: &[u8]) -> Result<ByteOrder, LayerError> {
    let not_elf = || LayerError::NotElf(name.to_owned());
    // Elf64_Ehdr: ident[16], e_type, e_machine. BPF objects are of the 64-bit class.
    let header = object.first_chunk::<64>().ok_or_else(not_elf)?;
    if !header.starts_with(b"\x7fELF") || header[4] != 2 {
        return Err(not_elf());
    }
    let found = match header[5] {
        1 => ByteOrder::Little,
        2 => ByteOrder::Big,
        _ => return Err(not_elf()),
    };
    let half = |at: usize| match found {
        ByteOrder::Little => u16::from_le_bytes([header[at], header[at + 1]]),
        ByteOrder::Big => u16::from_be_bytes([header[at], header[at + 1]]),
    };
    let name = name.to_owned();
    match (half(16), half(18)) {
        (_, machine) if machine != EM_BPF => Err(LayerError::Machine { name, machine }),
        (kind, _) if kind != ET_REL => Err(LayerError::NotRelocatable { name, kind }),
        _ => Ok(found),
    }
}

/// Names that the labels list and the object does not have: a sign that image and labels were built separately. A name
/// of an object is in its string table, possibly as the end of a longer one.
pub(crate) fn not_in_object(labels: &ImageLabels, object: &[u8]) -> Vec<String> {
    let mut missing: Vec<&String> = labels.programs.keys().chain(labels.maps.keys()).collect();
    for text in object.split(|b| *b == 0).filter(|text| !text.is_empty()) {
        missing.retain(|name| !text.ends_with(name.as_bytes()));
        if missing.is_empty() {
            break;
        }
    }
    missing.into_iter().take(8).map(|name| printable(name)).collect()
}

#[derive(Debug, Clone, Copy)]
enum PackedForm {
    Elf,
    Gzip,
    Zstd,
    Tar,
    Other,
}

impl PackedForm {
    fn of(bytes: &[u8]) -> Self {
        match bytes {
            [0x7f, b'E', b'L', b'F', ..] => Self::Elf,
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ if is_tar(bytes) => Self::Tar,
            _ => Self::Other,
        }
    }
}

/// True for a tar, which begins with a header with a valid checksum in every dialect; an empty one begins with a block
/// of zeros.
fn is_tar(bytes: &[u8]) -> bool {
    let Some(header) = bytes.first_chunk::<512>() else { return false };
    if header.iter().all(|b| *b == 0) {
        return true;
    }
    let sum: u64 = header.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u64::from(*b) }).sum();
    let text = std::str::from_utf8(&header[148..156]).unwrap_or_default();
    u64::from_str_radix(text.trim_matches(|c| c == ' ' || c == '\0'), 8).is_ok_and(|said| said == sum)
}

/// Reads a decoder to its end; None if there is more than [`MAX_OBJECT`].
fn inflate(decoder: impl Read) -> Result<Option<Vec<u8>>, LayerError> {
    match read_capped(decoder, MAX_OBJECT) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(ReadError::TooLarge { .. }) => Ok(None),
        Err(ReadError::Io(err)) => Err(broken(&err)),
    }
}

/// Decompresses every frame of a zstd stream. podman's zstd:chunked writes several, with skippable ones between them.
fn unzstd(mut stream: &[u8]) -> Result<Option<Vec<u8>>, LayerError> {
    let cut = || LayerError::Unpack("its zstd stream ends early".to_owned());
    let mut plain = Vec::new();
    while !stream.is_empty() {
        let magic = u32::from_le_bytes(*stream.first_chunk().ok_or_else(cut)?);
        if magic & 0xffff_fff0 == 0x184d_2a50 {
            let size = u32::from_le_bytes(*stream[4..].first_chunk().ok_or_else(cut)?);
            stream = usize::try_from(size).ok().and_then(|size| stream.get(8..)?.get(size..)).ok_or_else(cut)?;
            continue;
        }
        if zstd_window(stream).ok_or_else(cut)? > MAX_WINDOW {
            return Ok(None);
        }
        let decoder =
            ruzstd::decoding::StreamingDecoder::new(&mut stream).map_err(|err| LayerError::Unpack(err.to_string()))?;
        match inflate(decoder)? {
            Some(more) if plain.len() + more.len() <= MAX_OBJECT => plain.extend(more),
            _ => return Ok(None),
        }
    }
    Ok(Some(plain))
}

/// The window of a frame, RFC 8878 section 3.1.1.1: how much of its output a decoder must keep.
fn zstd_window(frame: &[u8]) -> Option<u64> {
    let descriptor = *frame.get(4)?;
    if descriptor & 0x20 == 0 {
        let window = *frame.get(5)?;
        let base = 1u64 << (10 + u32::from(window >> 3));
        return Some(base + base / 8 * u64::from(window & 7));
    }
    // A single segment has no window: the window is the content size.
    let at = 5 + [0, 1, 2, 4][usize::from(descriptor & 3)];
    let size = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    let mut bytes = [0; 8];
    bytes[..size].copy_from_slice(frame.get(at..at + size)?);
    Some(u64::from_le_bytes(bytes) + if size == 2 { 256 } else { 0 })
}

fn untar(tar: &[u8]) -> Result<LayerFiles, LayerError> {
    let mut files = LayerFiles::default();
    let mut archive = tar::Archive::new(tar);
    for (seen, entry) in archive.entries().map_err(|err| broken(&err))?.enumerate() {
        if seen == MAX_FILES {
            return Err(LayerError::Unpack(format!("it has more than {MAX_FILES} files")));
        }
        let mut entry = entry.map_err(|err| broken(&err))?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let name = printable(path.trim_start_matches("./").trim_start_matches('/'));
        let said = entry.size();
        let last = ends_archive(entry.raw_file_position(), said, tar.len());
        if !entry.header().entry_type().is_file() || !name.ends_with(".o") {
            if !name.is_empty() && !entry.header().entry_type().is_dir() {
                files.others.push(name);
            }
            if last {
                break;
            }
            continue;
        }
        // The archive is in memory and has a size limit, and so do its contents; a size beyond its end means that it is
        // truncated.
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(|err| broken(&err))?;
        if bytes.len() as u64 != said {
            return Err(LayerError::Unpack(format!("{name} ends after {} of {said} bytes", bytes.len())));
        }
        files.objects.push((name, bytes));
        if last {
            break;
        }
    }
    Ok(files)
}

/// An untrusted file name for use in a message.
pub(crate) fn printable(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(80).collect()
}

fn broken(err: &io::Error) -> LayerError {
    LayerError::Unpack(err.to_string())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const OBJECT: &[u8] = include_bytes!("../../../tests/data/images/pass.bpfel.o");
    const BIG_ENDIAN: &[u8] = include_bytes!("../../../tests/data/images/pass.bpfeb.o");

    fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, *bytes).unwrap();
        }
        tar.into_inner().unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    fn files(layer: Vec<u8>) -> LayerFiles {
        match unpack(layer, "layer 1").unwrap() {
            Unpacked::Files(files) => files,
            Unpacked::TooLarge => panic!("too large"),
        }
    }

    #[test]
    fn the_object_is_found_in_every_form() {
        let tar = tar_of(&[("README", b"x"), ("./pass.o", OBJECT)]);
        // umoci 0.4.7 ends an archive with the last byte of its last file.
        let unpadded = tar[..tar.len() - 1024 - (512 - OBJECT.len() % 512)].to_vec();
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        let (one, two) = tar.split_at(700);
        let chunked = [zstd(one), skippable, zstd(two)].concat();
        let members = [gzip(one), gzip(two)].concat();
        for (form, layer, name) in [
            ("tar", tar.clone(), "pass.o"),
            ("unpadded tar", unpadded.clone(), "pass.o"),
            ("tar+gzip", gzip(&tar), "pass.o"),
            ("unpadded tar+gzip", gzip(&unpadded), "pass.o"),
            ("gzip of several members", members, "pass.o"),
            ("tar+zstd", zstd(&tar), "pass.o"),
            ("zstd of several frames", chunked, "pass.o"),
            ("bare object", OBJECT.to_vec(), "layer 1"),
            ("object+gzip", gzip(OBJECT), "layer 1"),
            ("object+zstd", zstd(OBJECT), "layer 1"),
        ] {
            assert_eq!(files(layer).objects, [(name.to_owned(), OBJECT.to_vec())], "{form}");
        }
    }

    #[test]
    fn only_regular_files_that_end_in_o_are_candidates() {
        let mut tar = tar::Builder::new(Vec::new());
        for (kind, name) in [
            (tar::EntryType::Symlink, "link.o"),
            (tar::EntryType::Link, "hard.o"),
            (tar::EntryType::Fifo, "fifo.o"),
            (tar::EntryType::Char, "device.o"),
            (tar::EntryType::Directory, "dir.o/"),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(0);
            header.set_link_name("/etc/shadow").unwrap();
            tar.append_data(&mut header, name, &b""[..]).unwrap();
        }
        let files = files(tar.into_inner().unwrap());
        assert!(files.objects.is_empty(), "{files:?}");
        let err = single(files, &ImageLabels::default()).unwrap_err();
        assert_eq!(err.to_string(), "it contains no BPF object, only link.o, hard.o, fifo.o, device.o");
        assert!(
            single(self::files(b"<html>".to_vec()), &ImageLabels::default()).unwrap_err().to_string().contains("only layer 1")
        );
        assert!(
            single(self::files(vec![0; 1024]), &ImageLabels::default()).unwrap_err().to_string().ends_with("no BPF object")
        );
    }

    #[test]
    fn two_objects_are_an_error_that_names_them_unless_a_label_does() {
        let layer = || files(tar_of(&[("other.o", b"other"), ("pass.o", OBJECT)]));
        let err = single(layer(), &ImageLabels::default()).unwrap_err();
        assert_eq!(err, LayerError::Several(vec!["other.o".into(), "pass.o".into()]));
        let labels = |name: &str| ImageLabels { filename: Some(name.to_owned()), ..ImageLabels::default() };
        for name in ["pass.o", "/pass.o", "./pass.o"] {
            assert_eq!(single(layer(), &labels(name)).unwrap().1, OBJECT, "{name}");
        }
        assert!(matches!(single(layer(), &labels("absent.o")), Err(LayerError::Several(_))));
    }

    #[test]
    fn content_beyond_the_limit_is_an_error_not_truncated() {
        let exact = vec![7; MAX_OBJECT];
        let over = vec![7; MAX_OBJECT + 1];
        for (form, of) in [("gzip", gzip as fn(&[u8]) -> Vec<u8>), ("zstd", zstd)] {
            assert!(matches!(unpack(of(&exact), "x"), Ok(Unpacked::Files(_))), "{form}");
            let bomb = of(&over);
            assert!(bomb.len() < MAX_OBJECT);
            assert_eq!(unpack(bomb, "x"), Ok(Unpacked::TooLarge), "{form}");
        }
        assert_eq!(unpack(over, "x"), Ok(Unpacked::TooLarge));
        let half = zstd(&exact[..MAX_OBJECT / 2 + 1]);
        assert_eq!(unpack([half.clone(), half].concat(), "x"), Ok(Unpacked::TooLarge), "over all frames");
        // A frame that requests a window of 3.75 TiB, with one empty last block.
        let window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xff, 0x01, 0x00, 0x00];
        assert_eq!(zstd_window(&window), Some((1 << 41) + (1 << 38) * 7));
        assert_eq!(unpack(window.to_vec(), "x"), Ok(Unpacked::TooLarge));
        let many: Vec<(String, &[u8])> = (0..=MAX_FILES).map(|n| (format!("{n}"), &b""[..])).collect();
        let many = tar_of(&many.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect::<Vec<_>>());
        assert!(unpack(many, "x").unwrap_err().to_string().contains("more than 4096 files"));
    }

    #[test]
    fn damaged_layers_are_errors_and_never_panic() {
        let tar = tar_of(&[("pass.o", OBJECT)]);
        for whole in [gzip(&tar), zstd(&tar), tar.clone()] {
            for cut in 0..whole.len().min(3000) {
                match unpack(whole[..cut].to_vec(), "x") {
                    Ok(Unpacked::Files(files)) => {
                        let complete = files.objects.iter().all(|(_, bytes)| bytes == OBJECT);
                        assert!(complete, "cut at {cut}");
                    }
                    Ok(Unpacked::TooLarge) => panic!("cut at {cut}"),
                    Err(err) => assert!(err.to_string().starts_with("its layer cannot be unpacked"), "{err}"),
                }
            }
            for at in 0..whole.len().min(3000) {
                let mut changed = whole.clone();
                changed[at] ^= 0x41;
                let _ = unpack(changed, "x");
            }
        }
        let mut cut = tar;
        cut.truncate(512 + OBJECT.len() - 1);
        assert!(unpack(cut, "x").unwrap_err().to_string().contains("pass.o ends after"));
    }

    #[test]
    fn the_header_must_be_that_of_a_relocatable_bpf_object_of_this_byte_order() {
        let (ours, theirs) = if cfg!(target_endian = "little") { (OBJECT, BIG_ENDIAN) } else { (BIG_ENDIAN, OBJECT) };
        assert_eq!(check("a.o", ours), Ok(()));
        assert!(matches!(check("a.o", theirs), Err(LayerError::ByteOrder { .. })));
        let with = |at: usize, value: u8| {
            let mut object = OBJECT.to_vec();
            object[at] = value;
            check("a.o", &object)
        };
        assert!(matches!(with(18, 62), Err(LayerError::Machine { machine: 62, .. })), "x86-64");
        assert!(matches!(with(16, 3), Err(LayerError::NotRelocatable { kind: 3, .. })), "shared library");
        assert!(matches!(with(4, 1), Err(LayerError::NotElf(_))), "32-bit class");
        assert!(matches!(with(5, 3), Err(LayerError::NotElf(_))));
        assert!(matches!(with(0, 0), Err(LayerError::NotElf(_))));
        assert!(matches!(check("a.o", &OBJECT[..63]), Err(LayerError::NotElf(_))));
        assert!(matches!(check("a.o", b""), Err(LayerError::NotElf(_))));
    }

    #[test]
    fn labels_of_every_version_are_read_and_compared() {
        let new = br#"{"config":{"Labels":{"io.ebpf.programs":"{\"pass\":\"xdp\"}","io.ebpf.maps":"{\"counter\":\"array\",\"gone\":\"hash\"}"}}}"#;
        let labels = ImageLabels::of_config(new);
        assert_eq!(labels.programs["pass"], "xdp");
        assert_eq!(not_in_object(&labels, OBJECT), ["gone"]);
        let old = br#"{"config":{"Labels":{"io.ebpf.program_type":"xdp","io.ebpf.bpf_function_name":"pass","io.ebpf.filename":"pass.o"}}}"#;
        let labels = ImageLabels::of_config(old);
        assert_eq!((labels.programs["pass"].as_str(), labels.filename.as_deref()), ("xdp", Some("pass.o")));
        assert!(not_in_object(&labels, OBJECT).is_empty());
        for none in [&b"{}"[..], b"[]", b"", b"{\"config\":null}", b"{\"config\":{\"Labels\":{\"io.ebpf.programs\":\"junk\"}}}"]
        {
            assert_eq!(ImageLabels::of_config(none), ImageLabels::default());
        }
    }
}
