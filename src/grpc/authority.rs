//! Lets clients connect that send the path of a Unix socket as `:authority`: gRPC's C core (Python, C++, Ruby) sends it
//! percent-encoded, grpc-java as it is. Neither is an authority of RFC 3986, and h2 ends such a request with
//! PROTOCOL_ERROR while it decodes the headers, before a service sees it (hyperium/h2, pull request 487).
//!
//! The filter sits between the socket and h2. It decodes a connection's first header block. If the block's authority is
//! valid, the connection is passed on as it is. Otherwise each header block is written anew with `localhost` as authority.
//! The service does not use the authority: the kernel says who the peer is.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use loona_hpack::Decoder;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::codegen::http::uri::Authority;

/// The client's connection preface (RFC 9113, section 3.4).
const PREFACE: usize = 24;
/// A frame's header: three bytes of length, type, flags, four bytes of stream id (section 4.1).
const FRAME_HEADER: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Maximum size of a frame, as h2 announces it by default (SETTINGS_MAX_FRAME_SIZE).
const FRAME_MAX: usize = 16_384;
/// Size of the dynamic table that an endpoint may use unless it is told otherwise (section 6.5.2); h2 does not change it.
const TABLE_MAX: usize = 4096;
/// Maximum bytes of a header block, encoded or decoded. h2 refuses more than 16 KiB of decoded fields itself.
const BLOCK_MAX: usize = 64 * 1024;
/// Bytes that are read from the socket at once.
const CHUNK: usize = 8 * 1024;

/// A stream whose invalid authorities are replaced on reading. Writing is not changed.
#[derive(Debug)]
pub struct AuthorityFilter<S> {
    stream: S,
    rewriter: Rewriter,
    /// How much of the rewriter's output was handed on.
    read: usize,
}

impl<S> AuthorityFilter<S> {
    /// Filters what `stream` receives.
    pub fn new(stream: S) -> Self {
        Self { stream, rewriter: Rewriter::default(), read: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for AuthorityFilter<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.read < this.rewriter.output.len() {
                let rest = &this.rewriter.output[this.read..];
                let count = rest.len().min(buffer.remaining());
                buffer.put_slice(&rest[..count]);
                this.read += count;
                return Poll::Ready(Ok(()));
            }
            this.rewriter.output.clear();
            this.read = 0;
            if matches!(this.rewriter.state, State::AsItIs) {
                return Pin::new(&mut this.stream).poll_read(context, buffer);
            }
            let mut chunk = [0; CHUNK];
            let mut chunk = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut this.stream).poll_read(context, &mut chunk))?;
            if chunk.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.rewriter.push(chunk.filled())?;
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for AuthorityFilter<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// What a client sends, cut into frames.
struct Rewriter {
    state: State,
    /// Bytes of a frame's header that have arrived.
    header: Vec<u8>,
    /// The header block that arrives.
    block: Block,
    /// Whether the authority was found to be invalid, so that blocks are written anew.
    rewriting: bool,
    decoder: Decoder<'static>,
    output: Vec<u8>,
}

/// What the next bytes are.
#[derive(Debug)]
enum State {
    /// A frame's header.
    Header,
    /// This many bytes of the preface or of a frame that is passed on.
    Pass(usize),
    /// This many bytes of a frame with a part of a header block; and its header.
    Part(usize, FrameHeader),
    /// Nothing is looked at any more.
    AsItIs,
}

/// A frame's header.
#[derive(Debug, Clone, Copy)]
struct FrameHeader {
    length: usize,
    kind: u8,
    flags: u8,
    stream: [u8; 4],
}

/// A header block, as far as it has arrived.
#[derive(Debug, Default)]
struct Block {
    /// The HEADERS frame that began it.
    first: Option<FrameHeader>,
    /// All its frames, as they were sent.
    frames: Vec<u8>,
    /// The payload of the frame that arrives.
    payload: Vec<u8>,
    /// The encoded fields.
    fields: Vec<u8>,
}

impl std::fmt::Debug for Rewriter {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Rewriter")
            .field("state", &self.state)
            .field("rewriting", &self.rewriting)
            .finish_non_exhaustive()
    }
}

impl Default for Rewriter {
    fn default() -> Self {
        let mut decoder = Decoder::new();
        decoder.set_max_allowed_table_size(TABLE_MAX);
        Self {
            state: State::Pass(PREFACE),
            header: Vec::with_capacity(FRAME_HEADER),
            block: Block::default(),
            rewriting: false,
            decoder,
            output: Vec::new(),
        }
    }
}

impl FrameHeader {
    fn parse(bytes: &[u8]) -> Self {
        let length = usize::from(bytes[0]) << 16 | usize::from(bytes[1]) << 8 | usize::from(bytes[2]);
        Self { length, kind: bytes[3], flags: bytes[4], stream: [bytes[5], bytes[6], bytes[7], bytes[8]] }
    }

