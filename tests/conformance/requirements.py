"""What an OpenAI client may rely on, as a list: id → where it is written, and what must be seen.

A test names what it proves: ``@requirement("chat.stream.role-once")``. `test_requirements` holds both directions: every
requirement has a test, and every id that a test names is in the list. A requirement that is not met yet says so in
`deferred`, with the reason, and has no test.

Sources: the OpenAI API specification 2.3.0 ("OpenAI spec"), recorded answers of the real API, RFCs, and clients that
break when the rule is broken.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

__all__ = ["REQUIREMENTS", "Requirement", "requirement"]

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Requirement:
    """One behaviour that can be seen from outside."""

    source: str
    behaviour: str
    deferred: str | None = None
    """Why this is not so yet."""


REQUIREMENTS: Mapping[str, Requirement] = {
    # --- HTTP and the event stream
    "chat.http.stream-headers": Requirement(
        source="WHATWG HTML 9.2; nginx ngx_http_proxy_module (X-Accel-Buffering)",
        behaviour="a stream is text/event-stream in UTF-8, not cached, not buffered by proxies, never compressed",
    ),
    "chat.http.json-content-type": Requirement(
        source="openai-node 6.49, which returns a string for any other type",
        behaviour="every JSON body is application/json",
    ),
    "chat.http.ignores-accept": Requirement(
        source="openai-python and openai-node send `Accept: application/json` on streams",
        behaviour="Accept decides nothing: a stream is sent when asked for in the body, never a 406",
    ),
    "chat.http.any-content-type": Requirement(
        source="curl -d, which sends a form content type",
        behaviour="the body is read as JSON whatever type it was declared to be",
    ),
    "chat.http.request-id": Requirement(
        source="recorded answers of the OpenAI API; openai-python `_request_id`",
        behaviour="every answer, errors too, has x-request-id, openai-processing-ms and openai-version",
    ),
    "chat.http.cors": Requirement(
        source="Fetch standard; openai-node in a browser",
        behaviour="configured origins may send the SDKs' headers and read the ids and retry hints; others may not",
    ),
    "chat.http.aliases": Requirement(
        source="wrong base URLs are the most frequent mistake of users",
        behaviour="routes stand under /v1, /openai/v1 and no prefix, with and without a trailing slash",
    ),
    "chat.http.any-key": Requirement(
        source="OpenAI spec, ApiKeyAuth; Azure OpenAI (api-key)",
        behaviour="without an authentication middleware any key, in either header, and none at all are accepted",
    ),
    "chat.http.held-head": Requirement(
        source="openai-python and openai-node raise by status, and retry by status",
        behaviour="the head waits for the first event, so that a failure before it has a real status",
    ),
    "chat.http.hold-limit": Requirement(
        source="client and proxy read timeouts",
        behaviour="a silent agent's stream is opened with 200 and a comment after a short limit",
    ),
    "chat.http.disconnect": Requirement(
        source="openai-python and openai-node repeat a request after a connection error",
        behaviour="a client that leaves stops the agent, before and after the first byte, streamed or not",
    ),
    # --- frames
    "chat.stream.frames": Requirement(
        source="WHATWG HTML 9.2; clients that split at two LF and look for 'data: '",
        behaviour="an event is 'data: ', JSON, two LF; there is no CR",
    ),
    "chat.stream.whole-events": Requirement(
        source="event-stream parsers that lose an event split over two reads",
        behaviour="every write holds whole events",
    ),
    "chat.stream.no-named-events": Requirement(
        source="openai-python <= 1.40, which wraps named events",
        behaviour="there is no event line",
    ),
    "chat.stream.no-id-no-retry": Requirement(
        source="openai-python 1.x to 3.x, which emits an empty event for either",
        behaviour="there is no id line and no retry line",
    ),
    "chat.stream.heartbeat": Requirement(
        source="WHATWG HTML 9.2 (comments); 13 of 13 clients ignore them",
        behaviour="a silent stream gets comments, and nothing else, to keep it open",
    ),
    "chat.stream.loud-end": Requirement(
        source="11 of 13 clients take a stream that just ends for a complete answer",
        behaviour="a stream ends with [DONE], behind finish reasons or an error, never by just ending",
    ),
    # --- the stream
    "chat.stream.envelope": Requirement(
        source="OpenAI spec, CreateChatCompletionStreamResponse",
        behaviour="id, object, created, model and service_tier are the same on every chunk",
    ),
    "chat.stream.role-once": Requirement(
        source="OpenAI spec, ChatCompletionStreamResponseDelta; openai-python .stream() joins roles",
        behaviour="the first chunk of a choice has the role, and no other chunk has it, whatever comes first",
    ),
    "chat.stream.choice-keys": Requirement(
        source="OpenAI spec, CreateChatCompletionStreamResponse.choices",
        behaviour="a choice always has index, an object as delta, finish_reason and logprobs",
    ),
    "chat.stream.finish-chunk": Requirement(
        source="OpenAI spec; recorded answers of the OpenAI API",
        behaviour="each choice is finished once, by a chunk with an empty delta, and nothing follows for it",
    ),
    "chat.stream.empty-answer": Requirement(
        source="openai-node .stream() (missing role), ai-sdk (missing finish reason)",
        behaviour="an agent that says nothing gives a whole stream: role, finish reason, [DONE]",
    ),
    "chat.stream.usage-unasked": Requirement(
        source="OpenAI spec, stream_options; loops that read choices[0] of every chunk",
        behaviour="without include_usage there is no usage key and no chunk without choices",
    ),
    "chat.stream.usage-asked": Requirement(
        source="OpenAI spec, ChatCompletionStreamOptions.include_usage",
        behaviour="with include_usage every chunk has usage null, and one last chunk has it, without choices",
    ),
    "chat.stream.tool-calls": Requirement(
        source="OpenAI spec, ChatCompletionMessageToolCallChunk; 8 of 14 clients join repeated names",
        behaviour="a call opens with index, id, type, name and empty arguments; what follows has index and arguments",
    ),
    "chat.stream.tool-call-order": Requirement(
        source="clients take the next call's first piece for the end of the one before",
        behaviour="indexes count from 0 in order of appearance, and a call is complete before the next one opens",
    ),
    "chat.stream.tool-turn-role": Requirement(
        source="recorded answers of the OpenAI API",
        behaviour="the role chunk of a turn that begins with a tool call has content null",
    ),
    "chat.stream.tool-finish": Requirement(
        source="OpenAI spec, finish_reason",
        behaviour="finish_reason is tool_calls when and only when calls were sent; tool_calls is never empty or null",
    ),
    "chat.stream.legacy-function-call": Requirement(
        source="OpenAI spec, ChatCompletionStreamResponseDelta.function_call (deprecated)",
        behaviour="requests with `functions` get function_call deltas and the finish reason function_call",
    ),
    "chat.stream.refusal": Requirement(
        source="OpenAI spec, ChatCompletionStreamResponseDelta.refusal",
        behaviour="a refusal is streamed as such, not as content, and finishes with stop",
    ),
    "chat.stream.logprobs": Requirement(
        source="OpenAI spec, CreateChatCompletionStreamResponse.choices.logprobs",
        behaviour="logprobs is null unless asked for; then it has content and refusal",
    ),
    "chat.stream.obfuscation": Requirement(
        source="OpenAI spec, ChatCompletionStreamOptions.include_obfuscation",
        behaviour="delta chunks carry random padding only when asked for",
    ),
    "chat.stream.choice-order": Requirement(
        source="openai-python .stream(), which keeps choices in a list",
        behaviour="choices are opened in the order of their index",
    ),
    "chat.stream.mergeable": Requirement(
        source="openai-python accumulate_delta",
        behaviour="what is added to a delta can be merged by the official client, and no key of ours is overwritten",
    ),
    "chat.stream.json": Requirement(
        source="RFC 8259; ECMA-404",
        behaviour="every data line is JSON without NaN, whatever the agent said, and reads back as what it said",
    ),
    # --- the request
    "chat.request.required": Requirement(
        source="OpenAI spec, CreateChatCompletionRequest.required",
        behaviour="model and at least one message are required, everything else may be left out",
    ),
    "chat.request.null-is-absent": Requirement(
        source="OpenAI spec (nullable fields); clients that send null for what is unset",
        behaviour="null is read as absent, for every field",
    ),
    "chat.request.roles": Requirement(
        source="OpenAI spec, ChatCompletionRequestMessage",
        behaviour="developer, system, user, assistant, tool and function messages are read; other roles are refused",
    ),
    "chat.request.content": Requirement(
        source="OpenAI spec, ChatCompletionRequestUserMessageContentPart",
        behaviour="content is text or parts: text, image_url, input_audio, file; unknown parts and keys are kept",
    ),
    "chat.request.assistant": Requirement(
        source="OpenAI spec, ChatCompletionRequestAssistantMessage; clients that echo answers back",
        behaviour="assistant messages may lack content, or have it null or empty; extra keys are kept",
    ),
    "chat.request.tool-message": Requirement(
        source="OpenAI spec, ChatCompletionRequestToolMessage",
        behaviour="tool messages need tool_call_id, and may have content in parts",
    ),
    "chat.request.calls-answered": Requirement(
        source="OpenAI API error 'tool_call_ids did not have response messages'",
        behaviour="every call of an assistant message must be answered by the tool messages behind it",
    ),
    "chat.request.stream-options": Requirement(
        source="OpenAI spec, stream_options; clients that send it with every request",
        behaviour="stream_options without stream is ignored, not refused",
    ),
    "chat.request.tools": Requirement(
        source="OpenAI spec, ChatCompletionTool, CustomToolChatCompletions, FunctionObject",
        behaviour="function and custom tools are read; names have 1 to 64 letters, digits, _ and -; strict may be null",
    ),
    "chat.request.tool-choice": Requirement(
        source="OpenAI spec, ChatCompletionToolChoiceOption",
        behaviour="none, auto, required, a named tool and allowed_tools are read, and need tools",
    ),
    "chat.request.response-format": Requirement(
        source="OpenAI spec, ResponseFormatText, ResponseFormatJsonObject, ResponseFormatJsonSchema",
        behaviour="text, json_object and a named json_schema reach the agent as sent",
    ),
    "chat.request.ranges": Requirement(
        source="OpenAI spec, CreateChatCompletionRequest (minimum, maximum)",
        behaviour="numbers outside their range, of the wrong type or not finite are a 400 that names the field",
    ),
    "chat.request.n": Requirement(
        source="OpenAI spec, CreateChatCompletionRequest.n",
        behaviour="n runs the agent n times, each run a choice; more than the server allows is a 400",
    ),
    "chat.request.max-tokens": Requirement(
        source="OpenAI spec, max_completion_tokens and max_tokens",
        behaviour="both reach the agent as they were sent",
    ),
    "chat.request.stop": Requirement(
        source="OpenAI spec, StopConfiguration",
        behaviour="one or up to four sequences; the answer ends before the first one found, across pieces too",
    ),
    "chat.request.open-values": Requirement(
        source="OpenAI spec, ReasoningEffort and others that grow with each model",
        behaviour="reasoning_effort, verbosity, service_tier and the like pass, also with values unknown so far",
    ),
    "chat.request.audio": Requirement(
        source="OpenAI spec, ResponseModalities",
        behaviour="asking for audio is a 400, not an answer without it",
    ),
    "chat.request.metadata": Requirement(
        source="OpenAI spec, Metadata",
        behaviour="at most 16 pairs, keys of 64 and string values of 512 characters",
    ),
    "chat.request.legacy-functions": Requirement(
        source="OpenAI spec, functions and function_call (deprecated)",
        behaviour="functions and function_call reach the agent as tools and tool_choice",
    ),
    "chat.request.parameters": Requirement(
        source="OpenAI spec, CreateChatCompletionRequest",
        behaviour="a parameter is an attribute of the agent's request when, and only when, the client sent it",
    ),
    "chat.request.unknown-fields": Requirement(
        source="vLLM, OpenRouter and LiteLLM extensions; OpenAI API error 'Unrecognized request argument'",
        behaviour="unknown fields are kept for the agent, or refused when the server is told to be strict",
    ),
    "chat.request.unsupported-parts": Requirement(
        source="OpenAI API error for models without vision or audio",
        behaviour="a content part of a kind the agent cannot read is a 400 unsupported_content_type",
        deferred="an agent has no way to declare what it reads; parts reach it as they came",
    ),
    "chat.request.idempotency-key": Requirement(
        source="openai-python and openai-node send Idempotency-Key when the user sets it",
        behaviour="the same key and body get the stored answer or join the run that goes on; another body is a 400",
    ),
    "chat.request.strict-json": Requirement(
        source="RFC 8259",
        behaviour="a body that is no JSON object in UTF-8, of bounded depth and without NaN, is a 400",
    ),
    "chat.request.openai-errors": Requirement(
        source="openai-node and the AI SDK show nothing of FastAPI's 422",
        behaviour="a request that cannot be read is a 400 with OpenAI's error object, whatever it is",
    ),
    # --- the answer in one body
    "chat.completion.shape": Requirement(
        source="OpenAI spec, CreateChatCompletionResponse; pydantic-ai validates all of it",
        behaviour="every required key is there with its type; optional ones are left out rather than null",
    ),
    "chat.completion.usage": Requirement(
        source="OpenAI spec, CompletionUsage; clients that read it unguarded",
        behaviour="usage is always there, from the agent or estimated, and its total is the sum",
    ),
    "chat.completion.tool-turn": Requirement(
        source="OpenAI spec, ChatCompletionMessageToolCall",
        behaviour="a turn of calls has content null, tool_calls with arguments as JSON text, finish_reason tool_calls",
    ),
    "chat.completion.finish-reasons": Requirement(
        source="OpenAI spec, finish_reason; pydantic-ai refuses others",
        behaviour="finish_reason is one of stop, length, tool_calls, content_filter, function_call",
    ),
    "chat.completion.same-as-stream": Requirement(
        source="OpenAI spec: a stream and a body are two forms of one answer",
        behaviour="the body says what the stream, put together, says",
    ),
    # --- errors
    "chat.error.object": Requirement(
        source="OpenAI spec, Error",
        behaviour="every error is {'error': {message, type, param, code}} with all four keys",
    ),
    "chat.error.bad-request": Requirement(
        source="OpenAI API error codes",
        behaviour="400 invalid_request_error; the code tells missing, wrong type and wrong value apart; param names it",
    ),
    "chat.error.unknown-model": Requirement(
        source="recorded answers of the OpenAI API",
        behaviour="404 model_not_found, param null",
    ),
    "chat.error.unknown-path": Requirement(
        source="recorded answers of the OpenAI API",
        behaviour="404 unknown_url for a path, 405 with Allow for a method, both as OpenAI's error object",
    ),
    "chat.error.timeout": Requirement(
        source="RFC 9110 15.5.9 and 15.6.5",
        behaviour="an agent that does not answer in time is a 504, without a retry",
    ),
    "chat.error.slow-request": Requirement(
        source="RFC 9110 15.5.9",
        behaviour="a body that does not arrive in time is a 408",
    ),
    "chat.error.slow-reader": Requirement(
        source="clients notice a connection that is cut off, and nothing else, once they do not read",
        behaviour="a client that reads nothing holds the agent back, and is cut off after a limit",
    ),
    "chat.error.too-large": Requirement(
        source="RFC 9110 15.5.14",
        behaviour="a body that is too long is a 413",
    ),
    "chat.error.media-type": Requirement(
        source="RFC 9110 15.5.16",
        behaviour="a compressed or multipart body is a 415",
    ),
    "chat.error.busy": Requirement(
        source="RFC 6585 4; openai-python and openai-node read retry-after-ms and retry-after",
        behaviour="no place left is a 429 rate_limit_exceeded with both headers",
    ),
    "chat.error.agent-failed": Requirement(
        source="openai-python and openai-node, which repeat a 500 unless x-should-retry says no",
        behaviour="a failed agent is a 500 agent_error with x-should-retry: false, and tells nothing of the exception",
    ),
    "chat.error.agent-error": Requirement(
        source="OpenAI spec, Error",
        behaviour="an agent chooses its own message, status and code by raising AgentError or yielding an error event",
    ),
    "chat.error.shutting-down": Requirement(
        source="RFC 9110 15.6.4",
        behaviour="a server that shuts down answers 503 with retry-after",
    ),
    "chat.error.retry-after-limit": Requirement(
        source="openai-python >= 3 does not wait more than 120 s, openai-node waits whatever it is told",
        behaviour="retry-after is at least 1 and at most 60 seconds",
    ),
    "chat.error.mid-stream": Requirement(
        source="openai-python and openai-node _streaming: an event with a truthy 'error' raises APIError",
        behaviour="after the first event a failure is an error frame, then [DONE], and there is no finish chunk",
    ),
    "chat.error.client-raises": Requirement(
        source="openai-python 3",
        behaviour="the official client raises for every kind of failure, and does not run a failed agent again",
    ),
    # --- stored chat completions
    "chat.stored.objects": Requirement(
        source="OpenAI spec, /chat/completions/{completion_id}; openai-python chat.completions.list",
        behaviour="answers with store: true are listed, filtered by metadata, retrieved, updated and deleted",
    ),
    "chat.stored.only-when-asked": Requirement(
        source="OpenAI spec, CreateChatCompletionRequest.store (false)",
        behaviour="an answer is not stored unless the request says so",
    ),
    # --- the Responses API: the stream
    "responses.stream.frames": Requirement(
        source="WHATWG HTML 9.2; Open Responses; openai-python emits an empty event for id and retry lines",
        behaviour="an event is an event line with its type and a data line with JSON; no id, no retry, no CR",
    ),
    "responses.stream.sequence": Requirement(
        source="OpenAI spec, ResponseStreamEvent.sequence_number",
        behaviour="events are numbered from 0 without a gap",
    ),
    "responses.stream.done": Requirement(
        source="Open Responses, which demands it; OpenAI's clients skip it",
        behaviour="[DONE] comes last, and is no event",
    ),
    "responses.stream.created-first": Requirement(
        source="openai-python and openai-node responses.stream(), which throw otherwise",
        behaviour="response.created is the first event",
    ),
    "responses.stream.order": Requirement(
        source="OpenAI spec, ResponseStreamEvent; recorded answers of the OpenAI API",
        behaviour="created, in_progress, items, then one terminal event with the whole response",
    ),
    "responses.stream.output-index": Requirement(
        source="openai-python and openai-node keep items in a list",
        behaviour="items are numbered in the order in which they are added, without a gap",
    ),
    "responses.stream.items": Requirement(
        source="AI SDK, which acts on response.output_item.done; OpenAI spec",
        behaviour="an item is added empty, grows by deltas, and is done as it stands in the response at the end",
    ),
    "responses.stream.function-call": Requirement(
        source="langchain and pydantic-ai take arguments from deltas; OpenAI spec wants the name on .done",
        behaviour="arguments are empty at first, come in at least one delta, and are done with the name",
    ),
    "responses.stream.same-as-body": Requirement(
        source="OpenAI spec: a stream and a body are two forms of one response",
        behaviour="the response at the end of a stream is the one that a body would have had",
    ),
    "responses.stream.heartbeat": Requirement(
        source="WHATWG HTML 9.2 (comments)",
        behaviour="a silent stream gets comments, and nothing else, to keep it open",
    ),
    "responses.stream.client": Requirement(
        source="openai-python 3, responses.stream()",
        behaviour="the official helper puts the response together",
    ),
    # --- the response
    "responses.object.keys": Requirement(
        source="Open Responses (all keys required); OpenAI spec, Response",
        behaviour="a response has every key, with its default or null, and the same ones in every event",
    ),
    "responses.object.usage": Requirement(
        source="OpenAI spec, ResponseUsage, cache_write_tokens among it",
        behaviour="usage is null until the end, and has every key then",
    ),
    "responses.object.echo": Requirement(
        source="Open Responses; OpenAI spec, ResponseProperties",
        behaviour="what the request said is repeated, tools and formats with their defaults",
    ),
    "responses.object.incomplete": Requirement(
        source="OpenAI spec, Response.incomplete_details; the Agents SDK raises on it",
        behaviour="only an answer that was cut is incomplete, and says why",
    ),
    "responses.tools.own": Requirement(
        source="16 of 16 clients accept mcp_call items; function_call items they would run",
        behaviour="the agent's own tools are mcp_call items, or hidden when the server is told so",
    ),
    # --- errors
    "responses.error.before-first-event": Requirement(
        source="openai-python and openai-node raise by status, and retry by status",
        behaviour="an agent that fails before its first event is a status, streamed or not",
    ),
    "responses.error.mid-stream": Requirement(
        source="OpenAI spec, ResponseErrorEvent; openai-python and openai-node look for a nested error",
        behaviour="later it is an error event in both shapes, then response.failed, then [DONE]",
    ),
    "responses.error.client-raises": Requirement(
        source="openai-python 3",
        behaviour="the official client raises for a failure whenever it comes",
    ),
    "responses.error.bad-request": Requirement(
        source="OpenAI API error codes",
        behaviour="a malformed request is a 400 whose param names the field",
    ),
    # --- the request
    "responses.request.input": Requirement(
        source="OpenAI spec, InputParam; AI SDK and langchain leave out types, ids and annotations",
        behaviour="input is text or items of any role and type, whatever of theirs is left out",
    ),
    "responses.request.unknown-items": Requirement(
        source="OpenAI spec grows item types; clients send back what they were sent",
        behaviour="items of unknown types are kept, and are no error",
    ),
    "responses.request.include": Requirement(
        source="OpenAI spec, IncludeEnum; the Agents SDK sends include: []",
        behaviour="include is accepted with values known and unknown",
    ),
    "responses.request.null-is-absent": Requirement(
        source="OpenAI spec (nullable fields)",
        behaviour="null is read as absent",
    ),
    "responses.request.tools": Requirement(
        source="OpenAI spec, Tool (flat); langchain-js sends strict: null",
        behaviour="function and custom tools are flat, reach the agent as in chats, and other types as they are",
    ),
    "responses.request.metadata": Requirement(
        source="OpenAI spec, Metadata",
        behaviour="at most 16 pairs, keys of 64 and values of 512 characters; kept, and given to the agent",
    ),
    "responses.request.protocol": Requirement(
        source="one agent for every protocol",
        behaviour="the agent's request has protocol openai_responses, and parameters under the names of chats too",
    ),
    "responses.http.aliases": Requirement(
        source="wrong base URLs are the most frequent mistake of users",
        behaviour="the routes stand under every prefix, with and without a trailing slash",
    ),
    # --- what is kept
    "responses.store.retrieve": Requirement(
        source="OpenAI spec, getResponse; store defaults to true",
        behaviour="a response can be retrieved as it was answered",
    ),
    "responses.store.delete": Requirement(
        source="OpenAI spec, deleteResponse",
        behaviour="a deleted response is a 404",
    ),
    "responses.store.off": Requirement(
        source="OpenAI spec, store: false",
        behaviour="what is not stored cannot be retrieved",
    ),
    "responses.store.disabled": Requirement(
        source="operators who may keep nothing",
        behaviour="a server that stores nothing answers, says store: false, and refuses what needs a store",
    ),
    "responses.store.previous": Requirement(
        source="OpenAI spec, previous_response_id",
        behaviour="the agent gets what was said before, and several may go on from one response",
    ),
    "responses.store.instructions": Requirement(
        source="OpenAI spec, instructions: not carried over",
        behaviour="instructions hold for one response",
    ),
    "responses.store.previous-errors": Requirement(
        source="recorded answers of the OpenAI API; Open Responses",
        behaviour="an unknown, unstored or deleted response, and one together with a conversation, is a 400",
    ),
    "responses.store.item-reference": Requirement(
        source="AI SDK, which names earlier items by id alone",
        behaviour="an item_reference is the stored item; an unknown one is a 400",
    ),
    "responses.input-items.paging": Requirement(
        source="OpenAI spec, listInputItems",
        behaviour="input items are listed by limit, order and after, each with id and status",
    ),
    "responses.owner": Requirement(
        source="OWASP API1, broken object level authorization",
        behaviour="objects of another caller are answered as if they were not there",
    ),
    "responses.conversation.grows": Requirement(
        source="OpenAI spec, CreateResponse.conversation",
        behaviour="input and output of a turn are added to its conversation, which the response names",
    ),
    "responses.conversation.items": Requirement(
        source="OpenAI spec, /conversations; Agents SDK OpenAIConversationsSession",
        behaviour="conversations and their items are made, listed, changed and deleted",
    ),
    "responses.conversation.one-turn": Requirement(
        source="openai-python and openai-node repeat a 409",
        behaviour="of two turns at once the second waits, or is a 409",
    ),
    "responses.input-tokens": Requirement(
        source="OpenAI spec, getInputTokenCounts",
        behaviour="an input is counted without running an agent",
    ),
    "responses.compact": Requirement(
        source="OpenAI spec, compactResponse",
        behaviour="a conversation is packed into an item that can be sent in its place",
    ),
    # --- runs
    "responses.background.polled": Requirement(
        source="OpenAI guide, Background mode",
        behaviour="a background response is answered queued at once, and can be polled to its end",
    ),
    "responses.background.client-leaves": Requirement(
        source="OpenAI guide, Background mode",
        behaviour="a background run goes on without its client",
    ),
    "responses.background.cancel": Requirement(
        source="OpenAI spec, cancelResponse: background only, idempotent",
        behaviour="a cancelled run stays cancelled and keeps what it said; others cannot be cancelled",
    ),
    "responses.background.worker-lost": Requirement(
        source="issue of every queue without leases: runs that stay in_progress for ever",
        behaviour="when a process dies its runs fail, or run again elsewhere if that is allowed, never silently twice",
    ),
    "responses.resume": Requirement(
        source="OpenAI spec, getResponse: stream and starting_after",
        behaviour="a stream goes on behind any event, while the run goes on and afterwards, byte for byte",
    ),
    "responses.idempotency-key": Requirement(
        source="openai-python and openai-node send Idempotency-Key when the user sets it",
        behaviour="of requests with one key one runs the agent, and all get its answer",
    ),
    "responses.websocket": Requirement(
        source="OpenAI guide, WebSocket mode; openai-python responses.connect()",
        behaviour="a response is asked for by a message, and its events are messages",
    ),
    # --- models
    "chat.models": Requirement(
        source="OpenAI spec, ListModelsResponse, Model",
        behaviour="models are listed and retrieved by id, ids with slashes too; an unknown one is a 404",
    ),
    # --- what an agent does besides answering
    "activity.ownership": Requirement(
        source="12 of 13 clients run, or report as pending, every call they see",
        behaviour="only tools the client declared appear as tool calls; the agent's own are invisible there",
    ),
    "activity.opt-in": Requirement(
        source="clients that build their state from every key",
        behaviour="x_agent events are sent only to callers who asked, by header, body or configuration",
    ),
    "activity.chunks": Requirement(
        source="13 of 13 clients accept an extra top-level key on a chunk with an empty delta",
        behaviour="an x_agent event is a chunk of its own with an idle choice, numbered by seq",
    ),
    "activity.io": Requirement(
        source="arguments and results of tools may be secret",
        behaviour="arguments and outputs are shown only to callers who asked for io",
    ),
    "activity.in-body": Requirement(
        source="OpenAI spec: a stream and a body are two forms of one answer",
        behaviour="an answer in one body has the same x_agent events in a list",
    ),
    "activity.reasoning": Requirement(
        source="DeepSeek (reasoning_content), vLLM and OpenRouter (reasoning); @openai/agents reads only the latter",
        behaviour="reasoning is sent in both fields or as configured, never as content, and counted",
    ),
    "activity.sources": Requirement(
        source="OpenAI spec, ChatCompletionResponseMessage.annotations; openai-python fails on repeated lists",
        behaviour="annotations are sent once, right before the finish chunk, and in the message of a body",
    ),
    "activity.mixed-turns": Requirement(
        source="OpenAI function calling guide",
        behaviour="the agent's own tools run unseen; a call of a client's tool ends the turn with tool_calls",
    ),
    "activity.human-input": Requirement(
        source="AgentRun SDK, EventType.HITL",
        behaviour="a question to a human is a call of the client's tool for it, or text when there is none",
    ),
    "activity.parked-runs": Requirement(
        source="OpenAI function calling guide",
        behaviour="a run that waits for a client's tool goes on where it was when the result comes",
        deferred="needs runs that outlive a request; until then the agent starts again from the messages",
    ),
}


def requirement(*ids: str) -> Callable[[F], F]:
    """Mark a test as the proof of requirements; an id that is not in the list is an error."""
    unknown = [name for name in ids if name not in REQUIREMENTS]
    if unknown or not ids:
        raise KeyError(f"no such requirement: {', '.join(unknown)}")

    def mark(test: F) -> F:
        return test

    return mark
