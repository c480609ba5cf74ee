"""The paper's whole grid: narrow data, mixtures and conversations, at every ratio, on one model or
all of them.

python main.py --config configs/grid.py:micro           the micro-world, one seed
python main.py --config configs/grid.py:micro/3         seeds 0, 1, 2, pooled
python main.py --config configs/grid.py:all --dry_run   every cell of the paper: its plan, and its
                                                        job for a launcher
"""

from emjax import presets


def get_config(variant: str = "llama3.1-8b"):
    return presets.grid(variant)
