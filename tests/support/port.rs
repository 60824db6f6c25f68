//! TCP ports of the servers that tests stop and start again.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpSocket;

/// Binds and does not listen yet: connections are refused, and the port is ours.
pub fn bind(at: SocketAddr) -> io::Result<(TcpSocket, SocketAddr)> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(at)?;
    let at = socket.local_addr()?;
    Ok((socket, at))
}

/// Binds the port that was ours a moment ago. A process that another test is starting has a copy of what listened there from
/// its fork to its exec.
pub async fn bind_again(at: SocketAddr) -> io::Result<TcpSocket> {
    let mut tries = 0;
    loop {
        match bind(at) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < 1000 => tries += 1,
            bound => return bound.map(|(socket, _)| socket),
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
