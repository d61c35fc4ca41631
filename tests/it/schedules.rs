//! Test of the async layer under a simulated scheduler: runs `cargo sim`, which builds everything with `--cfg madsim`.

use std::process::Command;

/// Environment variables that would make the inner build differ from the one that the `sim` alias defines.
const FLAGS: [&str; 5] =
    ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS", "CARGO_BUILD_TARGET", "CARGO_BUILD_TARGET_DIR"];

#[test]
fn the_simulated_schedules_pass() {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.arg("sim").current_dir(env!("CARGO_MANIFEST_DIR"));
    for flag in FLAGS {
        cargo.env_remove(flag);
    }
    for (name, _) in std::env::vars_os() {
        // Variables named `CARGO_TARGET_<triple>_RUSTFLAGS`.
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_TARGET_") && name.ends_with("_RUSTFLAGS")) {
            cargo.env_remove(name);
        }
    }
    let output = cargo.output().expect("cargo can be started");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "cargo sim failed:\n{out}\n{err}");
    assert!(out.contains("test result: ok. 1 passed"), "cargo sim ran no test:\n{out}\n{err}");
}
