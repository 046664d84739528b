//! The parent's side of the fetch child: one repository of a registry, including its mirrors.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use crate::image::access::Endpoint;
use crate::image::cache::Cache;
use crate::image::error::{ImageError, RemoteError};
use crate::image::host::HostBlob;
use crate::image::prefetch::Prefetch;
use crate::image::registry::protocol::{FetchAnswer, FetchMessage, FetchReply, MAX_MESSAGE, Put, Referrers, RegistryItem};
use crate::image::{MAX_MANIFEST, MAX_OBJECT, hash};
use crate::model::ids::Digest;
use crate::sys::SysError;
use crate::sys::child::{Child, Output, Role};
use crate::sys::error::chain;
use crate::sys::fsutil::{read_sealed, sealed_memfd};
use crate::sys::sock::{Socket, SocketMessage};

/// Who does the network I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Worker {
    /// A confined child: our own binary in the role `fetch`. Used in production; needs root.
    #[default]
    Child,
    /// A thread of this process, without any confinement: for tests that do not run as root and whose binary has no
    /// roles.
    Thread,
}

#[derive(Debug)]
enum Link {
    Child(Box<Child>),
    Thread(Socket),
}

/// A repository with its mirrors and its own location. The workers end when this is dropped.
#[derive(Debug)]
pub(crate) struct Remote {
    worker: Worker,
    places: Vec<Connection>,
    /// The place that answered last; it is asked first.
    at: usize,
    pub(crate) image: String,
    started: Instant,
    deadline: Instant,
    pub(crate) prefetch: Prefetch,
    /// Bytes that were read while searching for signatures.
    pub(crate) searched: usize,
    watch: Option<PullWatch>,
}

/// Called with the image, how many bytes have arrived from the host that is being asked, and how many it has announced.
type WatchPull = dyn Fn(&str, u64, u64) + Send + Sync;

/// Called while content arrives.
#[derive(Clone)]
pub struct PullWatch(pub Arc<WatchPull>);

impl fmt::Debug for PullWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PullWatch")
    }
}

/// One host; its worker is started when it is needed.
#[derive(Debug)]
struct Connection {
    site: Endpoint,
    link: Option<Link>,
}

impl Remote {
    /// Sets up the places to ask. Nothing is started yet.
    pub fn open(worker: Worker, sites: Vec<Endpoint>, image: &str, deadline: Instant) -> Self {
        let places = sites.into_iter().map(|site| Connection { site, link: None }).collect();
        Self {
            worker,
            places,
            at: 0,
            image: image.to_owned(),
            started: Instant::now(),
            deadline,
            prefetch: Prefetch::default(),
            searched: 0,
            watch: None,
        }
    }

    /// Reports what arrives.
    pub fn watched(self, watch: Option<PullWatch>) -> Self {
        Self { watch, ..self }
    }

    /// The same without its mirrors, for writers: they must read from the place that they write to.
    pub fn own_place(mut self) -> Self {
        self.places.drain(..self.places.len().saturating_sub(1));
        self
    }

    fn connect(&self, site: &Endpoint) -> Result<Link, ImageError> {
        let failed = |source| ImageError::Child { image: self.image.clone(), source };
        let mut link = match self.worker {
            Worker::Child => Link::Child(Box::new(Child::spawn(Role::Fetch, Output::Null).map_err(failed)?)),
            Worker::Thread => {
                let (ours, theirs) = Socket::pair().map_err(failed)?;
                std::thread::Builder::new()
                    .name("fetch".to_owned())
                    .spawn(move || crate::image::registry::serve(&theirs))
                    .map_err(SysError::io("start", "the fetch thread"))
                    .map_err(failed)?;
                Link::Thread(ours)
            }
        };
        let left = self.deadline.saturating_duration_since(Instant::now()).as_millis();
        let patience = u64::try_from(left).unwrap_or(u64::MAX);
        let open = FetchMessage::Open { access: Box::new(site.access.clone()), patience, progress: self.watch.is_some() };
        let files = [("authorities", &site.authorities), ("identity", &site.identity)];
        let files = files.into_iter().filter_map(|(name, pem)| Some(sealed_memfd(name, pem.as_deref()?)));
        let files = files.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        self.talk(&mut link, &site.access.host, &open, &fds, 0)?;
        Ok(link)
    }

    /// Announces that everything of an image that is not in the cache will be requested, so that it can be fetched
    /// together with the requests before it.
    pub fn expect_image(&mut self, cache: &Cache, top: &[u8]) {
        self.prefetch.expect_image(cache, top);
    }

    /// Caches what was prefetched and not requested.
    pub fn keep_parts(&mut self) {
        self.prefetch.keep();
    }

