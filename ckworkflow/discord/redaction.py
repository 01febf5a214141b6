"""Redaction: discord.py's own log records leave this process without tokens.

Its debug records hold whole request bodies and gateway events, interaction tokens among them.
"""

from __future__ import annotations

import logging

from ckworkflow.foreign import suppressed
from ckworkflow.scrub import scrub

__all__ = ["install_log_filter", "quieten"]


class _Redactor(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record's text; it always passes."""
        text = None
        with suppressed():
            text = record.getMessage()
        if text is None:
            # A record whose arguments do not fit, or cannot be shown; logging itself will say so.
            return True
        clean = scrub(text)
        if clean != text:
            record.msg, record.args = clean, ()
        if record.exc_info and not record.exc_text:
            record.exc_text = scrub(logging.Formatter().formatException(record.exc_info))
        elif record.exc_text:
            record.exc_text = scrub(record.exc_text)
        return True


_redactor = _Redactor("ckworkflow-redaction")


def install_log_filter() -> None:
    """Filter every logger of discord.py that exists. Idempotent.

    Each one by itself: a filter of the parent does not see the records of its children.
    """
    for logger in _discord_loggers():
        if _redactor not in logger.filters:
            logger.addFilter(_redactor)


def quieten() -> None:
    """Keep discord.py at INFO in a worker, also under `--loglevel=debug`."""
    logger = logging.getLogger("discord")
    if logger.level < logging.INFO:
        logger.setLevel(logging.INFO)


def _discord_loggers() -> list[logging.Logger]:
    known = logging.getLogger().manager.loggerDict
    names = [name for name, logger in known.items() if isinstance(logger, logging.Logger)]
    return [logging.getLogger(name) for name in {"discord", *names} if name.split(".")[0] == "discord"]
