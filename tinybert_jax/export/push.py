"""A model directory -> a repository of the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tinybert_jax.errors import InputError, first_line
from tinybert_jax.inference.exported import exported_file
from tinybert_jax.models.files.directory import load_config
from tinybert_jax.models.files.hub import NAME
from tinybert_jax.models.files.weights import weights_files

LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


def push(directory: str | Path, to: str, private: bool = False) -> str:
    """Upload a model directory to a repository of the Hugging Face hub, which is created if it does not exist.

    Files with the same names are replaced; others stay.

    Args:
        directory: a directory that training, `compress` or `export` wrote, or another Hugging Face directory.
        to: the repository, as `owner/name`.
        private: make the repository private. One that is public already is refused.

    Returns:
        The address of the repository.

    Raises:
        InputError: there is no model in the directory, `to` is not owner/name, there is no token, or the hub cannot be
            reached or refuses.
    """
    path = Path(os.path.expanduser(directory))
    if not path.is_dir():
        raise InputError(f"{directory}: no such directory; give one that holds a model")
    load_config(path)
    if not weights_files(path) and exported_file(path) is None:
        raise InputError(f"{directory}: holds no weights, and no exported model: there is nothing to upload")
    if not re.fullmatch(f"{NAME}/{NAME}", to):
        raise InputError(f"{to!r} is no name of a repository: give owner/name, where owner is you or an organisation")
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        raise InputError("HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, so nothing can be uploaded: unset it")
    if get_token() is None:
        raise InputError(f"there is no token for {constants.ENDPOINT}: {LOGIN}")
    api = HfApi()
    try:
        address = api.create_repo(to, private=private or None, exist_ok=True)
        if private and not api.model_info(to).private:
            raise InputError(f"{to}: exists already, and is public: make it private there, or choose another name")
        # the page of `tinybert compress` shows rows
        api.upload_folder(
            repo_id=to,
            folder_path=path,
            commit_message="Upload a model of tinybert_jax",
            ignore_patterns=["report.html", "report.md"],
        )
    except InputError:
        raise
    except HfHubHTTPError as error:
        answer = " ".join((error.server_message or first_line(error)).split())
        raise InputError(f"{to}: {_refusal(error.response.status_code)} ({answer})") from None
    except Exception as error:  # of httpx, or of a file that cannot be read
        raise InputError(f"{to}: could not be uploaded to {constants.ENDPOINT} ({first_line(error)})") from None
    return str(address)


def _refusal(status: int) -> str:
    if status == 401:
        return f"the hub does not take your token: {LOGIN}"
    if status == 403:
        return "your token may not write there: take a token that may write, or a repository of your own"
    return "the hub refused the upload"
