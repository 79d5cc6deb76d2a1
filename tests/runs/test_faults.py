"""Servers that are killed, stand still, or cannot write: the short version of `python -m tests.runs.faults`."""

import sys
from pathlib import Path

import pytest

from tests.runs.faults.cancelling import race
from tests.runs.faults.clients import Place
from tests.runs.faults.duplicating import duplicate
from tests.runs.faults.kills import Kills
from tests.runs.faults.leases import check_stand_still
from tests.runs.faults.outages import FULL, check_outage
from tests.runs.faults.resuming import cut_everywhere

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and signals of Linux")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def test_a_server_that_is_killed_loses_nothing_that_it_has_told(place: Place) -> None:
    kills = Kills(place)
    await kills.at_random()
    await kills.at("after:append:7")
    await kills.at("before:end:2")
    assert not kills.wrong
    assert kills.kills == 3
    assert kills.acknowledged


async def test_a_stream_that_is_cut_goes_on_byte_for_byte_on_every_server(place: Place) -> None:
    cuts = await cut_everywhere(place, pieces=6, pause=0.05)
    assert cuts.while_running
    assert cuts.afterwards


async def test_a_run_is_either_cancelled_or_completed(place: Place) -> None:
    races = await race(place, here=40, elsewhere=10, seed=1)
    assert races.told.total() == 50


async def test_the_same_request_many_times_runs_its_agent_once(place: Place) -> None:
    async with place.serve() as one, place.serve() as other:
        await duplicate(place, [one, other], 20)


async def test_a_server_that_was_taken_for_dead_writes_nothing(place: Place) -> None:
    await check_stand_still(place, lease=1)


@pytest.mark.parametrize("patience", [1.0, None], ids=["for long", "for a while"])
async def test_a_full_disk_refuses_what_would_be_stored_and_nothing_else(place: Place, patience: float | None) -> None:
    await check_outage(place, FULL, lease=1 if patience else 30, patience=patience, pieces=250)
