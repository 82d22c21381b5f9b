# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvm@NAME, ExecStartPre= of a guest with images of its own, or a seed: makes those images that are not there, and it.

It runs as the guest's user in the guest's sandbox. An image is made under another name and gets its own only when it
is whole and on the disk, so that one that is there is never touched, whatever ended this program before.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

from kvmsup import sizes
from kvmsup.effects import cloning, headers, journal
from kvmsup.errors import HostError, KvmsupError
from kvmsup.plan import firstboot, images, paths
from kvmsup.plan.images import Image
from kvmsup.steps import step


def main(_name: str) -> int:
    """Make what the guest lacks; 0, or 1 with the reason on standard error. All it needs is in its environment."""
    try:
        run(os.environ)
    except KvmsupError as error:
        journal.say(journal.ERROR, f"{error}")
        return 1
    return 0


def run(environment: Mapping[str, str]) -> None:
    """Make the images and the seed that `environment` tells of. Raises KvmsupError, with no unfinished image left."""
    if images.VARIABLE in environment or firstboot.SEED not in environment:
        _make_images(environment)
    if firstboot.SEED in environment:
        from kvmsup.effects import seed  # most guests have none

        name = environment[firstboot.SEED]
        step("create.seed")
        seed.make(name, environment.get("CREDENTIALS_DIRECTORY", ""), paths.seed(name))


def _make_images(environment: Mapping[str, str]) -> None:
    directory = environment.get("STATE_DIRECTORY")
    if not directory:
        raise HostError("create is run by kvm@.service, with StateDirectory=")
    wanted = images.parse(environment.get(images.VARIABLE, "[]"))
    template = environment.get("KVMSUP_NVRAM_TEMPLATE", "")
    step("create.sweep")
    cloning.sweep(directory)
    step("create.images")
    for image in wanted:
        with _about(image.about):
            _ensure(directory, image)
    if template:
        step("create.nvram")
        with _about("machine.firmware"):
            _ensure_nvram(directory, template)


@contextlib.contextmanager
def _about(key: str) -> Iterator[None]:
    """Have what is raised begin with the key in the guest's file."""
    try:
        yield
    except HostError as error:
        what = error.what if error.what.startswith(key) else f"{key}: {error.what}"
        raise HostError(what, error.hint) from None


def _ensure(directory: str, image: Image) -> None:
    path = f"{directory}/{image.file}"
    if os.path.lexists(path):
        _look_at(path, image)
    elif image.base:
        _clone(directory, image)
    elif image.size:
        with cloning.making(directory, image.file) as part:
            cloning.empty(part, image.format, image.size)
        journal.say(journal.NOTICE, f"{image.about}: made {image.file}, {sizes.render(image.size)}")
    else:
        what = f"there is no {image.file} in {directory}"
        raise HostError(what, 'size = "20G" makes an empty one, base = "/…" a copy')


def _look_at(path: str, image: Image) -> None:
    """One that is there is left as it is, but it must be what the file says."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"{image.file}: cannot open: {error.strerror}") from None
    try:
        headers.check(descriptor, image.file, image.format)
        size = headers.size(descriptor, image.file, image.format)
    finally:
        os.close(descriptor)
    if image.size and size != image.size:
        what = f"{image.about}: {image.file} has {sizes.render(size)} and not {sizes.render(image.size)}"
        journal.say(journal.WARNING, f"{what}: it is left as it is")


def _clone(directory: str, image: Image) -> None:
    """A copy of the base, as large as it or larger."""
    try:
        source = os.open(image.base, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        what = f"{image.about}.base: {image.base}: cannot open: {error.strerror}"
        raise HostError(what, "the guest's own user must be able to read it") from None
    try:
        headers.check(source, image.base, image.base_format)
        size = headers.size(source, image.base, image.base_format)
        images.check_fits(image.about, image.size, image.base, size)
        with cloning.making(directory, image.file) as part:
            if image.format != image.base_format or not cloning.share(source, part):
                cloning.convert(image.about, image.base, image.base_format, part, image.format)
            if image.size > size:
                cloning.resize(part, image.format, image.size)
    finally:
        os.close(source)
    journal.say(journal.NOTICE, f"{image.about}: made {image.file} from {image.base}")


def _ensure_nvram(directory: str, template: str) -> None:
    """What the guest's UEFI keeps, such as its boot entries, begins as the package has it."""
    path = f"{directory}/{images.NVRAM}"
    if not os.path.lexists(path):
        with cloning.making(directory, images.NVRAM) as part:
            cloning.copy(template, part)
        return
    try:
        sizes_of = [os.stat(one).st_size for one in (path, template)]
    except OSError as error:
        raise HostError(f"{error.filename}: cannot be looked at: {error.strerror}") from None
    if sizes_of[0] != sizes_of[1]:
        # Seen with OVMF: it looks in the wrong place, and keeps its variables in memory.
        what = f"{images.NVRAM} has {sizes.render(sizes_of[0])}, and this firmware's has {sizes.render(sizes_of[1])}"
        hint = f"{path} is left as it is; without it a new one is made at the next start"
        journal.say(journal.WARNING, f"machine.firmware: {what}: it will not find its boot entries\n  hint: {hint}")
