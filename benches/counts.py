#!/usr/bin/env python3
"""Counts what one request costs in the real release binary: instructions, allocations, writes. `make counts` runs it.

Guarantees: a figure is the difference between two runs under callgrind of which one serves 2,048 calls more, so what a start costs
cancels out; counts do not depend on how busy the machine is. Fails when a count is over its target, or over
benches/records/counts.json by more than 10 %. benches/README.md says what the counts mean.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import callgrind
import kms_wire

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECORD = ROOT / "benches/records/counts.json"
CALLS, WARM_UP, DEPTH = 2048, 256, 64
UID = "8b4c3a0e-6f4f-4c89-9b53-5a1f0f5f1234"

# What must never be passed, whatever the record says; writes are those of the thread that serves, to the socket.
WRITES = {"writes": 1.01, "writes at 64": 0.1}
ALONE = {"writes": 1.01, "writes at 64": 1.02}
TARGETS = {
    # One in flight, half of it is memory that is wiped or filled so that no seed stays in a connection's buffers
    # (ARCHITECTURE.md, decision 40); `rep stosb` counts one for each byte here and costs a fraction of that.
    "Encrypt": {"instructions": 70_000, "instructions at 64": 42_000, "allocations": 26, **WRITES},
    # An answer with a seed is written by itself, for the same reason.
    "Decrypt": ALONE,
    "Decrypt, keyring": ALONE,
    "Status": WRITES,
}
# How much a count may grow: a share of the record, and what small ones may vary.
GROWTH = 1.10
SLACK = {"instructions": 0, "instructions at 64": 0, "allocations": 0.5, "writes": 0.01, "writes at 64": 0.02}

ALLOCATING = {"malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc"}
WRITING = {"write", "writev", "send", "sendto", "sendmsg", "__libc_send", "__libc_write", "__write", "__send", "__libc_sendto"}

# Within the process: what the function and everything below it costs, for each call of it. `answer` is a whole request
# without HTTP/2: message in, message out, metrics and log line.
ANSWER = "kube_kms_grpc::server::KmsServer::answer::{{closure}}"
USE_CASES = {
    "seal": ("Encrypt", "kube_kms_core::dek::Dek::seal"),
    "open": ("Decrypt", "kube_kms_core::dek::Dek::open"),
    "Encrypt": ("Encrypt", "kube_kms_service::peer::Session::encrypt"),
    "Status": ("Status", "kube_kms_service::peer::Session::status"),
    "log line": ("Encrypt", "kube_kms_grpc::request_log::RequestLog::served"),
    **{f"answer to {rpc}": (rpc, ANSWER) for rpc in TARGETS},
}


def machine():
    """What the counts depend on besides the code: which variants of functions the C library and the ciphers choose."""
    flags = set(next(line for line in open("/proc/cpuinfo") if line.startswith("flags")).split())
    chosen = [flag for flag in ("aes", "avx2", "bmi2", "erms", "pclmulqdq") if flag in flags]
    return " ".join([os.uname().machine, *chosen])


def new_site(binary, folder):
    """A node with the embedded KEK, and a value that another process sealed, so under a DEK that has to be unwrapped."""
    socket = folder / "kms.sock"
    subprocess.run([binary, "keyring", "init", "--file", folder / "keyring.json"], check=True, capture_output=True)
    # Log level and format are the defaults, and metrics are on.
    (folder / "config.yaml").write_text(
        f"listen: {{socket: {socket}}}\nkek: {{local: {{keyring: {folder}/keyring.json}}}}\n"
        f"stateDir: {folder}/state\nhttp: {{listen: '127.0.0.1:0'}}\n"
    )
    with subprocess.Popen([binary, "serve", "--config", folder / "config.yaml"], stderr=subprocess.DEVNULL) as other:
        sealed = kms_wire.dial(str(socket)).batch([kms_wire.encrypt(UID)])[0]
        other.terminate()
    return sealed


def run(binary, folder, rpc, foreign, calls, depth):
    """The counts of a process that serves this many calls after a warm-up."""

    def drive():
        connection = kms_wire.dial(str(folder / "kms.sock"))
        own = connection.batch([kms_wire.encrypt(UID)])[0]
        call = {
            "Encrypt": kms_wire.encrypt(UID),
            "Decrypt": kms_wire.decrypt(UID, own),
            "Decrypt, keyring": kms_wire.decrypt(UID, foreign),
            "Status": ("Status", b""),
        }[rpc]
        for _ in range((WARM_UP + calls) // depth):
            connection.batch([call] * depth)

    return callgrind.serve(binary, folder, drive)


def measure(binary, folder):
    """Every figure for one call, and where the instructions of one go, by part of the program."""
    foreign = new_site(binary, folder)
    figures, within, parts = {}, {}, {}
    for rpc in TARGETS:
        (few, many), (few_deep, many_deep) = (
            [run(binary, folder, rpc, foreign, calls, depth) for calls in (0, CALLS)] for depth in (1, DEPTH)
        )

        def each(of, before=few, after=many):
            return (of(after) - of(before)) / CALLS

        figures[rpc] = {
            "instructions": round(each(lambda p: p.instructions)),
            "instructions at 64": round(each(lambda p: p.instructions, few_deep, many_deep)),
            "allocations": round(each(lambda p: p.calls_of(ALLOCATING)), 1),
            "writes": round(each(lambda p: p.calls_of(WRITING, main_only=True)), 2),
            "writes at 64": round(each(lambda p: p.calls_of(WRITING, main_only=True), few_deep, many_deep), 2),
        }
        for name, (of, function) in USE_CASES.items():
            cost, calls = (after - before for before, after in zip(few.within(function), many.within(function)))
            if of == rpc and calls > 0:
                within[name] = round(cost / calls)
        before, after = few.by_part(), many.by_part()
        parts[rpc] = {part: round((after[part] - before.get(part, 0)) / CALLS) for part in after}
        parts[rpc]["functions"] = sorted(
            ((round((n - few.own.get(f, 0)) / CALLS), (many.calls.get(f, 0) - few.calls.get(f, 0)) / CALLS, f)
             for f, n in many.own.items()),
            reverse=True,
        )
    return figures, within, parts


def problems(figures, within, record):
    """What is over its target or has grown, one sentence each."""
    found = []
    for rpc, counts in figures.items():
        for name, limit in TARGETS[rpc].items():
            if counts[name] > limit:
                found.append(f"{rpc}: {counts[name]} {name}, over the target of {limit}")
    before = record.get(machine())
    if before is None:
        print(f"no record for this kind of machine ({machine()}): only the targets are checked")
        return found
    for rpc, counts in figures.items():
        for name, now in counts.items():
            was = before["rpc"].get(rpc, {}).get(name, 0)
            if now > was * GROWTH + SLACK[name]:
                found.append(f"{rpc}: {now} {name}, and the record has {was}")
    for name, was in before["use case"].items():
        if name not in within:
            found.append(f"use case {name}: its function is not in the profile any more (inlined or renamed)")
        elif within[name] > was * GROWTH:
            found.append(f"use case {name}: {within[name]} instructions, and the record has {was}")
    return found


def show(figures, within, parts, deep):
    names = list(next(iter(figures.values())))
    print(f"{'RPC':18}" + "".join(f"{name:>20}" for name in names))
    for rpc, counts in figures.items():
        print(f"{rpc:18}" + "".join(f"{counts[name]:>20}" for name in names))
    print("\nuse cases in the process, instructions")
    for name, cost in within.items():
        print(f"  {name:28}{cost:>8}")
    for rpc in figures if deep else ["Encrypt"]:
        print(f"\nwhere the instructions of {rpc} go")
        for part, cost in sorted(parts[rpc].items(), key=lambda item: -item[1] if item[0] != "functions" else 0):
            if part != "functions" and cost:
                print(f"  {part:28}{cost:>8}")
        for cost, calls, function in parts[rpc]["functions"][:60] if deep else []:
            print(f"  {cost:>8} {calls:8.2f}  {function}")


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("binary", type=pathlib.Path)
    options.add_argument("--bless", action="store_true", help="write the record anew")
    options.add_argument("--functions", action="store_true", help="also show where every RPC's instructions go, by function")
    options = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures, within, parts = measure(options.binary.resolve(), pathlib.Path(folder))
    show(figures, within, parts, options.functions)
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if options.bless:
        record[machine()] = {"rpc": figures, "use case": within}
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
        print(f"\n{RECORD.relative_to(ROOT)} is written")
    found = problems(figures, within, record)
    for problem in found:
        print(f"error: {problem}", file=sys.stderr)
    if found:
        print("hint: when it has to cost that much, `make counts BLESS=1` records it, in the same commit", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
