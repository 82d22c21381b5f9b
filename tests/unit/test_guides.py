# SPDX-License-Identifier: LGPL-2.1-or-later
"""How guides are read: what is a file, what a command, and when what one said is what the guide shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guides.transcript import Command, File, Guide, Shown, missing, read

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / "docs/guides").glob("*.md"))

EXAMPLE = """\
<!-- SPDX-License-Identifier: LGPL-2.1-or-later -->
<!-- host: isolcpus=2-3 nohz_full=2-3 -->
# A guide

Write a file:

    # /etc/kvmsup/web.toml
    # a comment of the file
    [memory]

    size = "1G"

and start it:

    # systemctl start kvm@web
    # kvmsup status web
    web: KVM guest
      state  active, QEMU …

      …
    # echo one \\
        two
    one two
    # kvmsup console web         Ctrl-] leaves it
    # false
    (exit status 1)
    # kvmsup check
    wrong

    (exit status 1)

```console
# /etc/one
one

# /etc/two
two

# true
```
```text
# curl -O https://example.org/debian13.qcow2
```

    make demo    is for the eye
a paragraph
    # that goes on
"""


def test_a_guide_is_read_as_what_its_reader_does() -> None:
    guide = read(EXAMPLE)
    assert guide.needs == {"host": "isolcpus=2-3 nohz_full=2-3"}
    assert guide.steps == (
        File(7, "/etc/kvmsup/web.toml", '# a comment of the file\n[memory]\n\nsize = "1G"\n'),
        Command(15, "systemctl start kvm@web"),
        Command(16, "kvmsup status web", ("web: KVM guest", "  state  active, QEMU …", "", "  …")),
        Command(21, "echo one \\\n    two", ("one two",)),
        Command(24, "kvmsup console web"),
        Command(25, "false", (), 1),
        Command(27, "kvmsup check", ("wrong",), 1),
        File(33, "/etc/one", "one\n"),
        File(36, "/etc/two", "two\n"),
        Command(39, "true"),
        Shown(45, "make demo    is for the eye"),
    )


def test_nothing_to_do_is_a_guide_too() -> None:
    assert read("") == Guide(())


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        ([], "whatever\n"),
        (["a  b"], "a b\n\n"),
        (["  a   b "], "    a b\n"),
        (["a", "", "b"], "a\n\nb"),
        (["…"], ""),
        (["…", "b"], "b\n"),
        (["a", "…"], "a\nb\n"),
        (["a", "…", "c", "…", "e"], "a\nb\nc\nd\nc\ne\n"),
        (["…", "c", "d", "…"], "c\nx\nc\nd\ne\n"),
        (["pid … of 2", "…"], "pid 4711 of 2\n"),
        (["(a|b)* … [c]"], "(a|b)* x [c]\n"),
    ],
)
def test_as_expected(expected: list[str], said: str) -> None:
    assert missing(expected, said) is None


@pytest.mark.parametrize(
    ("expected", "said", "told"),
    [
        (["a"], "b\n", "a"),
        (["a"], "", "a"),
        (["a"], "a\nb\n", "no more, but: b"),
        (["ab"], "a b\n", "ab"),
        (["a"], " a\n", "a"),
        (["…", "b"], "b\nc\n", "b"),
        (["…", "c", "d", "…"], "c\nx\nd\n", "c"),
        (["…", "c", "y", "…"], "c\nx\nd\n", "y"),
        (["a", "…", "a"], "a\n", "a"),
        (["…", "b", "…", "b"], "b\n", "b"),
        (["a.c"], "abc\n", "a.c"),
    ],
)
def test_what_is_missing_is_told(expected: list[str], said: str, told: str) -> None:
    assert missing(expected, said) == told


@pytest.mark.parametrize("path", GUIDES, ids=[path.stem for path in GUIDES])
def test_the_guides_have_nothing_that_is_not_run(path: Path) -> None:
    steps = read(path.read_text("utf-8")).steps
    assert [step for step in steps if isinstance(step, Command)]
    assert [f"{path.name}:{step.line}: {step.text}" for step in steps if isinstance(step, Shown)] == []


def test_the_readme_is_read_too() -> None:
    steps = read((ROOT / "README.md").read_text("utf-8")).steps
    assert [step.path for step in steps if isinstance(step, File)] == ["/etc/kvmsup/demo.toml"]
    commands = [step.text for step in steps if isinstance(step, Command)]
    assert {"systemctl start kvm@demo", "systemctl stop kvm@demo", "kvmsup topology"} <= {*commands}
