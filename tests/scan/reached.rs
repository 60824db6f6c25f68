//! Reaching etcd: TLS with client certificates, passwords, several members, and nobody.

use super::{assert_exit, err, etcd, out, scan};
use crate::support::etcd_store::objects;
use crate::support::site::{KMSCTL, PATIENCE, Site};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

#[test]
fn nobody_there_is_exit_status_4_with_every_address_and_a_hint() {
    let site = Site::local();
    let output = scan(&site, "127.0.0.1:1,http://127.0.0.1:2", &[]);
    assert_exit(&output, 4, &["error: etcd at http://127.0.0.1:1, http://127.0.0.1:2", "hint: is etcd running there"]);
    assert_eq!(err(&output).matches("cause: ").count(), 2, "{}", err(&output));
}

#[test]
fn a_command_line_that_cannot_work_is_said_before_anybody_is_asked() {
    let site = Site::local();
    for (flags, part) in [
        (&["--endpoints", "https://127.0.0.1:1"][..], "hint: on kubeadm: --cacert"),
        (&["--endpoints", "ftp://x:1"], "is not the address of an etcd member"),
        (&["--cert", "c.pem"], "a client certificate needs its key"),
        (&["--user", "root:hunter2"], "a password is not taken as an argument"),
        (&["--user", "root"], "has no password"),
        (&["--expect-only", "x", "--resource", "secrets"], "cannot be used with"),
        (&["--expect-only", "x", "--unencrypted"], "cannot be used with"),
    ] {
        let output = site.command(&[&["scan"], flags].concat());
        assert_exit(&output, 2, &[part]);
        assert!(!flags.contains(&"root:hunter2") || !err(&output).contains("hunter2"), "{}", err(&output));
    }
    assert_exit(&site.command(&["scan", "--cacert", "/nowhere/ca.crt"]), 3, &["/nowhere/ca.crt", "hint: "]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_member_is_asked_when_one_is_away() {
    let Some((site, store)) = etcd("scan::next_member").await else { return };
    objects::fill(&store, 100).await;
    let output = scan(&site, &format!("127.0.0.1:1,{}", store.url()), &[]);
    assert_exit(&output, 0, &[store.url()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_works_with_the_certificates_of_kubeadm_and_fails_in_words_without_them() {
    let Some((site, mut store)) = etcd("scan::tls").await else { return };
    objects::fill(&store, 100).await;
    if let Err(reason) = certificates(site.dir()) {
        crate::support::skipped("scan::tls", &reason);
        return;
    }
    let url = store.respawn_with_tls();
    let at = |name: &str| site.dir().join(name).display().to_string();
    let (ca, cert, key, other) = (at("ca.crt"), at("client.crt"), at("client.key"), at("other.crt"));
    let all = ["--cacert", ca.as_str(), "--cert", &cert, "--key", &key];
    let began = Instant::now();
    while scan(&site, &url, &all).status.code() == Some(4) {
        assert!(began.elapsed() < PATIENCE, "{}", err(&scan(&site, &url, &all)));
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_exit(&scan(&site, &url, &all), 0, &[&url]);
    // As etcdctl has it: no scheme, and TLS because it is configured.
    assert_exit(&scan(&site, url.trim_start_matches("https://"), &all), 0, &[&url]);
    assert_exit(&scan(&site, &url, &["--cacert", &ca]), 4, &["hint: "]);
    assert_exit(
        &scan(&site, &url, &["--cacert", &other, "--cert", &cert, "--key", &key]),
        4,
        &["ertificate", "hint: on kubeadm"],
    );
    assert_exit(&scan(&site, &url.replace("https", "http"), &[]), 4, &["does it want TLS?"]);
    // By the variables of etcdctl.
    let mut command = site.process(KMSCTL, &["scan"]);
    command
        .env("ETCDCTL_ENDPOINTS", &url)
        .env("ETCDCTL_CACERT", &ca)
        .env("ETCDCTL_CERT", &cert)
        .env("ETCDCTL_KEY", &key);
    command.env("ETCDCTL_USER", "");
    assert_exit(&command.output().unwrap(), 0, &[&url]);
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_come_by_variable_or_file_and_never_show() {
    let Some((site, store)) = etcd("scan::password").await else { return };
    objects::fill(&store, 100).await;
    let address = store.url().trim_start_matches("http://").to_owned();
    for (path, body) in [
        ("/v3/auth/user/add", r#"{"name":"root","password":"hunter2"}"#),
        ("/v3/auth/role/add", r#"{"name":"root"}"#),
        ("/v3/auth/user/grant", r#"{"user":"root","role":"root"}"#),
        ("/v3/auth/enable", "{}"),
    ] {
        let answer = post(&address, path, body);
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    }
    let file = site.dir().join("password");
    std::fs::write(&file, "hunter2\n").unwrap();
    let file = file.to_str().unwrap();
    assert_exit(&scan(&site, store.url(), &["--user", "root", "--password-file", file]), 0, &[]);
    let by_variable = |user: &str, password: &str| {
        let mut command = site.process(KMSCTL, &["scan", "--endpoints", store.url()]);
        let output = command.env("ETCDCTL_USER", user).env("ETCDCTL_PASSWORD", password).output().unwrap();
        assert!(!format!("{}{}", out(&output), err(&output)).contains("hunter"), "{}", err(&output));
        output
    };
    assert_exit(&by_variable("root", "hunter2"), 0, &[]);
    assert_exit(&by_variable("root:hunter2", ""), 0, &[]);
    assert_exit(&by_variable("root", "hunter3"), 5, &["error: ", "cause: ", "hint: etcd's own authentication is on"]);
    assert_exit(&scan(&site, store.url(), &[]), 5, &["hint: etcd's own authentication is on"]);
}

fn post(address: &str, path: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    write!(stream, "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// A CA, a server and a client under it, and another CA.
fn certificates(dir: &Path) -> Result<(), String> {
    let openssl = |arguments: &str| {
        let ran = Command::new("openssl").args(arguments.split_whitespace()).current_dir(dir).output();
        let ran = ran.map_err(|e| format!("no openssl: {e}"))?;
        assert!(ran.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&ran.stderr));
        Ok::<(), String>(())
    };
    std::fs::write(dir.join("server.ext"), "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
        .unwrap();
    std::fs::write(dir.join("client.ext"), "extendedKeyUsage=clientAuth\n").unwrap();
    let new = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    for ca in ["ca", "other"] {
        openssl(&format!("req -x509 {new} -days 2 -subj /CN={ca} -keyout {ca}.key -out {ca}.crt"))?;
    }
    for name in ["server", "client"] {
        openssl(&format!("req {new} -subj /CN={name} -keyout {name}.key -out {name}.csr"))?;
        openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile {name}.ext -out {name}.crt"
        ))?;
    }
    Ok(())
}
