import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from divot_lightning.errors import UserError
from divot_lightning.parts.segments import Clips, Text
from divot_lightning.parts.sequences.layout import SequenceLayout, build_sequence
from divot_lightning.parts.sequences.rows import collate_sequences
from divot_lightning.parts.sequences.tokens import IGNORED, SpecialTokens, TokenKind

VID, VID_END, IMG, IMG_END, FRAME, FRAME_END, END, BEGIN = range(101, 109)
SPECIAL = SpecialTokens(
    opening={"video": VID, "image": IMG},
    closing={"video": VID_END, "image": IMG_END},
    frame_begin=FRAME,
    frame_end=FRAME_END,
    end=END,
    begin=BEGIN,
)
GENERATION_MODES = ("query_bidirectional", "query_causal", "autoregressive")


def encode(text: str) -> list[int]:
    return [int(word) for word in text.split()]


texts = st.builds(
    lambda ids, learn: Text(" ".join(map(str, ids)), learn), st.lists(st.integers(1, 50), max_size=4), st.booleans()
)
clips = st.builds(
    Clips,
    st.integers(1, 3),
    st.sampled_from(["read", "generate"]),
    st.sampled_from(["video", "image"]),
    st.booleans(),
)
samples = st.lists(st.one_of(texts, clips), max_size=5)
layouts = st.builds(SequenceLayout, st.integers(1, 3), st.sampled_from(GENERATION_MODES))


def reference_rows(segments, layout):
    """Return every position as (id, label, kind, clip, feature index), by the rules of the layout."""
    rows, clip = [(BEGIN, IGNORED, TokenKind.SPECIAL, -1, -1)], -1
    last_clip_of_all = sum(segment.count for segment in segments if isinstance(segment, Clips)) - 1
    ends_with_clip = bool(segments) and isinstance(segments[-1], Clips)

    def token(value, learn):
        rows.append((value, value if learn else IGNORED, TokenKind.SPECIAL, -1, -1))

    def block(kind):
        token(FRAME, False)
        rows.extend((FRAME, IGNORED, kind, clip, index) for index in range(layout.num_queries))
        token(FRAME_END, False)

    for segment in segments:
        if isinstance(segment, Text):
            for value in encode(segment.text):
                rows.append((value, value if segment.learn else IGNORED, TokenKind.TEXT, -1, -1))
            continue
        token(VID if segment.kind == "video" else IMG, segment.learn)
        for _ in range(segment.count):
            clip += 1
            if segment.role == "read":
                block(TokenKind.READ)
            elif layout.generation_mode == "autoregressive":
                block(TokenKind.FORCED)
            else:
                block(TokenKind.QUERY)
                if not (ends_with_clip and clip == last_clip_of_all):
                    block(TokenKind.READ)
        token(VID_END if segment.kind == "video" else IMG_END, segment.learn)
    token(END, True)
    return rows


def rows_of(sequence):
    return list(
        zip(sequence.ids, sequence.labels, sequence.token_kinds, sequence.clips, sequence.feature_indices, strict=True)
    )


@given(samples, layouts)
def test_every_position_equals_the_slow_reference(segments, layout):
    assert rows_of(build_sequence(segments, encode, SPECIAL, layout)) == reference_rows(segments, layout)


@given(samples, layouts)
def test_a_prompt_is_the_beginning_of_the_training_sequence(segments, layout):
    full = rows_of(build_sequence(segments, encode, SPECIAL, layout))
    prompt = rows_of(build_sequence(segments, encode, SPECIAL, layout, prompt=True))
    assert prompt == full[: len(prompt)]
    rest = len(full) - len(prompt)
    generates = bool(segments) and isinstance(segments[-1], Clips) and segments[-1].role == "generate"
    assert rest == 1 + 2 * generates + (
        layout.num_queries if generates and layout.generation_mode == GENERATION_MODES[2] else 0
    )


def learned(segments):
    sequence = build_sequence(segments, encode, SPECIAL, SequenceLayout(2))
    return [label for label in sequence.labels if label != IGNORED]


def test_a_caption_learns_the_caption_and_the_end():
    assert learned([Clips(2, "read"), Text("7 8", learn=True)]) == [7, 8, END]


def test_generation_pretraining_learns_only_the_end_of_the_text():
    assert learned([Text("7 8", learn=False), Clips(1, "generate")]) == [END]


def test_generation_tuning_learns_to_begin_the_clip():
    assert learned([Text("7", learn=False), Clips(1, "generate", learn=True)]) == [VID, VID_END, END]


def test_twenty_clips_of_64_tokens_take_1322_tokens_between_begin_and_end():
    sequence = build_sequence([Clips(20, "read")], encode, SPECIAL, SequenceLayout(64))
    assert len(sequence.ids) - 2 == 1322  # the released code's count


