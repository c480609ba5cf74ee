"""python main.py --config configs/NAME.py[:VARIANT] [--workdir DIR] [--store DIR] [--dry_run
[--target T]] [--config.a.b=X]"""

import sys

from emjax import commands
from emjax.runtime import stopping

if __name__ == "__main__":
    sys.exit(stopping.leave(commands.run(sys.argv[1:])))
