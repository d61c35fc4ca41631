//! Number types of files of rows, their conversion, and the layout of the rows.

use half::f16;

/// Interpretation of the bytes of an array element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ElementKind {
    Bool,
    Float,
    Signed,
    Unsigned,
}

/// Element type of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dtype {
    kind: ElementKind,
    /// Size of a number in bytes.
    pub(crate) size: usize,
    pub(crate) big_endian: bool,
}

/// Layout of the rows in a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowLayout {
    pub(crate) dtype: Dtype,
    pub(crate) rows: usize,
    /// Numbers per row.
    pub(crate) columns: usize,
    /// Whether each row begins with its number of columns, as a little-endian i32.
    pub(crate) is_counted: bool,
}

impl Dtype {
    pub(crate) const F32: Self = Self { kind: ElementKind::Float, size: 4, big_endian: false };
    pub(crate) const I32: Self = Self { kind: ElementKind::Signed, size: 4, big_endian: false };
    pub(crate) const U8: Self = Self { kind: ElementKind::Unsigned, size: 1, big_endian: false };

    /// Parses the value of `descr` in a header.
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
            "b1" => (ElementKind::Bool, 1),
            "f2" => (ElementKind::Float, 2),
            "f4" => (ElementKind::Float, 4),
            "f8" => (ElementKind::Float, 8),
            "i1" => (ElementKind::Signed, 1),
            "i2" => (ElementKind::Signed, 2),
            "i4" => (ElementKind::Signed, 4),
            "i8" => (ElementKind::Signed, 8),
            "u1" => (ElementKind::Unsigned, 1),
            "u2" => (ElementKind::Unsigned, 2),
            "u4" => (ElementKind::Unsigned, 4),
            "u8" => (ElementKind::Unsigned, 8),
            _ => return Err(unknown()),
        };
        Ok(Self { kind, size, big_endian: order == ">" })
    }

    /// Reports whether elements of this type can be ids. Booleans cannot.
    pub(crate) fn is_integer(self) -> bool {
        matches!(self.kind, ElementKind::Signed | ElementKind::Unsigned)
    }

    /// Decodes an integer from little-endian `bytes`.
    pub(crate) fn integer(self, bytes: &[u8]) -> i128 {
        let negative = self.kind == ElementKind::Signed && bytes.last().is_some_and(|&byte| byte >= 0x80);
        let mut wide = [if negative { 0xFF } else { 0 }; 16];
        wide[..bytes.len()].copy_from_slice(bytes);
        i128::from_le_bytes(wide)
    }

    /// Decodes a number from little-endian `bytes` as an f64, for an error message.
    pub(crate) fn wide(self, bytes: &[u8]) -> f64 {
        match (self.kind, bytes) {
            (ElementKind::Float, &[a, b]) => f16::from_le_bytes([a, b]).to_f64(),
            (ElementKind::Float, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]).into(),
            (ElementKind::Float, &[a, b, c, d, e, f, g, h]) => f64::from_le_bytes([a, b, c, d, e, f, g, h]),
            _ => self.integer(bytes) as f64,
        }
    }

    /// Decodes a number from little-endian `bytes` as the nearest f32.
    pub(crate) fn narrow(self, bytes: &[u8]) -> f32 {
        match (self.kind, bytes) {
            (ElementKind::Bool, bytes) => f32::from(u8::from(bytes != [0])),
            // Converted directly, because a conversion via f64 rounds twice.
            (ElementKind::Signed | ElementKind::Unsigned, bytes) => self.integer(bytes) as f32,
            (ElementKind::Float, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (ElementKind::Float, bytes) => self.wide(bytes) as f32,
        }
    }
}
