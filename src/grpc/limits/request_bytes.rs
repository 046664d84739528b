//! Limits the memory that a client can make the service hold: the bytes that its requests announce, until they are
//! done, and the time in which a request must be complete. A message counts by its length prefix, since the buffer for
//! the whole message is allocated as soon as the prefix has arrived. Without this limit, a client without any
//! permission could fill the memory with requests that it never completes, and keep the service from exiting.

use std::collections::HashMap;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Bytes, Service, http};
use tonic::server::NamedService;
use tonic::transport::server::TlsConnectInfo;

use crate::grpc::connection::{Origin, Peer};

/// Maximum size of one request of a non-root client; only the values of globals can be large.
const MESSAGE_MAX: usize = 1 << 20;
/// Maximum bytes of the requests of one origin, from their announcement until they are done: eight requests of maximum
/// size.
const BYTES_MAX: usize = 8 << 20;
/// Maximum bytes of the requests of all origins except root.
const ALL_MAX: usize = 32 << 20;
/// Timeout from a request's headers to its last byte.
const WHOLE: Duration = Duration::from_secs(30);

/// The bytes held for each origin.
#[derive(Debug, Clone, Default)]
struct RequestBytes(Arc<Mutex<HashMap<Origin, usize>>>);

/// The bytes held for one request; released when dropped.
#[derive(Debug)]
struct HeldBytes {
    scales: RequestBytes,
    origin: Origin,
    bytes: Mutex<usize>,
}

impl HeldBytes {
    fn new(scales: RequestBytes, origin: Origin) -> Self {
        Self { scales, origin, bytes: Mutex::default() }
    }

    /// Adds an announced message. Root is not limited, since it could stop the service as well.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED if the message is too large, or the origin or all of them together would exceed their limit.
    fn add(&self, bytes: usize) -> Result<(), Status> {
        let mut all = self.scales.0.lock().unwrap_or_else(PoisonError::into_inner);
        let others: usize = all.iter().filter(|(origin, _)| **origin != Origin::Root).map(|(_, held)| held).sum();
        let held = all.entry(self.origin).or_default();
        if self.origin != Origin::Root {
            let over = if bytes > MESSAGE_MAX {
                Some(format!("the request has {bytes} bytes; the limit is {MESSAGE_MAX}"))
            } else if *held + bytes > BYTES_MAX {
                Some(format!("the client's requests would exceed {BYTES_MAX} bytes; wait for responses"))
            } else if others + bytes > ALL_MAX {
                Some(format!("the requests of all clients would exceed {ALL_MAX} bytes; try again"))
            } else {
                None
            };
            if let Some(sentence) = over {
                return Err(Status::resource_exhausted(sentence));
            }
        }
        *held += bytes;
        *self.bytes.lock().unwrap_or_else(PoisonError::into_inner) += bytes;
        Ok(())
    }
}

/// Parses the length prefixes of the messages in a body: a byte for the compression flag, and four bytes of length,
/// big-endian.
#[derive(Debug, Default)]
struct Prefixes {
    prefix: Vec<u8>,
    /// Remaining bytes of the current message.
    rest: usize,
}

impl Prefixes {
    const LENGTH: usize = 5;

