//! Commands `shardex backup`, `restore` and `verify`.

use std::time::Instant;

use serde_json::json;
use shardex::{BackupOptions, Shardex, ShardexError, VerifyStats};

use super::{
    Answer, Outcome,
    backup_args::{BackupCommand, Restore, Verify},
    block_on,
    output::Output,
};

pub(super) fn backup(args: &BackupCommand, output: &Output) -> Outcome {
    block_on(1, async {
        let index = Shardex::open(&args.dir).await?;
        let options =
            args.base.as_ref().map_or_else(BackupOptions::default, |base| BackupOptions::default().base(base));
        let made = index.backup_with(&args.to, &options).await;
        index.close().await?;
        let made = made?;
        let seconds = made.duration.as_secs_f64();
        let object = json!({
            "backup_seconds": seconds,
            "lsn": made.lsn.0,
            "base_lsn": made.base_lsn.map(|lsn| lsn.0),
            "places": made.places,
            "bytes": made.bytes,
            "stored_bytes": made.stored_bytes,
            "copied_bytes": made.copied_bytes,
            "cells_left_out": made.cells_left_out,
        });
        let shared = made.bytes - made.stored_bytes;
        let mut text = format!("{} bytes backed up in {seconds:.2} s", made.bytes);
        if made.base_lsn.is_some() {
            text.push_str(&format!(": {} stored, {shared} shared with the earlier backup", made.stored_bytes));
        }
        if made.cells_left_out {
            text.push_str("\nthe cells are damaged and were left out: a restored index builds them again");
        }
        output.result(&object, &text);
        Ok(Answer::Yes)
    })
}

pub(super) fn restore(args: &Restore, output: &Output) -> Outcome {
    block_on(1, async {
        let began = Instant::now();
        let restored = Shardex::restore(&args.from, &args.dir).await?;
        let seconds = began.elapsed().as_secs_f64();
        let mut object = verified(&restored);
        object["restore_seconds"] = seconds.into();
        output.result(&object, &format!("{} postings restored and checked in {seconds:.2} s", restored.postings));
        Ok(Answer::Yes)
    })
}

pub(super) fn verify(args: &Verify, output: &Output) -> Outcome {
    block_on(1, async {
        let began = Instant::now();
        match Shardex::verify_backup(&args.from).await {
            Ok(found) => {
                let seconds = began.elapsed().as_secs_f64();
                let mut object = verified(&found);
                object["verify_seconds"] = seconds.into();
                object["damaged"] = false.into();
                let text = format!("{} postings, {} bytes, no damage, in {seconds:.2} s", found.postings, found.bytes);
                output.result(&object, &text);
                Ok(Answer::Yes)
            }
            Err(error @ ShardexError::Corruption { .. }) => {
                output.result(&json!({ "damaged": true, "damage": error.to_string() }), &error.to_string());
                Ok(Answer::No)
            }
            Err(error) => Err(error.into()),
        }
    })
}

fn verified(found: &VerifyStats) -> serde_json::Value {
    json!({
        "lsn": found.lsn.0,
        "unix_ms": found.unix_ms,
        "total_postings": found.postings,
        "places": found.places,
        "bytes": found.bytes,
        "file_bytes": found.file_bytes,
    })
}
