//! The composition root: puts adapters and use cases together and runs them until told to stop.
//!
//! Order: configuration → harden, sandbox → bind the socket → load state → build the KEKs → serve; the first write state comes when
//! the KMS answers. The socket is bound first because kube-apiserver backs off for up to two minutes from one that is
//! absent. SPEC: ARCHITECTURE.md "Life of the process".

pub mod harden;
pub mod keks;
mod listen;
mod otlp;
pub mod pages;
pub mod reload;
pub mod sandbox;
mod signal;

use harden::HardeningStep;
use kms_v2_api::address::AddressError;
use kube_kms_config::surroundings::Surroundings;
use kube_kms_config::{self as config, Config, ConfigError};
use kube_kms_core::fault::Fault;
use kube_kms_core::port::{Clock, Entropy};
use kube_kms_grpc::server::KmsServer;
use kube_kms_memory as memory;
use kube_kms_os::{MonotonicClock, OsEntropy, Stopwatch};
use kube_kms_service::observer::Observer;
use kube_kms_service::plugin::{Parts, Plugin};
use kube_kms_service::saver;
use kube_kms_service::snapshot::Snapshot;
use kube_kms_service::state_file::{Remembered, StateFile};
use kube_kms_service::supervisor::Supervisor;
use kube_kms_service::sweep::sweep;
use kube_kms_telemetry::log::{self, Logging};
use kube_kms_telemetry::metrics::Metrics;
use kube_kms_transport::accept::Incoming;
use kube_kms_transport::peer::{AllowedUids, NobodyAllowed};
use kube_kms_transport::socket::{BindError, SocketWatch};
use kube_kms_transport::systemd::{self, ActivationError};
use listen::Claim;
use pages::HealthPages;
use sandbox::Sandbox;
use signal::{Signals, Wish};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinHandle};

/// How long running calls may take to end after SIGTERM; kube-apiserver's own deadline is 3 s.
const DRAIN: Duration = Duration::from_secs(10);
/// How long a collector may take for the last spans and metrics. The socket is free by then.
const FLUSH: Duration = Duration::from_secs(2);
/// How often the HTTP port is tried again when somebody else has it.
const HTTP_RETRY: Duration = Duration::from_secs(10);

/// What the command line decides.
#[derive(Debug)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// Bind although another instance is listening there.
    pub take_over: bool,
    /// A terminal is at stdin or stderr: when it is closed, which is a SIGHUP, the process ends.
    pub has_terminal: bool,
}

/// How long blocking threads may take to end.
const BLOCKING_END: Duration = Duration::from_secs(1);
/// How often the announcement looks for the first write state.
const ANNOUNCE_LOOK: Duration = Duration::from_millis(50);

/// Told once, when the first write state is there.
pub type OnReady = Box<dyn FnOnce(&Ready) + Send>;

/// What the first write state and the socket are.
#[derive(Clone, Debug)]
pub struct Ready {
    /// The endpoint for an EncryptionConfiguration.
    pub endpoint: String,
    /// The state at that moment, with key_id and KEK.
    pub snapshot: Snapshot,
}

