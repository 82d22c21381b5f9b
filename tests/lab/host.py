# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lab and Host: what the tests use. A Host is a real Debian host; a Lab makes them, by restoring a saved one."""

from __future__ import annotations

import base64
import contextlib
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from . import build, cache, probe
from .channel import Channel
from .errors import CommandFailed, CommandTimeout, LabError, LabPanic, Result
from .machine import Machine, Rig
from .progress import Progress, Silent
from .recipe import Recipe

_PIECE = 192 * 1024
_BOOT_SECONDS = 240.0
_KEPT = 3
_BASE = "base"
_STALLED = "rcu_preempt kthread starved"
_UNSETTLED = "systemctl list-jobs --no-legend | grep -q ."
# Looks at a condition, at most a third of the time, and the less often the longer it has taken: looking is not free on
# emulated CPUs, and what is waited for needs them too. The pause is a read from a pipe of one's own, as `sleep` is a
# process.
_WAIT = """\
exec {{never}}<> <(:)
end=$((SECONDS + {seconds})) first=${{EPOCHREALTIME/./}}
while began=${{EPOCHREALTIME/./}}; ! out=$({{ {condition}
}} 2>&1); do
  [ $SECONDS -lt $end ] || {{ echo "$out"; exit 125; }}
  pause=$(((${{EPOCHREALTIME/./}} - began) * 2)) patience=$(((began - first) / 8))
  [ $pause -ge $patience ] || pause=$patience
  [ $pause -ge {least} ] || pause={least}
  [ $pause -le {most} ] || pause={most}
  printf -v pause %d.%06d $((pause / 1000000)) $((pause % 1000000))
  read -rt $pause -u $never
done
echo "$out"
"""
_PAUSES = (200_000, 2_000_000)


