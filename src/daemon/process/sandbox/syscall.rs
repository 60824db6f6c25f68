//! System calls, by seccomp: a list of what serving calls, and EPERM for everything else.
//!
//! Guarantees: no program is started, no other process is looked at, nothing is mounted or loaded, no namespace is entered, and
//! no memory becomes executable; only a glibc that is linked dynamically may still map files as code (see [`loads_modules`]),
//! and never what is writable, shared or without a file. The list is what the standard library, the runtime, TLS and the C libraries
//! (glibc and musl) use for files, sockets, time, threads and memory, and not only what one run has shown. Calls that are
//! allowed whatever their arguments cost nothing: the kernel (5.11) keeps a bitmap of them. SPEC: seccomp(2), syscalls(2).

use super::need::Need;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use std::collections::BTreeMap;
use std::io;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

const EPERM: u32 = libc::EPERM.unsigned_abs();
const ENOSYS: u32 = libc::ENOSYS.unsigned_abs();

/// Whether the C library maps code after the start: glibc loads the modules of nsswitch.conf at the first lookup of a name that
/// needs them. To make it load them earlier would take a lookup that asks the network, before there is a socket.
pub(super) fn loads_modules(need: &Need) -> bool {
    cfg!(all(target_env = "gnu", not(target_feature = "crt-static"))) && !need.connect.is_empty()
}

/// Applies the filters to every thread of the process.
pub(super) fn confine(loads_modules: bool) -> io::Result<String> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
    let compile = |rules: Rules, otherwise, then| -> io::Result<BpfProgram> {
        let filter = SeccompFilter::new(rules, otherwise, then, arch).map_err(io::Error::other)?;
        BpfProgram::try_from(filter).map_err(io::Error::other)
    };
    let allowed = allowed(loads_modules).map_err(io::Error::other)?;
    let count = allowed.len();
    let allow = compile(allowed, SeccompAction::Errno(EPERM), SeccompAction::Allow)?;
    let absent = compile(absent(), SeccompAction::Allow, SeccompAction::Errno(ENOSYS))?;
    for filter in [absent, allow] {
        seccompiler::apply_filter_all_threads(&filter).map_err(io::Error::other)?;
    }
    Ok(format!("{count} system calls"))
}

/// SPEC: glibc makes threads with clone3 and, where that is absent, with clone. Only the second shows its flags to a filter.
fn absent() -> Rules {
    [(libc::SYS_clone3, Vec::new())].into()
}

pub(super) fn allowed(loads_modules: bool) -> Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules = ANY_ARGUMENTS.iter().map(|call| (*call, Vec::new())).collect();
    rules.extend(OLD_NAMES.iter().map(|call| (*call, Vec::new())));
    let one_of = |argument, values: &[u64]| -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        values.iter().map(|value| rule(&[(argument, SeccompCmpOp::Eq, *value)])).collect()
    };
    let [thread, namespaces] = [libc::CLONE_THREAD, NAMESPACES].map(bits);
    let [write, execute] = [libc::PROT_WRITE, libc::PROT_EXEC].map(bits);
    // Allowed by `absent` or not at all.
    rules.insert(libc::SYS_clone3, Vec::new());
    // SECURITY: threads only, and none in namespaces of its own.
    let threads = rule(&[(0, SeccompCmpOp::MaskedEq(thread | namespaces), thread)])?;
    rules.insert(libc::SYS_clone, vec![threads]);
    // SECURITY: what was written is not run, neither from memory nor from a file that was written just before.
    let mut map = vec![rule(&[(2, SeccompCmpOp::MaskedEq(execute), 0)])?];
    if loads_modules {
        let [of_a_file, private] = [libc::MAP_TYPE | libc::MAP_ANONYMOUS, libc::MAP_PRIVATE].map(bits);
        let module = [(2, SeccompCmpOp::MaskedEq(write), 0), (3, SeccompCmpOp::MaskedEq(of_a_file), private)];
        map.push(rule(&module)?);
    }
    rules.insert(libc::SYS_mmap, map);
    rules.insert(libc::SYS_mprotect, vec![rule(&[(2, SeccompCmpOp::MaskedEq(execute), 0)])?]);
    rules.insert(libc::SYS_socket, one_of(0, &[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6].map(bits))?);
    // PR_SET_VMA names memory; allocators try it.
    rules.insert(
        libc::SYS_prctl,
        one_of(
            0,
            &[libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_GET_DUMPABLE, libc::PR_SET_VMA, PR_GET_AUXV].map(bits),
        )?,
    );
    // Our own limits and nobody else's.
    rules.insert(libc::SYS_prlimit64, one_of(0, &[0])?);
    rules.insert(libc::SYS_ioctl, one_of(1, &IOCTLS.map(u64::from))?);
    Ok(rules)
}

/// How rustix learns the size of a page. SPEC: prctl(2), Linux 6.4.
const PR_GET_AUXV: i32 = 0x4155_5856;

/// The lower half of an argument: flags are compared as 32 bits.
fn bits(flags: i32) -> u64 {
    u64::from(flags.cast_unsigned())
}

