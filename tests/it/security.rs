//! Tests of what strangers may do by files: links and special files in the directory of an index are refused, and the
//! files of a new index are its owner's alone.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _, symlink},
        net::UnixListener,
    },
    path::Path,
    process::Command,
};

use shardex::{FileAccess, Shardex, ShardexConfig, ShardexError, observe::StatsReport};
use tempfile::TempDir;

use crate::support::{TestIndex, block_on, documents, ids};

const FILES: [&str; 4] = ["LOCK", "data", "root", "wal"];

fn index() -> TestIndex {
    let index = TestIndex::small();
    let mut engine = index.create();
    engine.add(&documents(0..30)).expect("added");
    engine.close().expect("closed");
    index
}

#[track_caller]
fn refused(index: &TestIndex, name: &str, what: &str) {
    match index.try_open().map(drop) {
        Err(ShardexError::NotAnIndex { file, reason }) => {
            assert_eq!(file, index.path().join(name));
            assert!(reason.contains(what), "{name}: {reason}");
        }
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn links_are_refused_and_a_link_to_the_directory_is_not() {
    let index = index();
    for name in FILES {
        let (path, aside) = (index.path().join(name), index.parent().join("aside"));
        fs::rename(&path, &aside).expect("moved");
        let before = fs::read(&aside).expect("bytes");
        symlink(&aside, &path).expect("a link");
        refused(&index, name, "symbolic link");
        assert_eq!(fs::read(&aside).expect("bytes"), before, "what a link names is not touched");
        fs::remove_file(&path).expect("removed");
        fs::hard_link(&aside, &path).expect("a link");
        refused(&index, name, "2 names");
        fs::remove_file(&aside).expect("removed");
    }
    symlink(index.path(), index.parent().join("link")).expect("a link");
    let opened = block_on(Shardex::open(index.parent().join("link"))).expect("the path may be a link");
    block_on(opened.close()).expect("closed");
    assert_eq!(ids(&index.open()).len(), 30);
}

#[test]
fn special_files_are_refused_without_a_wait() {
    let index = index();
    for name in FILES {
        let (path, aside) = (index.path().join(name), index.parent().join("aside"));
        fs::rename(&path, &aside).expect("moved");
        let made = Command::new("mkfifo").arg(&path).status().expect("mkfifo runs");
        assert!(made.success());
        refused(&index, name, "named pipe");
        fs::remove_file(&path).expect("removed");
        let socket = UnixListener::bind(&path).expect("a socket");
        refused(&index, name, "socket");
        drop(socket);
        fs::remove_file(&path).expect("removed");
        fs::create_dir(&path).expect("a directory");
        refused(&index, name, "directory");
        fs::remove_dir(&path).expect("removed");
        symlink("/dev/zero", &path).expect("a link");
        refused(&index, name, "symbolic link");
        fs::remove_file(&path).expect("removed");
        fs::rename(&aside, &path).expect("moved back");
    }
    assert_eq!(ids(&index.open()).len(), 30);
}

#[test]
fn a_stats_file_that_is_no_file_is_not_read() {
    let dir = TempDir::new().expect("a directory");
    let stats = dir.path().join("stats");
    symlink("/dev/zero", &stats).expect("a link");
    let error = StatsReport::read(dir.path()).expect_err("it is a link");
    assert!(error.to_string().contains("symbolic link"), "{error}");
    fs::remove_file(&stats).expect("removed");
    assert!(Command::new("mkfifo").arg(&stats).status().expect("mkfifo runs").success());
    let error = StatsReport::read(dir.path()).expect_err("it is a pipe");
    assert!(error.to_string().contains("named pipe"), "{error}");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it exists").mode() & 0o777
}

/// Returns the modes of all files of an index that was written to, crashed and recovered, with its statistics file.
fn modes(config: ShardexConfig) -> Vec<(String, u32)> {
    let path = config.directory_path.clone();
    let made = block_on(Shardex::create(config.stats_file(true))).expect("made");
    block_on(made.add_postings(documents(0..10))).expect("added");
    block_on(made.flush()).expect("flushed");
    drop(made);
    // The recovery replaces the root file.
    let options = shardex::OpenOptions::default().stats_file(true);
    let mut opened = block_on(Shardex::open_with(&path, options.clone()));
    while matches!(opened, Err(ShardexError::Locked { .. })) {
        opened = block_on(Shardex::open_with(&path, options.clone()));
    }
    let opened = opened.expect("opened");
    block_on(opened.add_postings(documents(10..20))).expect("added");
    block_on(opened.close()).expect("closed");
    let entries = fs::read_dir(&path).expect("readable").map(|entry| entry.expect("an entry"));
    let mut modes: Vec<_> =
        entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), mode(&entry.path()))).collect();
    modes.sort();
    modes
}

