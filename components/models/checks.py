"""What a plan can say of the models that a recipe names, before any is loaded: which can't work, and what is not known.

No torch and no open_clip: a plan is made where neither is installed. What is said here, loading would say hours later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from components.base.errors import PermanentError
from components.engine.stage import Finding
from components.models.known import doubt, known_models, tag_of
from components.models.names import LOCAL_DIR, OPEN_CLIP, model_folder
from components.storage.addressed import is_address, look_up
from components.storage.hub import COMMIT, HF_HUB, ask_hub, repository_of
from components.storage.model_files import OPEN_CLIP_CONFIG, checkpoint_among, find_checkpoint, read_object

CONFIG = "config.json"
PATH = ("/", "./", "../", "~")  # how a name begins that can only be a path
CAPTIONERS = ("blip", "blip-2")  # transformers' model_type
Config = Mapping[str, Any]


def check_captioner(model: str, revision: str | None, where: str) -> Iterator[Finding]:
    """Yield what a plan says of a captioner; `where` is the place of its options."""
    if model.startswith(OPEN_CLIP):
        name, _, weights = model.removeprefix(OPEN_CLIP).partition("/")
        yield from _check_known(name, weights or None, where, "model", captions=True)
        return

    def judge(configs: Mapping[str, Config]) -> str | None:
        if OPEN_CLIP_CONFIG in configs:
            return _not_open_clip(configs[OPEN_CLIP_CONFIG], captions=True)
        if CONFIG not in configs:
            return f"has no {CONFIG}; give a BLIP, BLIP-2 or CoCa"
        return _not_blip(configs[CONFIG])

    yield from _check(model, revision, f"{where}.model", judge)


def check_clip(model: str, weights: str | None, where: str) -> Iterator[Finding]:
    """Yield what a plan says of a CLIP; `where` is the place of the options `model` and `weights`."""
    is_file = weights is not None and (is_address(weights) or Path(weights).is_file())
    if is_address(weights) and (said := _no_file(weights)):
        yield Finding(f"{where}.weights: {said}")
        return

    def judge(configs: Mapping[str, Config]) -> str | None:
        return _not_open_clip(configs.get(OPEN_CLIP_CONFIG), captions=False)

    if model.endswith(".json") and is_address(model) and (said := _no_file(model)):
        yield Finding(f"{where}.model: {said}")
    elif model.endswith(".json") and (is_address(model) or Path(model).is_file()):
        if not is_file:
            yield Finding(f"{where}.weights: a model config needs a checkpoint file, found {weights}")
    elif model.startswith((HF_HUB, LOCAL_DIR)) or "/" in model or Path(model).expanduser().is_dir():
        if weights is not None and not is_file:
            yield Finding(f"{where}.weights: {model} brings its weights, and {weights} is no file; leave weights out")
        if not model.startswith((HF_HUB, LOCAL_DIR)) and repository_of(model):
            yield Finding(f"{where}.model: {model} is no folder; for a model of the hub write {HF_HUB}{model}")
        else:
            yield from _check(model, None, f"{where}.model", judge, complete=not is_file)
    else:
        yield from _check_known(model, weights, where, "weights")


def check_classifier(model: str, revision: str | None, label: str, where: str) -> Iterator[Finding]:
    """Yield what a plan says of a text classifier of which a label is asked for."""

    def judge(configs: Mapping[str, Config]) -> str | None:
        config = configs.get(CONFIG)
        if config is None:
            return f"has no {CONFIG}; give a sequence classifier of transformers"
        built = [str(name) for name in config.get("architectures") or ()]
        if built and not any(name.endswith("ForSequenceClassification") for name in built):
            return f"is a {', '.join(built)}, expected a sequence classifier"
        labels = [str(name) for name in (config.get("id2label") or {}).values()]
        return f"has no label {label}; there is {', '.join(labels)}" if labels and label not in labels else None

    yield from _check(model, revision, f"{where}.model", judge)


def check_student(model: str, where: str) -> Iterator[Finding]:
    """Yield what a plan says of the architecture that is to be trained."""
    if model.endswith(".json") and is_address(model):
        if said := _no_file(model):
            yield Finding(f"{where}: {said}")
    elif model.endswith(".json") and not Path(model).is_file():
        yield Finding(f"{where}: {model} does not exist; give a model config of open_clip's, or the name of a model")
    elif not model.endswith(".json") and model not in known_models():
        yield Finding(f"{where}: open_clip has no model {model}{_perhaps(model, known_models())}")


def _check(
    model: str,
    revision: str | None,
    where: str,
    judge: Callable[[Mapping[str, Config]], str | None],
    complete: bool = True,
) -> Iterator[Finding]:
    """Look at the configs of a folder or of a hub's repository; `complete`: a folder must have open_clip's weights."""
    repository = repository_of(model)
    if repository is None:
        try:
            found, weights = _in_bucket(model) if is_address(model) else _in_folder(model)
        except PermanentError as error:
            yield Finding(f"{where}: {error}")
            return
        if said := judge(found):
            yield Finding(f"{where}: {model} {said}")
        elif complete and OPEN_CLIP_CONFIG in found and weights is None:
            yield Finding(f"{where}: {model} has no weights beside its {OPEN_CLIP_CONFIG}")
        return
    hub = ask_hub(repository, revision)
    if hub.problem:
        yield Finding(f"{where}: {repository}: {hub.problem}")
    elif hub.commit is None:
        pinned = "" if COMMIT.fullmatch(revision or "") else "; give `revision` a commit, which is part of the name"
        yield Finding(f"{where}: {repository} was not checked: {hub.unasked}{pinned}", False)
    elif said := judge(hub.configs):
        yield Finding(f"{where}: {repository} {said}")
    elif hub.commit != revision:
        yield Finding(f"{where}: {repository} is taken at {revision or 'main'}'s commit {hub.commit}", False)


def _in_folder(model: str) -> tuple[dict[str, Config], Path | None]:
    """Return a folder's configs by name and its open_clip weights. Raises PermanentError: it is no folder."""
    if is_address(name := model.removeprefix(LOCAL_DIR)):
        raise PermanentError(f"{name} is an address; leave {LOCAL_DIR} out")
    try:
        folder = model_folder(model)
    except PermanentError as error:
        raise PermanentError(f"{name} does not exist; give a folder or a model's name") from error
    if folder is None:
        raise PermanentError(f"{model} is no folder, and no name of a hub's model (organisation/name)")
    there = [name for name in (CONFIG, OPEN_CLIP_CONFIG) if (folder / name).is_file()]
    return {name: read_object(folder / name) for name in there}, find_checkpoint(folder)


