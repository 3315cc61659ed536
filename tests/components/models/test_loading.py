"""What a library raises while loading is bad input or bad luck, in one line."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import huggingface_hub
import pytest
import torch
from huggingface_hub.utils._http import default_client_factory

from components.base.errors import PermanentError, TemporaryError
from components.models.captioners import load_captioner
from components.models.clip import load_clip
from components.models.loading import loading
from components.models.names import model_label

Answer = Callable[[httpx2.Request], httpx2.Response]


def unknown(request: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(404, headers={"X-Error-Code": "RepoNotFound"}, request=request)


def gated(request: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(401, headers={"X-Error-Code": "GatedRepo"}, request=request)


def overloaded(request: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(503, request=request)


def unreachable(request: httpx2.Request) -> httpx2.Response:
    raise httpx2.ConnectError("[Errno -2] Name or service not known", request=request)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[Answer], None]]:
    """Lets every request to the hub be answered by a function; nothing is cached, no retry waits."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(time, "sleep", lambda _: None)

    def answer_by(answer: Answer) -> None:
        huggingface_hub.set_client_factory(lambda: httpx2.Client(transport=httpx2.MockTransport(answer)))

    yield answer_by
    huggingface_hub.set_client_factory(default_client_factory)


LOADS = {
    "clip from the hub": lambda: load_clip("hf-hub:org/clip"),
    "clip by tag": lambda: load_clip("ViT-L-14", "openai"),
    "captioner": lambda: load_captioner("org/blip2"),
    "captioner at a revision": lambda: load_captioner("org/blip2", "v1"),
    "coca": lambda: load_captioner("open_clip:coca_ViT-L-14/laion2b_s13b_b90k"),
}


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS.keys())
@pytest.mark.parametrize(
    ("answer", "kind", "advice"),
    [
        (unknown, PermanentError, "check its name, its files and your access to it"),
        (gated, PermanentError, "check its name, its files and your access to it"),
        (overloaded, TemporaryError, "run again"),
        (unreachable, TemporaryError, "run again"),
    ],
)
def test_the_hub_fails(
    hub: Callable[[Answer], None], load: Callable[[], object], answer: Answer, kind: type[Exception], advice: str
) -> None:
    hub(answer)
    with pytest.raises(kind, match=f"can't be loaded: .*; {advice}") as caught:
        load()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), TemporaryError),
        (TimeoutError("timed out"), TemporaryError),
        (PermissionError(errno.EACCES, "denied"), PermanentError),
        (RuntimeError("Error(s) in loading state_dict:\n\tMissing key(s)\n" * 100), PermanentError),
        (torch.OutOfMemoryError("CUDA out of memory"), PermanentError),
    ],
)
def test_other_failures(error: Exception, kind: type[Exception]) -> None:
    def wrapped() -> None:
        try:
            raise error
        except type(error) as cause:
            raise RuntimeError(f"could not: {cause}") from cause

    with pytest.raises(kind) as caught, loading("model x"):
        wrapped()
    assert str(caught.value).startswith("model x: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 420


@pytest.mark.parametrize(
    ("names", "label"),
    [
        (("ViT-L-14", "openai"), "vit-l-14-openai"),
        (("Salesforce/blip2-opt-2.7b", None), "blip2-opt-2.7b"),
        (("local-dir:/models/My CLIP/", None), "my-clip"),
        (("open_clip:coca_ViT-L-14/laion2b_s13b_b90k",), "coca-vit-l-14-laion2b-s13b-b90k"),
        (("ViT-B-32", "/runs/x/epoch_5.pt"), "vit-b-32-epoch-5.pt"),
    ],
)
def test_labels(names: tuple[str | None, ...], label: str) -> None:
    assert model_label(*names) == label
