# The verbs of this project. What they do is in scripts/, for people and CI alike.
#
# The sources of a release have what `make`, `make install` and `make installcheck` need, and no more; packagers
# call these in directories of their own.

# `. scripts/env` is bash.
SHELL := /bin/bash
SOURCES := $(dir $(abspath $(lastword $(MAKEFILE_LIST))))
# make takes a name with spaces for several: `make clean` would remove what the first of them is.
ifneq ($(words $(MAKEFILE_LIST)) $(words $(SOURCES)),1 1)
$(error counterx cannot be built where a directory's name has spaces in it: $(CURDIR))
endif
IS_RELEASE := $(wildcard $(SOURCES)vendor)
.DEFAULT_GOAL := $(if $(IS_RELEASE),all,help)
.NOTPARALLEL:

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Install what is needed: Debian packages, cargo-pgrx, a private copy of PostgreSQL
	@scripts/setup

.PHONY: build
build: setup ## Build the extension and install it into the private copy of PostgreSQL
	@scripts/build

.PHONY: all install installcheck
all: $(if $(IS_RELEASE),,setup) ## Build the extension for a real server (PG_CONFIG=...)
	@$(SOURCES)scripts/stage
install: $(if $(IS_RELEASE),,setup) ## Install the extension into a real server (PG_CONFIG=...; sudo where needed)
	@$(SOURCES)scripts/install
installcheck: ## Regression SQL against a running server (PG_CONFIG=..., PGHOST=..., PGPORT=..., PGUSER=...)
	@$(SOURCES)scripts/installcheck regress

.PHONY: dist deb release
dist: setup ## Pack what a release consists of: sources, binaries for each PostgreSQL
	@scripts/dist
deb: setup ## Build Debian packages, and check them with lintian
	@scripts/deb
release: setup ## Check that all is ready for a release, pack it and tag it
	@scripts/release

.PHONY: demo demo-psql demo-stop
demo: setup ## Count 336,776 real events through 8 connections, and check the result
	@scripts/demo run
demo-psql: ## Open psql on the demo's cluster
	@scripts/demo psql
demo-stop: ## Stop and remove the demo's cluster
	@scripts/demo stop

.PHONY: live
live: build ## Serve examples/live, a page that follows counters, on a throw-away cluster: ends with ^C
	@scripts/live

.PHONY: test test-unit test-pg test-regress test-isolation test-cluster test-clients test-torture
test: setup ## Run everything below, and lint
	@scripts/test
test-unit: setup ## Tests of the parts that need no extension
	@scripts/test unit
test-pg: setup ## Tests that run inside a server
	@scripts/test pg
test-regress: setup ## Regression SQL, with pg_regress
	@scripts/test regress
test-isolation: setup ## Races, with pg_isolation_regress
	@scripts/test isolation
test-cluster: setup ## Tests that own whole clusters: crash, standby, dump
	@scripts/test cluster
test-clients: setup ## Tests with real clients and frameworks, directly and through PgBouncer
	@scripts/test clients
test-torture: setup ## The short form of the torture harness
	@scripts/test torture

.PHONY: test-packages
test-packages: setup ## Build, install, use and remove the Debian package and the tarballs, on this machine
	@scripts/test packages

.PHONY: test-versions
test-versions: setup ## The tests with PostgreSQL 16, 17 and 18, and the ways from one version to another (SHORT=yes)
	@scripts/test-versions $(if $(SHORT),--short)

.PHONY: torture
torture: setup ## The torture harness (SECONDS=60 SEED=1 PARTS=histories,crashes,... SHORT=yes HISTORY=seed)
	@scripts/torture $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) \
		$(if $(PARTS),--parts $(PARTS)) $(if $(SHORT),--short) $(if $(HISTORY),--history $(HISTORY))

.PHONY: lint
lint: setup ## Formatting and clippy
	@scripts/lint

.PHONY: check-versions
check-versions: setup ## Compile for PostgreSQL 16, 17 and 18 as far as their headers are here
	@scripts/check-versions

.PHONY: bench bench-publish
bench: setup ## Compare with what people use today (ARGS="--quick", "--sections hot,read", ...)
	@scripts/bench $(ARGS)
bench-publish: ## Copy the report to docs/bench, and its figures into the documents
	@. scripts/env && cargo run --quiet --release --package counterx-bench -- --publish

.PHONY: clean
clean: ## Remove all that was built or left running here
	@$(if $(IS_RELEASE),rm -rf $(SOURCES)target,scripts/clean)
