//! Fuzz target: parses any bytes as a structure of the WAL, or as a bucket of payloads.

use shardex::{
    ShardexConfig,
    format::{
        batch::{BatchRecord, PayloadChange, RecordRow},
        bucket,
        frame::{self, Frame},
        geometry::IndexParams,
        header::SegmentHeader,
        record,
    },
};

/// Parses the input as a segment header, a frame, a record of either version, or a bucket.
///
/// The first byte chooses the structure, so that a fuzzer reaches each.
///
/// # Panics
/// Panics if parsing panics, or if a parsed structure changes when it is encoded again.
pub fn wal_record(bytes: &[u8]) {
    let Some((&kind, bytes)) = bytes.split_first() else { return };
    match kind % 6 {
        0 => {
            if let Ok(header) = SegmentHeader::decode(bytes) {
                assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
            }
        }
        1 => {
            let seed = frame::seed(1, 1);
            // The checksum is corrected, because no random frame would pass it.
            let mut mended = bytes.to_vec();
            let size = Frame::claimed_size(bytes);
            if let Some(frame) = mended.get_mut(..size) {
                shardex::format::codec::seal(frame, 0, seed);
            }
            if let Ok((frame, payload)) = Frame::decode(&mended, seed) {
                let mut again = Vec::new();
                frame.encode(seed, [payload], &mut again);
                assert_eq!(Frame::decode(&again, seed), Ok((frame, payload)));
                assert!(frame.size() <= mended.len());
            }
        }
        2 => {
            let dimension = usize::from(bytes.get(4).copied().unwrap_or(0));
            if let Ok(postings) = record::decode_add(bytes, dimension) {
                let mut again = record::encode_add_keys(&postings, dimension);
                postings.iter().for_each(|p| again.extend(p.vector.iter().flat_map(|x| x.to_le_bytes())));
                assert_eq!(again.len(), bytes.len());
                assert_eq!(again[8..], bytes[8..]);
            }
        }
        3 => {
            if let Ok(documents) = record::decode_remove(bytes) {
                assert_eq!(record::encode_remove(&documents), bytes);
            }
        }
        4 => batch_record(bytes),
        _ => {
            let config = ShardexConfig::new("fuzz").vector_size(3);
            let geometry = IndexParams::of(&config, 512, 64);
            if let Ok(entries) = bucket::decode_entries(bytes, &geometry) {
                assert_eq!(bucket::encode_entries(&entries), bytes);
            }
            if bytes.starts_with(b"SHPB")
                && let Ok((entries, next)) = bucket::decode_part(bytes, 1, 0)
            {
                assert_eq!(bucket::encode_part(1, 0, entries, next, 2), bytes);
            }
        }
    }
}

/// Parses the input as a record of version 2, and encodes it again.
fn batch_record(bytes: &[u8]) {
    let dimension = usize::from(bytes.get(8).copied().unwrap_or(0));
    if let Ok(batch) = BatchRecord::decode(bytes, dimension) {
        let postings = batch.postings.iter().map(|given| RecordRow { given, tags: given.tags }).collect();
        let payload = |change: &PayloadChange<Vec<u8>>| PayloadChange {
            document: change.document,
            payload: change.payload.clone(),
        };
        let again = BatchRecord {
            unix_ms: batch.unix_ms,
            documents: batch.documents.clone(),
            keys: batch.keys.clone(),
            postings,
            tags: batch.tags.clone(),
            payloads: batch.payloads.iter().map(payload).collect(),
            cursor: batch.cursor.clone(),
        };
        let mut encoded = again.encode_head(dimension);
        again.bulk().for_each(|part| encoded.extend_from_slice(part));
        // NaN is not equal to itself, so bytes are compared.
        assert_eq!(encoded, bytes);
    }
}
