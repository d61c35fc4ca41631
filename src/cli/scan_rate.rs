//! Measurement of `shardex scan --measure`: the rate of a scan beside that of a plain read of the data file.

use std::{
    fs::File,
    io::Read as _,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{Answer, Outcome, bench_data::median, output::Output, reading::read};

/// Number of rounds. In each, a plain read and a scan take turns.
const ROUNDS: usize = 7;
/// Bytes that the plain read asks for at once, as `cat` does.
const CHUNK: usize = 128 << 10;

/// One scan of all postings.
struct Scanned {
    postings: u64,
    bytes: u64,
    time: Duration,
}

/// Measures scans. Each opens the index anew, so that it reads and compares every checksum.
pub(super) fn measure(dir: &Path, output: &Output) -> Outcome {
    let (mut plain, mut rates, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let mut last = None;
    for _ in 0..ROUNDS {
        let (bytes, time) = read_file(&dir.join("data"))?;
        let cat = bytes as f64 / time.as_secs_f64();
        let scanned = scan(dir)?;
        let rate = scanned.bytes as f64 / scanned.time.as_secs_f64();
        plain.push(cat);
        rates.push(rate);
        ratios.push(rate / cat);
        last = Some(scanned);
    }
    let Some(Scanned { postings, bytes, .. }) = last else { unreachable!("there was a round") };
    let (plain, rate, ratio) = (median(plain), median(rates), median(ratios));
    let memory = memory();
    let object = json!({
        "postings": postings, "bytes": bytes, "bytes_per_second": rate, "plain_bytes_per_second": plain, "ratio": ratio,
        "memory_bytes": memory,
    });
    let text = format!(
        "{postings} postings, {bytes} bytes of vectors\n\
         scan        {:.2} GB/s\nplain read  {:.2} GB/s\nratio       {ratio:.2} (medians of {ROUNDS} rounds)\n\
         memory      {:.1} MB besides the mapped files",
        rate / 1e9,
        plain / 1e9,
        memory as f64 / 1e6
    );
    output.result(&object, &text);
    Ok(Answer::Yes)
}

fn read_file(path: &Path) -> std::io::Result<(u64, Duration)> {
    let (mut file, mut buffer, mut bytes) = (File::open(path)?, vec![0; CHUNK], 0);
    let start = Instant::now();
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((bytes, start.elapsed())),
            n => bytes += n as u64,
        }
    }
}

fn scan(dir: &Path) -> Result<Scanned, super::Failure> {
    read(dir, |snapshot, _| {
        let (mut postings, mut bytes, mut sum) = (0, 0, 0.0);
        let start = Instant::now();
        for posting in snapshot.scan() {
            let posting = posting?;
            postings += 1;
            bytes += size_of_val(&*posting.vector) as u64;
            sum += posting.vector.first().copied().unwrap_or_default();
        }
        let time = start.elapsed();
        // The vectors are used, so that no part of the scan is left out.
        std::hint::black_box(sum);
        Ok(Scanned { postings, bytes, time })
    })
}

/// Returns the bytes of memory that the process holds besides mapped files; 0 if they are unknown.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes =
        status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    kilobytes.map_or(0, |kilobytes: u64| kilobytes << 10)
}
