# SPDX-License-Identifier: LGPL-2.1-or-later
"""The picture of a host: each CPU is in it once, with its right owner, whatever the machine and the guests are."""

from __future__ import annotations

import io
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsup import cli, cpulist
from kvmsup.effects import claims
from kvmsup.model.claim import Claim
from kvmsup.plan import picture, picture_svg, picture_text
from kvmsup.plan.picture import Cpu, Picture, Room
from tests.unit import hosts, machines, pictures
from tests.unit.pictures import CASES, EXPECTED, plain
from tests.unit.trees import write

SVG = "{http://www.w3.org/2000/svg}"


def by_number(drawn: Picture) -> dict[int, Cpu]:
    found = picture.cpus_of(drawn)
    assert len({cpu.number for cpu in found}) == len(found)
    return {cpu.number: cpu for cpu in found}


def test_expected() -> None:
    found = pictures.drawn()
    assert {path.name for path in EXPECTED.iterdir()} == found.keys()
    for name, text in found.items():
        assert text == (EXPECTED / name).read_text(encoding="utf-8"), name


@pytest.mark.parametrize("name", CASES)
def test_widths_and_numbers_of_text(name: str) -> None:
    drawn = pictures.picture_of(name)
    for width in (40, 72, 80, 100, 120, 200):
        for style in (picture_text.UNICODE, picture_text.ASCII):
            lines = picture_text.render(drawn, width, style, plain)
            assert max(map(len, lines)) <= width
            assert style is picture_text.UNICODE or "\n".join(lines).isascii()
            boxes = [box for line in lines if line.startswith(style.down) for box in line.split(style.down)]
            numbers = [int(box.split()[0]) for box in boxes if box.strip()]
            assert sorted(numbers) == sorted(by_number(drawn))


@pytest.mark.parametrize("name", CASES)
def test_paint_changes_nothing_but_colour(name: str) -> None:
    drawn = pictures.picture_of(name)

    def paint(_: str, text: str) -> str:
        return f"\x1b[1m{text}\x1b[0m"

    bare = picture_text.render(drawn, 80, picture_text.UNICODE, plain)
    painted = picture_text.render(drawn, 80, picture_text.UNICODE, paint)
    assert painted != bare
    assert [re.sub(r"\x1b\[\d*m", "", line) for line in painted] == bare


@pytest.mark.parametrize("name", CASES)
def test_svg_has_each_cpu_once_and_all_inside(name: str) -> None:
    drawn = pictures.picture_of(name)
    root = ElementTree.fromstring(picture_svg.render(drawn))
    titles = [title.text or "" for title in root.iter(f"{SVG}title")][1:]
    assert sorted(int(title.split()[1]) for title in titles) == sorted(by_number(drawn))
    for title in titles:
        cpu = by_number(drawn)[int(title.split()[1])]
        assert (f" of {cpu.guest}" in title) if cpu.guest else (" of " not in title.replace("threads of QEMU", ""))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    assert root.attrib["viewBox"] == f"0 0 {width:g} {height:g}"
    right, bottom = extent(root)
    assert right <= width
    assert bottom <= height


def extent(element: ElementTree.Element, x: float = 0, y: float = 0) -> tuple[float, float]:
    """The right and the lower end of all rectangles."""
    moved = re.match(r"translate\(([\d.]+) ([\d.]+)\)", element.get("transform", ""))
    if moved:
        x, y = x + float(moved[1]), y + float(moved[2])
    right, bottom = x, y
    if element.tag == f"{SVG}rect" and "%" not in element.attrib["width"]:
        right, bottom = x + float(element.attrib["width"]), y + float(element.attrib["height"])
    for child in element:
        if child.tag != f"{SVG}defs":
            ends = extent(child, x, y)
            right, bottom = max(right, ends[0]), max(bottom, ends[1])
    return right, bottom


def test_svg_needs_nothing_else() -> None:
    text = (EXPECTED / "two_sockets_apart.svg").read_text()
    assert re.findall(r"https?://[^\"]+", text) == ["http://www.w3.org/2000/svg"]
    assert "href" not in text
    assert "<script" not in text
    assert "@font-face" not in text


def test_names_are_escaped() -> None:
    odd = hosts.claim('<b>&"x', ["2"])
    drawn = picture.draw(hosts.topology(), [odd], frozenset((0,)), {}, {})
    root = ElementTree.fromstring(picture_svg.render(drawn))
    assert any('<b>&"x' in (title.text or "") for title in root.iter(f"{SVG}title"))


