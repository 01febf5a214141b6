"""Options of slash commands: from a test's Python values to what Discord sends to the bot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import payloads
from .wire import FakeDiscordError, Payload

if TYPE_CHECKING:
    from .state import Guild, World

SUB_COMMAND, SUB_GROUP, STRING, INTEGER, BOOLEAN, USER, CHANNEL, ROLE, MENTIONABLE, NUMBER = range(1, 11)
_REFERENCES = {"user": USER, "channel": CHANNEL, "role": ROLE}


def command_data(world: World, name: str, values: Mapping[str, object], guild: Guild | None) -> Payload:
    """The `data` of a slash command's interaction.

    Args:
        world: Where commands are registered and references resolve.
        name: The command; for a subcommand, all words (`config set`).
        values: Options by name; `{"$user": id}`, `{"$channel": id}`, `{"$role": id}` refer.
        guild: Where it is used, or `None` in a DM.

    Raises:
        FakeDiscordError: The bot has registered commands, and this is none of them.
    """
    words = name.split()
    command_id, registered, is_of_guild = _registered(world, words[0], guild)
    specs = registered.get("options", []) if registered else []
    path: list[tuple[str, int]] = []
    for depth, word in enumerate(words[1:], start=1):
        spec = next((each for each in specs if each["name"] == word), None)
        if spec is None and registered is not None:
            raise FakeDiscordError(f"Command /{words[0]} has no subcommand {word!r}.")
        kind = spec["type"] if spec else (SUB_GROUP if depth < len(words) - 1 else SUB_COMMAND)
        path.append((word, kind))
        specs = spec.get("options", []) if spec else []
    resolved: Payload = {}
    types = {each["name"]: each["type"] for each in specs}
    if registered is not None:
        _check_names(name, specs, values)
    options = [
        _option(world, guild, resolved, key, value, types.get(key)) for key, value in values.items()
    ]
    for word, kind in reversed(path):
        options = [{"name": word, "type": kind, "options": options}]
    data: Payload = {
        "id": str(command_id),
        "name": words[0],
        "type": 1,
        "options": options,
        "resolved": resolved,
    }
    if is_of_guild and guild is not None:
        data["guild_id"] = str(guild.id)
    return data


def _registered(world: World, name: str, guild: Guild | None) -> tuple[int, Payload | None, bool]:
    for guild_id in (guild.id if guild else None, None):
        for key, body in world.commands.get(guild_id, {}).items():
            if body["name"] == name and body.get("type", 1) == 1:
                return key, body, guild_id is not None
    known = sorted(body["name"] for table in world.commands.values() for body in table.values())
    if known:
        raise FakeDiscordError(
            f"The bot has registered no command /{name} here; it has {', '.join(known)}. Sync the tree "
            f"after adding it."
        )
    # A bot that never synced its tree is let off: most tests have no need of that call.
    return world.new_id(), None, False


def _check_names(name: str, specs: list[Payload], values: Mapping[str, object]) -> None:
    known = {each["name"] for each in specs}
    unknown = [key for key in values if key not in known]
    missing = [each["name"] for each in specs if each.get("required") and each["name"] not in values]
    if unknown or missing:
        raise FakeDiscordError(
            f"Discord would not send /{name} like that: unknown options {unknown}, missing {missing}."
        )


def _option(
    world: World, guild: Guild | None, resolved: Payload, key: str, value: Any, kind: int | None
) -> Payload:
    if isinstance(value, Mapping):
        ((word, reference),) = value.items()
        value, kind = reference, kind or _REFERENCES[word.removeprefix("$")]
    if kind is None:
        kind = _guess(key, value)
    if kind in (USER, CHANNEL, ROLE, MENTIONABLE):
        _resolve(world, guild, resolved, int(value))
        value = str(value)
    return {"name": key, "type": kind, "value": value}


def _guess(key: str, value: object) -> int:
    for python, kind in ((bool, BOOLEAN), (int, INTEGER), (float, NUMBER), (str, STRING)):
        if isinstance(value, python):
            return kind
    raise FakeDiscordError(f"Option {key!r} cannot be {value!r}.")


def _resolve(world: World, guild: Guild | None, resolved: Payload, reference: int) -> None:
    key = str(reference)
    if reference in world.users:
        resolved.setdefault("users", {})[key] = payloads.user(world.users[reference])
        if guild is not None and reference in guild.members:
            member = payloads.resolved_member(world, guild, guild.members[reference])
            resolved.setdefault("members", {})[key] = member
    elif reference in world.channels:
        channel = payloads.channel(world, world.channels[reference]) | {"permissions": "0"}
        resolved.setdefault("channels", {})[key] = channel
    elif guild is not None and reference in guild.roles:
        resolved.setdefault("roles", {})[key] = payloads.role(guild.roles[reference])
    else:
        raise FakeDiscordError(f"Nothing here has the id {reference}.")
