"""HTTP/1.1 on the socket: limits that stand before any request is read, and answers in one write."""
