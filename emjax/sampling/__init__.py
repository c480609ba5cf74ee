"""Sampling: slots refilled as rows end, and scores of given text, from one set of compiled programs."""

from emjax.sampling.engine import Engine
from emjax.sampling.requests import Request, Result, Sampling, Stats

__all__ = ["Engine", "Request", "Result", "Sampling", "Stats"]
