"""Where blocks can be replayed as CUDA graphs."""

from torchtitan.config import JobConfig

from torchtitan_lighthouse.refusal import refusal
from torchtitan_lighthouse.titan.checks.compiled import require_compiled_model
from torchtitan_lighthouse.titan.launch.ranks import number_of_ranks

_FIELD = "compile.cuda_graphs"


def check_cuda_graphs(job_config: JobConfig) -> None:
    """Refuse graphs where there would be none, or where each step would record them anew."""
    section = job_config.compile
    if not section.cuda_graphs:
        return
    require_compiled_model(job_config, _FIELD, "true")
    if section.backend != "inductor":
        raise refusal(_FIELD, "true", f'needs compile.backend = "inductor", not {section.backend}')
    if (ranks := number_of_ranks()) > 1:
        rule = (
            f"is for a run on one GPU, not on {ranks} ranks: parameters that ranks share have "
            "other addresses at each step"
        )
        raise refusal(_FIELD, "true", rule, "false")
