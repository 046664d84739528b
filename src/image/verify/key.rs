//! Public keys as cosign writes them: PEM of a SubjectPublicKeyInfo.

use std::path::{Path, PathBuf};

use sigstore_crypto::{KeyAlgorithm, SigningScheme, VerificationKey, validate_raw_public_key};
use sigstore_types::{DerPublicKey, SignatureBytes};

use crate::image::hash;
use crate::image::verify::check::{Check, CheckFailure};
use crate::model::ids::Digest;

/// A key that a rule names.
pub(crate) struct PublicKey {
    path: PathBuf,
    /// Digest of its SubjectPublicKeyInfo, as printed by `openssl pkey -pubin -outform der | sha256sum`.
    fingerprint: Digest,
    /// One for each scheme that the key may have been used with.
    schemes: Vec<VerificationKey>,
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Key").field(&self.path).finish()
    }
}

impl PublicKey {
    /// Parses a key file; the error says what is wrong with it.
    pub fn parse(path: &Path, pem: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(pem).map_err(|_| "it is not text".to_owned())?;
        let key = DerPublicKey::from_pem(text).map_err(|err| err.to_string())?;
        let algorithm = KeyAlgorithm::from_spki(&key).map_err(|err| err.to_string())?;
        let schemes: &[SigningScheme] = match algorithm {
            KeyAlgorithm::EcdsaP256 => &[SigningScheme::EcdsaP256Sha256],
            // cosign hashes with SHA-256 for every curve, unless it is told to use the key's own algorithm.
            KeyAlgorithm::EcdsaP384 => &[SigningScheme::EcdsaP384Sha256, SigningScheme::EcdsaP384Sha384],
            KeyAlgorithm::Ed25519 => &[SigningScheme::Ed25519],
            KeyAlgorithm::Rsa => &[SigningScheme::RsaPkcs1Sha256],
            other => {
                return Err(format!("keys of type {other:?} are not supported; use ECDSA P-256 or P-384, Ed25519 or RSA"));
            }
        };
        let schemes = schemes
            .iter()
            .map(|scheme| {
                let key = VerificationKey::from_spki_with_scheme(&key, *scheme)?;
                validate_raw_public_key(*scheme, key.as_bytes())?;
                Ok(key)
            })
            .map(|key: Result<_, sigstore_crypto::Error>| key.map_err(|err| err.to_string()))
            .collect::<Result<_, _>>()?;
        Ok(Self { path: path.to_owned(), fingerprint: hash(key.as_bytes()), schemes })
    }

    /// The key file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The digest by which keys are compared.
    pub fn fingerprint(&self) -> Digest {
        self.fingerprint
    }

    /// True if `signature` was made by this key over `message`.
    pub fn signed(&self, message: &[u8], signature: &SignatureBytes) -> bool {
        self.schemes.iter().any(|scheme| scheme.verify(message, signature).is_ok())
    }
}

/// The first key that made `signature` over `message`.
pub(crate) fn signer(keys: &[PublicKey], message: &[u8], signature: &SignatureBytes) -> Option<usize> {
    keys.iter().position(|key| key.signed(message, signature))
}

/// Why no key matches.
pub(super) fn no_signer(keys: &[PublicKey]) -> CheckFailure {
    let why = match keys {
        [] => "it is signed with a key, but the rule names only identities",
        keys if keys.iter().any(|key| key.schemes.iter().any(|scheme| scheme.scheme() == SigningScheme::Ed25519)) => {
            "it is signed by another key, or over other bytes; if cosign 3 signed with an Ed25519 key, it is Ed25519ph, which is \
             not supported: sign with cosign 2, or with an ECDSA key"
        }
        _ => "it is signed by another key, or over other bytes",
    };
    CheckFailure::new(Check::Signature, why)
}
