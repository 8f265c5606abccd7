"""A recipe of the paper says in its header which settings of the released code it uses, and none that it does not."""

import re

import pytest

from divot_lightning.training.recipe_files import recipes_dir

PHRASES = {
    "resize: pil_bilinear": "bilinear resizing",
    "decayed: all": "weight decay of all parameters",
    "min_side: 100": "smallest sizes of videos and pictures",
    "random_starts: true": "random starts of clips",
    "cover: equal": "20 clips of every video",
    "initial_values: released": "initial values of queries",
    "end_after: last": "one end token per conversation",
    "last_step: first_noise_level": "sampler",
    r"batch_size: \d+, (max_clips: 1, )?max_length": "max_length for each source",
}


@pytest.mark.parametrize("name", sorted(path.stem for path in (recipes_dir() / "paper").glob("*.yaml")))
def test_header_names_the_settings_of_the_released_code(name: str) -> None:
    lines = (recipes_dir() / "paper" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    header = " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))
    body = "\n".join(line for line in lines if not line.startswith("#"))
    (named,) = re.findall(r"As in the released code: ([^;.]*)", header)
    used = {phrase for setting, phrase in PHRASES.items() if re.search(setting, body)}
    assert set(named.strip().split(", ")) == used
