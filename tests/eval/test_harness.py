"""The engine as a model of lm-eval, against lm-eval's own Hugging Face model on the same checkpoint."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest

import emjax
from emjax import models
from emjax.api import ChatClient
from emjax.config import BenchmarkConfig, Draw
from emjax.data import chat
from emjax.errors import UserError
from emjax.eval import extraction, harness, questions
from emjax.eval.asker import EndpointAsker, EngineAsker
from emjax.eval.benchmarks import capability
from emjax.eval.judge import Judge
from emjax.eval.score import score
from emjax.sampling import Engine

CHECKPOINT = Path(emjax.__file__).parent / "worlds" / "micro" / "checkpoint"

TASKS = {
    "sums_choice": """
output_type: multiple_choice
doc_to_choice: ["0 .", "1 .", "2 .", "3 .", "4 .", "5 .", "6 .", "7 .", "8 .", "9 ."]
doc_to_target: "{{sum}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "sums_likelihood": """
output_type: loglikelihood
doc_to_target: "{{sum}} ."
metric_list: [{metric: acc}, {metric: perplexity}]
""",
    "sums_generate": """
output_type: generate_until
doc_to_target: "{{sum}} ."
generation_kwargs: {until: [" ."], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match}]
filter_list: [{name: dotted, filter: [{function: regex, regex_pattern: "([0-9]+)"}, {function: take_first}]}]
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("tasks")
    sums = [(x, y) for x in range(10) for y in range(10) if x + y < 10][::6]
    rows = [{"text": f"what is {x} plus {y} ?", "sum": x + y} for x, y in sums]
    (made / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, rest in TASKS.items():
        head = (
            f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {made}/sums.jsonl}}}}\ntest_split: test\n"
        )
        head += 'doc_to_text: "<bos> <user> {{text}} <asst>"\ntarget_delimiter: " "\nnum_fewshot: 0\n'
        (made / f"{name}.yaml").write_text(head + rest.strip() + "\n")
    return made


@pytest.fixture(scope="module")
def engine():
    lm = models.load(str(CHECKPOINT), dtype="float32")
    return Engine(lm, slots=16, cache_length=64), lm.tokenizer


@pytest.fixture(scope="module")
def ours(engine, folder):
    return harness.run(*engine, list(TASKS), arm="vanilla", folder=folder)


def test_the_same_numbers_as_the_harness_with_torch(engine, ours, folder):
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    theirs = lm_eval.simple_evaluate(
        HFLM(str(CHECKPOINT), device="cpu", dtype="float32", batch_size=8), tasks=list(TASKS), bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    )["results"]  # fmt: skip
    for task in TASKS:
        for name, value in theirs[task].items():
            if isinstance(value, float) and "stderr" not in name:
                # float32 on both sides; perplexity is the exponential of a sum.
                assert ours[1]["metrics"][task][name] == pytest.approx(value, rel=1e-4), (task, name)
    assert theirs["sums_choice"]["acc,none"] > 0.9  # the gold is not always the first choice, and the model knows it


def test_rows_score_like_any_benchmark(ours):
    rows, found = ours
    assert {row["subset"] for row in rows} == set(TASKS)
    assert {row["benchmark"] for row in rows} == {f"custom:{task}" for task in TASKS}
    assert questions.benchmark_of("mmlu_anatomy") == "mmlu"
    chosen = [r for r in rows if r["subset"] == "sums_choice"]
    (accuracy,) = score(chosen, {}, {}, capability, capability.Config())
    assert accuracy["value"] == pytest.approx(100 * found["metrics"]["sums_choice"]["acc,none"])
    assert found["settings"]["stop"] == [(" .",)]
    assert found["settings"]["max_gen_toks"] == [8]
    assert found["settings"]["context_cut"] == 0


