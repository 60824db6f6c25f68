//! The binary: everything is in the library, but for the allocator, which belongs to the program.

use kube_kms_memory::wiping::WipingAllocator;
use std::process::ExitCode;

/// SECURITY: what is freed is wiped, whoever had it (SECURITY.md, "Host and memory").
#[global_allocator]
static ALLOCATOR: WipingAllocator = WipingAllocator;

fn main() -> ExitCode {
    kube_kms::cli::main()
}
