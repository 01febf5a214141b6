"""FakeDiscord's REST side, driven by a real discord.py client without a gateway."""

from __future__ import annotations

import asyncio
import io
from datetime import UTC, datetime, timedelta

import aiohttp
import discord
import pytest

from ckworkflow.testing import FakeDiscord
from ckworkflow.testing.fake_discord import FakeDiscordError
from discord_bots import logged_in


async def test_login_is_two_calls_and_knows_the_bot(fake):
    async with logged_in(fake) as client:
        assert client.user.id == fake.bot.id

    assert [each.path for each in fake.calls] == ["/users/@me", "/oauth2/applications/@me"]


async def test_an_unknown_token_is_refused(fake):
    client = discord.Client(intents=discord.Intents.none())

    with pytest.raises(discord.LoginFailure):
        await client.login("not.a.token")
    await client.close()


async def test_a_revoked_token_is_refused_from_then_on(fake):
    async with logged_in(fake) as client:
        fake.revoke_token()
        with pytest.raises(discord.HTTPException) as caught:
            await client.fetch_user(fake.bot.id)

    assert caught.value.status == 401


async def test_a_dm_arrives_with_its_time_and_its_nonce(fake):
    ada = fake.add_user("ada")
    before = datetime.now(UTC)

    async with logged_in(fake) as client:
        user = await client.fetch_user(ada.id)
        await user.send("Hello!")

    (message,) = fake.dms(ada)
    assert (user.name, message.content, message.author) == ("ada", "Hello!", fake.bot)
    assert before <= message.created_at <= datetime.now(UTC)
    assert message.nonce


async def test_a_user_who_accepts_no_dms_answers_50007(fake):
    ada = fake.add_user("ada", accepts_dms=False)

    async with logged_in(fake) as client:
        user = await client.fetch_user(ada.id)
        with pytest.raises(discord.Forbidden) as caught:
            await user.send("Hello!")

    assert caught.value.code == 50007
    assert fake.dms(ada) == []


async def test_a_guild_is_fetched_with_channels_roles_and_members(fake):
    home, ada = fake.add_guild("Home"), fake.add_user("ada")
    helper = fake.add_role(home, "helper", permissions=["kick_members"])
    fake.join(home, ada, roles=[helper])

    async with logged_in(fake) as client:
        guild = await client.fetch_guild(home.id)
        channels = await guild.fetch_channels()
        member = await guild.fetch_member(ada.id)
        members = [each.name async for each in guild.fetch_members()]

    assert [each.name for each in channels] == ["general"]
    assert [each.name for each in member.roles] == ["@everyone", "helper"]
    assert member.guild_permissions.kick_members
    assert sorted(members) == ["Home-owner", "ada", "fake-bot"]


async def test_a_role_is_given_and_taken(fake):
    home, ada = fake.add_guild("Home"), fake.add_user("ada")
    helper = fake.add_role(home, "helper")
    fake.join(home, ada)

    async with logged_in(fake) as client:
        member = await (await client.fetch_guild(home.id)).fetch_member(ada.id)
        await member.add_roles(discord.Object(helper.id), reason="welcome")
        assert fake.member(home, ada).roles == (helper.id,)
        await member.remove_roles(discord.Object(helper.id))

    assert fake.member(home, ada).roles == ()
    (put,) = fake.calls_to("PUT", "/guilds/{guild_id}/members/{user_id}/roles/{role_id}")
    assert put.reason == "welcome"


async def test_a_role_above_the_bots_own_cannot_be_given(fake):
    home, ada = fake.add_guild("Home"), fake.add_user("ada")
    chief = fake.add_role(home, "chief", position=9)
    fake.join(home, ada)

    async with logged_in(fake) as client:
        member = await (await client.fetch_guild(home.id)).fetch_member(ada.id)
        with pytest.raises(discord.Forbidden) as caught:
            await member.add_roles(discord.Object(chief.id))

    assert caught.value.code == 50013


async def test_a_member_is_timed_out_until_a_time(fake):
    home, ada = fake.add_guild("Home"), fake.add_user("ada")
    fake.join(home, ada)
    until = datetime.now(UTC) + timedelta(hours=1)

    async with logged_in(fake) as client:
        member = await (await client.fetch_guild(home.id)).fetch_member(ada.id)
        await member.timeout(until, reason="spam")
        assert fake.member(home, ada).timed_out_until == until
        with pytest.raises(discord.HTTPException) as caught:
            await member.timeout(timedelta(days=29))
        await member.timeout(None)

    assert caught.value.code == 50035
    assert fake.member(home, ada).timed_out_until is None


