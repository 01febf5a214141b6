"""What was typed, as workflows and their arguments.

Not here: importing the workflows (`home`).
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Final, NoReturn

import click

from ckworkflow.cli.printing import say
from ckworkflow.definition import registry
from ckworkflow.drawing.words import last_part, shorten

if TYPE_CHECKING:
    from ckworkflow.cli.home import Home
    from ckworkflow.definition import Workflow

__all__ = ["find_workflow", "full_name", "read_arguments", "unknown_workflow"]

_SHOWN: Final = 20
_TEXT: Final[dict[str, tuple[type, ...]]] = {
    "str": (str,),
    "str | None": (str, NoneType),
    "Optional[str]": (str, NoneType),
    "typing.Optional[str]": (str, NoneType),
}
_NAMED: Final = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def find_workflow(home: Home, name: str) -> Workflow[..., object]:
    """Return the workflow of a full name, or of a last part that only one has.

    Modules that cannot be imported are told on standard error: the workflow may be in one of them.
    """
    failures = home.load_workflows()
    for failure in failures:
        say(f"Warning: {failure}", err=True)
    found = _matches(name)
    if not found:
        home.load_everything()
        found = _matches(name)
    if len(found) == 1:
        return registry.workflows[found[0]]
    if found:
        raise _ambiguous(name, found)
    raise unknown_workflow(home, name)


def full_name(home: Home, name: str) -> str:
    """Return the full name of a workflow that this process knows; any other name stays as it is.

    Raises:
        click.ClickException: It is the last part of several.
    """
    home.load_workflows()
    found = _matches(name)
    if len(found) > 1:
        raise _ambiguous(name, found)
    return found[0] if found else name


def unknown_workflow(home: Home, name: str) -> click.ClickException:
    """The error for a name that no workflow has."""
    return click.ClickException(_unknown(name, home.settings.packages))


def _ambiguous(name: str, found: Sequence[str]) -> click.ClickException:
    return click.ClickException(
        f"{len(found)} workflows end in {name!r}: {', '.join(found)}. Give the full name of one."
    )


def _matches(name: str) -> list[str]:
    if name in registry.workflows:
        return [name]
    return sorted(known for known in registry.workflows if known.endswith(f".{name}"))


def _unknown(name: str, packages: Sequence[str]) -> str:
    said = f"No workflow is named {name!r}. "
    known = sorted(registry.workflows)
    if not packages and not known:
        if importlib.util.find_spec("celeryconfig") is None:
            return f"{said}There is no celeryconfig.py in {Path.cwd()}: run this in the bot's folder."
        return said + "celeryconfig.py names no package. Write workflow_packages = ['workflows'] there."
    if not known:
        return said + f"There is none in workflow_packages = {list(packages)!r}."
    parts = {last_part(full): full for full in known}
    near = difflib.get_close_matches(last_part(name), parts, n=3)
    shown = [parts[part] for part in near] or known[:_SHOWN]
    more = f", and {len(known) - len(shown)} more" if len(shown) < len(known) and not near else ""
    return (
        said
        + f"{'Did you mean' if near else 'There are'}: {', '.join(shown)}{more}{'?' if near else '.'}"
    )


def read_arguments(
    workflow: Workflow[..., object], words: Iterable[str]
) -> tuple[list[object], dict[str, object]]:
    """Return what the words mean as arguments: JSON where they are JSON, else text; also `name=value`.

    A parameter annotated `str` takes its word as text: the id 42 is `'42'` there. The arguments are those that
    `start` would accept.
    """
    parameters = workflow.signature.parameters
    takes_any_name = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    in_order = [
        p
        for p in parameters.values()
        if p.kind in {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    ]
    rest = next((p for p in parameters.values() if p.kind is inspect.Parameter.VAR_POSITIONAL), None)
    args: list[object] = []
    kwargs: dict[str, object] = {}
    for word in words:
        name, is_named, text = word.partition("=")
        parameter = parameters.get(name)
        if is_named and parameter is not None and parameter.kind in _NAMED:
            kwargs[name] = _read(text, parameter)
        elif is_named and takes_any_name and name.isidentifier():
            kwargs[name] = _read(text, None)
        else:
            args.append(_read(word, in_order[len(args)] if len(args) < len(in_order) else rest))
    try:
        workflow.bind(tuple(args), kwargs)
    except TypeError as error:
        raise click.ClickException(f"{error}. Its parameters are {workflow.signature}.") from error
    return args, kwargs


def _read(text: str, parameter: inspect.Parameter | None) -> object:
    try:
        found = json.loads(text, parse_constant=_refuse)
    except ValueError:
        return text
    except RecursionError:
        msg = f"{shorten(text, 40)!r} is nested too deep to be read as JSON. Pass flatter data."
        raise click.ClickException(msg) from None
    wanted = _TEXT.get(_annotation(parameter))
    return text if wanted is not None and type(found) not in wanted else found


def _annotation(parameter: inspect.Parameter | None) -> str:
    written: object = None if parameter is None else parameter.annotation
    return "str" if written is str else str(written)


def _refuse(constant: str) -> NoReturn:
    """`NaN` is a word before it is a number."""
    raise ValueError(constant)
