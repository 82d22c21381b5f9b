# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel of a guest that does nothing at all: it stops the timer and halts for good.

Firmware that finds nothing to boot wakes up at every tick, which is a tenth of one of the lab's emulated CPUs; a guest
with this kernel costs its host nothing.
"""

from __future__ import annotations

PATH = "/usr/local/lib/lab/still"

_SECTOR = 512
_CODE = 0x268  # behind the header of protocol 2.06
_HALT = bytes.fromhex(
    "fa"  # cli
    "b030 e643"  # mov al, 0x30; out 0x43, al: counter 0 of the 8254 waits for a count, and gets none
    "f4 ebfd"  # hlt; jmp to it
)


def kernel() -> bytes:
    """A bzImage of which only the setup is ever run (kernel: Documentation/arch/x86/boot.rst)."""
    image = bytearray(3 * _SECTOR)
    image[0x1F1] = 1  # setup_sects: one beside the boot sector; the third is the kernel, which must not be empty
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x200:0x202] = bytes((0xEB, _CODE - 0x202))  # jmp
    image[0x202:0x206] = b"HdrS"
    image[0x206:0x208] = (0x0206).to_bytes(2, "little")
    image[0x211] = 1  # loadflags: LOADED_HIGH
    image[_CODE : _CODE + len(_HALT)] = _HALT
    return bytes(image)
