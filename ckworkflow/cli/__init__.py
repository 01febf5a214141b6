"""The command line: `ckworkflow ...`, and the same commands as `celery -A app workflow ...`."""

from ckworkflow.cli.entry import main, workflow

__all__ = ["main", "workflow"]
