//! Binds the listening socket, and takes its file away again when it is still ours.
//!
//! Guarantees: a live owner is never displaced unless asked; what is not a socket is never deleted; the path goes from
//! the old socket to the new one by one rename(2), so that there is no moment without one; the mode is never wider than
//! asked. Refuses to know: who connects. SPEC: ARCHITECTURE.md "Life of the
//! process"; docs/conformance.md items 15, 73 and 74; unix(7).

use super::directory::{self, PathLock, Unfit};
use super::peer;
use kms_v2_api::address::{Place, SocketAddress};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Connections that may wait to be accepted; the kernel cuts it to net.core.somaxconn.
const BACKLOG: i32 = 4096;
const PERMISSION_BITS: u32 = 0o777;

/// What to do about somebody who listens already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Takeover {
    /// Leave him alone and fail.
    #[default]
    Refuse,
    /// Take his path. He keeps his connections and gets no new ones.
    Displace,
}

/// Why the socket could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody listens there.
    #[error("{address} is in use by a running process{}", in_words(*.pid))]
    LiveOwner {
        /// Where.
        address: SocketAddress,
        /// Who, when the kernel tells: not across pid namespaces.
        pid: Option<i32>,
    },
    /// Somebody listens there, and an abstract name cannot be taken over.
    #[error("{address} is in use by a running process{}, and an abstract socket cannot be taken over", in_words(*.pid))]
    AbstractTakeover {
        /// Where.
        address: SocketAddress,
        /// Who, when the kernel tells.
        pid: Option<i32>,
    },
    /// A file, a directory or a link is in the way.
    #[error("{0} exists and is not a socket")]
    NotASocket(PathBuf),
    /// The directory's place is taken by something else.
    #[error("{0} is not a directory")]
    NotADirectory(PathBuf),
    /// Any local user could replace the socket.
    #[error("everybody may write to {0}")]
    WorldWritableDirectory(PathBuf),
    /// Any local user could put a socket there while nobody serves.
    #[error("everybody may make files in {0}, and a socket of his own under our name while this process is away")]
    SharedDirectory(PathBuf),
    /// Another user could replace the socket.
    #[error("{path} belongs to user {uid}, who can put a socket of his own in the place of ours")]
    ForeignDirectory {
        /// The directory, or one above it.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// Neither a listener nor a refusal was found.
    #[error("cannot tell whether somebody listens on {address}")]
    Undecided {
        /// Where.
        address: SocketAddress,
        /// What connect(2) said.
        source: io::Error,
    },
    /// The system said no.
    #[error("cannot {action} {path}")]
    System {
        /// What was tried, such as `bind`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

fn in_words(pid: Option<i32>) -> String {
    pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
}

impl BindError {
    /// What the operator can do.
    #[must_use]
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::LiveOwner { .. } => {
                "stop that process, give this one another `listen.socket`, or start it with --take-over to take its place"
            }
            Self::AbstractTakeover { .. } => {
                "stop that process first, or use a file socket, which can be taken over without a gap"
            }
            Self::NotASocket(_) => {
                "nothing was deleted; move it away if it is not needed, or give another `listen.socket`"
            }
            Self::NotADirectory(_) => "give a `listen.socket` inside a directory",
            Self::WorldWritableDirectory(_) => {
                "use a directory of its own, such as /run/kube-kms, or take the permission away with chmod o-w"
            }
            Self::SharedDirectory(_) => "use a directory of its own, such as /run/kube-kms; serve makes it",
            Self::ForeignDirectory { .. } => {
                "give it to root or to the user who serves (chown), serve as its owner, or give another `listen.socket`"
            }
            Self::Undecided { .. } => {
                "see which program made that socket (ss -xlp); remove it when it is not needed, or give another `listen.socket`"
            }
            Self::System { .. } => {
                "run as a user who may write to the directory of `listen.socket`, and mount that directory writable"
            }
        }
    }
}

/// A listening socket, non-blocking, and its file.
#[derive(Debug)]
pub struct BoundSocket {
    listener: UnixListener,
    address: SocketAddress,
    file: SocketFile,
}

