"""What outlives a request: stored objects, event logs of runs, leases, and the bus that wakes who waits for them.

* `contracts` — the protocols. Everything above knows these alone.
* `sqlite` — the embedded default: one file, nothing to install.
* `postgres` — for many machines.
* `local_bus`, `redis_bus` — wake readers, in this process and on other machines.
* `opening` — which of them the settings mean.
* `codec` — how records and events are written down, the same in every store.

All implementations of a protocol pass one shared suite of tests.
"""
