"""Decide which samples of a batch share a row, so that there is little padding.

A transformer layer of width D takes 12 D^2 multiplications per token in its linear layers (MLP of 4 D) and 2 L D in
the attention over a row of length L. A row thus costs 2 D L (6 D + L): short rows are cheap in attention, few full
rows are cheap in padding, and the sum decides.
"""

from __future__ import annotations

from heapq import heapify, heapreplace

TRIED_ONE_BY_ONE = 32
"""Up to this many rows, each number of rows is tried; beyond, numbers in steps of 3%, which is close enough."""


def rows_cost(num_rows: int, length: int, width: int) -> int:
    """Return the cost of a batch in one layer, in units of 2 D multiplications.

    Args:
        num_rows: Number of rows, padded to one length.
        length: That length in tokens.
        width: D of the language model.

    Returns:
        The cost.

    >>> rows_cost(num_rows=2, length=10, width=8), rows_cost(num_rows=1, length=20, width=8)
    (1160, 1360)
    """
    return num_rows * length * (6 * width + length)


def pack_rows(lengths: list[int], longest_row: int | None, width: int) -> list[list[int]]:
    """Distribute samples over rows so that the cost is lowest.

    For each number of rows, the samples are taken from the longest to the shortest, and each goes to the row that is
    shortest so far (longest processing time first: Graham 1969, at most 4/3 of the best row length). One row per sample
    is tried too, so packing never costs more than padding to the longest sample.

    Args:
        lengths: Tokens of each sample, at least 1.
        longest_row: Most tokens of a row that holds several samples; None for no limit.
        width: D of the language model.

    Returns:
        The sample indices of each row, rising; rows in order of their first sample.

    >>> pack_rows([9, 2, 3, 4], longest_row=10, width=64)
    [[0], [1, 2, 3]]
    """
    best = [[number] for number in range(len(lengths))]
    longest = max(lengths, default=0)
    lowest_cost = rows_cost(len(lengths), longest, width)
    num_rows = 0 if longest_row is None else max(0, sum(lengths) - 1) // max(longest, longest_row)
    while True:
        num_rows += 1 + num_rows // TRIED_ONE_BY_ONE
        if num_rows >= len(lengths) or rows_cost(num_rows, longest, width) >= lowest_cost:
            return sorted(sorted(row) for row in best)
        rows, length = _fill(lengths, num_rows)
        fits = longest_row is None or length <= max(longest, longest_row)
        cost = rows_cost(num_rows, length, width)
        if fits and cost < lowest_cost:
            best, lowest_cost = rows, cost


def _fill(lengths: list[int], num_rows: int) -> tuple[list[list[int]], int]:
    """Return the sample indices of each row, no row empty, and the length of the longest row."""
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    loads = [(0, row) for row in range(num_rows)]
    heapify(loads)
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        load, row = loads[0]
        heapreplace(loads, (load + lengths[number], row))
        rows[row].append(number)
    return rows, max(load for load, _ in loads)
