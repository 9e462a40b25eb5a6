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

SEQ_LEN = 32
CONFIG = LighthouseConfig(levels=3, pooling_factor=2, topk=4, tile=2)
COLOURS = {"gathered": "#4c86c6", "expanded": "#f0a640", "not gathered": "#eeeeee"}
GAP = 0.06


def main() -> None:
    torch.manual_seed(3)
    selection = select(*torch.rand(2, 1, 1, SEQ_LEN), CONFIG)
    plt.rcParams.update({"svg.hashsalt": "", "font.size": 9})
    figure, (pyramid, sequence) = plt.subplots(
        2, 1, figsize=(11, 3.6), height_ratios=[3, 1.1], layout="constrained"
    )
    draw_pyramid(pyramid, selection)
    draw_sequence(sequence, selection)
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


def draw_pyramid(axis: plt.Axes, selection: Selection) -> None:
    places = slots(selection)
    for level in range(CONFIG.levels):
        window = CONFIG.pooling_factor**level
        for index in range(SEQ_LEN // window):
            slot = places.get((level, index))
            box(axis, index * window, level, window, colour(selection, level, index), slot)
    axis.set(xlim=(0, SEQ_LEN), ylim=(-0.05, CONFIG.levels), yticks=[0.5, 1.5, 2.5], xticks=[])
    axis.set_yticklabels(["tokens", "means of 2", "means of 4"])
    axis.set_title("The pyramid of q, k and v; numbers are places in the sub-sequence", loc="left")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def draw_sequence(axis: plt.Axes, selection: Selection) -> None:
    length = CONFIG.sub_sequence_length(SEQ_LEN)
    for (level, index), slot in slots(selection).items():
        box(axis, slot, 0, 1, colour(selection, level, index), slot)
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


def slots(selection: Selection) -> dict[tuple[int, int], int]:
    pairs = zip(selection.level.flatten().tolist(), selection.index.flatten().tolist(), strict=True)
    return {pair: slot for slot, pair in enumerate(pairs)}


def colour(selection: Selection, level: int, index: int) -> str:
    places = slots(selection)
    if (level, index) not in places:
        return COLOURS["not gathered"]
    is_expanded = (level - 1, index * CONFIG.pooling_factor) in places
    return COLOURS["expanded" if is_expanded else "gathered"]


if __name__ == "__main__":
    main()
