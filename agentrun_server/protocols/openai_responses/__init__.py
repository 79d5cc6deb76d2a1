"""The Responses API as pure translators: requests and input items in, events and response objects out. No I/O."""
