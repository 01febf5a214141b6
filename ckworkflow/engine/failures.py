"""Errors as data: how a failure is stored, and how a body or a caller gets it back.

Never pickled and never the live exception: class name, message, code, and the text of the traceback,
with secrets removed.

Guarantee: whatever an exception does when it is read or made again, it has a record, and a record gives an
exception. What of it cannot be had is left out.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from ckworkflow import codec
from ckworkflow.codec.classes import find
from ckworkflow.engine.wording import counted
from ckworkflow.errors import (
    CkWorkflowError,
    FatalError,
    RetryableError,
    UnreadableValueError,
    UnserializableValueError,
)
from ckworkflow.foreign import describe, exact_text, is_interrupt, place, suppressed
from ckworkflow.model import RunId
from ckworkflow.scrub import scrub_head, scrub_tail

MESSAGE_LIMIT = 2_000
TRACEBACK_LIMIT = 8_000
CAUSE_LIMIT = 5
MEMBER_LIMIT = 20
"""Members of an exception group that are stored; how many further ones there were is told."""
TOTAL_LIMIT = 500
"""Members of all groups in one error that are stored."""
NOTE_LIMIT = 10
"""Notes of an error that are stored."""
_TRACEBACK = "__ckworkflow_traceback__"
_OMITTED = "__ckworkflow_omitted__"
_WORD = re.compile(r"[\w.:-]{1,40}", re.ASCII)
_FIELDS = ("code", "kind", "status", "details")
_LONGEST_INT_BITS = 1_024
"""Python refuses to write out, or to read, ints of more than 4,300 digits."""

# Past what a class has put in front of them.
_ARGS: Final = vars(BaseException)["args"].__get__
_CAUSE: Final = vars(BaseException)["__cause__"].__get__
_CONTEXT: Final = vars(BaseException)["__context__"].__get__
_IS_CONTEXT_SUPPRESSED: Final = vars(BaseException)["__suppress_context__"].__get__
_TRACEBACK_OF: Final = vars(BaseException)["__traceback__"].__get__
_MEMBERS: Final = vars(BaseExceptionGroup)["exceptions"].__get__
_MESSAGE: Final = vars(BaseExceptionGroup)["message"].__get__


class RecordedError(CkWorkflowError):
    """An error whose class cannot be made again here; the text names it."""


def to_data(error: BaseException) -> dict[str, Any]:
    """Turn an exception into JSON.

    Returns:
        `type` (`module:qualname`), `message`, `args` when they can be stored and hold no bytes, `code`, `kind`, `status` and
        `details` when it has them, the other `attributes` of an error of ours, its `notes`, `traceback`, and, in
        the same form, its `cause`, or its `context` where it has no cause and does not hide it. An exception group has `members` in the same form, and `members_omitted`, the number of
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
    with suppressed():
        return _read_all(error, depth, room)
    # What its class does when it is read, in a way that is not foreseen there.
    return {"type": place(type(error)), "message": "<an error that cannot be read>", "traceback": ""}


def _read_all(error: BaseException, depth: int, room: _Room) -> dict[str, Any]:
    is_group = issubclass(type(error), BaseExceptionGroup)
    data: dict[str, Any] = {
        "type": place(type(error)),
        "message": scrub_head(str.__str__(_MESSAGE(error)) if is_group else _text(error), MESSAGE_LIMIT),
        **_codes(error),
    }
    omitted = _was_omitted(error, "members")
    if is_group:
        members = _MEMBERS(error)
        kept = room.take(min(len(members), MEMBER_LIMIT)) if depth < CAUSE_LIMIT else 0
        data["members"] = [_data(one, depth + 1, room) for one in members[:kept]]
        omitted += sum(_size(one, room.sizes) for one in members[kept:])
    if omitted:
        data["members_omitted"] = omitted
    with suppressed():
        details = _read(error, "details")
        if isinstance(details, Mapping) and details:
            data["details"] = _stored(dict(details))
    with suppress(UnserializableValueError):
        data["args"] = _encoded(list(_ARGS(error)), "args")
    if issubclass(type(error), CkWorkflowError):
        with suppressed():
            if found := _attributes(error):
                data["attributes"] = found
    if notes := _notes(error):
        data["notes"] = notes
    # An error that was made again from its record has no frames of its own: the recorded ones tell more.
    recorded = _read(error, _TRACEBACK)
    lines = recorded if type(recorded) is str else _format(error)
    data["traceback"] = scrub_tail(lines, TRACEBACK_LIMIT)
    cause = _cause(error)
    if cause is not None and depth < CAUSE_LIMIT:
        kind = "context" if _CAUSE(error) is None else "cause"
        data[kind] = _data(cause, depth + 1, room)
    elif omitted := _length(cause) or _was_omitted(error, "causes"):
        data["causes_omitted"] = omitted
    return data


