//! Where the socket comes from, and when: at once, except that a running instance is displaced only by one that can serve.
//!
//! Guarantees: without anybody on the socket it is bound before anything else, because kube-apiserver backs off from an
//! absent one; with `--take-over` the old instance keeps every new connection until this one has a data key, so that no
//! call meets a plugin that is still starting. SPEC: grpc-go backs off from an absent socket; tests/process/take_over.rs.

use super::StartError;
use kms_v2_api::address::{AddressError, Place, SocketAddress};
use kube_kms_config::Config;
use kube_kms_service::plugin::Plugin;
use kube_kms_service::state_file::StateFile;
use kube_kms_transport::socket::{self, BindError, BoundSocket, Takeover};
use std::path::PathBuf;
use std::time::Duration;

/// How often is looked for the first data key.
const LOOK: Duration = Duration::from_millis(20);
/// How many looks pass between two attempts to find the running instance gone: about a second.
const LOOKS_PER_ATTEMPT: u32 = 50;

/// A socket, or the wish for one that somebody else still serves.
#[derive(Debug)]
pub(super) enum Claim {
    /// Bound, or passed by the service manager.
    Bound(BoundSocket),
    /// To be taken over.
    Occupied { address: SocketAddress, mode: u32 },
}

/// Makes the directories that are written to, while that is still possible. Whoever needs one that could not be made says why.
pub(super) fn prepare(config: &Config, is_activated: bool) {
    if !is_activated && let Ok(address) = address_of(config) {
        let _ = socket::prepare_directory(&address, config.listen.mode);
    }
    let _ = StateFile::new(&config.state_dir).prepare_directory();
}

fn address_of(config: &Config) -> Result<SocketAddress, AddressError> {
    let base = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    SocketAddress::parse(&config.listen.socket, &base)
}

/// Binds `listen.socket`, unless the service manager passed a socket or, with `take_over`, somebody listens there.
pub(super) fn claim(activated: Option<BoundSocket>, config: &Config, take_over: bool) -> Result<Claim, StartError> {
    if let Some(activated) = activated {
        tracing::info!(target: "kube_kms::daemon", socket = %activated.address(), "listening on the socket of the service manager");
        return Ok(Claim::Bound(activated));
    }
    let address = address_of(config)?;
    let mode = config.listen.mode;
    match socket::bind(address.clone(), mode, Takeover::Refuse) {
        Ok(bound) => Ok(Claim::Bound(announced(bound, false))),
        Err(BindError::LiveOwner { address, pid }) if take_over => match address.place() {
            Place::File(_) => {
                tracing::info!(
                    target: "kube_kms::daemon", socket = %address, pid,
                    "another instance serves there; taking over as soon as there is a data key"
                );
                Ok(Claim::Occupied { address, mode })
            }
            Place::Abstract(_) => Err(BindError::AbstractTakeover { address, pid }.into()),
        },
        Err(error) => Err(error.into()),
    }
}

impl Claim {
    /// The bound socket, once the plugin can serve on it or the running instance is gone.
    ///
    /// # Cancel safety
    /// Nothing is displaced before this returns.
    pub(super) async fn settle(self, plugin: &Plugin) -> Result<BoundSocket, StartError> {
        let (address, mode) = match self {
            Self::Bound(bound) => return Ok(bound),
            Self::Occupied { address, mode } => (address, mode),
        };
        loop {
            for _ in 0..LOOKS_PER_ATTEMPT {
                if plugin.published().write.is_some() {
                    return Ok(announced(socket::bind(address, mode, Takeover::Displace)?, true));
                }
                tokio::time::sleep(LOOK).await;
            }
            match socket::bind(address.clone(), mode, Takeover::Refuse) {
                Ok(bound) => return Ok(announced(bound, false)),
                Err(BindError::LiveOwner { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn announced(bound: BoundSocket, take_over: bool) -> BoundSocket {
    tracing::info!(target: "kube_kms::daemon", socket = %bound.address(), take_over, "listening");
    bound
}
