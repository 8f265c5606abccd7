"""Read which option an answer chooses, as a person would: letters before words, the stated answer before the rest."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from divot_lightning.evaluation.answers import choice_patterns as patterns
from divot_lightning.evaluation.answers.cleaning import bare_text, clean_answer
from divot_lightning.evaluation.answers.option_texts import drop_list_of_options, letter_index, mask_options, text_key
from divot_lightning.evaluation.answers.text_match import normalise_answer

QUESTIONED, LONE, NAMED, LEADING, STATED = range(5)
"""How strongly a mention chooses: "B?", a letter alone, "option B" or "(B)", at the beginning, "the answer is B"."""

REACH = 200
"""Characters around a mention that can decide its meaning; keeps the time linear in long answers."""


@dataclass(frozen=True)
class Mention:
    """A part of an answer that names an option.

    Attributes:
        choice: Index of the option, None for a text that several options have.
        start: First character of the mention.
        end: Behind its last character.
        weight: `LONE` to `STATED`.
    """

    choice: int | None
    start: int
    end: int
    weight: int


def read_choice(answer: str, options: Sequence[str]) -> int | None:
    """Read which option an answer chooses.

    In this order: the answer is nothing but a letter or an option's text; letters; numbers ("option 2", "the second
    one"); full texts of options; a part of the text of one option. Within each, what is stated as the answer counts
    before what stands at the beginning, that before "option B" and "(B)", and that before a letter alone; of several
    statements the last counts. Negated mentions ("not B", "B is wrong") do not count.

    Args:
        answer: The model's answer.
        options: The options, (A) first.

    Returns:
        The index of the option; None if the answer is empty, chooses none, or chooses several.
    """
    *_, corrected = patterns.CORRECTION.split(clean_answer(answer))
    text = corrected if bare_text(corrected) else clean_answer(answer)
    if not bare_text(text):
        return None
    whole = _read_whole(text, options)
    if whole is not None:
        return whole
    masked = drop_list_of_options(mask_options(text, options))
    for find in (_letters, _numbers, _texts):
        mentions = list(find(masked, options))
        groups = [group for group in _lists_of(mentions, masked) if not _negated(group, masked)]
        if groups:
            return _decide(groups)
    return _read_part(text, options) if not re.search(patterns.MARKS, masked) else None


def _read_whole(text: str, options: Sequence[str]) -> int | None:
    """Read an answer that is a letter, a number or the text of an option and nothing else."""
    bare, count = bare_text(text), len(options)
    index = ord(bare.upper()) - ord("A") if len(bare) == 1 and bare.isascii() and bare.isalpha() else count
    if index < count and (bare.isupper() or bare not in options):
        return index
    same: list[int] = []
    for form in (text_key, normalise_answer):
        same = same or [index for index, option in enumerate(options) if form(option) == form(bare)]
    if len(same) == 1:
        return same[0]
    number = _number_of(re.sub(r"^the\s+", "", bare.lower()), count)
    return None if same or _is_in_options(bare, options) else number


def _letters(masked: str, options: Sequence[str]) -> Iterator[Mention]:
    for match in re.finditer(r"(?<![A-Za-z0-9])(?<![A-Za-z0-9]')[A-Za-z](?!'?[A-Za-z0-9])(?!-\w)", masked):
        if letter_index(match[0]) >= len(options):
            continue
        before = masked[max(0, match.start() - REACH) : match.start()]
        weight = _letter_weight(before, match[0], masked[match.end() : match.end() + REACH], options)
        if weight is not None:
            yield Mention(letter_index(match[0]), match.start(), match.end(), weight)


def _letter_weight(before: str, letter: str, after: str, options: Sequence[str]) -> int | None:
    """Return how strongly a letter chooses an option, None if it is an ordinary word."""
    bracketed = re.search(r"[(\[{<]\s*$", before) and re.match(r"\s*(?:[)\]}>.,:;]|$)", after)
    named = bool(bracketed or patterns.NAMED_BEFORE.search(before))
    ended = re.match(rf"{patterns.CLOSING}\s*(?:[.,;:!?)\]/\n&+-]|{patterns.MARKS}|$)", after)
    next_word = re.match(rf"{patterns.CLOSING}\s+([\w']+)", after)
    word = next_word[1] if next_word and not ended else ""
    right = patterns.STATED_AFTER.match(after)
    if word and not bracketed and not right and _begins_option(letter, word, options):
        return None
    is_name = any(_is_name(letter, option) for option in options)
    fits = None if is_name else patterns.FITS_AFTER.match(after)
    if right or fits or patterns.STATED_BEFORE.search(before):
        return STATED if named or letter.isupper() or ended else None
    if re.search(r"(?:^|\n)[\s(\[{<\"'`]*$", before) and _leads(after, letter):
        return LEADING
    if named:
        return NAMED
    follows = (patterns.FOLLOWING_NAME if is_name else patterns.FOLLOWING).match(word)
    if not letter.isupper() or not (ended or follows):
        return None
    return QUESTIONED if after.startswith("?") else LONE


def _is_name(letter: str, option: str) -> bool:
    """Return whether a letter is a name in an option, as EgoSchema's camera wearer "C" does, and not as an article."""
    found = re.search(rf"(?<![\w']){letter}(?!\w)(?:\s+(\w+))?", option) if len(option) > 1 else None
    return found is not None and not (letter in "Aa" and found[1] and not patterns.FOLLOWING.match(found[1]))


