//! BPF tokens.

/// Why a token could not be minted.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {}
