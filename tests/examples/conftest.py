"""One home for each place where steps may run, shared by the tests of this folder; each test has its own people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from ckworkflow.testing import FakeDiscord
from seed_home import Home

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckworkflow.testing.fake_discord import FakeChannel, FakeGuild, FakeRole, FakeUser

OLD_ACCOUNT = 175928847299117063  # a snowflake of 2016


@dataclass(frozen=True)
class Scene:
    """A guild with what the example looks for, a moderator who types, and a member who is typed about."""

    home: Home
    fake: FakeDiscord
    guild: FakeGuild
    moderator: FakeUser
    member: FakeUser
    roles: dict[str, FakeRole]
    log: FakeChannel

    @property
    def ids(self) -> dict[str, str]:
        return {"user_id": str(self.member.id), "guild_id": str(self.guild.id)}


@pytest.fixture(scope="module", params=["embedded", pytest.param("redis", marks=pytest.mark.redis)])
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """The bot with its worker inside, then the bot and a worker process on Redis."""
    broker_url = request.getfixturevalue("redis_url_for_module") if request.param == "redis" else None
    folder = tmp_path_factory.mktemp(request.param)
    with FakeDiscord() as fake:
        home = Home(folder, fake, broker_url=broker_url)
        try:
            yield home.start()
        finally:
            home.stop()


@pytest.fixture(scope="module")
def redis_url_for_module(redis_server: str | None) -> str:
    """A Redis database for all tests of a module."""
    import services

    return services.empty_redis_database(redis_server)


_people = iter(range(1_000_000))


@pytest.fixture
def scene(home: Home) -> Scene:
    """A new guild in a shared home."""
    fake, number = home.fake, next(_people)
    guild = fake.add_guild(f"Guild {number}")
    moderator, member = (
        fake.add_user(f"mod{number}"),
        fake.add_user(f"ada{number}", user_id=OLD_ACCOUNT + number),
    )
    roles = {name: fake.add_role(guild, name) for name in ("Member", "Newcomer", "Artist")}
    log = fake.add_channel(guild, "log")
    for person in (moderator, member):
        fake.join(guild, person)
    return Scene(home, fake, fake.guild(guild), moderator, member, roles, log)
