# SPDX-License-Identifier: LGPL-2.1-or-later
"""CPUs have owners: many guests at once, siblings, the host's own limits; read back from claims and from /proc."""

from __future__ import annotations

import pytest

from kvmsup import cpulist
from tests.host import guests
from tests.lab import still
from tests.lab.host import Host

MANY = 20  # the soak has 50
ONE = guests.TINY.replace("vcpus = 2", "vcpus = 1").replace('hugepages = "2M"', "")
PAIR = f"""
[machine]
type = "pc-q35-7.2"
kernel = "{still.PATH}"
[cpu]
vcpus = 2
%s
[placement]
cpus = "dedicated"
%s
[memory]
size = "64M"
"""


@pytest.fixture(scope="module", autouse=True)
def prepared(host: Host) -> None:
    guests.keep_supervisor(host)


def test_as_many_win_as_fit_and_the_others_are_told_who_holds(host: Host) -> None:
    """Guests that want one CPU each start at once; 6 of the host's 8 are there for guests."""
    names = [f"g{number}" for number in range(MANY)]
    guests.configure(host, dict.fromkeys(names, ONE))
    guests.be_patient_with(host, "kvm-setup@.service")
    # One transaction: as many calls of systemctl would come one after the other.
    wants = "\n".join(f"Wants=kvm@{name}.service" for name in names)
    host.put(f"[Unit]\n{wants}\n".encode(), "/run/systemd/system/many.target")
    host.run("systemctl daemon-reload; systemctl start --no-block many.target", timeout=120)
    host.wait_for("jobs=$(systemctl list-jobs --no-legend 'kvm*') && [ -z \"$jobs\" ]", timeout=500)
    claims = host.run("cd /run/kvmsup/claims; grep -H VCPU_CPUS= *.env").stdout.split()
    owned = {line.partition(".env:")[0]: line.partition("=")[2] for line in claims}
    assert sorted(owned.values()) == list("234567")
    for name, cpu in owned.items():
        assert guests.state(host, f"kvm@{name}") == "active"
        assert guests.allowed(host, guests.pid(host, name))["CPU 0/KVM"] == cpu
    lost = sorted(set(names) - set(owned))
    assert len(lost) == MANY - 6
    states = host.run("systemctl show -P ActiveState " + " ".join(f"kvm@{name}" for name in lost)).stdout.split()
    assert set(states) <= {"inactive", "failed"}
    refusals = host.run(
        "journalctl --sync; journalctl --boot --output=cat | grep -c '^1 dedicated CPU: there is room for 0'"
    )
    assert int(refusals.stdout) >= len(lost)
    said = guests.said(host, lost[0])
    assert any(f"CPU {cpu} is dedicated to guest {name}" in said for name, cpu in owned.items())
    host.run("systemctl kill -s KILL " + " ".join(f"kvm@{name}" for name in owned))
    for name in owned:
        guests.kill(host, name)
    host.run("rm /etc/kvmsup/g*.toml; systemctl reset-failed 'kvm*'", check=False)
    assert guests.leftovers(host) == []


def test_siblings_are_kept_together_apart_or_idle(host: Host) -> None:
    texts = {
        "pair": PAIR % ('threads = 2\nfeatures = ["+topoext"]', ""),
        "apart": PAIR % ("", 'smt = "isolate"'),
    }
    guests.configure(host, texts)
    guests.start(host, "apart")
    claim = guests.claim(host, "apart")
    # A core of its own for each vCPU, on one node, and nobody beside it.
    assert (claim["VCPU_CPUS"], claim["IDLE_CPUS"]) == ("4 6", "5,7")
    guests.start(host, "pair")
    assert guests.claim(host, "pair")["VCPU_CPUS"] == "2 3"
    siblings = host.read("/sys/devices/system/cpu/cpu2/topology/thread_siblings_list").strip()
    assert cpulist.parse(siblings) == {2, 3}
    guests.configure(host, {"third": ONE})
    assert guests.start(host, "third", check=False).rc == 1
    assert "CPU 2-3 are dedicated to guest pair, CPU 4-7 are dedicated to guest apart" in guests.said(host, "third")
    for name in texts:
        guests.kill(host, name)
    assert guests.leftovers(host) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (PAIR % ("", "[placement.vcpu]\n0 = '2'\n1 = '12'"), "this host has no CPU 12\n  12 | 1 = '12'"),
        (PAIR % ("", "[placement.vcpu]\n0 = '2'\n1 = '7'"), "CPU 7 is offline"),
        (PAIR % ("threads = 2", "[placement.vcpu]\n0 = '2'\n1 = '4'"), "CPU 4 is no SMT sibling of vCPU 0's CPU 2"),
        (PAIR % ("threads = 2\nvcpus = 3", ""), "Cannot overwrite a value"),
        (PAIR % ("threads = 2\nmaxcpus = 3", ""), "sockets 1 × dies 1 × cores 1 × threads 2 = 2, but maxcpus = 3"),
        (PAIR % ("model = 'hots'", ""), "did you mean host?"),
        (guests.SHARED + "[placement]\nscheduler = 'fifo:1'\n", "would starve whatever else runs there"),
    ],
)
def test_bad_input_is_told_by_check_and_by_start(host: Host, text: str, said: str) -> None:
    host.run("echo 0 > /sys/devices/system/cpu/cpu7/online")
    guests.configure(host, {"bad": text})
    told = host.run("kvmsup check bad", check=False)
    host.run("echo 1 > /sys/devices/system/cpu/cpu7/online; rm /etc/kvmsup/bad.toml")
    assert told.rc == 1
    assert said in told.stderr


def test_more_vcpus_than_the_host_has_cpus(host: Host) -> None:
    guests.configure(host, {"huge": ONE.replace("vcpus = 1", "vcpus = 9")})
    assert guests.start(host, "huge", check=False).rc == 1
    said = guests.said(host, "huge")
    assert "9 dedicated CPUs: there is room for 2 on node 0 (CPU 2-3), 4 on node 1 (CPU 4-7)" in said
    assert guests.leftovers(host) == []
