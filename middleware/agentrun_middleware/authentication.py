"""`AuthenticationMiddleware`: nobody passes without a credential that a verifier vouches for.

It decides everything but whether a credential is good: which requests need one, where it stands, what is answered, and
what the app gets to know. `JWTMiddleware` and `APIKeyMiddleware` are this with one verifier; with several, each kind
of credential is sent to the verifier that recognises its form.
"""

import hashlib
import logging
import re
import traceback
from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack
from typing import Protocol, runtime_checkable

from agentrun_middleware.answers import Refusal, challenge, refuse, retry_headers
from agentrun_middleware.asgi import ASGIApp, Headers, Receive, Scope, Send
from agentrun_middleware.credentials import (
    MAX_CREDENTIAL_BYTES,
    MalformedCredentialsError,
    check_printable,
    take_credential,
    take_identity_headers,
)
from agentrun_middleware.lifespan import run_lifespan
from agentrun_middleware.principal import Principal, is_scope
from agentrun_middleware.state import PRINCIPAL, set_state

__all__ = [
    "AuthenticationMiddleware",
    "CredentialRefusedError",
    "Verifier",
    "VerifierUnavailableError",
    "check_realm",
    "public_set",
]

logger = logging.getLogger("agentrun_middleware.authentication")

_REALM = re.compile(r"[A-Za-z0-9 ._:/-]{1,64}", re.ASCII)


class CredentialRefusedError(Exception):
    """The credential is not good. The text is the reason, for the log alone; it never holds the credential."""


