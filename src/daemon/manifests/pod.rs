//! The two pods: a static pod of its own, and a native sidecar in the pod of kube-apiserver.
//!
//! Guarantees: both run the same container: no root, no capability, no writable root, no token; kubelet's liveness never
//! follows the KMS. SPEC: Kubernetes core/v1 Pod; native sidecars (an init container that always restarts) since 1.29.

use super::facts::Facts;
use super::{BINARY, ENCRYPTION_CONFIGURATION};
use std::fmt::Write as _;
use std::path::Path;

/// The name of everything of ours in a pod of kube-apiserver.
const NAME: &str = "kube-kms";

pub(super) fn static_pod(facts: &Facts<'_>) -> String {
    let mut out = format!(
        "# kube-kms beside kube-apiserver: goes to /etc/kubernetes/manifests/kube-kms.yaml on every control-plane node.
# Static pods start in no order; kube-apiserver waits for a late plugin.{}
apiVersion: v1
kind: Pod
metadata:
  name: {NAME}
  namespace: kube-system
  labels:
    app.kubernetes.io/name: {NAME}
    component: {NAME}
    tier: control-plane
spec:
  # There is no pod network before kube-apiserver is up; AWS's instance metadata is reached in one hop, too.
  hostNetwork: true
  # Never the DNS of the cluster that this pod is needed for.
  dnsPolicy: Default
  priorityClassName: system-node-critical
  # It asks nothing of the Kubernetes API.
  automountServiceAccountToken: false
  enableServiceLinks: false
  # It ends within ten seconds.
  terminationGracePeriodSeconds: 20
  containers:
",
        needs_directories(facts)
    );
    container(&mut out, facts, Form::StaticPod);
    out.push_str("  volumes:\n");
    volumes(&mut out, facts, "");
    out
}

pub(super) fn sidecar(facts: &Facts<'_>) -> String {
    let mut out = format!(
        "# kube-kms inside the pod of kube-apiserver, started before it: goes to PATCHES/kube-apiserver0+strategic.yaml, where
# PATCHES is the folder that kubeadm is given as --patches. kube-apiserver's flags: `--kind kubeadm`.{}
spec:
  initContainers:
",
        needs_directories(facts)
    );
    container(&mut out, facts, Form::Sidecar);
    // `--kind kubeadm` mounts the directories of kube-apiserver itself under other names.
    out.push_str("  volumes:\n");
    volumes(&mut out, facts, "kube-kms-");
    out
}

fn needs_directories(facts: &Facts<'_>) -> &'static str {
    if facts.is_root() { "" } else { "\n# Its directories: `--kind tmpfiles`." }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    StaticPod,
    Sidecar,
}

fn container(out: &mut String, facts: &Facts<'_>, form: Form) {
    let options = facts.options;
    let _ = write!(
        out,
        "    - name: {NAME}
      image: {}
      imagePullPolicy: {}
      command:
        - {BINARY}
        - serve
        - --config
        - {}
",
        options.image,
        pull_policy(&options.image),
        facts.config_path
    );
    if form == Form::Sidecar {
        out.push_str("      # What makes an init container a sidecar: kube-apiserver starts once the startup probe has passed.\n");
        out.push_str("      restartPolicy: Always\n");
    }
    if !options.env.is_empty() {
        out.push_str("      env:\n");
        for (name, value) in &options.env {
            let _ = write!(out, "        - name: {name}\n          value: {:?}\n", value);
        }
    }
    security(out, facts);
    let _ = write!(
        out,
        "      resources:
        requests:
          cpu: 50m
          memory: 64Mi
        # No limit on CPU: a throttled Status takes kube-apiserver's readiness away.
        limits:
          memory: {}Mi
",
        facts.memory_limit_mib
    );
    probes(out, facts, form);
    out.push_str("      volumeMounts:\n");
    let prefix = if form == Form::Sidecar { "kube-kms-" } else { "" };
    for mount in &facts.mounts {
        let _ = write!(out, "        - name: {prefix}{}\n          mountPath: {}\n", mount.name, mount.path);
        if mount.read_only {
            out.push_str("          readOnly: true\n");
        }
    }
}

/// SECURITY: without a registry in its name an image could come from whoever owns that name at the runtime's default one.
fn pull_policy(image: &str) -> &'static str {
    let registry = image.split_once('/').map_or("", |(first, _)| first);
    let is_host = registry.contains(['.', ':']) && registry != "localhost";
    if is_host { "IfNotPresent" } else { "Never" }
}

fn security(out: &mut String, facts: &Facts<'_>) {
    let user = facts.options.user;
    let profile = match &facts.options.seccomp {
        None => "          type: RuntimeDefault\n".to_owned(),
        Some(file) => format!("          type: Localhost\n          localhostProfile: {file}\n"),
    };
    let _ = write!(
        out,
        "      securityContext:
        runAsUser: {user}
        runAsGroup: {user}
        runAsNonRoot: {}
        readOnlyRootFilesystem: true
        allowPrivilegeEscalation: false
        capabilities:
          drop:
            - ALL
        seccompProfile:
{profile}",
        !facts.is_root()
    );
}

fn probes(out: &mut String, facts: &Facts<'_>, form: Form) {
    let mut alive = |name: &str, timing: &str| {
        let _ = write!(
            out,
            "      {name}:
        exec:
          command:
            - {BINARY}
            - probe
            - --live
            - --timeout
            - 4s
            - --socket
            - \"{}\"
{timing}",
            facts.socket
        );
    };
    alive("startupProbe", "        periodSeconds: 1\n        timeoutSeconds: 5\n        failureThreshold: 60\n");
    alive(
        "livenessProbe",
        "        # Through the socket, which only kube-apiserver's user and this container's get to: every user of the host can crowd a TCP
        # port, and would get the plugin killed. It never follows the KMS: a restart throws the data keys in memory away, which is
        # what lives through an outage.
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
",
    );
    match (form, facts.http) {
        (Form::Sidecar, _) => {
            out.push_str("      # No readiness probe: kube-apiserver's own /readyz has the check kms-providers.\n");
        }
        (Form::StaticPod, None) => {
            out.push_str("      # No readiness probe: the configuration has no http.listen.\n");
        }
        (Form::StaticPod, Some(http)) => {
            let _ = write!(
                out,
                "      # For whoever looks at the pod: nothing is restarted by it.
      readinessProbe:
        httpGet:
          host: \"{}\"
          port: {}
          path: /readyz
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 1
",
                http.ip(),
                http.port()
            );
        }
    }
}

fn volumes(out: &mut String, facts: &Facts<'_>, prefix: &str) {
    for mount in &facts.mounts {
        // Made by kubelet, a directory is root's.
        let kind = if facts.is_root() && !mount.read_only { "DirectoryOrCreate" } else { "Directory" };
        let _ = write!(
            out,
            "    - name: {prefix}{}
      hostPath:
        path: {}
        type: {kind}
",
            mount.name, mount.path
        );
    }
}

/// The directory of the EncryptionConfiguration.
pub(super) fn encryption_dir() -> String {
    Path::new(ENCRYPTION_CONFIGURATION).parent().map(|dir| dir.display().to_string()).unwrap_or_default()
}
