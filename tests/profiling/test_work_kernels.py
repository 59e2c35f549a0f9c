"""Bytes and FLOPs of single kernels, counted by hand."""

import pytest
import work_kernels
from work_kernels import Convolution, Kernel


def test_a_product_reads_both_matrices_and_writes_the_third():
    # [3, 5] x [5, 7] in bfloat16: 15 + 35 + 21 numbers of 2 bytes; 3 * 5 * 7 multiplications and additions
    assert work_kernels.product("p", 3, 5, 7, 2) == Kernel("p", 210, 142)
    assert work_kernels.product("p", 3, 5, 7, 2, extra=10) == Kernel("p", 210, 152)
    assert work_kernels.product("p", 3, 5, 7, 2, given=8, made=12) == Kernel("p", 210, 8 + 70 + 12)


def test_gradients_of_a_product():
    weight, given = work_kernels.product_gradients("p", 3, 5, 7, 2)
    assert (weight.flops, weight.bytes) == (210, 42 + 30 + 4 * 35)  # gradient, input, float32 gradient of the weight
    assert (given.flops, given.bytes) == (210, 42 + 70 + 30)  # gradient, weight, gradient of the input
    _, normed = work_kernels.product_gradients("p", 3, 5, 7, 2, normed=True, saved=2)
    assert normed.bytes == 2 * 42 + 70 + 30 + 2 * 30  # the output too, and two tensors like the input
    assert work_kernels.product_gradients("p", 3, 5, 7, 2, sent=0) == [weight]


def test_a_convolution_halves_or_doubles():
    down = Convolution("c", 2, 3, 5, 8, 4)  # [2, 3, 8, 8] -> [2, 5, 4, 4]
    assert down.flops == 2 * (2 * 5 * 4 * 4) * (3 * 16)
    assert work_kernels.convolution(down, 2).bytes == 2 * (2 * 3 * 64 + 16 * 3 * 5 + 2 * 5 * 16)
    assert work_kernels.convolution(down, 2, frames=True).bytes == 2 * 3 * 64 + 2 * (240 + 160)
    up = Convolution("c", 2, 5, 3, 4, 8)
    assert up.flops == down.flops  # each input pixel meets each tap once


def test_gradients_of_a_convolution():
    layer = Convolution("c", 2, 3, 5, 8, 4)
    weight, given = work_kernels.convolution_gradients(layer, 2)
    assert weight.bytes == 2 * 2 * 160 + 2 * 384 + 4 * 240  # gradient and output, input, float32 gradient of the weight
    assert given.bytes == 2 * 2 * 160 + 2 * 240 + 2 * 2 * 384  # gradient and output, weight, input and its gradient
    assert [kernel.flops for kernel in (weight, given)] == [layer.flops] * 2
    (frames,) = work_kernels.convolution_gradients(layer, 2, frames=True, normed=False)
    assert frames.bytes == 2 * 160 + 384 + 4 * 240


def test_attention_reads_three_tensors_and_writes_one():
    # 6 tokens of width 4 in windows of 3: scores and mix are 6 * 3 * 4 multiplications each
    assert work_kernels.attention("a", 6, 6, 3, 4, 2) == Kernel("a", 2 * 2 * 72, 4 * 24 * 2)
    assert work_kernels.attention("a", 2, 6, 3, 4, 2) == Kernel(
        "a", 2 * 2 * 24, (2 * 8 + 2 * 24) * 2
    )  # the last token of each window
    gradients = work_kernels.attention_gradients("a", 6, 3, 4, 2)
    assert (gradients.flops, gradients.bytes) == (4 * 2 * 72, 8 * 24 * 2)


def test_kernels_alike_add_up():
    assert Kernel("k", 3, 5).times(4).times(2) == Kernel("k", 24, 40, calls=8)


@pytest.mark.parametrize("itemsize", [2, 4])
def test_an_mlp_is_three_products(itemsize):
    kernels = work_kernels.mlp_products("m", 3, (5, 7, 2), itemsize)
    assert [kernel.flops for kernel in kernels] == [2 * 3 * 5 * 7, 2 * 3 * 7 * 7, 2 * 3 * 7 * 2]
    assert kernels[2].bytes == itemsize * (21 + 14 + 6)
    assert work_kernels.mlp_products("m", 3, (5, 7, 2), itemsize, made=12)[2].bytes == itemsize * (21 + 14) + 12
