# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Debian package: what it installs, and that guests outlive its upgrade, its removal and needrestart."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.host import guests
from tests.lab.host import Host, Lab

PROGRAMS = ("/usr/bin/kvmsup", "/usr/lib/kvmsup/kvmsup-guest", "/usr/lib/systemd/system-generators/kvmsup-generator")
PAGES = (
    *("man1/kvmsup.1.gz", "man5/kvmsup.guest.5.gz", "man5/kvmsup.toml.5.gz", "man8/kvmsup-generator.8.gz"),
    *("man8/kvm@.service.8.gz", "man8/kvm-setup@.service.8.gz", "man8/kvm-dedicated.slice.8.gz"),
)
OTHER_SHELLS = ("zsh/vendor-completions/_kvmsup", "fish/vendor_completions.d/kvmsup.fish")
KEPT = ("/run/kvmsup/lib", "/run/systemd/system/kvm@.service", "/run/systemd/system/kvm-setup@.service")


def test_files_are_where_they_belong(host: Host) -> None:
    host.run("dpkg --verify kvmsup && test -d /etc/kvmsup")
    for program in PROGRAMS:
        assert host.run(f"stat -c '%U %a' {program}").stdout == "root 755\n"
    host.run(" && ".join(f"test -s /usr/share/man/{page}" for page in PAGES))
    host.run(" && ".join(f"test -s /usr/share/{file}" for file in OTHER_SHELLS))
    assert "demo/demo.toml" in host.run("find /usr/share/doc/kvmsup/examples -type f").stdout
    assert "first-guest.md" in host.run("ls /usr/share/doc/kvmsup/guides").stdout
    assert host.run("kvmsup --version").stdout.startswith("kvmsup ")


def test_every_module_is_compiled(host: Host) -> None:
    """The units start Python at every start of a guest, and cannot write below /usr."""
    count = "find /usr/lib/kvmsup -name '{}' | wc -l"
    modules = int(host.run(count.format("*.py")).stdout)
    assert int(host.run(count.format("*.pyc")).stdout) == modules > 20


def test_installing_starts_no_process(host: Host) -> None:
    assert host.run("pgrep -f '/usr/(lib/kvmsup|bin/kvmsup)'", check=False).stdout == ""
    assert guests.show(host, "kvmsup-reload.path", "ActiveState", "UnitFileState") == {
        "ActiveState": "active",
        "UnitFileState": "enabled",
    }
    assert guests.state(host, "kvmsup") == "inactive"
    assert host.run("systemctl list-units --all --no-legend 'kvm@*' 'kvm-setup@*'").stdout == ""


def test_an_edit_is_picked_up(host: Host) -> None:
    host.put(guests.SHARED.encode(), "/etc/kvmsup/picked.toml")
    host.wait_for("systemctl cat kvm@picked | grep -q guest=picked", timeout=30)
    host.run("rm /etc/kvmsup/picked.toml")
    host.wait_for("! systemctl cat kvm@picked | grep -q guest=picked", timeout=30)


def test_completion(host: Host) -> None:
    host.run("touch /etc/kvmsup/web.toml /etc/kvmsup/db.toml")
    verbs = set(re.findall(r"^    ([a-z-]+)\b", host.run("kvmsup --help").stdout, re.MULTILINE))
    assert {"balloon", "check", "status"} < verbs
    assert completed(host, "kvmsup", "") == verbs
    assert completed(host, "kvmsup", "status", "w") == {"web"}
    assert completed(host, "kvmsup", "check", "--r") == {"--root"}
    host.run("rm /etc/kvmsup/web.toml /etc/kvmsup/db.toml")


def test_completion_of_a_guest_that_runs(host: Host) -> None:
    """Its control group is where the completions look for it."""
    guests.configure(host, {"runs-now": guests.TINY})
    assert completed(host, "kvmsup", "console", "") == set()
    guests.start(host, "runs-now")
    assert completed(host, "kvmsup", "console", "") == {"runs-now"}
    assert completed(host, "kvmsup", "verify", "r") == {"runs-now"}
    guests.kill(host, "runs-now")
    assert completed(host, "kvmsup", "console", "") == set()
    host.run("rm /etc/kvmsup/runs-now.toml; systemctl start kvmsup-reload.path")


