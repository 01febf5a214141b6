from datetime import UTC, datetime
from typing import TypedDict

from ckworkflow import step
from ckworkflow.hooks import use_client, use_commandkit


class Stats(TypedDict):
    joined_at: str | None
    roles: int
    last_updated: str


class MemberStats(TypedDict):
    user_id: str
    stats: Stats


@step
async def update_member_stats(user_id: str, guild_id: str) -> MemberStats:
    """Count a member's roles and keep that in the store.

    The guild is fetched first and the member from it: a member of a guild that discord.py does not know
    whole would have no roles, silently.
    """
    client = use_client()
    commandkit = use_commandkit()
    guild = await client.fetch_guild(int(guild_id))
    member = await guild.fetch_member(int(user_id))
    stats = Stats(
        joined_at=member.joined_at.isoformat() if member.joined_at else None,
        roles=len(member.roles),  # with @everyone, as in discord.js
        last_updated=datetime.now(UTC).isoformat(),
    )
    # Not a Map of this process: the store lives in the workflow database, so the bot reads it too.
    await commandkit.store.set(f"member:{user_id}:stats", stats)
    return MemberStats(user_id=user_id, stats=stats)
