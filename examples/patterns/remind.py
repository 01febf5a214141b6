"""Remind until answered: a question, a reminder each day, and at last nobody's word for it."""

from ckworkflow import create_hook, step, workflow


@step
async def ask(user_id: str, question: str) -> None: ...


@step
async def remind(user_id: str, number: int) -> None: ...


@workflow
async def ask_until_answered(user_id: str, question: str, most: int = 3) -> str | None:
    async with create_hook(f"answer:{user_id}") as answers:
        await ask(user_id, question)
        for number in range(1, most + 1):
            try:
                answer: str = await answers.next(timeout="1 day")
            except TimeoutError:
                await remind(user_id, number)
            else:
                return answer
    return None
