"""Cache the features of all splits in one process.

Run: `python -m divot_lightning.experiments.quickstart.encode TOKENIZER DATA OUTPUT`

The features are those of `divot data encode`, called once per split, but Python and torch start only once.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from divot_lightning.inference.feature_encoding import encode_shards

SPLITS = ("train", "validation", "held_out")


def main(argv: Sequence[str]) -> None:
    """Encode all splits.

    Args:
        argv: Run folder of the tokenizer, data folder, output folder.
    """
    tokenizer, data, output = argv
    for split in SPLITS:
        encode_shards(tokenizer, Path(data) / split, Path(output) / split, progress=True)


if __name__ == "__main__":
    main(sys.argv[1:])
