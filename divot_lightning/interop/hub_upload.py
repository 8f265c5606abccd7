"""Upload an export to the Hugging Face hub."""

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import (  # HTTPError is of the HTTP library that this version uses
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from divot_lightning.errors import UserError


def require_repository_name(name: str) -> None:
    """Refuse a name that cannot be one of a hub repository; before anything is written."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--push-to-hub {name!r} is no name of a hub repository; give USER/NAME") from error


def push_to_hub(folder: Path, name: str, *, public: bool = False, api: Any = None) -> str:
    """Upload a folder to a repository, which is made if there is none.

    Args:
        folder: The export.
        name: Id of the repository.
        public: Whether a repository that is made now is public.
        api: A `huggingface_hub.HfApi`; it takes the token of `hf auth login` or of `HF_TOKEN`.

    Returns:
        The address of the upload.

    Raises:
        UserError: The upload failed. The library's own message is left out: it may show a part of the request.
    """
    api = api or HfApi()
    try:
        api.create_repo(name, private=not public, exist_ok=True)
        commit = api.upload_folder(repo_id=name, folder_path=str(folder), commit_message="Exported by divot-lightning")
    except (HTTPError, LocalTokenNotFoundError, OSError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        raise UserError(
            f"{folder} is written, but its upload to {name} failed: {type(error).__name__}"
            f"{f', HTTP {status}' if status else ''}\n"
            "log in with a token that may write there (hf auth login), or check the network\n"
            f"then: hf upload {name} {folder}"
        ) from None
    return str(commit)
