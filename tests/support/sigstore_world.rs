//! A Sigstore instance in memory: a CA, a certificate transparency log, a signature log and a time stamp authority,
//! with new keys each time. It signs like cosign 2 and cosign 3, correctly or with one flaw, and needs no network.
//!
//! Every instance has the same names, and dates in the past: signatures are verified at the time that the log states.
#![allow(clippy::unwrap_used, reason = "test code: a helper that cannot go on fails its test")]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sigstore_crypto::{KeyPair, sha256};

/// 2025-06-01: the start of the ten minutes in which certificates are valid.
const SIGNED: (&str, &str) = ("250601000000Z", "250601001000Z");
const SIGNED_AT: i64 = 1_748_736_000;
/// The validity of the CA's own certificates.
const AUTHORITY: (&str, &str) = ("240101000000Z", "440101000000Z");
const MINUTE: i64 = 60;

/// The claimed signer of an image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claim<'a> {
    /// A URI.
    pub identity: &'a str,
    pub issuer: &'a str,
    /// The image's digest, `sha256:…`.
    pub digest: &'a str,
}

/// The flaw of a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// Nothing.
    None,
    /// The certificate is signed by a key other than the CA's.
    Authority,
    /// The certificate is not in a log.
    NoTimestamp,
    /// The certificate's timestamp is signed by a key other than the certificate log's.
    Timestamp,
    /// The signature is made by a key other than the certificate's.
    Signature,
    /// The promise is signed by a key other than the log's.
    Promise,
    /// The promise is missing, so that nothing states the time.
    NoPromise,
    /// The entry is not in the tree that the log signed.
    Proof,
    /// The tree is signed by a key other than the log's.
    Checkpoint,
    /// The log entry belongs to another payload.
    Entry,
    /// The entry is missing.
    NoEntry,
    /// The time of the log or of the time stamp is before the certificate's validity.
    Early,
    /// The time of the log or of the time stamp is after the certificate's validity.
    Late,
    /// The certificate names a host, but no identity.
    NoIdentity,
    /// The certificate names no issuer.
    NoIssuer,
    /// The certificate is for servers.
    Purpose,
    /// The time stamp (RFC 3161) is missing.
    NoStamp,
    /// The time stamp is signed by a key other than the time stamp authority's.
    Stamp,
    /// The time stamp belongs to another signature.
    StampOfAnother,
}

/// The annotations of a cosign 2 payload.
pub(crate) struct Attachment {
    pub payload: String,
    pub signature: String,
    pub certificate: String,
    pub chain: String,
    pub entry: String,
}

/// A statement with its signature.
struct Enveloped {
    statement: String,
    pae: Vec<u8>,
    envelope: Value,
    certificate: Vec<u8>,
    signature: String,
}

/// A CA with its logs.
pub(crate) struct Instance {
    root: Vec<u8>,
    intermediate: Vec<u8>,
    issuing: KeyPair,
    certificates: KeyPair,
    log: KeyPair,
    stamping: KeyPair,
    stamper: Vec<u8>,
    foreign: KeyPair,
}

impl Instance {
    pub fn new() -> Self {
        let key = || KeyPair::generate_ecdsa_p256().unwrap();
        let (top, issuing, stamping) = (key(), key(), key());
        let authority = |name, of: &KeyPair, length: u8, more: &[Vec<u8>]| {
            let mut extensions = vec![
                extension(BASIC_CONSTRAINTS, true, &seq(&[der(1, &[0xff]), der(2, &[length])])),
                extension(KEY_USAGE, true, &der(3, &[1, 6])),
                extension(KEY_ID, false, &der(4, &key_id(of))),
                extension(AUTHORITY_KEY_ID, false, &seq(&[der(0x80, &key_id(&top))])),
            ];
            extensions.extend_from_slice(more);
            certificate(&top, &contents("root", AUTHORITY, &common_name(name), of, &extensions))
        };
        let stamper = [
            extension(KEY_USAGE, true, &der(3, &[7, 0x80])),
            extension(KEY_PURPOSE, true, &seq(&[der(6, TIME_STAMPING)])),
            extension(KEY_ID, false, &der(4, &key_id(&stamping))),
            extension(AUTHORITY_KEY_ID, false, &seq(&[der(0x80, &key_id(&top))])),
        ];
        Self {
            stamper: certificate(&top, &contents("root", AUTHORITY, &common_name("stamper"), &stamping, &stamper)),
            stamping,
            root: authority("root", &top, 1, &[]),
            intermediate: authority(
                "intermediate",
                &issuing,
                0,
                &[extension(KEY_PURPOSE, false, &seq(&[der(6, CODE_SIGNING)]))],
            ),
            issuing,
            certificates: key(),
            log: key(),
            foreign: key(),
        }
    }

