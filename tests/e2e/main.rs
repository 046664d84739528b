//! Tests with real container runtimes. They need root and the runtimes, and fail without them.
