"""What a file may be that its name does not say: data that would be read without an error, and wrongly."""

from __future__ import annotations

import json


def holds_json(text: str) -> bool:
    """Whether the text is JSON lines, or one JSON object or list of them.

    >>> holds_json('{"text": "fine", "label": 1}'), holds_json("[1] a citation"), holds_json("{ O")
    (True, False, False)
    """
    first_line = text.lstrip().partition("\n")[0]
    if first_line[:1] not in ("{", "["):
        return False
    for part in (first_line, text):
        try:
            value = json.loads(part)
        except (ValueError, RecursionError):
            continue
        return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(i, dict | list) for i in value))
    return False
