"""An experiment as its TOML file describes it.

config = "recoverability_25m_16k"           # a file beside this one or in the working folder, or
                                            # a shipped one's name
options = ["--training.steps", "8000"]      # of every run
seeds = [0, 1, 2]

[[variants]]
name = "dense"
options = ["--lighthouse.no-enable"]

[[variants]]                                # one first stage, and a dense tail from each split
name = "lighthouse"
splits = [0.625, 0.75]

[[variants]]                                # begins from a step of that first stage
name = "wide"
from = "lighthouse-stage1"
at = 5000
options = ["--lighthouse.topk", "1024", "--lighthouse.steps", "6000"]

[grid]                                      # a variant for each combination
topk = [128, 256]

[passkeys]                                  # retrieval after each training
lengths = [4096, 16384]
trials = 50
"""

import itertools
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torchtitan_lighthouse import configs
from torchtitan_lighthouse.experiments.run import Passkeys
from torchtitan_lighthouse.refusal import RefusalError, multiples, refusal


class _Kind(NamedTuple):
    words: str
    fits: Callable[[Any], bool]


def _some(*types: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and bool(value) and _all_of(value, *types)


def _all_of(values: list[Any], *types: type) -> bool:
    return all(type(value) in types for value in values)


_TEXT = _Kind("a text", lambda value: isinstance(value, str))
_TEXTS = _Kind("a list of texts", lambda value: isinstance(value, list) and _all_of(value, str))
_COUNT = _Kind("an integer of at least 1", lambda value: type(value) is int and value > 0)
_INTEGERS = _Kind("a list of integers", _some(int))
_NUMBERS = _Kind("a list of numbers", _some(int, float))
_TABLE = _Kind("a table", lambda value: isinstance(value, dict))
_TABLES = _Kind("tables, [[variants]]", _some(dict))

_ENTRIES = {"config": _TEXT, "options": _TEXTS, "seeds": _INTEGERS, "gpus": _COUNT}
_ENTRIES |= {"variants": _TABLES, "grid": _TABLE, "passkeys": _TABLE}
_VARIANT = {"name": _TEXT, "options": _TEXTS, "seeds": _INTEGERS, "splits": _NUMBERS}
_VARIANT |= {"from": _TEXT, "at": _COUNT}
_PASSKEYS = {"lengths": _INTEGERS, "trials": _COUNT}


@dataclass(frozen=True)
class Variant:
    """Runs that differ in their seeds alone.

    Attributes:
        seeds: its own; where there are none, the experiment's.
        splits: the shares of the steps after which a dense tail begins.
        source: the variant from whose checkpoint it begins, at step ``at``.
        of_grid: whether it is a combination, which may be one that cannot be.
        is_first_stage: whether it is trained up to the last step that others begin from only.
    """

    name: str
    options: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    splits: tuple[float, ...] = ()
    source: str | None = None
    at: int = 0
    of_grid: bool = False
    is_first_stage: bool = False


@dataclass(frozen=True)
class Experiment:
    """An experiment as its file describes it, whatever folder it is trained in."""

    config: Path
    variants: list[Variant]
    options: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    gpus: int = 1
    passkeys: Passkeys | None = None


def read_experiment(file: Path) -> Experiment:
    """Read an experiment's TOML file.

    Raises:
        RefusalError: it cannot be read, or has a name that means nothing, or not those it needs.
    """
    try:
        toml = tomllib.loads(file.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise RefusalError(f"{file} cannot be read: {error}") from error
    _check_entries(file.name, toml, _ENTRIES, needed={"config"})
    variants = [_variant(file.name, entry) for entry in toml.get("variants", [])]
    variants += _combinations(toml.get("grid", {}))
    names = [variant.name for variant in variants]
    if not names or len(set(names)) < len(names) or "" in names:
        raise RefusalError(f"{file} needs variants, each with a name of its own")
    return Experiment(
        _config(file, toml["config"]),
        variants,
        tuple(toml.get("options", ())),
        tuple(toml.get("seeds", (0,))),
        toml.get("gpus", 1),
        _passkeys(file.name, toml.get("passkeys")),
    )


def _variant(file: str, entry: dict[str, Any]) -> Variant:
    _check_entries(f"a variant of {file}", entry, _VARIANT, needed={"name"})
    name = entry["name"]
    if Path(name).name != name:
        raise RefusalError(f"variant {name} of {file}: a folder has its name, so it has no slash")
    if ("from" in entry) != ("at" in entry):
        raise RefusalError(f"variant {name} of {file}: 'from' and 'at' go together")
    if "from" in entry and "splits" in entry:
        raise RefusalError(
            f"variant {name} of {file} has 'from' and 'splits': its first stage begins at step 1"
        )
    options, seeds, splits = (tuple(entry.get(n, ())) for n in ("options", "seeds", "splits"))
    source, at = entry.get("from"), entry.get("at", 0)
    return Variant(name, options, seeds, splits, source, at)


def _combinations(grid: dict[str, list[Any]]) -> Iterator[Variant]:
    """Yield a variant for each combination of the values of ``[grid]``."""
    for option, listed in grid.items():
        if not isinstance(listed, list) or not listed:
            raise RefusalError(f"[grid]: {option} = {listed!r} must be a list of its values")
    for values in itertools.product(*grid.values()) if grid else ():
        chosen = dict(zip(grid, values, strict=True))
        name = "_".join(f"{option}-{_shown(value)}" for option, value in chosen.items())
        options = itertools.chain(*(_as_options(*pair) for pair in chosen.items()))
        yield Variant(name, tuple(options), of_grid=True)


def _as_options(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--lighthouse.{name}" if value else f"--lighthouse.no-{name}"]
    return [f"--lighthouse.{name}", *map(str, value if isinstance(value, list) else [value])]


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _passkeys(file: str, entry: dict[str, Any] | None) -> Passkeys | None:
    if entry is None:
        return None
    _check_entries(f"[passkeys] of {file}", entry, _PASSKEYS, needed={"lengths"})
    passkeys = Passkeys(**{**entry, "lengths": tuple(entry["lengths"])})
    if passkeys.trials % 10:  # the retrieval tool's rule, which would end every run
        trials = multiples(passkeys.trials, 10)
        raise refusal("trials", passkeys.trials, "must be a multiple of 10 digits", *trials)
    return passkeys


def _config(file: Path, name: str) -> Path:
    try:
        return configs.find(name, file.parent, Path())
    except RefusalError as error:
        raise RefusalError(f"{file}: config = {name!r}: {error}") from None


def _check_entries(
    where: str, table: dict[str, Any], kinds: Mapping[str, _Kind], needed: set[str]
) -> None:
    unknown, missing = sorted(set(table) - set(kinds)), sorted(needed - set(table))
    if unknown or missing:
        wrong = f"has {', '.join(unknown)}" if unknown else f"lacks {', '.join(missing)}"
        raise RefusalError(f"{where} {wrong}: it can have {', '.join(sorted(kinds))}")
    for name, value in table.items():
        if not kinds[name].fits(value):
            raise RefusalError(f"{where}: {name} = {value!r} must be {kinds[name].words}")
