"""What a test sees of the fake's world: frozen snapshots. Ids are integers, times aware UTC."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from .wire import THREAD_TYPES, Payload


def _time(at: float | str | None) -> datetime | None:
    if at is None:
        return None
    return datetime.fromisoformat(at) if isinstance(at, str) else datetime.fromtimestamp(at, UTC)


def _id(value: str | int | None) -> int | None:
    return None if value is None else int(value)


@dataclass(frozen=True, slots=True)
class FakeUser:
    """A user."""

    id: int
    name: str
    bot: bool = False

    @classmethod
    def read(cls, data: Payload) -> FakeUser:
        """From the wire."""
        return cls(int(data["id"]), data["username"], data["bot"])

    @property
    def mention(self) -> str:
        """As it stands in a message."""
        return f"<@{self.id}>"


@dataclass(frozen=True, slots=True)
class FakeRole:
    """A role."""

    id: int
    name: str
    position: int
    permissions: int

    @classmethod
    def read(cls, data: Payload) -> FakeRole:
        """From the wire."""
        return cls(int(data["id"]), data["name"], data["position"], int(data["permissions"]))


@dataclass(frozen=True, slots=True)
class FakeMember:
    """A member of a guild. `roles` are ids, without everyone's."""

    user: FakeUser
    roles: tuple[int, ...]
    nick: str | None
    joined_at: datetime
    timed_out_until: datetime | None

    @classmethod
    def read(cls, data: Payload) -> FakeMember:
        """From the wire."""
        return cls(
            FakeUser.read(data["user"]),
            tuple(int(each) for each in data["roles"]),
            data["nick"],
            datetime.fromisoformat(data["joined_at"]),
            _time(data["communication_disabled_until"]),
        )

    @property
    def id(self) -> int:
        """The user's id."""
        return self.user.id


@dataclass(frozen=True, slots=True)
class FakeChannel:
    """A channel, thread or DM."""

    id: int
    name: str | None
    type: int
    guild_id: int | None
    parent_id: int | None
    topic: str | None = None

    @classmethod
    def read(cls, data: Payload) -> FakeChannel:
        """From the wire."""
        return cls(
            int(data["id"]),
            data.get("name"),
            data["type"],
            _id(data.get("guild_id")),
            _id(data.get("parent_id")),
            data.get("topic"),
        )

    @property
    def is_thread(self) -> bool:
        """Whether it is a thread."""
        return self.type in THREAD_TYPES


@dataclass(frozen=True, slots=True)
class FakeGuild:
    """A guild as it was when it was asked for; ask again for a newer one."""

    id: int
    name: str
    owner_id: int
    roles: tuple[FakeRole, ...]
    channels: tuple[FakeChannel, ...]
    members: tuple[FakeMember, ...]

    @classmethod
    def read(cls, data: Payload) -> FakeGuild:
        """From the wire."""
        return cls(
            int(data["id"]),
            data["name"],
            int(data["owner_id"]),
            tuple(FakeRole.read(each) for each in data["roles"]),
            tuple(FakeChannel.read(each) for each in [*data["channels"], *data["threads"]]),
            tuple(FakeMember.read(each) for each in data["members"]),
        )

    def channel(self, name: str) -> FakeChannel:
        """The channel of that name."""
        return next(each for each in self.channels if each.name == name)

    def role(self, name: str) -> FakeRole:
        """The role of that name."""
        return next(each for each in self.roles if each.name == name)


@dataclass(frozen=True, slots=True)
class FakeMessage:
    """A message; `raw` is all of it as the API would send it."""

    id: int
    channel_id: int
    author: FakeUser
    content: str
    created_at: datetime
    edited_at: datetime | None
    nonce: str | None
    embeds: tuple[Payload, ...]
    components: tuple[Payload, ...]
    attachments: tuple[Payload, ...]
    ephemeral_for: int | None
    raw: Payload = field(repr=False, compare=False)

    @classmethod
    def read(cls, data: Payload) -> FakeMessage:
        """From the control API."""
        created_at = datetime.fromtimestamp(data["at"], UTC)
        return cls(
            int(data["id"]),
            int(data["channel_id"]),
            FakeUser.read(data["author"]),
            data["content"],
            created_at,
            _time(data["edited_at"]),
            data.get("nonce"),
            tuple(data["embeds"]),
            tuple(data["components"]),
            tuple(data["attachments"]),
            data["ephemeral_for"],
            data,
        )

    @property
    def is_ephemeral(self) -> bool:
        """Whether only one user sees it."""
        return self.ephemeral_for is not None

    @property
    def reactions(self) -> dict[str, list[int]]:
        """Who reacted, by emoji."""
        users: dict[str, list[int]] = self.raw["reaction_users"]
        return users


@dataclass(frozen=True, slots=True)
class FakeCall:
    """One call of the REST API, as the fake saw it.

    Attributes:
        index: Its place among all calls, from 0.
        method: `GET`, `POST`, …
        path: Below the API's base, with ids.
        route: The route's template, such as `/channels/{channel_id}/messages`; `?` if there is none.
        json: The body.
        query: The query's parts.
        time: When it arrived, UTC.
        reason: The reason for the audit log.
        has_token: Whether an Authorization was sent. The token itself is never kept.
        status: What was answered; `None` while a fault holds the call, and after a drop.
        dropped: Whether a fault cut the connection.
    """

    index: int
    method: str
    path: str
    route: str
    json: Any
    query: dict[str, str]
    time: datetime
    reason: str | None
    has_token: bool
    status: int | None
    dropped: bool

    @classmethod
    def read(cls, data: Payload) -> FakeCall:
        """From the control API."""
        values = dict(data)
        return cls(time=datetime.fromtimestamp(values.pop("at"), UTC), **values)
