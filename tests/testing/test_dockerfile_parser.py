"""The reader of Dockerfiles: the rules of the reference that ours make use of, and refusals of all others."""

from pathlib import PurePosixPath

import pytest

from tests.support.dockerfile import (
    DockerfileError,
    DockerIgnore,
    Instruction,
    Stage,
    declared_argument,
    expand,
    pairs,
    parse_dockerfile,
    split_stages,
    words,
)


def one(text: str) -> Instruction:
    [instruction] = parse_dockerfile(text)
    return instruction


def test_an_instruction_goes_on_after_a_backslash_and_comments_in_between_are_dropped() -> None:
    text = '# about\n\nRUN one \\\n  # why\n  && two \\  \n  && three\nCMD ["a"]\n'
    assert parse_dockerfile(text) == [
        Instruction(3, "RUN", (), "one   && two   && three"),
        Instruction(7, "CMD", (), '["a"]'),
    ]


def test_flags_stand_before_the_rest() -> None:
    run = one("RUN --mount=type=cache,target=/a --mount=type=cache,target=/b tool --flag=1")
    assert run.flags == (("mount", "type=cache,target=/a"), ("mount", "type=cache,target=/b"))
    assert run.text == "tool --flag=1"
    with pytest.raises(DockerfileError, match="comes 2 times"):
        run.flag("mount")
    assert one("COPY --from=build /a /b").flag("from") == "build"
    assert one("COPY /a /b").flag("from") is None
    assert one("CMD --not-a-flag").flags == ()


def test_exec_form_is_told_from_shell_form() -> None:
    assert one('CMD ["a", "b c"]').exec_form == ["a", "b c"]
    assert one("CMD a b").exec_form is None
    for broken in ("CMD ['a']", 'CMD ["a", 1]', 'CMD ["a"] b'):
        with pytest.raises(DockerfileError):
            _ = one(broken).exec_form


@pytest.mark.parametrize(
    "text",
    [
        "# syntax=docker/dockerfile:1\nFROM a",
        "RUN <<EOF\nls\nEOF",
        "ADD a b",
        "ONBUILD RUN ls",
        "run ls",
        "RUN ls \\\n\n  -l",
        "RUN ls \\",
    ],
)
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(DockerfileError):
        parse_dockerfile(text)


def test_stages_begin_with_from_and_see_the_arguments_before_the_first() -> None:
    text = "ARG A=1\nARG IMAGE=base:$A\nFROM ${IMAGE} AS first\nRUN a\nFROM first\nRUN b\nRUN c"
    assert split_stages(parse_dockerfile(text), {}) == (
        {"A": "1", "IMAGE": "base:1"},
        [
            Stage("first", "base:1", (Instruction(4, "RUN", (), "a"),)),
            Stage("1", "first", (Instruction(6, "RUN", (), "b"), Instruction(7, "RUN", (), "c"))),
        ],
    )
    arguments, stages = split_stages(parse_dockerfile(text), {"IMAGE": "other"})
    assert (arguments["IMAGE"], stages[0].base) == ("other", "other")
    for wrong in ("RUN a", "FROM a b"):
        with pytest.raises(DockerfileError):
            split_stages(parse_dockerfile(wrong), {})


def test_an_argument_is_what_the_build_is_given_or_its_default_or_the_global_one() -> None:
    with_default, without = one("ARG A=$B"), one("ARG A")
    assert declared_argument(with_default, {"B": "b"}, {"A": "given"}, {"A": "global"}) == ("A", "given")
    assert declared_argument(with_default, {"B": "b"}, {}, {"A": "global"}) == ("A", "b")
    assert declared_argument(without, {}, {}, {"A": "global"}) == ("A", "global")
    assert declared_argument(without, {}, {}, {}) == ("A", None)


def test_variables_are_replaced() -> None:
    variables = {"A": "1", "EMPTY": ""}
    assert expand("$A${A}x$MISSING ${EMPTY:-default} ${A:-default}", variables) == "11x default 1"
    for unknown in ("${A:+b}", "${A#b}", "\\$A", "$$"):
        with pytest.raises(DockerfileError):
            expand(unknown, variables)


def test_words_keep_together_what_is_quoted() -> None:
    assert words('a "b c"  d="e f" $A', {"A": "g"}) == ["a", "b c", "d=e f", "g"]
    assert pairs('A="x y" B=$A C=', {"A": "old"}) == {"A": "x y", "B": "old", "C": ""}
    for unread in ("'a b'", '"a'):
        with pytest.raises(DockerfileError):
            words(unread, {})
    with pytest.raises(DockerfileError):
        pairs("A b", {})


@pytest.mark.parametrize(
    ("patterns", "path", "excluded"),
    [
        ("a", "a", True),
        ("a", "a/b", True),
        ("a", "b/a", False),
        ("/a/", "a/b", True),
        ("*", "a/b", True),
        ("*.py", "a.py", True),
        ("*.py", "b/a.py", False),
        ("**/*.py", "a.py", True),
        ("**/*.py", "b/c/a.py", True),
        ("b/**", "b/c/a.py", True),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("*\n!a", "a/b", False),
        ("*\n!a\n**/b", "a/b", True),
        ("*\n!a/b", "a/b", False),
        ("*\n!a/b", "a/c", True),
        ("!a\n*", "a", True),
        ("# *\n\n", "a", False),
    ],
)
def test_the_last_pattern_that_fits_decides_what_a_build_sees(patterns: str, path: str, excluded: bool) -> None:
    assert DockerIgnore(patterns).excludes(PurePosixPath(path)) is excluded


def test_a_pattern_that_is_not_understood_is_refused() -> None:
    with pytest.raises(DockerfileError):
        DockerIgnore("a[bc]")
