//! Payload of a maintenance record: work that changes shards and no posting. A replay repeats it at its LSN.

use super::{
    FormatError,
    codec::{Put as _, Reader},
};

/// Kind of the work: rewriting shards without their removed postings.
const REWRITE: u32 = 1;

/// Encodes the rewriting of shards, whose numbers ascend.
#[must_use]
pub fn encode_rewrite(shards: &[u32]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + 4 * shards.len());
    out.put_u32(REWRITE);
    out.put_u32(shards.len() as u32);
    shards.iter().for_each(|&number| out.put_u32(number));
    out
}

/// Parses a record of [`encode_rewrite`].
///
/// # Errors
/// Returns `FormatError` if the kind is unknown, if the numbers don't ascend, or if the length is not that of the numbers.
pub fn decode_rewrite(bytes: &[u8]) -> Result<Vec<u32>, FormatError> {
    let mut r = Reader::new(bytes);
    r.expect(&REWRITE.to_le_bytes())?;
    let (at, count) = (r.at(), r.u32()? as usize);
    if bytes.len() - r.at() != count.saturating_mul(4) {
        return Err(FormatError::new(at, format!("{count} shards in {} bytes", bytes.len())));
    }
    let numbers = (0..count).map(|_| r.u32()).collect::<Result<Vec<u32>, FormatError>>()?;
    match numbers.windows(2).all(|pair| pair[0] < pair[1]) {
        true => Ok(numbers),
        false => Err(FormatError::new(at, "the numbers of the shards don't ascend")),
    }
}
