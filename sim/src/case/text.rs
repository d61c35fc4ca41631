//! Text form of a case, as in the files in `corpus/crash`.

use std::{collections::BTreeMap, fmt, str::FromStr};

use shardex::{CheckLevel, Metric, OpenOptions, ShardexConfig, VectorEncoding};

use super::{Case, Crash, Damage, Event, Survivors};
use crate::{
    storage::{CrashKind, Stop},
    workload::{Step, Workload},
};

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Workload { name, config, page_size, sector_size, .. } = &self.workload;
        writeln!(f, "case {name}")?;
        writeln!(
            f,
            "index vector_size={} shard_size={} metric={} page={page_size} sector={sector_size} segment={} wal_max={} \
             flush_on_close={} flush_check={}{}",
            config.vector_size,
            config.shard_size,
            config.metric,
            config.wal_segment_size,
            config.options.wal_max_bytes,
            config.options.flush_on_close,
            if config.options.flush_check == CheckLevel::Full { "full" } else { "quick" },
            if config.encoding == VectorEncoding::F32 {
                String::new()
            } else {
                format!(" encoding={}", config.encoding)
            },
        )?;
        writeln!(f, "chance seed={} garbage={}", self.seed, self.garbage)?;
        if let Some(version) = self.workload.from_version {
            writeln!(f, "from-version-{version}")?;
        }
        for event in &self.events {
            match event {
                Event::Do(step) => writeln!(f, "{step}")?,
                Event::Fault { after, fault } => writeln!(f, "fault after={after} what={fault}")?,
                Event::Crash(crash) => writeln!(f, "{crash}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { after, stop, kind, survivors, damage } = self;
        write!(f, "crash after={after} stop={stop:?} kind={kind:?}")?;
        match survivors {
            Survivors::Seed(seed) => write!(f, " seed={seed}")?,
            Survivors::Picks(picks) => {
                let picks: Vec<String> = picks.iter().map(ToString::to_string).collect();
                write!(f, " picks={}", picks.join(","))?;
            }
        }
        match damage {
            Some(damage) => write!(f, " damage={}", damage.name()),
            None => Ok(()),
        }
    }
}

/// Words of a line: the first word, and the others as `key=value`.
struct Words<'a> {
    first: &'a str,
    pairs: BTreeMap<&'a str, &'a str>,
}

impl<'a> Words<'a> {
    fn of(line: &'a str) -> Result<Self, String> {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        let pairs = words
            .map(|word| word.split_once('=').ok_or_else(|| format!("`{word}` is no key=value")))
            .collect::<Result<_, _>>()?;
        Ok(Self { first, pairs })
    }

    fn text(&self, key: &str) -> Result<&'a str, String> {
        self.pairs.get(key).copied().ok_or_else(|| format!("`{}` needs {key}=", self.first))
    }

    fn get<T: FromStr>(&self, key: &str) -> Result<T, String> {
        let text = self.text(key)?;
        text.parse().map_err(|_| format!("{key}={text} is no value for `{}`", self.first))
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut workload = Workload::generated(0);
        workload.name = "unnamed".into();
        workload.from_version = None;
        workload.steps.clear();
        let mut case = Self { workload, seed: 0, garbage: false, events: Vec::new() };
        for (n, line) in text.lines().enumerate() {
            let line = line.trim();
            if !line.is_empty() && !line.starts_with('#') {
                case.line(line).map_err(|what| format!("line {}: {what}", n + 1))?;
            }
        }
        Ok(case)
    }
}

/// Parses the step that a line describes.
fn step_of(words: &Words<'_>) -> Result<Step, String> {
    Ok(match words.first {
        "add" => Step::Add {
            first: words.get("first")?,
            count: words.get("count")?,
            start: words.get("start")?,
            salt: words.get("salt")?,
        },
        "remove" => Step::Remove { first: words.get("first")?, count: words.get("count")? },
        "slow-flush" => {
            Step::SlowFlush { first: words.get("first")?, count: words.get("count")?, salt: words.get("salt")? }
        }
        "overlapped-flush" => {
            Step::OverlappedFlush { first: words.get("first")?, count: words.get("count")?, salt: words.get("salt")? }
        }
        "remove-postings" => {
            Step::RemovePostings { first: words.get("first")?, count: words.get("count")?, start: words.get("start")? }
        }
        "tag" => Step::Tag { first: words.get("first")?, count: words.get("count")?, tags: words.get("tags")? },
        "payload" => Step::Payload {
            first: words.get("first")?,
            count: words.get("count")?,
            bytes: words.get("bytes")?,
            salt: words.get("salt")?,
        },
        "remove-payloads" => Step::RemovePayloads { first: words.get("first")?, count: words.get("count")? },
        "edit" => Step::Edit {
            first: words.get("first")?,
            count: words.get("count")?,
            bytes: words.get("bytes")?,
            salt: words.get("salt")?,
        },
        "cursor" => Step::Cursor { bytes: words.get("bytes")?, salt: words.get("salt")? },
        "batch" => Step::Batch { count: words.get("count")?, seed: words.get("seed")? },
        "remove-matching" => Step::RemoveMatching { seed: words.get("seed")? },
        "commit" => Step::Commit,
        "flush" => Step::Flush,
        "optimize" => Step::Optimize,
        "optimize-until" => Step::OptimizeUntil { questions: words.get("questions")? },
        "close" => Step::Close,
        "reopen" => Step::Reopen,
        "second-open" => Step::SecondOpen,
        "read" => Step::Read,
        "purge" => Step::Purge,
        "backup" => Step::Backup,
        "compact" => Step::Compact { bytes: words.get("bytes")? },
        "trim" => Step::Trim { keep: words.get("keep")? },
        other => return Err(format!("`{other}` is no step")),
    })
}

