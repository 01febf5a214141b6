from dataclasses import dataclass
from datetime import datetime

from ckworkflow import step
from ckworkflow.hooks import use_client


@dataclass(frozen=True)
class MemberInfo:
    """What verification needs to know. A `discord.Member` cannot be stored; this can."""

    user_id: str
    name: str
    is_bot: bool
    created_at: datetime
    joined_at: datetime | None


@step
async def fetch_member(user_id: str, guild_id: str) -> MemberInfo:
    guild = await use_client().fetch_guild(int(guild_id))
    member = await guild.fetch_member(int(user_id))  # a stranger: 10007, which is fatal by default
    return MemberInfo(user_id, member.name, member.bot, member.created_at, member.joined_at)
