# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where on the guest's PCI bus its disks and NICs sit; pure.

Places follow from the order in the TOML alone, so that addresses, and names of interfaces made from them, stay what
they are when a device is backed by something else, or plugged instead of started with.
"""

from __future__ import annotations

from kvmsup.model.guest import has_pcie
from kvmsup.records import NamedTuple

# Slots of the root bus. Below are what QEMU numbers by itself, above is what q35 has built in (hw/i386/pc_q35.c).
NIC_SLOTS = range(0x10, 0x14)
DISK_SLOTS = range(0x14, 0x1E)
# Behind the disks, which so keep their names in the guest: Linux numbers them by their places.
SEED_SLOTS = range(0x1E, 0x1F)
FUNCTIONS = 8


class Port(NamedTuple):
    """A PCIe root port for one device; where there is no PCIe, the slot for it and no port."""

    id: str  # "" without PCIe
    slot: int
    function: int

    @property
    def bus(self) -> str:
        """What the device names as its bus."""
        return self.id or "pci.0"

    @property
    def place(self) -> dict[str, str]:
        """The properties by which the device goes there."""
        return {"bus": self.id} if self.id else {"bus": "pci.0", "addr": f"{self.slot:02x}.0"}

    @property
    def options(self) -> dict[str, str | int]:
        """The port's own properties.

        A chassis is unique among ports. Nothing that is plugged there has I/O ports, of which the guest's firmware
        would reserve 4 KiB each, and there are 64 KiB (qemu docs/pcie.txt).
        """
        first = NIC_SLOTS.start
        return {
            "id": self.id,
            "bus": "pcie.0",
            "addr": f"{self.slot:02x}.{self.function}",
            "chassis": (self.slot - first) * FUNCTIONS + self.function + 1,
            "multifunction": "on",
            "io-reserve": 0,
        }


def most(slots: range, machine: str) -> int:
    """How many devices there is room for in `slots`."""
    return len(slots) * (FUNCTIONS if has_pcie(machine) else 1)


def port(slots: range, index: int, about: str, machine: str) -> Port:
    """The place of device number `index` of its kind, which the TOML calls `about`."""
    if not has_pcie(machine):
        return Port("", slots[index], 0)
    return Port(f"port.{about}", slots[index // FUNCTIONS], index % FUNCTIONS)
