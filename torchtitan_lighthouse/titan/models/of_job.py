"""Makes the arguments of a job's model, for all that need them."""

import importlib
from copy import deepcopy

from torchtitan.config import JobConfig
from torchtitan.protocols.train_spec import get_train_spec

from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.models.args import LighthouseModelArgs


def model_args_of(job_config: JobConfig) -> LighthouseModelArgs:
    """Return the sizes and RoPE of the job's model; ``max_seq_len`` is what it was made for.

    A module that ``experimental.custom_import`` names is imported first: it may add to ``FLAVORS``,
    or register a train spec of its own, derived from this package's.

    Raises:
        RefusalError: there is no such module, model or flavor, or its numbers make no model.
    """
    import_custom_module(job_config)
    model = job_config.model
    try:
        flavors = get_train_spec(model.name).model_args
    except ValueError as error:
        raise RefusalError(f"model.name = {model.name!r}: {error}") from error
    if model.flavor not in flavors:
        raise RefusalError(f"model.flavor = {model.flavor!r} must be one of {', '.join(flavors)}")
    args = deepcopy(flavors[model.flavor])
    if not isinstance(args, LighthouseModelArgs):
        raise RefusalError(
            f"model.flavor = {model.flavor!r} of {model.name} is a {type(args).__name__}: make it "
            "a torchtitan_lighthouse.titan.models.args.LighthouseModelArgs"
        )
    args.take_model(job_config)
    return args


def import_custom_module(job_config: JobConfig) -> None:
    """Import what the job names, as torchtitan does, but before the job is checked.

    Raises:
        RefusalError: there is no such module.
    """
    if not (name := job_config.experimental.custom_import):
        return
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise RefusalError(f"experimental.custom_import = {name!r}: {error}") from error
