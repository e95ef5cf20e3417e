//! The tests look for their data from the manifest's folder on; it is in the repository.

fn main() {
    let here = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-env=CARGO_MANIFEST_DIR={}", here.trim_end_matches("/tests/arm"));
}
