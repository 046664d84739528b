//! What users of bpfman type: the flags of bpfman 0.6's image commands, and the nouns of its rewrite in Go (`program
//! load`, `link attach xdp ID IFACE`). They become the words of this command line before clap reads them.
//! docs/coming-from-bpfman.md lists them.

use std::ffi::{OsStr, OsString};

/// The options of `link attach` that have no value.
const FLAGS: [&str; 3] = ["--retprobe", "-r", "--help"];

/// The arguments of a process in the words of this command line; unchanged if they contain none of bpfman's.
///
/// Errors: a command of bpfman that does not exist here, with what to write instead.
pub fn translate(args: &[OsString]) -> Result<Vec<OsString>, String> {
    // `--root DIR` may come first.
    let mut at = 1;
    while let Some(arg) = args.get(at).filter(|arg| arg.as_encoded_bytes().starts_with(b"--root")) {
        at += if arg == "--root" { 2 } else { 1 };
    }
    let (before, rest) = args.split_at(at.min(args.len()));
    let word = |nth: usize| rest.get(nth).and_then(|arg| arg.to_str()).unwrap_or_default();
    let after = |nth: usize| rest.get(nth..).unwrap_or_default();
    let translated = match (word(0), word(1)) {
        ("program", second) => program(second, after(2), after(1))?,
        ("link", "attach") => attach(after(2)),
        ("link", second) => link(second, after(2), after(1))?,
        ("image", "pull") => pull(after(2)),
        ("image", "build") => build(after(2)),
        ("image", "generate-build-args") => [words(&["image", "generate-build-args"]), files(after(2)).0].concat(),
        ("image", "verify") if after(2).iter().any(|arg| is_option(arg, "--allow-unsigned")) => {
            return Err("the policy decides whether an unsigned image is accepted (`unsigned = true` in an [[image]] rule); \
                 `bpfman-hook image verify REF` says what it decides"
                .to_owned());
        }
        _ => return Ok(args.to_vec()),
    };
    Ok([before.to_vec(), translated].concat())
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

/// True for `--name` and `--name=value`.
fn is_option(arg: &OsStr, name: &str) -> bool {
    arg.to_str().and_then(|arg| arg.strip_prefix(name)).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
}

/// `program VERB …`; without a verb bpfman lists.
fn program(verb: &str, after_verb: &[OsString], after_noun: &[OsString]) -> Result<Vec<OsString>, String> {
    Ok(match verb {
        "load" | "unload" => [words(&[verb]), after_verb.to_vec()].concat(),
        "get" => [words(&["get", "program"]), after_verb.to_vec()].concat(),
        "list" => [words(&["list", "programs"]), after_verb.to_vec()].concat(),
        "" => words(&["list", "programs"]),
        _ if verb.starts_with('-') => [words(&["list", "programs"]), after_noun.to_vec()].concat(),
        "delete" => return Err("there is no `program delete`; write `bpfman-hook unload PROGRAM_ID…`".to_owned()),
        _ => return Err("after `program` write load, list, get or unload".to_owned()),
    })
}

/// `link VERB …`, except `attach`.
fn link(verb: &str, after_verb: &[OsString], after_noun: &[OsString]) -> Result<Vec<OsString>, String> {
    Ok(match verb {
        "detach" => [words(&["detach"]), after_verb.to_vec()].concat(),
        "get" => [words(&["get", "link"]), after_verb.to_vec()].concat(),
        "list" => [words(&["list", "links"]), after_verb.to_vec()].concat(),
        "" => words(&["list", "links"]),
        _ if verb.starts_with('-') => [words(&["list", "links"]), after_noun.to_vec()].concat(),
        "delete" => return Err("there is no `link delete`; write `bpfman-hook detach LINK_ID…`".to_owned()),
        _ => return Err("after `link` write attach, list, get or detach".to_owned()),
    })
}

/// `link attach TYPE ID PLACE… [OPTION]…`: the place becomes options, and the id comes before the type.
fn attach(args: &[OsString]) -> Vec<OsString> {
    let (mut places, mut options) = (Vec::new(), Vec::new());
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let text = arg.to_str().unwrap_or_default();
        if !text.starts_with('-') {
            places.push(arg.clone());
            continue;
        }
        options.push(arg.clone());
        if !text.contains('=') && !FLAGS.contains(&text) && text != "-h" {
            options.extend(args.next().cloned());
        }
    }
    let mut places = places.into_iter();
    let (kind, id) = (places.next(), places.next());
    let names: &[&str] = match kind.as_deref().and_then(OsStr::to_str).unwrap_or_default() {
        "xdp" => &["--iface"],
        "tc" | "tcx" => &["--iface", "--direction"],
        "tracepoint" => &["--tracepoint"],
        "kprobe" => &["--fn-name"],
        "uprobe" => &["--target"],
        _ => &[],
    };
    let mut translated = words(&["attach"]);
    translated.extend(id.into_iter().chain(kind));
    let mut names = names.iter();
    for place in places {
        translated.extend(names.next().map(OsString::from));
        translated.push(place);
    }
    translated.extend(options);
    translated
}

