//! Fuzz target: verifies and restores a backup with hostile values under right checksums and hashes.

use std::sync::OnceLock;

use shardex::{
    Engine, ShardexConfig, WriteBatch,
    env::Never,
    format::{
        codec,
        header::CRC_AT,
        manifest::{Manifest, content_hash},
    },
    restore,
    storage::Storage as _,
    verify_backup,
};

use super::{Bytes, VALUES};
use crate::{
    storage::SimStorage,
    workload::{env, postings},
};

/// Offset of the hash in a manifest, and its length.
const HASH: std::ops::Range<usize> = 16..48;
/// Offset of the root in a manifest.
const ROOT_AT: usize = 96;
/// Length of the entry of a place, and offset of the hash in it.
const PLACE_BYTES: usize = 56;
const PLACE_HASH_AT: usize = 24;

/// Files of a whole backup.
fn whole() -> &'static [(String, Vec<u8>)] {
    static WHOLE: OnceLock<Vec<(String, Vec<u8>)>> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let config = ShardexConfig::new("fuzz").vector_size(5).shard_size(8).wal_segment_size(2048);
        let made = Engine::create(SimStorage::new(512, 64, 1), &config.wal_max_bytes(64 << 10), &env());
        let to = SimStorage::new(512, 64, 2);
        let backed_up = made.and_then(|mut engine| {
            let mut batch = WriteBatch::new();
            for posting in postings(0..40, 0, 1, 5) {
                batch.add(posting);
            }
            for id in (0..40u32).step_by(5) {
                batch.set_payload(id, vec![b'x'; 90 * id as usize]);
            }
            engine.write(&batch)?;
            engine.optimize()?;
            engine.flush()?;
            engine.backup_begin()?.run_until(&to, None, &Never)
        });
        assert!(backed_up.is_ok(), "{backed_up:?}");
        to.files()
    })
}

/// Changes bytes of the root, of the manifest or of a place as the input says, seals them, verifies the backup and restores it.
///
/// # Panics
/// Panics if that panics, if a restored index does not open, or if a backup without changes is refused.
pub fn backup(input: &[u8]) {
    let mut input = Bytes(input);
    let mut files = whole().to_vec();
    let is_unchanged = input.is_empty();
    let [(_, manifest), (_, pack)] = &mut files[..] else { unreachable!("a manifest and a pack") };
    while !input.is_empty() {
        let (kind, offset, width) = (input.below(3), usize::from(input.u16()), [1, 2, 4, 8][input.below(4) as usize]);
        let value = match input.below(2) {
            0 => VALUES[input.below(VALUES.len() as u64) as usize],
            _ => u64::from(input.u16()),
        };
        let value = &value.to_le_bytes()[..width];
        match kind {
            0 => put(manifest, offset, value),
            1 => put(manifest, ROOT_AT + offset % 512, value),
            _ => {
                let at = offset * 3;
                put(pack, at, value);
                seal_places(manifest, pack, at);
            }
        }
    }
    seal(manifest);
    let from = SimStorage::new(512, 64, 3);
    let purpose = shardex::storage::Purpose("fuzz");
    assert!(from.make_dir(purpose).is_ok());
    for (name, bytes) in files {
        assert!(from.create(&name, purpose).is_ok());
        from.tamper(&name, |all| *all = bytes);
    }
    let verified = verify_backup(&from, &Never);
    let to = SimStorage::new(512, 64, 4);
    let restored = restore(&from, to.clone(), &env(), &Never);
    assert!(!is_unchanged || restored.is_ok(), "{restored:?}");
    if restored.is_ok() {
        assert!(verified.is_ok(), "{verified:?}");
        let opened = Engine::open(to, shardex::OpenOptions::default(), &env());
        assert!(opened.is_ok(), "{:?}", opened.map(drop));
    }
}

fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    let offset = offset % bytes.len();
    let width = value.len().min(bytes.len() - offset);
    bytes[offset..offset + width].copy_from_slice(&value[..width]);
}

/// Stores the hashes of the places that hold byte `at` of the pack.
fn seal_places(manifest: &mut [u8], pack: &[u8], at: usize) {
    let (name, at) = (whole()[0].1.as_slice(), (at % pack.len()) as u64);
    let Ok(decoded) = Manifest::decode(name) else { unreachable!("it is whole") };
    let first = manifest.len() - decoded.places.len() * PLACE_BYTES;
    for (i, place) in decoded.places.iter().enumerate() {
        // A value has up to eight bytes.
        if place.offset <= at + 8 && at < place.offset + u64::from(place.len) {
            let hash = content_hash(&pack[place.offset as usize..][..place.len as usize]);
            let field = first + i * PLACE_BYTES + PLACE_HASH_AT;
            manifest[field..field + hash.len()].copy_from_slice(&hash);
        }
    }
}

/// Seals the root in the manifest, then the manifest.
fn seal(manifest: &mut [u8]) {
    if let Some(root) = manifest.get_mut(ROOT_AT..ROOT_AT + 512) {
        codec::seal(root, CRC_AT, 0);
    }
    manifest[HASH].fill(0);
    let hash = content_hash(manifest);
    manifest[HASH].copy_from_slice(&hash);
}