@st.composite
def scenes(draw: st.DrawFn) -> tuple[int, int, int, list[Claim], frozenset[int]]:
    """A host's nodes, cores a node and threads; guests, some of which own what no other does; housekeeping."""
    nodes, cores, threads = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 3))
    free = draw(st.permutations(range(nodes * cores * threads)))
    some = st.frozensets(st.sampled_from(free), min_size=1, max_size=4)
    housekeeping = draw(some)
    found = []
    for index in range(draw(st.integers(0, 5))):
        dedicated = draw(st.booleans()) and len(free) > 2
        count = draw(st.integers(1, len(free) - 1)) if dedicated else 0
        own, free = free[:count], free[count:]
        split = draw(st.integers(1, count)) if count else 0
        vcpu = [str(cpu) for cpu in own[:split]] or [cpulist.render(draw(some)) for _ in range(2)]
        emulator = cpulist.render(draw(some))
        idle = cpulist.render(own[split:])
        found.append(hosts.claim(f"g{index}", vcpu, dedicated=dedicated, emulator=emulator, idle=idle))
    return nodes, cores, threads, found, housekeeping


@given(scenes())
def test_each_cpu_has_its_right_owner(scene: tuple[int, int, int, list[Claim], frozenset[int]]) -> None:
    nodes, cores, threads, held, housekeeping = scene
    host = hosts.topology(nodes, cores, threads)
    drawn = picture.draw(host, held, housekeeping, {}, {})
    found = by_number(drawn)
    assert found.keys() == set(range(nodes * cores * threads))
    for number, cpu in found.items():
        own = [claim for claim in held if claim.dedicated and {number} in claim.vcpu]
        idle = [claim for claim in held if claim.dedicated and number in claim.idle]
        sharing = [claim.guest for claim in held if not claim.dedicated and any(number in one for one in claim.vcpu)]
        assert [claim.guest for claim in own + idle] == ([cpu.guest] if cpu.guest else [])
        assert cpu.vcpus == tuple(claim.vcpu.index(frozenset((number,))) for claim in own)
        assert list(cpu.emulators) == [claim.guest for claim in held if number in claim.emulator]
        assert list(cpu.shared) == ([] if cpu.guest else sharing)
        if own or idle:
            assert cpu.role == (picture.VCPU if own else picture.IDLE)
        elif number in housekeeping:
            assert cpu.role == picture.HOUSEKEEPING
        else:
            assert (cpu.role == picture.FREE) is not bool(cpu.emulators or sharing)
    for width in (60, 100):
        assert max(map(len, picture_text.render(drawn, width, picture_text.UNICODE, plain))) <= width
    ElementTree.fromstring(picture_svg.render(drawn))


def test_iothreads_are_threads_of_qemu() -> None:
    held = hosts.claim("web", ["1"])._replace(iothread={"io0": frozenset((3,))})
    found = by_number(picture.draw(hosts.topology(), [held], frozenset((0,)), {}, {}))
    assert {number: cpu.role for number, cpu in found.items()} == {
        0: "housekeeping",
        1: "vcpu",
        2: "free",
        3: "emulator",
    }
    assert found[3].emulators == ("web",)


def test_marks() -> None:
    cpu = Cpu(3, picture.VCPU, "web", (0,), (), (), False, False)
    places = {"web": 27}
    assert picture.mark(cpu, places) == "AB0"
    assert picture.mark(cpu._replace(vcpus=(2, 4)), places) == "AB2,4"
    assert picture.mark(cpu._replace(vcpus=(2, 4, 5)), places) == "AB2,+"
    assert picture.mark(cpu._replace(role=picture.IDLE, vcpus=()), places) == "AB-"
    assert [picture.letters(place) for place in (0, 25, 26, 51, 52, 701, 702)] == [
        "A",
        "Z",
        "AA",
        "AZ",
        "BA",
        "ZZ",
        "AAA",
    ]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["topology", *arguments]) == 0
    return capsys.readouterr().out


@pytest.fixture
def desktop(tmp_path: Path) -> str:
    pictures.build(str(tmp_path), CASES["desktop"])
    return str(tmp_path)


