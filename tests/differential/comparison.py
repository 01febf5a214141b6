"""Comparing a body in the engine with the same body under plain asyncio, in one dimension after another."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from ckworkflow import codec
from ckworkflow.definition import registry
from ckworkflow.engine import failures
from ckworkflow.errors import HookConflictError
from ckworkflow.model import TIMER, NodeKind, NodeStatus, RunStatus
from ckworkflow.store.nodes import NodeRow
from differential import families, life_watch
from differential.reference import DifferenceError, PlainRun, run_plain, uncompiled
from differential.reference_hooks import Facts, PlainHook
from differential.simulator import (
    EngineRun,
    Fault,
    HookFact,
    Kill,
    Move,
    PayloadFact,
    Sending,
    SimWorker,
    canonical,
)
from differential.world import World, witnessed

ORDER_LIMIT = 20
DAY = timedelta(days=1)

_TIME = re.compile(r'"\d{4}-\d\d-\d\dT[^"]*"')


@dataclass(frozen=True)
class Body:
    """A workflow and what it is started with."""

    name: str
    workflow: Any
    args: tuple[Any, ...] = ()


class Choices:
    """Takes given choices first, then the first of each or random ones; remembers what there was to choose."""

    def __init__(self, given: Sequence[int] = (), seed: int | None = None) -> None:
        self.taken: list[int] = list(given)
        self.counts: list[int] = []
        self._rng = None if seed is None else random.Random(seed)

    def choose(self, count: int) -> int:
        at = len(self.counts)
        self.counts.append(count)
        if at == len(self.taken):
            self.taken.append(0 if self._rng is None else self._rng.randrange(count))
        return self.taken[at]


@dataclass
class Arena:
    """Where bodies are compared: a database, and the world that they share with plain asyncio.

    Attributes:
        url: An empty database.
        reset: Puts the world back to what it is before a run.
        world: What steps and bodies change.
        counts: How many comparisons of each kind were made.
        allows_overlap: Whether a step that had begun when the body let go of it may end afterwards, though there is
            one process: what was published is carried before the body is told.
    """

    url: str
    reset: Callable[[], None]
    world: World
    counts: Counter[str] = field(default_factory=Counter)
    allows_overlap: bool = False
    _chances: dict[str, float] = field(default_factory=dict)
    _workers: dict[tuple[int, int], SimWorker] = field(default_factory=dict)

    def worker(self, *, bodies_kept: int, process_count: int = 1) -> SimWorker:
        """The worker that always replays, or the one that keeps bodies."""
        key = (bodies_kept, process_count)
        if key not in self._workers:
            worker = SimWorker(self.url, bodies_kept=bodies_kept, process_count=process_count)
            if worker.database.is_sqlite:
                life_watch.install(worker.database)
            worker.database.on_commit, worker.database.on_loss = self.world.committed, self.world.lost
            self._workers[key] = worker
        worker = self._workers[key]
        for name in ("interrupts", "doubles", "drops"):
            setattr(worker, name, self._chances.get(name, 0.0))
        # One database, several clocks: time never goes back.
        worker.clock.now = max(other.clock.now for other in self._workers.values())
        return worker

    @contextmanager
    def unruly(self, **chances: float) -> Iterator[None]:
        """Let processes interrupt each other, and the broker double and drop messages."""
        quiet = self._chances
        self._chances = chances
        try:
            yield
        finally:
            self._chances = quiet

    def close(self) -> None:
        """Close the workers."""
        for worker in self._workers.values():
            worker.close()

    # -- one comparison -------------------------------------------------------------------------------

    def engine(
        self, body: Body, *, bodies_kept: int, process_count: int = 1, is_compiled: bool = True,
        **options: Any,
    ) -> EngineRun | None:  # fmt: skip
        """Run a body in the engine, in a fresh world; not compiled, no await in it is lazy."""
        self.reset()
        self.world.forget()
        worker = self.worker(bodies_kept=bodies_kept, process_count=process_count)
        with ExitStack() as stack:
            if not is_compiled:
                stack.enter_context(uncompiled())
            for patch in witnessed(self.world):
                stack.enter_context(patch)
            run = worker.run(body.workflow, body.args, **options)
        if worker.database.is_sqlite:
            life_watch.check(worker.database)
        return run

    def plain(self, body: Body, **options: Any) -> PlainRun:
        """Run a body under plain asyncio, in a fresh world."""
        self.reset()
        return run_plain(body.workflow, body.args, **options)

    def compare(
        self, body: Body, kind: str, *, faults: Mapping[str, Fault] | None = None, **options: Any
    ) -> EngineRun | None:
        """Run a body in the engine, then let plain asyncio follow what happened there.

        Raises:
            DifferenceError: They differ.
        """
        engine = self.engine(body, faults=faults, **options)
        self.counts[kind] += 1
        if engine is None or engine.outcome == {
            "error": None
        }:  # not started, or cancelled before it had begun
            return None
        there = self.world.look()
        try:
            overlaps = self.allows_overlap or options.get("process_count", 1) > 1
            if engine.family:
                self._compare_family(engine, faults, allows_overlap=overlaps)
                return engine
            is_cancelled = options.get("cancel_at") is not None
            plain = self.plain(
                body,
                log=engine.log,
                run_id=engine.run_id,
                started_at=engine.started_at,
                faults=faults,
                allows_overlap=overlaps,
                stopped=[row.node_id for row in engine.rows if is_stopped(row)],
                facts=replace(_facts(engine), reason=engine.reason),
            )
            same_time = options.get("kill") is None and not overlaps and not is_cancelled
            _check_outcome(engine, plain, same_time=same_time)
            _check_status(engine.status, plain)
            _check_record(engine)
            _check_told(engine)
            _check_sendings(engine.sendings, engine.payloads)
            _check_names(engine.payloads)
            _check_hooks(engine, plain)
            _check_end(engine, engine.hooks)
            if plain.executions == sum(entry.kind is NodeKind.STEP for entry in engine.log):
                _check_world(there, self.world.look())
        except DifferenceError as error:
            lives = engine.family or [engine]
            log = "\n    ".join(
                str(entry)
                for life in lives
                for entry in ([life.fact, *life.log] if life.fact else life.log)
            )
            rows = "\n    ".join(str(row) for life in lives for row in life.rows)
            raise DifferenceError(
                f"{body.name} [{kind}] {options} faults={faults}\n  {error}\n  log:\n    {log}\n  rows:\n    {rows}"
            ) from error
        return engine

    def _compare_family(
        self, engine: EngineRun, faults: Mapping[str, Fault] | None, *, allows_overlap: bool
    ) -> None:
        """Let plain asyncio follow each life of each run by itself; then look at what the runs have had to do with each other."""
        ends, reasons = families.ends_of(engine.family), families.reasons_of(engine.family)
        plain: dict[tuple[str, int], PlainRun] = {}
        before: EngineRun | None = None
        for life in engine.family:
            fact, before = life.fact, None if before is None or not life.life else before
            assert fact is not None
            carried = frozenset[int]() if before is None else before.carried
            before = life
            if life.outcome == {"error": None}:  # cancelled before it had begun
                continue
            known = _facts(life)
            if known.secret is None and families.is_broken(life):
                known = replace(known, secret="of what was never written")  # noqa: S106  # no secret
            given = codec.loads(fact.input)
            workflow = registry.require_workflow(fact.workflow)
            self.reset()
            found = run_plain(
                workflow,
                [codec.decode(arg) for arg in given["args"]],
                kwargs=codec.decode(given["kwargs"]),
                log=life.log,
                run_id=life.run_id,
                started_at=life.started_at,
                faults=faults,
                allows_overlap=allows_overlap,
                stopped=[row.node_id for row in life.rows if is_stopped(row)],
                facts=replace(
                    known,
                    ends=ends.get(life.run_id, {}),
                    carried=carried,
                    reason=fact.cancel_reason,
                ),
                life=life.life,
            )
            plain[life.run_id, life.life] = found
            try:
                is_idle = families.is_idle(life, found)
                if is_idle:
                    found.outcome = life.outcome
                _check_outcome(life, found, same_time=False)
                if "next" not in life.outcome:
                    _check_status(RunStatus(fact.status), found)
                _check_record(life)
                _check_told(life)
                if not is_idle:  # of what its body has done last nothing is written
                    _check_hooks(life, found)
            except DifferenceError as error:
                raise DifferenceError(f"run {life.run_id}, life {life.life}: {error}") from error
        families.check(engine.family, plain, reasons)
        of_runs: dict[str, dict[int, PayloadFact]] = {}
        for life in engine.family:
            of_runs.setdefault(life.run_id, {}).update({each.number: each for each in life.payloads})
        for of_run in of_runs.values():
            _check_names([of_run[number] for number in sorted(of_run)])
        payloads = [each for of_run in of_runs.values() for each in of_run.values()]
        _check_sendings(engine.sendings, sorted(payloads, key=lambda each: each.received_at))
        _check_end(engine, [hook for life in engine.family for hook in life.hooks])

    # -- dimensions -----------------------------------------------------------------------------------

    def orders(
        self, body: Body, *, faults: Mapping[str, Fault] | None = None, limit: int = ORDER_LIMIT
    ) -> list[list[Move]]:
        """Every order in which plain asyncio lets things complete; as many random ones if there are more."""
        found: list[list[Move]] = []
        open_: list[list[int]] = [[]]
        while open_ and len(found) <= limit:
            choices = Choices(open_.pop())
            depth = len(choices.taken)
            found.append(self.plain(body, chooser=choices, faults=faults).moves)
            for at in range(depth, len(choices.counts)):
                open_.extend([*choices.taken[:at], other] for other in range(1, choices.counts[at]))
        if len(found) <= limit:
            return found
        return [
            self.plain(body, chooser=Choices(seed=seed), faults=faults).moves for seed in range(limit)
        ]

    def steps_of(self, body: Body) -> list[str]:
        """The steps of a body when nothing fails."""
        return list(self.plain(body, chooser=Choices()).steps)


def is_stopped(row: NodeRow) -> bool:
    """Whether a step was waited for after its await was cancelled."""
    return row.cancelled_at is not None and row.status is not NodeStatus.ABANDONED


def _check_outcome(engine: EngineRun, plain: PlainRun, *, same_time: bool) -> None:
    here, there = _comparable(engine.outcome), _comparable(plain.outcome)
    if not same_time:
        here, there = _TIME.sub('"<time>"', here), _TIME.sub('"<time>"', there)
    if here != there:
        raise DifferenceError(f"the engine ends with {here}, plain asyncio with {there}")


def _check_status(status: RunStatus | None, plain: PlainRun) -> None:
    """What comes out of the body decides how the run has ended."""
    there = RunStatus.COMPLETED if "result" in plain.outcome else RunStatus.FAILED
    if there is RunStatus.FAILED and plain.ends_cancelled:
        there = RunStatus.CANCELLED
    if status is not there:
        raise DifferenceError(f"the engine ends the run as {status}, plain asyncio as {there}")


def _comparable(outcome: dict[str, Any]) -> str:
    return canonical(_without_traceback(json.loads(json.dumps(outcome))))


def _without_traceback(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_traceback(item) for key, item in value.items() if key != "traceback"}
    if isinstance(value, list):
        return [_without_traceback(item) for item in value]
    return value


def _check_record(engine: EngineRun) -> None:
    """What is recorded is recorded once, and nothing is left to do."""
    recorded: set[str] = set()
    for entry in engine.log:
        if entry.node_id in recorded:
            raise DifferenceError(f"{entry} happened after the step was recorded")
        if entry.outcome == "recorded":
            recorded.add(entry.node_id)
    for row in engine.rows:
        if row.status in (NodeStatus.PLANNED, NodeStatus.RUNNING):
            raise DifferenceError(f"{row} is left over")
        if row.kind is not NodeKind.STEP or row.status is NodeStatus.ABANDONED or is_stopped(row):
            continue  # what the body has let go of ends with its attempt, or between two
        if (row.finished_at is not None) != (row.node_id in recorded):
            raise DifferenceError(f"{row} and the log disagree")


def _facts(engine: EngineRun) -> Facts:
    """What the database knows of the hooks of a run."""
    rows = [row for row in engine.rows if row.kind is NodeKind.HOOK]
    return Facts(
        secret=None if engine.secret is None else engine.secret.partition(" ")[0],
        made={row.node_id: row.started_at for row in rows if row.started_at is not None},
        refused={row.node_id: _holder(row) for row in rows if row.status is NodeStatus.FAILED},
    )


def _holder(row: NodeRow) -> str:
    """The run that had the token of a hook that could not be made."""
    error = failures.loads(row.error or "null")
    assert isinstance(error, HookConflictError)
    return error.run_id


def _check_told(engine: EngineRun) -> None:
    """The events that were told have the numbers 1, 2, 3, …, and what was sent is told in the order of time."""
    told = [row.delivered for row in engine.rows if row.delivered]  # 0: a hook, which is no event
    told += [each.delivered for each in engine.payloads if each.delivered is not None]
    if engine.request is not None:
        told.append(engine.request[0])
    if sorted(told) != list(range(1, engine.delivered + 1)):
        raise DifferenceError(f"{engine.delivered} events were told, with the numbers {sorted(told)}")
    payloads = [each for each in engine.payloads if each.delivered is not None]
    numbers = [each.delivered for each in payloads]
    if numbers != sorted(numbers) or payloads != engine.payloads[: len(payloads)]:
        raise DifferenceError(f"payloads are told in another order than they came: {engine.payloads}")
    times = [each.received_at for each in engine.payloads]
    if times != sorted(times):
        raise DifferenceError(f"payloads came before those before them: {engine.payloads}")
    timers = [
        row for row in engine.rows
        if row.name == TIMER and row.kind is NodeKind.SLEEP and row.delivered and row.due_at
    ]  # fmt: skip
    for each in payloads:
        for row in timers:
            assert row.due_at is not None
            assert row.delivered is not None
            assert each.delivered is not None
            if (row.due_at <= each.received_at) != (row.delivered < each.delivered):
                raise DifferenceError(f"{each} and timer {row} are told in the wrong order")
        if engine.request is not None and each.received_at <= engine.request[1]:
            if each.delivered is not None and each.delivered > engine.request[0]:
                raise DifferenceError(f"{each} came before the request {engine.request}")


def _check_sendings(sendings: Sequence[Sending], payloads: Sequence[PayloadFact]) -> None:
    """What was to be accepted was, and nothing else."""
    accepted: list[str] = []
    for sending in sendings:
        found = sending.found
        if found != "unknown" and (found == "refused") != (sending.expected == "refused"):
            raise DifferenceError(f"{sending} was not to end so")
        is_there = any(
            (each.token_hash, each.body) == (sending.key.token_hash, sending.body) for each in payloads
        )
        if found != "unknown" and is_there != (sending.expected == "accepted"):
            raise DifferenceError(f"{sending}, and it is{'' if is_there else ' not'} in the database")
        if is_there:
            accepted.append(sending.body)
    if accepted != [each.body for each in payloads]:
        raise DifferenceError(f"accepted were {accepted}, and there are {payloads}")


def _check_names(payloads: Sequence[PayloadFact]) -> None:
    """Of what was sent to a run, nothing was accepted twice under one name."""
    known: dict[tuple[str, str], PayloadFact] = {}
    for each in payloads:
        if each.dedup_key is None:
            continue
        before = known.get((each.token_hash, each.dedup_key))
        # It may be forgotten after a day, and two lives.
        if before is not None and each.received_at - before.received_at < DAY:
            raise DifferenceError(f"accepted twice under one name: {before}, {each}")
        known[each.token_hash, each.dedup_key] = each


def _check_hooks(engine: EngineRun, plain: PlainRun) -> None:
    """What was accepted was taken, is in a queue, or is left over; and hooks are as the body has made them."""
    assert plain.hooks is not None
    hooks = plain.hooks
    if len(hooks.taken) != len(set(hooks.taken)):
        raise DifferenceError(f"plain asyncio takes {hooks.taken}")
    taken = sorted(each.number for each in engine.payloads if each.is_taken)
    if taken != sorted(hooks.taken):
        raise DifferenceError(f"the engine has taken payloads {taken}, plain asyncio {hooks.taken}")
    left = sorted(
        each.number for each in engine.payloads if not each.is_taken and each.delivered is not None
    )
    if left != sorted(hooks.left()):
        raise DifferenceError(f"the engine has left {left}, plain asyncio {sorted(hooks.left())}")
    here = {
        row.node_id: (row.name, codec.loads(row.args)["token"], row.status is NodeStatus.FAILED)
        for row in engine.rows
        if row.kind is NodeKind.HOOK
    }
    there = {
        node_id: (hook.name, hook.key.token_hash, hook.refusal is not None)
        for node_id, hook in hooks.made.items()
    }
    if here != there:
        raise DifferenceError(f"the engine has made the hooks {here}, plain asyncio {there}")
    _check_open(engine, hooks.made)


def _check_end(engine: EngineRun, hooks: Sequence[HookFact]) -> None:
    """A token is found by one run, and by none after its end."""
    if engine.still_found:
        raise DifferenceError(f"the run has ended, and its hooks are found: {engine.still_found}")
    last: dict[str, HookFact] = {}
    for hook in hooks:
        if hook.closed_at is None:
            raise DifferenceError(f"{hook} is open after the end of its run")
    for hook in sorted(hooks, key=lambda hook: (hook.created_at, hook.closed_at)):
        before = last.get(hook.token_hash)
        if before is not None and before.closed_at is not None and before.closed_at > hook.created_at:
            raise DifferenceError(f"{before} and {hook} have one token")
        last[hook.token_hash] = hook


def _check_open(engine: EngineRun, made: Mapping[str, PlainHook]) -> None:
    """A hook is open in the database from the continuation in which the body makes it to that in which it closes it."""
    told_at = sorted({entry.told_at for entry in engine.log if entry.told_at is not None})
    # A continuation in which a hook is refused is undone, but for what it has told the body, and made again.
    undone_at = [
        row.started_at for row in engine.rows
        if row.kind is NodeKind.HOOK and row.status is NodeStatus.FAILED and row.started_at is not None
    ]  # fmt: skip
    for hook in engine.hooks:
        plain = made[hook.node_id]
        for what, body_time, at in (
            ("made", plain.made_at, hook.created_at),
            ("closed", plain.freed_at, hook.closed_at),
        ):
            if body_time is None or at is None:
                continue
            latest = next((each for each in told_at if each > body_time), None)
            if any(body_time <= each <= at for each in undone_at):
                latest = None
            earliest = body_time if hook.expires_at is None else min(body_time, hook.expires_at)
            if at < earliest or (latest is not None and at > latest):
                raise DifferenceError(f"{hook} is {what}, and the body did so at {body_time}")
        if plain.freed_at is None and hook.expires_at is None and hook.closed_at is not None:
            if told_at and hook.closed_at < told_at[-1]:
                raise DifferenceError(f"{hook} is closed, and the body did not close it")


def _check_world(there: Any, here: Any) -> None:
    if there != here:
        raise DifferenceError(f"the engine leaves the world {there}, plain asyncio {here}")


def kills(base: EngineRun) -> Iterator[Kill]:
    """A death at each transaction, with and without the broker's messages.

    After it has taken effect; before it only where a step has run in between: otherwise that is the death
    after the one before.
    """
    for at in range(1, base.transactions + 1):
        if at in base.records:
            yield Kill(at, is_committed=False, keeps_messages=at % 4 < 2)
        yield Kill(at, is_committed=True, keeps_messages=at % 2 == 0)
