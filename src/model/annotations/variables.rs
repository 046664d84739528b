//! `globals` and `maps`: how a request uses the variables and maps of its objects.

use std::collections::BTreeSet;

use super::lex::{self, LexError, ListEntry, Quoting, Word};
use super::{GlobalRequest, GlobalValue, MapAccess, MapRequest, MapSize};
use crate::model::text::{is_symbol, quoted};

/// Maximum size of one value of `globals` in bytes; each element of an array counts as at least one byte.
const GLOBAL_MAX: usize = 4096;
/// Maximum number of elements of one array.
const ELEMENTS_MAX: usize = 1024;

/// Parses the value of `globals`: entries `name=value`.
pub(super) fn globals(value: &str) -> Result<Vec<GlobalRequest>, LexError> {
    let mut globals: Vec<GlobalRequest> = Vec::new();
    for entry in lex::entries(value)? {
        let global = global(&entry)?;
        if globals.iter().any(|other| other.name == global.name) {
            return Err(entry.words[0].fault(format!("{} is set twice", global.name)));
        }
        globals.push(global);
    }
    Ok(globals)
}

/// Parses the value of `map-size`: entries `name=number`.
pub(super) fn map_sizes(value: &str) -> Result<Vec<MapSize>, LexError> {
    let mut sizes: Vec<MapSize> = Vec::new();
    for entry in lex::entries(value)? {
        for word in &entry.words {
            let size = map_size(&word.text).map_err(|problem| word.fault(problem))?;
            if sizes.iter().any(|other| other.name == size.name) {
                return Err(word.fault(format!("the size of {} is given twice", size.name)));
            }
            sizes.push(size);
        }
    }
    Ok(sizes)
}

/// Parses one size, `name=number`.
///
/// # Errors
/// What is wrong with it.
pub fn map_size(text: &str) -> Result<MapSize, String> {
    const WRITE: &str = "write NAME=ENTRIES, for a ring buffer NAME=BYTES";
    let (name, number) = text.split_once('=').ok_or(WRITE)?;
    let entries = number.parse().ok().filter(|entries| *entries > 0);
    match entries {
        Some(entries) if is_symbol(name) => Ok(MapSize { name: name.to_owned(), entries }),
        _ => Err(WRITE.to_owned()),
    }
}

/// Parses one value in the syntax of `globals`, for callers that have the variable's name from elsewhere.
///
/// # Errors
/// What is wrong with the value.
pub fn global_value(text: &str) -> Result<GlobalValue, String> {
    let mut parsed = globals(&format!("value={text}")).map_err(|fault| fault.problem)?;
    match (parsed.pop(), parsed.is_empty()) {
        (Some(global), true) => Ok(global.value),
        _ => Err("it contains a ; outside of single quotes".to_owned()),
    }
}

fn global(entry: &ListEntry) -> Result<GlobalRequest, LexError> {
    let (head, rest) = entry.words.split_first().expect("an entry has words");
    let (name, text, quoting) = head.option().ok_or_else(|| head.fault(format!("{} is not name=value", quoted(&head.text))))?;
    if !is_symbol(name) {
        return Err(head.fault(format!("{} is not the name of a variable", quoted(name))));
    }
    if name.starts_with("bpfman_") {
        return Err(head.fault(format!("{name} is filled in by bpfman-hook; names that begin with bpfman_ cannot be set")));
    }
    if text.len() > GLOBAL_MAX {
        return Err(head.fault(format!("the value of {name} has more than {GLOBAL_MAX} bytes")));
    }
    let array = quoting == Quoting::Bare && text.starts_with('[');
    if let (false, Some(word)) = (array, rest.first()) {
        let problem = format!(
            "{} follows the value of {name}; separate entries by ; and put a value with blanks in single quotes",
            quoted(&word.text)
        );
        return Err(word.fault(problem));
    }
    let value = match quoting {
        Quoting::Quoted => GlobalValue::Text(text.to_owned()),
        Quoting::Bare if array => GlobalValue::Array(elements(head, &text[1..], rest)?),
        Quoting::Bare if text.is_empty() => {
            return Err(head.fault(format!("{name} has no value; write {name}='' for an empty string")));
        }
        Quoting::Bare => match text.strip_prefix("hex:") {
            Some(digits) => match hex::decode(digits) {
                Ok(bytes) if !bytes.is_empty() => GlobalValue::Bytes(bytes),
                _ => return Err(head.fault(format!("the value of {name} must be hex: followed by pairs of hex digits"))),
            },
            None => GlobalValue::Word(text.to_owned()),
        },
    };
    Ok(GlobalRequest { name: name.to_owned(), value })
}