    /// Parses the next bytes of a body; returns the total length of the messages that begin in them.
    fn announced(&mut self, mut bytes: &[u8]) -> usize {
        let mut announced: usize = 0;
        while !bytes.is_empty() {
            if self.rest > 0 {
                let skipped = self.rest.min(bytes.len());
                self.rest -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let (taken, others) = bytes.split_at(bytes.len().min(Self::LENGTH - self.prefix.len()));
            self.prefix.extend_from_slice(taken);
            bytes = others;
            if let [_, length @ ..] = &self.prefix[..]
                && let Ok(length) = <[u8; 4]>::try_from(length)
            {
                self.rest = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                announced = announced.saturating_add(self.rest);
                self.prefix.clear();
            }
        }
        announced
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        let own = *self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = self.scales.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = all.get_mut(&self.origin) {
            *held -= own;
            if *held == 0 {
                all.remove(&self.origin);
            }
        }
    }
}

/// A request's body, counted as it arrives.
struct CountedBody {
    body: Body,
    prefixes: Prefixes,
    held_bytes: Arc<HeldBytes>,
    end: Pin<Box<Sleep>>,
}

impl HttpBody for CountedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                let announced = frame.data_ref().map_or(0, |bytes| self.prefixes.announced(bytes));
                Poll::Ready(Some(self.held_bytes.add(announced).map(|()| frame)))
            }
            Poll::Ready(other) => Poll::Ready(other),
            Poll::Pending => self.end.as_mut().poll(context).map(|()| {
                Some(Err(Status::deadline_exceeded(format!("the request was not complete within {} s", WHOLE.as_secs()))))
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A service whose requests are counted.
#[derive(Debug, Clone)]
pub struct CountedService<S> {
    inner: S,
    scales: RequestBytes,
}

impl<S> CountedService<S> {
    /// Wraps a service.
    pub fn new(inner: S) -> Self {
        Self { inner, scales: RequestBytes::default() }
    }
}

impl<S: NamedService> NamedService for CountedService<S> {
    const NAME: &'static str = S::NAME;
}

impl<S: Service<http::Request<Body>>> Service<http::Request<Body>> for CountedService<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> S::Future {
        let (mut parts, body) = request.into_parts();
        let held_bytes = Arc::new(HeldBytes::new(self.scales.clone(), origin(&parts.extensions)));
        // The handler keeps the extensions until it has responded.
        parts.extensions.insert(held_bytes.clone());
        let body = Body::new(CountedBody { body, prefixes: Prefixes::default(), held_bytes, end: Box::pin(sleep(WHOLE)) });
        self.inner.call(http::Request::from_parts(parts, body))
    }
}

/// A connection without a known peer counts as TCP.
fn origin(extensions: &http::Extensions) -> Origin {
    extensions
        .get::<Peer>()
        .or_else(|| extensions.get::<TlsConnectInfo<Peer>>().map(TlsConnectInfo::get_ref))
        .map_or(Origin::Tcp, Peer::origin)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// A body that yields its pieces; if it is not complete, it then stays pending.
    struct Pieces(Vec<Bytes>, bool);

    impl HttpBody for Pieces {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            match self.0.pop() {
                Some(piece) => Poll::Ready(Some(Ok(Frame::data(piece)))),
                None if self.1 => Poll::Ready(None),
                None => Poll::Pending,
            }
        }
    }

    fn counted(scales: &RequestBytes, origin: Origin, body: Pieces, within: Duration) -> CountedBody {
        let held_bytes = Arc::new(HeldBytes::new(scales.clone(), origin));
        CountedBody { body: Body::new(body), prefixes: Prefixes::default(), held_bytes, end: Box::pin(sleep(within)) }
    }

    async fn read(body: &mut CountedBody) -> Result<usize, tonic::Code> {
        let mut read = 0;
        while let Some(frame) = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await {
            read += frame.map_err(|status| status.code())?.data_ref().map_or(0, Bytes::len);
        }
        Ok(read)
    }

    #[test]
    fn each_origin_has_its_limit_until_its_requests_are_done() {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
            let scales = RequestBytes::default();
            // A prefix that announces a message of so many bytes; the message is not sent.
            let announces = |bytes: usize| Bytes::from([&[0][..], &(bytes as u32).to_be_bytes()].concat());
            let many = |bytes, times| {
                let message = [announces(bytes), Bytes::from(vec![0; bytes])].concat();
                Pieces(vec![Bytes::from(message); times], true)
            };
            let long = Duration::from_secs(60);
            let mut first = counted(&scales, Origin::Uid(7), many(MESSAGE_MAX, 8), long);
            assert_eq!(read(&mut first).await, Ok(8 * (MESSAGE_MAX + 5)));
            let mut second = counted(&scales, Origin::Uid(7), Pieces(vec![announces(1)], true), long);
            assert_eq!(read(&mut second).await, Err(tonic::Code::ResourceExhausted));
            let mut large = counted(&scales, Origin::Uid(8), Pieces(vec![announces(MESSAGE_MAX + 1)], true), long);
            assert_eq!(read(&mut large).await, Err(tonic::Code::ResourceExhausted));
            let mut other = counted(&scales, Origin::Tcp, many(1, 2), long);
            assert_eq!(read(&mut other).await, Ok(12));
            let mut root = counted(&scales, Origin::Root, many(4 * MESSAGE_MAX, 3), long);
            assert_eq!(read(&mut root).await, Ok(3 * (4 * MESSAGE_MAX + 5)));
            // Many origins, each within its limit, together do not exceed the total limit.
            let mut crowd: Vec<_> =
                (100..132).map(|uid| counted(&scales, Origin::Uid(uid), many(MESSAGE_MAX, 1), long)).collect();
            let mut refused = 0;
            for one in &mut crowd {
                refused += usize::from(read(one).await.is_err());
            }
            assert_eq!(refused, 9, "8 MiB of the first, and two bytes of another");
            drop(crowd);
            drop((first, second));
            let mut third = counted(&scales, Origin::Uid(7), many(1, 1), long);
            assert_eq!(read(&mut third).await, Ok(6));
            drop((large, other, root, third));
            assert!(scales.0.lock().unwrap().is_empty());
        });
    }

    #[test]
    fn a_message_counts_when_its_prefix_arrives() {
        let bytes = [&[0, 0, 0, 1, 0][..], &[7; 256], &[1, 0, 0, 0, 0], &[0, 0, 64, 0, 0], &[9; 3]].concat();
        for size in [1, 2, 4, 5, 6, 300] {
            let mut prefixes = Prefixes::default();
            let all: usize = bytes.chunks(size).map(|chunk| prefixes.announced(chunk)).sum();
            assert_eq!(all, 256 + (4 << 20), "{size}");
            assert_eq!(prefixes.rest, (4 << 20) - 3);
        }
    }

    #[test]
    fn an_incomplete_request_times_out() {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
            let mut slow = counted(&RequestBytes::default(), Origin::Tcp, Pieces(Vec::new(), false), Duration::from_millis(20));
            assert_eq!(read(&mut slow).await, Err(tonic::Code::DeadlineExceeded));
        });
    }
}
