//! The shape of the sources: no circles between files, small files and functions, and the words of the glossary.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use crate::layering::sources;

/// Longest source file, in lines.
const FILE_LINES: usize = 450;
/// Longest function, in lines, its signature and braces included.
const FUNCTION_LINES: usize = 60;
/// Functions that are tables and may be longer.
const TABLES: &[&str] = &["postings", "batches"];

/// Path of a module, from the crate root.
type Module = Vec<String>;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// The source files of a crate, by module, without comments and unit tests.
fn modules(src: &Path) -> BTreeMap<Module, String> {
    fn collect(dir: &Path, module: &Module, into: &mut BTreeMap<Module, String>) {
        for entry in fs::read_dir(dir).expect("the sources are there") {
            let path = entry.expect("an entry").path();
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            let below = |name: &str| module.iter().cloned().chain([name.to_owned()]).collect::<Module>();
            if path.is_dir() {
                // A directory with a manifest is another crate.
                if !path.join("Cargo.toml").exists() {
                    collect(&path, &below(&name), into);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let module =
                    if ["mod", "lib", "main"].contains(&name.as_str()) { module.clone() } else { below(&name) };
                into.insert(module, code(&fs::read_to_string(&path).expect("readable")));
            }
        }
    }
    let mut modules = BTreeMap::new();
    collect(src, &Vec::new(), &mut modules);
    modules
}

/// Source text without comments and without the unit tests at its end.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).flat_map(|line| [line, "\n"]).collect()
}

/// Expands `a::{b, c::d}` to `a::b` and `a::c::d`.
fn expand(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some((prefix, rest)) = tree.split_once('{') else { return vec![tree.to_owned()] };
    let inner = rest.strip_suffix('}').unwrap_or(rest);
    let (mut depth, mut start, mut paths) = (0, 0, Vec::new());
    for (i, c) in inner.char_indices().chain([(inner.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                if !inner[start..i].trim().is_empty() {
                    paths.extend(expand(&inner[start..i]).into_iter().map(|path| format!("{}{path}", prefix.trim())));
                }
                start = i + 1;
            }
            _ => {}
        }
    }
    paths
}

/// A `use` of a file: the module it leads to, the rest of the path, the name it binds, and whether it is a re-export.
struct Use {
    target: Module,
    rest: Vec<String>,
    name: String,
    is_public: bool,
}

/// Resolves a path in a module to the file it leads to.
fn resolve(files: &BTreeMap<Module, String>, module: &Module, path: &str) -> Option<(Module, Vec<String>)> {
    let mut segments: Vec<String> = path.split("::").map(|segment| segment.trim().to_owned()).collect();
    let mut at = module.clone();
    match segments[0].as_str() {
        "crate" => {
            at.clear();
            segments.remove(0);
        }
        "self" => drop(segments.remove(0)),
        "super" => {
            while segments.first().is_some_and(|segment| segment == "super") {
                at.pop();
                segments.remove(0);
            }
        }
        child => {
            let below: Module = module.iter().cloned().chain([child.to_owned()]).collect();
            files.get(&below)?;
        }
    }
    while let Some(segment) = segments.first() {
        let below: Module = at.iter().cloned().chain([segment.clone()]).collect();
        if !files.contains_key(&below) {
            break;
        }
        at = below;
        segments.remove(0);
    }
    Some((at, segments))
}

fn uses(files: &BTreeMap<Module, String>, module: &Module, text: &str) -> Vec<Use> {
    let mut found = Vec::new();
    for statement in text.split(';') {
        let Some(at) = statement.rfind("use ").filter(|&at| {
            let line = statement[..at].rsplit('\n').next().unwrap_or_default().trim();
            line.is_empty() || line.starts_with("pub")
        }) else {
            continue;
        };
        let is_public = statement[..at].rsplit('\n').next().unwrap_or_default().contains("pub");
        for path in expand(&statement[at + 4..]) {
            let (path, name) = path.split_once(" as ").map_or((path.as_str(), None), |(path, name)| (path, Some(name)));
            if let Some((target, rest)) = resolve(files, module, path) {
                let name = name.or(path.rsplit("::").next()).unwrap_or_default().trim().to_owned();
                found.push(Use { target, rest, name, is_public });
            }
        }
    }
    found
}

