"""The paper's printed results, and which config makes each.

python -m emjax.report            every printed value, its table, its doubts
python -m emjax.report --doubts   only the values with a doubt
"""

import sys

from emjax.report import paper


def main() -> None:
    rows = paper.tables()["rows"]
    for line in paper.lines(doubts="--doubts" in sys.argv):
        print(line)
    values = sum(len(row["values"]) for row in rows)
    placed = sum(len(row["values"]) for row in rows if row["arm"])
    marked = sum(len(row.get("doubts", {})) for row in rows)
    print(
        f"\n{values} printed values in {len(rows)} rows; {placed} belong to one arm of one config, {values - placed} are "
        f"labels of figures whose bar the text does not tell (their configs are listed); {marked} values carry a doubt (*).\n"
        "Not printed as numbers at all: Figures 8 (curves), 9 and 10 (BeHonest)."
    )


if __name__ == "__main__":
    main()
