//! Command `shardex export`.
//!
//! Invariants:
//! 1. A header that was written first counts exactly the rows that follow, or the file never gets its name.
//! 2. The file of the vectors gets its name last. Once it has it, the file of the keys is complete too.

use std::{
    ffi::OsStr,
    fs::File,
    io::{BufWriter, Write as _},
    path::Path,
};

use half::f16;
use indicatif::ProgressBar;
use serde_json::json;
use shardex::{IndexSnapshot, Posting};

use super::{
    Answer, Failure, Outcome,
    args::{FileOutput, OutputDtype},
    interrupt::Interrupt,
    npy,
    output::Output,
    reading::read,
    target::Target,
};

pub(super) fn run(args: &FileOutput, output: &Output) -> Outcome {
    let format = VectorFormat::of(args)?;
    // Signals are caught before the temporary files exist, so that they are removed in every case.
    let interrupt = Interrupt::listen()?;
    let vectors = Target::begin(&args.file, args.force, &args.dir, &[])?;
    let keys = args.ids.as_ref().map(|ids| Target::begin(ids, args.force, &args.dir, &[])).transpose()?;
    if keys.as_ref().is_some_and(|keys| keys.is_same(&vectors)) {
        let file = args.file.display();
        return Err(Failure(format!("--ids: {file} is the file of the vectors: name another one for the keys")));
    }
    let unfinished: Vec<&Path> =
        [Some(&vectors), keys.as_ref()].into_iter().flatten().map(|target| target.unfinished()).collect();
    interrupt.removes(&unfinished)?;
    let (rows, dimension) = read(&args.dir, |snapshot, stats| {
        if snapshot.is_empty() && format == VectorFormat::Fvecs {
            let file = args.file.display();
            return Err(Failure(format!("{file}: an .fvecs file can't hold no vector: name an .npy file")));
        }
        let bar = output.bar(snapshot.len(), "exporting");
        let written = write_all(snapshot, format, stats.dimension, &vectors, keys.as_ref(), &bar);
        bar.finish_and_clear();
        written?;
        Ok((snapshot.len(), stats.dimension))
    })?;
    if let Some(keys) = keys {
        keys.publish()?;
    }
    vectors.publish()?;
    let object = json!({ "postings": rows, "dimension": dimension, "dtype": format.dtype_name() });
    let file = args.file.display();
    output.result(&object, &format!("{rows} vectors of {dimension} numbers ({}) in {file}", format.dtype_name()));
    Ok(Answer::Yes)
}

/// Format of the file of the vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum VectorFormat {
    Npy(OutputDtype),
    Fvecs,
}

impl VectorFormat {
    /// Returns the format that the extension of the file's name says.
    fn of(args: &FileOutput) -> Result<Self, Failure> {
        let file = args.file.display();
        let extension = args.file.extension().and_then(OsStr::to_str).map(str::to_ascii_lowercase);
        match (extension.as_deref(), args.dtype) {
            (Some("npy"), dtype) => Ok(Self::Npy(dtype)),
            (Some("fvecs"), OutputDtype::F32) => Ok(Self::Fvecs),
            (Some("fvecs"), OutputDtype::F16) => {
                Err(Failure(format!("--dtype f16: {file} holds f32, as every .fvecs file: name an .npy file")))
            }
            _ => Err(Failure(format!("{file}: end the name in .npy or .fvecs, which says the format"))),
        }
    }

    fn dtype_name(self) -> &'static str {
        match self {
            Self::Npy(OutputDtype::F16) => "f16",
            Self::Npy(OutputDtype::F32) | Self::Fvecs => "f32",
        }
    }

    /// Appends a row to `row`.
    fn encode(self, posting: &Posting, row: &mut Vec<u8>) -> Result<(), Failure> {
        match self {
            Self::Npy(OutputDtype::F16) => {
                for (i, &x) in posting.vector.iter().enumerate() {
                    let half = f16::from_f32(x);
                    if !half.is_finite() {
                        let key = posting.key();
                        let what = format!("posting {key}: number {i} is {x:?}, which is too large for an f16");
                        return Err(Failure(format!("--dtype f16: {what}: export f32")));
                    }
                    row.extend(half.to_le_bytes());
                }
                return Ok(());
            }
            Self::Npy(OutputDtype::F32) => {}
            Self::Fvecs => row.extend((posting.vector.len() as i32).to_le_bytes()),
        }
        row.extend(posting.vector.iter().flat_map(|x| x.to_le_bytes()));
        Ok(())
    }
}

/// File that is being written.
struct Writing<'a> {
    target: &'a Target,
    out: BufWriter<&'a File>,
}

impl<'a> Writing<'a> {
    fn new(target: &'a Target) -> Self {
        Self { target, out: target.writer() }
    }

    /// Begins an array.
    fn begin(&mut self, descr: &str, rows: u64, columns: usize) -> Result<(), Failure> {
        npy::write_header(&mut self.out, descr, rows, columns).map_err(|e| self.target.failed(&e))
    }

    fn put(&mut self, row: &[u8]) -> Result<(), Failure> {
        self.out.write_all(row).map_err(|e| self.target.failed(&e))
    }

    fn end(mut self) -> Result<(), Failure> {
        self.out.flush().map_err(|e| self.target.failed(&e))
    }
}

/// Writes all postings of the snapshot, one at a time.
fn write_all(
    snapshot: &IndexSnapshot,
    format: VectorFormat,
    dimension: usize,
    vectors: &Target,
    keys: Option<&Target>,
    bar: &ProgressBar,
) -> Result<(), Failure> {
    let rows = snapshot.len();
    let (mut vectors, mut keys) = (Writing::new(vectors), keys.map(Writing::new));
    match format {
        VectorFormat::Npy(OutputDtype::F32) => vectors.begin("<f4", rows, dimension)?,
        VectorFormat::Npy(OutputDtype::F16) => vectors.begin("<f2", rows, dimension)?,
        VectorFormat::Fvecs => {}
    }
    if let Some(keys) = &mut keys {
        keys.begin("<u8", rows, 4)?;
    }
    let (mut written, mut row) = (0, Vec::new());
    for posting in snapshot.scan() {
        let posting = posting?;
        row.clear();
        format.encode(&posting, &mut row)?;
        vectors.put(&row)?;
        if let Some(keys) = &mut keys {
            keys.put(&key_row(&posting))?;
        }
        written += 1;
        bar.inc(1);
    }
    if written != rows {
        let advice = "run `shardex check --full`";
        return Err(Failure(format!(
            "the index has {rows} postings, and {written} were found in its shards: {advice}"
        )));
    }
    keys.map_or(Ok(()), Writing::end)?;
    vectors.end()
}

/// Returns a key as four numbers: the low and the high half of the id, the start, the length.
fn key_row(posting: &Posting) -> [u8; 32] {
    let mut row = [0; 32];
    row[..16].copy_from_slice(&posting.document_id.0.to_le_bytes());
    row[16..24].copy_from_slice(&u64::from(posting.start).to_le_bytes());
    row[24..].copy_from_slice(&u64::from(posting.length).to_le_bytes());
    row
}
