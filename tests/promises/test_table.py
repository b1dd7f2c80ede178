"""What every update rule keeps, whatever the base optimizer."""

import io

import pytest
import torch

from qat.optim.rule import UpdateRule, bcgd, binary_connect, float_only

STEPS = 6


def test_closure_equals_the_plain_loop_bit_for_bit(case, same):
    plain, closed = case.make().train(0, STEPS), case.make()
    for number in range(STEPS):

        def closure(number=number):
            closed.optimizer.zero_grad()
            loss = closed.loss(number)
            loss.backward()
            return loss

        assert closed.optimizer.step(closure).shape == ()
    same(plain, closed)


def test_training_moves_and_forward_sees_its_levels(case):
    run = case.make()
    before = run.tensors()
    for number in range(STEPS):
        theta = run.optimizer.theta
        for layer in (run.net.first, run.net.last):
            values = layer.weight.unique()
            if theta == 1:
                assert len(values) == 2
                assert values[0] == -values[1]
            else:
                assert len(values) == layer.weight.numel()
        run.train(number, number + 1)
    after = run.tensors()
    assert all(not torch.equal(before[k], after[k]) for k in before if "latent" in k)
    assert after["completed"] == STEPS


def test_accumulating_parts_equals_the_whole_batch(case, part_loss):
    # float64, for the sum over 12 images is taken in another order, and AdamW turns the rounding
    # of a gradient near zero into a whole step
    whole = case.make(dtype=torch.float64).train(0, STEPS)
    parts = case.make(dtype=torch.float64)
    for number in range(STEPS):
        parts.optimizer.zero_grad()
        for i in range(3):
            (part_loss(parts.net, number, slice(4 * i, 4 * i + 4)) / 3).backward()
        parts.optimizer.step()
    for key, value in whole.tensors().items():
        torch.testing.assert_close(parts.tensors()[key], value, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shown", ["forward", "hard", "latent"])
def test_resume_is_bitwise_whatever_the_model_part_holds(case, same, shown):
    whole = case.make().train(0, STEPS)
    first, file = case.make().train(0, 2), io.BytesIO()

    def save():
        state = {"net": first.net.state_dict(), "optimizer": first.optimizer.state_dict()}
        torch.save(state, file)

    if shown == "forward":
        save()
    else:
        with getattr(first.optimizer, f"{shown}_weights")():
            save()
    first.train(2, 4)  # the file must not change with the run
    file.seek(0)
    state = torch.load(file, weights_only=True)
    second = case.make(seed=9)
    second.net.load_state_dict(state["net"])
    second.optimizer.load_state_dict(state["optimizer"])
    same(whole, second.train(2, STEPS))


def test_a_step_that_the_scaler_skips_changes_nothing(case, same):
    run, scaler = case.make().train(0, 2), torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = run.tensors()
    run.optimizer.zero_grad()
    scaler.scale(run.loss(2)).backward()
    run.net.first.weight.grad[0, 0] = torch.inf
    scaler.step(run.optimizer)
    scaler.update()
    assert scaler.get_scale() == 512.0
    same(before, run.tensors())


def test_a_scaled_step_is_the_plain_step(case, same):
    plain, scaled = case.make().train(0, STEPS), case.make()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for number in range(STEPS):
        scaled.optimizer.zero_grad()
        scaler.scale(scaled.loss(number)).backward()
        scaler.step(scaled.optimizer)
        scaler.update()
    same(plain, scaled)  # a power of two: nothing is rounded


@pytest.mark.parametrize("rho", [0.0, 0.3, 1.0])
def test_without_relaxation_the_base_optimizer_is_untouched(case, rho):
    net, optimizer = case.plain()
    run = case.make(rule=UpdateRule(blend=lambda t: rho, relax=lambda t: 0.0))
    for number in range(STEPS):
        run.train(number, number + 1)
        optimizer.zero_grad()
        type(run)(net, run.optimizer).loss(number).backward()
        optimizer.step()
        for key, value in net.state_dict().items():
            assert torch.equal(value, run.net.state_dict()[key])


def test_float_only_is_that_limit(cell, same):
    limit = UpdateRule(blend=lambda t: 0.0, relax=lambda t: 0.0)
    same(cell.make(rule=float_only()).train(0, STEPS), cell.make(rule=limit).train(0, STEPS))


def test_no_blending_is_binary_connect(cell, same):
    zero = cell.make(rule=bcgd(0)).train(0, STEPS)
    same(zero, cell.make(rule=binary_connect()).train(0, STEPS))
    blended = cell.make(rule=bcgd(0.3)).train(0, STEPS)
    assert not torch.equal(zero.net.first.bias, blended.net.first.bias)


def test_full_blending_is_projected_gradient(cell):
    run, (net, optimizer) = cell.make(rule=bcgd(1)), cell.plain()
    binary = [net.first.weight, net.last.weight]

    def project():
        with torch.no_grad():
            for w in binary:
                w.copy_(torch.where(w >= 0, 1.0, -1.0) * w.abs().mean())

    project()
    for number in range(STEPS):
        run.train(number, number + 1)
        optimizer.zero_grad()
        type(run)(net, run.optimizer).loss(number).backward()
        optimizer.step()
        project()
        for key, value in net.state_dict().items():
            torch.testing.assert_close(run.net.state_dict()[key], value, rtol=1e-5, atol=1e-7)


def test_looking_at_other_weights_changes_nothing(case, same):
    plain, looked = case.make().train(0, STEPS), case.make()
    for number in range(STEPS):
        for context in (looked.optimizer.hard_weights, looked.optimizer.latent_weights):
            with context(), torch.no_grad():
                looked.loss(99)
        looked.train(number, number + 1)
    same(plain, looked)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_a_fused_base_under_a_scaler(cell, optimizer, same):
    runs = []
    for fused in (False, True):
        run = cell.make()
        base = optimizer(run.net.named_parameters(), lr=0.05, fused=fused)
        projections = {
            layer.weight: projection
            for layer, (_, projection) in zip(
                (run.net.first, run.net.last), run.optimizer.latent_pairs(), strict=True
            )
        }
        run = type(run)(run.net, type(run.optimizer)(base, projections, bcgd(0.3)))
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for number in range(3):
            run.optimizer.zero_grad()
            scaler.scale(run.loss(number)).backward()
            if number == 1:
                run.net.last.weight.grad.fill_(torch.nan)
            scaler.step(run.optimizer)
            scaler.update()
        assert run.optimizer.completed_steps == 2
        runs.append(run.tensors())
    for key, value in runs[0].items():
        torch.testing.assert_close(runs[1][key], value, rtol=1e-4, atol=1e-6)
