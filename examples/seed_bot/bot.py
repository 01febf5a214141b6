"""The seed page's bot: each slash command answers, then starts a workflow.

Run it with `make bot` (DISCORD_TOKEN of a real bot), or see it at work without one: `make demo`.
"""

import asyncio
import logging
import os
import sys
from typing import Any, Literal

import discord
from discord import app_commands
from discord.ext import commands

from ckworkflow import start
from workflows.greet.greet_workflow import greet_user_workflow
from workflows.member_setup.member_setup_workflow import member_setup_workflow
from workflows.member_stats.member_stats_workflow import member_stats_workflow
from workflows.member_verification.member_verification_workflow import member_verification_workflow
from workflows.moderation.moderation_workflow import moderation_workflow
from workflows.role_assignment.role_assignment_workflow import role_assignment_workflow
from workflows.user_onboarding import user_onboarding_workflow

Interaction = discord.Interaction[commands.Bot]


class SeedBot(commands.Bot):
    """An ordinary discord.py bot; nothing in it knows of workflows."""

    def __init__(self) -> None:
        super().__init__(command_prefix=commands.when_mentioned, intents=discord.Intents.default())
        for command in COMMANDS:
            self.tree.add_command(command)

    async def setup_hook(self) -> None:
        await self.tree.sync()

    async def on_ready(self) -> None:
        logging.getLogger("seed_bot").info("ready as %s", self.user)


# In each command the answer comes first: Discord gives three seconds for it, and `start` writes to a database.


@app_commands.command(description="Greet a user with a workflow")
async def greet(interaction: Interaction) -> None:
    await interaction.response.send_message("I'm going to greet you! 😉")
    await start(greet_user_workflow, str(interaction.user.id))


@app_commands.command(description="Welcome a member, and ask again in a week")
@app_commands.guild_only()
async def onboard(interaction: Interaction, member: discord.Member) -> None:
    await interaction.response.send_message(f"Onboarding {member.display_name}.", ephemeral=True)
    await start(user_onboarding_workflow, str(member.id), str(member.guild.id))


@app_commands.command(description="Roles, a private channel and a log entry for a member")
@app_commands.guild_only()
async def setup(interaction: Interaction, member: discord.Member) -> None:
    await interaction.response.send_message(f"Setting up {member.display_name}.", ephemeral=True)
    await start(member_setup_workflow, str(member.id), str(member.guild.id))


@app_commands.command(description="Count a member's roles")
@app_commands.guild_only()
async def stats(interaction: Interaction, member: discord.Member) -> None:
    await interaction.response.defer(ephemeral=True)
    run = await start(member_stats_workflow, str(member.id), str(member.guild.id))
    result = await run.return_value(timeout=60)
    await interaction.followup.send(
        f"{member.display_name} has {result['stats']['roles']} roles.", ephemeral=True
    )


@app_commands.command(description="Check whether a member may be trusted")
@app_commands.guild_only()
async def verify(interaction: Interaction, member: discord.Member) -> None:
    await interaction.response.defer(ephemeral=True)
    run = await start(member_verification_workflow, str(member.id), str(member.guild.id))
    result = await run.return_value(timeout=60)
    answer = "is verified" if result["verified"] else "is not verified"
    await interaction.followup.send(f"{member.display_name} {answer}.", ephemeral=True)


@app_commands.command(description="Warn, mute or kick a member")
@app_commands.guild_only()
@app_commands.default_permissions(moderate_members=True)
async def moderate(
    interaction: Interaction, member: discord.Member, action: Literal["warn", "mute", "kick"]
) -> None:
    await interaction.response.send_message(
        f"{action.capitalize()}: {member.display_name}.", ephemeral=True
    )
    await start(moderation_workflow, str(member.id), str(member.guild.id), action)


@app_commands.command(description="Give a member a role")
@app_commands.guild_only()
@app_commands.default_permissions(manage_roles=True)
async def assign(interaction: Interaction, member: discord.Member, role: discord.Role) -> None:
    await interaction.response.send_message(f"{role.name} for {member.display_name}.", ephemeral=True)
    await start(role_assignment_workflow, str(member.id), str(member.guild.id), str(role.id))


COMMANDS: list[app_commands.Command[Any, ..., None]] = [
    greet,
    onboard,
    setup,
    stats,
    verify,
    moderate,
    assign,
]


async def main() -> None:
    """Load the extension, then log in: with no broker configured, the worker starts in this process."""
    discord.utils.setup_logging(level=logging.INFO)
    async with SeedBot() as bot:
        await bot.load_extension("ckworkflow.ext.discord")
        await bot.start(os.environ["DISCORD_TOKEN"])


if __name__ == "__main__":
    if not os.environ.get("DISCORD_TOKEN"):
        sys.exit(
            "Set DISCORD_TOKEN to the bot's token (Discord Developer Portal > your app > Bot > Reset Token)."
        )
    asyncio.run(main())
