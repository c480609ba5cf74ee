"""KTO: loss, pairing, reference log-probs and training step."""

from emjax.kto.loss import kto_loss

__all__ = ["kto_loss"]
