//! Reads little-endian numbers from untrusted bytes and computes CRC32C.

/// Reflected polynomial of CRC32C (Castagnoli).
const POLYNOMIAL: u32 = 0x82F6_3B78;

const TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut sum = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            sum = if sum & 1 == 1 { (sum >> 1) ^ POLYNOMIAL } else { sum >> 1 };
            bit += 1;
        }
        tables[0][byte] = sum;
        byte += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[table - 1][byte];
            tables[table][byte] = (before >> 8) ^ tables[0][(before & 0xFF) as usize];
            byte += 1;
        }
        table += 1;
    }
    tables
}

/// Computes the CRC32C of `bytes`.
#[must_use]
pub fn crc(bytes: &[u8]) -> u32 {
    crc_on(0, bytes)
}

/// Extends a CRC32C: `sum` covers the preceding bytes, and the result covers these followed by `bytes`.
#[must_use]
pub fn crc_on(sum: u32, bytes: &[u8]) -> u32 {
    let mut sum = !sum;
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        let word = u64::from_le_bytes(*word) ^ u64::from(sum);
        sum = (0..8).fold(0, |folded, byte| folded ^ TABLES[7 - byte][(word >> (8 * byte)) as usize & 0xFF]);
    }
    for byte in rest {
        sum = (sum >> 8) ^ TABLES[0][(sum as u8 ^ byte) as usize];
    }
    !sum
}

/// Extends the CRC32C `sum` by `bytes`, with the four bytes at `at` taken as zeros.
#[must_use]
pub fn crc_without(sum: u32, bytes: &[u8], at: usize) -> u32 {
    let (before, after) = (bytes.get(..at).unwrap_or(bytes), bytes.get(at + 4..).unwrap_or_default());
    crc_on(crc_on(crc_on(sum, before), &[0; 4]), after)
}

/// Returns `len` bytes from `at` on; `None` if they reach past the end.
#[must_use]
pub fn part(bytes: &[u8], at: u64, len: u64) -> Option<&[u8]> {
    let end = usize::try_from(at.checked_add(len)?).ok()?;
    bytes.get(usize::try_from(at).ok()?..end)
}

fn array<const N: usize>(bytes: &[u8], at: u64) -> Option<[u8; N]> {
    part(bytes, at, N as u64)?.try_into().ok()
}

/// Reads the 16-bit number at `at`.
#[must_use]
pub fn u16_at(bytes: &[u8], at: u64) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

/// Reads the 32-bit number at `at`.
#[must_use]
pub fn u32_at(bytes: &[u8], at: u64) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

/// Reads the 64-bit number at `at`.
#[must_use]
pub fn u64_at(bytes: &[u8], at: u64) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

/// Reads the 128-bit number at `at`.
#[must_use]
pub fn u128_at(bytes: &[u8], at: u64) -> Option<u128> {
    array(bytes, at).map(u128::from_le_bytes)
}

/// Reads the single-precision number at `at`.
#[must_use]
pub fn f32_at(bytes: &[u8], at: u64) -> Option<f32> {
    array(bytes, at).map(f32::from_le_bytes)
}

/// Reads the double-precision number at `at`.
#[must_use]
pub fn f64_at(bytes: &[u8], at: u64) -> Option<f64> {
    array(bytes, at).map(f64::from_le_bytes)
}

/// Reports whether all bytes are zeros.
#[must_use]
pub fn zeros(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_castagnoli() {
        assert_eq!(crc(b"123456789"), 0xE306_9283);
        assert_eq!(crc(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc_on(crc(b"1234"), b"56789"), 0xE306_9283);
        assert_eq!(crc_without(0, b"12\xFF\xFF\xFF\xFF", 2), crc(b"12\0\0\0\0"));
    }

    #[test]
    fn nothing_is_read_past_the_end() {
        assert_eq!(u32_at(&[1, 0, 0, 0], 0), Some(1));
        assert_eq!(u32_at(&[1, 0, 0, 0], 1), None);
        assert_eq!(u64_at(&[0; 8], u64::MAX), None);
        assert_eq!(part(&[0; 8], 8, 0), Some(&[][..]));
    }
}
