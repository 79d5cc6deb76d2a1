"""Plain ASGI middleware for the layer in front of an agent, for any ASGI app; it knows nothing of `agentrun_server`.

The package is installed with the server and still empty: authentication and rate limits will live here. The two will
meet in the ASGI scope alone: a middleware that sets ``scope["state"]["principal"]`` is what an agent sees as
`request.principal`.
"""
