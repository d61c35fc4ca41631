//! Id of a document, and the forms in which it is written.

use core::{fmt, str::FromStr};

/// Id of a document: 128 bits, chosen by the caller.
///
/// A document may have any number of postings. Removing the document removes all of them.
///
/// An id is printed in decimal. [`FromStr`] reads three forms: decimal digits, `0x` followed by 1 to 32 hexadecimal
/// digits, and a UUID of 36 characters with hyphens. Hexadecimal digits and the `x` may be of either case. With the
/// feature `uuid`, ids convert to and from `uuid::Uuid`. With the feature `serde`, ids are serialised: as a decimal
/// string in human-readable formats, otherwise as a `u128`. A human-readable format may give any of the three forms, or
/// an unsigned integer.
///
/// ```
/// use shardex::DocumentId;
///
/// let id: DocumentId = "67e55044-10b1-426f-9247-bb680e5fe0c8".parse()?;
/// assert_eq!(id, "0x67e5504410b1426f9247bb680e5fe0c8".parse::<DocumentId>()?);
/// assert_eq!(id, id.to_string().parse::<DocumentId>()?);
/// # Ok::<(), shardex::ParseDocumentIdError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DocumentId(pub u128);

impl DocumentId {
    /// Returns the id of a document that is known by a name, such as a path or a URL.
    ///
    /// Definition: the first 16 of the 32 bytes of the SHA-256 hash (FIPS 180-4) of the name's UTF-8 bytes, read as a
    /// big-endian number. Nothing is added to the name, and it is not normalised. The id is the same in all versions of
    /// this crate and on all platforms. In Python it is
    /// `int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "big")`. In a shell,
    /// `0x$(printf %s "$name" | sha256sum | head -c 32)` is the hexadecimal form of it.
    ///
    /// Collisions: among `n` names, two have the same id with a probability of about n² / 2^129, which is 1.5e-15 for
    /// 10^12 names. SHA-256 has no known weakness that makes it easier to choose names that collide: it takes about 2^64
    /// hashes to find any two names with the same id, and about 2^128 to find another name with the id of a given one.
    ///
    /// Cost: hashes the name once, and allocates nothing.
    ///
    /// ```
    /// use shardex::DocumentId;
    ///
    /// assert_eq!(DocumentId::of_name("abc"), "0xba7816bf8f01cfea414140de5dae2223".parse::<DocumentId>()?);
    /// # Ok::<(), shardex::ParseDocumentIdError>(())
    /// ```
    #[must_use]
    pub fn of_name(name: &str) -> Self {
        let hash = hmac_sha256::Hash::hash(name.as_bytes());
        Self(hash[..16].iter().fold(0u128, |id, &byte| (id << 8) | u128::from(byte)))
    }
}

impl From<u128> for DocumentId {
    fn from(raw: u128) -> Self {
        Self(raw)
    }
}

impl From<u64> for DocumentId {
    fn from(raw: u64) -> Self {
        Self(raw.into())
    }
}

impl From<u32> for DocumentId {
    fn from(raw: u32) -> Self {
        Self(raw.into())
    }
}

impl From<DocumentId> for u128 {
    fn from(id: DocumentId) -> Self {
        id.0
    }
}

impl fmt::Display for DocumentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Conversion of the 128 bits of a UUID, in the order in which a UUID prints them.
#[cfg(feature = "uuid")]
impl From<uuid::Uuid> for DocumentId {
    fn from(id: uuid::Uuid) -> Self {
        Self(id.as_u128())
    }
}

/// Conversion of all 128 bits. The version and the variant of the UUID are what these bits say.
#[cfg(feature = "uuid")]
impl From<DocumentId> for uuid::Uuid {
    fn from(id: DocumentId) -> Self {
        Self::from_u128(id.0)
    }
}

/// Error of a text that is no [`DocumentId`].
///
/// To recover, correct the text at this position, or pass the id in another form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("byte {position}: expected {expected}")]
pub struct ParseDocumentIdError {
    position: usize,
    expected: &'static str,
}

