# Every target works in a fresh clone; `make help` lists them.
GO        ?= go
GOFLAGS   ?= -trimpath
PYTHON    ?= python3
BINARIES  := hyper2kvm hyper2kvmd h2kvmctl
NFPM      := github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.0
LINTER    := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
FUZZTIME  ?= 20s
TOOLS     := $(CURDIR)/build/tools

.DEFAULT_GOAL := help
.PHONY: help build test race lint python bench load fuzz e2e lab demo packages clean

help: ## show this list
	@awk -F':.*## ' '/^[a-z0-9]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build the three binaries into build/
	@mkdir -p build
	$(GO) build $(GOFLAGS) -o build/ $(addprefix ./cmd/,$(BINARIES))

test: build ## run all tests (needs qemu-img, qemu-system-x86_64, groff and python3)
	$(GO) build $(GOFLAGS) -o build/ ./internal/lab/cmd/h2kvm-lab
	$(GO) test ./...
	cd python && H2KVM_BUILD="$(CURDIR)/build" PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m unittest discover -s tests -t .

# -short makes the longest tests smaller, which `make test` runs whole: more
# of the same bytes shows no other race.
race: ## run all tests under the race detector
	$(GO) test -race -short ./...

lint: $(TOOLS)/golangci-lint ## vet, format and lint
	$(TOOLS)/golangci-lint run ./...

$(TOOLS)/golangci-lint:
	@mkdir -p $(TOOLS)
	GOBIN=$(TOOLS) $(GO) install $(LINTER)

# The interpreter is Debian's, whose packages bring setuptools and wheel: that
# is how the package is installed where no package index can be reached.
python: ## install the Python package into a new environment, check its types (needs python3-setuptools, python3-wheel, python3-venv, mypy)
	rm -rf build/venv
	/usr/bin/python3 -m venv --system-site-packages build/venv
	build/venv/bin/pip install --quiet --no-index --no-build-isolation ./python
	rm -rf python/build python/hyper2kvm.egg-info
	mypy --cache-dir build/mypy --strict --python-executable build/venv/bin/python -p hyper2kvm
	cd build && venv/bin/python -c 'from hyper2kvm.vmware import transports; print("installed:", transports.create_h2kvmctl_runner.__module__)'

bench: build ## measure speed and memory against plain downloads
	$(GO) run ./internal/bench

load: build ## measure a daemon that has much to do
	$(GO) run ./internal/bench/load

fuzz: ## run every fuzz test for FUZZTIME (default 20s) each
	@set -e; for pkg in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "== $$pkg $$f"; \
	    $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime=10x $$pkg; \
	  done; \
	done

e2e: build ## drive the built binaries against the lab as a user would
	$(GO) test -count=1 -parallel 6 -tags e2e ./e2e/...

lab: ## serve a vCenter to try things on; prints the environment to use
	$(GO) run ./internal/lab/cmd/h2kvm-lab

demo: build ## export a batch from the lab through the daemon and prove it
	./demo/run

packages: $(TOOLS)/nfpm ## build the deb and rpm packages into build/packages/
	GO="$(GO)" packaging/build $(TOOLS)/nfpm

$(TOOLS)/nfpm:
	@mkdir -p $(TOOLS)
	GOBIN=$(TOOLS) $(GO) install $(NFPM)

clean: ## remove what the other targets made
	rm -rf build/*