    /// trusted_root.json
    pub fn trusted_root(&self) -> String {
        let valid = json!({ "start": "2024-01-01T00:00:00Z" });
        let log = |name: &str, key: &KeyPair| {
            json!({
                "baseUrl": format!("https://{name}.test.local"),
                "hashAlgorithm": "SHA2_256",
                "publicKey": { "rawBytes": base64(&spki(key)), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": valid },
                "logId": { "keyId": base64(&log_id(key)) },
            })
        };
        let chain = |of: &Vec<u8>| [of, &self.root].map(|certificate| json!({ "rawBytes": base64(certificate) }));
        json!({
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [log("rekor", &self.log)],
            "certificateAuthorities": [{
                "subject": { "organization": "test", "commonName": "authority" },
                "uri": "https://fulcio.test.local",
                "certChain": { "certificates": chain(&self.intermediate) },
                "validFor": valid,
            }],
            "ctlogs": [log("ctfe", &self.certificates)],
            "timestampAuthorities": [{
                "subject": { "organization": "test", "commonName": "stamper" },
                "uri": "https://tsa.test.local/api/v1/timestamp",
                "certChain": { "certificates": chain(&self.stamper) },
                "validFor": valid,
            }],
        })
        .to_string()
    }

    /// Signs like cosign 3, with an entry in Rekor v1, which states the time.
    pub fn bundle(&self, claim: Claim<'_>, flaw: Flaw) -> Value {
        let Enveloped { statement, envelope, certificate, signature, .. } = self.enveloped(claim, flaw);
        let sha256 = |bytes: &[u8]| json!({ "algorithm": "sha256", "value": sha256(bytes).to_hex() });
        let logged = if flaw == Flaw::Entry { "another statement" } else { &statement };
        let body = json!({
            "apiVersion": "0.0.1",
            "kind": "dsse",
            "spec": {
                "envelopeHash": sha256(envelope.to_string().as_bytes()),
                "payloadHash": sha256(logged.as_bytes()),
                "signatures": [{ "signature": signature, "verifier": base64(pem(&certificate).as_bytes()) }],
            },
        })
        .to_string();
        let mut entry = json!({
            "logIndex": "1",
            "logId": { "keyId": base64(&log_id(&self.log)) },
            "kindVersion": { "kind": "dsse", "version": "0.0.1" },
            "integratedTime": logged_at(flaw).to_string(),
            "inclusionProof": self.proof(flaw, body.as_bytes()),
            "canonicalizedBody": base64(body.as_bytes()),
        });
        if flaw != Flaw::NoPromise {
            entry["inclusionPromise"] = json!({ "signedEntryTimestamp": self.promise(flaw, &body) });
        }
        json!({
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {
                "certificate": { "rawBytes": base64(&certificate) },
                "tlogEntries": if flaw == Flaw::NoEntry { Vec::new() } else { vec![entry] },
            },
            "dsseEnvelope": envelope,
        })
    }

    /// Signs like cosign 3, with an entry in Rekor v2, which has neither a promise nor a time, and a time stamp.
    pub fn bundle_of_rekor_2(&self, claim: Claim<'_>, flaw: Flaw) -> Value {
        let Enveloped { pae, envelope, certificate, signature, .. } = self.enveloped(claim, flaw);
        let logged = if flaw == Flaw::Entry { b"other contents" } else { &pae[..] };
        let body = json!({
            "apiVersion": "0.0.2",
            "kind": "hashedrekord",
            "spec": { "hashedRekordV002": {
                "data": { "algorithm": "SHA2_256", "digest": base64(sha256(logged).as_bytes()) },
                "signature": {
                    "content": signature,
                    "verifier": {
                        "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                        "x509Certificate": { "rawBytes": base64(&certificate) },
                    },
                },
            } },
        })
        .to_string();
        let entry = json!({
            "logIndex": "1",
            "logId": { "keyId": base64(&log_id(&self.log)) },
            "kindVersion": { "kind": "hashedrekord", "version": "0.0.2" },
            "inclusionProof": self.proof(flaw, body.as_bytes()),
            "canonicalizedBody": base64(body.as_bytes()),
        });
        let signature = if flaw == Flaw::StampOfAnother { b"another".to_vec() } else { STANDARD.decode(&signature).unwrap() };
        let stamp = json!({ "signedTimestamp": base64(&self.stamp(flaw, &signature)) });
        json!({
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {
                "certificate": { "rawBytes": base64(&certificate) },
                "tlogEntries": if flaw == Flaw::NoEntry { Vec::new() } else { vec![entry] },
                "timestampVerificationData": { "rfc3161Timestamps": if flaw == Flaw::NoStamp { vec![] } else { vec![stamp] } },
            },
            "dsseEnvelope": envelope,
        })
    }

    /// The signed envelope of cosign 3.
    fn enveloped(&self, claim: Claim<'_>, flaw: Flaw) -> Enveloped {
        const TYPE: &str = "application/vnd.in-toto+json";
        let statement = json!({
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{ "digest": { "sha256": claim.digest.strip_prefix("sha256:").unwrap() } }],
            "predicateType": "https://sigstore.dev/cosign/sign/v1",
            "predicate": {},
        })
        .to_string();
        let pae = format!("DSSEv1 {} {TYPE} {} {statement}", TYPE.len(), statement.len()).into_bytes();
        let (certificate, signature) = self.signed(claim, flaw, &pae);
        let envelope =
            json!({ "payload": base64(statement.as_bytes()), "payloadType": TYPE, "signatures": [{ "sig": signature }] });
        Enveloped { statement, pae, envelope, certificate, signature }
    }

