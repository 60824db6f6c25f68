//! Hostile HTTP/2 against the real binary, by a client who is allowed to connect: rapid reset, floods, slow frames, crowds.
//!
//! Guarantees: meanwhile a good client on another connection is served, every call of it, and its p99 is printed; the process's memory
//! stays within [`MEMORY_KIB`] of what it was. The attackers only push: whether they are hung up on is not asked. Bounded in time.

use crate::support::beside::Beside;
use crate::support::site::{Running, Site, seed, uid};
use crate::support::wire::{
    Call, ENCRYPT, HEADERS, RST_STREAM, SETTINGS, STATUS, Wire, dial, dial_blocking, frame, header_block,
};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long each attack lasts.
const ATTACK: Duration = Duration::from_secs(3);
/// What an attack may cost: the buffers of its connections. SECURITY.md derives it.
const MEMORY_KIB: u64 = 96 * 1024;
/// Longer is late, unless a call to a healthy plugin beside is late too. The release build is two orders of magnitude below.
const P99_MAX: Duration = Duration::from_secs(1);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const CONTINUATION: u8 = 9;
const PING: u8 = 6;
const END_HEADERS: u8 = 4;
const END_STREAM: u8 = 1;

fn resident_kib(running: &Running) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.pid())).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// What the static pod as it is shipped may take.
fn pod_limit_kib() -> u64 {
    let pod = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/kubernetes/static-pod.yaml"))
        .unwrap();
    let limits = pod.split_once("limits:").unwrap().1.trim_start();
    let mib = limits.strip_prefix("memory: ").unwrap().split_once("Mi").unwrap().0;
    mib.parse::<u64>().unwrap() * 1024
}

/// Milliseconds of CPU that the process has had.
fn cpu_ms(running: &Running) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", running.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()) * 1000
        / rustix::param::clock_ticks_per_second()
}

/// A connection that never waits for long.
fn connect(running: &Running) -> std::io::Result<UnixStream> {
    let stream = dial_blocking(&running.target)?;
    stream.set_write_timeout(Some(Duration::from_millis(100)))?;
    stream.set_read_timeout(Some(Duration::from_millis(1)))?;
    Ok(stream)
}

/// As `connect`, with a preface and SETTINGS.
fn greet(running: &Running, settings: &[u8]) -> std::io::Result<UnixStream> {
    let mut stream = connect(running)?;
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, settings)].concat())?;
    Ok(stream)
}

fn request_headers(path: &str) -> Vec<u8> {
    header_block(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ])
}

/// Sends pieces over one connection after the other until time is up; returns the bytes that went out.
fn push(running: &Running, until: Instant, reads: bool, mut piece: impl FnMut(u32) -> Vec<u8>) -> u64 {
    let mut sent = 0;
    while Instant::now() < until {
        let Ok(mut stream) = greet(running, &[]) else { continue };
        let mut number = 1;
        let mut sink = [0; 4096];
        while Instant::now() < until {
            let bytes = piece(number);
            if stream.write_all(&bytes).is_err() {
                break;
            }
            if reads {
                let _ = stream.set_nonblocking(true);
                while stream.read(&mut sink).is_ok_and(|n| n > 0) {}
                let _ = stream.set_nonblocking(false);
            }
            sent += bytes.len() as u64;
            number += 2;
        }
    }
    sent
}

