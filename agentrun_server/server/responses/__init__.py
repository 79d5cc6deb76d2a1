"""The Responses API: the request, its run, what is stored, conversations, and responses over a WebSocket."""
