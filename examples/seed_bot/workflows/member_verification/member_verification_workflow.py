"""The workflow orchestrates, the steps do the work."""

from typing import TypedDict

from ckworkflow import workflow

from .steps.fetch_member import fetch_member
from .steps.verify_member import verify_member


class Verification(TypedDict):
    user_id: str
    verified: bool
    status: str


@workflow
async def member_verification_workflow(user_id: str, guild_id: str) -> Verification:
    member = await fetch_member(user_id, guild_id)
    verified = await verify_member(member)
    return {"user_id": user_id, "verified": verified, "status": "completed"}
