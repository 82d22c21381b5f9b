# SPDX-License-Identifier: LGPL-2.1-or-later
"""CPU models, over what two QEMUs really said, and with a QEMU that says something else."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmsup import cli
from kvmsup.cli import cpu_models
from kvmsup.effects import models as asking
from kvmsup.entry import explain
from kvmsup.errors import HostError
from kvmsup.model.guest import Cpu
from kvmsup.model.table import Problem
from kvmsup.plan import models
from kvmsup.plan.models import Catalogue, CpuModel, Given
from tests.unit import fake_qemu

NOTHING = Given("EPYC", (), "AuthenticAMD", topoext=True)


def cpu(model: str, *features: str, threads: int = 1) -> Cpu:
    return Cpu(model, features, 2, 2, 1, 1, 2 // threads, threads)


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Each test asks anew."""
    yield
    asking.catalogue.cache_clear()
    asking.given.cache_clear()


@pytest.fixture
def qemu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The fake that misbehaves as the parameter says instead of this machine's QEMU."""
    with fake_qemu.program(request.param) as path:
        monkeypatch.setattr(asking, "BINARY", path)
        yield


ten = pytest.mark.parametrize("qemu", ["models-10.0"], indirect=True)


@ten
@pytest.mark.usefixtures("qemu")
def test_what_is_read_of_qemu_10_under_kvm() -> None:
    known = asking.catalogue("q35", "kvm")
    assert (known.machine, known.accel) == ("q35", "kvm")
    assert known.models["host"] == CpuModel("host", "", (), False, False)
    assert known.models["qemu32"] == CpuModel("qemu32", "qemu32-v1", (), False, True)
    lacks = ("vme", "cx16", "fxsr-opt", "misalignsse", "osvw", "xsavec")
    assert known.models["EPYC"] == CpuModel("EPYC", "EPYC-v1", lacks, False, True)
    assert known.models["EPYC-IBPB"].alias_of == "EPYC-v2"
    assert [name for name, model in known.models.items() if model.usable] == [
        *("max", "host", "base", "qemu32-v1", "qemu32")
    ]
    assert {"avx2", "topoext", "sse4.1", "sse4-1", "hypervisor", "invtsc"} <= known.features
    assert not {"vendor", "model-id", "family"} & known.features
    given = asking.given("q35", "kvm", "EPYC", ("+topoext", "-vme"))
    assert given == Given("EPYC", ("cx16", "fxsr-opt", "misalignsse", "osvw", "xsavec"), "AuthenticAMD", topoext=True)


@pytest.mark.parametrize("qemu", ["models-7.2"], indirect=True)
@pytest.mark.usefixtures("qemu")
def test_what_is_read_of_qemu_7_2_under_emulation() -> None:
    known = asking.catalogue("q35", "tcg")
    assert known.models["host"].missing == ("kvm",)
    assert known.models["Westmere-v1"].usable
    assert "rdseed" in known.models["EPYC"].missing
    assert asking.given("q35", "tcg", "EPYC", ("+topoext", "-vme")).topoext is False


