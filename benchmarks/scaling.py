"""A model of one step of the loss over many GPUs: flops, bytes sent, memory and time of a rank. Nothing here is measured.

tests/test_scaling.py holds its bytes and its memory against counted ones, with 2 to 8 processes. What the model leaves out: the
encoders, the few numbers that ranks add up, and what else goes over the same links.

python -m benchmarks.scaling        writes benchmarks/results/scaling.md and scaling.svg
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .report import digits, table

RESULTS = Path(__file__).parent / "results"
IDS, TERMS, PARTIAL = 24, 20, 8  # bytes a row: three int64, five float32, and what a row's sum over negatives needs
#: What is alive at the peak: copies of all rows (arrived, joined to own ones, ready for tiles), and blocks like own rows.
GATHER_COPIES, GATHER_BLOCKS, RING_BLOCKS = 3, 4, 14
#: Of ClipLoss, in logits' matrices of float32: 4 passes of two log-softmaxes, 6 of their gradients, 2 of zeros, 6 of products
#: and sums; and how many are alive at once.
LOGIT_PASSES, LOGITS_ALIVE = 18, 4


@dataclass(frozen=True)
class Cluster:
    """GPUs in nodes. A link carries ``link_share`` of its rate; rates are in one direction, per GPU and second."""

    name: str
    node: int
    flops: float  # of our kernels
    product_flops: float  # of the library's matrix products
    memory_rate: float
    memory: float
    nvlink: float
    network: float
    link_share: float
    latency: float  # of a message
    host: float  # seconds until the kernels over one block of rows are launched

    def tiles(self, flops: float) -> float:
        """Seconds of our kernels over a block of rows."""
        return max(flops / self.flops, self.host)

    def gathering(self, ranks: int) -> float:
        """Bytes a second that arrive at a rank in a collective: rings through all network cards of a node side by side."""
        return self.link_share * (self.nvlink if ranks <= self.node else min(self.nvlink, self.node * self.network))

    def passing(self, ranks: int) -> float:
        """Bytes a second from rank to rank: one of a node's GPUs sends to the next node, through its own card."""
        return self.link_share * (self.nvlink if ranks <= self.node else self.network)


#: Links and memory: "NVIDIA H100 Tensor Core GPU Datasheet" (NVLink 900 GB/s, both directions; 80 GB) and "NVIDIA DGX H100
#: Datasheet" (eight ConnectX-7 at 400 Gb/s). How the rate of a collective follows from that of a link: "Performance reported by
#: NCCL tests". Rates of the GPU: docs/gpu.md (a whole CLIP step of 65536 pairs, D = 512; the second product; a copy). The host's
#: time: a ring of few rows on two CPU cores. Share and latency are assumptions.
H100 = Cluster(
    "H100 in nodes of 8, NVLink within, 400 Gb/s a GPU between",
    node=8,
    flops=8 * 65536**2 * 512 / 31.9e-3,
    product_flops=650e12,
    memory_rate=3.0e12,
    memory=80e9,
    nvlink=450e9,
    network=50e9,
    link_share=0.8,
    latency=5e-6,
    host=1.5e-3,
)


@dataclass(frozen=True)
class Problem:
    """``rows`` (m) of each of W ``ranks``, two or more, of ``dim`` (D) elements."""

    ranks: int
    rows: int
    dim: int = 512
    element: int = 2  # bytes
    compared: float = 0.5  # share of pairs of rows that the mask leaves: CLIP's half, or all
    rounds: int = 2  # of a ring in the forward pass: mp_nce comes again for its positives

    @property
    def others(self) -> int:
        return self.ranks - 1

    @property
    def row_bytes(self) -> int:
        return self.dim * self.element

    @property
    def own_pairs(self) -> float:
        """Flops of the products of own rows, each unordered pair once."""
        return self.compared * self.rows**2 * self.dim

    @property
    def block(self) -> float:
        """Flops of the products of own rows with those of one other rank."""
        return 2 * self.own_pairs


