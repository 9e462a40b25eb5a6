"""The times of this checkout's Lighthouse layer and of another commit's, by one timing code."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from layer_times import Layer

from torchtitan_lighthouse.refusal import RefusalError, refusal

ROOT = Path(__file__).resolve().parents[1]
TIMER = ROOT / "scripts" / "layer_times.py"


def commit_of(ref: str) -> str:
    """The commit that ``ref`` names, abbreviated.

    Raises:
        RefusalError: it names none, or this is no git checkout.
    """
    found = _git("rev-parse", "--short", "--verify", "--end-of-options", f"{ref}^{{commit}}")
    if found.returncode:
        raise refusal("--base", ref, f"must name a commit of {ROOT}: {_last_line(found.stderr)}")
    return found.stdout.strip()


def compare(commit: str, layers: Sequence[Layer], backend: str, repeats: int) -> list[dict]:
    """For each layer ms of both: ``base_fwd``, ``base_fwd_bwd``, ``this_fwd``, ``this_fwd_bwd``.

    Each in a process of its own, the base first. "This" is the checkout as it lies, changes that
    are not committed included.

    Raises:
        RefusalError: the commit cannot be checked out, or a layer cannot be timed.
    """
    with worktree(commit) as tree:
        base = _times_in(tree, commit, layers, backend, repeats)
    this = _times_in(ROOT, "this checkout", layers, backend, repeats)
    names = ("base_fwd", "base_fwd_bwd", "this_fwd", "this_fwd_bwd")
    return [
        {"commit": commit, **dict(zip(names, (*old, *new), strict=True))}
        for old, new in zip(base, this, strict=True)
    ]


@contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """A folder with the files of a commit, while the context lasts."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "base"
        try:
            added = _git("worktree", "add", "--detach", str(tree), commit)
            if added.returncode:
                raise RefusalError(f"no worktree of {commit}: {_last_line(added.stderr)}")
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _times_in(
    tree: Path, name: str, layers: Sequence[Layer], backend: str, repeats: int
) -> list[tuple[float, float]]:
    pairs = [(asdict(layer.shape), layer.fields) for layer in layers]
    request = json.dumps({"layers": pairs, "backend": backend, "repeats": repeats})
    path = os.pathsep.join([str(tree), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    timer = subprocess.run(
        [sys.executable, str(TIMER), request],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    if timer.returncode:
        raise RefusalError(f"the layer of {name} cannot be timed: {_last_line(timer.stderr)}")
    answer = json.loads(_last_line(timer.stdout))
    expected = tree / "torchtitan_lighthouse"
    if Path(answer["package"]).resolve() != expected.resolve():
        raise RefusalError(f"the layer timed was that of {answer['package']}, not of {expected}")
    return answer["times"]


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it says nothing"])[-1]
