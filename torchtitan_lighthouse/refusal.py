"""What this package says when it will not go on: the field, its value, the rule and what works."""

import errno
import math
from collections.abc import Iterable


class RefusalError(ValueError):
    """A job, a file or an argument that this package refuses; the message says what would work.

    The package raises it, and nothing else, for what a user can mend. Tools end with its message
    alone, for a traceback would tell the user nothing more.
    """


def refusal(field: str, value: object, rule: str, *working: object) -> RefusalError:
    """The error of one field: ``FIELD=VALUE RULE; use A or B``.

    Args:
        rule: what the value must be, or does that it should not.
        working: values that would work, if there are any to name.
    """
    message = f"{field}={value} {rule}"
    if working:
        message += f"; use {' or '.join(map(str, working))}"
    return RefusalError(message)


def neighbours(value: int, candidates: Iterable[int]) -> list[int]:
    """The largest candidate below ``value`` and the smallest above it, where there are such."""
    candidates = sorted(candidates)
    below = [c for c in candidates if c < value][-1:]
    above = [c for c in candidates if c > value][:1]
    return below + above


def multiples(value: int, unit: int, at_least: int = 1) -> list[int]:
    """The multiples of ``unit`` on either side of ``value``, none below ``at_least``."""
    smallest = math.ceil(max(at_least, 1) / unit) * unit
    below = value // unit * unit
    return sorted({max(below, smallest), max(below + unit, smallest)})


_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_BY_WORDS = (
    "failed writing file",  # torch.save's own writer: "… data/0: file write failed"
    "No space left on device",  # safetensors
)


def disk_is_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error: of Python, torch or safetensors."""
    if error is None:
        return False
    if isinstance(error, OSError):
        full = error.errno in _FULL
    else:
        full = any(words in str(error) for words in _FULL_BY_WORDS)
    return full or disk_is_full(error.__cause__ or error.__context__)
