//! A call that is not made: what the caller gets, and why.

use crate::lifecycle::proxy_account::AccountError;
use crate::model::metrics_table::ProxyReason;
use crate::model::proxy::ProxyRefusal;
use crate::sys::Errno;
use crate::sys::error::chain;

/// A call that is not made, or that the kernel refused.
#[derive(Debug)]
pub(super) struct FailedCall {
    /// What the caller gets.
    pub(super) errno: i32,
    /// Why, if it was we who refused it.
    pub(super) refused: Option<RefusedCall>,
}

/// Why we refused a call.
#[derive(Debug)]
pub(super) struct RefusedCall {
    /// The part that refused it.
    pub(super) reason: ProxyReason,
    /// For the administrator, and for the caller's log.
    pub(super) sentence: String,
}

impl From<ProxyRefusal> for FailedCall {
    fn from(refusal: ProxyRefusal) -> Self {
        let refused = RefusedCall { reason: refusal.reason(), sentence: refusal.to_string() };
        Self { errno: refusal.errno().0, refused: Some(refused) }
    }
}

impl From<Errno> for FailedCall {
    fn from(errno: Errno) -> Self {
        Self { errno: errno.raw_os_error(), refused: None }
    }
}

impl From<AccountError> for FailedCall {
    fn from(error: AccountError) -> Self {
        ProxyRefusal::NoGrant { why: chain(&error) }.into()
    }
}

/// A place or a program that is not the container's.
pub(super) fn foreign(what: &'static str, why: &str) -> FailedCall {
    ProxyRefusal::Foreign { what, why: why.to_owned() }.into()
}
