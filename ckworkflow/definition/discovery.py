"""Discovery: importing every module under `workflow_packages`, so that its definitions are registered.

Folders count as packages with and without an `__init__.py`. A module that fails to import is reported with
the line of it that failed, and the others are loaded all the same: one broken workflow must not stop a bot.

Not here: who asks, and what to do about the reports (`ckworkflow.worker`, `ckworkflow.cli`).
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

from ckworkflow.errors import WorkflowModuleError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType

__all__ = ["discover"]

logger = logging.getLogger(__name__)


def discover(packages: Sequence[str]) -> list[WorkflowModuleError]:
    """Import every module of these packages, however deep.

    Args:
        packages: Names as `import` takes them; a plain module will do.

    Returns:
        What could not be imported, in the order of the names; each is logged too. The modules inside a package
        whose `__init__.py` fails are not tried, because Python could not import them.
    """
    failures: list[WorkflowModuleError] = []
    for package in packages:
        seen: set[Path] = set()
        for name in _walk(package, seen, failures):
            logger.debug("workflow module %s loaded", name)
    for failure in failures:
        logger.error(
            "workflow module not loaded: %s",
            failure,
            exc_info=failure.__cause__,
        )
    return failures


def _walk(name: str, seen: set[Path], failures: list[WorkflowModuleError]) -> Iterator[str]:
    """Import a module, then what is inside it; give the names of those that could be imported."""
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # noqa: BLE001  # a module may raise anything, and may call exit()
        failures.append(_failure(name, error))
        return
    yield name
    for child in _children(module, seen):
        yield from _walk(f"{name}.{child}", seen, failures)


def _children(module: ModuleType, seen: set[Path]) -> list[str]:
    """Return the names of the modules and folders inside a package, sorted."""
    folders = [str(folder) for folder in getattr(module, "__path__", ())]
    # `pkgutil` knows archives and compiled modules, and passes over folders without an `__init__.py`.
    names = {info.name for info in pkgutil.iter_modules(folders)}
    for folder in map(Path, folders):
        if folder.resolve() in seen or not folder.is_dir():
            continue  # a link to a folder above would never end
        seen.add(folder.resolve())
        names.update(child.name for child in folder.iterdir() if _is_package_folder(child, seen))
    # Running `__main__` is what its author keeps for `python -m`.
    return sorted(name for name in names if name.isidentifier() and name != "__main__")


def _is_package_folder(folder: Path, seen: set[Path]) -> bool:
    if not folder.name.isidentifier() or folder.name == "__pycache__" or not folder.is_dir():
        return False
    return folder.resolve() not in seen and any(folder.rglob("*.py"))


def _failure(name: str, error: BaseException) -> WorkflowModuleError:
    file = _file_of(name)
    if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
        text = (
            f"there is no {error.name!r} on sys.path. Check `workflow_packages`, and start the process in the "
            f"folder that holds it"
        )
    else:
        text = f"{type(error).__name__}: {error}"
    failure = WorkflowModuleError(name, file, _line_in(file, error), text)
    failure.__cause__ = error
    return failure


def _file_of(name: str) -> str | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None
    return spec.origin if spec is not None else None


def _line_in(file: str | None, error: BaseException) -> int | None:
    """Return the last line of that file on the way to the error; a syntax error knows its own."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return error.lineno
    line, traceback = None, error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == file:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line
