"""Edits: a run waits somewhere, and its workflow is edited (docs/changing.md).

`STATES` says where the run waits, `EDITS` what is edited, and `CELLS` what is right for each pair: the run goes on with the new code, or
it is held, and goes on when the edit is undone.

Not here: other causes of a hold (`test_deploys.py`), and processes of two releases (`tests/deploys`).
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from textwrap import dedent, indent
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from ckworkflow import codec
from ckworkflow.definition import Workflow, registry
from ckworkflow.engine import cancellation, holding
from ckworkflow.engine import resume as sending
from ckworkflow.engine.advance import go_on
from ckworkflow.engine.claims import Claimed
from ckworkflow.model import HookKey, Namespace, NodeId, NodeKind, NodeStatus, RunId, RunStatus, child_id

if TYPE_CHECKING:
    from pathlib import Path

    from ckworkflow.store.nodes import NodeRow
    from desk import Desk

NAME = "tests.edits.body"
MODULE = "edited_workflow"
DAY = timedelta(days=1)

# --- the workflow ---------------------------------------------------------------------------------------

SOURCE = """
import asyncio
from dataclasses import dataclass

from ckworkflow import continue_as_new, define_hook, sleep, start, timeout
from edited_steps import (
    another_child, another_part, ask, child, fast, greet, part, query, quick, restore, say, shout, slow, tell, undo,
)


@dataclass
class Reply:
    choice: str


reply = define_hook("reply", Reply)


async def body(life: int = 0) -> object:
    BEGINS
    replies = reply.create("replies")
    await greet()
    asked = await ask("a question")
    WAITS
    last = await tell(f"{got} {answer.choice}")
    return f"{asked}, {last}"
"""

# --- where the run waits --------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """Where a run waits when its workflow is edited.

    Attributes:
        waits: The lines in the middle of the body. The run waits at the line that ends with `# here`.
        got: What these lines give.
        comes: Makes happen what the run waits for.
        instead: A text in the source, and another that makes the run wait for something else.
        begun: The steps that have begun before the edit.
        begins: The first lines of the body.
        is_told: Whether a reply was sent before the edit.
        enters: Brings a run whose first steps have ended into the state.
    """

    waits: str
    got: str
    comes: Callable[[Play], None]
    instead: tuple[str, str]
    begun: tuple[str, ...] = ("greet", "ask")
    begins: str = "pass"
    is_told: bool = True
    enters: Callable[[Play], None] = lambda play: None

    @property
    def source(self) -> str:
        parts = {"BEGINS": self.begins, "WAITS": self.waits}
        return re.sub(
            r"^    (BEGINS|WAITS)\n", lambda found: indent(dedent(parts[found[1]]).strip(), "    ") + "\n", SOURCE, flags=re.MULTILINE
        )  # fmt: skip


SLEEPS = """
    await sleep("1 day")  # here
    got = "slept"
    answer = await replies
