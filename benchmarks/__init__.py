"""Benchmarks of the server against a raw ASGI app and its peers; see README.md in this folder."""
