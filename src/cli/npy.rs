//! The `.npy` format: reads and writes headers, and writes rows of ids.
//!
//! A file starts with `\x93NUMPY`, two version bytes and the length of a header. The header is the text of a Python
//! dictionary (numpy.lib.format).

use std::io::{self, Write};

use super::{
    dtype::{Dtype, RowLayout},
    source::{Source, ended},
};

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// Maximum header length read, in bytes. NumPy's own limit is 10,000.
const MAX_HEADER: u64 = 1 << 16;

/// Reads the header of an array of two dimensions, or of one if `or_one`, which is then a single row.
///
/// Returns a text that says what is wrong. For a regular file it checks that the length matches the header.
pub(crate) fn layout(source: &mut Source, or_one: bool) -> Result<RowLayout, String> {
    let mut start = [0; 8];
    source.fill(&mut start).map_err(|e| ended(&e, "no .npy file: it ends in its first bytes"))?;
    if start[..6] != *MAGIC {
        return Err("no .npy file: save an array with numpy.save".into());
    }
    let mut size = [0; 4];
    let size_len = match start[6] {
        1 => 2,
        2 | 3 => 4,
        other => return Err(format!("version {other} of the .npy format is unknown")),
    };
    let short = |e: io::Error| ended(&e, "the file ends in its header");
    source.fill(&mut size[..size_len]).map_err(short)?;
    let header_len = u64::from(u32::from_le_bytes(size));
    if header_len > MAX_HEADER {
        return Err(format!("its header takes {header_len} bytes, {MAX_HEADER} is the most"));
    }
    let mut header = vec![0; header_len as usize];
    source.fill(&mut header).map_err(short)?;
    let (dtype, rows, columns) = parse_header(&String::from_utf8_lossy(&header), or_one)?;
    let expected = (rows as u64)
        .checked_mul(columns as u64)
        .and_then(|n| n.checked_mul(dtype.size as u64))
        .ok_or("its shape is too large")?;
    let data_at = 8 + size_len as u64 + header_len;
    if let Some(found) = source.len.map(|len| len.saturating_sub(data_at))
        && found != expected
    {
        return Err(format!("{expected} bytes of data expected after the header, {found} found"));
    }
    Ok(RowLayout { dtype, rows, columns, is_counted: false })
}

/// Returns the value of a key in the header's dictionary: a tuple in parentheses, or the text up to the next comma or
/// brace.
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

fn parse_header(header: &str, or_one: bool) -> Result<(Dtype, usize, usize), String> {
    let dtype = Dtype::parse(value(header, "descr")?)?;
    let shape = value(header, "shape")?;
    let sizes = shape
        .trim_start_matches('(')
        .trim_end_matches(')')
        .split(',')
        .map(str::trim)
        .filter(|size| !size.is_empty())
        // Python 2 appended an `L` to long integers.
        .map(|size| size.trim_end_matches('L').parse::<usize>())
        .map(|size| size.map_err(|_| format!("its shape {shape} makes no sense")))
        .collect::<Result<Vec<_>, _>>()?;
    if value(header, "fortran_order")? != "False" {
        return Err("it is in Fortran order: save numpy.ascontiguousarray of it".into());
    }
    match sizes.as_slice() {
        [rows, columns] => Ok((dtype, *rows, *columns)),
        [columns] if or_one => Ok((dtype, 1, *columns)),
        [_] => Err(format!("its shape is {shape}, one dimension: save .reshape(1, -1) of it if it is one vector")),
        _ => Err(format!("its shape is {shape}; two dimensions expected, a row per vector")),
    }
}

/// Writes the header of a two-dimensional array of the type `descr`, such as `<f4`. The rows follow.
pub(crate) fn write_header(out: &mut impl Write, descr: &str, rows: u64, columns: usize) -> io::Result<()> {
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({rows}, {columns}), }}");
    // The data starts at a multiple of 64 bytes. Magic, version and length take ten bytes, and a line break ends the
    // header.
    let padded = (10 + header.len() + 1).next_multiple_of(64) - 10;
    header.push_str(&" ".repeat(padded - header.len() - 1));
    header.push('\n');
    out.write_all(MAGIC)?;
    out.write_all(&[1, 0])?;
    out.write_all(&(header.len() as u16).to_le_bytes())?;
    out.write_all(header.as_bytes())
}

