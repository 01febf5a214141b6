"""Every workflow of the seed page, started by a real slash command, with its steps run in both places."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Scene

pytestmark = pytest.mark.slow


def test_greet_answers_then_greets_twice_at_least_five_seconds_apart(scene: Scene) -> None:
    fake = scene.fake
    answer = fake.slash("greet", user=scene.member, guild=scene.guild).wait()

    run = scene.home.wait_for_run("greet_user_workflow", scene.member.id, "completed")

    assert answer is not None
    assert answer.content == "I'm going to greet you! 😉"
    first, second = fake.dms(scene.member)
    assert (first.content, second.content) == ("Hello!", "Hello again!")
    assert second.created_at - first.created_at >= timedelta(seconds=5)
    assert answer.created_at <= first.created_at
    assert run["return_value"] == {"success": True}


def test_onboarding_welcomes_gives_the_role_and_then_sleeps_for_seven_days(scene: Scene) -> None:
    fake = scene.fake
    welcome = fake.add_channel(scene.guild, "welcome")

    fake.slash(
        "onboard", user=scene.moderator, guild=scene.guild, options={"member": scene.member}
    ).wait()
    fake.wait_for(lambda: member_roles(scene) == {"Member"}, 30)

    (message,) = fake.messages(welcome)
    assert message.content == f"Welcome to {scene.guild.name}, {scene.member.mention}! 🎉"
    assert message.embeds[0]["title"] == "Welcome!"
    assert message.raw["allowed_mentions"]["users"] == [scene.member.id]
    run = scene.home.wait_for_run("user_onboarding_workflow", scene.member.id, "running")
    due = datetime.fromisoformat(run["sleeping_until"])
    assert timedelta(days=6.9) < due - datetime.now(UTC) <= timedelta(days=7)
    assert fake.dms(scene.member) == []


def test_onboarding_asks_again_when_the_seven_days_are_over(scene: Scene) -> None:
    fake = scene.fake
    fake.add_channel(scene.guild, "welcome")
    fake.slash(
        "onboard", user=scene.moderator, guild=scene.guild, options={"member": scene.member}
    ).wait()
    fake.wait_for(lambda: member_roles(scene) == {"Member"}, 30)
    run = scene.home.wait_for_run("user_onboarding_workflow", scene.member.id, "running")

    scene.home.let_sleep_end(run["run_id"])
    run = scene.home.wait_for_run("user_onboarding_workflow", scene.member.id, "completed")

    assert [message.content for message in fake.dms(scene.member)] == [
        f"You have been in {scene.guild.name} for a week. How do you like it?"
    ]
    assert run["return_value"] == {"user_id": str(scene.member.id), "status": "completed"}
    assert [step["attempt"] for step in run["steps"] if step["kind"] == "step"] == [1, 1, 1]


def test_onboarding_welcomes_by_dm_where_there_is_no_welcome_channel(scene: Scene) -> None:
    fake = scene.fake

    fake.slash(
        "onboard", user=scene.moderator, guild=scene.guild, options={"member": scene.member}
    ).wait()
    fake.wait_for(lambda: fake.dms(scene.member), 30)

    (message,) = fake.dms(scene.member)
    assert message.embeds[0]["description"] == f"Thanks for joining {scene.guild.name}!"


def test_onboarding_of_somebody_with_closed_dms_fails_at_once_and_says_why(scene: Scene) -> None:
    fake = scene.fake
    fake.set_user(scene.member, accepts_dms=False)

    fake.slash(
        "onboard", user=scene.moderator, guild=scene.guild, options={"member": scene.member}
    ).wait()
    run = scene.home.wait_for_run("user_onboarding_workflow", scene.member.id, "failed")

    assert "User has DMs disabled" in run["error"]
    assert run["steps"][0]["attempt"] == 1


def test_member_setup_does_three_things_and_welcomes_in_the_channel_that_it_made(scene: Scene) -> None:
    fake = scene.fake

    fake.slash("setup", user=scene.moderator, guild=scene.guild, options={"member": scene.member}).wait()
    run = scene.home.wait_for_run("member_setup_workflow", scene.member.id, "completed")

    private = fake.guild(scene.guild).channel(f"private-{scene.member.name}")
    assert [message.content for message in fake.messages(private)] == [
        f"Welcome to {scene.guild.name}, {scene.member.mention}! This channel is yours."
    ]
    assert member_roles(scene) == {"Member", "Newcomer"}
    assert [message.content for message in fake.messages(scene.log)] == [
        f"{scene.member.mention} joined."
    ]
    assert str(private.id) in str(run["return_value"])


def test_member_stats_counts_roles_and_tells_them(scene: Scene) -> None:
    fake = scene.fake
    fake.set_roles(scene.guild, scene.member, [scene.roles["Artist"]])

    interaction = fake.slash(
        "stats", user=scene.moderator, guild=scene.guild, options={"member": scene.member}
    )
    fake.wait_for(lambda: any(message.content for message in interaction.messages), 30)

    assert [message.content for message in interaction.messages] == [f"{scene.member.name} has 2 roles."]
    run = scene.home.wait_for_run("member_stats_workflow", scene.member.id, "completed")
    assert scene.home.stored(f"member:{scene.member.id}:stats") == run["return_value"]["stats"]


@pytest.mark.parametrize(("is_old", "answer"), [(True, "is verified"), (False, "is not verified")])
def test_verification_looks_at_the_age_of_the_account(scene: Scene, is_old: bool, answer: str) -> None:
    fake = scene.fake
    person = scene.member if is_old else scene.moderator  # whose account the fake made a moment ago

    interaction = fake.slash(
        "verify", user=scene.moderator, guild=scene.guild, options={"member": person}
    )
    fake.wait_for(lambda: any(message.content for message in interaction.messages), 30)

    assert [message.content for message in interaction.messages] == [f"{person.name} {answer}."]
    run = scene.home.wait_for_run("member_verification_workflow", person.id, "completed")
    assert run["return_value"] == {"user_id": str(person.id), "verified": is_old, "status": "completed"}


@pytest.mark.parametrize("action", ["warn", "mute", "kick"])
def test_moderation_acts_and_tells_the_moderators(scene: Scene, action: str) -> None:
    fake = scene.fake
    options = {"member": scene.member, "action": action}

    fake.slash("moderate", user=scene.moderator, guild=scene.guild, options=options).wait()
    run = scene.home.wait_for_run("moderation_workflow", scene.member.id, "completed")

    assert run["return_value"] == {"user_id": str(scene.member.id), "action": action, "success": True}
    assert [message.content for message in fake.messages(scene.log)] == [
        f"{scene.member.mention}: {action}"
    ]
    member = fake.member(scene.guild, scene.member)
    if action == "warn":
        assert [each.content for each in fake.dms(scene.member)] == [
            "You have been warned for violating server rules."
        ]
    elif action == "mute":
        assert member is not None
        assert member.timed_out_until is not None
        left = member.timed_out_until - datetime.now(UTC)
        assert timedelta(minutes=59) < left <= timedelta(hours=1)
    else:
        assert member is None


def test_moderation_without_permission_fails_at_once_and_says_why(scene: Scene) -> None:
    fake = scene.fake
    fake.fail("DELETE", f"/guilds/{scene.guild.id}/members/{scene.member.id}", code=50013, times=None)
    options = {"member": scene.member, "action": "kick"}

    fake.slash("moderate", user=scene.moderator, guild=scene.guild, options=options).wait()
    run = scene.home.wait_for_run("moderation_workflow", scene.member.id, "failed")

    assert "Missing permissions to perform action" in run["error"]
    assert fake.member(scene.guild, scene.member) is not None


def test_moderation_waits_as_long_as_a_rate_limit_says_and_then_acts(scene: Scene) -> None:
    fake = scene.fake
    route = f"/guilds/{scene.guild.id}/members/{scene.member.id}"
    fault = fake.fail("DELETE", route, status=429, retry_after=1.0, times=1)
    options = {"member": scene.member, "action": "kick"}

    fake.slash("moderate", user=scene.moderator, guild=scene.guild, options=options).wait()
    scene.home.wait_for_run("moderation_workflow", scene.member.id, "completed")

    assert fault.hits == 1
    assert fake.member(scene.guild, scene.member) is None


def test_moderation_that_discord_turns_away_comes_back_in_a_minute(scene: Scene) -> None:
    fake = scene.fake
    route = f"/guilds/{scene.guild.id}/members/{scene.member.id}"
    # A 429 that discord.py raises at once instead of waiting for its end.
    fault = fake.fail("DELETE", route, status=429, cloudflare=True, times=None)
    options = {"member": scene.member, "action": "kick"}

    fake.slash("moderate", user=scene.moderator, guild=scene.guild, options=options).wait()
    fake.wait_for(lambda: fault.hits == 1, 30)
    run = scene.home.wait_for_run("moderation_workflow", scene.member.id, "running")
    step = fake.wait_for(lambda: waiting_step(scene, run["run_id"]), 30)

    assert step["attempt"] == 1
    assert step["error"] == "RetryableError: Rate limited by Discord"
    left = datetime.fromisoformat(step["due_at"]) - datetime.now(UTC)
    assert timedelta(seconds=30) < left <= timedelta(minutes=1)


def waiting_step(scene: Scene, run_id: str) -> dict[str, Any] | None:
    """The step of a run that has failed once and waits for its next attempt."""
    steps = scene.home.show(run_id)["steps"]
    return next((step for step in steps if step["status"] == "planned" and step["error"]), None)


def test_an_assigned_role_is_not_assigned_again(scene: Scene) -> None:
    fake, role = scene.fake, scene.roles["Artist"]
    options = {"member": scene.member, "role": role}
    values = []

    for count in (1, 2):
        fake.slash("assign", user=scene.moderator, guild=scene.guild, options=options).wait()
        run = scene.home.wait_for_run(
            "role_assignment_workflow", scene.member.id, "completed", count=count
        )
        values.append(run["return_value"])

    assert values == [{"assigned": True}, {"already_assigned": True}]
    assert member_roles(scene) == {"Artist"}
    puts = fake.calls_to("PUT", f"/guilds/{scene.guild.id}/members/{scene.member.id}/roles/{role.id}")
    assert len(puts) == 1


def member_roles(scene: Scene) -> set[str]:
    """The names of the member's roles, as they are now."""
    member = scene.fake.member(scene.guild, scene.member)
    assert member is not None
    return {role.name for role in scene.fake.guild(scene.guild).roles if role.id in member.roles}
