//! What is refused after [`Sandbox::enter`], and what still works: in a child process, because it is for good.

use super::*;
use kube_kms_config as config;
use kube_kms_os::durable::{self, Existing};
use rustix::io::Errno;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

#[expect(clippy::disallowed_methods, reason = "what somebody else would have put there")]
fn put(path: impl AsRef<Path>, text: impl AsRef<[u8]>) {
    std::fs::write(path, text).unwrap();
}

fn configuration(dir: &Path, more: &str) -> (Config, PathBuf) {
    let text = format!(
        "kek: {{local: {{keyring: {d}/keys/keyring.json}}}}\nstateDir: {d}/state\nlisten: {{socket: {d}/run/s}}\n\
         http: {{listen: '127.0.0.1:0'}}\n{more}",
        d = dir.display()
    );
    let file = dir.join("etc/config.yaml");
    for sub in ["keys", "state", "run", "etc", "elsewhere"] {
        std::fs::create_dir_all(dir.join(sub)).unwrap();
    }
    put(&file, &text);
    put(dir.join("keys/keyring.json"), "{}");
    put(dir.join("elsewhere/secret"), "x");
    (config::parse(&text).unwrap(), file)
}

/// Runs an ignored test of this file in a process of its own, and returns what it printed.
fn in_a_child(test: &str, dir: &Path) -> String {
    let child = Command::new(std::env::current_exe().unwrap())
        .args([&format!("process::sandbox::tests::{test}"), "--exact", "--ignored", "--nocapture"])
        .env("KUBE_KMS_TEST_DIR", dir)
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success() && said.contains("1 passed"), "{said}");
    said
}

#[expect(clippy::disallowed_methods, reason = "how the parent tells its child")]
fn told_dir() -> PathBuf {
    std::env::var_os("KUBE_KMS_TEST_DIR").unwrap().into()
}

fn landlock_is_here() -> bool {
    let made = Command::new(std::env::current_exe().unwrap())
        .args(["process::sandbox::tests::child_asks_for_landlock", "--exact", "--ignored"])
        .status();
    made.unwrap().success()
}

#[test]
#[ignore = "run as a child process: it is confined for good"]
fn child_asks_for_landlock() {
    files::confine(&Need::default()).unwrap();
}

