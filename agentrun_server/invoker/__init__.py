"""Runs an agent, whatever kind of callable it is, and yields pieces of text and typed events."""
