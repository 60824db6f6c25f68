//! `kmsctl drill`: walks the whole rotation and tests every claim of it.

mod run;

use crate::plugin;
use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use kube_kms_cli::exit::{Exit, Failure};
use kube_kms_cli::output;
use kube_kms_core::printable::printable_lines;
use kube_kms_drill::claim::{Step, StepReport};
use kube_kms_drill::plan::{DrillError, KekPlan, Plan};
use kube_kms_drill::render::{self, step_line};
use kube_kms_drill::report::Report;
use kube_kms_drill::script::Progress;
use kube_kms_os::durable::{self, Existing};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    drill: Drill,
}

#[derive(Debug, Subcommand)]
enum Drill {
    /// Rehearse a rotation in a sandbox: real plugins, simulated API servers, ten steps, every claim tested
    Rehearse(Rehearse),
    /// Walk a rotation on a live cluster: the same ten steps on its plugins, API servers and etcd; asks before what cannot be undone
    Run(Box<run::Run>),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON document.
    Json,
    /// For a ticket.
    Markdown,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kmsctl drill rehearse\n  \
kmsctl drill rehearse --output markdown --report rehearsal.md\n  \
kmsctl drill rehearse --kek alias/rehearsal --region eu-central-1 --endpoint http://127.0.0.1:5000\n\n\
Two plugins share one KEK, each with an API server simulator in front, in a directory that goes with the drill. Without --kek \
the KEK is a keyring file of the sandbox. It takes about a minute and touches nothing of your cluster.\n\n\
With --kek the key is really rotated: on demand (AWS KMS allows ten for a key and never undoes one; needs \
kms:RotateKeyOnDemand), or with --rotate-to by pointing the alias at another key, which is undone at the end (kms:UpdateAlias). \
Use a key that was made for it. A drill makes a few hundred calls to the KMS.\n\n\
Exit status 0 when no claim failed, 6 when one did, 1 when it was interrupted; nothing is left behind either way.")]
struct Rehearse {
    /// A key in AWS KMS: id, ARN, alias or alias ARN; credentials come from the environment, as for serve
    #[arg(long, value_name = "KEY")]
    kek: Option<String>,
    /// Its region, when the key does not name it
    #[arg(long, value_name = "REGION", requires = "kek")]
    region: Option<String>,
    /// Another endpoint than AWS's own; only one without TLS can be cut off in step 9
    #[arg(long, value_name = "URL", requires = "kek")]
    endpoint: Option<String>,
    /// Rotate by pointing the alias at this key (id or ARN), and back at the end
    #[arg(long, value_name = "KEY", requires = "kek")]
    rotate_to: Option<String>,
    /// Disable the old key for a moment in step 8, and enable it again (kms:DisableKey, kms:EnableKey)
    #[arg(long, requires = "rotate_to")]
    disable_old: bool,
    /// How long you have to rotate the key yourself when the drill may not
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// How many objects, 10 to 100000
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = objects)]
    objects: usize,
    /// How to print the report
    #[arg(long, value_enum, default_value_t)]
    output: Format,
    /// Write the report to this file too, in the same format
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Keep the sandbox, keyring included, and say where it is
    #[arg(long)]
    keep: bool,
    /// Start this in the place of the plugin: a program and arguments, split on blanks, before `serve --config FILE`
    #[arg(long, value_name = "CMD", hide = true)]
    plugin_command: Option<String>,
}

fn objects(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|n| (10..=100_000).contains(n));
    number.ok_or_else(|| "10 to 100000".to_owned())
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    match &arguments.drill {
        Drill::Rehearse(arguments) => rehearse(arguments),
        Drill::Run(arguments) => run::run(arguments),
    }
}

fn progress() -> Arc<dyn Progress> {
    if std::io::stderr().is_terminal() { Arc::new(Live(ProgressBar::new_spinner())) } else { Arc::new(Lines) }
}

/// Before the drill, and not after an hour.
fn writable(report: Option<&Path>) -> Result<(), Failure> {
    let Some(path) = report else { return Ok(()) };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.map_or(Ok(()), |folder| std::fs::metadata(folder).map(|_| ())).map_err(|e| unwritable(path, &e))
}

fn rehearse(arguments: &Rehearse) -> Result<Exit, Failure> {
    let plan = plan(arguments)?;
    writable(arguments.report.as_deref())?;
    let runtime = kube_kms_cli::runtime()?;
    let progress = progress();
    let report = runtime.block_on(async {
        let interrupted = interrupted()?;
        kube_kms_drill::rehearse(plan, progress, interrupted).await.map_err(|error| failure(&error))
    })?;
    print(&report, arguments.output, arguments.report.as_deref())
}