impl BoundSocket {
    /// A listener that somebody else made and will remove.
    pub(super) const fn foreign(listener: UnixListener, address: SocketAddress) -> Self {
        Self { listener, address, file: SocketFile(None) }
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> &SocketAddress {
        &self.address
    }

    /// The listener for the server, and the file to keep until shutdown: dropping it removes the path.
    #[must_use]
    pub fn into_parts(self) -> (UnixListener, SocketFile) {
        (self.listener, self.file)
    }

    /// As [`SocketFile::unlink_if_ours`].
    ///
    /// # Errors
    /// Those of the file system.
    pub fn unlink_if_ours(&mut self) -> io::Result<bool> {
        self.file.unlink_if_ours()
    }
}

/// The path of a socket that this process bound. Nothing for an abstract socket and for one that systemd owns.
#[derive(Debug)]
pub struct SocketFile(Option<Ours>);

/// INVARIANT: `pin` keeps the inode from being freed, so that no later socket can have its number by chance
/// (tested by `a_path_that_a_successor_took_is_left_alone`).
#[derive(Debug)]
struct Ours {
    path: PathBuf,
    pin: File,
}

/// A look at a [`SocketFile`]'s path that can be given away.
#[derive(Debug)]
pub struct SocketWatch(Option<Ours>);

impl SocketWatch {
    /// Whether somebody listens on another socket at the path now: a successor has taken it. False when nothing is there, when
    /// a successor has died and left its file, and for a socket that nobody can take over. Does not block.
    #[must_use]
    pub fn is_displaced(&self) -> bool {
        let Some(ours) = &self.0 else { return false };
        match (std::fs::symlink_metadata(&ours.path), ours.pin.metadata()) {
            (Ok(found), Ok(own)) if !directory::same(&found, &own) => {
                // One that cannot be asked may be a successor, and then a key_id that it does not know yet must wait.
                SocketAddrUnix::new(&ours.path).map_or(true, |name| !matches!(connect(&name), Ok(Occupied::Nobody)))
            }
            _ => false,
        }
    }
}

impl SocketFile {
    /// A look at the path, for whoever has to know when a successor takes it.
    ///
    /// # Errors
    /// When there is no file descriptor left.
    pub fn watch(&self) -> io::Result<SocketWatch> {
        let copy = |ours: &Ours| Ok(Ours { path: ours.path.clone(), pin: ours.pin.try_clone()? });
        self.0.as_ref().map(copy).transpose().map(SocketWatch)
    }

