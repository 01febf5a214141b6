"""What the messages are about: private words in arguments, results and in between."""

from __future__ import annotations

import asyncio

from ckworkflow import RetryableError, sleep, step, workflow
from ckworkflow.hooks import use_client, use_step


@step
async def greet_user(user_id: str, again: bool = False) -> str:
    user = await use_client().fetch_user(int(user_id))
    message = await user.send("Hello again!" if again else "Hello!")
    return f"result-{message.content}"


@step
def look(word: str) -> str:
    return f"result-{word}"


@step
def stumble(word: str) -> str:
    if use_step().attempt == 1:
        raise RetryableError("not yet")
    return word


@workflow
async def greet(user_id: str):
    await greet_user(user_id)
    await sleep("2 seconds")  # more than a message may come early without being sent again
    await greet_user(user_id, again=True)
    return {"success": True}


@workflow
async def every_shape(word: str):
    first = await look(word)
    left, right = await asyncio.gather(look(first), look(word))
    joined = await look(left)
    if await look(right) == joined:  # a boundary: from here on it is another segment
        return None
    for _ in range(2):
        joined = await look(joined)
    return [joined, {"word": word}]


@workflow
async def with_a_retry(word: str):
    return await stumble(await look(word))
