"""Concurrency: gathers, tasks, groups and waits, with closures, parts of results and errors in their members."""

from __future__ import annotations

import asyncio
from typing import Any

from ckworkflow import FatalError, sleep, workflow
from compiler.steps import (
    count_up,
    echo,
    helper,
    note,
    ping,
)
from differential.people import (
    body,
    count,
    fails,
    gives,
    gives_title,
    house,
    mark,
    one,
    room,
)

# -- gather ----------------------------------------------------------------------------------------------


# Parts as the arguments of members.
@body()
@workflow
async def parts_in_members() -> Any:
    c, m = await asyncio.gather(room(), gives("dict"))
    return await asyncio.gather(echo(c.title), echo(m["id"]), echo(c.tags[0]))


# A missing part in a member's argument: it arises before the gather begins.
@body()
@workflow
async def missing_part_in_a_member() -> Any:
    m = await gives("dict")
    try:
        await asyncio.gather(count_up(), echo(m["nothing"]))
    except KeyError:
        return await echo(count())


# A property between members.
@body()
@workflow
async def property_between_members() -> Any:
    c = await room()
    await asyncio.gather(echo(c.next), echo(c.next), ping())
    return c.next


# A member that raises before it awaits anything beats the cancellation that a task beside it brings about: both errors count.
@body()
@workflow
async def a_member_fails_as_the_gather_is_cancelled() -> Any:
    async def breaks() -> Any:
        return {}["none"]

    async with asyncio.TaskGroup() as group:
        group.create_task(breaks())
        await asyncio.gather(count_up(), breaks())


# A cancelled gather ends when its members have: the first will do, or with `return_exceptions` all must.
@body()
@workflow
async def a_cancelled_gather_waits_for_its_members() -> Any:
    seen: list[Any] = []

    async def cleans(name: str) -> Any:
        try:
            await sleep("1h")
        finally:
            seen.append(await echo(name))

    async def breaks() -> Any:
        await ping()
        return {}["none"]

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(breaks())
            try:
                await asyncio.gather(cleans("a"), cleans("b"), sleep("2h"))
            finally:
                seen.append("over")
    except* KeyError:
        seen.append(await echo("broken"))
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(breaks())
            try:
                await asyncio.gather(cleans("c"), cleans("d"), sleep("2h"), return_exceptions=True)
            finally:
                seen.append("over")
    except* KeyError:
        seen.append(await echo("broken"))
    return seen


# A member that does not let itself be cancelled: with it the gather ends, cancelled all the same, or with its error.
@body()
@workflow
async def a_member_outlives_its_cancellation() -> Any:
    seen: list[Any] = []

    async def stays() -> Any:
        try:
            await sleep("1h")
        except asyncio.CancelledError:
            return await echo("stays")

    async def fails_late() -> Any:
        try:
            await sleep("1h")
        except asyncio.CancelledError:
            raise KeyError(await echo("late")) from None

    async def breaks() -> Any:
        await ping()
        return {}["none"]

    for other in (stays, fails_late):
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(breaks())
                try:
                    seen.append(await asyncio.gather(stays(), other()))
                except BaseException as error:
                    seen.append([type(error).__name__, [str(arg) for arg in error.args]])
                    raise
        except* Exception as group:
            seen.append([repr(error) for error in group.exceptions])
    return seen


# Tasks as members: the gather ends with them, and not a moment later, so the error of one counts twice.
@body()
@workflow
async def a_gather_of_the_tasks_of_a_group() -> Any:
    async def breaks() -> Any:
        await ping()
        return {}["none"]

    async def waits() -> Any:
        await sleep("1h")

    said = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(waits()), group.create_task(breaks()), group.create_task(waits())]
            await asyncio.gather(*tasks)
    except* KeyError as failed:
        said = [repr(error) for error in failed.exceptions]
    return said


