"""The table of small bodies: which await is lazy, which is strict, where a fence stands.

The comment at a line is what the compiler must find there: `lazy` or `strict` for each await, in order,
`fence` where one stands without a condition, `fence?` where values met at run time decide. Conditional
fences are named only where they are the point. The docstring says why. Every body can also be run: the
arguments are in `CASES`, and its steps give the same results wherever they run.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import functools
import logging
import random as dice
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from ckworkflow import FatalError, now, random, sleep, uuid4, workflow
from compiler import steps
from compiler.steps import (
    LIMIT,
    ROLES,
    STATE,
    Channel,
    Lines,
    async_lines,
    async_noting,
    clean_up,
    count_up,
    create_channel,
    double,
    echo,
    fetch_member,
    fetch_numbers,
    helper,
    keep,
    lock,
    note,
    noting,
    ping,
    plain_echo,
    send,
    spoil,
    turn_on,
    verify,
)

logger = logging.getLogger(__name__)
FLAG = False
GREETING = "hi"


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the table: a body and the arguments to run it with.

    `is_repeatable` is false where the body reads what its own steps change later on: run again from the
    start it would read something else, so it can only be compared while it is kept alive.
    """

    name: str
    workflow: Any
    args: tuple[Any, ...]
    is_repeatable: bool = True


CASES: list[Case] = []


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


def case(*args: Any, repeatable: bool = True) -> Callable[[Any], Any]:
    def register(definition: Any) -> Any:
        CASES.append(Case(definition.__name__, definition, args, repeatable))
        return definition

    return register


# Straight lines.


@case(1)
@workflow
async def greet(user_id: int) -> dict[str, bool]:
    """Nothing looks at anything."""
    await send(user_id)  # lazy
    await sleep("5 seconds")  # lazy
    await send(user_id, text="again")  # lazy
    return {"success": True}


@case()
@workflow
async def three_pings() -> None:
    """Three equal calls are three steps."""
    await ping()  # lazy
    await ping()  # lazy
    await ping()  # lazy


@case("x")
@workflow
async def returns_the_await(value: str) -> str:
    """The returned value may be deferred."""
    return await echo(value)  # lazy


@case("x")
@workflow
async def passes_the_value_on(value: str) -> str:
    """A name used only as the argument of a step and in the returned value."""
    first = await echo(value)  # lazy
    second = await send(first)  # lazy
    return second


@case("general")
@workflow
async def projects_in_an_argument(name: str) -> dict[str, Any]:
    """An attribute as an argument of an awaited step, and in the returned value."""
    channel = await create_channel(name)  # lazy
    await send(channel.id, text="welcome")  # lazy
    return {"channel": channel.id}


@case(3)
@workflow
async def projects_by_constant_subscript(user_id: int) -> None:
    """Constant subscripts are projections, also of projections."""
    member = await fetch_member(user_id)  # lazy
    await send(member["roles"][0], text=member["id"])  # lazy


@case(3, "roles")
@workflow
async def subscripts_by_a_name(user_id: int, key: str) -> None:
    """A subscript that is not a constant looks at the value."""
    member = await fetch_member(user_id)  # strict
    await send(member[key])  # lazy


@case("general")
@workflow
async def keeps_a_projection_in_a_name(name: str) -> str:
    """The name must raise where it is bound if there is no such attribute: later is too late."""
    channel = await create_channel(name)  # strict
    title = channel.name
    await ping()  # lazy
    return title


@case()
@workflow
async def nests_an_await_in_an_argument() -> None:
    """An await may be the argument of an awaited step."""
    await send(await ping(), text="x")  # lazy, lazy


@case(1, 2)
@workflow
async def displays_in_arguments(one: int, two: int) -> None:
    """Elements and values of displays may be deferred."""
    first = await echo(one)  # lazy
    second = await echo(two)  # lazy
    await echo([first, (second,)], options={"one": first})  # lazy


@case("a")
@workflow
async def defers_in_a_display_of_a_name(value: str) -> Any:
    """A display with a deferred value in it is judged as its name is used."""
    first = await echo(value)  # lazy
    pair = {"first": first, "all": [first]}
    await echo(pair)  # lazy
    return pair


@case("a")
@workflow
async def uses_a_deferred_as_a_key(value: str) -> Any:
    """A dict key is hashed."""
    first = await echo(value)  # strict
    await echo({first: 1})  # lazy


