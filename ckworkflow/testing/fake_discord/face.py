"""`FakeDiscord`: what a test holds in its hand, wherever the fake runs.

Not here: the fake itself. Every method is one operation of the control plane (`control`), called
across threads or over HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Self, TypeVar

from .handles import FakeFault, FakeInteraction, Ref, id_of, option_value
from .state import World
from .views import FakeCall, FakeChannel, FakeGuild, FakeMember, FakeMessage, FakeRole, FakeUser
from .wire import FakeDiscordError, Payload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

    from .server import ServerThread

T = TypeVar("T")

_LONGEST_LOOK_SECONDS = 0.1
"""A predicate may look at things that are not the fake's: look again at least this often."""


def _nothing() -> None:
    """Point nothing back."""


class FakeDiscord:
    """A Discord of one's own: REST and gateway that real discord.py clients connect to.

        with FakeDiscord() as fake:
            guild, user = fake.add_guild("Home"), fake.add_user("ada")
            fake.join(guild, user)
            bot = subprocess.Popen([sys.executable, "bot.py"], env=os.environ | fake.env)
            fake.wait_for_bot(bot=bot)
            fake.slash("greet", user=user, guild=guild)
            fake.wait_for(lambda: len(fake.dms(user)) == 2)

    While it runs, discord.py in this process is pointed at it, so a client made here cannot reach the real
    Discord. It runs on a thread of its own, so that every method may be called from any thread, also inside a
    running loop (each takes a millisecond; use `until` there instead of `wait_for`).
    `python -m ckworkflow.testing.fake_discord` runs it as a program, and `FakeDiscord.connect(url)` is
    the same face for it. It knows one bot; every valid token is that bot's.

    Args:
        host: Where to listen.
        port: 0 takes a free one.
        token: A token to accept beside the made-up one in `token`; it takes that one's place.
    """

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0, token: str | None = None) -> None:
        self._host, self._port = host, port
        self._given_token = token
        self._thread: ServerThread | None = None
        self._control_url: str | None = None
        self._info: Payload = {}
        self._point_back: Callable[[], None] = _nothing

    # --- life --------------------------------------------------------------------------------------

    @classmethod
    def connect(cls, url: str) -> FakeDiscord:
        """The face of a fake that runs elsewhere.

        Args:
            url: Any address of it: `api_base`, `control_url`, or scheme, host and port alone.
        """
        fake = cls()
        parts = urllib.parse.urlsplit(url)
        fake._control_url = f"http://{parts.netloc}/control"
        fake._info = fake.call("info")
        return fake

    def start(self) -> Self:
        """Begin to listen; `with` does it."""
        if self._control_url is not None or self._thread is not None:
            return self
        try:
            from .server import ServerThread
        except ImportError as error:
            raise FakeDiscordError(
                'FakeDiscord needs aiohttp: pip install "ckworkflow[test]" (discord.py brings it too).'
            ) from error
        world = World()
        if self._given_token is not None:
            world.tokens.clear()
            world.token = world.add_token(self._given_token)
        self._thread = ServerThread(world)
        self._thread.start(self._host, self._port)
        self._info = self.call("info")
        with contextlib.suppress(ImportError):  # without discord.py there is nothing to point
            from ckworkflow.discord.endpoints import point_at

            self._point_back = point_at(self.env)
        return self

    def stop(self) -> None:
        """Stop listening. A fake that runs elsewhere goes on."""
        self._point_back()
        self._point_back = _nothing
        if self._thread is not None:
            self._thread.stop()
            self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)

    # --- addresses ---------------------------------------------------------------------------------

    @property
    def api_base(self) -> str:
        """For `CKWORKFLOW_DISCORD_API_BASE`."""
        return str(self._info["api_base"])

    @property
    def gateway_url(self) -> str:
        """For `CKWORKFLOW_DISCORD_GATEWAY_URL`."""
        return str(self._info["gateway_url"])

    @property
    def control_url(self) -> str:
        """For `FakeDiscord.connect` in another process."""
        return str(self._info["control_url"])

    @property
    def token(self) -> str:
        """A token that is accepted, in the form of a real one."""
        return str(self._info["token"])

    @property
    def bot(self) -> FakeUser:
        """The bot's user."""
        return FakeUser.read(self._info["bot"])

    @property
    def env(self) -> dict[str, str]:
        """The environment for a bot or a worker that shall talk to this fake."""
        return {
            "CKWORKFLOW_DISCORD_API_BASE": self.api_base,
            "CKWORKFLOW_DISCORD_GATEWAY_URL": self.gateway_url,
            "DISCORD_TOKEN": self.token,
        }

    # --- the line to the fake ------------------------------------------------------------------------

    def call(self, operation: str, **arguments: object) -> Any:
        """Run one operation of the control plane.

        Raises:
            FakeDiscordError: It cannot be done.
        """
        if self._control_url is None:
            if self._thread is None:
                raise FakeDiscordError("This FakeDiscord is not running: use it in a `with` block.")
            return self._thread.call(operation, arguments)
        request = urllib.request.Request(  # noqa: S310  http by construction
            f"{self._control_url}/{operation}", data=json.dumps(arguments).encode(), method="POST"
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=60) as answer:
                return json.load(answer)["result"]
        except urllib.error.HTTPError as error:
            raise FakeDiscordError(json.load(error)["error"]) from None
        except OSError as error:
            raise FakeDiscordError(f"No FakeDiscord answers at {self._control_url}: {error}.") from error

    def wait_for(self, predicate: Callable[[], T], timeout: float = 10.0) -> T:
        """Wait until a condition holds; what it returned then.

        Args:
            predicate: Looked at whenever something happens in the fake, and ten times a second.
            timeout: Seconds.

        Raises:
            TimeoutError: It never held; the text has the last calls.
        """
        end = time.monotonic() + timeout
        while True:
            version = int(self.call("info")["version"])
            value = predicate()
            if value:
                return value
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError(self._story(timeout))
            self.call("changed", since=version, seconds=min(left, _LONGEST_LOOK_SECONDS))

    async def until(self, predicate: Callable[[], T], timeout: float = 10.0) -> T:  # noqa: ASYNC109  the twin of wait_for
        """`wait_for` for a test that runs in a loop: the predicate is called in that loop.

        Raises:
            TimeoutError: It never held.
        """
        end = time.monotonic() + timeout
        while True:
            version = int(self.call("info")["version"])
            value = predicate()
            if value:
                return value
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError(self._story(timeout))
            seconds = min(left, _LONGEST_LOOK_SECONDS)
            await asyncio.to_thread(self.call, "changed", since=version, seconds=seconds)

    def _story(self, timeout: float) -> str:
        lines = [f"  {each.method} {each.path} -> {each.status}" for each in self.calls[-10:]]
        return f"Not within {timeout:g} s. The last calls that Discord saw:\n" + (
            "\n".join(lines) or "  none"
        )

    # --- the bot's side --------------------------------------------------------------------------------

    @property
    def calls(self) -> list[FakeCall]:
        """Every call of the REST API so far, oldest first."""
        return [FakeCall.read(each) for each in self.call("calls")]

    def calls_to(self, method: str, route: str) -> list[FakeCall]:
        """The calls of one route, by template or by path."""
        return [
            each for each in self.calls if each.method == method and route in (each.route, each.path)
        ]

    @property
    def connected_bots(self) -> int:
        """How many gateway sessions are connected now."""
        return sum(1 for each in self.call("sessions") if each["connected"])

    def wait_for_bot(
        self, timeout: float = 20.0, *, bot: subprocess.Popen[Any] | Future[Any] | None = None
    ) -> None:
        """Wait until a bot has identified itself at the gateway.

        Args:
            timeout: Seconds.
            bot: What runs the bot, so that one that dies is not waited for: its process, or the future of
                `asyncio.run_coroutine_threadsafe`.

        Raises:
            FakeDiscordError: The bot ended first; the cause is the error of a future.
            TimeoutError: None has.
        """
        self.wait_for(lambda: self._is_there(bot), timeout)

    async def until_bot(self, timeout: float = 20.0, *, bot: asyncio.Future[Any] | None = None) -> None:  # noqa: ASYNC109  the twin of wait_for_bot
        """`wait_for_bot` for a bot that runs in the loop of the test: `bot` is the task of `bot.start(...)`.

        Raises:
            FakeDiscordError: The bot ended first; the cause is its error.
            TimeoutError: None has.
        """
        await self.until(lambda: self._is_there(bot), timeout)

    def _is_there(self, bot: subprocess.Popen[Any] | Future[Any] | asyncio.Future[Any] | None) -> bool:
        if isinstance(bot, subprocess.Popen):
            if bot.poll() is not None:
                raise FakeDiscordError(
                    f"The bot ended with exit code {bot.returncode} before it connected; its output says why."
                )
        elif bot is not None and bot.done():
            error = None if bot.cancelled() else bot.exception()
            why = (
                "was cancelled"
                if bot.cancelled()
                else "returned"
                if error is None
                else f"raised {error!r}"
            )
            raise FakeDiscordError(f"The bot {why} before it connected.") from error
        return self.connected_bots > 0

    def drop_gateway(self, *, code: int = 4000, resumable: bool = True) -> int:
        """Cut every gateway connection; the number cut. Bots resume and hear what they missed."""
        return int(self.call("drop_gateway", code=code, resumable=resumable))

    def add_token(self, token: str | None = None) -> str:
        """Accept one more token."""
        return str(self.call("add_token", token=token))

    def revoke_token(self, token: str | None = None) -> None:
        """Refuse a token from now on; the first one if none is named."""
        self.call("revoke_token", token=token or self.token)

    def configure(self, **settings: float) -> None:
        """`interaction_seconds` (3.0: how long a first answer may take), `shards` (1: the advice)."""
        self.call("configure", **settings)

    def fail(
        self,
        method: str,
        route: str,
        *,
        status: int | None = None,
        code: int | None = None,
        message: str | None = None,
        errors: Payload | None = None,
        times: int | None = 1,
        skip: int = 0,
        delay: float = 0.0,
        retry_after: float | None = None,
        is_global: bool = False,
        cloudflare: bool = False,
        drop: bool = False,
        drop_after_commit: bool = False,
    ) -> FakeFault:
        """Script what happens to the next calls of a route.

        Args:
            method: `POST`, …, or `*`.
            route: A template whose `{names}` match any part, a concrete path, or `*`.
            status: Answer with this status and do nothing.
            code: Answer with this Discord error code (its status is known) and do nothing.
            message: The text beside it.
            errors: The nested `errors` of an invalid form.
            times: How many calls; `None` for all.
            skip: How many to let pass first.
            delay: Seconds to hold the call before anything is done; with `drop_after_commit` after.
            retry_after: Seconds in a 429 (which it makes the status unless `code` says otherwise).
            is_global: The 429 is the global one.
            cloudflare: Answer with HTML and without `Via`, as Cloudflare does (429, or `status`).
            drop: Cut the connection and do nothing.
            drop_after_commit: Do it, then cut the connection: the caller cannot know. The honest
                picture of a worker that died after its send.

        A fault with only `delay` answers as usual, later.
        """
        options = {
            "status": status,
            "code": code,
            "message": message,
            "errors": errors,
            "times": times,
            "skip": skip,
            "delay": delay,
            "retry_after": retry_after,
            "is_global": is_global,
            "cloudflare": cloudflare,
            "drop": drop,
            "drop_after_commit": drop_after_commit,
        }
        return FakeFault(self, self.call("fail", method=method, route=route, **options))

    def clear_faults(self) -> None:
        """End every fault; calls that one holds back go on."""
        self.call("release")

    # --- the world ---------------------------------------------------------------------------------

    def add_user(
        self, name: str, *, bot: bool = False, accepts_dms: bool = True, user_id: int | None = None
    ) -> FakeUser:
        """A new user. One who does not accept DMs answers them with 50007."""
        data = self.call("add_user", name=name, bot=bot, accepts_dms=accepts_dms, user_id=user_id)
        return FakeUser.read(data)

    def set_user(self, user: Ref, *, accepts_dms: bool) -> None:
        """Open or close a user's DMs."""
        self.call("set_user", user=id_of(user), accepts_dms=accepts_dms)

    def add_guild(
        self,
        name: str,
        *,
        owner: Ref | None = None,
        bot_permissions: int | str | Iterable[str] = "administrator",
    ) -> FakeGuild:
        """A new guild with the bot in it and a channel `general`.

        Args:
            name: Its name.
            owner: Whose it is; a new user's if none is named.
            bot_permissions: Of the bot's role: bits, or discord.py's names of them. That role stands
                above those added later, unless they get a `position`.
        """
        wanted = bot_permissions if isinstance(bot_permissions, (int, str)) else list(bot_permissions)
        owner_id = None if owner is None else id_of(owner)
        return FakeGuild.read(self.call("add_guild", name=name, owner=owner_id, bot_permissions=wanted))

    def guild(self, guild: Ref) -> FakeGuild:
        """A guild as it is now."""
        return FakeGuild.read(self.call("guild", guild=id_of(guild)))

    def member(self, guild: Ref, user: Ref) -> FakeMember | None:
        """A member as they are now, or `None`."""
        wanted = id_of(user)
        return next((each for each in self.guild(guild).members if each.id == wanted), None)

    def bans(self, guild: Ref) -> dict[int, str | None]:
        """Reasons of the bans, by user id."""
        return {int(key): reason for key, reason in self.call("bans", guild=id_of(guild)).items()}

    def add_role(
        self,
        guild: Ref,
        name: str,
        *,
        permissions: int | str | Iterable[str] = 0,
        position: int | None = None,
    ) -> FakeRole:
        """A new role, just above everyone's unless a `position` puts it elsewhere."""
        wanted = permissions if isinstance(permissions, (int, str)) else list(permissions)
        data = self.call(
            "add_role", guild=id_of(guild), name=name, permissions=wanted, position=position
        )
        return FakeRole.read(data)

    def add_channel(
        self,
        guild: Ref,
        name: str,
        *,
        type: str | int = "text",
        parent: Ref | None = None,
    ) -> FakeChannel:
        """A new channel: `text`, `voice`, `category`, `announcement`, `forum`, or a number."""
        parent_id = None if parent is None else id_of(parent)
        return FakeChannel.read(
            self.call("add_channel", guild=id_of(guild), name=name, type=type, parent=parent_id)
        )

    def delete_channel(self, channel: Ref) -> None:
        """A moderator deletes a channel."""
        self.call("delete_channel", channel=id_of(channel))

    def join(self, guild: Ref, user: Ref, *, roles: Iterable[Ref] = ()) -> FakeMember:
        """A user joins a guild; the bot hears of it."""
        ids = [id_of(each) for each in roles]
        return FakeMember.read(self.call("join", guild=id_of(guild), user=id_of(user), roles=ids))

    def leave(self, guild: Ref, user: Ref) -> None:
        """A user leaves a guild; the bot hears of it."""
        self.call("leave", guild=id_of(guild), user=id_of(user))

    def set_roles(self, guild: Ref, user: Ref, roles: Iterable[Ref]) -> None:
        """A moderator gives a member exactly these roles."""
        ids = [id_of(each) for each in roles]
        self.call("set_roles", guild=id_of(guild), user=id_of(user), roles=ids)

    def dm(self, user: Ref) -> FakeChannel:
        """The DM channel of the bot and a user, opened if need be."""
        return FakeChannel.read(self.call("dm", user=id_of(user)))

    def dms(self, user: Ref) -> list[FakeMessage]:
        """The messages between the bot and a user, oldest first."""
        return [FakeMessage.read(each) for each in self.call("messages", user=id_of(user))]

    def messages(self, channel: Ref) -> list[FakeMessage]:
        """The messages of a channel, oldest first, those that only one user sees among them."""
        return [FakeMessage.read(each) for each in self.call("messages", channel=id_of(channel))]

    def message(self, message: Ref) -> FakeMessage:
        """A message as it is now."""
        return FakeMessage.read(self.call("message", message=id_of(message)))

    # --- what users do -------------------------------------------------------------------------------

    def interaction(self, operation: str, **arguments: object) -> FakeInteraction:
        """Run an operation that sends an interaction."""
        data = self.call(operation, **arguments)
        return FakeInteraction(self, data["id"], data["token"])

    def slash(
        self,
        name: str,
        *,
        user: Ref,
        guild: Ref | None = None,
        channel: Ref | None = None,
        options: Mapping[str, object] | None = None,
    ) -> FakeInteraction:
        """A user sends a slash command; in `general` of the guild, or in the DM without one.

        Args:
            name: The command, with its subcommands (`config set`).
            user: Who.
            guild: Where; the user must be a member.
            channel: Where in it.
            options: By name. Users, roles and channels as snapshots, or as ids if the bot has
                registered the command.

        Raises:
            FakeDiscordError: No bot is connected, or none has this command.
        """
        return self.interaction(
            "slash",
            name=name,
            user=id_of(user),
            guild=None if guild is None else id_of(guild),
            channel=None if channel is None else id_of(channel),
            options={key: option_value(value) for key, value in (options or {}).items()},
        )

    def click(
        self, message: Ref, custom_id: str, *, user: Ref, values: Iterable[str] | None = None
    ) -> FakeInteraction:
        """A user clicks a button or picks from a select.

        Args:
            message: On which.
            custom_id: Which; its label will do.
            user: Who.
            values: What was picked.

        Raises:
            FakeDiscordError: The message has no such component, or it is disabled.
        """
        picked = None if values is None else list(values)
        return self.interaction(
            "click", message=id_of(message), custom_id=custom_id, user=id_of(user), values=picked
        )

    def say(self, channel: Ref, user: Ref, content: str) -> FakeMessage:
        """A user writes into a channel; the bot hears of it."""
        return FakeMessage.read(
            self.call("say", channel=id_of(channel), user=id_of(user), content=content)
        )

    def react(self, message: Ref, user: Ref, emoji: str) -> None:
        """A user reacts to a message; the bot hears of it."""
        self.call("react", message=id_of(message), user=id_of(user), emoji=emoji)

    def unreact(self, message: Ref, user: Ref, emoji: str) -> None:
        """A user takes a reaction back; the bot hears of it."""
        self.call("react", message=id_of(message), user=id_of(user), emoji=emoji, has_it=False)

    def delete_message(self, message: Ref) -> None:
        """A message is deleted by hand."""
        self.call("delete_message", message=id_of(message))
