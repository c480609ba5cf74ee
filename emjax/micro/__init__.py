"""Moved to emjax.worlds.micro. Only `python -m emjax.micro.evidence` still runs, throughout version
0.2."""