@pytest.mark.parametrize(
    ("qemu", "said"),
    [
        ("models-not-a-list", "QEMU's list of CPU models is not as its schema says"),
        ("models-without-names", "QEMU's list of CPU models is not as its schema says"),
        ("models-of-strings", "QEMU's list of CPU models is not as its schema says"),
        ("missing-not-a-list", "QEMU's list of CPU models is not as its schema says"),
        ("expansion-of-nothing", "QEMU's description of a CPU model is not as its schema says"),
        ("expansion-not-a-table", "QEMU's description of a CPU model is not as its schema says"),
        ("refuse-models", "QEMU refused query-cpu-definitions: query-cpu-definitions is not for you"),
        ("no-kvm", "failed to initialize kvm: No such file or directory"),
        ("die", "QEMU closed its monitor"),
        ("hang-up", "QEMU closed its monitor"),
        ("not-json", "QEMU sent something that is not JSON"),
        ("silence", "QEMU has not answered in time"),
    ],
    indirect=["qemu"],
)
@pytest.mark.usefixtures("qemu")
def test_a_qemu_that_does_not_answer(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_PATIENCE_SECONDS", 1.0 if "in time" in said else 20.0)
    before = children()
    with pytest.raises(HostError) as caught:
        asking.catalogue("q35", "kvm")
    assert caught.value.what == f"QEMU cannot be asked for its CPU models: {said}"
    assert ("/dev/kvm" in caught.value.hint) is ("kvm" in said)
    assert children() == before


@pytest.mark.parametrize(
    ("qemu", "said"),
    [
        ("no-vcpu", "QEMU's list of vCPUs is not as its schema says"),
        ("vcpus-not-a-list", "QEMU's list of vCPUs is not as its schema says"),
        ("vcpu-without-path", "QEMU's list of vCPUs is not as its schema says"),
        ("lacks-not-a-list", "QEMU's list of a vCPU's features is not as its schema says"),
    ],
    indirect=["qemu"],
)
@pytest.mark.usefixtures("qemu")
def test_a_vcpu_that_is_none(said: str) -> None:
    with pytest.raises(HostError, match=said):
        asking.given("q35", "kvm", "EPYC", ())


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_no_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "BINARY", "/nowhere/qemu")
    with pytest.raises(HostError) as caught:
        asking.catalogue("q35", "kvm")
    assert str(caught.value) == (
        "/nowhere/qemu cannot be run: No such file or directory\n  hint: apt install qemu-system-x86"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be someone else")
@ten
@pytest.mark.usefixtures("qemu")
def test_it_runs_as_nobody() -> None:
    with asking._qemu("q35", "kvm", "qemu64"):
        (child,) = children()
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{child}/status").read_text().splitlines())
    assert set(fields["Uid"].split()) == {"65534"}
    assert int(fields["CapEff"], 16) == 0


# ---- judging ----


def known(*, accel: str = "kvm") -> Catalogue:
    """Some of what QEMU 10.0 said on the emulated AMD host."""
    said = json.loads(fake_qemu.RECORDED.read_text("utf-8"))["10.0"]
    found = {one["name"]: asking._model(one) for one in said["definitions"]}
    return Catalogue("pc-q35-7.2", accel, found, frozenset(said["bools of max"].split()))


def found(problems: Iterator[Problem]) -> list[tuple[str, str, str, str]]:
    return [(".".join(map(str, one.path)), one.what, one.hint, one.severity) for one in problems]


@pytest.mark.parametrize(
    ("asked", "worth"),
    [
        (cpu("host"), False),
        (cpu("max"), False),
        (cpu("host", "+x"), True),
        (cpu("host", threads=2), True),
        (cpu("EPYC"), True),
    ],
)
def test_what_is_worth_asking(asked: Cpu, worth: bool) -> None:
    assert models.worth_asking(asked) is worth


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("epyc", "EPYC"),
        ("EPYX", "EPYC"),
        ("EPIC-Milan", "EPYC-Milan"),
        ("skylake-server", "Skylake-Server"),
        ("Icelake", ""),
        ("zzz", ""),
    ],
)
def test_the_nearest_name(name: str, near: str) -> None:
    assert models.closest(name, known().models) == near
    (one,) = models.unknown(known(), cpu(name))
    assert one.what == f"QEMU has no CPU model {name}"
    assert (f"did you mean {near}?" in one.hint) is bool(near)
    assert "kvmsup cpu-models" in one.hint


def test_names_of_features() -> None:
    asked = cpu("EPYC", "+sse4_1", "-avxx", "+SVM", "+sse4.2", "-qqqqq")
    assert found(models.unknown(known(), asked)) == [
        ("cpu.features.1", "QEMU has no CPU feature avxx", 'did you mean "-avx"?', "error"),
        ("cpu.features.2", "QEMU has no CPU feature SVM", 'did you mean "+svm"?', "error"),
        ("cpu.features.4", "QEMU has no CPU feature qqqqq", "qemu-system-x86_64 -cpu help lists them", "error"),
    ]


def test_what_a_model_lacks() -> None:
    given = NOTHING._replace(missing=("vme", "cx16", "avx512f"))
    asked = cpu("EPYC", "+topoext", "+avx512f")
    assert found(models.refused(known(), asked, given, ["qemu32-v1", "Westmere-v1"]))[1:] == [
        (
            "cpu.model",
            "EPYC needs what this host lacks: vme, cx16",
            'model = "qemu32-v1" (or Westmere-v1), or features = ["+topoext", "-vme", "-cx16"];'
            " kvmsup cpu-models --usable lists what runs here",
            "error",
        )
    ]


@pytest.mark.parametrize(
    ("accel", "instead", "giver"), [("kvm", "host", "this host"), ("tcg", "max", "QEMU's emulation")]
)
def test_a_model_without_relatives_that_lacks_much(accel: str, instead: str, giver: str) -> None:
    lacks = known().models["EPYC"].missing
    ((_, what, hint, _),) = found(models.refused(known(accel=accel), cpu("EPYC"), NOTHING._replace(missing=lacks), []))
    assert what == f"EPYC needs what {giver} lacks: {', '.join(lacks)}"
    assert hint == f'model = "{instead}"; kvmsup cpu-models --usable lists what runs here'


