"""Which keys are taken, from the settings and from what a provider publishes; and that no key is ever repeated."""

import base64
import hashlib
import json
import logging
from collections.abc import Collection, Mapping
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from hypothesis import given
from hypothesis import strategies as st

from agentrun_middleware.signing_keys import SigningKey, family_of, parse_jwks, static_keys
from tests.support.jwks_server import Authority, KeyPair, jwks, key_pair

SECRET = "correct horse battery staple, and then some more of it to be 64 b."
FAMILY = {"RSA": "RS", "P-256": "ES", "P-384": "ES", "P-521": "ES", "Ed25519": "EdDSA"}


def der(key: KeyPair) -> bytes:
    data: bytes = key.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return data


def ssh(key: KeyPair) -> bytes:
    data: bytes = key.private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return data


def longer(key: KeyPair) -> str:
    """Return the x of `key` with a zero before it: the same number."""
    return base64.urlsafe_b64encode(b"\0" + base64.urlsafe_b64decode(key.jwk()["x"] + "=")).decode()


class TestFamilies:
    @pytest.mark.parametrize(
        ("algorithms", "family"),
        [
            (["HS256"], "HS"),
            (("HS256", "HS512"), "HS"),
            (["RS256", "RS384", "RS512"], "RS"),
            ({"PS256"}, "PS"),
            (["ES256", "ES512"], "ES"),
            (["EdDSA"], "EdDSA"),
        ],
    )
    def test_a_family_is_what_algorithms_have_in_common(self, algorithms: Collection[str], family: str) -> None:
        assert family_of(algorithms) == family

    @pytest.mark.parametrize(
        ("algorithms", "said"),
        [
            ([], "at least one"),
            ("RS256", "a list"),
            (b"RS256", "a list"),
            (["none"], "none"),
            (["RS256", "NONE"], "none"),
            (["nOnE"], "none"),
            (["ES256K"], "ES256K"),
            (["rs256"], "rs256"),
            (["RS256 "], "RS256 "),
            ([""], "''"),
            ([None], "None"),
            (["HS256", "RS256"], "one family only, not HS and RS"),
            (["RS256", "PS256"], "one family only"),
            (["RS256", "ES256", "EdDSA"], "one family only"),
        ],
    )
    def test_anything_else_is_refused(self, algorithms: Any, said: str) -> None:
        with pytest.raises(ValueError, match=said):
            family_of(algorithms)


