"""A content-addressed store of finished stages."""

import dataclasses
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from emjax.errors import UserError
from emjax.runtime import process
from emjax.runtime.files import digest, dumps, loads, sha256_of, write_atomically
from emjax.runtime.locks import alone

STORE_FORMAT = 2  # format of manifests, stage files and work directories; 1 was version 0.1
# A stage's folder for files that only an unfinished stage needs. It is not part of the output and
# is removed when the stage finishes.
SCRATCH = "checkpoints"


@dataclasses.dataclass(frozen=True)
class Stage:
    """A finished stage: its directory, and the hash of its config and inputs."""

    name: str
    hash: str
    directory: Path


class Store:
    def __init__(self, root: Path):
        self.root = root

    def run(
        self,
        name: str,
        config: dict[str, Any],
        inputs: Sequence[Stage | str],
        make: Callable[[Path], None],
        *,
        version: int = 1,
    ) -> Stage:
        """Runs make(directory) unless this stage is finished. `inputs`: stages, or hashes of data
        outside the store.

        version: the stage's own version. Raise it when the stage's output changes, so that older
        outputs are not reused.

        The manifest is written last, so a stage without a manifest is unfinished: it runs again in
        the same directory and may resume from the files it finds there. If another run is making
        the stage, this one waits. Raises UserError if a file of a finished stage is not what it
        was, with the command that has it made anew.
        """
        keys = [i.hash if isinstance(i, Stage) else i for i in inputs]
        identity = digest(
            {"store_format": STORE_FORMAT, "stage": name, "stage_version": version, "config": config, "inputs": keys}
        )
        stage = Stage(name, identity, self.root / name / identity[:16])
        if not self._finished(stage):
            with alone(self.root / "locks" / f"{name}-{identity[:16]}", f"stage {name}"):
                if not self._finished(stage):  # another run may have finished it during the wait
                    self._make(stage, version, config, keys, make)
        return stage

    def _finished(self, stage: Stage) -> bool:
        return bool(process.on_first(lambda: self._sound(stage)))

    def _sound(self, stage: Stage) -> bool:
        """Whether the stage is finished. Raises UserError unless every file has the manifest's
        content."""
        manifest = stage.directory / "manifest.json"
        if not manifest.is_file():
            return False
        try:
            known = loads(manifest.read_bytes())
            files = {stage.directory / file: (one["size"], one.get("sha256")) for file, one in known["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(stage, manifest) from error
        if known.get("hash") != stage.hash:
            raise self._damaged(stage, manifest)
        for path, (size, sha256) in files.items():
            if not path.is_file() or path.stat().st_size != size or (sha256 and sha256_of(path) != sha256):
                raise self._damaged(stage, path)
        if not all(sha256 for _, sha256 in files.values()):
            process.note(f"{self.root}: stages without hashes, checked by size alone; their files are hashed now.")
            known["files"] = {file: _known(stage.directory / file) for file in known["files"]}
            write_atomically(manifest, _text(known))
        return True

    def _damaged(self, stage: Stage, path: Path) -> UserError:
        """What to say of a damaged file: which stages to make anew, those made from it included."""
        folders = " ".join(shlex.quote(str(folder)) for folder in self._downstream(stage))
        return UserError(
            f"{path} is missing or was changed since the stage {stage.name!r} finished, so nothing that was made from it is "
            f"used. Start the same command again after:  rm -r {folders}"
        )

    def _downstream(self, stage: Stage) -> list[Path]:
        """The stage's folder, and those of all finished stages that were made from it."""
        inputs: dict[Path, tuple[str, list[str]]] = {}
        for manifest in sorted(self.root.glob("*/*/manifest.json")):
            try:
                known = loads(manifest.read_bytes())
                inputs[manifest.parent] = known["hash"], known["inputs"]
            except (ValueError, KeyError, TypeError):
                continue  # found when that stage is read
        found, hashes = [stage.directory], {stage.hash}
        while more := [f for f, (_, given) in inputs.items() if f not in found and hashes & set(given)]:
            found += more
            hashes |= {inputs[folder][0] for folder in more}
        return found

    def _make(self, stage: Stage, version: int, config: dict[str, Any], keys: list[str], make: Callable[[Path], None]) -> None:
        process.on_first(lambda: stage.directory.mkdir(parents=True, exist_ok=True))
        if not stage.directory.is_dir():
            raise UserError(
                f"Process {process.index} of {process.count} does not see {stage.directory}, which process 0 created. Several "
                "hosts need --workdir and --store on a shared file system."
            )
        make(stage.directory)
        process.together("stage")
        process.on_first(lambda: self._finish(stage, version, config, keys))

    def _finish(self, stage: Stage, version: int, config: dict[str, Any], keys: list[str]) -> None:
        files = sorted(p.relative_to(stage.directory) for p in stage.directory.rglob("*") if p.is_file())
        written = {
            "store_format": STORE_FORMAT,
            "stage": stage.name,
            "stage_version": version,
            "hash": stage.hash,
            "config": config,
            "inputs": keys,
            "files": {str(p): _known(stage.directory / p) for p in files if p.parts[0] != SCRATCH},
        }
        write_atomically(stage.directory / "manifest.json", _text(written))


def _text(manifest: dict[str, Any]) -> str:
    return dumps(manifest, indent=1, sort_keys=True)


def _known(path: Path) -> dict[str, Any]:
    """A file's entry in the manifest."""
    return {"size": path.stat().st_size, "sha256": sha256_of(path)}
