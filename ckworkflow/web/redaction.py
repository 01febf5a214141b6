"""Redaction: aiohttp's log records leave this process without the tokens of webhooks.

Its access log prints paths, and its errors quote what they could not read.
"""

from __future__ import annotations

import logging
import re
from typing import Any, Final

from ckworkflow.foreign import suppressed

__all__ = ["conceal_below", "install_log_filter"]

LOGGERS: Final = ("aiohttp.access", "aiohttp.server", "aiohttp.web", "aiohttp.internal")
_CUT: Final = "[token]"
# A token as it is made, wherever it stands: 128 bits in base64url.
_TOKEN: Final = re.compile(r"(?<![\w-])[\w-]{22}(?![\w-])", re.ASCII)


class _Redactor(logging.Filter):
    def __init__(self) -> None:
        super().__init__("ckworkflow-webhooks")
        self._below: dict[str, re.Pattern[str]] = {}

    def add(self, prefix: str) -> None:
        """Cut the token that follows a path."""
        if prefix not in self._below:
            self._below[prefix] = re.compile(rf"({re.escape(prefix)}/)[^\s?#\"'\\]+")

    def cut(self, text: str) -> str:
        """Return a text without tokens."""
        for pattern in list(self._below.values()):
            text = pattern.sub(rf"\1{_CUT}", text)
        return _TOKEN.sub(_CUT, text)

    def _cut_in(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.cut(value)
        if isinstance(value, dict):
            return {key: self._cut_in(inner) for key, inner in value.items()}
        return value

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record; it always passes."""
        text = None
        with suppressed():
            text = record.getMessage()
        if text is None:
            # Its arguments do not fit; logging itself will say so.
            return True
        clean = self.cut(text)
        if clean != text:
            record.msg, record.args = clean, ()
        for name in ("first_request_line", "request_header"):  # what a handler that prints JSON may show
            if name in vars(record):
                setattr(record, name, self._cut_in(vars(record)[name]))
        if record.exc_info:
            # As text: a handler that shows the exception itself would show what it quotes.
            record.exc_text = self.cut(
                record.exc_text or logging.Formatter().formatException(record.exc_info)
            )
            record.exc_info = None
        return True


_redactor: Final = _Redactor()


def install_log_filter(logger: logging.Logger | None = None) -> None:
    """Filter the loggers of aiohttp, or another one that it is given. Idempotent."""
    for each in [logger] if logger is not None else map(logging.getLogger, LOGGERS):
        if _redactor not in each.filters:
            each.addFilter(_redactor)


def conceal_below(prefix: str) -> None:
    """Cut the token that follows a path (`/hooks`) in those records. The root is left out: every path follows it."""
    if prefix.strip("/"):
        _redactor.add(prefix.rstrip("/"))
