//! Signatures over instructions, in the form that the kernel verifies: PKCS#7 (RFC 5652) signed data without the content,
//! without attributes and without certificates. The signer is named by issuer and serial number of its certificate.

mod der;

use std::fmt;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use der::{CONTEXT_0, INTEGER, NULL, OCTET_STRING, OID, SEQUENCE, SET, first, tlv};

/// pkcs-7 1 and 2: data, signedData
const DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
const SIGNED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02];
/// 2.16.840.1.101.3.4.2: id-sha256, id-sha384
const SHA256: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];
const SHA384: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02];
/// 1.2.840.10045.4.3: ecdsa-with-SHA256, ecdsa-with-SHA384
const ECDSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const ECDSA_SHA384: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03];
/// 1.2.840.113549.1.1.1: rsaEncryption
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];

/// Why a file is not a key for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProgramKeyError {
    /// Not PEM, or without a private key.
    #[error("it has no private key in PEM with BEGIN PRIVATE KEY (PKCS #8, without a password)")]
    NoKey,
    /// A key of another kind.
    #[error("its private key is neither ECDSA P-256, ECDSA P-384 nor RSA")]
    Kind,
    /// No certificate.
    #[error("it has no certificate in PEM with BEGIN CERTIFICATE")]
    NoCertificate,
    /// A certificate that cannot be read.
    #[error("its certificate is malformed")]
    Certificate,
    /// The certificate is that of another key.
    #[error("its certificate is not that of its private key")]
    OtherCertificate,
    /// The library failed.
    #[error("signing failed")]
    Sign,
}

enum Secret {
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

/// A private key for programs, with the names by which the kernel finds its certificate.
pub struct ProgramKey {
    secret: Secret,
    /// Issuer and serial number of the certificate, as it has them.
    names: Vec<u8>,
}

impl fmt::Debug for ProgramKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProgramKey").field("names", &self.names).finish_non_exhaustive()
    }
}

impl ProgramKey {
    /// Reads a file with a private key and its certificate, both in PEM.
    ///
    /// # Errors
    /// If one is missing, malformed, of another kind, or does not belong to the other.
    pub fn parse(pem: &[u8]) -> Result<Self, ProgramKeyError> {
        let key = blocks(pem, "PRIVATE KEY").into_iter().next().ok_or(ProgramKeyError::NoKey)?;
        let certificate = blocks(pem, "CERTIFICATE").into_iter().next().ok_or(ProgramKeyError::NoCertificate)?;
        let secret = if let Ok(key) = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &key) {
            Secret::P256(key)
        } else if let Ok(key) = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_ASN1_SIGNING, &key) {
            Secret::P384(key)
        } else {
            Secret::Rsa(RsaKeyPair::from_pkcs8(&key).map_err(|_| ProgramKeyError::Kind)?)
        };
        let public = match &secret {
            Secret::P256(key) | Secret::P384(key) => key.public_key().as_ref().to_vec(),
            Secret::Rsa(key) => key.public_key().as_ref().to_vec(),
        };
        let (names, subject_key) = certificate_names(&certificate).ok_or(ProgramKeyError::Certificate)?;
        if !subject_key.ends_with(&public) {
            return Err(ProgramKeyError::OtherCertificate);
        }
        Ok(Self { secret, names })
    }

    /// A signature over instructions: PKCS#7 in DER.
    ///
    /// # Errors
    /// If the library fails.
    pub fn sign(&self, instructions: &[u8]) -> Result<Vec<u8>, ProgramKeyError> {
        let random = SystemRandom::new();
        let failed = |_| ProgramKeyError::Sign;
        let (hash, algorithm, signature) = match &self.secret {
            Secret::P256(key) => {
                let signature = key.sign(&random, instructions).map_err(failed)?.as_ref().to_vec();
                (SHA256, tlv(SEQUENCE, &[&tlv(OID, &[ECDSA_SHA256])]), signature)
            }
            Secret::P384(key) => {
                let signature = key.sign(&random, instructions).map_err(failed)?.as_ref().to_vec();
                (SHA384, tlv(SEQUENCE, &[&tlv(OID, &[ECDSA_SHA384])]), signature)
            }
            Secret::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, instructions, &mut signature).map_err(failed)?;
                (SHA256, tlv(SEQUENCE, &[&tlv(OID, &[RSA]), &tlv(NULL, &[])]), signature)
            }
        };
        let version = tlv(INTEGER, &[&[1]]);
        let hash = tlv(SEQUENCE, &[&tlv(OID, &[hash])]);
        let signer =
            tlv(SEQUENCE, &[&version, &tlv(SEQUENCE, &[&self.names]), &hash, &algorithm, &tlv(OCTET_STRING, &[&signature])]);
        let content = tlv(SEQUENCE, &[&tlv(OID, &[DATA])]);
        let signed = tlv(SEQUENCE, &[&version, &tlv(SET, &[&hash]), &content, &tlv(SET, &[&signer])]);
        Ok(tlv(SEQUENCE, &[&tlv(OID, &[SIGNED_DATA]), &tlv(CONTEXT_0, &[&signed])]))
    }
}

