# SPDX-License-Identifier: LGPL-2.1-or-later
"""One field finds all that concerns a guest, whoever says it, and nothing else; and journalctl -x explains it."""

from __future__ import annotations

import pytest

from kvmsup.catalog import IDS
from tests.host import guests
from tests.lab.host import Host

pytestmark = pytest.mark.linux_guests

# No field of a stored entry has the name twice: units add it to what their programs say of the very guest.
ONLY = "KVMSUP_GUEST"


@pytest.fixture(scope="module")
def lived(host: Host) -> Host:
    """Guest demo has booted, was moved home, reloaded, and stopped beside guest tiny; then both failed to start."""
    guests.install_demo(host)
    guests.configure(host, {"demo": guests.LINUX, "tiny": guests.SHARED})
    guests.keep_supervisor(host)
    guests.start(host, "tiny")
    guests.start(host, "demo")
    guests.booted(host, "demo")
    host.put(guests.LINUX.replace("192M", "200M").encode(), "/etc/kvmsup/demo.toml")
    host.run("systemctl reload kvm@demo", timeout=120)
    shaken(host)
    guests.stop(host, "demo")
    guests.kill(host, "tiny")
    for name, fault in (("demo", "attach.pin:error"), ("tiny", "setup.place:error")):
        refuse(host, name, fault)
    return host


def shaken(host: Host) -> None:
    """Somebody moves a vCPU of guest demo to another guest's place, and the supervisor puts it back."""
    process = guests.pid(host, "demo")
    vcpu = host.run(f"grep -lx 'CPU 0/KVM' /proc/{process}/task/*/comm | cut -d/ -f5").stdout.strip()
    host.run(f"taskset -p 1 {vcpu} && systemctl reload kvmsup")
    host.wait_for(f"journalctl -b MESSAGE_ID={IDS['threads-moved']} KVMSUP_GUEST=demo | grep -q 'vCPU 0'", timeout=60)


def refuse(host: Host, name: str, fault: str) -> None:
    """Start guest `name` with a fault in its way, from its file as it is."""
    for unit in (f"kvm@{name}", f"kvm-setup@{name}"):
        host.run(f"mkdir -p /run/systemd/system/{unit}.service.d")
        text = f"[Service]\nEnvironment=KVMSUP_FAULT={fault}\n"
        host.put(text.encode(), f"/run/systemd/system/{unit}.service.d/fault.conf")
    host.run("systemctl daemon-reload")
    assert guests.start(host, name, check=False).rc == 1
    guests.released(host, name)


def by(entries: list[guests.Entry], unit: str) -> list[str]:
    """What the unit's programs have said. One that had ended before the journal read it is known by its own word."""
    return [entry["MESSAGE"] for entry in entries if unit in {entry.get("_SYSTEMD_UNIT"), *under(entry)}]


def under(entry: guests.Entry) -> list[str]:
    """The units that an entry is logged under besides its sender's own. Of several the journal makes a list."""
    units = entry.get("OBJECT_SYSTEMD_UNIT", [])
    return [units] if isinstance(units, str) else units


def test_one_field_finds_all_that_concerns_a_guest(lived: Host) -> None:
    entries = guests.entries(lived, "KVMSUP_GUEST=demo")
    # The console; what stop, reload and attach say in the guest's unit; QEMU itself is silent in a good life.
    guest = by(entries, "kvm@demo.service")
    assert any(guests.READY in text for text in guest)
    assert "memory.size 192M → 200M, needs a restart" in "\n".join(guest)
    assert "the guest has shut down" in guest
    assert "a fault was injected at the step attach.pin (KVMSUP_FAULT)" in guest
    # Of whichever occasion to look came first, after one reload or the other.
    assert any("vCPU 0 (thread " in text and "is back on" in text for text in by(entries, "kvmsup.service"))