class Cost(NamedTuple):
    """Of a rank."""

    flops: float
    sent: float  # bytes
    memory: float  # bytes at the peak, beyond the rows
    seconds: float


def gather(p: Problem, c: Cluster) -> Cost:
    """Rows of all ranks come once, then a few numbers of each; own rows are computed meanwhile."""
    forward, backward = p.block * p.others, 2 * p.block * p.others
    rows, terms = (p.others * p.rows * each for each in (p.row_bytes + IDS, TERMS))
    seconds = max(c.tiles(p.own_pairs), _collective(p, c, rows)) + c.tiles(forward)
    seconds += max(c.tiles(3 * p.own_pairs), _collective(p, c, terms)) + c.tiles(backward)
    memory = (GATHER_COPIES * p.ranks + GATHER_BLOCKS) * p.rows * p.row_bytes
    return Cost(4 * p.own_pairs + forward + backward, rows + terms, memory, seconds)


def ring(p: Problem, c: Cluster) -> Cost:
    """Blocks of rows pass by, each sent on while it is computed with: in every round of the forward pass, and once more."""

    def passing(own: float, block: float, bytes_a_row: int) -> float:
        arrival, compute = p.rows * bytes_a_row / c.passing(p.ranks) + c.latency, c.tiles(block)
        return max(c.tiles(own), arrival) + (p.others - 1) * max(compute, arrival) + compute

    bytes_a_row = p.row_bytes + IDS
    seconds = passing(p.own_pairs, p.block, bytes_a_row) + (p.rounds - 1) * passing(0, 0, bytes_a_row)
    seconds += passing(3 * p.own_pairs, 2 * p.block, bytes_a_row + TERMS)
    sent = p.others * p.rows * ((p.rounds + 1) * bytes_a_row + TERMS)
    return Cost(4 * p.own_pairs + 3 * p.block * p.others, sent, RING_BLOCKS * p.rows * p.row_bytes, seconds)


def pairs_once(p: Problem, c: Cluster) -> Cost:
    """As ``gather``, but each pair of ranks is computed on one of them: sums over negatives go back to the rank whose rows they
    are of, and so do gradients of width D, in float32."""
    forward, backward = p.block * p.others / 2, 1.5 * p.block * p.others
    sizes = p.row_bytes + IDS, PARTIAL, TERMS, 4 * p.dim
    rows, partial, terms, gradients = (p.others * p.rows * each for each in sizes)
    seconds = max(c.tiles(p.own_pairs), _collective(p, c, rows)) + c.tiles(forward) + _collective(p, c, partial)
    seconds += (
        max(c.tiles(3 * p.own_pairs), _collective(p, c, terms)) + c.tiles(backward) + _collective(p, c, gradients)
    )
    memory = gather(p, c).memory + 4 * p.ranks * p.rows * p.dim
    return Cost(4 * p.own_pairs + forward + backward, rows + partial + terms + gradients, memory, seconds)


def whole_logits(p: Problem, c: Cluster) -> Cost:
    """ClipLoss with ``gather_with_grad``: rows are gathered, every rank has all logits, gradients are reduce-scattered.

    Such losses know two domains alone, whatever ``compared`` says: half of the rows are images.
    """
    return _with_logits(p, c, 2 * (p.ranks * p.rows / 2) ** 2, (p.ranks * p.rows / 2) ** 2)


def own_logits(p: Problem, c: Cluster) -> Cost:
    """The same with ``local_loss``: own images with all texts, and own texts with all images."""
    return _with_logits(p, c, 4 * p.ranks * (p.rows / 2) ** 2, p.ranks * (p.rows / 2) ** 2)


def _with_logits(p: Problem, c: Cluster, products: float, logits: float) -> Cost:
    """``products``: D times as many flops are in the forward pass; ``logits``: elements of one matrix of them. The host's time,
    for some dozens of operators, is left out."""
    rows, flops = p.others * p.rows * p.row_bytes, 3 * products * p.dim
    seconds = flops / c.product_flops + 4 * LOGIT_PASSES * logits / c.memory_rate + 2 * _collective(p, c, rows)
    return Cost(flops, 2 * rows, 4 * LOGITS_ALIVE * logits + 2 * p.ranks * p.rows * p.row_bytes, seconds)


