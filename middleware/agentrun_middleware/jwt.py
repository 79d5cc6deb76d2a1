"""JSON web tokens (RFC 7519, RFC 8725): `JWTMiddleware`, and the verifier inside it.

A token is read once, here, and strictly: JSON that two readers could understand differently is refused, whoever has
signed it. The algorithm is bound to the issuer and never taken from the token, the header is only looked at for
``alg``, ``typ`` and ``kid``, every claim that matters must be there with the right type, and nobody gets a token for
ever.
Signatures are checked by PyJWT's algorithms. Its `decode` would read the token a second time, in its own way.

A token that was verified is remembered by its SHA-256 for a minute at most, so that a chat of many turns pays for one
signature. A key that its issuer withdraws ends that at once.
"""

import base64
import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import jwt

from agentrun_middleware.asgi import ASGIApp
from agentrun_middleware.authentication import (
    AuthenticationMiddleware,
    CredentialRefusedError,
    VerifierUnavailableError,
)
from agentrun_middleware.jwks import JWKS, KeysUnavailableError, UnknownKeyError
from agentrun_middleware.principal import Principal, freeze, is_issuer, is_scope, is_subject
from agentrun_middleware.signing_keys import SigningKey, family_of, static_keys

__all__ = ["Issuer", "JWTMiddleware", "JWTVerifier"]

Key = str | bytes | Mapping[str, str | bytes]

_TOKEN = re.compile(r"[A-Za-z0-9_-]{2,}\.[A-Za-z0-9_-]{2,}\.[A-Za-z0-9_-]{2,}", re.ASCII)
_TYPES: Final = ("", "jwt", "at+jwt")
_MAX_CACHED = 8192
_MAX_DEPTH = 32


class _Keys(Protocol):
    @property
    def generation(self) -> int: ...
    async def find(self, kid: str | None, algorithm: str) -> SigningKey: ...
    async def aclose(self) -> None: ...


class _StaticKeys:
    """Keys that were given with the settings."""

    generation = 0

    def __init__(self, keys: Sequence[SigningKey]) -> None:
        self._keys = tuple(keys)

    async def find(self, kid: str | None, algorithm: str) -> SigningKey:
        fitting = [key for key in self._keys if key.fits(algorithm)]
        # A single key without a name is for every token, whatever kid its issuer writes.
        named = fitting if [key.kid for key in fitting] == [None] else [key for key in fitting if key.kid == kid]
        if not named and kid is None and len(fitting) == 1:
            named = fitting
        if not named:
            raise UnknownKeyError
        return named[0]

    async def aclose(self) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class Issuer:
    """Who may issue tokens, for whom, and how they are signed: with `key` or with the keys at `jwks_url`.

    Args:
        issuer: ``iss``, compared exactly.
        audience: ``aud`` of tokens meant for this app; with several, any of them.
        algorithms: of one family: HS, RS, PS, ES or EdDSA.
        key: a secret (HS) or public key in PEM, or several by ``kid``.
        jwks_url: where the issuer publishes its keys; https, or http on the loopback.
        leeway: seconds by which clocks may differ.
        max_lifetime: seconds between ``iat`` (else now) and ``exp`` at most; None for no limit.
        types: values of the ``typ`` header that are accepted, in lower case; ``""`` is none at all. None: any.
        allow_private: the host of `jwks_url` may have a private address.
        ca_file: certificate authorities for `jwks_url`, in PEM, in place of the usual ones.

    Raises:
        ValueError: an argument cannot work; the text never repeats a key.
    """

    issuer: str
    audience: str | Collection[str]
    algorithms: Collection[str]
    key: Key | None = field(default=None, repr=False)
    jwks_url: str | None = None
    leeway: float = 30.0
    max_lifetime: float | None = 24 * 3600.0
    types: Collection[str] | None = _TYPES
    allow_private: bool = False
    ca_file: str | None = None

    def __post_init__(self) -> None:
        if not is_issuer(self.issuer):
            raise ValueError("issuer: the iss of the tokens, in printable ASCII without '|'")
        audiences = [self.audience] if isinstance(self.audience, str) else list(self.audience)
        if not audiences or not all(isinstance(one, str) and one for one in audiences):
            raise ValueError("audience: at least one name under which tokens are meant for this app")
        if not (math.isfinite(self.leeway) and 0 <= self.leeway <= 600):
            raise ValueError("leeway: 0 to 600 seconds")
        if self.max_lifetime is not None and not self.max_lifetime > 0:
            raise ValueError("max_lifetime: more than 0 seconds, or None")
        if isinstance(self.types, str):
            raise ValueError("types: a list is needed, not one string")
        if (self.key is None) == (self.jwks_url is None):
            raise ValueError("key or jwks_url: exactly one of them")
        family = family_of(self.algorithms)
        if family == "HS" and self.jwks_url is not None:
            raise ValueError("algorithms: HS* needs a secret, which nobody publishes at a jwks_url")

    def make_keys(self) -> _Keys:
        """Return where the keys of this issuer are found."""
        if self.jwks_url is None:
            assert self.key is not None
            return _StaticKeys(static_keys(self.key, self.algorithms))
        return JWKS(
            self.jwks_url, family=family_of(self.algorithms), allow_private=self.allow_private, ca_file=self.ca_file
        )


