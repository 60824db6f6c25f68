//! The way from the plugins of the sandbox to their KEK, and how it is cut.
//!
//! A keyring file is moved away; in front of an endpoint without TLS stands a TCP proxy. In front of one with TLS nothing can
//! stand without its certificate, so that way is not cut, and the drill says so.

use crate::task::Tasks;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// See the module.
#[derive(Debug)]
pub(crate) enum Reach {
    /// A keyring file.
    File { path: PathBuf, away: PathBuf },
    /// An endpoint behind our proxy.
    Proxy(Proxy),
    /// It cannot be cut; why.
    Uncut(String),
}

impl Reach {
    /// From here on nobody reaches the KEK.
    pub(crate) fn cut(&self) -> io::Result<String> {
        match self {
            Self::File { path, away } => {
                std::fs::rename(path, away).map(|()| "the keyring file was moved away".to_owned())
            }
            Self::Proxy(proxy) => {
                proxy.cut.send_replace(true);
                Ok("every connection to the endpoint is closed, old and new".to_owned())
            }
            Self::Uncut(why) => Err(io::Error::other(why.clone())),
        }
    }

    /// The end of the outage.
    pub(crate) fn restore(&self) -> io::Result<()> {
        match self {
            Self::File { path, away } => std::fs::rename(away, path),
            Self::Proxy(proxy) => {
                proxy.cut.send_replace(false);
                Ok(())
            }
            Self::Uncut(_) => Ok(()),
        }
    }
}

/// A TCP proxy on a loopback port that the kernel chose.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) url: String,
    cut: Arc<watch::Sender<bool>>,
    _tasks: Tasks,
}

impl Proxy {
    /// In front of `http://AUTHORITY`.
    pub(crate) async fn start(authority: String) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let cut = Arc::new(watch::Sender::new(false));
        let (state, mut tasks) = (Arc::clone(&cut), Tasks::default());
        tasks.spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let Ok((client, _)) = listener.accept().await else { continue };
                // What has ended is forgotten.
                while connections.try_join_next().is_some() {}
                connections.spawn(pass(client, authority.clone(), state.subscribe()));
            }
        });
        Ok(Self { url, cut, _tasks: tasks })
    }
}

async fn pass(mut client: TcpStream, authority: String, mut cut: watch::Receiver<bool>) {
    let both = async {
        if let Ok(mut server) = TcpStream::connect(&authority).await {
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        }
    };
    tokio::select! {
        biased;
        _ = cut.wait_for(|cut| *cut) => {}
        () = both => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn the_proxy_passes_is_cut_and_passes_again() {
        let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = upstream.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = upstream.accept().await {
                tokio::spawn(async move {
                    let mut byte = [0];
                    while stream.read_exact(&mut byte).await.is_ok() && stream.write_all(&byte).await.is_ok() {}
                });
            }
        });
        let reach = Reach::Proxy(Proxy::start(at).await.unwrap());
        let Reach::Proxy(proxy) = &reach else { return };
        let port = proxy.url.trim_start_matches("http://").to_owned();
        let echo = async |stream: &mut TcpStream| {
            let mut byte = [0];
            stream.write_all(b"x").await?;
            stream.read_exact(&mut byte).await.map(|_| byte[0])
        };
        let mut first = TcpStream::connect(&port).await.unwrap();
        assert_eq!(echo(&mut first).await.unwrap(), b'x');
        reach.cut().unwrap();
        assert!(echo(&mut first).await.is_err(), "a connection of before is closed");
        let mut second = TcpStream::connect(&port).await.unwrap();
        assert!(echo(&mut second).await.is_err(), "and a new one");
        reach.restore().unwrap();
        assert_eq!(echo(&mut TcpStream::connect(&port).await.unwrap()).await.unwrap(), b'x');
    }

    #[test]
    fn a_keyring_is_moved_away_and_back() {
        let dir = tempfile::tempdir().unwrap();
        let (path, away) = (dir.path().join("k"), dir.path().join("k.away"));
        kube_kms_os::durable::write(&path, b"x", kube_kms_os::durable::Existing::Refuse).unwrap();
        let reach = Reach::File { path: path.clone(), away };
        reach.cut().unwrap();
        assert!(!path.exists());
        reach.restore().unwrap();
        assert!(path.exists());
    }
}
