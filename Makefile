# What people type. Each target says what it does in `make help`; the recipes are short enough to
# type by hand. Needed: Rust (rustup's), a C++ compiler, and Python 3 with pip.

CARGO ?= cargo
PYTHON ?= python3
CARGO_DENY_VERSION := 0.20.2
CARGO_DENY := target/tools/cargo-deny-$(CARGO_DENY_VERSION)/bin/cargo-deny
GOLDENS := $(wildcard tests/golden*/*.py)

# torch-sys would follow these instead of .libtorch, where this Makefile lays libtorch out.
unexport LIBTORCH_USE_PYTORCH LIBTORCH_INCLUDE LIBTORCH_LIB LIBTORCH_STATIC LIBTORCH_CXX11_ABI

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint k8s-check monitoring-check page-check image-check bench soak bench-compare gpu-check \
	export-check goldens clean-demo

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' Makefile

setup: ## lay libtorch, NCCL and CUDA's headers out at .libtorch (once; GAN_CUDA=1 for GPUs)
	@deploy/libtorch.sh

demo: setup clean-demo ## train on handwritten digits with two workers, and say where the pictures are
	$(CARGO) build --release --locked
	target/release/gan-coord run deploy/jobs/mnist.toml --workers 2
	@echo
	@echo "The pictures, from the first to the last step:"
	@find runs/mnist -name '*.png' | sort

clean-demo: ## remove the demo's run directory
	@if [ -e runs/mnist ]; then echo "removing the previous run, runs/mnist"; rm -rf runs/mnist; fi

# Everything is built in the dev profile, and `--all-targets` has the benches (each run once) share
# that build. It leaves out the documentation's examples, hence the last line; and it makes programs
# of all examples, but the tests load the stand-in for NCCL as the library that it is.
test: setup ## all that CI checks: format, lints, documentation, tests
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --all-targets --no-default-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps
	$(CARGO) build --locked --example nccl_stand_in
	$(CARGO) test --locked --all-targets
	$(CARGO) test --locked --doc
	$(PYTHON) deploy/kubernetes/check.py
	$(PYTHON) deploy/monitoring/check.py
	$(PYTHON) deploy/page/check.py

k8s-check: setup ## render and check deploy/kubernetes and the Dockerfile, without a cluster
	$(CARGO) build --locked --bins
	$(PYTHON) deploy/kubernetes/check.py

monitoring-check: setup ## check dashboard, alerts and metrics, with a real Prometheus and a short training
	$(CARGO) build --locked --bins
	$(PYTHON) deploy/monitoring/check.py

page-check: setup ## look at a job's page with a real browser, and at its event files with TensorBoard
	$(CARGO) build --locked --bins
	$(PYTHON) deploy/page/check.py $(OPTIONS)

image-check: setup ## build both images without an engine, and train in them (root, buildah, debootstrap)
	$(CARGO) build --release --locked
	$(PYTHON) deploy/image_check.py $(OPTIONS)

# Advisories are left out: their database lies on a host that a build machine need not reach.
lint: setup $(CARGO_DENY) ## format, lints, licences and sources of the dependencies
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --all-targets --no-default-features -- -D warnings
	$(CARGO_DENY) --locked check --hide-inclusion-graph licenses bans sources

$(CARGO_DENY):
	$(CARGO) install --locked --quiet cargo-deny --version $(CARGO_DENY_VERSION) \
		--root target/tools/cargo-deny-$(CARGO_DENY_VERSION)

bench: setup ## the micro-benchmarks
	$(CARGO) bench --locked

soak: setup ## a job under random faults for MINUTES (default 10), and whether a bit differs
	$(CARGO) bench --locked --bench soak -- --minutes $(or $(MINUTES),10)

bench-compare: setup ## Ganglion against PyTorch on this machine (OPTIONS="--pairs 9 --cases tuned")
	$(CARGO) build --release --locked
	"$$(benches/compare/python.sh)" benches/compare/compare.py $(OPTIONS)

gpu-check: export GAN_CUDA = 1
gpu-check: setup ## all that needs a GPU, row by row, on this machine (OPTIONS="--rows devices,nccl")
	$(CARGO) build --release --locked
	python=$$(benches/compare/python.sh) && PYTHON=$$python deploy/gpu-check.sh $(OPTIONS)

export-check: setup ## load exported generators in PyTorch, TorchScript and onnxruntime, and compare
	$(CARGO) build --release --locked
	python=$$(tests/exports/python.sh) && "$$python" tests/exports/check.py

goldens: ## compute the golden files that tests compare with, anew, with PyTorch
	@test -n "$(GOLDENS)" || { echo "no script makes goldens: tests/golden*/*.py" >&2; exit 1; }
	python=$$(benches/compare/python.sh) && for script in $(GOLDENS); do \
		echo "$$script" && "$$python" "$$script" || exit 1; done