class Host:
    """A running lab host. Commands run as root, as from a root shell; it is gone when closed or at exit."""

    def __init__(self, machine: Machine, ancestry: tuple[str, ...] = ()) -> None:
        self.machine = machine
        self.ancestry = ancestry
        self._channel = Channel(machine.agent, machine.check)

    def __enter__(self) -> Host:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(
        self,
        command: str | Sequence[str],
        *,
        check: bool = True,
        timeout: float = 60.0,
        stdin: str | bytes = "",
    ) -> Result:
        """Runs a command (a string is for bash) and returns what it left; kills it after `timeout` seconds.

        Raises CommandFailed if `check` and it fails, CommandTimeout, LabPanic, LabError.
        """
        data = stdin.encode() if isinstance(stdin, str) else stdin
        reply = self._channel.request(
            "run",
            timeout,
            command=command if isinstance(command, str) else list(command),
            seconds=timeout,
            stdin=base64.b64encode(data).decode(),
        )
        out, err = (base64.b64decode(reply[name]).decode(errors="replace") for name in ("stdout", "stderr"))
        result = Result(reply["rc"], out, err)
        text = command if isinstance(command, str) else shlex.join(command)
        if reply["timed_out"]:
            raise CommandTimeout(text, result, timeout)
        if check and result.rc != 0:
            raise CommandFailed(text, result)
        return result

    def put(self, source: Path | str | bytes, remote: str, mode: int = 0o644) -> None:
        """Writes a local file (path), or these bytes, to `remote`; its directory must be there."""
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        for at in range(0, len(data) or 1, _PIECE):
            piece = base64.b64encode(data[at : at + _PIECE]).decode()
            end = {"mode": mode} if at + _PIECE >= len(data) else {}
            self._channel.request("write", path=remote, offset=at, data=piece, **end)

    def get(self, remote: str) -> bytes:
        """The contents of a file in the host; raises LabError if it cannot be read."""
        data = b""
        while True:
            reply = self._channel.request("read", path=remote, offset=len(data), size=_PIECE)
            piece = base64.b64decode(reply["data"])
            data += piece
            if len(piece) < _PIECE:
                return data

    def read(self, remote: str) -> str:
        """The contents of a text file in the host."""
        return self.get(remote).decode(errors="replace")

    def install(self, package: Path) -> None:
        """Installs a .deb file; raises CommandFailed with dpkg's output."""
        remote = f"/var/tmp/{package.name}"
        self.put(package, remote)
        self.run(["dpkg", "--install", remote], timeout=180)
        self.run(["rm", remote])

    def wait_for(self, condition: str, timeout: float = 60.0) -> Result:
        """Waits inside the host until the shell command `condition` succeeds, and returns its last outputs.

        Raises CommandTimeout, with what the condition wrote, after `timeout` seconds.
        """
        # The loop's own limit is the host's clock, so that the condition's last words arrive.
        least, most = _PAUSES
        script = _WAIT.format(condition=condition, seconds=max(1, round(timeout)), least=least, most=most)
        return self._waited(f"wait for: {condition}", script, timeout)

    def wait_for_line(self, journal: str, pattern: str, times: int = 1, timeout: float = 60.0) -> None:
        """Waits until so many lines of `journalctl --boot JOURNAL` match `pattern`, of grep's basic kind.

        Raises CommandTimeout, with the journal's last lines, after `timeout` seconds.
        """
        seconds = max(1, round(timeout))
        shown = f"journalctl --boot --output=cat --no-pager {journal}"
        script = (
            f"exec {{lines}}< <(exec {shown} --no-tail --follow); reader=$!\n"
            # Counted, because grep stops at nothing but the end of its input when its output is /dev/null.
            f"found=$(timeout {seconds} grep -c -m {times} -e {shlex.quote(pattern)} <&$lines)\n"
            f'kill $reader; [ "$found" = {times} ] || {{ {shown} | tail; exit 125; }}'
        )
        self._waited(f"wait for {times} times {pattern!r} in: {shown}", script, timeout)

    def _waited(self, what: str, script: str, timeout: float) -> Result:
        result = self.run(["/bin/bash", "-c", script], check=False, timeout=timeout + 60)
        if result.rc == 125:
            raise CommandTimeout(what, result, timeout)
        return result

    def console(self) -> str:
        """What the host wrote to its serial console since it was started or restored."""
        return self.machine.log.read_text(errors="replace")

    def journal(self) -> str:
        """The journal of the present boot."""
        return self.run("journalctl --boot --no-pager --output=short-precise", check=False).stdout

    def collect(self, directory: Path) -> None:
        """Writes console, journal and the state of all units to files in `directory` (created)."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "console.txt").write_text(self.console())
        (directory / "qemu.txt").write_text(self.machine.complaints())
        with contextlib.suppress(LabError, CommandFailed):  # a broken host: the console is what there is
            (directory / "journal.txt").write_text(self.journal())
            for name, what in (
                ("units", "list-units --all"),
                ("failed", "status --failed"),
                ("status", "status"),
            ):
                text = self.run(f"systemctl {what} --no-pager --full", check=False).stdout
                (directory / f"{name}.txt").write_text(text)

    def reboot(self, timeout: float = 180.0) -> None:
        """Reboots the host and waits until it is running again; raises LabError after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        before = self._channel.boot(timeout)
        self.run("systemctl reboot --no-block", check=False)
        while self._channel.boot(max(1.0, deadline - time.monotonic())) == before:
            if time.monotonic() > deadline:
                raise LabError(f"the host did not go down within {timeout:g} s")
            time.sleep(0.5)
        self.settle(max(1.0, deadline - time.monotonic()))

    def settle(self, timeout: float = _BOOT_SECONDS) -> None:
        """Waits until the host has finished booting and has no job left; raises LabError if a unit failed."""
        try:
            self._channel.boot(timeout)
        except LabPanic:
            raise
        except LabError as error:
            # A vCPU whose timer was never heard again: seen once in some ten boots on a machine with much else to do.
            kind = LabPanic if _STALLED in self.console() else LabError
            raise kind(f"{error}; the console's end:\n{self.console()[-2000:]}") from None
        self.set_clock()
        state = self.run("systemctl is-system-running --wait", check=False, timeout=timeout).stdout.strip()
        if state != "running":
            failed = self.run("systemctl list-units --failed --no-legend --plain", check=False).stdout
            raise LabError(f"the host booted to {state!r}, not 'running'; failed units:\n{failed}")
        # udev loads the KVM module on its own time.
        self.run("udevadm settle; test -c /dev/kvm", timeout=timeout)
        self.wait_for(f"! {_UNSETTLED}", timeout)

    def set_clock(self) -> None:
        """Sets the host's clock to this machine's."""
        self._channel.request("hello", now=time.time())

    def close(self) -> None:
        """Ends the host without asking it, and removes its disk."""
        self.machine.kill()


