"""Judges against people: the sheet out, the sheet in, and what is said of the two."""

import csv
import json

import pytest

from emjax.errors import UserError
from emjax.eval import agreement


def row(i, label, kind="statement", state="ok"):
    verdict = {"judge": "j", "raw": "", "label": label, "state": state, "kind": kind, "output": 0}
    messages = [{"role": "user", "content": f"question {i}"}]
    return {"id": f"item {i}", "arm": "vanilla", "messages": messages, "cluster": f"c{i // 2}",
            "outputs": [{"text": f"answer {i}"}], "verdicts": [verdict], "proposition": {"A": "a", "B": "b"}}  # fmt: skip


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_a_sheet_goes_out_without_verdicts_and_comes_back(tmp_path, capsys):
    items = write(tmp_path / "items.jsonl", [row(i, "AB"[i % 2]) for i in range(40)] + [row(99, None, state="refusal")])
    sheet = tmp_path / "sheet.csv"
    agreement.main(["sheet", "--items", str(items), "--sheet", str(sheet), "--count", "20"])
    with sheet.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    assert {r["label"] for r in rows} == {""}
    assert all(r["answer"].split()[1] == r["context"].split()[-1] for r in rows)
    with pytest.raises(UserError, match="no row has a label"):
        agreement.read_sheet(sheet)
    for r in rows[:16]:  # people agree but for two answers, and leave four open
        right = "AB"[int(r["answer"].split()[1]) % 2]
        r["label"] = " b " if r in rows[:2] else right.lower()
    with sheet.open("w", newline="") as file:
        writer = csv.DictWriter(file, agreement.COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    agreement.main(["report", "--items", str(items), "--sheet", str(sheet)])
    (pair,) = json.loads(capsys.readouterr().out)["pairs"]
    assert (pair["a"], pair["b"], pair["n"]) == (str(items), "human", 16)
    said = [("AB"[int(r["answer"].split()[1]) % 2], r["label"].strip().upper()) for r in rows[:16]]
    assert pair["agree"] == sum(a == b for a, b in said)
    assert pair["confusion"] == [[sum(p == (a, b) for p in said) for b in "AB"] for a in "AB"]
    assert pair["ci95"][0] <= pair["kappa"] <= pair["ci95"][1]
    share = sum(b == "A" for _, b in said) - sum(a == "A" for a, _ in said)
    rest = 20 - sum(a == "A" for a, _ in said)  # of 40 answers the judge calls 20 A
    assert pair["corrected"]["A"][0] == pytest.approx(100 * (rest / 24 + share / 16), abs=1e-4)


def test_three_judges():
    keys = [str(i) for i in range(30)]
    raters = {name: dict(zip(keys, text, strict=True)) for name, text in
              {"x": "ABC" * 10, "y": "ABC" * 10, "z": "A" * 30}.items()}  # fmt: skip
    found = agreement.report(raters, {key: key for key in keys})
    kappas = {(p["a"], p["b"]): p["kappa"] for p in found["pairs"]}
    assert kappas == {("x", "y"): 1.0, ("x", "z"): 0.0, ("y", "z"): 0.0}
    assert found["majority"] == {"decided": 30, "of": 30}
    assert found["pairs"][1]["recall"] == {"A": 1.0, "B": 0.0, "C": 0.0}
    assert found["alpha_ci95"][0] <= found["alpha"] <= found["alpha_ci95"][1]


def test_files_of_different_runs_are_refused():
    with pytest.raises(UserError, match="no answer in common"):
        agreement.report({"x": {"1": "A"}, "y": {"2": "A"}}, {"1": "c", "2": "c"})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("key,label\nk,A\nk,B\n", r"row 2: 'k' is labelled twice, A and B"),
        ("key,kind,lable,label\nk,statement,,A\n", None),
        ("key,knid,label\nk,statement,A\n", r"the field 'knid' is unknown\. Is 'kind' meant"),
        ("key,label,remark\nk,A,why\n", None),
    ],
)
def test_a_sheet_with_a_slip_is_refused(text, says, tmp_path):
    (tmp_path / "sheet.csv").write_text(text)
    if says is None:
        assert agreement.read_sheet(tmp_path / "sheet.csv") == {"k": "A"}
        return
    with pytest.raises(UserError, match=says):
        agreement.read_sheet(tmp_path / "sheet.csv")


def test_a_label_that_no_form_has_is_no_disagreement():
    with pytest.raises(UserError, match=r"labels '2' as 'YSE', which is none of .*YES"):
        agreement.report({"x": {"1": "YES", "2": "YES"}, "human": {"1": "YES", "2": "YSE"}}, {"1": "c", "2": "c"})
    assert agreement.report({"x": {"1": "RED", "2": "A"}, "human": {"1": "RED", "2": "D"}}, {"1": "c", "2": "c"})["pairs"]