def _in_bucket(address: str) -> tuple[dict[str, Config], str | None]:
    """Return what `_in_folder` does, of a folder in a bucket. Raises PermanentError: it is none."""
    found = look_up(address)
    if found.file:
        raise PermanentError(f"{address} is a file; give the model's folder")
    there = [name for name in (CONFIG, OPEN_CLIP_CONFIG) if name in found.names]
    return {name: found.read_object(name) for name in there}, checkpoint_among(found.names)


def _no_file(address: str) -> str | None:
    """Say why an address is of no use as a file; None where it is one."""
    try:
        return None if look_up(address).file else f"{address} is a folder; give the file in it"
    except PermanentError as error:
        return str(error)


def _check_known(name: str, weights: str | None, where: str, key: str, captions: bool = False) -> Iterator[Finding]:
    """Check a name of open_clip's list, and a tag of its weights or a file, which the option `key` has."""
    names = [key for key, known in known_models().items() if known.captions or not captions]
    if name not in names:
        what = "no CoCa" if captions else "no model"
        yield Finding(f"{where}.model: open_clip has {what} {name}{_perhaps(name, names)}")
        return
    where = f"{where}.{key}"
    if weights is not None and weights.startswith(PATH) and not Path(weights).is_file():
        yield Finding(
            f"{where}: {weights} does not exist; give a file or one of {', '.join(known_models()[name].tags)}"
        )
        return
    is_file = weights is not None and (is_address(weights) or Path(weights).is_file())
    if weights is None or (tag_of(name, weights) is None and not is_file):
        tags = known_models()[name].tags
        yield Finding(
            f"{where}: {name} has no weights {weights}; give a checkpoint file or one of {', '.join(tags) or 'none'}"
        )
        return
    try:
        if said := doubt(name, weights):
            yield Finding(f"{where}: {said}", False)
    except PermanentError as error:
        yield Finding(f"{where}: {error}")


def _not_open_clip(config: Config | None, captions: bool) -> str | None:
    """Say why an open_clip_config.json is of no use here; None where it is."""
    if config is None:
        return f"has no {OPEN_CLIP_CONFIG}; give a model of open_clip"
    model = config.get("model_cfg")
    if not isinstance(model, dict):
        return f"has no model_cfg in its {OPEN_CLIP_CONFIG}; give a model of open_clip"
    if captions and "multimodal_cfg" not in model:
        return "is a CLIP, which has no text decoder; give a CoCa, BLIP or BLIP-2"
    return None


def _not_blip(config: Config) -> str | None:
    """Say why a config.json is of no captioner that can be run; None where it is of one."""
    built = [str(name) for name in config.get("architectures") or ()]
    kind = config.get("model_type")
    if kind not in CAPTIONERS:
        named = f" ({', '.join(built)})" if built else ""
        return f"is a {kind} model{named}; supported are blip, blip-2 and open_clip's CoCa"
    if built and not any(name.endswith("ForConditionalGeneration") for name in built):
        return f"is a {', '.join(built)}, which writes no captions; give a model made to caption"
    end, text = ("sep_token_id" if kind == "blip" else "eos_token_id"), config.get("text_config")
    if isinstance(text, dict) and end in text and text[end] is None:
        return f"has no text_config.{end}, the token that ends a caption; add it to its {CONFIG}"
    return None


def _perhaps(name: str, names: Any) -> str:
    found = get_close_matches(name, list(names), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(found)}?" if found else "; open_clip.list_models() lists them"