@case("a")
@workflow
async def uses_a_deferred_in_a_set(value: str) -> Any:
    """An element of a set is hashed."""
    first = await echo(value)  # strict
    return sorted({first, "b"})


@case(3)
@workflow
async def stars_an_argument(count: int) -> None:
    """A star iterates."""
    numbers = await fetch_numbers(count)  # strict
    await echo(*numbers)  # lazy


@case(3)
@workflow
async def double_stars_an_argument(user_id: int) -> None:
    """Two stars look at the keys."""
    member = await fetch_member(user_id)  # strict
    await echo(**member)  # lazy


@case(3, [1, 2])
@workflow
async def stars_a_parameter(first: int, rest: list[int]) -> None:
    """The star runs over a parameter: a check at run time sees that it is a list."""
    await ping()  # lazy
    await echo(first, *rest)  # lazy, fence?


# Looks.


@case(1)
@workflow
async def tests_truth(user_id: int) -> str:
    """`if` looks."""
    verified = await verify(user_id)  # strict
    if verified:
        await send(user_id)  # lazy
    return "done"


@case(0)
@workflow
async def tests_truth_of_the_await(user_id: int) -> str:
    """`if await` looks."""
    if not await verify(user_id):  # strict
        await send(user_id)  # lazy
    return "done"


@case(None)
@workflow
async def tests_identity(value: Any) -> str:
    """Identity cannot be intercepted, so `is` must never meet a deferred value."""
    found = await echo(value)  # strict
    return "none" if found is None else "some"


@case(1)
@workflow
async def compares(value: int) -> bool:
    """A comparison looks."""
    found = await echo(value)  # strict
    return found == 1


@case("x")
@workflow
async def formats(value: str) -> None:
    """An f-string looks."""
    found = await echo(value)  # strict
    await send(f"<{found}>")  # lazy


@case(2)
@workflow
async def adds(value: int) -> int:
    """An operator looks."""
    return await echo(value) + 1  # strict


@case("x")
@workflow
async def calls_a_method_of_the_result(value: str) -> str:
    """A method call is no projection."""
    found = await echo(value)  # strict
    return found.upper()


@case("general")
@workflow
async def reads_a_property(name: str) -> str:
    """What looks like an attribute may be a property that sees the world."""
    channel = await create_channel(name)  # strict
    await count_up()  # lazy
    text = "title " + channel.title  # fence
    return text


@case(3)
@workflow
async def unpacks_a_result(user_id: int) -> Any:
    """Unpacking looks, unless it unpacks a gather."""
    first, second = await fetch_numbers(2)  # strict
    await send(user_id, text=[first, second])  # lazy


@case("x")
@workflow
async def stores_in_a_dict(value: str) -> Any:
    """A store puts the value where other code may find it."""
    box: dict[str, Any] = {}
    box["found"] = await echo(value)  # strict
    await ping()  # lazy
    return box


@case(3)
@workflow
async def mutates_a_result(user_id: int) -> Any:
    """Changing a result looks at it."""
    member = await fetch_member(user_id)  # strict
    member["seen"] = True
    await echo(member)  # lazy
    return member


@case("x")
@workflow
async def deletes_the_name(value: str) -> None:
    """A deleted name has more than one life."""
    found = await echo(value)  # strict
    await send(found)  # lazy
    del found  # fence


@case("x")
@workflow
async def walrus(value: str) -> None:
    """`:=` shows the value to what is around it, and is not worth a rule."""
    await send(found := await echo(value))  # strict, strict, fence
    await send(found)  # lazy


@case(1)
@workflow
async def augments(value: int) -> int:
    """An augmented assignment reads what it changes."""
    total = await echo(value)  # strict
    total += 1
    return total


@case("x")
@workflow
async def aliases(value: str) -> str:
    """Another name for the value is judged as well: here both only pass it on."""
    found = await echo(value)  # lazy
    other = found
    await send(other)  # lazy
    return other


@case("x")
@workflow
async def alias_looks(value: str) -> str:
    """One look at the alias is a look at the value."""
    found = await echo(value)  # strict
    other = found
    await send(found)  # lazy
    return "yes" if other else "no"


@case("x")
@workflow
async def two_names_at_once(value: str) -> str:
    """Bound to two names: not worth a proof."""
    one = two = await echo(value)  # strict
    await send(one)  # lazy
    return two


