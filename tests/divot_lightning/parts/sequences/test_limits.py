"""The clips alone decide whether a sample is too long, exactly as `build_sequence` does."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divot_lightning.errors import UserError
from divot_lightning.parts.segments import Clips, Text
from divot_lightning.parts.sequences.layout import SequenceLayout, build_sequence
from divot_lightning.parts.sequences.limits import SampleLimits
from divot_lightning.parts.sequences.tokens import SpecialTokens

texts = st.builds(Text, st.text("ab ", max_size=12), st.booleans(), st.booleans())
clips = st.builds(Clips, st.integers(1, 4), st.sampled_from(["read", "generate"]), st.sampled_from(["video", "image"]))
generation_modes = st.sampled_from(["query_bidirectional", "query_causal", "autoregressive"])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(texts | clips, min_size=1, max_size=6),
    generation_modes,
    st.integers(1, 5),
    st.integers(1, 90),
    st.booleans(),
)
def test_a_sample_is_too_long_exactly_if_its_sequence_cannot_be_built(
    segments, generation_mode, queries, longest, begins
):
    layout = SequenceLayout(queries, generation_mode, longest)
    special = SpecialTokens({"video": 1, "image": 2}, {"video": 3, "image": 4}, 5, 6, 7, 8 if begins else None)
    excess = SampleLimits(layout=layout, begins=begins).excess(segments)
    try:
        built = build_sequence(segments, lambda text: [9] * len(text), special, layout)
    except UserError:
        assert excess > 0
    else:
        assert excess == 0
        assert len(built.ids) <= longest


def test_the_excess_is_counted_in_tokens():
    layout = SequenceLayout(num_queries=4, max_length=10)
    segments = [Clips(1, "read"), Text("however long this is, it can be cut", learn=True)]
    # <vid> <frame> 4 features </frame> </vid> <eos> are 9 tokens, with <bos> 10.
    assert SampleLimits(layout=layout, begins=True).excess(segments) == 0
    assert SampleLimits(layout=layout, begins=True).excess([*segments, Clips(1, "read")]) == 8


@pytest.mark.parametrize("limits", [SampleLimits(), SampleLimits(layout=SequenceLayout(4))])
def test_without_a_longest_sequence_everything_fits(limits):
    assert limits.excess([Clips(500, "read")]) == 0
