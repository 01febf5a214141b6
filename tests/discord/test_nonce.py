"""Automatic nonces: a repeated attempt finds its messages, two sends of one step stay two."""

from __future__ import annotations

import asyncio
import io

import aiohttp
import discord
import pytest

from ckworkflow.discord.nonce import install_nonces, step_nonces, uninstall_nonces
from discord_bots import logged_in

SEND = "/channels/{channel_id}/messages"


async def test_a_send_that_was_committed_and_lost_is_one_message_after_the_retry(fake):
    ada = fake.add_user("ada")
    fake.fail("POST", SEND, drop_after_commit=True)

    async with logged_in(fake) as client:
        install_nonces(client)
        user = await client.fetch_user(ada.id)
        with step_nonces("run:0:1"), pytest.raises(aiohttp.ClientError):
            await user.send("Hello!")
        with step_nonces("run:0:1"):
            await user.send("Hello!")

    assert [each.content for each in fake.dms(ada)] == ["Hello!"]
    assert [each.dropped for each in fake.calls_to("POST", SEND)] == [True, False]


async def test_without_a_step_the_same_is_two_messages(fake):
    ada = fake.add_user("ada")
    fake.fail("POST", SEND, drop_after_commit=True)

    async with logged_in(fake) as client:
        install_nonces(client)
        user = await client.fetch_user(ada.id)
        with pytest.raises(aiohttp.ClientError):
            await user.send("Hello!")
        await user.send("Hello!")

    assert len(fake.dms(ada)) == 2


async def test_a_timeout_and_a_retry_are_one_message(fake):
    ada = fake.add_user("ada")
    held = fake.fail("POST", SEND, drop_after_commit=True, delay=60)

    async with logged_in(fake) as client:
        install_nonces(client)
        user = await client.fetch_user(ada.id)
        with step_nonces("run:0:1"):
            sending = asyncio.create_task(user.send("Hello!"))
            await fake.until(lambda: held.hits == 1 and fake.dms(ada))
            sending.cancel()
            await asyncio.wait({sending})
        with step_nonces("run:0:1"):
            await user.send("Hello!")

    assert len(fake.dms(ada)) == 1


async def test_equal_sends_of_one_attempt_stay_apart(fake):
    ada = fake.add_user("ada")

    async with logged_in(fake) as client:
        install_nonces(client)
        user = await client.fetch_user(ada.id)
        for _ in range(2):
            with step_nonces("run:0:1"):
                await asyncio.gather(*[user.send("Hello!") for _ in range(3)], user.send("Bye!"))

    contents = [each.content for each in fake.dms(ada)]
    assert (contents.count("Hello!"), contents.count("Bye!")) == (3, 1)


async def test_other_steps_and_other_channels_have_other_nonces(fake):
    home = fake.add_guild("Home")
    other = fake.add_channel(home, "other")

    async with logged_in(fake) as client:
        install_nonces(client)
        for key in ("run:0:1", "run:0:2"):
            with step_nonces(key):
                for channel in (home.channel("general"), other):
                    await client.get_partial_messageable(channel.id).send("Hello!")

    nonces = {each.json["nonce"] for each in fake.calls_to("POST", SEND)}
    assert len(nonces) == 4
    assert all(len(each) == 24 for each in nonces)


async def test_files_keep_their_nonce_over_attempts(fake):
    home = fake.add_guild("Home")

    async with logged_in(fake) as client:
        install_nonces(client)
        channel = client.get_partial_messageable(home.channel("general").id)
        for _ in range(2):
            with step_nonces("run:0:1"):
                await channel.send("see", file=discord.File(io.BytesIO(b"rows"), "report.csv"))

    (message,) = fake.messages(channel)
    assert message.attachments[0]["text"] == "rows"


async def test_a_nonce_of_the_users_own_is_kept(fake):
    home = fake.add_guild("Home")

    async with logged_in(fake) as client:
        install_nonces(client)
        with step_nonces("run:0:1"):
            await client.get_partial_messageable(home.channel("general").id).send("x", nonce="mine")

    assert fake.messages(home.channel("general"))[0].nonce == "mine"


async def test_uninstalling_leaves_the_client_as_it_was(fake):
    async with logged_in(fake) as client:
        install_nonces(client)
        install_nonces(client)
        uninstall_nonces(client)

        assert "send_message" not in vars(client.http)
