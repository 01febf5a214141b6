"""Large values apart: the text of a tree, without the parts of it that are too large for a row.

A row that many transactions read and write must stay small. So a value of more than `LARGE` characters stands apart from the text that it belongs
to, under the SHA-256 of its own text, and a reference in its place. The same value has the same digest wherever it is in a tree, so
it is stored once however often it is passed on.

Parts have no parts, and what is divided is known by the tree alone, so equal trees give equal texts.

Not here: where the parts are stored (`ckworkflow.store.large`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, Final, Self

from ckworkflow.codec.decoding import read_text
from ckworkflow.codec.encoding import dumps
from ckworkflow.errors import UnreadableValueError
from ckworkflow.model import Json

LARGE = 1_000_000
"""Characters of JSON that a row may have of one value."""
_SMALLEST_SHARE: Final = 16
"""Of a container that is too large, what is smaller than this share of `LARGE` stays in its place."""
_MOST_MEMBERS: Final = 1_000
"""Members of which each is looked at by itself; a container of more is one part."""
MARK: Final = '{"$":"ref","v":["@'
"""How a reference to a part begins; no text of a user's can have it."""
_REFERENCE: Final = re.compile(r'\{"\$":"ref","v":\["@([0-9a-f]{64})",\[\]\]\}')

_NUMBER: Final = 8
Member = tuple[Any, Json]
"""A key or index, and what is there."""


class Packed(str):
    """The text of a tree that has parts apart.

    Attributes:
        apart: The texts of the parts, by digest.
    """

    apart: Mapping[str, str]

    def __new__(cls, text: str, apart: Mapping[str, str]) -> Self:
        """Make the text of the tree and those of its parts one object."""
        made = super().__new__(cls, text)
        made.apart = apart
        return made


def pack(tree: Json) -> str:
    """Return a tree as text for a row: that of `dumps`, or, if it is too large for one, a `Packed`."""
    text = dumps(tree)
    if len(text) <= LARGE:
        return text
    small, apart = _divided(tree, text)
    return Packed(dumps(small), apart)


def loads(text: str) -> Json:
    """Return the tree that `dumps` or `pack` made this text of.

    Raises:
        UnreadableValueError: The text is damaged, or its parts are not with it.
    """
    tree = read_text(text)
    return _joined(tree, text.apart) if isinstance(text, Packed) else tree


def parts_of(text: str) -> frozenset[str]:
    """The digests of the parts that a text refers to."""
    return frozenset(_REFERENCE.findall(text)) if MARK in text else frozenset()


def size_of(text: str) -> int:
    """The bytes of a text and of its parts."""
    parts = text.apart.values() if isinstance(text, Packed) else ()
    return sum(len(each.encode()) for each in (text, *parts))


def _divided(tree: Json, text: str) -> tuple[Json, dict[str, str]]:
    """Return a tree whose text is too large as one that is not, and its parts."""
    members = _members(tree)
    smaller = _Smaller(tree, len(text))
    for key, member in members:
        if _size(member) > LARGE:
            smaller.put(key, *_divided(member, dumps(member)))
    for key, member in sorted(members, key=lambda each: -_size(smaller.tree[each[0]])):
        size = _size(smaller.tree[key])
        if smaller.size <= LARGE or size * _SMALLEST_SHARE < LARGE:
            break
        smaller.put(key, *_apart(dumps(member)))
    if smaller.size > LARGE:
        return _apart(text)
    return smaller.tree, {
        digest: part for parts in smaller.apart.values() for digest, part in parts.items()
    }


class _Smaller:
    """A tree of which members are replaced.

    Args:
        tree: The tree.
        size: The length of its text.
    """

    def __init__(self, tree: Any, size: int) -> None:
        self.tree, self.size = copy(tree), size
        self.apart: dict[Any, dict[str, str]] = {}
        """The parts of each member that was replaced."""

    def put(self, key: Any, tree: Json, apart: dict[str, str]) -> None:
        """Replace a member."""
        self.size += _size(tree) - _size(self.tree[key])
        self.tree[key], self.apart[key] = tree, apart


def _members(tree: Any) -> list[Member]:
    """The members of a plain list or dict, unless they are too many."""
    if isinstance(tree, list):
        pairs: Sequence[tuple[Any, Any]] = list(enumerate(tree))
    elif isinstance(tree, dict) and "$" not in tree:
        pairs = list(tree.items())
    else:
        return []
    return list(pairs) if len(pairs) <= _MOST_MEMBERS else []


def _size(tree: Json) -> int:
    """The length of the text of a tree; of a number, about."""
    return len(dumps(tree)) if isinstance(tree, str | list | dict) else _NUMBER


def _apart(text: str) -> tuple[Json, dict[str, str]]:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"$": "ref", "v": [f"@{digest}", []]}, {digest: text}


def _joined(tree: Any, apart: Mapping[str, str]) -> Json:
    if isinstance(tree, list):
        return [_joined(each, apart) for each in tree]
    if not isinstance(tree, dict):
        return tree  # type: ignore[no-any-return]  # as JSON has it
    if tree.get("$") == "ref" and str(tree["v"][0]).startswith("@"):
        try:
            return read_text(apart[tree["v"][0][1:]])
        except KeyError:
            raise UnreadableValueError("value", "a part of it is not in the database") from None
    return {key: _joined(each, apart) for key, each in tree.items()}
