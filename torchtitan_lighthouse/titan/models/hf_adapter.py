"""Weights to and from Hugging Face's format, also where one tensor there is two here."""

from dataclasses import replace

from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.futures import Future
from torchtitan.models.llama3 import TransformerModelArgs
from torchtitan.models.llama3.model.state_dict_adapter import Llama3StateDictAdapter

from torchtitan_lighthouse.hf.weights import EMBEDDING, OUTPUT


class LighthouseStateDictAdapter(Llama3StateDictAdapter):
    """torchtitan's, which also loads a model whose output is tied to its embedding.

    torchtitan 0.2.2's Llama-3 cannot tie them: FSDP shards the two apart. So both are loaded from
    the one tensor, and both are saved.
    """

    fqn_to_index_mapping: dict[str, int] | None

    def __init__(self, model_args: TransformerModelArgs, hf_assets_path: str | None) -> None:
        super().__init__(model_args, hf_assets_path)
        self.fqn_to_index_mapping = self._shards(self.fqn_to_index_mapping or {})

    def get_hf_storage_reader(
        self, path: str, from_quantized: bool = False
    ) -> HuggingFaceStorageReader:
        return _TiedReader(path)

    def _shards(self, source: dict[str, int]) -> dict[str, int] | None:
        """The number of each tensor's file as in the source; None if that is of another model."""
        if EMBEDDING in source:
            source = {OUTPUT: source[EMBEDDING], **source}
        names = [
            name.format(layer)
            for name, ours in self.from_hf_map.items()
            for layer in (range(self.model_args.n_layers) if "{}" in name else (0,))
            if ours is not None
        ]
        return {n: source[n] for n in names} if all(n in source for n in names) else None


class _TiedReader(HuggingFaceStorageReader):
    """Reads the embedding for an output that the files do not have."""

    def read_metadata(self) -> Metadata:
        metadata = super().read_metadata()
        tensors, storage = metadata.state_dict_metadata, metadata.storage_data
        if OUTPUT not in tensors:
            tensors[OUTPUT] = tensors[EMBEDDING]
            tied = {i: info for i, info in storage.items() if i.fqn == EMBEDDING}
            storage.update({replace(i, fqn=OUTPUT): info for i, info in tied.items()})
            self._tied = True
        return metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        if getattr(self, "_tied", False):
            plan = replace(plan, items=[self._of_embedding(item) for item in plan.items])
        return super().read_data(plan, planner)

    def _of_embedding(self, item):
        index = item.storage_index
        if index.fqn != OUTPUT:
            return item
        return replace(item, storage_index=replace(index, fqn=EMBEDDING))
