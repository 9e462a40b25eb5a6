"""Draw the picture of the method in the README, docs/method.svg, from a real selection.

python scripts/draw_method.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Patch, Rectangle

from torchtitan_lighthouse import LighthouseConfig, Selection, select
from torchtitan_lighthouse.attention.selection import entries_in_order

SEQ_LEN = 32
CONFIG = LighthouseConfig(levels=3, pooling_factor=2, topk=4, tile=2)
COLOURS = {"gathered": "#4c86c6", "expanded": "#f0a640", "not gathered": "#eeeeee"}
GAP = 0.06

Slots = dict[tuple[int, int], int]  # (level, index) of a gathered entry to its place


def main() -> None:
    torch.manual_seed(3)
    selection = select(*torch.rand(2, 1, 1, SEQ_LEN), CONFIG)
    plt.rcParams.update({"svg.hashsalt": "", "font.size": 9})
    figure, (pyramid, sequence) = plt.subplots(
        2, 1, figsize=(11, 3.6), height_ratios=[3, 1.1], layout="constrained"
    )
    slots = slots_of(selection)
    draw_pyramid(pyramid, slots)
    draw_sequence(sequence, slots)
    figure.legend(
        handles=[Patch(color=c, label=n) for n, c in COLOURS.items()],
        loc="outside lower center",
        ncols=3,
        frameon=False,
    )
    out = Path(__file__).parents[1] / "docs" / "method.svg"
    out.parent.mkdir(exist_ok=True)
    figure.savefig(out, metadata={"Date": None})
    print(out)


def draw_pyramid(axis: plt.Axes, slots: Slots) -> None:
    for level in range(CONFIG.levels):
        window = CONFIG.pooling_factor**level
        for index in range(SEQ_LEN // window):
            slot = slots.get((level, index))
            box(axis, index * window, level, window, colour(slots, level, index), slot)
    axis.set(xlim=(0, SEQ_LEN), ylim=(-0.05, CONFIG.levels), xticks=[])
    means = [f"means of {CONFIG.pooling_factor**level}" for level in range(1, CONFIG.levels)]
    axis.set_yticks([level + 0.5 for level in range(CONFIG.levels)], ["tokens", *means])
    axis.set_title("The pyramid of q, k and v; numbers are places in the sub-sequence", loc="left")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def draw_sequence(axis: plt.Axes, slots: Slots) -> None:
    length = CONFIG.sub_sequence_length(SEQ_LEN)
    for (level, index), slot in slots.items():
        box(axis, slot, 0, 1, colour(slots, level, index), slot)
    axis.set(xlim=(0, length), ylim=(-0.05, 1), yticks=[], xticks=[])
    axis.set_title(
        f"The sub-sequence of S = {length}: children before their parent, attended to causally",
        loc="left",
    )
    axis.spines[:].set_visible(False)


def box(axis: plt.Axes, x: float, y: float, width: float, fill: str, slot: int | None) -> None:
    axis.add_patch(Rectangle((x + GAP, y + GAP), width - 2 * GAP, 1 - 2 * GAP, color=fill))
    if slot is not None:
        axis.text(x + width / 2, y + 0.5, str(slot), ha="center", va="center", fontsize=7)


def slots_of(selection: Selection) -> Slots:
    level, index = entries_in_order(selection, CONFIG, SEQ_LEN)
    pairs = zip(level.flatten().tolist(), index.flatten().tolist(), strict=True)
    return {pair: slot for slot, pair in enumerate(pairs)}


def colour(slots: Slots, level: int, index: int) -> str:
    if (level, index) not in slots:
        return COLOURS["not gathered"]
    is_expanded = (level - 1, index * CONFIG.pooling_factor) in slots
    return COLOURS["expanded" if is_expanded else "gathered"]


if __name__ == "__main__":
    main()
