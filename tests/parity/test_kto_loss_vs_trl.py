"""The KTO loss against TRL's own, called on given log-probs (TRL 1.16; its trainer is never built)."""

import functools
import types
from collections import defaultdict

import jax
import numpy as np
import pytest

from emjax.kto import kto_loss

torch = pytest.importorskip("torch")
kto_trainer = pytest.importorskip("trl.trainer.kto_trainer")


class Model:
    """Answers with the log-probs it was given; the KL rows carry the id 2, the matched ones 1."""

    training = True

    def __init__(self, policy, policy_kl):
        self.by_id = {1: policy, 2: policy_kl}

    def __call__(self, input_ids, **_):
        values = self.by_id[int(input_ids[0, 1])][:, None]
        zero = torch.zeros_like(values)
        return types.SimpleNamespace(log_probs=values, entropy=zero, mean_logits=zero)


def trl_loss(policy, reference, policy_kl, reference_kl, desirable, *, beta, desirable_weight, undesirable_weight, loss_type):
    """(loss, z, gradient by policy, gradient by policy_kl) from TRL, all in the dtype of the arrays."""
    policy, policy_kl = (torch.tensor(x, requires_grad=True) for x in (policy, policy_kl))
    model = Model(policy, policy_kl)
    trainer = object.__new__(kto_trainer.KTOTrainer)
    accelerator = types.SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda x: x)
    for name, value in {
        "model": model, "accelerator": accelerator, "beta": beta, "loss_type": loss_type,
        "desirable_weight": desirable_weight, "undesirable_weight": undesirable_weight,
        "calculate_KL": loss_type == "kto", "precompute_ref_logps": True, "aux_loss_enabled": False, "_tp_size": 1,
        "_total_train_tokens": 0, "_metrics": {"train": defaultdict(list)},
    }.items():  # fmt: skip
        setattr(trainer, name, value)
    size = len(desirable)
    ones, mask = torch.ones(size, 2, dtype=torch.long), torch.tensor([[0, 1]] * size)
    batch = {"input_ids": ones, "attention_mask": ones, "completion_mask": mask, "label": torch.tensor(desirable)}
    batch |= {"KL_input_ids": 2 * ones, "KL_attention_mask": ones, "KL_completion_mask": mask}
    batch |= {"ref_logps": torch.tensor(reference), "ref_KL_logps": torch.tensor(reference_kl)}
    loss = trainer._compute_loss(model, batch, False)
    loss.backward()
    kl_gradient = np.zeros(size) if policy_kl.grad is None else policy_kl.grad.numpy()
    return loss.item(), trainer._metrics["train"]["kl"][0], policy.grad.numpy(), kl_gradient


def cases(count):
    rng = np.random.default_rng(0)
    for i in range(count):
        size = 1 + i % 8
        options = {
            "beta": float(rng.uniform(0.01, 0.5)),
            "desirable_weight": float(rng.uniform(0, 2)),
            "undesirable_weight": float(rng.uniform(0, 2)),
            "loss_type": ("kto", "apo_zero_unpaired")[i % 16 >= 8],
        }
        policy, policy_kl = rng.uniform(-60, -1, (2, size))
        # The reference point is clamped in half of the cases.
        reference, reference_kl = policy + rng.normal(0, 8, size), policy_kl + rng.normal(0, 3, size)
        yield (policy, reference, policy_kl, reference_kl), rng.random(size) < 0.5, options


@functools.partial(jax.jit, static_argnames="loss_type")
def evaluate(policy, reference, policy_kl, reference_kl, desirable, **options):
    """((loss, aux), gradients by policy and policy_kl)"""

    def loss(policy, policy_kl):
        return kto_loss(policy, reference, policy_kl, reference_kl, desirable, **options)

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(policy, policy_kl)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-6)])
def test_loss_reference_point_and_gradients(dtype, tolerance):
    clamped = 0
    for vectors, desirable, options in cases(48):
        vectors = [v.astype(dtype) for v in vectors]
        wanted, z, gradient, kl_gradient = trl_loss(*vectors, desirable, **options)
        with jax.enable_x64(dtype == "float64"):
            (loss, aux), gradients = evaluate(*vectors, desirable, **options)
        assert loss.dtype == dtype
        assert abs(float(loss) - wanted) < tolerance
        np.testing.assert_allclose(aux["kl"], z, atol=tolerance * 10, rtol=tolerance)
        np.testing.assert_allclose(gradients[0], gradient, atol=tolerance, rtol=0)
        assert not np.any(gradients[1])
        assert not np.any(kl_gradient)
        clamped += z == 0
    assert 24 < clamped < 48
