"""The fixture `workflow_env`, which pytest finds wherever ckworkflow is installed.

    async def test_the_follow_up_comes_after_a_week(workflow_env):
        run = await start(onboarding, "42")
        await workflow_env.advance("7 days")
        assert await run.return_value() == "followed up"

Not here: what it gives (`ckworkflow.testing.environment`), and the plugin that runs async tests (pytest-asyncio, anyio).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ckworkflow.testing import Environment


@pytest.fixture
def workflow_env() -> Iterator[Environment]:
    """An environment of `ckworkflow.testing.environment()`, for one test."""
    from ckworkflow.testing.environment import environment  # not for tests that do not ask for it

    with environment() as env:
        yield env
