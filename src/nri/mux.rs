//! NRI's trunk: one stream that carries two connections, in frames of connection, length and payload.
//!
//! The Go side reads a connection through a buffer of 4096 bytes and fails on a longer frame, so we never write a
//! longer one.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::Mutex;

/// The connection for the runtime's calls to the plugin.
const PLUGIN: u32 = 1;
/// The connection for the plugin's calls to the runtime.
const RUNTIME: u32 = 2;

/// Maximum payload of a frame that we write.
const WRITTEN_MAX: usize = 4096;
/// Maximum payload that we read: the largest ttrpc message with its header.
const READ_MAX: u32 = (4 << 20) + 10;
/// Capacity of the pipe between a connection and the trunk, in bytes.
const PIPE: usize = 64 << 10;

/// The two connections of a trunk; [`Pump::run`] moves their bytes.
pub fn split<S: AsyncRead + AsyncWrite>(trunk: S) -> (DuplexStream, DuplexStream, Pump<S>) {
    let (plugin, plugin_end) = tokio::io::duplex(PIPE);
    let (runtime, runtime_end) = tokio::io::duplex(PIPE);
    (plugin, runtime, Pump { trunk, plugin: plugin_end, runtime: runtime_end })
}

/// Moves the bytes between a trunk and its connections.
#[derive(Debug)]
pub struct Pump<S> {
    trunk: S,
    plugin: DuplexStream,
    runtime: DuplexStream,
}

impl<S: AsyncRead + AsyncWrite> Pump<S> {
    /// Moves bytes until the trunk ends.
    ///
    /// # Errors
    /// If the trunk breaks or carries an invalid frame. An orderly end is an error too, because the plugin cannot
    /// continue.
    pub async fn run(self) -> io::Result<()> {
        let (mut from, to) = tokio::io::split(self.trunk);
        let (plugin_from, mut plugin_to) = tokio::io::split(self.plugin);
        let (runtime_from, mut runtime_to) = tokio::io::split(self.runtime);
        let to = Arc::new(Mutex::new(to));
        tokio::select! {
            end = read(&mut from, &mut plugin_to, &mut runtime_to) => end,
            end = write(PLUGIN, plugin_from, &to) => end,
            end = write(RUNTIME, runtime_from, &to) => end,
        }
    }
}

async fn read<S: AsyncRead>(
    trunk: &mut ReadHalf<S>,
    plugin: &mut WriteHalf<DuplexStream>,
    runtime: &mut WriteHalf<DuplexStream>,
) -> io::Result<()> {
    let mut buffer = [0; WRITTEN_MAX];
    loop {
        let connection = trunk.read_u32().await?;
        let length = trunk.read_u32().await?;
        let pipe = match connection {
            PLUGIN => &mut *plugin,
            RUNTIME => &mut *runtime,
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, format!("there is no connection {connection}"))),
        };
        if length > READ_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes is too long")));
        }
        let mut left = length as usize;
        while left > 0 {
            let part = left.min(buffer.len());
            trunk.read_exact(&mut buffer[..part]).await?;
            pipe.write_all(&buffer[..part]).await?;
            left -= part;
        }
    }
}

async fn write<S: AsyncWrite>(
    connection: u32,
    mut pipe: ReadHalf<DuplexStream>,
    trunk: &Mutex<WriteHalf<S>>,
) -> io::Result<()> {
    let mut frame = [0; 8 + WRITTEN_MAX];
    frame[..4].copy_from_slice(&connection.to_be_bytes());
    loop {
        let length = pipe.read(&mut frame[8..]).await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let word = u32::try_from(length).expect("at most 4096");
        frame[4..8].copy_from_slice(&word.to_be_bytes());
        trunk.lock().await.write_all(&frame[..8 + length]).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    #[test]
    fn written_frames_fit_into_the_readers_buffer() {
        block_on(async {
            let (ours, mut theirs) = tokio::io::duplex(1 << 20);
            let (mut plugin, _runtime, pump) = split(ours);
            let pump = tokio::spawn(pump.run());
            let message: Vec<u8> = (0..300_000_u32).map(|n| n.to_le_bytes()[0]).collect();
            let sent = message.clone();
            let sender = tokio::spawn(async move {
                plugin.write_all(&sent).await.unwrap();
                plugin
            });
            let mut read = Vec::new();
            while read.len() < message.len() {
                assert_eq!(theirs.read_u32().await.unwrap(), PLUGIN);
                let length = theirs.read_u32().await.unwrap() as usize;
                assert!(length <= 4096, "{length}");
                let mut payload = vec![0; length];
                theirs.read_exact(&mut payload).await.unwrap();
                read.extend(payload);
            }
            assert!(read == message);
            drop((sender, theirs));
            assert!(pump.await.unwrap().is_err());
        });
    }

    #[test]
    fn a_message_is_reassembled_from_any_frames() {
        block_on(async {
            let (ours, mut theirs) = tokio::io::duplex(1 << 20);
            let (mut plugin, mut runtime, pump) = split(ours);
            let pump = tokio::spawn(pump.run());
            for (connection, payload) in [(1, &b"abc"[..]), (2, b"xy"), (1, b""), (1, b"def"), (2, b"z")] {
                theirs.write_u32(connection).await.unwrap();
                theirs.write_u32(u32::try_from(payload.len()).unwrap()).await.unwrap();
                theirs.write_all(payload).await.unwrap();
            }
            let (mut six, mut three) = ([0; 6], [0; 3]);
            plugin.read_exact(&mut six).await.unwrap();
            runtime.read_exact(&mut three).await.unwrap();
            assert_eq!((&six, &three), (b"abcdef", b"xyz"));
            drop(theirs);
            assert_eq!(pump.await.unwrap().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        });
    }

    #[test]
    fn an_invalid_frame_ends_the_trunk() {
        for (connection, length) in [(0_u32, 1_u32), (3, 1), (u32::MAX, 1), (1, READ_MAX + 1), (2, u32::MAX)] {
            block_on(async {
                let (ours, mut theirs) = tokio::io::duplex(64);
                let (_plugin, _runtime, pump) = split(ours);
                theirs.write_u32(connection).await.unwrap();
                theirs.write_u32(length).await.unwrap();
                let error = pump.run().await.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{connection} {length}");
            });
        }
    }
}