@case("x")
@workflow
async def reuses_a_name(value: str) -> str:
    """One look at a name makes every await that it is bound to strict."""
    found = await echo(value)  # strict
    await send(found)  # lazy
    found = await verify(value)  # strict
    return "yes" if found else "no"


@case("x")
@workflow
async def rebinds_a_parameter(value: str) -> str:
    """A parameter may be bound to a deferred value if all its uses pass it on."""
    value = await echo(value)  # lazy
    await send(value)  # lazy
    return value


@case("x")
@workflow
async def captured_by_a_lambda(value: str) -> str:
    """What a nested function does with it is not looked into."""
    found = await echo(value)  # strict
    later = lambda: found  # noqa: E731
    return later()  # a strict await has just settled everything


@case("x")
@workflow
async def captured_by_a_comprehension(value: str) -> Any:
    """A comprehension that is not a gather's is a look."""
    found = await echo(value)  # strict
    pairs = [(found, number) for number in range(2)]
    await echo(pairs)  # lazy
    return pairs


@case("x")
@workflow
async def stores_a_global(value: str) -> None:
    """Others see a global change: what was awaited before must be recorded."""
    global FLAG
    await ping()  # lazy
    FLAG = bool(value)  # fence
    await send(value)  # lazy
    FLAG = False  # fence


# The world between two steps.


@case()
@workflow
async def calls_a_helper() -> Any:
    """A helper may do anything: it runs when what was awaited is recorded."""
    await count_up()  # lazy
    text = note("x")  # fence
    await send(text)  # lazy


@case()
@workflow
async def calls_a_helper_in_an_argument() -> Any:
    """A statement that needs a fence makes its own awaits strict."""
    await count_up()  # lazy
    await send(note("x"))  # strict, fence
    await ping()  # lazy


@case()
@workflow
async def helper_after_a_strict_await() -> str:
    """After a strict await everything is recorded: no fence, in the same statement or the next."""
    text = await ping() + note("x")  # strict
    note(text)
    await ping()  # lazy
    return text


@case()
@workflow
async def helper_before_an_await_in_one_statement() -> Any:
    """What is evaluated before the await needs the fence."""
    await count_up()  # lazy
    text = note("x") + await ping()  # strict, fence
    return text


@case("x")
@workflow
async def logs(value: str) -> None:
    """A log record shows when it is made."""
    await send(value)  # lazy
    logger.info("sent %s", value)  # fence
    await send(value, text="again")  # lazy


@case()
@workflow
async def prints() -> None:
    """So does print."""
    await ping()  # lazy
    print(end="")  # fence
    await ping()  # lazy


@case()
@workflow
async def reads_the_clock() -> Any:
    """`now()` is the time at which what was awaited is recorded."""
    await sleep("1h")  # lazy
    later = now()  # fence
    await ping()  # lazy
    return later.year > 2000  # fence


@case()
@workflow
async def reads_a_foreign_clock() -> bool:
    """Any other clock is an unknown call."""
    await ping()  # lazy
    early = time.monotonic()  # fence
    await ping()  # lazy
    late = dice.random()  # fence
    return early < late + 1e12


@case()
@workflow
async def recorded_values() -> Any:
    """`random()` and `uuid4()` are the same in every replay and see nothing."""
    await ping()  # lazy
    number = random()
    key = uuid4()
    await echo(number, key)  # lazy


@case()
@workflow
async def reads_module_state() -> str:
    """A mutable global is the world."""
    await turn_on()  # lazy
    if STATE["on"]:  # fence?
        await ping()  # lazy
    return "on" if STATE["on"] else "off"  # fence?


@case()
@workflow
async def reads_state_of_another_module() -> Any:
    """An attribute of a module may be bound anew by anyone."""
    await ping()  # lazy
    await echo(steps.LIMIT)  # strict, fence
    return steps.LIMIT


@case()
@workflow
async def reads_a_rebound_global() -> bool:
    """Some function of this module declares `global FLAG`."""
    await ping()  # lazy
    return FLAG  # fence


@case()
@workflow
async def reads_constants() -> Any:
    """Immutable globals in capitals show nothing of the world; an attribute is code."""
    await ping()  # lazy
    await send(LIMIT, text=GREETING)  # lazy
    await echo(Color.RED.name == "RED", ROLES[0])  # strict, fence


@case()
@workflow
async def alias_of_module_state() -> Any:
    """A local name for a mutable global is still the world."""
    xs = STATE["xs"]  # fence?
    await count_up()  # lazy
    await echo(xs)  # lazy, fence?


