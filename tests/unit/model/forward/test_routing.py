"""Rows of an expert's tensors are traced back to their tokens, or an error says that they cannot be."""

from __future__ import annotations

import pytest
import torch

from quantaudit.errors import MeasurementError
from quantaudit.model.forward.capture import router_logits
from quantaudit.model.forward.routing import RoutedLists, find_rows


def match_rows(x: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Rows of `given` that the rows of x are, where every one is found."""
    tokens, wrong = find_rows(x, given)
    assert not wrong
    return tokens


def routed_tokens(chosen: torch.Tensor, expert: int) -> torch.Tensor:
    """Tokens of one of four experts, in the order in which it is given them."""
    tokens, wrong = RoutedLists.of(chosen, 4).rows(expert, int((chosen == expert).sum()))
    assert not wrong
    return tokens


def test_routed_tokens_come_by_rank_of_the_choice_and_then_by_token() -> None:
    chosen = torch.tensor([[1, 0], [0, 2], [2, 1], [0, 1]])
    assert routed_tokens(chosen, 0).tolist() == [1, 3, 0]
    assert routed_tokens(chosen, 1).tolist() == [0, 2, 3]
    assert routed_tokens(chosen, 3).tolist() == []
    mask = torch.nn.functional.one_hot(chosen, 4).permute(2, 1, 0)
    for expert in range(4):
        assert torch.equal(routed_tokens(chosen, expert), torch.where(mask[expert])[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rows_are_found_by_their_bits_in_any_order(dtype: torch.dtype) -> None:
    given = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    given[7] = float("nan")
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))[:20]
    order[0] = 7
    order = torch.unique(order).flip(0)
    assert torch.equal(match_rows(given[order], given), order)


def test_equal_rows_are_distinguished_by_their_order() -> None:
    given = torch.tensor([[1.0], [2.0], [1.0], [3.0]])
    assert match_rows(torch.tensor([[3.0], [1.0], [1.0]]), given).tolist() == [3, 0, 2]


def test_no_rows_are_no_tokens() -> None:
    assert match_rows(torch.empty(0, 4), torch.randn(5, 4)).tolist() == []


@pytest.mark.parametrize("x", [[[9.0]], [[1.0], [1.0]], [[1.0], [9.0]]])
def test_a_row_that_is_no_token_is_an_error(x: list[list[float]]) -> None:
    _, wrong = find_rows(torch.tensor(x), torch.tensor([[1.0], [2.0]]))
    assert wrong


def test_logits_are_found_in_whatever_a_router_puts_out() -> None:
    logits, scores = torch.randn(5, 4), torch.rand(5, 4)
    weights, index = torch.rand(5, 2), torch.zeros(5, 2, dtype=torch.int64)
    for output in (logits, (logits, weights, index), (index, weights, logits), (scores, logits)):
        assert router_logits(output, 4) is logits
    with pytest.raises(MeasurementError, match="4 columns"):
        router_logits((weights, index), 4)
