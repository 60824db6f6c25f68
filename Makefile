# Everything a contributor or a newcomer runs. `make` alone says what there is.

CARGO ?= cargo
RUN_DIR := $(CURDIR)/.kube-kms
KUBE_KMS := $(CURDIR)/target/debug/kube-kms

.DEFAULT_GOAL := help
.PHONY: help run build test e2e lint fmt bench soak deny presubmit clean

help: ## Say what there is
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(KUBE_KMS) $(RUN_DIR)/config.yaml $(RUN_DIR)/keyring.json ## Serve on the embedded `local` KEK under ./.kube-kms and say what to do next
	@$(KUBE_KMS) serve --config $(RUN_DIR)/config.yaml --print-setup

$(KUBE_KMS): FORCE
	@$(CARGO) build --locked

$(RUN_DIR)/config.yaml: deploy/config/quickstart.yaml
	@mkdir -p -m 0700 $(RUN_DIR)
	@sed 's|@DIR@|$(RUN_DIR)|g' $< > $@

# Made once and never overwritten: whoever loses a keyring loses everything sealed under it.
$(RUN_DIR)/keyring.json: | $(KUBE_KMS)
	@$(KUBE_KMS) keyring init --file $@

build: ## Build the release binary
	$(CARGO) build --locked --release

test: ## Run every test; installs what it needs; counts what it skips
	@CARGO="$(CARGO)" tests/run.sh

lint: ## Format check and lints, warnings denied, with and without providers
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --no-default-features --lib --bins -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --quiet
	@if command -v go > /dev/null; then cd tests/apiserver && test -z "$$(gofmt -l . | tee /dev/stderr)" && export CGO_ENABLED=0 && (cd driver && go vet . && \
	  go vet -modfile=old.mod .) && cd extension && go vet .; else echo "no Go: tests/apiserver is not linted"; fi

fmt: ## Format
	$(CARGO) fmt --all

bench: ## Benchmark the hot path without gRPC, against the floors of this machine
	$(CARGO) bench --locked --bench hot_path

# The plugin as it is released; the program that makes its life hard, without the minutes that its optimizing takes.
soak: ## Ten minutes of bad weather, kill -9 and rotations on the release binary (MINUTES=, SEED=, BINARY=debug|path)
ifeq ($(BINARY),)
	$(CARGO) build --locked --release --bin kube-kms
endif
	MINUTES=$(or $(MINUTES),10) SEED=$(SEED) BINARY=$(or $(BINARY),target/release/kube-kms) $(CARGO) bench --locked --profile dev --bench soak

deny: ## Licences, bans and sources of all dependencies (installs cargo-deny when it is not there)
	@command -v cargo-deny > /dev/null || $(CARGO) install --locked cargo-deny
	$(CARGO) deny --all-features check bans licenses sources

presubmit: lint test ## What a change must pass; ends with a clean tree
	@git diff --exit-code --stat

clean: ## Remove what was built; never the keyring under ./.kube-kms
	$(CARGO) clean

FORCE:
