"""WebSockets on the socket: the handshake, frames and their limits."""
