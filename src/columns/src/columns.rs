//! Columns by their use: which columns of a table hold the ids, vectors and other parts of postings.
//!
//! Invariant: the types are checked by the same functions before the first row is read and in each batch.

use std::{collections::BTreeSet, path::Path};

use arrow_array::{Array, ArrayRef, FixedSizeBinaryArray, cast::AsArray as _, new_empty_array};
use arrow_schema::DataType;
use shardex::{DocumentId, Posting, PostingKey};

use crate::{
    error::{ColumnsError, Result},
    table::Table,
    values::{Integers, Payloads, Tags, Texts, Vectors},
};

/// Names of the columns to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnNames {
    /// Vectors: FixedSizeList, List or LargeList of Float16, Float32 or Float64.
    pub vector: String,
    /// Document ids: non-negative integers, FixedSizeBinary(16) (the bytes of a UUID, so big-endian), or texts that
    /// [`DocumentId`] parses.
    pub id: String,
    /// Whether the texts of `id` are names, whose ids are [`DocumentId::of_name`].
    pub id_from_name: bool,
    /// Starts of the parts: integers. 0 without such a column.
    pub start: Option<String>,
    /// Lengths of the parts: integers. 1 without such a column.
    pub length: Option<String>,
    /// Tags: UInt64, or the bits of Int64. 0 without such a column.
    pub tags: Option<String>,
    /// Payloads of the documents: byte strings or texts. A null leaves a document's payload as it is.
    pub payload: Option<String>,
}

impl Default for ColumnNames {
    fn default() -> Self {
        Self {
            vector: "vector".into(),
            id: "id".into(),
            id_from_name: false,
            start: None,
            length: None,
            tags: None,
            payload: None,
        }
    }
}

impl ColumnNames {
    /// Returns the names of the columns that [`export`](crate::export) writes, with or without payloads.
    #[must_use]
    pub fn exported(with_payload: bool) -> Self {
        let [start, length, tags] = ["start", "length", "tags"].map(|name| Some(name.to_owned()));
        Self { start, length, tags, payload: with_payload.then(|| "payload".to_owned()), ..Self::default() }
    }

    /// Returns a text that differs if other postings result from the same file.
    pub(crate) fn fingerprint(&self) -> String {
        format!("{self:?}")
    }
}

/// Whether a pass over a table reads whole postings, or their keys only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Postings,
    Keys,
}

/// Columns of a table by use, with types that were checked.
#[derive(Debug)]
pub(crate) struct Layout<'a> {
    table: &'a Table,
    names: ColumnNames,
    part: Part,
    /// Positions of the columns in the table, ascending.
    pub(crate) projection: Vec<usize>,
}

impl<'a> Layout<'a> {
    /// Finds the columns.
    ///
    /// # Errors
    /// Returns `UnknownColumn`, `AmbiguousColumn` or `ColumnType`.
    pub(crate) fn of(table: &'a Table, names: &ColumnNames, part: Part) -> Result<Self> {
        let mut names = names.clone();
        let mut used = BTreeSet::new();
        if part == Part::Keys {
            (names.tags, names.payload) = (None, None);
        } else {
            used.insert(position(table, &names.vector)?);
        }
        let optional = [&names.start, &names.length, &names.tags, &names.payload].into_iter().flatten();
        for name in optional.chain([&names.id]) {
            used.insert(position(table, name)?);
        }
        let projection: Vec<usize> = used.into_iter().collect();
        let layout = Self { table, names, part, projection };
        let types = layout.projection.iter().map(|&at| table.schema().field(at).data_type());
        let empty: Vec<ArrayRef> = types.map(new_empty_array).collect();
        layout.columns(0, &empty)?;
        Ok(layout)
    }

    /// Returns the length of all vectors, if the type of their column fixes it.
    pub(crate) fn fixed_length(&self) -> Result<Option<usize>> {
        let at = position(self.table, &self.names.vector)?;
        Ok(match self.table.schema().field(at).data_type() {
            DataType::FixedSizeList(_, length) => Some(*length as usize),
            _ => None,
        })
    }

    /// Returns the names of the columns that the pass does not read.
    pub(crate) fn unread(&self) -> Vec<String> {
        let columns = self.table.columns().into_iter().enumerate();
        columns.filter(|(at, _)| !self.projection.contains(at)).map(|(_, name)| name).collect()
    }

