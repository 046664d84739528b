//! The only code that orders effects: acquire, release, reconcile.
