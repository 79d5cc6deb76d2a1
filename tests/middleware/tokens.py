"""Tokens made by hand, good ones and all others: PyJWT refuses to make most of what an attacker sends.

Nothing here comes from the code under test or from PyJWT, so that a token that is accepted was understood in the same
way twice. Keys are made once for each run of the tests.
"""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

__all__ = [
    "ALGORITHMS",
    "AUDIENCE",
    "CANARY",
    "ISSUER",
    "P256_ORDER",
    "Signer",
    "base64url",
    "claims",
    "compact",
    "decoded",
    "ecdsa_numbers",
    "signer",
]

ISSUER: Final = "https://issuer.example/"
AUDIENCE: Final = "agent"
CANARY: Final = "canary-7d1f9c"
"""The subject of every token: no log line and no answer may show it when the token is refused."""

ALGORITHMS: Final = (
    *("HS256", "HS384", "HS512", "RS256", "RS384", "RS512"),
    *("PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"),
)
P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""How many points P-256 has."""

_CURVES: Final[Mapping[str, ec.EllipticCurve]] = {
    "ES256": ec.SECP256R1(),
    "ES384": ec.SECP384R1(),
    "ES512": ec.SECP521R1(),
    "ES256K": ec.SECP256K1(),
}
_HASHES: Final[Mapping[str, hashes.HashAlgorithm]] = {
    "256": hashes.SHA256(),
    "384": hashes.SHA384(),
    "512": hashes.SHA512(),
}
_JWK_CURVES: Final = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}


def base64url(data: bytes) -> str:
    """Return `data` as a part of a token (RFC 7515, section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decoded(part: str) -> bytes:
    """Return what a part of a token stands for."""
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def claims(*, without: Collection[str] = (), **changes: Any) -> dict[str, Any]:
    """Return the claims of a good token that lasts five minutes, with `changes`."""
    now = int(time.time())
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": CANARY, "iat": now, "exp": now + 300}
    return {name: value for name, value in {**good, **changes}.items() if name not in without}


def compact(header: object, payload: object, sign: Callable[[bytes], bytes]) -> str:
    """Return a token of any header and payload: bytes as they are, everything else as JSON."""
    signed = f"{_part(header)}.{_part(payload)}"
    return f"{signed}.{base64url(sign(signed.encode()))}"


def _part(value: object) -> str:
    return base64url(value if isinstance(value, bytes) else json.dumps(value).encode())


def ecdsa_numbers(r: int, s: int, algorithm: str = "ES256") -> bytes:
    """Return an ECDSA signature as tokens have it (RFC 7518, section 3.4)."""
    size = (_CURVES[algorithm].key_size + 7) // 8
    return r.to_bytes(size) + s.to_bytes(size)


@dataclass(frozen=True)
class Signer:
    """Someone who signs tokens with one key and one algorithm."""

    algorithm: str
    key: Any = field(repr=False)
    """A secret, or a private key of `cryptography`."""

    def sign(self, data: bytes, algorithm: str | None = None) -> bytes:
        """Return the signature of `data`, made with this key as `algorithm` says."""
        algorithm = algorithm or self.algorithm
        key, digest = self.key, _HASHES.get(algorithm[2:5])
        if digest is None:
            signature: bytes = key.sign(data)
            return signature
        match algorithm[:2]:
            case "HS":
                return hmac.digest(key, data, digest.name)
            case "RS":
                signature = key.sign(data, padding.PKCS1v15(), digest)
            case "PS":
                signature = key.sign(data, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
            case _:
                size = (key.key_size + 7) // 8
                r, s = decode_dss_signature(key.sign(data, ec.ECDSA(digest)))
                signature = r.to_bytes(size) + s.to_bytes(size)
        return signature

    def token(self, payload: object = None, /, **header: Any) -> str:
        """Return a token that is signed as its header says; a good one by default."""
        return self.compact({"alg": self.algorithm, "typ": "JWT", **header}, claims() if payload is None else payload)

    def compact(self, header: object, payload: object) -> str:
        """Return a token of any header and payload, rightly signed."""
        return compact(header, payload, self.sign)

    @property
    def verification_key(self) -> bytes:
        """What whoever verifies must know: the secret, or the public key in PEM."""
        return self.key if isinstance(self.key, bytes) else self.public(Encoding.PEM)

    def public(self, encoding: Encoding, form: PublicFormat = PublicFormat.SubjectPublicKeyInfo) -> bytes:
        """Return the public key."""
        data: bytes = self.key.public_key().public_bytes(encoding, form)
        return data

    @property
    def private_pem(self) -> bytes:
        """The private key, which nobody else may have."""
        data: bytes = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return data

    def jwk(self, kid: str | None = None, **members: Any) -> dict[str, Any]:
        """Return the public key as its issuer publishes it (RFC 7517)."""
        jwk: dict[str, Any]
        public = self.key.public_key()
        match public:
            case rsa.RSAPublicKey():
                numbers = public.public_numbers()
                n, e = (base64url(x.to_bytes((x.bit_length() + 7) // 8)) for x in (numbers.n, numbers.e))
                jwk = {"kty": "RSA", "n": n, "e": e}
            case ec.EllipticCurvePublicKey():
                point, size = public.public_numbers(), (public.key_size + 7) // 8
                x, y = (base64url(part.to_bytes(size)) for part in (point.x, point.y))
                jwk = {"kty": "EC", "crv": _JWK_CURVES[public.curve.name], "x": x, "y": y}
            case _:
                jwk = {"kty": "OKP", "crv": "Ed25519", "x": base64url(public.public_bytes_raw())}
        jwk |= {"use": "sig", "alg": self.algorithm, **members}
        return jwk if kid is None else {**jwk, "kid": kid}


@cache
def signer(algorithm: str, name: str = "issuer") -> Signer:
    """Return the signer of that name. RSA keys do for all of RS* and PS*."""
    return Signer(algorithm, _key(algorithm[:2] if algorithm[:2] in ("HS", "RS", "PS") else algorithm, name))


@cache
def _key(kind: str, name: str) -> Any:
    match kind:
        case "HS":
            return hashlib.sha256(name.encode()).hexdigest().encode()
        case "RS" | "PS":
            return _rsa_key(name)
        case "EdDSA":
            return ed25519.Ed25519PrivateKey.generate()
        case _:
            return ec.generate_private_key(_CURVES[kind])


@cache
def _rsa_key(name: str) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)
