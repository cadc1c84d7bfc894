"""Without a GPU a CudaGraph calls its function directly; tests/cuda tests the rest."""

import pytest
import torch

from latentdiff.config import UserError
from latentdiff.training.cuda_graph import CudaGraph, leaves, map_tensors
from latentdiff.training.distributed import World
from latentdiff.training.settings import TrainConfig
from latentdiff.training.state import TrainState


def test_without_a_gpu_the_function_is_called_every_time():
    calls = []
    twice = CudaGraph(lambda x: calls.append(1) or {"y": 2 * x})
    for i in range(6):
        assert twice(torch.tensor(float(i)))["y"] == 2 * i
    assert len(calls) == 6 and twice.graph is None


def test_leaves_are_listed_and_copied():
    node = {"a": [torch.ones(2), 3], "b": (None, torch.zeros(1))}
    values = list(leaves(node))
    assert [torch.is_tensor(x) for x in values] == [True, False, False, True]
    copied = map_tensors(node, torch.clone)
    assert copied["a"][1] == 3 and copied["b"][0] is None and isinstance(copied["b"], tuple)
    assert copied["a"][0] is not node["a"][0] and copied["a"][0].equal(node["a"][0])


def test_gradient_accumulation_and_several_processes_are_refused_with_a_cuda_graph():
    with pytest.raises(UserError, match=r"train.grad_accum_steps is 2"):
        TrainConfig(cuda_graph=True, grad_accum_steps=2)
    with pytest.raises(UserError, match="2 processes"):
        TrainState(torch.nn.Linear(1, 1), TrainConfig(cuda_graph=True), World(0, 2, torch.device("cpu")))
