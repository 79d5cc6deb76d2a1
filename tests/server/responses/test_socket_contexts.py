"""What is remembered for open WebSockets, and how much of it."""

from agentrun_server.server.responses.socket_contexts import Context, Contexts


def context(size: int, letter: str = "x") -> Context:
    return Context(lane=None, base=None, items=letter * size)


def test_a_context_is_its_connections_alone() -> None:
    contexts = Contexts(100, 100)
    contexts.keep("a", "resp_1", context(10))
    assert contexts.find("a", "resp_1") == context(10)
    assert contexts.find("b", "resp_1") is None
    contexts.drop("b", "resp_1")
    assert contexts.find("a", "resp_1") is not None
    contexts.drop("a", "resp_1")
    assert contexts.find("a", "resp_1") is None
    assert contexts.bytes == 0


def test_those_unused_for_longest_go_first() -> None:
    contexts = Contexts(100, 50)
    for name in ("1", "2", "3"):
        contexts.keep("a", name, context(40 if name == "3" else 30))
    contexts.find("a", "1")
    contexts.keep("a", "4", context(30))
    assert [name for name in "1234" if contexts.find("a", name)] == ["1", "3", "4"]
    assert contexts.bytes == 100


def test_one_that_could_not_be_sent_again_is_not_kept() -> None:
    contexts = Contexts(100, 50)
    contexts.keep("a", "1", context(51))
    contexts.keep("a", "2", context(26, "ä"))
    contexts.keep("a", "3", context(50))
    assert [contexts.find("a", name) is not None for name in "123"] == [False, False, True]


def test_to_keep_one_again_replaces_it() -> None:
    contexts = Contexts(100, 50)
    contexts.keep("a", "1", context(50))
    contexts.keep("a", "1", context(10))
    assert contexts.bytes == 10
