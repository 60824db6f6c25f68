//! The pod's command line, really run: the rendered command as the rendered user, without capabilities, on a read-only
//! root with the rendered mounts, on directories that systemd-tmpfiles has made from the rendered file.
//!
//! What a container runtime would add and this does not: its seccomp profile, its cgroup.

use super::kubernetes::yaml;
use super::rendered;
use crate::support::site::{BINARY, PATIENCE, Running, Site, sealed, uid};
use crate::support::skipped;
use kms_v2_client::kms::Target;
use serde_json::Value;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Read-only from the host: what a dynamically linked binary and setpriv need.
const SYSTEM: [&str; 4] = ["/lib", "/lib64", "/usr/lib", "/usr/bin"];

/// A host's root directory with a keyring and a configuration, and the directories of the rendered tmpfiles.d file.
struct Host {
    site: Site,
    root: PathBuf,
}

impl Host {
    fn new(socket_mode: &str) -> Result<Self, String> {
        let mut site = Site::local();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        site.listen(&format!("{{socket: /run/kube-kms/kms.sock, mode: '{socket_mode}'}}"));
        site.set(&format!(
            "kek: {{local: {{keyring: /var/lib/kube-kms/keyring.json}}}}\nhttp: {{listen: '127.0.0.1:{port}'}}"
        ));
        let root = site.dir().join("host");
        std::fs::create_dir_all(root.join("etc/kube-kms")).unwrap();
        let text = std::fs::read_to_string(site.write_config()).unwrap();
        let state = site.dir().join("state");
        let text = text.replace(state.to_str().unwrap(), "/var/lib/kube-kms");
        std::fs::write(root.join("etc/kube-kms/config.yaml"), &text).unwrap();
        let host = Self { site, root };
        host.tmpfiles()?;
        let keyring = host.root.join("var/lib/kube-kms/keyring.json");
        std::fs::copy(host.site.keyring(), &keyring).unwrap();
        std::os::unix::fs::chown(&keyring, Some(10_001), Some(10_001)).unwrap();
        std::fs::set_permissions(&keyring, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        Ok(host)
    }

    fn config(&self) -> PathBuf {
        self.root.join("etc/kube-kms/config.yaml")
    }

    fn tmpfiles(&self) -> Result<(), String> {
        let file = self.site.dir().join("tmpfiles.conf");
        std::fs::write(&file, rendered(&self.config(), &["--kind", "tmpfiles"])).unwrap();
        let root = format!("--root={}", self.root.display());
        let made = Command::new("systemd-tmpfiles").args(["--create", &root]).arg(&file).output();
        let made = made.map_err(|e| format!("systemd-tmpfiles: {e}"))?;
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Ok(())
    }

    /// The container of the static pod, as a process in a mount namespace of its own.
    fn run(&self, container: &Value, volumes: &Value) -> Running {
        let rootfs = self.site.dir().join("rootfs");
        let script = self.script(&rootfs, container, volumes);
        let mut running = self.site.run(
            self.site
                .process("unshare", &["--mount", "--propagation", "private", "sh", "-ceu", &script])
                .env_clear()
                .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        );
        running.target = Target::File(self.root.join("run/kube-kms/kms.sock"));
        running
    }

    /// Runs a probe's command as kubelet would: as the container's user, in its mount namespace.
    fn alive(&self, running: &Running, command: &Value) -> bool {
        let command: Vec<&str> = command.as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
        let (pid, root) = (running.pid().to_string(), format!("--root=/proc/{}/root", running.pid()));
        let enter = [
            "--target",
            &pid,
            "--mount",
            &root,
            "--wd=/",
            "/usr/bin/setpriv",
            "--reuid",
            "10001",
            "--regid",
            "10001",
            "--clear-groups",
            "--",
        ];
        self.site.process("nsenter", &[&enter[..], &command].concat()).status().unwrap().success()
    }

    fn script(&self, rootfs: &Path, container: &Value, volumes: &Value) -> String {
        let binary = container["command"][0].as_str().unwrap();
        let mut script = String::new();
        let mut bind = |from: &str, to: &str, read_only: bool| {
            let to = format!("{}{to}", rootfs.display());
            let parent = Path::new(&to).parent().unwrap().display().to_string();
            script.push_str(&format!("mkdir -p '{parent}'\n"));
            let touch = if Path::new(from).is_file() { "touch" } else { "mkdir -p" };
            script.push_str(&format!("{touch} '{to}'\nmount --bind '{from}' '{to}'\n"));
            if read_only {
                script.push_str(&format!("mount -o remount,bind,ro,nosuid '{to}'\n"));
            }
        };
        SYSTEM.iter().filter(|path| Path::new(path).exists()).for_each(|path| bind(path, path, true));
        bind(BINARY, binary, true);
        for mount in container["volumeMounts"].as_array().unwrap() {
            let volume = volumes.as_array().unwrap().iter().find(|v| v["name"] == mount["name"]).unwrap();
            let from = format!("{}{}", self.root.display(), volume["hostPath"]["path"].as_str().unwrap());
            // Type `Directory`: kubelet makes none.
            assert!(Path::new(&from).is_dir(), "{from} is not there");
            bind(&from, mount["mountPath"].as_str().unwrap(), mount["readOnly"] == true);
        }
        let root = rootfs.display();
        script.push_str(&format!("mkdir -p '{root}/proc'\nmount -t proc proc '{root}/proc'\n"));
        // The root itself last: a directory, read-only.
        let context = &container["securityContext"];
        assert_eq!(
            (&context["readOnlyRootFilesystem"], &context["capabilities"]["drop"][0]),
            (&true.into(), &"ALL".into())
        );
        assert_eq!(context["allowPrivilegeEscalation"], false);
        script.push_str(&format!("mount --rbind '{root}' '{root}.ro'\nmount -o remount,bind,ro '{root}.ro'\n"));
        let command: Vec<&str> = container["command"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
        script.push_str(&format!(
            "exec chroot '{root}.ro' /usr/bin/setpriv --reuid {} --regid {} --clear-groups --inh-caps=-all \
             --bounding-set=-all --no-new-privs -- {}\n",
            context["runAsUser"],
            context["runAsGroup"],
            command.join(" ")
        ));
        format!("mkdir -p '{root}' '{root}.ro'\n{script}")
    }
}

fn get(http: &Value) -> u16 {
    let address = format!("{}:{}", http["host"].as_str().unwrap(), http["port"]);
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", http["path"].as_str().unwrap()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

fn has_what_it_needs() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("needs root for a mount namespace".to_owned());
    }
    for (program, arguments) in
        [("unshare", &["--mount", "true"][..]), ("setpriv", &["--version"]), ("systemd-tmpfiles", &["--version"])]
    {
        match Command::new(program).args(arguments).output() {
            Ok(output) if output.status.success() => {}
            Ok(output) => return Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
            Err(error) => return Err(format!("{program}: {error}")),
        }
    }
    Ok(())
}

fn status(running: &Running, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.pid())).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix(&format!("{name}:"))).unwrap();
    line.split_whitespace().next().unwrap().to_owned()
}

