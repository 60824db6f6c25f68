"""Runs the real binary under callgrind and reads what it counted.

Guarantees: every instruction of every thread is counted once; a call is counted where it is made. Refuses to know what the
counts mean. SPEC: the callgrind format in valgrind's manual, "Callgrind Format Specification".
"""

import os
import re
import signal
import subprocess
import sys

# Crates and parts of the C library by what they are for; the first that fits the beginning of a function's name.
PARTS = [
    ("h2, http, bytes", r"h2::|http::|bytes::|<?&?http|.*h2::|.*bytes::|.*http::|slab|fnv|hashbrown|indexmap"),
    ("log", r".*tracing|.*kube_kms_telemetry::log|.*kube_kms_grpc::request_log|.*crossbeam|.*LocalKey"),
    ("text formatting", r".*core::fmt|.*alloc::fmt|.*fmt::Write|.*as core::fmt"),
    ("cipher", r".*aes|.*ghash|.*polyval|.*ctr::|.*cipher|.*universal_hash|.*sha2"),
    ("prost", r".*prost"),
    ("hyper", r".*hyper"),
    ("tonic, tower, axum", r".*tonic|.*tower|.*axum"),
    ("kube-kms", r".*(kube_kms|kms_v2)"),
    ("tokio, mio", r".*tokio|.*mio::"),
    ("allocator", r"_?_?(libc_)?(malloc|free|calloc|realloc|_int_|unlink_chunk|sysmalloc|arena|tcache|cfree)"),
    ("memory copied and wiped", r"__mem|mem(cpy|set|move|cmp)"),
]


class Profile:
    """`instructions` in all; by function: `own` instructions, `inclusive` ones, and `calls`; `main_calls` of the main thread."""

    def __init__(self, files):
        self.instructions, self.own, self.inclusive, self.calls, self.main_calls = 0, {}, {}, {}, {}
        for file in files:
            self.read(file)

    def read(self, file):
        names, current, called = {}, None, None
        is_main = file.name.endswith("-01")

        def named(text):
            number, _, name = text.partition(" ")
            return names.setdefault(number, name) if name else names[number]

        with open(file, errors="replace") as lines:
            for line in lines:
                line = line.rstrip("\n")
                if line.startswith("fn="):
                    current = named(line[3:])
                elif line.startswith("cfn="):
                    called = named(line[4:])
                elif line.startswith("calls="):
                    count = int(line[6:].split()[0])
                    self.calls[called] = self.calls.get(called, 0) + count
                    if is_main:
                        self.main_calls[called] = self.main_calls.get(called, 0) + count
                elif line and line[0] in "0123456789+-*":
                    cost = int(line.split()[1])
                    if called is not None:
                        self.inclusive[called] = self.inclusive.get(called, 0) + cost
                        called = None
                    else:
                        self.instructions += cost
                        self.own[current] = self.own.get(current, 0) + cost

    def calls_of(self, names, main_only=False):
        calls = self.main_calls if main_only else self.calls
        return sum(n for name, n in calls.items() if re.split(r"[@'.]", name)[0] in names)

    def within(self, function):
        """Instructions in this function and below, and how often it was called."""
        return self.inclusive.get(function, 0), self.calls.get(function, 0)

    def by_part(self):
        parts = {}
        for name, cost in self.own.items():
            part = next((part for part, pattern in PARTS if re.match(pattern, name or "?")), "rest of Rust's library")
            parts[part] = parts.get(part, 0) + cost
        return parts


def serve(binary, site, drive, options=(), environment=None):
    """Serves the site under callgrind while `drive` runs, ends it with SIGTERM, and reads its counts."""
    for old in site.glob("callgrind.out*"):
        old.unlink()
    command = ["valgrind", "--tool=callgrind", "--separate-threads=yes", f"--callgrind-out-file={site}/callgrind.out", *options]
    environment = {**os.environ, **(environment or {})}
    with open(site / "log", "wb") as log:
        process = subprocess.Popen(
            [*command, str(binary), "serve", "--config", str(site / "config.yaml")], stdout=log, stderr=log, env=environment
        )
        try:
            drive()
        except Exception:
            sys.stderr.write((site / "log").read_text(errors="replace")[-4000:])
            raise
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=120)
    return Profile([file for file in site.glob("callgrind.out-*") if file.stat().st_size])
