"""What the server tells of itself: log lines with fields, the request id as a context variable."""
