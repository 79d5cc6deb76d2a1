"""A calculator for text that strangers write: numbers, operators and a few functions, and nothing else.

The text is parsed by Python's own parser into a tree, and the tree is walked here; nothing is ever
evaluated by Python. Every size is bounded, so that ``9**9**9`` is an answer ("too large") and not a minute
of work.
"""

# ruff: noqa: RUF001 - people type these characters

import ast
import math
import operator
import re
from collections.abc import Callable
from typing import Any

__all__ = ["CalculationError", "calculate", "find_expression", "format_number"]

Number = int | float

_MAX_TEXT = 200
_MAX_BITS = 2000
"""Largest whole number: about 600 digits, well below what Python takes long to print."""

_MAX_DIGITS = 300

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda a, b: a / b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Mod: operator.mod,
}


def _round(value: Number, digits: Number = 0) -> Number:
    if not -_MAX_DIGITS <= digits <= _MAX_DIGITS:  # ``round(5, -99999999)`` would work out 10**99999999
        raise CalculationError(f"I round to at most {_MAX_DIGITS} digits")
    return round(value, int(digits)) if digits else round(value)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs, "ceil": math.ceil, "cos": math.cos, "exp": math.exp, "floor": math.floor, "ln": math.log,
    "log": math.log10, "log2": math.log2, "max": max, "min": min, "round": _round, "sin": math.sin,
    "sqrt": math.sqrt, "tan": math.tan,
}  # fmt: skip
_CONSTANTS = {"pi": math.pi, "π": math.pi, "e": math.e, "tau": math.tau}


class CalculationError(ValueError):
    """The expression has no answer here; the message can be shown."""


def calculate(text: str) -> Number:
    """Return the value of the arithmetic expression `text`.

    Raises:
        CalculationError: it is no such expression, or its value is undefined or too large.
    """
    expression = _normalised(text)
    if len(expression) > _MAX_TEXT:
        raise CalculationError("the expression is too long")
    try:
        tree = ast.parse(expression, mode="eval")
        value = _value(tree.body)
    except (SyntaxError, RecursionError, MemoryError) as exc:
        raise CalculationError("this is not an expression I understand") from exc
    except ZeroDivisionError as exc:
        raise CalculationError("division by zero has no answer") from exc
    except OverflowError as exc:
        raise CalculationError("the result is too large") from exc
    except (ValueError, TypeError) as exc:
        if isinstance(exc, CalculationError):
            raise
        raise CalculationError("this has no answer among the real numbers") from exc
    return _bounded(value)


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=bool()):
            raise CalculationError("only numbers can be calculated with")
        case ast.Constant(value=int() | float() as number):
            return _bounded(number)
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_value(left), _value(right))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _bounded(_OPERATORS[type(op)](_value(left), _value(right)))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS and args:
            return _bounded(_FUNCTIONS[name](*[_value(arg) for arg in args]))
        case _:
            pass
    raise CalculationError("only numbers, + - * / // % **, brackets and a few functions can be calculated with")


def _power(base: Number, exponent: Number) -> Number:
    whole = isinstance(base, int) and isinstance(exponent, int)
    # Judged before it is worked out: the bits of the result are those of the base, times the exponent.
    if whole and abs(base) > 1 and int(base).bit_length() * abs(exponent) > _MAX_BITS:
        raise CalculationError("the result is too large")
    result: Any = base**exponent
    if isinstance(result, complex):
        raise CalculationError("this has no answer among the real numbers")
    return _bounded(result)


def _bounded(value: Any) -> Number:
    if isinstance(value, int):
        if value.bit_length() > _MAX_BITS:
            raise CalculationError("the result is too large")
        return value
    if not isinstance(value, float) or not math.isfinite(value):
        raise CalculationError("the result is too large")
    return value


def format_number(value: Number) -> str:
    """Write a number the way people do: ``0.3`` for ``0.1 + 0.2``, ``4`` for ``4.0``."""
    if isinstance(value, float):
        rounded = float(f"{value:.12g}")
        return str(int(rounded)) if rounded.is_integer() and abs(rounded) < 1e15 else f"{value:.12g}"
    return str(value)


# --- finding it in a sentence ---------------------------------------------------------------------

