"""No body can tell that its lazy steps run at the last moment."""

from __future__ import annotations

from types import FunctionType
from typing import Any
from unittest import mock

import pytest

from ckworkflow.definition import Step, Workflow
from compiler import bodies
from compiler.bodies import CASES, Case
from compiler.plain import outcome, plain
from compiler.speculation import Call, Inlined, Speculation, resolve
from compiler.test_table import compiled, original

# Left to `differential`, which runs tasks beside each other.
CONCURRENT = {
    "gather_of_unknown": "its members run beside each other, which this world cannot do",
    "gather_of_a_name": "as before",
    "gathers_workflows": "as before",
    "gather_beside_a_chain": "as before",
    "members_share_a_dict": "as before",
    "members_share_a_list": "as before",
}


def speculate(workflow: Workflow[..., Any], args: tuple[Any, ...]) -> Any:
    """The outcome of a body in the worst trace."""
    world = Speculation()

    def run_workflow(self: Workflow[..., Any], *args: Any, **kwargs: Any) -> Any:
        function = compiled(self, world).function
        return Inlined(world, lambda: function(*args, **kwargs))

    def call_step(self: Step[..., Any], *args: Any, **kwargs: Any) -> Any:
        return Call(world, self.function, (args, kwargs))

    def call_sleep(duration: Any) -> Any:
        return Call(world, plain_sleep, ((duration,), {}))

    function: FunctionType = compiled(workflow, world).function

    async def run(*args: Any) -> Any:
        try:
            result = await function(*args)
        finally:
            await world.fence()
        return resolve(result)

    with (
        plain(bodies, original),
        mock.patch.object(Step, "__call__", call_step),
        mock.patch.object(Workflow, "__call__", run_workflow),
    ):
        plain_sleep = bodies.sleep
        with mock.patch.object(bodies, "sleep", call_sleep):
            return outcome(run, args)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name not in CONCURRENT], ids=lambda case: case.name
)
def test_a_body_cannot_tell_that_its_steps_are_put_off(case: Case) -> None:
    with plain(bodies, original):
        before = outcome(original(case.workflow), case.args)

    assert speculate(case.workflow, case.args) == before
