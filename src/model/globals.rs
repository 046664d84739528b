//! Encodes the values of `globals` as bytes of the type that the object declares.

use std::fmt;

use crate::model::annotations::GlobalValue;
use crate::model::object::{GlobalFacts, GlobalType};

/// Why a value does not match its variable. Every message names the variable and its type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GlobalError {
    /// A value of the wrong form: a list for a number, a word for an array.
    #[error("global {name} is {ty} and does not take {given}")]
    Form {
        /// The variable.
        name: String,
        /// Its type.
        ty: GlobalType,
        /// The form of the given value.
        given: &'static str,
    },
    /// A word that is not an integer.
    #[error("global {name} is {ty}, and {text:?} is not an integer (10, -3, 0x1f)")]
    Integer {
        /// The variable.
        name: String,
        /// Its type.
        ty: GlobalType,
        /// The given text.
        text: String,
    },
    /// A number that the type cannot hold.
    #[error("global {name} is {ty}, and {text} is not in {low} to {high}")]
    Range {
        /// The variable.
        name: String,
        /// Its type.
        ty: GlobalType,
        /// The given number.
        text: String,
        /// The smallest value.
        low: i128,
        /// The largest value.
        high: i128,
    },
    /// A word that is not a boolean.
    #[error("global {name} is bool, and {text:?} is not true, false, 1 or 0")]
    Boolean {
        /// The variable.
        name: String,
        /// The given text.
        text: String,
    },
    /// A string that does not fit together with its NUL.
    #[error("global {name} is {ty}, and a string of {given} bytes needs {} with its NUL", given + 1)]
    TooLong {
        /// The variable.
        name: String,
        /// Its type.
        ty: GlobalType,
        /// Bytes of the given string.
        given: usize,
    },
    /// A string that contains a NUL, where the program would see its end.
    #[error("global {name} is a string, and the value has a NUL inside")]
    Nul {
        /// The variable.
        name: String,
    },
    /// More elements than the array has.
    #[error("global {name} is {ty}, and the value has {given} elements")]
    TooMany {
        /// The variable.
        name: String,
        /// Its type.
        ty: GlobalType,
        /// Number of given elements.
        given: usize,
    },
    /// `hex:` with another number of bytes than the variable has.
    #[error("global {name} takes {size} bytes, and hex: gives {given}")]
    Bytes {
        /// The variable.
        name: String,
        /// Bytes of the variable.
        size: u32,
        /// Bytes of the given value.
        given: usize,
    },
}

impl GlobalFacts {
    /// Encodes the value in this machine's byte order, with exactly the variable's size.
    ///
    /// If a list is shorter than its array, the rest is zero, as with an initialiser in C.
    pub fn encode(&self, value: &GlobalValue) -> Result<Vec<u8>, GlobalError> {
        if let GlobalValue::Bytes(bytes) = value {
            return match u32::try_from(bytes.len()) {
                Ok(given) if given == self.size => Ok(bytes.clone()),
                _ => Err(GlobalError::Bytes { name: self.name.clone(), size: self.size, given: bytes.len() }),
            };
        }
        let mut bytes = match (&self.ty, value) {
            (GlobalType::Int { .. } | GlobalType::Bool, GlobalValue::Word(text)) => self.scalar(&self.ty, text)?,
            (GlobalType::Chars { len }, GlobalValue::Word(text) | GlobalValue::Text(text)) => self.string(*len, text)?,
            (GlobalType::Array { of, len }, GlobalValue::Array(items)) => self.array(of, *len, items)?,
            (_, given) => {
                return Err(GlobalError::Form { name: self.name.clone(), ty: self.ty.clone(), given: form(given) });
            }
        };
        bytes.resize(self.size as usize, 0);
        Ok(bytes)
    }

    fn scalar(&self, ty: &GlobalType, text: &str) -> Result<Vec<u8>, GlobalError> {
        match ty {
            GlobalType::Bool => match text {
                "true" | "1" => Ok(vec![1]),
                "false" | "0" => Ok(vec![0]),
                _ => Err(GlobalError::Boolean { name: self.name.clone(), text: text.to_owned() }),
            },
            GlobalType::Int { size, signed } => self.integer(ty, *size, *signed, text),
            _ => Err(GlobalError::Form { name: self.name.clone(), ty: self.ty.clone(), given: "a list of words" }),
        }
    }

