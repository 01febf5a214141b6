"""Checks that several workflows make first."""

from ckworkflow import FatalError, step


@step
def validate_input(user_id: str, guild_id: str) -> None:
    """Refuse what cannot be Discord ids. A step need not be async: this one runs in a thread."""
    for name, value in {"user_id": user_id, "guild_id": guild_id}.items():
        if not value.isdecimal():
            raise FatalError(f"{name} is {value!r}, which is not a Discord id", kind="invalid")
