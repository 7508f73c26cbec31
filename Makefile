GO ?= go

build: ## a static binary in bin/veneer
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o bin/veneer ./cmd/veneer

.PHONY: build
