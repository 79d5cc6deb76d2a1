"""The agent of ``agentrun-server demo``: no model, no key, no network, and all that a client should see.

It reasons, streams word by word, runs tools of its own, and calls the client's tools when the client
declares some. What it says is decided by `plan`, which is plain code from a request to events; `DemoAgent`
adds the pauses.
"""

# ruff: noqa: RUF001 - it speaks Chinese, too

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any, cast
from zoneinfo import ZoneInfo, available_timezones

from agentrun_server.cli.arithmetic import CalculationError, calculate, find_expression, format_number
from agentrun_server.core.events import (
    FunctionCall,
    FunctionCallOutput,
    Progress,
    ReasoningDelta,
    Step,
    TypedEvent,
)
from agentrun_server.core.messages import Tool
from agentrun_server.core.request import AgentRequest
from agentrun_server.errors import AgentError

__all__ = ["DemoAgent", "demo_agent", "find_zone", "plan", "tool_arguments"]

Pieces = Iterator[str | TypedEvent]

_READ = 2000
"""Characters of a message that are looked at."""

_CJK = re.compile(r"[\u3400-\u9fff]")

_WORD = re.compile(
    r"\s*(?:[\u3000-\u30ff\u3400-\u9fff\uff00-\uffef]{1,2}|[^\s\u3000-\u30ff\u3400-\u9fff\uff00-\uffef]+)"
)

_HELP_EN = """\
I am a demo agent without a model. I can

- calculate: "What is 12 * (3 + 4)?" or "15% of 80",
- tell the time: "What time is it in Tokyo?",
- count: "Count the words in: to be or not to be", or "Count to 20" (good for trying Stop),
- call your tools: declare one, such as get_weather, and mention it,
- fail: "fail" answers with an error, "fail later" breaks off in the middle,
- say back anything else, word by word.

I use tools of my own for the first three, and reason before I answer."""

_HELP_ZH = """\
我是一个不用模型的演示智能体。我会

- 计算：“12 * (3 + 4) 等于多少？”
- 报时：“东京现在几点？”
- 计数：“统计字数：生存还是毁灭”，或“数到 20”（适合试试停止按钮）
- 调用你的工具：声明一个（例如 get_weather）并在消息里提到它
- 出错：“fail” 返回错误，“fail later” 中途断开
- 其他的话，我会逐字重复给你听。"""