    /// Requests one item, and with it what is expected to be requested next.
    pub(crate) fn ask(&mut self, wanted: RegistryItem) -> Result<HostBlob, ImageError> {
        if let Some(answer) = self.prefetch.take(&wanted) {
            return answer;
        }
        let beside = self.prefetch.beside(&wanted);
        let mut wants = vec![wanted];
        wants.extend(beside);
        let answers = self.ask_places(&wants);
        wants.iter().zip(&answers).for_each(|(wanted, answer)| self.prefetch.learn(wanted, answer));
        let mut answers = answers.into_iter();
        let answer = answers.next().expect("every request has an answer");
        wants.into_iter().skip(1).zip(answers).for_each(|(wanted, answer)| self.prefetch.arrived(wanted, answer));
        answer
    }

    /// Asks the places in turn, starting with the one that answered last, until one has the item. It is missing only if
    /// all of them say so; an error of one place is dropped if another has the item, and so is content with a wrong
    /// digest.
    fn ask_places(&mut self, wants: &[RegistryItem]) -> Vec<Result<HostBlob, ImageError>> {
        let mut asked: Vec<PendingAnswer> = wants.iter().map(|_| PendingAnswer::default()).collect();
        let (first, count) = (self.at, self.places.len());
        let mut answered = None;
        for step in 0..count {
            let (at, last) = ((first + step) % count, step + 1 == count);
            let open: Vec<usize> = (0..wants.len()).filter(|nth| asked[*nth].settled.is_none()).collect();
            if open.is_empty() {
                break;
            }
            let questions: Vec<RegistryItem> = open.iter().map(|nth| wants[*nth].clone()).collect();
            for (nth, answer) in open.into_iter().zip(self.read_at(at, &questions)) {
                let (want, asked) = (&wants[nth], &mut asked[nth]);
                match answer {
                    Ok(HostBlob::Missing) => {}
                    // A mirror without signatures must not make an image look unsigned, and a mirror that sends wrong
                    // content must not make it unusable.
                    Ok(got) if lists_nothing(want, &got) || (!last && is_another(want, &got)) => asked.poor = Some(got),
                    Ok(got) => {
                        if !matches!(want, RegistryItem::Referrers { .. }) {
                            answered.get_or_insert(at);
                        }
                        asked.settled = Some(Ok(got));
                    }
                    Err(err @ ImageError::Timeout { .. }) => asked.settled = Some(Err(err)),
                    Err(err) => {
                        tracing::debug!(host = self.places[at].site.access.host, error = %err, "registry did not answer");
                        // The error of the image's own registry takes precedence over a mirror's.
                        if asked.problem.is_none() || at + 1 == count {
                            asked.problem = Some(err);
                        }
                    }
                }
            }
        }
        self.at = answered.unwrap_or(first);
        let answers = asked.into_iter().zip(wants).map(|(PendingAnswer { settled, problem, poor }, want)| {
            let listed = matches!(want, RegistryItem::Referrers { .. });
            match (settled, problem, poor) {
                (Some(answer), _, _) => answer,
                // One place lists nothing, and the lists of the others are not known.
                (None, Some(err), Some(_)) if listed => Err(err),
                (None, _, Some(got)) => Ok(got),
                (None, Some(err), None) => Err(err),
                (None, None, None) => Ok(HostBlob::Missing),
            }
        });
        answers.collect()
    }

    /// Requests several items from one place; the answers are in the order of the requests.
    fn read_at(&mut self, at: usize, wants: &[RegistryItem]) -> Vec<Result<HostBlob, ImageError>> {
        let mut answers: Vec<_> = wants.iter().map(|_| None).collect();
        let read = self.at_place(at, |this, link, host| {
            this.say(link, &FetchMessage::Read { wants: wants.to_vec() }, &[])?;
            for _ in wants {
                let (nth, got) = this.hear(link, host, |nth| wants.get(nth).map(limit))?;
                if answers[nth].replace(got).is_some() {
                    return Err(this.nonsense("one request was answered twice".to_owned()));
                }
            }
            Ok(())
        });
        let mut lost = read.err();
        let answers = answers.into_iter().map(|answer| {
            answer.unwrap_or_else(|| {
                let err = lost.take().expect("only an error leaves a request without an answer");
                lost = Some(again(&err));
                Err(err)
            })
        });
        answers.collect()
    }

    /// Runs a function with the worker of one place, and starts the worker if necessary.
    fn at_place<T>(
        &mut self,
        at: usize,
        work: impl FnOnce(&Self, &mut Link, &str) -> Result<T, ImageError>,
    ) -> Result<T, ImageError> {
        let mut link = match self.places[at].link.take() {
            Some(link) => link,
            None => self.connect(&self.places[at].site)?,
        };
        let done = work(self, &mut link, &self.places[at].site.access.host);
        // A worker that violated the protocol is not used again.
        if !matches!(done, Err(ImageError::Child { .. } | ImageError::Timeout { .. })) {
            self.places[at].link = Some(link);
        }
        done
    }

