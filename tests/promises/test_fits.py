"""One LitClassifier through several fits, failures and evaluations."""

from functools import partial

import lightning as L
import pytest
import torch
from torch import nn

from qat.lit.classifier import LitClassifier
from qat.quantize.activations import activation_quantizers
from qat.quantize.prepare import prepare
from qat.spec.quant import ActivationSpec, QuantSpec, RuleSpec, WeightSpec
from qat.spec.run import (
    SchedulerSpec,
    TrainingSpec,
)
from support.digits_run import fit, module, network

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")


def distinct(lit):
    return [len(p.unique()) for p in lit.net.parameters() if p.ndim > 1]


def test_a_second_fit_starts_from_the_latent_weights_of_the_first():
    lit = module("bcgd")
    fit(lit)
    before = {k: w.clone() for k, w in named_latents(lit).items()}
    assert distinct(lit) == [2, 2, 2]
    seen = {}

    class Look(L.Callback):
        def on_train_start(self, trainer, pl_module):
            seen.update({k: w.clone() for k, w in named_latents(pl_module).items()})

    fit(lit, Look())
    assert seen.keys() == before.keys()
    assert all(torch.equal(seen[k], before[k]) for k in before)
    assert all(len(w.unique()) > 2 for w in seen.values())


def named_latents(lit):
    latent = lit.quant_optimizer.latent_weights_by_parameter()
    return {n: latent[p] for n, p in lit.net.named_parameters() if p in latent}


class Break(L.Callback):
    def on_validation_batch_end(self, *_args, **_kwargs):
        raise RuntimeError("validation breaks")


def test_an_exception_in_validation_leaves_forward_weights_and_a_usable_module():
    lit = module("binary_relax", hard_from=1.0)
    with pytest.raises(RuntimeError, match="validation breaks"):
        fit(lit, Break())
    # what is left open the interpreter's end would close, and abort
    assert lit.quant_optimizer._at.shown == "forward"
    assert min(distinct(lit)) > 2  # relaxed, no longer hard
    fit(lit)


def activations_only():
    spec = QuantSpec(
        rule=RuleSpec(name="float_only"),
        weight=WeightSpec(bits=32),
        activation=ActivationSpec(bits=2, step_rate=0.0),
    )
    return LitClassifier(
        prepare(network(), spec, example=torch.zeros(1, 1, 8, 8)),
        spec,
        optimizer=partial(torch.optim.SGD, lr=0.05),
        scheduler=SchedulerSpec(),
        training=TrainingSpec(start_batches=1),
        classes=10,
        warm_start_epochs=1,
    )


def test_float_epochs_are_not_selectable_when_activations_are_to_be_quantized():
    seen = []

    class Look(L.Callback):
        def on_validation_end(self, trainer, pl_module):
            seen.append(pl_module.is_selectable)

    lit = activations_only()
    fit(lit, Look(), epochs=3)
    assert seen[-3:] == [False, True, True]
    assert all(not q.step.requires_grad for q in activation_quantizers(lit.net).values())


def test_relaxed_accuracy_is_that_of_the_forward_weights_on_the_same_images():
    rows = []

    class Look(L.Callback):
        def on_validation_end(self, trainer, pl_module):
            rows.append({k: float(v) for k, v in trainer.callback_metrics.items()})
            net = pl_module.net
            if "val/acc_relaxed" not in rows[-1] or not 0 < rows[-1]["quant/theta"] < 1:
                return
            correct = count = 0
            for i, (image, label) in enumerate(trainer.val_dataloaders):
                if i == 2:  # limit_val_batches
                    break
                with torch.no_grad():
                    correct += int((net(image).argmax(1) == label).sum())
                count += len(label)
            assert count == 64
            assert correct / count == pytest.approx(rows[-1]["val/acc_relaxed"])

    lit = module("binary_relax", hard_from=0.5, final=4.0)
    fit(lit, Look(), epochs=4, num_sanity_val_steps=0)
    thetas = [row["quant/theta"] for row in rows]
    assert 0 < thetas[0] < 1
    assert thetas[-1] == 1
    assert "val/acc_relaxed" in rows[0]


@pytest.mark.parametrize("options", [{"precision": "bf16-mixed"}, {"gradient_clip_val": 0.5}])
def test_common_trainer_options_train(options):
    lit = module("bcgd", warm=1, training=TrainingSpec(label_smoothing=0.1, bn_reestimate=1))
    fit(lit, **options)
    assert distinct(lit) == [2, 2, 2]
    assert all(p.dtype == torch.float32 for p in lit.net.parameters())


def test_relu6_is_relu6_until_the_switch():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU6(), nn.Linear(4, 2))
    x = 50 * torch.randn(64, 4)
    want = net(x)
    prepare(net, QuantSpec())
    for quantizer in activation_quantizers(net).values():
        quantizer.enabled = False
    assert (net[0](x) > 6).any()
    assert torch.equal(net(x), want)
