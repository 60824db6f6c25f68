//! `kmsctl conformance`: the conformance list against any KMS v2 plugin, as a table or as JSON.

use clap::Args;
use kms_v2_judge::conformance::{
    self, Act, Bounds, CommandControl, Item, ItemReport, KmsControl, Outcome, Report, Section, Settings, Totals,
};
use kube_kms_cli::exit::{Exit, Failure};
use kube_kms_cli::output::{self, Format};
use kube_kms_core::printable::printable;
use std::fmt::Display;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

const RESTORE_BY_HAND: &str = "run the --kms-control command with `restore` by hand";
/// Columns of the title in the table.
const TITLE_WIDTH: usize = 56;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kmsctl conformance --socket unix:///run/kube-kms/kms.sock\n  \
kmsctl conformance --socket unix:///@kms --only 1,3,31 --output json\n  \
kmsctl conformance --socket /run/kms.sock --kms-control '/usr/local/bin/test-kms prod'\n\n\
The items are those of docs/conformance.md, 1 to 88. Nothing is changed but by --kms-control. A run makes \
about 1,100 Encrypts and 1,900 Decrypts, never more than 4,000 of each, some 300 of them with altered values that must be \
refused and 500 cut short; it takes half a minute, and more with --kms-control and --long. Think twice before running it against a plugin whose KMS bills or limits every call.\n\n\
--kms-control runs CMD (no shell: a program and arguments, split on blanks) with one argument more: `rotate` makes the \
KMS use a new key version, `outage` keeps the plugin from reaching it, `restore` ends that, `count` prints how many calls the KMS \
has had so far. Each must end within 60 s, with status 0 when it is done; with another status the items that need it are not \
applicable. A run that is interrupted during an outage ends it.\n\n\
With --output json each item has `outcome` (passed, failed, not-applicable), `detail` (what was measured or seen) and, when \
it failed, `hint` (where to look).\n\nExit status 0 when nothing failed, 1 when --kms-control does not end its outage, 2 when it \
cannot be run, 4 when nobody answers, 6 when an item failed.")]
pub(super) struct Arguments {
    /// Where the plugin listens: unix:///PATH, /PATH, or unix:///@NAME for an abstract socket
    #[arg(long, value_name = "SOCKET", env = "KUBE_KMS_SOCKET")]
    socket: String,
    /// Deadline of each call, as `timeout` in the EncryptionConfiguration
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    output: Format,
    /// These items and no other
    #[arg(long, value_name = "N,N", value_delimiter = ',', value_parser = number)]
    only: Option<Vec<u8>>,
    /// Also items that take more than a minute (9)
    #[arg(long)]
    long: bool,
    /// What rotates the key, takes the KMS away and counts its calls, for items 20, 26, 28, 40, 42, 57, 59, 60, 63 and 69
    #[arg(long, value_name = "CMD", value_parser = control)]
    kms_control: Option<CommandControl>,
    /// How long after `rotate` Status may show the old key_id
    #[arg(long, value_name = "TIME", default_value = "3m", value_parser = humantime::parse_duration)]
    rotated_within: Duration,
    /// How long after `restore` Status may say that it is not ok
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = humantime::parse_duration)]
    recovered_within: Duration,
}

fn number(text: &str) -> Result<u8, String> {
    let number = text.trim().parse().ok().filter(|n| Item::of(*n).is_some());
    number.ok_or_else(|| "the items are 1 to 88".to_owned())
}

fn control(text: &str) -> Result<CommandControl, String> {
    CommandControl::parse(text).ok_or_else(|| "there is no program in it".to_owned())
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let (address, target) = kube_kms_cli::socket(&arguments.socket)?;
    let settings = Settings {
        target,
        timeout: arguments.timeout,
        bounds: Bounds { rotation: arguments.rotated_within, recovery: arguments.recovered_within },
        only: arguments.only.as_ref().map(|only| only.iter().copied().collect()),
        long: arguments.long,
        control: arguments.kms_control.clone().map(|control| Arc::new(control) as Arc<dyn KmsControl>),
    };
    let progress = Arc::new(Progress::default());
    let told = Arc::clone(&progress);
    let mut done = |report: &ItemReport| progress.count(report.outcome);
    let waiting = Box::new(move |what: &str| told.show(what));
    let ended = kube_kms_cli::runtime()?.block_on(async {
        let stop = interrupted().map_err(|e| {
            Failure::new(Exit::Failed, "signals cannot be caught")
                .because(&e)
                .hint("see the limits of this process: ulimit -a")
        })?;
        tokio::select! {
            result = conformance::run(settings, waiting, &mut done) => Ok(result),
            () = stop => Err(stopped(arguments.kms_control.as_ref()).await),
        }
    });
    output::progress("");
    let report = ended?.map_err(|error| no_report(&error, &address))?;
    match arguments.output {
        Format::Json => output::json(&report),
        Format::Text => print(&report),
    }
    Ok(if report.totals.failed == 0 { Exit::Done } else { Exit::VerificationFailed })
}

