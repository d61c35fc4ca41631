//! The types of number that an `.npy` file may hold, and what becomes of them.

use half::f16;

/// What the bytes of an element mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bool,
    Float,
    Signed,
    Unsigned,
}

/// An array's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dtype {
    kind: Kind,
    /// Bytes of a number.
    pub(crate) size: usize,
    pub(crate) big_endian: bool,
}

impl Dtype {
    /// The type that a header's `descr` names.
    pub(crate) fn parse(descr: &str) -> Result<Self, String> {
        let unknown = || {
            format!(
                "its type {descr} is no plain number: convert it with .astype('float32') or another float or integer"
            )
        };
        let text = descr.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')).ok_or_else(unknown)?;
        let (order, rest) = match text.strip_prefix(['<', '>', '|', '=']) {
            Some(rest) => (&text[..1], rest),
            None => ("<", text),
        };
        let (kind, size) = match rest {
            "b1" => (Kind::Bool, 1),
            "f2" => (Kind::Float, 2),
            "f4" => (Kind::Float, 4),
            "f8" => (Kind::Float, 8),
            "i1" => (Kind::Signed, 1),
            "i2" => (Kind::Signed, 2),
            "i4" => (Kind::Signed, 4),
            "i8" => (Kind::Signed, 8),
            "u1" => (Kind::Unsigned, 1),
            "u2" => (Kind::Unsigned, 2),
            "u4" => (Kind::Unsigned, 4),
            "u8" => (Kind::Unsigned, 8),
            _ => return Err(unknown()),
        };
        Ok(Self { kind, size, big_endian: order == ">" })
    }

    /// Whether its numbers may be ids.
    pub(crate) fn is_integer(self) -> bool {
        matches!(self.kind, Kind::Signed | Kind::Unsigned)
    }

    /// An integer; `bytes` are little-endian.
    pub(crate) fn integer(self, bytes: &[u8]) -> i128 {
        let negative = self.kind == Kind::Signed && bytes.last().is_some_and(|&byte| byte >= 0x80);
        let mut wide = [if negative { 0xFF } else { 0 }; 16];
        wide[..bytes.len()].copy_from_slice(bytes);
        i128::from_le_bytes(wide)
    }

    /// A number as an f64, for a message; `bytes` are little-endian.
    pub(crate) fn wide(self, bytes: &[u8]) -> f64 {
        match (self.kind, bytes) {
            (Kind::Float, &[a, b]) => f16::from_le_bytes([a, b]).to_f64(),
            (Kind::Float, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]).into(),
            (Kind::Float, &[a, b, c, d, e, f, g, h]) => f64::from_le_bytes([a, b, c, d, e, f, g, h]),
            _ => self.integer(bytes) as f64,
        }
    }

    /// The nearest f32; `bytes` are little-endian.
    pub(crate) fn narrow(self, bytes: &[u8]) -> f32 {
        match (self.kind, bytes) {
            (Kind::Bool, bytes) => f32::from(u8::from(bytes != [0])),
            // Not by way of f64: that would round twice.
            (Kind::Signed | Kind::Unsigned, bytes) => self.integer(bytes) as f32,
            (Kind::Float, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (Kind::Float, bytes) => self.wide(bytes) as f32,
        }
    }
}