/// The contents of the blocks with a label in a PEM file (RFC 7468); blocks that are malformed are left out.
pub fn blocks(pem: &[u8], label: &str) -> Vec<Vec<u8>> {
    let text = String::from_utf8_lossy(pem);
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let bodies = text.split(begin.as_str()).skip(1).filter_map(|rest| Some(rest.split_once(end.as_str())?.0));
    bodies.filter_map(|body| STANDARD.decode(body.split_whitespace().collect::<String>()).ok()).collect()
}

/// Issuer and serial number of a certificate, encoded, in the order of a signature; and its subject's key.
fn certificate_names(certificate: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let (SEQUENCE, whole, ..) = first(certificate)? else { return None };
    let (SEQUENCE, signed, ..) = first(whole)? else { return None };
    // The version is optional.
    let rest = match first(signed)? {
        (CONTEXT_0, _, _, rest) => rest,
        _ => signed,
    };
    let (INTEGER, _, serial, rest) = first(rest)? else { return None };
    let (SEQUENCE, _, _, rest) = first(rest)? else { return None };
    let (SEQUENCE, _, issuer, rest) = first(rest)? else { return None };
    // Validity and subject.
    let (SEQUENCE, _, _, rest) = first(rest)? else { return None };
    let (SEQUENCE, _, _, rest) = first(rest)? else { return None };
    let (SEQUENCE, key, ..) = first(rest)? else { return None };
    Some(([issuer, serial].concat(), key))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::path::Path;
    use std::process::{Command, Stdio};

    use super::*;

    fn openssl(directory: &Path, arguments: &str, input: &[u8]) -> Vec<u8> {
        let mut child = Command::new("openssl")
            .args(arguments.split_whitespace())
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let done = child.wait_with_output().unwrap();
        assert!(done.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&done.stderr));
        done.stdout
    }

    /// A file with a new key and a certificate of it.
    fn key_file(directory: &Path, new_key: &str) -> Vec<u8> {
        openssl(
            directory,
            &format!("req -new -x509 -newkey {new_key} -nodes -subj /CN=programs -days 2 -keyout k -out c"),
            b"",
        );
        ["k", "c"].map(|name| std::fs::read(directory.join(name)).unwrap()).concat()
    }

    const KEYS: [&str; 3] = ["ec -pkeyopt ec_paramgen_curve:P-256", "ec -pkeyopt ec_paramgen_curve:P-384", "rsa:2048"];

    #[test]
    fn openssl_verifies_what_is_signed_and_nothing_else() {
        for new_key in KEYS {
            let directory = tempfile::tempdir().unwrap();
            let key = ProgramKey::parse(&key_file(directory.path(), new_key)).unwrap();
            let signature = key.sign(b"instructions").unwrap();
            std::fs::write(directory.path().join("signature"), &signature).unwrap();
            let verify = "cms -verify -binary -inform DER -in signature -content /dev/stdin -certfile c -CAfile c -purpose any";
            assert_eq!(openssl(directory.path(), verify, b"instructions"), b"instructions", "{new_key}");
            let other = std::panic::catch_unwind(|| openssl(directory.path(), verify, b"instructionS"));
            assert!(other.is_err(), "{new_key}");
        }
    }

    #[test]
    fn a_key_needs_its_own_certificate() {
        let directory = tempfile::tempdir().unwrap();
        let whole = key_file(directory.path(), KEYS[0]);
        let parts = ["k", "c"].map(|name| std::fs::read(directory.path().join(name)).unwrap());
        assert_eq!(ProgramKey::parse(&parts[0]).unwrap_err(), ProgramKeyError::NoCertificate);
        assert_eq!(ProgramKey::parse(&parts[1]).unwrap_err(), ProgramKeyError::NoKey);
        let other = key_file(directory.path(), KEYS[0]);
        let mixed = [parts[0].clone(), std::fs::read(directory.path().join("c")).unwrap()].concat();
        assert_eq!(ProgramKey::parse(&mixed).unwrap_err(), ProgramKeyError::OtherCertificate);
        assert!(ProgramKey::parse(&whole).is_ok() && ProgramKey::parse(&other).is_ok());
        let edwards = key_file(directory.path(), "ed25519");
        assert_eq!(ProgramKey::parse(&edwards).unwrap_err(), ProgramKeyError::Kind);
        let certificate = blocks(&whole, "CERTIFICATE").remove(0);
        for cut in 0..certificate.len() - 1 {
            assert!(certificate_names(&certificate[..cut]).is_none(), "{cut}");
        }
    }
}