class TestFit:
    """A key is for the algorithms of its type and curve, and for one alone when its publisher says which."""

    FITTING: Mapping[str, set[str]] = {
        "RSA": {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"},
        "P-256": {"ES256"},
        "P-384": {"ES384"},
        "P-521": {"ES512"},
        "Ed25519": {"EdDSA"},
    }
    ALL = (*(f"{kind}{bits}" for kind in ("HS", "RS", "PS", "ES") for bits in (256, 384, 512)), "EdDSA")

    @pytest.mark.parametrize("kind", FITTING)
    def test_a_public_key_fits_the_algorithms_of_its_kind(self, kind: str) -> None:
        (key,) = parse_jwks(jwks(key_pair(kind)), family=FAMILY[kind])
        assert {algorithm for algorithm in self.ALL if key.fits(algorithm)} == self.FITTING[kind]

    def test_a_secret_fits_hmac_alone(self) -> None:
        (key,) = static_keys(SECRET, ["HS256"])
        assert {algorithm for algorithm in self.ALL if key.fits(algorithm)} == {"HS256", "HS384", "HS512"}

    @pytest.mark.parametrize("algorithm", ["none", "None", "", "ES256K", "rs256", "RS1"])
    def test_no_key_fits_what_is_no_algorithm(self, algorithm: str) -> None:
        keys = [*static_keys(SECRET, ["HS256"]), *parse_jwks(jwks(key_pair("RSA")), family="RS")]
        assert not any(key.fits(algorithm) for key in keys)

    def test_a_key_with_an_alg_fits_that_alone(self) -> None:
        (key,) = parse_jwks(jwks(key_pair("RSA").jwk(alg="RS384")), family="RS")
        assert {algorithm for algorithm in self.ALL if key.fits(algorithm)} == {"RS384"}

    def test_a_key_of_a_kind_that_is_not_supported_fits_nothing(self) -> None:
        for kind in ("secp256k1", "Ed448"):
            key = SigningKey("k", key_pair(kind).private.public_key())
            assert not any(key.fits(algorithm) for algorithm in [*self.ALL, "ES256K"])
        assert not any(SigningKey("k", None).fits(algorithm) for algorithm in [*self.ALL, "none"])


class TestIdentity:
    def test_it_is_the_hash_of_the_key_itself(self) -> None:
        key = key_pair("P-256", "k1")
        (published,) = parse_jwks(jwks(key), family="ES")
        (given,) = static_keys(key.pem(), ["ES256"])
        (secret,) = static_keys(SECRET, ["HS256"])
        assert published.identity == given.identity == hashlib.sha256(der(key)).hexdigest()
        assert secret.identity == hashlib.sha256(SECRET.encode()).hexdigest()

    def test_it_does_not_depend_on_how_the_key_is_written(self) -> None:
        jwk = key_pair("RSA").jwk()
        padded = {**jwk, "n": base64.urlsafe_b64encode(b"\0" + base64.urlsafe_b64decode(jwk["n"] + "==")).decode()}
        assert parse_jwks(jwks(jwk), family="RS") == parse_jwks(jwks(padded), family="RS")

    def test_equal_keys_are_the_same_key_for_the_same_tokens(self) -> None:
        one = parse_jwks(jwks(key_pair("P-256", "k1")), family="ES")
        assert one == parse_jwks(jwks(key_pair("P-256", "k1").jwk(use=...)), family="ES")
        assert one != parse_jwks(jwks(key_pair("P-256", "k1", number=1)), family="ES")
        assert one != parse_jwks(jwks(key_pair("P-256", "k1").jwk(kid="k2")), family="ES")
        assert one != parse_jwks(jwks(key_pair("P-256", "k1").jwk(alg="ES256")), family="ES")

    def test_what_is_shown_of_a_key_is_not_the_key(self) -> None:
        (key,) = static_keys({"k1": SECRET}, ["HS256"])
        assert repr(key) == "SigningKey(kid='k1', algorithm=None)"


class TestSecrets:
    @pytest.mark.parametrize(
        ("algorithms", "needed"), [(["HS256"], 32), (["HS384"], 48), (["HS512"], 64), (["HS256", "HS512"], 64)]
    )
    def test_a_secret_is_as_long_as_the_longest_hash(self, algorithms: list[str], needed: int) -> None:
        secret = "s" * needed
        (key,) = static_keys(secret, algorithms)
        assert key.material == secret.encode()
        with pytest.raises(ValueError, match=f"at least {needed} bytes") as caught:
            static_keys(secret[1:], algorithms)
        assert "sss" not in str(caught.value)

    def test_bytes_count_and_not_characters(self) -> None:
        (key,) = static_keys("é" * 16, ["HS256"])
        assert len(key.material) == 32

    def test_pyjwt_takes_what_is_taken_here(self) -> None:
        (key,) = static_keys(bytes(range(32)), ["HS256"])
        token = jwt.encode({"sub": "a"}, bytes(range(32)), "HS256")
        options: Any = {"enforce_minimum_key_length": True}
        assert jwt.decode(token, key.material, algorithms=["HS256"], options=options) == {"sub": "a"}

    def test_what_everybody_may_know_is_no_secret(self) -> None:
        """Else whoever has the public key of an issuer could sign for it."""
        for key in (key_pair("RSA"), key_pair("P-256"), key_pair("Ed25519")):
            lines = key.pem().splitlines()
            forms: dict[str, str | bytes] = {
                "PEM": key.pem(),
                "PEM between blanks": f"\n  {key.pem()}\n",
                "PEM in one line": key.pem().replace("\n", "\\n"),
                "DER": der(key),
                "the body of PEM": "\n".join(lines[1:-1]),
                "the body of PEM in one line": "".join(lines[1:-1]),
                "SSH": ssh(key),
                "JWK": json.dumps(key.jwk()),
                "JWKS": jwks(key),
            }
            for name, form in forms.items():
                with pytest.raises(ValueError, match="secret") as caught:
                    static_keys(form, ["HS256"])
                assert lines[1] not in str(caught.value), name

    def test_a_certificate_or_a_private_key_is_no_secret_either(self) -> None:
        certificate = Authority().own
        pem, encoded = certificate.public_bytes(Encoding.PEM), certificate.public_bytes(Encoding.DER)
        body = b"".join(pem.splitlines()[1:-1])
        for form in (pem, encoded, body, key_pair("RSA").private_pem().encode()):
            with pytest.raises(ValueError, match="secret"):
                static_keys(form, ["HS256"])

    def test_a_random_secret_in_base64_is_taken(self) -> None:
        for secret in (base64.b64encode(bytes(range(64))), base64.urlsafe_b64encode(bytes(range(64, 128)))):
            assert static_keys(secret, ["HS512"])[0].material == secret

    def test_bytes_of_the_environment_that_are_no_text_stay_what_they_were(self) -> None:
        raw = bytes(range(200, 240))
        (key,) = static_keys(raw.decode("utf-8", "surrogateescape"), ["HS256"])
        assert key.material == raw


class TestPEM:
    @pytest.mark.parametrize(
        ("kind", "algorithms"),
        [
            ("RSA", ["RS256"]),
            ("RSA", ["PS256", "PS512"]),
            ("P-256", ["ES256"]),
            ("P-384", ["ES256", "ES384"]),
            ("P-521", ["ES512"]),
            ("Ed25519", ["EdDSA"]),
        ],
    )
    def test_a_public_key_is_taken_as_text_or_bytes(self, kind: str, algorithms: list[str]) -> None:
        key = key_pair(kind)
        (found,) = static_keys(key.pem(), algorithms)
        assert (found.kid, found.algorithm, found.material) == (None, None, key.private.public_key())
        assert static_keys(key.pem().encode(), algorithms) == (found,)

    def test_a_token_is_verified_with_it(self) -> None:
        for kind, algorithm in (("RSA", "PS384"), ("P-384", "ES384"), ("Ed25519", "EdDSA")):
            (key,) = static_keys(key_pair(kind).pem(), [algorithm])
            token = key_pair(kind).sign({"sub": "a"}, algorithm)
            assert jwt.decode(token, key.material, algorithms=[algorithm]) == {"sub": "a"}

    def test_the_older_form_of_rsa_is_taken(self) -> None:
        public = key_pair("RSA").private.public_key()
        (key,) = static_keys(public.public_bytes(Encoding.PEM, PublicFormat.PKCS1), ["RS256"])
        assert key.material == public

    @pytest.mark.parametrize(
        ("text", "algorithms", "said"),
        [
            (key_pair("RSA").private_pem(), ["RS256"], "a private key"),
            (key_pair("P-256").private_pem(), ["ES256"], "a private key"),
            (key_pair("Ed25519").private_pem(), ["EdDSA"], "a private key"),
            (key_pair("RSA-1024").pem(), ["RS256"], "2048 to 8192 bits, this one has 1024"),
            (key_pair("RSA").pem(), ["ES256"], "none that ES256 can use"),
            (key_pair("P-256").pem(), ["RS256"], "none that RS256 can use"),
            (key_pair("P-256").pem(), ["ES384", "ES512"], "none that ES384, ES512 can use"),
            (key_pair("P-256").pem(), ["EdDSA"], "none that EdDSA can use"),
            (key_pair("Ed25519").pem(), ["ES256"], "none that ES256 can use"),
            (key_pair("Ed448").pem(), ["EdDSA"], "none that EdDSA can use"),
            (key_pair("secp256k1").pem(), ["ES256"], "none that ES256 can use"),
            (key_pair("RSA").pem() * 2, ["RS256"], "several keys"),
            (SECRET, ["RS256"], "no public key in PEM"),
            ("", ["RS256"], "no public key in PEM"),
            (der(key_pair("RSA")), ["RS256"], "no public key in PEM"),
            (key_pair("RSA").pem().replace("M", "A", 1), ["RS256"], "no public key in PEM"),
            (jwks(key_pair("RSA")), ["RS256"], "no public key in PEM"),
        ],
    )
    def test_a_key_that_is_no_good_is_named_and_not_shown(
        self, text: str | bytes, algorithms: list[str], said: str
    ) -> None:
        with pytest.raises(ValueError, match=said) as caught:
            static_keys(text, algorithms)
        shown = text if isinstance(text, str) else text.decode("latin-1")
        lines = [line for line in shown.splitlines() if len(line) > 10 and not line.startswith("-----")]
        assert not any(line in str(caught.value) for line in lines)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None

    def test_of_a_certificate_the_public_key_is_needed(self) -> None:
        with pytest.raises(ValueError, match="openssl x509 -pubkey"):
            static_keys(Authority().own.public_bytes(Encoding.PEM), ["ES256"])

    def test_too_long_a_key_is_refused(self) -> None:
        public = RSAPublicNumbers(65537, (1 << 8192) + 1).public_key()
        with pytest.raises(ValueError, match="this one has 8193"):
            static_keys(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), ["RS256"])


