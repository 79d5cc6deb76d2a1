"""The HTTP side: assembles the app, answers, streams, admits, drains."""
