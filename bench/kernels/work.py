"""How many bytes a kernel must move and how many operations it must do: formulae, each tested against a count by hand.

Bytes are the fewest possible: each input read once, each output written once, nothing in between stored. Operations are
additions, multiplications, divisions, comparisons, exponentials and logarithms, one each. A kernel that reads or
computes something twice does not look better for it: seconds are measured, and these are the numerator.

N categoricals   K classes   B sequences   T positions attended, the new token included
"""

from dataclasses import dataclass

INDEX, UNIFORM, LOG_PROB = 8, 4, 4  # bytes of one number: int64, float32, float32


@dataclass(frozen=True)
class Work:
    """Of one call."""

    bytes: float
    flops: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.bytes + other.bytes, self.flops + other.flops)


def sample_work(rows: int, classes: int, itemsize: int, log_probs: bool = False, uniform_given: bool = True) -> Work:
    """Logits [N, K] and uniforms [N] in; sample [N, K], index [N] and, where asked for, float32 log-probabilities [N, K] out.

    A class: maximum, subtract, exp, sum, divide, two for the mix, cumulative sum, compare, count = 10; log 1. Numbers that
    the call draws itself need not go through memory, and the operations of a generator are not counted.
    """
    elements = rows * classes
    moved = (
        2 * elements * itemsize
        + rows * INDEX
        + (rows * UNIFORM if uniform_given else 0)
        + (elements * LOG_PROB if log_probs else 0)
    )
    return Work(moved, elements * (11 if log_probs else 10))


def log_probs_work(rows: int, classes: int, itemsize: int) -> Work:
    """Logits [N, K] in, float32 log-probabilities [N, K] out. A class: maximum, subtract, exp, sum, divide, mix 2, log = 8."""
    return Work(rows * classes * (itemsize + LOG_PROB), rows * classes * 8)


def gradient_work(rows: int, classes: int, itemsize: int, sample: bool = True) -> Work:
    """Logits [N, K], gradients of the log-probabilities and (where there is one) the sample in; gradient of the logits out.

    A class: softmax 5; log-probabilities: multiply, mix 2, divide = 4, and 1 where it adds to the sample's product 1;
    sum, multiply, subtract, scale = 4.
    """
    elements = rows * classes
    return Work(elements * ((3 if sample else 2) * itemsize + LOG_PROB), elements * (15 if sample else 13))


def attention_work(batch: int, heads: int, head_dim: int, lengths: range, itemsize: int, masked: bool = False) -> Work:
    """One step, averaged over `lengths` (positions in the cache before it; T = length + 1).

    Query, new key and value in; output out; new key and value into the cache; the positions before them read from it
    (the new ones are at hand); the length, and with a mask each sequence's first position, int64. The two products make
    2 * head_dim operations a position each; a position's softmax: scale, maximum, subtract, exp, sum, divide = 6.
    """
    mean = sum(lengths) / len(lengths)
    vector = batch * heads * head_dim * itemsize
    moved = 6 * vector + 2 * mean * vector + INDEX + (batch * INDEX if masked else 0)
    return Work(moved, batch * heads * (mean + 1) * (4 * head_dim + 6))
