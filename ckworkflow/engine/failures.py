"""Errors as data: how a failure is stored, and how a body or a caller gets it back.

Never pickled and never the live exception: class name, message, code, and the text of the traceback,
with secrets removed.
"""

from __future__ import annotations

import builtins
import importlib
import re
import traceback
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ckworkflow import codec, errors
from ckworkflow.errors import (
    CkWorkflowError,
    FatalError,
    RetryableError,
    UnreadableValueError,
    UnserializableValueError,
)
from ckworkflow.scrub import scrub

MESSAGE_LIMIT = 2_000
TRACEBACK_LIMIT = 8_000
CAUSE_LIMIT = 5
MEMBER_LIMIT = 20
"""Members of an exception group that are stored; how many further ones there were is told."""
TOTAL_LIMIT = 500
"""Members of all groups in one error that are stored."""
_TRACEBACK = "__ckworkflow_traceback__"
_OMITTED = "__ckworkflow_omitted__"
_WORD = re.compile(r"[\w.:-]{1,40}", re.ASCII)
_FIELDS = ("code", "kind", "status", "details")


class RecordedError(CkWorkflowError):
    """An error whose class cannot be made again here; the text names it."""


def to_data(error: BaseException) -> dict[str, Any]:
    """Turn an exception into JSON.

    Returns:
        `type` (`module:qualname`), `message`, `args` when they can be stored, `code`, `kind`, `status` and
        `details` when it has them, the other `attributes` of an error of ours, `traceback`, and `cause` in
        the same form. An exception group has `members` in the same form, and `members_omitted`, the number of
        exceptions in it that are not among them; the first error of a chain that was cut has `causes_omitted`.
    """
    return _data(error, 0, _Room(TOTAL_LIMIT))


class _Room:
    """How many more members of groups may be stored in one error; `sizes` are those of groups, by id."""

    def __init__(self, members: int) -> None:
        self.members = members
        self.sizes: dict[int, int] = {}

    def take(self, wanted: int) -> int:
        """Give so many places at most."""
        taken = min(wanted, self.members)
        self.members -= taken
        return taken


def _data(error: BaseException, depth: int, room: _Room) -> dict[str, Any]:
    kind = type(error)
    data: dict[str, Any] = {
        "type": f"{kind.__module__}:{kind.__qualname__}",
        "message": scrub(_text(error))[:MESSAGE_LIMIT],
    }
    for name in ("code", "kind", "status"):
        value = _read(error, name)
        if isinstance(value, int | str) and not isinstance(value, bool):
            data[name] = scrub(value) if isinstance(value, str) else value
    if isinstance(error, BaseExceptionGroup):
        kept = room.take(min(len(error.exceptions), MEMBER_LIMIT)) if depth < CAUSE_LIMIT else 0
        data["members"] = [_data(one, depth + 1, room) for one in error.exceptions[:kept]]
        data["message"] = scrub(error.message)[:MESSAGE_LIMIT]
    omitted = _was_omitted(error, "members")
    if isinstance(error, BaseExceptionGroup):
        omitted += sum(_size(one, room.sizes) for one in error.exceptions[len(data["members"]) :])
    if omitted:
        data["members_omitted"] = omitted
    details = _read(error, "details")
    if isinstance(details, Mapping) and details:
        data["details"] = _stored(dict(details))
    with suppress(UnserializableValueError):
        data["args"] = _clean(codec.encode(list(error.args), path="args"))
    if isinstance(error, CkWorkflowError) and (found := _attributes(error)):
        data["attributes"] = found
    # An error that was made again from its record has no frames of its own: the recorded ones tell more.
    recorded = getattr(error, _TRACEBACK, None)
    lines = (
        recorded
        if isinstance(recorded, str)
        else "".join(traceback.format_exception(error, chain=False))
    )
    data["traceback"] = scrub(lines)[-TRACEBACK_LIMIT:]
    cause = _cause(error)
    if cause is not None and depth < CAUSE_LIMIT:
        data["cause"] = _data(cause, depth + 1, room)
    elif omitted := _length(cause) or _was_omitted(error, "causes"):
        data["causes_omitted"] = omitted
    return data


