//! The formats of the TEXMEX data sets: `.fvecs`, `.bvecs` and `.ivecs`.
//!
//! A file has no header. Each row is its dimension, a little-endian i32, and then that many numbers: f32, u8 or i32.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path};

use shardex::limits::MAX_DIMENSION;

use super::dtype::{Dtype, RowLayout};

/// Length of the dimension in front of each row, in bytes.
pub(crate) const COUNT_BYTES: usize = 4;

/// Returns the number type of such a file, by the extension of its name; `None` for a file of another format.
pub(crate) fn dtype_of(path: &Path) -> Option<Dtype> {
    match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "fvecs" => Some(Dtype::F32),
        "bvecs" => Some(Dtype::U8),
        "ivecs" => Some(Dtype::I32),
        _ => None,
    }
}

/// Returns the layout of a file of `len` bytes: the dimension of its first row, and the number of rows by its length.
///
/// Returns a text that says what is wrong. Whether all rows have the same dimension is checked when they are read, or
/// here if the length is not that of whole rows.
pub(crate) fn layout(path: &Path, len: Option<u64>, dtype: Dtype) -> Result<RowLayout, String> {
    let Some(len) = len else {
        return Err(
            "it has no length, which says how many rows it holds: name a regular file, or pipe an .npy array".into()
        );
    };
    if len == 0 {
        return Err("it is empty: a file of this format holds at least one row".into());
    }
    if len < COUNT_BYTES as u64 {
        return Err(format!("it ends in the dimension of row 0, after {len} bytes"));
    }
    let file = File::open(path).map_err(|e| e.to_string())?;
    let dimension = dimension_at(&file, 0).map_err(|e| e.to_string())?;
    let columns = match usize::try_from(dimension) {
        Ok(columns) if (1..=MAX_DIMENSION).contains(&columns) => columns,
        _ => {
            let most = MAX_DIMENSION;
            return Err(format!(
                "row 0 has dimension {dimension}, and 1 to {most} are possible: is it of this format?"
            ));
        }
    };
    let width = (COUNT_BYTES + columns * dtype.size) as u64;
    if !len.is_multiple_of(width) {
        return Err(uneven(&file, len, width, dimension));
    }
    let rows = usize::try_from(len / width).map_err(|e| e.to_string())?;
    Ok(RowLayout { dtype, rows, columns, is_counted: true })
}

/// Checks the dimension in front of a row. `count` is empty in a format without one.
pub(crate) fn check_count(row: usize, count: &[u8], columns: usize) -> Result<(), String> {
    match <[u8; COUNT_BYTES]>::try_from(count).map(i32::from_le_bytes) {
        Ok(dimension) if dimension != columns as i32 => Err(changed(row as u64, dimension, columns as i32)),
        _ => Ok(()),
    }
}

/// Returns the message for a row whose dimension is not that of row 0.
fn changed(row: u64, dimension: i32, first: i32) -> String {
    format!("row {row} has dimension {dimension}, and row 0 has {first}: all rows of a file must have one dimension")
}

/// Returns the message for a file whose length is not that of whole rows: the first row of another dimension, or else
/// the row in which it ends.
fn uneven(file: &File, len: u64, width: u64, first: i32) -> String {
    let last = len / width;
    // Rows behind one of another dimension don't start at multiples of the width, and the bytes there are seldom the
    // dimension. So a binary search finds that row.
    let is_same = |row: u64| {
        let at = row * width;
        at + COUNT_BYTES as u64 > len || dimension_at(file, at).is_ok_and(|dimension| dimension == first)
    };
    let (mut same, mut other) = (0, last + 1);
    while same + 1 < other {
        let middle = same + (other - same) / 2;
        if is_same(middle) { same = middle } else { other = middle }
    }
    if other > last {
        return format!("it ends within row {last}: its length is not that of whole rows of {width} bytes");
    }
    match dimension_at(file, other * width) {
        Ok(dimension) => changed(other, dimension, first),
        Err(error) => error.to_string(),
    }
}

