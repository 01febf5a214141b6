"""Errors and results whose own code raises: each has a record, and no run hangs or runs a step twice for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from ckworkflow import codec, start_sync, step, workflow
from ckworkflow.engine import advance, failures, holding, judging
from ckworkflow.engine import answer as answers
from ckworkflow.engine.answer import Answer
from ckworkflow.engine.claims import begun
from ckworkflow.errors import (
    DatabaseUnavailableError,
    FatalError,
    RetryableError,
    UnreadableValueError,
    UnserializableValueError,
)
from ckworkflow.model import NodeStatus, RunStatus
from ckworkflow.worker.process import runtime as runtimes
from ckworkflow.worker.steps.ahead import RunAhead
from ckworkflow.worker.steps.lane import Lane
from waiting import failure_of, until

if TYPE_CHECKING:
    from ckworkflow.engine.installation import Installation
    from desk import Desk

ran: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_has_run() -> None:
    ran.clear()


def explode(*_: object) -> NoReturn:
    raise SystemExit("from a value")


class Stop(BaseException):
    """Not even an `Exception`."""


def stop(*_: object) -> NoReturn:
    raise Stop


# --- values ------------------------------------------------------------------------------------------


class Zone(tzinfo):
    """A time zone that cannot be asked."""

    utcoffset = dst = tzname = explode  # type: ignore[assignment]


class Money:
    """A registered class, which cannot be stored (any more)."""


codec.register_type(Money, name="unruly-money", to_json=explode, from_json=stop)


class Masked:
    """Lies about its class, badly."""

    __class__ = property(explode)  # type: ignore[assignment]


class Shown:
    """Has no text, and is no value either."""

    __repr__ = __str__ = stop


UNSTORABLE = {
    "time": lambda: datetime(2026, 1, 1, tzinfo=Zone()),
    "registered": Money,
    "masked": Masked,
    "shown": Shown,
    "nested": lambda: {"rows": [1, {"money": Money()}]},
}


# --- errors ------------------------------------------------------------------------------------------


class NoText(Exception):
    __str__ = __repr__ = explode


class NoArguments(Exception):
    args = property(explode)  # type: ignore[assignment]


class NoDetails(Exception):
    details = property(stop)


class Pairs(Mapping[str, int]):
    def __getitem__(self, key: str) -> int:
        explode()

    def __iter__(self) -> Iterator[str]:
        explode()

    def __len__(self) -> int:
        return 1


class NoPairs(Exception):
    def __init__(self) -> None:
        self.details = Pairs()


class NoAttributes(Exception):
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


class NoCause(Exception):
    __cause__ = property(stop)  # type: ignore[assignment]
    __notes__ = property(stop)  # type: ignore[assignment]


class Huge(Exception):
    code = 10**5000


class Subclassed(str):
    __slots__ = ()
    __len__ = __getitem__ = __str__ = __eq__ = explode  # type: ignore[assignment]
    __hash__ = str.__hash__


class OddCode(Exception):
    code = Subclassed("odd")


class Ours(FatalError):
    """An error made from one of ours carries its attributes."""

    def __init__(self) -> None:
        super().__init__("ours")
        self.money = Money()

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        explode()


ERRORS: dict[str, Any] = {
    "text": NoText,
    "arguments": NoArguments,
    "details": NoDetails,
    "pairs": NoPairs,
    "attributes": NoAttributes,
    "cause": NoCause,
    "huge code": Huge,
    "odd code": OddCode,
    "ours": Ours,
    "argument": lambda: ValueError(Money()),
    "argument without text": lambda: ValueError(Shown()),
    "member": lambda: ExceptionGroup("group", [NoText(), NoCause()]),
    "long": lambda: FatalError("x" * 10**6, details={"://a:" * 10**5: ["y" * 10**6]}),
    "long argument": lambda: ValueError("a" * 10**6, {"token=" * 10**5}),
    "exit": lambda: SystemExit(Shown()),
    "late": lambda: RetryableError(retry_after=datetime.max.replace(tzinfo=UTC)),
    "in no zone": lambda: RetryableError(retry_after=datetime(2026, 1, 1, tzinfo=Zone())),
    "odd wait": lambda: RetryableError(retry_after=Masked()),  # type: ignore[arg-type]
}


@step(max_retries=0)
def raises(kind: str) -> None:
    ran.append(kind)
    error = ERRORS[kind]()
    raise error


@step(max_retries=0)
async def raises_on_the_loop(kind: str) -> None:
    ran.append(kind)
    error = ERRORS[kind]()
    raise error


@workflow
async def raising(kind: str) -> None:
    await raises(kind)


@workflow
async def raising_on_the_loop(kind: str) -> None:
    await raises_on_the_loop(kind)


@step
def gives(kind: str) -> Any:
    ran.append(kind)
    return UNSTORABLE[kind]()


@step
async def gives_on_the_loop(kind: str) -> Any:
    ran.append(kind)
    return UNSTORABLE[kind]()


@step
def passes(value: Any) -> Any:
    return value


@workflow
async def giving(kind: str) -> Any:
    return await passes(await gives(kind))


@workflow
async def giving_on_the_loop(kind: str) -> Any:
    return await passes(await gives_on_the_loop(kind))


def nothing_is_held() -> bool:
    running = runtimes.peek()
    return running is not None and not running.engine.active


@pytest.mark.parametrize("body", [raising, raising_on_the_loop], ids=["thread", "loop"])
def test_errors_that_cannot_be_read_fail_their_runs_after_one_attempt(
    running: Installation, body: Any
) -> None:
    runs = {kind: start_sync(body, kind) for kind in ERRORS}

    errors = {kind: failure_of(run) for kind, run in runs.items()}
    assert [kind for kind, error in errors.items() if not isinstance(error, FatalError)] == []
    steps = {kind: run.steps()[0] for kind, run in runs.items()}
    assert sorted(ran) == sorted(ERRORS)
    assert {(each.status, each.attempt) for each in steps.values()} == {(NodeStatus.FAILED, 1)}
    assert [kind for kind, each in steps.items() if not each.error] == []
    until(nothing_is_held)


@pytest.mark.parametrize("body", [giving, giving_on_the_loop], ids=["thread", "loop"])
def test_results_that_cannot_be_read_fail_their_steps_at_once_with_their_paths(
    running: Installation, body: Any
) -> None:
    runs = {kind: start_sync(body, kind) for kind in UNSTORABLE}

    causes = {kind: failure_of(run).__cause__ for kind, run in runs.items()}
    assert {kind: getattr(cause, "path", cause) for kind, cause in causes.items()} == {
        **dict.fromkeys(runs, "result"),
        "nested": "result['rows'][1]['money']",
    }
    assert sorted(ran) == sorted(UNSTORABLE)
    until(nothing_is_held)


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_that_cannot_be_read_has_a_record_and_comes_back(kind: str) -> None:
    error = ERRORS[kind]()

    data = failures.to_data(error)
    again = failures.loads(codec.dumps(data))

    assert data["type"].endswith(f":{type(error).__qualname__}")
    assert str(again) is not None
    assert failures.outline(data)


@pytest.mark.parametrize("kind", UNSTORABLE)
def test_what_a_value_raises_when_it_is_read_is_told_with_its_path(kind: str) -> None:
    with pytest.raises(
        UnserializableValueError, match=r"^value(\[.*\])? is a .*cannot be stored\. "
    ) as told:
        codec.encode(UNSTORABLE[kind](), path="value")

    assert told.value.path.startswith("value")
    assert told.value.__cause__ is None


# --- values that cannot be rebuilt -------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """A class that the next deploy makes unhashable, say."""

    name: str


@step(max_retries=0)
def gives_keys() -> set[Key]:
    Key.__hash__ = object.__hash__  # type: ignore[method-assign]
    return {Key("a")}


@step(max_retries=0)
def spoils() -> None:
    Key.__hash__ = None  # type: ignore[assignment]


@workflow
async def keyed() -> Any:
    keys = await gives_keys()
    await spoils()
    return await passes_once(keys)


@step(max_retries=0)
def passes_once(value: Any) -> Any:
    return value


def test_a_value_whose_class_became_unhashable_holds_the_step_that_needs_it(
    running: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "FIRST_TRY", timedelta(seconds=0.1))
    run = start_sync(keyed)

    until(lambda: run.steps()[-1].error is not None)

    assert "set cannot be rebuilt: TypeError: " in (run.steps()[-1].error or "")
    assert [each.status for each in run.steps()][:2] == [NodeStatus.COMPLETED] * 2
    until(nothing_is_held)

    Key.__hash__ = object.__hash__  # type: ignore[method-assign]
    assert len(run.return_value(20)) == 1


@pytest.mark.parametrize(
    "tree",
    [
        {"$": "set", "v": [[1]]},
        {"$": "dict", "v": [[[1], 2]]},
        {"$": "dict", "v": 1},
        {"$": "tuple"},
        {"$": {}, "v": 1},
        {"$": "class", "t": [], "v": 1},
        {"$": "class", "t": "unruly-money", "v": 1},
        {"$": "enum", "t": 1, "v": 1},
        {"$": "dataclass", "v": {}},
    ],
)
def test_a_tree_that_no_value_can_be_made_of_is_told_as_unreadable(tree: Any) -> None:
    with pytest.raises(UnreadableValueError):
        codec.decode({"inside": [tree]})


def test_what_a_reference_raises_passes_a_decoding_as_it_is() -> None:
    def ref(_: object) -> None:
        raise Stop

    with pytest.raises(Stop):
        codec.decode({"$": "tuple", "v": [{"$": "ref", "v": 1}]}, ref=ref)


@pytest.mark.parametrize("text", ["{", "[1", "9" * 5000, "[" * 100_000])
def test_a_damaged_text_is_told_as_unreadable(text: str) -> None:
    with pytest.raises(UnreadableValueError):
        codec.loads(text)
    assert str(failures.loads(text)).startswith("A stored value cannot be rebuilt")


# --- judging and recording ---------------------------------------------------------------------------


def test_a_wait_until_the_end_of_the_calendar_is_refused_with_a_sentence(desk: Desk) -> None:
    late = RetryableError(retry_after=datetime.max.replace(tzinfo=UTC))

    failure = judging.judge(late, now=desk.clock)

    assert failure.action == "hopeless"
    assert "it is not within the years 1000 to 9000" in failure.data["message"]


def test_what_judging_raises_ends_the_step_with_that_error_and_the_steps_own_below_it(
    desk: Desk,
) -> None:
    run_id = desk.start(raising, "text")
    odd = RetryableError("try later", retry_after=datetime(2026, 1, 1, tzinfo=Zone()))

    recorded = desk.fail(desk.claim(run_id), odd, raises)

    assert recorded.must_advance
    error = failures.loads(desk.node(run_id).error or "")
    assert isinstance(error, FatalError)
    assert isinstance(error.__cause__, SystemExit)
    assert str(error.__cause__.__cause__) == "try later"


@step
def puts_off() -> None:
    ran.append("put off")
    raise RetryableError("far")


@workflow
async def putting_off() -> None:
    await puts_off()


def test_an_error_in_recording_that_is_not_the_databases_is_the_steps_failure(
    running: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "_delay", lambda _error, _now: timedelta.max)

    run = start_sync(putting_off)

    assert isinstance(failure_of(run).__cause__, OverflowError)
    assert ran == ["put off"]
    until(nothing_is_held)


# --- nothing keeps a step that nobody runs -----------------------------------------------------------


@step
async def first() -> str:
    return "first"


@step
async def second(value: str) -> str:
    return value


@workflow
async def two() -> str:
    return await second(await first())


@step
def plain_first() -> str:
    return "first"


@step
def plain_second(value: str) -> str:
    return value


@workflow
async def plain_two() -> str:
    return await plain_second(await plain_first())


@pytest.mark.parametrize("body", [two, plain_two], ids=["loop", "thread"])
@pytest.mark.parametrize("name", ["note_own_time", "report", "may_run"])
def test_a_step_is_given_up_wherever_its_thread_is_thrown_out(
    running: Installation, monkeypatch: pytest.MonkeyPatch, name: str, body: Any
) -> None:
    thrown: list[str] = []

    def throw(*_: object, **__: object) -> NoReturn:
        thrown.append(name)
        raise RuntimeError("thrown out")

    monkeypatch.setattr(RunAhead, name, throw)
    start_sync(body)

    until(lambda: thrown and nothing_is_held())


def test_a_step_that_the_lane_cannot_begin_fails_instead_of_keeping_its_thread(
    running: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def throw(*_: object, **__: object) -> NoReturn:
        raise RuntimeError("cannot begin")

    monkeypatch.setattr(runtimes.Runtime, "begin_step", throw)
    monkeypatch.setattr(first, "options", raises.options, raising=False)

    run = start_sync(two)

    until(lambda: run.steps()[0].attempt >= 1 and "cannot begin" in (run.steps()[0].error or ""))
    until(nothing_is_held)


def test_a_lane_that_cannot_go_on_hands_the_record_to_its_thread(
    running: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def throw(*_: object, **__: object) -> NoReturn:
        raise RuntimeError("cannot go on")

    monkeypatch.setattr(Lane, "_take_up", throw, raising=False)
    monkeypatch.setattr(RunAhead, "spend_on_step", throw)

    assert start_sync(two).return_value(10) == "first"
    until(nothing_is_held)


def test_a_step_that_was_claimed_with_a_plan_is_given_up_where_the_body_cannot_go_on(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = desk.start(two)
    row = desk.node(run_id)
    outages = iter([False, True])

    def begin(*_: object) -> object:
        if next(outages):
            raise DatabaseUnavailableError("postgresql://host/runs", "it is restarted")
        return "a snapshot"

    # The first continuation claims the step, and something has come meanwhile.
    answer = Answer(must_advance=True, here=begun(run_id, "two", row))
    monkeypatch.setattr(advance, "_begin", begin)
    monkeypatch.setattr(advance, "_continue", lambda *_: answer)
    with pytest.raises(DatabaseUnavailableError):
        advance.advance(desk.engine, run_id)

    assert next(outages, None) is None
    assert not desk.engine.active


@pytest.mark.parametrize("raises", [False, True])
def test_a_step_is_this_process_s_while_its_arguments_are_decoded(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, raises: bool
) -> None:
    run_id = desk.start(two)
    row = desk.node(run_id)
    seen: list[bool] = []

    def decode(*what: Any) -> Any:
        seen.append((run_id, row.node_id) in desk.engine.active)
        if raises:
            raise KeyboardInterrupt
        return begun(*what)

    monkeypatch.setattr(answers, "begun", decode)
    with pytest.raises(KeyboardInterrupt) if raises else nullcontext():
        Answer(taken=row).decoded(desk.engine, run_id, "two")

    assert seen == [True]
    assert bool(desk.engine.active) is not raises


# --- continuations -----------------------------------------------------------------------------------


@workflow
async def exits_after_a_look(kind: str) -> None:
    if await plain_first():
        error = ERRORS[kind]()
        raise error


@workflow
async def exits_at_once(kind: str) -> None:
    error = ERRORS[kind]()
    raise error


@pytest.mark.parametrize("body", [exits_at_once, exits_after_a_look])
def test_errors_of_a_body_that_cannot_be_read_fail_their_runs(
    running: Installation, monkeypatch: pytest.MonkeyPatch, body: Any
) -> None:
    monkeypatch.setitem(ERRORS, "stop", Stop)
    runs = [start_sync(body, kind) for kind in ERRORS]

    assert None not in [failure_of(run) for run in runs]
    until(nothing_is_held)


@workflow
async def passes_unreadable(kind: str) -> Any:
    if await plain_first():
        return await passes(UNSTORABLE[kind]())
    return None


@workflow
async def returns_unreadable(kind: str) -> Any:
    if await plain_first():
        return UNSTORABLE[kind]()
    return None


@pytest.mark.parametrize(
    ("body", "path"), [(passes_unreadable, "args[0]"), (returns_unreadable, "result")]
)
def test_what_a_body_passes_on_or_returns_and_cannot_be_read_fails_its_run_with_its_path(
    running: Installation, body: Any, path: str
) -> None:
    runs = {kind: start_sync(body, kind) for kind in UNSTORABLE}

    errors = {kind: failure_of(run) for kind, run in runs.items()}
    assert {type(error) for error in errors.values()} == {UnserializableValueError}
    assert {kind: getattr(error, "path", None) for kind, error in errors.items()} == {
        **dict.fromkeys(runs, path),
        "nested": f"{path}['rows'][1]['money']",
    }


class Fickle:
    """Stored once, and never again; or never rebuilt."""

    stored = 0
    is_lost = False

    def to_json(self) -> int:
        Fickle.stored += 1
        if Fickle.stored > 1 and not Fickle.is_lost:
            raise SystemExit("once only")
        return 1

    @staticmethod
    def from_json(_: object) -> Fickle:
        if Fickle.is_lost:
            raise Stop
        return Fickle()


codec.register_type(Fickle, name="fickle", to_json=Fickle.to_json, from_json=Fickle.from_json)


@step
def gives_fickle() -> Fickle:
    ran.append("fickle")
    return Fickle()


@workflow
async def fickle() -> list[Any]:
    return [await gives_fickle()]


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fickle, "stored", 0)
    monkeypatch.setattr(Fickle, "is_lost", True)


def test_a_result_that_can_be_stored_once_only_fails_the_run_and_not_its_step(
    running: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fickle, "stored", 0)
    run = start_sync(fickle)

    assert isinstance(failure_of(run), UnserializableValueError)
    assert [each.status for each in run.steps()] == [NodeStatus.COMPLETED]
    assert ran == ["fickle"]


@pytest.mark.parametrize("is_kept", [True, False], ids=["kept", "replayed"])
def test_a_result_that_cannot_be_rebuilt_here_waits_for_another_deploy_and_its_step_is_recorded(
    desk: Desk, lost: None, monkeypatch: pytest.MonkeyPatch, is_kept: bool
) -> None:
    run_id = desk.start(fickle)
    if not is_kept:
        desk.engine.bodies.clear()

    recorded = desk.succeed(desk.claim(run_id), Fickle())
    advance.advance(desk.engine, run_id)

    assert recorded.must_advance
    assert desk.node(run_id).status is NodeStatus.COMPLETED
    record = desk.run(run_id)
    assert record.status is RunStatus.RUNNING
    assert record.wake_at == desk.clock.now + holding.FIRST_TRY

    monkeypatch.setattr(Fickle, "is_lost", False)
    monkeypatch.setattr(Fickle, "stored", 0)
    desk.clock.advance(holding.FIRST_TRY)
    desk.tick()
    assert desk.run(run_id).status is RunStatus.COMPLETED
