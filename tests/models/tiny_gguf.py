"""Tiny GGUF files, written with the gguf library's writer."""

import functools
import random
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import TokenType

D, F, K, L, V = 256, 256, 1, 2, 500
HEADS = {"llama": (4, 64), "qwen2": (4, 64), "qwen3": (2, 128)}  # (H, h); transformers takes 128 for every Qwen3 of a GGUF
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXT = (
    "The quick brown fox doesn't jump over 12,345 lazy dogs; it can't, and they'll see.\n\n  def f(x):\n\treturn x + 1\n"
    "中文字符 日本語 한국어 😀 naïve café Ωmega <a href='x'>1 2 33 444</a>   \r\n"
)
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


@functools.cache
def bpe():
    """(tokens in the order of their ids, merges) of a byte-level BPE."""
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=V, special_tokens=CONTROL, initial_alphabet=sorted(alphabet), show_progress=False, min_frequency=1
    )
    trained.train_from_iterator([TEXT, TEXT.upper(), *TEXT.split()], trainer)
    model = json.loads(trained.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    tokens += [f"[PAD{number}]" for number in range(len(tokens), V)]  # as converters fill up a vocabulary
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return tokens, merges


def sentencepiece():
    """(tokens, kinds, scores) as SentencePiece's BPE has them: special ones, bytes, pieces."""
    special = ["<unk>", "<s>", "</s>"]
    raw = [f"<0x{byte:02X}>" for byte in range(256)]
    text = ("\u2581" + TEXT.replace(" ", "\u2581")).split("\n")
    pieces = dict.fromkeys(line[i : i + n] for line in text for n in (4, 3, 2) for i in range(len(line) - n + 1))
    letters = list(dict.fromkeys("".join(text)))
    rest = V - len(special) - len(raw) - len(letters)
    pieces = random.Random(0).sample(sorted(pieces), rest) + letters
    kinds = [TokenType.UNKNOWN, *[TokenType.CONTROL] * 2, *[TokenType.BYTE] * 256, *[TokenType.NORMAL] * len(pieces)]
    return [*special, *raw, *pieces], kinds, [*[0.0] * 259, *[float(-(i // 2)) for i in range(len(pieces))]]


def add_bpe(writer, pre, **settings):
    tokens, merges = bpe()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    kinds = {**dict.fromkeys(CONTROL, TokenType.CONTROL), **{t: TokenType.UNUSED for t in tokens if t.startswith("[PAD")}}
    writer.add_token_types([kinds.get(token, TokenType.NORMAL) for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(TEMPLATE)
    for name, value in settings.items():
        getattr(writer, f"add_{name}")(value)


def add_sentencepiece(writer):
    tokens, kinds, scores = sentencepiece()
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_scores(scores)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def shapes(family, layers=L, tied=False):
    """Name in the file -> shape in torch's order."""
    H, h = HEADS[family]
    found = {"token_embd.weight": (V, D), "output_norm.weight": (D,)}
    if not tied:
        found["output.weight"] = (V, D)
    layer = {
        "attn_norm.weight": (D,), "attn_q.weight": (H * h, D), "attn_k.weight": (K * h, D), "attn_v.weight": (K * h, D),
        "attn_output.weight": (D, H * h), "ffn_norm.weight": (D,), "ffn_gate.weight": (F, D), "ffn_up.weight": (F, D),
        "ffn_down.weight": (D, F),
    }  # fmt: skip
    if family == "qwen2":
        layer |= {"attn_q.bias": (H * h,), "attn_k.bias": (K * h,), "attn_v.bias": (K * h,)}
    if family == "qwen3":
        layer |= {"attn_q_norm.weight": (h,), "attn_k_norm.weight": (h,)}
    return found | {f"blk.{i}.{name}": shape for i in range(layers) for name, shape in layer.items()}


def stored(shape, kind, rng):
    """Random weights as they are stored, quantised where the library can, else random blocks."""
    values = rng.normal(0, 0.05, shape).astype(np.float32)
    if kind is Type.F32 or len(shape) == 1:  # llama.cpp keeps norms and biases in float32
        return values, Type.F32
    if kind is Type.F16:
        return values.astype(np.float16), kind
    try:
        return gguf.quantize(values, kind), kind
    except NotImplementedError:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        # bytes below 60 give finite scales
        return rng.integers(0, 60, (shape[0], shape[1] // block * size), dtype=np.uint8), kind


def write(path, family="llama", kinds=(Type.F32,), *, layers=L, tied=False, pre="llama-bpe", tensors=None, change=None, seed=0):
    """kinds: given to the matrices in turn. tensors: replaces the random ones. change(writer): adds fields."""
    H, h = HEADS[family]
    writer = gguf.GGUFWriter(path, family)
    writer.add_name("tiny")
    writer.add_block_count(layers)
    writer.add_context_length(512)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(F)
    writer.add_head_count(H)
    writer.add_head_count_kv(K)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    if family == "llama":
        writer.add_rope_dimension_count(h)
    if family == "qwen3":
        writer.add_key_length(h)
        writer.add_value_length(h)
    if pre == "sentencepiece":
        add_sentencepiece(writer)
    elif pre:
        add_bpe(writer, pre)
    if change is not None:
        change(writer)
    rng = np.random.default_rng(seed)
    if tensors is not None:
        for name, array in tensors.items():
            writer.add_tensor(name, np.ascontiguousarray(array))
    else:
        number = 0
        for name, shape in shapes(family, layers, tied).items():
            array, kind = stored(shape, kinds[number % len(kinds)], rng)
            number += len(shape) == 2
            writer.add_tensor(name, array, raw_dtype=None if kind in (Type.F32, Type.F16) else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def strings(count, special=CONTROL, seed=0):
    """ASCII, CJK, emoji, code, runs of blanks, digits, special tokens' text and random Unicode."""
    rng = random.Random(seed)
    pools = [
        "abcdefghijklmnopqrstuvwxyz ABCDEFG.,'!?", "0123456789 .,-", " \n\t\r\u00a0\u3000 ",
        "中文字符汉语日本語かなカナ한국어，。",
        "😀🎉👩\u200d👩\u200d👧🇩🇪e\u0301ñß\u00e9", "def f(x):\n    return x[i]{}();='s'll're",
    ]  # fmt: skip
    words = ["Hello", "world", " the", "1234", "  ", "\n\n", "don't", "DON'T", *special, *(token[:-1] for token in special)]
    for _ in range(count):
        kind, length = rng.randrange(9), rng.randrange(40)
        if kind < 6:
            yield "".join(rng.choice(pools[kind]) for _ in range(length))
        elif kind == 6:
            points = (rng.choice((rng.randrange(32, 0xD800), rng.randrange(0xE000, 0x110000))) for _ in range(length))
            yield "".join(map(chr, points))
        elif kind == 7:
            yield rng.choice(["", " "]).join(rng.choice(words) for _ in range(length // 4))
        else:
            yield "".join(rng.choice(rng.choice(pools)) for _ in range(length))