/// The elements between `[`, which is already removed, and the `]` that ends the entry.
fn elements(head: &Word, first: &str, rest: &[Word]) -> Result<Vec<String>, LexError> {
    let mut words: Vec<(&Word, &str)> = vec![(head, first)];
    for word in rest {
        if word.quoted_from.is_some() {
            return Err(word.fault("array elements must not be quoted"));
        }
        words.push((word, &word.text));
    }
    let (last, text) = words.pop().expect("there is the first word");
    let closed = text.strip_suffix(']').ok_or_else(|| last.fault("the array is not closed; write ] at its end"))?;
    words.push((last, closed));
    if let Some((word, _)) = words.iter().find(|(_, text)| text.contains(['[', ']', ','])) {
        return Err(word.fault("elements of an array are separated by blanks; nested arrays are not supported"));
    }
    let elements: Vec<String> = words.into_iter().map(|(_, text)| text.to_owned()).filter(|text| !text.is_empty()).collect();
    match elements.len() {
        0 => Err(head.fault("the array is empty")),
        1..=ELEMENTS_MAX => Ok(elements),
        many => Err(head.fault(format!("the array has {many} elements, more than {ELEMENTS_MAX}"))),
    }
}

/// Parses the value of `maps`: entries `name[:ro|:rw] [as=file-name]`.
pub(super) fn maps(value: &str) -> Result<Vec<MapRequest>, LexError> {
    let mut maps = Vec::new();
    let mut names = BTreeSet::new();
    let mut files = BTreeSet::new();
    for entry in lex::entries(value)? {
        let map = map(&entry)?;
        if !names.insert(map.name.clone()) {
            return Err(entry.words[0].fault(format!("{} is requested twice", map.name)));
        }
        if !files.insert(map.file_name.clone()) {
            return Err(
                entry.words[0].fault(format!("the file name {} is used twice; write as= to choose another", map.file_name))
            );
        }
        maps.push(map);
    }
    Ok(maps)
}

fn map(entry: &ListEntry) -> Result<MapRequest, LexError> {
    let (head, rest) = entry.words.split_first().expect("an entry has words");
    let (name, access) = match head.text.split_once(':') {
        None => (head.text.as_str(), MapAccess::ReadOnly),
        Some((name, "ro")) => (name, MapAccess::ReadOnly),
        Some((name, "rw")) => (name, MapAccess::ReadWrite),
        Some((_, other)) => return Err(head.fault(format!("access to a map must be ro or rw, not {}", quoted(other)))),
    };
    if !is_symbol(name) {
        return Err(head.fault(format!("{} is not the name of a map; separate entries by ;", quoted(name))));
    }
    let mut file_name = None;
    for word in rest {
        match word.option() {
            Some(("as", text, _)) if file_name.is_none() && is_file_name(text) => file_name = Some(text.to_owned()),
            Some(("as", ..)) if file_name.is_some() => return Err(word.fault("as is given twice")),
            Some(("as", text, _)) => {
                let problem = format!("{} is not a file name in a bpffs: 1 to 128 of A-Z a-z 0-9 _ -", quoted(text));
                return Err(word.fault(problem));
            }
            _ => return Err(word.fault(format!("{} is not as=file-name, the only option of a map", quoted(&word.text)))),
        }
    }
    let file_name = file_name.unwrap_or_else(|| name.replace(['.', '$'], "_"));
    Ok(MapRequest { name: name.to_owned(), access, file_name })
}