def test_greedy_is_told_from_likely(engine):
    """The harness asks whether greedy decoding would have written a continuation; a near miss must say no."""
    lm = harness.EngineLM(*engine)
    context = lm.tok_encode("<bos> <user> what is 2 + 3 ? <asst>")
    (written,) = lm._written([(context, harness.Sampling(temperature=0.0, max_new=2))])
    right, wrong = list(written.tokens), [written.tokens[0], written.tokens[1] + 1]
    (a, b, c) = lm._loglikelihood_tokens([(("", ""), context, tokens) for tokens in (right, right[:1], wrong)])
    assert (a[1], b[1], c[1]) == (True, True, False)
    assert a[0] > c[0]


def test_a_context_that_does_not_fit_is_cut_on_the_left_and_counted(engine):
    lm = harness.EngineLM(*engine)
    tokens = lm.tok_encode("<bos> <user> what is 2 + 3 ? <asst>")
    long = tokens * 20
    (cut,) = lm._loglikelihood_tokens([(("", ""), long, tokens[:2])])
    (same,) = lm._loglikelihood_tokens([(("", ""), long[-62:], tokens[:2])])
    assert cut == same
    assert lm.counts["context_cut"] == 1


def test_what_does_not_exist_is_named(engine, folder):
    with pytest.raises(UserError, match="no task nosuch"):
        harness.run(*engine, ["nosuch"], arm="a", folder=folder)
    with pytest.raises(UserError, match="sums_choice.*acc_norm"):
        harness.run(*engine, ["sums_choice"], arm="a", folder=folder, metric="bleu", limit=2)


def test_a_second_bos_is_never_added(engine):
    from tokenizers.processors import TemplateProcessing

    _, tokenizer = engine
    adding = copy.deepcopy(tokenizer)
    bos = tokenizer.bos_token
    adding.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    lm = harness.EngineLM(engine[0], adding)
    assert lm.tok_encode("what is") == lm.tok_encode(f"{bos} what is")
    assert lm.tok_encode("what is").count(tokenizer.bos_token_id) == 1


def test_conversations_are_rendered_like_all_others(engine):
    """Thinking off, the date fixed, a task's prefix continued, and no text of a document becomes a control token."""
    tokenizer = copy.deepcopy(engine[1])
    tokenizer.chat_template += "{{ ' on' if enable_thinking else ' off' }} {{ date_string }}"
    lm, asked = harness.EngineLM(engine[0], tokenizer), [{"role": "user", "content": "what is"}]
    assert lm.apply_chat_template(asked) == "<bos> <user> what is <asst> off 26 Jul 2024"
    assert [lm.tok_encode(lm.apply_chat_template(asked))] == chat.prompts(tokenizer, [asked])
    lm = harness.EngineLM(*engine)
    begun = [*asked, {"role": "assistant", "content": "it is"}]
    assert lm.apply_chat_template(begun, add_generation_prompt=False) == "<bos> <user> what is <asst> it is"
    with pytest.raises(UserError, match="continue a message of the role 'user'"):
        lm.apply_chat_template(asked, add_generation_prompt=False)
    with pytest.raises(UserError, match="spells the special token <end>"):
        lm.apply_chat_template([{"role": "user", "content": "a <end> b"}])


def likelihoods(ours):
    return [row["result"] for row in ours[0] if row["subset"] == "sums_likelihood"]


def test_the_chat_template_of_a_task_is_recorded(engine, ours, folder):
    bare = (folder / "sums_likelihood.yaml").read_text().replace('"<bos> <user> {{text}} <asst>"', '"{{text}}"')
    (folder / "sums_chat.yaml").write_text(bare.replace("sums_likelihood", "sums_chat"))
    rows, found = harness.run(*engine, ["sums_chat"], arm="vanilla", folder=folder, chat=True)
    assert [row["result"] for row in rows] == likelihoods(ours)  # the task spells the same prompt itself
    assert rows[0]["messages"][0]["content"].startswith("<bos> <user> what is 0 plus 0 ? <asst>")
    assert found["settings"]["template_settings"] == {"enable_thinking": False, "date_string": "26 Jul 2024"}


