"""Chat Completions: `decode` reads a request, `encode` writes a stream or a completion, `schema` documents both."""
