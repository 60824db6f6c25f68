//! What kube-apiserver needs: two flags, the EncryptionConfiguration and the directory of the socket.
//!
//! Guarantees: directories are mounted, never files: a new socket and a replaced file are new inodes. SPEC: kubeadm
//! v1beta4 ClusterConfiguration, kube-apiserver's --encryption-provider-config.

use super::ENCRYPTION_CONFIGURATION;
use super::facts::Facts;
use super::pod::encryption_dir;
use std::fmt::Write as _;

pub(super) fn render(facts: &Facts<'_>) -> String {
    let dir = encryption_dir();
    let mut out = format!(
        "# The part of kubeadm's ClusterConfiguration that gives kube-apiserver its EncryptionConfiguration and the socket of
# kube-kms. On a running cluster: `kubectl edit configmap -n kube-system kubeadm-config`, then on each control-plane node
# `kubeadm init phase control-plane apiserver --config FILE`, one node after the other.
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
apiServer:
  extraArgs:
    - name: encryption-provider-config
      value: {ENCRYPTION_CONFIGURATION}
    # A change of the file takes effect within a minute, without a restart, and one that does not work does not.
    - name: encryption-provider-config-automatic-reload
      value: \"true\"
  extraVolumes:
    - name: encryption-configuration
      hostPath: {dir}
      mountPath: {dir}
      readOnly: true
      pathType: DirectoryOrCreate
"
    );
    if let Some(dir) = &facts.socket_dir {
        let _ = write!(
            out,
            "    - name: kms-socket
      hostPath: {dir}
      mountPath: {dir}
      # Connecting to a socket is no write to the file system.
      readOnly: true
      pathType: DirectoryOrCreate
"
        );
    }
    out
}
