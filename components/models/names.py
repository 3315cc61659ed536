"""Names of models: which of them are folders on this machine, and their labels in columns' names. No torch here."""

from __future__ import annotations

from pathlib import Path

from components.base.errors import PermanentError
from components.engine.stage import readable

LOCAL_DIR = "local-dir:"  # open_clip's prefix
OPEN_CLIP = "open_clip:"  # ours, for a captioner that is open_clip's: open_clip:<model>/<pretrained tag>


def model_folder(model: str) -> Path | None:
    """Return the folder that a model's name means (a path, or `local-dir:` and a path); None for any other name.

    Raises:
        PermanentError: it is written as a path and nothing is there.
    """
    name = model.removeprefix(LOCAL_DIR)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if model != name or (name.startswith(("/", "./", "../", "~")) and not path.is_file()):
        raise PermanentError(f"model {name}: there is no such folder; give a folder that exists or a model's name")
    return None


def model_label(*names: str | None) -> str:
    """Make a readable label that is fit for a folder's name: `vit-l-14-openai`, `blip2-opt-2.7b`; None is left out.

    A path or a hub's name counts with its last part, `open_clip:<model>/<tag>` with both.
    """
    return "-".join(
        readable(n.removeprefix(OPEN_CLIP).replace("/", "-") if n.startswith(OPEN_CLIP) else n) for n in names if n
    )
