"""What outlives a request: stored objects, event logs of runs, leases, and the bus that wakes who waits for them.

* `contracts` — the protocols. Everything above knows these alone.
* `sqlite` — the embedded default: one file, nothing to install.
* `postgres` — for many machines; `redis_bus` — wakes readers on other machines at once.

All implementations of a protocol pass one shared suite of tests.
"""
