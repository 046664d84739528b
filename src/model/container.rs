//! A container as its bundle's config.json and its state describe it.
