//! Fuzz target: parses any bytes as a structure of the WAL.

use shardex::format::{
    frame::{self, Frame},
    header::SegmentHeader,
    record,
};

/// Parses the input as a segment header, a frame, or an add or remove record.
///
/// The first byte chooses the structure, so that a fuzzer reaches each.
///
/// # Panics
/// Panics if parsing panics, or if a parsed structure changes when it is encoded again.
pub fn wal_record(bytes: &[u8]) {
    let Some((&kind, bytes)) = bytes.split_first() else { return };
    match kind % 4 {
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
        _ => {
            if let Ok(documents) = record::decode_remove(bytes) {
                assert_eq!(record::encode_remove(&documents), bytes);
            }
        }
    }
}