@case(repeatable=False)
@workflow
async def gives_a_list_away() -> Any:
    """What a helper was given it may have kept, and a step may change."""
    mine: list[Any] = [0]
    keep(mine)  # fence
    await count_up()  # lazy
    await echo(mine)  # lazy, fence?
    return mine  # fence?


@case([1])
@workflow
async def argument_changed_by_a_step(values: list[int]) -> Any:
    """Arguments are copied at the call, so a step cannot change what the body holds."""
    await spoil(values)  # lazy
    await echo(values)  # lazy
    return values


@case()
@workflow
async def own_list_changed_between_steps() -> Any:
    """Each call gets the list as it is at that call; an item is set when everything before is recorded."""
    mine = [1]
    await echo(mine)  # lazy
    mine.append(2)
    await echo(mine)  # lazy
    mine[0] = 3  # fence
    return mine


@case()
@workflow
async def sets_an_attribute() -> Any:
    """Setting an attribute may run code, and shows."""
    channel = Channel(1, "x")  # fence
    await ping()  # lazy
    channel.name = "y"  # fence
    await echo(channel)  # lazy
    await ping()  # lazy
    await echo(channel)  # lazy, fence?


@case()
@workflow
async def holds_a_lock() -> None:
    """`with` runs code when it begins and when it ends, so inside it nothing runs ahead."""
    await ping()  # lazy
    with lock:  # fence
        await ping()  # strict
    await ping()  # lazy


@case("x")
@workflow
async def with_between_steps(name: str) -> str:
    """The block's end sees everything that it awaited recorded, whichever way it ends."""
    await count_up()  # lazy
    with noting(name) as told:  # fence
        await count_up()  # strict
        if await verify(told):  # strict
            return told
    return "never"


@case("x")
@workflow
async def async_with_between_steps(name: str) -> None:
    """The same for `async with`."""
    await count_up()  # lazy
    async with async_noting(name):  # fence
        await count_up()  # strict
    await ping()  # lazy


@case([3, 1, 2])
@workflow
async def key_callback(values: list[int]) -> Any:
    """`key=` calls back; without it, sorting plain values sees nothing."""
    await count_up()  # lazy
    best = max(values, key=double)  # fence
    await echo(best)  # lazy
    ordered = sorted(values)  # fence?
    await echo(ordered[0])  # lazy, fence?


@case("a b")
@workflow
async def pure_builtins(text: str) -> Any:
    """Builtins on plain values see nothing; a method is the class's own business."""
    await ping()  # lazy
    words = text.upper().split()  # fence
    await echo(len(words), "-".join(words))  # lazy
    await echo({word: len(word) for word in words})  # lazy
    return words


@case("a")
@workflow
async def callable_parameter_is_unknown(value: str) -> Any:
    """What a local name calls is never known."""
    call = echo
    await ping()  # lazy
    return await call(value)  # strict, fence


@case("a")
@workflow
async def awaits_a_plain_coroutine(value: str) -> Any:
    """A coroutine function that is no step runs as it is, with strict awaits."""
    await count_up()  # lazy
    found = await helper(value)  # strict, fence
    await ping()  # lazy
    return found


@case("a")
@workflow
async def awaits_a_coroutine_made_before(value: str) -> Any:
    """A call that is not awaited where it is made is not followed."""
    call = echo(value)
    await ping()  # lazy
    return await call  # strict, fence


@case("a")
@workflow
async def partial_of_a_step(value: str) -> Any:
    """`functools.partial` hides the step."""
    call = functools.partial(echo, value)  # fence
    await ping()  # lazy
    return await call()  # strict, fence


@case()
@workflow
async def raises_between_steps() -> None:
    """Making an exception runs its class."""
    await ping()  # lazy
    raise FatalError("no", code=1)  # fence


@case(1)
@workflow
async def asserts(value: int) -> None:
    """An assertion on plain values sees nothing."""
    await ping()  # lazy
    assert value == 1, "odd"  # fence?
    await ping()  # lazy


@case()
@workflow
async def imports_in_the_body() -> Any:
    """An import runs a module."""
    await ping()  # lazy
    import string  # fence  # noqa: PLC0415

    await echo(string.digits)  # lazy
    await echo(string.digits)  # strict, fence


@case()
@workflow
async def sleeps_a_timedelta() -> None:
    """A timedelta is plain."""
    await sleep(timedelta(seconds=1))  # lazy
    await ping()  # lazy


