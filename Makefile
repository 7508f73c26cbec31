# What each target does is in the comment after it: `make help` prints them. GO may name another go command.
export GO ?= go
PREFIX ?= /usr/local
# mount(8) and umount(8) look for helpers here and nowhere else.
SBINDIR ?= /sbin

# The tag, or the commit where there is none, and "-dirty" with uncommitted changes; "devel" outside a git checkout.
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)

# Containers and mounts need root: whoever is not is asked for a password, after the build. PATH is kept, so that go is found.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo env "PATH=$$PATH")

.DEFAULT_GOAL := build

help: ## print this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

# CGO_ENABLED=0  no C library: one static binary that runs on any distribution, and may re-execute itself anywhere
# -trimpath      no paths of the machine that builds it in the binary
# -s -w          no symbol table and no DWARF: a third smaller; panics keep their function names and lines
# -X             what `veneer version` prints
# -buildvcs      off: go would ask git the same again, and fail where the checkout belongs to somebody else
build: ## a static binary in bin/veneer
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)' -o bin/veneer ./cmd/veneer

# The helpers are veneer itself by other names: mount -t fuse.veneer, mount -t veneer, and the umount of both.
install: build ## bin/veneer to $(PREFIX)/bin, and the helpers of mount(8) and umount(8) to /sbin
	install -D -m 755 bin/veneer $(DESTDIR)$(PREFIX)/bin/veneer
	install -d $(DESTDIR)$(SBINDIR)
	for name in mount.fuse.veneer mount.veneer umount.fuse.veneer umount.veneer; do \
		ln -sf $(PREFIX)/bin/veneer $(DESTDIR)$(SBINDIR)/$$name || exit 1; done

demo: build ## run an image of 300 MB over a slow link, leaving nothing behind
	$(SUDO) bin/veneer demo

# gofmt -l       lists what is not formatted; any line is a failure
# staticcheck    at the version that go.mod names, built by go itself
lint: ## gofmt, go vet, staticcheck
	@files=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$files" ]; then echo "gofmt these files:" >&2; echo "$$files" >&2; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

# The stages, each with its reason, are in .ci/test.
test: ## all tests; .ci/deps installs what they need from Debian when it is missing
	$(SUDO) .ci/deps
	$(SUDO) .ci/test

bench: build ## the comparisons of bench/; writes bench/report.md
	$(SUDO) .ci/deps
	$(SUDO) $(if $(CORPUS_DIR),env CORPUS_DIR=$(CORPUS_DIR)) $(GO) run ./bench -o bench/report.md

bench-fs: build ## file operations beside overlayfs, fuse-overlayfs and the host; writes bench/fs.md
	$(SUDO) $(GO) run ./bench -o bench/fs.md fs

# TORTURE  flags and workloads: `make torture TORTURE='-time 10m -io cached killed'`; go run ./bench/torture -h lists them
torture: build ## system calls, databases and stressors on mounts whose servers are killed, a minute each
	$(SUDO) .ci/deps
	$(SUDO) $(GO) run ./bench/torture $(TORTURE)

clean: ## remove bin/
	rm -rf bin

.PHONY: help build install demo lint test bench bench-fs torture clean
