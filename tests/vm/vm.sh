#!/bin/bash
# vm.sh: run a command under other kernels (Debian's 6.1, 6.12, 7.2) in QEMU without KVM and without root. For what the
# development machine's own kernel may refuse or lack: BPF LSM, fentry and fexit, kprobes, and kernels older than tcx and tokens.
#
# Kernels, QEMU and busybox come from the Debian archive that apt is configured with, through private lists and into a work
# directory. Nothing is installed and nothing under /etc is changed.
#
# The guest: uid 0 with all capabilities on a tmpfs; busybox; proc, sys, dev, securityfs, bpffs, tracefs, debugfs, cgroup2 mounted;
# only lo for a network; /host is the shared directory, /out the writable one. What the command says arrives byte for byte; lines
# of this script go to stderr and begin with `vm: `. Code runs some 10 to 20 times slower than on the metal.
set -euo pipefail

usage() {
  cat >&2 <<'U'
usage: vm.sh [-w DIR] ACTION ...
  run KERNEL [OPTION...] -- COMMAND [ARG...]
                  boot KERNEL (6.1, 6.12, 7.2 or all), run COMMAND in it, exit with its status
      -s DIR      shared read-only as /host, the working directory of COMMAND (default: the current directory)
      -o DIR      shared writable as /out
      -t SECONDS  limit for the whole run (default 240)
      -m MB       guest memory (default 1024)
      -a STRING   more kernel parameters
      -v          the guest's console on stderr too
  fetch [KERNEL...]   fetch and build what a run would need (default: all kernels)
  packages SUITE PACKAGE...   unpack packages of a Debian suite with all that they depend on, and print the directory:
                  root/, and versions, a line each
  check               exit 0 if runs can work here, else print the reason and exit 77
  status              what is cached
  purge               delete the cache
-w DIR, or VM_DIR: the work directory, default ${XDG_CACHE_HOME:-~/.cache}/bpfman-hook-vm
exit status of run: that of COMMAND; 124 the limit was reached; 125 the guest could not be fetched or booted
environment: VM_QEMU (a qemu-system-x86_64, or `private`), VM_ACCEL (default tcg,thread=multi), VM_SMP (2), VM_LSM (the lsm= list),
  VM_MODULES (further modules for the initramfs), VM_MIRROR, VM_SECURITY_MIRROR, VM_KEYRING (the Debian archive)
U
  exit 2
}
die() { printf 'vm: %s\n' "$*" >&2; exit 125; }
say() { printf 'vm: %s\n' "$*" >&2; }

HERE=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
W=${VM_DIR:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/bpfman-hook-vm}
if [ "${1:-}" = -w ]; then
  [ $# -ge 2 ] || usage
  W=$2
  shift 2
fi
[ $# -gt 0 ] || usage
ACTION=$1
shift
W=$(readlink -m "$W")
case $W in *[!A-Za-z0-9/._+-]* | /) die "the work directory must be a plain path: $W" ;; esac

KERNELS=(6.1 6.12 7.2)
MODULES="virtio_pci virtio_console 9pnet_virtio 9p ext4 loop overlay veth dummy bridge sch_ingress cls_bpf act_bpf \
nf_tables crc32c_generic ${VM_MODULES:-}"

suite_of() { # KERNEL -> the Debian suite whose linux-image-amd64 it is
  case $1 in
  6.1) echo bookworm ;;
  6.12) echo bookworm-backports ;;
  7.2) echo sid ;;
  *) die "unknown kernel $1 (known: ${KERNELS[*]})" ;;
  esac
}

workdir() {
  mkdir -p "$W"
  chmod 700 "$W" 2>/dev/null || true
  [ -O "$W" ] || die "$W belongs to someone else"
}

# ---- the archive: found by apt in the machine's own sources, used with private lists, state and cache

configured() { # RELEASE-PATTERN (an extended regular expression) -> URI of the first such source
  # the lists may be empty (a fresh machine): ask apt for what is configured, not for what is fetched
  # shellcheck disable=SC2016
  local format='$(REPO_URI) $(RELEASE) $(COMPONENT)'
  { env -u APT_CONFIG apt-get indextargets --no-release-info --format "$format" 'Created-By: Packages' 2>/dev/null || true; } |
    awk -v want="^($1)\$" '!found && $3 == "main" && $2 ~ want { print $1; found = 1 }'
}

