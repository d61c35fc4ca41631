//! The `.npy` format: rows of f32 or f16 in, rows of ids in and out.
//!
//! A file starts with `\x93NUMPY`, two version bytes and the length of a header, which is the text of a Python
//! dictionary (numpy.lib.format).

use std::{
    fs::File,
    io::{BufReader, BufWriter, Read as _, Write as _},
    path::Path,
};

use half::f16;

use super::Failure;

const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// An array's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dtype {
    F16,
    F32,
    I32,
    I64,
}

impl Dtype {
    fn size(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::I64 => 8,
        }
    }
}

/// A two-dimensional array in a file, read row by row.
pub(crate) struct Rows {
    name: String,
    file: BufReader<File>,
    dtype: Dtype,
    rows: usize,
    columns: usize,
}

impl Rows {
    /// Opens a file and checks that it holds the array that its header says.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let name = path.display().to_string();
        let wrong = |what: &str| Failure(format!("{name}: {what}"));
        let file = File::open(path).map_err(|e| wrong(&e.to_string()))?;
        let len = file.metadata().map_err(|e| wrong(&e.to_string()))?.len();
        let mut file = BufReader::with_capacity(1 << 20, file);
        let mut start = [0; 8];
        file.read_exact(&mut start).map_err(|_| wrong("no .npy file: it ends in its first bytes"))?;
        if start[..6] != *MAGIC {
            return Err(wrong("no .npy file: save an array with numpy.save"));
        }
        let mut size = [0; 4];
        let size_len = match start[6] {
            1 => 2,
            2 | 3 => 4,
            other => return Err(wrong(&format!("version {other} of the .npy format is unknown"))),
        };
        file.read_exact(&mut size[..size_len]).map_err(|_| wrong("the file ends in its header"))?;
        let header_len = u64::from(u32::from_le_bytes(size));
        let data_at = 8 + size_len as u64 + header_len;
        if data_at > len {
            return Err(wrong("the file ends in its header"));
        }
        let mut header = vec![0; header_len as usize];
        file.read_exact(&mut header).map_err(|_| wrong("the file ends in its header"))?;
        let header = String::from_utf8_lossy(&header);
        let (dtype, rows, columns) = parse_header(&header).map_err(|what| wrong(&what))?;
        let expected = (rows as u64)
            .checked_mul(columns as u64)
            .and_then(|n| n.checked_mul(dtype.size() as u64))
            .ok_or_else(|| wrong("its shape is too large"))?;
        if len - data_at != expected {
            return Err(wrong(&format!("{expected} bytes of data expected after the header, {} found", len - data_at)));
        }
        Ok(Self { name, file, dtype, rows, columns })
    }

    /// Rows in the file.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Numbers per row.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    fn take<T>(&mut self, rows: usize, size: usize, number: fn(&[u8]) -> T) -> Result<Vec<Vec<T>>, Failure> {
        // A shape of no rows may have any number of columns.
        if rows == 0 || self.columns == 0 {
            return Ok((0..rows).map(|_| Vec::new()).collect());
        }
        let mut bytes = vec![0; rows * self.columns * size];
        self.file.read_exact(&mut bytes).map_err(|e| Failure(format!("{}: {e}", self.name)))?;
        let row = |row: &[u8]| row.chunks_exact(size).map(number).collect();
        Ok(bytes.chunks_exact(self.columns * size).map(row).collect())
    }

    /// The next `rows` rows as vectors.
    pub(crate) fn vectors(&mut self, rows: usize) -> Result<Vec<Vec<f32>>, Failure> {
        let size = self.dtype.size();
        let number: fn(&[u8]) -> f32 = match self.dtype {
            Dtype::F16 => |b| f16::from_le_bytes([b[0], b[1]]).to_f32(),
            Dtype::F32 => |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            _ => return Err(Failure(format!("{}: vectors of f32 or f16 expected, integers found", self.name))),
        };
        self.take(rows, size, number)
    }

    /// The next `rows` rows as ids.
    pub(crate) fn ids(&mut self, rows: usize) -> Result<Vec<Vec<i64>>, Failure> {
        let size = self.dtype.size();
        let number: fn(&[u8]) -> i64 = match self.dtype {
            Dtype::I32 => |b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]).into(),
            Dtype::I64 => |b| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]),
            _ => return Err(Failure(format!("{}: ids of i32 or i64 expected, floats found", self.name))),
        };
        self.take(rows, size, number)
    }
}

/// The value of a key in the header's dictionary: everything up to the comma that ends it.
fn value<'a>(header: &'a str, key: &str) -> Result<&'a str, String> {
    let missing = || format!("its header has no `{key}`");
    let at = header.find(&format!("'{key}'")).ok_or_else(missing)? + key.len() + 2;
    let rest = header[at..].trim_start().strip_prefix(':').ok_or_else(missing)?.trim_start();
    let end = match rest.strip_prefix('(') {
        Some(_) => rest.find(')').ok_or_else(missing)? + 1,
        None => rest.find([',', '}']).ok_or_else(missing)?,
    };
    Ok(rest[..end].trim())
}

