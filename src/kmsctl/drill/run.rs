//! `kmsctl drill run`: a rotation on a live cluster.

use super::{Format, interrupted, print, progress, writable};
use crate::etcd_access::EtcdArguments;
use clap::{Args, ValueEnum};
use kube_kms_cli::exit::{Exit, Failure};
use kube_kms_cli::output;
use kube_kms_drill::live::plan::{CONFIRMED, ClusterPlan, LiveError, LivePlan, Migrate, RotateKek};
use kube_kms_drill::live::{self, From};
use kube_kms_etcd::scan::Settings;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum MigrateBy {
    /// StorageVersionMigration where the API server serves it, else commands.
    Auto,
    /// StorageVersionMigration or nothing.
    Svm,
    /// Commands for kubectl are printed, and the drill waits until etcd shows that they were run.
    Print,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
kmsctl drill run --socket /run/kube-kms/kms.sock --kubeconfig /etc/kubernetes/admin.conf \\\n    \
--apiserver https://10.0.0.1:6443 --apiserver https://10.0.0.2:6443 --cacert … --cert … --key … --dry-run\n  \
kmsctl drill run … --create-objects 5\n  kmsctl drill run … --resume\n  kmsctl drill run … --abort\n\n\
It waits for you to rotate the KEK, or does it with --rotate-kek; it refuses to migrate before every API server has moved. \
Nothing is asked that was named with --yes; without a terminal, what is not named is refused. The key that \
was is never disabled but by --retire-command. --resume and --abort take the same flags as the drill that they are about.\n\n\
Exit status 0 when every step went to its end and no claim failed, 1 when it was interrupted (--resume goes on), 5 when it refuses to begin, 6 when a \
claim failed or a step could not be done.")]
pub(super) struct Run {
    /// A plugin that can be reached from here; can be repeated
    #[arg(long = "socket", value_name = "SOCKET")]
    sockets: Vec<String>,
    /// How to reach the API servers; the default is that of kubectl, when --apiserver or --context is given
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// One API server, asked directly and not through a load balancer; can be repeated, and every one has to be named
    #[arg(long = "apiserver", value_name = "URL")]
    servers: Vec<String>,
    /// A provider of the EncryptionConfiguration; the default is those that are under the key that the plugins name
    #[arg(long = "provider", value_name = "NAME")]
    providers: Vec<String>,
    /// An EncryptionConfiguration, to see that the provider is the one that writes
    #[arg(long, value_name = "FILE")]
    encryption_config: Option<PathBuf>,
    /// The etcd prefix of the cluster: --etcd-prefix of kube-apiserver
    #[arg(long, value_name = "PREFIX", default_value = "/registry")]
    prefix: String,
    /// Write so many objects, read them back after every step, delete them at the end (1 to 1000)
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=1000))]
    create_objects: u16,
    /// Of this resource
    #[arg(long, value_name = "RESOURCE", default_value = "secrets")]
    objects_of: String,
    /// In this namespace
    #[arg(long, value_name = "NAME", default_value = "default")]
    namespace: String,
    /// Rotate this key of AWS KMS: id or ARN; with --rotate-to the alias. Without it you rotate, when the drill says so
    #[arg(long, value_name = "KEY")]
    rotate_kek: Option<String>,
    /// Rotate by pointing the alias at this key (id or ARN); it is not pointed back
    #[arg(long, value_name = "KEY", requires = "rotate_kek")]
    rotate_to: Option<String>,
    /// The region of the key, when its ARN does not name it
    #[arg(long, value_name = "REGION", requires = "rotate_kek")]
    region: Option<String>,
    /// Another endpoint than AWS's own
    #[arg(long, value_name = "URL", requires = "rotate_kek")]
    kms_endpoint: Option<String>,
    /// How long to wait: for the rotation, for the last API server, for each migration
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// Do not ask the API servers whether they have moved: wait 3 minutes + TIME (in which every plugin reports the new key) + 5 minutes
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    passive: Option<Duration>,
    /// How the objects are rewritten
    #[arg(long, value_enum, default_value = "auto")]
    migrate: MigrateBy,
    /// Migrate this resource; the default is whatever is under the old key; can be repeated
    #[arg(long = "resource", value_name = "RESOURCE")]
    resources: Vec<String>,
    /// Restarts the plugins, between convergence and migration: a program and arguments, split on blanks
    #[arg(long, value_name = "CMD")]
    restart_command: Option<String>,
    /// Retires the old key once nothing needs it: a program and arguments, split on blanks
    #[arg(long, value_name = "CMD")]
    retire_command: Option<String>,
    /// Do not ask about these steps: seed, rotate, restart, migrate, retire
    #[arg(long, value_name = "STEP", value_delimiter = ',', value_parser = CONFIRMED)]
    yes: Vec<String>,
    /// Look at everything, change nothing, say what would be done
    #[arg(long, conflicts_with_all = ["resume", "abort"])]
    dry_run: bool,
    /// Where the drill keeps what it has done
    #[arg(long, value_name = "FILE", default_value = "kube-kms-drill.json")]
    state: PathBuf,
    /// Go on with a drill that was interrupted or could not go on
    #[arg(long, conflicts_with = "abort")]
    resume: bool,
    /// End a drill: say what state it leaves, and delete the objects that it has made
    #[arg(long)]
    abort: bool,
    /// How to print the report
    #[arg(long, value_enum, default_value_t)]
    output: Format,
    /// Write the report to this file too, in the same format
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// How often anything is looked at
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration, hide = true)]
    poll: Duration,
    #[command(flatten)]
    etcd: EtcdArguments,
}