def _codes(error: BaseException) -> dict[str, str | int]:
    """What an error has to branch on."""
    found: dict[str, str | int] = {}
    for name in ("code", "kind", "status"):
        with suppressed():
            value = _read(error, name)
            if issubclass(type(value), str):
                found[name] = scrub_head(str.__str__(value), MESSAGE_LIMIT)
            elif issubclass(type(value), int) and type(value) is not bool:
                number = int.__int__(value)
                if number.bit_length() <= _LONGEST_INT_BITS:
                    found[name] = number
    return found


def _notes(error: BaseException) -> list[str]:
    """What was added to an error by `add_note`, and not by us."""
    found = _read(error, "__notes__")
    if type(found) is not list:
        return []
    ours = set(_omissions(_read(error, _OMITTED)))
    texts = [str.__str__(note) for note in found if issubclass(type(note), str)]
    return [scrub_head(text, MESSAGE_LIMIT) for text in texts if text not in ours][:NOTE_LIMIT]


def _omissions(omitted: object) -> list[str]:
    """Notes that say what the record of an error has left out."""
    if type(omitted) is not dict:
        return []
    nouns = {"members": "exception", "causes": "cause"}
    return [
        f"... and {counted(count, f'more {nouns[what]}')}, not recorded"
        for what, count in omitted.items()
    ]


def _format(error: BaseException) -> str:
    with suppressed():  # it shows notes, and looks for names that were meant
        return "".join(traceback.format_exception(error, chain=False))
    lines = traceback.format_tb(_TRACEBACK_OF(error))
    return "".join(["Traceback (most recent call last):\n", *lines, describe(error), "\n"])


def _cause(error: BaseException) -> BaseException | None:
    found: BaseException | None = _CAUSE(error)
    # Not `or`: a class may say what is true of its objects, or raise.
    if found is None and not _IS_CONTEXT_SUPPRESSED(error):
        found = _CONTEXT(error)
    return found


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
        parts = _MEMBERS(one) if issubclass(type(one), BaseExceptionGroup) else ()
        unknown = [part for part in parts if id(part) not in known]
        if unknown:
            stack.extend(unknown)
            continue
        found = sum(known[id(part)] for part in parts) + _was_omitted(one, "members")
        known[id(stack.pop())] = found or 1
    return known[id(error)]


def _was_omitted(error: BaseException, what: str) -> int:
    """How much of an error that was made again its record has left out."""
    found = _read(error, _OMITTED)
    return int(found.get(what, 0)) if type(found) is dict else 0


def dumps(error: BaseException) -> str:
    """Turn an exception into the text of an error column."""
    return codec.dumps(to_data(error))


def loads(text: str) -> BaseException:
    """Make the exception of an error column again; it never raises."""
    try:
        data = codec.loads(text)
    except UnreadableValueError as error:
        return RecordedError(str(error))
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
    """Say what kind of failure an error is, without anything that the step was given: `ValueError (code 7)`.

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


def public_text(data: Mapping[str, Any], run_id: RunId) -> str:
    """Say what Celery's events, signals and logs may: the kind of failure and where the rest is."""
    return f"{outline(data)}; see `ckworkflow runs show {run_id}`"


def with_traceback(text_or_data: str | Mapping[str, Any] | None) -> str:
    """The message and the traceback of an error and of its causes, as they are stored: without tokens."""
    data = codec.loads(text_or_data) if isinstance(text_or_data, str) else text_or_data
    told: list[str] = []
    while isinstance(data, Mapping):
        name = str(data.get("type", "")).rpartition(":")[2]
        told.append(str(data.get("traceback") or f"{name}: {data.get('message')}").rstrip())
        data = cause_of(data)
    return "\ncaused by\n".join(told)


