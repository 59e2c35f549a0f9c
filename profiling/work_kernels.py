"""FLOPs and bytes of single kernels under ideal fusion: the bricks of work_formulas.py.

FLOPs are twice the multiplications of matrix products, convolutions and attention, as torch.utils.flop_counter counts them.
All other arithmetic is free.

Bytes follow three rules.
1. A kernel is one matrix product, convolution or attention, or one pass over memory where there is none of them. Whatever
   works on single elements or rows (activations, layer norms, dropout, sampling, losses, concatenation, casts) is part of the
   kernel that makes or takes the tensor. Products of the same tensor are one kernel.
2. A kernel reads each of its inputs once and writes each of its outputs once, in the shapes that the code has (samples are dense
   one-hot vectors). No cache holds anything from one kernel to the next. A backward pass reads what the forward pass wrote; masks
   of dropout are drawn anew.
3. Activations, their gradients and the weights that products read have the dtype of the arithmetic; gradients of weights,
   optimiser state, rewards and values are float32, frames uint8. Biases, gains, statistics of norms and random numbers are left out.

A batch norm in training needs sums over its whole input, so its input is stored and normalised by the kernels that read it. In
the backward pass the gradient before the norm is formed by its readers too, from the gradient behind it and that input.
"""

from dataclasses import dataclass, replace

GRADIENT = 4  # bytes of one number of a weight's gradient
TAPS = 4 * 4  # of every convolution


@dataclass(frozen=True)
class Kernel:
    """One kernel, or `calls` alike; flops and bytes are of all of them."""

    name: str
    flops: int
    bytes: int
    calls: int = 1

    def times(self, calls: int) -> "Kernel":
        return replace(self, flops=calls * self.flops, bytes=calls * self.bytes, calls=calls * self.calls)


def product(
    name: str,
    rows: int,
    inputs: int,
    outputs: int,
    itemsize: int,
    *,
    given: int | None = None,
    made: int | None = None,
    extra: int = 0,
) -> Kernel:
    """[rows, inputs] x [inputs, outputs].

    given, made: bytes of input and output, where they are not rows of numbers of itemsize. extra: bytes of what else is read, such as a residual.
    """
    moved = (rows * inputs * itemsize if given is None else given) + (
        rows * outputs * itemsize if made is None else made
    )
    return Kernel(name, 2 * rows * inputs * outputs, moved + inputs * outputs * itemsize + extra)


def product_gradients(
    name: str,
    rows: int,
    inputs: int,
    outputs: int,
    itemsize: int,
    *,
    given: int | None = None,
    sent: int | None = None,
    saved: int = 0,
    normed: bool = False,
) -> list[Kernel]:
    """Backward pass of product(): the gradient of the weight, and that of the input.

    given:  bytes of the input, as of product(). sent: bytes of its gradient, where that is another number; 0 where nobody needs it.
    saved:  tensors of the input's size that its gradient needs besides: what a norm or activation made of it, a residual's gradient.
    normed: a batch norm follows, so that both kernels also read the output.
    """
    gradient, flops, own = (
        rows * outputs * itemsize * (2 if normed else 1),
        2 * rows * inputs * outputs,
        rows * inputs * itemsize,
    )
    weight = Kernel(
        f"{name}, weight gradient", flops, gradient + (own if given is None else given) + GRADIENT * inputs * outputs
    )
    if sent == 0:
        return [weight]
    moved = gradient + inputs * outputs * itemsize + (own if sent is None else sent) + saved * own
    return [weight, Kernel(f"{name}, input gradient", flops, moved)]


@dataclass(frozen=True)
class Convolution:
    """4x4, stride 2: halves the picture, or doubles it where transposed. Sides are of square pictures, in pixels."""

    name: str
    images: int
    inputs: int  # channels
    outputs: int
    side_in: int
    side_out: int

    @property
    def flops(self) -> int:
        return 2 * self.images * min(self.side_in, self.side_out) ** 2 * TAPS * self.inputs * self.outputs

    @property
    def weights(self) -> int:
        return TAPS * self.inputs * self.outputs

    @property
    def given(self) -> int:
        """Numbers of the input."""
        return self.images * self.inputs * self.side_in**2

    @property
    def made(self) -> int:
        """Numbers of the output."""
        return self.images * self.outputs * self.side_out**2


def convolution(layer: Convolution, itemsize: int, *, frames: bool = False, extra: int = 0) -> Kernel:
    """frames: the input is uint8."""
    given = layer.given * (1 if frames else itemsize)
    return Kernel(layer.name, layer.flops, given + itemsize * (layer.weights + layer.made) + extra)


def convolution_gradients(
    layer: Convolution, itemsize: int, *, frames: bool = False, normed: bool = True
) -> list[Kernel]:
    """Backward pass of convolution(); frames get no gradient. The input's gradient reads the input too, for the activation before it."""
    gradient = layer.made * itemsize * (2 if normed else 1)
    given = layer.given * (1 if frames else itemsize)
    kernels = [Kernel(f"{layer.name}, weight gradient", layer.flops, gradient + given + GRADIENT * layer.weights)]
    if not frames:
        kernels.append(
            Kernel(f"{layer.name}, input gradient", layer.flops, gradient + layer.weights * itemsize + 2 * given)
        )
    return kernels


def attention(name: str, queries: int, keys: int, length: int, width: int, itemsize: int) -> Kernel:
    """queries tokens over `length` positions each; of keys tokens key and value are read. Every position counts, masked or not."""
    return Kernel(name, 4 * queries * length * width, itemsize * width * (2 * queries + 2 * keys))


def attention_gradients(name: str, tokens: int, length: int, width: int, itemsize: int) -> Kernel:
    """Four products. Query, key, value, output and its gradient in, three gradients out; scores are made anew, which is not counted."""
    return Kernel(f"{name}, gradients", 8 * tokens * length * width, 8 * tokens * width * itemsize)


def mlp_products(
    name: str, rows: int, sizes: tuple[int, int, int], itemsize: int, *, made: int | None = None
) -> list[Kernel]:
    """Three products, features -> width -> width -> outputs. made: bytes of the last output, where it is no row of numbers."""
    features, width, outputs = sizes
    return [
        product(f"{name} 1", rows, features, width, itemsize),
        product(f"{name} 2", rows, width, width, itemsize),
        product(f"{name} 3", rows, width, outputs, itemsize, made=made),
    ]