/// Runs `attack` in a thread while a good client calls, and judges.
async fn under(name: &str, site: Site, attack: impl FnOnce(&Running, Instant) -> u64 + Send + 'static) {
    let running = std::sync::Arc::new(site.start().await);
    let mut good = running.client_with(Duration::from_secs(30)).await;
    for _ in 0..20 {
        good.encrypt(seed(), uid()).await.unwrap();
    }
    let mut beside = Beside::start().await;
    let (before, cpu) = (resident_kib(&running), cpu_ms(&running));
    let over = std::sync::Arc::new(AtomicBool::new(false));
    let amount = std::sync::Arc::new(AtomicU64::new(0));
    let until = Instant::now() + ATTACK;
    let attacker = {
        let (running, over, amount) = (running.clone(), over.clone(), amount.clone());
        std::thread::spawn(move || {
            amount.store(attack(&running, until), Ordering::Relaxed);
            over.store(true, Ordering::Relaxed);
        })
    };
    let mut most = before;
    while !over.load(Ordering::Relaxed) || beside.len() < 100 {
        let both = async {
            let answer = good.status().await.unwrap_or_else(|e| panic!("{name}: Status: {e:?}\n{}", running.log()));
            let sealed = good.encrypt(seed(), uid()).await.unwrap_or_else(|e| panic!("{name}: Encrypt: {e:?}"));
            assert_eq!(answer.key_id, sealed.key_id);
        };
        beside.time(both).await;
        most = most.max(resident_kib(&running));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    attacker.join().unwrap();
    println!(
        "{name}: {} sent; RSS {before} to {most} KiB; CPU {} ms of {:?}",
        amount.load(Ordering::Relaxed),
        cpu_ms(&running) - cpu,
        ATTACK
    );
    assert!(amount.load(Ordering::Relaxed) > 0, "{name}: there was no attack");
    assert!(most - before < MEMORY_KIB, "{name}: {before} to {most} KiB");
    assert!(most < pod_limit_kib(), "{name}: {most} KiB, and a pod gets {}", pod_limit_kib());
    // Of a Status and an Encrypt together.
    beside.assert_late_at_most(name, P99_MAX * 2, beside.len() / 100);
    // Whoever comes now is served as well.
    running.until_ok().await;
}

#[tokio::test]
async fn rapid_reset() {
    under("rapid reset", Site::local(), |running, until| {
        push(running, until, false, |n| {
            [frame(HEADERS, END_HEADERS, n, &request_headers(ENCRYPT)), frame(RST_STREAM, 0, n, &[0, 0, 0, 8])].concat()
        })
    })
    .await;
}

#[tokio::test]
async fn a_continuation_flood() {
    under("CONTINUATION flood", Site::local(), |running, until| {
        push(running, until, false, |n| match n {
            1 => frame(HEADERS, 0, 1, &request_headers(STATUS)),
            _ => frame(CONTINUATION, 0, 1, &header_block(&[("x-more", "of it")])),
        })
    })
    .await;
}

#[tokio::test]
async fn giant_headers() {
    let many = [("x-giant", "0123456789012345678901234567890123456789012345678901234567890123456789"); 150];
    let block = [request_headers(STATUS), header_block(&many)].concat();
    under("giant headers", Site::local(), move |running, until| {
        push(running, until, true, |n| {
            let more = frame(CONTINUATION, END_HEADERS, n, &header_block(&many));
            [frame(HEADERS, END_STREAM, n, &block), more].concat()
        })
    })
    .await;
}

#[tokio::test]
async fn ping_and_settings_floods_that_nobody_reads() {
    under("PING flood", Site::local(), |running, until| {
        push(running, until, false, |_| frame(PING, 0, 0, &[7; 8]).repeat(100))
    })
    .await;
    under("SETTINGS flood", Site::local(), |running, until| {
        push(running, until, false, |_| frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]).repeat(100))
    })
    .await;
}

#[tokio::test]
async fn windows_of_nothing() {
    under("zero windows", Site::local(), |running, until| {
        let mut held = Vec::new();
        while Instant::now() < until && held.len() < 100 {
            // SETTINGS_INITIAL_WINDOW_SIZE 0: no answer can be sent, and each is kept.
            let Ok(mut stream) = greet(running, &[0, 4, 0, 0, 0, 0]) else { continue };
            let calls = (0..400).map(|n| {
                [
                    frame(HEADERS, END_HEADERS, 2 * n + 1, &request_headers(STATUS)),
                    frame(0, END_STREAM, 2 * n + 1, &[0; 5]),
                ]
                .concat()
            });
            let _ = stream.write_all(&calls.collect::<Vec<_>>().concat());
            held.push(stream);
        }
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        held.len() as u64
    })
    .await;
}

#[tokio::test]
async fn requests_that_never_end() {
    under("half-open requests", Site::local(), |running, until| {
        let mut held = Vec::new();
        while Instant::now() < until && held.len() < 100 {
            let Ok(mut stream) = greet(running, &[]) else { continue };
            let calls = (0..200).map(|n| {
                let head = [0, 0, 0x3f, 0xff, 0xff, 1, 2, 3];
                [frame(HEADERS, END_HEADERS, 2 * n + 1, &request_headers(ENCRYPT)), frame(0, 0, 2 * n + 1, &head)]
                    .concat()
            });
            let _ = stream.write_all(&calls.collect::<Vec<_>>().concat());
            held.push(stream);
        }
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        held.len() as u64
    })
    .await;
}

