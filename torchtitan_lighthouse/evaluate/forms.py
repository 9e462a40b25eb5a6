"""The forms of the retrieval test: one digit, and those of RULER (see ``needles``)."""

from dataclasses import dataclass

PASSKEY = "passkey"
"""One digit, the form of ``niah``."""


@dataclass(frozen=True)
class Form:
    """How many keys a prompt has, and what is around them."""

    keys: int
    """Needles with other keys than the one that is asked for, and itself; 0: as many as fit."""

    like: str
    """RULER's task of this form."""


FORMS = {
    "single": Form(1, "niah_single_1"),
    "multikey": Form(4, "niah_multikey_1"),
    "needles": Form(0, "niah_multikey_2"),
}
