"""Logs: one line each, with fields; JSON when nobody reads them on a terminal; never a secret.

The library only gets loggers; `log_config` is for programs that own the process (``agentrun-server run``).
"""

import json
import logging
import re
import sys
import time
import traceback
from contextvars import ContextVar
from typing import Any, Literal

__all__ = ["JSONFormatter", "TextFormatter", "get_logger", "log_config", "redact", "request_id"]

request_id: ContextVar[str] = ContextVar("agentrun_server_request_id", default="")
"""Id of the request that is being answered; part of every log line written by the agent."""

_SECRET = re.compile(
    r"(?i)\b(?:sk|ar|pk|rk)[-_][\w-]{12,}"  # API keys
    r"|(?<![\w.-])eyJ[\w-]+\.[\w-]+\.[\w-]*"  # JSON web tokens
    r"|(\b(?:bearer|basic)\s+)[\w.~+/=-]{6,}"
    r"|((?:api[-_]?key|(?:access|refresh|id|auth)[-_]?token|authorization|password|passwd|secret)"  # in headers, JSON,
    r"[\"']?\s*[=:]\s*[\"']?(?:(?:bearer|basic)\s+)?)[^\s\"',;&}]+"  # as a keyword argument, in a query
)
_MAX_TEXT = 64 * 1024
"""Longer texts are cut before they are searched: a caller's 10 MB in an exception would take seconds."""
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


def redact(text: str) -> str:
    """Return `text` with everything that looks like a key, token or password replaced; a very long one is cut."""
    if len(text) > _MAX_TEXT:
        text = f"{text[: _MAX_TEXT // 2]} [...] {text[-_MAX_TEXT // 2 :]}"
    return _SECRET.sub(_hidden, text)


def _hidden(match: re.Match[str]) -> str:
    return (match[1] or match[2] or "") + "***"


class _Redact(logging.Filter):
    """Takes secrets out of a record before any handler sees it, the user's own included."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None and not record.exc_text:
            record.exc_text = redact("".join(traceback.format_exception(*record.exc_info)).rstrip())
        message = record.getMessage()
        clean = redact(message)
        if clean != message:
            record.msg, record.args = clean, None
        return True


_redact = _Redact()


def get_logger(name: str) -> logging.Logger:
    """Return the logger `name`, whose records are cleaned of secrets."""
    logger = logging.getLogger(name)
    if _redact not in logger.filters:
        logger.addFilter(_redact)
    return logger


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = {
        key: redact(value) if isinstance(value, str) else value
        for key, value in vars(record).items()
        if key not in _STANDARD
    }
    current = request_id.get()
    if current:
        fields.setdefault("request_id", current)
    return fields


class JSONFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, then the record's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line for `record`."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
            **_fields(record),
        }
        if record.exc_text or record.exc_info:
            line["exception"] = record.exc_text or redact(self.formatException(record.exc_info or sys.exc_info()))
        return json.dumps(line, ensure_ascii=True, default=str)


class TextFormatter(logging.Formatter):
    """A line for people: time, level, message, fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line for `record`, with its traceback below."""
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = "".join(f" {key}={value}" for key, value in _fields(record).items())
        line = f"{stamp} {record.levelname:<7} {_printable(redact(record.getMessage()))}{_printable(fields)}"
        if record.exc_text or record.exc_info:
            text = record.exc_text or redact(self.formatException(record.exc_info or sys.exc_info()))
            line += "".join(f"\n{_printable(part)}" for part in text.split("\n"))
        return line


def _printable(text: str) -> str:
    """Escape control characters: a log line must not move the cursor or begin another line."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def log_config(log_format: Literal["auto", "json", "text"], level: str) -> dict[str, Any]:
    """Return a `logging.config.dictConfig` for a process that serves: everything to stderr in one format."""
    if log_format == "auto":
        log_format = "text" if sys.stderr.isatty() else "json"
    formatter = JSONFormatter if log_format == "json" else TextFormatter
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"default": {"()": formatter}},
        "handlers": {"default": {"class": "logging.StreamHandler", "formatter": "default"}},
        "root": {"handlers": ["default"], "level": level.upper()},
        "loggers": {
            # The HTTP client tells of every request it makes; agents make many.
            "httpx": {"level": "WARNING"},
            "httpx2": {"level": "WARNING"},
        },
    }