# Branches and loops.


@case(1)
@workflow
async def branches_on_a_parameter(value: int) -> str:
    """A test of plain values is free; a lazy await is reached only in its branch."""
    if value == 1:
        await send("one")  # lazy
    elif value == 2:
        await send("two")  # lazy
    else:
        await send("more")  # lazy
    return "done"


@case(2)
@workflow
async def elif_that_sees_the_world(value: int) -> None:
    """Each test has its own fence, right before it."""
    await count_up()  # lazy
    if value == 1:
        await ping()  # lazy
    elif note("x") == "x/1":  # fence
        await send("one")  # lazy


@case(True)
@workflow
async def conditional_expression(chosen: bool) -> Any:
    """An await in a branch of an expression is strict, and reached only if Python reaches it."""
    value = await echo("yes") if chosen else await echo("no")  # strict, strict
    await send(value)  # lazy
    return value


@case(0)
@workflow
async def boolean_operators(value: int) -> Any:
    """`or` looks at the first and may skip the second."""
    found = await echo(value) or await echo("second")  # strict, strict
    await ping()  # lazy
    return found


@case([1, 2, 3])
@workflow
async def loops_over_an_argument(values: list[int]) -> int:
    """A loop over an exact list runs no code; a check at run time sees that it is one."""
    for value in values:  # fence?
        await send(value)  # lazy
    return len(values)


@case([1, 2])
@workflow
async def loops_with_enumerate(values: list[int]) -> None:
    """`enumerate` is as plain as what it counts."""
    for index, value in enumerate(values):  # fence?
        await send(index, text=value)  # lazy


@case({"a": 1, "b": 2})
@workflow
async def loops_over_items(values: dict[str, int]) -> None:
    """So are the items of a dict."""
    for key, value in values.items():  # fence?
        await send(key, text=value)  # lazy


@case([(1, (2, 3)), (4, (5, 6))])
@workflow
async def loops_and_unpacks(values: list[Any]) -> None:
    """Unpacking an element looks into it."""
    for first, (second, third) in values:  # fence?
        await echo(first, second, third)  # lazy


@case(3)
@workflow
async def loops_over_a_range(count: int) -> list[Any]:
    """`out.append` into a list that is used only so."""
    out = []
    for number in range(count):
        out.append(await echo(number))  # lazy
    return out


@case(3)
@workflow
async def looks_at_the_list(count: int) -> int:
    """A look at the list is a look at what is in it."""
    out = []
    for number in range(count):
        out.append(await echo(number))  # strict
    return sum(out)


@case(3)
@workflow
async def loops_over_a_result(count: int) -> None:
    """A loop looks at what it runs over."""
    for number in await fetch_numbers(count):  # strict, fence?
        await send(number)  # lazy


@case(2, repeatable=False)
@workflow
async def loops_over_a_foreign_iterator(count: int) -> None:
    """Each `next()` sees the world as it then is."""
    lines = Lines(count)  # fence
    for line in lines:  # fence?
        await send(line)  # lazy
        await count_up()  # lazy


@case(2, repeatable=False)
@workflow
async def loops_over_a_call(count: int) -> None:
    """What an unknown call returns may run code at each turn, so nothing inside runs ahead."""
    await count_up()  # lazy
    for line in Lines(count):  # fence
        await count_up()  # strict
        await send(line)  # strict


@case(2, repeatable=False)
@workflow
async def async_loop(count: int) -> None:
    """Each turn of `async for` runs the iterator's code."""
    await count_up()  # lazy
    async for line in async_lines(count):  # fence
        await send(line)  # strict
        await count_up()  # strict
    await ping()  # lazy


@case(repeatable=False)
@workflow
async def while_on_state() -> int:
    """The test of a `while` is fenced at each turn."""
    turns = 0
    while STATE["count"] < 3:  # fence?
        await count_up()  # lazy
        turns += 1
    else:
        await ping()  # lazy
    return turns


@case(3)
@workflow
async def while_on_a_counter(count: int) -> None:
    """A test of local numbers is free."""
    number = 0
    while number < count:
        await send(number)  # lazy
        number += 1


@case(3)
@workflow
async def polls(limit: int) -> int:
    """`while True` needs no fence; the break looks."""
    turns = 0
    while True:
        turns += 1
        if await count_up() >= limit:  # strict
            break
        await sleep("1h")  # lazy
    return turns


