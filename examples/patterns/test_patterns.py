"""Each pattern in seconds, with days in them. Copy one with its test."""

import pytest

import approval
import campaign
import debounce
import fan_out
import poll
import polling
import remind
import saga
from ckworkflow import FatalError, RunCancelledError, get_run, resume_hook, start
from ckworkflow.testing import Environment


def fail(*_: object) -> None:
    raise FatalError("no")


async def test_saga(workflow_env: Environment) -> None:
    run = await start(saga.buy_ticket, "gig", "ada", 500)
    assert await run.return_value() == "seat for ada at gig"

    undone: list[str] = []
    with (
        workflow_env.replaced(saga.send_ticket, fail),
        workflow_env.replaced(saga.refund, undone.append),
        workflow_env.replaced(saga.release_seat, undone.append),
    ):
        run = await start(saga.buy_ticket, "gig", "ada", 500)
        assert await run.return_value() == "undone"
    assert undone == ["payment of 500 by ada", "seat for ada at gig"]


async def test_approval(workflow_env: Environment) -> None:
    run = await start(approval.approve, "7")
    for _ in range(2):  # a double click
        await approval.decision.resume("order:7", approval.Decision(True, "bob"), dedup_key="click")
    assert await run.return_value() is True

    run = await start(approval.approve, "8")
    await workflow_env.advance("2 days")
    assert await run.return_value() is False


async def test_polling(workflow_env: Environment) -> None:
    states = iter([None, None, "built"])
    with workflow_env.replaced(polling.look, lambda _: next(states)):
        run = await start(polling.wait_for_job, "job")
        await workflow_env.advance("1 minute")
        assert await run.return_value() == "built"
    with workflow_env.replaced(polling.look, lambda _: None):
        run = await start(polling.wait_for_job, "job")
        await workflow_env.advance("1 day")
        assert await run.return_value() == "job took too long"


async def test_fan_out(workflow_env: Environment) -> None:
    def measure(channel_id: str) -> int:
        if channel_id == "gone":
            raise FatalError("unknown channel")
        return 10

    with workflow_env.replaced(fan_out.measure, measure):
        run = await start(fan_out.report, ["one", "gone", "two"])
        assert await run.return_value() == "20 messages, 1 channels failed"


async def test_poll(workflow_env: Environment) -> None:
    run = await start(poll.poll, "lunch")
    for user_id, option in [("ada", "pizza"), ("bob", "salad"), ("ada", "salad")]:
        await poll.vote.resume("poll:lunch", {"user_id": user_id, "option": option})
        await workflow_env.advance("1 hour")
    await workflow_env.advance("1 day")
    assert await run.return_value() == {"salad": 2}


async def test_campaign(workflow_env: Environment) -> None:
    with workflow_env.replaced(campaign.has_joined, lambda user_id: user_id != "bob"):
        run = await start(campaign.campaign, ["ada", "bob", "cy"])
        await workflow_env.advance("7 days")
        assert await run.return_value() == 2

    run = await start(campaign.campaign, ["ada"])
    await workflow_env.settle()
    await run.cancel(reason="it is over")
    child = await get_run(
        next(step for step in await run.steps() if step.kind == "child").child_run_id or ""
    )
    with pytest.raises(RunCancelledError, match="it is over"):
        await child.return_value()


async def test_debounce(workflow_env: Environment) -> None:
    run = await start(debounce.announce_changes, "news", "one")
    for change in ("two", "three"):
        await workflow_env.advance("59 seconds")
        await resume_hook("changes:news", change)
    await workflow_env.advance("1 minute")
    assert await run.return_value() == 3


async def test_remind(workflow_env: Environment) -> None:
    run = await start(remind.ask_until_answered, "ada", "well?")
    await workflow_env.advance("25 hours")
    await resume_hook("answer:ada", "yes")
    assert await run.return_value() == "yes"

    reminded: list[int] = []
    with workflow_env.replaced(remind.remind, lambda _, number: reminded.append(number)):
        run = await start(remind.ask_until_answered, "bob", "well?")
        await workflow_env.advance("3 days")
        assert await run.return_value() is None
    assert reminded == [1, 2, 3]