/// For each file, the files whose items it uses. A re-export leads to the file that defines the item.
fn arrows(src: &Path) -> BTreeMap<Module, BTreeSet<Module>> {
    let files = modules(src);
    let uses: BTreeMap<&Module, Vec<Use>> =
        files.iter().map(|(module, text)| (module, uses(&files, module, text))).collect();
    let definition = |target: &Module, rest: &[String]| {
        let (mut target, mut rest) = (target.clone(), rest.to_vec());
        for _ in 0..8 {
            let exported = uses[&target].iter().find(|used| used.is_public && rest.first() == Some(&used.name));
            let Some(exported) = exported else { break };
            (target, rest) = (exported.target.clone(), exported.rest.clone());
        }
        target
    };
    let mut arrows: BTreeMap<Module, BTreeSet<Module>> = BTreeMap::new();
    for (module, uses) in &uses {
        let to = arrows.entry((*module).clone()).or_default();
        for used in uses {
            let target = definition(&used.target, &used.rest);
            // A module may re-export what its own submodules define.
            if target != **module && !(used.is_public && target.starts_with(module)) {
                to.insert(target);
            }
        }
    }
    arrows
}

/// The files on a circle, if there is one.
fn circle(arrows: &BTreeMap<Module, BTreeSet<Module>>) -> Option<Vec<Module>> {
    let mut left = arrows.clone();
    loop {
        let leaves: Vec<Module> =
            left.iter().filter(|(_, to)| !to.iter().any(|to| left.contains_key(to))).map(|(m, _)| m.clone()).collect();
        if leaves.is_empty() {
            break;
        }
        leaves.iter().for_each(|leaf| drop(left.remove(leaf)));
    }
    // Every file that is left leads to a file that is left: following them comes back sooner or later.
    let mut path = vec![left.keys().next()?.clone()];
    loop {
        let next = left[&path[path.len() - 1]].iter().find(|to| left.contains_key(*to)).expect("it leads on").clone();
        if let Some(at) = path.iter().position(|module| *module == next) {
            return Some(path.split_off(at));
        }
        path.push(next);
    }
}

#[test]
fn no_circle_between_files() {
    for (src, least) in [("src", 300), ("sim/src", 100), ("src/columns/src", 15)] {
        let arrows = arrows(&root().join(src));
        let found: usize = arrows.values().map(BTreeSet::len).sum();
        assert!(found > least, "{src}: only {found} arrows are found");
        assert_eq!(circle(&arrows), None, "{src}: these files use each other in a circle");
    }
    let planted = |from: &str, to: &str| (vec![from.to_owned()], BTreeSet::from([vec![to.to_owned()]]));
    assert!(circle(&BTreeMap::from([planted("a", "b"), planted("b", "c"), planted("c", "b")])).is_some());
}

fn all_sources() -> Vec<(String, String)> {
    let mut files = Vec::new();
    ["src", "sim/src", "src/columns/src"].iter().for_each(|src| sources(&root().join(src), &mut files));
    let name = |path: &Path| path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
    files.iter().map(|path| (name(path), fs::read_to_string(path).expect("readable"))).collect()
}

#[test]
fn files_and_functions_are_short() {
    let mut long = Vec::new();
    for (name, text) in all_sources() {
        let lines: Vec<&str> = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default().lines().collect();
        if lines.len() > FILE_LINES {
            long.push(format!("{name}: {} lines", lines.len()));
        }
        for (i, line) in lines.iter().enumerate() {
            let Some((before, after)) = line.split_once("fn ") else { continue };
            let is_definition = before
                .split_whitespace()
                .all(|word| ["pub", "pub(crate)", "pub(super)", "async", "const", "unsafe"].contains(&word));
            if !is_definition || line.trim_end().ends_with(';') {
                continue;
            }
            let indent: String = line.chars().take_while(|c| *c == ' ').collect();
            let end = lines[i..].iter().position(|line| *line == format!("{indent}}}")).unwrap_or(0) + 1;
            let function = after.split(['(', '<']).next().unwrap_or_default();
            if end > FUNCTION_LINES && !TABLES.contains(&function) {
                long.push(format!("{name}: `{function}` has {end} lines"));
            }
        }
    }
    assert!(long.is_empty(), "{}", long.join("\n"));
}