def test_a_generated_clip_is_read_back_only_where_something_follows():
    story = [Text("1", True), Clips(1, "generate"), Text("2", True), Clips(1, "generate")]
    sequence = build_sequence(story, encode, SPECIAL, SequenceLayout(1))
    features = [(kind, clip) for kind, clip in zip(sequence.token_kinds, sequence.clips, strict=True) if clip >= 0]
    assert features == [(TokenKind.QUERY, 0), (TokenKind.READ, 0), (TokenKind.QUERY, 1)]


@given(samples, layouts, st.integers(1, 60))
def test_too_long_samples_lose_text_ends_and_never_a_clip(segments, layout, max_length):
    full = build_sequence(segments, encode, SPECIAL, layout)
    limited = SequenceLayout(layout.num_queries, layout.generation_mode, max_length)
    num_text = sum(len(encode(segment.text)) for segment in segments if isinstance(segment, Text))
    if len(full.ids) - num_text > max_length:
        with pytest.raises(UserError, match=f"has {len(full.ids)} tokens, {num_text} of them text.*is {max_length}"):
            build_sequence(segments, encode, SPECIAL, limited)
        return
    cut = build_sequence(segments, encode, SPECIAL, limited)
    assert len(cut.ids) == min(len(full.ids), max_length)
    not_text = [row for row in rows_of(full) if row[2] != TokenKind.TEXT and row[0] != END]
    assert [row for row in rows_of(cut) if row[2] != TokenKind.TEXT and row[0] != END] == not_text


def test_the_last_text_is_shortened_first_and_loses_the_end_token():
    sample = [Text("1 2 3", learn=False), Text("4 5", learn=True)]
    assert build_sequence(sample, encode, SPECIAL, SequenceLayout(1, max_length=5)).ids == [BEGIN, 1, 2, 3, 4]
    assert build_sequence(sample, encode, SPECIAL, SequenceLayout(1, max_length=3)).ids == [BEGIN, 1, 2]


def test_an_answer_within_a_conversation_learns_its_end():
    conversation = [Clips(1, "read"), Text("1", False), Text("2 3", True, ends=True), Text("4", False), Text("5", True)]
    ids = build_sequence(conversation, encode, SPECIAL, SequenceLayout(1)).ids
    assert ids[-6:] == [2, 3, END, 4, 5, END]
    assert learned(conversation) == [2, 3, END, 5, END]
    assert build_sequence(conversation, encode, SPECIAL, SequenceLayout(1, max_length=len(ids) - 3)).ids == ids[:-3]
    assert build_sequence(conversation, encode, SPECIAL, SequenceLayout(1, max_length=len(ids) - 4)).ids == ids[:-4]


def test_a_shortened_prompt_keeps_the_clip_and_the_end():
    sample = [Text("1 2 3", learn=False), Clips(1, "generate")]
    sequence = build_sequence(sample, encode, SPECIAL, SequenceLayout(1, max_length=8))
    assert sequence.ids == [BEGIN, 1, VID, FRAME, FRAME, FRAME_END, VID_END, END]


def test_a_tokenizer_without_begin_token_gives_sequences_without_it():
    special = SpecialTokens(SPECIAL.opening, SPECIAL.closing, FRAME, FRAME_END, END)
    assert build_sequence([Text("4", True)], encode, special, SequenceLayout(1)).ids == [4, END]


def test_collating_pads_on_the_right_and_numbers_clips_across_the_batch():
    layout = SequenceLayout(1)
    first = build_sequence([Clips(2, "read")], encode, SPECIAL, layout)
    second = build_sequence([Text("5", False), Clips(1, "read")], encode, SPECIAL, layout)
    batch = collate_sequences([first, second], pad_id=0)
    assert batch.num_clips == 3
    assert batch.ids_BL.tolist()[1] == [*second.ids, 0, 0]
    assert batch.labels_BL[1, -2:].tolist() == [IGNORED] * 2
    assert batch.token_kind_BL[1, -2:].tolist() == [TokenKind.PAD] * 2
    assert batch.clips_BL[batch.clips_BL >= 0].tolist() == [0, 1, 2]
    assert batch.feature_index_BL.shape == batch.ids_BL.shape == (2, len(first.ids))
    assert batch.ids_BL.dtype == torch.int64


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"count": 0, "role": "read"}, "count=0"),
        ({"count": 1, "role": "watch"}, "'watch'"),
        ({"count": 1, "role": "read", "kind": "gif"}, "'gif'"),
    ],
)
def test_impossible_clips_are_refused(arguments, named):
    with pytest.raises(UserError, match=named):
        Clips(**arguments)


def test_lightning_can_rebuild_segments():
    from lightning.fabric.utilities.apply_func import apply_to_collection

    batch = {"segments": [[Text("a", True), Clips(1, "read")]], "features": torch.ones(1)}
    doubled = apply_to_collection(batch, torch.Tensor, lambda tensor: 2 * tensor)
    assert doubled["segments"] == batch["segments"]
    assert doubled["features"] == 2
