"""The images: what the Dockerfile promises, and the smallest one built and run where there is a Docker daemon.

RECAPTION_TEST_DEMO=1 builds the largest one too (7 GB) and runs the demo in it: a quarter of an hour and more.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from uuid import uuid4

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.pipelines.operator.place import Place, place, until
from tests.pipelines.operator.process import running

ROOT = Path(__file__).parent.parent.parent
DOCKERFILE = ROOT / "images" / "Dockerfile"
BASE = os.environ.get("RECAPTION_TEST_BASE", "python:3.11-slim-bookworm")
LOCKED_DOWN = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")
ALONE = (*LOCKED_DOWN, "--network=none")
SCRATCH = "--tmpfs=/scratch"


def docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)


def test_every_dependency_is_locked_at_a_version_that_it_allows() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(r) for r in (*project["dependencies"], *extras["cpu"], *extras["s3"], *extras["stages"])]
    lines = (ROOT / "images" / "constraints.txt").read_text().splitlines()
    locked = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    for requirement in wanted:
        if requirement.name != "recaption":
            version = locked.get(canonicalize_name(requirement.name))
            assert version is not None, f"{requirement.name} is not locked: run `make lock`"
            assert requirement.specifier.contains(version), f"{requirement} but locked {version}: run `make lock`"


def hashed(*names: str) -> dict[str, tuple[str, list[str]]]:
    """Version and hashes of each package in these lists."""
    text = "\n".join((ROOT / "images" / f"{name}.txt").read_text() for name in names)
    entries = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)((?: \\\n +--hash=sha256:[0-9a-f]{64})+)$", text, re.MULTILINE)
    assert len(entries) == text.count("=="), "an entry without a version, or without a hash"
    return {canonicalize_name(name): (version, more.split("sha256:")[1:]) for name, version, more in entries}


def test_every_package_of_an_image_has_the_version_that_was_tested_and_the_hashes_of_its_files() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras, lists = project["optional-dependencies"], ["operator", "cpu", "gpu"]
    wanted = {"operator": [*project["dependencies"], *extras["s3"]], "cpu": extras["cpu"], "gpu": extras["stages"]}
    lines = (ROOT / "images" / "constraints.txt").read_text().splitlines()
    tested = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    for i, name in enumerate(lists):
        found = hashed(*lists[: i + 1])
        names = {canonicalize_name(Requirement(text).name) for text in wanted[name]} - {"recaption"}
        assert names <= found.keys(), "run `make lock`"
        others = {
            package: version for package, (version, _) in found.items() if tested.get(package, version) != version
        }
        assert not others, "run `make lock`"
    assert "torch" not in hashed("operator", "cpu")
    assert "setuptools" in hashed("build")


def test_nothing_is_installed_but_by_its_hash() -> None:
    text = DOCKERFILE.read_text().replace("\\\n", "")
    installs = re.findall(r"pip install([^&\n]*)", text)
    assert len(installs) == 7
    ours = " --no-deps --no-build-isolation --prefix /code ."
    assert [line for line in installs if "--require-hashes" not in line] == [ours]


@pytest.mark.parametrize("image", ["", "python:3.11-slim-bookworm"])
def test_images_are_made_of_a_base_that_is_named_by_its_digest(image: str) -> None:
    command = ["make", "-o", ".venv/.ready", "images", f"PYTHON_IMAGE={image}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"PYTHON_IMAGE: found '{image}'; expected a base image by its digest" in done.stderr
    assert "docker build" not in done.stdout


def test_images_run_as_a_numeric_user_and_start_recaption() -> None:
    lines = DOCKERFILE.read_text().splitlines()
    assert "USER 65532:65532" in lines
    assert 'ENTRYPOINT ["recaption"]' in lines
    assert not any(line.startswith(("HEALTHCHECK", "ADD")) for line in lines)
    finals = [line.split(" AS ")[1] for line in lines if line.startswith("FROM runtime AS ")]
    assert finals == ["operator", "cpu", "gpu"]


def built(target: str) -> str:
    """Build an image, and return its tag; the test is skipped where that can't be done."""
    if shutil.which("docker") is None or docker("info", "--format", "{{.ServerVersion}}").returncode:
        pytest.skip("no Docker daemon")
    if docker("image", "inspect", BASE).returncode and docker("pull", "-q", BASE).returncode:
        pytest.skip(f"no base image {BASE}: it is not here and can't be pulled")
    tag = f"recaption-{target}:test"
    settings = [f"--build-arg={name}" for name in ("PIP_INDEX_URL", "PIP_FIND_LINKS") if os.environ.get(name)]
    done = docker("build", "-f", str(DOCKERFILE), f"--target={target}", f"--build-arg=PYTHON_IMAGE={BASE}",
                  "--network=host", *settings, "-t", tag, str(ROOT))  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return tag


