"""Catch: its rules, and that it can be won but not by chance."""

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from stormfast.envs.catch import BALL_COLOR, BALLS, CELL, GRID, MAX_RETURN, MIDDLE, PADDLE_COLOR, Catch


def cell_of(frame: np.ndarray, color: tuple[int, int, int]) -> tuple[int, int] | None:
    """Row and column of the cell of a colour, read from the pixels; None where it is hidden."""
    rows, columns = np.nonzero((frame == color).all(-1))
    if rows.size == 0:
        return None
    assert rows.size == CELL * CELL
    return int(rows[0]) // CELL, int(columns[0]) // CELL


def landing_column(ball: tuple[int, int], drift: int) -> int:
    row, column = ball
    for _ in range(GRID - 1 - row):
        drift = drift if 0 <= column + drift < GRID else -drift
        column += drift
    return column


def play(env: Catch, policy, seed: int) -> tuple[float, int]:
    frame, _ = env.reset(seed=seed)
    total, length, over = 0.0, 0, False
    while not over:
        frame, reward, over, truncated, _ = env.step(policy(env, frame))
        assert not truncated
        total, length = total + reward, length + 1
    return total, length


def optimal(env: Catch, frame: np.ndarray) -> int:
    ball, paddle = cell_of(frame, BALL_COLOR), cell_of(frame, PADDLE_COLOR)
    if ball is None or paddle is None:
        return 1
    return int(np.sign(landing_column(ball, env.drift) - paddle[1])) + 1


@pytest.mark.parametrize("drift", [False, True])
def test_the_optimal_player_wins_everything(drift: bool) -> None:
    assert MAX_RETURN == BALLS == 5
    env = Catch(drift)
    assert {play(env, optimal, seed) for seed in range(60)} == {(MAX_RETURN, 39)}


def test_chance_loses() -> None:
    """Seven columns of eight are missed whatever a blind player does: 5 * (1/8 - 7/8) = -3.75 on average."""
    env, rng = Catch(), np.random.default_rng(0)
    returns = [play(env, lambda env, frame: int(rng.integers(3)), seed)[0] for seed in range(1000)]
    assert abs(np.mean(returns) + 3.75) < 4 * np.std(returns) / np.sqrt(len(returns))


def test_drift_turns_at_the_walls_and_decides() -> None:
    env, columns = Catch(drift=True), set()
    for seed in range(40):
        env.reset(seed=seed)
        start, drift = env.column, env.drift
        path = [start] + [cell_of(env.step(1)[0], BALL_COLOR)[1] for _ in range(GRID - 1)]  # type: ignore[index]
        assert np.abs(np.diff(path)).tolist() == [abs(drift)] * (GRID - 1)
        assert path[-1] == landing_column((0, start), drift)
        columns.add((start, drift))
    assert {drift for _, drift in columns} == {-1, 0, 1}


def test_one_ball_step_by_step() -> None:
    env = Catch()
    frame, info = env.reset(seed=0)
    assert frame.shape == (64, 64, 3)
    assert frame.dtype == np.uint8
    assert info == {}
    column = cell_of(frame, BALL_COLOR)[1]  # type: ignore[index]
    assert cell_of(frame, BALL_COLOR) == (0, column)
    assert cell_of(frame, PADDLE_COLOR) == (GRID - 1, MIDDLE)
    assert set(map(tuple, frame.reshape(-1, 3).tolist())) == {(0, 0, 0), BALL_COLOR, PADDLE_COLOR}
    for row in range(1, GRID):
        frame, reward, over, _, _ = env.step(0)
        paddle = max(MIDDLE - row, 0)
        assert cell_of(frame, BALL_COLOR) == (row, column)
        if row < GRID - 1 or column != paddle:
            assert cell_of(frame, PADDLE_COLOR) == (GRID - 1, paddle)
        assert not over
        assert reward == (0.0 if row < GRID - 1 else 1.0 if column == 0 else -1.0)
    frame, reward, over, _, _ = env.step(0)  # the serve: this action moves nothing
    assert cell_of(frame, BALL_COLOR)[0] == 0
    assert cell_of(frame, PADDLE_COLOR) == (GRID - 1, MIDDLE)
    assert reward == 0.0
    assert not over


def test_balls_fall_everywhere() -> None:
    env = Catch()
    columns = [cell_of(env.reset(seed=seed)[0], BALL_COLOR)[1] for seed in range(200)]  # type: ignore[index]
    assert np.bincount(columns, minlength=GRID).min() > 8


@pytest.mark.parametrize("at", [0, 3, 7, 8, 30])
def test_state_round_trip(at: int) -> None:
    env, rng = Catch(drift=True), np.random.default_rng(at)
    env.reset(seed=2)
    for _ in range(at):
        env.step(int(rng.integers(3)))
    state = env.get_state()
    assert {(array.dtype.name, type(array)) for array in state.values()} == {
        ("uint8", np.ndarray),
        ("int64", np.ndarray),
    }
    other = Catch(drift=True)
    other.set_state(state)
    over = False
    while not over:
        action = int(rng.integers(3))
        (a, reward_a, over, _, _), (b, reward_b, over_b, _, _) = env.step(action), other.step(action)
        np.testing.assert_array_equal(a, b)
        assert (reward_a, over) == (reward_b, over_b)
    np.testing.assert_array_equal(env.reset()[0], other.reset()[0])  # the random numbers went along


def test_bad_input() -> None:
    env = Catch()
    with pytest.raises(ValueError, match="after reset"):
        env.step(0)
    env.reset(seed=0)
    for action in (-1, 3, 1.0):
        with pytest.raises(ValueError, match="action must be 0, 1 or 2"):
            env.step(action)
    with pytest.raises(ValueError, match="render_mode"):
        Catch(render_mode="human")
    state = env.get_state()
    with pytest.raises(ValueError, match="a state of Catch must be"):
        env.set_state({"game": state["game"]})
    with pytest.raises(ValueError, match="on the grid"):
        env.set_state(state | {"game": np.array([0, GRID, 0, 0, 5])})


def test_gymnasium_accepts_it() -> None:
    check_env(Catch(render_mode="rgb_array"), skip_render_check=True)
    env = Catch(render_mode="rgb_array")
    frame, _ = env.reset(seed=0)
    np.testing.assert_array_equal(env.render(), frame)
    assert Catch().render() is None