/// `image pull --image-url REF`
fn pull(args: &[OsString]) -> Vec<OsString> {
    let mut translated = words(&["image", "pull"]);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match option(arg, &mut args) {
            Some((name, value)) if ["-i", "--image-url"].contains(&name.as_str()) => translated.push(value),
            Some((name, value)) if name == "-r" => translated.extend(["--registry-auth".into(), value]),
            Some((name, value)) => translated.extend([name.into(), value]),
            None => translated.push(arg.clone()),
        }
    }
    translated
}

/// `image build --container-file FILE --tag IMAGE --bytecode FILE`. No container engine builds the image, so that its
/// name and the Containerfile are not used.
fn build(args: &[OsString]) -> Vec<OsString> {
    let (rest, image) = files(args);
    [words(&["image", "build"]), image.into_iter().collect(), rest].concat()
}

/// The object files of `image build` and `image generate-build-args`, with the other arguments; and the image.
fn files(args: &[OsString]) -> (Vec<OsString>, Option<OsString>) {
    let (mut translated, mut image) = (Vec::new(), None);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match option(arg, &mut args) {
            Some((name, value)) => match name.as_str() {
                "-t" | "--tag" => image = Some(value),
                "-f" | "--container-file" | "-r" | "--runtime" => {}
                "-b" | "--bytecode" | "-c" | "--cilium-ebpf-project" => translated.push(value),
                _ => match architecture(&name) {
                    Some(architecture) => {
                        let mut file = OsString::from(format!("linux/{architecture}="));
                        file.push(value);
                        translated.push(file);
                    }
                    None => translated.extend([name.into(), value]),
                },
            },
            None => translated.push(arg.clone()),
        }
    }
    (translated, image)
}

/// `amd64` of `--bc-amd64-el`.
fn architecture(name: &str) -> Option<&str> {
    let (architecture, _) = name.strip_prefix("--bc-")?.rsplit_once('-')?;
    Some(architecture)
}

