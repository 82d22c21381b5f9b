# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kvmsup command: usage, check on the golden cases, and how listings look."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsup import __version__, cli
from kvmsup.cli import show
from kvmsup.errors import Diagnostic, KvmsupError
from tests.golden import CASES

ROOT = Path(__file__).parents[2]
BY_NAME = {case.name: case for case in CASES}
SOUND = '[machine]\ntype = "pc-q35-7.2"\n[memory]\nsize = "1G"\n'


def check(case: str, *arguments: str) -> int:
    return cli.main(["check", "--root", str(BY_NAME[case]), *arguments])


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["--nonsense"], ["status"], ["check", "-x"], ["list", "web"], ["console"], ["check", "--root"]],
)
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("usage: kvmsup ")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"kvmsup {__version__}\n"


WORDS = st.sampled_from(
    ["list", "status", "check", "plan", "web", "db", "-", "--", "--json", "--js", "--watch", "--root", "--root=/x", ""]
)


@given(st.lists(WORDS, max_size=5))
def test_the_quick_reading_of_the_command_line_is_the_parsers(words: list[str]) -> None:
    if asked := cli.plain(words):
        assert vars(asked) == vars(cli.parser().parse_args(words))


@pytest.mark.parametrize("words", [["list"], ["list", "--json"], ["status", "web"], ["check"], ["check", "a", "b"]])
def test_common_command_lines_are_read_quickly(words: list[str]) -> None:
    assert cli.plain(words)


def test_every_verb_has_its_module() -> None:
    verbs = next(action for action in cli.parser()._actions if action.dest == "verb").choices
    assert verbs
    for verb in verbs:
        assert (ROOT / f"{cli.module_of(verb).replace('.', '/')}.py").exists()


@pytest.mark.parametrize("case", BY_NAME)
def test_check_finds_what_the_generator_finds(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = BY_NAME[case] / "expected/stderr"
    status = check(case)
    said = capsys.readouterr()
    heads = [line for line in said.err.splitlines() if line.startswith("/etc/") and ": warning: " not in line]
    told = [line for line in expected.read_text().splitlines() if line[:1] != " "] if expected.exists() else []
    assert sorted(heads) == sorted(told)
    assert status == (1 if told else 0)
    assert bool(said.out) is not bool(told)


def test_check_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("16-broken-host") == 1
    assert capsys.readouterr().err == (
        "/etc/kvmsup.toml:3:1: cpu.housekeping: unknown key\n"
        '  3 | housekeping = "0-3"\n'
        "    | ^^^^^^^^^^^\n"
        "  hint: did you mean housekeeping?\n"
        "/etc/kvmsup.toml:6:10: ksm.policy: \"sometimes\" is not one of pressure, always, never\n"
        '  6 | policy = "sometimes"\n'
        "    |          ^^^^^^^^^^^\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("18-no-guests", "0 guests are sound\n"),
        ("03-dedicated", "1 guest is sound\n"),
        ("13-housekeeping", "2 guests are sound\n"),
    ],
)
def test_check_of_what_is_sound(case: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(case) == 0
    assert capsys.readouterr() == (said, "")


@pytest.mark.parametrize("case", BY_NAME)
def test_check_json(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = check(case, "--json")
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert said.err == ""
    assert found.keys() == {"ok", "diagnostics"}
    assert found["ok"] is (status == 0)
    for one in found["diagnostics"]:
        assert tuple(one) == Diagnostic._fields
        assert {key: type(value) for key, value in one.items()} == Diagnostic.__annotations__ | {
            key: int if key in ("line", "column", "width") else str for key in one
        }
        assert one["severity"] in ("error", "warning")
    assert found["ok"] is not any(one["severity"] == "error" for one in found["diagnostics"])


@pytest.mark.parametrize(
    ("policy", "more", "found"),
    [
        ('policy = "never"', "", ['has no effect: /etc/kvmsup.toml has ksm.policy = "never"']),
        ('policy = "never"', "lock = true", ["has no effect: locked memory is never merged"]),
        ('policy = "always"', "", []),
        ("", "", []),
    ],
)
def test_check_of_consent_in_vain(
    policy: str, more: str, found: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "etc/kvmsup").mkdir(parents=True)
    (tmp_path / "etc/kvmsup.toml").write_text(f"[ksm]\n{policy}\n")
    (tmp_path / "etc/kvmsup/web.toml").write_text(f"{SOUND}ksm = true\n{more}\n")
    assert cli.main(["check", "--root", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["diagnostics"]
    assert [one["what"] for one in told] == [f"memory.ksm: {what}" for what in found]
    # A host's file that is wrong is one finding, and no reason for another.
    (tmp_path / "etc/kvmsup.toml").write_text('[ksm]\npolicy = "no"\n')
    assert cli.main(["check", "--root", str(tmp_path), "--json", "web"]) == 0


def test_check_of_some_guests(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("14-broken-file", "good") == 0
    assert capsys.readouterr().out == "1 guest is sound\n"
    assert check("14-broken-file", "god") == 1
    assert capsys.readouterr().err == "/etc/kvmsup/god.toml: there is no guest god\n  hint: did you mean good?\n"


@pytest.mark.parametrize(("text", "status"), [(SOUND, 0), (SOUND + "x = \xff", 1)])
def test_check_of_standard_input(text: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode("latin-1"))))
    assert check("18-no-guests", "-") == status


class Endless(io.RawIOBase):
    """Zeros, of which somebody keeps count."""

    taken = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.taken += len(buffer)
        return len(buffer)


def test_standard_input_is_bounded_as_files_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    endless = Endless()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(endless)))
    assert check("18-no-guests", "-") == 1
    assert capsys.readouterr().err == "standard input: cannot read: it has over 256 KiB\n"
    assert endless.taken < 1 << 20


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (OSError(errno.EISDIR, "Is a directory"), "Is a directory"),
        (None, "it does not wait for what is to come"),
    ],
)
def test_standard_input_that_cannot_be_read(
    answer: OSError | None, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def readinto(_: Endless, __: Any) -> None:
        if answer:
            raise answer

    monkeypatch.setattr(Endless, "readinto", readinto)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Endless())))
    assert check("18-no-guests", "-") == 1
    hint = "name a file, or give one with <"
    assert capsys.readouterr().err == f"standard input: cannot read: {said}\n  hint: {hint}\n"


