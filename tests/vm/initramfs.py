#!/usr/bin/env python3
"""initramfs.py MODULES_DIR BUSYBOX BASH INIT OUT MODULE... : write a gzipped initramfs.

MODULES_DIR is an unpacked lib/modules/VERSION. The named modules and what they depend on go in, uncompressed,
with modules.dep and modules.alias, so that modprobe and the kernel's own module requests work in the guest.
A name that is no module of this kernel (built in, or absent) is skipped. depmod and cpio are not needed.
"""
import gzip
import lzma
import os
import subprocess
import sys


def read_module(path):
    if path.endswith(".xz"):
        with lzma.open(path) as f:
            return f.read()
    if path.endswith(".zst"):
        return subprocess.check_output(["zstd", "-dcq", path])
    with open(path, "rb") as f:
        return f.read()


def modinfo(data):
    """(depends, softdeps, aliases) from the NUL-separated key=value strings of .modinfo."""
    depends, soft, aliases = [], [], []
    for key, store in ((b"depends=", depends), (b"softdep=", soft), (b"alias=", aliases)):
        at = 0
        while True:
            at = data.find(b"\0" + key, at)
            if at < 0:
                break
            start = at + 1 + len(key)
            end = data.index(b"\0", start)
            store.append(data[start:end].decode("latin-1"))
            at = end
    depends = [d for line in depends for d in line.split(",") if d]
    soft = [s for line in soft for s in line.split() if not s.endswith(":")]
    return depends, soft, aliases


def main():
    moddir, busybox, bash, init, out = sys.argv[1:6]
    version = os.path.basename(os.path.normpath(moddir))
    index = {}
    for folder, _, names in os.walk(os.path.join(moddir, "kernel")):
        for name in names:
            if ".ko" in name:
                index[name.split(".ko")[0].replace("-", "_")] = os.path.join(folder, name)

    chosen, skipped = {}, []

    def add(name, wanted=True):
        name = name.replace("-", "_")
        if name in chosen:
            return
        if name not in index:
            if wanted:
                skipped.append(name)
            return
        data = read_module(index[name])
        depends, soft, aliases = modinfo(data)
        chosen[name] = (data, [d.replace("-", "_") for d in depends], aliases)
        for d in depends:
            add(d)
        for s in soft:
            add(s, wanted=False)

    for name in sys.argv[6:]:
        add(name)

    def closure(name, seen):  # in loading order
        for d in chosen[name][1]:
            if d in chosen and d not in seen:
                closure(d, seen)
                seen.append(d)
        return seen

    base = "lib/modules/" + version
    files = {"bin/busybox": (0o755, open(busybox, "rb").read()),
             "bin/bash": (0o755, open(bash, "rb").read()), "init": (0o755, open(init, "rb").read())}
    dep, alias = "", ""
    for name, (data, _, aliases) in sorted(chosen.items()):
        files["%s/kernel/%s.ko" % (base, name)] = (0o644, data)
        dep += "kernel/%s.ko:%s\n" % (name, "".join(" kernel/%s.ko" % d for d in reversed(closure(name, []))))
        alias += "".join("alias %s %s\n" % (a, name) for a in aliases)
    files[base + "/modules.dep"] = (0o644, dep.encode())
    files[base + "/modules.alias"] = (0o644, alias.encode())
    files[base + "/modules.symbols"] = (0o644, b"")
    for extra in ("modules.builtin", "modules.builtin.modinfo"):
        path = os.path.join(moddir, extra)
        if os.path.exists(path):
            files[base + "/" + extra] = (0o644, open(path, "rb").read())

    archive = bytearray()
    inode = 0

    def entry(name, mode, data):
        nonlocal inode
        inode += 1
        raw = name.encode() + b"\0"
        fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0)
        archive.extend(b"070701" + b"".join(b"%08X" % f for f in fields) + raw)
        archive.extend(b"\0" * (-len(archive) % 4))
        archive.extend(data)
        archive.extend(b"\0" * (-len(archive) % 4))

    folders = {"dev", "proc", "sys", "new"}
    for name in files:
        while os.path.dirname(name):
            name = os.path.dirname(name)
            folders.add(name)
    for folder in sorted(folders):
        entry(folder, 0o40755, b"")
    for name, (mode, data) in files.items():
        entry(name, 0o100000 | mode, data)
    entry("TRAILER!!!", 0, b"")
    with open(out, "wb") as f:
        f.write(gzip.compress(bytes(archive), 1))
    print("initramfs: %s, %d modules, %.1f MB%s" % (
        version, len(chosen), os.path.getsize(out) / 1e6, ", not modules: " + " ".join(skipped) if skipped else ""))


main()