def cause_of(data: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The error that an error came from or was raised while handling, both as data; `None` if it was neither."""
    found = data.get("cause", data.get("context"))
    return found if isinstance(found, Mapping) else None


def from_data(data: Mapping[str, Any]) -> BaseException:
    """Make an exception again, with its cause or context; code and kind are kept. It never raises."""
    message = str(data.get("message", ""))
    error = _remade(data, message)
    # Nobody could log one whose text needs what was not recorded.
    if error is None or not _has_text(error):
        error = _make(None, data, message)
        _fill(error, data)
    for kind in ("cause", "context"):
        found = data.get(kind)
        if isinstance(found, Mapping):
            BaseException.__setattr__(error, f"__{kind}__", from_data(found))
    return error


def _remade(data: Mapping[str, Any], message: str) -> BaseException | None:
    with suppressed():  # a class of the user's may refuse in any way
        error = _make(_find(str(data.get("type", ""))), data, message)
        _fill(error, data)
        return error
    return None


def _has_text(error: BaseException) -> bool:
    with suppressed():
        exact_text(error)
        return True
    return False


def _fill(error: BaseException, data: Mapping[str, Any]) -> None:
    attributes = data.get("attributes")
    for name, tree in attributes.items() if isinstance(attributes, Mapping) else ():
        with suppress(UnreadableValueError):
            _set(error, name, codec.decode(tree))
    for name in _FIELDS:
        if name in data:
            _set(error, name, _details(data[name]) if name == "details" else data[name])
    if isinstance(data.get("traceback"), str):
        _set(error, _TRACEBACK, data["traceback"])
    omitted = {
        what: data[f"{what}_omitted"] for what in ("members", "causes") if f"{what}_omitted" in data
    }
    if omitted:
        _set(error, _OMITTED, omitted)
    notes = data.get("notes")
    for note in [*(notes if isinstance(notes, list) else ()), *_omissions(omitted)]:
        with suppressed():  # its class may make of notes what it likes
            BaseException.add_note(error, note)


def _details(tree: Any) -> Any:
    """The details of an error as they were given; as they are stored, if that cannot be rebuilt here."""
    with suppress(UnreadableValueError):
        return codec.decode(tree)
    return tree


def _set(error: BaseException, name: str, value: object) -> None:
    with suppressed():  # a class may compute it, or refuse it
        setattr(error, name, value)


def exhausted(step: str, attempts: int, data: Mapping[str, Any]) -> dict[str, Any]:
    """The failure that a body sees when a step has used up its attempts; the last error is its cause."""
    return _final(f"step {step} failed after {counted(attempts, 'attempt')}", data)


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
        of_members: Callable[..., BaseException] = cls
        with suppressed():  # a class of the user's may refuse in any way
            return of_members(message, [from_data(member) for member in members])
    if cls is FatalError:
        return FatalError(message)
    made_of: Any = cls
    try:
        # Not through __init__: it may take anything. The arguments are what `str` and `repr` show.
        error: BaseException = made_of.__new__(made_of, *args)
        error.args = args
    except BaseException as raised:  # a class of the user's may refuse in any way
        if is_interrupt(raised):
            raise
        return RecordedError(f"{place(cls).partition(':')[2]}: {message}")
    if isinstance(error, FatalError):
        error.code = error.kind = error.status = None
        error.details = {}
    if isinstance(error, RetryableError):
        error.retry_after = error.code = error.kind = error.status = None
    return error


def _find(place: str) -> type[BaseException] | None:
    module, _, qualname = place.partition(":")
    with suppressed():  # importing a module may fail in any way
        found = find(module, qualname)
        if isinstance(found, type) and issubclass(found, BaseException):
            return found
    return None


def _attributes(error: BaseException) -> dict[str, Any]:
    """What an error of ours, or of a class made from one, carries besides its text."""
    found = {}
    for name, value in list(_read(error, "__dict__").items()):
        if name not in _FIELDS and not name.startswith("_"):
            with suppress(UnserializableValueError):
                found[name] = _encoded(value, name)
    return found


def _stored(value: object) -> Any:
    try:
        return _encoded(value, "details")
    except UnserializableValueError:
        return {"text": _clean(exact_text(value))}


def _encoded(value: object, path: str) -> Any:
    """The tree of a value without secrets.

    Raises:
        UnserializableValueError: It has none. So with bytes in it: nobody could tell what they hold, compressed, say.
    """
    return _clean(codec.encode(value, path=path))


def _clean(tree: Any) -> Any:
    """The JSON tree without secrets; texts of any length are cut."""
    if isinstance(tree, str):
        return scrub_head(tree, MESSAGE_LIMIT)
    if isinstance(tree, list):
        return [_clean(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    tag = tree.get("$")
    if tag is None:
        return {scrub_head(key, MESSAGE_LIMIT): _clean(item) for key, item in tree.items()}
    if tag == "bytes":
        raise UnserializableValueError("an error's bytes", b"", "They are left out of its record.")
    if tag == "str":  # in base64, as there are characters in it that no database takes
        return codec.encode(scrub_head(codec.decode(tree), MESSAGE_LIMIT), path="text")
    return {**tree, "v": _clean(tree["v"])}  # the name of a class is no text


def _read(error: BaseException, name: str) -> Any:
    """The attribute, or `None`: a property may fail in any way, and the error must be stored all the same."""
    with suppressed():
        return getattr(error, name, None)
    return None


def _text(error: BaseException) -> str:
    with suppressed():
        return exact_text(error)
    return f"<{place(type(error)).partition(':')[2]} without text>"