#[tokio::test]
async fn the_pods_command_serves_root_as_another_user_on_a_read_only_root() {
    const NAME: &str = "the_pods_command_serves_root_as_another_user_on_a_read_only_root";
    if let Err(reason) = has_what_it_needs() {
        return skipped(NAME, &reason);
    }
    for (kind, mode) in [("static-pod", "0600"), ("sidecar", "0660")] {
        let host = match Host::new(mode) {
            Ok(host) => host,
            Err(reason) => return skipped(NAME, &reason),
        };
        let manifest = yaml(&rendered(&host.config(), &["--kind", kind]));
        let list = if kind == "sidecar" { "initContainers" } else { "containers" };
        let container = &manifest["spec"][list][0];
        let running = host.run(container, &manifest["spec"]["volumes"]);
        running.until_ok().await;
        let (seed, answer) = sealed(&mut running.client().await).await;
        assert_eq!(running.client().await.decrypt(answer, uid()).await.unwrap().plaintext, seed);
        if kind == "static-pod" {
            assert_eq!(get(&container["readinessProbe"]["httpGet"]), 200);
        }
        for probe in ["startupProbe", "livenessProbe"] {
            assert!(host.alive(&running, &container[probe]["exec"]["command"]), "{probe}");
        }
        // A plugin that hangs is not alive.
        running.signal(rustix::process::Signal::STOP);
        assert!(!host.alive(&running, &container["livenessProbe"]["exec"]["command"]));
        running.signal(rustix::process::Signal::CONT);

        assert_eq!(status(&running, "Uid"), "10001");
        for capabilities in ["CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"] {
            assert_eq!(u64::from_str_radix(&status(&running, capabilities), 16).unwrap(), 0, "{capabilities}");
        }
        assert_eq!(status(&running, "NoNewPrivs"), "1");
        let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", running.pid())).unwrap();
        let options = |at: &str| {
            let line = mounts.lines().find(|l| l.split(' ').nth(4) == Some(at));
            line.unwrap_or_else(|| panic!("{at} in {mounts}")).split(' ').nth(5).unwrap().to_owned()
        };
        assert!(options("/").starts_with("ro") && options("/etc/kube-kms").starts_with("ro"), "{mounts}");
        assert!(options("/run/kube-kms").starts_with("rw") && options("/var/lib/kube-kms").starts_with("rw"));

        let socket = host.root.join("run/kube-kms/kms.sock");
        let file = std::fs::metadata(&socket).unwrap();
        assert_eq!((file.uid(), file.gid()), (10_001, 0), "the directory is setgid");
        assert!(host.root.join("var/lib/kube-kms/state.json").exists());
        // kube-apiserver as root without any capability: by the group, or not at all.
        let bare = ["--inh-caps=-all", "--bounding-set=-all", BINARY, "probe", "--socket", socket.to_str().unwrap()];
        let probe = host.site.process("setpriv", &bare).output().unwrap();
        assert_eq!(probe.status.success(), mode == "0660", "{}", String::from_utf8_lossy(&probe.stderr));
        assert!(running.stop().await.success());
    }
}
