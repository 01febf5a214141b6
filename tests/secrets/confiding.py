"""Steps whose arguments, results and failures are full of secrets, in every way in which a step can fail."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from ckworkflow import FatalError, RetryableError, step, workflow
from ckworkflow.hooks import use_step


def watch_logs() -> None:
    """Write down all that a log handler could get: also what formats leave out (`extra`, arguments)."""
    call_handlers = logging.Logger.callHandlers

    def call(self: logging.Logger, record: logging.LogRecord) -> None:
        with Path(os.environ["RECORDS"]).open("a", encoding="utf-8") as file:
            file.write(f"{record.getMessage()} {record.__dict__!r}\n")
            if record.exc_info:
                file.write("".join(traceback.format_exception(*record.exc_info)))
        call_handlers(self, record)

    logging.Logger.callHandlers = call  # type: ignore[method-assign]


watch_logs()


def told(text: str, *tokens: str) -> str:
    """A message that quotes what it was told, as errors do."""
    interaction, bot = tokens
    return f"{text!r}: POST /webhooks/1/{interaction} (token {interaction}) as Bot {bot}"


class Refused(Exception):
    """An error of the user's with attributes."""

    def __init__(self, text: str, *tokens: str) -> None:
        super().__init__(text, *tokens)
        self.code, self.kind = f"code of {tokens[1]}", "refused"


@step
async def keep(text: str, *tokens: str) -> dict[str, str]:
    return {"kept": text}


@step
def stumble(text: str, *tokens: str) -> str:
    if use_step().attempt == 1:
        raise RetryableError(told(text, *tokens), kind="busy")
    return text


@step(max_retries=1, retry_delay=0)
async def give_up(text: str, *tokens: str) -> None:
    try:
        raise ValueError(told(text, *tokens))
    except ValueError as error:
        raise Refused(text, *tokens) from error


@step
async def refuse(text: str, *tokens: str) -> None:
    details = {"text": text, "tokens": list(tokens)}
    raise FatalError(told(text, *tokens), code=50007, kind="dm_blocked", status=403, details=details)


@step(max_retries=0)
def leave(text: str, *tokens: str) -> None:
    sys.exit(told(text, *tokens))


@step(max_retries=0)
async def return_junk(text: str, *tokens: str) -> Any:
    return {text: object()}


@step(max_retries=0)
async def group_up(text: str, *tokens: str) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(refuse(text, *tokens))


@step
def wave() -> None:
    pass


FAILING = (give_up, refuse, leave, return_junk, group_up)


@workflow
async def confide(text: str, interaction: str, bot: str) -> None:
    """Every failure once at the head of a message, and once behind another step."""
    kept = await keep(text, interaction, bot)
    await stumble(kept["kept"], interaction, bot)
    for failing in FAILING:
        for is_behind in (False, True):
            try:
                if is_behind:
                    await keep(text, interaction, bot)
                await failing(text, interaction, bot)
            except FatalError:
                pass
    raise FatalError(told(text, interaction, bot))


@workflow
async def confide_at_once(text: str, interaction: str, bot: str) -> None:
    """The first trace fails."""
    raise ValueError(told(text, interaction, bot))


@workflow
async def confide_in_a_group(text: str, interaction: str, bot: str) -> None:
    """A member of a group fails, and the body does not handle it."""
    await asyncio.gather(*[failing(text, interaction, bot) for failing in FAILING])


@workflow
async def goodbye() -> None:
    """Starts when the others have ended: who has heard of it has heard of them."""
    await wave()
