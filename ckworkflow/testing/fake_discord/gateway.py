"""The gateway: sessions that outlive their sockets, and the events that they hear.

A session numbers its events and keeps the last ones, so that a bot which lost its socket resumes and
misses nothing. Frames are plain text whatever compression was asked for; discord.py takes them.

Not here: what the events contain (`payloads`), which of them exist (`wire`).
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import deque
from typing import TYPE_CHECKING, Any

from aiohttp import WSMsgType, web

from . import payloads
from .wire import GUILD_MEMBERS, INTENTS, MESSAGE_CONTENT, FakeDiscordError, Payload, check_event

if TYPE_CHECKING:
    from .state import Guild, World

_HEARTBEAT_MS = 41_250
_KEPT_EVENTS = 2_000
_CLEAN_CLOSES = (1000, 1001)
_INVALID_TOKEN, _INVALID_SHARD, _UNKNOWN_OPCODE = 4004, 4010, 4001
_CHUNK = 1000


class Socket:
    """One connection; frames leave it in the order in which they were given."""

    def __init__(self, ws: web.WebSocketResponse) -> None:
        self.ws = ws
        self._frames: asyncio.Queue[str | int] = asyncio.Queue()
        self._task = asyncio.ensure_future(self._write())

    def send(self, frame: Payload) -> None:
        self._frames.put_nowait(json.dumps(frame))

    def close(self, code: int) -> None:
        """Close once everything given before has left."""
        self._frames.put_nowait(code)

    async def _write(self) -> None:
        while True:
            frame = await self._frames.get()
            if isinstance(frame, int):
                await self.ws.close(code=frame, drain=False)
                return
            try:
                await self.ws.send_str(frame)
            except (ConnectionError, RuntimeError):
                # The client is gone; what it missed is in the session's buffer.
                return

    def discard(self) -> None:
        self._task.cancel()


class Session:
    """A bot that has identified. Without a socket it buffers, and can be resumed."""

    def __init__(self, intents: int, shard: tuple[int, int] | None) -> None:
        self.id = secrets.token_hex(16)
        self.intents = intents
        self.shard = shard
        self.sequence = 0
        self.buffer: deque[Payload] = deque(maxlen=_KEPT_EVENTS)
        self.socket: Socket | None = None

    def dispatch(self, event: str, data: Payload) -> None:
        self.sequence += 1
        frame = {"op": 0, "t": event, "s": self.sequence, "d": data}
        self.buffer.append(frame)
        if self.socket is not None:
            self.socket.send(frame)

    def hears(self, event: str, guild_id: int | None, *, private: bool) -> bool:
        """Whether intents and sharding let an event through."""
        if self.shard is not None:
            number, count = self.shard
            if number != ((guild_id >> 22) % count if guild_id else 0):
                return False
        needed = INTENTS.get(event)
        return needed is None or bool(self.intents & needed[1 if private else 0])

    def shape(self, event: str, data: Payload, bot_id: int, *, private: bool) -> Payload:
        """The event as this bot may see it: without the content intent, guild messages are blank."""
        if event not in ("MESSAGE_CREATE", "MESSAGE_UPDATE") or private:
            return data
        is_own = data["author"]["id"] == str(bot_id)
        if self.intents & MESSAGE_CONTENT or is_own or f"<@{bot_id}>" in data["content"]:
            return data
        return data | {"content": "", "embeds": [], "attachments": [], "components": []}


class Gateway:
    """All sessions of the fake."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.sessions: dict[str, Session] = {}
        world.emit = self.emit

    @property
    def connected(self) -> list[Session]:
        """Sessions that a bot listens to now."""
        return [session for session in self.sessions.values() if session.socket is not None]

    def emit(
        self, event: str, data: Payload, *, guild_id: int | None = None, private: bool = False
    ) -> int:
        """Give an event to every session that hears it; the number of those connected.

        Raises:
            FakeDiscordError: The payload would kill a bot.
        """
        check_event(event, data)
        reached = 0
        for session in self.sessions.values():
            if session.hears(event, guild_id, private=private):
                session.dispatch(event, session.shape(event, data, self._world.bot.id, private=private))
                reached += session.socket is not None
        return reached

    def announce_guild(self, guild: Guild) -> None:
        """Tell the bots of a guild that they are in now."""
        self.emit("GUILD_CREATE", payloads.guild(self._world, guild, full=True), guild_id=guild.id)

    def drop(self, code: int = 4000, *, resumable: bool = True) -> int:
        """Close every socket, as a restart of Discord's gateway does."""
        connected = self.connected
        for session in connected:
            if session.socket is not None:
                session.socket.close(code)
                session.socket = None
            if not resumable:
                self.sessions.pop(session.id, None)
        self._world.changed()
        return len(connected)

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        """Serve one socket until it closes."""
        ws = web.WebSocketResponse(max_msg_size=0)
        await ws.prepare(request)
        socket = Socket(ws)
        socket.send({"op": 10, "d": {"heartbeat_interval": _HEARTBEAT_MS}, "s": None, "t": None})
        session: Session | None = None
        try:
            async for message in ws:
                if message.type is WSMsgType.TEXT:
                    session = self._frame(socket, session, json.loads(message.data))
        finally:
            socket.discard()
            if session is not None and session.socket is socket:
                session.socket = None
                if ws.close_code in _CLEAN_CLOSES:
                    self.sessions.pop(session.id, None)
                self._world.changed()
        return ws

    def _frame(self, socket: Socket, session: Session | None, frame: Payload) -> Session | None:
        op, data = frame.get("op"), frame.get("d")
        if op == 1:
            socket.send({"op": 11, "d": None, "s": None, "t": None})
        elif op == 2:
            return self._identify(socket, data)
        elif op == 6:
            return self._resume(socket, data)
        elif op == 8 and session is not None:
            self._send_members(session, data)
        elif op not in (3, 4, 8):
            socket.close(_UNKNOWN_OPCODE)
        return session

    def _identify(self, socket: Socket, data: Any) -> Session | None:
        world = self._world
        if data.get("token") not in world.tokens:
            socket.close(_INVALID_TOKEN)
            return None
        shard = data.get("shard")
        if shard is not None and not 0 <= shard[0] < shard[1]:
            socket.close(_INVALID_SHARD)
            return None
        session = Session(data["intents"], (shard[0], shard[1]) if shard else None)
        session.socket = socket
        self.sessions[session.id] = session
        mine = [
            guild
            for guild in world.guilds.values()
            if world.bot.id in guild.members and session.hears("GUILD_CREATE", guild.id, private=False)
        ]
        ready: Payload = {
            "v": 10,
            "user": payloads.user(world.bot) | {"verified": True, "mfa_enabled": False, "flags": 0},
            "guilds": [{"id": str(guild.id), "unavailable": True} for guild in mine],
            "session_id": session.id,
            "resume_gateway_url": world.gateway_url,
            "application": {"id": str(world.bot.id), "flags": 0},
        }
        if shard:
            ready["shard"] = shard
        check_event("READY", ready)
        session.dispatch("READY", ready)
        for guild in mine:
            data = payloads.guild(world, guild, full=True)
            if not session.intents & GUILD_MEMBERS:
                data["members"] = [
                    each for each in data["members"] if each["user"]["id"] == str(world.bot.id)
                ]
            check_event("GUILD_CREATE", data)
            session.dispatch("GUILD_CREATE", data)
        world.changed()
        return session

    def _resume(self, socket: Socket, data: Any) -> Session | None:
        session = self.sessions.get(data.get("session_id"))
        if data.get("token") not in self._world.tokens:
            socket.close(_INVALID_TOKEN)
            return None
        if session is None:
            socket.send({"op": 9, "d": False, "s": None, "t": None})
            return None
        if session.socket is not None:
            session.socket.close(4000)
        session.socket = socket
        for frame in list(session.buffer):
            if frame["s"] > data.get("seq", 0):
                socket.send(frame)
        session.dispatch("RESUMED", {})
        self._world.changed()
        return session

    def _send_members(self, session: Session, data: Any) -> None:
        guild = self._world.guilds.get(int(data["guild_id"]))
        if guild is None:
            raise FakeDiscordError(
                f"A bot asked for the members of guild {data['guild_id']}, which is unknown."
            )
        members = list(guild.members.values())
        if data.get("user_ids"):
            wanted = data["user_ids"] if isinstance(data["user_ids"], list) else [data["user_ids"]]
            members = [each for each in members if str(each.user_id) in map(str, wanted)]
        elif data.get("query"):
            query = str(data["query"]).lower()
            members = [
                each
                for each in members
                if self._world.users[each.user_id].name.lower().startswith(query)
            ]
        if data.get("limit"):
            members = members[: data["limit"]]
        pieces = [members[start : start + _CHUNK] for start in range(0, len(members), _CHUNK)] or [[]]
        for index, piece in enumerate(pieces):
            chunk: Payload = {
                "guild_id": str(guild.id),
                "members": [payloads.member(self._world, each) for each in piece],
                "chunk_index": index,
                "chunk_count": len(pieces),
                "not_found": [],
            }
            if data.get("nonce"):
                chunk["nonce"] = data["nonce"]
            check_event("GUILD_MEMBERS_CHUNK", chunk)
            session.dispatch("GUILD_MEMBERS_CHUNK", chunk)
