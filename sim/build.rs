//! Names the flag that builds the simulated scheduler.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(madsim)");
    println!("cargo::rerun-if-changed=build.rs");
}
