//! The few parts of DER (X.690) that signatures of programs consist of.

/// Tags.
pub(super) const INTEGER: u8 = 0x02;
pub(super) const OCTET_STRING: u8 = 0x04;
pub(super) const NULL: u8 = 0x05;
pub(super) const OID: u8 = 0x06;
pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const SET: u8 = 0x31;
/// `[0]`, constructed.
pub(super) const CONTEXT_0: u8 = 0xa0;

/// A value with its tag and length.
pub(super) fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let mut bytes = vec![tag];
    match content.len() {
        short @ 0..=0x7f => bytes.push(short.to_le_bytes()[0]),
        long => {
            let length: Vec<u8> = long.to_be_bytes().into_iter().skip_while(|byte| *byte == 0).collect();
            bytes.push(0x80 | length.len().to_le_bytes()[0]);
            bytes.extend(length);
        }
    }
    bytes.extend(content);
    bytes
}

/// A value: its tag, its content, all of its bytes, and what follows.
type DerValue<'b> = (u8, &'b [u8], &'b [u8], &'b [u8]);

/// The first value.
pub(super) fn first(bytes: &[u8]) -> Option<DerValue<'_>> {
    let (tag, rest) = bytes.split_first()?;
    let (length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(*length), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, &bytes[..bytes.len() - rest.len()], rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_every_form_are_written_and_read() {
        for length in [0, 1, 127, 128, 255, 256, 65535, 65536] {
            let content = vec![7; length];
            let mut bytes = tlv(OCTET_STRING, &[&content]);
            let whole = bytes.clone();
            bytes.push(9);
            assert_eq!(first(&bytes), Some((OCTET_STRING, content.as_slice(), whole.as_slice(), &[9][..])), "{length}");
            assert_eq!(first(&whole[..whole.len() - 1]), None, "{length}");
        }
        for wrong in [&[][..], &[2], &[2, 0x80], &[2, 0x85, 0, 0, 0, 0, 0], &[2, 0x82, 1]] {
            assert_eq!(first(wrong), None, "{wrong:?}");
        }
    }
}
