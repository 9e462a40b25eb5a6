"""The CPU as a device for torchtitan 0.2.2, which takes "cuda" when it finds no accelerator.

Without a GPU this puts an object with the functions that torchtitan calls on ``torch.cuda`` in its
place; with one it does nothing. It can go when torchtitan runs on CPU by itself.
"""

import os
import platform
import resource
import sys
from types import SimpleNamespace

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torchtitan.tools import utils


class CpuDevice:
    """What torchtitan asks of a device module (``torch.cuda``), answered for the host."""

    @staticmethod
    def set_device(device: torch.device) -> None:
        """There is one CPU device."""

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def synchronize() -> None:
        """CPU operations are synchronous."""

    @staticmethod
    def get_device_name(device: torch.device) -> str:
        return platform.processor() or platform.machine()

    @staticmethod
    def get_device_properties(device: torch.device) -> SimpleNamespace:
        """``total_memory``: the host's memory in bytes."""
        return SimpleNamespace(
            total_memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        )

    @staticmethod
    def memory_stats(device: torch.device) -> dict[str, int]:
        """The process's peak resident memory in bytes, under the names of CUDA's allocator."""
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return {"active_bytes.all.peak": peak, "reserved_bytes.all.peak": peak}

    @staticmethod
    def reset_peak_memory_stats() -> None:
        """The operating system's peak cannot be reset."""

    @staticmethod
    def empty_cache() -> None:
        """There is no caching allocator."""


def runs_on_cpu() -> bool:
    """Whether torchtitan's device is the CPU."""
    return utils.device_type == "cpu"


def install_cpu_platform() -> None:
    """Make the CPU torchtitan's device when there is no accelerator that it can use."""
    if torch.cuda.is_available() or utils.device_type not in ("cuda", "mps"):
        return
    # Modules of torchtitan that are imported already hold the two names themselves.
    for name, module in list(sys.modules.items()):
        if name.startswith("torchtitan.") and hasattr(module, "device_module"):
            module.device_module = CpuDevice  # type: ignore[attr-defined]
        if name.startswith("torchtitan.") and hasattr(module, "device_type"):
            module.device_type = "cpu"  # type: ignore[attr-defined]


def use_sum_reductions(model: nn.Module) -> None:
    """Have FSDP reduce gradients by plain sums: gloo lacks NCCL's pre-multiplied ones."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)
