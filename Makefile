# Two commands matter: `make demo` and `make test`. Both install what they lack on Debian or Ubuntu.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo crowd test test-browser test-service deb soak test-arm goldens-drawing lint build quality run-tests run-browser browser packages-demo packages-test packages-arm packages-quality packages-service cargo-deb install model

export CARGO_INCREMENTAL ?= 0
# rustup puts cargo here; a shell that was open before knows nothing of it.
export PATH := $(HOME)/.cargo/bin:$(PATH)
PREFIX ?= /usr/local
DESTDIR ?=
TARGET := $(or $(CARGO_TARGET_DIR),target)
PALISADE := $(TARGET)/release/palisade

# A C compiler and what the crates link to; the decoders and encoders; the broker of the demo.
BUILD_PACKAGES := build-essential pkg-config libssl-dev libgstreamer1.0-dev libgstreamer-plugins-base1.0-dev libgstrtspserver-1.0-dev
RUN_PACKAGES := glib-networking gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly gstreamer1.0-libav \
	mosquitto mosquitto-clients
# Independent witnesses: ffprobe reads our files, openssl makes certificates, systemd-analyze reads the unit, paho reads our messages,
# Prometheus's client our counts.
TEST_PACKAGES := ffmpeg openssl systemd procps python3 python3-paho-mqtt python3-prometheus-client
# A Debian of its own that boots, for the service; and who judges packages.
SERVICE_PACKAGES := debootstrap systemd-container dbus ffmpeg lintian python3
CARGO_DEB := 3.6.0
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
MAINTAINER = $(shell sed -n 's/^maintainer = "\(.*\)"/\1/p' Cargo.toml)
DEB = target/debian/palisade_$(VERSION)-1_$(shell dpkg --print-architecture 2>/dev/null).deb
# Another processor's compiler, libraries and emulator. Debian's Rust, for its library is a package for every processor.
ARM_PACKAGES := rustc-web libstd-rust-web-dev:arm64 gcc-aarch64-linux-gnu libc6-dev-arm64-cross libssl-dev:arm64 qemu-user-static pkg-config build-essential
ARM := aarch64-unknown-linux-gnu
ARM_RUSTC ?= /usr/bin/rustc
# One has dot products of bytes, the other is the plainest there is.
ARM_CPUS ?= cortex-a76 cortex-a53
# Draws the scenes of `make quality`: Debian's Python with these, or another that has numpy and Pillow.
QUALITY_PACKAGES := python3-numpy python3-pil fonts-noto-color-emoji
PYTHON ?= /usr/bin/python3
# Drives a real browser through the console's pages: Debian's Chromium, and playwright in a folder of its own.
BROWSER_PACKAGES := chromium python3-venv
BROWSER := $(abspath $(TARGET))/browser

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: packages-demo build ## the daemon on the sample clip, detections as they arrive, a summary
	$(PALISADE) demo

# All kinds of tests run, also where one fails; on one build of everything.
test: packages-test lint ## everything: formatting, lints, unit, model, end-to-end, pages in a browser, the installed service
	cargo test --release --locked --no-run
	@status=0; \
	$(MAKE) --no-print-directory run-browser || status=$$?; \
	$(MAKE) --no-print-directory test-service || status=$$?; \
	$(MAKE) --no-print-directory run-tests || status=$$?; \
	exit $$status

test-browser: packages-test browser build ## the console's pages in Chromium, and its API against its description; SCREENSHOTS=folder keeps pictures of them
	PALISADE=$(PALISADE) $(BROWSER)/bin/python tests/browser/test_console.py
	PALISADE=$(PALISADE) $(BROWSER)/bin/python tests/browser/fuzz.py

crowd: packages-test browser build ## what 200 viewers of the console cost the cameras, on a machine that does nothing else
	PALISADE=$(PALISADE) $(BROWSER)/bin/python tests/browser/crowd.py