fn print(report: &Report, format: Format, to: Option<&Path>) -> Result<Exit, Failure> {
    let text = match format {
        Format::Text => printable_lines(&render::text(report)).into_owned(),
        Format::Markdown => printable_lines(&render::markdown(report)).into_owned(),
        Format::Json => json(report),
    };
    output::raw(text.as_bytes());
    if let Some(path) = to {
        durable::write(path, text.as_bytes(), Existing::Replace).map_err(|error| unwritable(path, &error))?;
    }
    Ok(if report.passed { Exit::Done } else { Exit::VerificationFailed })
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Exit::Failed, format!("the report cannot be written to {}", path.display())).because(error).hint(
        "see whether the directory exists and may be written to; the report of a drill that has ended is on stdout too",
    )
}

fn json(report: &Report) -> String {
    let mut text = output::json_text(report);
    text.push('\n');
    text
}

fn plan(arguments: &Rehearse) -> Result<Plan, Failure> {
    let kek = match &arguments.kek {
        None => KekPlan::Local,
        Some(key) => KekPlan::Aws {
            key: key.clone(),
            region: arguments.region.clone(),
            endpoint: arguments.endpoint.clone(),
            rotate_to: arguments.rotate_to.clone(),
            disable_old: arguments.disable_old,
        },
    };
    let program = plugin::program();
    let command = match &arguments.plugin_command {
        Some(command) => command.split_whitespace().map(str::to_owned).collect(),
        None => vec![program.display().to_string()],
    };
    Ok(Plan { kek, objects: arguments.objects, keep: arguments.keep, program, command, wait: arguments.wait })
}

/// Ctrl-C, and what a service manager or a closed terminal sends.
fn interrupted() -> Result<impl Future<Output = ()>, Failure> {
    let open = |kind| {
        signal(kind).map_err(|error| {
            Failure::new(Exit::Failed, "signals cannot be watched")
                .because(&error)
                .hint("see the limits of this process")
        })
    };
    let (mut interrupt, mut terminate) = (open(SignalKind::interrupt())?, open(SignalKind::terminate())?);
    let mut hangup = open(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}

fn failure(error: &DrillError) -> Failure {
    let what = "the drill could not begin";
    match error {
        DrillError::Program(..) => Failure::new(Exit::Failed, what).because(error).hint(plugin::HINT),
        // The configuration was made of this command line.
        DrillError::Kek { status, said } => {
            plugin::said(if *status == 3 { 2 } else { *status }, "the KEK cannot be used as it is named", said).hint(
                "--kek, --region and --endpoint are the `key`, `region` and `endpoint` of docs/configuration.md; \
             `kube-kms check` with them in a configuration says more",
            )
        }
        DrillError::NoAlias => Failure::new(Exit::Usage, what)
            .because(error)
            .hint("give --kek alias/NAME, of an alias made for the drill, or leave --rotate-to out"),
        DrillError::Sandbox(_) | DrillError::Keyring(_) => {
            Failure::new(Exit::Failed, what).because(error).hint("it is made under $TMPDIR, or /tmp; is there room?")
        }
        DrillError::Interrupted(left) => Failure::new(Exit::Failed, "the drill was interrupted")
            .cause(left.clone())
            .hint("there is no report of half a drill; start it again"),
    }
}

/// On a terminal: one line for each step that has ended, and one that moves.
struct Live(ProgressBar);

impl Progress for Live {
    fn begins(&self, step: &Step) {
        self.0.set_prefix(format!("{:>2}/10 {:<10}", step.number, step.name));
        self.doing("", 0, 0);
        self.0.enable_steady_tick(Duration::from_millis(100));
    }

    fn doing(&self, what: &str, done: usize, of: usize) {
        let template = match of {
            0 => "{prefix} {spinner} {msg}",
            _ => "{prefix} {spinner} {msg} {bar:24} {pos}/{len}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.0.set_style(style);
        }
        self.0.set_length(u64::try_from(of).unwrap_or(u64::MAX));
        self.0.set_position(u64::try_from(done).unwrap_or(u64::MAX));
        self.0.set_message(printable_lines(what).into_owned());
    }

    fn note(&self, text: &str) {
        self.0.println(printable_lines(text));
    }

    fn ended(&self, report: &StepReport) {
        self.0.println(printable_lines(&step_line(report)));
        if report.number == 10 {
            self.0.finish_and_clear();
        }
    }

    fn confirm(&self, question: &str) -> bool {
        self.0.suspend(|| output::confirm(question))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Into a file or a pipe: one line for each step, at its end.
struct Lines;

impl Progress for Lines {
    fn begins(&self, _: &Step) {}

    fn doing(&self, _: &str, _: usize, _: usize) {}

    fn note(&self, text: &str) {
        output::error(&format!("{text}\n"));
    }

    fn ended(&self, report: &StepReport) {
        output::error(&format!("{}\n", step_line(report)));
    }

    fn confirm(&self, question: &str) -> bool {
        output::confirm(question)
    }
}
