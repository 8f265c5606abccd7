"""Frozen weights are told by their content, not by how they are held."""

import pytest
import torch
from torch import nn

from divot_lightning.checkpoint.module_tensors import sort_tensors
from divot_lightning.checkpoint.provenance import FrozenRecord, describe_frozen, verify_frozen
from divot_lightning.distributed.ranks import Ranks
from divot_lightning.errors import UserError


class Stage(nn.Module):
    def __init__(self, seed: int = 0, sources: dict[str, str] | None = None) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
        self.encoder.requires_grad_(False)
        self.head = nn.Linear(5, 2)
        self.sources = {"encoder": "models/encoder"} if sources is None else sources

    def frozen_sources(self) -> dict[str, str]:
        return self.sources


def _describe(stage: nn.Module) -> dict:
    return describe_frozen(sort_tensors(stage), lambda tensor, owner: tensor.detach(), Ranks())


def test_the_same_weights_from_another_folder_are_the_same() -> None:
    verify_frozen(_describe(Stage()), _describe(Stage(sources={"encoder": "moved/encoder"})))


def test_one_changed_weight_is_found_and_its_module_and_folders_are_named() -> None:
    other = Stage(sources={"encoder": "other/encoder"})
    other.encoder[1].weight.data[2, 3] += 1e-7
    with pytest.raises(UserError, match=r"encoder holds other frozen weights(.|\n)*models/encoder(.|\n)*other/encoder"):
        verify_frozen(_describe(Stage()), _describe(other))


def test_another_precision_of_the_same_weights_is_the_same_and_of_others_is_not() -> None:
    verify_frozen(_describe(Stage()), _describe(Stage().bfloat16()))
    verify_frozen(_describe(Stage().bfloat16()), _describe(Stage()))
    with pytest.raises(UserError, match="encoder holds other"):
        verify_frozen(_describe(Stage().bfloat16()), _describe(Stage(seed=1)))


def test_swapped_weights_of_the_same_shapes_are_found() -> None:
    stage, swapped = Stage(), Stage()
    with torch.no_grad():
        swapped.encoder[0].weight.copy_(stage.encoder[0].weight.flip(0))
    with pytest.raises(UserError, match="encoder"):
        verify_frozen(_describe(stage), _describe(swapped))


def test_a_module_that_is_not_frozen_any_more_is_named() -> None:
    thawed = Stage()
    thawed.encoder.requires_grad_(True)
    with pytest.raises(UserError, match="encoder was frozen and is not any more"):
        verify_frozen(_describe(Stage()), _describe(thawed))
    with pytest.raises(UserError, match="encoder is not frozen in the checkpoint"):
        verify_frozen(_describe(thawed), _describe(Stage()))


def test_frozen_weights_from_nowhere_are_stored() -> None:
    assert set(sort_tensors(Stage(sources={})).stored) == {
        f"encoder.{i}.{n}" for i in (0, 1) for n in ("weight", "bias")
    }
    assert sort_tensors(Stage()).stored == {}
    part = sort_tensors(Stage(sources={"encoder.1": "x", "enc": "y"}))
    assert set(part.stored) == {"encoder.0.weight", "encoder.0.bias"}


def test_weights_are_hashed_again_only_when_one_was_changed() -> None:
    stage = Stage()
    record, reads = FrozenRecord(), []

    def read(tensor: torch.Tensor, owner: int) -> torch.Tensor:
        reads.append(tensor)
        return tensor.detach()

    first = record.describe(sort_tensors(stage), read, Ranks())
    assert record.describe(sort_tensors(stage), read, Ranks()) == first
    assert len(reads) == 4
    with torch.no_grad():
        stage.encoder[0].weight.add_(1.0)
    assert record.describe(sort_tensors(stage), read, Ranks()) != first
    assert len(reads) == 8
