"""Algorithms that an issuer does not use, and signatures that are not its own."""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from tests.middleware.hostile.forge import (
    ALGORITHM,
    FORM,
    PUBLIC,
    SIGNATURE,
    SINGLE,
    Case,
    Forge,
    Make,
    Row,
    cases,
    pem,
    rows,
)
from tests.middleware.tokens import (
    ALGORITHMS,
    AUDIENCE,
    CANARY,
    ISSUER,
    P256_ORDER,
    Signer,
    base64url,
    claims,
    compact,
    decoded,
    ecdsa_numbers,
    signer,
)

__all__ = ["algorithms", "signatures"]


def _headed(header: object) -> Make:
    """Return what makes a token with `header` that its issuer has signed."""
    return lambda forge: forge.issuer.compact(header, claims())


def _with_alg(value: object) -> Make:
    return _headed({"alg": value, "typ": "JWT"})


def _with_like(edit: Callable[[str], object]) -> Make:
    """Return what makes a token whose ``alg`` is nearly that of the issuer."""
    return lambda forge: _with_alg(edit(forge.issuer.algorithm))(forge)


def _unsigned(alg: str, signature: str) -> Make:
    return lambda forge: compact({"alg": alg, "typ": "JWT"}, claims(), lambda _: b"") + signature


def _public_key_as_secret(algorithm: str, form: Callable[[Signer], bytes]) -> Make:
    def make(forge: Forge) -> str:
        secret = Signer("HS256", form(forge.issuer))
        return compact({"alg": algorithm, "typ": "JWT"}, claims(), secret.sign)

    return make


_PUBLIC_FORMS: Final[Mapping[str, Callable[[Signer], bytes]]] = {
    "PEM": pem,
    "PEM without the last line end": lambda key: pem(key).rstrip(),
    "PEM with CR LF": lambda key: pem(key).replace(b"\n", b"\r\n"),
    "PEM on one line": lambda key: pem(key).replace(b"\n", b""),
    "PEM without its first and last line": lambda key: b"".join(pem(key).splitlines()[1:-1]),
    "DER": lambda key: key.public(Encoding.DER),
    "DER in base64url": lambda key: base64url(key.public(Encoding.DER)).encode(),
    "SHA-256 of DER": lambda key: hashlib.sha256(key.public(Encoding.DER)).digest(),
    "JWK": lambda key: json.dumps(key.jwk()).encode(),
}


def _swapped(to: str) -> Row:
    """Another algorithm, rightly signed: by the issuer's own key where that can do it, else by an attacker's."""

    def make(forge: Forge) -> str:
        can = forge.issuer.algorithm[:2] in ("RS", "PS") and to[:2] in ("RS", "PS")
        can = can or (forge.issuer.algorithm[:2] == "HS" == to[:2])
        key = forge.issuer if can else signer(to, "attacker")
        return compact({"alg": to, "typ": "JWT"}, claims(), lambda data: key.sign(data, to))

    return f"signed with {to}", make


def algorithms() -> Iterator[Case]:
    spellings = ("none", "None", "NONE", "nOnE", "none ", "\tnone", "none\0", "null", "")
    few, nothing = (lambda name: _unsigned(name, "AAAA")), (lambda name: _unsigned(name, ""))
    yield from cases("none, and a few bytes", ALGORITHM, SINGLE, *rows(few, spellings))
    yield from cases("none, and its issuer's signature", ALGORITHM, SINGLE, *rows(_with_alg, spellings))
    yield from cases("none, and nothing", FORM, SINGLE, *rows(nothing, spellings))
    yield from cases(
        "alg",
        ALGORITHM,
        SINGLE,
        ("missing", _headed({"typ": "JWT"})),
        ("no header at all", _headed({})),
        ("in letters of the other case", _with_like(str.swapcase)),
        ("with a space", _with_like(lambda ours: ours + " ")),
        ("with NUL", _with_like(lambda ours: ours + "\0")),
        ("with a look-alike letter", _with_like(lambda ours: ours.replace("S", "\u0405"))),
        ("in full-width letters", _with_like(lambda ours: "".join(chr(ord(letter) + 0xFEE0) for letter in ours))),
        ("in a list", _with_like(lambda ours: [ours])),
        ("in an object", _with_like(lambda ours: {ours: 1})),
        ("under the name Alg", lambda forge: _headed({"Alg": forge.issuer.algorithm})(forge)),
        *rows(_with_alg, (None, 0, 256, True, 1.5, [], "ES256K", "RSA-OAEP", "dir")),
    )
    for front in SINGLE:
        others = (to for to in (*ALGORITHMS, "ES256K") if to != front)
        yield from cases("another algorithm", ALGORITHM, [front], *map(_swapped, others))
    for size in ("256", "384", "512"):
        yield from cases(
            f"HS{size} with the public key",
            ALGORITHM,
            PUBLIC,
            *((name, _public_key_as_secret(f"HS{size}", form)) for name, form in _PUBLIC_FORMS.items()),
        )
    for front in PUBLIC:
        forms = ((name, _public_key_as_secret(front, form)) for name, form in _PUBLIC_FORMS.items())
        yield from cases("HMAC with the public key, alg ours", SIGNATURE, [front], *forms)