#[test]
fn after_it_a_foreign_open_connect_and_signal_fail_and_what_serving_needs_does_not() {
    if !landlock_is_here() {
        println!(
            "SKIPPED: after_it_a_foreign_open_connect_and_signal_fail_and_what_serving_needs_does_not: no landlock"
        );
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    in_a_child("child_in_landlock", dir.path());
}

#[test]
#[ignore = "run as a child process: it is confined for good"]
fn child_in_landlock() {
    let dir = told_dir();
    let (mut config, file) = configuration(&dir, "");
    config.harden.seccomp = Enforce::None;
    let [allowed, foreign] = [(), ()].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [allowed, foreign] = [&allowed, &foreign].map(|listener| listener.local_addr().unwrap());
    let around = Surroundings { ports: vec![allowed.port()], ..Surroundings::default() };
    TcpStream::connect(foreign).unwrap();
    let (sandbox, steps) = Sandbox::enter(&config, &file, &around).unwrap();
    assert!(steps.iter().all(HardeningStep::holds), "{steps:?}");

    let denied = |outcome: io::Result<()>| assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    for path in ["/bin/sh", "/var/log", "/home"].map(PathBuf::from).iter().chain([&dir.join("elsewhere/secret")]) {
        if path.exists() {
            denied(std::fs::File::open(path).map(drop));
        }
    }
    let new = |path: &str| durable::write(&dir.join(path), b"x", Existing::Replace);
    denied(new("elsewhere/new"));
    denied(new("keys/keyring.json"));
    denied(std::fs::remove_file(dir.join("elsewhere/secret")));
    denied(std::fs::remove_file(dir.join("keys/keyring.json")));
    denied(TcpStream::connect(foreign).map(drop));
    denied(TcpListener::bind("127.0.0.1:4711").map(drop));
    denied(Err(Command::new("/bin/true").exec()));

    TcpStream::connect(allowed).unwrap();
    TcpListener::bind("127.0.0.1:0").unwrap();
    new("state/state.json").unwrap();
    std::os::unix::net::UnixListener::bind(dir.join("run/s")).unwrap();
    std::fs::remove_file(dir.join("run/s")).unwrap();
    // A thread made later, and a keyring and a configuration that were replaced from outside.
    std::thread::spawn(move || {
        denied(std::fs::File::open("/bin/sh").map(drop));
        assert_eq!(std::fs::read(dir.join("keys/keyring.json")).unwrap(), b"{}");
        assert!(std::fs::read(file).unwrap().starts_with(b"kek"));
        std::fs::read("/proc/self/status").unwrap();
    })
    .join()
    .unwrap();

    let other = |keyring: &str| config::parse(&format!("kek: {{local: {{keyring: {keyring}}}}}")).unwrap();
    assert_eq!(sandbox.lacks(&config), Vec::<String>::new());
    let [said] = &sandbox.lacks(&other("/srv/keys/k.json"))[..] else { panic!("one line") };
    assert!(said.starts_with("/srv") && said.contains("--take-over"), "{said}");
    let aws = config::parse("kek: {aws: {key: alias/a, endpoint: 'https://kms.example:8443'}}").unwrap();
    assert!(sandbox.lacks(&aws).iter().any(|line| line.contains("TCP port 8443")));
}

#[test]
fn a_state_directory_that_was_removed_is_made_and_written_again_where_its_parent_is_ours_alone() {
    if !landlock_is_here() {
        println!("SKIPPED: a_state_directory_that_was_removed_is_made_and_written_again: no landlock");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    in_a_child("child_whose_state_directory_is_removed", dir.path());
}

#[test]
#[ignore = "run as a child process: it is confined for good"]
fn child_whose_state_directory_is_removed() {
    let dir = told_dir();
    let (mut config, file) = configuration(&dir, "");
    config.harden.seccomp = Enforce::None;
    config.state_dir = dir.join("own/state");
    std::fs::create_dir_all(&config.state_dir).unwrap();
    // Whoever is outside: a thread that was there before.
    let (ask, asked) = std::sync::mpsc::channel::<Box<dyn FnOnce() + Send>>();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for work in asked {
            work();
            tell.send(()).unwrap();
        }
    });
    let outside = |work: Box<dyn FnOnce() + Send>| {
        ask.send(work).unwrap();
        told.recv().unwrap();
    };
    Sandbox::enter(&config, &file, &Surroundings::default()).unwrap();
    let state = kube_kms_service::state_file::StateFile::new(&config.state_dir);
    let remembered = kube_kms_service::state_file::Remembered::default();
    for made_again in [false, true] {
        let path = config.state_dir.clone();
        outside(Box::new(move || {
            std::fs::remove_dir_all(&path).unwrap();
            if made_again {
                std::fs::create_dir(&path).unwrap();
            }
        }));
        state.save(&remembered).unwrap();
    }
    assert!(durable::write(&dir.join("elsewhere/new"), b"x", Existing::Replace).is_err(), "nothing else is given away");
    assert!(std::fs::create_dir(dir.join("made")).is_err());
}