async def test_a_kicked_member_is_unknown_and_a_banned_one_can_be_unbanned_once(fake):
    home, ada, bob = fake.add_guild("Home"), fake.add_user("ada"), fake.add_user("bob")
    fake.join(home, ada)
    fake.join(home, bob)

    async with logged_in(fake) as client:
        guild = await client.fetch_guild(home.id)
        await (await guild.fetch_member(ada.id)).kick()
        with pytest.raises(discord.NotFound) as gone:
            await guild.fetch_member(ada.id)
        await guild.ban(discord.Object(bob.id), reason="spam")
        assert fake.bans(home) == {bob.id: "spam"}
        await guild.unban(discord.Object(bob.id))
        with pytest.raises(discord.NotFound) as no_ban:
            await guild.unban(discord.Object(bob.id))

    assert (gone.value.code, no_ban.value.code) == (10007, 10026)


async def test_a_bot_without_permission_answers_50013(fake):
    home, ada = fake.add_guild("Home", bot_permissions=["send_messages"]), fake.add_user("ada")
    fake.join(home, ada)

    async with logged_in(fake) as client:
        guild = await client.fetch_guild(home.id)
        with pytest.raises(discord.Forbidden) as caught:
            await (await guild.fetch_member(ada.id)).kick()

    assert caught.value.code == 50013


async def test_channel_overwrites_decide_who_may_send(fake):
    home = fake.add_guild("Home", bot_permissions=["send_messages", "manage_roles"])
    quiet = fake.add_channel(home, "quiet")

    async with logged_in(fake) as client:
        channel = await client.fetch_channel(quiet.id)
        await channel.send("still allowed")
        await client.http.edit_channel_permissions(quiet.id, fake.bot.id, "0", str(1 << 11), 1)
        with pytest.raises(discord.Forbidden) as caught:
            await channel.send("no more")

    assert caught.value.code == 50013
    assert [each.content for each in fake.messages(quiet)] == ["still allowed"]


async def test_messages_are_edited_answered_reacted_to_and_deleted(fake):
    home = fake.add_guild("Home")

    async with logged_in(fake) as client:
        channel = await client.fetch_channel(home.channel("general").id)
        first = await channel.send("one", embed=discord.Embed(title="T"))
        reply = await first.reply("two")
        await first.edit(content="uno")
        await first.add_reaction("👍")
        history = [each.content async for each in channel.history()]
        fetched = await channel.fetch_message(first.id)
        await reply.delete()

    (left,) = fake.messages(channel)
    assert history == ["two", "uno"]
    assert (left.content, left.embeds[0]["title"]) == ("uno", "T")
    assert left.edited_at is not None
    assert left.reactions == {"👍": [fake.bot.id]}
    assert fetched.reactions[0].me
    assert reply.reference.message_id == first.id


async def test_files_arrive_as_attachments(fake):
    home = fake.add_guild("Home")

    async with logged_in(fake) as client:
        channel = await client.fetch_channel(home.channel("general").id)
        await channel.send("see", file=discord.File(io.BytesIO(b"rows"), "report.csv"))

    (message,) = fake.messages(channel)
    assert message.content == "see"
    assert [(each["filename"], each["text"]) for each in message.attachments] == [("report.csv", "rows")]


async def test_a_message_that_is_too_long_names_its_field(fake):
    home = fake.add_guild("Home")

    async with logged_in(fake) as client:
        channel = await client.fetch_channel(home.channel("general").id)
        with pytest.raises(discord.HTTPException) as caught:
            await channel.send("x" * 2001)

    assert caught.value.code == 50035
    assert "In content: Must be 2000 or fewer in length." in caught.value.text


async def test_channels_and_threads_are_made(fake):
    home = fake.add_guild("Home")

    async with logged_in(fake) as client:
        guild = await client.fetch_guild(home.id)
        made = await guild.create_text_channel("Ticket 1", topic="help")
        thread = await (await client.fetch_channel(made.id)).create_thread(
            name="inside", type=discord.ChannelType.public_thread
        )
        await thread.send("hi")

    now = fake.guild(home)
    assert now.channel("ticket-1").topic == "help"
    assert now.channel("inside").parent_id == made.id
    assert [each.content for each in fake.messages(thread)] == ["hi"]


