//! One cell of the table: one server, one way to load it, for so long.
//!
//! Back to back: so many calls in flight on one connection, each answer sends the next call. At an interval: one call, then
//! sleep; a call that the answer before it has delayed counts from when it should have been sent, so a stall is not hidden.

use super::frames::{Wire, served};
use super::process::{CLIENT_CORE, Process, SERVER_CORE, pin};
use super::raw::Ping;
use hdrhistogram::Histogram;
use std::io;
use std::time::{Duration, Instant};

/// How the server is loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Load {
    InFlight(usize),
    Every(Duration),
}

/// Where the client runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    OneCore,
    TwoCores,
}

/// A way to ask.
pub enum Link {
    Raw(Ping),
    Grpc(Box<Wire>),
}

/// What a round of a cell has shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub per_second: f64,
    pub cpu: f64,
    pub switches: f64,
    pub rss: f64,
    pub calls: u64,
}

struct Tally {
    latencies: Histogram<u64>,
}

impl Tally {
    fn new() -> Self {
        Self { latencies: Histogram::new(3).unwrap() }
    }

    fn note(&mut self, since: Instant, now: Instant) {
        let nanos = u64::try_from(now.duration_since(since).as_nanos()).unwrap();
        self.latencies.record(nanos).unwrap();
    }
}

/// Warms up, measures, and leaves nothing in flight.
pub fn cell(link: &mut Link, server: &Process, load: Load, place: Place, time: Duration) -> io::Result<Sample> {
    pin(if place == Place::OneCore { SERVER_CORE } else { CLIENT_CORE })?;
    run(link, load, time / 5)?;
    let (before, began) = (server.used()?, Instant::now());
    let tally = run(link, load, time)?;
    let (elapsed, after) = (began.elapsed(), server.used()?);
    let calls = tally.latencies.len();
    let micros = |quantile| tally.latencies.value_at_quantile(quantile) as f64 / 1000.0;
    Ok(Sample {
        p50: micros(0.5),
        p99: micros(0.99),
        p999: micros(0.999),
        per_second: calls as f64 / elapsed.as_secs_f64(),
        cpu: (after.cpu.saturating_sub(before.cpu)).as_secs_f64() * 1e6 / calls as f64,
        switches: after.switches.saturating_sub(before.switches) as f64 / calls as f64,
        rss: server.rss()? as f64 / 1024.0,
        calls,
    })
}

fn run(link: &mut Link, load: Load, time: Duration) -> io::Result<Tally> {
    match load {
        Load::InFlight(depth) => back_to_back(link, depth, time),
        Load::Every(interval) => at_interval(link, interval, time),
    }
}

fn back_to_back(link: &mut Link, depth: usize, time: Duration) -> io::Result<Tally> {
    let mut tally = Tally::new();
    let end = Instant::now() + time;
    let wire = match link {
        Link::Grpc(wire) => wire,
        Link::Raw(ping) => {
            let mut since = Instant::now();
            while since < end {
                ping.round_trip()?;
                let now = Instant::now();
                tally.note(since, now);
                since = now;
            }
            return Ok(tally);
        }
    };
    let (mut now, mut ended) = (Instant::now(), Vec::with_capacity(depth));
    for _ in 0..depth {
        wire.call(now)?;
    }
    while wire.in_flight() > 0 {
        wire.flush()?;
        ended.clear();
        wire.read(&mut |done| ended.push(done))?;
        now = Instant::now();
        for done in &ended {
            served(*done)?;
            tally.note(done.since, now);
        }
        if now < end {
            for _ in &ended {
                wire.call(now)?;
            }
        }
    }
    Ok(tally)
}

fn at_interval(link: &mut Link, interval: Duration, time: Duration) -> io::Result<Tally> {
    let mut tally = Tally::new();
    let mut intended = Instant::now();
    let (end, mut free) = (intended + time, intended);
    while intended < end {
        let now = Instant::now();
        if now < intended {
            std::thread::sleep(intended - now);
        }
        // Our own late waking is not the server's; an answer that came too late for this call is.
        let since = if free > intended { intended } else { Instant::now() };
        match link {
            Link::Raw(ping) => ping.round_trip()?,
            Link::Grpc(wire) => {
                wire.call(since)?;
                wire.flush()?;
                wire.finish()?;
            }
        }
        free = Instant::now();
        tally.note(since, free);
        intended += interval;
    }
    Ok(tally)
}
