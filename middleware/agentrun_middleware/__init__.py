"""Plain ASGI middleware for the layer in front of an agent, for any ASGI app; it knows nothing of `agentrun_server`.

    from agentrun_middleware.jwt import JWTMiddleware
    app = JWTMiddleware(app, algorithms=["RS256"], jwks_url="https://…", issuer="https://…", audience="my-agent")

* `jwt`, `jwks` — JSON web tokens, and the signing keys of their issuers.
* `api_key` — API keys: made, stored as hashes, verified.
* `authentication` — what both have in common, and several kinds of credentials at once.
* `rate_limit`, `body_limit` — how much a caller may ask for.
* `client_address` — where a request comes from, behind proxies; `gateway` — who is calling, as a gateway has verified.
* `request_id`, `access_log`, `security_headers` — what every answer carries, and what is written of it.

Who is calling reaches the app as ``scope["state"]["principal"]``, a `Principal`: the one contract between the two.
"""

from agentrun_middleware.principal import Principal
from agentrun_middleware.state import principal_of

__all__ = ["Principal", "principal_of"]
