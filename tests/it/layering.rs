//! Tests of the dependencies between modules: each module depends only on modules of lower layers, and the public API
//! reaches every module. The engine uses no clock, thread, random number source or hash order, and the independent
//! checker imports nothing of the engine.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Modules from the highest layer to the lowest. A module may depend only on modules after it.
const ORDER: &[&str] = &[
    "blocking",
    "shardex",
    "observe",
    "engine",
    "index",
    "payload",
    "cells",
    "wal",
    "shard",
    "space",
    "format",
    "codes",
    "distance",
    "lease",
    "storage",
    "batch",
    "config",
    "posting",
    "explain",
    "filter",
    "env",
    "runtime",
    "access",
    "error",
    "tuning",
    "limits",
    "id",
    "failpoint",
];

/// Pairs (A, B) in which A must not depend on B although the order would allow it.
const STRANGERS: &[(&str, &str)] = &[("wal", "shard"), ("index", "wal"), ("storage", "config"), ("format", "storage")];

/// Collects the source files in a directory. A directory in it that has a manifest is another crate, and left out.
pub(crate) fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("the sources are there") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            if !path.join("Cargo.toml").exists() {
                sources(&path, into);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// Returns, for each top-level module, the modules whose names its files use after `crate::`.
fn arrows() -> BTreeMap<String, BTreeSet<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut arrows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in files {
        let relative = file.strip_prefix(&root).expect("below src");
        let module = relative.iter().next().expect("a name").to_string_lossy().trim_end_matches(".rs").to_owned();
        if ["lib", "bin", "cli", "guide"].contains(&module.as_str()) {
            continue;
        }
        let text = fs::read_to_string(&file).expect("readable");
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let code: String = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        let used = arrows.entry(module.clone()).or_default();
        for (at, _) in code.match_indices("crate::") {
            let rest = &code[at + "crate::".len()..];
            let names: Vec<&str> = match rest.strip_prefix('{') {
                // The first name of each item of a group.
                Some(group) => top_level_items(group),
                None => vec![rest],
            };
            for name in names {
                let name: String = name.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                // The crate root re-exports these types, so the dependency is on the module that defines them.
                let target = match name.as_str() {
                    "ShardexError" | "Result" => "error".to_owned(),
                    _ => name,
                };
                if target != module {
                    used.insert(target);
                }
            }
        }
    }
    arrows
}

/// Splits the inside of `{a::{b, c}, d}` at its outer commas.
fn top_level_items(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut items) = (0, 0, Vec::new());
    for (i, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                items.push(&group[start..i]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                items.push(&group[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    items.retain(|item| !item.trim().is_empty());
    items
}

#[test]
fn arrows_run_down_only() {
    let mut wrong = Vec::new();
    for (from, targets) in arrows() {
        let place = |name: &str| ORDER.iter().position(|module| *module == name);
        let at = place(&from).unwrap_or_else(|| panic!("module `{from}` has no place in ORDER"));
        for to in targets {
            match place(&to) {
                Some(below) if below > at => {}
                Some(_) => wrong.push(format!("{from} -> {to} runs upward")),
                None => wrong.push(format!("{from} -> {to}: unknown module")),
            }
            if STRANGERS.contains(&(from.as_str(), to.as_str())) {
                wrong.push(format!("{from} must not know {to}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_api_reaches_every_module() {
    let arrows = arrows();
    let mut reached = BTreeSet::from(["blocking".to_owned()]);
    let mut next = vec!["blocking".to_owned()];
    while let Some(module) = next.pop() {
        for target in arrows.get(&module).into_iter().flatten() {
            if reached.insert(target.clone()) {
                next.push(target.clone());
            }
        }
    }
    let missed: Vec<_> = arrows.keys().filter(|module| !reached.contains(*module)).collect();
    assert!(missed.is_empty(), "not reached: {missed:?}");
}

#[test]
fn the_engine_takes_neither_time_nor_chance_nor_threads_by_itself() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    for file in files {
        let name = file.strip_prefix(&root).expect("below src").to_string_lossy().into_owned();
        // The visited set has no iteration.
        if ["lib.rs", "env.rs", "blocking.rs", "index/visited.rs"].contains(&name.as_str())
            || name.starts_with("shardex/")
            || name.starts_with("guide/")
            || name.starts_with("bin")
            || name.starts_with("cli")
        {
            continue;
        }
        let text = fs::read_to_string(&file).expect("readable");
        for forbidden in ["Instant::now", "SystemTime", "thread::spawn", "HashMap", "HashSet", "SysRng", "tokio"] {
            assert!(!text.contains(forbidden), "{name} uses {forbidden}");
        }
    }
}

/// Checks that hashed containers are used only behind a type without iteration, because the order of hashes differs
/// between runs.
#[test]
fn nothing_is_listed_in_the_order_of_hashes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&root.join("src"), &mut files);
    sources(&root.join("sim/src"), &mut files);
    let mut users = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("readable");
        if text.contains("HashMap") || text.contains("HashSet") {
            users.push(file.strip_prefix(root).expect("below the root").to_owned());
        }
    }
    users.sort();
    assert_eq!(users, [Path::new("sim/src/hashed.rs"), Path::new("src/index/visited.rs")]);
}

/// Checks that the library and its manifest never name madsim. So a program that embeds the library gets no simulator,
/// and no compiler flag of its build switches the library to one.
#[test]
fn the_library_names_no_simulator() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = vec![root.join("Cargo.toml")];
    sources(&root.join("src"), &mut files);
    for file in files {
        let text = fs::read_to_string(&file).expect("readable");
        assert!(!text.contains("madsim"), "{} names madsim", file.display());
    }
}

/// Checks that the independent checker and the monitor import nothing from the engine, because a shared parser would
/// repeat the engine's mistakes.
#[test]
fn the_second_judge_has_parsers_of_its_own() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("sim/src");
    let mut files = Vec::new();
    sources(&root.join("fsck"), &mut files);
    sources(&root.join("monitor"), &mut files);
    assert!(files.len() > 15, "{files:?}");
    for file in files {
        let text = fs::read_to_string(&file).expect("readable");
        for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
            let foreign = ["shardex::", "extern crate", "crate::storage", "crate::model", "crate::workload"];
            assert!(!foreign.iter().any(|name| line.contains(name)), "{}: {line}", file.display());
        }
    }
}