def _signed_as(make_signature: Callable[[Forge, bytes], bytes]) -> Make:
    """Return what makes a good token but for its signature."""

    def make(forge: Forge) -> str:
        header = {"alg": forge.issuer.algorithm, "typ": "JWT"}
        return compact(header, claims(), lambda data: make_signature(forge, data))

    return make


def _changed(part: int, old: bytes, new: bytes) -> Make:
    """Return what puts `new` in place of `old` in a part of a good token, whose signature stays."""

    def make(forge: Forge) -> str:
        parts = forge.issuer.token(claims(admin=False)).split(".")
        before = decoded(parts[part])
        assert old in before
        parts[part] = base64url(before.replace(old, new))
        return ".".join(parts)

    return make


def _edited(edit: Callable[[bytes], bytes]) -> Make:
    """Return what makes a good token but for what `edit` does to its signature."""
    return _signed_as(lambda forge, data: edit(forge.issuer.sign(data)))


def _signed_with(secret: Callable[[bytes], bytes]) -> Make:
    """Return what signs with another secret, made from the right one."""
    return lambda forge: Signer("HS256", secret(forge.issuer.key)).token()


def _bit_flipped(at: float, bit: int) -> Make:
    """Return what flips a bit of the signature: of its first byte (0), its last (1), or in between."""

    def flip(signature: bytes) -> bytes:
        flipped = bytearray(signature)
        flipped[round(at * (len(signature) - 1))] ^= 1 << bit
        return bytes(flipped)

    return _edited(flip)


def _pieced_together(forge: Forge) -> str:
    """Two tokens of the same issuer: the head of one with the signature of the other."""
    first, second = forge.issuer.token(claims()), forge.issuer.token(claims(sub="alice"))
    return first.rpartition(".")[0] + "." + second.rpartition(".")[2]


def _der(signature: bytes) -> bytes:
    return encode_dss_signature(int.from_bytes(signature[:32]), int.from_bytes(signature[32:]))


def _of_the_decoded_payload(forge: Forge, data: bytes) -> bytes:
    return forge.issuer.sign(decoded(data.decode().split(".")[1]))


def _rsa_modulus(forge: Forge) -> int:
    modulus: int = forge.issuer.key.public_key().public_numbers().n
    return modulus


def _with_modulus(forge: Forge, data: bytes) -> bytes:
    """The right signature as another number of the same meaning, which is too long (RFC 8017, section 8.2.2)."""
    return (int.from_bytes(forge.issuer.sign(data)) + _rsa_modulus(forge)).to_bytes(257)


_ED25519_ORDER: Final = 2**252 + 27742317777372353535851937790883648493


def _ed25519_twin(signature: bytes) -> bytes:
    """The same signature with another number S of the same meaning, which RFC 8032 forbids."""
    s = int.from_bytes(signature[32:], "little") + _ED25519_ORDER
    return signature[:32] + s.to_bytes(32, "little")


