"""What a user gets wrong, and the sentence that says so: at the call where that is possible, else in the run."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import aiohttp
import discord
import pytest
import sqlalchemy as sa

from ckworkflow import get_run, get_run_sync, sleep, start, start_sync, step, workflow
from ckworkflow.client import Run, SyncRun
from ckworkflow.engine import failures
from ckworkflow.errors import (
    BodyAwaitError,
    BodyStuckError,
    DatabaseUnavailableError,
    FatalError,
    HookContextError,
    InvalidDurationError,
    InvalidSettingError,
    NotAwaitedError,
    NotAWorkflowError,
    RunNotFoundError,
    UnserializableValueError,
    UnsupportedBrokerError,
    WorkflowCallError,
)
from ckworkflow.hooks import use_client, use_commandkit, use_step
from ckworkflow.model import NodeStatus, RunId, RunStatus
from ckworkflow.store.tables import runs
from ckworkflow.tracing import loop
from desk import Desk
from services import free_port
from waiting import failure_of

if TYPE_CHECKING:
    from pathlib import Path

    from celery import Celery

    from ckworkflow.engine.installation import Installation


@step
def echo(value: Any) -> Any:
    return value


@step
def opaque() -> Any:
    return {"rows": [1, {"thing": object()}]}


@workflow
async def one_step(value: Any = None) -> Any:
    return await echo(value)


def count_runs(home: Installation) -> int:
    engine = home.engine
    engine.ensure_schema()
    query = sa.select(sa.func.count()).select_from(runs)
    return engine.database.read(lambda tx: tx.execute(query).scalar_one())


# --- what start() refuses ----------------------------------------------------------------------------


async def plain() -> None: ...


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (plain, r"plain is a function\. Write @workflow over"),
        (echo, r"echo is a step\. Await it in the body of a workflow .* call it: echo\(\.\.\.\)\.$"),
        (7, r"7 is a int\. Write @workflow over"),
    ],
)
def test_only_a_workflow_can_be_started(home: Installation, wrong: Any, what: str) -> None:
    with pytest.raises(NotAWorkflowError, match=rf"^start\(\) takes a workflow, and {what}"):
        start_sync(wrong)
    with pytest.raises(NotAWorkflowError):
        asyncio.run(start(wrong))


def test_arguments_that_do_not_fit_the_signature_are_refused(home: Installation) -> None:
    with pytest.raises(TypeError, match=r"one_step\(\) got an unexpected keyword argument 'valeu'"):
        start_sync(one_step, valeu=1)
    assert count_runs(home) == 0


def test_the_path_of_an_argument_that_cannot_be_stored_is_named(home: Installation) -> None:
    with pytest.raises(
        UnserializableValueError, match=r"^args\[0\]\['rows'\]\[1\] is an object, which cannot"
    ):
        start_sync(one_step, {"rows": [1, object()]})
    with pytest.raises(UnserializableValueError, match=r"^kwargs\['value'\]\[0\] is a ") as caught:
        start_sync(one_step, value=[open])
    assert caught.value.path == "kwargs['value'][0]"
    assert count_runs(home) == 0


def test_an_object_of_discord_py_is_refused_with_its_id_as_advice(home: Installation) -> None:
    with pytest.raises(
        UnserializableValueError,
        match=r"args\[0\] is a discord\.object\.Object.*Pass its id instead: args\[0\]\.id",
    ):
        start_sync(one_step, discord.Object(7))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["workflow", "step"])
def test_what_is_defined_in_the_main_script_is_refused(tmp_path: Path, kind: str) -> None:
    script = tmp_path / "bot.py"
    (tmp_path / "flows.py").write_text(
        "import sys\n\nfrom ckworkflow import workflow\n\n\n"
        "@workflow\nasync def passing_on():\n    return await sys.modules['__main__'].greet()\n"
    )
    start = "greet" if kind == "workflow" else "passing_on"
    script.write_text(
        "from ckworkflow import start_sync, step, workflow\nfrom flows import passing_on\n\n\n"
        f"@{kind}\nasync def greet(): ...\n\n\n"
        f"start_sync({start})\n"
    )

    ran = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )

    assert ran.returncode == 1
    error = ran.stderr.strip().splitlines()[-1]
    assert error.startswith(
        "ckworkflow.errors.MainModuleError: '__main__.greet' is defined in __main__ ("
    )
    assert str(script) in error
    assert "Move it to a module of its own" in error


@pytest.mark.slow
def test_a_run_that_comes_to_a_step_of_the_main_script_later_is_not_failed_for_it(
    tmp_path: Path,
) -> None:
    """The script itself may run it, now and after a restart; any other worker holds it."""
    (tmp_path / "flows.py").write_text(
        "import sys\n\nfrom ckworkflow import step, workflow\n\n\n"
        "@step\nasync def ask():\n    return True\n\n\n"
        "@workflow\nasync def later():\n"
        "    if await ask():\n        return await sys.modules['__main__'].greet()\n"
    )
    (tmp_path / "bot.py").write_text(
        "from ckworkflow import start_sync, step\nfrom ckworkflow.testing import worker\nfrom flows import later\n\n\n"
        "@step\nasync def greet():\n    return 'hello'\n\n\n"
        "with worker():\n    print(start_sync(later).return_value(30))\n"
    )

    ran = subprocess.run(
        [sys.executable, "bot.py"], cwd=tmp_path, capture_output=True, text=True, timeout=90
    )

    assert ran.stdout.strip() == "hello", ran.stderr


# --- what cannot be reached --------------------------------------------------------------------------


def test_a_database_that_does_not_answer_is_named_and_nothing_starts(
    app: Celery, home: Installation
) -> None:
    url = f"postgresql+psycopg://bot:pa55@127.0.0.1:{free_port()}/runs"
    app.conf.workflow_database_url = url

    with pytest.raises(
        DatabaseUnavailableError, match=r"cannot be reached: .*Check workflow_database_url"
    ) as caught:
        start_sync(one_step)
    assert "bot:***@127.0.0.1" in str(caught.value)
    assert "pa55" not in str(caught.value)


def test_a_database_file_in_no_folder_is_named(app: Celery, home: Installation) -> None:
    app.conf.workflow_database_url = "sqlite:////dev/null/runs.sqlite3"

    with pytest.raises(
        DatabaseUnavailableError, match=r"sqlite:////dev/null/runs\.sqlite3 cannot be reached"
    ):
        start_sync(one_step)


def test_a_file_that_is_no_database_is_named(app: Celery, home: Installation, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database, although it is long enough to be one\n" * 30)
    app.conf.workflow_database_url = f"sqlite:///{tmp_path / 'notes.txt'}"

    with pytest.raises(
        DatabaseUnavailableError, match=r"notes\.txt cannot be used: file is not a database"
    ):
        start_sync(one_step)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("runs.sqlite3", r"it is no database URL, such as sqlite:///runs\.sqlite3"),
        ("postgresql+psycopg_async://host/runs", "its driver is for asyncio"),
        ("mysql://bot@host/runs", r"ckworkflow keeps its runs in SQLite or PostgreSQL"),
        ("postgresql+nosuch://bot:pa55@host/runs", r"it is no database URL"),
        ("postgresql+psycopg2://bot:pa55@host/runs", r"its driver is missing \(.*psycopg2.*pip install"),
    ],
)
def test_a_database_url_that_makes_no_sense_is_told(
    app: Celery, home: Installation, url: str, reason: str
) -> None:
    app.conf.workflow_database_url = url

    with pytest.raises(InvalidSettingError, match=f"^workflow_database_url = .*{reason}") as caught:
        start_sync(one_step)
    assert "pa55" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["filesystem://", "sqla+sqlite:///broker.sqlite3", "sqlalchemy+sqlite:///b.sqlite3"]
)
def test_a_broker_that_loses_messages_is_refused(app: Celery, home: Installation, url: str) -> None:
    app.conf.broker_url = url

    with pytest.raises(
        UnsupportedBrokerError, match=r"loses the messages of a killed worker.*use redis:// or amqp://"
    ):
        start_sync(one_step)


def test_an_unknown_run_is_told_so(home: Installation) -> None:
    with pytest.raises(
        RunNotFoundError, match=r"No run has the id 'nope' in this database\. `ckworkflow runs list`"
    ):
        get_run_sync("nope")
    with pytest.raises(RunNotFoundError):
        asyncio.run(get_run("nope"))

    gone = SyncRun[Any](RunId("nope"))
    assert not gone.exists()
    for ask in (gone.status, gone.steps, gone.return_value):
        with pytest.raises(RunNotFoundError):
            ask()
    assert not asyncio.run(Run[Any](RunId("nope")).exists())


# --- what a body may not do --------------------------------------------------------------------------


@workflow
async def opens_a_connection() -> None:
    await asyncio.open_connection("127.0.0.1", 9)


@workflow
async def fetches() -> str:
    async with aiohttp.ClientSession() as session, session.get("http://127.0.0.1:9/") as answer:
        return await answer.text()


@workflow
async def goes_to_a_thread() -> None:
    await asyncio.to_thread(print)


@workflow
async def waits_for_nothing() -> None:
    await asyncio.get_running_loop().create_future()


@workflow
async def waits_for_itself() -> None:
    lock, full = asyncio.Lock(), asyncio.Queue[int]()

    async def taker() -> int:
        return await full.get()

    async with lock, asyncio.TaskGroup() as tasks:
        tasks.create_task(taker())
        await echo(1)
        await lock.acquire()


@workflow
async def swallows_it() -> str:
    try:
        await asyncio.Event().wait()
    except BaseException:
        await echo(1)
    return "went on"


@workflow
async def spins() -> None:
    while True:
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("body", "tasks"),
    [
        (waits_for_nothing, ["task 0, line .* of test_bad_input.py, waits for a future"]),
        (
            waits_for_itself,
            [
                "task 0, line .* of test_bad_input.py, waits for Lock.acquire",
                "task 0.1, line .* of test_bad_input.py, waits for Queue.get",
            ],
        ),
        (swallows_it, ["task 0, line .* of test_bad_input.py, waits for Event.wait"]),
    ],
)
def test_a_body_that_nothing_can_move_says_where_each_of_its_tasks_stands(
    either_desk: Desk, body: Any, tasks: list[str]
) -> None:
    run_id = either_desk.start(body)
    either_desk.work(run_id, fails=lambda _: False)
    error = failures.loads(either_desk.run(run_id).error or "null")
    assert isinstance(error, BodyStuckError)
    assert len(error.tasks) == len(tasks)
    for told, wanted in zip(error.tasks, tasks, strict=True):
        assert re.fullmatch(wanted, told)
        assert told in str(error)


def test_a_body_that_only_spins_is_stuck(either_desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CALLBACK_LIMIT", 1_000)
    run_id = either_desk.start(spins)
    error = failures.loads(either_desk.run(run_id).error or "null")
    assert isinstance(error, BodyStuckError)
    assert "spins" in str(error)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (opens_a_connection, r"the network, a thread or a process \(the event loop's \w+\(\)\)"),
        (fetches, "the network, a thread or a process|asyncio.timeout|a timer of the event loop"),
        (
            goes_to_a_thread,
            r"the network, a thread or a process \(the event loop's run_in_executor\(\)\)",
        ),
    ],
)
def test_a_body_that_leaves_the_durable_world_fails_and_says_to_use_a_step(
    home: Installation, body: Any, what: str
) -> None:
    error = failure_of(start_sync(body))

    assert isinstance(error, BodyAwaitError)
    with pytest.raises(
        BodyAwaitError, match=rf"{what}.*(Move it into a @step and await that|timeout=|ckworkflow)"
    ):
        raise error


@workflow
async def starts_in_place() -> None:
    await echo(start_sync(one_step).run_id)


@workflow
async def asks_for_a_run() -> None:
    await get_run("some id")


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (starts_in_place, r"^start_sync\(\) cannot be used here: .*Use `await start"),
        (asks_for_a_run, r"^get_run\(\) cannot be used here: .*Call it in a @step"),
    ],
)
def test_a_body_that_starts_or_asks_for_a_run_fails_and_starts_nothing(
    home: Installation, body: Any, what: str
) -> None:
    with pytest.raises(HookContextError, match=what):
        raise failure_of(start_sync(body))
    assert count_runs(home) == 1


@workflow
async def passes_an_object() -> None:
    await echo({"deep": [object()]})


@workflow
async def passes_a_discord_object() -> None:
    await echo(discord.Object(7))


@pytest.mark.parametrize(
    ("body", "path", "hint"),
    [
        (passes_an_object, "args[0]['deep'][0]", "Pass JSON values"),
        (passes_a_discord_object, "args[0]", "Pass its id instead"),
    ],
)
def test_an_argument_of_a_step_that_cannot_be_stored_fails_the_run_and_names_its_path(
    home: Installation, body: Any, path: str, hint: str
) -> None:
    error = failure_of(start_sync(body))

    assert isinstance(error, UnserializableValueError)
    assert str(error).startswith((f"{path} is a ", f"{path} is an "))
    assert hint in str(error)
    assert error.path == path


@workflow
async def keeps_an_opaque_result() -> Any:
    return await opaque()


def test_a_result_of_a_step_that_cannot_be_stored_fails_at_once_and_names_its_path(
    running: Installation,
) -> None:
    run = start_sync(keeps_an_opaque_result)
    error = failure_of(run)

    assert isinstance(error, FatalError)
    assert "opaque failed: UnserializableValueError: result['rows'][1]['thing'] is an object" in str(
        error
    )
    assert isinstance(error.__cause__, UnserializableValueError)
    assert error.__cause__.path == "result['rows'][1]['thing']"
    assert [each.attempt for each in run.steps()] == [1]


@workflow
async def returns_an_object() -> Any:
    return {"thing": [object()]}


def test_a_result_of_a_body_that_cannot_be_stored_fails_the_run(home: Installation) -> None:
    error = failure_of(start_sync(returns_an_object))

    assert isinstance(error, UnserializableValueError)
    assert error.path == "result['thing'][0]"


@workflow
async def sleeps(how_long: Any) -> str:
    await sleep(how_long)
    return "slept"


NAIVE = datetime(2030, 1, 1)  # noqa: DTZ001  # the mistake under test

BAD_SLEEPS = [
    ("1 month", "a month has no fixed length; say '30 days'"),
    (-1, "it is negative"),
    ("-5 s", "it is negative"),
    (timedelta(seconds=-1), "it is negative"),
    (NAIVE, r"it has no time zone.*datetime\.now\(UTC\)"),
    ("100", "the number 100 has no unit"),
    ("soon", "'soon' is not a number and a unit"),
    (float("nan"), "it is not a finite number"),
    (True, "a bool is not a duration"),
]  # fmt: skip


@pytest.mark.parametrize(("how_long", "reason"), BAD_SLEEPS)
def test_a_bad_sleep_raises_at_the_call(how_long: Any, reason: str) -> None:
    with pytest.raises(InvalidDurationError, match=f"is not a time span: {reason}.*Give text such as"):
        sleep(how_long)


@pytest.mark.parametrize(("how_long", "reason"), BAD_SLEEPS)
def test_a_bad_sleep_in_a_body_fails_the_run_with_that_error(
    home: Installation, how_long: Any, reason: str
) -> None:
    run = start_sync(sleeps, how_long)

    with pytest.raises(InvalidDurationError, match=reason):
        raise failure_of(run)
    assert run.steps() == []


@pytest.mark.parametrize("how_long", [0, "0s", timedelta(), datetime(2020, 1, 1, tzinfo=UTC)])
def test_a_sleep_of_nothing_or_until_the_past_completes_at_once(
    running: Installation, how_long: Any
) -> None:
    assert start_sync(sleeps, how_long).return_value(10) == "slept"


# --- hooks where they have no meaning ------------------------------------------------------------------

HOOKS = (use_client, use_commandkit, use_step)


@workflow
async def calls_a_hook(index: int) -> None:
    HOOKS[index]()


@step
async def asks_for_the_client() -> int:
    return (await use_client().fetch_user(7)).id


@step
def asks_for_the_client_in_a_thread() -> None:
    use_client()


@step
async def calls_a_workflow() -> None:
    await one_step(1)


@workflow
async def runs_step(name: str) -> None:
    await {
        "client": asks_for_the_client,
        "sync": asks_for_the_client_in_a_thread,
        "workflow": calls_a_workflow,
    }[name]()


@pytest.mark.parametrize("index", range(len(HOOKS)))
def test_a_hook_in_a_body_fails_the_run_and_says_to_use_a_step(home: Installation, index: int) -> None:
    with pytest.raises(
        HookContextError, match=rf"^{HOOKS[index].__name__}\(\) cannot be used here: this is the body"
    ):
        raise failure_of(start_sync(calls_a_hook, index))


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("sync", HookContextError, "this step is not async.*Make the step an `async def`"),
        ("workflow", WorkflowCallError, "was called like a function.*start a run"),
    ],
)
def test_a_step_that_no_attempt_can_help_uses_one_and_says_what_to_do(
    running: Installation, name: str, kind: type[BaseException], message: str
) -> None:
    run = start_sync(runs_step, name)
    error = failure_of(run)

    assert isinstance(error, FatalError)
    with pytest.raises(kind, match=message):
        raise error.__cause__ or error
    assert [each.attempt for each in run.steps()] == [1]
    assert run.status() is RunStatus.FAILED


@workflow
async def forgets_to_await() -> None:
    await echo(1)
    if await echo(2) == 2:
        echo("never")  # type: ignore[unused-coroutine]
        sleep("1 hour")  # type: ignore[unused-coroutine]


def test_a_forgotten_await_fails_the_run_and_names_the_call_and_its_line(running: Installation) -> None:
    run = start_sync(forgets_to_await)
    line = forgets_to_await.function.__code__.co_firstlineno + 4

    error = failure_of(run)

    assert isinstance(error, NotAwaitedError)
    assert f"echo (line {line}) was called but not awaited" in str(error)
    assert [step.status for step in run.steps()] == [NodeStatus.COMPLETED] * 2
