"""Routes about interactions: the first answer, follow-ups, and the registration of commands.

An interaction's own token is the key here; an unknown or expired one answers 401 with 50027, which
says nothing of the bot's token.
"""

from __future__ import annotations

from ckworkflow.testing.fake_discord import payloads
from ckworkflow.testing.fake_discord.routes.messages import (
    check_message_body,
    edited,
    fill,
    post,
    read_message_body,
    remove,
)
from ckworkflow.testing.fake_discord.routing import Request, Router
from ckworkflow.testing.fake_discord.state import Interaction, Message, World
from ckworkflow.testing.fake_discord.wire import (
    EPHEMERAL,
    INTERACTION_TOKEN_SECONDS,
    LOADING,
    ApiError,
    Payload,
    invalid_form,
)

route = Router()
_MESSAGE, _DEFER, _DEFER_UPDATE, _UPDATE, _CHOICES, _MODAL = 4, 5, 6, 7, 8, 9


@route("POST", "/interactions/{interaction_id}/{interaction_token}/callback", needs_token=False)
def answer(world: World, request: Request) -> Payload | None:
    interaction = world.interactions.get(request.params["interaction_token"])
    if interaction is None or interaction.id != request.id("interaction_id"):
        raise ApiError(10062)
    if interaction.answered_with is not None:
        raise ApiError(40060)
    if world.now() - interaction.at > world.interaction_seconds:
        raise ApiError(10062)
    body, attachments = read_message_body(request)
    kind, data = body.get("type"), body.get("data") or {}
    if kind not in (_MESSAGE, _DEFER, _DEFER_UPDATE, _UPDATE, _CHOICES, _MODAL):
        raise invalid_form("type", "BASE_TYPE_CHOICES", "Value must be one of (4, 5, 6, 7, 8, 9).")
    if kind == _MESSAGE:
        check_message_body(data, attachments)
    if kind == _MODAL and interaction.type == 5:
        raise invalid_form("type", "BASE_TYPE_CHOICES", "Value must be one of (4, 5, 6, 7).")
    message = _first_answer(world, interaction, kind, data, attachments)
    interaction.answered_with, interaction.answered_at = kind, world.now()
    world.changed()
    if request.query.get("with_response") not in ("1", "true"):
        return None
    return _callback(world, interaction, kind, message)


def _first_answer(
    world: World, interaction: Interaction, kind: int, data: Payload, attachments: list[Payload]
) -> Message | None:
    if kind in (_MESSAGE, _DEFER):
        message = _new_message(world, interaction, data)
        if kind == _MESSAGE:
            fill(message, data, attachments)
        else:
            message.flags |= LOADING
        interaction.original_id = message.id
        post(world, message)
        return message
    if kind in (_UPDATE, _DEFER_UPDATE):
        if interaction.message_id is None:
            raise invalid_form("type", "BASE_TYPE_CHOICES", "This interaction has no message to update.")
        interaction.original_id = interaction.message_id
        message = world.find_message(interaction.message_id)
        if kind == _UPDATE:
            check_message_body(data, attachments, is_new=False)
            fill(message, data, attachments)
            edited(world, message)
        return message
    if kind == _MODAL:
        interaction.modal = data
    else:
        interaction.choices = data.get("choices", [])
    return None


def _new_message(world: World, interaction: Interaction, data: Payload) -> Message:
    is_ephemeral = bool((data.get("flags") or 0) & EPHEMERAL)
    message = Message(
        world.new_id(),
        interaction.channel_id,
        world.bot.id,
        "",
        world.now(),
        type=20,
        flags=EPHEMERAL if is_ephemeral else 0,
        interaction_id=interaction.id,
        ephemeral_for=interaction.user_id if is_ephemeral else None,
    )
    interaction.message_ids.append(message.id)
    return message


def _callback(world: World, interaction: Interaction, kind: int, message: Message | None) -> Payload:
    about: Payload = {"id": str(interaction.id), "type": interaction.type}
    resource: Payload = {"type": kind}
    if message is not None:
        about |= {
            "response_message_id": str(message.id),
            "response_message_loading": bool(message.flags & LOADING),
            "response_message_ephemeral": message.ephemeral_for is not None,
        }
        resource["message"] = payloads.message(world, message)
    return {"interaction": about, "resource": resource}


# --- follow-ups ------------------------------------------------------------------------------------