/// Writes rows of ids as an i64 array. A row of fewer than `columns` ids is padded with -1.
pub(crate) fn write_ids(out: &mut impl Write, rows: &[Vec<i64>], columns: usize) -> io::Result<()> {
    write_header(out, "<i8", rows.len() as u64, columns)?;
    for row in rows {
        let ids = row.iter().chain(std::iter::repeat_n(&-1, columns.saturating_sub(row.len())));
        ids.take(columns).try_for_each(|id| out.write_all(&id.to_le_bytes()))?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::{
        super::{Failure, rows::Rows},
        *,
    };

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

    /// Reads a vector from a file of one row of the given type.
    fn row(descr: &str, data: &[u8], size: usize) -> Result<Vec<f32>, String> {
        let shape = format!("(1, {})", data.len() / size);
        let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
        let (_dir, path) = file(&npy(&header, data));
        let mut rows = Rows::open(&path).map_err(|Failure(line)| line)?;
        rows.vectors(1).map(|mut rows| rows.remove(0)).map_err(|Failure(line)| line)
    }

    #[test]
    fn vectors_are_read_one_batch_after_another() {
        let floats: Vec<u8> = [1.0f32, -2.5, 0.0, 4.0, 7.0, 8.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let (_dir, path) = file(&npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3L, 2L), }\n", &floats));
        let mut rows = Rows::open(&path).expect("opens");
        assert_eq!((rows.rows(), rows.columns()), (3, 2));
        assert_eq!(rows.vectors(1).expect("a row"), [[1.0, -2.5]]);
        rows.skip(1).expect("a row");
        assert_eq!(rows.vectors(1).expect("a row"), [[7.0, 8.0]]);
        let halves: Vec<u8> = [1.0f32, -2.5].iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        let (_dir, path) = file(&npy("{\"x\": 1, 'shape':(1,2),'fortran_order':False,'descr':'<f2'}", &halves));
        assert_eq!(Rows::open(&path).expect("opens").vectors(1).expect("a row"), [[1.0, -2.5]]);
    }

    #[test]
    fn every_plain_number_becomes_the_nearest_f32_in_both_byte_orders() {
        macro_rules! both {
            ($descr:literal, $values:expr, $size:literal) => {
                let values = $values;
                let expected: Vec<f32> = values.iter().map(|&x| x as f32).collect();
                let little: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
                let big: Vec<u8> = values.iter().flat_map(|x| x.to_be_bytes()).collect();
                assert_eq!(row(concat!("<", $descr), &little, $size).as_ref(), Ok(&expected), $descr);
                assert_eq!(row(concat!(">", $descr), &big, $size).as_ref(), Ok(&expected), $descr);
            };
        }
        both!("f8", [1.0f64, -2.5, 1e-300, 0.1], 8);
        both!("f4", [1.0f32, -2.5, f32::MAX, 0.1], 4);
        both!("i1", [1i8, -1, i8::MIN, i8::MAX], 1);
        both!("i2", [1i16, -1, i16::MIN, i16::MAX], 2);
        both!("i4", [1i32, -1, i32::MIN, i32::MAX], 4);
        // Just above the middle of two f32 values: double rounding would round down.
        both!("i8", [1i64, -1, i64::MIN, (1 << 60) + (1 << 36) + 1], 8);
        both!("u1", [1u8, 0, 200, u8::MAX], 1);
        both!("u2", [1u16, 0, 40_000, u16::MAX], 2);
        both!("u4", [1u32, 0, 1 << 31, u32::MAX], 4);
        both!("u8", [1u64, 0, 1 << 63, u64::MAX], 8);
        assert_eq!(row("|b1", &[0, 1, 1], 1), Ok(vec![0.0, 1.0, 1.0]));
        let half = f16::from_f32(-2.5);
        assert_eq!(row(">f2", &half.to_be_bytes(), 2), Ok(vec![-2.5]));
    }

    #[test]
    fn a_number_that_no_finite_f32_is_near_is_named() {
        let bytes = |values: &[f64]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let refused = row("<f8", &bytes(&[1.0, 1e300]), 8).expect_err("too large");
        assert!(refused.contains("row 0: number 1 is 1e300, which is too large for an f32"), "{refused}");
        let refused = row("<f8", &bytes(&[f64::NEG_INFINITY]), 8).expect_err("infinite");
        assert!(refused.ends_with("row 0: number 0 is -inf"), "{refused}");
        let refused = row("<f4", &[0, 0, 0xC0, 0x7F], 4).expect_err("no number");
        assert!(refused.ends_with("row 0: number 0 is NaN"), "{refused}");
    }

    #[test]
    fn one_dimension_is_one_row_where_that_is_meant() {
        let data: Vec<u8> = [1.0f32, 2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let (_dir, path) = file(&npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", &data));
        assert_eq!(Rows::open_or_one(&path).expect("opens").vectors(1).expect("a row"), [[1.0, 2.0]]);
        let Err(Failure(line)) = Rows::open(&path) else { panic!("a row per vector is wanted") };
        assert!(line.contains("reshape(1, -1)"), "{line}");
    }

    #[test]
    fn ids_are_read_as_they_were_written() {
        let ids = vec![vec![1, -1, i64::MAX], vec![4, 5]];
        let mut bytes = Vec::new();
        write_ids(&mut bytes, &ids, 3).expect("written");
        assert_eq!(bytes.len() % 64, 48);
        let (_dir, path) = file(&bytes);
        let mut rows = Rows::open(&path).expect("opens");
        assert_eq!(rows.ids(2).expect("ids"), [[1, -1, i64::MAX], [4, 5, -1]]);
        let (_dir, path) = file(&npy("{'descr': '<u8', 'fortran_order': False, 'shape': (1, 1), }", &[0xFF; 8]));
        let Err(Failure(line)) = Rows::open(&path).expect("opens").ids(1) else { panic!("no i64 holds that") };
        assert!(line.contains("row 0: id 0 is 18446744073709551615"), "{line}");
        let (_dir, path) = file(&npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1), }", &[0; 4]));
        assert!(Rows::open(&path).expect("opens").ids(1).is_err(), "floats are no ids");
    }

    #[test]
    fn rubbish_is_refused_with_its_name() {
        let good = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }";
        let mut long = MAGIC.to_vec();
        long.extend([2, 0]);
        long.extend(u32::MAX.to_le_bytes());
        let cases = [
            Vec::new(),
            b"PK\x03\x04 something else".to_vec(),
            MAGIC.to_vec(),
            long,
            npy(good, &[0; 15]),
            npy(good, &[0; 17]),
            npy(&good.replace("<f4", "<c8"), &[0; 32]),
            npy(&good.replace("<f4", "|O"), &[0; 32]),
            npy(&good.replace("'<f4'", "[('x', '<f4')]"), &[0; 16]),
            npy(&good.replace("<f4", "<f16"), &[0; 64]),
            npy(&good.replace("<f4", "€"), &[0; 16]),
            npy(&good.replace("False", "True"), &[0; 16]),
            npy(&good.replace("(2, 2)", "()"), &[0; 4]),
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
