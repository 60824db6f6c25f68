#!/usr/bin/env bash
# What `make test` and `make test-all` do: the tests, each in a process of its own, then the slowest, the flaky and the skipped ones.
#
#   tests/run.sh            # quick: no Go, no moto, nothing from apt
#   tests/run.sh all        # everything; with CI set, a skip that tests/skips.txt does not accept fails
#
# Which test belongs to which, and which few have a second try, is in .config/nextest.toml.
set -uo pipefail
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
nextest=0.9.151
skipped=target/tests-skipped.txt
case ${1:-quick} in
  quick) profile=default ;;
  all) profile=all ;;
  *) echo "usage: tests/run.sh [all]" >&2; exit 2 ;;
esac
report=target/nextest/$profile/junit.xml

if [ "$profile" = default ]; then
  echo "make test: about 7 minutes on two cores, and about 5 more to build the first time"
else
  echo "make test-all: about 20 minutes on two quiet cores, and about 10 more to build and fetch what it needs the first time"
fi
if ! "$cargo" nextest --version 2> /dev/null | grep -q "^cargo-nextest $nextest\b"; then
  echo "installing cargo-nextest $nextest, once: some minutes"
  "$cargo" install --locked --quiet --version "$nextest" --no-default-features --features default-no-update cargo-nextest || exit 1
fi
mkdir -p target
rm -f "$skipped" "$report"

"$cargo" nextest run --workspace --locked --profile "$profile"
status=$?
[ -s "$report" ] || exit 1

# `name seconds` of every test.
times() {
  sed -n 's/.*<testcase name="\([^"]*\)".* time="\([0-9.]*\)".*/\2 \1/p' "$report" | sort -rn
}
echo
echo "the slowest of $(times | wc -l) tests, in seconds:"
times | head -n 10 | sed 's/^/  /'

# Whoever failed at first and then passed.
flaky=$(awk '/<testcase / { split($0, part, "\""); name = part[2] } /<flakyFailure/ { print name }' "$report" | sort -u)
if [ -n "$flaky" ]; then
  echo "FLAKY, passed at the second try: $(printf '%s\n' "$flaky" | wc -l)"
  printf '%s\n' "$flaky" | sed 's/^/  /'
fi

accepted() {
  grep -v '^#' tests/skips.txt | while IFS='|' read -r begin _; do
    case $1 in "$begin"*) echo yes; break ;; esac
  done | grep -q yes
}
if [ -s "$skipped" ]; then
  echo "skipped tests: $(sort -u "$skipped" | wc -l)"
  while IFS= read -r line; do
    if accepted "${line#*: }"; then
      echo "  $line"
    else
      echo "  $line (not accepted in CI)"
      if [ -n "${CI:-}" ] && [ "$profile" = all ]; then
        status=1
        echo "error: $line: tests/skips.txt does not accept that" >&2
      fi
    fi
  done < <(sort -u "$skipped")
else
  echo "skipped tests: 0"
fi
if [ "$profile" = default ]; then
  echo "make test-all has besides: kube-apiserver's own code and a whole API server (Go), real etcd and snapshots of it, moto, promtool, drills"
  echo "that go wrong and drills on a cluster, every fault at every bad moment, twenty kills in a row, outages of minutes, a short soak."
fi
exit "$status"
