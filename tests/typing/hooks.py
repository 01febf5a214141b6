"""What type checkers say of hooks. Read by them, never run: see `test_typing`."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, TypedDict, assert_type

from pydantic import BaseModel

from ckworkflow import (
    Hook,
    HookDefinition,
    HookInfo,
    create_hook,
    define_hook,
    get_hook,
    get_hook_sync,
    resume_hook,
    resume_hook_sync,
    workflow,
)


@dataclass
class Decision:
    choice: str


class Vote(TypedDict):
    option: str


class Order(BaseModel):
    amount: int


decision = define_hook("decision", Decision)
vote = define_hook("vote", Vote)
order = define_hook("order", Order)
anything = define_hook("anything")

assert_type(decision, HookDefinition[Decision])
assert_type(vote, HookDefinition[Vote])
assert_type(order, HookDefinition[Order])
assert_type(anything, HookDefinition[Any])
define_hook(5)  # type: ignore[call-overload]
define_hook("number", 5)  # type: ignore[call-overload]


@workflow
async def waiting() -> str:
    hook = decision.create("t", metadata={"order": 1}, expires="1 hour")
    assert_type(hook, Hook[Decision])
    assert_type(hook.token, str)
    assert_type(await hook, Decision)
    assert_type(await hook.next(timeout=5), Decision)
    assert_type(hook.pending(), list[Decision])
    assert_type(await hook.close(), None)
    async for each in hook:
        assert_type(each, Decision)
    async with vote.create() as votes:
        assert_type(votes, Hook[Vote])
        first, second = await asyncio.gather(votes.next(), decision.create().next())
        assert_type(first, Vote)
        assert_type(second, Decision)
    task = asyncio.create_task(hook.next())
    assert_type(await task, Decision)
    assert_type(await create_hook(), Any)
    create_hook(5)  # type: ignore[arg-type]
    decision.create(expires=[])  # type: ignore[arg-type]
    return (await hook).choice


async def sending() -> None:
    assert_type(await decision.resume("t", Decision("yes")), HookInfo)
    await decision.resume("t", Decision("yes"), dedup_key="click")
    await decision.resume("t", {"choice": "yes"})  # type: ignore[arg-type]
    await decision.resume(Decision("yes"))  # type: ignore[arg-type, call-arg]
    await vote.resume("t", {"option": "red"})
    await vote.resume("t", {"colour": "red"})  # type: ignore[typeddict-item, typeddict-unknown-key]
    await order.resume("t", Order(amount=1))
    await anything.resume("t", object())
    assert_type(await resume_hook("t", {"any": "thing"}, dedup_key="1"), HookInfo)
    assert_type(await get_hook("t"), HookInfo)


def sending_synchronously() -> None:
    assert_type(decision.resume_sync("t", Decision("yes")), HookInfo)
    assert_type(resume_hook_sync("t", 1), HookInfo)
    assert_type(get_hook_sync("t").run_id, str)  # type: ignore[assert-type]
