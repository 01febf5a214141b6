"""What a test refers to and is handed back: ids of anything, scripted faults, sent interactions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from .views import FakeChannel, FakeMember, FakeMessage, FakeRole, FakeUser

if TYPE_CHECKING:
    from .face import FakeDiscord
    from .wire import Payload


class HasId(Protocol):
    """Anything with an id: our snapshots, discord.py's objects."""

    @property
    def id(self) -> int: ...


Ref = HasId | int | str


def id_of(value: Ref) -> int:
    """The id of whatever was given."""
    return int(value) if isinstance(value, (int, str)) else value.id


class FakeFault:
    """A fault that was scripted with `FakeDiscord.fail`."""

    def __init__(self, fake: FakeDiscord, fault_id: int) -> None:
        self._fake, self._id = fake, fault_id

    @property
    def hits(self) -> int:
        """How many calls it has taken."""
        return int(self._fake.call("fault", fault_id=self._id)["hits"])

    def release(self) -> None:
        """End it now; a call that it holds back goes on."""
        self._fake.call("release", fault_id=self._id)


class FakeInteraction:
    """A slash command, click or modal that was sent to the bot."""

    def __init__(self, fake: FakeDiscord, interaction_id: int, token: str) -> None:
        self._fake, self.id, self.token = fake, interaction_id, token

    def _read(self) -> Payload:
        data: Payload = self._fake.call("interaction", interaction=self.id)
        return data

    @property
    def is_answered(self) -> bool:
        """Whether the bot has given its first answer."""
        return self._read()["answered_with"] is not None

    @property
    def answered_with(self) -> int | None:
        """The type of the first answer: 4 message, 5 and 6 deferred, 7 update, 9 modal."""
        kind: int | None = self._read()["answered_with"]
        return kind

    @property
    def messages(self) -> list[FakeMessage]:
        """The first answer and the follow-ups, as they are now."""
        return [FakeMessage.read(each) for each in self._read()["messages"]]

    @property
    def modal(self) -> Payload | None:
        """The modal that the bot opened."""
        modal: Payload | None = self._read()["modal"]
        return modal

    def wait(self, timeout: float = 10.0) -> FakeMessage | None:
        """Wait for the first answer; its message, or `None` if it has none (a modal, a deferral).

        Raises:
            TimeoutError: The bot has not answered.
        """
        self._fake.wait_for(lambda: self.is_answered, timeout)
        messages = self.messages
        return messages[0] if messages else None

    def submit(self, **fields: object) -> FakeInteraction:
        """Fill in and send the modal that the bot opened; fields by custom_id or label."""
        return self._fake.interaction("submit_modal", interaction=self.id, fields=fields)


def option_value(value: object) -> object:
    """An option of a slash command as the control API takes it."""
    for kind, word in (
        (FakeUser, "$user"),
        (FakeMember, "$user"),
        (FakeRole, "$role"),
        (FakeChannel, "$channel"),
    ):
        if isinstance(value, kind):
            return {word: value.id}
    return value
