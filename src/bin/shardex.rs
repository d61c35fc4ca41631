//! Command-line tool `shardex`. It uses only the public API of the library.

#[path = "../cli/mod.rs"]
mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
