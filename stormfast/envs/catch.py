"""Catch: a built-in pixel game that a small world model learns in minutes.

A ball falls from a random column, one row a step; a paddle on the bottom row moves left, stays, or moves right. Five
balls make an episode: +1 for each caught, -1 for each missed. Each ball is served with the paddle back in the middle,
so that every column can be reached with steps to spare; the outcome is shown for one step before the next ball.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

GRID = 8  # rows and columns
CELL = 8  # pixels a side
BALLS = 5
MAX_RETURN = float(BALLS)
MIDDLE = GRID // 2
BALL_COLOR = (255, 220, 40)
PADDLE_COLOR = (40, 200, 255)


class Catch(gymnasium.Env[np.ndarray, Any]):
    """Observations [64, 64, 3] uint8; actions 0 left, 1 stay, 2 right; an episode is 39 steps.

    Args:
        drift: each ball also moves by a constant -1, 0 or 1 columns a step, and turns at the walls.
        render_mode: None or "rgb_array".
    """

    # gymnasium declares it as an instance variable
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012

    def __init__(self, drift: bool = False, render_mode: str | None = None) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        self.observation_space = Box(0, 255, (GRID * CELL, GRID * CELL, 3), np.uint8)
        self.action_space = Discrete(3)
        self.render_mode = render_mode
        self._drifts = drift
        self.row = self.column = self.drift = self.paddle = self.balls_left = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.balls_left = BALLS
        self._serve()
        return self._draw(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Moves ball and paddle; after a ball has landed, serves the next one instead, whatever the action."""
        if not self.action_space.contains(action):
            raise ValueError(f"action must be 0, 1 or 2, got {action!r}")
        if self.balls_left == 0:
            raise ValueError("step() must come after reset(): the episode is over")
        if self.row == GRID - 1:
            self._serve()
            return self._draw(), 0.0, False, False, {}
        self.paddle = min(max(self.paddle + int(action) - 1, 0), GRID - 1)
        self._fall()
        if self.row < GRID - 1:
            return self._draw(), 0.0, False, False, {}
        self.balls_left -= 1
        return self._draw(), 1.0 if self.column == self.paddle else -1.0, self.balls_left == 0, False, {}

    def _serve(self) -> None:
        self.row, self.paddle = 0, MIDDLE
        self.column = int(self.np_random.integers(GRID))
        self.drift = int(self.np_random.integers(-1, 2)) if self._drifts else 0

    def _fall(self) -> None:
        self.row += 1
        if not 0 <= self.column + self.drift < GRID:
            self.drift = -self.drift
        self.column += self.drift

    def _draw(self) -> np.ndarray:
        cells = np.zeros((GRID, GRID, 3), np.uint8)
        cells[GRID - 1, self.paddle] = PADDLE_COLOR
        cells[self.row, self.column] = BALL_COLOR  # over the paddle when caught
        return cells.repeat(CELL, axis=0).repeat(CELL, axis=1)  # [8, 8, 3] -> [64, 64, 3]

    def render(self) -> np.ndarray | None:
        return self._draw() if self.render_mode == "rgb_array" else None

    def get_state(self) -> dict[str, np.ndarray]:
        """All that decides what follows, random numbers included, as plain arrays."""
        rng: Any = self.np_random.bit_generator.state
        words = b"".join(rng["state"][name].to_bytes(16, "little") for name in ("state", "inc"))  # two 128-bit numbers
        return {
            "rng": np.frombuffer(words, np.uint8).copy(),
            "rng_spare": np.array([rng["has_uint32"], rng["uinteger"]], np.int64),
            "game": np.array([self.row, self.column, self.drift, self.paddle, self.balls_left], np.int64),
        }

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Goes on from a get_state(). Raises ValueError for arrays that get_state() cannot have made."""
        got = {name: (str(array.dtype), array.shape) for name, array in state.items()}
        want = {"rng": ("uint8", (32,)), "rng_spare": ("int64", (2,)), "game": ("int64", (5,))}
        if got != want:
            raise ValueError(f"a state of Catch must be {want}, got {got}")
        row, column, drift, paddle, balls_left = state["game"].tolist()
        if not (
            0 <= row < GRID
            and 0 <= column < GRID
            and abs(drift) <= 1
            and 0 <= paddle < GRID
            and 0 <= balls_left <= BALLS
        ):
            raise ValueError(f"a state of Catch must lie on the grid, got {state['game'].tolist()}")
        self.row, self.column, self.drift, self.paddle, self.balls_left = row, column, drift, paddle, balls_left
        words, spare = state["rng"].tobytes(), state["rng_spare"].tolist()
        self.np_random.bit_generator.state = {
            "bit_generator": "PCG64",
            "state": {"state": int.from_bytes(words[:16], "little"), "inc": int.from_bytes(words[16:], "little")},
            "has_uint32": spare[0],
            "uinteger": spare[1],
        }