fn dimension_at(file: &File, at: u64) -> io::Result<i32> {
    let mut bytes = [0; COUNT_BYTES];
    file.read_exact_at(&mut bytes, at)?;
    Ok(i32::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::super::{Failure, rows::Rows};

    fn rows(dimensions: &[i32]) -> Vec<u8> {
        let row = |&dimension: &i32| {
            let numbers = (0..dimension.max(0)).flat_map(|i| (i as f32 + 1.0).to_le_bytes());
            dimension.to_le_bytes().into_iter().chain(numbers).collect::<Vec<u8>>()
        };
        dimensions.iter().flat_map(row).collect()
    }

    fn open(name: &str, bytes: &[u8]) -> (tempfile::TempDir, Result<Rows, String>) {
        let dir = tempfile::TempDir::new().expect("a temporary directory");
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).expect("written");
        let rows = Rows::open(&path).map_err(|Failure(line)| line);
        (dir, rows)
    }

    #[test]
    fn rows_are_read_by_the_extension_of_the_name() {
        let (_dir, opened) = open("a.fvecs", &rows(&[3; 5]));
        let mut all = opened.expect("opens");
        assert_eq!((all.rows(), all.columns()), (5, 3));
        assert_eq!(all.vectors(2).expect("rows"), [[1.0, 2.0, 3.0]; 2]);
        all.skip(2).expect("rows");
        assert_eq!(all.vectors(1).expect("a row"), [[1.0, 2.0, 3.0]]);
        let (_dir, opened) = open("a.BVECS", &[2, 0, 0, 0, 7, 255, 2, 0, 0, 0, 0, 1]);
        assert_eq!(opened.expect("opens").vectors(2).expect("rows"), [[7.0, 255.0], [0.0, 1.0]]);
        let (_dir, opened) =
            open("a.ivecs", &[[1, 0, 0, 0, 7, 0, 0, 0], [1, 0, 0, 0, 0xFE, 0xFF, 0xFF, 0xFF]].concat());
        assert_eq!(opened.expect("opens").ids(2).expect("ids"), [[7], [-2]]);
    }

    #[test]
    fn each_mistake_in_a_file_has_its_message() {
        let refused = |bytes: &[u8]| open("a.fvecs", bytes).1.err().expect("refused");
        assert!(refused(&[]).contains("it is empty"));
        assert!(refused(&[3, 0]).contains("in the dimension of row 0"));
        for dimension in [0, -1, i32::MIN, 65_537, i32::MAX] {
            let line = refused(&dimension.to_le_bytes());
            assert!(line.contains(&format!("a.fvecs: row 0 has dimension {dimension},")), "{line}");
        }
        let whole = rows(&[3; 9]);
        for cut in [1, 2, 11, 12, 13, 15] {
            let line = refused(&whole[..whole.len() - cut]);
            assert!(line.contains("it ends within row 8:"), "{cut}: {line}");
        }
        for changed in 1..9 {
            let mut dimensions = [3; 9];
            dimensions[changed] = 2;
            let line = refused(&rows(&dimensions));
            assert!(line.contains(&format!("row {changed} has dimension 2, and row 0 has 3")), "{line}");
        }
        // The length is that of whole rows. So the row is found when it is read.
        let (_dir, opened) = open("a.fvecs", &rows(&[3, 2, 4, 3]));
        let mut all = opened.expect("opens");
        assert_eq!(all.rows(), 4);
        let Err(Failure(line)) = all.vectors(4) else { panic!("its rows differ") };
        assert!(line.contains("a.fvecs: row 1 has dimension 2, and row 0 has 3"), "{line}");
        let mut bad = rows(&[2, 2]);
        bad[16..20].copy_from_slice(&f32::NAN.to_le_bytes());
        let (_dir, opened) = open("a.fvecs", &bad);
        let Err(Failure(line)) = opened.expect("opens").vectors(2) else { panic!("it is no number") };
        assert!(line.contains("row 1: number 0 is NaN"), "{line}");
    }
}
