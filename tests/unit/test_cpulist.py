# SPDX-License-Identifier: LGPL-2.1-or-later
"""CPU lists and sizes: what is right comes back, what is wrong always raises."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsup import cpulist, sizes
from tests.unit import real_systemd

NUMBERS = st.frozensets(st.integers(0, cpulist.HIGHEST), max_size=40) | st.frozensets(st.integers(0, 12))


@given(NUMBERS)
def test_list_comes_back(numbers: frozenset[int]) -> None:
    assert cpulist.parse(cpulist.render(numbers)) == numbers


@given(NUMBERS)
def test_list_is_the_shortest(numbers: frozenset[int]) -> None:
    groups = [group for group in cpulist.render(numbers).split(",") if group]
    firsts = [number for number in numbers if number - 1 not in numbers]
    assert len(groups) == len(firsts)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0", {0}),
        ("0-3,8", {0, 1, 2, 3, 8}),
        (" 0 , 2-3\n", {0, 2, 3}),
        ("3,1,2,1-2", {1, 2, 3}),
        ("007", {7}),
        ("0-7:2/4", {0, 1, 4, 5}),
        ("4-7:1/2", {4, 6}),
        ("5:1/1", {5}),
        ("0-2:3/3", {0, 1, 2}),
        ("8191", {8191}),
        ("", set()),
        ("\n", set()),
    ],
)
def test_list(text: str, numbers: set[int]) -> None:
    assert cpulist.parse(text) == numbers


def none(part: str) -> str:
    return f"is not a list such as 0-3,8: {part!r} is neither a number nor a range"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x", none("x")),
        ("0-3,x", none("x")),
        (",", none("")),
        ("0,", none("")),
        ("0,,1", none("")),
        ("-1", none("-1")),
        ("1-", none("1-")),
        ("1-2-3", none("1-2-3")),
        ("1..3", none("1..3")),
        ("0x3", none("0x3")),
        ("+1", none("+1")),
        ("1_0", none("1_0")),
        ("1 2", none("1 2")),
        ("1;2", none("1;2")),
        ("²", none("²")),
        ("٣", none("٣")),
        ("1\0", none("1\0")),
        ("all", none("all")),
        ("0-7:", none("0-7:")),
        ("0-7:x/2", none("0-7:x/2")),
        ("0-7:2", none("0-7:2")),
        ("0-7:0/2", "has a pattern that is not first-last:used/size: 0-7:0/2"),
        ("0-7:3/2", "has a pattern that is not first-last:used/size: 0-7:3/2"),
        ("3-0", "has a range that runs backwards: 3-0"),
        ("8192", "has a number over 8191: 8192"),
        ("0-99999999", "has a number over 8191: 99999999"),
    ],
)
def test_list_that_is_none(text: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        cpulist.parse(text)
    assert str(caught.value) == said


@given(st.text(st.sampled_from("0123456789-,:/ x\n")) | st.text())
def test_list_is_never_empty_by_a_typo(text: str) -> None:
    try:
        numbers = cpulist.parse(text)
    except ValueError:
        return
    assert numbers or not text.strip()
    assert all(0 <= number <= cpulist.HIGHEST for number in numbers)
    # Every number that is written is in the list, unless a pattern leaves it out.
    written = {int(word) for word in text.replace("-", ",").split(",") if word.strip()} if ":" not in text else set()
    assert written <= numbers


def test_list_of_a_number_too_long_to_convert() -> None:
    with pytest.raises(ValueError) as caught:
        cpulist.parse("1" * 5000)
    assert str(caught.value) == f"has a number over 8191: {'1' * 20}"


SIZES = [
    ("1K", 1 << 10), ("512M", 512 << 20), ("4G", 4 << 30), ("2T", 2 << 40), ("0K", 0), ("007M", 7 << 20),
    ("1048576", 1 << 20), ("8", 8), ("1024B", 1024), ("1.5G", 1536 << 20), ("0.5K", 512),
    ("1.0009765625M", 1025 << 10),
    ("8 G", 8 << 30), ("+1G", 1 << 30), (" 4G ", 4 << 30), ("1G 512M", 1536 << 20), ("1G512M", 1536 << 20),
    ("1G 1M 1K 1", (1 << 30) + (1 << 20) + 1025),
    ("0.001P", (1 << 50) // 1000), ("4.G", 4 << 30), ("1.", 1), ("2.G 3.M", (2 << 30) + (3 << 20)), ("1.K", 1024),
]  # fmt: skip


@pytest.mark.parametrize(("text", "size"), SIZES)
def test_size(text: str, size: int) -> None:
    assert sizes.parse(text) == size


WHOLE = "is no number followed by K, M, G or T"
MORE = "is more than any host can have, which is 4096T"
BYTES = "has a unit that reads as bytes to the base 1000 here and 1024 there"
ORDER = "has its parts not in the order of their units, the largest first"
LOWER = "has its unit in lower case"
DOT = "has no digit before its dot"
WRONG = [
    ("", WHOLE), (" ", WHOLE), ("G", WHOLE), ("-1G", WHOLE), ("1e3M", WHOLE), ("0x1G", WHOLE),
    ("1_0G", WHOLE),
    ("³G", WHOLE), ("٣G", WHOLE), ("4,5G", WHOLE), ("1G 5xM", WHOLE), ("infinity", WHOLE), ("50%", WHOLE),
    ("4G\n", WHOLE),
    (".5G", DOT), (" +.5", DOT), (".", WHOLE), ("1.5.G", WHOLE), ("4.x", WHOLE), ("1G .5M", WHOLE), ("4 .g", WHOLE),
    ("4.g", LOWER), ("8GB", BYTES), ("8GiB", BYTES), ("8 gib", BYTES), ("4g", LOWER), ("512m", LOWER), ("1.5g", LOWER),
    ("1M 1G", ORDER), ("1G 1G", ORDER), ("4097T", MORE), ("5P", MORE), ("12345678901234567890", MORE),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), WRONG)
def test_size_that_is_none(text: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        sizes.parse(text)
    assert str(caught.value) == said


def test_sizes_are_what_systemd_takes_them_for() -> None:
    """systemd reads them as MemoryMax= of a unit, and says what it has read, or that it could not."""
    asked = [text for text, _ in SIZES if sizes.parse(text)] + [
        text for text, said in WRONG if said != MORE and text.strip()
    ]
    asked = [text for text in asked if "%" not in text and text != "infinity" and "\n" not in text]
    files = {
        f"size{number}.service": f"[Service]\nExecStart=/bin/true\nMemoryMax={text}\n"
        for number, text in enumerate(asked)
    }
    files["all.service"] = (
        "[Unit]\n" + "".join(f"Wants={name}\n" for name in files) + "[Service]\nExecStart=/bin/true\n"
    )
    dump = real_systemd.load(files, "all.service")
    for number, text in enumerate(asked):
        block = dump.partition(f"-> Unit size{number}.service:\n")[2].partition("-> Unit ")[0]
        told = re.search(r"MemoryMax: (\d+)", block)
        assert told, block
        try:
            size = sizes.parse(text)
        except ValueError:
            size = (1 << 64) - 1  # left at its default, which is infinity
        assert (text, int(told[1])) == (text, size)


def test_size_too_long_to_convert() -> None:
    with pytest.raises(ValueError) as caught:
        sizes.parse("1" * 5000 + "G")
    assert str(caught.value) == ORDER


@given(st.integers(1, 4096), st.sampled_from(list(sizes.UNITS.values())))
def test_size_comes_back(number: int, unit: int) -> None:
    assert sizes.parse(sizes.render(number * unit)) == number * unit


@given(st.text(st.sampled_from("0123456789KMGTkmgtBib .-+")) | st.text())
def test_size_only_raises_what_it_says(text: str) -> None:
    try:
        size = sizes.parse(text)
    except ValueError as error:
        assert str(error).startswith(("is ", "has "))
    else:
        assert 0 <= size <= sizes.MOST
        assert sizes.parse(f" {text} ") == size


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0"), (1, "1"), (1023, "1023"), (1 << 10, "1K"), (3 << 20, "3M"), (1 << 40, "1T")]
)
def test_size_rendered(size: int, text: str) -> None:
    assert sizes.render(size) == text