    fn integer(&self, ty: &GlobalType, size: u32, signed: bool, text: &str) -> Result<Vec<u8>, GlobalError> {
        let bits = size * 8;
        let (low, high) = if signed { (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1) } else { (0, (1i128 << bits) - 1) };
        let value = integer(text).ok_or_else(|| GlobalError::Integer {
            name: self.name.clone(),
            ty: ty.clone(),
            text: text.to_owned(),
        })?;
        if !(low..=high).contains(&value) {
            return Err(GlobalError::Range { name: self.name.clone(), ty: ty.clone(), text: text.to_owned(), low, high });
        }
        let wide = value.to_ne_bytes();
        let width = size as usize;
        Ok(if cfg!(target_endian = "little") { wide[..width].to_vec() } else { wide[wide.len() - width..].to_vec() })
    }

    fn string(&self, len: u32, text: &str) -> Result<Vec<u8>, GlobalError> {
        if text.contains('\0') {
            return Err(GlobalError::Nul { name: self.name.clone() });
        }
        if text.len() >= len as usize {
            return Err(GlobalError::TooLong { name: self.name.clone(), ty: self.ty.clone(), given: text.len() });
        }
        Ok(text.as_bytes().to_vec())
    }

    fn array(&self, of: &GlobalType, len: u32, items: &[String]) -> Result<Vec<u8>, GlobalError> {
        if items.len() > len as usize {
            return Err(GlobalError::TooMany { name: self.name.clone(), ty: self.ty.clone(), given: items.len() });
        }
        let mut bytes = Vec::new();
        for item in items {
            bytes.extend(self.scalar(of, item)?);
        }
        Ok(bytes)
    }
}

/// An integer in decimal or, after `0x`, in hexadecimal, with an optional minus sign. No variable takes more than 64
/// bits, so 128 bits hold every value that is compared with a range.
fn integer(text: &str) -> Option<i128> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (radix, digits) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(rest) => (16, rest),
        None => (10, digits),
    };
    // from_str_radix would accept a sign itself.
    if !digits.starts_with(|c: char| c.is_digit(radix)) {
        return None;
    }
    let value = i128::from_str_radix(digits, radix).ok()?;
    Some(if negative { -value } else { value })
}

fn form(value: &GlobalValue) -> &'static str {
    match value {
        GlobalValue::Word(_) => "a single word",
        GlobalValue::Text(_) => "a quoted string",
        GlobalValue::Array(_) => "a list",
        GlobalValue::Bytes(_) => "bytes",
    }
}