_WORDS = (
    (re.compile(r"\b(?:multiplied by|times)\b", re.IGNORECASE), "*"),
    (re.compile(r"\b(?:divided by|over)\b", re.IGNORECASE), "/"),
    (re.compile(r"\bplus\b", re.IGNORECASE), "+"),
    (re.compile(r"\bminus\b", re.IGNORECASE), "-"),
    (re.compile(r"\bmod(?:ulo)?\b", re.IGNORECASE), "%"),
    (re.compile(r"\b(?:to the power of)\b", re.IGNORECASE), "**"),
    (re.compile(r"\bsquare root of\s*(\d+(?:\.\d+)?)", re.IGNORECASE), r"sqrt(\1)"),
    (re.compile(r"(\d+(?:\.\d+)?)\s*(?:%|percent)\s*of\s*(?=[\d(])", re.IGNORECASE), r"\1/100*"),
    (re.compile(r"乘以|乘"), "*"),
    (re.compile(r"除以"), "/"),
    (re.compile(r"加上|加"), "+"),
    (re.compile(r"减去|减"), "-"),
)
_SYMBOLS = str.maketrans({
    "×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "（": "(", "）": ")", "，": ",",
    "＋": "+", "－": "-", "＊": "*", "／": "/",
})  # fmt: skip
_GROUPED = re.compile(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?![\d])")
_X_AS_TIMES = re.compile(r"(?<=\d)\s*[xX]\s*(?=\d)")
_TOKEN = re.compile(
    r"\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|\.\d+|\*\*|//|[-+*/%()^,]|\b(?:" + "|".join([*_FUNCTIONS, "pi", "tau"]) + r")\b|π"
)
_SIGNS = frozenset("+-")
_BEFORE_SIGN = frozenset({"(", ",", "+", "-", "*", "/", "%", "**", "//", "^"})
_OPERATOR = re.compile(r"[-+*/%^]|\*\*|//")


def _normalised(text: str) -> str:
    return text.replace("^", "**").strip()


def find_expression(text: str) -> str | None:
    """Return the longest calculation in a sentence, or None: numbers with an operator or a function."""
    text = text.translate(_SYMBOLS)
    for pattern, replacement in _WORDS:
        text = pattern.sub(replacement, text)
    text = _GROUPED.sub(lambda match: match[0].replace(",", ""), text)
    text = _X_AS_TIMES.sub("*", text)
    candidates = [candidate for run in _runs(text) if (candidate := _trimmed(run)) is not None]
    return max(candidates, key=len, default=None)


def _runs(text: str) -> list[list[str]]:
    """Split `text` into runs of arithmetic tokens with nothing but white space between them."""
    runs: list[list[str]] = [[]]
    end = 0
    for match in _TOKEN.finditer(text):
        if text[end : match.start()].strip():
            runs.append([])
        runs[-1].append(match[0])
        end = match.end()
    return [run for run in runs if run]


def _trimmed(tokens: list[str]) -> str | None:
    """Drop what belongs to the sentence at both ends; None when what is left is no calculation."""
    while tokens and tokens[-1] in {"+", "-", "*", "/", "%", "**", "//", "^", ",", "("}:
        tokens = tokens[:-1]
    while tokens and tokens[0] in {"*", "/", "%", "**", "//", "^", ",", ")"}:
        tokens = tokens[1:]
    while tokens and tokens.count("(") < tokens.count(")") and tokens[-1] == ")":
        tokens = tokens[:-1]
    while tokens and tokens.count("(") > tokens.count(")") and tokens[0] == "(":
        tokens = tokens[1:]
    inner = tokens[1:] if tokens and tokens[0] in "+-" else tokens  # a sign alone is no calculation: "-5 degrees"
    worth = any(token in _FUNCTIONS or _OPERATOR.fullmatch(token) for token in inner)
    if not worth or not any(token[0].isdigit() or token in {"pi", "π", "tau"} for token in tokens):
        return None
    if _is_date(tokens):
        return None
    return _joined(tokens)


def _is_date(tokens: list[str]) -> bool:
    """``2026-11-22`` is a day, and nobody's subtraction."""
    return len(tokens) == 5 and tokens[1] == tokens[3] == "-" and len(tokens[0]) == 4 and len(tokens[4]) == 2


def _joined(tokens: list[str]) -> str:
    """Write the tokens with a space around each operator that has something on both sides."""
    text = ""
    for position, symbol in enumerate(tokens):
        before = tokens[position - 1] if position else "("
        signed = before in _SIGNS and (position < 2 or tokens[position - 2] in _BEFORE_SIGN)
        tight = signed or before == "(" or symbol in {")", ","} or (symbol == "(" and before in _FUNCTIONS)
        text += symbol if tight else " " + symbol
    return text
