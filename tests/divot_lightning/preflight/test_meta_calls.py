"""A call that is looked up returns what torch would work out, and what is not a new tensor is never looked up."""

from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from divot_lightning.preflight.meta_calls import MetaCalls

aten: Any = torch.ops.aten


def _meta(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(size, dtype=dtype, device="meta")


def _described(result: Any) -> list[Any]:
    leaves = [result] if isinstance(result, Tensor) else result
    return [(type(result), x.shape, x.stride(), x.dtype, x.device.type, x.untyped_storage().nbytes()) for x in leaves]


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (aten.mm.default, (_meta(2, 3), _meta(3, 4))),
        (aten.mul.Tensor, (_meta(2, 3, dtype=torch.int64), 2)),
        (aten.mul.Tensor, (_meta(2, 3, dtype=torch.int64), 2.0)),
        (aten.add.Tensor, (_meta(2, 1), _meta(3, dtype=torch.bfloat16))),
        (aten.gelu.default, (_meta(4, 2, 3).transpose(0, 2),)),
        (aten.cat.default, ([_meta(2, 3), _meta(4, 3)],)),
        (aten.native_layer_norm.default, (_meta(2, 5, 3), [3], _meta(3), _meta(3), 1e-5)),
    ],
)
def test_a_call_is_worked_out_once_and_later_gives_the_same_shapes(func: Any, args: tuple[Any, ...]) -> None:
    counted = Mock(wraps=func, _schema=func._schema, is_view=func.is_view)
    calls = MetaCalls()
    first, second = calls(counted, args, {}), calls(counted, args, {})
    assert counted.call_count == 1
    assert _described(first) == _described(second) == _described(func(*args))
    assert first is not second


def test_equal_numbers_of_different_types_are_different_arguments() -> None:
    calls, whole = MetaCalls(), _meta(2, dtype=torch.int64)
    results = [calls(aten.mul.Tensor, (whole, factor), {}).dtype for factor in (2, 2.0, 2, 2.0)]
    assert results == [torch.int64, torch.float32] * 2


def test_the_default_dtype_counts() -> None:
    calls, given, found = MetaCalls(), _meta(2, dtype=torch.int64), []
    for dtype in (torch.float32, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            found.append(calls(aten.mul.Tensor, (given, 0.5), {}).dtype)
        finally:
            torch.set_default_dtype(torch.float32)
    assert found == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize(
    ("func", "args"),
    [(aten.view.default, ([3, 2],)), (aten._unsafe_view.default, ([3, 2],)), (aten.add_.Tensor, (1.0,))],
)
def test_a_result_that_shares_memory_shares_it_each_time(func: Any, args: tuple[Any, ...]) -> None:
    calls = MetaCalls()
    for given in (_meta(2, 3), _meta(2, 3)):
        result = calls(func, (given, *args), {})
        assert result.untyped_storage()._cdata == given.untyped_storage()._cdata


def test_tensors_with_values_are_computed() -> None:
    calls = MetaCalls()
    for value in (1.0, 2.0):
        assert calls(aten.add.Tensor, (torch.tensor([value]), 1.0), {}).item() == value + 1