#[test]
fn the_files_of_an_index_are_private_unless_asked_otherwise() {
    let dir = TempDir::new().expect("a directory");
    let config = |name: &str| ShardexConfig::new(dir.path().join(name)).vector_size(crate::support::DIMENSION);
    let private = modes(config("private"));
    assert!(private.len() >= 5 && private.iter().all(|(_, mode)| *mode == 0o600), "{private:?}");
    assert_eq!(mode(&dir.path().join("private")), 0o700);
    let shared = modes(config("shared").file_access(FileAccess::Umask));
    let expected = {
        let probe = dir.path().join("probe");
        fs::write(&probe, "x").expect("written");
        mode(&probe)
    };
    assert!(shared.iter().all(|(_, mode)| *mode == expected), "{shared:?}, {expected:o}");
    // The permissions of the files may be changed, and files that are added later follow.
    let path = dir.path().join("private");
    for (name, _) in &private {
        fs::set_permissions(path.join(name), fs::Permissions::from_mode(0o640)).expect("changed");
    }
    for name in ["LOCK", "stats"] {
        fs::remove_file(path.join(name)).expect("removed");
    }
    let options = shardex::OpenOptions::default().stats_file(true);
    let opened = block_on(Shardex::open_with(&path, options)).expect("opened");
    block_on(opened.add_postings(documents(30..40))).expect("added");
    block_on(opened.close()).expect("closed");
    for (name, _) in &private {
        assert_eq!(mode(&path.join(name)), 0o640, "{name}");
    }
}

/// A file of an open index, or its directory, is removed, or another one takes its name. The next commit or flush says so, and
/// acknowledges nothing. A directory that was only moved loses nothing.
#[test]
fn files_that_are_removed_or_replaced_are_noticed() {
    type Change = fn(&Path);
    let replace = |dir: &Path| {
        let old = dir.with_extension("old");
        fs::rename(dir, &old).expect("moved");
        fs::create_dir(dir).expect("made");
        for name in ["data", "wal", "root"] {
            fs::copy(old.join(name), dir.join(name)).expect("copied");
        }
    };
    let changes: [(&str, Change); 5] = [
        ("wal", |dir| fs::remove_dir_all(dir).expect("removed")),
        ("wal", |dir| fs::remove_file(dir.join("wal")).expect("removed")),
        ("data", |dir| fs::remove_file(dir.join("data")).expect("removed")),
        ("root", |dir| {
            fs::rename(dir.join("root"), dir.join("before")).expect("moved");
            fs::copy(dir.join("before"), dir.join("root")).expect("copied");
        }),
        ("wal", replace),
    ];
    for (n, (file, change)) in changes.into_iter().enumerate() {
        for flushes in [false, true] {
            let index = TestIndex::small();
            let mut engine = index.create();
            engine.add(&documents(0..10)).expect("added");
            engine.commit().expect("durable");
            change(&index.path());
            engine.add(&documents(10..20)).expect("accepted");
            let done = if flushes { engine.flush().map(drop) } else { engine.commit().map(drop) };
            let error = done.expect_err("it is gone");
            let ShardexError::FileReplaced { file: found } = &error else { panic!("{n}: {error}") };
            assert_eq!(*found, index.path().join(file), "{n}");
            assert!(error.to_string().contains("open the index again"), "{error}");
            assert!(matches!(engine.add(&documents(20..21)), Err(ShardexError::Poisoned { .. })), "{n}");
        }
    }
    let index = TestIndex::small();
    let mut engine = index.create();
    let moved = index.parent().join("moved");
    fs::rename(index.path(), &moved).expect("moved");
    engine.add(&documents(0..10)).expect("added");
    engine.commit().expect("it goes on under its new name");
    drop(engine);
    fs::rename(&moved, index.path()).expect("moved back");
    assert_eq!(ids(&index.open()).len(), 10);
}
