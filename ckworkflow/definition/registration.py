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
        self.steps: dict[str, Step[..., object]] = {}
        self.workflows: dict[str, Workflow[..., object]] = {}
        self._callbacks: list[Callable[[Definition], object]] = []

    def register(self, definition: Definition) -> None:
        """Let a name mean this step or workflow; one from the same place in the code is replaced.

        Raises:
            ValueError: The name is that of another function, or no database can hold it.
        """
        if not _can_be_stored(definition.name):
            msg = (
                f"A {definition.kind} cannot be named {definition.name!a}: no database holds a NUL character or half of a "
                f"surrogate pair. Take that out of its `name=`."
            )
            raise ValueError(msg)
        names: dict[str, Any] = self.steps if definition.kind == "step" else self.workflows
        other: Definition | None = names.get(definition.name)
        if (
            other is not None
            and other.place == definition.place
            and not _is_redefined(other, definition)
        ):
            where = f"at {definition.site}, each time anew"
            if other.site != definition.site:
                where = f"at {other.site} and at {definition.site}"
            msg = (
                f"Two {definition.kind}s are named {definition.name!r}: {definition.place} is defined twice, {where}. The "
                f"second would silently take the place of the first. Give each a `name=` of its own."
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

    def require_step(self, name: str) -> Step[..., object]:
        """Return the step of that name.

        Raises:
            WorkflowNotRegisteredError: This process knows none.
        """
        found = self.steps.get(name)
        if found is None:
            raise WorkflowNotRegisteredError("step", name)
        return found

    def require_workflow(self, name: str) -> Workflow[..., object]:
        """Return the workflow of that name.

        Raises:
            WorkflowNotRegisteredError: This process knows none.
        """
        found = self.workflows.get(name)
        if found is None:
            raise WorkflowNotRegisteredError("workflow", name)
        return found


def _can_be_stored(name: str) -> bool:
    try:
        return b"\0" not in name.encode()
    except UnicodeEncodeError:
        return False


def _is_redefined(old: Definition, new: Definition) -> bool:
    """Whether a definition takes the place of another: a module behind it was executed again, or it is the very same."""
    before, after = old.function, new.function
    # By identity: the spec that a reload gives to a module is equal to the old one.
    is_reload = any(
        old.executions.get(module, execution) is not execution
        for module, execution in new.executions.items()
    )
    if before is after or is_reload:
        return True
    return (
        getattr(before, "__code__", None) is getattr(after, "__code__", None)
        and before.__closure__ is None
        and after.__closure__ is None
        and before.__defaults__ == after.__defaults__
        and before.__kwdefaults__ == after.__kwdefaults__
        and getattr(old, "options", None) == getattr(new, "options", None)
    )


registry = Registry()


def check_main(definition: Definition) -> None:
    """Refuse what no worker could find by its name.

    Raises:
        MainModuleError: It is defined in `__main__`.
    """
    if definition.module == "__main__":
        raise MainModuleError(definition.name, definition.site.file)