@pytest.fixture(scope="module")
def image() -> str:
    return built("operator")


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Place]:
    with place(tmp_path) as found:
        yield found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_smallest_image_is_built_and_runs_locked_down(image: str) -> None:
    version = docker("run", "--rm", *ALONE, SCRATCH, image, "--version")
    assert version.returncode == 0, version.stderr
    assert version.stdout.startswith("recaption ")
    listing = docker("run", "--rm", *ALONE, SCRATCH, image, "stages")
    assert "reshard" in listing.stdout, listing.stderr

    check = "import os, importlib.util as u; print(os.getuid(), u.find_spec('torch'), u.find_spec('pip'))"
    writes = "open('written', 'w').close(); print(os.listdir('/scratch'))"
    inside = docker("run", "--rm", *ALONE, SCRATCH, "--entrypoint=python3", image, "-c", f"{check}; {writes}")
    assert inside.stdout.split() == ["65532", "None", "None", "['written']"], inside.stderr
    assert docker("run", "--rm", "--entrypoint=sh", image, "-c", "command -v gcc cc make").returncode != 0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("user", [65532, 1000710000])
def test_libraries_find_a_name_for_a_user_that_is_a_number(image: str, user: int) -> None:
    """Also for a number that the cluster chooses, as OpenShift does."""
    check = "import getpass, pathlib; print(getpass.getuser(), pathlib.Path.home())"
    inside = docker("run", "--rm", *ALONE, f"--user={user}", "--entrypoint=python3", image, "-c", check)
    assert inside.stdout.split() == ["recaption", "/scratch"], inside.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_operator_works_locked_down(image: str, here: Place) -> None:
    def command(environment: dict[str, str]) -> Sequence[str]:
        values = [f"--env={name}={value}" for name, value in environment.items()]
        config = f"--volume={environment['KUBECONFIG']}:{environment['KUBECONFIG']}:ro"
        return ["docker", "run", "--rm", f"--name={name}", *LOCKED_DOWN, "--network=host", SCRATCH, *values, config,
                image, "operator"]  # fmt: skip

    name = f"recaption-test-{uuid4().hex}"
    try:
        with running(here, command) as operator:
            here.apply(suspend=True)
            until(lambda: operator.process.poll() is not None or here.status().get("phase") == "Suspended")
            assert operator.process.poll() is None, operator.log.read_text()
            assert operator.stop() == 0
    finally:
        docker("rm", "--force", name)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not os.environ.get("RECAPTION_TEST_DEMO"), reason="takes long: RECAPTION_TEST_DEMO is not set")
def test_the_demo_runs_without_a_network_on_a_read_only_image() -> None:
    image = built("gpu")
    demo = docker("run", "--rm", *ALONE, SCRATCH, image, "demo", "/scratch/demo")
    assert demo.returncode == 0, demo.stderr[-2000:]
    table, run, report = demo.stdout.splitlines()[-6:-2], *demo.stdout.splitlines()[-2:]
    assert [line.split()[0] for line in table] == ["raw", "raw-top30", "synthetic", "raw-top30-plus-synthetic"]
    assert run.split()[1].startswith("/scratch/demo/runs/demo-")
    assert report.split()[1].endswith("/report.html")


def test_what_the_dockerfile_copies_is_sent_to_the_builder() -> None:
    """A file that .dockerignore leaves out ends `docker build` at its COPY."""
    rules = (ROOT / ".dockerignore").read_text().split()
    lines = DOCKERFILE.read_text().splitlines()
    copied = {
        path for line in lines if line.startswith("COPY ") and "--from" not in line for path in line.split()[1:-1]
    }
    assert {"images/build.txt", "pyproject.toml"} < copied

    def sent(path: str) -> bool:
        matching = [rule for rule in rules if fnmatch(path, rule.removeprefix("!"))]
        return not matching or matching[-1].startswith("!")

    assert [path for path in sorted(copied) if not sent(path)] == []
