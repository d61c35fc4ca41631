//! `exactly-once demo` kills the ingester again and again, and compares the index with the database.

use std::{
    error::Error,
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
};

use exactly_once::{
    demo::{DURABILITIES, DemoOptions, demo},
    run::{RunOptions, run},
};

const USAGE: &str = "\
exactly-once demo [--kills 200] [--seed 1] [--dir DIR]
exactly-once run DIR [--durability immediate|interval|manual] [--changes N] [--batch 32] [--seed 1]";

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Exit code: 0 if the index equals the database, 1 if it differs, 2 for an error.
fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match start(&args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn start(args: &[String]) -> Outcome<ExitCode> {
    match args {
        [mode, options @ ..] if mode == "demo" => start_demo(options),
        [mode, dir, options @ ..] if mode == "run" => start_run(Path::new(dir), options),
        _ => Err(USAGE.into()),
    }
}

fn start_run(dir: &Path, args: &[String]) -> Outcome<ExitCode> {
    let mut options = RunOptions { durability: Default::default(), changes: None, batch_changes: 32, seed: 1 };
    for (name, value) in pairs(args)? {
        match name {
            "--durability" => {
                let found = DURABILITIES.iter().find(|(name, _)| *name == value);
                options.durability = found.ok_or_else(|| format!("`{value}` is no durability\n{USAGE}"))?.1;
            }
            "--changes" => options.changes = Some(number(value)?),
            "--batch" => options.batch_changes = number(value)?,
            "--seed" => options.seed = number(value)?,
            _ => return Err(USAGE.into()),
        }
    }
    run(dir, &options)?;
    Ok(ExitCode::SUCCESS)
}

fn start_demo(args: &[String]) -> Outcome<ExitCode> {
    let mut options = DemoOptions { program: std::env::current_exe()?, kills: 200, seed: 1 };
    let mut given = None;
    for (name, value) in pairs(args)? {
        match name {
            "--kills" => options.kills = number(value)?,
            "--seed" => options.seed = number(value)?,
            "--dir" => given = Some(PathBuf::from(value)),
            _ => return Err(USAGE.into()),
        }
    }
    let temporary = tempfile::tempdir()?;
    let dir = given.unwrap_or_else(|| temporary.path().into());
    match demo(&dir, &options)? {
        Ok(report) => {
            println!("{report}\nThe index equals the database.");
            Ok(ExitCode::SUCCESS)
        }
        Err(broken) => {
            println!("{broken}");
            Ok(ExitCode::from(1))
        }
    }
}

/// Splits arguments into names and values.
fn pairs(args: &[String]) -> Outcome<Vec<(&str, &str)>> {
    let pairs = args.chunks(2).map(|pair| match pair {
        [name, value] => Ok((name.as_str(), value.as_str())),
        _ => Err(USAGE.into()),
    });
    pairs.collect()
}

fn number<T: FromStr>(text: &str) -> Outcome<T> {
    text.parse().map_err(|_| format!("`{text}` is no number in range\n{USAGE}").into())
}
