//! A gate between one node and the KMS that all nodes share: shut, only that node is cut off.

use crate::support::fake_kms::FakeKms;
use crate::support::site::{ALIAS, Site};
use std::net::SocketAddr;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Forwards connections while it is open; shut, it drops them all and takes no new one to its end.
pub struct Gate {
    address: SocketAddr,
    open: watch::Sender<bool>,
}

impl Gate {
    /// Open, in front of this KMS. Lives as long as the test's runtime.
    pub async fn before(kms: &FakeKms) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (open, is_open) = watch::channel(true);
        let behind = kms.address();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut is_open = is_open.clone();
                tokio::spawn(async move {
                    let forwarding = async {
                        let mut far = TcpStream::connect(behind).await?;
                        copy_bidirectional(&mut near, &mut far).await
                    };
                    tokio::select! {
                        _ = forwarding => {}
                        _ = is_open.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        Self { address, open }
    }

    pub fn shut(&self) {
        self.open.send_replace(false);
    }

    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// A replica of this node that reaches the KMS through the gate only.
    pub fn replica(&self, site: &Site) -> Site {
        let mut replica = site.replica();
        let region = site.kms().region();
        replica.set(&format!("kek: {{aws: {{key: {ALIAS}, region: {region}, endpoint: 'http://{}'}}}}", self.address));
        replica
    }
}