@case([0, 1, 2])
@workflow
async def returns_early_in_a_loop(values: list[int]) -> Any:
    """A loop that may end early."""
    for value in values:  # fence?
        if await verify(value):  # strict
            return value
        await send(value)  # lazy
    return None


@case([1, 2, 3])
@workflow
async def continues_and_breaks(values: list[int]) -> str:
    """`continue`, `break` and `else` keep their meaning."""
    for value in values:  # fence?
        if value == 1:  # fence?
            continue
        await send(value)  # lazy
        if value == 3:  # fence?
            break
    else:
        return "all"
    return "broken off"


@case([1, 2])
@workflow
async def awaits_in_a_comprehension(values: list[int]) -> Any:
    """Awaits in a comprehension are strict."""
    found = [await echo(value) for value in values]  # strict
    await echo(found)  # lazy
    return found


@case({"kind": "a", "value": 3})
@workflow
async def matches(message: dict[str, Any]) -> Any:
    """`match` on plain values is free; of what a pattern binds nothing is certain."""
    await ping()  # lazy
    match message:  # fence?
        case {"kind": "a", "value": int(value)}:
            await send(value)  # strict, fence
        case _:
            await send("other")  # lazy


# Errors.


@case("x")
@workflow
async def handles_a_failure(value: str) -> dict[str, Any]:
    """Tracing assumes success; the handler runs when the step has failed for good."""
    try:
        await send(value)  # lazy
    except FatalError as error:
        await clean_up(error.code)  # strict, fence
        return {"success": False}
    return {"success": True}


@case("x")
@workflow
async def default_on_failure(value: str) -> Any:
    """A name bound to a deferred value or to a constant."""
    try:
        found = await echo(value)  # lazy
    except FatalError:
        found = "default"
    await send(found)  # lazy
    return found


@case("x")
@workflow
async def cleans_up(value: str) -> str:
    """`finally` with a step."""
    try:
        await send(value)  # lazy
        return "sent"
    finally:
        await clean_up(value)  # lazy


@case("x")
@workflow
async def notes_finally(value: str) -> str:
    """`finally` without a step sees the world."""
    try:
        await send(value)  # lazy
    finally:
        note(value)  # fence
    return "sent"


@case("x")
@workflow
async def try_else_finally(value: str) -> list[str]:
    """All four parts."""
    path = []
    try:
        await send(value)  # lazy
    except ValueError:
        path.append("except")
    else:
        path.append("else")
        await ping()  # lazy
    finally:
        path.append("finally")
        await clean_up()  # lazy
    return path


@case(2)
@workflow
async def bare_except_in_a_loop(count: int) -> list[str]:
    """A bare except goes on after a failure, and must not catch the end of an abandoned body."""
    path = []
    for number in range(count):
        try:
            await send(number)  # lazy
        except:  # noqa: E722
            path.append("failed")
            await clean_up(number)  # lazy
    return path


@case("x")
@workflow
async def wraps_the_error(value: str) -> None:
    """Raising another error from the one that was caught."""
    try:
        await send(value)  # lazy
    except FatalError as error:
        raise RuntimeError("wrapped") from error  # fence
    await ping()  # lazy


@case(0)
@workflow
async def error_of_the_body(value: int) -> Any:
    """An error of an operator is raised where Python raises it."""
    await ping()  # lazy
    try:
        found = 1 // value  # fence?
    except ZeroDivisionError:
        found = -1
    await send(found)  # strict, fence
    return found


@case("x")
@workflow
async def retries_in_the_body(value: str) -> str:
    """A loop around a try."""
    for attempt in range(3):
        try:
            await send(value, text=attempt)  # lazy
        except FatalError:
            await sleep("1 minute")  # lazy
            continue
        return "sent"
    return "failed"


# Gathers.


@case(1)
@workflow
async def gathers_and_unpacks(user_id: int) -> dict[str, Any]:
    """The seed page's member setup."""
    roles, channel, log = await asyncio.gather(  # lazy
        echo(user_id),
        create_channel("general"),
        ping(),
    )
    await send(channel.id, text=roles)  # lazy
    return {"roles": roles, "channel": channel.id, "log": log}


@case([1, 2, 3])
@workflow
async def gathers_a_list(values: list[int]) -> Any:
    """A starred comprehension of step calls."""
    results = await asyncio.gather(*[echo(value) for value in values])  # lazy, fence?
    await echo(results)  # lazy
    return results


