"""What type checkers say of starting runs. Read by them, never run: see `test_typing`.

A line with `type: ignore` must be an error: both checkers refuse an ignore that nothing needs.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import assert_type

from ckworkflow import Run, SyncRun, cancel_runs, get_run, start, start_sync, step, workflow


@step
async def greet(user_id: str) -> None: ...


@workflow
async def greeting(user_id: str, *, times: int = 1) -> dict[str, bool]:
    await greet(user_id)
    return {"success": times > 0}


def plain(user_id: str) -> str:
    return user_id


async def right() -> None:
    run = await start(greeting, "1", times=2)
    assert_type(run, Run[dict[str, bool]])
    assert_type(await run.return_value(timeout=5), dict[str, bool])
    sync_run = start_sync(greeting, "1")
    assert_type(sync_run, SyncRun[dict[str, bool]])
    assert_type(sync_run.return_value(), dict[str, bool])
    assert_type((await get_run("a")).run_id == run.run_id, bool)
    assert_type(await run.cancel(reason="enough", grace="1 minute"), bool)
    assert_type(await run.cancel(grace=timedelta(minutes=1)), bool)
    assert_type(await run.terminate(), bool)
    assert_type(sync_run.cancel(grace=60), bool)
    assert_type(await cancel_runs(greeting, created_before=datetime.now(UTC)), int)
    assert_type(await cancel_runs("flows.greeting", reason="all"), int)


async def wrong() -> None:
    await start(greeting)  # type: ignore[call-arg]
    await start(greeting, 1)  # type: ignore[arg-type]
    await start(greeting, "1", 2)  # type: ignore[call-arg]
    await start(greeting, "1", times="2")  # type: ignore[arg-type]
    await start(greeting, "1", often=True)  # type: ignore[call-arg]
    await start(plain, "1")  # type: ignore[arg-type]
    await start(greet, "1")  # type: ignore[arg-type]
    await start(greeting("1"))  # type: ignore[arg-type]
    start_sync(greeting, 1)  # type: ignore[arg-type]
    run = await start(greeting, "1")
    value: str = await run.return_value()  # type: ignore[assignment]
    print(value)
    await run.cancel("enough")  # type: ignore[call-arg]
    await run.cancel(reason=1)  # type: ignore[arg-type]
    await cancel_runs(greet)  # type: ignore[arg-type]
    await cancel_runs()  # type: ignore[call-arg]
