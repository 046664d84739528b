//! What parent and fetch child say to each other: one JSON message each way, bytes beside it in sealed memory.

use serde::{Deserialize, Serialize};

use crate::image::error::RemoteError;
use crate::model::ids::Digest;

/// The most that one message may hold; the bytes themselves travel in memory files.
pub(crate) const MAX_MESSAGE: usize = 16 << 10;

/// The parent's questions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub(crate) enum Ask {
    /// Which repository the following are about. A file with PEM certificate authorities may come along.
    Open {
        /// `ghcr.io`, `127.0.0.1:5000`
        host: String,
        /// `acme/probes`
        repository: String,
        /// True for plain http.
        http: bool,
    },
    /// A manifest or index by tag or digest.
    Manifest {
        /// The tag or digest.
        reference: String,
    },
    /// A blob.
    Blob {
        /// Which.
        digest: Digest,
        /// More bytes than these are an error.
        max: usize,
    },
    /// The digests of the manifests that refer to an image, by the referrers API: a [`Referrers`] as JSON. Nothing where the
    /// registry does not have that API.
    Referrers {
        /// The image.
        digest: Digest,
    },
}

/// The child's answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", content = "why", rename_all = "snake_case")]
pub(crate) enum Answer {
    /// The bytes are in the file that comes along.
    Bytes,
    /// Done, or: the registry says that there is no such thing.
    Nothing,
    /// It could not be established.
    Failed(RemoteError),
}

/// What the referrers API lists.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Referrers {
    /// Digests as the registry wrote them.
    pub digests: Vec<String>,
    /// True where there are more than were read.
    pub more: bool,
}

impl Ask {
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and numbers are JSON")
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|err| err.to_string())
    }
}

impl Answer {
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and numbers are JSON")
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|err| err.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_way() {
        let digest = Digest::from_bytes([7; 32]);
        for ask in [
            Ask::Open { host: "h:1".into(), repository: "a/b".into(), http: true },
            Ask::Manifest { reference: "v1".into() },
            Ask::Blob { digest, max: 5 },
            Ask::Referrers { digest },
        ] {
            assert_eq!(Ask::from_bytes(&ask.to_bytes()), Ok(ask));
        }
        let failed = RemoteError::Status { host: "h".into(), what: "w".into(), status: 500, message: "m".into() };
        for answer in [Answer::Bytes, Answer::Nothing, Answer::Failed(failed)] {
            assert_eq!(Answer::from_bytes(&answer.to_bytes()), Ok(answer));
        }
        assert!(Answer::from_bytes(b"{\"answer\":\"other\"}").is_err());
    }
}
