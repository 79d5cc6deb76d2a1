"""How property tests run: always the same examples in CI, new ones at home, and a bounded number of both.

Import this module before `hypothesis.given` is used: settings are read when a test is defined.
"""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

__all__ = ["EXAMPLES", "any_text", "json_objects", "json_values"]

EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "100"))
"""Examples of one property. Set the variable to some thousands to search for longer."""

settings.register_profile(
    "tests",
    deadline=None,  # the machine may be busy
    max_examples=EXAMPLES,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("tests")

_TROUBLE = [
    "\r\n", "\r", "\n\n", "\x00", "\x0b", "\x1b[2J", "\x7f", "\x85", "\u2028", "\u2029", "\ufeff", "\uffff",
    "\ud800", "\udfff", "\ud83d", "\ude00", "😀", "e\u0301", "中文", "data: [DONE]\n\n", ": x", '"', "\\", "</p>",
]  # fmt: skip
"""What has broken some reader of streams."""

any_text: st.SearchStrategy[str] = st.one_of(
    st.text(max_size=12),
    st.text(st.characters(min_codepoint=0, max_codepoint=0x10FFFF, exclude_categories=()), max_size=8),
    st.lists(st.sampled_from(_TROUBLE), max_size=4).map("".join),
)
"""Any text: all of Unicode, halves of surrogate pairs, line ends of every kind, what looks like an event."""

json_values: st.SearchStrategy[object] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), any_text),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(any_text, inner, max_size=3),
    ),
    max_leaves=6,
)
"""Whatever JSON can hold, and NaN and the infinities, which it cannot."""

json_objects: st.SearchStrategy[dict[str, object]] = st.dictionaries(any_text, json_values, max_size=4)