/// Identifiers that were replaced by the field's words, or that stood for several things. They do not come back.
const REPLACED: &[&str] = &[
    "Met",
    "Asked",
    "Took",
    "Reach",
    "Way",
    "Front",
    "Probe",
    "Probed",
    "probe",
    "Needs",
    "Needed",
    "Breadth",
    "Further",
    "Tried",
    "Homes",
    "Fresh",
    "FreshCentroid",
    "FreshCodes",
    "FreshJob",
    "fresh_slots",
    "fresh_postings",
    "Ahead",
    "settle",
    "site",
    "Site",
    "regroup",
    "Regroup",
    "RegroupJob",
    "regrouped",
    "Totalled",
    "Prints",
    "prints",
    "Found",
    "Slot",
    "Kind",
    "Run",
    "Geometry",
    "Verdict",
    "unsettled",
];

fn identifiers(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

#[test]
fn replaced_identifiers_stay_away() {
    let mut back = Vec::new();
    for (name, text) in all_sources() {
        // Strings are for people, and are checked elsewhere.
        let code: String = code(&text).split('"').step_by(2).collect::<Vec<_>>().join(" ");
        let found: BTreeSet<&str> = identifiers(&code).filter(|word| REPLACED.contains(word)).collect();
        if !found.is_empty() {
            back.push(format!("{name}: {found:?}"));
        }
    }
    assert!(back.is_empty(), "{}", back.join("\n"));
}

/// Plain words in names of public types: what they mean in English, and nothing else.
const PLAIN: &[&str] = &[
    "access",
    "aligned",
    "all",
    "answer",
    "applied",
    "apply",
    "at",
    "background",
    "bench",
    "block",
    "blocking",
    "build",
    "built",
    "byte",
    "cancel",
    "cause",
    "change",
    "check",
    "child",
    "cli",
    "clock",
    "code",
    "command",
    "component",
    "config",
    "consistency",
    "context",
    "core",
    "count",
    "counter",
    "data",
    "demo",
    "dir",
    "distance",
    "document",
    "dtype",
    "encode",
    "engine",
    "entry",
    "env",
    "error",
    "estimate",
    "extension",
    "factor",
    "failure",
    "figure",
    "file",
    "finding",
    "format",
    "halve",
    "header",
    "hit",
    "holder",
    "id",
    "index",
    "ingest",
    "inline",
    "interrupt",
    "job",
    "k",
    "kernel",
    "kind",
    "level",
    "limit",
    "location",
    "lock",
    "locked",
    "map",
    "measurement",
    "metric",
    "mmap",
    "nearest",
    "never",
    "new",
    "number",
    "numbered",
    "open",
    "options",
    "origin",
    "outcome",
    "output",
    "param",
    "parse",
    "plain",
    "policy",
    "position",
    "prefetch",
    "progress",
    "put",
    "quantized",
    "query",
    "queue",
    "random",
    "ranked",
    "reached",
    "reader",
    "reason",
    "remove",
    "reply",
    "report",
    "request",
    "requirement",
    "response",
    "result",
    "rooted",
    "rounded",
    "row",
    "running",
    "runtime",
    "scan",
    "scope",
    "score",
    "scratch",
    "search",
    "shardex",
    "shared",
    "sliced",
    "source",
    "stage",
    "stat",
    "step",
    "steps",
    "stop",
    "storage",
    "store",
    "stored",
    "sum",
    "summary",
    "sync",
    "syncer",
    "system",
    "table",
    "tally",
    "target",
    "task",
    "test",
    "thread",
    "top",
    "total",
    "touched",
    "trace",
    "under",
    "use",
    "vector",
    "view",
    "way",
    "work",
    "world",
    "write",
    "writer",
];

#[test]
fn the_code_map_names_every_module() {
    let architecture = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("readable");
    let (_, map) = architecture.split_once("\n## Code map").expect("it has a code map");
    let map = map.split("\n## ").next().unwrap_or_default();
    let rows: Vec<(&str, &str)> = map.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" | ")).collect();
    let mut missing = BTreeSet::new();
    for module in modules(&root().join("src")).into_keys() {
        let has = |text: &str, name: &str| text.contains(&format!("`{name}`")) || text.contains(&format!("`{name}/`"));
        let [first, inner @ ..] = &module[..] else { continue };
        let Some((_, owns)) = rows.iter().find(|(of, _)| has(of, first)) else {
            missing.insert(first.clone());
            continue;
        };
        // The chapters of the guide and the subcommands of the tool need no map.
        if let Some(name) = inner.last()
            && !["guide", "cli", "bin"].contains(&first.as_str())
            && !has(owns, name)
        {
            missing.insert(module.join("/"));
        }
    }
    assert!(rows.len() > 10 && missing.is_empty(), "{missing:?}");
}

