"""An agent that knows who is asking: it greets by name, and tells administrators more.

export AGENTRUN_AUTH_JWT_KEY=$(openssl rand -hex 32)
uvicorn principal:server

Without a token of the issuer every request is answered 401. With the same variable set, this makes one for a try; leave
out ``admin``, and its owner is a caller like any other:

TOKEN=$(python principal.py ada admin)
curl http://127.0.0.1:8000/v1/chat/completions -H "Authorization: Bearer $TOKEN" \\
  -d '{"model": "m", "messages": [{"role": "user", "content": "Hi"}]}'

In earnest an identity provider makes the tokens, see docs/authentication.md; the agent stays as it is.
"""

import os
import sys
import time
from collections.abc import AsyncIterator

import jwt

from agentrun_middleware import Principal
from agentrun_server import AgentRequest, AgentRunServer, ServerConfig

ISSUER = "https://id.example.com"
AUDIENCE = "principal-example"


async def invoke_agent(request: AgentRequest) -> AsyncIterator[str]:
    caller: Principal = request.principal  # there for every request: nobody comes here without a token
    yield f"Hello, {caller.subject}. The shop is open until six."
    if caller.has({"admin"}):
        yield " It has sold 42 books today."


# The key is AGENTRUN_AUTH_JWT_KEY. Without it the server does not start: there would be nothing to check with.
config = ServerConfig(auth_issuer=ISSUER, auth_audience=[AUDIENCE], auth_jwt_algorithms=["HS256"])
server = AgentRunServer(invoke_agent=invoke_agent, config=config)


def make_token(subject: str, *scopes: str) -> str:
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "scope": " ".join(scopes), "exp": int(time.time()) + 3600}
    return jwt.encode(claims, os.environ["AGENTRUN_AUTH_JWT_KEY"], "HS256")


if __name__ == "__main__":
    print(make_token(*sys.argv[1:]))
