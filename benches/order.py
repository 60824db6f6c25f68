#!/usr/bin/env python3
"""Finds out which functions serving calls, and writes benches/records/order.txt, from which build.rs puts them side by side.

The kernel maps 64 KiB around each page of a program that is touched. Functions that serving never calls, between those that it
does, are so most of what it has resident. `make order` runs this on a release binary: a start, some requests of each kind and a
scrape under callgrind, on the embedded KEK and on one in AWS behind TLS (a fake KMS in this script). Guarantees: only names go into
the record, without the hashes of one compiler; a name that a later build does not have does no harm. benches/README.md.
"""

import argparse
import base64
import http.server
import json
import pathlib
import re
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import callgrind
import kms_wire

RECORD = pathlib.Path(__file__).resolve().parent / "records/order.txt"
UID = "8b4c3a0e-6f4f-4c89-9b53-5a1f0f5f1234"
KEY = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
# One name can stand for many functions (a generic one, for each type). A group is laid out as a whole, so those of which serving
# needs most come first. Of a name less than the last share is not worth its room.
SHARES = [0.9, 0.4, 0.15, 0.02]


class FakeKms(http.server.BaseHTTPRequestHandler):
    """As much of AWS KMS as a plugin asks for; the blob is the plaintext behind a hundred bytes."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        answer = {
            "Encrypt": lambda: {"CiphertextBlob": _base64(bytes(100) + base64.b64decode(asked["Plaintext"]))},
            "Decrypt": lambda: {"Plaintext": _base64(base64.b64decode(asked["CiphertextBlob"])[100:]), "KeyMaterialId": "0" * 64},
            "DescribeKey": lambda: {"KeyMetadata": {"KeyId": KEY, "Arn": KEY, "KeyState": "Enabled", "Enabled": True}},
        }[self.headers["x-amz-target"].split(".")[1]]()
        body = json.dumps({"KeyId": KEY, **answer}).encode()
        self.send_response(200)
        for name, value in {"content-type": "application/x-amz-json-1.1", "content-length": len(body), "x-amzn-requestid": UID}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def _base64(data):
    return base64.b64encode(data).decode()


def start_kms(folder):
    """A fake KMS behind TLS, and the variables of the environment with which a plugin trusts it."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeKms)
    server.daemon_threads = True
    subprocess.run(
        ["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=kms", "-days", "1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", folder / "key.pem",
         "-out", folder / "cert.pem"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    trust = {"SSL_CERT_FILE": str(folder / "cert.pem"), "HOME": str(folder), "AWS_EC2_METADATA_DISABLED": "true",
             "AWS_ACCESS_KEY_ID": "AKIDTEST", "AWS_SECRET_ACCESS_KEY": "not-a-secret"}
    return f"https://127.0.0.1:{server.server_port}", trust


def called(binary, kek, environment, folder):
    """The functions that a process on this KEK calls, by their names in the binary."""
    (folder / "config.yaml").write_text(
        f"listen: {{socket: {folder}/kms.sock}}\nkek: {kek}\nstateDir: {folder}/state\nhttp: {{listen: '127.0.0.1:0'}}\n")

    def drive():
        connection = kms_wire.dial(str(folder / "kms.sock"))
        began = time.monotonic()
        while b"ready" not in (folder / "log").read_bytes():
            assert time.monotonic() - began < 120, "it does not become ready"
            time.sleep(0.1)
        sealed = connection.batch([kms_wire.encrypt(UID)])[0]
        for depth in (1, 1, 8, 64):
            for call in (kms_wire.encrypt(UID), kms_wire.decrypt(UID, sealed), ("Status", b"")):
                connection.batch([call] * depth)
        page = re.search(rb"address=(127\.0\.0\.1:\d+)", (folder / "log").read_bytes())[1].decode()
        for path in ("metrics", "readyz", "livez"):
            urllib.request.urlopen(f"http://{page}/{path}").read()

    profile = callgrind.serve(binary, folder, drive, ["--demangle=no"], environment)
    return {re.sub(r"'\d+$", "", name) for name in profile.own}


def pattern(symbol):
    """The name without what one compiler, one version of a crate or one link adds to it; None where it is no pattern."""
    symbol = re.sub(r"(\.llvm)?\.\d+$", "", symbol)
    if symbol.startswith("_ZN"):
        return re.sub(r"17h[0-9a-f]{16}E$", "17h*", symbol)
    if symbol.startswith("_R"):
        return re.sub(r"Cs[0-9A-Za-z]*_", "Cs*_", symbol) + "*"
    return re.sub(r"^aws_lc_\d+_\d+_\d+_", "aws_lc_*_", symbol)


def groups(binary, runs):
    """The patterns of the functions that these runs called: for each run those that no run before it has, densest first."""
    size, of = {}, {}
    for line in subprocess.run(["nm", "-S", binary], check=True, capture_output=True, text=True).stdout.splitlines():
        fields = line.split()
        if len(fields) == 4 and fields[2] in "tTwW":
            size[fields[3]] = int(fields[1], 16)
            of.setdefault(pattern(fields[3]), []).append(fields[3])
    seen, taken = set(), set()
    for title, names in runs:
        seen |= names & size.keys()
        share = {known: sum(size[name] for name in of[known] if name in seen) / max(1, sum(size[name] for name in of[known]))
                 for known in of if any(name in seen for name in of[known])}
        for least in SHARES:
            # What only a later run needs much of is placed with that run.
            group = sorted(known for known, part in share.items() if part >= least and known not in taken)
            taken |= set(group)
            if group:
                yield f"{title}, {least:.0%} of it", group


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("binary", type=pathlib.Path)
    binary = options.parse_args().binary.resolve()
    runs = []
    for title in ("on the embedded KEK", "on a KEK in AWS"):
        with tempfile.TemporaryDirectory() as folder:
            folder, environment = pathlib.Path(folder), {}
            if "AWS" in title:
                url, environment = start_kms(folder)
                kek = f"{{aws: {{key: alias/prod, region: eu-central-1, endpoint: '{url}'}}}}"
            else:
                subprocess.run([binary, "keyring", "init", "--file", folder / "keyring.json"], check=True, capture_output=True)
                kek = f"{{local: {{keyring: {folder}/keyring.json}}}}"
            runs.append((title, called(binary, kek, environment, folder)))
            print(f"{title}: {len(runs[-1][1])} functions", file=sys.stderr)
    with open(RECORD, "w") as record:
        record.write("# Functions that serving calls, for build.rs; made by `make order`. A title begins a group; groups follow each other.\n")
        for title, group in groups(binary, runs):
            record.write(f"# {title}\n" + "".join(f"{name}\n" for name in group))
    print(f"{RECORD} is written", file=sys.stderr)


if __name__ == "__main__":
    main()
