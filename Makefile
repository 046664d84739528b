# bpfman-hook. `make` builds, `make demo` shows, `make test` tests everything, `make check` runs the static checks.
#
# One profile and one set of flags for everything, so that the demo, the tests and the checks share what is built. The target
# is always named: crt-static needs that, see .cargo/config.toml.

CARGO   ?= cargo
PREFIX  ?= /usr/local
DESTDIR ?=
# For which engines `make install` installs: --podman, --crio.
ENGINES ?= --podman

TARGET  := $(shell uname -m)-unknown-linux-gnu
FLAGS   := --release --locked --target $(TARGET)
OUT     := $(or $(CARGO_TARGET_DIR),target)
BINARY  := $(OUT)/$(TARGET)/release/bpfman-hook
# What is shipped and measured: the profile `dist` of Cargo.toml.
DIST    := $(OUT)/$(TARGET)/dist/bpfman-hook
# For which machines `make dist` makes packages, and where.
ARCHES   ?= x86_64 aarch64
PACKAGES := $(OUT)/packages
# No directory of this machine is in the program, by rustc or by the C compiler: the same sources give the same bytes anywhere.
HOME_OF_CARGO := $(or $(CARGO_HOME),$(HOME)/.cargo)
REMAP     := '--remap-path-prefix=$(HOME_OF_CARGO)=/cargo', '--remap-path-prefix=$(CURDIR)=/source', '--remap-path-prefix=$(abspath $(OUT))=/out'
DISTFLAGS := --profile dist --locked --target $(TARGET) --config "target.$(TARGET).rustflags=[$(REMAP)]"
dist-program order test-dist bench: export CFLAGS += -ffile-prefix-map=$(HOME_OF_CARGO)=/cargo -ffile-prefix-map=$(abspath $(OUT))=/out
SCRIPTS := .ci/run tests/setup.sh tests/bpfman-client/build.sh tests/recipes/build.sh tests/demo/demo.sh tests/demo/image.sh packaging/build.sh packaging/cross.sh $(addprefix packaging/package/,after-install before-remove after-remove release-later) $(wildcard tests/docs/*.sh tests/grafana/*.sh tests/packages/*.sh tests/bpf/*.sh tests/clients/*.sh tests/lsm/*.sh tests/lab/*.sh tests/lab/*/*.sh tests/manifests/*.sh tests/vm/*.sh)

.DEFAULT_GOAL := build
.PHONY: build dist dist-program docs test-aarch64 test-packages order test-dist demo setup test test-unit test-privileged test-objects test-some-faults test-faults test-service test-e2e test-some-clients test-clients test-containerd test-vm fuzz fuzz-proxy check bench bpf man install uninstall clean root

build:
	$(CARGO) build $(FLAGS)

# The packages of a release: deb, rpm, tarball, SBOM, SHA256SUMS; COSIGN_KEY=FILE signs them. ARCHES=x86_64 makes those of one machine.
# The program is static, so that any distribution's is the same.
dist: $(addprefix dist-,$(ARCHES))
	ls -l $(PACKAGES)

# The optimised program of this machine, which is also measured.
dist-program:
	$(CARGO) build $(DISTFLAGS)
	strip $(DIST)

dist-$(shell uname -m): dist-program
	ARCH=$(shell uname -m) packaging/build.sh $(DIST) $(PACKAGES)

# Debian's Rust and cross compiler, as root: packaging/cross.sh.
ifneq ($(shell uname -m),aarch64)
dist-aarch64: root dist-program
	packaging/cross.sh aarch64 $(OUT)/cross build --profile dist --locked --target aarch64-unknown-linux-gnu --bin bpfman-hook
	ARCH=aarch64 WRITER=$(DIST) packaging/build.sh $(OUT)/cross/aarch64-unknown-linux-gnu/dist/bpfman-hook $(PACKAGES)
endif

# The program for aarch64: under qemu-user, as far as it makes no call of bpf(2), and in a guest with Debian's kernel for arm64.
test-aarch64: dist-aarch64
	tests/packages/aarch64.sh $(OUT)/cross/aarch64-unknown-linux-gnu/dist/bpfman-hook $(DIST)
	tests/packages/aarch64-guest.sh $(OUT)/cross/aarch64-unknown-linux-gnu/dist/bpfman-hook

# The documents as a site, in target/site, with links checked.
docs:
	tests/docs/build.sh $(OUT)/site

# Has the linker order the functions of `dist` by what a start calls, after larger changes: benches/start.order.
order: root
	mkdir -p $(OUT)/bench
	for program in run container touched; do cc -O2 -static -Wall -Wextra -Werror -o $(OUT)/bench/$$program benches/$$program.c || exit 1; done
	$(CARGO) build $(DISTFLAGS)
	python3 benches/order.py --binary $(DIST) --floors $(OUT)/bench

demo: root build
	tests/demo/demo.sh $(BINARY)

test: setup test-unit test-privileged test-objects test-some-faults test-service test-e2e test-packages test-some-clients test-containerd test-vm

# Installs what is missing, as root; a message where it cannot.
setup:
	tests/setup.sh

test-unit:
	$(CARGO) test $(FLAGS)

# Tests on the real kernel and with real runtimes fail without root; they never skip themselves.
test-privileged: root
	$(CARGO) test $(FLAGS) --test privileged

# Compiles the objects of tests/objects and loads each with Debian's newest bpftool, which is libbpf, and with bpfman-hook. BLESS=1
# writes the share into docs/kernels.md.
test-objects: root
	$(CARGO) test $(FLAGS) --test objects

# Some system calls of a start, a stop, a load and a pull are killed or fail, half a minute of them in an order that FAULT_SEED gives;
# `make test-faults` does it at each call, which takes its time and is not part of `make test`.
test-some-faults: root
	$(CARGO) test $(FLAGS) --test faults

test-faults: root
	FAULTS=all $(CARGO) test $(FLAGS) --test faults -- --nocapture --test-threads 1

# The end-to-end tests with the binary that is shipped. It takes some ten minutes, and is not part of `make test`.
test-dist: root setup
	$(CARGO) test $(DISTFLAGS) --test e2e

# The gRPC service as another process, with clients of other users, on the real kernel.
test-service: root
	$(CARGO) test $(FLAGS) --test service

# The packages, installed, used and removed in a clean Debian without a compiler, and the quick starts of docs/ there, with the program
# that the other tests have. The first time fetches some 120 MB; a machine that cannot fetch them says so and goes on.
test-packages: root build
	tests/packages/suite.sh $(BINARY) $(CASES) || { status=$$?; [ $$status = 77 ] || exit $$status; }

test-e2e: root
	$(CARGO) test $(FLAGS) --test e2e

# Unmodified clients of the proxy: those that Debian 12 has. `make test-clients` runs all, of which it fetches and builds some, and
# writes the table of docs/proxy.md. The first time fetches some 300 MB.
test-some-clients: root
	$(CARGO) test $(FLAGS) --test clients

test-clients: root setup
	CLIENTS=all BLESS=1 $(CARGO) test $(FLAGS) --test clients

# The NRI plugin on Debian's containerd 2.1 and 1.7, runc and crun. The first time fetches some 90 MB; a machine that cannot fetch
# them says so and goes on.
test-containerd: root
	reason=$$(tests/lab/containerd/packages.sh 2>&1 >/dev/null); status=$$?; case $$status in \
	0) $(CARGO) test $(FLAGS) --test containerd ;; \
	77) echo "SKIPPED: the tests on containerd did not run: $$reason" >&2 ;; \
	*) echo "$$reason" >&2; exit $$status ;; esac

# The tests of attach types, of the guard and of policing under Debian's 6.1, 6.12 and 7.2 in QEMU: kprobes, fentry, LSM and old
# kernels, whatever this machine's kernel has. Some minutes; the first time fetches some 360 MB into the user's cache directory (VM_DIR). A machine that cannot
# fetch them says so and goes on.
test-vm: build
	of() { $(CARGO) test $(FLAGS) --test "$$1" --no-run --message-format=json | sed -n "s|.*\"executable\":\"\([^\"]*/$$1-[^\"]*\)\".*|\1|p"; }; \
	tests/vm/suite.sh "$$(of privileged)" "$$(of service)" $(BINARY) $(KERNELS) || { status=$$?; [ $$status = 77 ] || exit $$status; }; \
	tests/vm/containers.sh "$$(of e2e)" "$$(of containerd)" 7.2 || { status=$$?; [ $$status = 77 ] || exit $$status; }
	tests/vm/systemd.sh $(BINARY) || { status=$$?; [ $$status = 77 ] || exit $$status; }
	tests/vm/tracing.sh $(BINARY) 6.12 7.2 || { status=$$?; [ $$status = 77 ] || exit $$status; }

# The unit tests named fuzz, for longer: FUZZ_SECONDS each, from a new seed (FUZZ_SEED repeats one).
fuzz: export FUZZ_SECONDS ?= 20
fuzz:
	$(CARGO) test $(FLAGS) --lib fuzz -- --nocapture

# Hostile calls of bpf(2) from inside a container, tests/e2e/proxy_fuzz.rs, for an hour; FUZZ_SEED repeats a seed, and KERNEL=7.2 runs
# it in a guest with that kernel. `make test-e2e` has a quarter of a minute of it.
fuzz-proxy: export FUZZ_SECONDS ?= 3600
fuzz-proxy: root
ifdef KERNEL
	tests/vm/fuzz-proxy.sh "$$($(CARGO) test $(FLAGS) --test e2e --no-run --message-format=json | sed -n 's|.*"executable":"\([^"]*/e2e-[^"]*\)".*|\1|p')" $(KERNEL)
else
	$(CARGO) test $(FLAGS) --test e2e proxy_fuzz::with_hooks -- --nocapture
endif

check: setup build
	$(CARGO) fmt --check
	$(CARGO) clippy $(FLAGS) --all-targets -- -D warnings
	$(CARGO) test $(FLAGS) --test layering --test security
	shellcheck $(SCRIPTS)
	tests/bpf/build.sh --check
	tests/manifests/check.sh $(BINARY)
	tests/grafana/check.sh
	tests/docs/build.sh $(OUT)/site || { status=$$?; [ $$status = 77 ] || exit $$status; }
	tests/lsm/check.sh
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny check; \
	else echo "cargo deny: skipped, it is not installed (cargo install cargo-deny)"; fi
	$(MAKE) man

# What is measured, and against what: benches/README.md. ACCEPT=1 makes the ratios those that later runs are compared with.
bench: root dist-program
	mkdir -p $(OUT)/bench
	for program in f0 f1 f2 run container proxy police; do cc -O2 -static -Wall -Wextra -Werror -o $(OUT)/bench/$$program benches/$$program.c || exit 1; done
	python3 benches/bench.py --binary $(DIST) --floors $(OUT)/bench $(BENCH) $(if $(ACCEPT),--accept)
	python3 benches/images.py --binary $(DIST) --floors $(OUT)/bench $(BENCH_IMAGES) $(if $(ACCEPT),--accept)
	helper=$$($(CARGO) build $(DISTFLAGS) --bench manual --message-format=json | sed -n 's|.*"executable":"\([^"]*/manual-[^"]*\)".*|\1|p') && \
	python3 benches/manual.py --binary $(DIST) --helper "$$helper" --floors $(OUT)/bench $(BENCH_MANUAL) $(if $(ACCEPT),--accept)
	python3 benches/nri.py --binary $(DIST) $(BENCH_NRI) $(if $(ACCEPT),--accept)
	python3 benches/proxy.py --binary $(DIST) --floors $(OUT)/bench $(BENCH_PROXY) $(if $(ACCEPT),--accept)
	python3 benches/police.py --binary $(DIST) --floors $(OUT)/bench $(BENCH_POLICE) $(if $(ACCEPT),--accept)
	! tests/vm/vm.sh check >/dev/null || tests/vm/vm.sh run 7.2 -s / -m 2048 -t 600 -- sh /host$(CURDIR)/tests/vm/guest-host.sh -- \
		python3 $(CURDIR)/benches/police.py --binary $(abspath $(DIST)) --floors $(abspath $(OUT))/bench --runs 3 --calls 200
	if tests/lab/containerd/packages.sh >/dev/null; then $(CARGO) test $(FLAGS) --test containerd measure:: -- --ignored --nocapture; fi

# Rebuilds the test objects; `make bpf BPF=--check` compares instead.
bpf:
	tests/bpf/build.sh $(BPF)

man: build
	mkdir -p $(OUT)/man
	$(BINARY) man $(OUT)/man

install: build
	$(BINARY) install $(ENGINES) --prefix $(PREFIX) $(if $(DESTDIR),--destdir $(abspath $(DESTDIR)))

uninstall: build
	$(BINARY) uninstall $(ENGINES) --prefix $(PREFIX) $(if $(DESTDIR),--destdir $(abspath $(DESTDIR)))

clean:
	$(CARGO) clean

root:
	@[ "$$(id -u)" = 0 ] || { echo "this makes namespaces, mounts and BPF objects: run it as root, for example \`sudo make $(MAKECMDGOALS)\`" >&2; exit 1; }
