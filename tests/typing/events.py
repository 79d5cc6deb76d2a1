"""The vocabulary, as a type checker sees it. This file is checked, never run."""

from typing import Any, assert_never, assert_type

from agentrun_server import AgentEvent, AgentResult, EventType, MergeOptions, TypedEvent, Usage, events


def name_of(event: TypedEvent) -> str:
    """Answer for every event: a new one makes the checker complain here."""
    match event:
        case events.TextDelta() | events.ReasoningDelta() | events.RefusalDelta():
            return event.text
        case events.FunctionCall():
            return event.name
        case events.FunctionCallDelta():
            return event.arguments
        case events.FunctionCallOutput() | events.FunctionCallOutputDelta() | events.Interrupt():
            return event.id
        case events.Annotation():
            return str(event.data)
        case Usage():
            return str(event.input_tokens)
        case events.Finish():
            return event.reason
        case events.StateUpdate():
            return str(event.snapshot)
        case events.Step() | events.Custom():
            return event.name
        case events.Progress():
            return event.label
        case events.Raw():
            return event.raw
        case events.Failure():
            return event.message
        case _:
            assert_never(event)


events.Finish("length")
events.Finish("tool_calls")  # type: ignore[arg-type]
events.Step("s", "finished")
events.Step("s", "done")  # type: ignore[arg-type]
events.Progress("Searching", 0.5)
events.FunctionCallOutput("1", {"any": ["thing"]}, is_error=True)
events.TextDelta()  # type: ignore[call-arg]

assert_type(events.Annotation.url_citation("https://example.com"), events.Annotation)
assert_type(Usage(1) + Usage(2), Usage)
assert_type(AgentEvent(EventType.TEXT).data, dict[str, Any])
assert_type(AgentResult(EventType.TEXT), AgentEvent)

options: MergeOptions = {"concat_list": True, "ignore_empty_list": False}
wrong: MergeOptions = {"concat": True}  # type: ignore[typeddict-unknown-key]
