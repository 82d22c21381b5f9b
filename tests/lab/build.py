# SPDX-License-Identifier: LGPL-2.1-or-later
"""Owns building: packages into a tree, the lab's files into it, and from it disk, kernel, initramfs and QEMU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import cache, initramfs, still
from .errors import LabError, LabUnavailable
from .progress import Progress
from .recipe import DISK_SIZE_MIB, FILES, MASKED, MASKED_GENERATORS, Recipe, agent_source

_UNWANTED_PATHS = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*")
_PROGRAMS = ("qemu-system-x86_64", "qemu-img")
_DATA = ("qemu", "seabios")


@dataclass(frozen=True)
class Image:
    """A built host: raw root disk, kernel, initramfs, static busybox, and the directory of its QEMU."""

    path: Path

    @property
    def disk(self) -> Path:
        return self.path / "disk.raw"

    @property
    def kernel(self) -> Path:
        return self.path / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.path / "initrd"

    @property
    def busybox(self) -> Path:
        return self.path / "busybox"

    @property
    def emulator(self) -> Path:
        return self.path / "qemu"


def missing() -> str:
    """Why this machine cannot build a lab, in one line; empty if it can."""
    absent = [p for p in ("mmdebstrap", "mke2fs", "unshare", "setpriv") if not which(p)]
    if absent:
        return f"the lab needs {', '.join(absent)} (Debian: apt install mmdebstrap e2fsprogs util-linux)"
    if os.uname().machine != "x86_64":
        return f"the lab needs an x86_64 machine, not {os.uname().machine}"
    return "" if os.geteuid() == 0 else "building the lab needs root"


def which(program: str) -> str | None:
    """Where `program` is, those that only root runs too."""
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def image(recipe: Recipe, progress: Progress) -> Image:
    """The image of this recipe, built now if it is not in the cache.

    Raises LabUnavailable if it would have to be built and cannot, LabError if building fails.
    """
    return Image(cache.entry("image", recipe.key, lambda place: _build(recipe, place, progress)))


def _build(recipe: Recipe, place: Path, progress: Progress) -> None:
    reason = missing()
    if reason:
        raise LabUnavailable(reason)
    tree = place / "tree"
    progress.stage(f"{recipe.suite}: fetching and installing {len(recipe.packages)} packages and what they need")
    bootstrap(recipe, tree, progress)
    progress.stage(f"{recipe.suite}: kernel, initramfs, QEMU")
    _add_files(tree)
    kernel = kernel_release(tree)
    built = Image(place)
    shutil.copyfile(tree / "boot" / f"vmlinuz-{kernel}", built.kernel)
    shutil.copy(tree / "usr/bin/busybox", built.busybox)
    built.initrd.write_bytes(initramfs.mounting_root(tree, kernel))
    _copy_emulator(tree, built.emulator)
    progress.stage(f"{recipe.suite}: disk image")
    _make_disk(tree, built.disk)
    shutil.rmtree(tree)
    progress.stage(f"{recipe.suite}: image built, {_mib(place)} MiB, Linux {kernel}")


def _mib(place: Path) -> int:
    return sum(path.lstat().st_blocks for path in place.rglob("*")) * 512 >> 20


def bootstrap(recipe: Recipe, tree: Path, progress: Progress) -> None:
    """The packages of `recipe`, installed below `tree`. Raises LabError with the end of mmdebstrap's log."""
    # A mount namespace of its own: whatever is still mounted below the tree when it is interrupted goes with
    # it, before the tree is removed.
    command = [
        "setpriv",
        "--pdeathsig",
        "TERM",
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "mmdebstrap",
    ]
    command += [
        "--verbose",
        "--variant=minbase",
        "--format=directory",
        f"--include={','.join(recipe.packages)}",
    ]
    command += ['--aptopt=APT::Install-Recommends "false"']
    command += [f"--dpkgopt=path-exclude={path}" for path in _UNWANTED_PATHS]
    # The kernel's own initramfs is never used, and making it takes a third of the time.
    environment = {**os.environ, "INITRD": "No", "LC_ALL": "C.UTF-8"}
    log = tree.with_name("bootstrap.log")
    with open(log, "w") as out:
        process = subprocess.Popen(
            [*command, recipe.suite, str(tree)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        try:
            _follow(process, out.write, progress)
        finally:
            process.terminate()
            process.wait()
    if process.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        raise LabError(f"mmdebstrap failed with status {process.returncode}:\n{tail}")


def _follow(process: subprocess.Popen[str], log: Callable[[str], object], progress: Progress) -> None:
    assert process.stdout is not None
    total = done = 0
    for line in process.stdout:
        log(line)
        if match := re.search(r"(\d+) newly installed", line):
            total += int(match[1])
        elif line.startswith("Get:"):
            progress.count(f"fetching {' '.join(line.split()[4:6])}")
        elif line.startswith("Setting up "):
            done += 1
            progress.count(f"installing {done}/{total} ({100 * done // max(total, done)} %) {line.split()[2]}")
        elif line.startswith("I: running apt-get update"):
            progress.count("reading the archive's index")
    process.wait()


def _add_files(tree: Path) -> None:
    for name, text in {**FILES, "usr/local/lib/lab/agent.py": agent_source()}.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (tree / still.PATH.lstrip("/")).write_bytes(still.kernel())
    units = tree / "etc/systemd/system"
    for unit in MASKED:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    generators = tree / "etc/systemd/system-generators"
    generators.mkdir(exist_ok=True)
    for generator in MASKED_GENERATORS:
        (generators / generator).symlink_to("/dev/null")
    wants = units / "sysinit.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "lab-agent.service").symlink_to("/etc/systemd/system/lab-agent.service")
    shadow = tree / "etc/shadow"
    shadow.write_text(re.sub(r"^root:[^:]*:", "root::", shadow.read_text(), flags=re.M))
    # Packages installed into the lab later are installed whole, manual pages too.
    (tree / "etc/dpkg/dpkg.cfg.d/99mmdebstrap").unlink(missing_ok=True)
    (tree / "etc/resolv.conf").write_text("")  # mmdebstrap copied the building machine's
    for name in ("etc", "var"):  # younger than /usr: nothing needs updating at the first boot
        (tree / name / ".updated").write_text("")


def kernel_release(tree: Path) -> str:
    """The version of the one kernel that is installed below `tree`."""
    releases = [path.name.removeprefix("vmlinuz-") for path in (tree / "boot").glob("vmlinuz-*")]
    if len(releases) != 1:
        raise LabError(f"expected one kernel in the image, found {releases}")
    return releases[0]


def _copy_emulator(tree: Path, place: Path) -> None:
    """QEMU out of the tree with its loader, libraries and data, so that it runs on any Linux."""
    libraries = tree / "usr/lib/x86_64-linux-gnu"
    loader = libraries / "ld-linux-x86-64.so.2"
    for name in ("bin", "lib", "share"):
        (place / name).mkdir(parents=True)
    shutil.copy(loader, place / "lib" / loader.name)
    for program in _PROGRAMS:
        binary = tree / "usr/bin" / program
        shutil.copy(binary, place / "bin")
        command = [str(loader), "--library-path", str(libraries), "--list", str(binary)]
        listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for line in listing.splitlines():
            name, arrow, path = line.partition(" => ")
            if arrow and "/" not in name:
                shutil.copy(path.split()[0], place / "lib" / name.strip())
    for name in _DATA:
        shutil.copytree(tree / "usr/share" / name, place / "share" / name, symlinks=True)


def _make_disk(tree: Path, disk: Path) -> None:
    mke2fs = which("mke2fs") or "mke2fs"
    command = [mke2fs, "-q", "-t", "ext4", "-O", "^has_journal,^metadata_csum", "-E", "lazy_itable_init=1"]
    command += ["-d", str(tree), "-r", "1", "-N", "100000", "-m", "0", str(disk), f"{DISK_SIZE_MIB}M"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise LabError(f"mke2fs failed with status {done.returncode}:\n{done.stderr}")
    disk.chmod(0o444)
