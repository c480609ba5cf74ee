"""Where a checkpoint is, apart from what is made of it: a Hugging Face folder, a hub id or a GGUF
file. No pickle, no remote code."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from emjax.errors import UserError
from emjax.models import files

_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
TEMPLATES = "additional_chat_templates"
INDEX = "model.safetensors.index.json"
# What transformers makes a tokenizer from.
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip


class Handle(Protocol):
    """Open tensors, as `safetensors.safe_open` gives them."""

    def keys(self) -> list[str]: ...
    def get_tensor(self, name: str) -> Any: ...
    def get_slice(self, name: str) -> Any:
        """A tensor still in its file: get_shape(), get_dtype() (BF16, F16 or F32), and [index] as
        an array of numpy."""


class Source(Protocol):
    """A checkpoint that can be read. Every method raises UserError for what is damaged."""

    @property
    def name(self) -> str:
        """The folder or file as it was given, or the hub id without its revision."""

    @property
    def revision(self) -> str:
        """The commit of a checkpoint from the hub; "" for a local one."""

    @property
    def path(self) -> Path:
        """The folder or file on this machine."""

    @property
    def config_file(self) -> str:
        """What messages call the place that config() was read from."""

    def config(self) -> dict[str, Any]:
        """The content of config.json."""

    def generation(self) -> dict[str, Any]:
        """The content of generation_config.json; {} if there is none."""

    def handles(self) -> Iterator[tuple[str, Handle]]:
        """The weights, file by file: (name for messages, open file). One is open at a time."""

    def tokenizer(self) -> Any:
        """A tokenizer of transformers; it may have no chat template."""

    def digest(self) -> str:
        """SHA-256 over exactly what the methods above read."""


def open_source(path: str | Path) -> Source:
    """A folder, a file that ends in .gguf, or a hub id OWNER/NAME[@REVISION], which is downloaded
    or taken from the cache.

    A Path is always local. Raises UserError, with the reason, if there is no such checkpoint.
    """
    local = Path(path)
    if local.is_dir():
        return Folder(local, str(path))
    if is_local_source(local):
        from emjax.models import gguf

        source: Source = gguf.File(local)
        return source
    if isinstance(path, Path) or not is_hub_id(path):
        raise UserError(
            f"The checkpoint directory {str(path)!r} does not exist. Give a directory written by save_pretrained, a .gguf "
            "file, or a hub id of the form owner/name."
        )
    return _from_hub(path)


def is_local_source(path: str | Path) -> bool:
    """Whether this machine has a folder or a GGUF file there."""
    return Path(path).is_dir() or (Path(path).suffix == ".gguf" and Path(path).is_file())


def is_hub_id(path: str) -> bool:
    return not path.startswith((".", "/", "~")) and not path.endswith(".gguf") and path.count("/") == 1


def _from_hub(path: str) -> "Folder":
    """Pickled files are not downloaded. An interrupted download resumes where it stopped."""
    import huggingface_hub
    from huggingface_hub import errors

    name, _, revision = path.partition("@")
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision or None, allow_patterns=_FILES, ignore_patterns=["*/*"]
        )
    except errors.GatedRepoError as error:
        advice = f"Accept its licence at https://huggingface.co/{name} and log in with `hf auth login`."
        raise UserError(f"The checkpoint {path!r} is gated, and access was not granted. {advice}") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"The checkpoint {name!r} has no revision {revision!r}; give a branch, a tag or a commit.") from error
    except errors.RepositoryNotFoundError as error:
        advice = "Check the name; if it is private, log in with `hf auth login`."
        raise UserError(f"The checkpoint {path!r} is neither a local directory nor a hub id that exists. {advice}") from error
    except Exception as error:  # a network or a cache can fail in many ways
        why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        command = f"hf download {name}" + (f" --revision {revision}" if revision else "")
        raise UserError(
            f"The checkpoint {path!r} is not a local directory, and the download from the hub failed ({why}). If you are "
            f"offline, download it elsewhere with `{command}` and pass the directory, or copy the cache directory that HF_HOME "
            "names."
        ) from error
    # The cache names a snapshot's folder after its commit.
    return Folder(Path(folder), name, Path(folder).name)


def cached_config(path: str) -> Path | None:
    """The config.json of a hub id, if this machine's cache has it. Downloads nothing."""
    import huggingface_hub

    name, _, revision = path.partition("@")
    try:
        found = huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision or None)
    except ValueError:  # no hub id
        return None
    return Path(found) if isinstance(found, str) else None


@dataclasses.dataclass(frozen=True)
class Folder:
    """A directory written by save_pretrained: a Source."""

    path: Path
    name: str
    revision: str = ""

    @property
    def config_file(self) -> str:
        return str(self.path / "config.json")

    def config(self) -> dict[str, Any]:
        if not (self.path / "config.json").is_file():
            raise UserError(
                f"{self.path} contains no config.json, so it is not a Hugging Face checkpoint directory. "
                "Point to a directory written by save_pretrained (config.json, *.safetensors, tokenizer files)."
            )
        return files.read_object(self.path / "config.json")

    def generation(self) -> dict[str, Any]:
        file = self.path / "generation_config.json"
        return files.read_object(file) if file.is_file() else {}

    def handles(self) -> Iterator[tuple[str, Handle]]:
        for file in self._weight_files():
            with files.open_tensors(file) as handle:
                yield str(file), handle

    def _weight_files(self) -> list[Path]:
        """The files that transformers would read: the single file, or those in the index."""
        single, index = self.path / "model.safetensors", self.path / INDEX
        if (self.path / "adapter_config.json").exists() and (single.exists() or index.exists()):
            raise UserError(
                f"{self.path} holds the weights of a model and an adapter_config.json; transformers would load the base that "
                "the adapter names in place of these weights. Move the one that is not wanted to another folder."
            )
        if single.is_file():
            return [single]
        if not index.is_file():
            raise UserError(
                f"{self.path} contains no model.safetensors and no {INDEX}. emjax does not read "
                "pickled weights; convert them with transformers (save_pretrained)."
            )
        named = files.read_object(index).get("weight_map")
        if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
            raise UserError(f"{index} is not an index of weight files: it has no weight_map; fetch the checkpoint again.")
        for name in named.values():
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise UserError(
                    f"{index} names the weight file {name!r}; it must name safetensors files of its own folder. "
                    "Move the file there, or fetch the checkpoint again."
                )
        return [self.path / name for name in sorted(set(named.values()))]

    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        for name in TOKENIZER:
            if (self.path / name).exists():
                files.regular(self.path / name)
        # Transformers would continue with an empty vocabulary.
        if not (self.path / "tokenizer.json").is_file():
            raise UserError(f"{self.path} contains no tokenizer.json; fetch the checkpoint again, with its tokenizer.")
        try:
            return AutoTokenizer.from_pretrained(self.path, trust_remote_code=False)
        except Exception as error:
            why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            raise UserError(
                f"{self.path}: the tokenizer cannot be loaded ({why}). The directory needs tokenizer.json and "
                "tokenizer_config.json."
            ) from error

    def digest(self) -> str:
        weights = self._weight_files()
        index = [] if weights[0].name == "model.safetensors" else [self.path / INDEX]
        other = [self.path / name for name in ("config.json", "generation_config.json", *TOKENIZER)]
        templates = (self.path / TEMPLATES).glob("*.jinja")
        return files.digest(self.path, [*weights, *index, *(file for file in other if file.is_file()), *templates])
