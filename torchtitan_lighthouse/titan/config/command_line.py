"""Refuses, in one message, a command line or a TOML file that cannot be read."""

import contextlib
import difflib
import io
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any
from unittest import mock

from torchtitan.config import manager

from torchtitan_lighthouse.refusal import RefusalError

LAUNCH = (
    "torchrun --standalone --nproc-per-node 1 -m torchtitan_lighthouse.train "
    "--job.config_file CONFIG.toml"
)
"""A command that trains, on one GPU or a CPU."""

_RULE = re.compile(r"^\s*-+\s*$", re.MULTILINE)


@contextlib.contextmanager
def refusing_unreadable_jobs(*, helps: bool) -> Iterator[None]:
    """Turn what torchtitan 0.2.2 prints, logs and raises of a bad job into one RefusalError.

    It prints a page of advice for an option that it does not know, and logs a traceback for a file
    that is not there.

    Args:
        helps: whether the help is asked for, which is printed.
    """
    printed = io.StringIO()
    # Where stdout takes boxes and colours, tyro draws them in the page of advice, too.
    out = sys.stdout if helps else io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(printed),
            mock.patch.object(manager.logger, "exception"),
        ):
            yield
    except SystemExit as end:
        if end.code:
            raise RefusalError(_message(printed.getvalue())) from None
        raise
    except tomllib.TOMLDecodeError as error:
        raise RefusalError(f"job.config_file is not TOML: {error}") from None
    except BrokenPipeError:  # the help's reader has seen enough
        raise SystemExit(1) from None
    except OSError as error:
        file = str(error.filename)
        looked = "" if os.path.isabs(file) else f" (looked in {os.getcwd()})"
        raise RefusalError(
            f"job.config_file = {file!r} cannot be read: {error.strerror}{looked}"
        ) from None


def named_field(argument: str) -> str | None:
    """Return the field that an argument names, ``--job.config-file=FILE`` too; None of a value."""
    if not argument.startswith("--"):
        return None
    return argument.removeprefix("--").partition("=")[0].replace("-", "_")


def refuse_a_second_file(args: list[str]) -> None:
    """Refuse a command line that names more than one TOML file: torchtitan 0.2.2 reads the first.

    Raises:
        RefusalError: names the files.
    """
    given = [
        arg.partition("=")[2] if "=" in arg else " ".join(args[i + 1 : i + 2])
        for i, arg in enumerate(args)
        if named_field(arg) == "job.config_file"
    ]
    if len(given) > 1:
        raise RefusalError(f"job.config_file is given {len(given)} times, {given}: give one file")


def refuse_unknown_fields(config_class: type, sections: dict[str, Any], prefix: str = "") -> None:
    """Refuse sections and fields that a job does not have.

    Raises:
        RefusalError: names those that are nearest.
    """
    known: dict[str, Any] = {f.name: f.type for f in fields(config_class)}
    kind = "field" if prefix else "section"
    for name, value in sections.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=2)
            hint = f": did you mean {' or '.join(prefix + n for n in near)}?" if near else ""
            raise RefusalError(f"there is no {kind} {prefix}{name}{hint}")
        if is_dataclass(known[name]):
            if not isinstance(value, dict):
                raise RefusalError(f"{prefix}{name} = {value!r} must be a section of fields")
            refuse_unknown_fields(known[name], value, f"{prefix}{name}.")


def _message(page: str) -> str:
    """Take tyro's sentence and the options it proposes out of the page that it prints."""
    parts = _RULE.split(page)
    if len(parts) < 2:
        return " ".join(page.split())
    message = " ".join(parts[1].split())
    near = re.findall(r"^ +(--[\w.-]+)", parts[2], re.MULTILINE) if len(parts) > 2 else []
    if near and "Perhaps you meant" in parts[2]:
        message += f"; perhaps {' or '.join(dict.fromkeys(near))}"
    return message
