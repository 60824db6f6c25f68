//! Compiles the messages of etcd's API in `proto/` with a Rust protobuf compiler.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=../../proto/etcd_rpc.proto");
    tonic_prost_build::configure()
        .build_server(false)
        // Keys and values are parts of the page that they came in, not copies.
        .bytes(".")
        // SECURITY: this one carries a password.
        .type_attribute("etcdserverpb.AuthenticateRequest", "#[derive(::zeroize::ZeroizeOnDrop, ::zeroize::Zeroize)]")
        .skip_debug(["etcdserverpb.AuthenticateRequest", "etcdserverpb.AuthenticateResponse"])
        .compile_fds(protox::compile(["etcd_rpc.proto"], ["../../proto"])?)?;
    Ok(())
}
