"""The tables and the picture of ``bench_attention.py``'s rows."""

from pathlib import Path

from torchtitan_lighthouse.runs.markdown import markdown


def tables(rows: list[dict]) -> str:
    """Times and speed-ups; the parts' times; memory, and the peers' times; both commits' times."""
    parts = list(rows[0]["parts"])
    heading = ("N", "k", "S", "dense fwd", "LH fwd", "×", "floor")
    times = [(*heading, "dense fwd+bwd", "LH fwd+bwd", "×", "floor")]
    by_part = [("N", *parts)]
    memory = [("N", "GiB dense", "lighthouse", "floor", "peers: fwd / fwd+bwd")]
    for r in rows:
        cells = [f"{r['N']:,}", f"{r['k']:,}", f"{r['S']:,}"]
        for kind in ("fwd", "fwd_bwd"):
            dense_ms, ours, floor = (r[f"{n}_{kind}"] for n in ("dense", "lighthouse", "floor"))
            ratios = f"{dense_ms / ours:.1f}", f"{floor:.2f} ({dense_ms / floor:.1f}×)"
            cells += [f"{dense_ms:.2f}", f"{ours:.2f}", *ratios]
        times.append(cells)
        by_part.append((cells[0], *(f"{r['parts'][part]:.3f}" for part in parts)))
        peaks = (f"{r[f'{n}_peak_gib']:.2f}" for n in ("dense", "lighthouse", "floor"))
        peers = ", ".join(f"{n} {f:.2f} / {b:.2f}" for n, (f, b) in r.get("peers", {}).items())
        memory.append((cells[0], *peaks, peers or "-"))
    compared = [table_of_commits(rows)] if "commits" in rows[0] else []
    return "\n".join(markdown(table) for table in (times, by_part, memory, *compared))


def table_of_commits(rows: list[dict]) -> list[tuple[str, ...]]:
    """× is how many times faster this checkout is than the base."""
    commit = rows[0]["commits"]["commit"]
    kinds = {"fwd": "fwd", "fwd_bwd": "fwd+bwd"}
    heading = ((f"{title} {commit}", "this", "×") for title in kinds.values())
    table = [("N", *(cell for cells in heading for cell in cells))]
    for r in rows:
        cells = [f"{r['N']:,}"]
        for kind in kinds:
            base, this = (r["commits"][f"{name}_{kind}"] for name in ("base", "this"))
            cells += [f"{base:.3f}", f"{this:.3f}", f"{base / this:.2f}"]
        table.append(tuple(cells))
    return table


def plot(rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    lengths = [r["N"] for r in rows]
    names = {"dense": "dense SDPA", "lighthouse": "Lighthouse", "floor": "SDPA on S tokens"}
    panels = {"fwd": "forward", "fwd_bwd": "forward + backward"}
    for axis, (kind, title) in zip(axes, panels.items(), strict=True):
        for name, label in names.items():
            style = "--" if name == "floor" else "o-"
            axis.plot(lengths, [r[f"{name}_{kind}"] for r in rows], style, label=label)
        axis.set(xscale="log", yscale="log", xlabel="N (tokens)", title=title)
        axis.set_xticks(lengths, [f"{n // 1024}K" for n in lengths], rotation=45)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("ms per layer")
    axes[0].legend()
    figure.suptitle(rows[0]["device"])
    figure.savefig(path, dpi=150)
