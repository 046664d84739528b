//! How much a client may have us hold: the bytes that its requests announce, until they are done, and the time in which one has to
//! come whole. A message counts by its length prefix, since room for all of it is made as soon as the prefix is there.
//! Without this a client that may ask for nothing could fill the memory with requests that it never ends, and keep the service from
//! ending.

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

/// Bytes of one request of a client that is not root; the values of globals are all that could be large in it.
const MESSAGE_MAX: usize = 1 << 20;
/// Bytes of the requests of one origin, from their announcement until they are done: eight of the largest.
const BYTES_MAX: usize = 8 << 20;
/// Bytes of the requests of all origins but root.
const ALL_MAX: usize = 32 << 20;
/// From a request's headers to its last byte.
const WHOLE: Duration = Duration::from_secs(30);

/// What each origin has us hold.
#[derive(Debug, Clone, Default)]
struct RequestBytes(Arc<Mutex<HashMap<Origin, usize>>>);

/// What one request weighs, until it is dropped.
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

    /// Adds a message that is announced. Root is not limited, since it could stop the service as well.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED where the message is too large, or the origin or all of them would have too much.
    fn add(&self, bytes: usize) -> Result<(), Status> {
        let mut all = self.scales.0.lock().unwrap_or_else(PoisonError::into_inner);
        let others: usize = all.iter().filter(|(origin, _)| **origin != Origin::Root).map(|(_, held)| held).sum();
        let held = all.entry(self.origin).or_default();
        if self.origin != Origin::Root {
            let over = if bytes > MESSAGE_MAX {
                Some(format!("the request has {bytes} bytes, and may have {MESSAGE_MAX}"))
            } else if *held + bytes > BYTES_MAX {
                Some(format!("the client's requests have {BYTES_MAX} bytes already; wait for answers"))
            } else if others + bytes > ALL_MAX {
                Some(format!("the requests of all clients have {ALL_MAX} bytes already; try again"))
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

/// The length prefixes of the messages in a body: a byte that says whether it is compressed, and four of length, big-endian.
#[derive(Debug, Default)]
struct Prefixes {
    prefix: Vec<u8>,
    /// Bytes of the present message that are still to come.
    rest: usize,
}

impl Prefixes {
    const LENGTH: usize = 5;

    /// Reads the next bytes of a body; how much the messages take that begin in them.
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

/// A request's body, weighed as it comes.
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
                Some(Err(Status::deadline_exceeded(format!("the request did not come whole within {} s", WHOLE.as_secs()))))
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

/// A service of which every request is weighed.
#[derive(Debug, Clone)]
pub struct CountedService<S> {
    inner: S,
    scales: RequestBytes,
}

impl<S> CountedService<S> {
    /// Around a service.
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
        // The handler keeps the extensions until its answer is there.
        parts.extensions.insert(held_bytes.clone());
        let body = Body::new(CountedBody { body, prefixes: Prefixes::default(), held_bytes, end: Box::pin(sleep(WHOLE)) });
        self.inner.call(http::Request::from_parts(parts, body))
    }
}

/// A connection of which nothing is known counts with those of TCP.
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

    /// A body that gives its pieces and then, where it is not whole, nothing.
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
    fn each_origin_has_its_share_until_its_requests_are_done() {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
            let scales = RequestBytes::default();
            // What announces a message of so many bytes, and does not send it.
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
            // Many origins, each within its share, together do not get more than all may have.
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
    fn a_message_counts_when_its_prefix_is_there() {
        let bytes = [&[0, 0, 0, 1, 0][..], &[7; 256], &[1, 0, 0, 0, 0], &[0, 0, 64, 0, 0], &[9; 3]].concat();
        for size in [1, 2, 4, 5, 6, 300] {
            let mut prefixes = Prefixes::default();
            let all: usize = bytes.chunks(size).map(|chunk| prefixes.announced(chunk)).sum();
            assert_eq!(all, 256 + (4 << 20), "{size}");
            assert_eq!(prefixes.rest, (4 << 20) - 3);
        }
    }

    #[test]
    fn a_request_that_does_not_come_whole_ends() {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
            let mut slow = counted(&RequestBytes::default(), Origin::Tcp, Pieces(Vec::new(), false), Duration::from_millis(20));
            assert_eq!(read(&mut slow).await, Err(tonic::Code::DeadlineExceeded));
        });
    }
}
