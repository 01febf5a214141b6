"""FakeDiscord's gateway, driven by a real discord.ext.commands.Bot."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys

import discord
import pytest
from discord import app_commands

from ckworkflow.discord import apply_endpoints, reset_endpoints
from ckworkflow.testing import FakeDiscord
from ckworkflow.testing.fake_discord import FakeDiscordError
from ckworkflow.testing.fake_discord.wire import check_event
from discord_bots import FastBot, connected


def greeter() -> FastBot:
    bot = FastBot()

    @bot.tree.command()
    async def greet(interaction: discord.Interaction) -> None:
        """Greet."""
        await interaction.response.send_message(f"Hello {interaction.user.name}!")

    return bot


async def test_a_slash_command_is_dispatched_and_answered_in_the_guild(fake):
    home, ada = fake.add_guild("Home"), fake.add_user("ada")
    fake.join(home, ada)

    async with connected(greeter(), fake):
        interaction = fake.slash("greet", user=ada, guild=home)
        await fake.until(lambda: interaction.is_answered)

    (message,) = fake.messages(home.channel("general"))
    assert (message.content, message.author) == ("Hello ada!", fake.bot)
    assert interaction.messages == [message]


async def test_a_slash_command_without_a_guild_is_sent_in_the_dm(fake):
    ada = fake.add_user("ada")

    async with connected(greeter(), fake):
        fake.slash("greet", user=ada)
        await fake.until(lambda: fake.dms(ada))

    assert [each.content for each in fake.dms(ada)] == ["Hello ada!"]


async def test_options_arrive_with_their_types(fake):
    home, ada, bob = fake.add_guild("Home"), fake.add_user("ada"), fake.add_user("bob")
    fake.join(home, ada)
    fake.join(home, bob)
    bot, got = FastBot(), []
    config = app_commands.Group(name="config", description="…")

    @config.command(name="set")
    async def set_(
        interaction: discord.Interaction,
        who: discord.Member,
        where: discord.TextChannel,
        count: int,
        loud: bool = False,
    ) -> None:
        """Set."""
        got.append((who.id, who.name, where.id, count, loud))
        await interaction.response.send_message("ok", ephemeral=True)

    bot.tree.add_command(config)
    general = home.channel("general")

    async with connected(bot, fake):
        await bot.tree.sync()
        options = {"who": bob, "where": general.id, "count": 3, "loud": True}
        interaction = fake.slash("config set", user=ada, guild=home, options=options)
        await fake.until(lambda: interaction.is_answered)
        with pytest.raises(FakeDiscordError, match=r"unknown options \['colour'\], missing \['who'"):
            fake.slash("config set", user=ada, guild=home, options={"colour": 1})
        with pytest.raises(FakeDiscordError, match="registered no command /greet here; it has config"):
            fake.slash("greet", user=ada, guild=home)

    assert got == [(bob.id, "bob", general.id, 3, True)]
    assert interaction.messages[0].ephemeral_for == ada.id


async def test_a_deferred_answer_is_filled_by_the_follow_up(fake):
    ada, bot = fake.add_user("ada"), FastBot()

    @bot.tree.command()
    async def slow(interaction: discord.Interaction) -> None:
        """Think."""
        await interaction.response.defer()
        await interaction.followup.send("thought")
        await interaction.followup.send("and more")
        await interaction.edit_original_response(content="thought twice")

    async with connected(bot, fake):
        interaction = fake.slash("slow", user=ada)
        await fake.until(
            lambda: [e.content for e in interaction.messages] == ["thought twice", "and more"]
        )

    assert interaction.answered_with == 5


async def test_a_click_reaches_a_view_and_updates_its_message(fake):
    ada, bot = fake.add_user("ada"), FastBot()

    class Choice(discord.ui.View):
        @discord.ui.button(label="Yes", custom_id="yes")
        async def yes(self, interaction: discord.Interaction, button: discord.ui.Button) -> None:
            button.disabled = True
            await interaction.response.edit_message(content=f"{interaction.user.name} agrees", view=self)

    async with connected(bot, fake):
        user = await bot.fetch_user(ada.id)
        sent = await user.send("Agree?", view=Choice())
        fake.click(sent, "Yes", user=ada)
        await fake.until(lambda: fake.message(sent).content == "ada agrees")
        with pytest.raises(FakeDiscordError, match="disabled"):
            fake.click(sent, "yes", user=ada)
        with pytest.raises(FakeDiscordError, match="no component 'no'"):
            fake.click(sent, "no", user=ada)


async def test_a_modal_is_opened_filled_in_and_answered(fake):
    ada, bot = fake.add_user("ada"), FastBot()

    class Report(discord.ui.Modal, title="Report"):
        why = discord.ui.TextInput(label="Why", custom_id="why")

        async def on_submit(self, interaction: discord.Interaction) -> None:
            await interaction.response.send_message(f"because {self.why.value}")

    @bot.tree.command()
    async def report(interaction: discord.Interaction) -> None:
        """Report."""
        await interaction.response.send_modal(Report())

    async with connected(bot, fake):
        opened = fake.slash("report", user=ada)
        await fake.until(lambda: opened.modal)
        sent = opened.submit(why="spam")
        await fake.until(lambda: sent.is_answered)

    assert sent.messages[0].content == "because spam"


async def test_joining_and_leaving_are_heard(fake):
    home, ada = fake.add_guild("Home"), fake.add_user("ada")
    bot, heard = FastBot(), []

    @bot.event
    async def on_member_join(member: discord.Member) -> None:
        heard.append(("join", member.name, member.guild.name))

    @bot.event
    async def on_member_remove(member: discord.Member) -> None:
        heard.append(("leave", member.name, member.guild.name))

    async with connected(bot, fake):
        fake.join(home, ada)
        await fake.until(lambda: len(heard) == 1)
        assert bot.get_guild(home.id).get_member(ada.id) is not None
        fake.leave(home, ada)
        await fake.until(lambda: len(heard) == 2)

    assert heard == [("join", "ada", "Home"), ("leave", "ada", "Home")]


async def test_a_guild_that_is_made_later_is_heard_of(fake):
    async with connected(FastBot(), fake) as bot:
        home = fake.add_guild("Later")
        await fake.until(lambda: bot.get_guild(home.id))
        assert bot.get_guild(home.id).me.top_role.name == "fake-bot"


async def test_what_users_write_and_react_is_heard(fake):
    home, ada = fake.add_guild("Home"), fake.add_user("ada")
    fake.join(home, ada)
    bot, heard = FastBot(), []

    @bot.command()
    async def ping(ctx) -> None:
        await ctx.send("pong")

    @bot.event
    async def on_raw_reaction_add(payload: discord.RawReactionActionEvent) -> None:
        heard.append((str(payload.emoji), payload.member.name))

    async with connected(bot, fake):
        said = fake.say(home.channel("general"), ada, "!ping")
        fake.react(said, ada, "👍")
        await fake.until(lambda: heard and len(fake.messages(home.channel("general"))) == 2)

    assert heard == [("👍", "ada")]


async def test_without_the_content_intent_guild_messages_are_blank(fake):
    home, ada = fake.add_guild("Home"), fake.add_user("ada")
    fake.join(home, ada)
    bot, heard = FastBot(intents=discord.Intents.default()), []

    @bot.event
    async def on_message(message: discord.Message) -> None:
        heard.append(message.content)

    async with connected(bot, fake):
        fake.say(home.channel("general"), ada, "secret")
        fake.say(fake.dm(ada), ada, "open")
        await fake.until(lambda: len(heard) == 2)

    assert heard == ["", "open"]


async def test_a_dropped_bot_resumes_and_hears_what_it_missed(fake):
    home, ada = fake.add_guild("Home"), fake.add_user("ada")
    bot, heard = FastBot(), []

    @bot.event
    async def on_member_join(member: discord.Member) -> None:
        heard.append(member.name)

    @bot.event
    async def on_resumed() -> None:
        heard.append("resumed")

    async with connected(bot, fake):
        assert fake.drop_gateway() == 1
        fake.join(home, ada)
        await fake.until(lambda: len(heard) == 2)

    assert heard == ["ada", "resumed"]


async def test_a_bot_that_cannot_resume_identifies_again(fake):
    bot, heard = FastBot(), []

    @bot.event
    async def on_ready() -> None:
        heard.append("ready")

    async with connected(bot, fake):
        await fake.until(lambda: heard == ["ready"])
        fake.drop_gateway(resumable=False)
        await fake.until(lambda: heard == ["ready", "ready"])


async def test_members_are_chunked_when_asked_for(fake):
    home = fake.add_guild("Home")
    for name in ("ada", "bob"):
        fake.join(home, fake.add_user(name))

    async with connected(FastBot(intents=discord.Intents.default()), fake) as bot:
        guild = bot.get_guild(home.id)
        assert [each.name for each in guild.members] == ["fake-bot"]
        found = await guild.query_members("ad")

    assert [each.name for each in found] == ["ada"]


async def test_shards_hear_of_their_own_guilds(fake):
    fake.configure(shards=2)
    homes = [fake.add_guild(f"Home {index}") for index in range(4)]
    bot = discord.AutoShardedClient(
        intents=discord.Intents.default(), guild_ready_timeout=0.01, chunk_guilds_at_startup=False
    )

    async def at_once(shard_id, *, initial=False) -> None:
        pass

    bot.before_identify_hook = at_once
    task = asyncio.create_task(bot.start(fake.token))
    await fake.until(lambda: len(bot.guilds) == 4 and all(each.name for each in bot.guilds))
    # Guilds made in one millisecond have one shard: the other is not known by its guilds.
    await fake.until(lambda: len(fake.call("sessions")) == 2)
    shards = {each["shard"][0]: each for each in fake.call("sessions")}
    await bot.close()
    await asyncio.gather(task, return_exceptions=True)

    assert sorted(shards) == [0, 1]
    assert {each.id for each in homes} == {each.id for each in bot.guilds} or not bot.guilds


async def test_an_answer_after_three_seconds_comes_too_late(fake):
    ada, bot, errors = fake.add_user("ada"), FastBot(), []
    fake.configure(interaction_seconds=0.0)

    @bot.tree.command()
    async def greet(interaction: discord.Interaction) -> None:
        """Greet."""
        try:
            await interaction.response.send_message("late")
        except discord.NotFound as error:
            errors.append(error.code)

    async with connected(bot, fake):
        fake.slash("greet", user=ada)
        await fake.until(lambda: errors)

    assert errors == [10062]


def test_a_payload_that_would_kill_a_bot_is_refused():
    with pytest.raises(FakeDiscordError, match="GUILD_MEMBER_ADD without flags"):
        user = {"id": "1", "username": "a", "discriminator": "0", "avatar": None}
        check_event("GUILD_MEMBER_ADD", {"guild_id": "1", "roles": [], "user": user})


def test_the_program_is_driven_from_another_process():
    command = [sys.executable, "-m", "ckworkflow.testing.fake_discord", "--token", "my-token"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        try:
            addresses = json.loads(program.stdout.readline())
            asyncio.run(_greet_over_there(addresses))
        finally:
            program.send_signal(signal.SIGTERM)
        assert program.wait(10) == 0


async def _greet_over_there(addresses: dict[str, str]) -> None:
    fake = FakeDiscord.connect(addresses["api_base"])
    assert fake.token == addresses["token"] == "my-token"
    apply_endpoints(fake.env)
    try:
        ada = fake.add_user("ada")
        async with connected(greeter(), fake):
            interaction = fake.slash("greet", user=ada)
            await fake.until(lambda: interaction.is_answered)
        assert [each.content for each in fake.dms(ada)] == ["Hello ada!"]
        with pytest.raises(FakeDiscordError, match="There is no guild 1"):
            fake.guild(1)
    finally:
        reset_endpoints()
