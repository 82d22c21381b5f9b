# SPDX-License-Identifier: LGPL-2.1-or-later
"""NamedTuple: typing's to type checkers, and at run time one that is made in a fifth of the time.

A start makes dozens of them, and typing's compiles a constructor for each; to import typing takes 3 ms more. What
is wrong with a definition, such as a default too early, type checkers find.
"""

from __future__ import annotations

# Type checkers take it for true, wherever it comes from: below it is imported what annotations alone need.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
else:
    from _collections import _tuplegetter  # as collections.namedtuple does it: faster than a property

    class _Fields(type):
        """Makes the annotations of a class the fields of its instances."""

        def __new__(cls, name, bases, body):
            fields = tuple(body.get("__annotations__", ()))
            body["_field_defaults"] = {field: body[field] for field in fields if field in body}
            body["_fields"] = body["__match_args__"] = fields
            body["__slots__"] = ()
            for index, field in enumerate(fields):
                body[field] = _tuplegetter(index, None)
            return type.__new__(cls, name, bases, body)

    class NamedTuple(tuple, metaclass=_Fields):
        """See typing.NamedTuple and collections.namedtuple."""

        def __new__(cls, /, *values, **named):
            if named or len(values) != len(cls._fields):
                values = _completed(cls, values, named)
            return tuple.__new__(cls, values)

        @classmethod
        def _make(cls, values):
            found = tuple.__new__(cls, values)
            if len(found) != len(cls._fields):
                raise TypeError(f"{cls.__name__} takes {len(cls._fields)} values, but {len(found)} were given")
            return found

        def _replace(self, /, **named):
            values = [named.pop(field, value) for field, value in zip(self._fields, self, strict=True)]
            if named:
                raise ValueError(f"Got unexpected field names: {list(named)}")
            return tuple.__new__(type(self), values)

        def _asdict(self):
            return dict(zip(self._fields, self, strict=True))

        def __repr__(self):
            return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._asdict().items())})"

        def __getnewargs__(self):
            return tuple(self)  # for copy and pickle

    def _completed(cls, values, named):
        """All values, in the order of the fields: `values`, then what is `named` or has a default."""
        left = cls._fields[len(values) :]
        if len(values) > len(cls._fields):
            raise TypeError(f"{cls.__name__} takes {len(cls._fields)} values, but {len(values)} were given")
        if wrong := named.keys() - left:
            told = [f"{name} a second time" if name in cls._fields else f"{name}, no field" for name in sorted(wrong)]
            raise TypeError(f"{cls.__name__} is given {' and '.join(told)}")
        found = cls._field_defaults | named
        try:
            return *values, *[found[field] for field in left]
        except KeyError as missing:
            raise TypeError(f"{cls.__name__} is given nothing for {missing}") from None
