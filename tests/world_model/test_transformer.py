"""The sequence model against a naive one token at a time, and its two ways (whole windows, cached steps) against each
other.
"""

import pytest
import torch
from torch.nn import functional as F

from stormfast.world_model.transformer import SequenceModel, causal_mask, first_visible
from tests.model_fixtures import NUM_ACTIONS, no_sync, one_hot_latent, randomize, tiny_config

TOKENS = ["fused", "separate"]
LENGTH = 7


def build(tokens, **values):
    torch.manual_seed(3)
    config = tiny_config(
        values={"world_model.tokens": tokens} | {f"world_model.{name}": value for name, value in values.items()}
    )
    model = SequenceModel(config.world_model, NUM_ACTIONS).eval()
    randomize(model)
    return model


def inputs(batch=3, length=LENGTH):
    return one_hot_latent(batch, length), torch.randint(NUM_ACTIONS, (batch, length))


def resets_within(context, batch=3, length=LENGTH):
    """is_first with one to three episode starts a window, all before `context`."""
    is_first = torch.zeros(batch, length, dtype=torch.bool)
    for b in range(batch):
        is_first[b, torch.randint(context, (b + 1,))] = True
    return is_first


def new_cache(model, batch=3, steps=LENGTH):
    return model.new_cache(batch, steps, torch.float64, torch.device("cpu"))


def cached(model, latent, action, is_first, context, cache):
    """Hidden states context - 1 .. T - 1: one prefill, then steps."""
    hidden = [
        model.prefill(
            latent[:, :context], action[:, :context], None if is_first is None else is_first[:, :context], cache
        )
    ]
    hidden += [model.step(latent[:, t], action[:, t], cache) for t in range(context, latent.shape[1])]
    return torch.stack(hidden, 1)


# --- naive oracle ------------------------------------------------------------------------------------------------


def naive_norm(x, norm):
    return (x - x.mean()) / (x.var(unbiased=False) + norm.eps).sqrt() * norm.weight + norm.bias


def naive_stem(x, stem):
    x = naive_norm(stem[0].weight @ x, stem[1]).relu()
    return naive_norm(stem[3].weight @ x, stem[4])


def naive_tokens(model, latent, action):
    """One window's tokens as a list, with the step each belongs to."""
    tokens, steps = [], []
    for t in range(len(action)):
        one_hot = F.one_hot(action[t], NUM_ACTIONS).double()
        if model.tokens.per_step == 1:
            new = [naive_stem(torch.cat([latent[t], one_hot]), model.tokens.stem)]
        else:
            new = [naive_stem(latent[t], model.tokens.obs_stem), naive_stem(one_hot, model.tokens.action_stem)]
        tokens, steps = tokens + new, steps + [t] * len(new)
    return [naive_norm(x + model.positions.weight[i], model.norm) for i, x in enumerate(tokens)], steps


def naive_attention(attention, xs, i, visible):
    """Output of token i over the visible ones."""
    out, width = [], len(xs[0]) // attention.heads
    for h in range(attention.heads):
        rows = slice(h * width, (h + 1) * width)
        scores = torch.stack(
            [
                (attention.query.weight @ xs[i])[rows] @ (attention.key.weight @ xs[j])[rows] / width**0.5
                for j in visible
            ]
        )
        out.append(
            sum(w * (attention.value.weight @ xs[j])[rows] for w, j in zip(scores.softmax(0), visible, strict=True))
        )
    return naive_norm(xs[i] + attention.out.weight @ torch.cat(out), attention.norm)


