//! How much a client may have us hold: the bytes of its requests that are not done, and the time in which one has to come whole.
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

use crate::frontend::service::connection::{Origin, Peer};

/// Bytes of the requests of one origin, from their arrival until they are done: eight of the largest.
const BYTES_MAX: usize = 32 << 20;
/// From a request's headers to its last byte.
const WHOLE: Duration = Duration::from_secs(30);

/// What each origin has us hold.
#[derive(Debug, Clone, Default)]
struct Scales(Arc<Mutex<HashMap<Origin, usize>>>);

/// What one request weighs, until it is dropped.
#[derive(Debug)]
struct Weight {
    scales: Scales,
    origin: Origin,
    bytes: Mutex<usize>,
}

impl Weight {
    fn new(scales: Scales, origin: Origin) -> Self {
        Self { scales, origin, bytes: Mutex::default() }
    }

    /// False where the origin would have more than its share; root is not limited, since it could stop the service as well.
    fn add(&self, bytes: usize) -> bool {
        let mut all = self.scales.0.lock().unwrap_or_else(PoisonError::into_inner);
        let held = all.entry(self.origin).or_default();
        if self.origin != Origin::Uid(0) && *held + bytes > BYTES_MAX {
            return false;
        }
        *held += bytes;
        *self.bytes.lock().unwrap_or_else(PoisonError::into_inner) += bytes;
        true
    }
}

impl Drop for Weight {
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
struct Weighed {
    body: Body,
    weight: Arc<Weight>,
    end: Pin<Box<Sleep>>,
}

impl HttpBody for Weighed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                Poll::Ready(Some(if self.weight.add(bytes) {
                    Ok(frame)
                } else {
                    Err(Status::resource_exhausted(format!(
                        "the client's requests have {BYTES_MAX} bytes already; wait for answers"
                    )))
                }))
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
pub struct Scaled<S> {
    inner: S,
    scales: Scales,
}

impl<S> Scaled<S> {
    /// Around a service.
    pub fn new(inner: S) -> Self {
        Self { inner, scales: Scales::default() }
    }
}

impl<S: NamedService> NamedService for Scaled<S> {
    const NAME: &'static str = S::NAME;
}

impl<S: Service<http::Request<Body>>> Service<http::Request<Body>> for Scaled<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> S::Future {
        let (mut parts, body) = request.into_parts();
        let weight = Arc::new(Weight::new(self.scales.clone(), origin(&parts.extensions)));
        // The handler keeps the extensions until its answer is there.
        parts.extensions.insert(weight.clone());
        let body = Body::new(Weighed { body, weight, end: Box::pin(sleep(WHOLE)) });
        self.inner.call(http::Request::from_parts(parts, body))
    }
}

/// A connection that shows nobody counts with the strangers of TCP.
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

    fn weighed(scales: &Scales, origin: Origin, body: Pieces, within: Duration) -> Weighed {
        let weight = Arc::new(Weight::new(scales.clone(), origin));
        Weighed { body: Body::new(body), weight, end: Box::pin(sleep(within)) }
    }

    async fn read(body: &mut Weighed) -> Result<usize, tonic::Code> {
        let mut read = 0;
        while let Some(frame) = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await {
            read += frame.map_err(|status| status.code())?.data_ref().map_or(0, Bytes::len);
        }
        Ok(read)
    }

    #[test]
    fn each_origin_has_its_share_until_its_requests_are_done() {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
            let scales = Scales::default();
            let piece = |bytes| Pieces(vec![Bytes::from(vec![0; bytes]); 2], true);
            let long = Duration::from_secs(60);
            let mut first = weighed(&scales, Origin::Uid(7), piece(BYTES_MAX / 2), long);
            assert_eq!(read(&mut first).await, Ok(BYTES_MAX));
            let mut second = weighed(&scales, Origin::Uid(7), piece(1), long);
            assert_eq!(read(&mut second).await, Err(tonic::Code::ResourceExhausted));
            let mut other = weighed(&scales, Origin::Tcp, piece(1), long);
            assert_eq!(read(&mut other).await, Ok(2));
            let mut root = weighed(&scales, Origin::Uid(0), piece(BYTES_MAX), long);
            assert_eq!(read(&mut root).await, Ok(2 * BYTES_MAX));
            drop((first, second));
            let mut third = weighed(&scales, Origin::Uid(7), piece(1), long);
            assert_eq!(read(&mut third).await, Ok(2));
            drop((other, root, third));
            assert!(scales.0.lock().unwrap().is_empty());
        });
    }

    #[test]
    fn a_request_that_does_not_come_whole_ends() {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
            let mut slow = weighed(&Scales::default(), Origin::Tcp, Pieces(Vec::new(), false), Duration::from_millis(20));
            assert_eq!(read(&mut slow).await, Err(tonic::Code::DeadlineExceeded));
        });
    }
}