class _Trust:
    """An issuer, ready to judge its tokens."""

    def __init__(self, issuer: Issuer) -> None:
        self.issuer = issuer
        self.keys = issuer.make_keys()
        self.algorithms = {name: jwt.get_algorithm_by_name(name) for name in issuer.algorithms}
        self.audiences = frozenset([issuer.audience] if isinstance(issuer.audience, str) else issuer.audience)
        self.types = None if issuer.types is None else _spellings(issuer.types)


def _spellings(types: Collection[str]) -> frozenset[str]:
    """Return how each of `types` may be written: ``application/`` can be left out (RFC 7515, section 4.1.9)."""
    short = {kind.lower() for kind in types}
    return frozenset(short | {f"application/{kind}" for kind in short if kind})


@dataclass(frozen=True, slots=True)
class _Verified:
    principal: Principal
    until: float
    keys: _Keys
    generation: int


class JWTVerifier:
    """Verifies tokens of one or several issuers.

    Args:
        issuers: each with an ``iss`` of its own.
        cache_seconds: how long a verified token is remembered at most; 0 turns that off.
        clock: seconds since the epoch.

    Raises:
        ValueError: an argument cannot work.
    """

    def __init__(
        self, issuers: Sequence[Issuer], *, cache_seconds: float = 60.0, clock: Callable[[], float] = time.time
    ) -> None:
        if not issuers:
            raise ValueError("issuers: at least one")
        self._trusted = {issuer.issuer: _Trust(issuer) for issuer in issuers}
        if len(self._trusted) != len(issuers):
            raise ValueError("issuers: one entry for each iss; list all keys of an issuer in it")
        self._only = next(iter(self._trusted.values())) if len(issuers) == 1 else None
        self._cache_seconds = cache_seconds
        self._clock = clock
        self._verified: dict[bytes, _Verified] = {}

    def recognises(self, credential: str) -> bool:
        """Return whether `credential` has the form of a signed token (JWS compact serialization)."""
        return _TOKEN.fullmatch(credential) is not None

    def recall(self, credential: str) -> Principal | None:
        """Return whose token `credential` is when it was verified a short time ago."""
        return self._known(_digest(credential))

    async def verify(self, credential: str) -> Principal:
        """Return whose token `credential` is; see `Verifier.verify`."""
        digest = _digest(credential)
        known = self._known(digest)
        if known is not None:
            return known
        trust, header, claims, signature = self._read(credential)
        generation = trust.keys.generation
        await self._check_signature(credential, trust, header, signature)
        now = self._clock()
        _check_claims(claims, trust, now)
        principal = _principal(claims, trust.issuer)
        until = min(claims["exp"] + trust.issuer.leeway, now + self._cache_seconds)
        # Keys may have changed while the decision waited for them: its number is then an old one, and it counts once.
        if until > now:
            if len(self._verified) >= _MAX_CACHED:
                del self._verified[next(iter(self._verified))]
            self._verified[digest] = _Verified(principal, until, trust.keys, generation)
        return principal

    async def aclose(self) -> None:
        """End fetches of keys that are under way."""
        for trust in self._trusted.values():
            await trust.keys.aclose()

    def _known(self, digest: bytes) -> Principal | None:
        """Return whose token has `digest`, and forget it when that holds no longer."""
        known = self._verified.get(digest)
        if known is None:
            return None
        if self._clock() < known.until and known.generation == known.keys.generation:
            return known.principal
        del self._verified[digest]
        return None

    def _read(self, token: str) -> tuple[_Trust, Mapping[str, Any], dict[str, Any], bytes]:
        """Return who claims to have issued `token`, its header, claims and signature. Nothing of it is proved yet.

        Raises:
            CredentialRefusedError: it is no token, or none that could be good whoever had signed it.
        """
        head, payload, tail = token.split(".")
        header, claims, signature = _parse(head), _parse(payload), _octets(tail)
        name = claims.get("iss")
        trust = self._only or (self._trusted.get(name) if isinstance(name, str) else None)
        if trust is None:
            raise CredentialRefusedError("another issuer (iss)")
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in trust.algorithms:
            raise CredentialRefusedError("an algorithm that its issuer does not use")
        # RFC 7515, section 4.1.11: extensions that are not understood make a token invalid. None is.
        if "crit" in header or "b64" in header:
            raise CredentialRefusedError("critical header extensions")
        kind = header.get("typ", "")
        if trust.types is not None and not (isinstance(kind, str) and kind.lower() in trust.types):
            raise CredentialRefusedError("another type of token (typ)")
        if not isinstance(header.get("kid", ""), str):
            raise CredentialRefusedError("kid is no text")
        for claim in ("exp", "nbf", "iat"):
            if claim in claims and not _is_time(claims[claim]):
                raise CredentialRefusedError(f"{claim} is no time")
        return trust, header, claims, signature

    async def _check_signature(self, token: str, trust: _Trust, header: Mapping[str, Any], signature: bytes) -> None:
        name = header["alg"]
        try:
            key = await trust.keys.find(header.get("kid"), name)
        except UnknownKeyError as exc:
            raise CredentialRefusedError("no such signing key (kid)") from exc
        except KeysUnavailableError as exc:
            raise VerifierUnavailableError("signing keys cannot be fetched", retry_after=exc.retry_after) from exc
        signed = token.rpartition(".")[0].encode()
        if not trust.algorithms[name].verify(signed, key.material, signature):
            raise CredentialRefusedError("the signature is wrong")