pub(super) fn run(arguments: &Run) -> Result<Exit, Failure> {
    let plan = plan(arguments)?;
    writable(arguments.report.as_deref())?;
    let runtime = kube_kms_cli::runtime()?;
    let state = plan.state.clone();
    let ended = runtime.block_on(async {
        let etcd = arguments.etcd.connect().await?;
        if arguments.abort {
            let lines = live::abort(plan, etcd, progress()).await.map_err(|error| failure(&error, &state))?;
            lines.iter().for_each(output::line);
            return Ok(Exit::Done);
        }
        let from = if arguments.resume { From::State } else { From::Start };
        let report = live::run(plan, etcd, from, progress(), interrupted()?).await;
        print(&report.map_err(|error| failure(&error, &state))?, arguments.output, arguments.report.as_deref())
    });
    // A question that nobody has answered, or a command that still runs, does not hold the end up.
    runtime.shutdown_background();
    ended
}

fn usage(what: &str, cause: &str, hint: &str) -> Failure {
    Failure::new(Exit::Usage, what).cause(cause).hint(hint)
}

fn plan(arguments: &Run) -> Result<LivePlan, Failure> {
    let mut sockets = Vec::with_capacity(arguments.sockets.len());
    for text in &arguments.sockets {
        let (_, target) = kube_kms_cli::socket(text)?;
        sockets.push((text.clone(), target));
    }
    let is_named = arguments.kubeconfig.is_some() || arguments.context.is_some() || !arguments.servers.is_empty();
    let cluster = is_named.then(|| ClusterPlan {
        kubeconfig: arguments.kubeconfig.clone(),
        context: arguments.context.clone(),
        servers: arguments.servers.clone(),
    });
    let what = "the drill could not begin";
    let servers_hint = "--kubeconfig FILE, and --apiserver https://NODE:6443 for each API server";
    if sockets.is_empty() && cluster.is_none() {
        return Err(usage(what, "neither a --socket nor an API server is named", servers_hint));
    }
    if cluster.is_none() && arguments.passive.is_none() {
        let cause = "without an API server to ask, nobody knows when it is safe to migrate";
        return Err(usage(what, cause, "name the API servers, or give --passive TIME to wait in their place"));
    }
    if cluster.is_none() && arguments.create_objects > 0 {
        return Err(usage(what, "--create-objects needs an API server to write through", servers_hint));
    }
    let words = |text: &Option<String>| -> Vec<String> {
        text.iter().flat_map(|text| text.split_whitespace()).map(str::to_owned).collect()
    };
    Ok(LivePlan {
        sockets,
        cluster,
        scan: Settings::new(arguments.prefix.as_bytes()),
        providers: arguments.providers.clone(),
        encryption_config: arguments.encryption_config.clone(),
        objects: usize::from(arguments.create_objects),
        objects_of: arguments.objects_of.clone(),
        namespace: arguments.namespace.clone(),
        rotate: rotation(arguments)?,
        wait: arguments.wait,
        passive: arguments.passive,
        migrate: match arguments.migrate {
            MigrateBy::Auto => Migrate::Auto,
            MigrateBy::Svm => Migrate::Svm,
            MigrateBy::Print => Migrate::Print,
        },
        resources: arguments.resources.clone(),
        restart_command: words(&arguments.restart_command),
        retire_command: words(&arguments.retire_command),
        yes: arguments.yes.iter().cloned().collect(),
        terminal: output::is_interactive(),
        dry_run: arguments.dry_run,
        state: arguments.state.clone(),
        poll: arguments.poll,
    })
}

