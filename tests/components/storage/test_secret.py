"""A mounted Secret's values, where no variable of the environment has them."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from huggingface_hub import constants

from components.storage import hub
from components.storage.secret import secret
from tests.components.storage.faulty import serving
from tests.components.storage.s3_server import Secret


def test_the_mounted_file_goes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted = Secret(tmp_path / "secret")
    monkeypatch.setenv("RECAPTION_SECRET_FOLDER", str(tmp_path / "secret"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert secret("HF_TOKEN") is None
    monkeypatch.setenv("HF_TOKEN", "of the environment")
    assert secret("HF_TOKEN") == "of the environment"
    mounted.mount({"HF_TOKEN": "of the Secret\n"})
    assert secret("HF_TOKEN") == "of the Secret"


def test_the_hub_is_asked_with_the_mounted_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Secret(tmp_path / "secret").mount({"HF_TOKEN": "hf_mounted"})
    tokens: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            tokens.append(self.headers["Authorization"])
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    hub.forget()
    with serving(Handler) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("RECAPTION_SECRET_FOLDER", str(tmp_path / "secret"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        assert hub.ask_hub("org/gated", None).problem
    hub.forget()
    assert tokens == ["Bearer hf_mounted"]