async def test_a_private_channel_is_made_with_its_overwrites(fake):
    home, ada = fake.add_guild("Home"), fake.add_user("ada")
    fake.join(home, ada)

    async with logged_in(fake) as client:
        guild = await client.fetch_guild(home.id)
        member, me = await guild.fetch_member(ada.id), await guild.fetch_member(client.user.id)
        see, hide = (
            discord.PermissionOverwrite(view_channel=True),
            discord.PermissionOverwrite(view_channel=False),
        )
        made = await guild.create_text_channel(
            "for ada", overwrites={guild.default_role: hide, member: see, me: see}
        )
        await made.send("yours")

    assert made.overwrites_for(guild.default_role).view_channel is False
    assert fake.guild(home).channel("for-ada").id == made.id


async def test_the_same_nonce_is_the_same_message(fake):
    home = fake.add_guild("Home")

    async with logged_in(fake) as client:
        channel = await client.fetch_channel(home.channel("general").id)
        one = await channel.send("hello", nonce="n1")
        two = await channel.send("hello", nonce="n1")
        other = await channel.send("hello", nonce="n2")
        await one.delete()
        with pytest.raises(discord.NotFound):
            await channel.send("hello", nonce="n1")

    assert one.id == two.id != other.id
    assert len(fake.messages(channel)) == 1


async def test_a_fault_answers_as_often_as_it_was_told_to(fake):
    home = fake.add_guild("Home")
    fault = fake.fail("POST", "/channels/{channel_id}/messages", code=50007, times=2)

    async with logged_in(fake) as client:
        channel = await client.fetch_channel(home.channel("general").id)
        for _ in range(2):
            with pytest.raises(discord.Forbidden):
                await channel.send("no")
        await channel.send("yes")

    assert fault.hits == 2
    assert [each.content for each in fake.messages(channel)] == ["yes"]


async def test_a_fault_can_be_meant_for_one_channel_only(fake):
    home = fake.add_guild("Home")
    quiet = fake.add_channel(home, "quiet")
    fake.fail("POST", f"/channels/{quiet.id}/messages", code=50013, times=None)

    async with logged_in(fake) as client:
        await (await client.fetch_channel(home.channel("general").id)).send("fine")
        with pytest.raises(discord.Forbidden):
            await (await client.fetch_channel(quiet.id)).send("not")


async def test_a_rate_limit_is_waited_for_by_discord_py(fake):
    home = fake.add_guild("Home")
    fake.fail("POST", "/channels/{channel_id}/messages", retry_after=0.01)

    async with logged_in(fake) as client:
        await (await client.fetch_channel(home.channel("general").id)).send("in the end")

    statuses = [each.status for each in fake.calls_to("POST", "/channels/{channel_id}/messages")]
    assert statuses == [429, 200]


async def test_a_dropped_call_was_committed_and_the_caller_cannot_know(fake):
    home = fake.add_guild("Home")
    fake.fail("POST", "/channels/{channel_id}/messages", drop_after_commit=True)

    async with logged_in(fake) as client:
        channel = await client.fetch_channel(home.channel("general").id)
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await channel.send("there")

    assert [each.content for each in fake.messages(channel)] == ["there"]
    assert fake.calls[-1].dropped


async def test_a_held_call_is_in_the_log_and_goes_on_when_released(fake):
    home = fake.add_guild("Home")
    fault = fake.fail("POST", "/channels/{channel_id}/messages", delay=60)

    async with logged_in(fake) as client:
        channel = await client.fetch_channel(home.channel("general").id)
        sending = asyncio.create_task(channel.send("late"))
        await fake.until(lambda: fault.hits == 1)
        assert (fake.calls[-1].status, fake.messages(channel)) == (None, [])
        fault.release()
        await sending

    assert [each.content for each in fake.messages(channel)] == ["late"]


async def test_an_unknown_route_says_that_it_is_the_fake_that_lacks_it(fake):
    async with logged_in(fake) as client:
        with pytest.raises(discord.NotFound, match="FakeDiscord has no route for GET /sticker-packs"):
            await client.fetch_premium_sticker_packs()


def test_waiting_in_vain_tells_what_discord_saw(fake):
    with pytest.raises(TimeoutError, match="The last calls that Discord saw:\n  none"):
        fake.wait_for(lambda: False, timeout=0.01)


def test_a_slash_command_without_a_bot_says_so(fake):
    with pytest.raises(FakeDiscordError, match="No bot is connected"):
        fake.slash("greet", user=fake.add_user("ada"))


def test_a_fake_that_was_not_started_says_so():
    with pytest.raises(FakeDiscordError, match="use it in a `with` block"):
        FakeDiscord().add_user("ada")


def test_the_log_keeps_no_token(fake):
    assert fake.token not in repr(fake.calls)
