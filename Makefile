# The two that matter: `make run` and `make test`. Both install what is missing, by themselves.

CONFIG ?=
ARGS ?=

.PHONY: run build test check check-edge unit clients bench bench-lists soak deb image clean

run: build
	@exec target/release/tollkeeper $(if $(CONFIG),--config $(CONFIG)) $(ARGS)

build:
	@scripts/setup.sh build
	@cargo build --release --locked

# Everything: formatting, lints, unit and integration tests, real SDKs against a real gateway.
test:
	@scripts/test.sh

# The quick part of it, for while you write.
check:
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets --locked -- -D warnings
	@cargo test --workspace --lib --locked

clients: 
	@scripts/setup.sh test
	@cargo build --locked
	@tests/clients/run.sh

# The edge from outside: testssl, sslyze, h2load, slowhttptest, the rate limit, schemathesis, reloads and upgrades under
# load; eight minutes and the builds. ARGS=short|changes|tls|load|rate|heads|slow|schema looks at a part.
# PROFILE=dist looks at what images hold. A whole run writes tests/edge/results.md and README.md.
check-edge: PROFILE ?= release
check-edge:
	@scripts/setup.sh edge
	@cargo build --profile $(PROFILE) --locked --bin tollkeeper
	@TOLLKEEPER_BIN=$${CARGO_TARGET_DIR:-target}/$(PROFILE)/tollkeeper tests/edge/run.sh $(ARGS)

# Tollkeeper beside a bare Pingora proxy, in one run.
bench:
	@scripts/setup.sh build
	@scripts/bench.sh

# How quickly lists and a year's usage of a million calls are told. ARGS='sqlite-file' or 'postgres://…', empty ones.
bench-lists:
	@scripts/setup.sh build
	@cargo run --locked --profile dist --example ledger_rows -- $(ARGS)

# Everything around the gateway breaks, and the gateway too; five minutes. ARGS=calls|budgets|delete|import|short.
soak:
	@scripts/soak.sh $(ARGS)

# A Debian package in target/package.
deb:
	@scripts/setup.sh build
	@scripts/deb.sh

# A container image, tollkeeper:latest.
image:
	docker build --build-arg REVISION=$$(git rev-parse HEAD) -t tollkeeper .

clean:
	cargo clean
