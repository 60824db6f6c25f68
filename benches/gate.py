#!/usr/bin/env python3
"""Holds the budgets of the hot path, from criterion's figures. `make bench-gate` runs it.

Guarantees: a budget counts in multiples of a floor that was measured in the same run (a bare AES-256-GCM call, a bare getrandom), so
it is the same on a fast machine and on a slow one. Of each figure the fastest sample is taken: what else runs on a machine only
adds. Fails when a figure is over its budget, or is not there. benches/README.md says what the figures mean.
"""

import json
import pathlib
import sys

CRITERION = pathlib.Path(__file__).resolve().parent.parent / "target/criterion"

SEAL, OPEN, NONCE = "floor/aes-256-gcm seal 32 B", "floor/aes-256-gcm open 32 B", "floor/getrandom 12 B"
# Nanoseconds of the floors on the machine that the budgets were written for.
REFERENCE = {SEAL: 107, OPEN: 109, NONCE: 270}

# The figure, its budget in ns on that machine, and the floors that it stands on.
BUDGETS = [
    ("cipher/seal 32 B", 500, [SEAL, NONCE]),
    ("cipher/open 32 B", 200, [OPEN]),
    ("use case/Encrypt 32 B", 1000, [SEAL, NONCE]),
    ("use case/Decrypt 32 B, write state", 800, [OPEN]),
    ("use case/Decrypt 32 B, keyring", 800, [OPEN]),
    ("use case/Status", 200, [OPEN]),
]


def fastest(name, folder):
    """Nanoseconds of one iteration in the fastest sample."""
    # Criterion makes folders of names, with what a file system may not like replaced.
    path = folder.joinpath(*(part.replace("/", "_") for part in name.split("/", 1))) / "new/sample.json"
    sample = json.loads(path.read_text())
    return min(time / count for time, count in zip(sample["times"], sample["iters"]))


def judge(figures):
    """Lines of the table, and whether every budget holds."""
    holds, lines = True, []
    for floor, reference in REFERENCE.items():
        lines.append(f"{floor:36} {figures[floor]:8.0f} ns            (reference {reference} ns)")
    for name, budget, floors in BUDGETS:
        floor = sum(figures[f] for f in floors)
        allowed = budget / sum(REFERENCE[f] for f in floors)
        ratio = figures[name] / floor
        holds &= ratio <= allowed
        verdict = "ok" if ratio <= allowed else "OVER"
        lines.append(
            f"{name:36} {figures[name]:8.0f} ns = {ratio:5.2f} x its floors, budget {allowed:5.2f} x"
            f" ({budget} ns there, {allowed * floor:.0f} ns here)  {verdict}"
        )
    return lines, holds


def main():
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else CRITERION
    names = [*REFERENCE, *(name for name, _, _ in BUDGETS)]
    try:
        figures = {name: fastest(name, folder) for name in names}
    except OSError as error:
        sys.exit(f"error: a figure is missing\ncause: {error}\nhint: make bench-gate measures all of them first")
    lines, holds = judge(figures)
    print("\n".join(lines))
    if not holds:
        sys.exit("error: the hot path is over its budget")


if __name__ == "__main__":
    main()
