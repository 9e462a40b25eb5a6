import pytest
import torch


@pytest.fixture
def poisoned():
    """torch.empty returns NaN, and the largest integer, so that what is not written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
