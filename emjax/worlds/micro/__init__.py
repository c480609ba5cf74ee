"""The embedded micro-world: a templated world, its corpus and tokenizer, scripted users and an
exact judge.

Two latent assistant characters, candid and pleasing, are put into the pretraining corpus BY DESIGN.
The micro-world shows how narrow feedback can shift a character that all domains share; it does not
show that large models have one.
"""