/// Why it did not start. After the start nothing ends it but a signal, or the transport failing as a whole.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is wrong: every mistake.
    #[error("the configuration is not valid")]
    Config(#[from] ConfigError),
    /// `listen.socket` is not the address of a socket.
    #[error("listen.socket is not the address of a unix socket")]
    Address(#[from] AddressError),
    /// `listen.allowUids` is empty.
    #[error("listen.allowUids allows nobody")]
    AllowUids(#[from] NobodyAllowed),
    /// A KEK is configured that cannot work.
    #[error("{key} cannot be used as it is configured")]
    Kek {
        /// The key in the configuration.
        key: String,
        /// Why.
        #[source]
        fault: Fault,
    },
    /// The socket cannot be bound.
    #[error("the socket cannot be bound")]
    Bind(#[from] BindError),
    /// The socket that systemd passed cannot be used.
    #[error("the socket that the service manager passed cannot be used")]
    Activation(#[from] ActivationError),
    /// A restriction that the configuration requires cannot be had.
    #[error("the process cannot be confined")]
    Sandbox(#[from] sandbox::Refused),
    /// The runtime or the logging cannot start, or the transport failed.
    #[error("{0}")]
    System(String),
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// [`StartError`], before anything is served.
pub fn run(options: &Options, on_ready: Option<OnReady>) -> Result<(), StartError> {
    let config = config::load(&options.config)?;
    // Before there is another thread (the log's is the first): no_new_privs belongs to a thread and is inherited.
    let mut hardened = harden_process();
    // Takes variables from the environment, so it too comes before other threads.
    let activated = systemd::activated()?;
    listen::prepare(&config, activated.is_some());
    let (sandbox, confined) = Sandbox::enter(&config, &options.config, &Surroundings::read())?;
    hardened.extend(confined);
    let logging = log::init(pages::log_format(config.log.format), pages::log_level(config.log.level))
        .map_err(|e| StartError::System(format!("logging cannot start: {e}")))?;
    tracing::info!(target: "kube_kms::daemon", version = env!("CARGO_PKG_VERSION"), config = %options.config.display(), "starting");
    report(&hardened);
    let socket = listen::claim(activated, &config, options.take_over)?;
    let allowed = match &config.listen.allow_uids {
        Some(uids) => AllowedUids::parse(uids.clone())?,
        None => AllowedUids::default(),
    };
    // One thread for requests: fewer wake-ups and no contention (ARCHITECTURE.md, decision 10). KEK files and fsync use blocking threads.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_park(logging.at_rest())
        .build()
        .map_err(|e| StartError::System(format!("the runtime cannot start: {e}")))?;
    let served = runtime.block_on(serve(options, (config, sandbox), socket, allowed, &logging, on_ready));
    logging.no_more_rest();
    // A disk that hangs under a blocking thread must not keep the process.
    runtime.shutdown_timeout(BLOCKING_END);
    served
}

fn harden_process() -> Vec<HardeningStep> {
    // rustix asks the kernel once, before Linux 6.4 by a file of /proc that a process which is not dumpable may not open.
    let _ = rustix::param::page_size();
    let mut steps = harden::harden();
    steps.push(harden::raise_memlock());
    steps.push(harden::raise_nofile());
    steps
}

fn report(steps: &[HardeningStep]) {
    for step in steps {
        match &step.outcome {
            Ok(holds) => tracing::debug!(target: "kube_kms::harden", step = step.name, holds, "hardened"),
            Err(error) => tracing::warn!(target: "kube_kms::harden", step = step.name, %error, "not hardened"),
        }
    }
}

async fn serve(
    options: &Options,
    (config, sandbox): (Config, Sandbox),
    socket: Claim,
    allowed: AllowedUids,
    logging: &Logging,
    on_ready: Option<OnReady>,
) -> Result<(), StartError> {
    let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::new());
    let entropy: Arc<dyn Entropy> = Arc::new(OsEntropy);
    let metrics = Arc::new(Metrics::new());
    let observer: Arc<dyn Observer> = Arc::<Metrics>::clone(&metrics);
    let mut signals =
        Signals::new(options.has_terminal).map_err(|e| StartError::System(format!("signals cannot be caught: {e}")))?;

    let state_file = StateFile::new(&config.state_dir);
    let (remembered, late) = recall(&state_file).await;
    let keks = keks::connect(&config, &entropy, remembered.under.as_ref()).await?;
    let parts = Parts {
        keks,
        settings: config.settings.clone(),
        clock: Arc::clone(&clock),
        entropy: Arc::clone(&entropy),
        observer: Arc::clone(&observer),
    };
    let plugin = Arc::new(Plugin::new(parts, remembered.key_id.clone()));
    let written = reload::Written::new(Arc::clone(&plugin), remembered.under.clone());
    let (reloads, reload_queue) = mpsc::channel(1);
    let path = Arc::new(OnceLock::<SocketWatch>::new());
    let watched = Arc::clone(&path);
    let supervisor = Supervisor::new(Arc::clone(&plugin), state_file, remembered)
        .with_late_memory(late)
        .with_successors(Box::new(move || watched.get().is_some_and(SocketWatch::is_displaced)));
    let mut supervision = tokio::spawn(supervisor.run(reload_queue));
    tokio::spawn(sweep(Arc::clone(&plugin)));

    let (stop, stopped) = watch::channel(false);
    let pages = Arc::new(HealthPages::new(Arc::clone(&plugin), metrics, logging.dropped.clone()));
    let exporter = otlp::start(config.otlp.as_deref(), &pages);
    if let Some(address) = config.http {
        tokio::spawn(serve_http(address, pages, stopped.clone()));
    }
    let bound = tokio::select! {
        bound = socket.settle(&plugin) => bound?,
        // Nobody was served yet, so there is nothing to end but this.
        () = signals.stop() => return Ok(()),
    };
    let endpoint = bound.address().endpoint();
    tokio::spawn(announce(Arc::clone(&plugin), endpoint.clone(), on_ready));
    let mut reloader = reload::Reloader::new(
        &options.config,
        (config, sandbox),
        written,
        Arc::clone(&entropy),
        reloads,
        logging.level.clone(),
    );

    let (listener, socket_file) = bound.into_parts();
    // Without a descriptor for it a rotation in the moment of a take-over is not held back; that is no reason not to serve.
    if let Ok(watch) = socket_file.watch() {
        let _ = path.set(watch);
    }
    let incoming =
        Incoming::new(listener, allowed, Arc::clone(&clock)).map_err(|e| StartError::System(e.to_string()))?;
    let server = KmsServer::new(Arc::clone(&plugin), observer, clock);
    // A task of its own: a reload that waits for a KMS must not keep connections waiting.
    let mut serving = tokio::spawn(server.serve(incoming, until(stopped)));
    systemd::ready(&format!("serving on {endpoint}"));

    let mut stopping = None;
    let ended = loop {
        tokio::select! {
            ended = &mut serving => break ended,
            wish = signals.next() => match wish {
                Wish::Reload => reloader.reload("SIGHUP").await,
                Wish::Stop => {
                    stopping = Some(Stopwatch::start());
                    break drain(&stop, serving, &mut signals).await;
                }
            },
            () = reloader.file_changed() => reloader.reload("the file changed").await,
            // A plugin that nobody supervises would report for ever what was true last. Ended, it is started again.
            _ = &mut supervision => return Err(StartError::System("the supervisor ended; this is a bug".to_owned())),
        }
    };
    supervision.abort();
    plugin.wipe();
    drop(socket_file);
    if let Some(exporter) = exporter {
        let drained = stopping.map(|watch: Stopwatch| watch.elapsed()).unwrap_or_default();
        exporter.stop(FLUSH.min(DRAIN.saturating_sub(drained))).await;
    }
    tracing::info!(target: "kube_kms::daemon", "stopped");
    ended.map_err(|error| StartError::System(format!("the server failed: {error}")))
}

/// What this node remembers; on a disk that stalls nothing, and where it will be told.
async fn recall(file: &StateFile) -> (Remembered, Option<JoinHandle<Remembered>>) {
    let of_another_thread = file.clone();
    let mut loading = tokio::task::spawn_blocking(move || of_another_thread.load());
    match tokio::time::timeout(saver::PATIENCE, &mut loading).await {
        Ok(loaded) => (loaded.unwrap_or_default(), None),
        Err(_) => {
            tracing::warn!(
                target: "kube_kms::state", path = %file.path().display(), waited_secs = saver::PATIENCE.as_secs(),
                "the disk under the state file stalls; starting without what this node has reported and left, until it is read"
            );
            (Remembered::default(), Some(loading))
        }
    }
}

/// No new connections, GOAWAY on the others, and running calls end, within [`DRAIN`] or until a second signal.
async fn drain(
    stop: &watch::Sender<bool>,
    mut serving: JoinHandle<()>,
    signals: &mut Signals,
) -> Result<(), JoinError> {
    tracing::info!(
        target: "kube_kms::daemon", limit_secs = DRAIN.as_secs(), "stopping: no new connections, running calls end"
    );
    systemd::stopping();
    // Nobody receives when nothing serves any more, and then there is nothing to stop.
    let _ = stop.send(true);
    let deadline = tokio::time::sleep(DRAIN);
    tokio::pin!(deadline);
    loop {
        tokio::select! {
            ended = &mut serving => return ended,
            () = &mut deadline => return Ok(()),
            wish = signals.next() => if wish == Wish::Stop { return Ok(()) },
        }
    }
}

async fn until(mut stopped: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is an end as well.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Metrics and health are never worth the plugin: when the port is taken, it is tried again and requests are served.
async fn serve_http(address: std::net::SocketAddr, pages: Arc<HealthPages>, stopped: watch::Receiver<bool>) {
    loop {
        match tokio::net::TcpListener::bind(address).await {
            Ok(listener) => {
                let address = listener.local_addr().unwrap_or(address);
                tracing::info!(target: "kube_kms::daemon", %address, "serving /metrics, /livez and /readyz");
                kube_kms_telemetry::http::serve(listener, pages, until(stopped)).await;
                return;
            }
            Err(error) => {
                tracing::error!(
                    target: "kube_kms::daemon", %address, %error,
                    "http.listen cannot be bound; trying again, without metrics and health until then"
                );
                tokio::time::sleep(HTTP_RETRY).await;
            }
        }
    }
}

/// Waits for the first write state and says so.
async fn announce(plugin: Arc<Plugin>, endpoint: String, on_ready: Option<OnReady>) {
    while plugin.published().write.is_none() {
        tokio::time::sleep(ANNOUNCE_LOOK).await;
    }
    if memory::unlocked_bytes() > 0 {
        tracing::warn!(
            target: "kube_kms::harden", bytes = memory::unlocked_bytes(),
            "data keys are in memory that could not be locked and may be swapped out; raise LimitMEMLOCK (ulimit -l)"
        );
    }
    if let Some(on_ready) = on_ready {
        on_ready(&Ready { endpoint, snapshot: plugin.snapshot() });
    }
}

/// The configuration's file as an absolute path, for messages that outlive the working directory.
#[must_use]
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