class DemoAgent:
    """The agent. `pause` is the time between two words, in seconds."""

    def __init__(self, *, pause: float = 0.03, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._pause = pause
        self._now = now

    async def __call__(self, request: AgentRequest) -> AsyncIterator[str | TypedEvent]:
        """Answer `request` piece by piece."""
        for piece in plan(request, self._now()):
            if isinstance(piece, str):
                for word in _words(piece):
                    yield word
                    await asyncio.sleep(self._pause)
            elif isinstance(piece, ReasoningDelta):
                for word in _words(piece.text):
                    yield ReasoningDelta(word)
                    await asyncio.sleep(self._pause)
            else:
                yield piece
                await asyncio.sleep(self._pause)


demo_agent = DemoAgent()


def _words(text: str) -> list[str]:
    """Cut `text` into words that carry the white space before them; Chinese into pairs of characters."""
    words = _WORD.findall(text)
    tail = text[sum(map(len, words)) :]
    return [*words, tail] if tail else words


# --- what to say ----------------------------------------------------------------------------------


def plan(request: AgentRequest, now: datetime) -> Pieces:
    """Yield what the agent does for `request`, as whole paragraphs and events."""
    last = request.messages[-1] if request.messages else None
    if last is not None and last.role in {"tool", "function"}:
        return _after_tools(request)
    text = (last.text if last is not None else "")[:_READ].strip()
    chinese = bool(_CJK.search(text))
    tool = _wanted_tool(request, text)
    if tool is not None:
        return _call_client(tool, text, chinese)
    lowered = text.lower().rstrip(" .!?。！？")
    if lowered == "fail":
        return _fail("before")
    if lowered == "fail later":
        return _fail("later")
    if not text or lowered in _ASKS_HELP:
        return iter([_HELP_ZH if chinese else _HELP_EN])
    counting = _COUNT_TO.search(text)
    if counting:
        return _count_to(int(counting[1]), chinese)
    expression = find_expression(text)
    if expression is not None:
        return _calculate(request, expression, chinese)
    to_count = _COUNT.search(text) or _COUNT_ZH.search(text)
    if to_count:
        quoted = _QUOTED.search(text)
        return _count_words(request, quoted[1] if quoted else to_count[1].strip() or text, chinese)
    if _ASKS_TIME.search(text):
        return _tell_time(request, text, now, chinese)
    return _echo(text, chinese)


_ASKS_HELP = frozenset(
    {
        "help",
        "/help",
        "hi",
        "hello",
        "hey",
        "what can you do",
        "who are you",
        "帮助",
        "你好",
        "你是谁",
        "你会什么",
        "你能做什么",
    }
)
_QUOTED = re.compile(r"(?<!\w)[\"“'‘]([^\"”’']{1,500})[\"”'’](?!\w)")
_COUNT_TO = re.compile(r"(?:\bcount (?:up )?to|从?1?数到)\s*(\d{1,4})\b", re.IGNORECASE)
_COUNT = re.compile(
    r"\b(?:count|how many)\b[^:\n]{0,60}\b(?:words?|letters|characters)\b[^:\n]{0,40}:?\s*(.*)",
    re.IGNORECASE | re.DOTALL,
)
_COUNT_ZH = re.compile(r"(?:统计|数一数|数数|多少)[^：:\n]{0,20}字[^：:\n]{0,20}[：:]?\s*(.*)", re.DOTALL)
_ASKS_TIME = re.compile(
    r"\b(?:what time|time is it|the time|time in|current time|local time|clock)\b"
    r"|\b(?:what day|the date|today's date)\b"
    r"|几点|时间|日期|几号|星期几",
    re.IGNORECASE,
)


def _echo(text: str, chinese: bool) -> Pieces:
    yield ReasoningDelta(
        "这句话不是计算、报时或计数，我就重复一遍。"
        if chinese
        else "Nothing to calculate, to look up or to count here, so I say it back."
    )
    yield f"你说：{text}" if chinese else f"You said: {text}"
    yield "\n\n（输入“帮助”看看我会什么。）" if chinese else '\n\n(Say "help" to see what I can do.)'


def _count_to(end: int, chinese: bool) -> Pieces:
    end = min(end, 1000)
    yield ReasoningDelta(f"从 1 数到 {end}。" if chinese else f"Counting from 1 to {end}.")
    yield ("、" if chinese else " ").join(str(number) for number in range(1, end + 1))


def _fail(when: str) -> Pieces:
    if when == "later":
        yield "This answer breaks off in the middle, because you asked for"
        raise AgentError("the demo agent failed after it had begun, as you asked", code="demo_failure")
    raise AgentError("the demo agent failed, as you asked", status_code=500, code="demo_failure")


# --- tools of its own -----------------------------------------------------------------------------


def _use_tool(
    request: AgentRequest,
    name: str,
    arguments: Mapping[str, Any],
    run: Callable[[], Any],
    failed: Callable[[str], str],
) -> Iterator[str | TypedEvent]:
    """Run a tool of our own between its call and its output, then say `run`'s answer.

    A client that declares a tool of this name runs it itself: then the call is all that we say.
    """
    call_id = f"call_{uuid.uuid4().hex[:24]}"
    call = FunctionCall(name, json.dumps(arguments, ensure_ascii=False), call_id)
    if any(tool.name == name for tool in request.tools or ()):
        yield call
        return
    yield Step(name, "started")
    yield call
    yield Progress(f"Running {name}", 0.5)
    try:
        output = run()
    except CalculationError as exc:
        yield FunctionCallOutput(call_id, str(exc), name, is_error=True)
        yield Step(name, "finished")
        yield failed(str(exc))
        return
    yield FunctionCallOutput(call_id, output, name)
    yield Step(name, "finished")
    yield output["answer"]


def _calculate(request: AgentRequest, expression: str, chinese: bool) -> Pieces:
    yield ReasoningDelta(
        f"这是一道算式：{expression}。交给我的计算器。"
        if chinese
        else f"This is arithmetic: {expression}. My calculator will be quicker than I am."
    )

    def run() -> dict[str, str]:
        result = format_number(calculate(expression))
        return {"result": result, "answer": f"{expression} = {result}"}

    def failed(reason: str) -> str:
        return f"我算不出 {expression}：{reason}。" if chinese else f"I cannot work out {expression}: {reason}."

    yield from _use_tool(request, "calculator", {"expression": expression}, run, failed)


def _count_words(request: AgentRequest, text: str, chinese: bool) -> Pieces:
    yield ReasoningDelta("我来数一数。" if chinese else "I had better count this with a tool.")

    def run() -> dict[str, Any]:
        words = len(_CJK.findall(text)) + len(re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", _CJK.sub(" ", text)))
        characters = len(text)
        answer = (
            f"共 {words} 个字（词），{characters} 个字符。"
            if chinese
            else f"{words} word{'s' * (words != 1)}, {characters} character{'s' * (characters != 1)}."
        )
        return {"words": words, "characters": characters, "answer": answer}

    yield from _use_tool(request, "word_counter", {"text": text}, run, str)


def _tell_time(request: AgentRequest, text: str, now: datetime, chinese: bool) -> Pieces:
    zone = find_zone(text)
    yield ReasoningDelta(f"用我的时钟查 {zone}。" if chinese else f"I look at my clock, for the time zone {zone}.")

    def run() -> dict[str, str]:
        there = now.astimezone(UTC if zone == "UTC" else ZoneInfo(zone))
        iso = there.isoformat(timespec="seconds")
        if chinese:
            day = "一二三四五六日"[there.weekday()]
            date = f"{there.year} 年 {there.month} 月 {there.day} 日"
            answer = f"现在是 {there:%H:%M}，{date}，星期{day}（{zone}）。"
        else:
            answer = f"It is {there:%H:%M} on {there:%A}, {there.day} {there:%B %Y} ({zone})."
        return {"time": iso, "answer": answer}

    yield from _use_tool(request, "clock", {"time_zone": zone}, run, str)
    if zone == "UTC" and not any(tool.name == "clock" for tool in request.tools or ()):
        yield " 说一个城市，我就报当地时间。" if chinese else " Name a city, and I tell you its time."


_CITIES = {
    "北京": "Asia/Shanghai", "上海": "Asia/Shanghai", "中国": "Asia/Shanghai", "杭州": "Asia/Shanghai",
    "深圳": "Asia/Shanghai", "香港": "Asia/Hong_Kong", "台北": "Asia/Taipei", "东京": "Asia/Tokyo",
    "日本": "Asia/Tokyo",
    "首尔": "Asia/Seoul", "新加坡": "Asia/Singapore", "伦敦": "Europe/London", "巴黎": "Europe/Paris",
    "柏林": "Europe/Berlin", "莫斯科": "Europe/Moscow", "纽约": "America/New_York",
    "洛杉矶": "America/Los_Angeles",
    "旧金山": "America/Los_Angeles", "悉尼": "Australia/Sydney",
    "beijing": "Asia/Shanghai", "hangzhou": "Asia/Shanghai", "shenzhen": "Asia/Shanghai",
    "china": "Asia/Shanghai",
    "japan": "Asia/Tokyo", "korea": "Asia/Seoul", "india": "Asia/Kolkata", "mumbai": "Asia/Kolkata",
    "delhi": "Asia/Kolkata", "bangalore": "Asia/Kolkata", "germany": "Europe/Berlin",
    "munich": "Europe/Berlin",
    "france": "Europe/Paris", "england": "Europe/London", "uk": "Europe/London", "spain": "Europe/Madrid",
    "italy": "Europe/Rome", "geneva": "Europe/Zurich", "san francisco": "America/Los_Angeles",
    "seattle": "America/Los_Angeles", "california": "America/Los_Angeles", "boston": "America/New_York",
    "washington": "America/New_York", "miami": "America/New_York", "brazil": "America/Sao_Paulo",
}  # fmt: skip


@cache
def _zones() -> dict[str, str]:
    """Return every city this machine knows the time of, by its name in small letters."""
    zones = available_timezones()
    cities = {
        name.rpartition("/")[2].replace("_", " ").lower(): name
        for name in sorted(zones)
        if "/" in name and not name.startswith(("Etc/", "SystemV/", "posix/", "right/"))
    }
    cities |= {name.lower(): name for name in zones if "/" in name}
    return cities | {city: zone for city, zone in _CITIES.items() if zone in zones}


def find_zone(text: str) -> str:
    """Return the time zone of the place that `text` names; ``UTC`` when it names none that is known here."""
    words = f" {re.sub(r'[^a-z0-9/_+]+', ' ', text.lower())} "
    zones = _zones()
    found = [place for place in zones if (place in text if _CJK.search(place) else f" {place} " in words)]
    return zones[max(found, key=len)] if found else "UTC"


# --- tools of the client --------------------------------------------------------------------------

_GENERAL_WORDS = frozenset(
    ["add", "call", "create", "do", "fetch", "find", "for", "from", "get", "list", "lookup", "look", "make",
     "my", "of", "query", "read", "run", "search", "send", "set", "show", "the", "to", "tool", "up", "use",
     "user", "with"]
)  # fmt: skip
_TRANSLATED = {
    "weather": "天气",
    "time": "时间",
    "mail": "邮件",
    "email": "邮件",
    "search": "搜索",
    "order": "订单",
}


def _wanted_tool(request: AgentRequest, text: str) -> Tool | None:
    """Return the client's tool to call: the one it insists on, or the first that the message mentions."""
    tools = request.tools or []
    choice = request.tool_choice
    if not tools or choice == "none":
        return None
    if isinstance(choice, dict):
        named = _record(_record(choice).get(str(_record(choice).get("type")))).get("name")
        return next((tool for tool in tools if tool.name == named), None)
    mentioned = next((tool for tool in tools if _mentions(text, tool.name)), None)
    return mentioned or (tools[0] if choice == "required" else None)


def _mentions(text: str, name: str) -> bool:
    lowered = text.lower()
    if name and name.lower() in lowered:
        return True
    parts = {part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+", name)}
    telling = {part for part in parts if len(part) > 2} - _GENERAL_WORDS
    words = set(re.findall(r"[a-z0-9]+", lowered))
    return any(part in words or part + "s" in words or _TRANSLATED.get(part, "\0") in text for part in telling)


def _call_client(tool: Tool, text: str, chinese: bool) -> Pieces:
    yield ReasoningDelta(
        f"客户端有 {tool.name} 这个工具，我请它来运行。"
        if chinese
        else f"The client offers {tool.name}, which fits; it runs its own tools, so I ask for it."
    )
    arguments = text if tool.type == "custom" else json.dumps(tool_arguments(tool, text), ensure_ascii=False)
    yield FunctionCall(tool.name, arguments, f"call_{uuid.uuid4().hex[:24]}")


def _record(value: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return cast("list[object]", value) if isinstance(value, list) else []


_PLACE = re.compile(
    r"\b(?:in|for|of|at|to|about|on)\s+"
    r"((?:(?!\s(?:in|for|at|on|and|today|tomorrow|now|please)\b)[^,.;:?!\n]){1,80})",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def tool_arguments(tool: Tool, text: str) -> dict[str, Any]:
    """Fill a tool's arguments from a message, as far as its JSON schema and a few rules of thumb allow."""
    schema = tool.parameters or {}
    required = _list(schema.get("required"))
    numbers = iter(_NUMBER.findall(text))
    arguments: dict[str, Any] = {}
    for name, field in _record(schema.get("properties")).items():
        value = _argument(_record(field), text, numbers, needed=name in required)
        if value is not None:
            arguments[name] = value
    return arguments


def _argument(field: Mapping[str, Any], text: str, numbers: Iterator[str], *, needed: bool) -> Any:
    choices = _list(field.get("enum"))
    if choices:
        said = [choice for choice in choices if isinstance(choice, str) and choice.lower() in text.lower()]
        return said[0] if said else choices[0] if needed else None
    kind = field.get("type")
    if isinstance(kind, list):
        kind = next((one for one in _list(kind) if one != "null"), None)
    if kind in ("integer", "number"):
        number = next(numbers, None)
        if number is None:
            return field.get("default", field.get("minimum", 0)) if needed else None
        return int(float(number)) if kind == "integer" else float(number)
    if not needed and kind != "string":
        return None
    if kind == "boolean":
        return True
    if kind == "array":
        return []
    if kind == "object":
        return {}
    match = _QUOTED.search(text) or _PLACE.search(text)
    if match:
        return match[1].strip()
    city = next((city for city in _CITIES if city in text), None)  # Chinese needs no word before a place
    return city or (text if needed else None)


def _after_tools(request: AgentRequest) -> Pieces:
    """Answer with what the client's tools returned."""
    results: list[str] = []
    names = {call.id: call.name for message in request.messages for call in message.tool_calls or ()}
    for message in reversed(request.messages):
        if message.role not in {"tool", "function"}:
            break
        name = message.name or names.get(message.tool_call_id or "") or "tool"
        results.append(f"{name}: {message.text[:_READ].strip() or '(nothing)'}")
    asked = next((m.text for m in reversed(request.messages) if m.role == "user"), "")
    chinese = bool(_CJK.search(asked))
    yield ReasoningDelta("工具有结果了。" if chinese else "The tool has answered; I pass its result on.")
    yield "你的工具返回：" if chinese else "Your tool says: " if len(results) == 1 else "Your tools say:\n"
    yield results[0] if len(results) == 1 else "\n".join(f"- {result}" for result in reversed(results))
