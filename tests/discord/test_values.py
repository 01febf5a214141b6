"""discord.py's objects are refused as values, with a hint that says what to pass instead."""

from __future__ import annotations

import pytest

from ckworkflow import codec
from ckworkflow.errors import UnserializableValueError
from discord_bots import FastBot, connected, logged_in


async def test_a_user_is_refused_and_its_id_is_named(fake):
    ada = fake.add_user("ada")

    async with logged_in(fake) as client:
        user = await client.fetch_user(ada.id)

    with pytest.raises(UnserializableValueError, match=r"Pass .*args\[0\]\.id") as caught:
        codec.encode(user, path="args[0]")
    assert caught.value.path == "args[0]"


async def test_a_member_inside_a_list_is_found(fake):
    home, ada = fake.add_guild("Home"), fake.add_user("ada")
    fake.join(home, ada)

    async with logged_in(fake) as client:
        member = await (await client.fetch_guild(home.id)).fetch_member(ada.id)

    with pytest.raises(UnserializableValueError) as caught:
        codec.encode({"who": [member]}, path="args[0]")
    assert caught.value.path == "args[0]['who'][0]"


async def test_an_interaction_is_refused_with_a_hint_of_its_own(fake):
    ada, bot, seen = fake.add_user("ada"), FastBot(), []

    @bot.tree.command()
    async def greet(interaction) -> None:
        """Greet."""
        seen.append(interaction)
        await interaction.response.send_message("Hello!")

    async with connected(bot, fake):
        fake.slash("greet", user=ada)
        await fake.until(lambda: seen)

    with pytest.raises(UnserializableValueError, match=r"Pass args\[0\]\.user\.id"):
        codec.encode(seen[0], path="args[0]")
