"""What may follow what, and how pieces of tool calls become calls."""

from itertools import count
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrun_server.core.events import (
    Failure,
    Finish,
    FunctionCall,
    FunctionCallDelta,
    Progress,
    ReasoningDelta,
    TypedEvent,
)
from agentrun_server.core.grammar import FOLLOWS, Call, CallBook, CallPiece, Grammar, Kind, Phase, ToolKind
from agentrun_server.core.usage import Usage
from agentrun_server.errors import GrammarError
from tests.support import properties  # noqa: F401 - settings of hypothesis

EVENTS: dict[Kind, list[str | TypedEvent]] = {
    Kind.CONTENT: ["text", ReasoningDelta("hm"), FunctionCall("f"), Progress("…")],
    Kind.USAGE: [Usage(1)],
    Kind.FINISH: [Finish("length")],
    Kind.FAILURE: [Failure("no")],
}


def at(phase: Phase) -> Grammar:
    grammar = Grammar()
    grammar.phase = phase
    return grammar


class TestGrammar:
    def test_the_table_has_a_row_for_every_phase_and_leads_nowhere_else(self) -> None:
        assert set(FOLLOWS) == set(Phase)
        assert {after for row in FOLLOWS.values() for after in row.values()} <= set(Phase)

    @pytest.mark.parametrize("phase", Phase)
    @pytest.mark.parametrize("kind", Kind)
    def test_an_event_is_taken_when_the_table_has_it_and_refused_when_not(self, phase: Phase, kind: Kind) -> None:
        for event in EVENTS[kind]:
            grammar = at(phase)
            after = FOLLOWS[phase].get(kind)
            if after is None:
                with pytest.raises(GrammarError, match=f"{type(event).__name__} may not follow"):
                    grammar.accept(event)
                assert grammar.phase is phase
            else:
                assert grammar.accept(event) is kind
                assert grammar.phase is after

    def test_nothing_follows_a_failure(self) -> None:
        assert FOLLOWS[Phase.FAILED] == {}


class Turn:
    """A book of calls, and what a client has been handed."""

    def __init__(self, **client_tools: ToolKind) -> None:
        ids = count(1)
        self.book = CallBook(client_tools, lambda: f"new_{next(ids)}")
        self.pieces: list[CallPiece] = []

    def whole(self, name: str, arguments: str = "{}", call_id: str | None = None) -> Call:
        call, _, pieces = self.book.add(FunctionCall(name, arguments, call_id))
        self.pieces += pieces
        return call

    def piece(
        self, arguments: str = "", name: str | None = None, call_id: str | None = None, index: int | None = None
    ) -> Call:
        call, _, pieces = self.book.add_delta(FunctionCallDelta(arguments, name, call_id, index))
        self.pieces += pieces
        return call

    def close(self) -> list[tuple[str, str]]:
        """End the turn; return each client call's name and arguments as the client put them together."""
        self.pieces += self.book.close()
        calls: list[tuple[str, str]] = []
        for piece in self.pieces:
            if piece.opens:
                assert piece.call.index == len(calls), "indexes count from 0 in order of appearance"
                calls.append((piece.call.name, ""))
            assert piece.call.index == len(calls) - 1, "a piece of a call that is not the open one"
            name, arguments = calls[-1]
            calls[-1] = (name, arguments + piece.arguments)
        return calls


class TestWholeCalls:
    def test_a_call_of_a_client_tool_is_handed_on_at_once(self) -> None:
        turn = Turn(f="function")
        call = turn.whole("f", '{"a":1}', "call_1")
        assert turn.pieces == [CallPiece(call, '{"a":1}', opens=True)]
        assert (call.id, call.name, call.client, call.index) == ("call_1", "f", "function", 0)

    def test_a_call_of_the_agents_own_tool_is_not_handed_on(self) -> None:
        turn = Turn(f="function")
        call = turn.whole("own")
        assert call.client is None
        assert turn.close() == []
        assert turn.book.calls == [call]
        assert turn.book.client_calls == []

    def test_a_call_without_an_id_gets_one(self) -> None:
        turn = Turn()
        assert turn.whole("f").id == "new_1"
        assert turn.book.find("new_1") is turn.book.calls[0]
        assert turn.book.find("other") is None

    def test_the_kind_of_the_clients_tool_is_kept(self) -> None:
        assert Turn(shell="custom").whole("shell", "ls").client == "custom"

    def test_the_same_call_said_twice_is_one_call(self) -> None:
        turn = Turn(f="function")
        turn.whole("f", '{"a":1}', "call_1")
        turn.whole("f", '{"a":1}', "call_1")
        assert turn.close() == [("f", '{"a":1}')]

    def test_a_call_said_whole_after_its_pieces_is_one_call(self) -> None:
        turn = Turn(f="function")
        turn.piece('{"a"', "f", "call_1")
        turn.piece(":1}", call_id="call_1")
        turn.whole("f", '{"a":1}', "call_1")
        assert turn.close() == [("f", '{"a":1}')]