    /// Removes the path when our socket is still there, and says whether it did. Later calls do nothing.
    ///
    /// # Errors
    /// Those of the file system; the path is left as it is.
    pub fn unlink_if_ours(&mut self) -> io::Result<bool> {
        let Some(ours) = self.0.take() else { return Ok(false) };
        // Under the lock, so that no other instance renames its socket over the path between the look and the unlink.
        let _lock = PathLock::take(&ours.path)?;
        match std::fs::symlink_metadata(&ours.path) {
            Ok(found) if directory::same(&found, &ours.pin.metadata()?) => {
                std::fs::remove_file(&ours.path).map(|()| true)
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(false),
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = self.unlink_if_ours() {
            tracing::warn!(target: "kube_kms::transport", %error, "the socket file could not be removed; the next start replaces it");
        }
    }
}

/// Makes the directory of a file socket as [`bind`] would, for whoever may not make it later.
///
/// # Errors
/// Those of [`bind`] that are about the directory.
pub fn prepare_directory(address: &SocketAddress, mode: u32) -> Result<(), BindError> {
    let Place::File(path) = address.place() else { return Ok(()) };
    let dir = path.parent().unwrap_or(Path::new("/"));
    directory::prepare(dir, mode & PERMISSION_BITS).map_err(unfit(dir))
}

/// Binds and listens. `mode` is the permission bits of a file socket, exact whatever the umask is.
///
/// Blocking, for a moment; another instance that is binding the same path is waited for.
///
/// # Errors
/// [`BindError`], each with a [`BindError::hint`]; what was at the path is then still there.
pub fn bind(address: SocketAddress, mode: u32, existing: Takeover) -> Result<BoundSocket, BindError> {
    match address.place() {
        Place::File(path) => {
            let path = path.to_owned();
            let (listener, file) = bind_file(&path, &address, mode & PERMISSION_BITS, existing)?;
            Ok(BoundSocket { listener, address, file: SocketFile(Some(file)) })
        }
        Place::Abstract(name) => {
            let listener = bind_abstract(name, &address, existing)?;
            Ok(BoundSocket::foreign(listener, address))
        }
    }
}

/// Who is where a socket would be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occupant {
    /// Nobody, and no socket either.
    Nobody,
    /// A socket file that nobody listens on any more.
    Left,
    /// A running process, and its pid when the kernel tells.
    Listener(Option<i32>),
}

/// The directory on the way to a socket that a group other than root's and ours can write to, and that group.
#[must_use]
pub fn open_to_group(dir: &Path) -> Option<(PathBuf, u32)> {
    directory::open_to_group(dir)
}

/// Looks at what [`bind`] would find, by the same rules, and changes nothing: a directory that is missing is no error, since
/// `bind` would make it.
///
/// # Errors
/// What would keep [`bind`] from binding, a listener excepted.
pub fn look(address: &SocketAddress) -> Result<Occupant, BindError> {
    let named = |errno: Errno| failed("name", Path::new(&address.to_string()))(errno.into());
    let (name, nobody) = match address.place() {
        Place::File(path) => {
            let dir = path.parent().unwrap_or(Path::new("/"));
            match directory::check(dir) {
                Err(Unfit::Io(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(Occupant::Nobody),
                checked => checked.map_err(unfit(dir))?,
            }
            if !is_socket(path)? {
                return Ok(Occupant::Nobody);
            }
            (SocketAddrUnix::new(path).map_err(named)?, Occupant::Left)
        }
        Place::Abstract(name) => (SocketAddrUnix::new_abstract_name(name.as_bytes()).map_err(named)?, Occupant::Nobody),
    };
    Ok(find_owner(&name, address)?.map_or(nobody, Occupant::Listener))
}

fn bind_file(
    path: &Path,
    address: &SocketAddress,
    mode: u32,
    existing: Takeover,
) -> Result<(UnixListener, Ours), BindError> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    directory::prepare(dir, mode).map_err(unfit(dir))?;
    if let Some((open, gid)) = directory::open_to_group(dir) {
        tracing::warn!(
            target: "kube_kms::transport", directory = %open.display(), gid,
            "whoever is in this group can put a socket of his own in the place of ours; take its right away with chmod g-w"
        );
    }
    let _lock = PathLock::take(path).map_err(failed("lock", path))?;
    if is_socket(path)? {
        let name = SocketAddrUnix::new(path).map_err(|e| failed("name", path)(e.into()))?;
        if let Some(pid) = find_owner(&name, address)?
            && existing == Takeover::Refuse
        {
            return Err(BindError::LiveOwner { address: address.clone(), pid });
        }
    }
    let temporary = Temporary(directory::beside(path, ".new"));
    // Made and renamed only under the lock: what is there now was left by an instance that died in between.
    if is_socket(&temporary.0)? {
        std::fs::remove_file(&temporary.0).map_err(failed("remove", &temporary.0))?;
    }
    let (listener, pin) = bind_name(&temporary.0, mode).map_err(failed("bind", &temporary.0))?;
    rustix::fs::renameat(CWD, &temporary.0, CWD, path).map_err(|e| failed("bind", path)(e.into()))?;
    Ok((listener, Ours { path: path.to_owned(), pin }))
}

fn unfit(dir: &Path) -> impl Fn(Unfit) -> BindError {
    move |unfit| match unfit {
        Unfit::NotADirectory => BindError::NotADirectory(dir.to_owned()),
        Unfit::WorldWritable(at) => BindError::WorldWritableDirectory(at),
        Unfit::Shared => BindError::SharedDirectory(dir.to_owned()),
        Unfit::Foreign(path, uid) => BindError::ForeignDirectory { path, uid },
        Unfit::Io(source) => BindError::System { action: "create or look at", path: dir.to_owned(), source },
    }
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> BindError {
    move |source| BindError::System { action, path: path.to_owned(), source }
}

/// Whether a socket is at the path; nothing is not an error, another kind of file is.
fn is_socket(path: &Path) -> Result<bool, BindError> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => Ok(true),
        Ok(_) => Err(BindError::NotASocket(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("look at", path)(error)),
    }
}

/// Somebody who listens (and his pid, when known), or nobody.
fn find_owner(name: &SocketAddrUnix, address: &SocketAddress) -> Result<Option<Option<i32>>, BindError> {
    match connect(name) {
        Ok(Occupied::By(pid)) => Ok(Some(pid)),
        Ok(Occupied::Nobody) => Ok(None),
        Err(errno) => Err(BindError::Undecided { address: address.clone(), source: errno.into() }),
    }
}

/// Who answers at a name.
enum Occupied {
    /// A process, and its pid when the kernel tells.
    By(Option<i32>),
    Nobody,
}

fn connect(name: &SocketAddrUnix) -> Result<Occupied, Errno> {
    // Non-blocking: connect(2) to a listener whose queue is full would otherwise wait for as long as that lasts.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::io::retry_on_intr(|| rustix::net::connect(&fd, name)) {
        Ok(()) => Ok(Occupied::By(peer::listener_pid(UnixStream::from(fd)))),
        Err(Errno::AGAIN) => Ok(Occupied::By(None)),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(Occupied::Nobody),
        Err(errno) => Err(errno),
    }
}

/// A listening socket with exactly this mode, and a handle that pins its inode.
fn bind_name(path: &Path, mode: u32) -> io::Result<(UnixListener, File)> {
    let fd = bind_narrowly(path, mode)?;
    let handle = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let pin = File::from(rustix::fs::openat(CWD, path, handle, Mode::empty())?);
    // The umask, or a default ACL of the directory, may have taken bits away. The lock keeps this name ours.
    if pin.metadata()?.permissions().mode() & PERMISSION_BITS != mode {
        std::fs::set_permissions(path, Permissions::from_mode(mode))?;
    }
    rustix::net::listen(&fd, BACKLOG)?;
    Ok((UnixListener::from(fd), pin))
}

/// A bound socket with this mode less the umask.
///
/// SECURITY: never a moment wider than asked, because the file takes the mode of the socket's own inode; and without
/// touching the umask, which belongs to every thread of the process.
fn bind_narrowly(path: &Path, mode: u32) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode))?;
    rustix::net::bind(&fd, &SocketAddrUnix::new(path)?)?;
    Ok(fd)
}

/// Removes the temporary name however the function ends; after the rename there is nothing left to remove.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.0).is_ok_and(|found| found.file_type().is_socket()) {
            let _ = std::fs::remove_file(&self.0);
        }
    }
}

fn bind_abstract(name: &str, address: &SocketAddress, existing: Takeover) -> Result<UnixListener, BindError> {
    let failed = failed("bind", Path::new(name));
    // SPEC: the name has its exact length, without a trailing NUL; Go dials it so (kube-apiserver `kms/util.go`).
    let listener = SocketAddr::from_abstract_name(name).and_then(|name| UnixListener::bind_addr(&name));
    match listener {
        Ok(listener) => {
            listener.set_nonblocking(true).map_err(failed)?;
            Ok(listener)
        }
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let name = SocketAddrUnix::new_abstract_name(name.as_bytes()).map_err(|e| failed(e.into()))?;
            let pid = find_owner(&name, address)?.flatten();
            let address = address.clone();
            Err(match existing {
                Takeover::Refuse => BindError::LiveOwner { address, pid },
                Takeover::Displace => BindError::AbstractTakeover { address, pid },
            })
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests;