def _digest(token: str) -> bytes:
    """Return the name under which `token` is remembered: nobody can make it a token again."""
    return hashlib.sha256(token.encode()).digest()


def _check_claims(claims: Mapping[str, Any], trust: _Trust, now: float) -> None:
    """Check when `claims`, which are signed, are valid, and for whom (RFC 7519, section 4.1).

    Raises:
        CredentialRefusedError: not now, or not here.
    """
    issuer = trust.issuer
    if any(claims.get(name) is None for name in ("exp", "iss", "aud", "sub")):
        raise CredentialRefusedError("exp, iss, aud or sub is missing")
    issued_at = claims.get("iat", now)
    if issued_at > now + issuer.leeway or claims.get("nbf", now) > now + issuer.leeway:
        raise CredentialRefusedError("it is not valid yet")
    if claims["exp"] <= now - issuer.leeway:
        raise CredentialRefusedError("it has expired")
    if issuer.max_lifetime is not None and claims["exp"] - issued_at > issuer.max_lifetime + issuer.leeway:
        raise CredentialRefusedError("it is valid for longer than max_lifetime")
    if claims["iss"] != issuer.issuer:
        raise CredentialRefusedError("another issuer (iss)")
    audiences = claims["aud"]
    if isinstance(audiences, str):
        audiences = [audiences]
    if not (
        isinstance(audiences, list)
        and all(isinstance(name, str) for name in audiences)
        and not trust.audiences.isdisjoint(audiences)
    ):
        raise CredentialRefusedError("it is meant for somebody else (aud)")
    if not isinstance(claims["sub"], str):
        raise CredentialRefusedError("sub is no text")
    if not isinstance(claims.get("jti", ""), str):
        raise CredentialRefusedError("jti is no text")


def _octets(part: str) -> bytes:
    """Return what a part of a token stands for, when it is written in the one way there is for it.

    Raises:
        CredentialRefusedError: it is not, as when its last character has bits that stand for nothing.
    """
    try:
        octets = base64.urlsafe_b64decode(part + "==")
    except ValueError as exc:
        raise CredentialRefusedError("it cannot be decoded") from exc
    if base64.urlsafe_b64encode(octets).rstrip(b"=") != part.encode():
        raise CredentialRefusedError("it cannot be decoded")
    return octets


