# Everything a contributor or a newcomer runs. `make` alone says what there is.

CARGO ?= cargo
RUN_DIR := $(CURDIR)/.kube-kms
KUBE_KMS := $(CURDIR)/target/debug/kube-kms
KMSCTL := $(CURDIR)/target/debug/kmsctl

.DEFAULT_GOAL := help
# The name that `kube-kms manifests` takes by itself.
IMAGE ?= localhost/kube-kms:$(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)

# What is installed when it is not there, or there in another version.
CARGO_DENY := 0.20.2
CARGO_FUZZ := 0.13.2

.PHONY: help run build image test test-all e2e lint docs fmt bench bench-gate fleet counts bench-rpc bench-growth fuzz soak memory-scan deny advisories msrv drill \
  presubmit release-ready clean

help: ## Say what there is
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(KUBE_KMS) $(RUN_DIR)/config.yaml $(RUN_DIR)/keyring.json ## Serve on the embedded `local` KEK under ./.kube-kms and say what to do next
	@$(KUBE_KMS) serve --config $(RUN_DIR)/config.yaml --print-setup

$(KUBE_KMS): FORCE
	@$(CARGO) build --locked --package kube-kms --package kmsctl

$(RUN_DIR)/config.yaml: deploy/config/quickstart.yaml
	@mkdir -p -m 0700 $(RUN_DIR)
	@sed 's|@DIR@|$(RUN_DIR)|g' $< > $@

# Made once and never overwritten: whoever loses a keyring loses everything sealed under it.
$(RUN_DIR)/keyring.json: | $(KUBE_KMS)
	@$(KUBE_KMS) keyring init --file $@

# One after the other: what only kmsctl needs of a crate is not built into the daemon.
build: ## Build the release binaries
	$(CARGO) build --locked --release --package kube-kms
	$(CARGO) build --locked --release --package kmsctl

image: ## Build the container image, static and reproducible; needs docker (with buildx) or podman
	@export SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct); \
	if docker info > /dev/null 2>&1; then \
	  docker buildx build --file Containerfile --build-arg SOURCE_DATE_EPOCH --output type=docker,name=$(IMAGE),rewrite-timestamp=true .; \
	elif command -v podman > /dev/null; then \
	  podman build --file Containerfile --ignorefile Containerfile.dockerignore --timestamp $$SOURCE_DATE_EPOCH \
	    --build-arg SOURCE_DATE_EPOCH --tag $(IMAGE) .; \
	else \
	  echo "error: no container builder answers here" >&2; \
	  echo "cause: docker info fails and there is no podman" >&2; \
	  echo "hint: start the docker daemon, or run make image where there is one; the Containerfile needs nothing else" >&2; \
	  exit 1; \
	fi

test: ## Run the tests that need no Go, no moto and nothing from apt (installs cargo-nextest when it is not there)
	@CARGO="$(CARGO)" tests/run.sh

test-all: ## Run every test, as CI does; installs what it needs
	@CARGO="$(CARGO)" tests/run.sh all

e2e: $(KUBE_KMS) ## Run under the kube-apiserver and etcd that are in the folder KUBEBUILDER_ASSETS; skipped when it is not set
	@KUBE_KMS=$(KUBE_KMS) python3 tests/e2e/run.py

lint: ## Format check and lints, warnings denied, with and without providers
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked --package kube-kms --package kmsctl --no-default-features --lib --bins -- -D warnings
	@if command -v go > /dev/null; then cd tests/apiserver && test -z "$$(gofmt -l . | tee /dev/stderr)" && export CGO_ENABLED=0 && (cd driver && go vet . && \
	  go vet -modfile=old.mod .) && cd extension && go vet .; else echo "no Go: tests/apiserver is not linted"; fi
	@if command -v go > /dev/null; then cd benches/rpc/grpc-go && test -z "$$(gofmt -l . | tee /dev/stderr)" && CGO_ENABLED=0 go vet .; fi

docs: ## Build the documentation of the code, warnings denied
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --quiet

fmt: ## Format
	$(CARGO) fmt --all

bench: ## Benchmark the hot path without gRPC, against the floors of this machine
	$(CARGO) bench --locked --package kube-kms --bench hot_path

bench-gate: ## Hold the budgets of the hot path, as multiples of the floors measured in the same run (half a minute after the build)
	@rm -rf target/criterion
	$(CARGO) bench --locked --package kube-kms --bench hot_path -- --warm-up-time 0.5 --measurement-time 2 '^(floor|cipher)/.* (32|12) B$$|^use case/'
	python3 benches/gate.py

fleet: ## Simulate 10,000 clusters behind one KMS account: what docs/scale.md quotes
	@$(CARGO) bench --locked --package kube-kms --profile dev --bench fleet

