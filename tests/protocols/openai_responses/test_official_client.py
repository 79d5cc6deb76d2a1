"""The official `openai` package reads every stream: by its types, as events, and by its helper."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from openai.types import responses as types
from pydantic import TypeAdapter

from tests.protocols.openai_responses.answers import judged, stream_of
from tests.protocols.openai_responses.variants import VARIANTS, Variant

EVENT: TypeAdapter[Any] = TypeAdapter(types.ResponseStreamEvent)
RESPONSE: TypeAdapter[Any] = TypeAdapter(types.Response)

variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


def client_reading(variant: Variant) -> openai.OpenAI:
    """Return a client whose server answers everything with the stream of `variant`."""
    body, _ = stream_of(variant.items, variant.body, variant.settings, variant.end)
    headers = {"content-type": "text/event-stream"}
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, content=body, headers=headers))
    http_client = httpx2.Client(transport=transport)
    return openai.OpenAI(api_key="x", base_url="http://server/v1", http_client=http_client, max_retries=0)


@variants
def test_every_event_is_one_of_its_types(variant: Variant) -> None:
    for event in judged(variant.items, variant.body, variant.settings, variant.end).events:
        parsed = EVENT.validate_python(event)
        assert json.loads(parsed.model_dump_json(exclude_unset=True, by_alias=True)) == event
        if "response" in event:
            RESPONSE.validate_python(event["response"])


def read(client: openai.OpenAI) -> Iterator[Any]:
    with client:
        yield from client.responses.create(model="m", input="Hi", stream=True)


@variants
def test_it_reads_the_stream_event_by_event(variant: Variant) -> None:
    parsed = judged(variant.items, variant.body, variant.settings, variant.end)
    seen: list[str] = []
    stream = read(client_reading(variant))
    if parsed.error is None:
        seen += [event.type for event in stream]
        assert seen == [event["type"] for event in parsed.events]
    else:
        with pytest.raises(openai.APIError) as raised:
            seen += [event.type for event in stream]
        assert raised.value.message == parsed.error["message"]


@variants
def test_its_helper_puts_the_response_together(variant: Variant) -> None:
    parsed = judged(variant.items, variant.body, variant.settings, variant.end)
    if parsed.error is not None:
        return
    with client_reading(variant) as client, client.responses.stream(model="m", input="Hi") as stream:
        events = list(stream)
        assert [event.type for event in events] == [event["type"] for event in parsed.events]
        if parsed.response["status"] != "completed":
            return  # the helper has no final response for those
        final = stream.get_final_response()
    assert final.output_text == parsed.text
    assert [item.to_dict()["id"] for item in final.output] == [item["id"] for item in parsed.items]
    snapshots = [event.snapshot for event in events if event.type == "response.output_text.delta"]
    texts = [event["text"] for event in parsed.events if event["type"] == "response.output_text.done" and event["text"]]
    assert [text for text in snapshots if text in texts][-len(texts) :] == texts