# A cancellation passes through a gather as it is: the same object, with what was said.
@body()
@workflow
async def a_cancellation_passes_through_a_gather() -> Any:
    seen: list[Any] = []
    mine = asyncio.CancelledError("mine", 2)

    async def cancels() -> Any:
        await ping()
        raise mine

    async def waits() -> Any:
        await sleep("1h")

    try:
        await asyncio.gather(cancels(), count_up())
    except asyncio.CancelledError as error:
        seen.append([error is mine, list(error.args)])
    task, other = asyncio.create_task(waits()), asyncio.create_task(waits())
    await ping()
    task.cancel("why")
    other.cancel("what for")
    try:
        await asyncio.gather(task)
    except asyncio.CancelledError as error:
        seen.append(list(error.args))
    found = await asyncio.gather(other, return_exceptions=True)
    seen.append([repr(each) for each in found])
    return await echo(seen)


# A sleep that a step's message carries and for which the body waits, too: both go on in time.
@body()
@workflow
async def the_body_waits_for_a_sleep_beside_a_step() -> Any:
    async def looks() -> Any:
        return await echo(count())

    await sleep(5)
    return await asyncio.gather(looks(), count_up())


# Unpacked, one unused.
@body()
@workflow
async def unpacked_one_unused() -> Any:
    a, _, b = await asyncio.gather(gives("dict"), ping(), gives("list"))
    await echo(a["id"], b[0])
    return b


# Unpacked with a star.
@body()
@workflow
async def unpacked_with_a_star() -> Any:
    first, *rest = await asyncio.gather(one(1), one(2), one(3))
    await echo(rest)
    return [first, rest]


# Too few targets.
@body()
@workflow
async def too_few_targets() -> Any:
    try:
        a, b = await asyncio.gather(one(1), one(2), one(3))
    except ValueError:
        return await ping()


# An index of the whole.
@body()
@workflow
async def index_of_a_gather() -> Any:
    found = await asyncio.gather(room("a"), room("b"))
    await echo(found[0].title)
    await count_up()
    return found[1].title


# A gather of a comprehension, with parts.
@body()
@workflow
async def gather_of_a_comprehension() -> Any:
    h = await house()
    found = await asyncio.gather(*[echo(r.title) for r in h.rooms])
    await count_up()
    return [found, [r.title for r in h.rooms]]


# A gather of nothing.
@body()
@workflow
async def gather_of_nothing() -> Any:
    xs = await gives("empty")
    found = await asyncio.gather(*[echo(x) for x in xs])
    await ping()
    return found


# A gather whose value the body appends.
@body()
@workflow
async def gather_appended() -> Any:
    out: list[Any] = []
    out.append(await asyncio.gather(one(1), gives("none")))
    await ping()
    return [out[0][1] is None, out]


# D16: one call twice.
@body()
@workflow
async def one_call_twice() -> Any:
    c = echo([1])
    a, b = await asyncio.gather(c, c)
    a.append(2)
    return [a is b, b]


# D17: what is no awaitable.
@body()
@workflow
async def no_awaitable() -> Any:
    try:
        await asyncio.gather(count_up(), None)  # type: ignore[call-overload]
    except TypeError:
        return count()


# Failures as values, looked at.
@body()
@workflow
async def failures_as_values() -> Any:
    found = await asyncio.gather(one(), fails("a"), ping(), return_exceptions=True)
    for x in found:
        await echo(type(x).__name__)
    return str(found[1])


# Mixed members: a step, a workflow, a coroutine, a sleep.
@body()
@workflow
async def mixed_members() -> Any:
    async def nested() -> Any:
        await count_up()
        return "nested"

    found = await asyncio.gather(ping(), gives_title(), nested(), sleep(1), helper("h"))
    return [found, count()]


# A gather in a gather, unpacked.
@workflow
async def gathers_inside() -> Any:
    return await asyncio.gather(room("a"), one())


@body()
@workflow
async def gather_in_a_gather() -> Any:
    (a, b), c = await asyncio.gather(gathers_inside(), gives("dict"))
    await echo(a.title, c["id"])
    return [a.name, b]


# Members that read what the body rebinds behind the gather.
@body()
@workflow
async def members_read_a_name() -> Any:
    n = 1

    async def member() -> Any:
        await ping()
        return n

    found = await asyncio.gather(member(), member())
    n = 2
    return [found, await member()]


# Members that share a list of the body's.
@body()
@workflow
async def members_share_a_list() -> Any:
    xs: list[Any] = []

    async def member(k: int) -> int:
        xs.append(await one(k))
        return len(xs)

    lengths = await asyncio.gather(member(1), member(2))
    await echo(sorted(xs))
    return [sorted(lengths), sorted(xs)]


