//! Fetches images: host paths directly from disk, registries through the cache.

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::image::access::sites;
use crate::image::cache::{Blob, Cache, FetchRequest, NewImage, Reader};
use crate::image::decide::{CandidateRules, refuse_early};
use crate::image::decision::Decision;
use crate::image::error::{CacheError, ImageError};
use crate::image::found::{FoundSignatures, checked};
use crate::image::host::{HostBlob, LayoutFiles, read};
use crate::image::oci::content::{Content, content, media_type};
use crate::image::oci::layout::Layout;
use crate::image::oci::object;
use crate::image::remote::{PullWatch, Remote, Worker};
use crate::image::source::BlobSource;
use crate::image::{Images, MAX_OBJECT, Want, counters, hash};
use crate::model::bytecode::{Bytecode, PullPolicy};
use crate::model::ids::Digest;
use crate::model::reference::{Reference, RegistryReference};
use crate::model::registries::RegistryConfig;
use crate::sys::fsutil::TrustedRoot;

/// The production source of bytecode: the host's file systems, the cache, registries.
#[derive(Debug, Clone)]
pub struct LinuxImages {
    cache: Cache,
    host: PathBuf,
    configuration: PathBuf,
    worker: Worker,
    to_keep: bool,
    watch: Option<PullWatch>,
}

impl LinuxImages {
    /// `cache` is the image cache, created when it is first needed. Host paths are trusted from `host` downwards: `/`,
    /// or the directory of `--root`.
    pub fn new(cache: &Path, host: &Path) -> Self {
        Self {
            cache: Cache::new(cache),
            host: host.to_owned(),
            configuration: host.to_owned(),
            worker: Worker::Child,
            to_keep: false,
            watch: None,
        }
    }

    /// Reports what arrives from registries.
    pub fn watched(self, watch: PullWatch) -> Self {
        Self { watch: Some(watch), ..self }
    }

    /// Reads `etc`, with the configuration of the registries, below another directory.
    pub fn configured_below(self, root: &Path) -> Self {
        Self { configuration: root.to_owned(), ..self }
    }

    /// Uses another worker.
    pub fn with_worker(self, worker: Worker) -> Self {
        Self { worker, ..self }
    }

    /// For callers that fetch in order to fill the cache: a failure to store the image is an error.
    pub fn to_keep(self) -> Self {
        Self { to_keep: true, ..self }
    }