fn no_report(error: &conformance::Error, address: &impl Display) -> Failure {
    match error {
        conformance::Error::Unreachable(why) => Failure::new(Exit::Unreachable, format!("nobody answers on {address}"))
            .cause(why)
            .hint("is the plugin running, and may this user open its socket?"),
        conformance::Error::Control(why) => Failure::new(Exit::Usage, "--kms-control cannot be run")
            .cause(why)
            .hint("give a program that is there, with its path; see kmsctl conformance --help"),
        conformance::Error::NotRestored(why) => {
            Failure::new(Exit::Failed, "the KMS is still away").cause(why).hint(RESTORE_BY_HAND)
        }
    }
}

/// Catches SIGINT and SIGTERM from now on; the future ends with the first.
fn interrupted() -> io::Result<impl Future<Output = ()>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => (),
            _ = terminate.recv() => (),
        }
    })
}

/// Nobody else would end the outage.
async fn stopped(control: Option<&CommandControl>) -> Failure {
    let failure = Failure::new(Exit::Failed, "the run was interrupted");
    let Some(control) = control.filter(|control| control.is_away()) else {
        return failure.cause("a signal asked to stop").hint("run it again; nothing was changed");
    };
    match control.act(Act::Restore).await {
        Ok(()) => failure.cause("a signal asked to stop").hint("the outage of the KMS was ended first"),
        Err(why) => failure.cause(format!("the KMS is still away: {why}")).hint(RESTORE_BY_HAND),
    }
}

/// What the line on the terminal says while a run takes its time.
#[derive(Debug, Default)]
struct Progress {
    ended: AtomicUsize,
    failed: AtomicUsize,
}

impl Progress {
    fn count(&self, outcome: Outcome) {
        self.ended.fetch_add(1, Ordering::Relaxed);
        self.failed.fetch_add(usize::from(outcome == Outcome::Failed), Ordering::Relaxed);
    }

    fn show(&self, what: &str) {
        let (ended, failed) = (self.ended.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed));
        output::progress(&format!("{ended} items done, {failed} failed; now: {what}"));
    }
}

fn print(report: &Report) {
    for section in Section::ALL {
        let items: Vec<&ItemReport> = report.items.iter().filter(|r| r.item.section == section).collect();
        if items.is_empty() {
            continue;
        }
        let count = |outcome| items.iter().filter(|r| r.outcome == outcome).count();
        output::line(format!(
            "{}: {} passed, {} failed, {} not applicable",
            section.title(),
            count(Outcome::Passed),
            count(Outcome::Failed),
            count(Outcome::NotApplicable)
        ));
        for report in items {
            print_item(report);
        }
        output::line("");
    }
    let Totals { passed, failed, not_applicable, statuses, encrypts, decrypts } = report.totals;
    let numbers: Vec<String> =
        report.items.iter().filter(|r| r.outcome == Outcome::Failed).map(|r| r.item.number.to_string()).collect();
    let which = if numbers.is_empty() { String::new() } else { format!(" ({})", numbers.join(", ")) };
    output::line(format!("{passed} passed, {failed} failed{which}, {not_applicable} not applicable"));
    output::line(format!("calls made: {statuses} Status, {encrypts} Encrypt, {decrypts} Decrypt"));
}

fn print_item(report: &ItemReport) {
    let outcome = match report.outcome {
        Outcome::Passed => "passed",
        Outcome::Failed => "FAILED",
        Outcome::NotApplicable => "n/a",
    };
    let title = report.title;
    // A title that is longer has its detail on the next line.
    let gap = if title.chars().count() > TITLE_WIDTH {
        format!("\n{:13}", "")
    } else {
        " ".repeat(TITLE_WIDTH.saturating_sub(title.chars().count()))
    };
    let consequence = format!("so {}", report.item.consequence);
    // A plugin's words stay on their line.
    let detail = printable(report.detail.as_bytes());
    let seen = detail.strip_suffix(&consequence).map(|seen| seen.trim_end_matches("; "));
    let line = format!("  {:>2}  {outcome:6}  {title}{gap} {}", report.item.number, seen.unwrap_or(&detail));
    output::line(line.trim_end());
    if seen.is_some() {
        output::line(format!("{:13}{consequence}", ""));
    }
    if let Some(hint) = report.hint {
        output::line(format!("{:13}hint: {hint}", ""));
    }
}