class TestPieces:
    def test_pieces_are_told_apart_by_id(self) -> None:
        turn = Turn(f="function", g="function")
        turn.piece('{"a":', "f", "1")
        turn.piece('{"b":', "g", "2")
        turn.piece("1}", call_id="1")
        turn.piece("2}", call_id="2")
        assert turn.close() == [("f", '{"a":1}'), ("g", '{"b":2}')]

    def test_pieces_are_told_apart_by_index(self) -> None:
        turn = Turn(f="function", g="function")
        turn.piece("", "f", "x", 0)
        turn.piece('{"a":1}', index=0)
        turn.piece("", "g", "y", 1)
        turn.piece("{}", index=1)
        assert turn.close() == [("f", '{"a":1}'), ("g", "{}")]

    def test_a_piece_with_neither_belongs_to_the_call_before(self) -> None:
        turn = Turn(f="function")
        turn.piece("", "f")
        turn.piece('{"a":')
        turn.piece("1}")
        assert turn.close() == [("f", '{"a":1}')]

    def test_a_later_model_call_counts_its_indexes_from_zero_again(self) -> None:
        turn = Turn(f="function")
        turn.piece('{"a":1}', "f", "x", 0)
        turn.piece('{"a":2}', "f", "y", 0)
        assert turn.close() == [("f", '{"a":1}'), ("f", '{"a":2}')]

    def test_a_provider_without_ids_begins_the_next_call_with_a_name(self) -> None:
        turn = Turn(f="function")
        turn.piece('{"a":1}', "f", None, 0)
        turn.piece('{"a":2}', "f", None, 0)
        assert turn.close() == [("f", '{"a":1}'), ("f", '{"a":2}')]

    def test_a_name_that_is_repeated_with_every_piece_is_still_one_call(self) -> None:
        turn = Turn(f="function")
        turn.piece('{"a":', "f", "1")
        turn.piece("1}", "f", "1")
        assert turn.close() == [("f", '{"a":1}')]

    def test_arguments_that_come_before_the_name_are_not_lost(self) -> None:
        turn = Turn(f="function")
        turn.piece('{"a":', call_id="1")
        assert turn.pieces == []
        turn.piece("1}", "f", "1")
        assert turn.close() == [("f", '{"a":1}')]

    def test_the_next_call_waits_until_the_one_before_is_complete(self) -> None:
        turn = Turn(f="function", g="function")
        turn.piece('{"a":', "f", "1")
        turn.whole("g", "{}", "2")
        assert [piece.call.name for piece in turn.pieces] == ["f"]
        turn.piece("1}", call_id="1")
        turn.piece("", "g", "2")
        assert turn.close() == [("f", '{"a":1}'), ("g", "{}")]

    def test_calls_that_never_became_complete_are_handed_on_at_the_end(self) -> None:
        turn = Turn(f="function", g="function")
        turn.piece('{"a":', "f", "1")
        turn.piece('{"b":', "g", "2")
        assert turn.close() == [("f", '{"a":'), ("g", '{"b":')]

    def test_arguments_for_a_call_that_is_complete_are_refused(self) -> None:
        turn = Turn(f="function")
        turn.whole("f", "{}", "1")
        with pytest.raises(GrammarError, match="arguments after it was complete"):
            turn.piece("{}", call_id="1")

    def test_a_call_that_never_gets_a_name_is_refused_at_the_end(self) -> None:
        turn = Turn()
        turn.piece("{}", call_id="1")
        with pytest.raises(GrammarError, match="has no name"):
            turn.close()

    def test_an_empty_piece_hands_on_nothing(self) -> None:
        turn = Turn(f="function")
        turn.piece("", "f", "1")
        assert len(turn.pieces) == 1
        turn.piece("", call_id="1")
        assert len(turn.pieces) == 1


@given(
    st.lists(
        st.tuples(st.sampled_from(["f", "g", "own"]), st.lists(st.sampled_from(['{"k":', "1", "}", " "]), max_size=5)),
        max_size=4,
    ),
    st.randoms(use_true_random=False),
)
def test_however_the_pieces_of_calls_are_mixed_each_call_comes_out_whole(
    calls: list[tuple[str, list[str]]], random: Random
) -> None:
    """Calls begin in order, and their pieces are mixed at random; ids tell them apart."""
    turn = Turn(f="function", g="function")
    waiting: list[tuple[str, list[str]]] = []
    for number, (name, arguments) in enumerate(calls):
        turn.piece("", name, f"id{number}")
        waiting.append((f"id{number}", list(arguments)))
    try:
        while waiting:
            call_id, rest = random.choice(waiting)
            if rest:
                turn.piece(rest.pop(0), call_id=call_id)
            else:
                waiting.remove((call_id, rest))
    except GrammarError:
        return  # a call went on after its arguments were a whole object
    assert turn.close() == [(name, "".join(arguments)) for name, arguments in calls if name != "own"]
