"""Captions are split into words as COCO's caption evaluation splits them."""

import pytest

from divot_lightning.evaluation.metrics.caption_words import caption_words

SPLIT = [
    ("A man's red car drives down the long road.", "a man 's red car drives down the long road"),
    ("Two dogs play in the snow, barking!", "two dogs play in the snow barking"),
    ("a man is playing a guitar - and singing", "a man is playing a guitar and singing"),
    ("A t-shirt that's blue; isn't it nice?", "a t-shirt that 's blue is n't it nice"),
    ("They can't stop, won't stop, don't stop.", "they ca n't stop wo n't stop do n't stop"),
    ("he cannot swim", "he can not swim"),
    (
        "She's gonna win the 1st prize of $3.50 (three dollars)",
        "she 's gon na win the 1st prize of $ 3.50 -lrb- three dollars -rrb-",
    ),
    ("a man/woman talks on the phone", "a man/woman talks on the phone"),
    ("The U.S. president gives a speech at 5 p.m. today", "the u.s. president gives a speech at 5 p.m. today"),
    ("a 3-d animation of a cat & a dog", "a 3-d animation of a cat & a dog"),
    ('"hello" says the boy', "hello says the boy"),
    ("the boys' team wins", "the boys team wins"),
    ("a person is cooking... then eats", "a person is cooking then eats"),
    ("someone is using an ipad 2 to play minecraft", "someone is using an ipad 2 to play minecraft"),
    ("a girl with 10,000 followers", "a girl with 10,000 followers"),
    ("it's 50% off", "it 's 50 % off"),
    ("a man in a black-and-white suit talks to the camera", "a man in a black-and-white suit talks to the camera"),
    ("an old man , a young man", "an old man a young man"),
    (
        "i'm here and you're there, we've seen they'd go, he'll come",
        "i 'm here and you 're there we 've seen they 'd go he 'll come",
    ),
    ("how to make a #1 cake @ home", "how to make a # 1 cake @ home"),
    ("a video of rock'n'roll music", "a video of rock 'n' roll music"),
    ("a c++ program", "a c++ program"),
    ("red, white and blue flags", "red white and blue flags"),
    (
        "man talks about e-mail: send it to a@b.com or www.site.com",
        "man talks about e-mail send it to a@b.com or www.site.com",
    ),
    ("the movie's actor's father", "the movie 's actor 's father"),
    ("cars race at 200mph", "cars race at 200mph"),
    ("a woman's applying make-up on her face.", "a woman 's applying make-up on her face"),
    ("children aren't eating", "children are n't eating"),
    ("a man says: 'stop' and leaves", "a man says stop and leaves"),
    ("the 1990's music video", "the 1990 's music video"),
    ("'tis a video", "'t is a video"),
    ("dont do it", "dont do it"),
    ("a man and a woman (both young) dance", "a man and a woman -lrb- both young -rrb- dance"),
    ("two people--one old--walk", "two people one old walk"),
    ("a cat's", "a cat 's"),
    ("vs. the world", "vs. the world"),
    ("dr. smith talks to mr. jones.", "dr. smith talks to mr. jones"),
    ("a band plays on stage.the crowd cheers", "a band plays on stage.the crowd cheers"),
    ("john's and mary's houses", "john 's and mary 's houses"),
    ("a man with 2/3 of a pizza", "a man with 2/3 of a pizza"),
]
"""Captions with what pycocoevalcap 1.2 makes of them: PTBTokenizer of Stanford CoreNLP 3.4.1, punctuation removed."""


@pytest.mark.parametrize(("caption", "words"), SPLIT)
def test_captions_are_split_as_the_tokenizer_of_coco_splits_them(caption, words):
    assert caption_words(caption) == words.split()


def test_a_caption_without_words_has_none():
    assert caption_words("... -- !") == []
