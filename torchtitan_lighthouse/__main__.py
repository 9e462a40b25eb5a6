"""``python -m torchtitan_lighthouse TOOL …``: the tools beside the trainer."""

import ast
import importlib
import importlib.util
import os
import sys
from typing import NoReturn

from torchtitan_lighthouse.refusal import RefusalError, disk_is_full

TOOLS = (
    *("configs", "plot", "compare", "memory", "niah", "export"),
    *("experiment", "benchmark", "paper"),
)

# Paths that are not what a tool needs there.
_PATHS = (
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)

# What a tool may lack, by its module, and the extra of this package that brings it.
_EXTRAS = {"matplotlib": "plot", "wandb": "wandb", "transformers": "hf", "fla": "gla"}


def main() -> None:
    """Run the tool that the command line names.

    Raises:
        SystemExit: with status 2 and one line, if the tool refuses its arguments or their files, or
            lacks a package.
    """
    name, *args = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return
    if name not in TOOLS:
        _refuse("", f"there is no tool {name!r}: use one of {', '.join(TOOLS)}")
    sys.argv[0] = f"torchtitan_lighthouse {name}"  # for the tool's own usage
    try:
        importlib.import_module(_module(name)).main(args)
        sys.stdout.flush()
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in _EXTRAS:
            raise
        extra = f"pip install 'torchtitan-lighthouse[{_EXTRAS[missing]}]'"
        _refuse(name, f"{missing} is not installed: {extra}, or in a clone .[{_EXTRAS[missing]}]")
    except RefusalError as error:
        _refuse(name, str(error))
    except BrokenPipeError:  # the output's reader has seen enough, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        sys.exit(1)
    except _PATHS as error:
        where = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        _refuse(name, where)
    except Exception as error:
        if not disk_is_full(error):
            raise
        _refuse(name, "the disk is full, so its last file is not whole: free some and run it again")


def usage() -> str:
    """List the tools, each with the first line of its docstring."""
    width = max(map(len, TOOLS))
    lines = [f"  {name:{width}}  {_first_line(name)}" for name in TOOLS]
    head = "usage: python -m torchtitan_lighthouse TOOL [-h] ...\n\ntools:"
    train = "Training: torchrun --nproc-per-node N -m torchtitan_lighthouse.train -h"
    return "\n".join([head, *lines, "", train])


def _first_line(name: str) -> str:
    """Return a tool's first line, read from its source: importing all tools takes long."""
    source = importlib.util.find_spec(_module(name)).loader.get_source(_module(name))  # type: ignore[union-attr]
    return (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]


def _module(name: str) -> str:
    return f"torchtitan_lighthouse.tools.{name}"


def _refuse(name: str, reason: str) -> NoReturn:
    print(f"torchtitan_lighthouse {name}".rstrip() + f": {reason}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
