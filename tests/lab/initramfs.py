# SPDX-License-Identifier: LGPL-2.1-or-later
"""Owns small initramfs images: newc archives of a static busybox, a few kernel modules and an init script."""

from __future__ import annotations

import gzip
import lzma
import stat
from pathlib import Path

_ROOT_MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")

_MOUNT_ROOT = """\
mount -t devtmpfs dev /dev
{insmod}
n=0
until mount -t ext4 {root} /root; do
    n=$((n + 1)); [ $n -lt 50 ] || exec sh
    sleep 0.1
done
mount -o move /dev /root/dev
exec switch_root /root /sbin/init
"""


def _entry(name: str, mode: int, data: bytes, number: int) -> bytes:
    path = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def archive(files: dict[str, tuple[int, bytes]]) -> bytes:
    """A gzipped newc archive of `files`: name → (mode with type bits, contents or link target)."""
    parts = [_entry(name, mode, data, i + 1) for i, (name, (mode, data)) in enumerate(files.items())]
    parts.append(_entry("TRAILER!!!", 0, b"", 0))
    return gzip.compress(b"".join(parts), 1, mtime=0)


def with_busybox(busybox: Path, init: str) -> dict[str, tuple[int, bytes]]:
    """The files of an initramfs whose /init is the shell script `init`, run by busybox."""
    script = "#!/bin/busybox sh\n/bin/busybox --install -s /bin\nexport PATH=/bin\n" + init
    files = dict.fromkeys(("bin", "dev", "proc", "sys", "root"), (stat.S_IFDIR | 0o755, b""))
    files["bin/busybox"] = (stat.S_IFREG | 0o755, busybox.read_bytes())
    files["init"] = (stat.S_IFREG | 0o755, script.encode())
    return files


def mounting_root(
    tree: Path, kernel: str, root: str = "/dev/vda", modules_for_it: tuple[str, ...] = _ROOT_MODULES
) -> bytes:
    """The initramfs that mounts `root` (a word of shell) and starts its init, from the unpacked host `tree`.

    Raises LookupError if a module that it needs is neither a file nor built into the kernel.
    """
    modules = tree / "usr/lib/modules" / kernel
    paths = _load_order(modules, modules_for_it)
    insmod = "\n".join(f"insmod /{Path(path).name.split('.')[0]}.ko" for path in paths)
    files = with_busybox(tree / "usr/bin/busybox", _MOUNT_ROOT.format(insmod=insmod, root=root))
    for path in paths:
        files[f"{Path(path).name.split('.')[0]}.ko"] = (stat.S_IFREG | 0o644, _unpacked(modules / path))
    return archive(files)


def _load_order(modules: Path, wanted: tuple[str, ...]) -> list[str]:
    """Paths below `modules`, dependencies first; built-in ones are left out."""
    needs = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, deps = line.partition(":")
        needs[path] = deps.split()
    builtin = {_stem(path) for path in (modules / "modules.builtin").read_text().split()}
    order: dict[str, None] = {}
    for name in wanted:
        path = next((path for path in needs if _stem(path) == name), "")
        if path:
            order.update(dict.fromkeys([*reversed(needs[path]), path]))
        elif name not in builtin:
            raise LookupError(f"kernel module {name} not found in {modules}")
    return list(order)


def _stem(path: str) -> str:
    return Path(path).name.split(".")[0].replace("-", "_")


def _unpacked(path: Path) -> bytes:
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data
