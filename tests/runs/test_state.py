import pytest
import torch

from stormfast.runs.state import (
    flatten_optimizer,
    restore_optimizer,
    restore_rng,
    rng_state,
    with_prefix,
    without_prefix,
)


def model(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Linear(3, 2)).double()


def optimizer_of(net, **options):
    """Two groups, so that indices count over groups."""
    return torch.optim.AdamW(
        [{"params": net[0].parameters()}, {"params": net[1].parameters(), "lr": 0.02}], lr=0.01, **options
    )


def train(net, optimizer, num_steps, seed):
    inputs = torch.randn(num_steps, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for x in inputs:
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize(
    "options", [{}, {"amsgrad": True}, {"capturable": False, "foreach": True}, {"fused": True}], ids=str
)
def test_an_optimiser_goes_on_to_the_bit(options):
    net = model()
    optimizer = optimizer_of(net, **options)
    train(net, optimizer, 5, seed=1)
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    saved = {name: value.clone() for name, value in flatten_optimizer(optimizer, "agent.optimizer").items()}
    train(net, optimizer, 5, seed=2)

    other = model(seed=9)
    other.load_state_dict(weights)
    restored = optimizer_of(other, **options)
    restore_optimizer(restored, saved | {"agent.optimizer2.0.step": torch.tensor(99.0)}, "agent.optimizer")
    assert float(restored.state[other[1].bias]["step"]) == 5
    train(other, restored, 5, seed=2)
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_prefix_is_put_on_and_taken_off():
    tensors = {"agent.weight": torch.ones(2), "": torch.zeros(1), "bias": torch.ones(3)}
    named = with_prefix("agent", tensors)
    assert list(named) == ["agent.agent.weight", "agent.", "agent.bias"]
    back = without_prefix(
        "agent", named | {"agents.x": torch.ones(1), "agent": torch.ones(1), "world_model.agent.x": torch.ones(1)}
    )
    assert back.keys() == tensors.keys()
    assert all(back[name] is tensors[name] for name in tensors)


def test_names_count_parameters_over_groups():
    net = model()
    optimizer = optimizer_of(net)
    assert flatten_optimizer(optimizer, "wm") == {}
    train(net, optimizer, 1, seed=0)
    assert sorted(flatten_optimizer(optimizer, "wm")) == sorted(
        f"wm.{i}.{name}" for i in range(4) for name in ("step", "exp_avg", "exp_avg_sq")
    )


def test_restoring_fills_existing_state_in_place():
    net = model()
    optimizer = optimizer_of(net)
    train(net, optimizer, 3, seed=0)
    saved = {name: value.clone() for name, value in flatten_optimizer(optimizer, "o").items()}
    train(net, optimizer, 3, seed=1)
    before = flatten_optimizer(optimizer, "o")
    addresses = {name: value.data_ptr() for name, value in before.items()}
    restore_optimizer(optimizer, saved, "o")
    after = flatten_optimizer(optimizer, "o")
    assert {name: value.data_ptr() for name, value in after.items()} == addresses
    assert all(torch.equal(after[name], saved[name]) for name in saved)


def test_an_optimiser_that_took_no_step_is_restored_empty():
    net = model()
    optimizer = optimizer_of(net)
    train(net, optimizer, 3, seed=0)
    restore_optimizer(optimizer, {}, "o")
    assert flatten_optimizer(optimizer, "o") == {}


def test_state_keeps_its_own_dtype():
    param = torch.zeros(3, dtype=torch.bfloat16, requires_grad=True)
    optimizer = torch.optim.Adam([param])
    average = torch.tensor([1.0000001, 2.0, 3.0])
    restore_optimizer(optimizer, {"o.0.exp_avg": average, "o.0.step": torch.tensor(4.0)}, "o")
    assert torch.equal(optimizer.state[param]["exp_avg"], average)
    average.zero_()
    assert optimizer.state[param]["exp_avg"][0] != 0, "the optimiser must own its state"


def test_state_that_does_not_fit_is_refused():
    net = model()
    optimizer = optimizer_of(net)
    with pytest.raises(ValueError, match=r"o\.0\.exp_avg must be \(3, 5\) like its parameter, got \(5, 3\)"):
        restore_optimizer(optimizer, {"o.0.exp_avg": torch.zeros(5, 3)}, "o")
    with pytest.raises(ValueError, match="has 4 parameters, but the saved state has one of index 4"):
        restore_optimizer(optimizer, {"o.4.step": torch.tensor(1.0)}, "o")
    optimizer.state[net[0].bias] = {"step": 3}
    with pytest.raises(ValueError, match="must be a tensor, got int"):
        flatten_optimizer(optimizer, "o")


def test_a_generator_goes_on_to_the_bit():
    generator = torch.Generator().manual_seed(5)
    torch.randn(7, generator=generator)
    state = rng_state(generator).clone()
    expected = [torch.rand(9, generator=generator), torch.randn(3, generator=generator)]
    other = torch.Generator().manual_seed(6)
    restore_rng(other, state)
    assert torch.equal(torch.rand(9, generator=other), expected[0])
    assert torch.equal(torch.randn(3, generator=other), expected[1])


def test_torchs_own_generator_is_restored():
    state = rng_state(torch.default_generator)
    expected = torch.rand(4)
    restore_rng(torch.default_generator, state)
    assert torch.equal(torch.rand(4), expected)


def test_a_state_of_another_kind_is_refused():
    with pytest.raises(ValueError, match=r"a cpu generator's state must be torch\.uint8"):
        restore_rng(torch.Generator(), torch.zeros(16, dtype=torch.uint8))


@pytest.mark.gpu
def test_a_cuda_generator_goes_on_from_a_state_on_the_device():
    generator = torch.Generator("cuda").manual_seed(5)
    torch.randn(7, generator=generator, device="cuda")
    state = rng_state(generator).cuda()
    expected = torch.rand(9, generator=generator, device="cuda")
    other = torch.Generator("cuda")
    restore_rng(other, state)
    assert torch.equal(torch.rand(9, generator=other, device="cuda"), expected)
