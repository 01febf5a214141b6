"""The public surface: exactly the names that are documented, each of them real."""

from __future__ import annotations

import importlib
import types

import pytest

import ckworkflow
from ckworkflow import errors

OWN_NAMES = {
    "Webhook", "WebhookRequest", "create_webhook",
    "Hook", "HookDefinition", "HookInfo", "create_hook", "define_hook", "get_hook", "get_hook_sync", "resume_hook", "resume_hook_sync",
    "Run", "RunStatus", "Step", "StepInfo", "SyncRun", "Workflow", "WorkflowPlugin", "cancel_runs", "cancel_runs_sync", "continue_as_new", "get_run", "get_run_sync", "now",
    "parse_duration", "random", "register_type", "sleep", "start", "start_sync", "step", "timeout", "uuid4", "workflow",
}  # fmt: skip


def test_all_names_the_documented_names_and_every_named_error() -> None:
    assert set(ckworkflow.__all__) == OWN_NAMES | set(errors.__all__)


def test_all_is_sorted_and_without_repetition() -> None:
    assert list(ckworkflow.__all__) == sorted(set(ckworkflow.__all__))


@pytest.mark.parametrize("name", sorted(ckworkflow.__all__))
def test_every_public_name_is_real(name: str) -> None:
    assert getattr(ckworkflow, name) is not None


def test_the_package_holds_no_other_name() -> None:
    public = {name for name in vars(ckworkflow) if not name.startswith("_")}
    modules = {name for name in public if isinstance(getattr(ckworkflow, name), types.ModuleType)}
    assert public - modules - {"annotations", "TYPE_CHECKING"} <= set(ckworkflow.__all__)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("ckworkflow.hooks", {"use_client", "use_commandkit", "use_run", "use_step"}),
        (
            "ckworkflow.testing",
            {
                "Environment",
                "FakeDiscord",
                "FakeDiscordError",
                "FakeInteraction",
                "NotSettledError",
                "RunWaitsError",
                "environment",
                "worker",
            },
        ),
        ("ckworkflow.web", {"webhook_app"}),
        ("ckworkflow.ext.discord", {"attach", "detach", "setup", "teardown"}),
    ],
)
def test_the_other_public_modules_have_their_names(module: str, names: set[str]) -> None:
    assert names <= set(vars(importlib.import_module(module)))


def test_every_error_descends_from_one() -> None:
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), ckworkflow.CkWorkflowError), name
