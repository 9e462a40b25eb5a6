"""Where blocks can be replayed as CUDA graphs."""

import os

from torchtitan.config import JobConfig

from torchtitan_lighthouse.refusal import refusal

_FIELD = "compile.cuda_graphs"


def check_cuda_graphs(job_config: JobConfig) -> None:
    """Refuse graphs where there would be none, or where each step would record them anew."""
    section = job_config.compile
    if not section.cuda_graphs:
        return
    if not (section.enable and "model" in section.components):
        rule = "needs compile.enable = true with the model in compile.components"
        raise refusal(_FIELD, "true", rule)
    if section.backend != "inductor":
        raise refusal(_FIELD, "true", f'needs compile.backend = "inductor", not {section.backend}')
    if (ranks := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        rule = (
            f"is for a run on one GPU, not on {ranks} ranks: parameters that ranks share have "
            "other addresses at each step"
        )
        raise refusal(_FIELD, "true", rule, "false")
