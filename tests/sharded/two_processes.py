"""One of the two processes of test_on_two_processes: number, port, directory."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from emjax import models
from emjax.models import files, sharding


class Counted:
    """A checkpoint file that counts the bytes read from it."""

    total = 0

    def __init__(self, inner):
        self.inner = inner

    def __enter__(self):
        return Counted(self.inner.__enter__())

    def __exit__(self, *error):
        return self.inner.__exit__(*error)

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def get_slice(self, name):
        return Counted(self.inner.get_slice(name))

    def __getitem__(self, index):
        part = self.inner[index]
        Counted.total += part.nbytes
        return part


def main(number, port, directory):
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=number)
    whole = files.open_tensors
    files.open_tensors = lambda file: Counted(whole(file))
    lm = models.load(str(directory / "base"), dtype="float32", mesh=sharding.make_mesh(1, 4, 2))
    tokens = np.arange(20)[None] * 7
    logits = multihost_utils.process_allgather(models.logits(lm, tokens), tiled=True)
    models.save(lm, directory / "saved")
    multihost_utils.sync_global_devices("saved")
    told = {"read": Counted.total, "tokens": tokens.tolist(), "logits": np.asarray(logits)[0, -1, :8].tolist()}
    (directory / f"{number}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
