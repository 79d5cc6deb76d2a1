"""What an API key is."""

import hashlib
import hmac
import math
import random
import string
from typing import Any

import pytest

from agentrun_middleware.key_record import (
    MIN_PEPPER_BYTES,
    KeyRecord,
    Pepper,
    id_of,
    is_key_id,
    moment,
    new_key,
    new_pepper,
)

KEY = "ar_0123abcd_0123456789ABCDEFGHIJKLMNOPQRSTUV"
PEPPER = "p" * MIN_PEPPER_BYTES


def record(**fields: Any) -> KeyRecord:
    return KeyRecord(**{"id": "0123abcd", "hash": "a" * 64, "name": "laptop", "created_at": 1000.0, **fields})


# --- the key


def test_a_new_key_has_the_form_of_a_key() -> None:
    key = new_key()
    assert id_of(key) == key[3:11]
    assert is_key_id(key[3:11])
    assert len(key) == 3 + 8 + 1 + 32


def test_new_keys_use_every_letter_and_digit_everywhere_alike() -> None:
    keys = [new_key() for _ in range(4000)]
    assert len(set(keys)) == len({id_of(key) for key in keys}) == len(keys)
    for position in range(12, 44):
        assert {key[position] for key in keys} == set(string.digits + string.ascii_letters)
    for position in range(3, 11):
        assert {key[position] for key in keys} == set(string.digits + string.ascii_lowercase)
    assert 32 * math.log2(62) > 190


def test_keys_and_peppers_do_not_come_from_a_generator_that_can_be_seeded() -> None:
    seen: set[str] = set()
    for _ in range(2):
        random.seed(1)
        seen |= {new_key(), new_pepper()}
    assert len(seen) == 4


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ar_",
        KEY[:-1],
        KEY + "x",
        KEY + "\n",
        " " + KEY,
        "AR" + KEY[2:],
        KEY.replace("_", "-"),
        KEY.replace("abcd", "ABCD"),
        KEY.replace("0123", "\u0660\u0661\u0662\u0663"),  # digits elsewhere
        KEY[:-1] + "\u0663",
        KEY[:-1] + "é",
        KEY[:-1] + "_",
        KEY[:-1] + "\0",
        KEY.replace("0123abcd", "../../.."),
        KEY.replace("0123abcd", "' or 1=1"),
        KEY * 2,
        "ar_" * 350_000,  # 1 MB
        KEY + "x" * 1_000_000,
    ],
)
def test_what_has_not_the_form_of_a_key_has_no_id(text: str) -> None:
    assert id_of(text) is None


@pytest.mark.parametrize(
    "text", ["", "0123abc", "0123abcde", "0123ABCD", "\u0660123abcd", "0123abcd\n", KEY, None, 12345678]
)
def test_what_has_not_the_form_of_an_id_is_none(text: object) -> None:
    assert not is_key_id(text)


# --- the pepper


def test_a_key_is_kept_as_hmac_sha256_under_the_pepper() -> None:
    assert Pepper(PEPPER).hash(KEY) == hmac.new(PEPPER.encode(), KEY.encode(), hashlib.sha256).hexdigest()
    assert Pepper(PEPPER).hash(KEY) != Pepper("q" * MIN_PEPPER_BYTES).hash(KEY)


def test_spaces_and_line_ends_around_a_text_do_not_count() -> None:
    assert Pepper(f" {PEPPER}\r\n").hash(KEY) == Pepper(PEPPER).hash(KEY) == Pepper(PEPPER.encode()).hash(KEY)


def test_a_pepper_may_hold_any_bytes() -> None:
    raw = bytes(range(128, 160))
    assert Pepper(raw.decode("utf-8", "surrogateescape")).hash(KEY) == Pepper(raw).hash(KEY)


@pytest.mark.parametrize("secret", ["", "hunter2", b"hunter2", " " * 40, "p" * 31])
def test_a_short_pepper_is_refused_and_not_repeated(secret: str | bytes) -> None:
    with pytest.raises(ValueError, match="at least 32 bytes") as caught:
        Pepper(secret)
    assert "hunter2" not in str(caught.value)


def test_a_new_pepper_is_long_enough_and_new() -> None:
    assert Pepper(new_pepper()).check != Pepper(new_pepper()).check


def test_a_pepper_shows_itself_nowhere() -> None:
    pepper = Pepper(PEPPER)
    for shown in (repr(pepper), str(pepper), f"{pepper}", repr([pepper]), pepper.check):
        assert PEPPER not in shown


# --- the record


def test_who_calls_is_the_id_unless_it_is_said() -> None:
    assert record().subject == "0123abcd"
    assert record(subject="alice").subject == "alice"


def test_scopes_are_frozen_whatever_set_they_come_in() -> None:
    assert record(scopes={"chat"}).scopes == frozenset({"chat"})
    assert isinstance(record(scopes={"chat"}).scopes, frozenset)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("id", value) for value in ("", "0123ABCD", KEY, None)),
        *(("hash", value) for value in ("", "A" * 64, "a" * 63, b"a" * 64, KEY, None)),
        *(("name", value) for value in ("", "x" * 101, "a\nb", "\x1b[2J", "a\u202eb", "\ud800", None)),
        *(("subject", value) for value in ("a b", "a\r\nx: y", "é", "x" * 256)),
        *(("scopes", value) for value in ("chat", ["chat"], {"a b"}, {'"'}, {1}, None)),
        *(("created_at", value) for value in (None, -1.0, math.nan, "2027-01-31T12:00:00Z")),
        *(("expires_at", value) for value in (math.nan, math.inf, 1e300, "never")),
        *(("revoked_at", value) for value in (math.nan, -math.inf, "")),
        *(("hint", value) for value in ("12345", "a b", None)),
    ],
)
def test_a_field_that_cannot_be_is_refused_by_its_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name}: ") as caught:
        record(**{name: value})
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "now", "state"),
    [
        ({}, 1e10, "active"),
        ({"expires_at": 2000.0}, 1999.9, "active"),
        ({"expires_at": 2000.0}, 2000.0, "expired"),
        ({"revoked_at": 1500.0}, 1400.0, "revoked"),
        ({"revoked_at": 0.0}, 1e10, "revoked"),
        ({"revoked_at": 1500.0, "expires_at": 1200.0}, 1e10, "revoked"),
    ],
)
def test_a_key_is_good_until_it_expires_or_is_revoked(fields: dict[str, float], now: float, state: str) -> None:
    assert record(**fields).state(now) == state


def test_a_record_shows_everything_but_the_hash() -> None:
    shown = record(scopes=frozenset({"b", "a"}), expires_at=2e9, hint="STUV")
    assert shown.shown() == {
        "id": "0123abcd",
        "name": "laptop",
        "subject": "0123abcd",
        "scopes": ["a", "b"],
        "created_at": "1970-01-01T00:16:40Z",
        "expires_at": "2033-05-18T03:33:20Z",
        "revoked_at": None,
        "hint": "STUV",
    }
    assert "a" * 64 not in repr(shown)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "1970-01-01T00:00:00Z"), (1.9, "1970-01-01T00:00:01Z"), (2e9, "2033-05-18T03:33:20Z")]
)
def test_a_moment_is_told_in_utc(seconds: float, text: str) -> None:
    assert moment(seconds) == text
