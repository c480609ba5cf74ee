"""Whether the harness reads numbers as people labelled them: its GSM8K filters on answers whose
correctness is known.

    python -m emjax.eval.extraction example_model_solutions.jsonl

The file is that of the GSM8K authors: {"question", "ground_truth", MODEL: {"is_correct",
"solution"}, ...}, answers ending in "A: <number>". Prints, for each filter of the harness's own
task, how many labels it reproduces, and every answer on which it does not. `strict-match` looks for
"####", which these answers do not have: it is there to show what a format costs.
"""

import argparse
import importlib.resources
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from emjax.errors import UserError
from emjax.eval.benchmarks import capability
from emjax.runtime.files import dumps, read_lines


def agreement(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """{filter: {"of", "agree", "disagree": [{"question", "model", "label", "read", "truth"}]}};
    question: its number."""
    capability.need_harness("This comparison")
    from lm_eval.api.metrics import exact_match_fn
    from lm_eval.filters.extraction import RegexFilter

    file = importlib.resources.files("lm_eval") / "tasks" / "gsm8k" / "gsm8k.yaml"
    task = yaml.safe_load(file.read_text(encoding="utf-8"))
    (metric,) = task["metric_list"]
    how = {name: metric[name] for name in ("ignore_case", "ignore_punctuation", "regexes_to_ignore")}
    answers = [
        (i, name, answer["is_correct"], answer["solution"], row["ground_truth"].rpartition("A:")[2].strip())
        for i, row in enumerate(rows)
        for name, answer in row.items()
        if isinstance(answer, dict)
    ]
    if not answers:
        raise UserError("The file holds no labelled answer: {MODEL: {'is_correct', 'solution'}}.")
    found = {}
    for one in task["filter_list"]:
        regex, _ = one["filter"]
        settings = {name: value for name, value in regex.items() if name != "function"}
        read = RegexFilter(**settings).apply([[solution] for *_, solution, _ in answers], [{}] * len(answers))
        wrong = [
            {"question": i, "model": name, "label": label, "read": said, "truth": truth}
            for (i, name, label, _, truth), (said,) in zip(answers, read, strict=True)
            if bool(exact_match_fn(predictions=[said], references=[truth], **how)["exact_match"]) != label
        ]
        found[one["name"]] = {"of": len(answers), "agree": len(answers) - len(wrong), "disagree": wrong}
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m emjax.eval.extraction")
    parser.add_argument("solutions", type=Path)
    print(dumps(agreement(read_lines(parser.parse_args(argv).solutions)), indent=1))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
