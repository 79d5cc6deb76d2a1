"""One execution of an agent: its states, why it is stopped, who waits for it."""
