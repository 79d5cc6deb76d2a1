"""Reads a Dockerfile, exactly as far as ours go; anything else is refused rather than guessed.

The rules are those of the Dockerfile reference: comments and continuation lines, flags, exec form and shell form,
variables with the scope they have, and which instructions they are replaced in. Not read: heredocs, parser
directives, single quotes, ``ONBUILD``, ``ADD``. `DockerIgnore` is the companion: which files of a folder a build sees.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

__all__ = [
    "DockerIgnore",
    "DockerfileError",
    "Instruction",
    "Stage",
    "declared_argument",
    "expand",
    "pairs",
    "parse_dockerfile",
    "split_stages",
    "words",
]

KNOWN = frozenset(
    ["ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "RUN", "STOPSIGNAL", "USER",
     "VOLUME", "WORKDIR"]
)  # fmt: skip
_FLAG = re.compile(r"--([a-z][a-z-]*)(?:=(\S*))?\s+")
_WORD = re.compile(r'(?:[^\s"]|"[^"]*")+')
_VARIABLE = re.compile(r"\\.|\$(?:(?P<plain>\w+)|\{(?P<name>\w+)(?::-(?P<default>[^${}]*))?\}|(?P<other>.?))")


class DockerfileError(ValueError):
    """The file has something that is not understood here, or that is wrong."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction. `flags` are pairs, since ``--mount`` may come many times; `text` is the rest, as written."""

    line: int
    name: str
    flags: tuple[tuple[str, str], ...]
    text: str

    @property
    def exec_form(self) -> list[str] | None:
        """The words of a command in exec form, ``["a", "b"]``; None for one that a shell would read."""
        if not self.text.startswith("["):
            return None
        try:
            words = json.loads(self.text)
        except ValueError as exc:  # Docker would hand it to a shell, which nobody means
            raise DockerfileError(f"line {self.line}: begins like an exec form and is no JSON: {exc}") from None
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise DockerfileError(f"line {self.line}: an exec form is a list of strings")
        return words

    def flag(self, name: str) -> str | None:
        """Return the value of a flag that comes at most once."""
        values = [value for key, value in self.flags if key == name]
        if len(values) > 1:
            raise DockerfileError(f"line {self.line}: --{name} comes {len(values)} times")
        return values[0] if values else None


@dataclass(frozen=True, slots=True)
class Stage:
    """What stands between one ``FROM`` and the next. `base` is an image, or the name of a stage before it."""

    name: str
    base: str
    instructions: tuple[Instruction, ...]


def parse_dockerfile(text: str) -> list[Instruction]:
    """Return the instructions of a Dockerfile, in order."""
    return [_instruction(line, logical) for line, logical in _logical_lines(text)]


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    start, parts = 0, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("#"):
            if number == 1 and re.match(r"#\s*(syntax|escape|check)\s*=", stripped):
                raise DockerfileError("line 1: parser directives are not read")
            continue  # also between the lines of one instruction
        if not stripped:
            if parts:
                raise DockerfileError(f"line {number}: an empty line inside an instruction")
            continue
        start = start or number
        if stripped.endswith("\\"):
            parts.append(line.rstrip()[:-1])
            continue
        yield start, "".join([*parts, line]).strip()
        start, parts = 0, []
    if parts:
        raise DockerfileError(f"line {start}: the file ends inside an instruction")


def _instruction(line: int, logical: str) -> Instruction:
    name, _, text = logical.partition(" ")
    if name not in KNOWN:
        raise DockerfileError(f"line {line}: {name} is not read")
    text = text.strip()
    flags = []
    while (found := _FLAG.match(text)) and name in {"COPY", "FROM", "HEALTHCHECK", "RUN"}:
        flags.append((found[1], found[2] or ""))
        text = text[found.end() :]
    if "<<" in text:
        raise DockerfileError(f"line {line}: heredocs are not read")
    return Instruction(line, name, tuple(flags), text)


