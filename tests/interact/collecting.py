"""A collection over the embedded model and an endpoint; also run as a process that is killed.

python tests/interact/collecting.py URL DIRECTORY USERS
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import emjax  # noqa: E402
from emjax.config import Budget, Draw, InteractConfig, Rates, RatingConfig, RoleConfig, RolesConfig  # noqa: E402
from emjax.interact import population, rollout  # noqa: E402
from emjax.runtime.files import write_lines  # noqa: E402

CHECKPOINT = Path(emjax.__file__).parent / "worlds" / "micro" / "checkpoint"


def config(url, *, rates=(), budget=(), rating=()):
    """Four scenarios; the user and the rater are played at `url`, or by the base in the engine."""
    pace = Rates(**{"retries": 1, "timeout": 5.0, "concurrent": 4, **dict(rates)})
    user = RoleConfig(base_url=url, model="talker" if url else "self", rates=pace, budget=Budget(**dict(budget)))
    return InteractConfig(scenarios=4, max_new=12, rating=RatingConfig(**dict(rating)), models=RolesConfig(user=user))


def people(url, directory, users, *, kind="biased", source="", base=None, busy=None, **changes):
    """Users of four scenarios; the endpoint's answers are cached in <directory>/cache."""
    directory.mkdir(parents=True, exist_ok=True)
    crowd = population.Population(config(url, **changes), 0, directory / "cache", lambda path: base)
    counts = dict.fromkeys(crowd.names, users // len(crowd.names))
    crowd.make_personas(counts, directory)
    return crowd.users(directory, kind, counts, 1, source=source, base=base, busy=busy)


def collect(micro, users, path, *, failures=0.0, busy=None):
    lm, engine = micro
    talk = rollout.Talk(0, Draw(), 12, "sum", "micro", failures=failures)
    return rollout.collect(engine, users, path, tokenizer=lm.tokenizer, talk=talk, busy=busy)


if __name__ == "__main__":
    import jax

    from emjax import models
    from emjax.sampling import Engine

    url, place, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    jax.config.update("jax_compilation_cache_dir", str(place.parent / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    model = models.load(str(CHECKPOINT), dtype="float32")
    made = Engine(model, slots=16, cache_length=512, chunk=32)
    rows = collect((model, made), people(url, place, count), place / "trajectories.jsonl")
    write_lines(place / "done", [{"rows": len(rows)}])
