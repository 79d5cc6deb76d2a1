"""Which keys may verify a token: algorithms by family, keys from the settings, keys from a published set (JWKS).

A key is bound to the algorithms it fits when it is read, long before a token names one. That, and one family for each
issuer, is what ends "algorithm confusion": a public key is never taken for a secret, nor a secret published.

What is wrong with a key from the settings stops the program at its start, in words that never repeat the key. What is
wrong with a published one leaves out that one key and says so in the log: a provider that adds a strange key must not
lock everybody out.

Decided here, where the standards leave it open:

* Ed448 and ES256K are not supported, nor are certificates: those have dates and an issuer that nobody would check.
* RSA keys have 2048 to 8192 bits; the longest would hold up the event loop for longer than a request takes.
* Under one ``kid`` a set may have several keys when no algorithm fits two of them (RFC 7517, section 4.5). Otherwise
  the first that can be used stands: to refuse both would let a mistake at the provider refuse everybody.
"""

import base64
import binascii
import hashlib
import json
import logging
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    SECP521R1,
    EllipticCurve,
    EllipticCurvePublicKey,
    EllipticCurvePublicNumbers,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, RSAPublicNumbers
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)
from cryptography.x509 import load_der_x509_certificate
from jwt.algorithms import HMACAlgorithm
from jwt.exceptions import InvalidKeyError

__all__ = ["MAX_PUBLISHED_KEYS", "SigningKey", "family_of", "parse_jwks", "static_keys"]

logger = logging.getLogger("agentrun_middleware.signing_keys")

MAX_PUBLISHED_KEYS = 100
"""A set with more is refused whole."""

_FAMILIES: Final[Mapping[str, tuple[str, ...]]] = {
    "HS": ("HS256", "HS384", "HS512"),
    "RS": ("RS256", "RS384", "RS512"),
    "PS": ("PS256", "PS384", "PS512"),
    "ES": ("ES256", "ES384", "ES512"),
    "EdDSA": ("EdDSA",),
}
_FAMILY_OF: Final = {algorithm: family for family, algorithms in _FAMILIES.items() for algorithm in algorithms}

_SECRET, _RSA, _P256, _P384, _P521, _ED25519 = "secret", "RSA", "P-256", "P-384", "P-521", "Ed25519"
_KIND_FOR: Final[Mapping[str, str]] = {
    # algorithm → the one kind of key it takes (RFC 7518, section 3.1; RFC 8037, section 3.1)
    **dict.fromkeys(_FAMILIES["HS"], _SECRET),
    **dict.fromkeys(_FAMILIES["RS"], _RSA),
    **dict.fromkeys(_FAMILIES["PS"], _RSA),
    **dict(zip(_FAMILIES["ES"], (_P256, _P384, _P521), strict=True)),
    "EdDSA": _ED25519,
}
_SECRET_BYTES: Final = {"HS256": 32, "HS384": 48, "HS512": 64}
"""RFC 7518, section 3.2: at least as long as the hash."""
_RSA_BITS: Final = range(2048, 8192 + 1)
_CURVES: Final[Mapping[str, tuple[EllipticCurve, int]]] = {
    # name in a JWK → the curve, bytes of a coordinate (RFC 7518, section 6.2.1.2)
    _P256: (SECP256R1(), 32),
    _P384: (SECP384R1(), 48),
    _P521: (SECP521R1(), 66),
}
_KIND_OF_CURVE: Final = {curve.name: kind for kind, (curve, _) in _CURVES.items()}
_PRIVATE_MEMBERS: Final = frozenset(("d", "p", "q", "dp", "dq", "qi", "oth", "k"))

