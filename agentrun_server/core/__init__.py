"""The vocabulary: messages, events, request, usage, grammar. Standard library only, no I/O."""