def test_setup_says_whose_start_it_refuses(lived: Host) -> None:
    refused = "a fault was injected at the step setup.place (KVMSUP_FAULT)"
    (entry,) = [one for one in guests.entries(lived, "KVMSUP_GUEST=tiny") if one["MESSAGE"] == refused]
    assert under(entry) == ["kvm@tiny.service", "kvm-setup@tiny.service"]
    assert entry["MESSAGE_ID"] == IDS["start-refused"]
    assert entry[ONLY] == "tiny"


def test_nothing_is_found_that_concerns_another_guest(lived: Host) -> None:
    for mine, other in (("demo", "tiny"), ("tiny", "demo")):
        entries = guests.entries(lived, f"KVMSUP_GUEST={mine}")
        assert entries
        assert {entry[ONLY] for entry in entries} == {mine}
        units = [entry.get(field, "") for entry in entries for field in ("_SYSTEMD_UNIT", "UNIT")]
        assert not [unit for unit in units if f"@{other}." in unit]


def test_whatever_the_guests_units_show_is_found_by_the_field(lived: Host) -> None:
    """systemd's own words on them included, and nothing is there twice."""
    for name in ("demo", "tiny"):
        shown = guests.entries(lived, f"-u kvm@{name} -u kvm-setup@{name}")
        cursors = {entry["__CURSOR"] for entry in guests.entries(lived, f"KVMSUP_GUEST={name}")}
        assert [entry["MESSAGE"] for entry in shown if entry["__CURSOR"] not in cursors] == []
        told = [entry["MESSAGE"] for entry in shown if entry.get("SYSLOG_IDENTIFIER") == "kvmsup"]
        assert told
        assert sorted(told) == sorted(set(told))


def test_what_qemu_says_is_found(lived: Host) -> None:
    """A CPU that this host cannot have: in QEMU's words, and then in ours."""
    guests.configure(lived, {"picky": guests.SHARED + '[cpu]\nmodel = "pentium3"\nfeatures = ["+avx512f"]\n'})
    assert guests.start(lived, "picky", check=False).rc == 1
    entries = guests.entries(lived, "KVMSUP_GUEST=picky")
    qemu = [one["MESSAGE"] for one in entries if one.get("SYSLOG_IDENTIFIER") == "qemu-system-x86_64"]
    assert any("support requested feature" in text for text in qemu)
    ours = {one["MESSAGE_ID"]: one["MESSAGE"] for one in entries if one.get("SYSLOG_IDENTIFIER") == "kvmsup"}
    assert ours.keys() == {IDS["start-failed"], IDS["file-wrong"]}
    assert "has no avx512f" in ours[IDS["file-wrong"]]
    lived.run("systemctl reset-failed 'kvm*'; rm /etc/kvmsup/picky.toml", check=False)


def test_a_refused_start_is_explained(lived: Host) -> None:
    """The catalog is there from the package's installation on: dpkg has systemd read it."""
    text = guests.SHARED + '[cpu]\nvcpus = 64\n[placement]\ncpus = "dedicated"\n'
    guests.configure(lived, {"greedy": text})
    assert guests.start(lived, "greedy", check=False).rc == 1
    for match in ("KVMSUP_GUEST=greedy", "-u kvm@greedy", f"MESSAGE_ID={IDS['no-cpus']}"):
        told = lived.run(f"journalctl --sync; journalctl -b --no-pager -x {match}").stdout
        assert "64 dedicated CPUs: there is room for" in told
        assert "░░ Subject: Guest greedy cannot have the host CPUs it asks for\n" in told
        assert "░░ Defined-By: kvmsup\n" in told
        assert '"kvmsup plan greedy"' in told
    status = lived.run("systemctl status --no-pager kvm@greedy", check=False).stdout
    assert "64 dedicated CPUs: there is room for" in status
    lived.run("systemctl reset-failed 'kvm*'; rm /etc/kvmsup/greedy.toml; systemctl daemon-reload", check=False)


def test_every_entry_is_in_the_hosts_catalog(host: Host) -> None:
    listed = host.run("journalctl --list-catalog --no-pager").stdout.splitlines()
    assert {line.split()[0] for line in listed if line.split()[1] == "kvmsup:"} == set(IDS.values())
