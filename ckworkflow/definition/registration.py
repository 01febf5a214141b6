"""The registry: which function a name means in this process.

A name in the database outlives any process, so it must mean one function: the same function again (a
reloaded module) takes its place, another function under a name that is taken is an error.

Not here: who imports the modules (`discovery`), and Celery's own registry of tasks, which follows this one
through `on_register`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckworkflow.errors import MainModuleError, WorkflowNotRegisteredError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckworkflow.definition.callables import Definition, Step, Workflow

__all__ = ["Registry", "check_main", "registry"]


class Registry:
    """Steps and workflows by name.

    Attributes:
        steps: Every step; change it through `register` only.
        workflows: Every workflow; likewise.
    """

    def __init__(self) -> None:
        self.steps: dict[str, Step[..., Any]] = {}
        self.workflows: dict[str, Workflow[..., Any]] = {}
        self._callbacks: list[Callable[[Definition], object]] = []

    def register(self, definition: Definition) -> None:
        """Let a name mean this step or workflow; one from the same place in the code is replaced.

        Raises:
            ValueError: The name is that of another function.
        """
        names: dict[str, Any] = self.steps if definition.kind == "step" else self.workflows
        other: Definition | None = names.get(definition.name)
        if (
            other is not None
            and other.place == definition.place
            and not _is_redefined(other, definition)
        ):
            msg = (
                f"{definition.place} ({definition.site}) is defined twice as a {definition.kind} named "
                f"{definition.name!r}: in a factory, a loop, as a lambda, or under one name. The second would "
                f"silently replace the first. Give each a `name=` of its own."
            )
            raise ValueError(msg)
        if other is not None and other.place != definition.place:
            msg = (
                f"Two {definition.kind}s are named {definition.name!r}: {other.place} ({other.site}) and "
                f"{definition.place} ({definition.site}). Runs in the database know a {definition.kind} by its "
                f"name alone: give one of them another `name=`."
            )
            raise ValueError(msg)
        names[definition.name] = definition
        for callback in list(self._callbacks):
            callback(definition)

    def on_register(self, callback: Callable[[Definition], object]) -> Callable[[], None]:
        """Call back with every definition that is registered from now on, again after a reload.

        Returns:
            A function that ends it.
        """
        self._callbacks.append(callback)

        def end() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

        return end

    def require_step(self, name: str) -> Step[..., Any]:
        """Return the step of that name.

        Raises:
            WorkflowNotRegisteredError: This process knows none.
        """
        found = self.steps.get(name)
        if found is None:
            raise WorkflowNotRegisteredError("step", name)
        return found

    def require_workflow(self, name: str) -> Workflow[..., Any]:
        """Return the workflow of that name.

        Raises:
            WorkflowNotRegisteredError: This process knows none.
        """
        found = self.workflows.get(name)
        if found is None:
            raise WorkflowNotRegisteredError("workflow", name)
        return found


def _is_redefined(old: Definition, new: Definition) -> bool:
    """Whether a definition takes the place of another: its module was executed again, or it is the very same."""
    before, after = old.function, new.function
    if old.execution is not new.execution or before is after:
        return True
    return (
        getattr(before, "__code__", None) is getattr(after, "__code__", None)
        and before.__closure__ is None
        and after.__closure__ is None
        and before.__defaults__ == after.__defaults__
        and before.__kwdefaults__ == after.__kwdefaults__
    )


registry = Registry()


def check_main(definition: Definition) -> None:
    """Refuse what no worker could find by its name.

    Raises:
        MainModuleError: It is defined in `__main__`.
    """
    if definition.module == "__main__":
        raise MainModuleError(definition.name, definition.site.file)