    /// Signs like cosign 2. There is no inclusion proof.
    pub fn attachment(&self, claim: Claim<'_>, flaw: Flaw) -> Attachment {
        let payload = json!({
            "critical": {
                "identity": { "docker-reference": "" },
                "image": { "docker-manifest-digest": claim.digest },
                "type": "cosign container image signature",
            },
            "optional": null,
        })
        .to_string();
        let (certificate, signature) = self.signed(claim, flaw, payload.as_bytes());
        let logged = if flaw == Flaw::Entry { "another payload" } else { &payload };
        let body = json!({
            "apiVersion": "0.0.1",
            "kind": "hashedrekord",
            "spec": {
                "data": { "hash": { "algorithm": "sha256", "value": sha256(logged.as_bytes()).to_hex() } },
                "signature": { "content": signature, "publicKey": { "content": base64(pem(&certificate).as_bytes()) } },
            },
        })
        .to_string();
        let entry = json!({
            "SignedEntryTimestamp": self.promise(flaw, &body),
            "Payload": {
                "body": base64(body.as_bytes()),
                "integratedTime": logged_at(flaw),
                "logIndex": 1,
                "logID": hex::encode(log_id(&self.log)),
            },
        });
        let chain = pem(&self.intermediate) + &pem(&self.root);
        Attachment { payload, signature, certificate: pem(&certificate), chain, entry: entry.to_string() }
    }

    /// A certificate, and a signature by its key.
    fn signed(&self, claim: Claim<'_>, flaw: Flaw, message: &[u8]) -> (Vec<u8>, String) {
        let key = KeyPair::generate_ecdsa_p256().unwrap();
        let certificate = self.leaf(&key, claim, flaw);
        let by = if flaw == Flaw::Signature { &self.foreign } else { &key };
        (certificate, base64(&sign(by, message)))
    }

    fn leaf(&self, key: &KeyPair, claim: Claim<'_>, flaw: Flaw) -> Vec<u8> {
        let purpose = if flaw == Flaw::Purpose { SERVERS } else { CODE_SIGNING };
        let name = if flaw == Flaw::NoIdentity { 0x82 } else { 0x86 };
        let mut extensions = vec![
            extension(KEY_USAGE, true, &der(3, &[7, 0x80])),
            extension(KEY_PURPOSE, false, &seq(&[der(6, purpose)])),
            extension(KEY_ID, false, &der(4, &key_id(key))),
            extension(AUTHORITY_KEY_ID, false, &seq(&[der(0x80, &key_id(&self.issuing))])),
            extension(ALTERNATIVE_NAME, true, &seq(&[der(name, claim.identity.as_bytes())])),
        ];
        if flaw != Flaw::NoIssuer {
            extensions.push(extension(ISSUER, false, claim.issuer.as_bytes()));
            extensions.push(extension(ISSUER_TEXT, false, &der(0x0c, claim.issuer.as_bytes())));
        }
        let logged = contents("intermediate", SIGNED, &[], key, &extensions);
        if flaw != Flaw::NoTimestamp {
            extensions.push(extension(TIMESTAMPS, false, &der(4, &self.timestamps(flaw, &logged))));
        }
        let by = if flaw == Flaw::Authority { &self.foreign } else { &self.issuing };
        certificate(by, &contents("intermediate", SIGNED, &[], key, &extensions))
    }

