#!/usr/bin/env python3
"""Counts what one request costs in the real release binary: instructions, allocations, writes. `make counts` runs it.

Guarantees: a figure is the difference between two runs under callgrind of which one serves more calls, so start-up cancels out;
counts do not depend on how busy the machine is. Fails when a count is over its target, or over the record in
benches/records/counts.json by more than 10 %; `--bless` writes the record anew. benches/README.md says what the counts mean.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile

import kms_wire

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECORD = ROOT / "benches/records/counts.json"
GROWTH = 1.10
CALLS = 2048
WARM_UP = 256
DEPTH = 64
UID = "8b4c3a0e-6f4f-4c89-9b53-5a1f0f5f1234"

# What the release binary must never pass, whatever the record says. Writes are the socket's.
TARGETS = {
    "Encrypt": {"instructions": 42_000, "allocations": 26, "writes": 1.0, "writes at 64": 0.1},
    "Decrypt": {"writes": 1.0, "writes at 64": 0.1},
    "Status": {"writes": 1.0, "writes at 64": 0.1},
}
ALLOCATING = {"malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc"}
WRITING = {"write", "writev", "send", "sendto", "sendmsg", "__libc_send", "__libc_write", "__write", "__send"}


class Profile:
    """What callgrind has written: instructions, by function and in all, and how often each function was called."""

    def __init__(self, files, main_thread):
        self.instructions, self.by_function, self.calls, self.inclusive = 0, {}, {}, {}
        self.main_calls = {}
        for file in files:
            self.read(file, main_thread in file.name)

    def read(self, file, is_main):
        names, current, called = {}, None, None

        def named(text):
            number, _, name = text.partition(" ")
            return names.setdefault(number, name) if name else names[number]

        for line in file.read_text(errors="replace").splitlines():
            if line.startswith("fn="):
                current = named(line[3:])
            elif line.startswith("cfn="):
                called = named(line[4:])
            elif line.startswith("calls="):
                count = int(line[6:].split()[0])
                self.calls[called] = self.calls.get(called, 0) + count
                if is_main:
                    self.main_calls[called] = self.main_calls.get(called, 0) + count
            elif line and (line[0].isdigit() or line[0] in "+-*"):
                cost = int(line.split()[1])
                if called is not None:
                    self.inclusive[called] = self.inclusive.get(called, 0) + cost
                    called = None
                else:
                    self.instructions += cost
                    self.by_function[current] = self.by_function.get(current, 0) + cost

    def count(self, names, main_only=False):
        calls = self.main_calls if main_only else self.calls
        return sum(n for name, n in calls.items() if name.split("@")[0].split("'")[0] in names)


def serve(binary, site, drive):
    """Runs the binary under callgrind, drives it, ends it with SIGTERM, and reads what it counted."""
    for old in site.glob("callgrind.*"):
        old.unlink()
    process = subprocess.Popen(
        ["valgrind", "--tool=callgrind", "--separate-threads=yes", f"--callgrind-out-file={site}/callgrind.out"]
        + ["--combine-dumps=no", str(binary), "serve", "--config", str(site / "config.yaml")],
        stdout=subprocess.DEVNULL,
        stderr=open(site / "log", "wb"),
    )
    try:
        drive(kms_wire.dial(str(site / "kms.sock")))
    except Exception:
        sys.stderr.write((site / "log").read_text(errors="replace")[-4000:])
        raise
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=120)
    files = [f for f in site.glob("callgrind.out*") if f.stat().st_size]
    return Profile(files, "-01")


def new_site(binary, folder):
    (folder / "state").mkdir()
    subprocess.run([binary, "keyring", "init", "--file", folder / "keyring.json"], check=True, capture_output=True)
    # As deploy/config has it: log level and format are the defaults, metrics are on.
    (folder / "config.yaml").write_text(
        f"listen: {{socket: {folder}/kms.sock}}\nkek: {{local: {{keyring: {folder}/keyring.json}}}}\n"
        f"stateDir: {folder}/state\nhttp: {{listen: '127.0.0.1:0'}}\n"
    )


def measure(binary, folder):
    """Every figure per call."""

    def run(rpc, calls, depth):
        def drive(connection):
            sealed = connection.batch([kms_wire.encrypt(UID)])[0]
            call = {
                "Encrypt": lambda: kms_wire.encrypt(UID),
                "Decrypt": lambda: kms_wire.decrypt(UID, sealed),
                "Status": lambda: ("Status", b""),
            }[rpc]()
            for _ in range((WARM_UP + calls) // depth):
                connection.batch([call] * depth)

        return serve(binary, folder, drive)

    figures, profiles = {}, {}
    for rpc in TARGETS:
        few, many = run(rpc, 0, 1), run(rpc, CALLS, 1)
        few_deep, many_deep = run(rpc, 0, DEPTH), run(rpc, CALLS, DEPTH)

        def each(of, before=few, after=many):
            return (of(after) - of(before)) / CALLS

        figures[rpc] = {
            "instructions": round(each(lambda p: p.instructions)),
            "instructions at 64": round(each(lambda p: p.instructions, few_deep, many_deep)),
            "allocations": round(each(lambda p: p.count(ALLOCATING)), 2),
            "writes": round(each(lambda p: p.count(WRITING, main_only=True)), 3),
            "writes at 64": round(each(lambda p: p.count(WRITING, main_only=True), few_deep, many_deep), 3),
        }
        profiles[rpc] = (few, many)
        print(rpc, figures[rpc], flush=True)
    return figures, profiles


if __name__ == "__main__":
    binary = pathlib.Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        new_site(binary, folder)
        figures, profiles = measure(binary, folder)
        few, many = profiles["Encrypt"]
        delta = {f: (n - few.by_function.get(f, 0)) / CALLS for f, n in many.by_function.items()}
        for name, n in sorted(delta.items(), key=lambda x: -x[1])[:90]:
            print(f"{n:9.1f} {(many.calls.get(name,0)-few.calls.get(name,0))/CALLS:7.2f}  {name[:150]}")
