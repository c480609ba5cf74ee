"""Runs one mutant after another in a process of its own, which the parent ends where one takes too long."""

import json
import shutil
import tempfile
import traceback
from pathlib import Path

import numpy as np

from emjax.errors import UserError
from tests.fuzz import mutate
from tests.fuzz.targets import TARGETS, Endpoint


class Mutants:
    def __init__(self, root):
        self.root, self.sound, self.endpoint = Path(root), {}, None

    def run(self, target, seed):
        """("works" | "refused" | "traceback", what was said, what was done to the input)"""
        rng = np.random.default_rng([seed, *target.encode()])
        try:
            if target == "endpoint":
                return self._endpoint(rng)
            if target not in self.sound:
                self.sound[target] = self.root / target
                self.sound[target].mkdir(parents=True)
                TARGETS[target].write(self.sound[target])
                TARGETS[target].read(self.sound[target])  # the sound input works
            return self._files(target, rng)
        except Exception:
            return "traceback", traceback.format_exc(), "before the mutant"

    def _files(self, target, rng):
        with tempfile.TemporaryDirectory(dir=self.root) as folder:
            folder = Path(folder) / "x"
            shutil.copytree(self.sound[target], folder)
            files = sorted(f for f in folder.iterdir() if f.name != "README.md")
            file = mutate.pick(rng, files)
            if rng.random() < 0.03:
                file.unlink()
                done = f"{file.name} removed"
            else:
                new = mutate.text(file.read_bytes(), file.name, rng)
                file.write_bytes(new)
                done = f"{file.name}: {new[:2000]!r}"
            return self._outcome(lambda: TARGETS[target].read(folder), done)

    def _endpoint(self, rng):
        self.endpoint = self.endpoint or Endpoint()
        body = mutate.text(Endpoint.sound, "x.json", rng)
        code = mutate.pick(rng, (200, 200, 200, 200, 400, 404, 429, 500))
        return self._outcome(lambda: self.endpoint.ask(body, code), f"{code}: {body[:2000]!r}")

    def _outcome(self, act, done):
        try:
            act()
        except UserError as error:
            return ("refused" if str(error).strip() else "traceback"), str(error), done
        except Exception:
            return "traceback", traceback.format_exc(), done
        return "works", "", done


def serve(connection, root):
    """Answers (target, seed) with an outcome, until None comes."""
    mutants = Mutants(root)
    for target in (*TARGETS, "endpoint"):  # imports and compilation are not a mutant's time
        mutants.run(target, 0)
    connection.send("ready")
    while (job := connection.recv()) is not None:
        connection.send(mutants.run(*job))


if __name__ == "__main__":
    import sys

    with tempfile.TemporaryDirectory() as root:
        print(json.dumps(Mutants(root).run(sys.argv[1], int(sys.argv[2])), indent=1))
