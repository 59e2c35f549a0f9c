"""A game of your own: any gymnasium.Env that shows pixels and takes discrete actions.

    stormfast train --game examples/own_game.py:make --preset cpu --steps 3000 --agent.entropy 3e-2
    stormfast evaluate runs/own_game-make/DATE-TIME

A car drives towards walls, each with one gap, four steps apart: 1 for each gap that it meets, -1 for each wall that it
hits. An episode is ten walls. Random driving scores -5, perfect driving 10; one run of 3,000 steps scored 9.
"""

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

ROWS, LANES, WALLS, DISTANCE = 8, 4, 10, 4
ROAD, WALL, CAR = (30, 60, 30), (200, 80, 60), (240, 240, 240)


class Gaps(gymnasium.Env):
    observation_space = Box(0, 255, (ROWS, LANES, 3), np.uint8)  # any size: it is enlarged to 64x64
    action_space = Discrete(3)  # left, straight on, right

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.lane = 0, LANES // 2
        self.gaps = self.np_random.integers(LANES, size=WALLS)
        return self.picture(), {}

    def step(self, action):
        self.time += 1
        self.lane = min(max(self.lane + action - 1, 0), LANES - 1)
        wall, since = divmod(self.time, DISTANCE)
        reward = 0.0 if since else 1.0 if self.lane == self.gaps[wall - 1] else -1.0
        return self.picture(), reward, self.time == WALLS * DISTANCE, False, {}

    def picture(self):
        picture = np.full((ROWS, LANES, 3), ROAD, np.uint8)
        for k, gap in enumerate(self.gaps):
            row = ROWS - 1 + self.time - (k + 1) * DISTANCE
            if 0 <= row < ROWS:
                picture[row] = WALL
                picture[row, gap] = ROAD
        picture[-1, self.lane] = CAR
        return picture


def make():
    return Gaps()
