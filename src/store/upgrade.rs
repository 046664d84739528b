//! Conversion of a store of this boot that was written with another schema: an upgrade or downgrade while containers
//! run.
//!
//! In every schema, `s` is the schema, `x` the last number, and `o` no a record in JSON. The indexes are derived from
//! the records, so they are rebuilt in the transaction that writes the new schema. The records stay as they are:
//! [`decode`](crate::model::record::decode) reads those of schema 2 too, and the next change of such a record writes it
//! in the current form. A record that does not decode, as after a downgrade, is treated as damaged: `poststop` and `gc`
//! remove the contents of its pin directory after its container has ended.

use super::txn::{INDEXES, SCHEMA_KEY, WriteTxn, container_key, index_keys};
use super::{SCHEMA, StoreError};
use crate::model::record::container_of_damaged;

impl WriteTxn<'_> {
    /// Rebuilds the indexes and writes the current schema, unless another process has done so already.
    pub(super) fn adopt_schema(&mut self) -> Result<(), StoreError> {
        if self.value(SCHEMA_KEY)? == Some(&SCHEMA.to_be_bytes()) {
            return Ok(());
        }
        for index in INDEXES {
            for key in self.keys(&[index])? {
                self.remove(&key)?;
            }
        }
        for no in self.numbers()? {
            let keys = match self.get(no) {
                Ok(record) => record.as_ref().map(index_keys).unwrap_or_default(),
                Err(StoreError::Record { .. }) => {
                    let container = self.record_bytes(no)?.and_then(container_of_damaged);
                    container.map(|id| container_key(&id, no)).into_iter().collect()
                }
                Err(error) => return Err(error),
            };
            for key in keys {
                self.insert(&key, &[])?;
            }
        }
        self.insert(SCHEMA_KEY, &SCHEMA.to_be_bytes())
    }
}
