from urllib.parse import quote

import pytest

from agentrun_middleware.asgi import Scope
from agentrun_middleware.credentials import (
    IDENTITY_HEADERS,
    MAX_CREDENTIAL_BYTES,
    MalformedCredentialsError,
    check_printable,
    take_credential,
    take_identity_headers,
)
from tests.middleware.calls import http_scope
from tests.support.properties import EXAMPLES

# After `properties`: it says how often each property is tried.
from hypothesis import given, settings  # isort: skip
from hypothesis import strategies as st  # isort: skip

BEARER = ("authorization", "Bearer canary")
TOO_MANY = "more than one Authorization header"


def taken(*headers: tuple[str, str], query: bytes = b"") -> str | None:
    return checked(http_scope(headers=headers, query=query))


def checked(scope: Scope) -> str | None:
    """Take the credential, and look at it as those do who do not know it."""
    credential = take_credential(scope)
    if credential is not None:
        check_printable(credential)
    return credential


class TestWhereItStands:
    @pytest.mark.parametrize(
        ("headers", "credential"),
        [
            ([BEARER], "canary"),
            ([("authorization", "bearer canary")], "canary"),
            ([("authorization", "BEARER canary")], "canary"),
            ([("authorization", "bEaReR   canary  ")], "canary"),
            ([("authorization", "Bearer canary\t")], "canary"),
            ([("api-key", "canary")], "canary"),
            ([("api-key", " canary\t")], "canary"),
            ([BEARER, ("api-key", "canary")], "canary"),
            ([BEARER, ("api-key", "")], "canary"),
            ([("authorization", "Bearer "), ("api-key", "canary")], "canary"),
            ([("authorization", "Basic dXNlcjpwYXNz"), ("api-key", "canary")], "canary"),
            ([("authorization", "Bearer a.b-c_d~e+f/g==")], "a.b-c_d~e+f/g=="),
            ([("authorization", "Bearer !#$%&'()*,:;<>?@[]^`{|}\"\\")], "!#$%&'()*,:;<>?@[]^`{|}\"\\"),
        ],
    )
    def test_it_is_a_bearer_token_or_an_api_key(self, headers: list[tuple[str, str]], credential: str) -> None:
        assert taken(*headers) == credential

    @pytest.mark.parametrize(
        "headers",
        [
            [],
            [("authorization", "")],
            [("authorization", "Bearer")],
            [("authorization", "Bearer ")],
            [("authorization", "canary")],
            [("authorization", "Basic Y2FuYXJ5")],
            [("authorization", "Digest username=canary")],
            [("authorization", "DPoP canary")],
            [("authorization", "Bearercanary")],
            [("authorization", "Bearer\tcanary")],
            [("authorization", "Bearer:canary")],
            [("authorization", '"Bearer" canary')],
            [("authorization", "B\xe9arer canary")],
            [("api-key", "")],
            [("x-api-key", "canary")],
            [("apikey", "canary")],
            [("api_key", "canary")],
            [("proxy-authorization", "Bearer canary")],
            [("x-authorization", "Bearer canary")],
            [("x-forwarded-authorization", "Bearer canary")],
            [("cookie", "authorization=Bearer canary; api-key=canary; token=canary; session=canary")],
            [("sec-websocket-protocol", "bearer, canary")],
        ],
    )
    def test_nothing_else_is_one(self, headers: list[tuple[str, str]]) -> None:
        assert taken(*headers) is None

    @pytest.mark.parametrize(
        ("headers", "reason"),
        [
            ([BEARER, BEARER], TOO_MANY),
            ([BEARER, ("authorization", "Bearer other")], TOO_MANY),
            ([("authorization", "Basic x"), BEARER], TOO_MANY),
            ([BEARER, ("authorization", "")], TOO_MANY),
            ([("Authorization", "Bearer canary"), ("AUTHORIZATION", "Bearer canary")], TOO_MANY),
            ([("api-key", "canary"), ("api-key", "canary")], "more than one api-key header"),
            ([("api-key", ""), ("api-key", "canary")], "more than one api-key header"),
            ([BEARER, ("api-key", "other")], "two different credentials"),
            ([BEARER, ("api-key", "Canary")], "two different credentials"),
            ([BEARER, ("api-key", "canar")], "two different credentials"),
        ],
    )
    def test_more_than_one_are_refused(self, headers: list[tuple[str, str]], reason: str) -> None:
        with pytest.raises(MalformedCredentialsError) as caught:
            taken(*headers)
        assert str(caught.value) == reason

    @pytest.mark.parametrize("name", ["authorization", "api-key"])
    @pytest.mark.parametrize(
        "text",
        [
            "can ary",
            "can\tary",
            "can\x00ary",
            "can\x7fary",
            "canar\xe9",
            "canary, other",
            "\xff",
            "can\nary",
            "\x80" * 9,
        ],
    )
    def test_what_is_not_one_word_of_printable_ascii_is_refused(self, name: str, text: str) -> None:
        with pytest.raises(MalformedCredentialsError) as caught:
            taken((name, f"Bearer {text}" if name == "authorization" else text))
        assert "canary" not in str(caught.value)

    @given(text=st.binary(min_size=1, max_size=40))
    @settings(max_examples=EXAMPLES)
    def test_whatever_comes_back_is_printable_ascii(self, text: bytes) -> None:
        scope = http_scope()
        scope["headers"] = [(b"authorization", b"Bearer " + text)]
        word = text.strip(b" \t")
        if all(b"!"[0] <= letter <= b"~"[0] for letter in word):
            assert checked(scope) == (word.decode() or None)
        else:
            with pytest.raises(MalformedCredentialsError, match=r"^the credential is not one word of printable ASCII$"):
                checked(scope)

    @pytest.mark.parametrize("size", [MAX_CREDENTIAL_BYTES, MAX_CREDENTIAL_BYTES + 1, 1_000_000])
    def test_a_long_one_is_left_to_whoever_asked(self, size: int) -> None:
        assert taken(("authorization", "Bearer " + "x" * size)) == "x" * size
        assert taken(("api-key", "x" * size)) == "x" * size