def naive_forward(model, latent, action, is_first):
    """One window: [T, S*K], [T], [T] bool or None -> [T, D]."""
    xs, steps = naive_tokens(model, latent, action)
    episode = [0 if is_first is None else int(is_first[: t + 1].sum()) for t in steps]
    for block in model.blocks:
        visible = [[j for j in range(i + 1) if episode[j] == episode[i]] for i in range(len(xs))]
        mixed = [naive_attention(block.attention, xs, i, visible[i]) for i in range(len(xs))]
        ffn = block.feed_forward
        xs = [
            naive_norm(x + ffn.outer.weight @ (ffn.inner.weight @ x + ffn.inner.bias).relu() + ffn.outer.bias, ffn.norm)
            for x in mixed
        ]
    return torch.stack(xs[model.tokens.per_step - 1 :: model.tokens.per_step])


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("marked", [False, True])
@torch.no_grad()
def test_forward_is_the_naive_transformer(tokens, marked):
    model, (latent, action) = build(tokens), inputs(length=5)
    is_first = resets_within(5, length=5) if marked else None
    expected = torch.stack(
        [naive_forward(model, latent[b], action[b], is_first[b] if marked else None) for b in range(3)]
    )
    torch.testing.assert_close(model(latent, action, is_first), expected, rtol=1e-9, atol=1e-9)