    /// The cache, for listing and removal.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    pub(crate) fn root(&self, image: &str) -> Result<TrustedRoot, ImageError> {
        TrustedRoot::at(&self.host).map_err(|source| ImageError::HostPath { image: image.to_owned(), source })
    }

    /// `file:`: the object's own digest is used as the image's, and there are no signatures.
    fn fetch_file(&self, want: &Want<'_>, image: &str, path: &Path) -> Result<Bytecode, ImageError> {
        let bytes = match read(&self.root(image)?, path, MAX_OBJECT, image)? {
            HostBlob::Bytes(bytes) => bytes,
            HostBlob::Missing => return Err(ImageError::NotFound { image: image.to_owned() }),
            HostBlob::TooLarge => {
                return Err(ImageError::TooLarge { image: image.to_owned(), part: "file", limit: MAX_OBJECT });
            }
        };
        let digest = hash(&bytes);
        let candidates = CandidateRules::new(want, image, &digest)?;
        let decision = match candidates.without_signatures() {
            Some(decision) => decision,
            None => candidates.decide(want, image, &digest, FoundSignatures::default())?,
        };
        let name = path.file_name().map(|name| object::printable(&name.to_string_lossy())).unwrap_or_default();
        object::check(&name, &bytes).map_err(|source| ImageError::Object { image: image.to_owned(), source })?;
        Ok(bytecode(want, digest, digest, bytes, decision))
    }

    fn fetch_layout(
        &self,
        want: &Want<'_>,
        image: &str,
        files: LayoutFiles,
        tag: Option<&str>,
    ) -> Result<Bytecode, ImageError> {
        let layout = Layout::open(files, image)?;
        let digest = layout.resolve(tag)?;
        let candidates = CandidateRules::new(want, image, &digest)?;
        let mut source = BlobSource::Layout(layout);
        let decision = match candidates.without_signatures() {
            Some(decision) => decision,
            None => candidates.decide(want, image, &digest, source.signatures(&digest))?,
        };
        let top = source.manifest(image, "manifest", &digest)?;
        let content = content(&mut source, image, top)?;
        let object_digest = hash(&content.object);
        Ok(bytecode(want, digest, object_digest, content.object, decision))
    }

    fn fetch_registry(&self, want: &Want<'_>, image: &str, at: &RegistryReference) -> Result<Bytecode, ImageError> {
        let cache = |source| ImageError::Cache { image: image.to_owned(), source };
        let reader = self.cache.reader().map_err(cache)?;
        let ask_first = want.pull == PullPolicy::Always && at.digest.is_none();
        let mut lacks = "it is not in the cache".to_owned();
        if let Some(reader) = reader.as_ref().filter(|_| !ask_first) {
            let pointer = match at.digest {
                Some(_) => None,
                None => reader.pointer(image).map_err(cache)?,
            };
            if let Some(digest) = at.digest.or(pointer.as_ref().map(|pointer| pointer.digest)) {
                match self.cached(want, image, &digest, reader)? {
                    Ok(bytecode) => {
                        // It only affects the order of removal from a full cache.
                        if let Err(err) = self.cache.used(&digest, pointer.as_ref(), tenant(want, &bytecode.rule)) {
                            tracing::debug!(
                                image,
                                error = &err as &dyn std::error::Error,
                                "use not recorded in the image cache"
                            );
                        }
                        return Ok(bytecode);
                    }
                    Err(why) => lacks = why,
                }
            }
        }
        if want.pull == PullPolicy::Never {
            return Err(ImageError::NotCached { image: image.to_owned(), problem: lacks, pull: want.pull });
        }
        let again = || {
            let Some(reader) = self.cache.reader().map_err(cache)? else { return Ok(None) };
            let digest = match at.digest {
                Some(digest) => Some(digest),
                None => reader.resolve(image).map_err(cache)?,
            };
            let Some(digest) = digest else { return Ok(None) };
            self.cached(want, image, &digest, &reader).map(Result::ok)
        };
        let user_env = want.registries.user_env.is_some();
        let fetch_request = FetchRequest { image, policy: want.policy, rules: want.rules, deadline: want.deadline, user_env };
        self.cache.fetch_once(fetch_request, again, || {
            self.note(image, self.cache.clear_leftovers())?;
            let pulled = self.pull(want, image, at, reader.as_ref());
            counters::pulled(image, &pulled);
            pulled
        })
    }

    /// Answers from the cache, or returns what the cache lacks.
    fn cached(
        &self,
        want: &Want<'_>,
        image: &str,
        digest: &Digest,
        reader: &Reader<'_>,
    ) -> Result<Result<Bytecode, String>, ImageError> {
        let cache = |source| ImageError::Cache { image: image.to_owned(), source };
        let Some(record) = reader.record(digest).map_err(cache)? else { return Ok(Err("it is not in the cache".to_owned())) };
        let candidates = CandidateRules::new(want, image, digest)?;
        let known_of = |rule: &str| record.verdict(rule, want.policy);
        let kept = || record.signatures(reader).map_err(cache);
        let Some(decision) = candidates.recall(want, image, digest, known_of, kept)? else {
            return Ok(Err("the cache has no verdict of this policy about it".to_owned()));
        };
        if decision.new {
            self.note(image, self.cache.add_decision(digest, want.policy, &decision))?;
        }
        match reader.blob(&record.object).map_err(cache)? {
            Blob::Whole(object) => Ok(Ok(bytecode(want, *digest, record.object, object, decision))),
            Blob::Missing => Ok(Err("its object is no longer in the cache".to_owned())),
            Blob::Damaged(found) if want.pull == PullPolicy::Never => {
                Err(ImageError::Tampered { image: image.to_owned(), part: "cached object", expected: record.object, found })
            }
            Blob::Damaged(found) => {
                tracing::warn!(image, expected = %record.object, %found, "cached object is damaged, fetching it again");
                Ok(Err("its object is damaged".to_owned()))
            }
        }
    }

    /// A registry's repository and its mirrors, with the configured access settings.
    pub(crate) fn remote(
        &self,
        image: &str,
        at: &RegistryReference,
        registries: &RegistryConfig,
        deadline: Instant,
    ) -> Result<Remote, ImageError> {
        let sites = sites(&self.configuration, registries, at)
            .map_err(|source| ImageError::Access { image: image.to_owned(), source: Box::new(source) })?;
        Ok(Remote::open(self.worker, sites, image, deadline).watched(self.watch.clone()))
    }

    fn pull(
        &self,
        want: &Want<'_>,
        image: &str,
        at: &RegistryReference,
        reader: Option<&Reader<'_>>,
    ) -> Result<Bytecode, ImageError> {
        let mut remote = self.remote(image, at, want.registries, want.deadline)?;
        let name = match (&at.digest, &at.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.clone().unwrap_or_else(|| "latest".to_owned()),
        };
        if let Some(digest) = at.digest.filter(|_| want.rules.iter().any(|rule| !rule.signed_by.is_empty())) {
            remote.expect_signatures(&digest);
        }
        let got = remote.manifest(&name)?;
        if matches!(got, HostBlob::Missing) {
            return Err(ImageError::NotFound { image: image.to_owned() });
        }
        let top = match &at.digest {
            Some(digest) => checked(image, "manifest", digest, crate::image::MAX_MANIFEST, got)?,
            None => match got {
                HostBlob::Bytes(bytes) => bytes,
                HostBlob::Missing | HostBlob::TooLarge => {
                    let limit = crate::image::MAX_MANIFEST;
                    return Err(ImageError::TooLarge { image: image.to_owned(), part: "manifest", limit });
                }
            },
        };
        // From here on everything is by digest.
        let digest = hash(&top);
        if let Some(reader) = reader
            && want.pull == PullPolicy::Always
            && let Ok(bytecode) = self.cached(want, image, &digest, reader)?
        {
            self.note(image, self.cache.point(image, &digest, tenant(want, &bytecode.rule), want.in_use))?;
            return Ok(bytecode);
        }
        self.take(want, image, &mut BlobSource::Remote(remote, self.cache.clone()), top, digest)
    }

    /// Decides about an image whose digest is verified, extracts its object and stores everything in the cache.
    pub(crate) fn take(
        &self,
        want: &Want<'_>,
        image: &str,
        source: &mut BlobSource,
        top: Vec<u8>,
        digest: Digest,
    ) -> Result<Bytecode, ImageError> {
        let candidates = CandidateRules::new(want, image, &digest)?;
        source.expect(&top);
        let decision = match candidates.without_signatures() {
            Some(decision) => decision,
            None => candidates.decide(want, image, &digest, source.signatures(&digest))?,
        };
        let media_type = media_type(&top);
        let content = content(source, image, top).inspect_err(|_| source.keep())?;
        let object_digest = hash(&content.object);
        let Content { mut blobs, object, .. } = content;
        blobs.push(object.clone());
        let new = NewImage { digest, media_type, blobs, object: object_digest };
        let stored = self.cache.store(&new).and_then(|()| {
            if decision.new {
                self.cache.add_decision(&digest, want.policy, &decision)?;
            }
            self.cache.point(image, &digest, tenant(want, &decision.rule), want.in_use)
        });
        self.note(image, stored)?;
        Ok(bytecode(want, digest, object_digest, object, decision))
    }

    /// If the cache cannot be written, the next start is slower, but this one does not fail, unless filling the cache
    /// is its purpose.
    fn note(&self, image: &str, stored: Result<(), CacheError>) -> Result<(), ImageError> {
        match stored {
            Ok(()) => Ok(()),
            Err(source) if self.to_keep => Err(ImageError::Cache { image: image.to_owned(), source }),
            Err(err) => {
                tracing::warn!(image, error = &err as &dyn std::error::Error, "image cache not written");
                Ok(())
            }
        }
    }
}

