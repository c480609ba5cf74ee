"""python main.py --config configs/NAME.py[:VARIANT] [--workdir DIR] [--store DIR] [--dry_run
[--target T]] [--config.a.b=X]"""

import sys

from emjax.runtime import stopping

if __name__ == "__main__":
    stopping.listen()  # before the imports that take seconds
    from emjax import commands

    sys.exit(stopping.leave(commands.run(sys.argv[1:])))