/// Messages that are said to have `length` bytes and are never whole, as fast as the windows that we give let them come.
/// Requests that begin and do not end: headers of so many bytes, and all of a message but its last byte.
async fn large_requests_that_never_end(connections: usize, headers: usize, length: u32) {
    let head = [&[0][..], &length.to_be_bytes()].concat();
    let body = bytes::Bytes::from(vec![7; (length as usize).saturating_sub(1)]);
    let padding = "x".repeat(headers);
    under(
        &format!("{connections} connections of half-open large requests, {headers} bytes of headers"),
        Site::local(),
        move |running, until| {
            let flood = async {
                let (mut held, mut sent) = (Vec::new(), 0);
                for _ in 0..connections {
                    let Ok(stream) = dial(&running.target) else { continue };
                    let Ok((send, connection)) = h2::client::handshake(stream).await else { continue };
                    tokio::spawn(connection);
                    for _ in 0..200 {
                        let Ok(mut send) = send.clone().ready().await else { break };
                        let request = http::Request::post(format!("http://localhost{ENCRYPT}"));
                        let request = request.header("content-type", "application/grpc").header("x-padding", &padding);
                        let Ok((answer, mut stream)) = send.send_request(request.body(()).unwrap(), false) else {
                            break;
                        };
                        if length > 0 {
                            let _ = stream.send_data(bytes::Bytes::from(head.clone()), false);
                            let _ = stream.send_data(body.clone(), false);
                        }
                        held.push((answer, stream));
                        sent += 1;
                    }
                }
                tokio::time::sleep(until.saturating_duration_since(Instant::now())).await;
                sent
            };
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(flood)
        },
    )
    .await;
}

#[tokio::test]
async fn large_messages_that_never_end_on_one_connection() {
    large_requests_that_never_end(1, 0, 4 << 20).await;
}

#[tokio::test]
async fn large_messages_that_never_end_on_many_connections() {
    large_requests_that_never_end(256, 0, 65_536).await;
}

#[tokio::test]
async fn large_headers_without_a_message_on_many_connections() {
    large_requests_that_never_end(256, 15 << 10, 0).await;
}

#[tokio::test]
async fn slow_frames() {
    under("slow frames", Site::local(), |running, until| {
        let bytes = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, 5, 1, &request_headers(STATUS))].concat();
        let mut slow: Vec<_> = (0..500).filter_map(|_| connect(running).ok()).collect();
        let mut at = 0;
        while Instant::now() < until {
            for stream in &mut slow {
                let _ = stream.write_all(&bytes[at % bytes.len()..=at % bytes.len()]);
            }
            at += 1;
            std::thread::sleep(Duration::from_millis(20));
        }
        slow.len() as u64
    })
    .await;
}

#[tokio::test]
async fn ten_thousand_connections() {
    under("a crowd", Site::local(), |running, until| {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
        let wanted = limit.saturating_sub(500).min(10_000);
        println!("{wanted} connections, of 10000 asked for; {limit} file descriptors are allowed");
        let mut crowd = Vec::new();
        while (crowd.len() as u64) < wanted && Instant::now() < until + ATTACK {
            crowd.extend(greet(running, &[]).ok());
        }
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        crowd.len() as u64
    })
    .await;
}

#[tokio::test]
async fn whoever_connects_and_says_nothing_is_hung_up_on() {
    let running = Site::local().start().await;
    let mut silent = dial_blocking(&running.target).unwrap();
    silent.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    let began = Instant::now();
    let mut sink = Vec::new();
    // It gets SETTINGS or nothing, and then the end.
    silent.read_to_end(&mut sink).unwrap();
    assert!((8..14).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    running.until_ok().await;
}

/// More than [`giant_headers`] says: not only survived, but refused, and from the limit on that SECURITY.md names.
#[tokio::test]
async fn a_request_with_more_than_16_kib_of_headers_is_refused_and_one_with_less_is_served() {
    let running = Site::local().start().await;
    let wire = Wire::connect(&running.target).await;
    let with = |bytes: usize| Call::status().header("x-long", "x".repeat(bytes).leak());
    assert_eq!(wire.call(with(15 << 10)).await.unwrap().code(), 0);
    let refused = wire.start(with(17 << 10)).await.unwrap().http_status().await.unwrap();
    assert_eq!(refused, 431, "Request Header Fields Too Large");
    wire.status_is_ok().await;
}