fn rotation(arguments: &Run) -> Result<Option<RotateKek>, Failure> {
    let Some(key) = arguments.rotate_kek.clone() else { return Ok(None) };
    let what = "--rotate-kek cannot be used as it is given";
    if cfg!(not(feature = "aws")) {
        return Err(usage(what, "this program was built without AWS KMS", "rotate it yourself when the drill says so"));
    }
    // SPEC: kms:RotateKeyOnDemand takes a key id or ARN, kms:UpdateAlias the name of an alias.
    match (key.starts_with("alias/"), &arguments.rotate_to) {
        (true, None) => return Err(usage(what, "on-demand rotation takes no alias", "give the key's id or ARN")),
        (false, Some(_)) => return Err(usage(what, "--rotate-to moves an alias", "--rotate-kek alias/NAME")),
        _ => {}
    }
    let region = arguments.region.clone().or_else(|| key.split(':').nth(3).map(str::to_owned));
    let region = region.ok_or_else(|| usage(what, "its region is not known", "give --region, or the key's ARN"))?;
    Ok(Some(RotateKek { key, region, endpoint: arguments.kms_endpoint.clone(), to: arguments.rotate_to.clone() }))
}

fn failure(error: &LiveError, state: &Path) -> Failure {
    let path = state.display();
    let new = |exit, what: &str, hint: String| Failure::new(exit, what).because(error).hint(hint);
    match error {
        LiveError::Kubeconfig(_) => new(
            Exit::Configuration,
            "the drill could not begin",
            "does `kubectl --kubeconfig FILE get --raw /metrics` work with it?".to_owned(),
        ),
        LiveError::UnderWay(_) => new(
            Exit::Refused,
            "another drill is under way",
            format!("--resume goes on with it, --abort ends it; or another --state than {path}"),
        ),
        LiveError::Nothing(_) | LiveError::Ended(_) => {
            new(Exit::Refused, "there is no drill to go on with", format!("is {path} the right --state?"))
        }
        LiveError::Other(_) => new(
            Exit::Refused,
            "this is not the drill that was begun",
            "give the same --socket and --apiserver".to_owned(),
        ),
        LiveError::State(_) | LiveError::Unwritable(_) => new(
            Exit::Failed,
            "the state of the drill cannot be kept",
            format!("it is in {path}; --state names another file"),
        ),
        LiveError::NotConfirmed(steps) => new(
            Exit::Refused,
            "the drill needs a yes before it begins",
            format!("--yes {} , or start it on a terminal", steps.replace(", ", ",")),
        ),
        LiveError::Interrupted(_) => new(
            Exit::Failed,
            "the drill was interrupted",
            format!("what is done is in {path}; --resume goes on, --abort ends it"),
        ),
    }
}
