"""Sampling with continuous batching, and scores of given text, with one set of programs."""

from emjax.sampling.engine import Engine
from emjax.sampling.requests import Request, Result, Sampling, Stats

__all__ = ["Engine", "Request", "Result", "Sampling", "Stats"]
