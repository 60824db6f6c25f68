#!/usr/bin/env python3
"""kube-kms under a real kube-apiserver and etcd, from the folder that KUBEBUILDER_ASSETS names.

Starts etcd, kube-kms (local KEK) and kube-apiserver with `*.*` encrypted; makes Secrets and ConfigMaps; looks at what etcd
holds; rotates, rewrites, kills each of them and reads everything back. Everything is in a temporary directory, on ports
that the kernel chose, and talks to this host only. Needs openssl. Python's standard library, nothing else.
"""

import base64
import http.client
import json
import os
import pathlib
import re
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parents[2]
KUBE_KMS = os.environ.get("KUBE_KMS", str(ROOT / "target/debug/kube-kms"))
OBJECTS = 20
PROVIDER = "kube-kms"
PREFIX = f"k8s:enc:kms:v2:{PROVIDER}:".encode()
# kube-apiserver polls Status once a minute when it is healthy and every 10 s when it is not.
NOTICED = 150
READY = 120
COMPACT = {"secrets": "Secret", "configmaps": "ConfigMap"}


class Failed(Exception):
    pass


def say(text):
    print(f"e2e: {text}", flush=True)


def until(what, seconds, probe):
    """Waits until `probe` returns something true; its exceptions count as not yet."""
    end = time.monotonic() + seconds
    last = None
    while time.monotonic() < end:
        try:
            result = probe()
            if result:
                return result
        except (OSError, http.client.HTTPException, Failed, ValueError) as error:
            last = error
        time.sleep(0.2)
    raise Failed(f"{what}: not within {seconds} s; last: {last}")


def expect(holds, what):
    if not holds:
        raise Failed(what)


def free_ports(count):
    held = [socket.socket() for _ in range(count)]
    for s in held:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in held]
    for s in held:
        s.close()
    return ports