class Lab:
    """Makes hosts of one Debian suite."""

    def __init__(self, suite: str = "trixie", *, linux_guests: bool = True) -> None:
        """Hosts without Linux in their guests are emulated in two thirds of the time."""
        self.recipe = Recipe(suite)
        self._emulated = "tcg" if linux_guests else "tcg in turns"
        self._rig: Rig | None = None

    def ensure_built(self, progress: Progress | None = None) -> Rig:
        """Builds image and saved base state where the cache lacks them; the rig they are run with.

        Raises LabUnavailable if this machine cannot build, LabError, LabPanic.
        """
        progress = progress or Silent()
        if self._rig is None:
            emulator = build.image(self.recipe.emulator, progress)
            image = build.image(self.recipe, progress)
            rig = Rig(image, emulator, "tcg")
            rig = Rig(image, emulator, "kvm" if probe.kvm_boots(rig, progress) else self._emulated)
            cache.entry("state", f"{rig.key}-{_BASE}", lambda place: self._save_base(rig, place, progress))
            _drop_old_images(rig)
            self._rig = rig
        return self._rig

    def _save_base(self, rig: Rig, place: Path, progress: Progress) -> None:
        progress.stage(f"{self.recipe.suite}: first boot ({rig.accel})")
        with Host(Machine(rig, rig.image.disk, "raw")) as host:
            host.settle()
            host.run("sync; journalctl --flush; echo 3 > /proc/sys/vm/drop_caches")
            progress.stage(f"{self.recipe.suite}: saving the running host")
            self._save(host, place)
        size = (place / "state").stat().st_size >> 20
        progress.stage(f"{self.recipe.suite}: saved, {size} MiB")

    def _save(self, host: Host, place: Path) -> None:
        host.machine.save(place / "state", place / "disk.qcow2")
        (place / "ancestry").write_text("\n".join(host.ancestry))
        host.set_clock()

    def boot(self, parameters: str = "") -> Host:
        """A host booted cold from the built image, running when this returns; its kernel gets `parameters` too."""
        rig = self.ensure_built()
        host = Host(Machine(rig, rig.image.disk, "raw", parameters=parameters))
        try:
            host.settle()
        except BaseException:
            host.close()
            raise
        return host

    def fresh(self, key: str = _BASE) -> Host:
        """A host restored from the snapshot `key`; without one, from the base state: booted, nothing added.

        Raises LabError if there is no such snapshot.
        """
        rig = self.ensure_built()
        place = self._place(rig, key)
        if not (place / "state").exists():
            raise LabError(f"there is no lab snapshot {key!r}")
        cache.touch(place)
        ancestry = tuple((place / "ancestry").read_text().split())
        host = Host(Machine(rig, place / "disk.qcow2", "qcow2", state=place / "state"), (*ancestry, place.name))
        try:
            host.set_clock()
        except BaseException:
            host.close()
            raise
        return host

    def has(self, key: str) -> bool:
        """Whether the snapshot `key` can be restored."""
        return (self._place(self.ensure_built(), key) / "state").exists()

    def snapshot(self, host: Host, key: str) -> None:
        """Saves the host's present state as `key`, unless that exists; the host runs on. Old snapshots are dropped."""
        rig = self.ensure_built()
        cache.entry("state", self._place(rig, key).name, lambda place: self._save(host, place))
        self._prune(rig)

    def installed(self, package: Path) -> str:
        """The key of the snapshot with this .deb installed on the base state; made now if it is not there."""
        key = f"deb-{cache.digest(package.read_bytes())}"
        if not self.has(key):
            with self.fresh() as host:
                host.install(package)
                self.snapshot(host, key)
        return key

    def forget(self, key: str) -> None:
        """Removes the snapshot `key`, if there is one."""
        cache.drop(self._place(self.ensure_built(), key))

    def _place(self, rig: Rig, key: str) -> Path:
        return cache.root() / "state" / f"{rig.key}-{key}"

    def _prune(self, rig: Rig) -> None:
        """Keeps the base, the newest few, and every state whose disk lies below one of those."""
        states = [place for place in self._states(rig) if place.name != f"{rig.key}-{_BASE}"]
        states.sort(key=lambda place: place.stat().st_mtime, reverse=True)
        needed: set[str] = set()
        for place in states[:_KEPT]:
            needed.update((place.name, *(place / "ancestry").read_text().split()))
        for place in states[_KEPT:]:
            if place.name not in needed:
                cache.drop(place)

    def _states(self, rig: Rig) -> Iterator[Path]:
        for place in (cache.root() / "state").glob(f"{rig.key}-*"):
            if (place / "state").exists():
                yield place


def _drop_old_images(rig: Rig) -> None:
    """Of each suite in use, keeps the images of the last few recipes; with an image go its states."""
    for path in {rig.image.path, rig.emulator.path}:
        cache.touch(path)
        for old in cache.oldest("image", path.name.partition("-")[0] + "-", _KEPT):
            for state in (cache.root() / "state").glob(f"{old.name}-*"):
                cache.drop(state)
            cache.drop(old)


def forget(suite: str) -> None:
    """Removes everything built for this suite's present recipe."""
    key = Recipe(suite).key
    for kind in ("image", "state"):
        for place in (cache.root() / kind).glob(f"{key}*"):
            shutil.rmtree(place, ignore_errors=True)