    /// Returns the columns of a batch, whose first row has number `first`.
    pub(crate) fn columns<'b>(&'b self, first: u64, arrays: &'b [ArrayRef]) -> Result<BatchColumns<'b>> {
        let ColumnNames { vector, id, id_from_name, start, length, tags, payload } = &self.names;
        let vector = (self.part == Part::Postings).then_some(vector);
        let ids = |array| Ids::of(array, *id_from_name);
        Ok(BatchColumns {
            path: self.table.path(),
            first,
            ids: self.column(arrays, id, ids, Ids::expected(*id_from_name))?,
            vectors: self.optional(arrays, vector, Vectors::of, Vectors::EXPECTED)?,
            starts: self.optional(arrays, start.as_ref(), Integers::of, Integers::EXPECTED)?,
            lengths: self.optional(arrays, length.as_ref(), Integers::of, Integers::EXPECTED)?,
            tags: self.optional(arrays, tags.as_ref(), Tags::of, Tags::EXPECTED)?,
            payloads: self.optional(arrays, payload.as_ref(), Payloads::of, Payloads::EXPECTED)?,
        })
    }

    fn optional<'b, V>(
        &'b self,
        arrays: &'b [ArrayRef],
        name: Option<&'b String>,
        of: impl Fn(&'b ArrayRef) -> Option<V>,
        expected: &'static str,
    ) -> Result<Option<Column<'b, V>>> {
        name.map(|name| self.column(arrays, name, of, expected)).transpose()
    }

    fn column<'b, V>(
        &'b self,
        arrays: &'b [ArrayRef],
        name: &'b str,
        of: impl Fn(&'b ArrayRef) -> Option<V>,
        expected: &'static str,
    ) -> Result<Column<'b, V>> {
        let file = || self.table.path().to_owned();
        let at = position(self.table, name)?;
        let at = self.projection.iter().position(|&used| used == at);
        let array = at.and_then(|at| arrays.get(at)).ok_or_else(|| ColumnsError::UnknownColumn {
            file: file(),
            column: name.to_owned(),
            columns: self.table.columns(),
        })?;
        match of(array) {
            Some(values) => Ok(Column { name, array, values }),
            None => {
                let found = array.data_type().to_string();
                Err(ColumnsError::ColumnType { file: file(), column: name.to_owned(), found, expected })
            }
        }
    }
}

/// Returns the position of a column in a table.
fn position(table: &Table, name: &str) -> Result<usize> {
    let columns = table.columns();
    let mut positions = (0..columns.len()).filter(|&at| columns[at] == name);
    let (file, column) = (table.path().to_owned(), name.to_owned());
    match (positions.next(), positions.next()) {
        (Some(at), None) => Ok(at),
        (Some(_), Some(_)) => Err(ColumnsError::AmbiguousColumn { file, column }),
        (None, _) => Err(ColumnsError::UnknownColumn { file, column, columns }),
    }
}

/// Column of a batch.
struct Column<'b, V> {
    name: &'b str,
    array: &'b ArrayRef,
    values: V,
}

