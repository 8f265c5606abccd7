"""Find a pretrained model of transformers: a folder, or a repository of the Hugging Face hub."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from divot_lightning.errors import UserError, first_line

UNUSED_FILES = ["*.bin", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.pt", "*.pth", "original/*"]
"""Files of a hub repository that are not downloaded: weights in other formats than safetensors."""


def pretrained_folder(name: str, revision: str | None, key: str) -> str:
    """Return the folder of a pretrained model.

    With a revision, a hub repository is downloaded into the hub's local cache unless it is there; with
    `HF_HUB_OFFLINE=1` in the environment it must be there. Without a revision the network is not used, so that two runs
    of a recipe never get different weights.

    Args:
        name: Folder, or id of a hub repository.
        revision: Commit, tag or branch of the repository.
        key: Key of the recipe, for messages.

    Returns:
        The folder; the name itself if there is none and no revision is given, so that the loader's own
        message names what is missing.

    Raises:
        UserError: The repository cannot be read at that revision.
    """
    if Path(name).is_dir():
        return name
    try:
        return snapshot_download(
            name, revision=revision, local_files_only=revision is None, ignore_patterns=UNUSED_FILES
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        if revision is None:
            return name
        raise UserError(
            f"{key} is {name!r}, which is no folder, and as a hub repository it cannot be read at revision "
            f"{revision!r}:\n{first_line(error)}\n"
            "Check both names; without a network, download it before (hf download NAME --revision REVISION)."
        ) from error
