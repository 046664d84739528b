//! Who owns what, in LMDB. The only user of heed.
