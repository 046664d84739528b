//! The parent's side of the fetch child: one repository of a registry, blob by blob.

use std::os::fd::AsFd;
use std::time::Instant;

use crate::image::access::Site;
use crate::image::error::{ImageError, RemoteError};
use crate::image::fetch::protocol::{Answer, Ask, MAX_MESSAGE, Put, Referrers};
use crate::image::host::Got;
use crate::image::manifest::Document;
use crate::image::source::Found;
use crate::image::verify::Place;
use crate::image::{MAX_MANIFEST, MAX_OBJECT};
use crate::model::ids::Digest;
use crate::sys::SysError;
use crate::sys::child::{Child, Output, Role};
use crate::sys::fsutil::{read_sealed, sealed_memfd};
use crate::sys::sock::Socket;

/// Who does the network's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Worker {
    /// A confined child: our own binary in the role `fetch`. What the product uses; needs root.
    #[default]
    Child,
    /// A thread of this process, without any confinement: for tests that are not root, whose binary has no roles.
    Thread,
}

#[derive(Debug)]
enum Link {
    Child(Box<Child>),
    Thread(Socket),
}

/// A repository, wherever it is kept: its mirrors and its own place. The workers end when this is dropped.
#[derive(Debug)]
pub(crate) struct Remote {
    worker: Worker,
    places: Vec<Door>,
    /// The one that answered last, and is asked first.
    at: usize,
    image: String,
    started: Instant,
    deadline: Instant,
}

/// One host; the worker for it is started when it is needed.
#[derive(Debug)]
struct Door {
    site: Site,
    link: Option<Link>,
}

impl Remote {
    /// Says where to go. Nothing is started yet.
    pub fn open(worker: Worker, sites: Vec<Site>, image: &str, deadline: Instant) -> Self {
        let places = sites.into_iter().map(|site| Door { site, link: None }).collect();
        Self { worker, places, at: 0, image: image.to_owned(), started: Instant::now(), deadline }
    }

    /// The same without its mirrors, for those who write: they read what they change where they write it.
    pub fn own_place(mut self) -> Self {
        self.places.drain(..self.places.len().saturating_sub(1));
        self
    }

    fn connect(&self, site: &Site) -> Result<Link, ImageError> {
        let failed = |source| ImageError::Child { image: self.image.clone(), source };
        let mut link = match self.worker {
            Worker::Child => Link::Child(Box::new(Child::spawn(Role::Fetch, Output::Null).map_err(failed)?)),
            Worker::Thread => {
                let (ours, theirs) = Socket::pair().map_err(failed)?;
                std::thread::Builder::new()
                    .name("fetch".to_owned())
                    .spawn(move || crate::image::fetch::serve(&theirs))
                    .map_err(SysError::io("start", "the fetch thread"))
                    .map_err(failed)?;
                Link::Thread(ours)
            }
        };
        let left = self.deadline.saturating_duration_since(Instant::now()).as_millis();
        let patience = u64::try_from(left).unwrap_or(u64::MAX);
        let open = Ask::Open { access: Box::new(site.access.clone()), patience };
        let files = [("authorities", &site.authorities), ("identity", &site.identity)];
        let files = files.into_iter().filter_map(|(name, pem)| Some(sealed_memfd(name, pem.as_deref()?)));
        let files = files.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        self.talk(&mut link, &site.access.host, &open, &fds, 0)?;
        Ok(link)
    }

    /// Asks one place after the other, beginning with the one that answered last, until one has it. Only where all of them say so
    /// is there none; an error of one is forgotten where another has it.
    fn ask(&mut self, ask: &Ask, max: usize) -> Result<Got, ImageError> {
        let mut first = None;
        for step in 0..self.places.len() {
            let at = (self.at + step) % self.places.len();
            match self.ask_at(at, ask, &[], max) {
                Ok(Got::Missing) => {}
                Ok(got) => {
                    self.at = at;
                    return Ok(got);
                }
                Err(err @ ImageError::Timeout { .. }) => return Err(err),
                Err(err) => {
                    tracing::debug!(host = self.places[at].site.access.host, error = %err, "registry did not answer");
                    // What the image's own place says is worth more than what a mirror says.
                    if first.is_none() || at + 1 == self.places.len() {
                        first = Some(err);
                    }
                }
            }
        }
        first.map_or(Ok(Got::Missing), Err)
    }

