"""Representative workflows whose every step has a side effect, and what each must come to.

`FLOWS` says for each what it returns (or that it fails), and which effects it has; `optional` ones may be
missing, because a sibling that failed may end the body first. They are meant for a `workflow_horizon` of
0.3 s: `SHORT` is a sleep within it, which travels as a countdown, `LONG` one beyond it, which only SQL carries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ckworkflow import (
    FatalError,
    RunCancelledError,
    continue_as_new,
    create_hook,
    get_run,
    resume_hook,
    sleep,
    start,
    step,
    workflow,
)
from ckworkflow.hooks import use_step
from effects import effect, linger

HORIZON_SECONDS = 0.3
SHORT = 0.1
LONG = 0.5


# No retries where none are wanted: an attempt that was lost with its process must not count as one.
@step(max_retries=0)
def give(label: str, value: int) -> int:
    effect(label)
    linger()
    return value


@step(max_retries=0)
async def add(label: str, *values: int) -> int:
    effect(label)
    return sum(values)


@step(max_retries=0)
async def refuse(label: str) -> int:
    effect(label)
    raise FatalError("the step refuses", code=50007)


@step(max_retries=2, retry_delay=SHORT)
async def fail_twice(label: str) -> int:
    if effect(label) < 2:
        raise ValueError("not yet")
    return 7


@step(max_retries=1, retry_delay=LONG)
def fail_once(label: str) -> int:
    if effect(label) < 1:
        raise ValueError("not yet")
    return 8


@workflow
async def chain():
    first = await give("first", 1)
    second = await add("second", first, 10)
    return await add("third", second, 100)


@workflow
async def chord():
    one, two, three = await asyncio.gather(give("one", 1), add("two", 2), give("three", 3))
    return await add("total", one, two, three)


@workflow
async def two_in_a_row(label: str, value: int):
    first = await give(f"{label}, first", value)
    return await add(f"{label}, second", first, 1)


@workflow
async def chord_of_chains():
    left, right = await asyncio.gather(two_in_a_row("left", 10), two_in_a_row("right", 20))
    total = await add("total", left, right)
    return await add("last", total, 1)


@workflow
async def pair(label: str):
    return await asyncio.gather(give(f"{label}, one", 1), add(f"{label}, two", 2))


@workflow
async def nested_gather():
    alone, ones, twos = await asyncio.gather(add("alone", 5), pair("left"), pair("right"))
    return await add("total", alone, ones[0], ones[1], twos[0], twos[1])


@workflow
async def short_sleep():
    first = await give("before", 1)
    await sleep(SHORT)
    return await add("after", first, 1)


@workflow
async def long_sleep():
    first = await give("before", 1)
    await sleep(LONG)
    return await add("after", first, 1)


@workflow
async def retry():
    value = await fail_twice("fails twice")
    return await add("after", value, 1)


@workflow
async def late_retry():
    value = await fail_once("fails once")
    return await add("after", value, 1)


@workflow
async def continuation():
    found = await give("looked at", 4)
    if found > 3:
        more = await add("taken", found, 1)
    else:
        more = await add("never", found)
    return await add("last", more, 1)


@workflow
async def handled_failure():
    first = await give("first", 1)
    try:
        await refuse("refused")
    except FatalError as error:
        first = await add("handler", first, error.code)
    finally:
        await give("always", 0)
    return first


@workflow
async def inlined():
    inner = await two_in_a_row("inner", 3)
    return await add("outer", inner, 10)


@workflow
async def failing_member():
    try:
        await asyncio.gather(give("sibling", 1), refuse("refused"), two_in_a_row("other", 1))
    except FatalError as error:
        return await add("handler", error.code)
    return None


@workflow
async def failed_run():
    await asyncio.gather(give("sibling", 1), refuse("refused"))
    return await give("never", 1)


@workflow
async def loop():
    total = 0
    for number in range(4):
        value = await give(f"turn {number}", number)
        if value % 2:
            total += value
    return await add("total", total)


@workflow
async def deadline():
    async with asyncio.timeout(60):
        first = await give("in time", 1)
    try:
        async with asyncio.timeout(LONG):
            await sleep(60)
    except TimeoutError:
        return await add("too late", first, 1)
    return first


@step(max_retries=0)
async def charge(label: str) -> None:
    """Last until it is told to stop, and have the effect then."""
    try:
        await asyncio.sleep(60)
    finally:
        effect(label)


@workflow
async def refund():
    try:
        async with asyncio.timeout(LONG):
            await charge("charged")
    except TimeoutError:
        return await add("refunded", 1)
    return 0


# What it asks of the database may be refused while that is down: then it is tried again.
@step(max_retries=50, retry_delay=LONG)
async def give_up(label: str) -> None:
    """Cancel the run that this is a step of."""
    effect(label)
    run = await get_run(use_step().run_id)
    await run.cancel(reason="enough")


@workflow
async def cancelled():
    first = await give("first", 1)
    try:
        await give_up("gives up")
        await sleep(60)
    except asyncio.CancelledError:
        return await add("cleaned up", first, 1)
    return 0


@step(max_retries=50, retry_delay=LONG)
async def tell(label: str, token: str, value: int) -> None:
    """Send to a hook, once however often this runs."""
    effect(label)
    await resume_hook(token, value, dedup_key=use_step().idempotency_key)


@workflow
async def conversation():
    """The run sends to itself: payloads are taken, left when the hook is closed, and taken from the next one."""
    async with create_hook(metadata="talk") as hook:
        total = 0
        for number in range(2):
            await tell(f"told {number}", hook.token, number + 1)
            total += await hook
        beside, _ = await asyncio.gather(hook.next(), tell("told beside", hook.token, 10))
        await tell("left", hook.token, 100)
        await hook.close()
        total += beside + sum(hook.pending())
    again = create_hook(hook.token, expires=LONG)
    async for left in again:
        total += left
    return await add("total", total)


@workflow
async def three_lives(token=None, life=0, total=0):
    """Each life takes what the one before has left in the hook, which it makes anew."""
    hook = create_hook(token, metadata="lives")
    if not life:
        await tell("told 0", hook.token, 1)
        await tell("left 0", hook.token, 10)
    total += await hook
    if life == 2:
        return await add("total", total)
    if life == 1:
        await tell("left 1", hook.token, 100)
    return continue_as_new(hook.token, life + 1, total)


@workflow
async def nap():
    await sleep(60)


@workflow
async def family():
    """Two children are waited for, and the third one is asked to end."""
    one, two, napping = await start(chain), await start(short_sleep), await start(nap)
    total = sum(await asyncio.gather(one.return_value(), two.return_value()))
    await napping.cancel(reason="enough")
    try:
        await napping.return_value()
    except RunCancelledError:
        total += 1000
    return await add("total", total)


@dataclass(frozen=True, slots=True)
class Flow:
    """A workflow and what it must come to.

    Attributes:
        result: What it returns; with `error`, nothing.
        error: What the text of its error contains.
        effects: How often each step has its effect where no worker dies.
        optional: Those that may also be missing.
        ends: How it ends, if it is neither: "cancelled".
        in_order: Pairs of them: none of the first kind comes after one of the second.
    """

    workflow: Any
    result: Any
    effects: Mapping[str, int]
    error: str | None = None
    optional: frozenset[str] = field(default_factory=frozenset)
    ends: str | None = None
    in_order: Sequence[tuple[str, str]] = ()

    @property
    def name(self) -> str:
        return str(self.workflow.name).rpartition(".")[2]


def _once(*labels: str) -> dict[str, int]:
    return dict.fromkeys(labels, 1)


FLOWS = {
    flow.name: flow
    for flow in (
        Flow(chain, 111, _once("first", "second", "third")),
        Flow(chord, 6, _once("one", "two", "three", "total")),
        Flow(
            chord_of_chains, 33,
            _once("left, first", "left, second", "right, first", "right, second", "total", "last"),
        ),
        Flow(
            nested_gather, 11,
            _once("alone", "left, one", "left, two", "right, one", "right, two", "total"),
        ),
        Flow(short_sleep, 2, _once("before", "after")),
        Flow(long_sleep, 2, _once("before", "after")),
        Flow(retry, 8, {"fails twice": 3, "after": 1}),
        Flow(late_retry, 9, {"fails once": 2, "after": 1}),
        Flow(continuation, 6, _once("looked at", "taken", "last")),
        Flow(handled_failure, 50008, _once("first", "refused", "handler", "always")),
        Flow(inlined, 14, _once("inner, first", "inner, second", "outer")),
        Flow(
            failing_member, 50007, _once("sibling", "refused", "other, first", "other, second", "handler"),
            optional=frozenset({"sibling", "other, first", "other, second"}),
        ),
        Flow(
            failed_run, None, _once("sibling", "refused"), error="the step refuses",
            optional=frozenset({"sibling"}),
        ),
        Flow(loop, 4, _once("turn 0", "turn 1", "turn 2", "turn 3", "total")),
        Flow(deadline, 2, _once("in time", "too late")),
        Flow(
            refund, 1, _once("charged", "refunded"), optional=frozenset({"charged"}),
            in_order=[("charged", "refunded")],
        ),
        Flow(cancelled, 2, _once("first", "gives up", "cleaned up")),
        Flow(conversation, 213, _once("told 0", "told 1", "told beside", "left", "total")),
        Flow(family, 1113, _once("total")),
        Flow(three_lives, 111, _once("told 0", "left 0", "left 1", "total")),
    )
}  # fmt: skip

ONLY_CHILDREN = {flow.name: flow for flow in (Flow(nap, None, {}, ends="cancelled"),)}
"""What only other runs start."""
