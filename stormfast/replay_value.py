"""The critic on replay: returns of what was really done at the states that imagination starts from.

W windows   T steps of a window   C steps of a context   K = T - C + 1 steps that end a context
"""

import torch
from torch import Tensor

from stormfast.records import Batch, Replayed
from stormfast.returns import lambda_return


def replayed_steps(windows: Batch, context: int, life_loss_terminates: bool) -> Replayed:
    """What was done at the last K steps of windows [W, T], at which contexts of `context` steps end."""
    ended = (windows.terminated | windows.life_lost) if life_loss_terminates else windows.terminated
    goes_on = ended[:, :-1] | ~windows.is_first[:, 1:]  # the next row belongs to what was done, or nothing follows it
    known = torch.cat([goes_on & ~windows.is_last[:, :-1], torch.zeros_like(ended[:, :1])], 1)
    return Replayed(*(x[:, context - 1 :] for x in (windows.reward, ended, known)))


def replay_returns(replayed: Replayed, imagined: Tensor, gamma: float, lam: float) -> Tensor:
    """Lambda-returns of replayed rewards, mixed with the returns imagined from each state; no gradient.

    G[k] = reward[k] + gamma * (1 - ended[k]) * ((1 - lam) * imagined[k+1] + lam * G[k+1])

    The last G, and one after which replay does not tell what followed, is imagined[k] itself. So an episode that was
    cut off goes on in imagination from its last observation, if replay has that; if not, imagination takes over at the
    step before, whose return is not known. What ends an episode, a lost life too, is what the world model takes for it.

    Args: imagined: [W, K], lambda-returns of the slow critic from the states of replayed steps.
    Returns: [W, K-1], of all steps but the last; of use where replayed.known.
    Source: loss_scales.repval of DreamerV3's code, 2024, which bootstraps in the same way.
    """
    discount, follows = gamma * ~replayed.ended[:, :-1], lam * replayed.known[:, 1:]
    with torch.no_grad():
        return lambda_return(replayed.reward[:, :-1], discount, imagined, follows)
