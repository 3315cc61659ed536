"""What not every test may set up: a small disk that fills, a user that is not root or has no name, no network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NOBODY = 65534
NAMELESS = 65532  # the images' user, who has no line in /etc/passwd


@contextmanager
def full_disk(folder: Path, size: str = "1m") -> Iterator[Path]:
    """A disk of its own; the test is skipped where it can't be had."""
    if os.getuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    folder.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=False)
    if mounted.returncode:
        pytest.skip("this container may not mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def open_to_all(folder: Path) -> None:
    """Let others pass through pytest's private folders."""
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == os.getuid() and parent != Path(parent.anchor):
            parent.chmod(parent.stat().st_mode | 0o055)


def without_root(imports: str, code: str) -> str:
    """What Python code prints that runs as nobody; the imports run before, since this user may not reach them."""
    if os.getuid() != 0:
        pytest.skip("dropping root needs root")
    program = f"{imports}\nimport os\nos.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n{code}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def nameless() -> list[str]:
    """Begin a command with this, and it runs as a user by number only, as in a container.

    It runs in a user namespace of its own: its files stay those of who runs the tests, which may not be readable to
    others. The test is skipped where none can be made.
    """
    variables = [f"--unset={name}" for name in ("LOGNAME", "USER", "LNAME", "USERNAME")]
    prefix = ["env", *variables, "unshare", "--user", f"--map-user={NAMELESS}", f"--map-group={NAMELESS}"]
    ask = [*prefix, sys.executable, "-c", "import getpass; getpass.getuser()"]
    asked = subprocess.run(ask, capture_output=True, text=True, check=False)
    if "KeyError" not in asked.stderr:
        pytest.skip(f"a process of a user without a name can't be had here: {asked.stderr.strip() or 'it has one'}")
    return prefix


def without_network(*command: str) -> list[str]:
    """The command line that runs `command` where there is the loopback device only and the host's name resolves to
    nothing, as in a container of `docker run --network none`; the test is skipped where it can't be had."""
    prepare = 'ip link set lo up && hostname nobody.invalid && exec "$@"'
    alone = ["unshare", "--net", "--uts", *(["--map-root-user"] if os.getuid() else []), "sh", "-c", prepare, "sh"]
    if any(shutil.which(tool) is None for tool in ("unshare", "ip", "hostname")):
        pytest.skip("a machine without a network is made by unshare, ip and hostname")
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this container may not make a network of its own")
    return [*alone, *command]