/// One of bpfman's options of the image commands, with its value; None for any other argument.
fn option<'a>(arg: &OsStr, following: &mut impl Iterator<Item = &'a OsString>) -> Option<(String, OsString)> {
    const NAMES: [&str; 14] = [
        "-i",
        "--image-url",
        "-r",
        "-t",
        "--tag",
        "-f",
        "--container-file",
        "--runtime",
        "-b",
        "--bytecode",
        "-c",
        "--cilium-ebpf-project",
        "-p",
        "--pull-policy",
    ];
    let text = arg.to_str()?;
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(OsString::from(value))),
        None => (text, None),
    };
    if !NAMES.contains(&name) && architecture(name).is_none() {
        return None;
    }
    let value = value.or_else(|| following.next().cloned())?;
    Some((name.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;

    fn translated(line: &str) -> Result<String, String> {
        let args: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let text = |args: Vec<OsString>| args.iter().map(|arg| arg.to_str().unwrap()).collect::<Vec<_>>().join(" ");
        translate(&args).map(text)
    }

    #[test]
    fn bpfmans_words_become_ours() {
        for (theirs, ours) in [
            ("x image pull --image-url q.io/a:v1", "x image pull q.io/a:v1"),
            ("x image pull -i q.io/a:v1 -p Never -r YTpi", "x image pull q.io/a:v1 -p Never --registry-auth YTpi"),
            ("x --root /r image pull --image-url=q.io/a:v1", "x --root /r image pull q.io/a:v1"),
            ("x image build -f C -t q.io/a:v1 -b f.o", "x image build q.io/a:v1 f.o"),
            (
                "x image build --container-file C --tag q.io/a:v1 --bc-amd64-el a.o --bc-s390x-eb b.o",
                "x image build q.io/a:v1 linux/amd64=a.o linux/s390x=b.o",
            ),
            ("x image build -r docker -f C -t q.io/a:v1 -c dir/", "x image build q.io/a:v1 dir/"),
            ("x image build q.io/a:v1 f.o -q", "x image build q.io/a:v1 f.o -q"),
            ("x image generate-build-args -b f.o", "x image generate-build-args f.o"),
            ("x image generate-build-args --bc-amd64-el f.o", "x image generate-build-args linux/amd64=f.o"),
            ("x program list --all -o text", "x list programs --all -o text"),
            ("x program", "x list programs"),
            ("x program -q", "x list programs -q"),
            ("x program load file -p f.o --programs xdp:a", "x load file -p f.o --programs xdp:a"),
            ("x program get 7", "x get program 7"),
            ("x program unload 7 8", "x unload 7 8"),
            ("x link", "x list links"),
            ("x link get 7", "x get link 7"),
            ("x link detach 7", "x detach 7"),
            ("x link attach xdp 7 eth0 -p 50", "x attach 7 xdp --iface eth0 -p 50"),
            (
                "x link attach tc 7 eth0 ingress --priority 50 --proceed-on ok,pipe",
                "x attach 7 tc --iface eth0 --direction ingress --priority 50 --proceed-on ok,pipe",
            ),
            ("x link attach tracepoint 7 sched/sched_switch", "x attach 7 tracepoint --tracepoint sched/sched_switch"),
            ("x link attach kprobe 7 do_unlinkat --offset 4", "x attach 7 kprobe --fn-name do_unlinkat --offset 4"),
            ("x link attach uprobe 7 libc -f malloc", "x attach 7 uprobe --target libc -f malloc"),
            ("x link attach fentry 7", "x attach 7 fentry"),
        ] {
            assert_eq!(translated(theirs).as_deref(), Ok(ours), "{theirs}");
            Cli::try_parse_from(ours.split(' ')).unwrap_or_else(|error| panic!("{ours}: {error}"));
        }
    }

    #[test]
    fn what_is_missing_here_is_answered_with_what_to_write() {
        for (theirs, said) in [
            ("x program delete 7", "bpfman-hook unload"),
            ("x program nonsense", "load, list, get or unload"),
            ("x link delete 7", "bpfman-hook detach"),
            ("x link nonsense", "attach, list, get or detach"),
            ("x image verify --allow-unsigned q.io/a:v1", "unsigned = true"),
            ("x image verify --allow-unsigned=true q.io/a:v1", "unsigned = true"),
        ] {
            assert!(translated(theirs).unwrap_err().contains(said), "{theirs}");
        }
    }

    #[test]
    fn our_own_words_stay() {
        for line in ["x", "x --root", "x list programs", "x image list", "x --root /r gc", "x attach 7 xdp -i eth0", "x -h"] {
            assert_eq!(translated(line).as_deref(), Ok(line));
        }
    }
}