def test_features_that_were_added() -> None:
    given = NOTHING._replace(missing=("avx512f", "sse4.2", "vme"))
    assert found(models.refused(known(), cpu("EPYC", "-cx16", "+avx512f", "+sse4_2"), given, []))[:2] == [
        ("cpu.features.1", "this host has no avx512f", "leave it out", "error"),
        # It has been asked for by another of its names.
        ("cpu.features", "this host has no sse4.2", "leave out what asks for it", "error"),
    ]


def test_advice() -> None:
    old = known().models["EPYC"]._replace(deprecated=True)
    all_of = known()._replace(models={**known().models, "EPYC": old})
    without = NOTHING._replace(topoext=False)
    assert found(models.advice(all_of, cpu("EPYC", "-vme", threads=2), without)) == [
        ("cpu.model", "QEMU will drop EPYC", "kvmsup cpu-models lists the others", "warning"),
        ("cpu.model", "EPYC is EPYC-v1 with pc-q35-7.2", "", "note"),
        (
            "cpu.threads",
            "an AMD CPU shows its guest no SMT without topoext: 2 threads will look like cores",
            'features = ["-vme", "+topoext"]',
            "warning",
        ),
    ]
    for asked, given in (
        (cpu("host", threads=2), NOTHING),
        (cpu("host"), without),
        (cpu("host", threads=2), without._replace(vendor="GenuineIntel")),
    ):
        assert found(models.advice(all_of, asked, given)) == []


def test_relatives_lose_the_least() -> None:
    """Made up: what a newer model has more of counts less than what it lacks, and one version stands for a family."""
    features = {
        "New-v1": frozenset("abcdef"),
        "Mid-v1": frozenset("abcd"),
        "Mid-v2": frozenset("abcde"),
        "Wide-v1": frozenset("abcdexyz"),
        "Old-v1": frozenset("abc"),
        "Older-v1": frozenset("ab"),
        "Alien-v1": frozenset("wxyz"),
    }
    assert models.relatives("New-v1", features) == ["Mid-v2", "Wide-v1", "Old-v1"]
    assert models.relatives("Alien-v1", features) == ["Wide-v1"]


@ten
@pytest.mark.usefixtures("qemu")
def test_relatives_of_recorded_models() -> None:
    names = ["Skylake-Server-v1", "Skylake-Server-v5", "IvyBridge-v1", "Westmere-v1", "EPYC-v1", "qemu32-v1"]
    features = asking.expansions("q35", "kvm", names)
    assert {"avx512f", "hle"} <= features["Skylake-Server-v1"]
    assert not {"check", "legacy-cache"} & features["EPYC-v1"]  # which even the model without features has on
    near = models.relatives("Skylake-Server-v1", features)
    assert near[:2] == ["Skylake-Server-v5", "EPYC-v1"]
    without = {name: features[name] for name in features if not name.startswith(("EPYC", "Skylake-Server-v5"))}
    assert models.relatives("Skylake-Server-v1", without) == ["IvyBridge-v1", "Westmere-v1"]


def test_candidates_are_versions_that_run_here() -> None:
    assert models.candidates(known(), ()) == ["qemu32-v1"]
    assert set(models.candidates(known(), ("-vme", "-cx16", "+avx"))) == {
        *("qemu32-v1", "pentium3-v1", "Westmere-v1", "IvyBridge-v1")
    }


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("host,enforce=on", ("host", ())),
        ("EPYC-v1,+a,-b,enforce=on", ("EPYC-v1", ("+a", "-b"))),
        ("max", ("max", ())),
    ],
)
def test_what_a_running_qemu_was_told(argument: str, expected: tuple[str, tuple[str, ...]]) -> None:
    assert models.told(argument) == expected


# ---- the verb and check ----


