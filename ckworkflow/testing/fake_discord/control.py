"""The control plane: what a test does to the fake, as operations with JSON in and out.

The in-process face and the face of another process both speak it, so a test does not care where the
fake runs. Operations run on the fake's own loop, one at a time.

Not here: the objects that a test sees (`views`, `face`).
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from typing import TYPE_CHECKING, Any

from . import payloads
from .options import command_data
from .routes.guilds import remove_member
from .routes.messages import post, react, remove
from .state import Channel, Guild, Interaction, Member, Message, World, iso
from .wire import CHANNEL_TYPES, ApiError, FakeDiscordError, Payload, permission_bits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .api import RestApi
    from .faults import Fault
    from .gateway import Gateway

_COMMAND, _COMPONENT, _MODAL = 2, 3, 5
_INPUT_TYPES = frozenset({4, 3, 5, 6, 7, 8, 19})


class ControlPlane:
    """Operations on one fake. Every public method is one, named as the control API names it."""

    def __init__(self, world: World, gateway: Gateway, api: RestApi, info: Payload) -> None:
        self._world, self._gateway, self._api, self._info = world, gateway, api, info
        self._changed = asyncio.Event()
        world.on_change = self._changed.set

    async def run(self, name: str, arguments: Mapping[str, object]) -> object:
        """Carry out one operation.

        Raises:
            FakeDiscordError: It cannot be done, or there is no such operation.
        """
        operation = getattr(self, name, None) if name.isidentifier() and name[0] != "_" else None
        if operation is None or name == "run":
            raise FakeDiscordError(f"The control API knows no operation {name!r}.")
        try:
            result = operation(**arguments)
            return await result if asyncio.iscoroutine(result) else result
        except ApiError as error:
            raise FakeDiscordError(f"{name}: {error.message}") from error

    # --- the fake itself -----------------------------------------------------------------------

    def info(self) -> Payload:
        return self._info | {
            "token": self._world.token,
            "bot": payloads.user(self._world.bot),
            "version": self._world.version,
        }

    async def changed(self, since: int, seconds: float) -> int:
        """Wait until the world is newer than `since`, at most `seconds`; the version then."""
        loop = asyncio.get_running_loop()
        end = loop.time() + min(seconds, 30.0)
        while self._world.version <= since and loop.time() < end:
            self._changed.clear()
            try:
                async with asyncio.timeout_at(end):
                    await self._changed.wait()
            except TimeoutError:
                break
        # Others may wait on the same event: they all look again.
        return self._world.version

    def configure(self, **settings: float) -> None:
        for name, value in settings.items():
            if name not in ("interaction_seconds", "shards"):
                raise FakeDiscordError(f"There is no setting {name!r}.")
            setattr(self._world, name, value)

    def add_token(self, token: str | None = None) -> str:
        return self._world.add_token(token)

    def revoke_token(self, token: str) -> None:
        self._world.tokens.discard(token)
        self._world.changed()

    def sessions(self) -> list[Payload]:
        return [
            {
                "id": each.id,
                "intents": each.intents,
                "connected": each.socket is not None,
                "shard": each.shard,
            }
            for each in self._gateway.sessions.values()
        ]

    def drop_gateway(self, code: int = 4000, resumable: bool = True) -> int:
        return self._gateway.drop(code, resumable=resumable)

    def calls(self, since: int = 0) -> list[Payload]:
        return [call.to_json() for call in self._api.calls[since:]]

    def fail(self, method: str, route: str, **options: Any) -> int:
        return self._api.faults.add(method, route, **options).id

    def fault(self, fault_id: int) -> Payload:
        fault: Fault = self._api.faults.get(fault_id)
        return {"hits": fault.hits, "released": fault.released.is_set()}

    def release(self, fault_id: int | None = None) -> None:
        self._api.faults.release(fault_id)

    # --- users, guilds, members ----------------------------------------------------------------

    def add_user(self, name: str, **options: Any) -> Payload:
        return payloads.user(self._world.add_user(name, **options))

    def set_user(self, user: int, accepts_dms: bool) -> None:
        self._world.require_user(user).accepts_dms = accepts_dms

    def user(self, user: int) -> Payload:
        return payloads.user(self._world.require_user(user))

    def add_guild(
        self,
        name: str,
        owner: int | None = None,
        bot_permissions: int | str | list[str] = "administrator",
    ) -> Payload:
        bits = permission_bits(bot_permissions)
        guild = self._world.add_guild(name, owner_id=owner, bot_permissions=bits)
        self._gateway.announce_guild(guild)
        return payloads.guild(self._world, guild, full=True)

    def guild(self, guild: int) -> Payload:
        return payloads.guild(self._world, self._guild(guild), full=True)

    def bans(self, guild: int) -> Payload:
        return {str(key): reason for key, reason in self._guild(guild).bans.items()}

    def add_role(
        self, guild: int, name: str, permissions: int | str | list[str] = 0, position: int | None = None
    ) -> Payload:
        home = self._guild(guild)
        role = self._world.add_role(
            home, name, permissions=permission_bits(permissions), position=position
        )
        data = payloads.role(role)
        self._world.emit("GUILD_ROLE_CREATE", {"guild_id": str(guild), "role": data}, guild_id=guild)
        return data

    def join(self, guild: int, user: int, roles: list[int] | None = None) -> Payload:
        home = self._guild(guild)
        self._world.require_user(user)
        if user in home.bans:
            raise FakeDiscordError(f"User {user} is banned from guild {guild}.")
        member = Member(user, iso(self._world.now()), list(roles or []))
        home.members[user] = member
        data = payloads.member(self._world, member) | {"guild_id": str(guild)}
        if user == self._world.bot.id:
            self._gateway.announce_guild(home)
        else:
            self._world.emit("GUILD_MEMBER_ADD", data, guild_id=guild)
        self._world.changed()
        return data

    def leave(self, guild: int, user: int) -> None:
        home = self._guild(guild)
        self._world.require_member(home, user)
        remove_member(self._world, home, user)
        if user == self._world.bot.id:
            self._world.emit("GUILD_DELETE", {"id": str(guild)}, guild_id=guild)

    def set_roles(self, guild: int, user: int, roles: list[int]) -> None:
        home = self._guild(guild)
        member = self._world.require_member(home, user)
        member.roles = [self._world.require_role(home, each).id for each in roles]
        data = payloads.member(self._world, member) | {"guild_id": str(guild)}
        self._world.emit("GUILD_MEMBER_UPDATE", data, guild_id=guild)
        self._world.changed()

    # --- channels, messages ----------------------------------------------------------------------

    def add_channel(
        self, guild: int, name: str, type: str | int = "text", parent: int | None = None
    ) -> Payload:
        kind = CHANNEL_TYPES[type] if isinstance(type, str) else type
        channel = self._world.add_channel(name, guild=self._guild(guild), type=kind, parent_id=parent)
        data = payloads.channel(self._world, channel)
        self._world.emit("CHANNEL_CREATE", data, guild_id=guild)
        return data

    def delete_channel(self, channel: int) -> None:
        gone = self._channel(channel)
        data = payloads.channel(self._world, gone)
        self._world.remove_channel(gone)
        if gone.thread is None and gone.guild_id is not None:
            self._world.emit("CHANNEL_DELETE", data, guild_id=gone.guild_id)

    def channel(self, channel: int) -> Payload:
        return payloads.channel(self._world, self._channel(channel))

    def dm(self, user: int) -> Payload:
        return payloads.channel(self._world, self._world.dm(user))

    def messages(self, channel: int | None = None, user: int | None = None) -> list[Payload]:
        """The messages of a channel, or of the DM with a user without opening one; oldest first."""
        if user is not None:
            found = [each for each in self._world.channels.values() if each.recipient_id == user]
            channel = found[0].id if found else None
        if channel is None:
            return []
        self._channel(channel)
        return [self._message(each) for each in self._world.messages[channel].values()]

    def message(self, message: int) -> Payload:
        return self._message(self._world.find_message(message))

    def say(self, channel: int, user: int, content: str) -> Payload:
        where = self._channel(channel)
        if where.guild_id is not None:
            self._world.require_member(self._guild(where.guild_id), user)
        message = Message(self._world.new_id(), where.id, user, content, self._world.now())
        post(self._world, message)
        return self._message(message)

    def delete_message(self, message: int) -> None:
        remove(self._world, self._world.find_message(message))

    def react(self, message: int, user: int, emoji: str, has_it: bool = True) -> None:
        react(self._world, self._world.find_message(message), user, emoji, has_it=has_it)

    # --- interactions ------------------------------------------------------------------------------

    def slash(
        self,
        name: str,
        user: int,
        guild: int | None = None,
        channel: int | None = None,
        options: Mapping[str, object] | None = None,
    ) -> Payload:
        home, where = self._place(user, guild, channel)
        data = command_data(self._world, name, options or {}, home)
        return self._interact(_COMMAND, user, where, data)

    def click(self, message: int, custom_id: str, user: int, values: list[str] | None = None) -> Payload:
        target = self._world.find_message(message)
        component = _component(target.components, custom_id)
        if component.get("disabled"):
            raise FakeDiscordError(f"{custom_id!r} is disabled: nobody can click it.")
        if target.ephemeral_for not in (None, user):
            raise FakeDiscordError(f"Only user {target.ephemeral_for} can see message {message}.")
        where = self._channel(target.channel_id)
        self._place(user, where.guild_id, where.id)
        data: Payload = {"custom_id": component["custom_id"], "component_type": component["type"]}
        if component["type"] in _INPUT_TYPES:
            data |= {"values": list(values or []), "resolved": {}}
        return self._interact(_COMPONENT, user, where, data, message_id=target.id)

    def submit_modal(self, interaction: int, fields: Mapping[str, object]) -> Payload:
        source = self._world.interaction_by_id(interaction)
        if source.modal is None:
            raise FakeDiscordError(f"Interaction {interaction} was not answered with a modal.")
        data = {
            "custom_id": source.modal["custom_id"],
            "components": _filled(source.modal.get("components") or [], dict(fields)),
        }
        where = self._channel(source.channel_id)
        return self._interact(_MODAL, source.user_id, where, data, message_id=source.message_id)

    def interaction(self, interaction: int) -> Payload:
        found = self._world.interaction_by_id(interaction)
        messages = self._world.messages.get(found.channel_id, {})
        ids = dict.fromkeys(([found.original_id] if found.original_id else []) + found.message_ids)
        return {
            "id": found.id,
            "token": found.token,
            "answered_with": found.answered_with,
            "answered_at": found.answered_at,
            "modal": found.modal,
            "choices": found.choices,
            "messages": [self._message(messages[each]) for each in ids if each in messages],
        }

    def _interact(
        self, kind: int, user: int, where: Channel, data: Payload, message_id: int | None = None
    ) -> Payload:
        interaction_id = self._world.new_id()
        # As Discord makes them: what a bot does to keep them out of its logs goes by this form.
        token = f"interaction:{interaction_id}:{secrets.token_urlsafe(96)}"
        interaction = Interaction(
            interaction_id,
            base64.urlsafe_b64encode(token.encode()).decode().rstrip("="),
            kind,
            user,
            where.id,
            where.guild_id,
            data,
            self._world.now(),
            message_id=message_id,
        )
        payload = payloads.interaction(self._world, interaction)
        if not self._gateway.connected:
            raise FakeDiscordError(
                "No bot is connected to the gateway, so Discord would say 'The application did not "
                "respond'. Wait for one: fake.wait_for_bot()."
            )
        self._world.interactions[interaction.token] = interaction
        self._world.emit("INTERACTION_CREATE", payload, guild_id=where.guild_id)
        self._world.changed()
        return self.interaction(interaction.id)

    # --- look-ups ----------------------------------------------------------------------------------

    def _guild(self, guild: int) -> Guild:
        if guild not in self._world.guilds:
            raise FakeDiscordError(f"There is no guild {guild}.")
        return self._world.guilds[guild]

    def _channel(self, channel: int) -> Channel:
        if channel not in self._world.channels:
            raise FakeDiscordError(f"There is no channel {channel}.")
        return self._world.channels[channel]

    def _place(self, user: int, guild: int | None, channel: int | None) -> tuple[Guild | None, Channel]:
        self._world.require_user(user)
        where = self._channel(channel) if channel is not None else None
        guild = guild if guild is not None or where is None else where.guild_id
        if guild is None:
            return None, where or self._world.dm(user)
        home = self._guild(guild)
        self._world.require_member(home, user)
        return home, where or self._channel(home.system_channel_id or 0)

    def _message(self, message: Message) -> Payload:
        return payloads.message(self._world, message) | {
            "at": message.at,
            "edited_at": message.edited_at,
            "ephemeral_for": message.ephemeral_for,
            "allowed_mentions": message.allowed_mentions,
            "reaction_users": message.reactions,
        }


def _component(components: list[Payload], custom_id: str) -> Payload:
    """The component of that custom_id, or else the one with that label."""
    found: list[Payload] = []
    queue = list(components)
    while queue:
        component = queue.pop(0)
        queue += component.get("components") or []
        if isinstance(component.get("accessory"), dict):
            queue.append(component["accessory"])
        if component.get("custom_id"):
            found.append(component)
    for key in ("custom_id", "label"):
        for component in found:
            if component.get(key) == custom_id:
                return component
    known = [f"{each['custom_id']} ({each.get('label')})" for each in found]
    raise FakeDiscordError(f"The message has no component {custom_id!r}; it has {known}.")


def _filled(components: list[Payload], fields: dict[str, object]) -> list[Payload]:
    filled: list[Payload] = []
    for component in components:
        entry: Payload = {"type": component["type"], "id": component.get("id", len(filled) + 1)}
        if component.get("components"):
            entry["components"] = _filled(component["components"], fields)
        elif isinstance(component.get("component"), dict):
            entry["component"] = _filled([component["component"]], fields)[0]
        elif "custom_id" in component:
            value = fields.get(component["custom_id"], fields.get(component.get("label", ""), ""))
            entry |= {"custom_id": component["custom_id"]}
            entry["values" if isinstance(value, list) else "value"] = value
        filled.append(entry)
    return filled
