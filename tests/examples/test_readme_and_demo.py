"""What the README promises: its own bot runs as printed, and `make demo` ends well in under a minute."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ckworkflow.testing import FakeDiscord
from seed_home import BIN, SEED_BOT, Home

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def blocks() -> list[str]:
    """The Python blocks of the README, without the indentation of the list that they stand in."""
    found = re.findall(
        r"^( *)```python\n(.*?)^ *```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )
    return [re.sub(rf"^{indent}", "", code, flags=re.MULTILINE) for indent, code in found]


def test_the_bot_of_the_readme_runs_as_it_is_printed(tmp_path: Path) -> None:
    workflow, settings, bot, *_ = blocks()
    (tmp_path / "workflows").mkdir()
    (tmp_path / "workflows" / "greet.py").write_text(workflow)
    (tmp_path / "bot.py").write_text(bot)
    with FakeDiscord() as fake:
        home = Home(tmp_path, fake, code=tmp_path, broker_url=None)
        (tmp_path / "celeryconfig.py").write_text(settings)
        guild, ada = fake.add_guild("Home"), fake.add_user("ada")
        fake.join(guild, ada)
        try:
            home.start_bot()
            fake.slash("greet", user=ada, guild=guild).wait()
            run = home.wait_for_run("greet_user_workflow", ada.id, "completed")
            plan = home.command("ckworkflow", "plan", "workflows.greet.greet_user_workflow", "42")
            words = [message.content for message in fake.dms(ada)]
        finally:
            home.stop()

    assert words == ["Hello!", "Hello again!"]
    assert "greet_user('42', again=True)" in plan
    assert run["return_value"] == {"success": True}


def test_the_bot_grows_onto_redis_and_postgresql_by_its_settings_alone(
    tmp_path: Path, redis_url: str, postgres_url: str
) -> None:
    with FakeDiscord() as fake:
        home = Home(tmp_path, fake, broker_url=redis_url, database_url=postgres_url)
        guild, ada = fake.add_guild("Home"), fake.add_user("ada")
        fake.join(guild, ada)
        try:
            home.start()
            fake.slash("greet", user=ada, guild=guild).wait()
            run = home.wait_for_run("greet_user_workflow", ada.id, "completed")
            words = [message.content for message in fake.dms(ada)]
        finally:
            home.stop()

    assert words == ["Hello!", "Hello again!"]
    assert run["return_value"] == {"success": True}


def test_the_demo_ends_well_in_under_a_minute(tmp_path: Path) -> None:
    env = os.environ | {"PATH": os.pathsep.join([str(BIN), os.environ["PATH"]]), "TMPDIR": str(tmp_path)}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "demo.py"], cwd=SEED_BOT, env=env, capture_output=True, text=True, timeout=120
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - started < 60
    said = done.stdout
    assert said.index("Hello!") < said.index("kill -9") < said.index("Hello again!") < said.index("✔")