    fn write(self, output: &mut Vec<u8>) {
        let [.., a, b, c] = self.length.to_be_bytes();
        output.extend([a, b, c, self.kind, self.flags]);
        output.extend(self.stream);
    }
}

impl Rewriter {
    /// Takes the next bytes of a client, and appends what h2 is to read to the output.
    ///
    /// # Errors
    /// If blocks are written anew, and one is not well-formed or too large. The connection cannot go on: h2 has not seen
    /// what the client's encoder refers to.
    fn push(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::AsItIs => {
                    self.output.extend_from_slice(bytes);
                    return Ok(());
                }
                State::Pass(rest) => {
                    let (passed, others) = bytes.split_at(bytes.len().min(*rest));
                    self.output.extend_from_slice(passed);
                    *rest -= passed.len();
                    if *rest == 0 {
                        self.state = State::Header;
                    }
                    bytes = others;
                }
                State::Header => {
                    let (taken, others) = bytes.split_at(bytes.len().min(FRAME_HEADER - self.header.len()));
                    self.header.extend_from_slice(taken);
                    bytes = others;
                    if self.header.len() == FRAME_HEADER {
                        self.begin_frame()?;
                    }
                }
                State::Part(rest, header) => {
                    let (taken, others) = bytes.split_at(bytes.len().min(*rest));
                    self.block.payload.extend_from_slice(taken);
                    *rest -= taken.len();
                    bytes = others;
                    if *rest == 0 {
                        let header = *header;
                        self.end_part(header)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn begin_frame(&mut self) -> io::Result<()> {
        let header = FrameHeader::parse(&self.header);
        let expected = match (&self.block.first, header.kind) {
            (None, kind) => kind != CONTINUATION,
            // Nothing else may come between the frames of a block (section 6.10).
            (Some(first), CONTINUATION) => first.stream == header.stream,
            (Some(_), _) => false,
        };
        let part = matches!(header.kind, HEADERS | CONTINUATION);
        if !expected || part && (header.length > FRAME_MAX || self.block.frames.len() + header.length > BLOCK_MAX) {
            return self.give_up("a header block is not well-formed or too large");
        }
        if part {
            self.block.first.get_or_insert(header);
            self.block.frames.append(&mut self.header);
            self.state = State::Part(header.length, header);
            if header.length == 0 {
                self.end_part(header)?;
            }
        } else {
            self.output.append(&mut self.header);
            self.state = if header.length == 0 { State::Header } else { State::Pass(header.length) };
        }
        Ok(())
    }

    fn end_part(&mut self, header: FrameHeader) -> io::Result<()> {
        self.block.frames.extend_from_slice(&self.block.payload);
        let payload = std::mem::take(&mut self.block.payload);
        let Some(fields) = fields(header, &payload) else {
            return self.give_up("a HEADERS frame is shorter than its padding");
        };
        self.block.fields.extend_from_slice(fields);
        self.state = State::Header;
        if header.flags & END_HEADERS == 0 {
            return Ok(());
        }
        let Some(decoded) = self.decode() else { return self.give_up("a header block cannot be decoded") };
        if !self.rewriting && !decoded.invalid_authority {
            return self.give_up("");
        }
        self.rewriting = true;
        if let Some(first) = self.block.first {
            write_block(first, &decoded.fields, &mut self.output);
        }
        self.block = Block::default();
        Ok(())
    }

    /// Passes on everything from here as it is: h2 answers what is wrong with it.
    ///
    /// # Errors
    /// With `reason` if blocks were written anew before.
    fn give_up(&mut self, reason: &str) -> io::Result<()> {
        if self.rewriting {
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        let block = std::mem::take(&mut self.block);
        self.output.extend(block.frames);
        self.output.extend(block.payload);
        self.output.append(&mut self.header);
        self.state = State::AsItIs;
        Ok(())
    }

    fn decode(&mut self) -> Option<Decoded> {
        let mut decoded = Decoded::default();
        let result = self.decoder.decode_with_cb(&self.block.fields, |name, value| decoded.add(&name, &value));
        (result.is_ok() && decoded.fields.len() <= BLOCK_MAX).then_some(decoded)
    }
}

/// The encoded fields in the payload of a HEADERS or CONTINUATION frame; None if it is shorter than its padding.
fn fields(header: FrameHeader, payload: &[u8]) -> Option<&[u8]> {
    if header.kind == CONTINUATION {
        return Some(payload);
    }
    let (mut begin, mut padding) = (0, 0);
    if header.flags & PADDED != 0 {
        padding = usize::from(*payload.first()?);
        begin = 1;
    }
    if header.flags & PRIORITY != 0 {
        begin += 5;
    }
    payload.get(begin..payload.len().checked_sub(padding)?)
}

/// Fields, encoded again as literals without a table (RFC 7541, section 6.2.2).
#[derive(Debug, Default)]
struct Decoded {
    fields: Vec<u8>,
    invalid_authority: bool,
}

impl Decoded {
    fn add(&mut self, name: &[u8], value: &[u8]) {
        // A block can refer to a large field of the table many times.
        if self.fields.len() > BLOCK_MAX {
            return;
        }
        let invalid = name == b":authority" && Authority::try_from(value).is_err();
        self.invalid_authority |= invalid;
        self.fields.push(0);
        for text in [name, if invalid { b"localhost" } else { value }] {
            write_length(text.len(), &mut self.fields);
            self.fields.extend_from_slice(text);
        }
    }
}

/// A string's length with a prefix of seven bits, without Huffman coding (RFC 7541, section 5.1).
fn write_length(length: usize, output: &mut Vec<u8>) {
    const PREFIX: usize = 127;
    if length < PREFIX {
        output.extend(u8::try_from(length));
        return;
    }
    output.push(127);
    let mut rest = length - PREFIX;
    while rest >= 128 {
        output.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    output.extend(u8::try_from(rest));
}

/// A header block as a HEADERS frame, and CONTINUATION frames where it is larger than one frame.
fn write_block(first: FrameHeader, fields: &[u8], output: &mut Vec<u8>) {
    let count = fields.len().div_ceil(FRAME_MAX).max(1);
    for index in 0..count {
        let part = &fields[index * FRAME_MAX..fields.len().min((index + 1) * FRAME_MAX)];
        let (kind, kept) = if index == 0 { (HEADERS, first.flags & END_STREAM) } else { (CONTINUATION, 0) };
        let end = if index + 1 == count { END_HEADERS } else { 0 };
        FrameHeader { length: part.len(), kind, flags: kept | end, stream: first.stream }.write(output);
        output.extend_from_slice(part);
    }
}

#[cfg(test)]
#[allow(clippy::duplicate_mod, reason = "layers do not use each other, their tests neither")]
#[allow(dead_code, reason = "only what changes bytes is used")]
#[path = "../../tests/support/mutate.rs"]
mod mutate;

#[cfg(test)]
mod tests {
    use super::*;

    const PREFACE_TEXT: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        FrameHeader { length: payload.len(), kind, flags, stream: [0, 0, 0, stream] }.write(&mut frame);
        frame.extend(payload);
        frame
    }

    /// The output for bytes that arrive in pieces.
    fn rewritten(bytes: &[u8], piece: usize) -> io::Result<Vec<u8>> {
        let mut rewriter = Rewriter::default();
        bytes.chunks(piece).try_for_each(|piece| rewriter.push(piece))?;
        Ok(rewriter.output)
    }

    /// The decoded fields of one block.
    type Fields = Vec<(String, String)>;
    /// Type, flags and payload of a frame without fields.
    type OtherFrame = (u8, u8, Vec<u8>);

    /// The payloads of HEADERS frames that a fresh decoder, which sees only these frames, makes of them; and the others.
    fn parsed(mut bytes: &[u8]) -> (Vec<Fields>, Vec<OtherFrame>) {
        let (mut blocks, mut others, mut decoder) = (Vec::new(), Vec::new(), Decoder::new());
        bytes = bytes.strip_prefix(PREFACE_TEXT).unwrap();
        let mut encoded = Vec::new();
        while !bytes.is_empty() {
            let header = FrameHeader::parse(bytes);
            let payload = &bytes[FRAME_HEADER..FRAME_HEADER + header.length];
            bytes = &bytes[FRAME_HEADER + header.length..];
            if !matches!(header.kind, HEADERS | CONTINUATION) {
                others.push((header.kind, header.flags, payload.to_vec()));
                continue;
            }
            encoded.extend_from_slice(fields(header, payload).unwrap());
            if header.flags & END_HEADERS != 0 {
                let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
                let fields = decoder.decode(&encoded).unwrap();
                blocks.push(fields.into_iter().map(|(name, value)| (text(name), text(value))).collect());
                encoded.clear();
            }
        }
        (blocks, others)
    }

    /// A client's fields, encoded with a table that goes on from block to block.
    fn encode(encoder: &mut loona_hpack::Encoder<'_>, authority: &str, more: &[(&str, &str)]) -> Vec<u8> {
        let fields = [(":method", "POST"), (":path", "/bpfman.v1.Bpfman/List"), (":authority", authority)];
        encoder.encode(fields.iter().chain(more).map(|(name, value)| (name.as_bytes(), value.as_bytes())))
    }

    fn connection(authority: &str) -> Vec<u8> {
        let mut encoder = loona_hpack::Encoder::new();
        let large = "x".repeat(20_000);
        let first = encode(&mut encoder, authority, &[("te", "trailers")]);
        let padded = [&[3, 0, 0, 0, 0, 16][..], &encode(&mut encoder, authority, &[("a", "b")]), &[0, 0, 0]].concat();
        let split = encode(&mut encoder, authority, &[("large", &large), ("a", "b")]);
        let (one, two) = split.split_at(split.len() / 2);
        [
            PREFACE_TEXT.to_vec(),
            frame(4, 0, 0, &[0, 3, 0, 0, 0, 100]),
            frame(HEADERS, END_HEADERS, 1, &first),
            frame(0, END_STREAM, 1, b"\0\0\0\0\0"),
            frame(HEADERS, END_HEADERS | END_STREAM | PADDED | PRIORITY, 3, &padded),
            frame(HEADERS, 0, 5, one),
            frame(CONTINUATION, END_HEADERS, 5, two),
            frame(4, 1, 0, &[]),
        ]
        .concat()
    }

    #[test]
    fn an_invalid_authority_becomes_localhost_and_the_rest_stays() {
        for authority in ["%2Frun%2Fbpfman-hook%2Fbpfman.sock", "/run/bpfman-sock/bpfman.sock"] {
            let sent = connection(authority);
            let whole = rewritten(&sent, sent.len()).unwrap();
            for piece in [1, 2, 7, 9, 100, 4096] {
                assert_eq!(rewritten(&sent, piece).unwrap(), whole, "{piece}");
            }
            let (blocks, others) = parsed(&whole);
            let (expected_blocks, expected_others) = parsed(&connection("localhost"));
            assert_eq!((blocks, others), (expected_blocks, expected_others));
        }
    }

    #[test]
    fn a_valid_authority_leaves_the_connection_as_it_is() {
        for authority in ["localhost", "[::1]:50051", "bpfman", ""] {
            let sent = connection(authority);
            let valid = Authority::try_from(authority).is_ok();
            for piece in [1, 10, sent.len()] {
                let output = rewritten(&sent, piece).unwrap();
                assert_eq!(output == sent, valid, "{authority:?} {piece}");
            }
        }
    }

    #[test]
    fn what_is_not_well_formed_is_passed_on_until_blocks_are_written_anew() {
        let begin = [PREFACE_TEXT, &frame(4, 0, 0, &[])].concat();
        let mut encoder = loona_hpack::Encoder::new();
        let invalid = frame(HEADERS, END_HEADERS, 1, &encode(&mut encoder, "%2Fa", &[]));
        let bomb = {
            let mut fields = vec![0x40, 1, b'n'];
            write_length(4000, &mut fields);
            fields.extend([b'v'; 4000]);
            // The first entry of the dynamic table, many times.
            fields.extend([0x80 | 62; 12_000]);
            frame(HEADERS, END_HEADERS, 3, &fields)
        };
        let cases = [
            ("an index that does not exist", frame(HEADERS, END_HEADERS, 3, &[0x80 | 100])),
            ("padding longer than the frame", frame(HEADERS, END_HEADERS | PADDED, 3, &[9, 0])),
            ("an empty frame with padding", frame(HEADERS, END_HEADERS | PADDED, 3, &[])),
            ("a continuation of nothing", frame(CONTINUATION, END_HEADERS, 3, &[])),
            ("data within a block", [frame(HEADERS, 0, 3, &[]), frame(0, 0, 3, b"x")].concat()),
            ("another stream's continuation", [frame(HEADERS, 0, 3, &[]), frame(CONTINUATION, 4, 5, &[])].concat()),
            ("a frame that is too large", frame(HEADERS, END_HEADERS, 3, &[0; FRAME_MAX + 1])),
            ("a block without end", [frame(HEADERS, 0, 3, &[]), frame(CONTINUATION, 0, 3, &[0; FRAME_MAX]).repeat(5)].concat()),
            ("a table that is too large", frame(HEADERS, END_HEADERS, 3, &[0x3f, 0xff, 0xff, 0x03, 0x82])),
            ("a block that grows when it is decoded", bomb),
        ];
        for (what, bytes) in cases {
            for piece in [1, 11, 1 << 20] {
                let raw = [&begin[..], &bytes, b"rest"].concat();
                assert_eq!(rewritten(&raw, piece).unwrap(), raw, "{what}");
                let error = rewritten(&[&begin[..], &invalid, &bytes].concat(), piece).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{what}");
            }
        }
    }

    #[test]
    fn fuzz_changed_connections_do_not_panic_and_stay_bounded() {
        let seeds = [connection("%2Frun%2Fs"), connection("localhost")];
        mutate::fuzz("grpc-frames", &seeds, |bytes| {
            if let Ok(output) = rewritten(bytes, 1000) {
                assert!(output.len() <= 64 * (bytes.len() + BLOCK_MAX));
            }
        });
    }
}
