//! Units and files for the service manager of the host: service, socket, user, and the directories of the pods.
//!
//! Guarantees: nothing that only a new systemd knows is needed (252 runs it all; what an older one does not know it
//! ignores). SPEC: systemd.exec(5), systemd.service(5), systemd.socket(5), sysusers.d(5), tmpfiles.d(5).

use super::BINARY;
use super::facts::Facts;
use std::fmt::Write as _;

/// The user of the service.
const USER: &str = "kube-kms";
/// Who must find the socket there.
const BEFORE: &str = "kubelet.service k3s.service rke2-server.service";

pub(super) fn service(facts: &Facts<'_>) -> String {
    let user = if facts.is_root() { "root" } else { USER };
    let mut out = format!(
        "# kube-kms beside a kube-apiserver: goes to /etc/systemd/system/kube-kms.service on every control-plane node.
# With kube-kms.socket beside it the socket outlives the process, so that an upgrade is `systemctl restart kube-kms`.
[Unit]
Description=Kubernetes KMS v2 plugin
After=network-online.target
Wants=network-online.target
# Ready means that the socket answers; it does not wait for the KMS, so this never holds up a boot.
Before={BEFORE}
# Never give up: nothing encrypted can be read without it.
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={BINARY} serve --config {config}
ExecReload=/bin/kill -HUP $MAINPID
Restart=always
RestartSec=1
TimeoutStopSec=20
OOMScoreAdjust=-997
User={user}
Group={user}
",
        config = facts.config_path
    );
    for (name, value) in &facts.options.env {
        let _ = writeln!(out, "Environment={name}={value}");
    }
    directories(&mut out, facts);
    let _ = write!(
        out,
        "# Data keys are on locked pages, 1.2 KiB each.
LimitMEMLOCK={}M
LimitCORE=0
{HARDENING}
[Install]
WantedBy=multi-user.target
",
        facts.memlock_mib
    );
    out
}

/// PrivateUsers is left out on purpose: it would show every other user as `nobody`, and `listen.allowUids` asks who calls.
/// IPAddressDeny as well: the address of a KMS is not known.
const HARDENING: &str = "\
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=yes
ProtectProc=invisible
ProcSubset=pid
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
PrivateTmp=yes
PrivateDevices=yes
DevicePolicy=closed
PrivateMounts=yes
RemoveIPC=yes
KeyringMode=private
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
# The last four: the process filters itself further.
SystemCallFilter=@system-service seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self
SystemCallFilter=~@privileged
SystemCallErrorNumber=EPERM
";

fn directories(out: &mut String, facts: &Facts<'_>) {
    if let Some(dir) = &facts.socket_dir {
        match dir.strip_prefix("/run/").or_else(|| dir.strip_prefix("/var/run/")) {
            Some(name) => {
                let _ = write!(
                    out,
                    "# kube-apiserver's pod mounts this directory: it must be the same one after a restart. Its mode lets everybody find the
# socket; who may connect is the socket's own mode and listen.allowUids.
RuntimeDirectory={name}
RuntimeDirectoryMode=0755
RuntimeDirectoryPreserve=yes
"
                );
            }
            None => {
                let _ = writeln!(out, "ReadWritePaths={dir}");
            }
        }
    }
    match facts.state_dir.strip_prefix("/var/lib/") {
        Some(name) => {
            let _ = write!(out, "StateDirectory={name}\nStateDirectoryMode=0700\n");
        }
        None => {
            let _ = writeln!(out, "ReadWritePaths={}", facts.state_dir);
        }
    }
}

pub(super) fn socket(facts: &Facts<'_>) -> String {
    let user = if facts.is_root() { "root" } else { USER };
    let owner = match &facts.socket_dir {
        None => String::new(),
        Some(_) => format!(
            "# kube-apiserver as root reaches it by the group, also where it has no capabilities.
SocketUser={user}
SocketGroup=root
SocketMode={:04o}
DirectoryMode=0755
",
            facts.socket_mode
        ),
    };
    format!(
        "# The socket of kube-kms, held by systemd: goes to /etc/systemd/system/kube-kms.socket. While the service restarts, calls
# wait instead of failing, and kube-apiserver never backs off. It goes before listen.socket, which is the same.
[Unit]
Description=Socket of the Kubernetes KMS v2 plugin
Before={BEFORE}

[Socket]
ListenStream={}
{owner}Backlog=4096
Accept=no
RemoveOnStop=no

[Install]
WantedBy=sockets.target
",
        facts.socket
    )
}

pub(super) fn sysusers(facts: &Facts<'_>) -> String {
    if facts.is_root() {
        return "# Nothing: the plugin runs as root.\n".to_owned();
    }
    format!(
        "# The user of kube-kms: goes to /etc/sysusers.d/kube-kms.conf, then `systemd-sysusers`. The uid is that of the pods, so that
# the state and a keyring keep their owner when one form takes the place of the other.
u {USER} {} \"Kubernetes KMS v2 plugin\" {}
",
        facts.options.user, facts.state_dir
    )
}

pub(super) fn tmpfiles(facts: &Facts<'_>) -> String {
    let user = facts.options.user;
    let mut out = "# The directories of the kube-kms pod: goes to /etc/tmpfiles.d/kube-kms.conf, then `systemd-tmpfiles --create`. /run is
# empty after a boot, and what kubelet makes there is root's.
"
    .to_owned();
    if let Some(dir) = &facts.socket_dir {
        let note = if facts.socket_mode & 0o060 == 0o060 {
            "it reaches the socket by the group"
        } else {
            "root's own power over files reaches it"
        };
        let _ = write!(
            out,
            "# Setgid: the socket gets the group of kube-apiserver's user. With this listen.mode, {note}.
d {dir} 2750 {user} root -
"
        );
    }
    let _ = writeln!(out, "d {} 0700 {user} {user} -", facts.state_dir);
    for mount in facts.mounts.iter().filter(|mount| mount.name.starts_with("config")) {
        let _ = writeln!(out, "d {} 0755 root root -", mount.path);
    }
    for keyring in &facts.keyrings {
        // A `z` line would not do: systemd-tmpfiles refuses root's file in a directory of somebody else.
        let _ = writeln!(out, "# By hand, once: chown {user}:{user} {keyring} && chmod 0600 {keyring}");
    }
    out
}