class Process:
    """One process with a log file; can be killed and started again."""

    def __init__(self, folder, name, command):
        self.log, self.name, self.command = folder / f"{name}.log", name, [str(c) for c in command]
        self.child = None

    def start(self):
        with open(self.log, "ab") as log:
            self.child = subprocess.Popen(self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def check(self):
        if self.child.poll() is not None:
            raise SystemExit(f"e2e: {self.name} ended with {self.child.returncode}\n{self.tail()}")

    def kill(self, how=signal.SIGKILL):
        if self.child and self.child.poll() is None:
            self.child.send_signal(how)
            self.child.wait(30)

    def tail(self):
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return f"--- the end of {self.log}:\n" + "\n".join(text.splitlines()[-25:])


def certificates(folder):
    """A CA, a leaf for the server and one for an administrator; the key that signs service account tokens."""

    def openssl(*arguments):
        done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
        expect(done.returncode == 0, f"openssl {arguments[0]}: {done.stderr}")

    ca = folder / "ca"
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", f"{ca}.key", "-out", f"{ca}.crt", "-subj", "/CN=e2e", "-days", 2)
    for name, subject, extension in [
        ("apiserver", "/CN=apiserver", "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth"),
        ("admin", "/O=system:masters/CN=admin", "extendedKeyUsage=clientAuth"),
    ]:
        leaf, ext = folder / name, folder / f"{name}.ext"
        ext.write_text(extension)
        openssl("req", *key, "-keyout", f"{leaf}.key", "-out", f"{leaf}.csr", "-subj", subject)
        openssl("x509", "-req", "-in", f"{leaf}.csr", "-CA", f"{ca}.crt", "-CAkey", f"{ca}.key", "-CAcreateserial",
                "-out", f"{leaf}.crt", "-days", 2, "-extfile", ext)
    openssl("genrsa", "-out", folder / "sa.key", 2048)


class Kms:
    """kube-kms with a keyring file."""

    def __init__(self, folder):
        self.keyring, self.socket, config = folder / "keyring.json", folder / "kms.sock", folder / "kube-kms.yaml"
        config.write_text(
            f"listen: {{socket: {self.socket}}}\nstateDir: {folder}/state\nkek: {{local: {{keyring: {self.keyring}}}}}\n"
            "http: {listen: '127.0.0.1:0'}\nprobe: {interval: 1s, timeout: 500ms}\n"
        )
        self.run("keyring", "init", "--file", self.keyring)
        self.process = Process(folder, "kube-kms", [KUBE_KMS, "serve", "--config", config])

    def run(self, *arguments):
        done = subprocess.run([KUBE_KMS, *map(str, arguments)], capture_output=True, text=True, check=False)
        expect(done.returncode == 0, f"kube-kms {arguments[0]}: {done.stderr}{done.stdout}")
        return done.stdout

    def start(self):
        self.process.start()
        return until("kube-kms answers", 30, self.key_id)

    def key_id(self):
        self.process.check()
        report = json.loads(self.run("probe", "--socket", self.socket, "--output", "json"))
        return report["status"]["keyId"]

    def rotate(self):
        before = self.key_id()
        version = json.loads(self.run("keyring", "add", "--file", self.keyring, "--output", "json"))["version"]
        self.run("keyring", "promote", "--file", self.keyring, version)
        return until("kube-kms reports the rotation", 30, lambda: (k := self.key_id()) != before and k)


class Etcd:
    """etcd, read through its JSON gateway."""

    def __init__(self, folder, assets):
        client, peer = free_ports(2)
        self.port, self.url, peers = client, f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
        self.process = Process(folder, "etcd", [
            assets / "etcd", "--data-dir", folder / "etcd",
            "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
            "--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", f"default={peers}",
        ])

    def start(self):
        self.process.start()
        until("etcd answers", 30, lambda: self.values("/") is not None)

    def call(self, path, body):
        self.process.check()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
            expect(answer.status == 200, f"etcd {path}: {answer.status} {text[:200]}")
            return json.loads(text)
        finally:
            connection.close()

    def values(self, prefix):
        """Every key under a prefix and its raw value."""
        code = lambda b: base64.b64encode(b).decode()
        key = prefix.encode()
        end = key[:-1] + bytes([key[-1] + 1])
        kvs = self.call("/v3/kv/range", {"key": code(key), "range_end": code(end)}).get("kvs", [])
        return {base64.b64decode(kv["key"]).decode(): base64.b64decode(kv.get("value", "")) for kv in kvs}


class ApiServer:
    """kube-apiserver, spoken to with the administrator's certificate."""

    def __init__(self, folder, assets, etcd, kms, extra):
        (self.port,) = free_ports(1)
        self.folder, config = folder, folder / "encryption.yaml"
        config.write_text(json.dumps({
            "apiVersion": "apiserver.config.k8s.io/v1",
            "kind": "EncryptionConfiguration",
            "resources": [{
                "resources": ["*.*"],
                "providers": [
                    {"kms": {"apiVersion": "v2", "name": PROVIDER, "endpoint": f"unix://{kms.socket}", "timeout": "3s"}},
                    {"identity": {}},
                ],
            }],
        }))
        flags = [
            f"--etcd-servers={etcd.url}", "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1",
            f"--secure-port={self.port}", f"--tls-cert-file={folder}/apiserver.crt",
            f"--tls-private-key-file={folder}/apiserver.key", f"--client-ca-file={folder}/ca.crt",
            "--service-account-issuer=https://kubernetes.default.svc", f"--service-account-key-file={folder}/sa.key",
            f"--service-account-signing-key-file={folder}/sa.key", "--service-cluster-ip-range=10.0.0.0/24",
            "--authorization-mode=AlwaysAllow", "--disable-admission-plugins=ServiceAccount",
            "--endpoint-reconciler-type=none", f"--encryption-provider-config={config}",
            "--encryption-provider-config-automatic-reload=true", "-v=2",
        ]
        self.process = Process(folder, "kube-apiserver", [assets / "kube-apiserver", *flags, *extra])
        self.tls = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        self.tls.load_cert_chain(folder / "admin.crt", folder / "admin.key")

    def start(self):
        self.process.start()
        self.until_ready()
        until("the namespace default is there", READY, lambda: self.get("/api/v1/namespaces/default"))

    def until_ready(self):
        until("kube-apiserver is ready", READY, lambda: self.request("GET", "/readyz")[0] == 200)

    def request(self, method, path, body=None):
        self.process.check()
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=self.tls, timeout=30)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def ok(self, method, path, body=None):
        status, text = self.request(method, path, body)
        expect(200 <= status < 300, f"{method} {path}: {status} {text[:400]!r}")
        return json.loads(text)

    def get(self, path):
        return self.ok("GET", path)

    def path(self, resource, name=""):
        return f"/api/v1/namespaces/default/{resource}" + (f"/{urllib.parse.quote(name)}" if name else "")

    def create(self, resource, name, text):
        data = {"text": base64.b64encode(text.encode()).decode()} if resource == "secrets" else {"text": text}
        body = {"apiVersion": "v1", "kind": COMPACT[resource], "metadata": {"name": name}, "data": data}
        self.ok("POST", self.path(resource), body)

    def text(self, resource, name):
        text = self.get(self.path(resource, name))["data"]["text"]
        return base64.b64decode(text).decode() if resource == "secrets" else text


