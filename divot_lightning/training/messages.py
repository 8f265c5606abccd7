"""jsonargparse's messages in a few lines: which key, which value, what is allowed.

jsonargparse nests one block per level (`Parser key "model": ... Problem with given class_path ...: Parser key "net"`),
with every branch of a Union and the whole recipe repeated. The innermost block holds the cause.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from jsonargparse import ArgumentParser
from jsonargparse.typing import import_object

from divot_lightning.io.renamed import explain, explain_import_error, new_setting
from divot_lightning.parts.heads import GenerationHead

MAX_VALUE_CHARACTERS = 80
"""A value is shown up to here."""

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
_IMPORT_FAILED = re.compile(r"No module named '[^']+'|module '\S+' has no attribute '\S+'|cannot import name .+")
_EXPECTED = re.compile(r"Expected a (?:<class '([^']+)'>|typing\.Literal\[(.+)\]|(.+?))(?:\. Got value: (.*))?$")
_NO_GROUP = re.compile(r"Unable to load config '(.*)'")
_NESTED = re.compile(r"NestedArg\(key='(.+)', val=(.+)\)")
_GIVEN = re.compile(r"Given value: (.*)")


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
    for explanation in _EXPLANATIONS:
        text = explanation(refusal, parser)
        if text:
            return text
    return _shorten(refusal)


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the nearest allowed word, or nothing.

    Example:
        >>> did_you_mean("max_step", ["max_steps", "devices"])
        " Did you mean 'max_steps'?"
    """
    near = difflib.get_close_matches(word, list(allowed), n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


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
    owner = f" of {refusal.class_path.rsplit('.', 1)[-1]}" if refusal.class_path else ""
    hint = did_you_mean(path[known], siblings if refusal.key else [*siblings, *NOT_SETTINGS])
    listed = _clip(", ".join(siblings), MAX_LIST_CHARACTERS) or "nothing"
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


def _no_such_class(refusal: Refusal, parser: ArgumentParser) -> str | None:
    found = _NO_CLASS.search(refusal.text)
    if not found:
        return None
    if renamed := explain(found[1]):
        return f"{refusal.key!r}: {renamed}\nWrite the new path."
    return f"{refusal.key!r}: no class is known as {found[1]!r}.\nGive its full path: package.module.Class"


def _failed_import(refusal: Refusal, parser: ArgumentParser) -> str | None:
    found = _IMPORT_FAILED.search(refusal.text)
    if not found:
        return None
    renamed = explain(refusal.class_path or "") or explain_import_error(found[0])
    if renamed:
        return f"{refusal.key!r}: {refusal.class_path!r} cannot be imported: {renamed}\nWrite the new path."
    cause = found[0].replace("module ", "", 1) if "attribute" in found[0] else found[0]
    return (
        f"{refusal.key!r}: {refusal.class_path!r} cannot be imported: {cause}\n"
        "Is it spelt right and installed here? A module in the current folder is found with PYTHONPATH=."
    )


def _wrong_type(refusal: Refusal, parser: ArgumentParser) -> str | None:
    innermost = refusal.text[refusal.text.rfind("Parser key") :]
    expected: list[str] = []
    given: str | None = None
    for line in innermost.splitlines():
        found = _EXPECTED.search(line.strip().removeprefix("- "))
        if found and found[1] != "NoneType":
            expected.append(found[1] or (found[2] or found[3]).replace(", ", " or "))
            given = given or found[4]
        value = _GIVEN.search(line)
        given = given or (value[1] if value else None)
        if given is not None and expected:
            break
    if not expected or given is None:
        return None
    allowed = " or ".join(dict.fromkeys(expected))
    if nested := _NESTED.search(given):
        return f"'{refusal.key}.{nested[1]}' is no setting: {refusal.key!r} takes a value: {allowed}"
    return f"{refusal.key!r} is {_clip(given, MAX_VALUE_CHARACTERS)}; allowed: {_clip(allowed, MAX_LIST_CHARACTERS)}"


def _shorten(refusal: Refusal) -> str:
    """Return the first informative lines, where no rule fits."""
    boiler = (
        "Does not validate",
        "Subtypes:",
        "Errors:",
        "- Expected a <class 'NoneType'>",
        "Given value",
        "Parser key",
    )
    lines = [line.strip().removeprefix("- ") for line in refusal.text.splitlines()]
    informative = [line for line in lines if line and not line.startswith(boiler)]
    head = f"{refusal.key!r}: " if refusal.key else ""
    return head + "\n".join(_clip(line, 200) for line in informative[:4])


def _settings(class_path: str | None, parser: ArgumentParser) -> dict[str, list[str]]:
    """Return the allowed keys by dotted prefix: `{"": ["net", "lr"], "net": ["width"]}`."""
    if class_path:
        parser = ArgumentParser(exit_on_error=False)
        try:
            owner = import_object(class_path)
            # the widths of a head come from the model
            skip = {"hidden_dim", "feature_dim"} if issubclass(owner, GenerationHead) else None
            parser.add_class_arguments(owner, fail_untyped=False, skip=skip)
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


def _before_repetition(message: str) -> str:
    """Remove the repeated recipe, so that no class is read from it."""
    return "\n".join(line for line in message.splitlines() if not line.strip().startswith("Given value"))


def _clip(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 4] + " ..."


_EXPLANATIONS = (
    _unknown_key,
    _stray_word,
    _missing_key,
    _not_a_group,
    _no_such_class,
    _failed_import,
    _wrong_type,
)