test-service: packages-service ## the package, installed with apt on a Debian of its own that boots, as a service (as root)
	@if command -v dpkg-deb >/dev/null && command -v lintian >/dev/null && $(MAKE) --no-print-directory cargo-deb; then \
		$(MAKE) --no-print-directory deb && lintian --fail-on error $(DEB) && python3 -B tests/service/service.py $(DEB); \
	else echo "service: SKIPPED, the installed service was not tested: Debian's tools for packages, or cargo-deb, are not here"; fi

# Built as the tests build it, so that what was tested is what is packed, and nothing is built twice. Pages, completions and
# licences are made beside it.
deb: cargo-deb packages-demo ## the Debian package, in target/debian
	cargo build --release --locked --bin palisade --example generate
	rm -rf target/deb && mkdir -p target/deb
	$(TARGET)/release/examples/generate target/deb
	python3 systemd/debian/crates.py > target/deb/crates.txt
	printf 'palisade (%s-1) unstable; urgency=medium\n\n  * What is new is in CHANGELOG.md.\n\n -- %s  %s\n' \
		'$(VERSION)' '$(MAINTAINER)' "$$(date -R)" > target/deb/changelog
	cargo deb --no-build --locked --strip --output $(DEB)

cargo-deb:
	@cargo deb --version 2>/dev/null | grep -qx $(CARGO_DEB) || cargo install cargo-deb --locked --version $(CARGO_DEB)

soak: packages-test ## what happens to cameras and broker, each fault at its full length and with the waits of service
	PALISADE_SOAK=1 cargo test --release --locked --lib --test main -- faults:: mqtt::away mqtt::backlog mqtt::disk mqtt::durable mqtt::store --nocapture --test-threads 2

# Their GStreamer packages cannot be installed beside this processor's: tests/arm is the model without the rest.
test-arm: packages-arm ## the model's tests on emulated 64-bit ARM processors, for its matrix products with NEON
	cp Cargo.lock tests/arm/Cargo.lock
	for cpu in $(ARM_CPUS); do \
		echo "$$cpu:"; \
		RUSTC=$(ARM_RUSTC) CARGO_TARGET_DIR=$(abspath $(TARGET))/arm \
		CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
		CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -cpu $$cpu" \
		PKG_CONFIG_ALLOW_CROSS=1 PKG_CONFIG_LIBDIR=/usr/lib/aarch64-linux-gnu/pkgconfig \
		cargo test --release --target $(ARM) --manifest-path tests/arm/Cargo.toml; \
	done

build: ## the release binary
	cargo build --release --locked

quality: packages-quality build ## precision and recall of the demo model for every weight type, on 300 drawn scenes
	$(PYTHON) samples/recipe/quality.py --palisade $(PALISADE)

goldens-drawing: packages-test ## the pictures in tests/goldens/drawing anew, to be looked at before they are committed
	PALISADE_WRITE_GOLDENS=1 cargo test --release --locked --lib -- golden_

lint: ## rustfmt and clippy, no warning left
	@cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 || rustup component add rustfmt clippy
	cargo fmt --check
	cargo clippy --release --locked --all-targets -- -D warnings

# One closing line with counts, whichever runner is there, and also when a test fails.
run-tests:
	@if command -v cargo-nextest >/dev/null; then cargo nextest run --config-file tests/nextest.toml --release --locked --no-fail-fast; else \
		mkdir -p $(TARGET); status=0; \
		cargo test --release --locked --no-fail-fast 2>&1 | tee $(TARGET)/test.log || status=$$?; \
		awk '/^test result:/ { passed += $$4; failed += $$6 } END { print passed + 0 " passed, " failed + 0 " failed" }' $(TARGET)/test.log; \
		exit $$status; \
	fi

# What cannot be installed is said, and never passed over in silence.
run-browser:
	@if $(MAKE) --no-print-directory browser; then \
		export PALISADE=$(PALISADE); status=0; \
		$(BROWSER)/bin/python tests/browser/test_console.py || status=$$?; \
		$(BROWSER)/bin/python tests/browser/fuzz.py || status=$$?; \
		exit $$status; \
	else \
		echo "================================================================================" >&2; \
		echo "SKIPPED: the tests of the console's pages. Chromium or playwright could not be had;" >&2; \
		echo "what is missing stands above. On Debian, as root and with a network, they run." >&2; \
		echo "================================================================================" >&2; \
	fi

