"""jsonargparse's messages in a few lines.

jsonargparse nests one block per level (`Parser key "model": ... Problem with given class_path ...: Parser key "net"`),
with every branch of a Union and the whole recipe repeated. The innermost block holds the cause and is shown as it is;
unknown keys, keys that are missing and names of earlier versions are explained.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from jsonargparse import ArgumentParser
from jsonargparse.typing import import_object

from divot_lightning.errors import did_you_mean, module_hint, shortened
from divot_lightning.io.renamed import explain, explain_import_error, new_setting
from divot_lightning.parts.part import Part

MAX_LINE_CHARACTERS = 300
"""A line of jsonargparse is shown up to here."""

MAX_LIST_CHARACTERS = 400
"""A list of allowed words is shown up to here."""

NOT_SETTINGS = ("help", "config", "print_config", "print_shtab")
"""Options that no recipe may hold."""

_KEY = re.compile(r'Parser key "([^"]+)":')
_CLASS = re.compile(r"Problem with given class_path '([^']+)':|class_path='([^']+)'")
_UNKNOWN = re.compile(r"Option '([^']+)' is not accepted")
_UNKNOWN_IN_GROUP = re.compile(r"Group '([^']+)' does not accept option '([^']+)'")
_UNKNOWN_WORDS = re.compile(r"unrecognized arguments: (.+)")
_REQUIRED = re.compile(r"the following arguments are required: (.+)")
_NO_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
_NO_GROUP = re.compile(r"Unable to load config '(.*)'")
_TYPE = re.compile(r"Expected an? (?:<class '(int|float|bool|str)'>|typing\.Literal\[(.+?)\])")
_VALUE = re.compile(r"(?:Got value|Given value): (.+)")
_TYPE_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}
_BOILERPLATE = (
    "Parser key",
    "Does not validate",
    "Subtypes:",
    "Errors:",
    "Expected a <class 'NoneType'>",
    "Given value type",
)


@dataclass(frozen=True)
class Refusal:
    """One message of jsonargparse, taken apart.

    Attributes:
        key: Dotted path to the innermost setting, as on the command line: without `init_args`.
        class_path: Class whose settings were parsed, None at the top.
        text: The whole message.
    """

    key: str
    class_path: str | None
    text: str


def condense(message: str, parser: ArgumentParser) -> str:
    """Turn a message of jsonargparse into at most four lines: key, value, what is allowed.

    Args:
        message: Text of the exception of jsonargparse.
        parser: The parser that raised it; has the allowed keys at the top.

    Returns:
        Text for a `UserError`.
    """
    keys = _KEY.findall(message)
    classes = [left or right for left, right in _CLASS.findall(_before_repetition(message))]
    refusal = Refusal(".".join(keys), classes[-1] if classes else None, message)
    return next(text for explanation in _EXPLANATIONS if (text := explanation(refusal, parser)))


def _unknown_key(refusal: Refusal, parser: ArgumentParser) -> str | None:
    path = _unknown_path(refusal.text)
    if path is None:
        return None
    allowed = _settings(refusal.class_path, parser)
    known = next((i for i in range(len(path)) if path[i] not in allowed.get(".".join(path[:i]), [])), len(path) - 1)
    siblings = allowed.get(".".join(path[:known]), [])
    setting = ".".join(part for part in (refusal.key, *path[: known + 1]) if part)
    if new := new_setting(path[known], siblings):
        current = ".".join([*setting.split(".")[:-1], new])
        return f"{setting!r} is now {current!r}: it was renamed.\nWrite the new name; its values stay as they are."
    listed = shortened(", ".join(siblings), MAX_LIST_CHARACTERS) or "nothing"
    if path[known] in _supplied_args(refusal.class_path):
        return f"{setting!r} is derived from the other parts; leave it out.\nallowed here: {listed}"
    owner = f" of {refusal.class_path.rsplit('.', 1)[-1]}" if refusal.class_path else ""
    hint = did_you_mean(path[known], siblings if refusal.key else [*siblings, *NOT_SETTINGS])
    return f"{setting!r} is no setting{owner}.{hint}\nallowed here: {listed}"


def _unknown_path(text: str) -> list[str] | None:
    """Return the unknown key, relative to the class or parser that refused it."""
    if found := _UNKNOWN.search(text):
        return found[1].split(".")
    if found := _UNKNOWN_IN_GROUP.search(text):
        return f"{found[1]}.{found[2]}".split(".")
    if found := _UNKNOWN_WORDS.search(text):
        word = found[1].split()[0].split("=")[0]
        return word.lstrip("-").split(".") if word.startswith("-") else None
    return None


def _stray_word(refusal: Refusal, parser: ArgumentParser) -> str | None:
    found = _UNKNOWN_WORDS.search(refusal.text)
    return f"{found[1].split()[0]!r} was not understood: settings are given as --key value." if found else None


def _not_a_group(refusal: Refusal, parser: ArgumentParser) -> str | None:
    found = _NO_GROUP.search(refusal.text)
    if not found:
        return None
    key = ".".join(dict.fromkeys(_KEY.findall(refusal.text)))
    allowed = _settings(refusal.class_path, parser).get(key.split(".", 1)[-1], [])
    return f"{key!r} is {found[1]}, but it is a group of settings: {', '.join(allowed)}\nSet one: --{key}.NAME VALUE"


def _missing_key(refusal: Refusal, parser: ArgumentParser) -> str | None:
    found = _REQUIRED.search(refusal.text)
    if not found:
        return None
    missing = [".".join(part for part in (refusal.key, name.strip()) if part) for name in found[1].split(",")]
    options = " ".join(f"--{name} VALUE" for name in missing)
    return f"not set: {', '.join(missing)}\nGive it in the recipe or on the command line: {options}"


def _renamed_class(refusal: Refusal, parser: ArgumentParser) -> str | None:
    path = refusal.class_path or (_NO_CLASS.findall(refusal.text) or [""])[0]
    renamed = explain(path) or explain_import_error(refusal.text)
    return f"{refusal.key!r}: {path!r} cannot be imported: {renamed}\nWrite the new path." if renamed else None


def _wrong_type(refusal: Refusal, parser: ArgumentParser) -> str | None:
    innermost = _innermost(refusal.text)
    lines = [line.strip().removeprefix("- ") for line in innermost.splitlines()]
    told = [line for line in lines if line and not line.startswith((*_BOILERPLATE, "Given value"))]
    types = [found for line in told if (found := _TYPE.match(line))]
    value = _VALUE.search(innermost)
    if not refusal.key or value is None or len(types) < len(told):
        return None
    given = shortened(value[1], MAX_LINE_CHARACTERS)
    return f"{refusal.key!r} is {given!r}; it must be {_described(types)}"


def _described(types: Sequence[re.Match[str]]) -> str:
    """Return what a setting may be, of the types that jsonargparse lists; a word of several lists is named once."""
    names = [_TYPE_WORDS[found[1]] for found in types if found[1]]
    words = [word.strip() for found in types if found[2] for word in found[2].split(",")]
    kinds = dict.fromkeys(name for name in names if name != "a whole number" or "a number" not in names)
    listed = ["one of " + ", ".join(dict.fromkeys(words))] if words else []
    return " or ".join([*kinds, *listed])


def _innermost(text: str) -> str:
    """Return the block of the innermost setting, without what jsonargparse calls values in here."""
    plain = re.sub(r"NestedArg\(key='[^']*', val='?(.*?)'?\)$", r"\1", text, flags=re.MULTILINE)
    plain = re.sub(r"\. Got value: Namespace\(.*", "", plain)
    return plain[max(0, plain.rfind("Parser key")) :]


def _own_words(refusal: Refusal, parser: ArgumentParser) -> str:
    """Return what jsonargparse says of the innermost setting, without repetitions."""
    before, given, after = _innermost(refusal.text).partition("Given value: ")
    lines = [line.strip().removeprefix("- ") for line in before.splitlines()]
    told = [line for line in lines if line and not line.startswith(_BOILERPLATE)]
    value = [f"given: {after.splitlines()[0]}"] if given else []
    head = f"{refusal.key!r}: " if refusal.key else ""
    shown = "; ".join(shortened(line, MAX_LINE_CHARACTERS) for line in [*told[:4], *value])
    return head + shown + module_hint(shown)


def _settings(class_path: str | None, parser: ArgumentParser) -> dict[str, list[str]]:
    """Return the allowed keys by dotted prefix: `{"": ["net", "lr"], "net": ["width"]}`."""
    if class_path:
        parser = ArgumentParser(exit_on_error=False)
        try:
            skip = _supplied_args(class_path)
            parser.add_class_arguments(import_object(class_path), fail_untyped=False, skip=skip or None)
        except (ImportError, ValueError, AttributeError, TypeError):
            return {"": []}
    tree: dict[str, list[str]] = {"": []}
    for action in parser._actions:
        parts = action.dest.split(".")
        for depth in range(len(parts)):
            names = tree.setdefault(".".join(parts[:depth]), [])
            if parts[depth] not in names and parts[depth] not in NOT_SETTINGS:
                names.append(parts[depth])
    return tree


def _supplied_args(class_path: str | None) -> set[str]:
    """Return the arguments of a part that the suite supplies, such as the widths of a head."""
    try:
        owner = import_object(class_path) if class_path else object
    except (ImportError, ValueError, AttributeError):
        return set()
    return set(owner.supplied_args) if isinstance(owner, type) and issubclass(owner, Part) else set()


def _before_repetition(message: str) -> str:
    """Remove the repeated recipe, so that no class is read from it."""
    return "\n".join(line for line in message.splitlines() if not line.strip().startswith("Given value"))


_EXPLANATIONS = (
    _unknown_key,
    _stray_word,
    _missing_key,
    _not_a_group,
    _renamed_class,
    _wrong_type,
    _own_words,
)
