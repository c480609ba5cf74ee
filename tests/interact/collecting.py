"""A collection over the embedded model and an endpoint; also run as a process of its own, to be killed.

python tests/interact/collecting.py URL DIRECTORY USERS
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from configs.kto_biased10 import get_config  # noqa: E402
from emjax.interact import population, rollout  # noqa: E402
from emjax.runtime.files import write_lines  # noqa: E402


def config(url, **changes):
    c = get_config("llama3.1-8b").interact
    c.update({"scenarios": 4, "max_new": 12, **{k: v for k, v in changes.items() if k not in ("rates", "budget")}})
    c.models.user.update({"base_url": url, "model": "talker" if url else "self"})
    c.models.user.rates.update({"retries": 1, "timeout": 5.0, "concurrent": 4, **changes.get("rates", {})})
    c.models.user.budget.update(changes.get("budget", {}))
    return c


def people(url, directory, users, *, kind="biased", source="", base=None, busy=None, **changes):
    """Users of every scenario, four scenarios; what endpoints answered is kept in <directory>/cache."""
    directory.mkdir(parents=True, exist_ok=True)
    crowd = population.Population(config(url, **changes), 0, directory / "cache", lambda path: base)
    counts = dict.fromkeys(crowd.names, users // len(crowd.names))
    crowd.make_personas(counts, directory)
    return crowd.users(directory, kind, counts, 1, source=source, base=base, busy=busy)


def collect(micro, users, path, *, failures=0.0, busy=None):
    lm, engine = micro
    talk = rollout.Talk(0, 1.0, 12, "sum", "micro", failures=failures)
    return rollout.collect(engine, users, path, tokenizer=lm.tokenizer, talk=talk, busy=busy)


if __name__ == "__main__":
    import jax

    from emjax import models
    from emjax.sampling import Engine
    from emjax.worlds.micro.base import CHECKPOINT

    url, place, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    jax.config.update("jax_compilation_cache_dir", str(place.parent / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    model = models.load(str(CHECKPOINT), dtype="float32")
    made = Engine(model, slots=16, cache_length=512, chunk=32)
    rows = collect((model, made), people(url, place, count), place / "trajectories.jsonl")
    write_lines(place / "done", [{"rows": len(rows)}])
