//! What parent and fetch child say to each other: JSON messages, bytes beside them in sealed memory. A question gets one reply, several
//! things that are read at once get one each, in the order in which they arrive.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::image::access::Access;
use crate::image::error::RemoteError;
use crate::model::ids::Digest;

/// The most that one message may hold; the bytes themselves travel in memory files.
pub(crate) const MAX_MESSAGE: usize = 64 << 10;

/// The parent's questions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub(crate) enum FetchMessage {
    /// Which repository the following are about, and how it is reached.
    Open {
        /// The host; what it says comes along comes along.
        access: Box<Access>,
        /// Milliseconds until the parent gives up.
        patience: u64,
    },
    /// Several things at once: one reply for each.
    Read {
        /// Which.
        wants: Vec<RegistryItem>,
    },
    /// Puts the blob that comes along into the repository, unless it is there.
    PutBlob {
        /// Its digest, by which the registry checks it too.
        digest: Digest,
        /// Another repository of the registry that may have it already.
        from: Option<String>,
    },
    /// Puts the manifest or index that comes along into the repository: a [`Put`] as JSON.
    PutManifest {
        /// The tag or digest.
        reference: String,
        /// What it calls itself.
        media_type: String,
    },
}

/// Something to read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "read", rename_all = "snake_case")]
pub(crate) enum RegistryItem {
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

/// What became of something that was put.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Put {
    /// It was there already, or taken from another repository: its bytes did not travel.
    pub spared: bool,
    /// The registry lists it by the referrers API.
    pub listed: bool,
}

/// One thing that the child says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FetchReply {
    /// Which of the things that are read it is about; 0 for other questions.
    pub nth: usize,
    /// What came of it.
    pub answer: FetchAnswer,
}

/// The child's answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", content = "why", rename_all = "snake_case")]
pub(crate) enum FetchAnswer {
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

impl FetchMessage {
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and numbers are JSON")
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|err| err.to_string())
    }
}

impl FetchReply {
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and numbers are JSON")
    }

    /// What the child says goes into messages, and so to terminals and logs: control characters end here.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let mut value = serde_json::from_slice(bytes).map_err(|err| err.to_string())?;
        clean(&mut value);
        // The error may quote a name.
        serde_json::from_value(value).map_err(|err| err.to_string().replace(char::is_control, " "))
    }
}

/// Replaces control characters in every string of a value.
fn clean(value: &mut Value) {
    match value {
        Value::String(text) if text.contains(char::is_control) => *text = text.replace(char::is_control, " "),
        Value::Array(values) => values.iter_mut().for_each(clean),
        Value::Object(fields) => fields.values_mut().for_each(clean),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::access::HttpProxy;
    use crate::model::credentials::Credential;

    #[test]
    fn messages_survive_the_way() {
        let digest = Digest::from_bytes([7; 32]);
        let access = Box::new(Access {
            host: "h:1".into(),
            repository: "a/b".into(),
            http: true,
            credential: Some(Credential::Login { user: "u".into(), password: "secret".into() }),
            proxy: Some(HttpProxy { url: "http://u:secret@p:1".into(), not_for: "x".into() }),
            authorities: true,
            identity: false,
        });
        let open = FetchMessage::Open { access, patience: 7 };
        assert!(!format!("{open:?}").contains("secret"), "{open:?}");
        for ask in [
            open,
            FetchMessage::Read {
                wants: vec![
                    RegistryItem::Manifest { reference: "v1".into() },
                    RegistryItem::Blob { digest, max: 5 },
                    RegistryItem::Referrers { digest },
                ],
            },
            FetchMessage::PutBlob { digest, from: Some("c/d".into()) },
            FetchMessage::PutManifest { reference: "v1".into(), media_type: "m".into() },
        ] {
            assert_eq!(FetchMessage::from_bytes(&ask.to_bytes()), Ok(ask));
        }
        let failed = RemoteError::Status { host: "h".into(), what: "w".into(), status: 500, message: "m".into() };
        for answer in [FetchAnswer::Bytes, FetchAnswer::Nothing, FetchAnswer::Failed(failed)] {
            let reply = FetchReply { nth: 3, answer };
            assert_eq!(FetchReply::from_bytes(&reply.to_bytes()), Ok(reply));
        }
        assert!(FetchReply::from_bytes(b"{\"nth\":0,\"answer\":{\"answer\":\"other\"}}").is_err());
    }

    #[test]
    fn nothing_that_a_terminal_obeys_comes_out_of_an_answer() {
        let failed = RemoteError::Nonsense { host: "h\u{1b}[2J".into(), what: "w\n".into(), problem: "p\u{9b}31m".into() };
        let clean = RemoteError::Nonsense { host: "h [2J".into(), what: "w ".into(), problem: "p 31m".into() };
        let reply = |answer| FetchReply { nth: 0, answer };
        assert_eq!(
            FetchReply::from_bytes(&reply(FetchAnswer::Failed(failed)).to_bytes()),
            Ok(reply(FetchAnswer::Failed(clean)))
        );
        for unknown in ["{\"answer\":\"\\u001b[2J\"}", "{\"answer\":\"failed\",\"why\":{\"\\u001b\":1}}"] {
            let unknown = format!("{{\"nth\":0,\"answer\":{unknown}}}");
            let said = FetchReply::from_bytes(unknown.as_bytes()).unwrap_err();
            assert!(!said.contains(char::is_control), "{said:?}");
        }
    }
}
