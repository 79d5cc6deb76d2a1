"""Bearer tokens for workload h; the key is for the benchmark alone."""

import time

__all__ = ["AUDIENCE", "ISSUER", "KEY", "make_token"]

KEY = "benchmark-only-" + "k" * 49
ISSUER = "https://issuer.benchmark.invalid"
AUDIENCE = "agentrun-server-benchmark"


def make_token(subject: str) -> str:
    """Return a token valid for an hour."""
    import jwt

    now = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "iat": now, "exp": now + 3600}
    return jwt.encode(claims, KEY, algorithm="HS256", headers={"typ": "JWT"})
