//! `make bench-rpc`: what an Encrypt costs over the socket, beside the floors of the machine and a grpc-go plugin.
//!
//! Every server runs for the whole time, pinned to one core; the client is on the same core (the work is seen, not the
//! wake-up of a sleeping core) or on another. Rounds go through all cells, each cell through all servers, in another order
//! each round, so that a neighbour on the machine disturbs all of them alike. Links nothing of kube-kms: see message.rs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_precision_loss,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    missing_docs,
    unreachable_pub,
    reason = "a benchmark fails by panicking, prints, and has the real clock"
)]

mod bare;
mod frames;
mod measure;
mod message;
mod process;
mod raw;
mod report;

use clap::Parser;
use measure::{Link, Load, Place};
use message::{ENCRYPT, EncryptResponse, STATUS, StatusResponse};
use process::Process;
use prost::Message;
use serde_json::json;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

#[derive(Parser)]
struct Arguments {
    /// The release binary of kube-kms
    #[arg(long, default_value = "target/release/kube-kms")]
    kube_kms: PathBuf,
    /// The grpc-go service; without it that column is left out
    #[arg(long)]
    grpc_go: Option<PathBuf>,
    /// Where the JSON goes
    #[arg(long, default_value = "target/bench-rpc.json")]
    json: PathBuf,
    /// Two short rounds
    #[arg(long)]
    quick: bool,
    /// Rounds
    #[arg(long)]
    rounds: Option<usize>,
    #[command(subcommand)]
    serve: Option<Serve>,
}

/// What this program starts itself as.
#[derive(clap::Subcommand)]
enum Serve {
    #[command(hide = true)]
    ServeRaw { socket: PathBuf },
    #[command(hide = true)]
    ServeBare { socket: PathBuf, template: PathBuf },
}

struct Server {
    name: &'static str,
    process: Process,
    link: Link,
}

fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    match &arguments.serve {
        Some(Serve::ServeRaw { socket }) => raw::serve(socket),
        Some(Serve::ServeBare { socket, template }) => {
            let template = EncryptResponse::decode(std::fs::read(template)?.as_slice()).map_err(io::Error::other)?;
            bare::serve(socket, template)
        }
        None => bench(&arguments),
    }
}

fn loads() -> [Load; 5] {
    let every = |ms| Load::Every(Duration::from_millis(ms));
    [Load::InFlight(1), Load::InFlight(8), Load::InFlight(64), every(1), every(20)]
}

fn bench(arguments: &Arguments) -> io::Result<()> {
    let cores = std::thread::available_parallelism()?.get();
    if cores < 2 {
        return Err(io::Error::other("two cores are needed"));
    }
    let dir = tempfile::tempdir()?;
    let mut servers = start_all(arguments, dir.path())?;
    let rounds = arguments.rounds.unwrap_or(if arguments.quick { 2 } else { 5 });
    let time = |load| match (load, arguments.quick) {
        (Load::Every(t), false) if t.as_millis() >= 20 => Duration::from_secs(4),
        (_, false) => Duration::from_millis(1500),
        (Load::Every(t), true) if t.as_millis() >= 20 => Duration::from_millis(1000),
        (_, true) => Duration::from_millis(500),
    };
    let mut results = report::Results::default();
    let began = Instant::now();
    for round in 0..rounds {
        for place in [Place::OneCore, Place::TwoCores] {
            for load in loads() {
                let count = servers.len();
                for turn in 0..count {
                    let server = &mut servers[(turn + round) % count];
                    if matches!(server.link, Link::Raw(_)) && matches!(load, Load::InFlight(2..)) {
                        continue;
                    }
                    let sample = measure::cell(&mut server.link, &server.process, load, place, time(load))
                        .map_err(|e| io::Error::other(format!("{}, {}: {e}", server.name, report::load_name(load))))?;
                    results.add(server.name, load, place, sample);
                }
            }
        }
        eprintln!("round {} of {rounds} done after {:.0?}", round + 1, began.elapsed());
    }
    results.rows.sort_by_key(|row| {
        let order = ["raw ping-pong", "bare tonic", "kube-kms", "grpc-go", "grpc-go workers"];
        (loads().iter().position(|l| *l == row.load), order.iter().position(|n| *n == row.server))
    });
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let machine = json!({"cores": cores, "cpu": cpu_model(), "loadAverageAtEnd": load.trim(), "rounds": rounds,
        "seconds": began.elapsed().as_secs(), "grpcGo": grpc_go_version(arguments)});
    println!("{machine}");
    let all = results.print(machine);
    std::fs::write(&arguments.json, serde_json::to_string_pretty(&all)?)?;
    println!("all samples: {}", arguments.json.display());
    Ok(())
}