mirror() { printf '%s\n' "${VM_MIRROR:-$(configured 'bookworm|trixie|forky|sid|stable|testing|unstable')}"; }

APT_READY=
apt_conf() { # SUITE...: private apt configuration for these suites, with their lists fetched; sets APT_CONFIG
  local name=${1} d=$W/apt/$1 uri sec key opt='' suite
  [ "$APT_READY" != "$name" ] || return 0
  uri=$(mirror)
  [ -n "$uri" ] || die "no Debian archive among the apt sources: set VM_MIRROR"
  key=${VM_KEYRING:-/usr/share/keyrings/debian-archive-keyring.gpg}
  [ ! -f "$key" ] || opt="[signed-by=$key] "
  mkdir -p "$d"/{lists,cache/archives}/partial
  : >"$d/status"
  for suite in "$@"; do
    printf 'deb %s%s %s main\n' "$opt" "$uri" "$suite"
    if [ "$suite" = bookworm ]; then
      sec=${VM_SECURITY_MIRROR:-$(configured bookworm-security)}
      [ -z "$sec" ] || printf 'deb %s%s bookworm-security main\n' "$opt" "$sec"
    fi
  done >"$d/sources.list"
  { # the machine's settings (proxy and the like) without its directories and hooks
    env -u APT_CONFIG apt-config dump | grep -viE '^(dir|dpkg|apt::update|apt::periodic|apt::sandbox|apt::default-release)\b'
    cat <<C
Dir::Etc::main "/dev/null"; Dir::Etc::Parts "/dev/null";
Dir::Etc::SourceList "$d/sources.list"; Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null"; Dir::Etc::PreferencesParts "/dev/null";
Dir::State "$d"; Dir::State::lists "lists"; Dir::State::status "$d/status"; Dir::Cache "$d/cache";
APT::Sandbox::User "root"; Acquire::Languages "none"; Acquire::Retries "3";
C
  } >"$d/apt.conf"
  export APT_CONFIG=$d/apt.conf
  apt-get -qq update >&2 || die "apt-get update failed for $*"
  APT_READY=$name
}

needed_tools() {
  local t
  for t in apt-get apt-cache dpkg-deb python3 flock timeout tail; do
    command -v "$t" >/dev/null || die "$t is needed"
  done
  [ "$(dpkg --print-architecture)" = amd64 ] || die "only amd64 is supported"
}

unpack() { # DIR-WITH-DEBS PREFIX
  local deb
  for deb in "$1"/*.deb; do dpkg-deb -x "$deb" "$2" || die "cannot unpack ${deb##*/}"; done
}

# ---- QEMU: VM_QEMU, an installed one, or a private prefix with its own libc

own_qemu() { # QEMU 7 or newer that lies in PATH or in VM_QEMU
  local q=${VM_QEMU:-$(command -v qemu-system-x86_64 || true)} v
  [ -n "$q" ] && [ "$q" != private ] || return 1
  v=$("$q" --version 2>/dev/null | sed -n 's/.*version \([0-9]*\).*/\1/p;q') && [ "${v:-0}" -ge 7 ] || return 1
  printf '%s\n' "$q"
}

fetch_qemu() {
  [ ! -f "$W/qemu/ok" ] || return 0
  needed_tools
  say "fetching QEMU into a private prefix"
  rm -rf "$W/qemu"
  mkdir -p "$W/qemu/debs"
  apt_conf bookworm bookworm-backports
  # the empty dpkg status makes apt choose the whole closure, libc included: about 85 packages, 36 MB
  (cd "$W/qemu/debs" && apt-get -qq -y --no-install-recommends -t bookworm-backports --download-only \
    -o "Dir::Cache::archives=$W/qemu/debs" install qemu-system-x86 >&2) || die "cannot fetch qemu-system-x86"
  unpack "$W/qemu/debs" "$W/qemu/root"
  rm -rf "$W/qemu/debs"
  touch "$W/qemu/ok"
}

