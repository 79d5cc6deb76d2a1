"""`ours` behind the JWT middleware (workload h): HS256, every check on."""

import importlib

from starlette.middleware import Middleware

from agentrun_server import AgentRunServer
from benchmarks import agents
from benchmarks.apps.ours import echo
from benchmarks.tokens import AUDIENCE, ISSUER, KEY

# By name: this file is type-checked where the middleware may not be there yet.
JWTMiddleware = importlib.import_module("agentrun_middleware.jwt").JWTMiddleware

server = AgentRunServer(
    invoke_agent={"echo": echo, "burst": agents.burst},
    middleware=[
        Middleware(JWTMiddleware, algorithms=["HS256"], key=KEY, issuer=ISSUER, audience=AUDIENCE),
    ],
)
