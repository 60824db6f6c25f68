//! Every promise of the module, against the real kernel.

use super::*;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use tempfile::TempDir;

fn place() -> (TempDir, SocketAddress, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kms.sock");
    (dir, SocketAddress::parse(path.to_str().unwrap(), Path::new("/")).unwrap(), path)
}

fn fresh(address: &SocketAddress) -> Result<BoundSocket, BindError> {
    bind(address.clone(), 0o600, Takeover::Refuse)
}

fn names(dir: &TempDir) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Leaves a socket that nobody listens on. Another test may be starting a child process just now, which has a copy of
/// every descriptor until it runs its program: hence the loop.
fn leave_stale(path: &Path) {
    drop(UnixListener::bind(path).unwrap());
    while UnixStream::connect(path).is_ok() {
        std::thread::yield_now();
    }
}

/// A byte goes from a client at the path to this very listener.
fn serves(bound: &BoundSocket, path: &Path) -> bool {
    let mut client = UnixStream::connect(path).unwrap();
    client.write_all(b"x").unwrap();
    let Ok((mut accepted, _)) = bound.listener.accept() else { return false };
    accepted.set_nonblocking(false).unwrap();
    let mut byte = [0];
    accepted.read_exact(&mut byte).is_ok() && byte == *b"x"
}

#[test]
fn a_stale_socket_is_replaced() {
    let (dir, address, path) = place();
    leave_stale(&path);
    assert!(path.exists());
    let bound = fresh(&address).unwrap();
    assert!(serves(&bound, &path));
    assert_eq!(names(&dir), [".kms.sock.lock", "kms.sock"]);
}

#[test]
fn a_live_owner_is_refused_by_pid_and_goes_on_undisturbed() {
    let (_dir, address, path) = place();
    let first = fresh(&address).unwrap();
    let inode = std::fs::metadata(&path).unwrap().ino();
    let error = fresh(&address).unwrap_err();
    let pid = i32::try_from(std::process::id()).unwrap();
    assert!(matches!(&error, BindError::LiveOwner { pid: Some(p), .. } if *p == pid), "{error:?}");
    assert!(error.to_string().contains(&format!("pid {pid}")) && error.hint().contains("--take-over"));
    assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode);
    // The probe's connection is first in the queue, and closed.
    let (mut probe, _) = first.listener.accept().unwrap();
    assert_eq!(probe.read(&mut [0]).unwrap(), 0);
    assert!(serves(&first, &path));
}

#[test]
fn a_live_owner_whose_queue_is_full_is_still_a_live_owner() {
    let (_dir, address, path) = place();
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let client = || rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
    let name = SocketAddrUnix::new(path.as_path()).unwrap();
    let owner = client();
    rustix::net::bind(&owner, &name).unwrap();
    rustix::net::listen(&owner, 0).unwrap();
    let mut queued = Vec::new();
    loop {
        let next = client();
        match rustix::net::connect(&next, &name) {
            Ok(()) => queued.push(next),
            Err(errno) => break assert_eq!(errno, Errno::AGAIN),
        }
    }
    assert!(matches!(fresh(&address).unwrap_err(), BindError::LiveOwner { pid: None, .. }));
}

#[test]
fn a_take_over_leaves_no_moment_without_a_socket() {
    let (dir, address, path) = place();
    let mut owner = fresh(&address).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut connects = 0_u32;
            while !done.load(Ordering::Relaxed) {
                match UnixStream::connect(&path) {
                    Ok(_) => connects += 1,
                    Err(error) => return Err(error),
                }
            }
            Ok(connects)
        });
        let mut take_over = || {
            let next = bind(address.clone(), 0o600, Takeover::Displace)?;
            // The old owner leaves in order, which must not take the new one's path away; and its queue is emptied.
            drop(std::mem::replace(&mut owner, next));
            while owner.listener.accept().is_ok() {}
            Ok::<_, BindError>(())
        };
        let all = (0..50).try_for_each(|_| take_over());
        done.store(true, Ordering::Relaxed);
        all.unwrap();
        assert!(client.join().unwrap().unwrap() > 0);
    });
    while owner.listener.accept().is_ok() {}
    assert!(serves(&owner, &path));
    assert_eq!(names(&dir), [".kms.sock.lock", "kms.sock"]);
}

#[test]
fn what_is_not_a_socket_is_refused_and_still_there() {
    for takeover in [Takeover::Refuse, Takeover::Displace] {
        let (_dir, address, path) = place();
        std::fs::copy("/proc/self/comm", &path).unwrap();
        assert!(matches!(bind(address.clone(), 0o600, takeover), Err(BindError::NotASocket(p)) if p == path));
        assert!(path.is_file());
        std::fs::remove_file(&path).unwrap();

        std::fs::create_dir(&path).unwrap();
        assert!(matches!(bind(address.clone(), 0o600, takeover), Err(BindError::NotASocket(_))));
        assert!(path.is_dir());
        std::fs::remove_dir(&path).unwrap();

        // A link, even to a stale socket: following it would replace a file somewhere else.
        let target = path.with_file_name("elsewhere");
        drop(UnixListener::bind(&target).unwrap());
        std::os::unix::fs::symlink(&target, &path).unwrap();
        assert!(matches!(bind(address, 0o600, takeover), Err(BindError::NotASocket(_))));
        assert!(path.is_symlink() && target.exists());
    }
}