QEMU=()
set_qemu() { # QEMU=(command and its fixed arguments)
  local q lib
  if q=$(own_qemu); then
    QEMU=("$q")
    return 0
  fi
  fetch_qemu
  lib=$W/qemu/root/lib/x86_64-linux-gnu
  export QEMU_MODULE_DIR=$W/qemu/root/usr/lib/x86_64-linux-gnu/qemu
  QEMU=("$lib/ld-linux-x86-64.so.2" --library-path "$lib:$W/qemu/root/usr/lib/x86_64-linux-gnu"
    "$W/qemu/root/usr/bin/qemu-system-x86_64" -L "$W/qemu/root/usr/share/qemu" -L "$W/qemu/root/usr/share/seabios")
}

# ---- kernels and the initramfs

fetch_busybox() {
  [ ! -x "$W/busybox" ] || [ ! -x "$W/bash" ] || return 0
  mkdir -p "$W/bb.new"
  apt_conf bookworm
  (cd "$W/bb.new" && apt-get -qq download busybox-static bash-static >&2) || die "cannot fetch busybox-static and bash-static"
  unpack "$W/bb.new" "$W/bb.new"
  cp "$W/bb.new/bin/busybox" "$W/busybox"
  cp "$W/bb.new/bin/bash-static" "$W/bash"
  rm -rf "$W/bb.new"
}

fetch_kernel() { # KERNEL
  local k=$1 d=$W/kernels/$1 n=$W/kernels/$1.new suite image names moddir
  local stamp
  stamp=$(cat "$HERE/initramfs.py" "$HERE/guest-init.sh" <(printf '%s' "$MODULES") | cksum)
  [ ! -f "$d/stamp" ] || [ "$(cat "$d/stamp")" != "$stamp" ] || return 0
  needed_tools
  suite=$(suite_of "$k")
  fetch_busybox
  rm -rf "$n"
  mkdir -p "$n/debs"
  apt_conf "$suite"
  image=$(apt-cache depends linux-image-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p;T;q')
  [ -n "$image" ] || die "no linux-image-amd64 in $suite"
  case $image in "linux-image-$k".* | "linux-image-$k"+*) ;; *) say "note: $suite has moved on to $image" ;; esac
  # newer packages are split: the image depends on linux-base-V, linux-binary-V, linux-modules-V
  mapfile -t names < <(
    printf '%s\n' "$image"
    apt-cache depends "$image" | sed -n 's/^ *Depends: \(linux-\(base\|binary\|modules\)-[0-9].*\)$/\1/p'
  )
  say "fetching ${names[*]}"
  (cd "$n/debs" && apt-get -qq download "${names[@]}" >&2) || die "cannot fetch ${names[*]}"
  unpack "$n/debs" "$n/root"
  moddir=$(find "$n/root" -type d -path '*lib/modules/[0-9]*' -prune | head -n 1)
  [ -n "$moddir" ] || die "no modules in ${names[*]}"
  cp "$(find "$n/root" -name 'vmlinuz*' -type f | head -n 1)" "$n/vmlinuz"
  find "$n/root" -path '*boot*' -name 'config-*' -exec cp {} "$n/config" \; 2>/dev/null || true
  [ -f "$n/config" ] || find "$n/root" -path '*modules*' -name config -exec cp {} "$n/config" \;
  # shellcheck disable=SC2086
  python3 "$HERE/initramfs.py" "$moddir" "$W/busybox" "$W/bash" "$HERE/guest-init.sh" "$n/initrd" $MODULES >&2 ||
    die "no initramfs for $k"
  basename "$moddir" >"$n/release"
  printf '%s\n' "$stamp" >"$n/stamp"
  rm -rf "$n/root" "$n/debs" "$d"
  mv "$n" "$d"
}

fetch() { # KERNEL...: under a lock, so that parallel test runs share one download
  workdir
  (
    flock 9
    own_qemu >/dev/null || fetch_qemu
    for k in "$@"; do fetch_kernel "$k"; done
    rm -rf "$W/apt" # the lists are large and soon outdated
  ) 9>"$W/lock"
}

