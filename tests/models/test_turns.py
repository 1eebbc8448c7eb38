"""Modules that take turns: one at a time is on the device, and none loses its weights."""

import threading

import torch
from torch import nn

from qvg_engine.models.turns import Turns, turn


def make(turns: Turns) -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    turns.add(module)
    return module


def is_away(module: nn.Module) -> bool:
    return all(tensor.is_meta for tensor in module.state_dict().values())


def test_one_module_at_a_time_is_away() -> None:
    # The meta device stands for a GPU: what is there cannot be told from values.
    turns = Turns("meta")
    first, second = make(turns), make(turns)
    before = {name: value.clone() for name, value in first.state_dict().items()}
    for module, other in ((first, second), (second, first), (second, first), (first, second)):
        with turns.use(module):
            assert is_away(module)
            assert not any(tensor.is_meta for tensor in other.state_dict().values())
    turns.clear()
    for name, value in first.state_dict().items():
        assert torch.equal(value, before[name])


def test_other_threads_wait_for_their_turn() -> None:
    turns = Turns("meta")
    first, second = make(turns), make(turns)
    order = []

    def use_second() -> None:
        with turns.use(second):
            order.append(is_away(first))

    with turns.use(first):
        thread = threading.Thread(target=use_second)
        thread.start()
        thread.join(timeout=0.1)
        order.append(is_away(first))
    thread.join()
    assert order == [True, False]


def test_without_turns_nothing_moves() -> None:
    module = nn.Linear(2, 2)
    with turn(None, module):
        assert module.weight.device.type == "cpu"