def _cause(error: BaseException) -> BaseException | None:
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _length(error: BaseException | None) -> int:
    """How many errors there are in a chain of causes, which may be a ring."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        error = _cause(error)
    return len(seen)


def _size(error: BaseException, known: dict[int, int]) -> int:
    """How many exceptions an error is: those in a group, however deep, with those that its record had left out."""
    stack = [error]
    while stack:
        one = stack[-1]
        parts = one.exceptions if isinstance(one, BaseExceptionGroup) else ()
        unknown = [part for part in parts if id(part) not in known]
        if unknown:
            stack.extend(unknown)
            continue
        found = sum(known[id(part)] for part in parts) + _was_omitted(one, "members")
        known[id(stack.pop())] = found or 1
    return known[id(error)]


def _was_omitted(error: BaseException, what: str) -> int:
    """How much of an error that was made again its record has left out."""
    found = getattr(error, _OMITTED, None)
    return int(found.get(what, 0)) if isinstance(found, dict) else 0


def dumps(error: BaseException) -> str:
    """Turn an exception into the text of an error column."""
    return codec.dumps(to_data(error))


def loads(text: str) -> BaseException:
    """Make the exception of an error column again."""
    data = codec.loads(text)
    if not isinstance(data, Mapping):
        return RecordedError(str(data))
    return from_data(data)


def one_line(text: str | None) -> str | None:
    """Say what an error column holds in one line: `ValueError: boom`."""
    if text is None:
        return None
    data = codec.loads(text)
    if not isinstance(data, Mapping):
        return str(data)
    name = str(data.get("type", "")).rpartition(":")[2]
    return f"{name}: {data.get('message')}".splitlines()[0]


def outline(text_or_data: str | Mapping[str, Any] | None) -> str | None:
    """Say what kind of failure an error is, and nothing of what the step was told: `ValueError (code 7)`.

    For logs and Celery's events, and so for Flower, which more people read than the database. A message
    quotes what it is about; that stays in SQL (`ckworkflow runs show`).
    """
    data = codec.loads(text_or_data) if isinstance(text_or_data, str) else text_or_data
    if not isinstance(data, Mapping):
        return None
    name = str(data.get("type", "")).rpartition(":")[2]
    # A word to branch on, and not a sentence that happens to be in an attribute of that name.
    facts = [
        f"{field} {data[field]}"
        for field in ("status", "code", "kind")
        if field in data and _WORD.fullmatch(str(data[field]))
    ]
    return f"{name} ({', '.join(facts)})" if facts else name


def from_data(data: Mapping[str, Any]) -> BaseException:
    """Make an exception again, with its cause; code and kind are kept."""
    message = str(data.get("message", ""))
    error = _make(_find(str(data.get("type", ""))), data, message)
    _fill(error, data)
    try:
        str(error)
    except Exception:  # noqa: BLE001  # its text needs what was not recorded; nobody could log it
        error = _make(None, data, message)
        _fill(error, data)
    cause = data.get("cause")
    if isinstance(cause, Mapping):
        error.__cause__ = from_data(cause)
    return error


def _fill(error: BaseException, data: Mapping[str, Any]) -> None:
    attributes = data.get("attributes")
    for name, tree in attributes.items() if isinstance(attributes, Mapping) else ():
        with suppress(AttributeError, UnreadableValueError):
            setattr(error, name, codec.decode(tree))
    for name in _FIELDS:
        if name in data:
            with suppress(AttributeError):  # a class that computes it
                setattr(error, name, data[name])
    if isinstance(data.get("traceback"), str):
        with suppress(AttributeError):
            setattr(error, _TRACEBACK, data["traceback"])
    omitted = {
        what: data[f"{what}_omitted"] for what in ("members", "causes") if f"{what}_omitted" in data
    }
    if omitted:
        with suppress(AttributeError):
            setattr(error, _OMITTED, omitted)
        for what, count in omitted.items():
            noun = "exception" if what == "members" else "cause"
            BaseException.add_note(
                error, f"... and {count} more {noun}{'s' if count > 1 else ''}, not recorded"
            )


def exhausted(step: str, attempts: int, data: Mapping[str, Any]) -> dict[str, Any]:
    """The failure that a body sees when a step has used up its attempts; the last error is its cause."""
    return _final(f"step {step} failed after {attempts} attempts", data)


def hopeless(step: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """The failure that a body sees when no further attempt could help; the error is its cause."""
    return _final(f"step {step} failed", data)


def _final(what: str, data: Mapping[str, Any]) -> dict[str, Any]:
    name = str(data.get("type", "")).rpartition(":")[2]
    found = to_data(FatalError(f"{what}: {name}: {data.get('message', '')}"))
    found.pop("traceback")
    for key in _FIELDS:
        if key in data:
            found[key] = data[key]
    return {**found, "cause": data}


def _make(cls: type[BaseException] | None, data: Mapping[str, Any], message: str) -> BaseException:
    if cls is None:
        name = str(data.get("type", "")).rpartition(":")[2]
        return RecordedError(f"{name}: {message}")
    args: tuple[Any, ...] = (message,)
    with suppress(UnreadableValueError):
        args = tuple(codec.decode(data["args"])) if "args" in data else args
    members = data.get("members")
    if isinstance(members, list) and members and issubclass(cls, BaseExceptionGroup):
        with suppress(Exception):  # a class of the user's may refuse in any way
            return cls(message, [from_data(member) for member in members])
    if cls is FatalError:
        return FatalError(message)
    try:
        # Not through __init__: it may take anything. The arguments are what `str` and `repr` show.
        error = cls.__new__(cls, *args)
        error.args = args
    except Exception:  # noqa: BLE001  # a class of the user's may refuse in any way
        return RecordedError(f"{cls.__qualname__}: {message}")
    if isinstance(error, FatalError):
        error.code = error.kind = error.status = None
        error.details = {}
    if isinstance(error, RetryableError):
        error.retry_after = error.code = error.kind = error.status = None
    return error


def _find(place: str) -> type[BaseException] | None:
    module, _, qualname = place.partition(":")
    found: Any = {"builtins": builtins, errors.__name__: errors}.get(module)
    try:
        found = found or importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except Exception:  # noqa: BLE001  # importing a module may fail in any way
        return None
    return found if isinstance(found, type) and issubclass(found, BaseException) else None


def _attributes(error: CkWorkflowError) -> dict[str, Any]:
    """What an error of ours, or of a class made from one, carries besides its text."""
    found = {}
    for name, value in vars(error).items():
        if name not in _FIELDS and not name.startswith("_"):
            with suppress(UnserializableValueError):
                found[name] = _clean(codec.encode(value, path=name))
    return found


def _stored(value: object) -> Any:
    try:
        return _clean(codec.encode(value, path="details"))
    except UnserializableValueError:
        return {"text": _clean(str(value))}


def _clean(tree: Any) -> Any:
    """The JSON tree without secrets; texts of any length are cut."""
    if isinstance(tree, str):
        return scrub(tree)[:MESSAGE_LIMIT]
    if isinstance(tree, list):
        return [_clean(item) for item in tree]
    if isinstance(tree, dict):
        return {scrub(key): _clean(item) for key, item in tree.items()}
    return tree


def _read(error: BaseException, name: str) -> Any:
    """The attribute, or `None`: a property may fail in any way, and the error must be stored all the same."""
    try:
        return getattr(error, name, None)
    except Exception:  # noqa: BLE001  # see above
        return None


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001  # an error whose own text fails must still be stored
        return f"<{type(error).__name__} without text>"