packages() { # SUITE PACKAGE...
  local suite=$1 d
  d=$W/packages/$suite-$(printf '%s ' "$@" | cksum | cut -d' ' -f1)
  workdir
  (
    flock 9
    [ ! -f "$d/ok" ] || exit 0
    needed_tools
    rm -rf "$d"
    mkdir -p "$d/debs/partial"
    apt_conf "$suite"
    shift
    say "fetching $* of $suite with what they depend on"
    (cd "$d/debs" && apt-get -qq -y --no-install-recommends --download-only -o "Dir::Cache::archives=$d/debs" install "$@" >&2) ||
      die "cannot fetch $* of $suite"
    unpack "$d/debs" "$d/root"
    # shellcheck disable=SC2016 # dpkg-deb expands it
    for deb in "$d"/debs/*.deb; do dpkg-deb -W --showformat '${Package} ${Version}\n' "$deb"; done >"$d/versions"
    rm -rf "$d/debs" "$W/apt"
    touch "$d/ok"
  ) 9>"$W/lock"
  echo "$d"
}

# ---- runs

PIDS=()
RUN=
cleanup() {
  local p
  for p in "${PIDS[@]}"; do kill "$p" 2>/dev/null || true; done
  [ -z "$RUN" ] || rm -rf "$RUN"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

quote() { # arguments as words for the guest's sh
  local a
  for a in "$@"; do printf "'%s' " "${a//\'/\'\\\'\'}"; done
}

boot() { # KERNEL: one run with the settings of `run`; prints the command's output, returns its status
  local k=$1 d=$W/kernels/$1 qpid rc line status='' begin=$SECONDS
  RUN=$(mktemp -d "$W/run.XXXXXX")
  mkdir "$RUN/ctl"
  quote "${COMMAND[@]}" >"$RUN/ctl/command"
  [ -z "$OUT" ] || touch "$RUN/ctl/has-out"
  : >"$RUN/stdout"
  : >"$RUN/stderr"
  : >"$RUN/console"
  local args=(-accel "${VM_ACCEL:-tcg,thread=multi}" -cpu max -m "$MEM" -smp "${VM_SMP:-2}" -nodefaults -no-user-config
    -no-reboot -display none -monitor none -chardev "file,id=console,path=$RUN/console" -serial chardev:console
    -kernel "$d/vmlinuz" -initrd "$d/initrd"
    -append "console=ttyS0 quiet panic=-1 no_timer_check lsm=${VM_LSM:-lockdown,capability,landlock,bpf} $APPEND"
    -device virtio-serial-pci -fsdev "local,id=run,path=$RUN/ctl,security_model=none,readonly=on"
    -device "virtio-9p-pci,fsdev=run,mount_tag=run"
    -fsdev "local,id=host,path=${SHARE//,/,,},security_model=none,readonly=on"
    -device "virtio-9p-pci,fsdev=host,mount_tag=host")
  [ -z "$OUT" ] || args+=(-fsdev "local,id=out,path=${OUT//,/,,},security_model=none"
    -device "virtio-9p-pci,fsdev=out,mount_tag=out")
  local p
  for p in ctl:ctl.log out:stdout err:stderr; do
    args+=(-chardev "file,id=${p%%:*},path=$RUN/${p#*:}" -device "virtserialport,chardev=${p%%:*},name=${p%%:*}")
  done
  timeout -k 5 "$LIMIT" "${QEMU[@]}" "${args[@]}" </dev/null >"$RUN/qemu.log" 2>&1 &
  qpid=$!
  PIDS=("$qpid")
  tail -n +1 -s 0.2 -f --pid="$qpid" "$RUN/stdout" 2>/dev/null &
  PIDS+=($!)
  tail -n +1 -s 0.2 -f --pid="$qpid" "$RUN/stderr" >&2 2>/dev/null &
  PIDS+=($!)
  if [ -n "$VERBOSE" ]; then
    tail -n +1 -s 0.2 -f --pid="$qpid" "$RUN/console" >&2 2>/dev/null &
    PIDS+=($!)
  fi
  rc=0
  wait "$qpid" || rc=$?
  for p in "${PIDS[@]:1}"; do wait "$p" || true; done # the tails end by themselves, after the last byte
  PIDS=()
  while IFS= read -r line; do
    case $line in
    boot\ *)
      line=${line#boot }
      say "Linux ${line#* }, booted in ${line%% *} s"
      ;;
    exit\ *) status=${line#exit } ;;
    error\ *) say "guest: ${line#error }" ;;
    esac
  done < <(cat "$RUN/ctl.log" 2>/dev/null || true)
  if [ -z "$status" ]; then
    cat "$RUN/qemu.log" >&2
    [ -n "$VERBOSE" ] || tail -n 30 "$RUN/console" >&2
    if [ "$rc" = 124 ] || [ "$rc" = 137 ]; then
      say "$k: the limit of $LIMIT s was reached"
      status=124
    else
      say "$k: the guest did not finish (QEMU: $rc)"
      status=125
    fi
  fi
  say "$k: exit status $status after $((SECONDS - begin)) s"
  rm -rf "$RUN"
  RUN=
  return "$status"
}

run() {
  local kernels k rc=0 r
  [ $# -gt 0 ] || usage
  kernels=("$1")
  [ "$1" != all ] || kernels=("${KERNELS[@]}")
  shift
  SHARE=. OUT='' LIMIT=240 MEM=1024 APPEND='' VERBOSE=''
  while getopts :s:o:t:m:a:v o; do
    case $o in
    s) SHARE=$OPTARG ;;
    o) OUT=$OPTARG ;;
    t) LIMIT=$OPTARG ;;
    m) MEM=$OPTARG ;;
    a) APPEND=$OPTARG ;;
    v) VERBOSE=1 ;;
    *) usage ;;
    esac
  done
  shift $((OPTIND - 1))
  [ $# -gt 0 ] || usage
  COMMAND=("$@")
  [ -d "$SHARE" ] || die "no such directory to share: $SHARE"
  SHARE=$(readlink -e "$SHARE")
  if [ -n "$OUT" ]; then
    mkdir -p "$OUT"
    OUT=$(readlink -e "$OUT")
  fi
  for k in "${kernels[@]}"; do suite_of "$k" >/dev/null; done
  fetch "${kernels[@]}"
  set_qemu
  for k in "${kernels[@]}"; do
    r=0
    boot "$k" || r=$?
    [ "$rc" != 0 ] || rc=$r
  done
  return "$rc"
}

check() {
  local k missing=''
  for k in "${KERNELS[@]}"; do [ -f "$W/kernels/$k/stamp" ] || missing=1; done
  own_qemu >/dev/null || [ -f "$W/qemu/ok" ] || missing=1
  [ -n "$missing" ] || { echo "ready"; return 0; }
  local why=''
  if [ "$(dpkg --print-architecture 2>/dev/null)" != amd64 ]; then
    why="not a Debian-like amd64 system"
  elif ! command -v python3 >/dev/null; then
    why="python3 is missing"
  elif [ -z "$(mirror)" ]; then
    why="no Debian archive among the apt sources"
  fi
  [ -z "$why" ] || { echo "$why"; return 77; }
  echo "not fetched yet (about 360 MB of downloads for all kernels)"
}

status() {
  local k
  for k in "${KERNELS[@]}"; do
    if [ -f "$W/kernels/$k/release" ]; then echo "$k: $(cat "$W/kernels/$k/release")"; else echo "$k: not fetched"; fi
  done
  if own_qemu >/dev/null; then
    echo "qemu: $(own_qemu)"
  elif [ -f "$W/qemu/ok" ]; then
    echo "qemu: private prefix"
  else
    echo "qemu: not fetched"
  fi
}

case $ACTION in
run) run "$@" ;;
fetch)
  [ $# -gt 0 ] || set -- "${KERNELS[@]}"
  for k in "$@"; do suite_of "$k" >/dev/null; done
  fetch "$@"
  ;;
packages)
  [ $# -ge 2 ] || usage
  packages "$@"
  ;;
check) check ;;
status) status ;;
purge) # only what is ours: the directory may be a shared one
  rm -rf "$W"/{apt,kernels,packages,qemu,busybox,bash,bb.new,lock} "$W"/run.??????
  rmdir "$W" 2>/dev/null || true
  ;;
*) usage ;;
esac