@case([1, 2, 3])
@workflow
async def gathers_a_generator(values: list[int]) -> Any:
    """So is a starred generator."""
    return await asyncio.gather(*(echo(value) for value in values if value != 2))  # lazy, fence?


@case(1)
@workflow
async def gathers_with_a_deferred_argument(user_id: int) -> Any:
    """A deferred value may go to every member that is a step."""
    member = await fetch_member(user_id)  # lazy
    await asyncio.gather(*[send(member, text=number) for number in range(2)], echo(member))  # lazy


@case(1)
@workflow
async def gathers_with_a_projection(user_id: int) -> Any:
    """A projection must raise before any sibling starts."""
    member = await fetch_member(user_id)  # strict
    await asyncio.gather(ping(), send(member["id"]))  # lazy


@case(1)
@workflow
async def looks_at_a_gather(value: int) -> int:
    """A gather whose value is looked at is strict as a whole."""
    one, two = await asyncio.gather(echo(value), echo(2))  # strict
    return one + two


@case(1)
@workflow
async def gather_with_return_exceptions(value: int) -> Any:
    """`return_exceptions` turns failures into values."""
    results = await asyncio.gather(send(value), ping(), return_exceptions=True)  # strict
    return [isinstance(result, FatalError) for result in results]


@case(1)
@workflow
async def gather_of_unknown(value: int) -> Any:
    """One member that is not known to be a step makes the gather strict."""
    await count_up()  # lazy
    results = await asyncio.gather(helper(value), echo(2))  # strict, fence
    await ping()  # lazy
    return results


@case([1, 2])
@workflow
async def gather_of_a_name(values: list[int]) -> Any:
    """Calls collected before are not followed."""
    calls = [echo(value) for value in values]  # fence
    results = await asyncio.gather(*calls)  # strict
    await ping()  # lazy
    return results


@case(1)
@workflow
async def gather_beside_a_sleep(value: int) -> str:
    """A member that fails does not wait for a long sleep beside it."""
    try:
        await asyncio.gather(send(value), sleep("7 days"))  # lazy
    except FatalError:
        await clean_up()  # lazy
        return "failed"
    return "done"


@workflow
async def two_steps(value: Any) -> Any:
    """An inlined workflow: its steps are a chain of the caller's."""
    first = await echo(value)  # lazy
    return await send(first)  # lazy


CASES.append(Case("two_steps", two_steps, (5,)))


@case(1)
@workflow
async def gather_beside_a_chain(value: int) -> Any:
    """A member that fails beside a chain."""
    try:
        return await asyncio.gather(ping(), two_steps(value))  # lazy
    except FatalError:
        await clean_up()  # lazy
        return "failed"


@case([1, 2])
@workflow
async def gathers_workflows(values: list[int]) -> Any:
    """Inlined workflows are chains inside the header."""
    results = await asyncio.gather(*[two_steps(value) for value in values])  # lazy, fence?
    await send("all")  # lazy
    return results


@workflow
async def adds_to(box: dict[str, int], name: str) -> None:
    """In a child task a shared object is touched only when everything before is recorded."""
    await send(name)  # lazy
    box[name] = len(box)  # fence
    await echo(box)  # lazy


CASES.append(Case("adds_to", adds_to, ({}, "x")))


@case()
@workflow
async def members_share_a_dict() -> Any:
    """Two members change one dict, in the order in which their steps complete."""
    box: dict[str, int] = {}
    await asyncio.gather(adds_to(box, "a"), adds_to(box, "b"))  # lazy
    await echo(box)  # lazy
    return sorted(box)


@workflow
async def writes_down(log: list[str], name: str) -> int:
    """An alias of a parameter is as shared as the parameter."""
    mine = log
    await send(name)  # lazy
    mine.append(name)  # fence
    await sleep("1h")  # lazy
    mine.append(name.upper())  # fence
    return len(log)


CASES.append(Case("writes_down", writes_down, ([], "x")))


@case()
@workflow
async def members_share_a_list() -> Any:
    """Each entry is made when its member's step is recorded; the caller waits for what members wait for."""
    log: list[str] = []
    lengths = await asyncio.gather(writes_down(log, "a"), writes_down(log, "b"))  # lazy
    await echo(sorted(log))  # lazy, fence?
    return [len(log), lengths]


@workflow
async def makes_a_box(name: str) -> dict[str, Any]:
    """A member may return a display of its own with deferred values in it."""
    sent = await send(name)  # lazy
    return {"name": name, "sent": sent}