def signatures() -> Iterator[Case]:
    yield from cases(
        "signature",
        SIGNATURE,
        SINGLE,
        ("of somebody else's key", lambda forge: forge.attacker.token()),
        ("of another token", _pieced_together),
        ("of the payload alone", _signed_as(lambda forge, data: forge.issuer.sign(data.partition(b".")[2]))),
        ("of the decoded payload", _signed_as(_of_the_decoded_payload)),
        ("of nothing", _signed_as(lambda forge, _: forge.issuer.sign(b""))),
        ("without its last byte", _edited(lambda signature: signature[:-1])),
        ("without its first byte", _edited(lambda signature: signature[1:])),
        ("its first half", _edited(lambda signature: signature[: len(signature) // 2])),
        ("two bytes", _edited(lambda _: b"\0\0")),
        ("a byte longer", _edited(lambda signature: signature + b"\0")),
        ("a byte longer in front", _edited(lambda signature: b"\0" + signature)),
        ("twice", _edited(lambda signature: signature * 2)),
        ("back to front", _edited(lambda signature: signature[::-1])),
        ("zeros", _edited(lambda signature: bytes(len(signature)))),
        ("ones", _edited(lambda signature: b"\xff" * len(signature))),
        ("4 KiB of zeros", _edited(lambda _: bytes(4096))),
        ("in hexadecimal", _edited(lambda signature: signature.hex().encode())),
        ("encoded twice", _edited(lambda signature: base64url(signature).encode())),
        *rows(lambda where: _bit_flipped(*where), [(at, bit) for at in (0, 0.5, 1) for bit in (0, 7)]),
        ("for another subject", _changed(1, CANARY.encode(), b"root")),
        ("for another claim", _changed(1, b"false", b"true")),
        ("for one more space", _changed(1, b"}", b" }")),
        ("for another header", _changed(0, b'"JWT"', b'"jwt"')),
        ("for one more header parameter", _changed(0, b"}", b', "kid": "a"}')),
    )
    others = (b"", b"\0", b"\0" * 32, b"secret", b"null", b"undefined", ISSUER.encode(), AUDIENCE.encode())
    yield from cases(
        "HMAC",
        SIGNATURE,
        ["HS256"],
        *rows(lambda secret: _signed_with(lambda _: secret), others),
        ("with the first half of the secret", _signed_with(lambda secret: secret[:32])),
        ("with the secret and a line end", _signed_with(lambda secret: secret + b"\n")),
        ("with the secret in base64", _signed_with(base64.b64encode)),
        ("of SHA-512, cut to 32 bytes", _signed_as(lambda forge, data: forge.issuer.sign(data, "HS512")[:32])),
        ("by an RSA key", _signed_as(lambda _, data: signer("RS256").sign(data))),
    )
    yield from cases(
        "RSA",
        SIGNATURE,
        ["RS256"],
        ("PS256 under the name of RS256", _signed_as(lambda forge, data: forge.issuer.sign(data, "PS256"))),
        ("RS512 under the name of RS256", _signed_as(lambda forge, data: forge.issuer.sign(data, "RS512"))),
        ("the number 1", _edited(lambda _: (1).to_bytes(256))),
        ("the modulus", _signed_as(lambda forge, _: _rsa_modulus(forge).to_bytes(256))),
        ("the modulus less 1", _signed_as(lambda forge, _: (_rsa_modulus(forge) - 1).to_bytes(256))),
        ("the right number and the modulus", _signed_as(_with_modulus)),
        ("of an elliptic curve", _signed_as(lambda _, data: signer("ES256").sign(data))),
    )
    order = P256_ORDER
    yield from cases(
        "ECDSA",
        SIGNATURE,
        ["ES256"],
        *rows(
            lambda numbers: _edited(lambda _: ecdsa_numbers(*numbers)),
            [(0, 0), (0, 1), (1, 0), (1, 1), (order, order), (order, 1), (1, order), (0, order), (order, 0)],
        ),
        ("zero in DER", _edited(lambda _: encode_dss_signature(0, 0))),
        ("in DER", _edited(_der)),
        ("r and s the wrong way round", _edited(lambda signature: signature[32:] + signature[:32])),
        ("of SHA-384", _signed_as(lambda forge, data: forge.issuer.sign(data, "ES384"))),
        ("of P-384", _signed_as(lambda _, data: signer("ES384").sign(data))),
        ("of P-521", _signed_as(lambda _, data: signer("ES512").sign(data))),
        ("of secp256k1", _signed_as(lambda _, data: signer("ES256K").sign(data, "ES256"))),
    )
    yield from cases(
        "EdDSA",
        SIGNATURE,
        ["EdDSA"],
        ("S beyond the order of the group", _edited(_ed25519_twin)),
        ("R of small order, S = 0", _edited(lambda _: b"\x01" + bytes(63))),
        ("of an elliptic curve of ECDSA", _signed_as(lambda _, data: signer("ES256").sign(data))),
    )
