"""What the host knows of the domains: the layout and the panels that follow from it, and the work that is launched then."""

import copy

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed import ReduceOp
from torch.fx.experimental.proxy_tensor import make_fx

from tests.emulation.aot import Recorder
from tests.emulation.installed import installed
from uniclip_kernels import MPNCELoss, _known, mp_nce, stack_views, sup_con
from uniclip_kernels._contrastive import COMMUNICATIONS, _on_device, prepare
from uniclip_kernels._exchange import Exchange
from uniclip_kernels._layout import (
    Layout,
    padded_rows,
    sort_rows,
    starts_of,
)
from uniclip_kernels._panels import groups_of, panels_of, panels_of_sizes, panels_of_tiles, rectangles, uniform_panels
from uniclip_kernels._ranks import Way, loss_of_rows
from uniclip_kernels._rows import Rows
from uniclip_kernels.triton import TritonBackend
from uniclip_kernels.triton.positives import CHUNKS

CLIP = torch.tensor([[False, True], [True, False]])
BLOCK = 128


@pytest.mark.parametrize("tiles", [0, 1, 2, 89, 90, 91, 98, 768])
def test_uniform_panels_are_balanced(tiles):
    panels = uniform_panels(5 * BLOCK, (5 + tiles) * BLOCK, BLOCK, 90 * BLOCK)
    assert [p.start for p in panels[1:]] == [p.end for p in panels[:-1]]
    assert [panels[0].start, panels[-1].end] == [5 * BLOCK, (5 + tiles) * BLOCK] if tiles else not panels
    sides = [(p.end - p.start) // BLOCK for p in panels]
    assert len(sides) == -(-tiles // 90)
    assert max(sides, default=0) - min(sides, default=0) <= 1


def laid_out(sample_ids, domain_ids, k, mask, block, sizes) -> Layout:
    m = len(sample_ids)
    slots = padded_rows(m, k, block, sizes)
    starts = starts_of(Rows([m], torch.empty(m, 1), sample_ids, domain_ids, None), k, sizes, [slots], block)
    return sort_rows(sample_ids, domain_ids, k, mask, block, slots, starts)


def test_rectangles_leave_out_masked_pairs_and_no_other():
    sizes, allowed = [300, 0, 1000, 129], torch.rand(4, 4) < 0.6
    allowed = allowed | allowed.T
    panels = panels_of_sizes(sizes, range(4), 0, BLOCK, 2 * BLOCK)
    domain = torch.cat([torch.full((-(-n // BLOCK) * BLOCK,), d) for d, n in enumerate(sizes)])
    covered = torch.zeros(len(domain), len(domain), dtype=torch.int)
    for i0, i1, j0, j1 in rectangles(panels, allowed.tolist()):
        covered[i0:i1, j0:j1] += 1
        if i0 != j0:
            covered[j0:j1, i0:i1] += 1
    assert torch.equal(covered, allowed[domain][:, domain].int())


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("padding", [0.0, 0.3])
@pytest.mark.parametrize(("classes", "block"), [(170, 32), (170, 128), (3, 32), (1, 128)])
def test_spans_name_the_tiles_that_may_hold_positives(classes, block, padding, known):
    sample_ids, domain_ids, mask = torch.randint(classes, (500,)), torch.arange(500) % 3, torch.rand(3, 3) < 0.7
    sample_ids[torch.rand(500) < padding] = -1
    mask = mask | mask.T
    sizes = torch.bincount(domain_ids).tolist() if known else None
    layout = laid_out(sample_ids, domain_ids, 3, mask, block, sizes)
    assert torch.equal(layout.slot < 0, sample_ids < 0)
    positive = (sample_ids[:, None] == sample_ids) & (sample_ids >= 0)[:, None] & mask[domain_ids[:, None], domain_ids]
    i, p = (positive & ~torch.eye(500, dtype=torch.bool)).nonzero().unbind(1)
    start, end = layout.spans[layout.slot[i] // block, domain_ids[p]].unbind(1)
    assert ((start <= layout.slot[p] // block) & (layout.slot[p] // block < end)).all()
    # No tile is named in vain but where its samples lie between those of the tile.
    for (domain, filled, first, last), spans in zip(layout.tiles.tolist(), layout.spans.tolist(), strict=True):
        for e, (start, end) in enumerate(spans):
            assert start == end or (filled > 0 and mask[domain, e])
            for _, _, other_first, other_last in layout.tiles[start:end].tolist():
                assert other_first <= last
                assert other_last >= first


def test_what_is_kept_of_a_tensor_is_void_once_it_is_written_to():
    _, _, domain_ids = stack_views([torch.randn(4, 8)] * 3, [0, 0, 1])
    assert _known.kept(domain_ids) == (8, 4)
    domain_ids[0] = 1
    assert _known.kept(domain_ids) is None
    assert _known.kept(domain_ids.clone()) is None


def test_what_is_kept_is_not_that_of_a_copy():
    _, _, domain_ids = stack_views([torch.randn(4, 8)] * 3, [0, 0, 1])
    domain_ids += 0
    _known.keep(domain_ids, (8, 4))
    copied = copy.deepcopy(domain_ids)
    copied[0] = 1
    assert _known.kept(copied) is None
    assert _known.kept(domain_ids) == (8, 4)


def test_nothing_is_kept_while_a_graph_is_made():
    _, _, domain_ids = stack_views([torch.randn(4, 8)] * 3, [0, 0, 1])
    found = []
    make_fx(lambda ids: found.append(_known.kept(ids)) or ids + 1)(domain_ids)
    assert found == [None]
    with FakeTensorMode() as mode:
        z, sample_ids, domains = stack_views([torch.randn(4, 8)] * 3, [0, 0, 1])
        mask = mode.from_tensor(CLIP)
        assert mp_nce(z, sample_ids, domains, temperature=0.1, domain_mask=mask).shape == ()


def test_sizes_that_are_no_more_are_an_error():
    domain_ids = torch.arange(300) // 260
    with pytest.raises(RuntimeError, match="hold other domains"):
        laid_out(torch.arange(300), domain_ids, 2, None, BLOCK, [100, 200])


def test_one_domain_needs_nothing_of_the_host():
    rows = Rows([301], torch.empty(301, 1), torch.arange(301), torch.arange(301) // 300, None)
    assert starts_of(rows, 1, [301], [384], BLOCK) is None
    assert starts_of(rows, 2, [301, 0], [384], BLOCK) is None
    assert starts_of(rows, 2, [300, 1], [512], BLOCK).tolist() == [0, 384, 512]


def test_a_mask_first_seen_in_inference_mode_can_be_trained_with():
    with torch.inference_mode():
        mask = _on_device((True, False, False, True), torch.device("cpu"))
    assert not mask.is_inference()


def programs(recorder: Recorder, kernel: str) -> int:
    return sum(launch.programs for launch in recorder.launches if launch.kernel.__name__ == kernel)


def step(backend: TritonBackend, n: int, d: int, mask, domain_ids=None):
    views = [torch.randn(n, d).bfloat16() for _ in range(2)]
    z, sample_ids, known_ids = stack_views(views, [0, 1])
    with installed("triton", backend):
        loss = mp_nce(
            z.requires_grad_(),
            sample_ids,
            known_ids if domain_ids is None else domain_ids,
            temperature=torch.full((2, 2), 0.07),
            domain_mask=mask,
            backend="triton",
        )
        torch.autograd.grad(loss, z)


def recording(side: int) -> tuple[TritonBackend, Recorder, list[int]]:
    """A backend that launches nothing but lays rows out, with panels of ``side`` slots; the launches, the sizes of products."""
    recorder, products = Recorder("90"), []
    backend = TritonBackend("cpu", recorder, workspace_bytes=side * side * 2)
    backend.accumulate = lambda out, a, b: products.append(a.shape[0] * a.shape[1])
    backend.sort_rows = lambda *args: sort_rows(*args[:4], BLOCK, *args[4:])
    return backend, recorder, products


def test_a_clip_mask_launches_no_masked_tile():
    """8 B² D flops in products and tiles for B pairs, where the side of a panel is a part of B and where it is not."""
    for n, side in ((1024, 256), (1000, 384)):
        backend, recorder, products = recording(side)
        step(backend, n, 64, CLIP)
        tiles = ((n + BLOCK - 1) // BLOCK) ** 2
        for kernel in ("similarity_lse_kernel", "similarity_grad_kernel"):
            assert programs(recorder, kernel) == tiles
        assert sum(products) == 2 * tiles * BLOCK**2


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("mask_is_known", [True, False])
def test_the_gradient_of_any_ids_leaves_out_masked_pairs(mask_is_known, compiled, monkeypatch):
    """Ids that the host does not know are asked for in the forward pass; in its kernels masked tiles end at once."""
    if not mask_is_known:
        monkeypatch.setattr("uniclip_kernels._contrastive._allowed", lambda mask: None)
    n, (backend, recorder, products) = 1000, recording(side=384)
    domain_ids = torch.arange(2 * n) % 2
    call = torch.compile(step, backend="aot_eager") if compiled else step
    call(backend, n, 64, CLIP, domain_ids)
    tiles = ((n + BLOCK - 1) // BLOCK) ** 2
    assert programs(recorder, "similarity_grad_kernel") == tiles
    assert sum(products) == 2 * tiles * BLOCK**2


def test_what_is_saved_may_be_written_to_disk(tmp_path):
    """Also tensors of which the host knows something."""

    def write(tensor: torch.Tensor):
        torch.save(tensor, path := tmp_path / str(len(list(tmp_path.iterdir()))))
        return path

    backend, recorder, _ = recording(side=384)
    with torch.autograd.graph.saved_tensors_hooks(write, torch.load):
        step(backend, 1000, 64, CLIP, torch.arange(2000) % 2)
    assert programs(recorder, "similarity_grad_kernel") > 0


class Twins(Exchange):
    """Two ranks that do the same, seen from one of them."""

    def __init__(self, communication: str) -> None:
        self.communication, self.rank, self.size = communication, 0, 2

    def gathered(self, numbers):
        return [list(numbers)] * 2

    def total(self, tensor, op=ReduceOp.SUM):
        return tensor * 2 if op == ReduceOp.SUM else tensor

    def visit(self, mine, counts):
        return iter([[tensor.detach() for tensor in mine]])


@pytest.mark.parametrize("communication", COMMUNICATIONS)
def test_a_clip_mask_across_ranks(communication, monkeypatch):
    """Each rank multiplies what is not masked: its own pairs for both of their ends, those with the other rank for one."""
    monkeypatch.setattr("uniclip_kernels._contrastive._allowed", lambda mask: None)  # as if it were on a GPU
    n, (backend, recorder, products) = 1000, recording(side=384)
    z, ids = torch.randn(2 * n, 64).bfloat16().requires_grad_(), torch.arange(2 * n)
    of_candidates = dict.fromkeys(f"candidate_{name}_ids" for name in ("sample", "domain", "exclude"))
    call = {"embeddings": z, "sample_ids": ids // 2, "domain_ids": ids % 2, "exclude_ids": None}
    call |= {"temperature": 0.07, "offset": 0.0, "weight": 1.0, "domain_mask": CLIP, "anchor_weight": None}
    call |= {"candidates": None, **of_candidates, "reduction": "mean", "normalize": True, "backend": "triton"}
    with installed("triton", backend):
        way = Way(communication, gradient_reduction="mean", reduction="mean", weighted=False)
        loss, _ = loss_of_rows(Twins(communication), *prepare("mp_nce", **call), way)
        loss.sum().backward()
    tiles = ((n + BLOCK - 1) // BLOCK) ** 2
    assert programs(recorder, "similarity_grad_kernel") == tiles + 2 * tiles
    assert sum(products) == (2 * tiles + 2 * tiles) * BLOCK**2


def test_a_clip_mask_has_candidates():
    recorder = Recorder("90")
    z, sample_ids, domain_ids = stack_views([torch.randn(4096, 64).bfloat16()] * 2, [0, 1])
    queue, ids = torch.randn(128, 64).bfloat16(), torch.arange(128)
    criterion = MPNCELoss(domain_mask=CLIP, backend="triton")
    with installed("triton", TritonBackend("cpu", recorder)):
        criterion(z, sample_ids, domain_ids, candidates=queue, candidate_sample_ids=ids, candidate_domain_ids=ids % 2)
    assert programs(recorder, "similarity_lse_kernel") == 32 * 32 + 64 * 3


def test_small_domains_share_panels():
    """32 domains are as many calls of the CPU backend as one, unless masked pairs of them are to be left out."""
    tiles = [(t // 4, 32) for t in range(128)]
    assert len(panels_of_tiles(tiles, None, [4096], 32, 1024)) == 4
    assert len(panels_of_tiles(tiles, range(32), [4096], 32, 1024)) == 32


def test_what_masked_pairs_save_is_weighed_against_more_rectangles():
    def panels(rows: int, masked: torch.Tensor) -> int:
        sizes = [[rows // 40] * 40]
        edges, allowed = [padded_rows(rows, 40, BLOCK, sizes[0])], ~(masked | masked.T)
        return len(panels_of(None, sizes, edges, BLOCK, 90 * BLOCK, allowed.tolist(), overhead=2048**2))

    one, half = torch.zeros(40, 40, dtype=torch.bool), torch.rand(40, 40) < 0.3
    one[3, 5] = True
    assert panels(8000, one) == panels(8000, half) == 1
    assert panels(2**19, one) == -(-(2**19) // (90 * BLOCK))
    assert panels(2**19, half) == 40 * 2


def test_neighbours_that_are_compared_with_the_same_ones_share_panels():
    pictures = torch.arange(8) < 3
    allowed = pictures[:, None] != pictures
    assert groups_of(allowed.tolist()) == [0, 0, 0, 3, 3, 3, 3, 3]
    sizes, tiles = [100, 200, 0, 1, 128, 300, 5, 7], [1, 2, 0, 1, 1, 3, 1, 1]
    for known in ([(d, BLOCK) for d, n in enumerate(tiles) for _ in range(n)], None):
        panels = panels_of(known, [sizes], [10 * BLOCK], BLOCK, 90 * BLOCK, allowed.tolist(), overhead=0)
        assert panels == [(0, 3 * BLOCK, 0), (3 * BLOCK, 10 * BLOCK, 3)]


def test_panels_of_tiles_end_with_sets_and_before_empty_tiles():
    tiles = [(0, 32), (1, 5), (-1, 0), (2, 32), (2, 32), (3, 1)]
    panels = panels_of_tiles(tiles, None, [128, 192], 32, 96)
    assert panels == [(0, 37, None), (96, 128, None), (128, 161, None)]


def test_the_module_passes_on_what_the_mask_is():
    criterion = MPNCELoss(domain_mask=CLIP, backend="triton")
    recorder = Recorder("90")
    z, sample_ids, domain_ids = stack_views([torch.randn(256, 64)] * 2, [0, 1])
    with installed("triton", TritonBackend("cpu", recorder)):
        criterion(z, sample_ids, domain_ids)
    assert programs(recorder, "similarity_lse_kernel") == 4


def test_candidates_are_no_anchors():
    """No tile of candidates alone is launched, nor any of their positives."""
    recorder = Recorder("90")
    rows, candidates = (torch.randn(n, 64).bfloat16().requires_grad_() for n in (300, 1000))
    with installed("triton", TritonBackend("cpu", recorder)):
        ids = torch.arange(1000)
        sup_con(rows, ids[:300], candidates=candidates, candidate_sample_ids=ids, backend="triton").backward()
    own, others = 300 // BLOCK + 2, 1000 // BLOCK + 2
    triangle = own // 2 * (own + 1)
    for kernel in ("similarity_lse_kernel", "similarity_grad_kernel"):
        assert programs(recorder, kernel) == triangle + own * others
    assert programs(recorder, "positives_forward_kernel") == own * CHUNKS
    assert programs(recorder, "positives_grad_kernel") == 2 * own * CHUNKS
