"""Which torch this is, for what an earlier one does wrong."""

import torch
from torch.torch_version import TorchVersion


def torch_is_before(major: int, minor: int) -> bool:
    """Whether this torch is earlier than a release."""
    return TorchVersion(torch.__version__) < (major, minor)
