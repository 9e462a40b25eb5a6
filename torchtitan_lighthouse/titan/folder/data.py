"""What a saved position in the training data depends on, kept as JSON beside the position."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.config import JobConfig
from torchtitan.hf_datasets.text_datasets import DATASETS

from torchtitan_lighthouse.data.corpora import corpus_of
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.components.hf_tokenizer import DocumentTokenizer
from torchtitan_lighthouse.titan.launch.ranks import number_of_ranks, this_rank

DATA_FILE = "data.json"
_VERSION = 1


@dataclass(frozen=True)
class DataFacts:
    """The position is one in each data-parallel rank's and worker's share of the data, and some
    tokens that are read and not trained on yet. It depends neither on the length of sequences nor
    on the batch's size."""

    dataset: str
    dataset_path: str | None
    """Of data that are not on this machine; local files may move."""
    files: int
    size: int
    """Bytes of the local files."""
    sections: str
    """A hash of the sections of the local files, in their order."""
    tokenizer: str
    """Its name and a hash of its files."""
    num_workers: int
    ranks: int
    """Data-parallel ranks."""


def data_facts(job_config: JobConfig, tokenizer: BaseTokenizer) -> DataFacts:
    """Collect the facts of a job on the ranks that torchrun has started."""
    training = job_config.training
    corpus = corpus_of(training.dataset, training.dataset_path)
    files = corpus.listing.files if corpus else []
    dataset = training.dataset.lower()
    return DataFacts(
        dataset=dataset,
        dataset_path=None if corpus else training.dataset_path or DATASETS[dataset].path,
        files=len(files),
        size=sum(file.size for file in files),
        sections=corpus.fingerprint() if corpus else "",
        tokenizer=_tokenizer_fact(job_config, tokenizer),
        num_workers=training.dataloader.num_workers,
        ranks=data_parallel_ranks(job_config)[0],
    )


def data_parallel_ranks(job_config: JobConfig) -> tuple[int, int]:
    """Return how many of torchrun's ranks read different text, and which of these this one is."""
    layout = job_config.parallelism
    inner = layout.tensor_parallel_degree * layout.context_parallel_degree
    ranks = number_of_ranks() // (inner * layout.pipeline_parallel_degree)
    ranks = max(ranks, 1)
    # torchtitan's mesh has the pipeline's stages outside, and what shares text inside.
    return ranks, this_rank() // inner % ranks


def write_facts(checkpoint: Path, facts: DataFacts) -> None:
    """Write the facts beside the position that ``checkpoint`` holds."""
    content = {"version": _VERSION, **asdict(facts)}
    (checkpoint / DATA_FILE).write_text(json.dumps(content, indent=2) + "\n")


def saved_facts(checkpoint: Path) -> DataFacts | None:
    """Read the facts that a checkpoint was saved under; None where it does not say.

    Raises:
        RefusalError: a later version of this package has written them, or they are damaged.
    """
    file = checkpoint / DATA_FILE
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text())
        version = content.pop("version")
        if version == _VERSION:
            return DataFacts(**content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RefusalError(f"{file} is damaged ({error}): copy it anew, or delete it") from error
    raise RefusalError(
        f"{file} is of version {version}, and this package's is {_VERSION}: resume with the "
        "version that saved it"
    )


def _tokenizer_fact(job_config: JobConfig, tokenizer: BaseTokenizer) -> str:
    name = job_config.tokenizer.name
    if not isinstance(tokenizer, DocumentTokenizer):
        return name
    state = f"{tokenizer.tokenizer.to_str()}{tokenizer.bos_id},{tokenizer.eos_id}"
    return f"{name} {hashlib.sha256(state.encode()).hexdigest()[:16]}"
