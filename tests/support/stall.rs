//! A disk whose fsync does not come back, for as long as a file exists: a library that is loaded before the C library.

use super::site::Site;
use super::skip::target_dir;
use std::path::{Path, PathBuf};
use std::process::Command;

const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
int fsync(int fd) {
    struct timespec a_while = {0, 50000000};
    const char *stalls = getenv("STALLS_WHILE_THERE_IS");
    while (stalls && access(stalls, F_OK) == 0) nanosleep(&a_while, 0);
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    return real(fd);
}
"#;

/// The library, built with the C compiler of this machine; `None` without one. It goes away with this.
pub struct Shim(PathBuf);

impl Shim {
    pub fn build() -> Option<Self> {
        let name = format!("stall.{}", std::process::id());
        let (source, library) = (target_dir().join(format!("{name}.c")), Self(target_dir().join(format!("{name}.so"))));
        std::fs::write(&source, SHIM).unwrap();
        let built =
            Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library.0, &source]).arg("-ldl").status();
        std::fs::remove_file(source).unwrap();
        built.is_ok_and(|status| status.success()).then_some(library)
    }

    /// From now on the processes of this site stall while there is this file.
    pub fn under(&self, site: &mut Site, stalls: &Path) {
        site.env("LD_PRELOAD", self.0.to_str().unwrap()).env("STALLS_WHILE_THERE_IS", stalls.to_str().unwrap());
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
