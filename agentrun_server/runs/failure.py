"""What a caller may know of an agent that failed, and what its author must know."""

from typing import Any

from agentrun_server.errors import AgentError, AgentFailedError, APIError
from agentrun_server.observability.logs import get_logger

__all__ = ["agent_failure", "without_retry"]

logger = get_logger("agentrun_server.agent")

_ERROR_TYPES = {429: "rate_limit_error"}
_RETRY_ADVICE = frozenset({b"retry-after", b"x-should-retry"})


def agent_failure(cause: BaseException | str, request_id: str, *, debug: bool, run_id: str = "") -> APIError:
    """Log why an agent failed, and return what the caller may know of it; with `debug` the exception's own text.

    `run_id` is that of a run that is written down.
    """
    if isinstance(cause, AgentError):
        status = cause.status_code
        kind = _ERROR_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        return AgentFailedError(
            cause.message, code=cause.code, param=cause.param, status_code=status, type=kind
        ).no_retry()
    logger.error(
        "agent failed: %s",
        cause if isinstance(cause, str) else type(cause).__name__,
        exc_info=_from_agent(cause) if isinstance(cause, BaseException) else None,
        extra={"request_id": request_id, "run_id": run_id} if run_id else {"request_id": request_id},
    )
    message = "The agent failed to answer."
    if debug:
        message = f"{type(cause).__name__}: {cause}"
    return AgentFailedError(message).no_retry()


def without_retry(error: APIError) -> APIError:
    """Return `error`, raised after agent code began, with the advice not to repeat the request.

    One that names a time to come back was raised before agent code ran, or asks for it on purpose.
    """
    return error if any(name in _RETRY_ADVICE for name, _ in error.headers) else error.no_retry()


def _from_agent(exc: BaseException) -> Any:
    """Return `exc` with a traceback that begins in the agent's code; ours tell its author nothing."""
    frame = exc.__traceback__
    while frame is not None and frame.tb_frame.f_globals.get("__name__", "").startswith("agentrun_server."):
        frame = frame.tb_next
    return exc.with_traceback(frame or exc.__traceback__)