#[test]
fn public_types_are_named_in_words_of_the_glossary() {
    assert!(PLAIN.len() <= 150, "{} plain words", PLAIN.len());
    let architecture = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("readable");
    assert!(architecture.lines().count() < 300, "ARCHITECTURE is to be read in one go");
    let (_, glossary) = architecture.split_once("\n## Glossary").expect("it has a glossary");
    let terms: BTreeSet<String> = glossary
        .lines()
        .filter_map(|line| line.strip_prefix("| "))
        .filter_map(|line| line.split('|').next())
        .flat_map(|term| term.split([' ', ',', '-', '(', ')', '*', '`', '/']))
        .map(str::to_lowercase)
        .collect();
    assert!(terms.len() > 60, "the glossary's table is not found");
    let is_known = |word: &str| {
        let singular = word.strip_suffix('s').unwrap_or(word);
        PLAIN.contains(&word) || PLAIN.contains(&singular) || terms.contains(word) || terms.contains(singular)
    };
    let mut unknown = BTreeSet::new();
    let mut names = 0;
    for (file, text) in
        all_sources().into_iter().filter(|(file, _)| file.starts_with("src/") && !file.starts_with("src/columns/"))
    {
        for line in code(&text).lines() {
            let mut words = line.split_whitespace().skip_while(|word| !word.starts_with("pub"));
            if words.next().is_none() {
                continue;
            }
            let (Some(keyword), Some(name)) = (words.next(), words.next()) else { continue };
            if !["struct", "enum", "trait", "type"].contains(&keyword) {
                continue;
            }
            names += 1;
            let name: String = name.chars().take_while(|c| c.is_alphanumeric()).collect();
            let mut word = String::new();
            for c in name.chars().chain(['A']) {
                if c.is_uppercase() && !word.is_empty() {
                    if !is_known(&word) {
                        unknown.insert(format!("`{word}` of {name} in {file}"));
                    }
                    word.clear();
                }
                word.extend(c.to_lowercase());
            }
        }
    }
    assert!(names > 100, "{names} public types");
    assert!(unknown.is_empty(), "{}", unknown.into_iter().collect::<Vec<_>>().join("\n"));
}

/// The feature table of the README names tests and files that exist.
#[test]
fn every_feature_has_a_test_or_an_example() {
    let readme = fs::read_to_string(root().join("README.md")).expect("readable");
    let (_, table) = readme.split_once("\n## Features\n").expect("it has a table of features");
    let table = table.split("\n## ").next().unwrap_or_default();
    let (mut missing, mut named) = (Vec::new(), 0);
    for row in table.lines().filter(|line| line.starts_with("| ")).skip(1) {
        let shown_by = row.trim_end_matches('|').rsplit(" | ").next().unwrap_or_default();
        let before = named;
        for test in shown_by.split('`').filter(|part| part.contains("::")) {
            named += 1;
            let (module, name) = test.rsplit_once("::").expect("a path");
            let file = root().join("tests/it").join(module.replace("::", "/")).with_extension("rs");
            if !fs::read_to_string(file).is_ok_and(|text| text.contains(&format!("fn {name}("))) {
                missing.push(test.to_owned());
            }
        }
        for path in shown_by.split("](").skip(1).filter_map(|part| part.split(')').next()) {
            named += 1;
            if !root().join(path).is_file() {
                missing.push(path.to_owned());
            }
        }
        assert!(named > before, "nothing shows `{row}`");
    }
    assert!(named > 20 && missing.is_empty(), "{missing:?}");
}
