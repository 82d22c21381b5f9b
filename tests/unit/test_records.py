# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmsup.records.NamedTuple does what typing's does: each test runs on both."""

from __future__ import annotations

import copy
import json
import pickle
import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import pytest

from kvmsup import records


class Ours(records.NamedTuple):
    """A point."""

    x: int
    y: int = 2
    values: str = ""  # names that a constructor may have for itself
    named: Mapping[str, int] = MappingProxyType({})

    @property
    def sum(self) -> int:
        return self.x + self.y

    def moved(self, by: int) -> Ours:
        return self._replace(x=self.x + by)

    @classmethod
    def origin(cls) -> Ours:
        return cls(0, 0)

    def __str__(self) -> str:
        return f"{self.x},{self.y}"


class Theirs(typing.NamedTuple):
    """A point."""

    x: int
    y: int = 2
    values: str = ""
    named: Mapping[str, int] = MappingProxyType({})

    @property
    def sum(self) -> int:
        return self.x + self.y

    def moved(self, by: int) -> Theirs:
        return self._replace(x=self.x + by)

    @classmethod
    def origin(cls) -> Theirs:
        return cls(0, 0)

    def __str__(self) -> str:
        return f"{self.x},{self.y}"


class OursOfOne(records.NamedTuple):
    only: int


class TheirsOfOne(typing.NamedTuple):
    only: int


class OursOfNone(records.NamedTuple):
    """Without a field."""


class TheirsOfNone(typing.NamedTuple):
    """Without a field."""


# Any: what a type checker would refuse is tried here.
Point = Any


@pytest.fixture(params=[Ours, Theirs])
def point(request: pytest.FixtureRequest) -> Point:
    return request.param


@pytest.mark.parametrize(
    ("values", "named", "expected"),
    [
        ((1,), {}, (1, 2, "", {})),
        ((1, 3), {}, (1, 3, "", {})),
        ((1, 3, "c", {"a": 1}), {}, (1, 3, "c", {"a": 1})),
        ((), {"x": 1}, (1, 2, "", {})),
        ((), {"named": {}, "values": "c", "y": 3, "x": 1}, (1, 3, "c", {})),
        ((1,), {"values": "c"}, (1, 2, "c", {})),
        ((1,), {"named": {}}, (1, 2, "", {})),
    ],
)
def test_made_of_values_and_names(
    values: tuple[Any, ...], named: dict[str, Any], expected: tuple[Any, ...], point: Point
) -> None:
    found = point(*values, **named)
    assert type(found) is point
    assert found == expected
    assert (found.x, found.y, found.values, found.named) == expected


@pytest.mark.parametrize(
    ("values", "named", "told"),
    [
        ((), {}, "x"),  # missing
        ((), {"y": 1}, "x"),
        ((1, 2, "", {}, 5), {}, "5"),  # too many
        ((1, 2, "", {}, 5), {"x": 1}, ""),
        ((1,), {"z": 1}, "z"),  # unknown
        ((1,), {"sum": 1}, "sum"),  # a property
        ((1,), {"x": 1}, "x"),  # twice
        ((1, 2, "", {}), {"named": {}}, "named"),
    ],
)
def test_what_it_is_not_made_of(values: tuple[Any, ...], named: dict[str, Any], told: str, point: Point) -> None:
    with pytest.raises(TypeError, match=told):
        point(*values, **named)


def test_a_tuple(point: Point) -> None:
    one, other = point(1, 3), point(1, 4)
    assert isinstance(one, tuple)
    assert one == point(1, 3) == (1, 3, "", {}) != other
    assert one < other < point(2)
    assert hash(point(1, 3, "", ())) == hash((1, 3, "", ()))
    assert (len(one), one[1], one[-1], one[:2]) == (4, 3, {}, (1, 3))
    x, *rest = one
    assert (x, rest) == (1, [3, "", {}])
    assert json.dumps(point(1, 3, "c", {"a": 1})) == '[1, 3, "c", {"a": 1}]'


def test_cannot_be_changed(point: Point) -> None:
    found = point(1)
    for name in ("x", "sum", "unknown"):
        with pytest.raises(AttributeError):
            setattr(found, name, 1)
    with pytest.raises(AttributeError):
        del found.x
    assert not hasattr(found, "__dict__")


def test_another_with_some_fields_replaced(point: Point) -> None:
    found = point(1, 3)
    changed = found._replace(y=4, named={"a": 1})
    assert (type(changed), changed, found) == (point, (1, 4, "", {"a": 1}), (1, 3, "", {}))
    assert found._replace() == found
    with pytest.raises((ValueError, TypeError), match="z"):  # TypeError from Python 3.13 on
        found._replace(x=1, z=2)


def test_made_of_a_sequence(point: Point) -> None:
    assert point._make(iter((1, 2, "c", {}))) == (1, 2, "c", {})
    assert type(point._make([1, 2, "c", {}])) is point
    with pytest.raises(TypeError):
        point._make((1,))
    with pytest.raises(TypeError):
        point._make((1, 2, "c", {}, 5))


def test_tells_of_itself(point: Point) -> None:
    assert point._fields == point.__match_args__ == ("x", "y", "values", "named")
    assert point._field_defaults == {"y": 2, "values": "", "named": {}}
    assert point.__doc__ == "A point."
    assert list(point(1)._asdict().items()) == [("x", 1), ("y", 2), ("values", ""), ("named", {})]
    assert repr(point(1, 3, "c", ())) == f"{point.__name__}(x=1, y=3, values='c', named=())"
    assert str(point(1, 3)) == "1,3"
    assert typing.get_type_hints(point) == {"x": int, "y": int, "values": str, "named": Mapping[str, int]}


def test_methods(point: Point) -> None:
    assert point(1, 3).sum == 4
    assert point(1, 3).moved(2) == (3, 3, "", {})
    assert (type(point.origin()), point.origin()) == (point, (0, 0, "", {}))


def test_patterns() -> None:
    match Ours(1, 3):
        case Ours(0, _):
            pytest.fail("that is another one")
        case Ours(x, y=3):
            assert x == 1
        case _:
            pytest.fail("it has y = 3")


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies(again: Callable[[Any], Any], point: Point) -> None:
    found = again(point(1, 3, "c", ()))
    assert (type(found), found) == (point, (1, 3, "c", ()))


@pytest.mark.parametrize("one", [OursOfOne, TheirsOfOne])
def test_one_field(one: Any) -> None:
    assert one((1, 2)) == ((1, 2),)
    assert repr(one(5)) == f"{one.__name__}(only=5)"
    with pytest.raises(TypeError):
        one()


@pytest.mark.parametrize("none", [OursOfNone, TheirsOfNone])
def test_no_field(none: Any) -> None:
    assert (none(), none._fields, none()._asdict()) == ((), (), {})
    with pytest.raises(TypeError):
        none(1)
