"""Checks what a checkpoint's tensors do not show of its model: RoPE and the norms' epsilon."""

from torchtitan.config import JobConfig

from torchtitan_lighthouse.hf.rope import extended_rope, rope_in_words
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.folder.checkpoint import SavedCheckpoint
from torchtitan_lighthouse.titan.folder.model import MODEL_FILE, read_model
from torchtitan_lighthouse.titan.folder.steps import checkpoint_folder
from torchtitan_lighthouse.titan.models.of_job import model_args_of


def check_saved_model(job_config: JobConfig, saved: SavedCheckpoint) -> None:
    """Refuse to go on from a checkpoint under another RoPE, but for one that ``[rope]`` extends.

    Checkpoints of torchtitan's own trainer do not say theirs.

    Raises:
        RefusalError: names what differs.
    """
    file = saved.path / MODEL_FILE
    if not file.is_file():
        return
    theirs, ours = read_model(saved.path, job_config), model_args_of(job_config)
    if theirs.norm_eps != ours.norm_eps:
        raise RefusalError(
            f"{file}: norm_eps={theirs.norm_eps}, and the job's model has {ours.norm_eps}: use the "
            "model that saved it"
        )
    if theirs.rope == ours.rope:
        return
    resumes = saved.path.parent == checkpoint_folder(job_config)
    if resumes or extended_rope(theirs.rope, job_config.rope.given()) != ours.rope:
        instead = "another job.dump_folder" if resumes else "[rope] to say all of it"
        raise RefusalError(
            f"{file} has the RoPE {rope_in_words(theirs.rope)}, and the job's model "
            f"{rope_in_words(ours.rope)}: use the first, or {instead}"
        )