#[test]
fn what_is_above_the_state_directory_is_given_only_where_nothing_of_others_is() {
    let dir = tempfile::tempdir().unwrap();
    let (mut config, file) = configuration(dir.path(), "");
    let remake = |config: &Config| Need::of(config, &file, &Surroundings::default()).remake;
    assert!(remake(&config).is_empty(), "keyring and configuration are beside it");
    config.state_dir = dir.path().join("own/state");
    std::fs::create_dir_all(&config.state_dir).unwrap();
    let own = dir.path().join("own");
    assert_eq!(remake(&config), [own.clone()].into());
    put(own.join("of-others"), "x");
    assert!(remake(&config).is_empty());
    std::fs::remove_file(own.join("of-others")).unwrap();
    std::fs::set_permissions(&own, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    assert!(remake(&config).is_empty(), "others may put something there");
    config.state_dir = "/var/lib/kube-kms".into();
    assert!(remake(&config).is_empty());
}

#[test]
fn after_it_no_program_no_namespace_no_tracing_and_no_writable_code() {
    let dir = tempfile::tempdir().unwrap();
    in_a_child("child_in_seccomp", dir.path());
}

#[test]
#[ignore = "run as a child process: it is confined for good"]
fn child_in_seccomp() {
    let (mut config, file) = configuration(&told_dir(), "");
    config.harden = config::Harden { landlock: Enforce::None, seccomp: Enforce::Required };
    assert_eq!(written_then_mapped(), [Ok(()); 3], "before it");
    let before = std::thread::spawn(std::thread::park);
    Sandbox::enter(&config, &file, &Surroundings::default()).unwrap();

    let denied = |outcome: io::Result<()>| assert_eq!(outcome.unwrap_err().raw_os_error(), Some(libc::EPERM));
    denied(Command::new("/bin/true").status().map(drop));
    // Without a fork before it; were it not refused, this process would be gone without a word.
    denied(Err(Command::new("/bin/true").exec()));
    let denied = |outcome: rustix::io::Result<()>| assert_eq!(outcome, Err(Errno::PERM));
    denied(rustix::process::chroot("/"));
    denied(rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::URG));
    let raw = rustix::net::SocketType::RAW;
    denied(rustix::net::socket(rustix::net::AddressFamily::PACKET, raw, None).map(drop));
    denied(rustix::net::socket(rustix::net::AddressFamily::NETLINK, raw, None).map(drop));
    denied(rustix::thread::set_no_new_privs(true));
    denied(rustix::fs::mknodat(rustix::fs::CWD, "/tmp/never", rustix::fs::FileType::Fifo, 0o600.into(), 0));
    written_then_mapped().into_iter().for_each(denied);

    // Threads, the ones before and the ones after.
    let filters = |task: &str| {
        let status = std::fs::read_to_string(format!("/proc/self/task/{task}/status")).unwrap();
        status.lines().any(|line| line.split_whitespace().eq(["Seccomp:", "2"]))
    };
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        assert!(filters(task.unwrap().file_name().to_str().unwrap()));
    }
    std::thread::spawn(|| assert!(Command::new("/bin/true").status().is_err())).join().unwrap();
    before.thread().unpark();
    before.join().unwrap();
    // What serving does.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::task::spawn_blocking(|| kube_kms_memory::Locked::new(|| [1_u8; 32]).unwrap()).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        drop(tokio::net::lookup_host("localhost:80").await);
        drop(tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap());
    });
}

/// Writes a file, and maps it and a page of no file as code: privately, shared, and without a file.
fn written_then_mapped() -> [rustix::io::Result<()>; 3] {
    let path = told_dir().join("state/code");
    put(&path, [0xC3; 4096]);
    let file = std::fs::File::open(path).unwrap();
    let (private, shared) = (rustix::mm::MapFlags::PRIVATE, rustix::mm::MapFlags::SHARED);
    [(Some(&file), private), (Some(&file), shared), (None, private)]
        .map(|(file, how)| kube_kms_memory::map_executable(file, how))
}

#[test]
fn where_names_are_looked_up_a_glibc_may_map_its_modules_and_nothing_else_becomes_code() {
    let dir = tempfile::tempdir().unwrap();
    in_a_child("child_in_seccomp_that_looks_up_names", dir.path());
}