    /// Asks one place; uploads go to the last one, which is the image's own.
    fn ask_at(&mut self, at: usize, ask: &Ask, fds: &[std::os::fd::BorrowedFd<'_>], max: usize) -> Result<Got, ImageError> {
        let mut link = match self.places[at].link.take() {
            Some(link) => link,
            None => self.connect(&self.places[at].site)?,
        };
        let got = self.talk(&mut link, &self.places[at].site.access.host, ask, fds, max);
        // One that did not keep to the protocol is not asked again.
        if !matches!(got, Err(ImageError::Child { .. } | ImageError::Timeout { .. })) {
            self.places[at].link = Some(link);
        }
        got
    }

    /// A manifest by tag or digest; nothing is checked.
    pub fn manifest(&mut self, reference: &str) -> Result<Got, ImageError> {
        self.ask(&Ask::Manifest { reference: reference.to_owned() }, MAX_MANIFEST)
    }

    /// A blob; nothing is checked.
    pub fn blob(&mut self, digest: &Digest, max: usize) -> Result<Got, ImageError> {
        self.ask(&Ask::Blob { digest: *digest, max: max.min(MAX_OBJECT) }, max)
    }

    /// Puts a blob there; `from` is another repository of the registry that may have it.
    pub fn put_blob(&mut self, digest: &Digest, from: Option<&str>, bytes: &[u8]) -> Result<Put, ImageError> {
        self.put(&Ask::PutBlob { digest: *digest, from: from.map(str::to_owned) }, bytes)
    }

    /// Puts a manifest or index there.
    pub fn put_manifest(&mut self, reference: &str, media_type: &str, bytes: &[u8]) -> Result<Put, ImageError> {
        let (reference, media_type) = (reference.to_owned(), media_type.to_owned());
        self.put(&Ask::PutManifest { reference, media_type }, bytes)
    }

    fn put(&mut self, ask: &Ask, bytes: &[u8]) -> Result<Put, ImageError> {
        let failed = |source| ImageError::Child { image: self.image.clone(), source };
        let memory = sealed_memfd("bpfman-hook-put", bytes).map_err(failed)?;
        let own = self.places.len() - 1;
        match self.ask_at(own, ask, &[memory.as_fd()], MAX_MANIFEST)? {
            Got::Bytes(json) => serde_json::from_slice(&json).map_err(|err| self.malformed(err.to_string())),
            Got::Missing | Got::TooLarge => Err(self.malformed("the answer to an upload is none".to_owned())),
        }
    }

    /// Everything in the repository that may be a signature of `digest`: the tag of cosign 2, the referrers API, and the tag
    /// that stands in for it. All three are read, whatever the others say.
    pub fn signatures(&mut self, digest: &Digest) -> Found {
        let mut found = Found { place: Place::SignatureTag, ..Found::default() };
        let tag = format!("sha256-{}", digest.hex());
        match self.document(&format!("{tag}.sig"), None) {
            Ok(Some(Document::Manifest(manifest))) if manifest.layers.is_empty() => {
                found.trouble(self.malformed("its tag holds a manifest without layers".to_owned()));
            }
            Ok(Some(Document::Manifest(manifest))) => self.collect(&manifest, &mut found),
            Ok(Some(Document::Index(_))) => found.trouble(self.malformed("its tag holds an index".to_owned())),
            Ok(None) => {}
            Err(err) => found.trouble(err),
        }
        let mut referrers = Vec::new();
        match self.listed(digest) {
            Ok(list) => {
                if list.more {
                    found.trouble(self.malformed("it is longer than we read".to_owned()));
                }
                referrers = list.digests;
            }
            Err(err) => found.trouble(err),
        }
        let in_api = referrers.len();
        match self.document(&tag, None) {
            Ok(Some(Document::Index(entries))) => referrers.extend(entries.iter().map(|entry| entry.written_digest())),
            Ok(Some(Document::Manifest(_))) => found.trouble(self.malformed("its tag holds no index".to_owned())),
            Ok(None) => {}
            Err(err) => found.trouble(err),
        }
        let in_api: std::collections::BTreeSet<String> = referrers.iter().take(in_api).cloned().collect();
        let mut seen = std::collections::BTreeSet::new();
        referrers.retain(|referrer| seen.insert(referrer.clone()));
        if referrers.len() > crate::image::source::MAX_SIGNATURES {
            found.trouble(self.malformed("it is longer than we read".to_owned()));
            referrers.truncate(crate::image::source::MAX_SIGNATURES);
        }
        for referrer in referrers {
            found.place = if in_api.contains(&referrer) { Place::Referrers } else { Place::FallbackTag };
            let Ok(at) = referrer.parse::<Digest>() else {
                found.trouble(self.malformed(format!("it names {referrer}, which is no sha256 digest")));
                continue;
            };
            match self.document(&referrer, Some(&at)) {
                Ok(Some(Document::Manifest(manifest))) => self.collect(&manifest, &mut found),
                Ok(Some(Document::Index(_)) | None) => {}
                Err(err) => found.trouble(err),
            }
        }
        found
    }

    /// What the first place lists that lists anything: a mirror that keeps no signatures must not make an image look unsigned.
    fn listed(&mut self, digest: &Digest) -> Result<Referrers, ImageError> {
        let mut trouble = None;
        for step in 0..self.places.len() {
            let at = (self.at + step) % self.places.len();
            let list = match self.ask_at(at, &Ask::Referrers { digest: *digest }, &[], MAX_MANIFEST) {
                Ok(Got::Missing) => Ok(Referrers::default()),
                Ok(Got::Bytes(json)) => serde_json::from_slice(&json).map_err(|err| self.malformed(err.to_string())),
                Ok(Got::TooLarge) => Err(self.malformed("it is too large".to_owned())),
                Err(err) => Err(err),
            };
            match list {
                Ok(list) if list.digests.is_empty() && !list.more => {}
                Ok(list) => return Ok(list),
                Err(err) => trouble = trouble.or(Some(err)),
            }
        }
        trouble.map_or_else(|| Ok(Referrers::default()), Err)
    }

    fn collect(&mut self, manifest: &crate::image::manifest::Manifest, found: &mut Found) {
        let image = self.image.clone();
        found.collect(manifest, &image, |digest| self.blob(digest, MAX_MANIFEST));
    }

    /// A parsed document by tag or, checked, by digest.
    fn document(&mut self, reference: &str, digest: Option<&Digest>) -> Result<Option<Document>, ImageError> {
        let bytes = match (self.manifest(reference)?, digest) {
            (Got::Missing, None) => return Ok(None),
            (Got::Bytes(bytes), None) => bytes,
            (Got::TooLarge, None) => return Err(self.malformed("it is too large".to_owned())),
            (got, Some(digest)) => crate::image::source::checked(&self.image, "signature", digest, MAX_MANIFEST, got)?,
        };
        Document::parse(&bytes).map(Some).map_err(|problem| self.malformed(problem))
    }

    fn talk(
        &self,
        link: &mut Link,
        host: &str,
        ask: &Ask,
        fds: &[std::os::fd::BorrowedFd<'_>],
        max: usize,
    ) -> Result<Got, ImageError> {
        let image = self.image.clone();
        let failed = |source| ImageError::Child { image: image.clone(), source };
        let socket = match link {
            Link::Child(child) => child.socket(),
            Link::Thread(socket) => socket,
        };
        // A worker that is gone already is reported by the receiving side, which knows how it ended.
        let sent = socket.send(&ask.to_bytes(), fds);
        let message = match link {
            Link::Child(child) => child.recv("an answer", MAX_MESSAGE, self.deadline),
            Link::Thread(socket) => socket.recv("an answer", MAX_MESSAGE, Some(self.deadline)).and_then(|message| {
                message.ok_or(SysError::ChildGone { role: Role::Fetch.name(), how: "it closed its socket".into() })
            }),
        };
        let message = match message {
            Ok(message) => message,
            Err(SysError::Deadline { .. }) => return Err(self.timeout(host)),
            Err(SysError::Io { source, .. }) if source.kind() == std::io::ErrorKind::TimedOut => return Err(self.timeout(host)),
            Err(err) => return Err(failed(err)),
        };
        sent.map_err(failed)?;
        let nonsense = |problem: String| failed(SysError::Message { what: "an answer", problem });
        match Answer::from_bytes(&message.bytes).map_err(nonsense)? {
            Answer::Nothing => Ok(Got::Missing),
            Answer::Failed(RemoteError::TooLarge { .. }) => Ok(Got::TooLarge),
            Answer::Failed(source) => Err(ImageError::Remote { image: image.clone(), source }),
            Answer::Bytes => {
                let [memory] = message.fds.as_slice() else { return Err(nonsense("no single file came with it".into())) };
                read_sealed(memory, "what was fetched", max).map(Got::Bytes).map_err(failed)
            }
        }
    }

    fn timeout(&self, host: &str) -> ImageError {
        let seconds = self.deadline.saturating_duration_since(self.started).as_secs();
        ImageError::Timeout { image: self.image.clone(), host: host.to_owned(), seconds }
    }

    fn malformed(&self, problem: String) -> ImageError {
        ImageError::Malformed { image: self.image.clone(), part: "list of signatures", problem }
    }
}
