"""Approval with a deadline: a run waits for a click, for two days at most.

The view's button sends it: `await decision.resume(f"order:{order_id}", Decision(...), dedup_key=str(interaction.id))`.
"""

from dataclasses import dataclass

from ckworkflow import define_hook, step, workflow


@dataclass
class Decision:
    is_approved: bool
    by: str


decision = define_hook("decision", Decision)


@step
async def post_buttons(order_id: str) -> str:
    return f"message about {order_id}"


@step
async def edit_message(message: str, text: str) -> None: ...


@workflow
async def approve(order_id: str) -> bool:
    async with decision.create(f"order:{order_id}") as answers:
        message = await post_buttons(order_id)
        try:
            answer = await answers.next(timeout="2 days")
        except TimeoutError:
            await edit_message(message, "nobody answered")
            return False
    await edit_message(message, f"{'approved' if answer.is_approved else 'refused'} by {answer.by}")
    return answer.is_approved