#[test]
#[ignore = "run as a child process: it is confined for good"]
fn child_in_seccomp_that_looks_up_names() {
    let (mut config, file) = configuration(&told_dir(), "otlp: {endpoint: 'http://collector.example:4317'}");
    config.harden = config::Harden { landlock: Enforce::None, seccomp: Enforce::Required };
    let need = Need::of(&config, &file, &Surroundings::default());
    let is_dynamic = cfg!(all(target_env = "gnu", not(target_feature = "crt-static")));
    assert_eq!(syscall::loads_modules(&need), is_dynamic);
    Sandbox::enter(&config, &file, &Surroundings::default()).unwrap();
    let module = if is_dynamic { Ok(()) } else { Err(Errno::PERM) };
    assert_eq!(written_then_mapped(), [module, Err(Errno::PERM), Err(Errno::PERM)]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { drop(tokio::net::lookup_host("localhost:80").await) });
}

#[test]
fn the_filter_lets_nothing_dangerous_through() {
    // By number, so that a call that nobody here can make is looked at too.
    let dangerous = [
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_bpf,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_userfaultfd,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_perf_event_open,
        libc::SYS_io_uring_setup,
        libc::SYS_kexec_load,
        libc::SYS_open_by_handle_at,
        libc::SYS_pidfd_open,
        libc::SYS_pidfd_getfd,
        libc::SYS_kill,
        libc::SYS_kcmp,
        libc::SYS_setuid,
        libc::SYS_chroot,
        libc::SYS_memfd_create,
        libc::SYS_pkey_mprotect,
        libc::SYS_personality,
        libc::SYS_reboot,
        libc::SYS_sethostname,
    ];
    let allowed = syscall::allowed(true).unwrap();
    let through: Vec<_> = dangerous.iter().filter(|call| allowed.contains_key(call)).collect();
    assert!(through.is_empty(), "{through:?}");
    assert!(allowed.contains_key(&libc::SYS_openat), "the judge can find one");
}

#[test]
fn a_profile_that_runs_a_program_is_left_alone_with_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let (config, file) = configuration(dir.path(), "");
    let around = Surroundings { runs_programs: Some("/home/x/.aws/config".into()), ..Surroundings::default() };
    let (sandbox, steps) = Sandbox::enter(&config, &file, &around).unwrap();
    assert!(steps.iter().all(|step| !step.holds()), "{steps:?}");
    assert!(steps[0].outcome.as_ref().unwrap_err().to_string().contains("/home/x/.aws/config"));
    assert!(sandbox.lacks(&config::parse("kek: {local: {keyring: /srv/k}}").unwrap()).is_empty());
}

#[test]
fn a_file_alone_is_needed_where_it_cannot_be_replaced_and_its_directory_where_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let (config, file) = configuration(dir.path(), "");
    let need = Need::of(&config, &file, &Surroundings::default());
    for sub in ["keys", "etc"] {
        assert!(need.read.contains(&dir.path().join(sub)), "{need:?}");
    }
    assert!(
        need.connect.is_empty() && !need.read.contains(Path::new("/etc")),
        "a local KEK needs no network: {need:?}"
    );
    // As kubelet lays out a ConfigMap.
    std::fs::create_dir(dir.path().join("elsewhere/real")).unwrap();
    put(dir.path().join("elsewhere/real/c.yaml"), "x");
    std::os::unix::fs::symlink("elsewhere/real/c.yaml", dir.path().join("link.yaml")).unwrap();
    let need = Need::of(&config, &dir.path().join("link.yaml"), &Surroundings::default());
    assert!(need.read.contains(&dir.path().join("elsewhere/real").canonicalize().unwrap()), "{need:?}");
    let missing = config::parse(&format!("kek: {{local: {{keyring: {}/keys/a/b/k}}}}", dir.path().display())).unwrap();
    assert!(Need::of_keks(&missing).read.contains(&dir.path().join("keys")));
    let root = config::parse("kek: {local: {keyring: /k.json}}").unwrap();
    assert_eq!(Need::of_keks(&root).read, ["/k.json".into()].into());
}
