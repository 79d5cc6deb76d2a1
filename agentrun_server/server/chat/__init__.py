"""Chat Completions: the request, what is stored of it, and stored completions."""