def test_check_goes_on_beside_a_file_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "etc/kvmsup/aaa.toml").mkdir(parents=True)
    (tmp_path / "etc/kvmsup/web.toml").write_text("a = ")
    (tmp_path / "etc/kvmsup/\udcff.toml").write_text(SOUND)
    assert cli.main(["check", "--root", str(tmp_path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["diagnostics"]
    assert [one["what"] for one in found] == [
        "cannot read: Is a directory",
        "not TOML: Invalid value",
        "'\\udcff' cannot name a guest",
    ]


def test_check_goes_on_beside_a_link_that_leads_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "etc/kvmsup").mkdir(parents=True)
    (tmp_path / "etc/kvmsup/db.toml").symlink_to("/nowhere/db.toml")
    (tmp_path / "etc/kvmsup/web.toml").write_text("a = ")
    dangling = ("leads to a file that is not there", "mount what it leads to, or remove the link")
    for names, more in (
        ([], []),
        (["nobody", "db", "web"], [("there is no guest nobody", "kvmsup list shows those there are")]),
    ):
        assert cli.main(["check", "--root", str(tmp_path), "--json", *names]) == 1
        found = json.loads(capsys.readouterr().out)["diagnostics"]
        told = [(one["what"], one["hint"]) for one in found]
        assert told[:-1] == [*more, dangling]
        assert told[-1][0] == "not TOML: Invalid value"


def test_check_below_a_root_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--root", f"{tmp_path}/typo"]) == 1
    assert capsys.readouterr().err == f"kvmsup: --root {tmp_path}/typo: no such directory\n"


def test_a_reader_that_has_seen_enough() -> None:
    program = "import sys; from kvmsup.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "check", "--root", str(BY_NAME["14-broken-file"]), "--json"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.fixture
def program(tmp_path: Path) -> list[str]:
    """The program as it is installed."""
    path = tmp_path / "kvmsup"
    path.write_text((ROOT / "units/kvmsup").read_text().replace("@LIBDIR@", str(ROOT)))
    return [sys.executable, "-IS", str(path)]


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_the_program_itself_before_a_reader_that_has_seen_enough(closed: str, program: list[str]) -> None:
    """It ends without Python's own tidying up."""
    command = [*program, "check", "--root", str(BY_NAME["14-broken-file"])]
    reading, writing = os.pipe()
    os.close(reading)
    json_too = ["--json"] if closed == "stdout" else []
    other = {"stdout": "stderr", "stderr": "stdout"}[closed]
    done = subprocess.run([*command, *json_too], **{closed: writing, other: subprocess.PIPE}, check=False)  # type: ignore[call-overload]
    os.close(writing)
    assert (done.returncode, done.stdout or b"", done.stderr or b"") == (1, b"", b"")


SAYING = [
    ["check", "--root", str(BY_NAME["03-dedicated"])],
    ["check", "--root", str(BY_NAME["14-broken-file"]), "--json"],
    ["--help"],
    ["check", "--help"],
    ["--version"],
]


@pytest.mark.parametrize("words", SAYING)
def test_standard_output_that_is_full(words: list[str], program: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*program, *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert (done.returncode, done.stderr) == (1, "kvmsup: standard output: No space left on device\n")
        # There is nowhere to say it.
        assert subprocess.run([*program, *words], stdout=full, stderr=full, check=False).returncode == 1


@pytest.mark.parametrize("words", SAYING)
def test_standard_output_that_nobody_reads(words: list[str], program: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*program, *words], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("error", [KvmsupError("no"), KeyboardInterrupt()])
def test_what_was_said_before_an_error_is_written_or_told(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: object) -> int:
        sys.stdout.write("said")
        raise error

    class Full(io.StringIO):
        def fileno(self) -> int:
            return file.fileno()

        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("kvmsup.cli.check.run", run)
    with open("/dev/full", "wb") as file:
        monkeypatch.setattr(sys, "stdout", Full())
        assert cli.main(["check"]) == 1
    assert capsys.readouterr().err.endswith("kvmsup: standard output: No space left on device\n")


def test_a_file_that_cannot_be_written_is_not_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "/a/file")

    monkeypatch.setattr("kvmsup.cli.check.run", run)
    with pytest.raises(OSError, match="/a/file"):
        cli.main(["check"])


def closed(redirection: str, *command: str) -> subprocess.CompletedProcess[str]:
    """What became of `command` without a standard stream, such as >&-."""
    shell = ["sh", "-c", f'exec "$@" {redirection}', "sh", *command]
    return subprocess.run(shell, capture_output=True, text=True, check=False)


def test_closed_standard_input(program: list[str]) -> None:
    done = closed("<&-", *program, "check", "--root", str(BY_NAME["18-no-guests"]), "-")
    said = "standard input: cannot read: it is closed\n  hint: name a file, or give one with <\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


@pytest.mark.parametrize("words", [["check", "--root", str(BY_NAME["14-broken-file"])], ["plan", "--root", "/no"], []])
def test_what_is_for_a_closed_standard_error_goes_nowhere(words: list[str], program: list[str]) -> None:
    done = closed("2>&-", *program, *words)
    assert (done.returncode, done.stdout, done.stderr) == (1 if words else 2, "", "")


def test_the_program_itself(program: list[str]) -> None:
    case = str(BY_NAME["03-dedicated"])
    done = subprocess.run([*program, "check", "--root", case], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 guest is sound\n", "")
    done = subprocess.run([*program, "list", "web"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("usage: ")
    # Without standard output there is nothing to flush.
    for verb in ("check", "plan"):
        done = closed(">&-", *program, verb, "--root", case)
        assert "Traceback" not in done.stderr and (verb != "check" or done.returncode == 0)


def test_table_lines_up() -> None:
    rows = [["web", "active", ""], ["a-long-name", "failed", "0-3"]]
    assert show.table(("GUEST", "STATE", "CPUS"), rows) == [
        "GUEST        STATE   CPUS",
        "web          active  -",
        "a-long-name  failed  0-3",
    ]
    assert show.table(("GUEST", ""), []) == ["GUEST"]


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"LC_ALL": "C.UTF-8"}, "a · b … \\udcff ä\n"),
        ({"LC_ALL": "C"}, "a | b ... \\udcff \\xe4\n"),
        ({"LC_ALL": "POSIX"}, "a | b ... \\udcff \\xe4\n"),
        ({}, "a · b … \\udcff ä\n"),
    ],
)
def test_a_locale_that_has_no_more_characters(environment: dict[str, str], shown: str) -> None:
    program = (
        "import sys\nfrom kvmsup import cli\nfrom kvmsup.cli import listing, show\n"
        "listing.at_once = lambda _: show.Look({}, ['a \\u00b7 b \\u2026 \\udcff \\xe4'])\n"
        "sys.exit(cli.main(['list']))"
    )
    kept = {name: value for name, value in os.environ.items() if name not in ("LC_ALL", "LC_CTYPE", "LANG")}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=kept | environment, capture_output=True, check=True)
    assert done.stdout.decode() == shown


def test_a_line_of_parts_is_folded_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert show.folded("one · two · three") == ["one · two · three"]
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "11")
    assert show.folded("one · two · three") == ["one · two", "  three"]
    assert show.folded("a-long-one-alone · two") == ["a-long-one-alone", "  two"]


@pytest.mark.parametrize(
    ("told", "columns"), [("132", 132), ("99999", 99999), ("9" * 5000, 80), ("0", 80), ("x", 80), ("", 80)]
)
def test_columns(told: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", told)
    monkeypatch.setattr(sys, "stdout", Terminal())  # which has no size
    assert show.columns() == columns


def test_amounts_have_three_digits_or_four() -> None:
    told = [show.amount(size) for size in (0, 999, 10 << 10, 9 << 20, 10 << 20, 64 << 30, 20 << 40)]
    assert told == ["0", "999", "10K", "9216K", "10M", "64G", "20T"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": ""}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
    ],
)
def test_colour(environment: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert show.paint("active") == ("\x1b[32mactive\x1b[0m" if coloured else "active")
    assert show.paint("failed", "failed  ") == ("\x1b[31mfailed  \x1b[0m" if coloured else "failed  ")
    assert show.paint("word") == "word"
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert show.paint("active") == "active"