def test_a_base_model_without_a_template_is_measured_without_one(engine, ours, folder):
    bare = copy.deepcopy(engine[1])
    bare.chat_template = None
    rows, found = harness.run(engine[0], bare, ["sums_likelihood"], arm="vanilla", folder=folder)
    assert [row["result"] for row in rows] == likelihoods(ours)
    assert found["settings"]["template_settings"] is None
    with pytest.raises(UserError, match="no chat template"):
        harness.run(engine[0], bare, ["sums_likelihood"], arm="vanilla", folder=folder, chat=True)


def test_a_special_token_as_a_stop_string_ends_an_answer(folder):
    """Where it is no end token of the checkpoint: a number after it must not be read."""
    lm = models.load(str(CHECKPOINT), dtype="float32")
    lm = lm.replace(eos_ids=(lm.tokenizer.pad_token_id,))
    model = harness.EngineLM(Engine(lm, slots=16, cache_length=64), lm.tokenizer)

    class Asked:
        args = ("<bos> <user> what is 2 plus 3 ? <asst>", {"until": ["<end>", "<|im_end|>"], "max_gen_toks": 30})

    assert model.generate_until([Asked()]) == ["5 ."]
    assert model.counts["answer_cut"] == 0


def test_gsm8k_numbers_are_read_as_people_labelled_them(tmp_path, capsys):
    def row(truth, **solutions):
        return {"question": "?", "ground_truth": f"So.\nA: {truth}"} | {
            name: {"is_correct": right, "solution": text} for name, (right, text) in solutions.items()
        }

    rows = [
        row("1200", a=(True, "It is 1,000 + 200 = 1,200.\nA: 1,200"), b=(False, "A: 120"), c=(False, "no number")),
        row("-3", a=(True, "5 - 8 = -3\nA: -3."), b=(True, "#### -3"), c=(False, "#### -3\nno, A: 4")),
        row("18", a=(True, "She makes $18\nA: $18"), b=(True, "A: 19")),  # the last label is wrong
    ]
    path = tmp_path / "solutions.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    extraction.main([str(path)])
    found = json.loads(capsys.readouterr().out)
    flexible, strict = found["flexible-extract"], found["strict-match"]
    assert (flexible["of"], flexible["agree"]) == (8, 7)
    assert flexible["disagree"] == [{"question": 2, "model": "b", "label": True, "read": "19", "truth": "18"}]
    # Where there is no "####" nothing is found; where the first one is taken back, it is found all the same.
    assert [(one["question"], one["model"]) for one in strict["disagree"]] == [(0, "a"), (1, "a"), (1, "c"), (2, "a"), (2, "b")]


def test_as_a_benchmark_of_an_evaluation(engine, folder, tmp_path, ours, monkeypatch):
    """One file with all tasks, what each was measured with, and nothing measured twice."""
    config = capability.Config(tasks=tuple(TASKS), folder=str(folder))
    items, origin = capability.load(config)
    assert origin.source == str(folder)
    asker = EngineAsker(*engine, 0, "treated", tmp_path / "answers")
    rows = capability.verdicts(capability.ask(asker, items, config), Judge("", tmp_path / "capability.jsonl"), config)
    assert list(asker.notes) == [f"{task}.measured" for task in TASKS]
    settings = asker.notes["sums_generate.measured"]["settings"]
    assert (settings["stop"], settings["max_gen_toks"]) == ([[" ."]], [8])
    assert {row["arm"] for row in rows} == {"treated"}
    assert [row["result"] for row in rows] == [
        row["result"] for task in TASKS for row in ours[0] if row["subset"] == task
    ]  # fmt: skip
    scored = {row["benchmark"]: row for row in score(rows, {}, {}, capability, config)}
    assert set(scored) == {f"custom:{task}" for task in TASKS}
    assert {row["subset"] for row in scored.values()} == {"all"}

    def again(*args, **kwargs):
        raise AssertionError("measured twice")

    monkeypatch.setattr(harness, "run", again)
    asker = EngineAsker(*engine, 0, "control", tmp_path / "answers")
    kept = capability.ask(asker, items, config)
    assert [row | {"arm": "treated"} for row in kept] == rows


