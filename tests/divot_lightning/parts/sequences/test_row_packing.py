from hypothesis import given
from hypothesis import strategies as st

from divot_lightning.parts.sequences.row_packing import pack_rows, rows_cost

lengths = st.lists(st.integers(1, 300), max_size=24)
limits = st.one_of(st.none(), st.integers(1, 400))
widths = st.integers(1, 200)


def row_length(rows, lengths_):
    return max((sum(lengths_[number] for number in row) for row in rows), default=0)


@given(lengths, limits, widths)
def test_every_sample_is_in_exactly_one_row_and_no_row_is_empty(lengths_, limit, width):
    rows = pack_rows(lengths_, limit, width)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths_)))
    assert all(rows)
    assert rows == sorted(sorted(row) for row in rows)


@given(lengths, st.integers(1, 400), widths)
def test_rows_of_several_samples_keep_the_limit(lengths_, limit, width):
    rows = pack_rows(lengths_, limit, width)
    longest = max(lengths_, default=0)
    assert row_length(rows, lengths_) <= max(limit, longest)


@given(lengths, limits, widths)
def test_packing_never_costs_more_than_padding_to_the_longest_sample(lengths_, limit, width):
    rows = pack_rows(lengths_, limit, width)
    packed = rows_cost(len(rows), row_length(rows, lengths_), width)
    assert packed <= rows_cost(len(lengths_), max(lengths_, default=0), width)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=24))
def test_a_wide_model_pads_by_less_than_a_third(lengths_):
    rows = pack_rows(lengths_, None, width=10**9)  # attention costs next to nothing, so a single row is free to choose
    assert len(rows) * row_length(rows, lengths_) * 3 <= sum(lengths_) * 4


def test_cost_counts_the_multiplications_of_a_layer():
    width, rows, length = 16, 3, 10
    tokens = rows * length
    attention = 2 * tokens * length * width  # scores, and their product with the values
    linear = tokens * (4 * width * width + 2 * width * 4 * width)  # q, k, v, o and an MLP of 4 D
    # 12 D^2 per token and 2 L D: the common factor 2 D leaves 6 D + L
    assert 2 * width * rows_cost(rows, length, width) == linear + attention


def test_short_samples_join_where_a_long_one_sets_the_length():
    assert pack_rows([100, 20, 30, 50], 100, width=64) == [[0], [1, 2, 3]]


def test_equal_samples_stay_apart():
    assert pack_rows([50, 50, 50], 200, width=64) == [[0], [1], [2]]
