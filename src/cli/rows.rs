//! Rows of numbers, read one after another: an `.npy` array from a file or a pipe, or an `.fvecs`, `.bvecs` or `.ivecs`
//! file.

use std::path::Path;

use shardex::limits;

use super::{
    Failure,
    dtype::RowLayout,
    npy,
    source::{Source, ended},
    vecs,
};

/// Maximum number of bytes of rows read at once (one row, if that is longer). It bounds memory by the data present, not
/// by the shape in the header.
const PIECE: usize = 4 << 20;

/// Rows of a file or a pipe. The extension of the name says which format it has, and `.npy` is the default.
pub(crate) struct Rows {
    source: Source,
    layout: RowLayout,
    /// Index of the next row.
    at: usize,
}

impl Rows {
    /// Opens rows. For a regular file it checks the length.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        Self::read(path, false)
    }

    /// Opens rows, or a one-dimensional array as a single row.
    pub(crate) fn open_or_one(path: &Path) -> Result<Self, Failure> {
        Self::read(path, true)
    }

    fn read(path: &Path, or_one: bool) -> Result<Self, Failure> {
        let mut source = Source::open(path)?;
        let layout = match vecs::dtype_of(path) {
            Some(dtype) => vecs::layout(path, source.len, dtype),
            None => npy::layout(&mut source, or_one),
        };
        let layout = layout.map_err(|what| Failure(format!("{}: {what}", source.name)))?;
        Ok(Self { source, layout, at: 0 })
    }

    /// Returns the name of the source for messages.
    pub(crate) fn name(&self) -> &str {
        &self.source.name
    }

    /// Returns the number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.layout.rows
    }

    /// Returns the number of columns: numbers per row.
    pub(crate) fn columns(&self) -> usize {
        self.layout.columns
    }

    fn wrong(&self, what: &str) -> Failure {
        Failure(format!("{}: {what}", self.source.name))
    }

    /// Reads the next `rows` rows, and converts each with `row`. `row` gets the row number and the bytes, as
    /// little-endian numbers.
    ///
    /// # Panics
    /// Panics if fewer than `rows` rows are left.
    fn take<T>(&mut self, rows: usize, row: impl Fn(usize, &[u8]) -> Result<T, String>) -> Result<Vec<T>, Failure> {
        let RowLayout { dtype, columns, is_counted, .. } = self.layout;
        assert!(rows <= self.layout.rows - self.at, "no more rows are asked for than there are");
        let mut taken = Vec::new();
        let count_bytes = if is_counted { vecs::COUNT_BYTES } else { 0 };
        // A shape without columns may have any number of rows, and its rows take no bytes.
        let width = columns.saturating_mul(dtype.size).saturating_add(count_bytes);
        let at_once = (PIECE / width.max(1)).max(1);
        let end = self.at + rows;
        let mut bytes = Vec::new();
        while self.at < end {
            let now = at_once.min(end - self.at);
            bytes.resize(now * width, 0);
            if let Err(error) = self.source.fill(&mut bytes) {
                let what = format!("it ends before row {} of {} does", self.at + now - 1, self.layout.rows);
                return Err(self.wrong(&ended(&error, &what)));
            }
            if dtype.big_endian {
                bytes.chunks_exact_mut(dtype.size).for_each(<[u8]>::reverse);
            }
            for i in 0..now {
                let (count, numbers) = bytes[i * width..(i + 1) * width].split_at(count_bytes);
                let number = self.at + i;
                let made = vecs::check_count(number, count, columns).and_then(|()| row(number, numbers));
                taken.push(made.map_err(|what| self.wrong(&what))?);
            }
            self.at += now;
        }
        Ok(taken)
    }

    /// Skips the next `rows` rows.
    pub(crate) fn skip(&mut self, rows: usize) -> Result<(), Failure> {
        self.take(rows, |_, _| Ok(())).map(drop)
    }

    /// Reads the next `rows` rows as vectors.
    ///
    /// Returns a `Failure` if a number is not finite as an f32. The message contains the row and the position in the
    /// row.
    pub(crate) fn vectors(&mut self, rows: usize) -> Result<Vec<Vec<f32>>, Failure> {
        let RowLayout { dtype, columns, .. } = self.layout;
        if rows > 0 && !(1..=limits::MAX_DIMENSION).contains(&columns) {
            let most = limits::MAX_DIMENSION;
            return Err(self.wrong(&format!("its rows hold {columns} numbers; a vector has 1 to {most}")));
        }
        self.take(rows, |number, bytes| {
            let numbers = || bytes.chunks_exact(dtype.size);
            let vector: Vec<f32> = numbers().map(|bytes| dtype.narrow(bytes)).collect();
            match numbers().zip(&vector).enumerate().find(|(_, (_, x))| !x.is_finite()) {
                None => Ok(vector),
                Some((i, (bytes, _))) => {
                    let wide = dtype.wide(bytes);
                    let why = if wide.is_finite() { ", which is too large for an f32" } else { "" };
                    Err(format!("row {number}: number {i} is {wide:?}{why}"))
                }
            }
        })
    }

    /// Reads all numbers as the tags of `count` postings: a row of as many numbers, or as many rows of one.
    ///
    /// Returns a `Failure` if they are not as many, or no integers of 64 bits without a sign.
    pub(crate) fn tags(&mut self, count: usize) -> Result<Vec<u64>, Failure> {
        let RowLayout { dtype, rows, columns, .. } = self.layout;
        if (rows, columns) != (1, count) && (rows, columns) != (count, 1) {
            return Err(
                self.wrong(&format!("{rows} rows of {columns} numbers; one number for each of {count} rows expected"))
            );
        }
        if !dtype.is_integer() {
            return Err(
                self.wrong("tags of an integer type expected, such as u64; convert them with .astype('uint64')")
            );
        }
        let all = self.take(rows, |number, bytes| {
            let tags = |(i, bytes): (usize, &[u8])| {
                let tags = dtype.integer(bytes);
                u64::try_from(tags).map_err(|_| format!("number {} is {tags}, which is less than 0", number.max(i)))
            };
            bytes.chunks_exact(dtype.size).enumerate().map(tags).collect::<Result<Vec<_>, _>>()
        })?;
        Ok(all.into_iter().flatten().collect())
    }

    /// Reads the next `rows` rows as ids. Returns a `Failure` if the type is not an integer, or if an id doesn't fit an
    /// i64.
    pub(crate) fn ids(&mut self, rows: usize) -> Result<Vec<Vec<i64>>, Failure> {
        let dtype = self.layout.dtype;
        if !dtype.is_integer() {
            return Err(self.wrong("ids of an integer type expected, such as i64; convert them with .astype('int64')"));
        }
        self.take(rows, |number, bytes| {
            let id = |(i, bytes): (usize, &[u8])| {
                let id = dtype.integer(bytes);
                i64::try_from(id).map_err(|_| format!("row {number}: id {i} is {id}, which no i64 holds"))
            };
            bytes.chunks_exact(dtype.size).enumerate().map(id).collect()
        })
    }
}
