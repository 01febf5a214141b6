from datetime import UTC, datetime, timedelta

from ckworkflow import step

from .fetch_member import MemberInfo

MINIMUM_AGE = timedelta(days=7)


@step
def verify_member(member: MemberInfo) -> bool:
    """Accept people whose account is at least a week old. The clock is read here, in a step."""
    return not member.is_bot and datetime.now(UTC) - member.created_at >= MINIMUM_AGE