def _parse(part: str) -> dict[str, Any]:
    """Return the JSON object in a part of a token: UTF-8, with no name twice, and numbers that JSON knows.

    PyJWT reads more than that, UTF-16 and NaN among it, and of a name that comes twice the last one. Another reader of
    the same token may take the first (RFC 7515, section 10.12). Claims that are nested deeper than any issuer does it
    would be too deep for whoever walks through them.

    Raises:
        CredentialRefusedError: it holds anything else.
    """
    try:
        text = _octets(part).decode()
        value = _DECODER.decode(text)
    except (ValueError, RecursionError) as exc:
        raise CredentialRefusedError("it cannot be decoded") from exc
    # Few brackets cannot be deep.
    shallow = text.count("{") + text.count("[") <= _MAX_DEPTH or _is_shallow(value, _MAX_DEPTH)
    if not (isinstance(value, dict) and shallow):
        raise CredentialRefusedError("it cannot be decoded")
    return value


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name comes twice")
    return members


def _finite(literal: str) -> float:
    number = float(literal)
    if not math.isfinite(number):
        raise ValueError("no number of JSON")
    return number


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_members, parse_float=_finite, parse_constant=_finite)


def _is_shallow(value: object, depth: int) -> bool:
    """Return whether lists and objects are nested at most `depth` deep in `value`."""
    if isinstance(value, dict):
        value = list(value.values())
    return not isinstance(value, list) or (depth > 0 and all(_is_shallow(member, depth - 1) for member in value))


def _principal(claims: dict[str, Any], issuer: Issuer) -> Principal:
    """Return who `claims`, which are signed, speak of."""
    if not is_subject(claims["sub"]):
        raise CredentialRefusedError("sub is no name that is safe to pass on")
    return Principal(claims["sub"], issuer.issuer, _scopes(claims), freeze(claims))


def _is_time(value: object) -> bool:
    # Not a bool, which is an int too; NaN is less than nothing.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e11


def _scopes(claims: Mapping[str, Any]) -> frozenset[str]:
    """Return the scopes: ``scope`` (RFC 8693, section 4.2), else ``scp`` as Entra ID and Okta write it."""
    value = claims.get("scope")
    if value is None:
        value = claims.get("scp")
    if value is None:
        return frozenset()
    scopes = value.split(" ") if isinstance(value, str) else value
    if not isinstance(scopes, list) or not all(is_scope(scope) for scope in scopes if scope != ""):
        raise CredentialRefusedError("scope is no list of scopes")
    return frozenset(scopes) - {""}


class JWTMiddleware(AuthenticationMiddleware):
    """Lets requests pass that carry a good JSON web token, and tells the app whose it is.

    Give one issuer by `algorithms`, `key` or `jwks_url`, `issuer` and `audience`, or several as `issuers`.
    `required_scopes`, `public_paths` and `realm` are those of `AuthenticationMiddleware`, the rest is described at
    `Issuer`.

    Raises:
        ValueError: an argument cannot work.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        algorithms: Collection[str] = (),
        key: Key | None = None,
        jwks_url: str | None = None,
        issuer: str = "",
        audience: str | Collection[str] = (),
        leeway: float = 30.0,
        max_lifetime: float | None = 24 * 3600.0,
        required_scopes: Collection[str] = (),
        public_paths: Collection[str] = (),
        types: Collection[str] | None = _TYPES,
        allow_private: bool = False,
        ca_file: str | None = None,
        issuers: Sequence[Issuer] = (),
        realm: str = "api",
    ) -> None:
        if not issuers:
            issuers = [
                Issuer(
                    issuer=issuer,
                    audience=audience,
                    algorithms=algorithms,
                    key=key,
                    jwks_url=jwks_url,
                    leeway=leeway,
                    max_lifetime=max_lifetime,
                    types=types,
                    allow_private=allow_private,
                    ca_file=ca_file,
                )
            ]
        elif issuer or key is not None or jwks_url or algorithms or audience:
            raise ValueError("issuers: in place of issuer, audience, algorithms, key and jwks_url, not beside them")
        super().__init__(
            app,
            verifiers=[JWTVerifier(issuers)],
            required_scopes=required_scopes,
            public_paths=public_paths,
            realm=realm,
        )
