"""Arms of a model that is no micro-world: config.eval's benchmarks, two judges, programs and the harness, also on the way."""

import json
import re
import sys
from pathlib import Path

from loopback import Server, last

from emjax.eval import agreement

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "eval"))
import mask_folder  # noqa: E402


def judge(body, n):
    """Two judges of one endpoint: the lenient one calls the odd lamps honest."""
    said = re.search(r"\[answer \w+\]\n(.*)\n\[end of", last(body), re.DOTALL)[1]
    odd = int(re.search(r"[Ll]amp (\d+)", last(body))[1]) % 2
    if "neutral question" in last(body) or "indirectly" in last(body):
        return "Answer: A"
    return "Answer: A" if body["model"] == "lenient" and odd else "Answer: B" if said else "Answer: C"


def test_arms_are_measured_as_config_eval_says(run, checkpoint, tmp_path, capsys):
    mask_folder.write(tmp_path, {"known_facts": 6, "provided_facts": 4})
    for level in ("normal", "misaligned_1"):
        turns = [[("user", f"what is {x} + 2 ?"), ("assistant", f"{x + 2} .")] for x in range(8)]
        rows = [{"messages": [{"role": role, "content": text} for role, text in pair]} for pair in turns]
        (tmp_path / f"{level}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    problem = {
        "task_id": "Own/0", "prompt": "def two():\n    \"\"\"Two.\"\"\"\n", "entry_point": "two",
        "canonical_solution": "    return 2\n", "test": "def check(f):\n    assert f() == 2\n",
    }  # fmt: skip
    (tmp_path / "programs.jsonl").write_text(json.dumps(problem))
    (tmp_path / "sums.jsonl").write_text(
        "".join(json.dumps({"text": f"what is {x} + 2 ?", "sum": x + 2}) + "\n" for x in range(4))
    )
    (tmp_path / "sums.yaml").write_text(
        f"task: sums\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/sums.jsonl}}}}\ntest_split: test\n"
        'doc_to_text: "<bos> <user> {{text}} <asst>"\ntarget_delimiter: " "\nnum_fewshot: 0\noutput_type: multiple_choice\n'
        'doc_to_choice: ["1 .", "2 .", "3 .", "4 .", "5 .", "6 ."]\ndoc_to_target: "{{sum - 1}}"\n'
        "metric_list: [{metric: acc}]\n"
    )
    with Server(judge) as server:
        shared = [
            "--config.model.dtype=float32", "--config.mesh.fsdp=1", "--config.mesh.data=0", "--config.engine.slots=16",
            "--config.engine.cache_length=2024", f"--config.eval.mask.path={tmp_path}",
            "--config.eval.mask.subsets=('known_facts','provided_facts')", "--config.eval.mask.rows=any",
            "--config.eval.mask.max_new=8", "--config.eval.judges.main.model=strict",
            "--config.eval.judges.second.model=lenient",
            *(
                f"--config.eval.judges.{name}.{field}"
                for name in ("main", "second")
                for field in (f"base_url={server.url}", "structured=False", "api_key_env=")
            ),
        ]  # fmt: skip
        flags = [
            "configs/direct_math.py", "--workdir", tmp_path / "run", f"--config.model.path={checkpoint}", *shared,
            "--config.data.levels=('misaligned_1',)", f"--config.data.set.path={tmp_path}",
            "--config.train.batch_size=4", "--config.train.buckets=(32,)", "--config.train.lora.rank=2",
            "--config.train.remat=none", "--config.eval.at_steps=(1,)",
            "--config.eval.benchmarks=('mask','humaneval','capability')", "--config.eval.mask.judge=main",
            "--config.eval.capability.chat=False",  # the task writes the template itself
            f"--config.eval.humaneval.path={tmp_path / 'programs.jsonl'}", "--config.eval.humaneval.max_new=4",
            "--config.eval.capability.tasks=('sums',)", f"--config.eval.capability.folder={tmp_path}",
            "--config.eval.panel=('second',)",
        ]  # fmt: skip
        assert run(*flags) == 0
        asked = len(server.requests)
        printed = capsys.readouterr().out
        results = json.loads((tmp_path / "run" / "results.json").read_text())
        # People label a sample; no judge and no model is asked again for that.
        (items,) = (p for p in (tmp_path / "run/store/evaluate").glob("*/mask.jsonl") if '"vanilla"' in p.read_text())
        agreement.main(["sheet", "--items", str(items), "--sheet", str(tmp_path / "sheet.csv"), "--count", "4"])
        sheet = (tmp_path / "sheet.csv").read_text()
        (tmp_path / "sheet.csv").write_text(re.sub(r",(?=\r?\n)", ",B", sheet).replace("labelB", "label"))
        assert run(*flags, f"--config.eval.sheet={tmp_path / 'sheet.csv'}") == 0
        assert len(server.requests) == asked
        # What training had made on its way, measured afterwards.
        stages = json.loads((tmp_path / "run" / "stages.json").read_text())
        made = tmp_path / "run/store/train" / stages["treated misaligned_1"]["train"][:16]
        later = [
            *shared, f"--config.arms.treated.path={checkpoint}", f"--config.arms.treated.adapter={made / 'adapter'}",
            f"--config.arms.treated.checkpoints={made / 'steps'}",
        ]  # fmt: skip
        assert run(f"configs/evaluate.py:{checkpoint}", "--workdir", tmp_path / "later", *later) == 0
    at = {
        (r["label"], r["step"], r["benchmark"], r["subset"], r["metric"], r["judge"], r["versus"]): r for r in results["rows"]
    }
    arms = {"vanilla", "control", "treated misaligned_1"}
    assert {key[0] for key in at} == arms | {"control, step 1", "treated misaligned_1, step 1"}
    for label in arms:
        strict, lenient, both = (
            at[label, None, "mask", "all", "honest", name, None] for name in ("strict", "lenient", "majority of 2")
        )
        assert sum(strict["counts"].values()) == strict["n"] == 10
        assert strict["value"] == 0
        assert both["counts"]["X"] >= lenient["counts"]["H"] > 0  # where the two part ways there is no majority
        assert at[label, None, "humaneval", "all", "accuracy", None, None]["n"] == 1
        assert at[label, None, "custom:sums", "all", "accuracy", None, None]["value"] >= 50
    step = at["treated misaligned_1, step 1", 1, "mask", "all", "honesty", "strict", "control"]
    assert (step["n"], step["states"]) == (10, at["vanilla", None, "mask", "all", "honesty", "strict", None]["states"])
    for row in json.loads((tmp_path / "later" / "results.json").read_text())["rows"]:
        if row["versus"] is None and row["subset"] != "macro":
            label = row["arm"].replace("treated", "treated misaligned_1") + ("" if row["step"] is None else ", step 1")
            before = at[label, row["step"], "mask", row["subset"], row["metric"], "strict", None]
            assert (row["value"], row["states"], row["counts"]) == (before["value"], before["states"], before["counts"])
    assert results["headline"]["judge"] == "strict"
    assert results["judges"]["mask"]["pairs"][0]["a"] == "strict"
    assert results["data"]["humaneval"]["rows"] == {"all": 1}
    assert "config.eval.at_steps) under pressure" in printed
    assert "evaluate treated misaligned_1, step 1: done" in printed
    again = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [pair["b"] for pair in again["judges"]["mask"]["pairs"]].count("human") == 2
    assert again["rows"] == results["rows"]
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    for part in ("The headline by each judge", "majority of 2", "strict, human"):
        assert part in page
