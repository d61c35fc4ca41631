//! Checks of the fuzz targets as plain functions: `cargo test` can replay a corpus file.

mod backup;
mod crash;
mod open_image;
pub mod seal;
mod wal_record;

pub use backup::backup;
pub use crash::{case_of, crash};
pub use open_image::{Hostile, VALUES, open_image, serve};
pub use wal_record::wal_record;

/// Fuzz target: checks one input and panics on a fault.
pub type Target = fn(&[u8]);

/// Fuzz targets by name.
pub const TARGETS: [(&str, Target); 4] =
    [("wal_record", wal_record), ("crash", crash), ("open_image", open_image), ("backup", backup)];

/// Reader that takes numbers off the front of an input. After its end all numbers are 0.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// Takes a byte modulo `n`.
    fn below(&mut self, n: u64) -> u64 {
        u64::from(self.byte()) % n
    }
}