impl fmt::Display for GlobalType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int { size, signed } => write!(f, "{}{}", if *signed { 's' } else { 'u' }, size * 8),
            Self::Bool => f.write_str("bool"),
            Self::Chars { len } => write!(f, "char[{len}]"),
            Self::Array { of, len } => write!(f, "{of}[{len}]"),
            Self::Opaque => f.write_str("of a type that only hex: can set"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn global(ty: GlobalType, size: u32) -> GlobalFacts {
        GlobalFacts { name: "v".into(), size, ty, read_only: true }
    }

    fn int(size: u32, signed: bool) -> GlobalFacts {
        global(GlobalType::Int { size, signed }, size)
    }

    fn word(text: &str) -> GlobalValue {
        GlobalValue::Word(text.into())
    }

    #[test]
    fn integers_must_be_in_range() {
        let good: [(u32, bool, &str, &[u8]); 12] = [
            (1, false, "0", &[0]),
            (1, false, "255", &[255]),
            (1, true, "-128", &[0x80]),
            (1, true, "127", &[127]),
            (2, false, "0xffff", &u16::MAX.to_ne_bytes()),
            (2, true, "-0x8000", &i16::MIN.to_ne_bytes()),
            (4, false, "4294967295", &u32::MAX.to_ne_bytes()),
            (4, false, "010", &10u32.to_ne_bytes()),
            (4, true, "-1", &(-1i32).to_ne_bytes()),
            (8, false, "18446744073709551615", &u64::MAX.to_ne_bytes()),
            (8, true, "-9223372036854775808", &i64::MIN.to_ne_bytes()),
            (8, true, "9223372036854775807", &i64::MAX.to_ne_bytes()),
        ];
        for (size, signed, text, bytes) in good {
            assert_eq!(int(size, signed).encode(&word(text)).as_deref(), Ok(bytes), "{text}");
        }
        let out = [
            (1, false, "256"),
            (1, false, "-1"),
            (1, true, "128"),
            (1, true, "0xff"),
            (4, false, "4294967296"),
            (8, false, "18446744073709551616"),
            (8, true, "9223372036854775808"),
        ];
        for (size, signed, text) in out {
            let found = int(size, signed).encode(&word(text));
            assert!(matches!(found, Err(GlobalError::Range { .. })), "{text}: {found:?}");
        }
        for text in ["", "-", "0x", "+1", "1k", "0x-1", "--1", "1.0", " 1", "true", &"9".repeat(60)] {
            let found = int(4, true).encode(&word(text));
            assert!(matches!(found, Err(GlobalError::Integer { .. })), "{text}: {found:?}");
        }
        assert_eq!(
            int(1, false).encode(&word("-1")).map_err(|e| e.to_string()),
            Err("global v is u8, and -1 is not in 0 to 255".into())
        );
    }

    #[test]
    fn strings_end_with_a_nul() {
        let name = global(GlobalType::Chars { len: 4 }, 4);
        assert_eq!(name.encode(&word("abc")), Ok(b"abc\0".to_vec()));
        assert_eq!(name.encode(&GlobalValue::Text("1".into())), Ok(b"1\0\0\0".to_vec()));
        assert_eq!(name.encode(&GlobalValue::Text(String::new())), Ok(vec![0; 4]));
        assert_eq!(
            name.encode(&word("abcd")).map_err(|e| e.to_string()),
            Err("global v is char[4], and a string of 4 bytes needs 5 with its NUL".into())
        );
        assert!(matches!(name.encode(&word("a\0b")), Err(GlobalError::Nul { .. })));
        assert!(matches!(name.encode(&GlobalValue::Array(vec![])), Err(GlobalError::Form { .. })));
    }

    #[test]
    fn arrays_are_filled_with_zeroes() {
        let ports = global(GlobalType::Array { of: Box::new(GlobalType::Int { size: 2, signed: false }), len: 3 }, 6);
        let list = |items: &[&str]| GlobalValue::Array(items.iter().map(|i| (*i).to_owned()).collect());
        let bytes = |ports: [u16; 3]| ports.iter().flat_map(|p| p.to_ne_bytes()).collect::<Vec<_>>();
        assert_eq!(ports.encode(&list(&["80", "0x1bb"])), Ok(bytes([80, 443, 0])));
        assert_eq!(ports.encode(&list(&[])), Ok(bytes([0, 0, 0])));
        assert!(matches!(ports.encode(&list(&["1", "2", "3", "4"])), Err(GlobalError::TooMany { given: 4, .. })));
        assert!(matches!(ports.encode(&list(&["70000"])), Err(GlobalError::Range { .. })));
        assert!(matches!(ports.encode(&word("80")), Err(GlobalError::Form { given: "a single word", .. })));
    }

    #[test]
    fn booleans_and_bytes() {
        let flag = global(GlobalType::Bool, 1);
        assert_eq!(flag.encode(&word("true")), Ok(vec![1]));
        assert_eq!(flag.encode(&word("0")), Ok(vec![0]));
        assert!(matches!(flag.encode(&word("yes")), Err(GlobalError::Boolean { .. })));
        let key = global(GlobalType::Opaque, 3);
        assert_eq!(key.encode(&GlobalValue::Bytes(vec![1, 2, 3])), Ok(vec![1, 2, 3]));
        assert!(matches!(key.encode(&GlobalValue::Bytes(vec![1])), Err(GlobalError::Bytes { size: 3, given: 1, .. })));
        assert!(matches!(key.encode(&word("1")), Err(GlobalError::Form { .. })));
        assert!(matches!(int(4, false).encode(&GlobalValue::Text("1".into())), Err(GlobalError::Form { .. })));
    }
}