def version_of(binary):
    text = subprocess.run([str(binary), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"v(\d+)\.(\d+)", text)
    expect(found, f"{binary} --version says {text!r}")
    return int(found[1]), int(found[2])


class Migration:
    """How all objects are rewritten: StorageVersionMigration when its API and its controller are there."""

    GROUP = "storagemigration.k8s.io"

    def __init__(self, assets, folder, minor):
        self.binary, self.folder = assets / "kube-controller-manager", folder
        self.version = "v1" if minor >= 37 else "v1beta1" if minor >= 35 else "v1alpha1"
        # SPEC: KEP-4192. Off by default before 1.37; the alpha needs another gate for its controller.
        gates = ["StorageVersionMigrator=true"] + ["InformerResourceVersion=true"] * (minor < 35)
        self.gates = [] if minor >= 37 else [f"--feature-gates={','.join(gates)}"]
        # The API came with 1.30, behind a feature gate that older binaries do not know.
        self.possible = self.binary.exists() and minor >= 30
        self.process = None

    def flags(self):
        if not self.possible:
            return []
        return self.gates and [*self.gates, f"--runtime-config={self.GROUP}/{self.version}=true"]

    def run(self, server):
        if not self.possible:
            say("rewriting by get and replace: there is no kube-controller-manager of 1.30 or newer for StorageVersionMigration")
            for resource in COMPACT:
                for item in server.get(server.path(resource))["items"]:
                    name = item["metadata"]["name"]
                    server.ok("PUT", server.path(resource, name), server.get(server.path(resource, name)))
            return
        say(f"rewriting by StorageVersionMigration ({self.version})")
        kubeconfig = self.folder / "kubeconfig"
        f = self.folder
        kubeconfig.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "e2e",
            "clusters": [{"name": "e2e", "cluster": {
                "server": f"https://127.0.0.1:{server.port}", "certificate-authority": f"{f}/ca.crt"}}],
            "users": [{"name": "e2e", "user": {
                "client-certificate": f"{f}/admin.crt", "client-key": f"{f}/admin.key"}}],
            "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "e2e"}}],
        }))
        (port,) = free_ports(1)
        self.process = Process(self.folder, "kube-controller-manager", [
            self.binary, f"--kubeconfig={kubeconfig}", "--leader-elect=false", "--bind-address=127.0.0.1",
            f"--secure-port={port}", *self.gates,
            "--controllers=storage-version-migrator-controller,garbage-collector-controller",
        ])
        self.process.start()
        path = f"/apis/{self.GROUP}/{self.version}/storageversionmigrations"
        for resource in COMPACT:
            what = {"group": "", "resource": resource}
            if self.version == "v1alpha1":
                what["version"] = "v1"
            server.ok("POST", path, {
                "apiVersion": f"{self.GROUP}/{self.version}", "kind": "StorageVersionMigration",
                "metadata": {"name": f"e2e-{resource}"}, "spec": {"resource": what}})
        # The controller first waits, with a growing pause, until the garbage collector has seen everything: one or two minutes.
        for resource in COMPACT:
            until(f"the migration of {resource} succeeds", 300, lambda r=resource: self.succeeded(server, path, r))

    def succeeded(self, server, path, resource):
        self.process.check()
        status = server.get(f"{path}/e2e-{resource}").get("status", {})
        conditions = {c["type"]: c["status"] for c in status.get("conditions", [])}
        if conditions.get("Failed") == "True":
            raise SystemExit(f"e2e: the migration of {resource} failed: {status}")
        return conditions.get("Succeeded") == "True"