def test_verb(desktop: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(capsys, "--root", desktop) == (EXPECTED / "desktop.80.txt").read_text(encoding="utf-8")
    assert run(capsys, "--root", desktop, "--svg", "-") == (EXPECTED / "desktop.svg").read_text()


def test_verb_where_the_locale_has_no_frames(desktop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding, framed in (("latin-1", False), ("ascii", False), ("utf-8", True), ("koi8-r", True)):
        with io.TextIOWrapper(io.BytesIO(), encoding=encoding) as stream:
            monkeypatch.setattr(sys, "stdout", stream)
            assert cli.main(["topology", "--root", desktop]) == 0
            stream.seek(0)
            text = stream.read()
        assert text.isascii() is not framed
        assert ("┌" in text) is framed
        assert "\\u" not in text


def test_verb_writes_a_file(desktop: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "host.svg"
    told = run(capsys, "--root", desktop, "--svg", str(file), "--json")
    assert file.read_text() == (EXPECTED / "desktop.svg").read_text()
    assert json.loads(told)["offline"] == ""
    assert run(capsys, "--root", desktop, "--svg", str(file)) == ""


def test_verb_leaves_a_device_and_a_link_what_they_are(
    desktop: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nothing").symlink_to("/dev/null")
    (tmp_path / "link.svg").symlink_to("host.svg")
    for name in ("nothing", "link.svg"):
        assert run(capsys, "--root", desktop, "--svg", str(tmp_path / name)) == ""
        assert (tmp_path / name).is_symlink()
    assert (tmp_path / "nothing").is_char_device()
    assert (tmp_path / "host.svg").read_text() == (EXPECTED / "desktop.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--svg", "/nowhere/x.svg"], "kvmsup: /nowhere/x.svg: cannot write: No such file or directory\n"),
        (
            ["--svg", "-", "--json"],
            "kvmsup: --json and --svg - both want standard output\n  hint: give --svg a file\n",
        ),
        (["--root", "/nowhere"], "kvmsup: --root /nowhere: no such directory\n"),
    ],
)
def test_verb_that_fails(desktop: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["topology", "--root", desktop, *arguments]) == 1
    assert capsys.readouterr() == ("", said)


def test_json(desktop: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(desktop, "/etc/kvmsup.toml", '[cpu]\nhousekeeping = "0,7"')
    found = json.loads(run(capsys, "--root", desktop, "--json"))
    assert found.keys() == {"nodes", "offline", "guests"}
    node = found["nodes"][0]
    assert (node["node"], node["memory"], node["free"], node["distances"]) == (0, 32 << 30, 24 << 30, [10])
    assert (node["hugepages"], node["guests"]) == ([], ["db", "web"])
    cores = [core for cache in node["caches"] for core in cache["cores"]]
    cpus = {cpu["cpu"]: cpu for core in cores for cpu in core["cpus"]}
    assert [[cpu["cpu"] for cpu in core["cpus"]] for core in cores] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert "".join(cpus[number]["role"][0] for number in range(8)) == "hevvvish"
    assert cpus[3] == {
        "cpu": 3,
        "role": "vcpu",
        "guest": "web",
        "vcpus": [1],
        "shared": [],
        "emulators": [],
        "isolated": False,
        "nohz_full": False,
    }
    assert (cpus[1]["guest"], cpus[1]["emulators"], cpus[1]["shared"]) == (None, ["db", "web"], ["build"])
    assert found["guests"][0] == {
        "name": "build",
        "active": None,
        "placement": "shared",
        "cpus": "0-1,6-7",
        "emulator": "0",
    }


def test_hugepage_pools(desktop: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for size, total, free in ((2048, 512, 100), (1048576, 0, 0)):
        for name, value in {"nr": total, "free": free, "surplus": 0}.items():
            path = f"{machines.NODE}/node0/hugepages/hugepages-{size}kB/{name}_hugepages"
            write(desktop, path, str(value))
    first = run(capsys, "--root", desktop).splitlines()[0]
    assert first == "node 0  package 0  32G, 24G free  2M pages: 100 of 512 free  memory of db, web"
    pools = json.loads(run(capsys, "--root", desktop, "--json"))["nodes"][0]["hugepages"]
    assert pools[0] == {"page_size": 2 << 20, "total": 512, "free": 100}
    assert len(pools) == 2
    write(desktop, f"{machines.NODE}/node0/hugepages/hugepages-2048kB/nr_hugepages", "many")
    assert cli.main(["topology", "--root", desktop]) == 1
    said = "hugepages-2048kB: the kernel's counts of pages are not numbers\n"
    assert capsys.readouterr().err.endswith(said)


def test_states_are_told() -> None:
    held = [hosts.claim("web", ["1"]), hosts.claim("batch", ["0-3"], dedicated=False)]
    rooms = {0: Room(1 << 30, 1 << 20, ())}
    drawn = picture.draw(hosts.topology(), held, frozenset((0,)), rooms, {"web": "failed", "batch": "activating"})
    lines = picture_text.render(drawn, 80, picture_text.UNICODE, plain)
    assert "A web (failed)" in lines
    assert "sh batch: shared, activating, on CPU 0,2-3" in lines


def test_a_claim_that_is_none_is_an_error(desktop: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(desktop, f"{claims.RUN}/claims/bad.env", "nonsense")
    assert cli.main(["topology", "--root", desktop]) == 1
    assert "bad.env is not a claim" in capsys.readouterr().err