# A gather kept and awaited later.
@body()
@workflow
async def gather_awaited_later() -> Any:
    both = asyncio.gather(one(1), one(2))
    await ping()
    return await both


# A member that fails beside a chain, handled with a step.
@body()
@workflow
async def failing_member_handled() -> Any:
    async def chain() -> Any:
        await one(1)
        await one(2)
        return "chain"

    try:
        await asyncio.gather(chain(), fails("x"))
    except FatalError as error:
        await echo(error.code)
    return await ping()


# -- tasks -----------------------------------------------------------------------------------------------


# D18: tasks of steps and of workflows.
@body()
@workflow
async def tasks_of_calls() -> Any:
    a, b = asyncio.create_task(room()), asyncio.create_task(gives_title())
    c = await a
    await count_up()
    return [c.title, await b, a.result() is c]


# A task whose result is a part.
@body()
@workflow
async def part_of_a_task() -> Any:
    task = asyncio.create_task(gives("dict"))
    await ping()
    m = await task
    await echo(m["id"])
    return task.result()["id"]


# A missing part in a task.
@body()
@workflow
async def missing_part_in_a_task() -> Any:
    async def bad() -> Any:
        m = await gives("dict")
        return m["nothing"]

    task = asyncio.create_task(bad())
    await ping()
    await ping()
    try:
        await task
    except KeyError:
        return await echo(repr(task.exception()))


# A task that appends to the body's list, read between.
@body()
@workflow
async def task_appends() -> Any:
    out: list[Any] = []

    async def filler() -> None:
        for n in range(3):
            out.append(await one(n))

    task = asyncio.create_task(filler())
    lengths = []
    for _ in range(2):
        await ping()
        lengths.append(len(out))
    await task
    return [lengths, out]


# A task that reads a property of the body's result.
@body()
@workflow
async def task_reads_a_property() -> Any:
    c = await room()

    async def reader() -> Any:
        await count_up()
        return c.title

    task = asyncio.create_task(reader())
    await echo(c.title)
    c.name = "renamed"
    return [await task, c.title]


# A task is cancelled between steps.
@body()
@workflow
async def cancelled_task() -> Any:
    seen = []

    async def worker() -> None:
        try:
            for n in range(5):
                seen.append(await one(n))
        except asyncio.CancelledError:
            mark("cancelled")
            raise

    task = asyncio.create_task(worker())
    await ping()
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        await echo(len(seen))
    return task.cancelled()


# A task that nobody awaits.
@body()
@workflow
async def forgotten_task() -> Any:
    async def worker() -> None:
        await count_up()
        note("worker")

    task = asyncio.create_task(worker())
    await ping()
    await ping()
    return [count(), task.done()]


# A done callback.
@body()
@workflow
async def done_callback() -> Any:
    seen: list[Any] = []
    task = asyncio.create_task(one(3))
    task.add_done_callback(lambda t: seen.append([t.result(), count()]))
    await count_up()
    await task
    await ping()
    return seen


# An event between two tasks.
@body()
@workflow
async def event_between_tasks() -> Any:
    event = asyncio.Event()
    value = None

    async def waiter() -> Any:
        await event.wait()
        return await echo(value)

    task = asyncio.create_task(waiter())
    await count_up()
    value = count()
    event.set()
    return await task


# A queue between two tasks.
@body()
@workflow
async def queue_between_tasks() -> Any:
    queue: asyncio.Queue[Any] = asyncio.Queue()

    async def consumer() -> Any:
        seen = []
        while (item := await queue.get()) is not None:
            seen.append(await echo(item))
        return seen

    task = asyncio.create_task(consumer())
    for n in range(2):
        await queue.put(await one(n))
    await queue.put(None)
    return await task


# A lock around steps.
@body()
@workflow
async def lock_around_steps() -> Any:
    lock, log = asyncio.Lock(), []

    async def member(name: str) -> None:
        async with lock:
            log.append(f"{name} in")
            await echo(name)
            log.append(f"{name} out")

    await asyncio.gather(member("a"), member("b"))
    return log


