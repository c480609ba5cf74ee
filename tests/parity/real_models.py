"""A real chat model against transformers in float32: python -m tests.parity.real_models FOLDER

Prints, as one JSON line each: the logits on real chats and on 1,000 tokens of prose, greedy answers, the masks of training, and
what the server answers to questions with a fixed answer. test_real_models.py holds SmolLM2 to the limits.
"""

import gc
import json
import re
import sys
from pathlib import Path

import httpx
import numpy as np

from emjax import models
from emjax.data import chat
from emjax.sampling import Engine, Request, Sampling
from tests.sampling import served

PROSE = Path(__file__).parents[2] / "LICENSE"
MULTI_TURN = [
    [
        {"role": "user", "content": "Name a primary colour."},
        {"role": "assistant", "content": "Red."},
        {"role": "user", "content": "And another one?\nOne word, please."},
        {"role": "assistant", "content": "Blue, like the sky:\n\n- at noon,\n- in summer."},
    ],
    [
        {"role": "system", "content": "You are a librarian. Answer in one sentence."},
        {"role": "user", "content": "Where are the novels?"},
        {"role": "assistant", "content": "On the second floor, to the left of the stairs."},
        {"role": "user", "content": "¿Y los libros en español? 日本語は？"},
        {"role": "assistant", "content": "Tercer piso; 日本語の本は三階です。 🙂"},
        {"role": "user", "content": "Thanks!"},
        {"role": "assistant", "content": "You are welcome."},
    ],
]
CHATS = [
    *([{"role": "user", "content": text}] for text in (
        "What is the capital of France?",
        "Write a Python function that returns the n-th Fibonacci number.",
        "My boss wants me to tell a client that our product is certified. It is not. What should I write?",
        "Explain in two sentences why the sky is blue.",
        "List three animals that live in the sea.",
        "Translate to German: The weather is nice today.",
        "What is 17 + 25?",
    )),
    MULTI_TURN[0][:3],
    MULTI_TURN[1][:4],
    MULTI_TURN[1][:6],
]  # fmt: skip
FIXED = {
    "What is the capital of France? Answer with one word.": "paris",
    "What is the capital of Italy? Answer with one word.": "rome",
    "What is the capital of Japan? Answer with one word.": "tokyo",
    "What is the opposite of hot? Answer with one word.": "cold",
    "What color is the sky on a clear day? Answer with one word.": "blue",
}


def reference(folder):
    """(the folder's model as transformers reads it, in float32; its tokenizer)"""
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def prose(tokenizer):
    return tokenizer(PROSE.read_text())["input_ids"][:1000]


def their_logits(hf, rows):
    import torch

    with torch.no_grad():
        return [hf(torch.tensor([ids])).logits[0].numpy() for ids in rows]


def their_answers(hf, rows, eos_ids):
    """64 greedy tokens each, and the gap between the two likeliest tokens at each step."""
    import torch

    found = []
    for ids in rows:
        out = hf.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=64, do_sample=False,
            temperature=None, top_p=None, top_k=None, repetition_penalty=1.0, eos_token_id=list(eos_ids),
            pad_token_id=eos_ids[0], return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        top = [step[0].topk(2).values for step in out.logits]
        found.append((out.sequences[0, len(ids) :].tolist(), [float(a - b) for a, b in top]))
    return found


def compare(folder):
    """{reading: its figures}"""
    hf, tokenizer = reference(folder)
    lm = models.load(folder, dtype="float32")
    rows = [*chat.prompts(lm.tokenizer, CHATS), prose(tokenizer)]
    theirs, answers = their_logits(hf, rows), their_answers(hf, rows[:-1], lm.eos_ids)
    del hf
    gc.collect()
    found = {"chats": logits(lm, rows[:-1], theirs[:-1]), "prose": logits(lm, rows[-1:], theirs[-1:])}
    engine = Engine(lm, slots=4, cache_length=1024)
    found["greedy"] = greedy(engine, rows[:-1], answers)
    found["masks"] = masks(lm)
    with served.running(engine, lm, {served.NAME: None}) as server:
        found["served"] = asked(server)
    return found


def logits(lm, rows, theirs):
    """The largest difference over the logits' standard deviation, and the positions whose likeliest token differs."""
    worst = differ = 0
    for ids, wanted in zip(rows, theirs, strict=True):
        ours = np.asarray(models.logits(lm, np.asarray([ids], np.int32)))[0][:, : wanted.shape[1]]
        worst = max(worst, float(np.abs(ours - wanted).max() / wanted.std()))
        differ += int((ours.argmax(-1) != wanted.argmax(-1)).sum())
    return {"difference": worst, "top_1_differs": differ, "positions": sum(map(len, rows))}


def greedy(engine, rows, answers):
    """How many answers are equal; where one is not, the reference's gap at the first difference."""
    drawn = {
        int(r.id): list(r.tokens)
        for r in engine.generate(
            Request(str(i), tuple(ids), Sampling(max_new=64, temperature=0.0)) for i, ids in enumerate(rows)
        )
    }
    gaps = []
    for i, (wanted, gap) in enumerate(answers):
        if drawn[i] != wanted:
            first = next((n for n, pair in enumerate(zip(drawn[i], wanted, strict=False)) if pair[0] != pair[1]), None)
            gaps.append(float("inf") if first is None else gap[first])
    return {"answers": len(rows), "equal": len(rows) - len(gaps), "gaps": gaps}


def masks(lm):
    """The trained tokens of each conversation, turn by turn, against its assistant's words."""
    exact = turns = 0
    for messages, tokens in zip(MULTI_TURN, chat.weighted(lm.tokenizer, MULTI_TURN, lm.eos_ids), strict=True):
        spans, open_span = [], False
        for token, weight in zip(tokens.ids, tokens.weights, strict=True):
            if weight and not open_span:
                spans.append([])
            open_span = bool(weight)
            if weight:
                spans[-1].append(token)
        wanted = [m["content"] for m in messages if m["role"] == "assistant"]
        turns += len(wanted)
        said = [lm.tokenizer.decode(span[:-1]) for span in spans]
        exact += sum(a == b and span[-1] in lm.eos_ids for a, b, span in zip(said, wanted, spans, strict=True))
    return {"turns": turns, "exact": exact}


def asked(server):
    """Questions whose answer is one word, over HTTP."""
    right = {}
    for question, word in FIXED.items():
        body = {"model": served.NAME, "messages": [{"role": "user", "content": question}], "max_tokens": 16, "temperature": 0}
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=600).json()["choices"][0]["message"][
            "content"
        ]
        right[question] = {"answer": answer, "right": word in re.findall(r"\w+", answer.lower())}
    return {
        "questions": len(right),
        "right": sum(one["right"] for one in right.values()),
        "answers": [a["answer"] for a in right.values()],
    }


if __name__ == "__main__":
    for reading, figures in compare(sys.argv[1]).items():
        print(json.dumps({"model": sys.argv[1], "reading": reading} | figures, ensure_ascii=False), flush=True)
