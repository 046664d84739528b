use std::os::unix::fs::PermissionsExt as _;

use crate::image::cache::reader::Cache;
use crate::image::cache::record::StoredVerdict;
use crate::image::cache::record::{CacheRecord, Evidence};
use crate::image::verify::{Body, Signature};
use crate::model::bytecode::ImageVerdict;
use crate::model::ids::Digest;
use crate::model::policy::PolicyId;

/// An empty cache in a directory that it trusts.
pub(super) fn cache() -> (tempfile::TempDir, Cache) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let cache = Cache::new(&dir.path().join("cache"));
    (dir, cache)
}

fn record() -> CacheRecord {
    let digest = Digest::from_bytes([1; 32]);
    CacheRecord {
        digest,
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        top_size: 1,
        object: digest,
        blobs: vec![digest],
        size: 1,
        evidence: Vec::new(),
        verdicts: Vec::new(),
    }
}

fn policy(n: u8) -> PolicyId {
    PolicyId(Digest::from_bytes([n; 32]))
}

#[test]
fn verdicts_are_found_by_rule_and_policy_and_the_oldest_are_dropped() {
    let mut record = record();
    record.add_verdict("a", policy(1), None);
    record.add_verdict("a", policy(1), Some(ImageVerdict::Unsigned));
    record.add_verdict("a", policy(2), None);
    assert_eq!(record.verdict("a", policy(1)), Some(Some(ImageVerdict::Unsigned)));
    assert_eq!(record.verdict("a", policy(2)), Some(None));
    assert_eq!(record.verdict("a", policy(3)), None);
    assert_eq!(record.verdict("b", policy(1)), None);
    for n in 10..200 {
        record.add_verdict("a", policy(n), None);
    }
    assert_eq!(record.verdicts.len(), 64);
    assert_eq!(record.verdict("a", policy(1)), None);
    let newest = StoredVerdict { rule: "a".into(), policy: policy(199), verdict: None };
    assert_eq!(record.verdicts.last(), Some(&newest));
}

#[test]
fn stored_signatures_are_restored_unchanged() {
    let simple = Signature::of(Body::Simple { payload: b"p".to_vec(), signature: "c2ln".into(), keyless: None });
    let bundle = Signature::of(Body::Bundle(b"{}".to_vec()));
    for signature in [simple, bundle] {
        let (evidence, blob) = Evidence::of(&signature).unwrap();
        assert_eq!(evidence.signature(blob.to_vec()), signature);
    }
    assert!(Evidence::of(&Signature::of(Body::Unreadable(String::new()))).is_none());
    let mut record = record();
    for n in 0..20u8 {
        let kept = Signature::of(Body::Bundle(vec![n / 2]));
        record.add_evidence(Evidence::of(&kept).unwrap().0);
    }
    assert_eq!(record.evidence.len(), 8);
}