def _leads(after: str, letter: str) -> bool:
    strict = rf"\s*[.):\]}}](?:\s|$)|\s*{patterns.MARKS}|\s*$"
    loose = rf"{patterns.CLOSING}\s*(?:[.):\]}}](?:\s|$|\W)|,|;|\n|\s[-=]|$)|\s*{patterns.MARKS}"
    return re.match(loose if letter.isupper() else strict, after) is not None


def _begins_option(letter: str, word: str, options: Sequence[str]) -> bool:
    """Return whether an option begins with this letter as a word and the next word, as "A man is walking" does."""
    return any(option.lower().startswith(f"{letter.lower()} {word.lower()}") for option in options)


def _numbers(masked: str, options: Sequence[str]) -> Iterator[Mention]:
    for match in patterns.NUMBER.finditer(masked):
        index = _number_of(next(group for group in match.groups() if group).lower(), len(options))
        if index is not None and not (match["answer"] and _is_in_options(match["answer"], options)):
            yield Mention(index, match.start(), match.end(), NAMED)


def _is_in_options(number: str, options: Sequence[str]) -> bool:
    """Return whether a number is a word of an option, as in "3 times", so that it may mean that option."""
    return any(normalise_answer(number) in normalise_answer(option).split() for option in options)


def _number_of(word: str, count: int) -> int | None:
    """Return the index that a number word counts to: "2", "two", "2nd", "second" are 1, "last" is count - 1."""
    if word == "last":
        return count - 1
    for names in (patterns.NUMBERS, patterns.ORDINALS):
        if word in names:
            word = str(names.index(word) + 1)
    digits = re.fullmatch(rf"(\d{{1,2}}){patterns.ORDINAL_ENDING}?", word)
    return int(digits[1]) - 1 if digits and 1 <= int(digits[1]) <= count else None


def _texts(masked: str, options: Sequence[str]) -> Iterator[Mention]:
    for match in re.finditer(patterns.MARKS, masked):
        before, after = masked[max(0, match.start() - REACH) : match.start()], masked[match.end() :][:REACH]
        stated = patterns.STATED_BEFORE.search(before) or patterns.STATED_AFTER.match(after)
        leading = not re.search(r"\w", masked[: match.start()]) and re.match(r"\s*(?:[.,;:!\n]|$)", after)
        weight = STATED if stated else LEADING if leading else LONE
        choice = None if match[0] == patterns.SHARED_MARK else ord(match[0]) - patterns.MARK_BASE
        yield Mention(choice, match.start(), match.end(), weight)


def _lists_of(mentions: Sequence[Mention], masked: str) -> list[list[Mention]]:
    """Group the mentions that belong to one list, such as "A or B"."""
    groups: list[list[Mention]] = []
    for mention in mentions:
        if groups and patterns.LIST_BETWEEN.fullmatch(masked[groups[-1][-1].end : mention.start]):
            groups[-1].append(mention)
        else:
            groups.append([mention])
    return groups


def _negated(group: Sequence[Mention], masked: str) -> bool:
    before = patterns.NO_NEGATION.sub(" ", masked[max(0, group[0].start - REACH) : group[0].start])
    clause = before[max((match.end() for match in patterns.CLAUSE_END.finditer(before)), default=0) :]
    after = masked[group[-1].end : group[-1].end + REACH]
    return bool(patterns.NEGATED_BEFORE.search(clause) or patterns.NEGATED_AFTER.match(after))


def _decide(groups: Sequence[Sequence[Mention]]) -> int | None:
    """Return the option of the strongest mentions: that of the last statement, else the only one that they name."""
    weights = [max(mention.weight for mention in group) for group in groups]
    strongest = [group for group, weight in zip(groups, weights, strict=True) if weight == max(weights)]
    counted = strongest[-1:] if max(weights) == STATED else strongest
    choices = {mention.choice for group in counted for mention in group}
    return choices.pop() if len(choices) == 1 else None


def _read_part(text: str, options: Sequence[str]) -> int | None:
    """Return the only option whose text contains the answer's words in a row; the last word may be cut off."""
    words = normalise_answer(patterns.PREAMBLE.sub("", text))
    if not set(words.split()) - patterns.EMPTY_WORDS:
        begun = re.compile(rf"{re.escape(bare_text(text))}[,.;:]", re.IGNORECASE)  # "Yes" of "Yes, he does."
        found = [index for index, option in enumerate(options) if begun.match(option)]
        return found[0] if len(found) == 1 else None
    normal = [f" {normalise_answer(option)} " for option in options]
    found = [index for index, option in enumerate(normal) if f" {words} " in option]
    if not found and len(words.split()) > 2:
        found = [index for index, option in enumerate(normal) if option.startswith(f" {words}")]
    return found[0] if len(found) == 1 else None
