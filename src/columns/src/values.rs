//! Values of one column of a batch, of any type that the use of the column allows.

use std::ops::Range;

use arrow_array::{Array, ArrayRef, cast::AsArray as _, types};

/// Declares an enum over arrays, one variant per type, with a constructor that returns `None` for other types.
macro_rules! one_of {
    ($(#[$doc:meta])* $name:ident, $($variant:ident: $array:ty = $cast:expr),+ $(,)?) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(crate) enum $name<'a> {
            $($variant(&'a $array),)+
        }

        impl<'a> $name<'a> {
            pub(crate) fn of(array: &'a ArrayRef) -> Option<Self> {
                $(
                    let cast: fn(&'a ArrayRef) -> Option<&'a $array> = $cast;
                    if let Some(array) = cast(array) {
                        return Some(Self::$variant(array));
                    }
                )+
                None
            }
        }
    };
}

one_of! {
    /// Integers.
    Integers,
    I8: arrow_array::Int8Array = |array| array.as_primitive_opt::<types::Int8Type>(),
    I16: arrow_array::Int16Array = |array| array.as_primitive_opt::<types::Int16Type>(),
    I32: arrow_array::Int32Array = |array| array.as_primitive_opt::<types::Int32Type>(),
    I64: arrow_array::Int64Array = |array| array.as_primitive_opt::<types::Int64Type>(),
    U8: arrow_array::UInt8Array = |array| array.as_primitive_opt::<types::UInt8Type>(),
    U16: arrow_array::UInt16Array = |array| array.as_primitive_opt::<types::UInt16Type>(),
    U32: arrow_array::UInt32Array = |array| array.as_primitive_opt::<types::UInt32Type>(),
    U64: arrow_array::UInt64Array = |array| array.as_primitive_opt::<types::UInt64Type>(),
}

impl Integers<'_> {
    pub(crate) const EXPECTED: &'static str = "an integer type";

    pub(crate) fn value(&self, i: usize) -> i128 {
        match self {
            Self::I8(array) => array.value(i).into(),
            Self::I16(array) => array.value(i).into(),
            Self::I32(array) => array.value(i).into(),
            Self::I64(array) => array.value(i).into(),
            Self::U8(array) => array.value(i).into(),
            Self::U16(array) => array.value(i).into(),
            Self::U32(array) => array.value(i).into(),
            Self::U64(array) => array.value(i).into(),
        }
    }
}

one_of! {
    /// Texts.
    Texts,
    Text: arrow_array::StringArray = |array| array.as_string_opt::<i32>(),
    LargeText: arrow_array::LargeStringArray = |array| array.as_string_opt::<i64>(),
    TextView: arrow_array::StringViewArray = |array| array.as_string_view_opt(),
}

impl<'a> Texts<'a> {
    pub(crate) fn value(&self, i: usize) -> &'a str {
        match *self {
            Self::Text(array) => array.value(i),
            Self::LargeText(array) => array.value(i),
            Self::TextView(array) => array.value(i),
        }
    }
}

one_of! {
    /// Byte strings of any length.
    Binaries,
    Binary: arrow_array::BinaryArray = |array| array.as_binary_opt::<i32>(),
    LargeBinary: arrow_array::LargeBinaryArray = |array| array.as_binary_opt::<i64>(),
    BinaryView: arrow_array::BinaryViewArray = |array| array.as_binary_view_opt(),
}

/// Payloads: byte strings or texts.
pub(crate) enum Payloads<'a> {
    Binaries(Binaries<'a>),
    Texts(Texts<'a>),
}

impl<'a> Payloads<'a> {
    pub(crate) const EXPECTED: &'static str = "Binary, LargeBinary, BinaryView, Utf8, LargeUtf8 or Utf8View";

    pub(crate) fn of(array: &'a ArrayRef) -> Option<Self> {
        Binaries::of(array).map(Self::Binaries).or_else(|| Texts::of(array).map(Self::Texts))
    }

    pub(crate) fn value(&self, i: usize) -> &'a [u8] {
        match *self {
            Self::Binaries(Binaries::Binary(array)) => array.value(i),
            Self::Binaries(Binaries::LargeBinary(array)) => array.value(i),
            Self::Binaries(Binaries::BinaryView(array)) => array.value(i),
            Self::Texts(texts) => texts.value(i).as_bytes(),
        }
    }
}

one_of! {
    /// Tags: 64 bits. A signed integer gives its bits.
    Tags,
    U64: arrow_array::UInt64Array = |array| array.as_primitive_opt::<types::UInt64Type>(),
    I64: arrow_array::Int64Array = |array| array.as_primitive_opt::<types::Int64Type>(),
}

impl Tags<'_> {
    pub(crate) const EXPECTED: &'static str = "UInt64 or Int64";

    pub(crate) fn value(&self, i: usize) -> u64 {
        match self {
            Self::U64(array) => array.value(i),
            Self::I64(array) => array.value(i).cast_unsigned(),
        }
    }
}