"""

STATES = {
    "asleep": State(
        SLEEPS,
        got="slept",
        comes=lambda play: play.pass_time(DAY),
        instead=('sleep("1 day")', "shout()"),
    ),
    "waiting for a hook": State(
        """
        answer = await replies  # here
        got = "heard"
        """,
        got="heard",
        comes=lambda play: play.send("replies"),
        instead=('create("replies")', 'create("elsewhere")'),
        is_told=False,
    ),
    "in a race": State(
        """
        racers = [asyncio.create_task(fast()), asyncio.create_task(slow())]
        done, late = await asyncio.wait(racers, return_when=asyncio.FIRST_COMPLETED)  # here
        for racer in late:
            racer.cancel()
        got = done.pop().result()
        answer = await replies
        """,
        got="fast",
        comes=lambda play: play.finish("fast"),
        instead=("fast()", "quick()"),
        begun=("greet", "ask", "fast", "slow"),
    ),
    "in clean-up": State(
        """
        try:
            await sleep("30 days")
            got = "slept"
        except asyncio.CancelledError:
            got = await undo()  # here
        answer = await replies
        """,
        got="undone",
        comes=lambda play: play.finish("undo"),
        instead=("undo()", "restore()"),
        begun=("greet", "ask", "undo"),
        enters=lambda play: play.cancel(),
    ),
    "in a child": State(
        """
        run = await start(child)
        got = await run.return_value()  # here
        answer = await replies
        """,
        got="fetched",
        comes=lambda play: play.finish("fetch"),
        instead=("start(child)", "start(another_child)"),
        begun=("greet", "ask", "fetch"),
    ),
    "in an awaited workflow": State(
        """
        got = await part()  # here
        answer = await replies
        """,
        got="slept",
        comes=lambda play: play.pass_time(DAY),
        instead=("await part()", "await another_part()"),
    ),
    "in a later life": State(
        SLEEPS,
        got="slept",
        comes=lambda play: play.pass_time(DAY),
        instead=('sleep("1 day")', "shout()"),
        begun=("ask", "greet", "ask"),
        begins="""
        if not life:
            await ask("of the first life")
            return continue_as_new(1)
        """,
    ),
}
UNFINISHED = ("fast", "slow", "undo", "fetch")
"""Steps that run while the workflow is edited."""

# --- what is edited -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edit:
    """What is edited, and what a run does that goes on with the new code.

    Attributes:
        change: Makes the new source from the old one and the state.
        result: The result of the run.
        begins: The steps that begin after the edit.
        prepare: Makes the old source, for an edit that takes something away from it.
    """

    change: Callable[[str, State], str]
    result: str = "a question, told {got} yes"
    begins: tuple[str, ...] = ("tell",)
    prepare: Callable[[str, State], str] = lambda source, state: source


def replace(*pairs: tuple[str, str]) -> Callable[[str, State], str]:
    def change(source: str, state: State) -> str:
        for old, new in pairs:
            assert old in source
            source = source.replace(old, new)
        return source

    return change


def wait_for_something_else(source: str, state: State) -> str:
    return replace(state.instead)(source, state)


def wrap_in_a_timeout(source: str, state: State) -> str:
    return wrap(source, "60 days")


def wrap(source: str, limit: str) -> str:
    wrapped = rf'\1async with timeout("{limit}"):\n\1    \2'
    return re.sub(r"^( *)(.*  # here)$", wrapped, source, flags=re.MULTILINE)


ASKS = '    asked = await ask("a question")\n'
TELLS = "    last = await tell("
EDITS = {
    "rename a variable": Edit(replace(("asked", "heard"))),
    "add a step before": Edit(replace((ASKS, f"{ASKS}    await shout()\n")), begins=("shout", "tell")),
    "remove a step before": Edit(replace(("    await greet()\n", ""))),
    "rename a step before": Edit(replace((" ask(", " query("))),
    "change an argument before": Edit(replace(('ask("a question")', 'ask("another")'))),
    "wait for something else": Edit(wait_for_something_else),
    "wrap the await in a timeout": Edit(wrap_in_a_timeout),
    "take a timeout away": Edit(lambda source, state: state.source, prepare=wrap_in_a_timeout),
    "add a step after": Edit(replace((TELLS, f"    await shout()\n{TELLS}")), begins=("shout", "tell")),
    "remove a step after": Edit(
        replace((TELLS, "    last = str(")), result="a question, {got} yes", begins=()
    ),
    "rename a step after": Edit(
        replace((" tell(", " say(")), result="a question, said {got} yes", begins=("say",)
    ),
    "give the hook's schema a field with a default": Edit(
        replace(("    choice: str\n", '    choice: str\n    reason: str = ""\n'))
    ),
    "rename a field of the hook's schema": Edit(replace(("choice", "verdict"))),
    "return before": Edit(replace((ASKS, f"{ASKS}    return asked\n")), result="a question", begins=()),
}

# --- what is right --------------------------------------------------------------------------------------

ON = "goes on"


@dataclass(frozen=True)
class Diverged:
    """A run is held, and the reason names what it has recorded, and what the body calls now."""

    recorded: str
    now: str

    @property
    def reason(self) -> str:
        return f"it recorded {_full_name(self.recorded)}, and the body now calls {_full_name(self.now)}."


@dataclass(frozen=True)
class Unreadable:
    """A run is held, and the reason names what cannot be rebuilt, and what the class has now."""

    recorded: str
    now: str

    @property
    def reason(self) -> str:
        return f"{MODULE}:{self.recorded} cannot be rebuilt: LookupError: its field '{self.now}' is new"


def _full_name(name: str) -> str:
    return name if name in ("sleep", "timer") else f"edited_steps.{name}"


EVERYWHERE_ON = dict.fromkeys(STATES, ON)
CELLS: dict[str, dict[str, str | Diverged | Unreadable]] = {
    "rename a variable": EVERYWHERE_ON,
    "add a step before": {
        "asleep": Diverged("sleep", "shout"),
        "waiting for a hook": ON,  # the await has no place: the step is behind those that the run has reached
        "in a race": ON,  # each task has an order of its own, and the racers are tasks
        "in clean-up": Diverged("sleep", "shout"),
        "in a child": Diverged("child", "shout"),
        "in an awaited workflow": Diverged("sleep", "shout"),
        "in a later life": Diverged("sleep", "shout"),
    },
    "remove a step before": dict.fromkeys(STATES, Diverged("greet", "ask")),
    "rename a step before": dict.fromkeys(STATES, Diverged("ask", "query")),
    "change an argument before": EVERYWHERE_ON,
    "wait for something else": {
        "asleep": Diverged("sleep", "shout"),
        "waiting for a hook": ON,  # the hook that was made counts
        "in a race": Diverged("fast", "quick"),
        "in clean-up": Diverged("undo", "restore"),
        "in a child": Diverged("child", "another_child"),
        "in an awaited workflow": Diverged("sleep", "shout"),
        "in a later life": Diverged("sleep", "shout"),
    },
    "wrap the await in a timeout": {  # a deadline takes a place before that of what it limits
        "asleep": Diverged("sleep", "timer"),
        "waiting for a hook": ON,  # these awaits have no place
        "in a race": ON,
        "in clean-up": Diverged("undo", "timer"),
        "in a child": ON,
        "in an awaited workflow": Diverged("sleep", "timer"),
        "in a later life": Diverged("sleep", "timer"),
    },
    "take a timeout away": {
        "asleep": Diverged("timer", "sleep"),
        "waiting for a hook": Diverged("timer", "tell"),  # the next that has a place
        "in a race": Diverged("timer", "tell"),
        "in clean-up": Diverged("timer", "undo"),
        "in a child": Diverged("timer", "tell"),
        "in an awaited workflow": Diverged("timer", "sleep"),
        "in a later life": Diverged("timer", "sleep"),
    },
    "add a step after": EVERYWHERE_ON,
    "remove a step after": EVERYWHERE_ON,
    "rename a step after": EVERYWHERE_ON,
    "give the hook's schema a field with a default": EVERYWHERE_ON,
    "rename a field of the hook's schema": {
        **dict.fromkeys(STATES, Unreadable("Reply", "verdict")),
        "waiting for a hook": ON,  # the new code sends what it expects
    },
    # Nothing that the body has been told of is missing, and the new code asks for nothing more.
    "return before": EVERYWHERE_ON,
}

# --- how a run gets there -------------------------------------------------------------------------------


class Play:
    """A run of the workflow whose source is edited.

    Args:
        desk: The engine.
        folder: Where the sources are written.
        replays: Whether the body is replayed from its start at each event. If not, it is kept between two deploys.
    """

    def __init__(self, desk: Desk, folder: Path, *, replays: bool) -> None:
        self.desk, self._folder, self._replays = desk, folder, replays
        self.begun: list[str] = []
        self.is_edited = False
        self._unfinished: dict[str, tuple[RunId, Claimed]] = {}
        self._deploys = 0
        self.run_id = RunId("")

    def deploy(self, source: str) -> Workflow[..., Any]:
        """Load a source as a worker does when it starts: it has no bodies yet."""
        self._deploys += 1
        path = self._folder / f"{MODULE}_{self._deploys}.py"
        path.write_text(source)
        module = ModuleType(MODULE)
        module.__file__ = str(path)
        sys.modules[MODULE] = module
        exec(compile(source, path, "exec"), vars(module))  # noqa: S102  # the source is above
        self.desk.engine.bodies.clear()
        registry.workflows[NAME] = definition = Workflow(vars(module)["body"], name=NAME)
        return definition

    def start(self, definition: Workflow[..., Any], state: State) -> None:
        self.run_id = self.desk.start(definition)
        self.work()
        if state.is_told:
            self.send("replies")
        state.enters(self)
        self.work()

    def work(self) -> None:
        """Begin every step that may begin, and end it, unless it is to run while the workflow is edited."""
        while self._begin_one():
            pass

    def _begin_one(self) -> bool:
        for run_id, row in self._planned_steps():
            claimed = self.desk.claim(run_id, row.node_id)
            if not isinstance(claimed, Claimed):
                continue
            name = row.name.rpartition(".")[2]
            self.begun.append(name)
            if name in UNFINISHED and not self.is_edited:
                self._unfinished[name] = run_id, claimed
            else:
                self._end(run_id, claimed)
            return True
        return False

    def _planned_steps(self) -> list[tuple[RunId, NodeRow]]:
        rows = self.desk.nodes(self.run_id)
        children = [child_id(self.run_id, row.node_id) for row in rows if row.kind is NodeKind.CHILD]
        return [
            (run_id, row)
            for run_id in (self.run_id, *children)
            for row in self.desk.nodes(run_id)
            if row.kind is NodeKind.STEP and row.status is NodeStatus.PLANNED
        ]

    def _end(self, run_id: RunId, claimed: Claimed) -> None:
        self._forget()
        step = registry.require_step(claimed.row.name)
        value = step.function(*claimed.args, **claimed.kwargs)
        go_on(self.desk.engine, run_id, self.desk.succeed(claimed, value))

    def _forget(self) -> None:
        if self._replays:
            self.desk.engine.bodies.clear()

    def finish(self, name: str) -> None:
        self._end(*self._unfinished.pop(name))

    def finish_late(self) -> None:
        """End the steps that still run."""
        for name in list(self._unfinished):
            self.finish(name)

    def pass_time(self, span: timedelta) -> None:
        self._forget()
        self.desk.clock.advance(span)
        self.desk.tick()

    def send(self, token: str) -> None:
        """Send a reply, as the code does that is deployed now."""
        self._forget()
        reply = sys.modules[MODULE].Reply
        field = next(iter(reply.__annotations__))
        payload = codec.encode(reply(**{field: "yes"}), path="payload")
        key = HookKey.of(Namespace.CODE, token)
        sending.resume(self.desk.engine, key, codec.dumps(payload), dedup_key=None)

    def cancel(self) -> None:
        self._forget()
        assert cancellation.cancel(self.desk.engine, self.run_id, reason="enough", grace=None)

    def hold(self) -> holding.Hold | None:
        return holding.read(self.desk.run(self.run_id).held)

    def recorded(self) -> dict[NodeId, tuple[object, ...]]:
        """What is stored of the nodes that have ended."""
        return {
            row.node_id: (row.name, row.args, row.attempt, row.output)
            for row in self.desk.nodes(self.run_id)
            if row.status is NodeStatus.COMPLETED
        }

    def result(self) -> Any:
        run = self.desk.run(self.run_id)
        assert run.status is RunStatus.COMPLETED, (run.status, run.error, run.held)
        return codec.decode(codec.loads(run.output or "null"))


@pytest.fixture(params=["replayed", pytest.param("kept", marks=pytest.mark.slow)])
def play(desk: Desk, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Play]:
    yield Play(desk, tmp_path, replays=request.param == "replayed")
    registry.workflows.pop(NAME, None)
    sys.modules.pop(MODULE, None)


# --- the matrix -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", STATES)
@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_lets_a_run_go_on_or_holds_it_until_it_is_undone(
    play: Play, edit: str, place: str
) -> None:
    state, edited, right = STATES[place], EDITS[edit], CELLS[edit][place]
    old = edited.prepare(state.source, state)
    play.start(play.deploy(old), state)
    assert play.begun == list(state.begun)
    assert play.desk.run(play.run_id).status is RunStatus.RUNNING
    recorded = play.recorded()

    new = edited.change(old, state)
    assert new != old
    play.deploy(new)
    play.is_edited = True
    state.comes(play)
    play.work()

    if right == ON:
        assert play.hold() is None
        result, begins = edited.result, edited.begins
    else:
        play.finish_late()
        play.work()
        hold = play.hold()
        assert hold is not None
        assert right.reason in hold.reason
        assert play.begun == list(state.begun)
        assert recorded.items() <= play.recorded().items()

        play.deploy(old)
        play.pass_time(hold.until - play.desk.clock.now)
        play.work()
        result, begins = "a question, told {got} yes", ("tell",)
    play.finish_late()

    assert play.result() == result.format(got=state.got)
    assert play.begun == [*state.begun, *begins]


# --- what is under way, and what an edit does not reach ---------------------------------------------------


def bring(play: Play, place: str, *edits: tuple[str, str], source: str | None = None) -> None:
    """Bring a run of the source, or of that of the state, into a state; edit its workflow."""
    state = STATES[place]
    old = source or state.source
    play.start(play.deploy(old), state)
    play.is_edited = True
    play.deploy(replace(*edits)(old, state))


def test_a_sleep_that_is_under_way_keeps_its_end(play: Play) -> None:
    bring(play, "asleep", ("1 day", "9 days"))

    play.pass_time(DAY)
    play.work()

    assert play.result() == "a question, told slept yes"


def test_a_deadline_that_is_added_where_a_run_waits_does_not_wake_it(play: Play) -> None:
    awaits = "    answer = await replies  # here\n"
    bring(play, "waiting for a hook", (awaits, wrap(awaits, "1 day")))

    for _ in range(3):
        play.pass_time(DAY)
    assert play.desk.run(play.run_id).status is RunStatus.RUNNING
    play.send("replies")
    play.work()

    assert play.result() == "a question, told heard yes"


def test_a_step_that_is_added_before_an_await_with_a_deadline_holds_a_run(play: Play) -> None:
    state = STATES["waiting for a hook"]
    source = state.source.replace("await replies  #", 'await replies.next(timeout="2 days")  #')
    bring(play, "waiting for a hook", (ASKS, f"{ASKS}    await shout()\n"), source=source)

    play.send("replies")
    play.work()

    hold = play.hold()
    assert hold is not None
    assert Diverged("timer", "shout").reason in hold.reason
    assert play.begun == ["greet", "ask"]


def test_what_an_earlier_life_did_may_be_edited(play: Play) -> None:
    bring(play, "in a later life", ('ask("of the first life")', "shout()"))

    play.pass_time(DAY)
    play.work()

    assert play.result() == "a question, told slept yes"


def test_a_held_run_that_is_cancelled_ends_without_its_clean_up(play: Play) -> None:
    state = STATES["in clean-up"]
    play.run_id = play.desk.start(play.deploy(state.source))
    play.work()  # up to the sleep, which the clean-up is for
    play.deploy(EDITS["rename a step before"].change(state.source, state))
    play.send("replies")
    assert play.hold() is not None

    play.cancel()
    play.work()

    run = play.desk.run(play.run_id)
    assert run.status is RunStatus.CANCELLED
    assert Diverged("ask", "query").reason in (run.error or "")
    assert play.begun == ["greet", "ask"]


def test_a_step_that_is_added_before_a_group_begins_after_what_is_under_way(play: Play) -> None:
    waits = "got, _ = await asyncio.gather(fast(), slow())\nanswer = await replies"
    gathers = dataclasses.replace(STATES["in a race"], waits=waits).source
    bring(play, "in a race", (ASKS, f"{ASKS}    await shout()\n"), source=gathers)

    play.finish("fast")
    play.finish("slow")
    play.work()

    assert play.result() == "a question, told fast yes"
    assert play.begun == ["greet", "ask", "fast", "slow", "shout", "tell"]


def test_a_payload_of_plain_values_that_no_longer_fits_is_an_error_in_the_body(play: Play) -> None:
    """A `TypedDict` is stored as a plain dict: it can be rebuilt, and does not fit."""
    plain = replace(
        ("from dataclasses import dataclass", "from typing import TypedDict"),
        ("@dataclass\nclass Reply:", "class Reply(TypedDict):"),
        ("answer.choice", "answer['choice']"),
    )(STATES["asleep"].source, STATES["asleep"])
    bring(play, "asleep", ("choice", "verdict"), source=plain)

    play.pass_time(DAY)
    play.work()

    run = play.desk.run(play.run_id)
    assert run.status is RunStatus.FAILED
    assert "HookPayloadError" in (run.error or "")
    assert "missing required field `verdict`" in (run.error or "")
