"""The learning rate of each step, as torchtitan's own schedule has it."""

from collections.abc import Callable
from unittest import mock

import torch
from torchtitan.components import lr_scheduler
from torchtitan.config import LRScheduler


def schedule_steps(section: LRScheduler, training_steps: int) -> int:
    """Return the number of steps that the schedule is made for."""
    return training_steps if section.total_steps is None else section.total_steps


def learning_rate_factors(section: LRScheduler, training_steps: int) -> Callable[[int], float]:
    """Return the function from the steps done to the factor of the learning rate in the next."""
    optimizer = torch.optim.SGD([torch.zeros(1)])
    with mock.patch.object(lr_scheduler, "logger"):  # the trainer's own will warn
        built = lr_scheduler.build_lr_schedulers([optimizer], section, training_steps)
    return built.schedulers[0].lr_lambdas[0]