/// bpffs itself refuses dots and slashes (kernel/bpf/inode.c, `bpf_lookup`); bpfman-hook also refuses characters that
/// need quoting in a shell.
fn is_file_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && !name.starts_with('-')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::super::lex::Position;
    use super::*;

    #[test]
    fn every_form_of_value_is_parsed() {
        let text =
            "rate=10;neg=-3;on=true;if=eth0\nname='a ''b'' ;';empty='';ports=[1 0x2 3];one=[ 7 ];raw=hex:00fF;'w=a b';eq=a=b";
        let globals = globals(text).expect("legal");
        let word = |text: &str| GlobalValue::Word(text.to_owned());
        let string = |text: &str| GlobalValue::Text(text.to_owned());
        let array = |elements: &[&str]| GlobalValue::Array(elements.iter().map(|e| (*e).to_owned()).collect());
        let expected = [
            ("rate", word("10")),
            ("neg", word("-3")),
            ("on", word("true")),
            ("if", word("eth0")),
            ("name", string("a 'b' ;")),
            ("empty", string("")),
            ("ports", array(&["1", "0x2", "3"])),
            ("one", array(&["7"])),
            ("raw", GlobalValue::Bytes(vec![0, 255])),
            ("w", string("a b")),
            ("eq", word("a=b")),
        ];
        assert_eq!(globals, expected.map(|(name, value)| GlobalRequest { name: name.to_owned(), value }));
    }

    #[test]
    fn sizes_are_numbers() {
        let sizes = map_sizes("a=1; b=0x10").map_err(|fault| fault.problem);
        assert!(sizes.unwrap_err().starts_with("write NAME=ENTRIES"));
        let sizes = map_sizes("a=1; ring=65536").expect("legal");
        assert_eq!(
            sizes.iter().map(|size| (size.name.as_str(), size.entries)).collect::<Vec<_>>(),
            [("a", 1), ("ring", 65536)]
        );
        assert_eq!(map_sizes("a=1; a=2").expect_err("twice").problem, "the size of a is given twice");
        for text in ["a", "a=", "a=0", "a=-1", "=1", "a b=1"] {
            assert!(map_sizes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn globals_are_refused_with_a_position() {
        let many = format!("a=[{}]", "1 ".repeat(1025));
        let long = format!("a={}", "x".repeat(4097));
        let cases = [
            ("rate", 1, 1, "\"rate\" is not name=value"),
            ("a=1; =2", 2, 1, "\"\" is not the name of a variable"),
            ("a=1;b-c=2", 2, 1, "\"b-c\" is not the name of a variable"),
            ("bpfman_netns=1", 1, 1, "bpfman_netns is filled in by bpfman-hook; names that begin with bpfman_ cannot be set"),
            (
                "a=1 b=2",
                1,
                5,
                "\"b=2\" follows the value of a; separate entries by ; and put a value with blanks in single quotes",
            ),
            ("a=", 1, 1, "a has no value; write a='' for an empty string"),
            ("a=1\na=2", 2, 1, "a is set twice"),
            ("a=hex:", 1, 1, "the value of a must be hex: followed by pairs of hex digits"),
            ("a=hex:0", 1, 1, "the value of a must be hex: followed by pairs of hex digits"),
            ("a=hex:zz", 1, 1, "the value of a must be hex: followed by pairs of hex digits"),
            ("a=[1 2", 1, 6, "the array is not closed; write ] at its end"),
            ("a=[1 2] 3", 1, 9, "the array is not closed; write ] at its end"),
            ("a=[]", 1, 1, "the array is empty"),
            ("a=[1,2]", 1, 1, "elements of an array are separated by blanks; nested arrays are not supported"),
            ("a=[[1] [2]]", 1, 1, "elements of an array are separated by blanks; nested arrays are not supported"),
            ("a=[1 'b']", 1, 9, "a blank or the entry's end must follow the closing quote"),
            ("a=[1 'b' ]", 1, 6, "array elements must not be quoted"),
            (&many, 1, 1, "the array has 1025 elements, more than 1024"),
            (&long, 1, 1, "the value of a has more than 4096 bytes"),
        ];
        for (value, entry, column, problem) in cases {
            let fault = globals(value).expect_err(value);
            assert_eq!(fault, LexError { at: Some(Position { entry, column }), problem: problem.to_owned() }, "{value}");
        }
    }

    #[test]
    fn maps_have_an_access_and_a_file_name() {
        let maps = maps("events; stats:rw as=my-stats\n.data.x:ro").expect("legal");
        let map =
            |name: &str, access, file_name: &str| MapRequest { name: name.to_owned(), access, file_name: file_name.to_owned() };
        let expected = [
            map("events", MapAccess::ReadOnly, "events"),
            map("stats", MapAccess::ReadWrite, "my-stats"),
            map(".data.x", MapAccess::ReadOnly, "_data_x"),
        ];
        assert_eq!(maps, expected);
    }

    #[test]
    fn maps_are_refused_with_a_position() {
        let cases = [
            ("a:wo", 1, 1, "access to a map must be ro or rw, not \"wo\""),
            ("a:ro:rw", 1, 1, "access to a map must be ro or rw, not \"ro:rw\""),
            ("a,b", 1, 1, "\"a,b\" is not the name of a map; separate entries by ;"),
            (":ro", 1, 1, "\"\" is not the name of a map; separate entries by ;"),
            ("a as=x.y", 1, 3, "\"x.y\" is not a file name in a bpffs: 1 to 128 of A-Z a-z 0-9 _ -"),
            ("a as=../x", 1, 3, "\"../x\" is not a file name in a bpffs: 1 to 128 of A-Z a-z 0-9 _ -"),
            ("a as=", 1, 3, "\"\" is not a file name in a bpffs: 1 to 128 of A-Z a-z 0-9 _ -"),
            ("a as=b as=c", 1, 8, "as is given twice"),
            ("a b", 1, 3, "\"b\" is not as=file-name, the only option of a map"),
            ("a;a:rw", 2, 1, "a is requested twice"),
            ("a.b;a_b", 2, 1, "the file name a_b is used twice; write as= to choose another"),
        ];
        for (value, entry, column, problem) in cases {
            let fault = maps(value).expect_err(value);
            assert_eq!(fault, LexError { at: Some(Position { entry, column }), problem: problem.to_owned() }, "{value}");
        }
    }
}
