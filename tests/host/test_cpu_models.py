# SPDX-License-Identifier: LGPL-2.1-or-later
"""What `kvmsup cpu-models` and `kvmsup check` say of a CPU model is what becomes of a guest that asks for it."""

from __future__ import annotations

import pytest

from tests.host import guests
from tests.lab.host import Host

# The lab's KVM lacks these of EPYC-v1.
LACKING = ("vme", "cx16", "fxsr-opt", "misalignsse", "osvw", "xsavec")


def guest(cpu: str) -> str:
    return f"{guests.SHARED}[cpu]\n{cpu}"


# By guest: its file, and what is said of it with the hint.
REFUSED: dict[str, tuple[str, dict[str, str]]] = {
    "typo": (
        guest('model = "EPYX"\nfeatures = ["-avxx"]\n'),
        {
            "cpu.model: QEMU has no CPU model EPYX": "did you mean EPYC? kvmsup cpu-models lists them all",
            "cpu.features[0]: QEMU has no CPU feature avxx": 'did you mean "-avx"?',
        },
    ),
    "unusable": (
        guest('model = "pentium3"\nfeatures = ["+avx512f"]\n'),
        {
            "cpu.model: pentium3 needs what this host lacks: vme": 'model = "qemu32-v1", or features = ["-vme"];',
            "cpu.features[0]: this host has no avx512f": "leave it out",
        },
    ),
}
NAMED = guest('model = "qemu32"\nfeatures = ["+avx2", "-sse4a"]\n')


@pytest.fixture(scope="module", autouse=True)
def configured(host: Host) -> None:
    guests.keep_supervisor(host)
    guests.configure(host, {"named": NAMED} | {name: text for name, (text, _) in REFUSED.items()})


def test_the_list_knows_what_runs_here(host: Host) -> None:
    listed = {one["name"]: one for one in guests.kvmsup(host, "cpu-models")["models"]}
    usable = {one["name"] for one in guests.kvmsup(host, "cpu-models --usable")["models"]}
    assert usable == {name for name, one in listed.items() if not one["missing"]}
    assert {"host", "max", "qemu32"} <= usable
    assert listed["qemu32"]["alias_of"] == "qemu32-v1"
    assert listed["EPYC-v1"]["missing"] == list(LACKING)
    assert listed["EPYC"]["alias_of"] == "EPYC-v1"
    one = host.run("kvmsup cpu-models EPYC", check=False)
    assert (one.rc, one.stdout.splitlines()[0]) == (1, "EPYC, which is EPYC-v1 with q35: unusable on this host")
    assert host.run("pgrep -c qemu-system", check=False).stdout == "0\n"


def test_what_is_usable_runs_and_has_it_all(host: Host) -> None:
    assert host.run("kvmsup check named").rc == 0
    guests.start(host, "named")
    status = guests.kvmsup(host, "status named")
    assert status["cpu"] == {"model": "qemu32", "features": ["+avx2", "-sse4a"], "missing": []}
    assert status["drift"] is False
    assert "enforce=on" in host.read(f"/proc/{guests.pid(host, 'named')}/cmdline")
    guests.kill(host, "named")


def test_a_guest_without_enforce_that_lacks_features_is_seen(host: Host) -> None:
    """Somebody edits the command line: status says what the guest lacks, and exits 1."""
    line = host.run("systemctl show -P ExecStart kvm@named").stdout.partition("argv[]=")[2].partition(" ; ")[0]
    weak = line.replace("qemu32,+avx2,-sse4a,enforce=on", "pentium3,+avx512f")
    assert weak != line
    drop_in = "/run/systemd/system/kvm@named.service.d/99-weak.conf"
    host.run("mkdir -p /run/systemd/system/kvm@named.service.d")
    host.put(f"[Service]\nExecStart=\nExecStart={weak}\n".encode(), drop_in)
    host.run("systemctl daemon-reload")
    guests.start(host, "named")
    told = host.run("kvmsup status named", check=False)
    assert told.rc == 1
    assert "  cpu        pentium3 +avx512f, drift: it lacks vme, avx512f\n" in told.stdout
    guests.kill(host, "named")
    host.run(f"rm {drop_in}; systemctl daemon-reload")


def test_what_is_unusable_is_refused_by_check_and_at_start_alike(host: Host) -> None:
    checked = host.run(f"kvmsup check {' '.join(REFUSED)}", check=False)
    assert checked.rc == 1
    names = " ".join(f"kvm@{name}" for name in REFUSED)
    assert host.run(f"systemctl start {names}", check=False, timeout=240).rc == 1
    for name, (_, sentences) in REFUSED.items():
        assert guests.state(host, f"kvm@{name}") == "failed"
        for said in (checked.stderr, guests.said(host, name)):
            lines = [line for line in said.splitlines() if not line.startswith("qemu-system")]
            told = {line.partition(": ")[2]: lines[at : at + 4] for at, line in enumerate(lines)}
            for sentence, hint in sentences.items():
                assert told[sentence][0].startswith(f"/etc/kvmsup/{name}.toml:")
                assert "^" in told[sentence][2]
                assert hint in told[sentence][3]
    host.run("systemctl reset-failed 'kvm*'")
    for name in REFUSED:
        guests.released(host, name)
    assert guests.leftovers(host) == []


@pytest.mark.linux_guests
def test_a_guest_sees_its_model_and_siblings(fresh_host: Host) -> None:
    """A Linux guest of a named model: what it was not to have is not in its /proc/cpuinfo."""
    guests.install_demo(fresh_host)
    demo = fresh_host.read("/etc/kvmsup/demo.toml")
    without = ", ".join(f'"-{name}"' for name in LACKING)
    cpu = f'model = "EPYC-v1"\nfeatures = [{without}]\nvcpus = 2\ncores = 1\nthreads = 2\n'
    head, _, rest = demo.partition("[cpu]\n")
    guests.configure(fresh_host, {"demo": f"{head}[cpu]\n{cpu}\n[{rest.partition('[')[2]}"})
    guests.start(fresh_host, "demo")
    guests.booted(fresh_host, "demo")
    said = guests.said(fresh_host, "demo")
    assert "model: AMD EPYC Processor" in said
    assert said.count("core 0 siblings 0-1") == 2
    assert guests.kvmsup(fresh_host, "status demo")["cpu"]["missing"] == []
    flags = guests.inside(fresh_host, "demo", "grep -m1 ^flags /proc/cpuinfo").split()
    assert {"avx2", "sha_ni", "topoext"} <= set(flags)
    assert not {"vme", "cx16", "misalignsse", "osvw", "xsavec"} & set(flags)
    guests.stop(fresh_host, "demo")
    assert guests.leftovers(fresh_host) == []
