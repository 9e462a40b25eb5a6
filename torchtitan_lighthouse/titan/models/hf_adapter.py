"""Weights to and from Hugging Face's format, also where one tensor there is two here."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.distributed.tensor import DTensor, Shard
from torch.futures import Future
from torchtitan.models.llama3 import TransformerModelArgs
from torchtitan.models.llama3.model.state_dict_adapter import Llama3StateDictAdapter

from torchtitan_lighthouse.hf.weights import EMBEDDING, OUTPUT


class LighthouseStateDictAdapter(Llama3StateDictAdapter):
    """torchtitan's Llama3StateDictAdapter, which also loads a model with tied embeddings.

    torchtitan 0.2.2's Llama-3 cannot tie them: FSDP shards the two apart. So both are loaded from
    the one tensor, and both are saved.

    And it orders the rows of a head as the other side has them on any ranks. torchtitan 0.2.2 does
    so by a view of heads, and where ranks share a head's rows torch takes that view of each rank's
    own rows: k is then loaded, and saved, in a wrong order. This can go when either refuses.
    """

    fqn_to_index_mapping: dict[str, int] | None

    def __init__(self, model_args: TransformerModelArgs, hf_assets_path: str | None) -> None:
        super().__init__(model_args, hf_assets_path)
        self.fqn_to_index_mapping = self._shards(self.fqn_to_index_mapping or {})

    def get_hf_storage_reader(
        self, path: str, from_quantized: bool = False
    ) -> HuggingFaceStorageReader:
        return _TiedReader(path)

    def _permute(self, w: Tensor, *sizes: int) -> Tensor:
        return _in_whole_columns(super()._permute, w, *sizes)

    def _reverse_permute(self, w: Tensor, *sizes: int) -> Tensor:
        return _in_whole_columns(super()._reverse_permute, w, *sizes)

    def _shards(self, source: dict[str, int]) -> dict[str, int] | None:
        """Return each tensor's file number as in the source; None if that is of another model."""
        if EMBEDDING in source:
            source = {OUTPUT: source[EMBEDDING], **source}
        names = [
            name.format(layer)
            for name, ours in self.from_hf_map.items()
            for layer in (range(self.model_args.n_layers) if "{}" in name else (0,))
            if ours is not None
        ]
        return {n: source[n] for n in names} if all(n in source for n in names) else None


def _in_whole_columns(
    permute: Callable[..., Tensor],
    w: Tensor,
    heads: int,
    rows: int | None = None,
    columns: int | None = None,
) -> Tensor:
    """``permute``, which orders rows, of a weight whose columns the ranks share instead."""
    if not isinstance(w, DTensor):
        return permute(w, heads, rows, columns)
    w = w.redistribute(placements=[Shard(1)] * w.device_mesh.ndim)
    own = w.to_local()
    return DTensor.from_local(
        permute(own, heads, *own.shape),
        w.device_mesh,
        w.placements,
        shape=w.shape,
        stride=w.stride(),
    )


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
