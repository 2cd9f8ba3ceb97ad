//! How the states of a part are written: a checksum, and an Arrow stream.

use arrow_array::RecordBatch;
use arrow_ipc::CompressionType;
use arrow_ipc::reader::StreamReader;
use arrow_ipc::writer::{IpcWriteOptions, StreamWriter};
use arrow_schema::SchemaRef;
use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::engine::error::{EngineError, Result};

const MAGIC: &[u8; 8] = b"relance\x01";
const HEAD: usize = MAGIC.len() + 32;

/// How many bytes the mark has that says that states are too large.
pub const MARK: u64 = HEAD as u64;

/// What an object holds.
#[derive(Debug, PartialEq)]
pub enum Stored {
    States(Vec<RecordBatch>),
    /// A mark: its states are too large.
    Large,
}

/// An object of these states; of none, the mark that they are too large.
pub fn encode(states: Option<&[RecordBatch]>, schema: &SchemaRef) -> Result<Bytes> {
    let mut body = Vec::new();
    if let Some(states) = states {
        let written = IpcWriteOptions::default()
            .try_with_compression(Some(CompressionType::LZ4_FRAME))
            .and_then(|options| StreamWriter::try_new_with_options(&mut body, schema, options))
            .and_then(|mut writer| {
                states.iter().try_for_each(|batch| writer.write(batch))?;
                writer.finish()
            });
        written.map_err(|e| {
            EngineError::Internal(format!("partial aggregates could not be written: {e}"))
        })?;
    }
    let mut bytes = Vec::with_capacity(HEAD + body.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&Sha256::digest(&body));
    bytes.extend_from_slice(&body);
    Ok(bytes.into())
}

/// What `bytes` hold; `None` if they are damaged, or states of another query.
pub fn decode(bytes: &[u8], schema: &SchemaRef) -> Option<Stored> {
    let (head, body) = bytes.split_at_checked(HEAD)?;
    let sum = head.strip_prefix(MAGIC)?;
    if sum != Sha256::digest(body).as_slice() {
        return None;
    }
    if body.is_empty() {
        return Some(Stored::Large);
    }
    let reader = StreamReader::try_new(body, None).ok()?;
    if reader.schema().fields() != schema.fields() {
        return None;
    }
    reader
        .collect::<std::result::Result<_, _>>()
        .ok()
        .map(Stored::States)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::Int64Array;

    use super::*;

    fn states() -> (SchemaRef, Vec<RecordBatch>) {
        let column = Arc::new(Int64Array::from(vec![1, 2, 3])) as arrow_array::ArrayRef;
        let batch = RecordBatch::try_from_iter([("n", column)]).unwrap();
        (batch.schema(), vec![batch.clone(), batch])
    }

    #[test]
    fn what_is_written_is_read_and_what_is_damaged_is_not() {
        let (schema, batches) = states();
        let bytes = encode(Some(&batches), &schema).unwrap();
        assert_eq!(decode(&bytes, &schema), Some(Stored::States(batches)));
        for cut in [0, 5, HEAD, bytes.len() - 1] {
            assert_eq!(decode(&bytes[..cut], &schema), None, "cut at {cut}");
        }
        for at in [0, 9, HEAD, HEAD + 20, bytes.len() - 1] {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 1;
            assert_eq!(decode(&damaged, &schema), None, "damaged at {at}");
        }
        let other = Arc::new(arrow_schema::Schema::empty());
        assert_eq!(decode(&bytes, &other), None);
        let mark = encode(None, &schema).unwrap();
        assert_eq!(mark.len(), HEAD);
        assert_eq!(decode(&mark, &schema), Some(Stored::Large));
    }
}
