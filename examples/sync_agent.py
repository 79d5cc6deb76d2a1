"""A blocking agent. It runs on a thread of its own, so it may block, and others are served meanwhile.

uvicorn sync_agent:server
"""

import sqlite3
from collections.abc import Iterator

from agentrun_server import AgentRequest, AgentRunServer

CITIES = [("Paris", 2_102_650), ("Lyon", 522_250), ("Nice", 348_085)]


def invoke_agent(request: AgentRequest) -> Iterator[str]:
    # One thread from the first line to the last: SQLite connections and thread-locals hold.
    with sqlite3.connect(":memory:") as database:
        database.execute("create table city (name, people)")
        database.executemany("insert into city values (?, ?)", CITIES)
        for name, people in database.execute("select * from city order by people desc"):
            # Work that takes long looks here: nothing can stop a thread from outside.
            if request.wait_cancelled(0.05):
                return
            yield f"{name}: {people:,}\n"


server = AgentRunServer(invoke_agent=invoke_agent)