_BASE64URL = re.compile(r"[A-Za-z0-9_-]+={0,2}", re.ASCII)
_SSH = (b"ssh-", b"ecdsa-sha2-", b"sk-ssh-", b"sk-ecdsa-")


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that verifies signatures. Two are equal when they are the same key, for the same tokens."""

    kid: str | None
    """The name that tokens know it by."""
    material: Any = field(repr=False, compare=False)
    """What PyJWT takes: the bytes of a secret, or a public key of `cryptography`."""
    algorithm: str | None = None
    """The one algorithm that it is meant for, where its publisher says so."""
    identity: str = field(default="", repr=False)
    """SHA-256, in hex, of the secret or of the public key (SubjectPublicKeyInfo)."""

    def fits(self, algorithm: str) -> bool:
        """Return whether this key may verify signatures made with `algorithm`."""
        if self.algorithm is not None and self.algorithm != algorithm:
            return False
        kind = _KIND_FOR.get(algorithm)
        return kind is not None and kind == _kind(self.material)


def family_of(algorithms: Collection[str]) -> str:
    """Return what `algorithms` have in common: ``HS``, ``RS``, ``PS``, ``ES`` or ``EdDSA``.

    Raises:
        ValueError: there is none, one is unknown, or they are of more than one family.
    """
    if isinstance(algorithms, (str, bytes)):
        raise ValueError("algorithms: a list is needed, not one string")
    if not algorithms:
        raise ValueError("algorithms: at least one is needed")
    families = set()
    for algorithm in algorithms:
        if isinstance(algorithm, str) and algorithm.lower() == "none":
            raise ValueError("algorithms: a token without a signature (none) is never accepted")
        if not isinstance(algorithm, str) or algorithm not in _FAMILY_OF:
            raise ValueError(f"algorithms: {algorithm!r} is not one of {', '.join(_FAMILY_OF)}")
        families.add(_FAMILY_OF[algorithm])
    if len(families) > 1:
        raise ValueError(f"algorithms: one family only, not {' and '.join(sorted(families))}")
    return families.pop()


def static_keys(key: str | bytes | Mapping[str, str | bytes], algorithms: Collection[str]) -> tuple[SigningKey, ...]:
    """Return the keys of the settings: `key` is a secret (HS*), a public key in PEM, or several of these by ``kid``.

    A secret must do for the longest of `algorithms`, a public key for at least one of them.

    Raises:
        ValueError: `algorithms` are not one family, or a key is no good for them.
    """
    family = family_of(algorithms)
    read = _read_secret if family == "HS" else _read_pem
    if not isinstance(key, Mapping):
        return (_signing_key(None, read(key, algorithms)),)
    if not key:
        raise ValueError("key: at least one is needed")
    if not all(isinstance(kid, str) for kid in key):
        raise ValueError("key: a kid is a string")
    return tuple(_signing_key(kid, read(text, algorithms)) for kid, text in key.items())


def parse_jwks(text: bytes, *, family: str) -> tuple[SigningKey, ...]:
    """Return the keys of a published set (RFC 7517, section 5) that verify algorithms of `family`, in its order.

    Every key that is left out gets a line in the log. Secrets (``oct``) and keys with private members are among them,
    always: whatever is published is known to everybody.

    Raises:
        ValueError: `text` is no JWK set, has more than 100 keys, or none that can be used; or nobody can publish keys
            for `family`.
    """
    if family not in _FAMILIES or family == "HS":
        raise ValueError(f"no keys are published for {family}")
    try:
        document = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise ValueError("no JSON") from None  # the text of the error would repeat the document
    published = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(published, list):
        raise ValueError("no JWK set")
    if len(published) > MAX_PUBLISHED_KEYS:
        raise ValueError(f"more than {MAX_PUBLISHED_KEYS} keys")
    keys: list[SigningKey] = []
    for index, jwk in enumerate(published):
        try:
            key = _read_jwk(jwk, family)
            if any(_collide(key, other, family) for other in keys):
                raise _UnusableKeyError("an earlier key has its kid")
        except _UnusableKeyError as exc:
            kid = jwk.get("kid") if isinstance(jwk, dict) else None
            shown = kid[:64] if isinstance(kid, str) else None
            logger.log(exc.level, "published key left out", extra={"index": index, "kid": shown, "reason": str(exc)})
        else:
            if key not in keys:
                keys.append(key)
    if not keys:
        raise ValueError(f"no key that can be used for {family}")
    return tuple(keys)


# --- one key


def _signing_key(kid: str | None, material: Any, algorithm: str | None = None) -> SigningKey:
    if isinstance(material, bytes):
        encoded = material
    else:
        encoded = material.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return SigningKey(kid, material, algorithm, hashlib.sha256(encoded).hexdigest())


def _kind(material: object) -> str | None:
    """Return what kind of key this is; None when it is none that is supported, whatever its size."""
    if isinstance(material, RSAPublicKey):
        return _RSA
    if isinstance(material, EllipticCurvePublicKey):
        return _KIND_OF_CURVE.get(material.curve.name)
    if isinstance(material, Ed25519PublicKey):
        return _ED25519
    return _SECRET if isinstance(material, bytes) else None


# --- keys of the settings


def _read_secret(text: str | bytes, algorithms: Collection[str]) -> bytes:
    secret = _as_bytes(text)
    if _is_public_key(secret):
        raise ValueError("key: a public key is no secret; HS algorithms need one that only the issuer knows")
    try:
        HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
    except InvalidKeyError:  # better now than at the first token
        raise ValueError("key: HS algorithms need a secret; this is a key of another kind") from None
    needed = max(_SECRET_BYTES[algorithm] for algorithm in algorithms)
    if len(secret) < needed:
        raise ValueError(f"key: the secret must have at least {needed} bytes for {', '.join(sorted(algorithms))}")
    return secret


def _read_pem(text: str | bytes, algorithms: Collection[str]) -> Any:
    pem = _as_bytes(text)
    if b"PRIVATE KEY-----" in pem:
        raise ValueError("key: a private key is given; only the issuer may have that, the public one is needed here")
    if b"BEGIN CERTIFICATE" in pem:
        raise ValueError("key: a certificate is given; its public key is needed: openssl x509 -pubkey -noout")
    if pem.count(b"-----BEGIN") > 1:
        raise ValueError("key: several keys in one text; give them by kid")
    try:
        material = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("key: no public key in PEM (-----BEGIN PUBLIC KEY-----)") from None
    if isinstance(material, RSAPublicKey) and material.key_size not in _RSA_BITS:
        raise ValueError(f"key: RSA keys have 2048 to 8192 bits, this one has {material.key_size}")
    if not any(_KIND_FOR[algorithm] == _kind(material) for algorithm in algorithms):
        raise ValueError(f"key: its type or curve is none that {', '.join(sorted(algorithms))} can use")
    return material


def _as_bytes(text: object) -> bytes:
    if isinstance(text, str):
        return text.encode("utf-8", "surrogateescape")  # as it was in the environment
    if isinstance(text, bytes):
        return text
    raise ValueError("key: text or bytes are needed")


def _is_public_key(secret: bytes) -> bool:
    """Return whether everybody may know `secret`: PEM, SSH, DER, or PEM that has lost its first and last line."""
    if b"PUBLIC KEY-----" in secret or b"BEGIN CERTIFICATE" in secret or secret.lstrip().startswith(_SSH):
        return True
    forms = [secret]
    with suppress(binascii.Error):
        forms.append(base64.b64decode(b"".join(secret.split()), validate=True))
    return any(_is_der(form) for form in forms)


def _is_der(text: bytes) -> bool:
    for load in (load_der_public_key, load_der_x509_certificate):
        try:
            load(text)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            continue
        return True
    return False


# --- published keys


class _UnusableKeyError(Exception):
    """A published key is left out; the text says why and never what is in it."""

    def __init__(self, reason: str, level: int = logging.INFO) -> None:
        super().__init__(reason)
        self.level = level


def _read_jwk(jwk: object, family: str) -> SigningKey:
    if not isinstance(jwk, dict):
        raise _UnusableKeyError("it is no JSON object")
    if jwk.get("kty") == "oct":
        raise _UnusableKeyError("a secret is published", logging.WARNING)
    if not _PRIVATE_MEMBERS.isdisjoint(jwk):
        raise _UnusableKeyError("a private key is published", logging.WARNING)
    if jwk.get("use", "sig") != "sig":
        raise _UnusableKeyError("its use is not sig")
    operations = jwk.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise _UnusableKeyError("its key_ops are without verify")
    kid, algorithm = jwk.get("kid"), jwk.get("alg")
    if kid is not None and not isinstance(kid, str):
        raise _UnusableKeyError("its kid is no string")
    if algorithm is not None and algorithm not in _FAMILIES[family]:
        raise _UnusableKeyError(f"its alg is none of {family}")
    reader = _JWK_READERS.get(str(jwk.get("kty")))
    if reader is None:
        raise _UnusableKeyError("its kty is not supported")
    try:
        material = reader(jwk)
    except (ValueError, UnsupportedAlgorithm):
        raise _UnusableKeyError("its numbers make no key") from None
    key = _signing_key(kid, material, algorithm)
    if not any(key.fits(one) for one in _FAMILIES[family]):
        raise _UnusableKeyError(f"its type or curve does not go with {algorithm or family}")
    return key


def _read_rsa(jwk: Mapping[str, Any]) -> RSAPublicKey:
    modulus = _number(jwk, "n")
    if modulus.bit_length() not in _RSA_BITS:
        raise _UnusableKeyError("it has not 2048 to 8192 bits")
    return RSAPublicNumbers(_number(jwk, "e"), modulus).public_key()


def _read_ec(jwk: Mapping[str, Any]) -> EllipticCurvePublicKey:
    curve, size = _CURVES.get(str(jwk.get("crv")), (None, 0))
    if curve is None:
        raise _UnusableKeyError("its curve is not supported")
    x, y = _octets(jwk, "x"), _octets(jwk, "y")
    if not len(x) == len(y) == size:
        raise ValueError
    # `cryptography` refuses a point that is not on the curve.
    return EllipticCurvePublicNumbers(int.from_bytes(x), int.from_bytes(y), curve).public_key()


def _read_okp(jwk: Mapping[str, Any]) -> Ed25519PublicKey:
    if jwk.get("crv") != _ED25519:
        raise _UnusableKeyError("its curve is not supported")
    return Ed25519PublicKey.from_public_bytes(_octets(jwk, "x"))


_JWK_READERS: Final[Mapping[str, Callable[[Mapping[str, Any]], Any]]] = {
    "RSA": _read_rsa,
    "EC": _read_ec,
    "OKP": _read_okp,
}


def _number(jwk: Mapping[str, Any], name: str) -> int:
    return int.from_bytes(_octets(jwk, name))


def _octets(jwk: Mapping[str, Any], name: str) -> bytes:
    """Return a base64url member (RFC 7515, section 2). Padding is let pass, characters of another alphabet are not."""
    text = jwk.get(name)
    if not isinstance(text, str) or not _BASE64URL.fullmatch(text):
        raise ValueError
    text = text.rstrip("=")
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _collide(key: SigningKey, other: SigningKey, family: str) -> bool:
    """Return whether a token could mean either of two different keys by the same ``kid``."""
    if key.kid is None or key.kid != other.kid or key == other:
        return False
    return any(key.fits(algorithm) and other.fits(algorithm) for algorithm in _FAMILIES[family])
