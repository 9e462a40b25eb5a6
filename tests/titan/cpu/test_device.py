"""The CPU platform: torchtitan's device without a GPU, and nothing with one."""

import pytest
import torch
from torchtitan.components.metrics import DeviceMemoryMonitor
from torchtitan.tools import utils

from torchtitan_lighthouse.titan.cpu.device import CpuDevice, install_cpu_platform

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="would take the GPU from the tests that follow"
)


@pytest.mark.parametrize(
    ("has_gpu", "found", "used"),
    [(True, "cuda", "cuda"), (False, "cuda", "cpu"), (False, "mps", "cpu"), (False, "xpu", "xpu")],
)
def test_device_is_the_cpu_only_without_a_usable_one(monkeypatch, has_gpu, found, used):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(utils, "device_type", found)
    monkeypatch.setattr(utils, "device_module", None)
    install_cpu_platform()
    assert utils.device_type == used
    assert (utils.device_module is CpuDevice) == (used == "cpu")


def test_memory_is_that_of_the_process_and_the_host():
    stats = DeviceMemoryMonitor("cpu").get_peak_stats()
    assert 0 < stats.max_active_gib < 1024
    assert 0 < stats.max_active_pct < 100
