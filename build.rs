//! Compiles the messages in `proto/` with a Rust protobuf compiler, so that a machine with only cargo can build; and lays a
//! release binary out so that what serving calls is side by side.

#![allow(
    clippy::disallowed_methods,
    reason = "cargo speaks to a build script by the environment, and waits for its files"
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

/// What serving calls: patterns of symbols in groups, one a line, a title before each group.
const ORDER: &str = "benches/records/order.txt";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    lay_out()?;
    println!("cargo:rerun-if-changed=proto/kms_v2.proto");
    println!("cargo:rerun-if-changed=proto/kms_v2_object.proto");
    println!("cargo:rerun-if-changed=proto/etcd_rpc.proto");
    let descriptors = protox::compile(["kms_v2.proto", "kms_v2_object.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .codec_path("crate::api::codec::SmallCodec")
        // Sorted, so that the additional data (a hash over sorted annotations) needs no sort of its own.
        .btree_map(".")
        // SECURITY: these two carry a seed. They are wiped on drop and have no Debug of fields (src/api/mod.rs writes one).
        .type_attribute("v2.EncryptRequest", "#[derive(::zeroize::ZeroizeOnDrop, ::zeroize::Zeroize)]")
        .type_attribute("v2.DecryptResponse", "#[derive(::zeroize::ZeroizeOnDrop, ::zeroize::Zeroize)]")
        .skip_debug(["v2.EncryptRequest", "v2.DecryptResponse"])
        .compile_fds(descriptors)?;
    tonic_prost_build::configure()
        .build_server(false)
        // Keys and values are parts of the page that they came in, not copies.
        .bytes(".")
        // SECURITY: this one carries a password.
        .type_attribute("etcdserverpb.AuthenticateRequest", "#[derive(::zeroize::ZeroizeOnDrop, ::zeroize::Zeroize)]")
        .skip_debug(["etcdserverpb.AuthenticateRequest", "etcdserverpb.AuthenticateResponse"])
        .compile_fds(protox::compile(["etcd_rpc.proto"], ["proto"])?)?;
    Ok(())
}

/// The kernel maps code by the 64 KiB around what is called. Laid out as the linker finds it, nine of sixteen MiB are touched by a
/// process that only serves; side by side, a third of that (benches/README.md, "Memory").
fn lay_out() -> io::Result<()> {
    println!("cargo:rerun-if-changed={ORDER}");
    println!("cargo:rerun-if-changed=build.rs");
    if setting("PROFILE") != "release" || setting("CARGO_CFG_TARGET_OS") != "linux" {
        return Ok(());
    }
    let script = Path::new(&setting("OUT_DIR")).join("order.ld");
    fs::write(&script, linker_script(&fs::read_to_string(ORDER)?))?;
    let argument = format!("-Wl,-T,{}", script.display());
    if links_with(&argument)? {
        println!("cargo:rustc-link-arg-bin=kube-kms={argument}");
    } else {
        println!("cargo:warning=this linker takes no script, so kube-kms will have more memory resident than it needs");
    }
    Ok(())
}

/// The linker's own `.text`, with these groups at its beginning.
fn linker_script(order: &str) -> String {
    let mut script = "SECTIONS { .text : {\n".to_owned();
    for group in order.split("\n# ").skip(1) {
        script += "*(";
        for symbol in group.lines().skip(1) {
            // What the compiler takes for unlikely (growing a vector, a first use) has a place of its own otherwise.
            script += &format!(".text.{symbol} .text.unlikely.{symbol}\n");
        }
        script += ")\n";
    }
    script + "*(.text .text.*)\n} } INSERT AFTER .init;\n"
}

/// Tries it on an empty program: not every linker knows scripts, and none of them is worth a build that fails.
fn links_with(argument: &str) -> io::Result<bool> {
    let folder = PathBuf::from(setting("OUT_DIR"));
    let (source, program) = (folder.join("probe.rs"), folder.join("probe"));
    fs::write(&source, "fn main() {}\n")?;
    let mut compiler = Command::new(setting("RUSTC"));
    compiler.args(setting("CARGO_ENCODED_RUSTFLAGS").split('\u{1f}').filter(|flag| !flag.is_empty()));
    let linker = setting("RUSTC_LINKER");
    if !linker.is_empty() {
        compiler.arg(format!("-Clinker={linker}"));
    }
    compiler.arg(format!("--target={}", setting("TARGET"))).arg(format!("-Clink-arg={argument}"));
    let outcome = compiler.arg("-o").arg(program).arg(source).output()?;
    Ok(outcome.status.success())
}

fn setting(name: &str) -> String {
    env::var(name).unwrap_or_default()
}
