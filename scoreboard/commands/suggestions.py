"""What somebody may have meant who wrote a name that there is not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"``, or nothing where no name is near; an id is known by its end
    too.
    """
    names = list(known)
    ends = {name.lower(): name for name in names}
    ends |= {name.rsplit("/", 1)[-1].lower(): name for name in names}
    near = difflib.get_close_matches(given.lower(), ends, 1, 0.6)
    return f"; did you mean {ends[near[0]]!r}?" if near else ""
