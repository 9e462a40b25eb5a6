"""Tables for a terminal that Markdown reads too."""

from collections.abc import Sequence


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Write rows as a table; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    heading, *body = (
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    )
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([heading, rule, *body]) + "\n"