fn parse_header(header: &str) -> Result<(Dtype, usize, usize), String> {
    let dtype = match value(header, "descr")? {
        "'<f2'" => Dtype::F16,
        "'<f4'" => Dtype::F32,
        "'<i4'" => Dtype::I32,
        "'<i8'" => Dtype::I64,
        other => return Err(format!("its type {other} is none of f32, f16, i32, i64; convert it with astype")),
    };
    if value(header, "fortran_order")? != "False" {
        return Err("it is in Fortran order; save numpy.ascontiguousarray of it".into());
    }
    let shape = value(header, "shape")?;
    let sizes = shape
        .trim_matches(['(', ')'])
        .split(',')
        .map(str::trim)
        .filter(|size| !size.is_empty())
        .map(|size| size.parse::<usize>().map_err(|_| format!("its shape {shape} makes no sense")))
        .collect::<Result<Vec<_>, _>>()?;
    match sizes.as_slice() {
        [rows, columns] => Ok((dtype, *rows, *columns)),
        _ => Err(format!("its shape is {shape}; two dimensions expected, a row per vector")),
    }
}

/// Writes rows of ids as an i64 array.
pub(crate) fn write_ids(path: &Path, rows: &[Vec<i64>], columns: usize) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure(format!("{}: {e}", path.display()));
    let mut header = format!("{{'descr': '<i8', 'fortran_order': False, 'shape': ({}, {columns}), }}", rows.len());
    // The data starts on a multiple of 64: magic, version and length take ten bytes, a line break ends the header.
    let padded = (10 + header.len() + 1).next_multiple_of(64) - 10;
    header.push_str(&" ".repeat(padded - header.len() - 1));
    header.push('\n');
    let mut out = BufWriter::new(File::create(path).map_err(failed)?);
    let mut write = || {
        out.write_all(MAGIC)?;
        out.write_all(&[1, 0])?;
        out.write_all(&(header.len() as u16).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        rows.iter().flatten().try_for_each(|id| out.write_all(&id.to_le_bytes()))?;
        out.flush()
    };
    write().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::TempDir::new().expect("a temporary directory");
        let path = dir.path().join("a.npy");
        std::fs::write(&path, bytes).expect("written");
        (dir, path)
    }

    fn npy(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([1, 0]);
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn vectors_of_both_types_are_read() {
        let floats: Vec<u8> = [1.0f32, -2.5, 0.0, 4.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let (_dir, path) = file(&npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }\n", &floats));
        let mut rows = Rows::open(&path).expect("opens");
        assert_eq!((rows.rows(), rows.columns()), (2, 2));
        assert_eq!(rows.vectors(1).expect("a row"), [[1.0, -2.5]]);
        assert_eq!(rows.vectors(1).expect("a row"), [[0.0, 4.0]]);
        let halves: Vec<u8> = [1.0f32, -2.5].iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        let (_dir, path) = file(&npy("{\"x\": 1, 'shape':(1,2),'fortran_order':False,'descr':'<f2'}", &halves));
        assert_eq!(Rows::open(&path).expect("opens").vectors(1).expect("a row"), [[1.0, -2.5]]);
    }

    #[test]
    fn ids_are_read_as_they_were_written() {
        let (_dir, path) = file(b"");
        let ids = vec![vec![1, -1, i64::MAX], vec![4, 5, 6]];
        write_ids(&path, &ids, 3).expect("written");
        assert_eq!(std::fs::read(&path).expect("readable").len() % 64, 48);
        let mut rows = Rows::open(&path).expect("opens");
        assert_eq!(rows.ids(2).expect("ids"), ids);
        assert!(Rows::open(&path).expect("opens").vectors(1).is_err(), "ids are no vectors");
    }

    #[test]
    fn rubbish_is_refused_with_its_name() {
        let good = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }";
        let cases = [
            Vec::new(),
            b"PK\x03\x04 something else".to_vec(),
            MAGIC.to_vec(),
            npy(good, &[0; 15]),
            npy(good, &[0; 17]),
            npy(&good.replace("<f4", "<f8"), &[0; 32]),
            npy(&good.replace("False", "True"), &[0; 16]),
            npy(&good.replace("(2, 2)", "(4,)"), &[0; 16]),
            npy(&good.replace("(2, 2)", "(2, 2, 1)"), &[0; 16]),
            npy(&good.replace("(2, 2)", "(-2, 2)"), &[0; 16]),
            npy(&good.replace("(2, 2)", "(99999999999, 99999999999)"), &[0; 16]),
            npy(&good.replace("descr", "desc"), &[0; 16]),
            npy("", &[]),
            npy("{'descr': ", &[]),
            npy("{'shape': (", &[]),
        ];
        for (i, bytes) in cases.iter().enumerate() {
            let (_dir, path) = file(bytes);
            match Rows::open(&path) {
                Err(Failure(line)) => assert!(line.contains("a.npy: "), "case {i}: {line}"),
                Ok(_) => panic!("case {i} was taken for an array"),
            }
        }
    }
}