#[test]
fn what_lies_at_the_temporary_name_is_removed_only_when_it_is_a_socket() {
    let (dir, address, path) = place();
    let temporary = path.with_file_name(".kms.sock.new");
    drop(UnixListener::bind(&temporary).unwrap());
    drop(fresh(&address).unwrap());
    assert_eq!(names(&dir), [".kms.sock.lock"]);
    std::fs::copy("/proc/self/comm", &temporary).unwrap();
    assert!(matches!(fresh(&address), Err(BindError::NotASocket(p)) if p == temporary));
    assert_eq!(names(&dir), [".kms.sock.lock", ".kms.sock.new"]);
}

#[test]
fn the_mode_is_exact_under_every_umask_and_never_wider_on_the_way() {
    // The umask belongs to the whole process, and the directories of other tests would feel it.
    let done = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["socket::tests::child_under_umasks", "--exact", "--ignored"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success() && said.contains("1 passed"), "{said}");
}

/// Not a test of its own: what the child process of the test above does.
#[test]
#[ignore = "run as a child process by the test above"]
fn child_under_umasks() {
    let mode_of = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o7777;
    for umask in [0o000, 0o077] {
        for (mode, directory_mode) in [(0o600, 0o700), (0o660, 0o750), (0o666, 0o755)] {
            let (dir, _, _) = place();
            let path = dir.path().join("new/kms.sock");
            let address = SocketAddress::parse(path.to_str().unwrap(), Path::new("/")).unwrap();
            rustix::process::umask(Mode::from_raw_mode(umask));
            let _bound = bind(address, mode, Takeover::Refuse).unwrap();
            assert_eq!(mode_of(&path), mode, "umask {umask:o}");
            assert_eq!(mode_of(path.parent().unwrap()), directory_mode, "umask {umask:o}");

            let bare = path.with_file_name("bare");
            let _fd = bind_narrowly(&bare, mode).unwrap();
            assert_eq!(mode_of(&bare), mode & !umask, "umask {umask:o}");
            rustix::process::umask(Mode::from_raw_mode(0o022));
        }
    }
}

#[test]
fn the_path_goes_with_its_socket() {
    let (_dir, address, path) = place();
    drop(fresh(&address).unwrap());
    assert!(!path.exists());
    let mut bound = fresh(&address).unwrap();
    assert!(bound.unlink_if_ours().unwrap());
    assert!(!bound.unlink_if_ours().unwrap());
    assert!(!path.exists());
    let (listener, file) = fresh(&address).unwrap().into_parts();
    drop(listener);
    assert!(path.exists(), "closing the listener leaves the path to its owner");
    drop(file);
    assert!(!path.exists());
}

#[test]
fn a_path_that_a_successor_took_is_left_alone() {
    let (_dir, address, path) = place();
    let (listener, mut file) = fresh(&address).unwrap().into_parts();
    // Even when nothing but the handle holds the old inode any more, so that its number could come round again.
    drop(listener);
    for _ in 0..20 {
        std::fs::remove_file(&path).unwrap();
        drop(UnixListener::bind(&path).unwrap());
    }
    assert!(!file.unlink_if_ours().unwrap());
    assert!(path.exists());
}

#[test]
fn whoever_watches_sees_a_successor_take_the_path_and_nothing_else() {
    let (_dir, address, path) = place();
    let (listener, file) = fresh(&address).unwrap().into_parts();
    let watch = file.watch().unwrap();
    assert!(!watch.is_displaced());
    std::fs::remove_file(&path).unwrap();
    assert!(!watch.is_displaced(), "nobody has taken it");
    drop(listener);
    let (_listener, second) = fresh(&address).unwrap().into_parts();
    assert!(watch.is_displaced() && !second.watch().unwrap().is_displaced());
    assert!(!SocketFile(None).watch().unwrap().is_displaced(), "it cannot be taken over");
}