# --- forward and cached steps ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("context", range(1, LENGTH + 1))
@pytest.mark.parametrize("marked", [False, True])
@torch.no_grad()
def test_forward_equals_prefill_and_steps(tokens, context, marked):
    model, (latent, action) = build(tokens), inputs()
    is_first = resets_within(context) if marked else None
    whole = model(latent, action, is_first)
    stepwise = cached(model, latent, action, is_first, context, new_cache(model))
    torch.testing.assert_close(stepwise, whole[:, context - 1 :], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("tokens", TOKENS)
@torch.no_grad()
def test_steps_alone_equal_forward(tokens):
    model, (latent, action) = build(tokens), inputs()
    cache = new_cache(model)
    stepwise = torch.stack([model.step(latent[:, t], action[:, t], cache) for t in range(LENGTH)], 1)
    torch.testing.assert_close(stepwise, model(latent, action, None), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("tokens", TOKENS)
@torch.no_grad()
def test_a_cache_used_again_forgets(tokens):
    model, (latent, action) = build(tokens), inputs()
    is_first, cache = resets_within(3), new_cache(model)
    fresh = cached(model, latent, action, None, 2, new_cache(model))
    cached(model, *inputs(), is_first, 3, cache)
    assert torch.equal(cached(model, latent, action, None, 2, cache), fresh)
    assert cache.filled == cache.length.item() == LENGTH * model.tokens.per_step


# --- what may be seen --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("changed", ["latent", "action"])
@torch.no_grad()
def test_the_future_does_not_change_the_past(tokens, changed):
    model, (latent, action) = build(tokens), inputs()
    before = model(latent, action, None)
    if changed == "latent":
        latent[:, 4] = latent[:, 4].roll(1, -1)
    else:
        action[:, 4] = (action[:, 4] + 1) % NUM_ACTIONS
    after = model(latent, action, None)
    torch.testing.assert_close(after[:, :4], before[:, :4], rtol=0, atol=1e-13)
    moved = (after - before).abs().amax(-1)
    assert moved[:, 4:].min() > 1e-6  # row t has seen latent and action t, and so has all that follows


@torch.no_grad()
def test_the_observation_token_does_not_see_its_action():
    model, (_, action) = build("separate"), inputs()
    mask = model.mask(resets_within(LENGTH), action)
    for t in range(LENGTH):
        assert not mask[:, 0, 2 * t, 2 * t + 1].any()
        assert mask[:, 0, 2 * t + 1, 2 * t : 2 * t + 2].all()


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("context", [None, 4, LENGTH])
@pytest.mark.parametrize("marked", [True, False])
@torch.no_grad()
def test_an_episode_sees_nothing_of_the_one_before(tokens, context, marked):
    """Altered content before the reset at step 3, same length: positions are those of the window.

    Unmarked, it does leak.
    """
    model, (latent, action) = build(tokens), inputs()
    is_first = torch.zeros(3, LENGTH, dtype=torch.bool)
    is_first[:, 3] = True
    hidden = []
    for _ in range(2):
        seen = is_first if marked else None
        hidden.append(
            model(latent, action, seen)[:, 3:]
            if context is None
            else cached(model, latent, action, seen, context, new_cache(model))
        )
        latent[:, :3], action[:, :3] = latent[:, :3].roll(1, -1), (action[:, :3] + 1) % NUM_ACTIONS
    apart = (hidden[1] - hidden[0]).abs().amax(-1)
    assert (apart.max() < 1e-13) if marked else (apart.min() > 1e-6)


def test_mask_against_loops():
    is_first = torch.tensor([[0, 0, 1, 0, 1, 0], [1, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]]).bool()
    mask = causal_mask(is_first, 6, is_first.device)
    assert mask.shape == (3, 1, 6, 6)
    for b in range(3):
        for i in range(6):
            for j in range(6):
                assert mask[b, 0, i, j] == (j <= i and not is_first[b, j + 1 : i + 1].any())
    assert torch.equal(causal_mask(None, 6, is_first.device)[0, 0], torch.ones(6, 6).tril().bool())


def test_first_visible_against_loops():
    is_first = torch.rand(50, 5) < 0.3
    expected = [max((t for t in range(5) if row[t]), default=0) for row in is_first.tolist()]
    assert first_visible(is_first).tolist() == expected
    assert first_visible(is_first).dtype == torch.int64


def test_gradients_reach_nothing_across_a_reset():
    model, (latent, action) = build("fused"), inputs()
    latent.requires_grad_()
    is_first = torch.zeros(3, LENGTH, dtype=torch.bool)
    is_first[:, 3] = True
    (gradient,) = torch.autograd.grad(model(latent, action, is_first)[:, 5].sum(), latent)
    reached = gradient.abs().amax((0, 2)) > 0
    assert reached.tolist() == [False, False, False, True, True, True, False]


# --- dropout, syncs, errors --------------------------------------------------------------------------------------


def test_dropout_acts_in_training_only():
    model, (latent, action) = build("fused", dropout=0.3), inputs()
    assert not torch.equal(model.train()(latent, action, None), model(latent, action, None))
    assert torch.equal(model.eval()(latent, action, None), model(latent, action, None))


@pytest.mark.parametrize("tokens", TOKENS)
@torch.no_grad()
def test_nothing_waits_for_the_device(tokens):
    model, (latent, action) = build(tokens), inputs()
    is_first, cache = resets_within(3), new_cache(model)
    with no_sync():
        cached(model, latent, action, is_first, 3, cache)
        model(latent, action, is_first)
    with no_sync(), pytest.raises(AssertionError, match="waits"):
        cache.length.item()  # the mode does see a sync


@pytest.mark.parametrize("tokens", TOKENS)
@torch.no_grad()
def test_a_full_cache_is_refused(tokens):
    model, (latent, action) = build(tokens), inputs()
    cache = new_cache(model, steps=5)
    model.prefill(latent[:, :4], action[:, :4], None, cache)
    model.step(latent[:, 4], action[:, 4], cache)
    kept = cache.key.clone()
    with pytest.raises(ValueError, match="the cache is full"):
        model.step(latent[:, 5], action[:, 5], cache)
    assert torch.equal(cache.key, kept)
    with pytest.raises(ValueError, match="does not fit a cache"):
        model.prefill(latent[:, :6], action[:, :6], None, cache)


@pytest.mark.parametrize("tokens", TOKENS)
def test_windows_longer_than_the_positions_are_refused(tokens):
    model = build(tokens)
    model(*inputs(length=11), None)
    with pytest.raises(ValueError, match="at most 11 steps, got 12"):
        model(*inputs(length=12), None)
    with pytest.raises(ValueError, match="at most 11 steps, got 12"):
        new_cache(model, steps=12)


@torch.no_grad()
def test_shapes_that_would_broadcast_are_refused():
    model, (latent, action) = build("fused"), inputs()
    with pytest.raises(ValueError, match="must fit"):
        model(latent, action[:1], None)
    with pytest.raises(ValueError, match="must fit"):
        model(latent, action[:, :-1], None)
    with pytest.raises(ValueError, match="batch of 1 contexts does not fit a cache of 3"):
        model.prefill(latent[:1], action[:1], None, new_cache(model))
    with pytest.raises(ValueError, match="is_first"):
        model(latent, action, torch.zeros(1, LENGTH, dtype=torch.bool))