    /// A manifest by tag or digest, unverified.
    pub fn manifest(&mut self, reference: &str) -> Result<HostBlob, ImageError> {
        self.ask(manifest(reference))
    }

    /// A blob, unverified.
    pub fn blob(&mut self, digest: &Digest, max: usize) -> Result<HostBlob, ImageError> {
        self.ask(RegistryItem::Blob { digest: *digest, max: max.min(MAX_OBJECT) })
    }

    /// Uploads a blob; `from` is another repository of the registry that may have it.
    pub fn put_blob(&mut self, digest: &Digest, from: Option<&str>, bytes: &[u8]) -> Result<Put, ImageError> {
        self.put(&FetchMessage::PutBlob { digest: *digest, from: from.map(str::to_owned) }, bytes)
    }

    /// Uploads a manifest or index.
    pub fn put_manifest(&mut self, reference: &str, media_type: &str, bytes: &[u8]) -> Result<Put, ImageError> {
        let (reference, media_type) = (reference.to_owned(), media_type.to_owned());
        self.put(&FetchMessage::PutManifest { reference, media_type }, bytes)
    }

    fn put(&mut self, ask: &FetchMessage, bytes: &[u8]) -> Result<Put, ImageError> {
        let failed = |source| ImageError::Child { image: self.image.clone(), source };
        let memory = sealed_memfd("bpfman-hook-put", bytes).map_err(failed)?;
        let own = self.places.len() - 1;
        let put = self.at_place(own, |this, link, host| this.talk(link, host, ask, &[memory.as_fd()], MAX_MANIFEST));
        match put? {
            HostBlob::Bytes(json) => serde_json::from_slice(&json).map_err(|err| self.malformed(err.to_string())),
            HostBlob::Missing | HostBlob::TooLarge => Err(self.malformed("the worker did not answer the upload".to_owned())),
        }
    }