#[test]
fn a_successor_that_died_has_taken_nothing_and_one_that_is_busy_has() {
    let (_dir, address, path) = place();
    let (_listener, file) = fresh(&address).unwrap().into_parts();
    let watch = file.watch().unwrap();
    let (listener, left) = bind(address, 0o600, Takeover::Displace).unwrap().into_parts();
    // As a kill -9 leaves it: the file stays, and nobody listens.
    std::mem::forget(left);
    rustix::net::listen(&listener, 0).unwrap();
    let mut waiting = Vec::new();
    while let Ok(fd) = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK, None) {
        if rustix::net::connect(&fd, &SocketAddrUnix::new(&path).unwrap()).is_err() {
            break;
        }
        waiting.push(fd);
    }
    assert!(watch.is_displaced(), "its queue is full, and it is there");
    drop((listener, waiting));
    while UnixStream::connect(&path).is_ok() {
        std::thread::yield_now();
    }
    assert!(!watch.is_displaced(), "nobody listens there");
}

#[test]
fn of_two_that_bind_at_once_exactly_one_wins() {
    for stale in [false, true] {
        for _ in 0..20 {
            let (_dir, address, path) = place();
            if stale {
                leave_stale(&path);
            }
            let start = Barrier::new(2);
            let contend = || {
                start.wait();
                fresh(&address)
            };
            let (a, b) = std::thread::scope(|scope| {
                let (a, b) = (scope.spawn(contend), scope.spawn(contend));
                (a.join().unwrap(), b.join().unwrap())
            });
            let (winner, loser) = match (a, b) {
                (Ok(winner), Err(loser)) | (Err(loser), Ok(winner)) => (winner, loser),
                other => panic!("{other:?}"),
            };
            assert!(matches!(loser, BindError::LiveOwner { .. }), "{loser:?}");
            while winner.listener.accept().is_ok() {}
            assert!(serves(&winner, &path));
        }
    }
}

#[test]
fn a_socket_of_another_kind_is_not_taken_for_a_stale_one() {
    let (_dir, address, path) = place();
    let _datagrams = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    for takeover in [Takeover::Refuse, Takeover::Displace] {
        assert!(matches!(bind(address.clone(), 0o600, takeover), Err(BindError::Undecided { .. })));
    }
    assert!(path.exists());
}

#[test]
fn an_unfit_directory_is_refused_in_words() {
    let (dir, address, _path) = place();
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
    let error = fresh(&address).unwrap_err();
    assert!(matches!(error, BindError::WorldWritableDirectory(_)));
    assert!(error.hint().contains("chmod o-w"));
    assert_eq!(names(&dir), [""; 0], "nothing was made there");
}

#[test]
fn an_abstract_name_has_its_exact_length_and_one_owner() {
    let name = format!("kube-kms-test-{}", uuid::Uuid::new_v4());
    let address = SocketAddress::parse(&format!("@{name}"), Path::new("/")).unwrap();
    let bound = fresh(&address).unwrap();
    UnixStream::connect_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    // The kernel shows every NUL as @, so a trailing one would be seen.
    let table = std::fs::read_to_string("/proc/net/unix").unwrap();
    assert!(table.lines().any(|line| line.ends_with(&format!(" @{name}"))));

    let pid = i32::try_from(std::process::id()).unwrap();
    assert!(matches!(fresh(&address).unwrap_err(), BindError::LiveOwner { pid: Some(p), .. } if p == pid));
    let error = bind(address.clone(), 0o600, Takeover::Displace).unwrap_err();
    assert!(matches!(error, BindError::AbstractTakeover { .. }));
    assert!(error.to_string().contains("cannot be taken over"));
    drop(bound);
    while UnixStream::connect_addr(&SocketAddr::from_abstract_name(&name).unwrap()).is_ok() {
        std::thread::yield_now(); // as in `leave_stale`
    }
    fresh(&address).unwrap();
}

#[test]
fn the_listener_does_not_block() {
    let (_dir, address, _path) = place();
    assert_eq!(fresh(&address).unwrap().listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn a_symlinked_directory_is_judged_by_where_it_leads_and_a_symlinked_socket_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().join("real");
    std::fs::create_dir(&real).unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let at = |path: &Path| SocketAddress::parse(path.to_str().unwrap(), Path::new("/")).unwrap();
    std::fs::set_permissions(&real, Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(fresh(&at(&link.join("s"))), Err(BindError::WorldWritableDirectory(_))));
    std::fs::set_permissions(&real, Permissions::from_mode(0o700)).unwrap();
    drop(fresh(&at(&link.join("s"))).unwrap());

    // Whoever follows it would bind, or remove, what is elsewhere.
    let elsewhere = real.join("elsewhere");
    let listener = UnixListener::bind(&elsewhere).unwrap();
    for target in [&elsewhere, &real.join("nothing")] {
        let planted = real.join("planted");
        std::os::unix::fs::symlink(target, &planted).unwrap();
        assert!(matches!(fresh(&at(&planted)), Err(BindError::NotASocket(_))));
        assert!(std::fs::symlink_metadata(&planted).unwrap().is_symlink());
        std::fs::remove_file(&planted).unwrap();
    }
    drop(listener);
    assert!(elsewhere.exists() && !real.join("nothing").exists());
}