def completed(host: Host, *words: str) -> set[str]:
    """What bash would offer for the last of `words`."""
    line = " ".join(f"'{word}'" for word in words)
    source = "/usr/share/bash-completion/completions/kvmsup"
    script = (
        f'. {source}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _kvmsup; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    return set(host.run(script).stdout.split())


def test_upgrade_leaves_a_guest_alone(fresh_host: Host, deb: Path) -> None:
    guests.configure(fresh_host, {"tiny": guests.TINY})
    guests.start(fresh_host, "tiny")
    before = facts(fresh_host)
    fresh_host.wait_for("[ $(systemctl show -P ActiveState kvmsup) = active ]", timeout=60)
    supervisor = guests.show(fresh_host, "kvmsup", "MainPID")

    fresh_host.run(f"dpkg --install {newer(fresh_host, deb)}", timeout=180)
    assert facts(fresh_host) == before
    assert guests.state(fresh_host, "kvm@tiny") == "active"
    fresh_host.wait_for("[ $(systemctl show -P ActiveState kvmsup) = active ]", timeout=60)
    assert guests.show(fresh_host, "kvmsup", "MainPID") != supervisor
    assert fresh_host.run("systemctl list-units --failed --no-legend").stdout == ""
    guests.kill(fresh_host, "tiny")
    assert guests.leftovers(fresh_host) == []


def facts(host: Host) -> tuple[object, ...]:
    """What must not change for a running guest: QEMU, its threads' CPUs, its claim, its pages."""
    process = guests.pid(host, "tiny")
    pins = host.run(f"grep -H ^Cpus_allowed_list: /proc/{process}/task/*/status").stdout
    return process, pins, guests.claim(host, "tiny"), guests.pages(host)


def apt(host: Host, verb: str) -> str:
    """What apt and the package's scripts say; apt gives dpkg a terminal."""
    command = f"DEBIAN_FRONTEND=noninteractive apt-get {verb} -y kvmsup 2>&1"
    return host.run(command, timeout=240).stdout.replace("\r", "")


def newer(host: Host, deb: Path) -> str:
    """The package once more under a higher version, on the host."""
    host.put(deb, "/var/tmp/old.deb")
    host.run(
        "cd /var/tmp && rm -rf tree && dpkg-deb -R old.deb tree"
        " && sed -i 's/^Version: .*/&+1/' tree/DEBIAN/control && dpkg-deb -b tree new.deb",
        timeout=120,
    )
    return "/var/tmp/new.deb"


@pytest.mark.linux_guests
def test_removal_leaves_a_guest_alone_and_it_still_stops_cleanly(fresh_host: Host) -> None:
    guests.install_demo(fresh_host)
    guests.start(fresh_host, "demo")
    guests.booted(fresh_host, "demo")
    process, held = guests.pid(fresh_host, "demo"), guests.pages(fresh_host)

    told = apt(fresh_host, "remove")
    assert "these guests keep running: demo\n" in told
    assert "systemctl stop 'kvm@*'" in told
    fresh_host.run("test ! -e /usr/lib/kvmsup && test ! -e /usr/lib/systemd/system/kvm@.service")
    assert (guests.pid(fresh_host, "demo"), guests.pages(fresh_host)) == (process, held)
    assert guests.state(fresh_host, "kvm-setup@demo") == "active"
    # A restart could only stop it.
    assert "refused" in fresh_host.run("systemctl restart kvm@demo", check=False).stderr
    assert guests.pid(fresh_host, "demo") == process

    guests.stop(fresh_host, "demo")
    assert "demo: the power button was pressed, powering off" in guests.said(fresh_host, "demo")
    assert guests.show(fresh_host, "kvm@demo", "Result") == {"Result": "success"}
    assert guests.pages(fresh_host) == (0, 0)
    assert guests.leftovers(fresh_host) == []
    assert fresh_host.run("systemctl start kvm@demo", check=False).rc != 0
    apt(fresh_host, "purge")
    fresh_host.run("test ! -e /run/kvmsup && " + " && ".join(f"test ! -e {path}" for path in KEPT))


def test_a_package_that_is_back_has_its_guests_back(fresh_host: Host, deb: Path) -> None:
    guests.configure(fresh_host, {"tiny": guests.TINY})
    guests.start(fresh_host, "tiny")
    before = facts(fresh_host)
    units = guests.show(fresh_host, "kvm@tiny", "FragmentPath", "DropInPaths", "Slice")
    fresh_host.run("dpkg --remove kvmsup", timeout=180)
    fresh_host.run(" && ".join(f"test -e {path}" for path in KEPT))
    fresh_host.install(deb)
    fresh_host.run(" && ".join(f"test ! -e {path}" for path in KEPT))
    assert facts(fresh_host) == before
    assert guests.show(fresh_host, "kvm@tiny", "FragmentPath", "DropInPaths", "Slice") == units
    assert guests.kvmsup(fresh_host, "status tiny")["drift"] is False
    assert guests.state(fresh_host, "kvmsup") == "active"
    guests.kill(fresh_host, "tiny")
    assert guests.leftovers(fresh_host) == []


def test_needrestart_leaves_guests_alone(fresh_host: Host) -> None:
    """After an upgrade of a library that QEMU has mapped, everything else that uses it would be restarted."""
    guests.configure(fresh_host, {"tiny": guests.TINY})
    guests.start(fresh_host, "tiny")
    before = facts(fresh_host)
    mapped = f"sed -n 's/.* \\(\\/.*\\/libz\\.so.*\\)/\\1/p' /proc/{before[0]}/maps"
    library = fresh_host.run(f"{mapped} | head -n 1").stdout.strip()
    fresh_host.run(f"cp -p {library} {library}.new && mv {library}.new {library}")
    fresh_host.put(b"$nrconf{override_rc}->{qr(^lab-agent)} = 0;\n", "/etc/needrestart/conf.d/lab.conf")
    seen = fresh_host.run("needrestart -b", timeout=180).stdout
    assert "NEEDRESTART-SVC: kvm@tiny.service\n" in seen
    fresh_host.run("DEBIAN_FRONTEND=noninteractive needrestart -r a", timeout=240)
    assert facts(fresh_host) == before
    guests.kill(fresh_host, "tiny")


def test_removal_without_guests_leaves_nothing_behind(fresh_host: Host) -> None:
    told = fresh_host.run("dpkg --remove kvmsup 2>&1", timeout=180).stdout
    assert "keep running" not in told
    fresh_host.run("test ! -e /etc/kvmsup && " + " && ".join(f"test ! -e {path}" for path in KEPT))
    assert fresh_host.run("systemctl list-unit-files --no-legend 'kvm*'", check=False).stdout == ""
    assert "kvmsup" not in fresh_host.run("dpkg --purge kvmsup 2>&1 | grep 'left as it is' || true").stdout
    fresh_host.run("test ! -e /run/kvmsup && test ! -e /etc/needrestart/conf.d/kvmsup.conf")


def test_purge_keeps_the_administrators_files_and_names_them(fresh_host: Host) -> None:
    guests.configure(fresh_host, {"web": guests.SHARED})
    fresh_host.run("systemctl enable kvm@web; touch /etc/kvmsup.toml; mkdir -p /var/lib/kvmsup/web")
    told = apt(fresh_host, "purge")
    wanted = "/etc/systemd/system/multi-user.target.wants/kvm@web.service"
    for left in ("/etc/kvmsup/web.toml", "/etc/kvmsup.toml", wanted, "/var/lib/kvmsup/web"):
        assert f"left as it is: {left}\n" in told
    assert fresh_host.read("/etc/kvmsup/web.toml") == guests.SHARED
    fresh_host.run("test ! -e /run/kvmsup && test ! -e /etc/needrestart/conf.d/kvmsup.conf")
    fresh_host.run("test ! -e /etc/systemd/system/paths.target.wants/kvmsup-reload.path")
    assert fresh_host.run("find /var/lib/systemd/deb-systemd-helper-enabled -name 'kvm*'").stdout == ""


def test_purge_under_a_guest_lets_it_end_as_it_should(fresh_host: Host) -> None:
    guests.configure(fresh_host, {"tiny": guests.TINY})
    guests.start(fresh_host, "tiny")
    process, held = guests.pid(fresh_host, "tiny"), guests.pages(fresh_host)
    told = apt(fresh_host, "purge")
    assert "these guests keep running: tiny\n" in told
    assert "guests hold CPUs or memory of this host; /run/kvmsup is gone at the next boot\n" in told
    assert (guests.pid(fresh_host, "tiny"), guests.pages(fresh_host)) == (process, held)
    guests.kill(fresh_host, "tiny")
    assert guests.pages(fresh_host) == (0, 0)
    assert guests.leftovers(fresh_host) == []


def test_a_purge_leaves_nothing(still_lab: Lab, deb: Path) -> None:
    """The host's files before and after: installed, a guest with an image of its own, and all gone again."""
    with still_lab.fresh() as host:
        before = files(host)
        host.install(deb)
        image = '[disk.root]\npath = "root.raw"\nformat = "raw"\nsize = "1M"\n'
        guests.configure(host, {"tiny": guests.TINY + image})
        guests.start(host, "tiny")
        guests.kill(host, "tiny")
        assert "/var/lib/private/kvmsup/tiny/root.raw" in files(host)
        host.run(
            "rm -r /etc/kvmsup/tiny.toml /var/lib/private/kvmsup/tiny /var/lib/kvmsup/tiny; systemctl daemon-reload"
        )
        assert "left as it is" not in apt(host, "purge")
        assert files(host) - before == set()


def files(host: Host) -> set[str]:
    """All that bears a name of kvmsup's or of the guest, but for what dpkg, systemd and the journal keep."""
    others = ("/run/systemd/units", "/var/cache", "/var/lib/dpkg", "/var/log", "/var/tmp")
    pruned = " -o ".join(f"-path {path}" for path in others)
    found = host.run(f"find /etc /run /usr /var \\( {pruned} \\) -prune -o -print").stdout.splitlines()
    return {path for path in found if "kvm" in path or "tiny" in path}


def test_presets(still_lab: Lab, deb: Path) -> None:
    """No guest is enabled by a preset, edits are picked up, and the administrator's own presets come first."""
    with still_lab.fresh() as host:
        host.run("mkdir -p /etc/systemd/system-preset")
        host.put(b"disable kvmsup-reload.path\n", "/etc/systemd/system-preset/50-mine.preset")
        host.put(b"disable *\n", "/etc/systemd/system-preset/99-all.preset")
        host.install(deb)
        stopped = {"ActiveState": "inactive", "UnitFileState": "disabled"}
        assert guests.show(host, "kvmsup-reload.path", "ActiveState", "UnitFileState") == stopped

        host.run("apt-get purge -y kvmsup; rm /etc/systemd/system-preset/50-mine.preset", timeout=240)
        host.install(deb)
        started = {"ActiveState": "active", "UnitFileState": "enabled"}
        assert guests.show(host, "kvmsup-reload.path", "ActiveState", "UnitFileState") == started

        host.run("systemctl disable kvmsup-reload.path; systemctl enable kvm@web")
        host.run("systemctl preset kvmsup-reload.path kvm@web.service 'kvm@.service'")
        enabled = "systemctl is-enabled kvmsup-reload.path kvm@web.service"
        assert host.run(enabled, check=False).stdout.split() == ["enabled", "disabled"]
        assert host.run("ls /etc/systemd/system/*.wants | grep kvm@", check=False).stdout == ""
        # An upgrade leaves alone what the administrator has decided meanwhile.
        host.run("systemctl disable --now kvmsup-reload.path")
        host.install(deb)
        assert guests.show(host, "kvmsup-reload.path", "ActiveState", "UnitFileState") == stopped
