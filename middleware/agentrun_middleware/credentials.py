"""The one place where a credential is taken from a request.

Servers that look in several places disagree about them (CVE-2026-45339), so here is every place: the
``Authorization: Bearer`` header of OpenAI clients and the ``api-key`` header of Azure's. One credential only: two
different ones, or one in the query, are refused, whatever they are worth. Cookies are never looked at.
"""

import string
from urllib.parse import unquote_to_bytes

from agentrun_middleware.asgi import Scope

__all__ = [
    "IDENTITY_HEADERS",
    "MAX_CREDENTIAL_BYTES",
    "MalformedCredentialsError",
    "check_printable",
    "take_credential",
    "take_identity_headers",
]

MAX_CREDENTIAL_BYTES = 8 * 1024
"""Longer ones are refused unread."""

IDENTITY_HEADERS = frozenset(
    (b"x-auth-subject", b"x-auth-issuer", b"x-auth-scopes", b"x-auth-roles", b"x-auth-email", b"x-auth-user")
)
"""Names under which gateways tell apps who is calling. They are taken from every request that is authenticated here:
what the client or a careless proxy wrote there must never be read for the truth."""

_QUERY_NAMES = frozenset(
    b"accesstoken apikey apitoken authorization authtoken bearer clientsecret idtoken jwt key password refreshtoken"
    b" secret token xaccesstoken xapikey xauthtoken".split()
)
"""In lower case, letters and digits alone: ``API-Key``, ``api_key`` and ``api_key[]`` are one name."""
_PUNCTUATION = bytes(set(range(256)) - set(b"&" + (string.ascii_letters + string.digits).encode()))
_VISIBLE = bytes(range(0x21, 0x7F))
_LOOKED_AT = IDENTITY_HEADERS | {b"authorization", b"api-key"}


class MalformedCredentialsError(Exception):
    """The request is answered 400 ``invalid_request`` (RFC 6750, section 3.1); the text is for the log."""


def check_printable(credential: str) -> None:
    """Raise `MalformedCredentialsError` unless `credential` is printable ASCII, or too long to be looked at."""
    if len(credential) <= MAX_CREDENTIAL_BYTES and credential.encode("latin-1").translate(None, _VISIBLE):
        raise MalformedCredentialsError("the credential is not one word of printable ASCII")


def take_credential(scope: Scope) -> str | None:
    """Return the credential of the request, None when there is none; take identity headers out of `scope`.

    A scheme other than ``Bearer`` is no credential (RFC 6750, section 3.1). It may have any characters: who does not
    know it from before calls `check_printable`, and decides what else it must look like.

    Raises:
        MalformedCredentialsError: there is more than one, or it is in the query.
    """
    bearer: bytes | None = None
    key: bytes | None = None
    authorizations = 0
    forged = False
    for name, value in [header for header in scope["headers"] if header[0] in _LOOKED_AT]:
        if name == b"authorization":
            authorizations += 1
            scheme, _, text = value.partition(b" ")
            if scheme.lower() == b"bearer":
                bearer = text.strip(b" \t")
        elif name == b"api-key":
            if key is not None:
                raise MalformedCredentialsError("more than one api-key header")
            key = value.strip(b" \t")  # servers may leave the whitespace around a value (RFC 9110, section 5.5)
        else:
            forged = True
    if authorizations > 1:
        raise MalformedCredentialsError("more than one Authorization header")
    if forged:
        take_identity_headers(scope)
    query = scope.get("query_string")
    if query:
        _check_query(query)
    if bearer and key and bearer != key:
        raise MalformedCredentialsError("two different credentials")
    found = bearer or key
    if not found:
        return None
    return found.decode("latin-1")


def take_identity_headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    """Take the headers that name a caller out of `scope`, and return them."""
    taken = [header for header in scope["headers"] if header[0] in IDENTITY_HEADERS]
    if taken:
        scope["headers"] = [header for header in scope["headers"] if header[0] not in IDENTITY_HEADERS]
    return taken


def _check_query(query: bytes) -> None:
    """Refuse credentials in the query: proxies log it, browsers keep it, and Referer passes it on.

    All names are decoded at once: a query of thousands of them, which anybody may send, costs about a millisecond.
    """
    names = b"&".join([part.partition(b"=")[0] for part in query.replace(b";", b"&").split(b"&")])
    plain = unquote_to_bytes(names).translate(None, _PUNCTUATION).lower()
    if not _QUERY_NAMES.isdisjoint(plain.split(b"&")):
        raise MalformedCredentialsError("a credential in the query")
