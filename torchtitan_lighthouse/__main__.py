"""``python -m torchtitan_lighthouse TOOL …``: the tools beside the trainer."""

import importlib
import sys

TOOLS = (
    *("plot", "compare", "memory", "niah", "export"),
    *("experiment", "benchmark", "recoverability", "ablate", "paper"),
)


def main() -> None:
    """Run the tool that the command line names."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in TOOLS:
        sys.exit(f"usage: python -m torchtitan_lighthouse TOOL …, one of {', '.join(TOOLS)}")
    importlib.import_module(f"torchtitan_lighthouse.tools.{name}").main(sys.argv[2:])


if __name__ == "__main__":
    main()
