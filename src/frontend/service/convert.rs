//! Between the wire and what the lifecycle understands.