    /// Sends a worker one request that is not a read.
    fn talk(
        &self,
        link: &mut Link,
        host: &str,
        ask: &FetchMessage,
        fds: &[BorrowedFd<'_>],
        max: usize,
    ) -> Result<HostBlob, ImageError> {
        self.say(link, ask, fds)?;
        self.hear(link, host, |nth| (nth == 0).then_some(max))?.1
    }

    /// Sends a request. A worker that has already exited is not an error here: the receiving side reports it, since it
    /// knows how the worker ended. Any other error means that no answer will come.
    fn say(&self, link: &mut Link, ask: &FetchMessage, fds: &[BorrowedFd<'_>]) -> Result<(), ImageError> {
        let socket = match link {
            Link::Child(child) => child.socket(),
            Link::Thread(socket) => socket,
        };
        match socket.send(&ask.to_bytes(), fds) {
            Err(SysError::Io { source, .. }) if is_gone(&source) => Ok(()),
            sent => sent.map_err(|source| self.child(source)),
        }
    }

    /// Receives one reply: the index of its request, whose size limit comes from `limit`, and the content.
    fn hear(
        &self,
        link: &mut Link,
        host: &str,
        limit: impl FnOnce(usize) -> Option<usize>,
    ) -> Result<(usize, Result<HostBlob, ImageError>), ImageError> {
        let (message, FetchReply { nth, answer }) = loop {
            let message = self.message(link, host)?;
            let reply = FetchReply::from_bytes(&message.bytes).map_err(|problem| self.nonsense(problem))?;
            match (&self.watch, &reply.answer) {
                (Some(PullWatch(watch)), FetchAnswer::Progress(arrived, announced)) => watch(&self.image, *arrived, *announced),
                _ => break (message, reply),
            }
        };
        let max = limit(nth).ok_or_else(|| self.nonsense(format!("it is for request {nth}, which was not sent")))?;
        let got = match answer {
            FetchAnswer::Nothing => Ok(HostBlob::Missing),
            FetchAnswer::Failed(RemoteError::TooLarge { .. }) => Ok(HostBlob::TooLarge),
            FetchAnswer::Failed(source) => Err(ImageError::Remote { image: self.image.clone(), source }),
            FetchAnswer::Progress(..) => return Err(self.nonsense("it reports what was not asked for".to_owned())),
            FetchAnswer::Bytes => {
                let [memory] = message.fds.as_slice() else {
                    return Err(self.nonsense("it did not come with exactly one file".to_owned()));
                };
                Ok(HostBlob::Bytes(read_sealed(memory, "what was fetched", max).map_err(|source| self.child(source))?))
            }
        };
        Ok((nth, got))
    }

    /// The next message of a worker.
    fn message(&self, link: &mut Link, host: &str) -> Result<SocketMessage, ImageError> {
        let message = match link {
            Link::Child(child) => child.recv("an answer", MAX_MESSAGE, self.deadline),
            Link::Thread(socket) => socket.recv("an answer", MAX_MESSAGE, Some(self.deadline)).and_then(|message| {
                message.ok_or(SysError::ChildGone { role: Role::Fetch.name(), how: "it closed its socket".into() })
            }),
        };
        match message {
            Ok(message) => Ok(message),
            Err(SysError::Deadline { .. }) => Err(self.timeout(host)),
            Err(SysError::Io { source, .. }) if source.kind() == std::io::ErrorKind::TimedOut => Err(self.timeout(host)),
            Err(err) => Err(self.child(err)),
        }
    }

    fn child(&self, source: SysError) -> ImageError {
        ImageError::Child { image: self.image.clone(), source }
    }

    fn nonsense(&self, problem: String) -> ImageError {
        self.child(SysError::Message { what: "an answer", problem })
    }

    fn timeout(&self, host: &str) -> ImageError {
        let seconds = self.deadline.saturating_duration_since(self.started).as_secs();
        ImageError::Timeout { image: self.image.clone(), host: host.to_owned(), seconds }
    }

    pub(crate) fn malformed(&self, problem: String) -> ImageError {
        ImageError::Malformed { image: self.image.clone(), part: "list of signatures", problem }
    }
}

/// True for the error of a send to a closed socket.
fn is_gone(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionReset)
}

/// What is known about one request while the places are asked.
#[derive(Debug, Default)]
struct PendingAnswer {
    settled: Option<Result<HostBlob, ImageError>>,
    problem: Option<ImageError>,
    /// The fallback if no place gives a better answer.
    poor: Option<HostBlob>,
}

pub(crate) fn manifest(reference: &str) -> RegistryItem {
    RegistryItem::Manifest { reference: reference.to_owned() }
}

/// The size limit of an answer, in bytes.
fn limit(want: &RegistryItem) -> usize {
    match want {
        RegistryItem::Blob { max, .. } => *max,
        RegistryItem::Manifest { .. } | RegistryItem::Referrers { .. } => MAX_MANIFEST,
    }
}

/// True for an empty list of referrers.
fn lists_nothing(want: &RegistryItem, got: &HostBlob) -> bool {
    match (want, got) {
        (RegistryItem::Referrers { .. }, HostBlob::Bytes(json)) => {
            serde_json::from_slice::<Referrers>(json).is_ok_and(|list| list.digests.is_empty() && !list.more)
        }
        _ => false,
    }
}

/// True for content that does not match the requested digest.
fn is_another(want: &RegistryItem, got: &HostBlob) -> bool {
    let HostBlob::Bytes(bytes) = got else { return false };
    match want {
        RegistryItem::Blob { digest, .. } => hash(bytes) != *digest,
        RegistryItem::Manifest { reference } => reference.parse::<Digest>().is_ok_and(|digest| hash(bytes) != digest),
        RegistryItem::Referrers { .. } => false,
    }
}

/// The same error, for another request that was lost with the first one.
fn again(err: &ImageError) -> ImageError {
    match err {
        ImageError::Timeout { image, host, seconds } => {
            ImageError::Timeout { image: image.clone(), host: host.clone(), seconds: *seconds }
        }
        ImageError::Remote { image, source } => ImageError::Remote { image: image.clone(), source: source.clone() },
        other => {
            let image = match other {
                ImageError::Child { image, .. } => image.clone(),
                _ => String::new(),
            };
            ImageError::Child { image, source: SysError::Message { what: "an answer", problem: chain(other) } }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_request_that_cannot_be_sent_is_not_waited_for() {
        let remote = Remote::open(Worker::Thread, Vec::new(), "r.example/a:1", Instant::now() + Duration::from_secs(60));
        let (ours, theirs) = Socket::pair().unwrap();
        // Larger than a message can be.
        let ask = FetchMessage::PutBlob { digest: hash(b""), from: Some("x".repeat(8 << 20)) };
        let (mut link, before) = (Link::Thread(ours), Instant::now());
        let said = remote.talk(&mut link, "r.example", &ask, &[], 0).unwrap_err();
        assert!(matches!(said, ImageError::Child { source: SysError::Io { doing: "send a message of", .. }, .. }), "{said:?}");
        // A worker that has exited is reported as such.
        drop(theirs);
        let ask = FetchMessage::PutBlob { digest: hash(b""), from: None };
        let said = remote.talk(&mut link, "r.example", &ask, &[], 0).unwrap_err();
        assert!(matches!(said, ImageError::Child { source: SysError::ChildGone { .. }, .. }), "{said:?}");
        assert!(before.elapsed() < Duration::from_secs(20));
    }
}