one_of! {
    /// Lists of numbers.
    Lists,
    Fixed: arrow_array::FixedSizeListArray = |array| array.as_fixed_size_list_opt(),
    List: arrow_array::ListArray = |array| array.as_list_opt::<i32>(),
    LargeList: arrow_array::LargeListArray = |array| array.as_list_opt::<i64>(),
}

impl<'a> Lists<'a> {
    fn values(&self) -> &'a ArrayRef {
        match *self {
            Self::Fixed(array) => array.values(),
            Self::List(array) => array.values(),
            Self::LargeList(array) => array.values(),
        }
    }

    /// Returns the positions of a list's numbers in `values`.
    fn range(&self, i: usize) -> Range<usize> {
        match self {
            Self::Fixed(array) => {
                let length = array.value_length() as usize;
                i * length..(i + 1) * length
            }
            Self::List(array) => array.value_offsets()[i] as usize..array.value_offsets()[i + 1] as usize,
            Self::LargeList(array) => array.value_offsets()[i] as usize..array.value_offsets()[i + 1] as usize,
        }
    }
}

one_of! {
    /// Floating-point numbers.
    Floats,
    F16: arrow_array::Float16Array = |array| array.as_primitive_opt::<types::Float16Type>(),
    F32: arrow_array::Float32Array = |array| array.as_primitive_opt::<types::Float32Type>(),
    F64: arrow_array::Float64Array = |array| array.as_primitive_opt::<types::Float64Type>(),
}

/// Vectors: lists of floating-point numbers.
pub(crate) struct Vectors<'a> {
    lists: Lists<'a>,
    floats: Floats<'a>,
}

impl<'a> Vectors<'a> {
    pub(crate) const EXPECTED: &'static str = "FixedSizeList, List or LargeList of Float16, Float32 or Float64";

    pub(crate) fn of(array: &'a ArrayRef) -> Option<Self> {
        let lists = Lists::of(array)?;
        Some(Self { lists, floats: Floats::of(lists.values())? })
    }

    /// Returns the length of a vector.
    pub(crate) fn length(&self, i: usize) -> usize {
        self.lists.range(i).len()
    }

    /// Returns a vector as f32, or a description of a component that is null, or not finite as an f32.
    pub(crate) fn value(&self, i: usize) -> Result<Vec<f32>, String> {
        let range = self.lists.range(i);
        let values = self.lists.values();
        if values.null_count() > 0
            && let Some(at) = range.clone().position(|at| values.is_null(at))
        {
            return Err(format!("number {at} is null"));
        }
        let vector: Vec<f32> = match self.floats {
            Floats::F16(array) => array.values()[range.clone()].iter().map(|x| x.to_f32()).collect(),
            Floats::F32(array) => array.values()[range.clone()].to_vec(),
            Floats::F64(array) => array.values()[range.clone()].iter().map(|&x| x as f32).collect(),
        };
        match vector.iter().position(|x| !x.is_finite()) {
            None => Ok(vector),
            Some(at) => match self.floats {
                Floats::F64(array) if array.value(range.start + at).is_finite() => {
                    Err(format!("number {at} is {:?}, which is too large for an f32", array.value(range.start + at)))
                }
                _ => Err(format!("number {at} is {}", vector[at])),
            },
        }
    }
}