impl ParseDocumentIdError {
    /// Returns the position of the first wrong byte; the length of the text if more is expected at its end.
    #[must_use]
    pub fn position(&self) -> usize {
        self.position
    }

    /// Returns a description of what was expected there, in English.
    #[must_use]
    pub fn expected(&self) -> &'static str {
        self.expected
    }
}

impl FromStr for DocumentId {
    type Err = ParseDocumentIdError;

    /// Parses an id in one of the three forms: see [`DocumentId`]. White space and signs are rejected.
    ///
    /// A text that has a hyphen at byte 8 is read as a UUID, and any other text without `0x` as decimal.
    ///
    /// # Errors
    /// Returns `ParseDocumentIdError` at the first byte that does not fit the form, or at which the number exceeds 128
    /// bits.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let id = match text.as_bytes() {
            [b'0', b'x' | b'X', digits @ ..] => parse_hexadecimal(digits),
            bytes if bytes.get(8) == Some(&b'-') => parse_hyphenated(bytes),
            bytes => parse_decimal(bytes),
        };
        id.map(Self)
    }
}

fn parse_decimal(bytes: &[u8]) -> Result<u128, ParseDocumentIdError> {
    if bytes.is_empty() {
        let expected = "an id: a decimal number, `0x` and hexadecimal digits, or a UUID";
        return Err(ParseDocumentIdError { position: 0, expected });
    }
    let mut id = 0u128;
    for (position, &byte) in bytes.iter().enumerate() {
        if !byte.is_ascii_digit() {
            let expected = "a decimal digit (`0x` begins a hexadecimal id, and a UUID is written as 8-4-4-4-12 digits)";
            return Err(ParseDocumentIdError { position, expected });
        }
        let digit = u128::from(byte - b'0');
        let longer = id.checked_mul(10).and_then(|tens| tens.checked_add(digit));
        id = longer.ok_or(ParseDocumentIdError { position, expected: "the end of a number below 2^128" })?;
    }
    Ok(id)
}

/// Parses the digits that follow `0x`.
fn parse_hexadecimal(digits: &[u8]) -> Result<u128, ParseDocumentIdError> {
    let mut id = 0;
    // At least one digit.
    for i in 0..digits.len().max(1) {
        let position = i + 2;
        if i == 32 {
            return Err(ParseDocumentIdError { position, expected: "the end of an id of 32 hexadecimal digits" });
        }
        id = append_digit(id, digits.get(i), position)?;
    }
    Ok(id)
}

/// Parses a UUID of 36 characters.
fn parse_hyphenated(bytes: &[u8]) -> Result<u128, ParseDocumentIdError> {
    let mut id = 0;
    for position in 0..36 {
        let byte = bytes.get(position);
        if ![8, 13, 18, 23].contains(&position) {
            id = append_digit(id, byte, position)?;
        } else if byte != Some(&b'-') {
            return Err(ParseDocumentIdError { position, expected: "a hyphen of the UUID" });
        }
    }
    if bytes.len() > 36 {
        return Err(ParseDocumentIdError { position: 36, expected: "the end of the UUID" });
    }
    Ok(id)
}

fn append_digit(id: u128, byte: Option<&u8>, position: usize) -> Result<u128, ParseDocumentIdError> {
    let digit = byte.and_then(|&byte| char::from(byte).to_digit(16));
    let digit = digit.ok_or(ParseDocumentIdError { position, expected: "a hexadecimal digit" })?;
    Ok((id << 4) | u128::from(digit))
}

#[cfg(feature = "serde")]
impl serde::Serialize for DocumentId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // JSON numbers of 128 bits are rounded by most readers.
        if serializer.is_human_readable() { serializer.collect_str(self) } else { serializer.serialize_u128(self.0) }
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for DocumentId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            deserializer.deserialize_any(IdVisitor)
        } else {
            deserializer.deserialize_u128(IdVisitor)
        }
    }
}

#[cfg(feature = "serde")]
struct IdVisitor;