impl Images for LinuxImages {
    fn fetch(&self, want: &Want<'_>) -> Result<Bytecode, ImageError> {
        let answer = self.get(want).and_then(|bytecode| self.settled(want, bytecode));
        counters::answered(&answer);
        answer
    }
}

impl LinuxImages {
    /// Waits for the disk if the image was fetched to fill the cache.
    pub(crate) fn settled(&self, want: &Want<'_>, bytecode: Bytecode) -> Result<Bytecode, ImageError> {
        if self.to_keep && matches!(want.reference, Reference::Registry(_)) {
            let image = want.reference.to_string();
            let settled = self.cache.settle(&image, &bytecode.digest);
            settled.map_err(|source| ImageError::Cache { image, source })?;
        }
        Ok(bytecode)
    }

    fn get(&self, want: &Want<'_>) -> Result<Bytecode, ImageError> {
        let image = want.reference.to_string();
        refuse_early(want, &image)?;
        match want.reference {
            Reference::File { path } => self.fetch_file(want, &image, path),
            Reference::Layout { path, tag } => {
                let files = LayoutFiles::directory(self.root(&image)?, path);
                self.fetch_layout(want, &image, files, tag.as_deref())
            }
            Reference::Archive { path, tag } => {
                let files = LayoutFiles::archive(&self.root(&image)?, path, &image)?;
                self.fetch_layout(want, &image, files, tag.as_deref())
            }
            Reference::Registry(at) => self.fetch_registry(want, &image, at),
        }
    }
}

/// The tenant whose share of the cache is used by an image that a rule allows.
fn tenant<'a>(want: &Want<'a>, rule: &'a str) -> &'a str {
    if want.tenant.is_empty() { rule } else { want.tenant }
}

fn bytecode(want: &Want<'_>, digest: Digest, object_digest: Digest, object: Vec<u8>, decision: Decision) -> Bytecode {
    Bytecode {
        reference: want.reference.clone(),
        digest,
        object_digest,
        object,
        rule: decision.rule,
        verdict: decision.verdict,
    }
}