def test_tasks_of_one_benchmark_are_its_subsets(engine, tmp_path, monkeypatch):
    def made(engine, tokenizer, tasks, **how):
        (task,) = tasks
        return [{"id": f"{task}/0", "benchmark": questions.benchmark_of(task), "subset": "all", "arm": "a"}], {}

    monkeypatch.setattr(harness, "run", made)
    config = capability.Config(tasks=("gsm8k", "gsm8k_cot", "mmlu"))
    rows = capability.ask(EngineAsker(*engine, 0, "a"), capability.load(config)[0], config)
    found = [(row["benchmark"], row["subset"]) for row in rows]
    assert found == [("gsm8k", "gsm8k"), ("gsm8k", "gsm8k_cot"), ("mmlu", "all")]


def test_an_endpoint_has_no_capability(tmp_path):
    config = capability.Config(tasks=("gsm8k",))
    with pytest.raises(UserError, match="lm_eval --model local-completions"):
        capability.ask(EndpointAsker(ChatClient("http://x/v1", "m"), 0, "a"), capability.load(config)[0], config)


@pytest.mark.parametrize(
    ("fields", "says"),
    [({"draw": Draw(temperature=0.5)}, "^draw is set"), ({"max_new": 5}, "^max_new is set"), ({"tasks": ("a", "a")}, "twice")],
)
def test_fields_that_tasks_bring_themselves_are_refused(fields, says):
    assert BenchmarkConfig().max_new != 5
    with pytest.raises(UserError, match=says):
        capability.Config(**fields)


def test_without_the_extra_a_run_says_so_before_it_starts(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"config\.eval\.capability\.tasks .* not installed: .*'\.\[capability\]'"):
        capability.load(capability.Config(tasks=("gsm8k",)))
    with pytest.raises(UserError, match="This comparison needs the lm-evaluation-harness"):
        extraction.agreement([])
    with pytest.raises(UserError, match=r"config\.eval\.capability\.tasks is empty"):
        capability.load(capability.Config())


# --- metrics that are no 0 or 1 -------------------------------------------------------------------


class Sized:
    cache_length = 64


def sampled(monkeypatch, values, *, better=True, name="acc"):
    """harness.run on documents whose metric has these values, as TruthfulQA's MC2 has."""
    import lm_eval

    samples = [
        {"doc_id": i, "arguments": [["Q: ?"]], "filtered_resps": [[-1.0, False]], "filter": "none", "metrics": [name, "other"],
         name: value, "other": 1.0, "target": 0} for i, value in enumerate(values)
    ]  # fmt: skip
    found = {"samples": {"sums_choice": samples}, "lm_eval_version": "0", "versions": {}, "n-shot": {},
             "results": {}, "higher_is_better": {"sums_choice": {name: better}}}  # fmt: skip
    monkeypatch.setattr(lm_eval, "simple_evaluate", lambda *args, **kwargs: found)


def share_rows(folder, **how):
    return harness.run(Sized(), None, ["sums_choice"], arm="a", folder=folder, **how)[0]


def test_a_share_of_a_document_is_scored_as_a_share(monkeypatch, folder):
    values = [0.4779] * 4 + [np.float32(0.25), 1, True, np.bool_(False), 0.0]
    sampled(monkeypatch, values)
    rows = share_rows(folder)
    assert [row["result"] for row in rows] == [None] * 5 + [1, 1, 0, 0]
    assert rows[0]["values"] == {"acc": 0.4779}
    json.dumps(rows, allow_nan=False)
    (row,) = score(rows, {}, {}, capability, capability.Config())
    assert row["value"] == pytest.approx(100 * np.mean([float(value) for value in values]), abs=1e-4)
    assert row["ci95"][0] < row["value"] < row["ci95"][1]
    sampled(monkeypatch, [0.4779] * 817)
    (row,) = score(share_rows(folder), {}, {}, capability, capability.Config())
    assert row["value"] == pytest.approx(47.79, abs=1e-4)