    /// RFC 6962: a list of one signed certificate timestamp.
    fn timestamps(&self, flaw: Flaw, contents: &[u8]) -> Vec<u8> {
        let time = (SIGNED_AT as u64 * 1000).to_be_bytes();
        let length = &(contents.len() as u32).to_be_bytes()[1..];
        let issuer = sha256(&spki(&self.issuing));
        let message = [&[0, 0], &time[..], &[0, 1], issuer.as_bytes(), length, contents, &[0, 0]].concat();
        let by = if flaw == Flaw::Timestamp { &self.foreign } else { &self.certificates };
        let signature = counted(&sign(by, &message));
        counted(&counted(&[&[0], &log_id(&self.certificates)[..], &time, &[0, 0, 4, 3], &signature].concat()))
    }

    /// The log's signature over the entry and its time.
    fn promise(&self, flaw: Flaw, body: &str) -> String {
        let (body, time, log) = (base64(body.as_bytes()), logged_at(flaw), hex::encode(log_id(&self.log)));
        let message = format!(r#"{{"body":"{body}","integratedTime":{time},"logID":"{log}","logIndex":1}}"#);
        let by = if flaw == Flaw::Promise { &self.foreign } else { &self.log };
        base64(&sign(by, message.as_bytes()))
    }

    /// RFC 3161: the authority's statement of the time at which it saw the signature.
    fn stamp(&self, flaw: Flaw, signature: &[u8]) -> Vec<u8> {
        let sha256_of = |bytes: &[u8]| sha256(bytes).as_bytes().to_vec();
        let minute = match flaw {
            Flaw::Early => "20250531235900Z",
            Flaw::Late => "20250601001100Z",
            _ => "20250601000100Z",
        };
        let stamped = seq(&[
            der(2, &[1]),
            der(6, &[0x2a, 3, 4]),
            seq(&[seq(&[der(6, SHA256)]), der(4, &sha256_of(signature))]),
            der(2, &[7]),
            der(0x18, minute.as_bytes()),
        ]);
        let attributes = [
            seq(&[der(6, CONTENT_TYPE), der(0x31, &der(6, STAMP))]),
            seq(&[der(6, MESSAGE_DIGEST), der(0x31, &der(4, &sha256_of(&stamped)))]),
        ]
        .concat();
        let by = if flaw == Flaw::Stamp { &self.foreign } else { &self.stamping };
        let signer = seq(&[
            der(2, &[1]),
            seq(&[der(0x30, &common_name("root")), serial(&self.stamping)]),
            seq(&[der(6, SHA256)]),
            der(0xa0, &attributes),
            seq(&[der(6, ECDSA_SHA256)]),
            der(4, &sign(by, &der(0x31, &attributes))),
        ]);
        let signed = seq(&[
            der(2, &[3]),
            der(0x31, &seq(&[der(6, SHA256)])),
            seq(&[der(6, STAMP), der(0xa0, &der(4, &stamped))]),
            der(0xa0, &self.stamper),
            der(0x31, &signer),
        ]);
        seq(&[seq(&[der(2, &[0])]), seq(&[der(6, SIGNED_DATA), der(0xa0, &signed)])])
    }

    /// The second of two entries, and the signed root over both.
    fn proof(&self, flaw: Flaw, body: &[u8]) -> Value {
        let node = |parts: &[&[u8]]| sha256(&parts.concat()).as_bytes().to_vec();
        let sibling = node(&[&[0], b"another entry"]);
        let own = node(&[&[0], if flaw == Flaw::Proof { b"not this entry" } else { body }]);
        let root = base64(&node(&[&[1], &sibling, &own]));
        let head = format!("rekor.test.local - 1234\n2\n{root}\n");
        let by = if flaw == Flaw::Checkpoint { &self.foreign } else { &self.log };
        let signature = [&log_id(&self.log)[..4], &sign(by, head.as_bytes())].concat();
        json!({
            "logIndex": "1",
            "rootHash": root,
            "treeSize": "2",
            "hashes": [base64(&sibling)],
            "checkpoint": { "envelope": format!("{head}\n\u{2014} rekor.test.local {}\n", base64(&signature)) },
        })
    }
}

fn logged_at(flaw: Flaw) -> i64 {
    match flaw {
        Flaw::Early => SIGNED_AT - MINUTE,
        Flaw::Late => SIGNED_AT + 11 * MINUTE,
        _ => SIGNED_AT + MINUTE,
    }
}

fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

fn sign(key: &KeyPair, message: &[u8]) -> Vec<u8> {
    key.sign(message).unwrap().as_bytes().to_vec()
}

fn spki(key: &KeyPair) -> Vec<u8> {
    key.public_key_der().unwrap().as_bytes().to_vec()
}

fn log_id(key: &KeyPair) -> [u8; 32] {
    *sha256(&spki(key)).as_bytes()
}

fn key_id(key: &KeyPair) -> Vec<u8> {
    log_id(key)[..20].to_vec()
}

/// Prefixed with its length in two bytes.
fn counted(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

fn pem(certificate: &[u8]) -> String {
    let text = base64(certificate);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

// The parts of X.509 that are needed.

const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
const KEY_PURPOSE: &[u8] = &[0x55, 0x1d, 0x25];
const KEY_ID: &[u8] = &[0x55, 0x1d, 0x0e];
const AUTHORITY_KEY_ID: &[u8] = &[0x55, 0x1d, 0x23];
const ALTERNATIVE_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
/// 1.3.6.1.5.5.7.3.3
const CODE_SIGNING: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x03];
/// 1.3.6.1.5.5.7.3.1
const SERVERS: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
/// 1.3.6.1.5.5.7.3.8
const TIME_STAMPING: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x08];
/// 2.16.840.1.101.3.4.2.1
const SHA256: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];
/// 1.2.840.113549.1.7.2, and of its attributes 1.2.840.113549.1.9.3 and .4
const SIGNED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02];
const CONTENT_TYPE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x03];
const MESSAGE_DIGEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x04];
/// 1.2.840.113549.1.9.16.1.4
const STAMP: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x10, 0x01, 0x04];
/// 1.3.6.1.4.1.57264.1.1, the raw text, and 1.3.6.1.4.1.57264.1.8, a UTF8String.
const ISSUER: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0x83, 0xbf, 0x30, 0x01, 0x01];
const ISSUER_TEXT: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0x83, 0xbf, 0x30, 0x01, 0x08];
/// 1.3.6.1.4.1.11129.2.4.2
const TIMESTAMPS: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0xd6, 0x79, 0x02, 0x04, 0x02];
/// 1.2.840.10045.4.3.2
const ECDSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];