class TestQuery:
    @pytest.mark.parametrize(
        "name",
        [
            "access_token", "access-token", "accessToken", "ACCESS_TOKEN", "id_token", "token", "TOKEN", "jwt",
            "bearer", "authorization", "Authorization", "api_key", "api-key", "apikey", "apiKey", "API-KEY",
            "x-api-key", "X_API_KEY", "key", "auth_token", "refresh_token", "client_secret", "password", "secret",
            "api_token", "x-access-token", "x-auth-token", "token[]", " token ", "+token", "%74oken", "%54OKEN",
            "a%70i_key", "api%5fkey", "api%2Dkey", "api%2dkey", "to%6Ben", "token%20", "%00token", "api.key", "k%65y",
        ],
    )  # fmt: skip
    @pytest.mark.parametrize(
        "query", ["{}=canary", "a=1&{}=canary", "a=1;{}=canary", "{}", "{}=", "&&{}=x", "{}=x&{}=y"]
    )
    def test_a_credential_there_is_refused_in_every_spelling(self, name: str, query: str) -> None:
        with pytest.raises(MalformedCredentialsError) as caught:
            taken(query=query.replace("{}", name).encode())
        assert str(caught.value) == "a credential in the query"

    def test_also_beside_a_good_one(self) -> None:
        with pytest.raises(MalformedCredentialsError):
            taken(BEARER, query=b"api_key=canary")

    def test_each_letter_may_be_encoded(self) -> None:
        for name in ("api_key", "access_token", "authorization"):
            encoded = "".join(f"%{ord(letter):02x}" for letter in name)
            with pytest.raises(MalformedCredentialsError):
                taken(query=f"{encoded}=canary".encode())

    @pytest.mark.parametrize(
        "query",
        [
            "", "a=1", "limit=10&after=token", "page_token=x", "next_token=x", "max_tokens=10", "tokens=1", "keys=1",
            "keyword=x", "monkey=1", "q=api_key", "q=token%3Dx", "model=jwt", "=token", "%zz=1", "%=1", "&&&", ";;",
            "key1=a", "api-version=2024-06-01", "order=asc&key_id=7", quote("a=é&b=中", safe="=&"),
        ],
    )  # fmt: skip
    def test_an_ordinary_query_passes(self, query: str) -> None:
        assert taken(BEARER, query=query.encode()) == "canary"

    def test_a_scope_without_a_query_passes(self) -> None:
        scope = http_scope(headers=[BEARER])
        del scope["query_string"]
        assert checked(scope) == "canary"


class TestIdentityHeaders:
    FORGED = tuple((name.decode(), "root") for name in sorted(IDENTITY_HEADERS))

    @pytest.mark.parametrize("headers", [[], [BEARER], [("cookie", "a=b")]])
    def test_they_are_taken_away_with_or_without_a_credential(self, headers: list[tuple[str, str]]) -> None:
        clean = http_scope(headers=headers)
        forged = http_scope(headers=[*self.FORGED, *headers, ("X-Auth-Subject", "root")])
        assert checked(forged) == checked(clean)
        assert forged["headers"] == clean["headers"]

    def test_other_headers_keep_their_order_and_the_servers_list_is_not_changed(self) -> None:
        scope = http_scope(headers=[("a", "1"), *self.FORGED, ("b", "2"), ("a", "3")])
        given = scope["headers"]
        before = list(given)
        assert [name.decode() for name, _ in take_identity_headers(scope)] == [name for name, _ in self.FORGED]
        assert scope["headers"] == [(b"a", b"1"), (b"b", b"2"), (b"a", b"3")]
        assert given == before

    def test_where_there_are_none_nothing_is_copied(self) -> None:
        scope: Scope = http_scope(headers=[BEARER])
        given = scope["headers"]
        assert checked(scope) == "canary"
        assert take_identity_headers(scope) == []
        assert scope["headers"] is given