class VerifierUnavailableError(Exception):
    """Nobody can say now whether the credential is good, for example because no signing key could be fetched yet.

    Answered 503, never 401: the caller's credential may be perfect.
    """

    def __init__(self, reason: str, *, retry_after: float = 5.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class _RefusedError(Exception):
    """The request is answered `refusal`; the log says `reason`."""

    def __init__(self, refusal: Refusal, reason: str) -> None:
        super().__init__(reason)
        self.refusal = refusal
        self.reason = reason


class Verifier(Protocol):
    """Judges one kind of credential."""

    def recognises(self, credential: str) -> bool:
        """Return whether this is the kind judged here, by its form alone."""
        ...

    async def verify(self, credential: str) -> Principal:
        """Return who shows `credential`: at most 8 KiB of printable ASCII.

        Raises:
            CredentialRefusedError: it is not good.
            VerifierUnavailableError: that cannot be known now.
        """
        ...

    async def aclose(self) -> None:
        """End tasks and connections of the verifier."""
        ...


@runtime_checkable
class Recalls(Protocol):
    """A verifier that remembers."""

    def recall(self, credential: str) -> Principal | None:
        """Return who shows `credential`, if that was verified before and still holds: at once, or not at all."""
        ...


class AuthenticationMiddleware:
    """Lets requests and WebSocket handshakes pass whose credential is good, and tells the app whose it is.

    Args:
        app: the app behind.
        verifiers: one for each kind of credential.
        required_scopes: scopes that every caller must have.
        public_paths: paths that need no credential, compared exactly with ``scope["path"]``.
        realm: what is protected, for ``WWW-Authenticate``.

    Raises:
        ValueError: an argument cannot work.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        verifiers: Sequence[Verifier],
        required_scopes: Collection[str] = (),
        public_paths: Collection[str] = (),
        realm: str = "api",
    ) -> None:
        if not verifiers:
            raise ValueError("at least one verifier is needed")
        if isinstance(required_scopes, str):
            raise ValueError("required_scopes is a list, not one string")
        if not all(is_scope(scope) for scope in required_scopes):
            raise ValueError("a scope is one word of printable ASCII")
        check_realm(realm)
        self._app = app
        self._verifiers = tuple(verifiers)
        self._recall = tuple(verifier.recall for verifier in verifiers if isinstance(verifier, Recalls))
        self._required = frozenset(required_scopes)
        self._public = public_set(public_paths)
        self._missing = Refusal(
            401,
            "You didn't provide an API key. Send it in an Authorization header: Authorization: Bearer YOUR_KEY.",
            "missing_api_key",
            headers=(challenge(realm),),
        )
        self._malformed = Refusal(
            400,
            "Send one credential, in the Authorization header (Bearer) or in the api-key header.",
            "invalid_request",
            headers=(challenge(realm, "invalid_request"),),
        )
        self._invalid = Refusal(
            401,
            "Incorrect API key provided, or it has expired.",
            "invalid_api_key",
            headers=(challenge(realm, "invalid_token"),),
        )
        self._insufficient = Refusal(
            403,
            "Your API key does not allow this request.",
            "insufficient_scope",
            headers=(challenge(realm, "insufficient_scope", " ".join(sorted(self._required))),),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        kind = scope["type"]
        if kind == "lifespan":
            await run_lifespan(self._app, scope, receive, send, self._close)
            return
        if kind not in ("http", "websocket"):
            raise ValueError(f"unknown kind of connection: {kind!r}")  # default deny
        if scope["path"] in self._public:
            take_identity_headers(scope)
            await self._app(scope, receive, send)
            return
        credential: str | None = None
        try:
            credential = take_credential(scope)
            # Almost every request: a credential that is known. It is worth no coroutine and no further look at it.
            principal = self._recalled(credential) or await self._verify(credential)
            if not self._required <= principal.scopes:
                raise _RefusedError(self._insufficient, "a required scope is missing")
        except MalformedCredentialsError as exc:
            refusal = self._refused(self._malformed, scope, str(exc))
        except _RefusedError as exc:
            refusal = self._refused(exc.refusal, scope, exc.reason, credential or "")
        else:
            set_state(scope, PRINCIPAL, principal)
            await self._app(scope, receive, send)
            return
        await refuse(refusal, scope, receive, send)

    async def _close(self) -> None:
        async with AsyncExitStack() as stack:  # each, whatever becomes of the others
            for verifier in self._verifiers:
                stack.push_async_callback(verifier.aclose)

    def _recalled(self, credential: str | None) -> Principal | None:
        """Return who shows `credential`, when one of the verifiers remembers."""
        if credential is None or len(credential) > MAX_CREDENTIAL_BYTES:
            return None
        try:
            for recall in self._recall:
                principal = recall(credential)
                if principal is not None:
                    return _checked(principal)
        except Exception as exc:
            raise _RefusedError(_FAILED, _describe(exc)) from exc
        return None

    async def _verify(self, credential: str | None) -> Principal:
        """Return who shows `credential`.

        Raises:
            MalformedCredentialsError: it has characters that no credential has.
            _RefusedError: nobody who may pass.
        """
        if credential is None:
            raise _RefusedError(self._missing, "no credential")
        check_printable(credential)
        if len(credential) > MAX_CREDENTIAL_BYTES:
            raise _RefusedError(self._invalid, "longer than 8 KiB")
        try:
            verifier = next((v for v in self._verifiers if v.recognises(credential)), None)
            if verifier is None:
                raise CredentialRefusedError("no form of credential that is known here")
            return _checked(await verifier.verify(credential))
        except CredentialRefusedError as exc:
            raise _RefusedError(self._invalid, str(exc)) from exc
        except VerifierUnavailableError as exc:
            raise _RefusedError(_unavailable(exc.retry_after), str(exc)) from exc
        except Exception as exc:  # a fault of the verifier must open nothing
            raise _RefusedError(_FAILED, _describe(exc)) from exc

    def _refused(self, refusal: Refusal, scope: Scope, reason: str, credential: str = "") -> Refusal:
        """Log why, with a hash in place of the credential, and return `refusal`."""
        client = scope.get("client")
        logger.log(
            logging.WARNING if refusal.status >= 500 else logging.INFO,
            "authentication refused",
            extra={
                "status": refusal.status,
                "reason": reason,
                "client": client[0] if client else "",
                "credential_sha256": hashlib.sha256(credential.encode()).hexdigest()[:16] if credential else "",
            },
        )
        return refusal


def public_set(paths: Collection[str]) -> frozenset[str]:
    """Return the paths that need no credential, ready to be compared with ``scope["path"]``.

    Raises:
        ValueError: there is one among them that no request can have.
    """
    if isinstance(paths, str):
        raise ValueError("public_paths is a list, not one string")
    if not all(path.startswith("/") for path in paths):
        raise ValueError("a public path begins with '/'")
    return frozenset(paths)


def check_realm(realm: str) -> None:
    """Raise `ValueError` if `realm` cannot be sent in ``WWW-Authenticate``."""
    if not _REALM.fullmatch(realm):
        raise ValueError("realm: letters, digits, spaces and . _ : / - only")


_FAILED = Refusal(500, "The server had an error while checking your API key.", "internal_error", "server_error")


def _checked(principal: object) -> Principal:
    """Return `principal`, which a verifier of anybody's may have made."""
    if not isinstance(principal, Principal):
        raise TypeError("a verifier returns a Principal")
    return principal


def _describe(exc: Exception) -> str:
    """Return what failed and where, without the text of `exc`: it may repeat the credential."""
    frames = (f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(exc.__traceback__))
    return f"the verifier failed: {type(exc).__name__} at {', '.join(frames)}"


def _unavailable(seconds: float) -> Refusal:
    headers: Headers = retry_headers(seconds)
    return Refusal(
        503, "Authentication is not available at the moment.", "authentication_unavailable", "server_error", headers
    )