fn der(tag: u8, contents: &[u8]) -> Vec<u8> {
    let length = u16::try_from(contents.len()).unwrap().to_be_bytes();
    let length = match contents.len() {
        0..=0x7f => vec![length[1]],
        0x80..=0xff => vec![0x81, length[1]],
        _ => vec![0x82, length[0], length[1]],
    };
    [&[tag], &length[..], contents].concat()
}

fn seq(parts: &[Vec<u8>]) -> Vec<u8> {
    der(0x30, &parts.concat())
}

fn common_name(name: &str) -> Vec<u8> {
    der(0x31, &seq(&[der(6, COMMON_NAME), der(0x0c, name.as_bytes())]))
}

fn extension(oid: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let critical = if critical { der(1, &[0xff]) } else { Vec::new() };
    seq(&[der(6, oid), critical, der(4, value)])
}

/// The serial number of a key's certificate.
fn serial(key: &KeyPair) -> Vec<u8> {
    der(2, &[&[1], &key_id(key)[..8]].concat())
}

/// The signed part of a certificate.
fn contents(issuer: &str, valid: (&str, &str), subject: &[u8], key: &KeyPair, extensions: &[Vec<u8>]) -> Vec<u8> {
    seq(&[
        der(0xa0, &der(2, &[2])),
        serial(key),
        seq(&[der(6, ECDSA_SHA256)]),
        der(0x30, &common_name(issuer)),
        seq(&[der(0x17, valid.0.as_bytes()), der(0x17, valid.1.as_bytes())]),
        der(0x30, subject),
        spki(key),
        der(0xa3, &seq(extensions)),
    ])
}

fn certificate(by: &KeyPair, contents: &[u8]) -> Vec<u8> {
    seq(&[contents.to_vec(), seq(&[der(6, ECDSA_SHA256)]), der(3, &[&[0], &sign(by, contents)[..]].concat())])
}
