import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrun_server.storage.codec import check_text, dump_body, encode, fill_page, is_text, load_body, pack, unpack
from agentrun_server.storage.contracts import Delete, Page, Record, Update
from tests.storage.contract import append, create
from tests.support.properties import any_text

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters())
BODIES = st.dictionaries(
    st.text(),
    st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5),
    max_size=3,
)


@given(st.lists(st.binary()))
def test_events_come_out_of_a_piece_as_they_went_in(data: list[bytes]) -> None:
    assert list(unpack(pack(data))) == data


@given(BODIES)
def test_a_body_comes_out_as_it_went_in_by_way_of_ascii(body: dict[str, object]) -> None:
    text = dump_body(body)
    assert text.isascii()
    assert "\0" not in text
    assert load_body(text) == body


@given(any_text)
def test_text_is_what_every_database_can_hold(text: str) -> None:
    holdable = "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)
    assert is_text("plain", None, text) == holdable
    if not holdable:
        with pytest.raises(ValueError, match="surrogates"):
            check_text("plain", text)


def test_what_is_stored_as_one_value_is_made_from_each_change() -> None:
    assert encode(create("r", body={"é": [1]})) == '{"\\u00e9":[1]}'
    assert encode(Update(kind="k", id="i", body={})) == "{}"
    assert encode(Update(kind="k", id="i", status="s")) is None
    assert encode(append("r", 0, b"a", b"")) == b"\0\0\0\1a\0\0\0\0"
    assert encode(Delete("k", "i")) is None


@given(st.integers(1, 300), st.integers(0, 400), st.integers(1, 7))
async def test_a_page_is_the_first_matches_whatever_the_batches(limit: int, count: int, every: int) -> None:
    everything = [
        Record(kind="k", id=str(n), owner="", position=n, body={"m": {"x": str(n % every)}})
        for n in range(1, count + 1)
    ]

    async def read(position: int, count: int) -> list[Record]:
        return everything[position : position + count]

    for fields in ({}, {"m.x": "0"}):
        matches = [one for one in everything if not fields or one.position % every == 0]
        assert await fill_page(read, 0, limit, fields) == Page(matches[:limit], len(matches) > limit)