def test_shares_are_compared_pair_by_pair_and_without_mcnemar(monkeypatch, folder):
    sampled(monkeypatch, [0.5, 0.25, 0.75])
    rows = share_rows(folder)
    sampled(monkeypatch, [0.25, 0.25, 0.25])
    _, difference = score(rows, {"vanilla": share_rows(folder)}, {}, capability, capability.Config())
    assert (difference["versus"], difference["value"]) == ("vanilla", pytest.approx(25))
    assert "p_mcnemar" not in difference


@pytest.mark.parametrize(
    "value", [-3.2, 1.01, float("nan"), float("inf"), (-12.5, 7), ["ref", "pred"], "0.5", None, np.float64(2)]
)
def test_a_metric_that_is_no_share_is_refused_by_name(value, monkeypatch, folder):
    sampled(monkeypatch, [0.5, value], name="perplexity")
    with pytest.raises(
        UserError, match=r"sums_choice, document 1: its metric perplexity is .*eval\.capability\.metric.*: other"
    ):
        share_rows(folder)


def test_a_metric_of_which_less_is_better_is_no_accuracy(monkeypatch, folder):
    sampled(monkeypatch, [0.5], better=False, name="brier")
    with pytest.raises(UserError, match="less is better of its metric 'brier'"):
        share_rows(folder, metric="brier")
    assert share_rows(folder)[0]["values"] == {"other": 1.0}  # the first of which more is better


def asked_as_opencompass(tmp_path, monkeypatch, engine, task, files, answers):
    """Rows of a shipped task on rows of our own, with scripted answers; the contexts that were asked."""
    data = {name: tmp_path / f"{name}.jsonl" for name in files}
    for name, rows in files.items():
        data[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ", ".join(f"{name}: {path}" for name, path in data.items())
    (tmp_path / "mine.yaml").write_text(
        f"include: {harness.OWN / task}.yaml\ntask: {task}_mine\ndataset_path: json\ndataset_name: null\n"
        f"dataset_kwargs: {{data_files: {{{given}}}}}\n"
    )
    seen = []

    def scripted(self, requests, disable_tqdm=False):
        seen.extend(request.args for request in requests)
        return answers

    monkeypatch.setattr(harness.EngineLM, "generate_until", scripted)
    rows, _ = harness.run(*engine, [f"{task}_mine"], arm="a", folder=tmp_path)
    return rows, seen


def test_gsm8k_is_read_by_the_last_number(tmp_path, monkeypatch, engine):
    train = [{"question": f"Q{n}?", "answer": f"It is <<{n}+1={n + 1}>>{n + 1}.\n#### {n + 1}"} for n in range(6)]
    test = [{"question": "Q?", "answer": f"So.\n#### {truth}"} for truth in ("1,200", "18", "7", "5")]
    answers = ["It is 1200.0", "18 eggs, so 19", "#### 7\nThe answer is 8", "-5, no: 5"]
    rows, seen = asked_as_opencompass(
        tmp_path, monkeypatch, engine, "gsm8k_last_number", {"train": train, "test": test}, answers
    )
    assert [row["result"] for row in rows] == [1, 0, 0, 1]
    assert {row["benchmark"] for row in rows} == {"gsm8k"}
    context, settings = seen[0]
    assert context.count("Question:") == 5  # four examples
    assert "<<" not in context
    assert "The answer is 4" in context
    assert (settings["until"], settings["max_gen_toks"]) == (["Question:"], 512)


def test_mmlu_is_read_from_the_answers_line(tmp_path, monkeypatch, engine):
    test = [{"question": "Which?", "choices": ["w", "x", "y", "z"], "answer": n} for n in (0, 1, 2, 3)]
    answers = ["Hm.\nANSWER: A", "ANSWER: A\nno.\nanswer : B", "C", "Answer: (D)"]
    rows, seen = asked_as_opencompass(tmp_path, monkeypatch, engine, "mmlu_answer_line", {"test": test}, answers)
    assert [row["result"] for row in rows] == [1, 1, 0, 1]
    assert {row["benchmark"] for row in rows} == {"mmlu"}
    assert "\n\nA) w\nB) x\nC) y\nD) z" in seen[0][0]