fn config_of(words: &Words<'_>) -> Result<ShardexConfig, String> {
    let metric = match words.text("metric")? {
        "l2" => Metric::L2,
        "dot" => Metric::Dot,
        "cosine" => Metric::Cosine,
        other => return Err(format!("`{other}` is no metric")),
    };
    let check = match words.text("flush_check")? {
        "quick" => CheckLevel::Quick,
        "full" => CheckLevel::Full,
        other => return Err(format!("`{other}` is no level of checks")),
    };
    // Older cases have no encoding.
    let encoding = if words.pairs.contains_key("encoding") { words.get("encoding")? } else { VectorEncoding::F32 };
    let options = OpenOptions::default()
        .wal_max_bytes(words.get("wal_max")?)
        .flush_on_close(words.get("flush_on_close")?)
        .flush_check(check);
    Ok(ShardexConfig::new("sim")
        .vector_size(words.get("vector_size")?)
        .shard_size(words.get("shard_size")?)
        .metric(metric)
        .encoding(encoding)
        .wal_segment_size(words.get("segment")?)
        .options(options))
}

impl Case {
    fn line(&mut self, line: &str) -> Result<(), String> {
        if let Some(name) = line.strip_prefix("case ") {
            name.clone_into(&mut self.workload.name);
            return Ok(());
        }
        let words = Words::of(line)?;
        let step = match words.first {
            "index" => {
                self.workload.page_size = words.get("page")?;
                self.workload.sector_size = words.get("sector")?;
                self.workload.config = config_of(&words)?;
                return Ok(());
            }
            "from-version-1" => {
                if self.workload.config.encoding != VectorEncoding::F32 {
                    return Err("version 1 stores f32".into());
                }
                self.workload.from_version = Some(1);
                return Ok(());
            }
            "from-version-2" => {
                self.workload.from_version = Some(2);
                return Ok(());
            }
            "chance" => {
                (self.seed, self.garbage) = (words.get("seed")?, words.get("garbage")?);
                return Ok(());
            }
            "fault" => {
                let fault = words.text("what")?.parse()?;
                self.events.push(Event::Fault { after: words.get("after")?, fault });
                return Ok(());
            }
            "crash" => {
                self.events.push(Event::Crash(crash_of(&words)?));
                return Ok(());
            }
            _ => step_of(&words)?,
        };
        self.events.push(Event::Do(step));
        Ok(())
    }
}

fn crash_of(words: &Words<'_>) -> Result<Crash, String> {
    let survivors = match words.pairs.get("picks") {
        None => Survivors::Seed(words.get("seed")?),
        Some(picks) => {
            let picks = picks.split(',').filter(|pick| !pick.is_empty()).map(str::parse).collect::<Result<_, _>>();
            Survivors::Picks(picks.map_err(|_| "picks are numbers, separated by commas".to_owned())?)
        }
    };
    let damage = match words.pairs.get("damage") {
        None => None,
        Some(name) => match Damage::ALL.iter().find(|(_, n)| n == name) {
            Some((damage, _)) => Some(*damage),
            None => return Err(format!("`{name}` is no damage")),
        },
    };
    let stop = match words.text("stop")? {
        "Before" => Stop::Before,
        "Torn" => Stop::Torn,
        "After" => Stop::After,
        other => return Err(format!("`{other}` is no way to stop")),
    };
    let kind = match words.text("kind")? {
        "Process" => CrashKind::Process,
        "Power" => CrashKind::Power,
        other => return Err(format!("`{other}` is no kind of crash")),
    };
    Ok(Crash { after: words.get("after")?, stop, kind, survivors, damage })
}