class TestSeveral:
    def test_keys_come_with_their_names_in_order(self) -> None:
        keys = static_keys({"new": key_pair("P-256").pem(), "old": key_pair("P-384").pem()}, ["ES256", "ES384"])
        assert [key.kid for key in keys] == ["new", "old"]
        assert [key.fits("ES384") for key in keys] == [False, True]

    def test_one_that_is_no_good_refuses_all(self) -> None:
        with pytest.raises(ValueError, match="at least 32 bytes") as caught:
            static_keys({"new": SECRET, "old": "too short"}, ["HS256"])
        assert "too short" not in str(caught.value)

    @pytest.mark.parametrize("keys", [{}, {1: SECRET}, {None: SECRET}, {"k": None}, {"k": 5}, None, 5, [SECRET]])
    def test_what_is_no_key_is_refused(self, keys: Any) -> None:
        with pytest.raises(ValueError, match="key: "):
            static_keys(keys, ["HS256"])

    def test_algorithms_are_checked_first(self) -> None:
        with pytest.raises(ValueError, match="one family only"):
            static_keys(SECRET, ["HS256", "RS256"])


class TestPublished:
    """`GOOD` is in every set: one strange key must not take it along."""

    GOOD = key_pair("P-256", "good")

    def left_out(self, jwk: Any, caplog: pytest.LogCaptureFixture, family: str = "ES") -> logging.LogRecord:
        """Check that `jwk`, beside a good key of `family`, is left out; return the line in the log."""
        good = {"ES": self.GOOD, "RS": key_pair("RSA", "good"), "EdDSA": key_pair("Ed25519", "good")}[family]
        caplog.clear()
        caplog.set_level(logging.INFO)
        keys = parse_jwks(jwks(jwk, good), family=family)
        assert [key.kid for key in keys] == ["good"]
        (record,) = caplog.records
        assert record.getMessage() == "published key left out"
        assert vars(record)["index"] == 0
        return record

    @pytest.mark.parametrize("kind", FAMILY)
    def test_a_published_key_verifies_a_token(self, kind: str) -> None:
        key = key_pair(kind, "k1")
        (found,) = parse_jwks(jwks(key), family=FAMILY[kind])
        assert (found.kid, found.algorithm) == ("k1", None)
        token = key.sign({"sub": "a"})
        assert jwt.decode(token, found.material, algorithms=[key.algorithm]) == {"sub": "a"}

    def test_the_order_is_that_of_the_provider(self) -> None:
        names = ["c", "a", "b"]
        assert [key.kid for key in parse_jwks(jwks(*(key_pair("P-256", n) for n in names)), family="ES")] == names

    @pytest.mark.parametrize("members", [{"use": ...}, {"key_ops": ["verify"]}, {"alg": "ES256"}, {"x5t": "x", "a": 1}])
    def test_members_that_say_nothing_against_it_are_let_pass(self, members: Mapping[str, Any]) -> None:
        assert parse_jwks(jwks(self.GOOD.jwk(**members)), family="ES")

    def test_a_byte_order_mark_is_let_pass(self) -> None:
        assert parse_jwks(b"\xef\xbb\xbf" + jwks(self.GOOD), family="ES")

    @pytest.mark.parametrize(
        ("jwk", "reason"),
        [
            (GOOD.jwk(kid="x", use="enc"), "its use is not sig"),
            (GOOD.jwk(kid="x", use=["sig"]), "its use is not sig"),
            (GOOD.jwk(kid="x", key_ops=["sign"]), "its key_ops are without verify"),
            (GOOD.jwk(kid="x", key_ops="verify"), "its key_ops are without verify"),
            (GOOD.jwk(kid="x", key_ops=[]), "its key_ops are without verify"),
            (GOOD.jwk(kid=7), "its kid is no string"),
            (GOOD.jwk(kid="x", alg="RS256"), "its alg is none of ES"),
            (GOOD.jwk(kid="x", alg="ECDH-ES"), "its alg is none of ES"),
            (GOOD.jwk(kid="x", alg="none"), "its alg is none of ES"),
            (GOOD.jwk(kid="x", alg=["ES256"]), "its alg is none of ES"),
            (GOOD.jwk(kid="x", alg="ES384"), "its type or curve does not go with ES384"),
            (GOOD.jwk(kid="x", kty="DSA"), "its kty is not supported"),
            (GOOD.jwk(kid="x", kty=...), "its kty is not supported"),
            (GOOD.jwk(kid="x", kty=["EC"]), "its kty is not supported"),
            (GOOD.jwk(kid="x", crv="P-192"), "its curve is not supported"),
            (GOOD.jwk(kid="x", crv=...), "its curve is not supported"),
            (key_pair("secp256k1", "x").jwk(), "its curve is not supported"),
            (GOOD.jwk(kid="x", crv="P-384"), "its numbers make no key"),
            (GOOD.jwk(kid="x", x=...), "its numbers make no key"),
            (GOOD.jwk(kid="x", x=17), "its numbers make no key"),
            (GOOD.jwk(kid="x", x=""), "its numbers make no key"),
            (GOOD.jwk(kid="x", x="A" * 43), "its numbers make no key"),  # no point of the curve
            (GOOD.jwk(kid="x", x=longer(GOOD)), "its numbers make no key"),  # a byte too many, though a zero
            (GOOD.jwk(kid="x", x=GOOD.jwk()["x"][:10] + "\n" * 4 + GOOD.jwk()["x"][10:]), "its numbers make no key"),
            (GOOD.jwk(kid="x", x="+/" + "A" * 41), "its numbers make no key"),  # another alphabet
            (GOOD.jwk(kid="x", x="A" * 41), "its numbers make no key"),  # no length that base64 has
            (key_pair("RSA", "x").jwk(), "its type or curve does not go with ES"),
            (key_pair("Ed25519", "x").jwk(), "its type or curve does not go with ES"),
            (key_pair("Ed448", "x").jwk(), "its curve is not supported"),
            ("a string", "it is no JSON object"),
            (None, "it is no JSON object"),
            ([], "it is no JSON object"),
        ],
    )
    def test_a_key_that_cannot_be_used_is_left_out_with_a_line_in_the_log(
        self, jwk: Any, reason: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        record = self.left_out(jwk, caplog)
        assert vars(record)["reason"] == reason
        assert record.levelno == logging.INFO
        assert self.GOOD.jwk()["y"] not in str(vars(record))

    @pytest.mark.parametrize(
        ("jwk", "reason"),
        [
            (key_pair("RSA-1024", "x").jwk(), "it has not 2048 to 8192 bits"),
            (key_pair("RSA", "x").jwk(n="_" * 1367), "it has not 2048 to 8192 bits"),
            (key_pair("RSA", "x").jwk(n="_" * 100_000), "it has not 2048 to 8192 bits"),
            (key_pair("RSA", "x").jwk(e="AQ"), "its numbers make no key"),  # 1: every signature would be right
            (key_pair("RSA", "x").jwk(e="Ag"), "its numbers make no key"),
            (key_pair("RSA", "x").jwk(e=...), "its numbers make no key"),
            (key_pair("P-256", "x").jwk(), "its type or curve does not go with RS"),
        ],
    )
    def test_rsa_keys_are_looked_at_too(self, jwk: Any, reason: str, caplog: pytest.LogCaptureFixture) -> None:
        assert vars(self.left_out(jwk, caplog, "RS"))["reason"] == reason

    @pytest.mark.parametrize("x", ["AAAA", "A" * 44, 5])
    def test_ed25519_keys_are_looked_at_too(self, x: Any, caplog: pytest.LogCaptureFixture) -> None:
        jwk = key_pair("Ed25519", "x").jwk(x=x)
        assert vars(self.left_out(jwk, caplog, "EdDSA"))["reason"] == "its numbers make no key"

    @pytest.mark.parametrize("family", ["ES", "RS", "EdDSA"])
    def test_a_published_secret_is_never_used(self, family: str, caplog: pytest.LogCaptureFixture) -> None:
        secret = base64.urlsafe_b64encode(b"s" * 32).decode()
        record = self.left_out({"kty": "oct", "k": secret, "kid": "x", "alg": "HS256"}, caplog, family)
        assert record.levelno == logging.WARNING
        assert vars(record)["reason"] == "a secret is published"
        assert secret not in str(vars(record))

    @pytest.mark.parametrize("member", ["d", "p", "q", "dp", "dq", "qi", "oth", "k"])
    def test_a_published_private_key_is_never_used(self, member: str, caplog: pytest.LogCaptureFixture) -> None:
        """Whoever reads it can sign with it."""
        record = self.left_out(key_pair("RSA", "x").jwk(**{member: "SECRETPART"}), caplog, "RS")
        assert record.levelno == logging.WARNING
        assert vars(record)["reason"] == "a private key is published"
        assert "SECRETPART" not in str(vars(record))

    def test_the_kid_in_the_log_is_cut(self, caplog: pytest.LogCaptureFixture) -> None:
        assert vars(self.left_out(self.GOOD.jwk(kid="k" * 1000, use="enc"), caplog))["kid"] == "k" * 64

    def test_of_two_keys_with_one_kid_the_first_is_used(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        first, second = key_pair("P-256", "k", number=1), key_pair("P-256", "k", number=2)
        (key,) = parse_jwks(jwks(first, second), family="ES")
        assert key.material == first.private.public_key()
        assert [vars(record)["reason"] for record in caplog.records] == ["an earlier key has its kid"]

    def test_the_first_that_can_be_used_has_the_kid(self) -> None:
        first, second = key_pair("P-256", "k", number=1), key_pair("P-256", "k", number=2)
        (key,) = parse_jwks(jwks(first.jwk(use="enc"), second), family="ES")
        assert key.material == second.private.public_key()

    def test_one_kid_may_name_keys_for_different_algorithms(self) -> None:
        keys = parse_jwks(jwks(key_pair("P-256", "k"), key_pair("P-384", "k")), family="ES")
        assert [key.fits("ES384") for key in keys] == [False, True]
        rsa = key_pair("RSA", "k")
        keys = parse_jwks(jwks(rsa.jwk(alg="RS256"), rsa.jwk(alg="RS512")), family="RS")
        assert [key.algorithm for key in keys] == ["RS256", "RS512"]

    def test_the_same_key_twice_is_one(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        assert len(parse_jwks(jwks(self.GOOD, self.GOOD), family="ES")) == 1
        assert not caplog.records

    def test_keys_without_a_kid_are_taken(self) -> None:
        keys = parse_jwks(jwks(key_pair("P-256", None), key_pair("P-256", None, number=1)), family="ES")
        assert [key.kid for key in keys] == [None, None]


class TestSets:
    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b"<html>",
            b"{",
            b'{"keys": [',
            jwks(key_pair())[:-5],
            b"\xff\xfe",
            jwks(key_pair()).decode().encode("utf-16"),
            b"[" * 200_000,
            b'{"keys": ' + b"[" * 200_000,
            b"9" * 5000,
        ],
    )
    def test_what_is_no_json_is_refused(self, text: bytes) -> None:
        with pytest.raises(ValueError, match=r"^no JSON$") as caught:
            parse_jwks(text, family="ES")
        assert caught.value.__suppress_context__

    @pytest.mark.parametrize(
        "text", [b"[]", b"null", b'"keys"', b"{}", b'{"keys": null}', b'{"keys": {}}', b'{"keys": "x"}', b'{"KEYS":[]}']
    )
    def test_what_is_no_key_set_is_refused(self, text: bytes) -> None:
        with pytest.raises(ValueError, match=r"^no JWK set$"):
            parse_jwks(text, family="ES")

    def test_a_hundred_keys_are_taken_and_one_more_is_not(self) -> None:
        keys = [key_pair("P-256", f"k{i}").jwk() for i in range(101)]
        assert len(parse_jwks(jwks(*keys[:100]), family="ES")) == 100
        with pytest.raises(ValueError, match="more than 100 keys"):
            parse_jwks(jwks(*keys), family="ES")

    def test_keys_that_cannot_be_used_count_too(self) -> None:
        with pytest.raises(ValueError, match="more than 100 keys"):
            parse_jwks(jwks(key_pair(), *({"kty": "x"} for _ in range(100))), family="ES")

    @pytest.mark.parametrize("text", [b'{"keys": []}', jwks(key_pair("RSA")), jwks(key_pair().jwk(use="enc"))])
    def test_a_set_without_a_key_that_can_be_used_is_refused(self, text: bytes) -> None:
        with pytest.raises(ValueError, match="no key that can be used for ES"):
            parse_jwks(text, family="ES")

    @pytest.mark.parametrize("family", ["HS", "", "none", "RS256"])
    def test_keys_are_published_for_public_key_algorithms_alone(self, family: str) -> None:
        with pytest.raises(ValueError, match="no keys are published"):
            parse_jwks(jwks(key_pair()), family=family)

    @given(
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats()
            | st.text()
            | st.sampled_from(["EC", "sig", "P-256"]),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["kty", "kid", "use", "alg", "crv", "x", "y", "n", "e", "key_ops"]) | st.text(),
                    inner,
                    max_size=6,
                )
            ),
            max_leaves=8,
        )
    )
    def test_no_strange_key_takes_a_good_one_along(self, strange: Any) -> None:
        good = key_pair("P-256", "a kid that nobody else has")
        text = json.dumps({"keys": [strange, good.jwk()]}).encode()
        assert [key.kid for key in parse_jwks(text, family="ES")] == [good.kid]


def test_pem_and_jwk_of_a_certificate_are_one_key() -> None:
    """What `openssl x509 -pubkey` prints is what is taken here."""
    certificate: x509.Certificate = Authority().own
    pem = certificate.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (key,) = static_keys(pem, ["ES256"])
    assert key.material == load_pem_public_key(pem)