fn rule(conditions: &[(u8, SeccompCmpOp, u64)]) -> Result<SeccompRule, seccompiler::BackendError> {
    let conditions = conditions
        .iter()
        .map(|(argument, op, value)| SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, op.clone(), *value))
        .collect::<Result<_, _>>()?;
    SeccompRule::new(conditions)
}

const NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// FIONBIO, FIONREAD, FIOCLEX, TCGETS, TIOCGWINSZ: whether it is a terminal, and whether it blocks. Never TIOCSTI.
const IOCTLS: [u32; 5] = [0x5421, 0x541b, 0x5451, 0x5401, 0x5413];

/// Whatever their arguments.
#[rustfmt::skip]
const ANY_ARGUMENTS: &[i64] = &[
    // Requests.
    libc::SYS_epoll_pwait, libc::SYS_read, libc::SYS_write, libc::SYS_readv, libc::SYS_writev, libc::SYS_pwritev2, libc::SYS_recvfrom,
    libc::SYS_sendto, libc::SYS_recvmsg, libc::SYS_sendmsg, libc::SYS_recvmmsg, libc::SYS_sendmmsg, libc::SYS_futex, libc::SYS_epoll_ctl, libc::SYS_accept4,
    libc::SYS_close, libc::SYS_eventfd2, libc::SYS_epoll_create1, libc::SYS_epoll_pwait2, libc::SYS_ppoll, libc::SYS_pselect6,
    // Sockets.
    libc::SYS_accept, libc::SYS_bind, libc::SYS_connect, libc::SYS_listen, libc::SYS_shutdown, libc::SYS_socketpair,
    libc::SYS_getsockopt, libc::SYS_setsockopt, libc::SYS_getsockname, libc::SYS_getpeername,
    // Files.
    libc::SYS_openat, libc::SYS_fstat, libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_statfs, libc::SYS_fstatfs, libc::SYS_lseek,
    libc::SYS_pread64, libc::SYS_pwrite64, libc::SYS_preadv, libc::SYS_pwritev, libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_ftruncate,
    libc::SYS_getdents64, libc::SYS_readlinkat, libc::SYS_unlinkat, libc::SYS_renameat2, libc::SYS_linkat, libc::SYS_mkdirat, libc::SYS_fchmod,
    libc::SYS_fchmodat, libc::SYS_fchmodat2, libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_flock, libc::SYS_fcntl, libc::SYS_dup, libc::SYS_dup3,
    libc::SYS_pipe2, libc::SYS_getcwd, libc::SYS_umask, libc::SYS_fadvise64, libc::SYS_copy_file_range, libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch, libc::SYS_inotify_rm_watch, libc::SYS_close_range,
    // Memory.
    libc::SYS_munmap, libc::SYS_mremap, libc::SYS_madvise, libc::SYS_brk, libc::SYS_mlock, libc::SYS_mlock2, libc::SYS_munlock, libc::SYS_membarrier,
    libc::SYS_mincore,
    // Time.
    libc::SYS_clock_gettime, libc::SYS_clock_getres, libc::SYS_clock_nanosleep, libc::SYS_nanosleep, libc::SYS_gettimeofday, libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime, libc::SYS_timerfd_gettime,
    // Threads, signals, the end.
    libc::SYS_exit, libc::SYS_exit_group, libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack, libc::SYS_tgkill, libc::SYS_tkill, libc::SYS_restart_syscall, libc::SYS_set_robust_list, libc::SYS_get_robust_list, libc::SYS_rseq,
    libc::SYS_set_tid_address, libc::SYS_sched_yield, libc::SYS_sched_getaffinity, libc::SYS_sched_setaffinity, libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler, libc::SYS_getcpu,
    // About this process and this host.
    libc::SYS_getpid, libc::SYS_gettid, libc::SYS_getppid, libc::SYS_getuid, libc::SYS_geteuid, libc::SYS_getgid, libc::SYS_getegid,
    libc::SYS_getgroups, libc::SYS_getrandom, libc::SYS_uname, libc::SYS_sysinfo, libc::SYS_getrusage, libc::SYS_times,
    // A second filter or ruleset only takes more away.
    libc::SYS_seccomp, libc::SYS_landlock_create_ruleset, libc::SYS_landlock_add_rule, libc::SYS_landlock_restrict_self,
];

/// The older names that only this architecture has.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const OLD_NAMES: &[i64] = &[
    libc::SYS_epoll_wait, libc::SYS_poll, libc::SYS_select, libc::SYS_open, libc::SYS_stat, libc::SYS_lstat, libc::SYS_access, libc::SYS_readlink,
    libc::SYS_unlink, libc::SYS_rename, libc::SYS_renameat, libc::SYS_link, libc::SYS_mkdir, libc::SYS_rmdir, libc::SYS_chmod, libc::SYS_dup2,
    libc::SYS_pipe, libc::SYS_eventfd, libc::SYS_epoll_create, libc::SYS_getdents, libc::SYS_arch_prctl, libc::SYS_time, libc::SYS_getrlimit,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD_NAMES: &[i64] = &[libc::SYS_getrlimit];