def split_stages(
    instructions: Sequence[Instruction], build_args: Mapping[str, str]
) -> tuple[dict[str, str], list[Stage]]:
    """Return the global build arguments, and the stages."""
    arguments: dict[str, str] = {}
    rest = list(instructions)
    while rest and rest[0].name == "ARG":
        name, value = declared_argument(rest.pop(0), arguments, build_args, {})
        if value is not None:
            arguments[name] = value
    stages: list[Stage] = []
    for instruction in rest:
        if instruction.name == "FROM":
            words = expand(instruction.text, arguments).split()
            if len(words) not in (1, 3) or (len(words) == 3 and words[1].upper() != "AS"):
                raise DockerfileError(f"line {instruction.line}: expected FROM image [AS name]")
            stages.append(Stage(words[2] if len(words) == 3 else str(len(stages)), words[0], ()))
        elif not stages:
            raise DockerfileError(f"line {instruction.line}: {instruction.name} before the first FROM")
        else:
            last = stages[-1]
            stages[-1] = Stage(last.name, last.base, (*last.instructions, instruction))
    return arguments, stages


def declared_argument(
    instruction: Instruction, variables: Mapping[str, str], build_args: Mapping[str, str], outer: Mapping[str, str]
) -> tuple[str, str | None]:
    """Return the name and value that an ``ARG`` declares: what the build is given, else its default, else `outer`'s."""
    name, equals, default = instruction.text.partition("=")
    if name in build_args:
        return name, build_args[name]
    return name, expand(default, variables) if equals else outer.get(name)


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replace ``$NAME``, ``${NAME}`` and ``${NAME:-default}``; a variable that is not set is empty."""

    def value(found: re.Match[str]) -> str:
        name = found["plain"] or found["name"]
        if name is None:
            raise DockerfileError(f"{found[0]!r} is not read in {text!r}")
        return variables.get(name) or found["default"] or ""

    return _VARIABLE.sub(value, text)


def words(text: str, variables: Mapping[str, str]) -> list[str]:
    """Return the words of `text` with their variables replaced and their double quotes taken off."""
    if "'" in text or text.count('"') % 2:
        raise DockerfileError(f"these quotes are not read: {text!r}")
    return [expand(word, variables).replace('"', "") for word in _WORD.findall(text)]


def pairs(text: str, variables: Mapping[str, str]) -> dict[str, str]:
    """Return the ``name=value`` pairs of an ``ENV`` or ``LABEL``; all see the variables from before the instruction."""
    found: dict[str, str] = {}
    for word in words(text, variables):
        name, equals, value = word.partition("=")
        if not equals:
            raise DockerfileError(f"expected name=value: {word!r}")
        found[name] = value
    return found


class DockerIgnore:
    """Which files of a folder a build sees: the last pattern that matches a path, or a folder it lies in, decides."""

    def __init__(self, text: str) -> None:
        lines = (line.strip() for line in text.splitlines())
        patterns = [line for line in lines if line and not line.startswith("#")]
        self._rules = [(not pattern.startswith("!"), _pattern(pattern.removeprefix("!"))) for pattern in patterns]

    def excludes(self, path: PurePosixPath) -> bool:
        """Tell whether the build does not see the file `path`, which is relative to the folder."""
        around = [str(part) for part in (path, *path.parents) if str(part) != "."]
        excluded = False
        for excludes, pattern in self._rules:
            if any(pattern.fullmatch(part) for part in around):
                excluded = excludes
        return excluded


def _pattern(pattern: str) -> re.Pattern[str]:
    """Translate a pattern: ``*`` and ``?`` stay within a name, ``**/`` stands for any folders."""
    if re.search(r"[\[\]\\]", pattern):
        raise DockerfileError(f"not read: {pattern!r}")
    pieces = re.split(r"(\*\*/|\*\*|\*|\?)", str(PurePosixPath(pattern.lstrip("/"))))
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(meaning.get(piece, re.escape(piece)) for piece in pieces))
