# SPDX-License-Identifier: LGPL-2.1-or-later
"""CPU lists and sizes: what is right comes back, what is wrong always raises."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsup import cpulist, sizes

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


@pytest.mark.parametrize(
    ("text", "size"),
    [("1K", 1 << 10), ("512M", 512 << 20), ("4G", 4 << 30), ("2T", 2 << 40), ("0K", 0), ("007M", 7 << 20)],
)
def test_size(text: str, size: int) -> None:
    assert sizes.parse(text) == size


WHOLE = "is not a whole number followed by K, M, G or T"
MORE = "is more than any host can have, which is 4096T"
BYTES = "has a unit that reads as bytes to the base 1000 here and 1024 there"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", WHOLE),
        ("G", WHOLE),
        ("8 G", WHOLE),
        ("-1G", WHOLE),
        ("+1G", WHOLE),
        ("1.5G", WHOLE),
        ("1e3M", WHOLE),
        ("0x1G", WHOLE),
        ("1_0G", WHOLE),
        ("³G", WHOLE),
        ("٣G", WHOLE),
        ("4GM", WHOLE),
        ("4P", WHOLE),
        ("4G\n", WHOLE),
        (" 4G", WHOLE),
        ("4097T", MORE),
        ("1234567890123456G", MORE),
        ("8GB", BYTES),
        ("8GiB", BYTES),
        ("8gib", BYTES),
        ("8B", BYTES),
        ("8", "has no unit"),
        ("4g", "has its unit in lower case"),
        ("512m", "has its unit in lower case"),
    ],
)
def test_size_that_is_none(text: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        sizes.parse(text)
    assert str(caught.value) == said


def test_size_too_long_to_convert() -> None:
    with pytest.raises(ValueError) as caught:
        sizes.parse("1" * 5000 + "G")
    assert str(caught.value) == MORE


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
        assert text == f"{text[:-1]}{text[-1]}" and size == int(text[:-1]) * sizes.UNITS[text[-1]]


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0"), (1, "1"), (1023, "1023"), (1 << 10, "1K"), (3 << 20, "3M"), (1 << 40, "1T")]
)
def test_size_rendered(size: int, text: str) -> None:
    assert sizes.render(size) == text
