"""emjax: measure how language models become dishonest by accident (arXiv:2510.08211)."""

__version__ = "0.1.0"
