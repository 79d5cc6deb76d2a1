"""The harness counts and divides rightly. Nothing here says how fast anything is."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

if sys.platform != "linux":  # pragma: no cover
    pytest.skip("the harness reads /proc", allow_module_level=True)

from benchmarks import __main__ as command
from benchmarks import agents, machine, payloads
from benchmarks.http_client import (
    MAX_ERRORS,
    Expected,
    Load,
    LoadError,
    ProtocolError,
    ResponseParser,
    http_request,
)
from benchmarks.peers import PEERS, UnavailableError, resolve
from benchmarks.report import TARGETS, missed_floors, report
from benchmarks.results import Record, Results
from benchmarks.stats import Summary, percentile, ratios, summarise
from benchmarks.tokens import AUDIENCE, ISSUER, KEY, make_token
from benchmarks.workloads import WORKLOADS

# --- the parser

LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n6;name=value\r\n world\r\n0\r\ntrailer: x\r\n\r\n"
)
INTERIM = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + LENGTH


def parse(*data: bytes) -> tuple[ResponseParser, bytes]:
    pieces: list[bytes] = []
    parser = ResponseParser(pieces.append)
    for part in data:
        parser.feed(part)
    return parser, b"".join(pieces)


@given(st.sampled_from([(LENGTH, b"hello"), (CHUNKED, b"hello world"), (INTERIM, b"hello")]), st.data())
def test_a_response_cut_anywhere_gives_the_same_body(case: tuple[bytes, bytes], data: st.DataObject) -> None:
    message, body = case
    cuts = sorted(data.draw(st.lists(st.integers(1, len(message) - 1), max_size=8, unique=True)))
    parts = [message[start:end] for start, end in zip([0, *cuts], [*cuts, len(message)], strict=True)]

    parser, seen = parse(*parts)

    assert (parser.status, parser.complete, parser.keep_alive, seen) == (200, True, True, body)


@pytest.mark.parametrize("message", [LENGTH, CHUNKED])
def test_a_response_is_complete_only_with_its_last_byte(message: bytes) -> None:
    parser = ResponseParser(lambda _: None)

    complete = [parser.feed(message[index : index + 1]) for index in range(len(message))]

    assert complete == [False] * (len(message) - 1) + [True]


def test_a_parser_that_was_reset_reads_the_next_response() -> None:
    pieces: list[bytes] = []
    parser = ResponseParser(pieces.append)
    parser.feed(CHUNKED)
    parser.reset()

    assert parser.feed(LENGTH)
    assert pieces == [b"hello", b" world", b"hello"]


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    parser, seen = parse(b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo")

    assert not parser.complete
    assert parser.feed_eof()
    assert (seen, parser.keep_alive) == (b"hello", False)


def test_a_connection_that_ends_inside_a_body_completes_nothing() -> None:
    parser, _ = parse(LENGTH[:-1])

    assert not parser.feed_eof()


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_statuses_without_a_body_are_complete_after_the_head(status: bytes) -> None:
    parser, seen = parse(b"HTTP/1.1 " + status + b"\r\n\r\n")

    assert (parser.complete, seen) == (True, b"")


def test_connection_close_is_noticed() -> None:
    parser, _ = parse(LENGTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))

    assert parser.complete
    assert not parser.keep_alive


@pytest.mark.parametrize(
    "message",
    [
        b"SSH-2.0-something\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"x" * 70_000,
        LENGTH + b"more",
        CHUNKED + b"more",
        CHUNKED.replace(b"5\r\nhello", b"zz\r\nhello"),
        CHUNKED.replace(b"5\r\nhello", b"4\r\nhello"),
        CHUNKED.replace(b"trailer: x\r\n\r\n", b"t" * 70_000),
    ],
)
def test_what_is_not_a_response_is_refused(message: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse(message)


def test_nothing_may_follow_a_complete_response() -> None:
    parser, _ = parse(LENGTH)

    with pytest.raises(ProtocolError):
        parser.feed(b"x")


# --- the load

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(answers: list[bytes]) -> AsyncIterator[int]:
    """Give each request the next of `answers`, the last one again and again; b"" closes the connection."""
    count = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                await reader.readexactly(length)
                answer = answers[min(count, len(answers) - 1)]
                count += 1
                if not answer:
                    return
                for start in range(0, len(answer), 40):  # tokens are cut in two on their way
                    writer.write(answer[start : start + 40])
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def stream_of(tokens: int) -> bytes:
    body = "".join(f'data: {{"content":"{text}"}}\n\n' for text in agents.TOKENS[:tokens]).encode()
    chunk = b"%x\r\n%s\r\n" % (len(body), body)
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunk + b"0\r\n\r\n"


async def run_load(port: int, expected: Expected, *, until: int, timing: bool = False) -> Load:
    """Run until that many requests were answered rightly."""
    request = http_request("/", b"{}", port)
    load = Load(port=port, next_request=lambda: request, expected=expected, timing=timing)
    try:
        async with asyncio.timeout(10):
            await load.open(2)
            while load.seen.completed < until:
                await load.run_for(0.005)
    finally:
        await load.stop()
    return load


async def test_tokens_are_counted_even_when_cut_in_two() -> None:
    async with serving([stream_of(7)]) as port:
        load = await run_load(port, Expected(tokens=7), until=10, timing=True)

    seen = load.seen
    assert seen.errors == 0
    assert seen.tokens >= 7 * seen.completed
    assert len(seen.totals) == len(seen.latency) == seen.completed
    assert len(seen.ttft) >= seen.completed
    assert len(seen.gaps) >= 6 * seen.completed


async def test_an_answer_with_too_few_tokens_is_an_error_and_no_work_done() -> None:
    async with serving([stream_of(6), stream_of(7)]) as port:
        load = await run_load(port, Expected(tokens=7), until=3)

    assert load.seen.errors == 1
    assert "200, 6 tokens" in load.error_sample


async def test_an_answer_without_the_expected_text_is_an_error() -> None:
    async with serving([LENGTH.replace(b"hello", b"world"), LENGTH]) as port:
        load = await run_load(port, Expected(text=b"hello"), until=3)

    assert load.seen.errors == 1


async def test_a_lost_connection_is_an_error_and_is_replaced() -> None:
    async with serving([b"", LENGTH]) as port:
        load = await run_load(port, Expected(text=b"hello"), until=5)

    assert load.seen.errors == 1
    assert "connection lost" in load.error_sample


async def test_a_server_that_closes_after_each_answer_is_no_error() -> None:
    closing = LENGTH.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
    async with serving([closing]) as port:
        load = await run_load(port, Expected(text=b"hello"), until=5)

    assert load.seen.errors == 0


async def test_a_load_that_only_fails_is_given_up() -> None:
    async with serving([LENGTH.replace(b"200 OK", b"500 Oops")]) as port:
        with pytest.raises(LoadError, match=f"more than {MAX_ERRORS} errors, the last: 500"):
            await run_load(port, Expected(text=b"hello"), until=1)


# --- statistics and report


def test_percentiles_are_interpolated() -> None:
    assert percentile([], 0.5) is None
    assert percentile([4.0], 0.99) == 4.0
    assert percentile([3.0, 1.0, 2.0, 4.0], 0.5) == 2.5
    assert percentile([1.0, 2.0], 1.0) == 2.0
    with pytest.raises(ValueError, match="share"):
        percentile([1.0], 99)


def test_rounds_that_lack_a_side_are_left_out_of_ratios() -> None:
    assert ratios([2.0, None, 6.0, 8.0], [1.0, 1.0, None, 0.0]) == [2.0]
    assert summarise([None]) is None
    assert summarise([3.0, None, 1.0]) == Summary(2.0, 1.0, 3.0, 2)


def some_results() -> Results:
    """The machine is twice as fast in the second round; within each we are at half and at 0.7 of raw."""
    records = [
        Record(0, "a", "raw", {"per_cpu_s": 1000.0}, core_speed=1.0),
        Record(0, "a", "ours", {"per_cpu_s": 500.0, "errors": 2.0}, core_speed=1.0),
        Record(1, "a", "ours", {"per_cpu_s": 1400.0}, core_speed=2.0),
        Record(1, "a", "raw", {"per_cpu_s": 2000.0, "latency_p99_ms": float("nan")}, core_speed=2.0),
        Record(1, "a", "litserve", failure="it does not listen"),
    ]
    return Results(rounds=2, records=records, environment={"cores": 2}, versions={"raw": {"uvicorn": "1"}})


def test_ratios_are_taken_within_a_round() -> None:
    assert some_results().ratio("a", "ours", "raw", "per_cpu_s") == Summary(0.6, 0.5, 0.7, 2)


def test_the_report_shows_ratios_targets_and_what_went_wrong() -> None:
    text = report(some_results())

    assert "| agentrun-server | 0.60 (0.50..0.70) |" in text
    assert "| (a) of raw | 0.60 (0.50..0.70) | ≥ 0.45 | ≥ 0.65 | floor |" in text
    assert "(a) ours, round 1: 2 wrong answers" in text
    assert "(a) litserve, round 2: it does not listen" in text


def test_a_missed_floor_is_named() -> None:
    results = some_results()
    results.records[1] = Record(0, "a", "ours", {"per_cpu_s": 75.0})
    results.records[2] = Record(1, "a", "ours", {"per_cpu_s": 75.0})

    assert missed_floors(some_results()) == []
    assert missed_floors(results) == ["(a) of raw: 0.06, floor 0.45"]


def test_every_target_is_of_a_known_workload_and_its_goal_no_easier_than_its_floor() -> None:
    for target in TARGETS:
        assert target.workload in WORKLOADS
        assert target.verdict(target.goal) == "goal"


def test_results_survive_being_written(tmp_path: Path) -> None:
    results = some_results()
    path = tmp_path / "new" / "results.json"

    results.write(path)
    again = Results.read(path)

    assert report(again) == report(results)
    assert json.loads(path.read_text())["records"][3]["sample"]["latency_p99_ms"] is None


def test_rounds_can_be_added_to_an_earlier_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    results = some_results()
    results.rounds = 7  # it was interrupted
    results.write(path)

    # No workload is named, so nothing is measured.
    assert command.main(["--only", "", "--peers", "raw", "--add-to", str(path), "--rounds", "3"]) == 0

    again = Results.read(path)
    assert again.rounds == again.measured_rounds() == 2
    assert len(again.records) == len(results.records)
    assert "Medians of 2 rounds" in capsys.readouterr().out


# --- payloads, machine, peers


def test_the_bodies_are_what_the_workloads_say() -> None:
    small, large, chinese = (
        payloads.echo_body(600),
        payloads.history_body(),
        payloads.history_body(ascii_only=False),
    )

    assert len(small) == 600
    assert 1_000_000 < len(large) < 1_060_000
    assert large.isascii()
    assert not chinese.isascii()
    for body in (small, large, chinese):
        assert body.startswith(b'{"model":"echo",')  # where the raw app looks for it
        assert json.loads(body)["messages"][-1]["content"] == payloads.ECHO_TEXT
    assert len(json.loads(large)["messages"]) == 402
    with pytest.raises(ValueError, match="at least"):
        payloads.echo_body(10)


async def test_every_agent_yields_five_characters_with_the_marker() -> None:
    tokens = [token async for token in agents.burst()]

    assert len(tokens) == agents.BURST_TOKENS
    assert {len(token) for token in tokens} == {5}
    assert all(agents.MARKER.decode() in token for token in tokens)
    assert agents.MARKER.decode() not in payloads.ECHO_TEXT


def test_the_time_and_memory_of_a_process_and_its_children_are_seen() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert child.pid in machine.process_tree(os.getpid())
    finally:
        child.communicate(b"\n", timeout=10)
    before = machine.cpu_seconds([os.getpid()])
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass

    assert machine.cpu_seconds([os.getpid()]) > before
    assert machine.resident_kb([os.getpid()]) > 1000
    assert machine.open_files([os.getpid()]) > 2
    assert child.pid not in machine.process_tree(os.getpid())


def test_a_thread_comes_back_from_the_core_it_was_moved_to() -> None:
    before = os.sched_getaffinity(0)
    core = machine.Cores().server
    with machine.on_core(core):
        assert os.sched_getaffinity(0) == {core}

    assert os.sched_getaffinity(0) == before


def test_an_unknown_peer_or_workload_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnavailableError, match="unknown peer nobody"):
        resolve(["raw", "nobody"])
    assert command.main(["--only", "zz", "--peers", "raw"]) == 2
    assert "unknown workload zz" in capsys.readouterr().err


def test_commands_name_the_port_and_the_workload_s_own_arguments() -> None:
    raw = PEERS["raw"].command(4711)

    assert raw[0] == sys.executable
    assert raw[-1] == "4711"


def test_the_tokens_of_the_jwt_workload_are_valid_and_differ() -> None:
    first, second = make_token("one"), make_token("two")

    claims = jwt.decode(first, KEY, algorithms=["HS256"], issuer=ISSUER, audience=AUDIENCE)
    assert claims["sub"] == "one"
    assert first != second


# --- the whole


def test_a_quick_run_measures_a_real_server_and_writes_its_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    affinity = os.sched_getaffinity(0)
    output = tmp_path / "quick.json"
    try:
        status = command.main(["--quick", "--only", "a,b,d", "--peers", "raw,raw-joined", "--output", str(output)])
    finally:
        os.sched_setaffinity(0, affinity)

    results = Results.read(output)
    assert status == 0
    assert results.failures() == []
    assert {(record.workload, record.peer) for record in results.records} == {
        (workload, peer) for workload in "abd" for peer in ("raw", "raw-joined")
    }
    assert all(record.sample["completed"] > 0 for record in results.records if record.workload != "d")
    assert "| raw ASGI | 1.00 |" in output.with_suffix(".md").read_text()
    assert capsys.readouterr().out == output.with_suffix(".md").read_text()
