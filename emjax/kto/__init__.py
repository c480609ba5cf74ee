"""KTO: loss, pairing, reference, step."""

from emjax.kto.loss import kto_loss

__all__ = ["kto_loss"]
