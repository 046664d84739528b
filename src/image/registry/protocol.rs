//! Messages between the parent and the fetch child: JSON, with content beside them in sealed memory. A request gets one
//! reply; a request for several items gets one for each, in the order in which they arrive.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::image::access::Access;
use crate::image::error::RemoteError;
use crate::model::ids::Digest;

/// The size limit of one message; content travels in memory files.
pub(crate) const MAX_MESSAGE: usize = 64 << 10;

/// Requests of the parent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub(crate) enum FetchMessage {
    /// Selects the repository of the following requests, and how to reach it.
    Open {
        /// The host; it says which files are attached.
        access: Box<Access>,
        /// Milliseconds until the parent's deadline.
        patience: u64,
        /// True if the parent wants to know how much has arrived, while it waits.
        progress: bool,
    },
    /// Reads several items: one reply for each.
    Read {
        /// The items.
        wants: Vec<RegistryItem>,
    },
    /// Uploads the attached blob, unless the repository has it.
    PutBlob {
        /// Its digest, which the registry checks too.
        digest: Digest,
        /// Another repository of the registry that may have it already.
        from: Option<String>,
    },
    /// Uploads the attached manifest or index: the reply is a [`Put`] as JSON.
    PutManifest {
        /// The tag or digest.
        reference: String,
        /// Its media type.
        media_type: String,
    },
}

/// An item to read.
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
        /// Its digest.
        digest: Digest,
        /// The size limit; a larger blob is an error.
        max: usize,
    },
    /// The digests of the manifests that refer to an image, from the referrers API: a [`Referrers`] as JSON. Nothing if
    /// the registry does not have that API.
    Referrers {
        /// The image.
        digest: Digest,
    },
}

/// The result of an upload.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Put {
    /// It existed already or was mounted from another repository, so its bytes were not sent.
    pub spared: bool,
    /// The registry lists it in the referrers API.
    pub listed: bool,
}

/// One reply of the child.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FetchReply {
    /// The index of the item in its request; 0 for other requests.
    pub nth: usize,
    /// The result.
    pub answer: FetchAnswer,
}

/// Results of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", content = "why", rename_all = "snake_case")]
pub(crate) enum FetchAnswer {
    /// The bytes are in the attached file.
    Bytes,
    /// Done; or the registry does not have the item.
    Nothing,
    /// The request failed.
    Failed(RemoteError),
    /// No answer yet; how many bytes have arrived from this host, and how many are announced.
    Progress(u64, u64),
}

/// A list from the referrers API.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Referrers {
    /// Digests as the registry sent them.
    pub digests: Vec<String>,
    /// True if there are more than were read.
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

    /// The child's messages reach terminals and logs, so control characters are removed here.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let mut value = serde_json::from_slice(bytes).map_err(|err| err.to_string())?;
        clean(&mut value);
        // The error may quote a string of the message.
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
    fn messages_survive_a_round_trip() {
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
        let open = FetchMessage::Open { access, patience: 7, progress: true };
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
        for answer in [FetchAnswer::Bytes, FetchAnswer::Nothing, FetchAnswer::Failed(failed), FetchAnswer::Progress(1, 2)] {
            let reply = FetchReply { nth: 3, answer };
            assert_eq!(FetchReply::from_bytes(&reply.to_bytes()), Ok(reply));
        }
        assert!(FetchReply::from_bytes(b"{\"nth\":0,\"answer\":{\"answer\":\"other\"}}").is_err());
    }

    #[test]
    fn control_characters_are_removed_from_answers() {
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
