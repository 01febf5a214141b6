from datetime import timedelta
from typing import Literal, TypedDict

import discord

from ckworkflow import FatalError, RetryableError, step
from ckworkflow.hooks import use_client

Action = Literal["warn", "mute", "kick"]


class ModerationResult(TypedDict):
    user_id: str
    action: Action
    success: bool


@step
async def send_moderation_action(user_id: str, guild_id: str, action: Action) -> ModerationResult:
    """Warn, mute or kick a member.

    The seed page waits a minute after error 50035 and calls it a rate limit. It is not one: 50035 is
    "Invalid Form Body", and a request that Discord cannot read today it cannot read in a minute, so here
    it stays fatal. A rate limit is HTTP status 429. discord.py waits for the short ones by itself, raises
    `RateLimited` for those that are too long to wait for, and an `HTTPException` of status 429 once it has
    tried often enough. Without these lines the default policy would do the same, and would charge the step
    no attempt; they show how a step asks for a delay of its own.
    """
    guild = await use_client().fetch_guild(int(guild_id))
    try:
        member = await guild.fetch_member(int(user_id))  # raises 10007; it never returns None
        if action == "warn":
            await member.send("You have been warned for violating server rules.")
        elif action == "mute":
            await member.timeout(timedelta(hours=1), reason="Violation of server rules")
        else:
            await member.kick(reason="Violation of server rules")
    except discord.RateLimited as error:
        raise RetryableError("Rate limited by Discord", retry_after=error.retry_after) from error
    except discord.HTTPException as error:
        if error.code == 10007:
            raise FatalError("Member not found in guild", code=error.code) from error
        if error.code == 50013:
            raise FatalError("Missing permissions to perform action", code=error.code) from error
        if error.status == 429:
            raise RetryableError("Rate limited by Discord", retry_after="1 minute") from error
        raise
    return {"user_id": user_id, "action": action, "success": True}