class Run:
    def __init__(self, folder, assets):
        self.folder = folder
        self.marker = f"plaintext-{secrets.token_hex(16)}"
        self.written = {}
        certificates(folder)
        minor = version_of(assets / "kube-apiserver")[1]
        self.kms, self.etcd = Kms(folder), Etcd(folder, assets)
        self.migration = Migration(assets, folder, minor)
        self.server = ApiServer(folder, assets, self.etcd, self.kms, self.migration.flags())

    def processes(self):
        parts = [self.server.process, self.migration.process, self.kms.process, self.etcd.process]
        return [p for p in parts if p]

    def write(self, resource, name):
        text = f"{self.marker}-{name}"
        self.server.create(resource, name, text)
        self.written[(resource, name)] = text

    def read_all(self, when):
        for (resource, name), text in self.written.items():
            expect(self.server.text(resource, name) == text, f"{when}: {resource} {name} came back as something else")
        say(f"{when}: all {len(self.written)} objects are read back")

    def stored(self):
        return {k: v for r in COMPACT for k, v in self.etcd.values(f"/registry/{r}/default/").items()}

    def check_stored(self, key_id, gone=None):
        stored = self.stored()
        expect(len(stored) >= len(self.written), f"etcd has {len(stored)} objects, {len(self.written)} were written")
        for key, value in stored.items():
            expect(value.startswith(PREFIX), f"{key} begins {value[:40]!r}")
            expect(key_id.encode() in value, f"{key} is not under {key_id}")
            expect(gone is None or gone.encode() not in value, f"{key} is still under {gone}")
        forms = [self.marker.encode(), base64.b64encode(self.marker.encode())[:32]]
        for key, value in self.etcd.values("/").items():
            expect(not any(form in value for form in forms), f"plaintext is in etcd under {key}")
        say(f"etcd: {len(stored)} values with the prefix and under {key_id}, no plaintext anywhere")

    def in_use(self, key_id):
        """Whether a new object is stored under this key_id."""
        name = f"canary-{secrets.token_hex(4)}"
        self.write("configmaps", name)
        return key_id.encode() in self.stored()[f"/registry/configmaps/default/{name}"]

    def play(self):
        self.etcd.start()
        first = self.kms.start()
        self.server.start()
        say("etcd, kube-kms and kube-apiserver are ready")
        for n in range(OBJECTS):
            for resource in COMPACT:
                self.write(resource, f"e2e-{n}")
        self.check_stored(first)
        self.read_all("at first")

        second = self.kms.rotate()
        until("kube-apiserver uses the new key_id", NOTICED, lambda: self.in_use(second))
        self.read_all("after the rotation")
        self.migration.run(self.server)
        self.check_stored(second, gone=first)

        self.server.process.kill()
        self.server.start()
        self.read_all("after kube-apiserver was killed")

        self.kms.process.kill()
        self.write("secrets", "while-the-plugin-is-away")
        self.read_all("with kube-kms killed")
        expect(self.kms.start() == second, "kube-kms came back with another key_id")
        self.server.until_ready()
        self.write("secrets", "after-the-plugin-is-back")
        self.server.process.kill()
        self.server.start()
        self.read_all("after kube-kms and then kube-apiserver were killed")
        self.check_stored(second)

    def end(self):
        """Plugin and etcd end as they should; kube-apiserver has nobody to be polite to and may take a minute."""
        for process in self.processes():
            process.kill(signal.SIGKILL if process is self.server.process else signal.SIGTERM)


def main():
    assets = os.environ.get("KUBEBUILDER_ASSETS", "")
    if not assets:
        print("SKIPPED: e2e: KUBEBUILDER_ASSETS is not set")
        return 0
    assets = pathlib.Path(assets)
    needed = [assets / "etcd", assets / "kube-apiserver", pathlib.Path(KUBE_KMS), pathlib.Path(shutil.which("openssl") or "openssl")]
    missing = [str(path) for path in needed if not path.exists()]
    if missing:
        print(f"e2e: missing: {', '.join(missing)}", file=sys.stderr)
        return 1
    # However it is told to stop, what it started stops with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("e2e: terminated"))
    folder = pathlib.Path(tempfile.mkdtemp(prefix="kube-kms-e2e-"))
    run = None
    try:
        run = Run(folder, assets)
        run.play()
    except (Failed, SystemExit, subprocess.SubprocessError, OSError) as error:
        print(f"e2e: FAILED: {error}", file=sys.stderr)
        for process in run.processes() if run else []:
            print(process.tail(), file=sys.stderr)
        print(f"e2e: everything is kept in {folder}", file=sys.stderr)
        return 1
    finally:
        if run:
            run.end()
    shutil.rmtree(folder)
    say("passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