def _collective(p: Problem, c: Cluster, received: float) -> float:
    """Seconds of an all-gather or a reduce-scatter."""
    return received / c.gathering(p.ranks) + c.latency * p.others


WAYS: dict[str, Callable[[Problem, Cluster], Cost]] = {
    "gather": gather,
    "ring": ring,
    "each pair once": pairs_once,
    "ClipLoss, local_loss": own_logits,
    "ClipLoss": whole_logits,
}
OURS = "gather", "ring"
PROBLEMS = [Problem(8, rows) for rows in (1024, 8192, 65536)] + [Problem(64, rows) for rows in (1024, 8192, 65536)]
PROBLEMS += [Problem(512, 8192), Problem(512, 32768), Problem(4096, 1024), Problem(4096, 4096)]


def markdown(c: Cluster) -> str:
    head = ["ranks", "rows a rank", "rows in all", *WAYS]
    lines = [
        [str(p.ranks), str(p.rows), _count(p.ranks * p.rows), *(_cell(way(p, c), c) for way in WAYS.values())]
        for p in PROBLEMS
    ]
    return f"""# A step of the loss over many GPUs: a model

Generated by `python -m benchmarks.scaling`, whose comments say what the figures are made of. **Nothing here was timed.**
{c.name}; D = {PROBLEMS[0].dim}, 2 bytes an element, CLIP's mask: half of the rows are images, half are texts.
Time of forward and backward, bytes sent by a rank, peak memory beyond the rows; a dash where that is more than the GPU has.

{table(head, lines)}
![time and memory by the number of ranks](scaling.svg)
"""


def _cell(cost: Cost, c: Cluster) -> str:
    if cost.memory > c.memory:
        return f"— ({_bytes(cost.memory)})"
    time = f"{digits(cost.seconds)} s" if cost.seconds >= 1 else f"{digits(cost.seconds * 1e3)} ms"
    return f"{time}, {_bytes(cost.sent)}, {_bytes(cost.memory)}"


def _bytes(number: float) -> str:
    return f"{digits(number / 1e9)} GB" if number >= 1e9 else f"{digits(number / 1e6)} MB"


def _count(number: int) -> str:
    return f"{digits(number / 1e6)} M" if number >= 1e6 else f"{number // 1000} k"


def plot(path: Path, c: Cluster, rows: int = 4096) -> None:
    """Time and memory by the number of ranks, each with so many rows."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": path.name}
    figure, (time, memory) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    sizes = [2**i for i in range(1, 13)]
    for name, way in WAYS.items():
        costs = [way(Problem(size, rows), c) for size in sizes]
        fits = [size for size, cost in zip(sizes, costs, strict=True) if cost.memory <= c.memory]
        style = {"linestyle": "-" if name in OURS else "--", "marker": "o", "markersize": 4}
        time.plot(fits, [cost.seconds for cost in costs[: len(fits)]], label=name, **style)
        memory.plot(sizes, [cost.memory / 1e9 for cost in costs], **style)
    memory.axhline(c.memory / 1e9, color="grey", linewidth=1)
    time.set_ylabel("modelled time of forward + backward, s")
    memory.set_ylabel("memory of a rank beyond its rows, GB; the line: what an H100 has")
    for axes in (time, memory):
        axes.set(xscale="log", yscale="log", xlabel=f"ranks, of {rows} rows each")
        axes.set_xticks(sizes[::2], [str(size) for size in sizes[::2]], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    time.legend(frameon=False, fontsize=8)
    figure.suptitle(
        f"A model, not a measurement: CLIP's loss, D = {Problem(1, 1).dim}, 2 bytes an element\n{c.name}", fontsize=9
    )
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    (RESULTS / "scaling.md").write_text(markdown(H100))
    plot(RESULTS / "scaling.svg", H100)
    print(markdown(H100))


if __name__ == "__main__":
    main()
