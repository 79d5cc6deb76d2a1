"""Parts of lists that stand in one record."""

import pytest

from agentrun_server.errors import InvalidRequestError
from agentrun_server.protocols.openai_responses.queries import PageQuery
from agentrun_server.server.listing import part_of


def part(page: PageQuery, names: str = "abcd") -> tuple[str, bool]:
    listed = part_of([{"id": name} for name in names], page)
    found = "".join(one["id"] for one in listed["data"])
    assert (listed["first_id"], listed["last_id"]) == ((found[0], found[-1]) if found else (None, None))
    return found, listed["has_more"]


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (PageQuery(20, "asc"), ("abcd", False)),
        (PageQuery(20, "desc"), ("dcba", False)),
        (PageQuery(2, "asc"), ("ab", True)),
        (PageQuery(2, "asc", "b"), ("cd", False)),
        (PageQuery(2, "desc", "d"), ("cb", True)),
        (PageQuery(2, "asc", "d"), ("", False)),
    ],
)
def test_a_part_begins_behind_the_id_and_ends_at_the_limit(page: PageQuery, expected: tuple[str, bool]) -> None:
    assert part(page) == expected


def test_an_id_that_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidRequestError) as error:
        part(PageQuery(2, "asc", "x"))
    assert (error.value.param, error.value.code) == ("after", "invalid_value")


def test_who_reads_part_by_part_comes_to_an_end_though_an_id_comes_twice() -> None:
    assert part(PageQuery(2, "asc"), "abac") == ("ab", True)
    assert part(PageQuery(2, "asc", "b"), "abac") == ("ac", False)
    assert part(PageQuery(3, "asc", "a"), "abac") == ("c", False)
