"""Families: what a run and those that it starts have to do with each other, in all their lives.

Each life of each run is compared with plain asyncio by itself (`Arena.compare`). Here is the rest: what a run is told of the end of
another is how that has ended; a run is there once for the place at which it was started; whoever is asked to end was to be asked;
what nobody has taken goes over to the next life.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta

from ckworkflow import codec
from ckworkflow.engine import failures
from ckworkflow.errors import (
    BodyStuckError,
    HookConflictError,
    RunCancelledError,
    RunFailedError,
    RunTerminatedError,
)
from ckworkflow.model import AWAITS_CHILD, NodeId, NodeKind, NodeStatus, RunId, RunStatus, child_id
from differential.reference import DifferenceError, PlainRun
from differential.reference_family import ChildEnd
from differential.simulator import EngineRun, RunFact, canonical

PATIENCE = timedelta(hours=1)
"""A note that its process has not delivered, since it died, is delivered by then."""


def ends_of(family: Sequence[EngineRun]) -> dict[str, dict[str, ChildEnd]]:
    """How runs have ended, by the run that has started them and the place of that."""
    found: dict[str, dict[str, ChildEnd]] = defaultdict(dict)
    for fact in _last_facts(family).values():
        if fact.parent is not None and fact.parent_node is not None:
            error = _error_of(fact)
            found[fact.parent][fact.parent_node] = ChildEnd(
                fact.output, None if error is None else failures.dumps(error)
            )
    return found


def reasons_of(family: Sequence[EngineRun]) -> dict[str, set[str | None]]:
    """Why runs were asked to end, in each of their lives."""
    found: dict[str, set[str | None]] = defaultdict(set)
    for life in family:
        assert life.fact is not None
        if life.fact.cancel_requested_at is not None:
            found[life.run_id].add(life.fact.cancel_reason)
    return found


def is_idle(life: EngineRun, plain: PlainRun) -> bool:
    """Whether a run has failed since a life of it ends without an event: this one, or the one that comes after it."""
    if "next" not in plain.outcome or "error" not in life.outcome:
        return False
    error = failures.loads(codec.dumps(life.outcome["error"]))
    return isinstance(error, BodyStuckError) and "begins its next life again" in str(error)


def _last_facts(family: Sequence[EngineRun]) -> dict[str, RunFact]:
    """The rows of the runs, as they were in the end."""
    return {life.run_id: life.fact for life in family if life.fact is not None}


def _error_of(fact: RunFact) -> BaseException | None:
    """What is raised where the result of a run is awaited."""
    if fact.status == RunStatus.COMPLETED:
        return None
    cause = failures.loads(fact.error) if fact.error else None
    error: BaseException
    if fact.status == RunStatus.CANCELLED:
        reason = fact.cancel_reason
        if fact.cancel_requested_at is None and isinstance(cause, asyncio.CancelledError):
            reason = str(cause) or None
        if cause is None:  # of one that had not begun
            cause = asyncio.CancelledError(*([] if reason is None else [reason]))
        is_terminated = isinstance(cause, RunTerminatedError)
        error = RunCancelledError(fact.run_id, fact.workflow, reason, is_terminated=is_terminated)
    else:
        error = RunFailedError(fact.run_id, fact.workflow, failures.one_line(fact.error) or "")
    error.__cause__ = cause
    return error


def check(
    family: Sequence[EngineRun],
    plain: Mapping[tuple[str, int], PlainRun],
    reasons: Mapping[str, set[str | None]],
) -> None:
    """Compare what runs have had to do with each other with what their bodies have said under plain asyncio.

    Raises:
        DifferenceError: They differ.
    """
    facts = _last_facts(family)
    asked: dict[str, set[str | None]] = defaultdict(set)
    ends = ends_of(family)
    due: list[tuple[str, str]] = []
    expected: dict[str, tuple[str, str]] = {}
    for at, life in enumerate(family):
        found = plain.get((life.run_id, life.life))
        if found is None:
            continue
        assert found.children is not None
        is_whole = not is_broken(life)
        rows = {row.node_id: row for row in life.rows if row.kind is NodeKind.CHILD}
        awaited = {
            node_id: rows.pop(node_id) for node_id in list(rows) if rows[node_id].args.startswith(AWAITS_CHILD)
        }  # fmt: skip
        waits = found.children.awaited
        told = {node_id for node_id, child in waits.items() if child.end is not None}
        # What a body begins to wait for and ends at once is not written.
        if is_whole and not told <= awaited.keys() <= waits.keys():
            raise DifferenceError(
                f"{life.run_id}: the engine waits for runs of earlier lives at {sorted(awaited)}, plain asyncio at {sorted(waits)}"
            )
        for node_id, row in awaited.items():
            place = codec.loads(row.args)["child"]
            if expected.get(child_id(life.run_id, NodeId(place))) != (life.run_id, place):
                raise DifferenceError(f"{row} of {life.run_id} waits for a run that no life has started")
            if row.delivered and ChildEnd(row.output, row.error) != ends[life.run_id][place]:
                raise DifferenceError(f"{row} ends, and its run with {ends[life.run_id][place]}")
        if is_whole and rows.keys() != found.children.made.keys():
            raise DifferenceError(
                f"{life.run_id}: the engine has started runs at {sorted(rows)}, plain asyncio at {sorted(found.children.made)}"
            )
        for node_id, row in rows.items():
            run_id = child_id(life.run_id, NodeId(node_id))
            expected[run_id] = life.run_id, node_id
            fact = facts.get(run_id)
            if fact is None or fact.workflow != row.name:
                raise DifferenceError(f"run {run_id} of {row} is {fact}")
            told = ChildEnd(row.output, row.error)
            if row.delivered and told != ends[life.run_id][node_id]:
                raise DifferenceError(f"{row} ends, and its run is {fact}")
        requests = {row.node_id for row in life.rows if row.kind is NodeKind.CANCEL}
        if is_whole and requests != found.children.asked.keys():
            raise DifferenceError(
                f"{life.run_id}: the engine has asked runs to end at {sorted(requests)}, plain asyncio at {found.children.asked}"
            )
        for request in found.children.asked.values():
            run_id = child_id(life.run_id, NodeId(request.child))
            asked[run_id].add(request.reason)
            if is_whole:
                due.append((run_id, f"asked by {life.run_id}"))
        if life.request is not None:
            own = {run_id for run_id, (parent, _) in expected.items() if parent == life.run_id}
            for run_id in own:
                asked[run_id] |= reasons[life.run_id]
            due += [
                (child_id(life.run_id, NodeId(node_id)), f"of {life.run_id}, which was asked")
                for node_id in found.children.orphans & rows.keys()
            ]
        if "next" in life.outcome:
            _check_carried(life, family[at + 1], found, plain.get((life.run_id, life.life + 1)))
    _check_requests(family)
    _check_refusals(family)
    for run_id, fact in facts.items():
        if fact.parent is None:
            continue
        if expected.get(run_id) != (fact.parent, fact.parent_node):
            raise DifferenceError(f"nobody has started {fact}")
        if fact.cancel_requested_at is not None and fact.cancel_reason not in asked[run_id]:
            raise DifferenceError(
                f"{fact} was asked to end for {fact.cancel_reason}, and not for {asked[run_id]}"
            )
    last = max((fact.finished_at for fact in facts.values() if fact.finished_at), default=None)
    for run_id, why in due:
        fact = facts[RunId(run_id)]
        was_asked = fact.cancel_requested_at is not None or fact.life > 0
        assert last is not None
        if not was_asked and fact.finished_at is not None and _lasts(fact, family, run_id):
            raise DifferenceError(f"{fact}, {why}, was not asked to end")


def _lasts(fact: RunFact, family: Sequence[EngineRun], run_id: str) -> bool:
    """Whether a run has gone on for long after it was to be asked to end."""
    times = [
        row.started_at
        for life in family
        for row in life.rows
        if row.kind is NodeKind.CANCEL and life.run_id == fact.parent and row.started_at is not None
        and codec.loads(row.args)["child"] == fact.parent_node
    ]  # fmt: skip
    times += [
        life.request.requested_at
        for life in family
        if life.run_id == fact.parent and life.request is not None
    ]
    assert fact.finished_at is not None
    return bool(times) and fact.finished_at > max(times) + PATIENCE


def is_broken(life: EngineRun) -> bool:
    """Whether the engine has ended a run without what its body has done last."""
    error = life.outcome.get("error")
    return error is not None and isinstance(failures.loads(codec.dumps(error)), BodyStuckError)


def _check_carried(life: EngineRun, after: EngineRun, here: PlainRun, there: PlainRun | None) -> None:
    """What nobody has taken of a life goes over to the next, if its hook was open, or is made again at once."""
    if canonical(codec.loads(after.fact.input if after.fact else "null")) != canonical(
        life.outcome["next"]
    ):
        raise DifferenceError(
            f"{life.run_id}: a life begins with {after.fact}, and not with {life.outcome}"
        )
    if here.hooks is None or there is None or there.hooks is None:
        return
    open_ = {hook.key.token_hash for hook in here.hooks.open.values()}
    again = {
        hook.key.token_hash for hook in there.hooks.made.values() if not hook.made_after and hook.refusal is None
    }  # fmt: skip
    # A hook that may have expired, or was closed in the last continuation: what was sent to it goes over or not.
    unsure = {
        hook.key.token_hash
        for hook in here.hooks.made.values()
        if hook.expires_at is not None or hook.freed_at == here.ended_at
    }
    for each in life.payloads:
        if each.is_taken or each.token_hash in unsure:
            continue
        if (each.token_hash in open_ | again) != (each.number in life.carried):
            raise DifferenceError(
                f"{life.run_id}, life {life.life}: {each} goes over to the next life: {sorted(life.carried)}"
            )
    lost = life.carried - {each.number for each in after.payloads}
    if lost:
        raise DifferenceError(
            f"{life.run_id}, life {life.life}: payloads {sorted(lost)} have gone over, and are gone"
        )


def _check_requests(family: Sequence[EngineRun]) -> None:
    """Whoever asks a run to end is heard, unless its body was asked already in this life, or the run fails meanwhile."""
    for last in family:
        lives = [life for life in family if life.run_id == last.run_id]
        if is_broken(last) or last.outcome == {"error": None}:
            continue
        for at in last.requests:
            if not any(
                life.request is not None
                and life.request.requested_at <= at
                and (life.ended_at is None or life.ended_at >= at)
                for life in lives
            ):
                raise DifferenceError(f"{last.fact} was asked to end at {at}, and its body was not told")


def _check_refusals(family: Sequence[EngineRun]) -> None:
    """A hook is refused where another run has its token, and says which one."""
    hooks = [(life.run_id, hook) for life in family for hook in life.hooks]
    for life in family:
        for row in life.rows:
            if row.kind is not NodeKind.HOOK or row.status is not NodeStatus.FAILED:
                continue
            error, at = failures.loads(row.error or "null"), row.started_at
            assert isinstance(error, HookConflictError)
            assert at is not None
            if error.run_id == life.run_id:  # of these plain asyncio knows
                continue
            token = codec.loads(row.args)["token"]
            if not any(
                (run_id, hook.token_hash) == (error.run_id, token)
                and hook.created_at <= at
                and (hook.closed_at is None or hook.closed_at >= at)
                for run_id, hook in hooks
            ):
                raise DifferenceError(
                    f"{row} of {life.run_id} is refused, and {error.run_id} does not have its token"
                )