# A future that the body sets.
@body()
@workflow
async def own_future() -> Any:
    future = asyncio.get_running_loop().create_future()

    async def setter() -> None:
        try:
            future.set_result(await one(4))
        except FatalError as error:
            future.set_exception(error)

    task = asyncio.create_task(setter())
    found = await future
    await task
    return await echo(found)


# -- groups ----------------------------------------------------------------------------------------------


# A group of steps and nested functions.
@body()
@workflow
async def group_of_tasks() -> Any:
    seen: list[Any] = []

    async def member(n: int) -> Any:
        seen.append(await one(n))
        return n

    async with asyncio.TaskGroup() as group:
        a = group.create_task(member(1))
        b = group.create_task(one(2))
    await ping()
    return [a.result(), b.result(), seen]


# A group's result: a part.
@body()
@workflow
async def part_of_a_group_task() -> Any:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(room())
        await count_up()
    await echo(task.result().title)
    await count_up()
    return task.result().title


# A member fails; the others are cancelled.
@body()
@workflow
async def failing_group() -> Any:
    async def bad() -> None:
        m = await gives("dict")
        m["nothing"]

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(bad())
            other = group.create_task(sleep(100))
    except* KeyError as errors:
        await echo(len(errors.exceptions))
    return other.cancelled()


# The group's own body fails.
@body()
@workflow
async def group_body_fails() -> Any:
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(sleep(100))
            await ping()
            raise ValueError("body")
    except ExceptionGroup as group_error:
        await echo(repr(group_error.exceptions))
    return task.cancelled()


# A group in a loop.
@body()
@workflow
async def group_in_a_loop() -> Any:
    found = []
    for n in range(2):
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(n * 10 + k)) for k in range(2)]
        found.append([t.result() for t in tasks])
    return found


# -- waits -----------------------------------------------------------------------------------------------


# `wait` for all.
@body()
@workflow
async def wait_for_all() -> Any:
    tasks = [asyncio.create_task(one(n)) for n in range(3)]
    done, pending = await asyncio.wait(tasks)
    await ping()
    return [sorted(t.result() for t in done), len(pending)]


# `wait` for the first.
@body()
@workflow
async def wait_for_the_first() -> Any:
    tasks = [asyncio.create_task(one(n)) for n in range(2)]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    found = sorted(t.result() for t in done)
    await echo(found)
    for task in pending:
        await task
    return [found, len(pending)]


# `as_completed`, by its sum.
@body()
@workflow
async def as_completed_sum() -> Any:
    tasks = [asyncio.create_task(one(n)) for n in (1, 2)]
    total = 0
    for first in asyncio.as_completed(tasks):
        total += await first
    return total


# `shield`.
@body()
@workflow
async def shielded() -> Any:
    task = asyncio.create_task(one(5))
    found = await asyncio.shield(task)
    return await echo(found)


# A race, and the loser's clean-up.
@body()
@workflow
async def race_with_a_clean_up() -> Any:
    async def slow() -> Any:
        try:
            await sleep(100)
        finally:
            mark("slow is out")

    slow_task = asyncio.create_task(slow())
    quick = await one(1)
    slow_task.cancel()
    try:
        await slow_task
    except asyncio.CancelledError:
        pass
    return await echo(quick)


# A task started in an inlined workflow.
@workflow
async def starts_a_task(seen: list[Any]) -> Any:
    async def worker() -> None:
        seen.append(await one(8))

    task = asyncio.create_task(worker())
    await ping()
    return task


@body()
@workflow
async def task_of_an_inlined_workflow() -> Any:
    seen: list[Any] = []
    task = await starts_a_task(seen)
    await task
    return await echo(seen)


# A task that awaits another.
@body()
@workflow
async def task_awaits_a_task() -> Any:
    first = asyncio.create_task(room())

    async def second() -> Any:
        c = await first
        await count_up()
        return c.title

    found = await second()
    (await first).name = "renamed"
    return [found, first.result().title]


# A semaphore.
@body()
@workflow
async def semaphore_of_two() -> Any:
    gate, running, most = asyncio.Semaphore(2), 0, 0

    async def member(n: int) -> int:
        nonlocal running, most
        async with gate:
            running += 1
            most = max(most, running)
            found = await one(n)
            running -= 1
        return found

    return [await asyncio.gather(*[member(n) for n in range(3)]), most]
