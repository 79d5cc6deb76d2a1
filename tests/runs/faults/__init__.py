"""Faults of servers that run agents: kills, lost leases, full disks, races; and what clients find afterwards.

`python -m tests.runs.faults` runs them at full length; `tests/runs/test_faults.py` is the short version.
"""