/// Values of an id column.
enum Ids<'b> {
    Integers(Integers<'b>),
    Bytes(&'b FixedSizeBinaryArray),
    Texts(Texts<'b>),
    Names(Texts<'b>),
}

impl<'b> Ids<'b> {
    fn expected(from_name: bool) -> &'static str {
        match from_name {
            true => "Utf8, LargeUtf8 or Utf8View (names)",
            false => "an integer type, FixedSizeBinary(16), Utf8, LargeUtf8 or Utf8View",
        }
    }

    fn of(array: &'b ArrayRef, from_name: bool) -> Option<Self> {
        if from_name {
            return Texts::of(array).map(Self::Names);
        }
        if let Some(bytes) = array.as_fixed_size_binary_opt() {
            return (bytes.value_length() == 16).then_some(Self::Bytes(bytes));
        }
        Integers::of(array).map(Self::Integers).or_else(|| Texts::of(array).map(Self::Texts))
    }

    fn value(&self, i: usize) -> Result<DocumentId, String> {
        match self {
            Self::Names(names) => Ok(DocumentId::of_name(names.value(i))),
            Self::Bytes(bytes) => {
                let id: [u8; 16] = bytes.value(i).try_into().map_err(|_| "the id has not 16 bytes".to_owned())?;
                Ok(DocumentId(u128::from_be_bytes(id)))
            }
            Self::Integers(integers) => {
                let id = integers.value(i);
                u128::try_from(id).map(DocumentId).map_err(|_| format!("the id {id} is negative"))
            }
            Self::Texts(texts) => {
                let text = texts.value(i);
                text.parse().map_err(|error| format!("\"{}\" is no id: {error}", text.escape_debug()))
            }
        }
    }
}

/// Columns of a batch, read row by row.
pub(crate) struct BatchColumns<'b> {
    path: &'b Path,
    /// Number of the first row.
    first: u64,
    ids: Column<'b, Ids<'b>>,
    vectors: Option<Column<'b, Vectors<'b>>>,
    starts: Option<Column<'b, Integers<'b>>>,
    lengths: Option<Column<'b, Integers<'b>>>,
    tags: Option<Column<'b, Tags<'b>>>,
    payloads: Option<Column<'b, Payloads<'b>>>,
}

impl<'b> BatchColumns<'b> {
    /// Returns the length of a row's vector; 0 in a pass over keys.
    pub(crate) fn vector_length(&self, i: usize) -> Result<usize> {
        let Some(column) = &self.vectors else { return Ok(0) };
        self.not_null(column, i)?;
        Ok(column.values.length(i))
    }

    /// Returns the key of a row.
    ///
    /// # Errors
    /// Returns `Null` or `Value`.
    pub(crate) fn key(&self, i: usize) -> Result<PostingKey> {
        self.not_null(&self.ids, i)?;
        let id = self.ids.values.value(i).map_err(|reason| self.wrong(self.ids.name, i, reason))?;
        Ok(PostingKey::new(id, self.part(&self.starts, i, 0)?, self.part(&self.lengths, i, 1)?))
    }

    /// Returns the posting of a row. The vector has `dimension` numbers.
    ///
    /// # Errors
    /// Returns `Null`, `Value` or `Dimension`.
    pub(crate) fn posting(&self, i: usize, key: PostingKey, dimension: usize) -> Result<Posting> {
        let found = self.vector_length(i)?;
        let mut vector = Vec::new();
        if let Some(column) = &self.vectors {
            if found != dimension {
                let (file, row) = (self.path.to_owned(), Some(self.row(i)));
                return Err(ColumnsError::Dimension {
                    file,
                    column: column.name.to_owned(),
                    row,
                    found,
                    expected: dimension,
                });
            }
            vector = column.values.value(i).map_err(|reason| self.wrong(column.name, i, reason))?;
        }
        let mut tags = 0;
        if let Some(column) = &self.tags {
            self.not_null(column, i)?;
            tags = column.values.value(i);
        }
        Ok(Posting::new(key, vector).tagged(tags))
    }

    /// Returns the payload of a row's document; `None` if it is null or there is no such column.
    pub(crate) fn payload(&self, i: usize) -> Option<&'b [u8]> {
        let column = self.payloads.as_ref()?;
        (!column.array.is_null(i)).then(|| column.values.value(i))
    }

    fn row(&self, i: usize) -> u64 {
        self.first + i as u64
    }

    /// Returns a start or a length.
    fn part(&self, column: &Option<Column<'_, Integers<'_>>>, i: usize, default: u32) -> Result<u32> {
        let Some(column) = column else { return Ok(default) };
        self.not_null(column, i)?;
        let value = column.values.value(i);
        u32::try_from(value).map_err(|_| self.wrong(column.name, i, format!("{value} is not in 0..={}", u32::MAX)))
    }

    fn not_null<V>(&self, column: &Column<'_, V>, i: usize) -> Result<()> {
        if !column.array.is_null(i) {
            return Ok(());
        }
        Err(ColumnsError::Null { file: self.path.to_owned(), column: column.name.to_owned(), row: self.row(i) })
    }

    fn wrong(&self, column: &str, i: usize, reason: String) -> ColumnsError {
        ColumnsError::Value { file: self.path.to_owned(), column: column.to_owned(), row: self.row(i), reason }
    }
}
