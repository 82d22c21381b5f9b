# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest's credentials and its cloud-init seed: what systemd loads for QEMU, and where QEMU finds it; pure.

systemd reads the files as root and leaves copies in memory that only the unit's own user can read, until it ends. So
a source may be for root alone, and no secret is in an argv, an environment or a journal.
"""

from __future__ import annotations

from kvmsup.model.guest import OWN, Credential, Guest
from kvmsup.plan import unitfile
from kvmsup.records import NamedTuple

# Set for create, where it shall make a seed: the guest's name.
SEED = "KVMSUP_SEED"
# What makes the seed.
PROGRAM = "/usr/bin/xorriso"
INSTALL = "apt install xorriso"
# What a guest's systemd imports (systemd(1), "System credentials"; docs/specs/fw_cfg.rst of QEMU).
_ITEM = "opt/io.systemd.credentials/"
# All of a unit's credentials together, names included (src/shared/creds-util.h, CREDENTIALS_TOTAL_SIZE_MAX).
MOST_BYTES = 1 << 20

USER_DATA, META_DATA, NETWORK_CONFIG = "user-data", "meta-data", "network-config"


class Item(NamedTuple):
    """A file that QEMU shows to the guest under the fw_cfg name `name`."""

    name: str
    path: str


def directory(guest: str) -> str:
    """Where the unit's credentials are while it runs (systemd.exec(5), "$CREDENTIALS_DIRECTORY")."""
    return f"/run/credentials/kvm@{guest}.service"


def items(guest: Guest) -> list[Item]:
    """The credentials as QEMU is told of them."""
    where = directory(guest.name)
    return [Item(f"{_ITEM}{one.name}", f"{where}/{one.name}") for one in guest.credentials]


def seed_sources(guest: Guest) -> list[Credential]:
    """The files of the seed that the guest's TOML names, each under the name that its unit loads it by."""
    if guest.cloud_init is None:
        return []
    pairs = zip((USER_DATA, META_DATA, NETWORK_CONFIG), guest.cloud_init, strict=True)
    return [Credential(f"{OWN}{name}", path) for name, path in pairs if path]


def directives(guest: Guest) -> list[str]:
    """The lines of the unit that load the sources, and make the seed of them."""
    loaded = (*guest.credentials, *seed_sources(guest))
    made = [f"Environment={unitfile.assignment(SEED, guest.name)}"] if guest.cloud_init else []
    return [*(f"LoadCredential={one.name}:{unitfile.text(one.path)}" for one in loaded), *made]


def keys(guest: Guest) -> list[Credential]:
    """Every source with its key in the guest's file."""
    seed = [Credential(f"cloud-init.{one.name.removeprefix(OWN)}", one.path) for one in seed_sources(guest)]
    return [*(Credential(f"credentials.{one.name}", one.path) for one in guest.credentials), *seed]


# What cloud-init tells the kind of user-data by (cloudinit/handlers/__init__.py, INCLUSION_TYPES_MAP; user_data.py).
_KINDS = (
    *(b"#cloud-config", b"#!", b"#include", b"#cloud-boothook", b"#part-handler", b"## template: jinja"),
    *(b"Content-Type:", b"MIME-Version:", b"From ", b"\x1f\x8b"),
)


def is_known(user_data: bytes) -> bool:
    """Whether cloud-init will know what `user_data` is, by its beginning. It passes over what it does not know."""
    return not user_data.strip() or user_data.lstrip().lower().startswith(tuple(kind.lower() for kind in _KINDS))


def meta_data(guest: str) -> str:
    """The seed's meta-data where the guest's file names none.

    cloud-init does once for each instance-id what would do harm twice, such as users' commands and new ssh host keys.
    A guest of another name, cloned from this one's disk, is a new instance; an edit of user-data makes none.
    The values are quoted: a guest may be called "no".
    """
    return f'instance-id: "kvmsup-{guest}"\nlocal-hostname: "{guest}"\n'
