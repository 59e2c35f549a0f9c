"""A part that is compiled twice, or in pieces, is counted so."""

import torch

from bench.counted.graphs import Part


def part(function) -> Part:
    torch._dynamo.reset()
    return Part(function, torch.compile, {"fullgraph": True, "dynamic": False})


def numbers(part: Part) -> tuple[int, int, int]:
    return part.graphs, part.graph_breaks, part.recompilations


def test_what_is_traced_once_is_one_graph_and_computes_what_it_should():
    double = part(lambda x: 2 * x)
    for t in range(3):
        assert double(torch.tensor([t])).tolist() == [2 * t]
    assert numbers(double) == (1, 0, 0)


def test_another_shape_is_a_recompilation():
    double = part(lambda x: 2 * x)
    for size in (2, 2, 3, 2, 4):
        double(torch.zeros(size))
    assert numbers(double) == (3, 0, 2)


def test_a_break_splits_a_graph():
    def broken(x):
        x = x + 1
        torch._dynamo.graph_break()
        return 2 * x

    broken = part(broken)
    assert [broken(torch.zeros(1)).item() for _ in range(3)] == [2.0] * 3
    assert numbers(broken) == (2, 1, 0)


def test_a_break_in_a_loop_leaves_no_graph_and_is_counted():
    def broken(x):
        for _ in range(2):
            x = x + 1
            torch._dynamo.graph_break()
        return x

    broken = part(broken)
    assert [broken(torch.zeros(1)).item() for _ in range(3)] == [2.0] * 3
    assert numbers(broken) == (0, 1, 0)


def test_parts_are_counted_apart():
    a, b = part(lambda x: x + 1), part(lambda x: x + 2)
    a(torch.zeros(1))
    assert (numbers(a), numbers(b)) == ((1, 0, 0), (0, 0, 0))