browser:
	@$(call install_missing,$(BROWSER_PACKAGES))
	@command -v chromium chromium-browser google-chrome >/dev/null || { echo "there is no Chromium" >&2; exit 1; }
	@if ! cmp -s tests/browser/requirements.txt $(BROWSER)/requirements.txt; then \
		rm -rf $(BROWSER); \
		$(PYTHON) -m venv $(BROWSER); \
		$(BROWSER)/bin/pip install --quiet --disable-pip-version-check -r tests/browser/requirements.txt; \
		cp tests/browser/requirements.txt $(BROWSER)/requirements.txt; \
	fi

packages-demo:
	@$(call install_missing,$(BUILD_PACKAGES) $(RUN_PACKAGES))

packages-test:
	@$(call install_missing,$(BUILD_PACKAGES) $(RUN_PACKAGES) $(TEST_PACKAGES))

packages-service:
	@$(call install_missing,$(BUILD_PACKAGES) $(RUN_PACKAGES) $(SERVICE_PACKAGES))

packages-arm:
	@if command -v dpkg >/dev/null && ! dpkg --print-foreign-architectures | grep -qx arm64; then \
		sudo=""; [ "$$(id -u)" = 0 ] || sudo=sudo; \
		$$sudo dpkg --add-architecture arm64; \
	fi
	@$(call install_missing,$(ARM_PACKAGES))

packages-quality:
	@$(call install_missing,$(BUILD_PACKAGES) $(RUN_PACKAGES) $(QUALITY_PACKAGES))

# Installs with apt, through sudo where not root, what dpkg does not know as installed.
define install_missing
	command -v cargo >/dev/null || { echo "cargo is missing; install Rust from https://rustup.rs" >&2; exit 1; }; \
	if ! command -v dpkg-query >/dev/null; then echo "not Debian or Ubuntu; install what these packages hold: $(1)" >&2; exit 0; fi; \
	missing=""; \
	for package in $(1); do \
		dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$package"; \
	done; \
	if [ -n "$$missing" ]; then \
		sudo=""; [ "$$(id -u)" = 0 ] || sudo=sudo; \
		echo "installing:$$missing"; \
		$$sudo apt-get update -q; \
		$$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing; \
	fi
endef

install: ## binary (after make build), unit, account and configuration under PREFIX (default /usr/local) and /etc
	@test -x $(PALISADE) || { echo "$(PALISADE) is missing; run make build first, as yourself" >&2; exit 1; }
	install -D -m 0755 $(PALISADE) $(DESTDIR)$(PREFIX)/bin/palisade
	install -D -m 0644 README.md $(DESTDIR)$(PREFIX)/share/doc/palisade/README.md
	install -D -m 0644 systemd/palisade.sysusers $(DESTDIR)/usr/lib/sysusers.d/palisade.conf
	install -D -m 0644 systemd/palisade.tmpfiles $(DESTDIR)/usr/lib/tmpfiles.d/palisade.conf
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/palisade/dropins systemd/dropins/*
	install -d -m 0755 $(DESTDIR)/etc/systemd/system
	sed 's|/usr/bin/palisade|$(PREFIX)/bin/palisade|; s|/usr/share|$(PREFIX)/share|' systemd/palisade.service > $(DESTDIR)/etc/systemd/system/palisade.service
	install -d -m 0755 $(DESTDIR)/etc/palisade
	@test -e $(DESTDIR)/etc/palisade/palisade.toml || install -m 0644 systemd/debian/palisade.toml $(DESTDIR)/etc/palisade/palisade.toml
	install -d -m 0700 $(DESTDIR)/etc/palisade/credentials
	@if [ -z "$(DESTDIR)" ]; then systemd-sysusers palisade.conf; fi
	@echo "next: edit /etc/palisade/palisade.toml (config/palisade.toml has every key), then systemctl enable --now palisade"