CASES.append(Case("makes_a_box", makes_a_box, ("x",)))


@case()
@workflow
async def passes_boxes_on() -> Any:
    """What members return is passed on to a step."""
    one, two = await asyncio.gather(makes_a_box("a"), makes_a_box("b"))  # lazy
    await echo([one, two])  # lazy
    return one


@workflow
async def reads_a_closure_dict(box: dict[str, int]) -> bool:
    """A parameter read in a nested scope is captured, so it is the world's."""
    has = lambda key: key in box  # fence  # noqa: E731
    await ping()  # lazy
    return has("x")  # fence


CASES.append(Case("reads_a_closure_dict", reads_a_closure_dict, ({"x": 1},)))


@case("x")
@workflow
async def inlines(value: str) -> Any:
    """A workflow called in a body; a deferred value may not go to it."""
    found = await two_steps(value)  # lazy
    await send(found)  # lazy
    return found


@case("x")
@workflow
async def deferred_to_a_workflow(value: str) -> Any:
    """An inlined workflow may look at its arguments."""
    found = await echo(value)  # strict
    return await two_steps(found)  # lazy


# Functions.


@case(1)
@workflow
async def defaults_and_keywords(
    one: int, /, two: int = 2, *more: int, three: int = 3, **rest: int
) -> Any:
    """Every kind of parameter keeps its place and default."""
    await ping()  # lazy
    return (one, two, more, three, rest)


@case("x")
@workflow
async def nested_function(value: str) -> Any:
    """Awaits of a nested function are strict and its body is left alone."""

    async def twice(text: str) -> str:  # fence
        await count_up()
        return await send(text)

    await ping()  # lazy
    found = await twice(value)  # strict, fence
    await ping()  # lazy
    return found


@case()
@workflow
async def nested_function_counts() -> int:
    """A name that a nested function binds anew may change at any call."""
    number = 0  # fence

    def count() -> None:  # fence
        nonlocal number
        number += 1

    await ping()  # lazy
    count()  # fence
    await ping()  # lazy
    return number  # fence


def _make_nested(greeting: str) -> Any:
    settings = {"text": greeting}
    turns = 0

    @workflow(name="closure")
    async def closure(value: str) -> Any:
        """Free variables keep their cells."""
        nonlocal turns
        await send(value, text=greeting)  # lazy
        turns = turns + 1  # fence
        await echo(settings)  # lazy
        await echo(settings)  # lazy, fence?
        return [greeting, turns > 0]  # fence

    return closure


CASES.append(Case("closure", _make_nested("hi"), ("x",)))


class Namespace:
    """Private names are mangled with the class's name."""

    @staticmethod
    def make() -> Any:
        __hidden = "hidden"  # noqa: F841

        @workflow(name="mangled")
        async def mangled(__value: str, /) -> Any:
            """A name of two underscores."""
            __found = await echo(__value)  # lazy
            await send(__found, text=__value)  # lazy
            return __found

        return mangled


CASES.append(Case("mangled", Namespace.make(), ("x",)))


def above(definition: Any) -> Any:
    """A decorator over @workflow, which sees the workflow and not the function."""
    definition.is_marked = True
    return definition


@case("x")
@above
@workflow
async def decorated_above(value: str) -> Any:
    """A decorator above @workflow changes nothing."""
    await send(value)  # lazy
    return value


def marks(function: Any) -> Any:
    """A decorator that gives the same function back."""
    function.is_marked = True
    return function


@case("x")
@workflow
@marks
async def decorated_below_by_a_mark(value: str) -> Any:
    """A decorator under @workflow that gives the very function back."""
    await send(value)  # lazy
    return value


def wraps(function: Any) -> Any:
    """A decorator that gives a wrapper."""

    @functools.wraps(function)
    async def wrapper(*args: Any) -> Any:
        note("wrapper")
        return await function(*args)

    return wrapper


@case("x")
@workflow
@wraps
async def decorated_below(value: str) -> Any:
    """Another decorator in between: nothing is rewritten."""
    await count_up()
    await send(value)
    return value


@case("x")
@workflow
async def sees_its_locals(value: str) -> Any:
    """`locals()` could see the rewriting: nothing is rewritten."""
    await send(value)  # strict
    return sorted(locals())


@case(2)
@workflow
async def sync_step(value: int) -> Any:
    """A sync step is a step."""
    found = await plain_echo(value)  # lazy
    await send(found)  # lazy
    return found
