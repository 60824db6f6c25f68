//! The proxy does what it says: seen by a client without opinions.

use crate::support::fault_proxy::{Fault, FaultProxy};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

const REQUEST: &[u8] = b"POST / HTTP/1.1\r\n\r\nrequest";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nBODYbody";
/// For what comes a thousand times sooner, or not at all.
const PATIENCE: Duration = Duration::from_secs(1);

/// Answers every whole request with [`ANSWER`]; ends with the test process.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                let (mut all, mut some) = (Vec::new(), [0; 1024]);
                while let Ok(n @ 1..) = stream.read(&mut some) {
                    all.extend_from_slice(&some[..n]);
                    if all.ends_with(b"request") && stream.write_all(ANSWER).is_err() {
                        return;
                    }
                }
            });
        }
    });
    at
}

fn connect(proxy: &FaultProxy) -> std::io::Result<TcpStream> {
    let at = proxy.url().trim_start_matches("http://").parse().unwrap();
    let stream = TcpStream::connect_timeout(&at, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Ok(stream)
}

/// What came back, and how it ended: `None` for the end of the stream.
fn exchange(stream: &mut TcpStream) -> (Vec<u8>, Option<ErrorKind>) {
    if let Err(error) = stream.write_all(REQUEST) {
        return (Vec::new(), Some(error.kind()));
    }
    let (mut all, mut some) = (Vec::new(), [0; 1024]);
    while all.len() < ANSWER.len() {
        match stream.read(&mut some) {
            Ok(0) => return (all, None),
            Ok(n) => all.extend_from_slice(&some[..n]),
            Err(error) => return (all, Some(error.kind())),
        }
    }
    (all, None)
}

const TIMED_OUT: Option<ErrorKind> = Some(ErrorKind::WouldBlock);
const RESET: Option<ErrorKind> = Some(ErrorKind::ConnectionReset);

#[test]
fn the_proxy_fails_as_it_is_told_and_is_well_again() {
    let proxy = FaultProxy::start(upstream());
    let whole = (ANSWER.to_vec(), None);
    let mut old = connect(&proxy).unwrap();
    assert_eq!(exchange(&mut old), whole);
    assert_eq!((proxy.connections(), proxy.open_connections()), (1, 1));
    assert_eq!(proxy.bytes(), (REQUEST.len() as u64, ANSWER.len() as u64));

    proxy.set(Fault::Refuse);
    assert_eq!(connect(&proxy).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    proxy.set(Fault::Deaf);
    assert_eq!(connect(&proxy).unwrap_err().kind(), ErrorKind::TimedOut);
    proxy.set(Fault::None);
    let mut old = connect(&proxy).unwrap();
    assert_eq!(exchange(&mut old), whole);

    proxy.set(Fault::ResetAtConnect);
    // The reset may be there before the connect is seen to have succeeded.
    assert!(connect(&proxy).map_or(true, |mut stream| exchange(&mut stream).0.is_empty()));
    proxy.set(Fault::ResetMidRequest);
    assert_eq!(exchange(&mut connect(&proxy).unwrap()), (Vec::new(), RESET));
    proxy.set(Fault::ResetMidBody);
    assert_eq!(exchange(&mut connect(&proxy).unwrap()), (ANSWER[..ANSWER.len() - 4].to_vec(), RESET));
    proxy.set(Fault::HalfClose);
    let mut half = connect(&proxy).unwrap();
    assert_eq!(exchange(&mut half), (Vec::new(), None));
    half.write_all(REQUEST).expect("this direction is open");
    half.shutdown(Shutdown::Both).unwrap();

    proxy.set(Fault::BlackHole);
    assert_eq!(exchange(&mut old), (Vec::new(), TIMED_OUT), "a connection that was there");
    proxy.set(Fault::None);
    assert_eq!(exchange(&mut old), (Vec::new(), TIMED_OUT), "what was swallowed stays dead");
    let mut old = connect(&proxy).unwrap();
    assert_eq!(exchange(&mut old), whole);
    proxy.strand();
    assert_eq!(exchange(&mut old), (Vec::new(), TIMED_OUT));
    assert_eq!(exchange(&mut connect(&proxy).unwrap()), whole);

    proxy.set(Fault::Slow { delay: Duration::from_millis(50), bytes_per_second: 400 });
    let began = Instant::now();
    assert_eq!(exchange(&mut connect(&proxy).unwrap()), whole);
    assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
    proxy.set(Fault::None);

    let mut cut = connect(&proxy).unwrap();
    assert_eq!(exchange(&mut cut), whole);
    proxy.cut();
    assert_eq!(exchange(&mut cut).0, b"");
    assert_eq!(proxy.open_connections(), 0);

    let before = proxy.most_connections();
    proxy.limit_connections(Some(1));
    let mut one = connect(&proxy).unwrap();
    assert_eq!(exchange(&mut one), whole);
    let mut two = connect(&proxy).unwrap();
    assert_eq!(exchange(&mut two), (Vec::new(), TIMED_OUT), "it waits in the queue");
    assert_eq!(proxy.most_connections(), before, "never more at once than before");
    drop(one);
    let mut late = vec![0; ANSWER.len()];
    two.read_exact(&mut late).unwrap();
    assert_eq!(late, ANSWER);

    proxy.limit_connections(None);
    proxy.flap(&[(Fault::Refuse, Duration::from_millis(30)), (Fault::None, Duration::from_millis(30))]);
    let began = Instant::now();
    let (mut refused, mut served) = (0, 0);
    while refused < 3 || served < 3 {
        match connect(&proxy) {
            Ok(_) => served += 1,
            Err(_) => refused += 1,
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{refused} refused, {served} served");
        std::thread::sleep(Duration::from_millis(5));
    }
}
