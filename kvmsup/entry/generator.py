# SPDX-License-Identifier: LGPL-2.1-or-later
"""The systemd generator: /etc/kvmsup/*.toml → drop-ins. Runs at boot and at every daemon-reload of the host.

It reads only /etc/kvmsup*, what was made of that before, and which guests run isolated, and writes only below the
directory it is given: no probing, no D-Bus, no subprocess (systemd.generator(7)). A file that is wrong costs its own
guest its drop-ins; that guest's start then fails with the very same findings. No TOML can keep another guest, or the
host, from booting.
"""

from __future__ import annotations

import contextlib
import os
import sys

from kvmsup.effects import configs, files, rendered
from kvmsup.errors import ConfigError, HostError, KvmsupError
from kvmsup.model.guest import NAME_RULE, Host, is_name
from kvmsup.plan import agreed, paths

_PROGRAM = "kvmsup-generator"
# systemd sets it (systemd.generator(7)); who runs this by hand looks for no answer in the journal.
_SYSTEMD = "SYSTEMD_SCOPE"
# Of one file into a log, which every line there pushes another one out of.
_MOST_LINES = 20


def main(arguments: list[str], root: str = "") -> int:
    """`arguments` are systemd's three directories, of which the first is written to. 0, or 1 when a file was wrong."""
    if len(arguments) not in (1, 3):
        print("usage: kvmsup-generator NORMAL-DIR [EARLY-DIR LATE-DIR]", file=sys.stderr)
        return 2
    host_content, host, status = b"", Host(None, "never"), 0
    names = []
    try:
        names = configs.names(root)
    except HostError as error:
        tell(error, root)
        status = 1
    known = _known(root, names)
    if len(known) < len(names) or not names:  # what is known was made of a host's file that is sound
        try:
            content = configs.read_host(root)
            host, host_content = _host(content), content
        except KvmsupError as error:
            # Every start will be refused with this same finding; what the units look like meanwhile is harmless.
            tell(error, root)
            status = 1
    for name in names:
        try:
            for path, text in (known.get(name) or convert(name, root, host, host_content)).items():
                _write(f"{arguments[0]}/{path}", text)
        except KvmsupError as error:
            tell(error, root, name)
            status = 1
        except Exception as error:  # a bug, which must not cost the other guests their drop-ins
            tell(KvmsupError(f"{configs.guest_file(name)}: kvmsup has a bug: {error!r}"), root, name)
            status = 1
    for name in _isolated(root):
        from kvmsup.plan import dropin

        try:
            for path, text in dropin.divided(name).items():
                _write(f"{arguments[0]}/{path}", text)
        except KvmsupError as error:
            tell(error, root, name)
            status = 1
    return status


def _known(root: str, names: list[str]) -> dict[str, dict[str, str]]:
    """The drop-ins of those guests for which they were made of the same files before."""
    found = {}
    with contextlib.suppress(HostError, OSError):  # it is told when they are made
        source = rendered.Source(configs.read_host(root))
        for name in names:
            content = _content(root, name)
            if drop_ins := rendered.read(root, name, source.key(name, content)):
                found[name] = drop_ins
    return found


def _content(root: str, name: str) -> bytes:
    """The guest's file, nothing where it cannot be read."""
    try:
        return configs.read_guest(root, name) or b""
    except HostError:
        return b""


def remember(root: str = "") -> None:
    """Keep what is made of the files that there are now, for the next runs. Raises HostError and ConfigError.

    A guest whose file is wrong is left out, so that each run tells of it.
    """
    names = [name for name in configs.names(root) if is_name(name)]
    rendered.forget(root, names)
    host_content = configs.read_host(root)
    host, source = _host(host_content), rendered.Source(host_content)
    for name in names:
        content = _content(root, name)
        if not content or rendered.read(root, name, key := source.key(name, content)):
            continue
        with contextlib.suppress(ConfigError):
            rendered.write(root, name, key, _made(name, content, host, host_content))


def _isolated(root: str) -> list[str]:
    """The guests that run isolated."""
    try:
        return sorted(filter(is_name, os.listdir(root + paths.ISOLATED)))
    except OSError:
        return []


def _host(content: bytes) -> Host:
    from kvmsup.model import config  # to read TOML takes half of the time, and mostly nothing was edited

    return config.read_host(configs.HOST_FILE, content)


def convert(name: str, root: str, host: Host, host_content: bytes) -> dict[str, str]:
    """The drop-ins of the guest called `name`. Raises KvmsupError."""
    if not is_name(name):
        what = f"{configs.guest_file(name)}: {name!r} cannot name a guest"
        raise KvmsupError(what, NAME_RULE, "file-wrong")
    content = configs.read_guest(root, name)
    return {} if content is None else _made(name, content, host, host_content)  # removed since it was listed


def _made(name: str, content: bytes, host: Host, host_content: bytes) -> dict[str, str]:
    from kvmsup.model import config
    from kvmsup.plan import dropin

    file = configs.guest_file(name)
    guest = config.read_guest(name, file, content).guest
    return dropin.render(guest, host, file, agreed.fingerprint(content, host_content))


def _write(path: str, text: str) -> None:
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
    except OSError as error:
        raise HostError(f"{path}: cannot write: {error.strerror}") from None
    files.replace(path, text)


def tell(error: KvmsupError, root: str, guest: str = "") -> None:
    """The findings, a line each, into the journal; into the kernel's log where there is none, as at early boot.

    On standard error without either.
    """
    from kvmsup.effects import journal  # good files have no need of it

    found = error.diagnostics if isinstance(error, ConfigError) else ()
    lines = [str(one).splitlines()[0] for one in found if one.severity == "error"] or str(error).splitlines()
    more = len(lines) - _MOST_LINES
    lines = [*lines[:_MOST_LINES], *([f"and {more} more findings: kvmsup check"] if more > 0 else ())]
    # Anything in a file may end up in a message; a line of a log is printable and bounded.
    printable = [files.printable(line)[:800] for line in lines]
    if _SYSTEMD in os.environ and journal.report(root, _PROGRAM, guest, "\n".join(printable), error.catalog):
        return
    for line in printable:
        try:
            files.write_attribute(f"{root}/dev/kmsg", f"<3>{_PROGRAM}[{os.getpid()}]: {line}\n")
        except HostError:
            print(line, file=sys.stderr)