counts: build ## Count instructions, allocations and writes per request; BLESS=1 records them (installs valgrind when it is not there)
	@command -v valgrind > /dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends valgrind; }
	PYTHONDONTWRITEBYTECODE=1 python3 benches/counts.py target/release/kube-kms $(if $(BLESS),--bless)

bench-rpc: ## Encrypt over the socket, beside bare tonic and grpc-go (12 minutes; QUICK=1: 2)
	$(CARGO) build --locked --release --package kube-kms
	$(CARGO) build --locked --release --package kube-kms-bench-rpc --bin bench-rpc
	@if command -v go > /dev/null; then cd benches/rpc/grpc-go && CGO_ENABLED=0 go build -o $(CURDIR)/target/bench-grpc-go .; \
	  else echo "no Go: nothing is compared with grpc-go"; rm -f target/bench-grpc-go; fi
	target/release/bench-rpc $(if $(QUICK),--quick) $$(test -x target/bench-grpc-go && echo --grpc-go target/bench-grpc-go)

bench-growth: ## Cold start, restart burst, memory and cost as requests and DEKs grow (QUICK=1: shorter; ONLY=start|requests|deks|bursts|day; SIZES=1: size by features)
	$(CARGO) build --locked --release --package kube-kms
	$(if $(filter bursts,$(or $(ONLY),bursts)),$(CARGO) build --locked --release --package kube-kms-bench-rpc --bin bench-pass-through)
	$(if $(SIZES),$(CARGO) build --locked --release --no-default-features --package kube-kms --target-dir target/minimal)
	$(CARGO) bench --locked --package kube-kms --profile dev --bench growth -- $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY)) $(if $(SIZES),--minimal target/minimal/release/kube-kms)

fuzz: ## Fuzz every decoder and the front door, SECONDS (60) each; needs a nightly compiler (installs cargo-fuzz when it is not there)
	@command -v cargo-fuzz > /dev/null || $(CARGO) install --locked --version $(CARGO_FUZZ) cargo-fuzz
	@for target in tests/fuzz/fuzz_targets/*.rs; do name=$$(basename $$target .rs); mkdir -p tests/fuzz/found/$$name; \
	  $(CARGO) +nightly fuzz run --fuzz-dir tests/fuzz $$name tests/fuzz/found/$$name tests/fuzz/corpus/$$name -- \
	  -max_total_time=$(or $(SECONDS),60) || exit 1; done
# The plugin as it is released; the program that makes its life hard, without the minutes that its optimizing takes.
soak: ## Ten minutes of bad weather, kill -9 and rotations on the release binary (MINUTES=, SEED=, BINARY=debug|path)
ifeq ($(BINARY),)
	$(CARGO) build --locked --release --package kube-kms
endif
	MINUTES=$(or $(MINUTES),10) SEED=$(SEED) BINARY=$(if $(filter-out debug,$(BINARY)),$(abspath $(BINARY)),$(or $(BINARY),$(CURDIR)/target/release/kube-kms)) $(CARGO) bench --locked --package kube-kms --profile dev --bench soak

memory-scan: ## Read the memory of the live release binary for DEKs after a revocation (BINARY=path for another build; needs root)
ifeq ($(BINARY),)
	$(CARGO) build --locked --release --package kube-kms
endif
	KUBE_KMS_BINARY=$(abspath $(or $(BINARY),target/release/kube-kms)) $(CARGO) test --locked --package kube-kms --test suite -- fault::wiped:: --nocapture

deny: ## Licences, bans and sources of all dependencies (installs cargo-deny when it is not there)
	@command -v cargo-deny > /dev/null || $(CARGO) install --locked --version $(CARGO_DENY) cargo-deny
	$(CARGO) deny --all-features check bans licenses sources

advisories: ## Known vulnerabilities in dependencies; fetches the database
	@command -v cargo-deny > /dev/null || $(CARGO) install --locked --version $(CARGO_DENY) cargo-deny
	$(CARGO) deny --all-features check advisories

msrv: ## Build with the oldest compiler that is promised (rustup installs it)
	@version=$$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml | head -n 1); set -x; \
	rustup toolchain install --profile minimal "$$version" && \
	CARGO_TARGET_DIR=target/msrv rustup run "$$version" cargo check --locked --workspace --all-targets

drill: $(KUBE_KMS) ## Rehearse a key rotation in a sandbox, on the `local` KEK, and test every claim of it (about a minute)
	@$(KMSCTL) drill rehearse

release-ready: ## Whether this tree may be released: no placeholder; with TAG= also version, changelog and signature
	@.ci/release-ready $(TAG)

presubmit: lint docs test ## What a change must pass; ends with a clean tree
	@git diff --exit-code --stat

clean: ## Remove what was built; never the keyring under ./.kube-kms
	$(CARGO) clean

FORCE:
