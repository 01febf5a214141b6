"""Tests of workflows on a clock of their own: a coroutine function, run in an environment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from ckworkflow.testing import Environment, environment


def in_environment(test: Callable[[Environment], Awaitable[Any]], **options: Any) -> Any:
    """Run it in an environment of its own."""

    async def main() -> Any:
        async with environment(**options) as env:
            return await test(env)

    return asyncio.run(main())
