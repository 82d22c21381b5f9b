# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a libvirt domain is called, its machine and what that boots → name, description and [machine]; pure."""

from __future__ import annotations

import re

from kvmsup.errors import KvmsupError
from kvmsup.model.guest import is_name
from kvmsup.plan.guestfile import Section
from kvmsup.plan.libvirt_xml import Node, short
from kvmsup.records import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

_LONGEST_NAME = 27
_LONGEST_DESCRIPTION = 200
_LONGEST_TEXT = 4096
_ALIASES = ("q35", "pc")
# Boards with PCI, whoever's QEMU it is: pc-q35-7.2, pc-q35-rhel8.6.0, pc-i440fx-jammy, pc-1.0, rhel6.5.0.
_MACHINE = r"pc-[A-Za-z0-9][A-Za-z0-9_.-]{0,60}|rhel[0-9][A-Za-z0-9_.-]{0,20}"
_EMULATORS = ("qemu-system-x86_64", "qemu-kvm", "kvm", "qemu-system-i386", "kvm-spice")


def check(domain: Node) -> None:
    """Raises KvmsupError for a domain that no guest of KVM on x86 can be."""
    kind = domain.attribute("type")
    if kind not in ("kvm", "qemu"):
        raise KvmsupError(f'a domain of the type "{short(kind)}" is no guest of QEMU', "kvm and qemu are imported")
    of = domain.at("os").at("type")
    arch = of.attribute("arch")
    if arch not in ("", "x86_64"):
        raise KvmsupError(f'the guest is of the architecture "{short(arch)}"', "kvmsup has x86_64 alone")
    if of.text() not in ("", "hvm"):
        raise KvmsupError(f'an operating system of the type "{short(of.text())}" is no virtual machine', "hvm is")


def name(domain: Node) -> str:
    """A guest's name, made from the domain's as far as that is none."""
    node = domain.at("name")
    asked = node.text()
    fit = re.sub(r"[^a-z0-9-]+", "-", asked.lower()[:200])
    fit = re.sub(r"^[^a-z]+", "", fit)[:_LONGEST_NAME].rstrip("-")
    fit = fit if is_name(fit) else "guest"
    if fit != asked:
        node.changed(f"{short(asked, 60) or 'nothing'} cannot name a guest; it is {fit}, or what --name says")
    return fit


def description(domain: Node) -> list[Section]:
    """One line of what the domain says about itself."""
    for tag in ("title", "description"):
        node = domain.at(tag)
        if text := short(node.text(), _LONGEST_DESCRIPTION):
            return [Section("", "", {"description": text})]
    return []


def read(domain: Node) -> Section:
    """[machine]. Raises KvmsupError for a board that there is not."""
    os = domain.at("os")
    kind = os.at("type").attribute("machine") or "pc"
    if kind not in _ALIASES and not re.fullmatch(_MACHINE, kind):
        raise KvmsupError(f'there is no machine type "{short(kind)}" here', "guests have pc-q35-… or pc-i440fx-…")
    values: dict[str, Any] = {"type": kind}
    if kind in _ALIASES:
        what = f"{kind} is the newest of QEMU's, and changes with it; name a version, as `kvmsup check` says"
        os.changed(what, "/type/@machine")
    if _is_uefi(os):
        values["firmware"] = "uefi"
    if domain.attribute("type") == "qemu":
        values["accel"] = "tcg"
    values |= _kernel(os)
    _emulator(domain)
    _ends(domain)
    comment = "" if kind in _ALIASES else "As in libvirt, so that the guest's hardware stays as it is."
    return Section("machine", comment, values)


def _is_uefi(os: Node) -> bool:
    firmware, loader, nvram = os.attribute("firmware"), os.at("loader"), os.at("nvram")
    path, kind = loader.text(), loader.attribute("type")
    uefi = firmware == "efi" or kind == "pflash" or bool(re.search("ovmf|edk2|efi", path, re.IGNORECASE))
    if loader.there and path and uefi:
        loader.changed("the firmware is what this host's packages have, without Secure Boot")
    elif loader.there and path and not re.search("bios", path, re.IGNORECASE):
        loader.lost("the firmware is QEMU's BIOS, or UEFI: machine.firmware")
    if uefi and nvram.there:
        into = (
            "/var/lib/kvmsup/NAME/nvram.fd, for root, before the first start keeps them where the sizes are the same"
        )
        where = f" of {short(nvram.text())}" if nvram.text() else ""
        nvram.lost(f"the variables{where} are not taken, boot entries among them: a copy as {into}")
    return uefi


def _kernel(os: Node) -> dict[str, str]:
    found: dict[str, str] = {}
    for tag, key in (("kernel", "kernel"), ("initrd", "initrd"), ("cmdline", "cmdline")):
        node = os.at(tag)
        text = node.text()
        if not text:
            continue
        if key != "kernel" and "kernel" not in found:
            node.lost("there is no kernel for it")
        elif key != "cmdline" and not text.startswith("/"):
            node.lost("is no absolute path")
        elif not text.isprintable() or len(text.encode()) > _LONGEST_TEXT:
            node.lost(f"is not one printable line of up to {_LONGEST_TEXT} bytes")
        else:
            found[key] = text
    return found


def _emulator(domain: Node) -> None:
    emulator = domain.at("devices").at("emulator")
    path = emulator.text()
    if path.rpartition("/")[2] not in ("", *_EMULATORS):
        emulator.lost("every guest has /usr/bin/qemu-system-x86_64")


def _ends(domain: Node) -> None:
    """What is as everywhere is not told."""
    for tag, usual in (("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "destroy")):
        for node in domain.all(tag):
            if node.text() == usual:
                node.passed()
            else:
                node.lost(_WHY_END[tag])
    clock = domain.at("clock")
    if (offset := clock.attribute("offset")) not in ("", "utc"):
        clock.part_lost(
            "/@offset", f"{short(offset)}: the guest's clock is UTC; Windows has RealTimeIsUniversal for that"
        )
    features = domain.at("features")
    if not features.at("acpi").there:
        domain.changed(
            "without it libvirt leaves ACPI out; every guest has it, with the power button", "/features/acpi"
        )
    vmport = features.at("vmport")
    if vmport.attribute("state") == "on":
        vmport.lost("VMware's port is off")


_WHY_END = {
    "on_poweroff": "a guest that shuts down ends its service; Restart=always in `systemctl edit kvm@NAME`",
    "on_reboot": "a guest that reboots stays in its QEMU",
    "on_crash": "a panic fails the service; Restart=on-failure in `systemctl edit kvm@NAME` starts it again",
}