#[cfg(feature = "serde")]
impl serde::de::Visitor<'_> for IdVisitor {
    type Value = DocumentId;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a document id: a string of decimal digits, or an unsigned integer")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<DocumentId, E> {
        text.parse::<DocumentId>().map_err(|error| E::custom(format_args!("document id {text:?}: {error}")))
    }

    fn visit_u64<E: serde::de::Error>(self, id: u64) -> Result<DocumentId, E> {
        Ok(id.into())
    }

    fn visit_u128<E: serde::de::Error>(self, id: u128) -> Result<DocumentId, E> {
        Ok(id.into())
    }

    // Some formats give every integer as a signed one.
    fn visit_i64<E: serde::de::Error>(self, id: i64) -> Result<DocumentId, E> {
        self.visit_i128(id.into())
    }

    fn visit_i128<E: serde::de::Error>(self, id: i128) -> Result<DocumentId, E> {
        let id = u128::try_from(id).map_err(|_| E::custom(format_args!("document id {id} is negative")))?;
        Ok(id.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the position of the error of a text that is no id.
    #[track_caller]
    fn wrong(text: &str) -> usize {
        let error = text.parse::<DocumentId>().expect_err(text);
        assert!(error.to_string().starts_with(&format!("byte {}: expected ", error.position())), "{error}");
        assert!(error.to_string().ends_with(error.expected()) && !error.expected().is_empty(), "{error}");
        assert!(text.is_char_boundary(error.position()), "{text}: {error}");
        error.position()
    }

    #[test]
    fn an_id_is_read_in_three_forms() {
        let id = |text: &str| text.parse::<DocumentId>().expect(text).0;
        for raw in [0, 1, 7, 1 << 64, u128::MAX - 1, u128::MAX] {
            assert_eq!(id(&DocumentId(raw).to_string()), raw);
            assert_eq!((id(&format!("{raw:#x}")), id(&format!("0X{raw:X}"))), (raw, raw));
            assert_eq!(id(&format!("0x{raw:032x}")), raw);
            let hex = format!("{raw:032x}");
            let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
            assert_eq!((id(&parts.join("-")), id(&parts.join("-").to_uppercase())), (raw, raw));
        }
        assert_eq!((id("007"), id("0x0")), (7, 0));
        // 36 decimal digits are no UUID.
        assert_eq!(id(&"1".repeat(36)), 111_111_111_111_111_111_111_111_111_111_111_111);
        assert_eq!(id("67e55044-10b1-426f-9247-bb680e5fe0c8"), 0x67e5_5044_10b1_426f_9247_bb68_0e5f_e0c8);
    }

    #[test]
    fn the_first_wrong_byte_is_named() {
        assert_eq!([wrong(""), wrong("-1"), wrong("+1"), wrong(" 1"), wrong("1 ")], [0, 0, 0, 0, 1]);
        assert_eq!([wrong("12.5"), wrong("7e3"), wrong("12é"), wrong("1_000")], [2, 1, 2, 1]);
        // 2^128, and a number of one digit more.
        assert_eq!(wrong("340282366920938463463374607431768211456"), 38);
        assert_eq!(wrong("3402823669209384634633746074317682114550"), 39);
        assert_eq!([wrong("0x"), wrong("0xg"), wrong("0x1 "), wrong("0x-1"), wrong("x1")], [2, 2, 3, 2, 0]);
        assert_eq!(wrong(&format!("0x{}", "0".repeat(33))), 34);
        let uuid = "67e55044-10b1-426f-9247-bb680e5fe0c8";
        assert_eq!([wrong(&uuid[..35]), wrong(&format!("{uuid}0")), wrong(&uuid[..9])], [35, 36, 9]);
        assert_eq!(wrong(&uuid.replace('f', "g")), 17);
        assert_eq!([wrong("67e55044-10b10426f"), wrong("67e55044-10b1-426é-9247"), wrong(&uuid[1..])], [13, 17, 1]);
        assert_eq!(
            [wrong("{67e55044-10b1-426f-9247-bb680e5fe0c8}"), wrong("67e5504410b1426f9247bb680e5fe0c8")],
            [0, 2]
        );
    }

    #[test]
    fn integers_become_ids() {
        assert_eq!((DocumentId::from(7u32), DocumentId::from(u64::MAX)), (DocumentId(7), DocumentId(u64::MAX.into())));
        assert_eq!(u128::from(DocumentId::from(u128::MAX)), u128::MAX);
    }

    /// The values come from Python's `hashlib`. The lengths around 56, 64 and 120 are those at which the padding of the
    /// hash changes.
    #[test]
    fn the_id_of_a_name_is_half_of_its_hash() {
        for (name, id) in [
            ("", 0xe3b0_c442_98fc_1c14_9afb_f4c8_996f_b924),
            ("abc", 0xba78_16bf_8f01_cfea_4141_40de_5dae_2223),
            ("a.txt", 0x18b7_cb09_9a9e_a3f5_0ba8_99b5_ba81_e0d3),
            ("Zürich/資料.pdf", 0x6864_c563_c7ea_34fa_be07_4ba7_d540_4a11),
        ] {
            assert_eq!(DocumentId::of_name(name), DocumentId(id), "{name}");
        }
        for (length, id) in [
            (55, 0xd5e2_8568_3cd4_efc0_2d02_1a5c_6201_4694),
            (56, 0x04c2_6261_370e_e754_1549_d16d_ee32_0c72),
            (63, 0x7522_0b47_2182_78e6_56f2_013b_b8f0_c455),
            (64, 0x7ce1_0097_1f64_e700_1e8f_e5a5_1973_ecdf),
            (65, 0x9537_c5fd_f120_482f_7d58_d25e_9ed5_83f5),
            (119, 0x000b_48d4_edf0_fa7b_ee3c_6236_ecd2_785b),
            (120, 0x13f0_5a0b_5947_87f5_ecd3_15ed_c961_41bd),
            (128, 0x24da_1b81_d0b1_6df6_428e_ee73_c69f_cb2a),
        ] {
            assert_eq!(DocumentId::of_name(&"x".repeat(length)), DocumentId(id), "{length}");
        }
    }

    #[cfg(feature = "uuid")]
    #[test]
    fn a_uuid_keeps_its_bits_and_its_text() {
        let text = "67e55044-10b1-426f-9247-bb680e5fe0c8";
        let id: DocumentId = text.parse().expect("an id");
        let uuid = uuid::Uuid::from(id);
        assert_eq!((uuid.to_string(), DocumentId::from(uuid)), (text.to_owned(), id));
        assert_eq!((uuid::Uuid::from(DocumentId(0)), uuid.as_bytes()[0]), (uuid::Uuid::nil(), 0x67));
    }

    #[cfg(feature = "serde")]
    mod serialised {
        use serde::{
            Deserialize, Deserializer, Serialize, Serializer,
            de::{Error as _, Visitor, value::Error},
            ser::Impossible,
        };

        use super::DocumentId;

        #[test]
        fn as_a_decimal_string_in_json() {
            for raw in [0, 7, 1 << 64, u128::MAX] {
                let text = serde_json::to_string(&DocumentId(raw)).expect("text");
                assert_eq!(text, format!("\"{raw}\""));
                assert_eq!(serde_json::from_str::<DocumentId>(&text).expect("an id"), DocumentId(raw));
            }
            let read = |text: &str| serde_json::from_str::<DocumentId>(text).map_err(|error| error.to_string());
            assert_eq!((read("7"), read("18446744073709551615")), (Ok(DocumentId(7)), Ok(DocumentId(u64::MAX.into()))));
            assert_eq!(read("\"0xff\""), Ok(DocumentId(255)));
            assert_eq!(read("\"00000000-0000-0000-0000-0000000000ff\""), Ok(DocumentId(255)));
            for bad in ["-1", "1.5", "\"\"", "\"-1\"", "null", "true", "[1]", "{}"] {
                assert!(read(bad).is_err_and(|error| error.contains("document id")), "{bad}: {:?}", read(bad));
            }
            // An id is a key of an object.
            let by_id = std::collections::BTreeMap::from([(DocumentId(u128::MAX), 1)]);
            let text = serde_json::to_string(&by_id).expect("text");
            assert_eq!(
                serde_json::from_str::<std::collections::BTreeMap<DocumentId, i32>>(&text).expect("a map"),
                by_id
            );
        }

        /// Format for programs, which holds a single number.
        struct Compact(u128);

        impl<'de> Deserializer<'de> for Compact {
            type Error = Error;

            fn is_human_readable(&self) -> bool {
                false
            }

            fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
                Err(Error::custom("the type must be known"))
            }

            fn deserialize_u128<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
                visitor.visit_u128(self.0)
            }

            serde::forward_to_deserialize_any! {
                bool i8 i16 i32 i64 i128 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
                newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
            }
        }

        /// Defines the methods of a serializer that reject their value.
        macro_rules! rejected {
            ($($method:ident($($argument:ty),*) -> $output:ty;)+) => {
                $(fn $method(self, $(_: $argument),*) -> Result<$output, Error> {
                    Err(Error::custom("a number expected"))
                })+
            };
        }

        impl Serializer for Compact {
            type Ok = u128;
            type Error = Error;
            type SerializeSeq = Impossible<u128, Error>;
            type SerializeTuple = Impossible<u128, Error>;
            type SerializeTupleStruct = Impossible<u128, Error>;
            type SerializeTupleVariant = Impossible<u128, Error>;
            type SerializeMap = Impossible<u128, Error>;
            type SerializeStruct = Impossible<u128, Error>;
            type SerializeStructVariant = Impossible<u128, Error>;

            fn is_human_readable(&self) -> bool {
                false
            }

            fn serialize_u128(self, id: u128) -> Result<u128, Error> {
                Ok(id)
            }

            rejected! {
                serialize_bool(bool) -> u128;
                serialize_i8(i8) -> u128;
                serialize_i16(i16) -> u128;
                serialize_i32(i32) -> u128;
                serialize_i64(i64) -> u128;
                serialize_u8(u8) -> u128;
                serialize_u16(u16) -> u128;
                serialize_u32(u32) -> u128;
                serialize_u64(u64) -> u128;
                serialize_f32(f32) -> u128;
                serialize_f64(f64) -> u128;
                serialize_char(char) -> u128;
                serialize_str(&str) -> u128;
                serialize_bytes(&[u8]) -> u128;
                serialize_none() -> u128;
                serialize_unit() -> u128;
                serialize_unit_struct(&'static str) -> u128;
                serialize_unit_variant(&'static str, u32, &'static str) -> u128;
                serialize_seq(Option<usize>) -> Self::SerializeSeq;
                serialize_tuple(usize) -> Self::SerializeTuple;
                serialize_tuple_struct(&'static str, usize) -> Self::SerializeTupleStruct;
                serialize_tuple_variant(&'static str, u32, &'static str, usize) -> Self::SerializeTupleVariant;
                serialize_map(Option<usize>) -> Self::SerializeMap;
                serialize_struct(&'static str, usize) -> Self::SerializeStruct;
                serialize_struct_variant(&'static str, u32, &'static str, usize) -> Self::SerializeStructVariant;
            }

            fn serialize_some<T: ?Sized + Serialize>(self, _: &T) -> Result<u128, Error> {
                Err(Error::custom("a number expected"))
            }

            fn serialize_newtype_struct<T: ?Sized + Serialize>(self, _: &'static str, _: &T) -> Result<u128, Error> {
                Err(Error::custom("a number expected"))
            }

            fn serialize_newtype_variant<T: ?Sized + Serialize>(
                self,
                _: &'static str,
                _: u32,
                _: &'static str,
                _: &T,
            ) -> Result<u128, Error> {
                Err(Error::custom("a number expected"))
            }
        }

        #[test]
        fn as_a_number_in_a_format_for_programs() {
            for raw in [0, 7, 1 << 64, u128::MAX] {
                assert_eq!(DocumentId(raw).serialize(Compact(0)), Ok(raw));
                assert_eq!(DocumentId::deserialize(Compact(raw)), Ok(DocumentId(raw)));
            }
        }
    }
}
