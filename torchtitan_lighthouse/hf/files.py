"""JSON of a folder, with words for what cannot be read."""

import json
from pathlib import Path
from typing import Any

from torchtitan_lighthouse.refusal import RefusalError


def read_object(file: Path) -> dict[str, Any]:
    """Read the JSON object in ``file``.

    Raises:
        RefusalError: there is no such file, or it holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RefusalError(f"{file} is missing") from None
    except (OSError, ValueError) as error:
        raise RefusalError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise RefusalError(f"{file} holds no JSON object")
    return content
