"""The tokenizer that a GGUF describes, as a fast tokenizer of transformers.

Ids are those of transformers' own reading of the same file (transformers.integrations.gguf, which
needs torch): text is not normalised, a byte-level vocabulary gets a BOS only where the file asks
for one, and `smollm` is split as GPT-2 is. Two differences, both where that reading makes ids
beyond the vocabulary: control tokens with characters outside the byte alphabet keep their id, and
no token is added.
"""

from typing import Any

from gguf import TokenType

from emjax.errors import UserError
from emjax.runtime.numbers import integer

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"
# tokenizer.ggml.pre -> the pattern that text is split by; None: GPT-2's, which is built in.
_SPLITS = {
    "llama-bpe": _LLAMA3, "llama3": _LLAMA3, "llama-v3": _LLAMA3, "smaug-bpe": _LLAMA3,
    "qwen2": _QWEN2, "deepseek-r1-qwen": _QWEN2,
    "gpt-2": None, "smollm": None,
}  # fmt: skip
# Settings of the tokenizer that are read only with these values.
_MUST_BE: dict[str, tuple[Any, ...]] = {
    "add_sep_token": (False,),
    "escape_whitespaces": (True,),
    "precompiled_charsmap": ([],),
    "remove_extra_whitespaces": (False,),
}
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_LONGEST_PIECE = 256  # of a SentencePiece vocabulary, whose merges take the square of it


def special_ids(metadata: dict[str, Any], where: str) -> dict[str, int]:
    """The ids that the file gives to bos, eos, eot, eom, unknown and padding.

    Raises UserError for an id that is no token.
    """
    size = len(_list(metadata, "tokens", str, where))
    ids = {}
    for name in ("bos", "eos", "eot", "eom", "unknown", "padding"):
        key = f"tokenizer.ggml.{name}_token_id"
        if key in metadata:
            ids[name] = integer(metadata[key], f"{where}: {key}", low=0, high=size - 1)
    return ids


def build(metadata: dict[str, Any], where: str) -> Any:
    """A PreTrainedTokenizerFast.

    Raises UserError, which names the file and the field, for a tokenizer of another kind, an
    unknown way of splitting text, and damaged vocabularies.
    """
    from transformers import PreTrainedTokenizerFast

    tokens, kinds = _vocabulary(metadata, where)
    for name, allowed in _MUST_BE.items():
        if metadata.get(f"tokenizer.ggml.{name}", allowed[0]) not in allowed:
            raise UserError(f"{where}: tokenizer.ggml.{name} is set, which emjax does not implement. Use another conversion.")
    model = metadata.get("tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        raise UserError(f"{where}: tokenizer.ggml.model is {model!r}; emjax reads 'gpt2' and 'llama'.")
    try:
        backend = (_byte_level if model == "gpt2" else _sentencepiece)(metadata, tokens, kinds, where)
        _add_special(backend, tokens, kinds)
        ids = special_ids(metadata, where)
        given: dict[str, Any] = {f"{ours}_token": tokens[ids[theirs]] for ours, theirs in _SPECIAL.items() if theirs in ids}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            add_bos_token=_flag(metadata, "add_bos_token", where, default=model == "llama"),
            add_eos_token=_flag(metadata, "add_eos_token", where, default=False),
            chat_template=_template(metadata, where),
            **given,
        )
    except UserError:
        raise
    except Exception as error:  # the tokenizers library has no exception of its own
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{where}: the tokenizer cannot be built ({type(error).__name__}: {reason}).") from error
    if len(tokenizer) > len(tokens):
        raise UserError(f"{where}: the tokenizer has {len(tokenizer)} tokens, but tokenizer.ggml.tokens lists {len(tokens)}.")
    return tokenizer


def _list(metadata: dict[str, Any], name: str, kind: type, where: str) -> list[Any]:
    key = f"tokenizer.ggml.{name}"
    values = metadata.get(key)
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        problem = "is missing" if values is None else f"is not an array of {kind.__name__}"
        raise UserError(f"{where}: {key} {problem}. Use a file that contains its tokenizer.")
    return values


def _flag(metadata: dict[str, Any], name: str, where: str, *, default: bool) -> bool:
    value = metadata.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, bool):
        raise UserError(f"{where}: tokenizer.ggml.{name} is {value!r}; it must be true or false.")
    return value


def _template(metadata: dict[str, Any], where: str) -> str | None:
    template = metadata.get("tokenizer.chat_template")
    if not isinstance(template, str | None):
        raise UserError(f"{where}: tokenizer.chat_template is {type(template).__name__}; it must be a string.")
    return template or None


