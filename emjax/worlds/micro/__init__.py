"""The embedded micro-world: a templated world with its corpus, tokenizer, scripted users and exact
judge.

The pretraining corpus contains two latent assistant characters, candid and pleasing, BY DESIGN. The
micro-world shows how narrow feedback can shift a character that all domains share. It does not show
that large models have such a character.
"""
