//! Compiles the KMS v2 messages in `proto/` with a Rust protobuf compiler, so that a machine with only cargo can build.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=../../proto/kms_v2.proto");
    println!("cargo:rerun-if-changed=../../proto/kms_v2_object.proto");
    tonic_prost_build::configure()
        .codec_path("crate::codec::SmallCodec")
        // Sorted, so that the additional data (a hash over sorted annotations) needs no sort of its own.
        .btree_map(".")
        // SECURITY: these two carry a seed. They are wiped on drop and have no Debug of fields (lib.rs writes one).
        .type_attribute("v2.EncryptRequest", "#[derive(::zeroize::ZeroizeOnDrop, ::zeroize::Zeroize)]")
        .type_attribute("v2.DecryptResponse", "#[derive(::zeroize::ZeroizeOnDrop, ::zeroize::Zeroize)]")
        .skip_debug(["v2.EncryptRequest", "v2.DecryptResponse"])
        .compile_fds(protox::compile(["kms_v2.proto", "kms_v2_object.proto"], ["../../proto"])?)?;
    Ok(())
}
