# SPDX-License-Identifier: LGPL-2.1-or-later
# make demo    a guest on a real host, from nothing: builds the host and the package, starts kvm@demo, shows it
# make check   the quick loop: lint, types, unit and golden tests; no root, no KVM, under a minute
# make test    make check, and everything on real hosts: what CI runs
# make soak    fuzzing, faults, concurrency, an hour's watch, for hours; SOAK='faults --count 60' for a part; goes on where it was ended
# make golden  write the expected units, pictures and imported domains anew; read the diff like code
# make deb     build/kvmsup_VERSION_all.deb
# make bench   kvmsup beside QEMU by itself, libvirt and quadlet; BENCH='--only starts' for a part; rewrites a section of bench/RESULTS.md
# make bench-placement  kvmsup's placement beside its peers'; rewrites a section of bench/RESULTS.md
# make bench-ksm  kvmsup's policy for KSM beside ksmtuned's, on this machine's KSM; rewrites a section of bench/RESULTS.md
# make bench-latency  what a guest misses beside a noisy neighbour: shared, dedicated, isolated; rewrites a section of bench/RESULTS.md
# make lab     a root shell on a fresh host with the package installed
# make install DESTDIR=…
.DELETE_ON_ERROR:

CACHE    := $(if $(KVMSUP_CACHE),$(KVMSUP_CACHE),$(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/kvmsup)
VENV     := $(CACHE)/venv-$(shell sha256sum tests/requirements.txt 2>/dev/null | cut -c1-12)
PYTHON   := $(VENV)/bin/python3
VERSION  := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' kvmsup/__init__.py)
DEB      := build/kvmsup_$(VERSION)_all.deb

PREFIX   := /usr
LIBDIR   := $(PREFIX)/lib/kvmsup
UNITDIR  := $(PREFIX)/lib/systemd/system
SOURCES   = $(shell git ls-files -co --exclude-standard kvmsup units etc packaging docs Makefile pyproject.toml LICENSE \
            NEWS.md README.md SECURITY.md)

.PHONY: demo check test golden deb lab install clean soak
demo: $(DEB) | tools
	python3 -m tests.lab.demo --deb $(DEB)

check: $(VENV)/ready
	$(PYTHON) -m pytest -q tests/unit tests/golden

# The hosts of two groups run side by side: each keeps about one core busy.
test: $(VENV)/ready $(DEB) | tools
	@packaging/install-tools ovmf qemu-guest-agent zsh fish
	python3 -m tests.lab build
	python3 -m tests.lab build --still
	python3 -m tests.lab build --still --suite bookworm
	KVMSUP_DEB=$(DEB) $(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 40 tests/host tests/unit tests/golden

soak: $(VENV)/ready $(DEB) | tools
	$(VENV)/bin/pip install --quiet --requirement tests/soak/requirements.txt
	$(PYTHON) -m tests.soak --deb $(DEB) $(SOAK)

golden: $(VENV)/ready
	$(PYTHON) -m tests.golden
	$(PYTHON) -m tests.unit.pictures
	$(PYTHON) -m tests.unit.domains

.PHONY: bench
bench: $(VENV)/ready $(DEB) | tools
	@packaging/install-tools systemd-container
	$(VENV)/bin/pip install --quiet --requirement bench/requirements.txt
	$(PYTHON) -m bench.speed --deb $(DEB) $(BENCH)

.PHONY: bench-placement
bench-placement: $(VENV)/ready
	$(PYTHON) -m bench.placement

.PHONY: bench-cli
bench-cli: $(VENV)/ready
	$(PYTHON) -m bench.cli

.PHONY: bench-latency
bench-latency: $(VENV)/ready $(DEB) | tools
	$(PYTHON) -m bench.latency --deb $(DEB)

.PHONY: bench-ksm
bench-ksm: $(VENV)/ready
	$(PYTHON) -m bench.ksm

lab: $(DEB) | tools
	python3 -m tests.lab shell --deb $(DEB)

deb: $(DEB)

$(DEB): $(SOURCES) | tools
	packaging/build-deb $@
	lintian --allow-root --pedantic --display-info --fail-on error,warning $@

# What a fresh Debian machine lacks, by name.
.PHONY: tools
tools:
	@packaging/install-tools

$(VENV)/ready: tests/requirements.txt
	@packaging/install-tools python3-venv
	/usr/bin/python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --requirement tests/requirements.txt
	touch $@

install:
	install -d $(DESTDIR)$(LIBDIR)/kvmsup $(DESTDIR)$(UNITDIR) $(DESTDIR)$(PREFIX)/bin
	cp -R kvmsup $(DESTDIR)$(LIBDIR)/
	find $(DESTDIR)$(LIBDIR) -name __pycache__ -prune -exec rm -r {} +
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system-generators
	for unit in units/*.service units/*.path units/*.slice units/*.socket; do \
		sed 's|@LIBDIR@|$(LIBDIR)|' $$unit > $(DESTDIR)$(UNITDIR)/$${unit##*/}; done
	for program in guest supervisor; do \
		sed 's|@LIBDIR@|$(LIBDIR)|' units/kvmsup-$$program > $(DESTDIR)$(LIBDIR)/kvmsup-$$program; \
		chmod 0755 $(DESTDIR)$(LIBDIR)/kvmsup-$$program; done
	sed 's|@LIBDIR@|$(LIBDIR)|' units/kvmsup > $(DESTDIR)$(PREFIX)/bin/kvmsup
	sed 's|@LIBDIR@|$(LIBDIR)|' units/kvmsup-generator > $(DESTDIR)$(PREFIX)/lib/systemd/system-generators/kvmsup-generator
	chmod 0755 $(DESTDIR)$(PREFIX)/bin/kvmsup $(DESTDIR)$(PREFIX)/lib/systemd/system-generators/kvmsup-generator
	install -d $(DESTDIR)$(PREFIX)/share/kvmsup/schema
	install -m644 packaging/schema/*.json $(DESTDIR)$(PREFIX)/share/kvmsup/schema
	install -Dm644 units/kvmsup.tmpfiles $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/kvmsup.conf
	install -Dm644 units/90-kvmsup.preset $(DESTDIR)$(PREFIX)/lib/systemd/system-preset/90-kvmsup.preset
	install -Dm644 units/80-kvmsup-tap.link $(DESTDIR)$(PREFIX)/lib/systemd/network/80-kvmsup-tap.link
	install -Dm644 units/kvmsup.catalog $(DESTDIR)$(PREFIX)/lib/systemd/catalog/kvmsup.catalog
	install -Dm644 units/kvmsup.sysusers $(DESTDIR)$(PREFIX)/lib/sysusers.d/kvmsup.conf

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -r {} +