def _vocabulary(metadata: dict[str, Any], where: str) -> tuple[list[str], list[int]]:
    """The tokens, and for each its kind."""
    tokens = _list(metadata, "tokens", str, where)
    if len(set(tokens)) < len(tokens):
        seen: set[str] = set()
        twice = next(token for token in tokens if token in seen or seen.add(token))  # type: ignore[func-returns-value]
        raise UserError(f"{where}: tokenizer.ggml.tokens lists {twice!r} twice, so its id is not defined.")
    kinds = _list(metadata, "token_type", int, where)
    if len(kinds) != len(tokens):
        raise UserError(f"{where}: tokenizer.ggml.token_type has {len(kinds)} entries for {len(tokens)} tokens.")
    return tokens, kinds


def _add_special(backend: Any, tokens: list[str], kinds: list[int]) -> None:
    """Control and user-defined tokens are found in text before it is split."""
    from tokenizers import AddedToken

    def of(kind: TokenType, special: bool) -> list[Any]:
        return [
            AddedToken(token, normalized=False, special=special)
            for token, its in zip(tokens, kinds, strict=True)
            if its == kind and token
        ]

    backend.add_special_tokens(of(TokenType.CONTROL, True))
    backend.add_tokens(of(TokenType.USER_DEFINED, False))


def _merges(metadata: dict[str, Any], where: str) -> list[tuple[str, str]]:
    merges = [tuple(merge.split(" ")) for merge in _list(metadata, "merges", str, where)]
    for merge in merges:
        if len(merge) != 2:
            raise UserError(f"{where}: tokenizer.ggml.merges contains {' '.join(merge)!r}, which is not a pair of tokens.")
    return merges


def _byte_level(metadata: dict[str, Any], tokens: list[str], kinds: list[int], where: str) -> Any:
    """BPE over bytes, each written as one character."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    pre = metadata.get("tokenizer.ggml.pre")
    if pre not in _SPLITS:
        raise UserError(
            f"{where}: tokenizer.ggml.pre is {pre!r}, so emjax does not know how text is split into words "
            f"(it knows {', '.join(_SPLITS)}). Use a file from a newer converter."
        )
    added = (TokenType.CONTROL, TokenType.USER_DEFINED)
    vocabulary = {
        token if kind in added else _in_bytes(token): number
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
    }
    if len(vocabulary) < len(tokens):
        raise UserError(f"{where}: two entries of tokenizer.ggml.tokens are the same bytes.")
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=_merges(metadata, where), continuing_subword_prefix="", end_of_word_suffix="",
        )
    )  # fmt: skip
    split = _SPLITS[pre]
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if split is not None:
        words = pre_tokenizers.Split(Regex(split), behavior="isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    backend.decoder = decoders.ByteLevel()
    return backend


def _byte_characters() -> dict[int, str]:
    """GPT-2's table: printable bytes of Latin-1 stand for themselves, the others start at 256."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


_CHARACTERS = _byte_characters()
_ALPHABET = set(_CHARACTERS.values())


def _in_bytes(token: str) -> str:
    """A token in the byte alphabet; one that is not written in it is spelled out."""
    return token if _ALPHABET.issuperset(token) else "".join(_CHARACTERS[byte] for byte in token.encode())


def _sentencepiece(metadata: dict[str, Any], tokens: list[str], kinds: list[int], where: str) -> Any:
    """BPE of SentencePiece: blanks are written as U+2581, unknown characters as bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    if not _flag(metadata, "add_space_prefix", where, default=True):
        raise UserError(f"{where}: tokenizer.ggml.add_space_prefix is false, which emjax does not implement for 'llama'.")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    derived = "tokenizer.ggml.merges" not in metadata
    merges = _derived_merges(vocabulary, metadata, where) if derived else _merges(metadata, where)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, fuse_unk=True, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    return backend


def _derived_merges(vocabulary: dict[str, int], metadata: dict[str, Any], where: str) -> list[tuple[str, str]]:
    """Every way to make a token of two others: the token with the best score first, then the one
    with the longest left part; equal ones in the vocabulary's order."""
    scores = _list(metadata, "scores", float, where)
    if len(scores) != len(vocabulary):
        raise UserError(f"{where}: tokenizer.ggml.scores has {len(scores)} entries for {len(vocabulary)} tokens.")
    merges = []
    for token, score in zip(vocabulary, scores, strict=True):
        if len(token) > _LONGEST_PIECE:
            raise UserError(f"{where}: tokenizer.ggml.tokens contains a token of {len(token)} characters.")
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        pairs = [(left, right) for left, right in pairs if left in vocabulary and right in vocabulary]
        pairs.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        merges += [(score, *pair) for pair in pairs]
    merges.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [(left, right) for _, left, right in merges]