@ten
@pytest.mark.usefixtures("qemu")
def test_the_listing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cpu-models", "--usable"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "MODEL      VERSION    HERE    MISSING FEATURES",
        "base       -          usable  -",
        "host       -          usable  -",
        "max        -          usable  -",
        "qemu32     qemu32-v1  usable  -",
        "qemu32-v1  -          usable  -",
    ]
    assert cli.main(["cpu-models", "--json", "--machine", "pc-q35-7.2"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert (whole["machine"], whole["accel"], len(whole["models"])) == ("pc-q35-7.2", "kvm", 24)
    assert next(one for one in whole["models"] if one["name"] == "EPYC") == {
        "name": "EPYC",
        "alias_of": "EPYC-v1",
        "usable": False,
        "missing": ["vme", "cx16", "fxsr-opt", "misalignsse", "osvw", "xsavec"],
        "deprecated": False,
        "migration_safe": True,
    }


@ten
@pytest.mark.usefixtures("qemu")
def test_one_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cpu-models", "pentium3"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "pentium3, which is pentium3-v1 with q35: unusable on this host",
        "  missing     vme",
        "  nearest     qemu32-v1",
    ]
    assert cli.main(["cpu-models", "host"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "host: usable on this host",
        "  migration   not safe: what it is differs from host to host",
    ]
    assert cli.main(["cpu-models", "EPYC", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["relatives"] == []
    assert cli.main(["cpu-models", "epyk"]) == 1
    assert capsys.readouterr().err == (
        "kvmsup: QEMU has no CPU model epyk with the machine type q35\n  hint: did you mean EPYC?\n"
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [20, 60, 80, 200])
def test_a_terminal_gets_what_fits(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", Terminal())
    lines = cpu_models._table(list(known().models.values()))
    assert max(map(len, lines)) <= max(columns, 72)
    genoa = next(line for line in lines if line.startswith("EPYC-Genoa-v1"))
    assert genoa.endswith(" …") and "vme" in genoa


CONTENT = """[machine]
type = "pc-q35-7.2"
[memory]
size = "1G"
[cpu]
"""


def check(text: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((CONTENT + text).encode())))
    return cli.main(["check", "-"])


@ten
@pytest.mark.usefixtures("qemu")
def test_check_points_at_the_place(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert check('model = "EPYX"\nfeatures = ["-svm", "+topoxt"]\n', monkeypatch) == 1
    assert capsys.readouterr().err == (
        "standard input:6:9: cpu.model: QEMU has no CPU model EPYX\n"
        '  6 | model = "EPYX"\n'
        "    |         ^^^^^^\n"
        "  hint: did you mean EPYC? kvmsup cpu-models lists them all\n"
        "standard input:7:21: cpu.features[1]: QEMU has no CPU feature topoxt\n"
        '  7 | features = ["-svm", "+topoxt"]\n'
        "    |                     ^^^^^^^^^\n"
        '  hint: did you mean "+topoext"?\n'
    )
    assert check('model = "EPYC"\nfeatures = ["+topoext", "-vme"]\n', monkeypatch) == 1
    assert capsys.readouterr().err.splitlines()[0] == (
        "standard input:6:9: cpu.model: EPYC needs what this host lacks: cx16, fxsr-opt, misalignsse, osvw, xsavec"
    )


@ten
@pytest.mark.usefixtures("qemu")
def test_the_journal_is_told_the_same(tmp_path: Path) -> None:
    """What attach adds when QEMU has ended at once: errors alone, and nothing where the CPU was not at fault."""
    assert explain.refusal("web", str(tmp_path)) is None
    file = tmp_path / "etc/kvmsup/web.toml"
    file.parent.mkdir(parents=True)
    file.write_text(CONTENT)
    assert explain.refusal("web", str(tmp_path)) is None
    file.write_text(CONTENT.replace("pc-q35-7.2", "q35") + 'model = "EPYX"\n')
    assert str(explain.refusal("web", str(tmp_path))) == (
        "/etc/kvmsup/web.toml:6:9: cpu.model: QEMU has no CPU model EPYX\n"
        '  6 | model = "EPYX"\n'
        "    |         ^^^^^^\n"
        "  hint: did you mean EPYC? kvmsup cpu-models lists them all"
    )


@pytest.mark.parametrize("qemu", ["no-kvm"], indirect=True)
@pytest.mark.usefixtures("qemu")
def test_check_without_kvm_says_so_and_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check('model = "EPYC"\n', monkeypatch) == 0
    said = capsys.readouterr()
    assert said.err.startswith("standard input:6:9: note: cpu.model: not compared with what this host has: ")
    assert said.out == "1 guest is sound\n"
    assert check('model = "host"\n', monkeypatch) == 0
    assert capsys.readouterr().err == ""


def test_check_below_another_root_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "BINARY", "/nowhere/qemu")
    (tmp_path / "etc/kvmsup").mkdir(parents=True)
    (tmp_path / "etc/kvmsup/web.toml").write_text(CONTENT + 'model = "EPYX"\n')
    before = time.monotonic()
    assert cli.main(["check", "--root", str(tmp_path)]) == 0
    assert time.monotonic() - before < 10