def _interaction(world: World, request: Request) -> Interaction:
    interaction = world.interactions.get(request.params["token"])
    if interaction is None or request.id("application_id") != world.bot.id:
        raise ApiError(50027)
    if world.now() - interaction.at > INTERACTION_TOKEN_SECONDS:
        raise ApiError(50027)
    if interaction.answered_with is None:
        raise ApiError(10015)
    return interaction


def _answer_message(world: World, request: Request, interaction: Interaction) -> Message:
    name = request.params["message_id"]
    if name == "@original":
        if interaction.original_id is None:
            raise ApiError(10008)
        wanted = interaction.original_id
    else:
        wanted = request.id("message_id")
    message = world.messages.get(interaction.channel_id, {}).get(wanted)
    if message is None or (wanted not in interaction.message_ids and wanted != interaction.original_id):
        raise ApiError(10008)
    return message


@route("POST", "/webhooks/{application_id}/{token}", needs_token=False)
def follow_up(world: World, request: Request) -> Payload:
    interaction = _interaction(world, request)
    body, attachments = read_message_body(request)
    check_message_body(body, attachments)
    original = world.messages[interaction.channel_id].get(interaction.original_id or 0)
    if original is not None and original.flags & LOADING:
        # Discord puts the first follow-up of a deferred answer in the place of "is thinking…".
        is_private = original.flags & EPHEMERAL
        fill(original, body, attachments)
        original.flags = (original.flags & ~LOADING) | is_private
        return edited(world, original)
    message = _new_message(world, interaction, body)
    fill(message, body, attachments)
    return post(world, message)


_ANSWER = "/webhooks/{application_id}/{token}/messages/{message_id}"


@route("GET", _ANSWER, needs_token=False)
def get_answer(world: World, request: Request) -> Payload:
    return payloads.message(world, _answer_message(world, request, _interaction(world, request)))


@route("PATCH", _ANSWER, needs_token=False)
def edit_answer(world: World, request: Request) -> Payload:
    message = _answer_message(world, request, _interaction(world, request))
    body, attachments = read_message_body(request)
    check_message_body(body, attachments, is_new=False)
    body.pop("flags", None)
    fill(message, body, attachments)
    message.flags &= ~LOADING
    return edited(world, message)


@route("DELETE", _ANSWER, needs_token=False)
def delete_answer(world: World, request: Request) -> None:
    remove(world, _answer_message(world, request, _interaction(world, request)))


# --- registration of commands ------------------------------------------------------------------------

_GLOBAL = "/applications/{application_id}/commands"
_GUILD = "/applications/{application_id}/guilds/{guild_id}/commands"


def _commands(world: World, request: Request) -> tuple[int | None, dict[int, Payload]]:
    if request.id("application_id") != world.bot.id:
        raise ApiError(20012, "You are not authorized to perform this action", status=403)
    guild_id = world.require_guild(request.id("guild_id")).id if "guild_id" in request.params else None
    return guild_id, world.commands.setdefault(guild_id, {})


@route("GET", _GLOBAL)
@route("GET", _GUILD)
def list_commands(world: World, request: Request) -> list[Payload]:
    guild_id, commands = _commands(world, request)
    return [payloads.command(world, guild_id, key, body) for key, body in commands.items()]


@route("PUT", _GLOBAL)
@route("PUT", _GUILD)
def replace_commands(world: World, request: Request) -> list[Payload]:
    _, commands = _commands(world, request)
    ids = {body["name"]: key for key, body in commands.items()}
    commands.clear()
    for body in request.json or []:
        commands[ids.get(body["name"]) or world.new_id()] = body
    world.changed()
    return list_commands(world, request)


@route("POST", _GLOBAL)
@route("POST", _GUILD)
def add_command(world: World, request: Request) -> Payload:
    guild_id, commands = _commands(world, request)
    ids = {body["name"]: key for key, body in commands.items()}
    key = ids.get(request.body["name"]) or world.new_id()
    commands[key] = request.body
    return payloads.command(world, guild_id, key, commands[key])


@route("GET", _GLOBAL + "/{command_id}")
@route("GET", _GUILD + "/{command_id}")
def get_command(world: World, request: Request) -> Payload:
    guild_id, commands = _commands(world, request)
    key = request.id("command_id")
    if key not in commands:
        raise ApiError(10063)
    return payloads.command(world, guild_id, key, commands[key])


@route("DELETE", _GLOBAL + "/{command_id}")
@route("DELETE", _GUILD + "/{command_id}")
def delete_command(world: World, request: Request) -> None:
    _, commands = _commands(world, request)
    if commands.pop(request.id("command_id"), None) is None:
        raise ApiError(10063)