fn start_all(arguments: &Arguments, dir: &Path) -> io::Result<Vec<Server>> {
    let me = std::env::current_exe()?;
    let (kube_kms, answer) = start_kube_kms(&arguments.kube_kms, dir)?;
    let template = dir.join("template");
    std::fs::write(&template, &answer)?;
    let answer_size = answer.len();
    let decoded = EncryptResponse::decode(answer.as_slice()).map_err(io::Error::other)?;
    println!(
        "Encrypt of 32 bytes: an answer of {answer_size} bytes (ciphertext {}, key_id {}, annotations {})",
        decoded.ciphertext.len(),
        decoded.key_id.len(),
        decoded.annotations.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>(),
    );

    let socket = dir.join("raw.sock");
    let process = Process::start(Command::new(&me).arg("serve-raw").arg(&socket), &socket)?;
    let raw = Server { name: "raw ping-pong", process, link: Link::Raw(raw::Ping::connect(&socket)?) };
    let socket = dir.join("bare.sock");
    let process = Process::start(Command::new(&me).arg("serve-bare").arg(&socket).arg(&template), &socket)?;
    let mut servers = vec![raw, connected("bare tonic", process, &socket)?, kube_kms];
    match &arguments.grpc_go {
        None => println!("SKIPPED: grpc-go: its service was not built (no Go on this machine?)"),
        Some(program) => {
            for (name, workers) in [("grpc-go", "0"), ("grpc-go workers", "8")] {
                let socket = dir.join(format!("go{workers}.sock"));
                let mut command = Command::new(program);
                command.arg("-socket").arg(&socket).arg("-template").arg(&template).args(["-stream-workers", workers]);
                servers.push(connected(name, Process::start(&mut command, &socket)?, &socket)?);
            }
        }
    }
    Ok(servers)
}

/// A connection that has had a first answer.
fn connected(name: &'static str, process: Process, socket: &Path) -> io::Result<Server> {
    let mut wire = frames::Wire::connect(socket, ENCRYPT, &message::encrypt_request().encode_to_vec())?;
    ask(&mut wire).map_err(|e| io::Error::other(format!("{name}: {e}")))?;
    let first = EncryptResponse::decode(wire.last.as_slice()).map_err(io::Error::other)?;
    if first.ciphertext.is_empty() || first.key_id.is_empty() {
        return Err(io::Error::other(format!("{name} answers {first:?}")));
    }
    Ok(Server { name, process, link: Link::Grpc(Box::new(wire)) })
}

fn ask(wire: &mut frames::Wire) -> io::Result<()> {
    wire.call(Instant::now())?;
    wire.flush()?;
    wire.finish()
}

/// As an operator runs it on one node: the `local` KEK, metrics on, logs at info; they go to /dev/null.
fn start_kube_kms(program: &Path, dir: &Path) -> io::Result<(Server, Vec<u8>)> {
    let (keyring, socket, config) = (dir.join("keyring.json"), dir.join("kms.sock"), dir.join("config.yaml"));
    let made = Command::new(program).args(["keyring", "init", "--file"]).arg(&keyring).output()?;
    if !made.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&made.stderr).into_owned()));
    }
    let text = format!(
        "listen: {{socket: {}}}\nstateDir: {}\nkek: {{local: {{keyring: {}}}}}\nhttp: {{listen: '127.0.0.1:0'}}\n",
        socket.display(),
        dir.join("state").display(),
        keyring.display()
    );
    std::fs::write(&config, text)?;
    let process = Process::start(Command::new(program).args(["serve", "--config"]).arg(&config), &socket)?;
    let mut status = frames::Wire::connect(&socket, STATUS, &[])?;
    let began = Instant::now();
    loop {
        // A Status that fails while it starts ends that connection's use.
        let healthy =
            ask(&mut status).is_ok() && StatusResponse::decode(status.last.as_slice()).is_ok_and(|s| s.healthz == "ok");
        if healthy {
            break;
        }
        if began.elapsed() > Duration::from_secs(10) {
            return Err(io::Error::other("kube-kms does not become ready"));
        }
        std::thread::sleep(Duration::from_millis(1));
        status = frames::Wire::connect(&socket, STATUS, &[])?;
    }
    let server = connected("kube-kms", process, &socket)?;
    let answer = match &server.link {
        Link::Grpc(wire) => wire.last.clone(),
        Link::Raw(_) => Vec::new(),
    };
    Ok((server, answer))
}

fn grpc_go_version(arguments: &Arguments) -> Option<String> {
    let output = Command::new(arguments.grpc_go.as_ref()?).arg("-version").output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn cpu_model() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("model name"));
    line.map(|rest| rest.trim_start_matches([' ', '\t', ':']).to_owned()).unwrap_or_default()
}
