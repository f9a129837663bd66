"""The loss over the ranks of a Gloo group that share the cores of this machine: time, bytes sent and peak memory of a rank.

Beside open_clip's losses in the same groups, on the same rows; writes ranks.csv and ranks.md, and the table of docs/ranks.md.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from tests.ranks import RankError, Ranks, bytes_sent, ranks
from uniclip_kernels import mp_nce, siglip

from .definitions import SIGLIP_BIAS, expected_sigmoid, expected_when_large
from .devices import CPU, peak_memory
from .measure import WrongAnswerError, check, repeat_interleaved
from .problems import VIEWS, Batch, loss_and_gradients, make_batch, needed_flops, num_rows
from .progress import bar
from .providers import OURS, Step
from .providers.packages import image_and_text, open_clip_losses
from .ratios import Ratio, Side
from .report import megabytes, ratio_table, table, time_text, write_between_markers
from .rows import Row, merge, read_rows, versions, write_rows
from .run import RESULTS

PAGE = Path(__file__).parent.parent / "docs" / "ranks.md"
CORES = CPU().cores()


def ours(loss: Callable[..., Tensor], communication: str) -> Callable[[Batch], Step]:
    def prepare(batch: Batch) -> Step:
        alone = dist.get_world_size() == 1
        options = {} if alone else {"process_group": dist.group.WORLD, "communication": communication}
        tables = {name: getattr(batch, name) for name in ("temperature", "offset", "domain_mask", "normalize")}
        rows = batch.embeddings, batch.sample_ids, batch.domain_ids
        return lambda: loss_and_gradients(loss(*rows, **tables, **options), batch)

    return prepare


def clip_loss(batch: Batch, local_loss: bool) -> Step:
    warnings.filterwarnings("ignore", category=FutureWarning, message="torch.distributed.nn.functional.all_gather")
    group = {"rank": dist.get_rank(), "world_size": dist.get_world_size()}
    return image_and_text(batch, open_clip_losses().ClipLoss(local_loss, gather_with_grad=True, **group))


def siglip_loss(batch: Batch) -> Step:
    loss = open_clip_losses().SigLipLoss(rank=dist.get_rank(), world_size=dist.get_world_size())
    return image_and_text(batch, lambda image, text, scale: loss(image, text, scale, SIGLIP_BIAS))


GATHER, RING = f"{OURS}, gather", f"{OURS}, ring"
CLIP, CLIP_LOCAL, SIGLIP = "open_clip ClipLoss", "open_clip ClipLoss, local_loss", "open_clip SigLipLoss"
#: By objective. All keep DistributedDataParallel's convention: the mean over ranks is what one process would have.
PROVIDERS: dict[str, dict[str, Callable[[Batch], Step]]] = {
    "MP-NCE": {GATHER: ours(mp_nce, "gather"), RING: ours(mp_nce, "ring")},
    "InfoNCE": {
        GATHER: ours(mp_nce, "gather"),
        RING: ours(mp_nce, "ring"),
        CLIP: functools.partial(clip_loss, local_loss=False),
        CLIP_LOCAL: functools.partial(clip_loss, local_loss=True),
    },
    "SigLIP": {GATHER: ours(siglip, "gather"), RING: ours(siglip, "ring"), SIGLIP: siglip_loss},
}
AS_ALONE = {RING: GATHER, CLIP_LOCAL: CLIP}  # in one process they are the same

_TWO = "two ranks of one thread / one process of two, MP-NCE, N = 4096"
RATIOS = [
    Ratio(f"{_TWO}, {way}", 4096, Side(name, ranks=2), Side(GATHER), 1.7, 1.2, at_least=False)
    for way, name in (("gather", GATHER), ("ring", RING))
]


@dataclass(frozen=True)
class Case:
    objective: str
    provider: str
    ranks: int
    n: int  # samples, of all ranks
    d: int

    @property
    def views(self) -> str:
        """The problem whose views of a sample are taken."""
        return "InfoNCE" if self.objective == "SigLIP" else self.objective

    def batch(self) -> Batch:
        """Of all ranks."""
        batch = make_batch(self.views, self.n, self.d, torch.float32)
        return replace(batch, offset=-SIGLIP_BIAS * batch.temperature) if self.objective == "SigLIP" else batch

    def expected(self) -> list[Tensor]:
        return (expected_sigmoid if self.objective == "SigLIP" else expected_when_large)(self.batch())


# What runs on the ranks:


@functools.cache
def _step(case: Case) -> Step:
    torch.set_num_threads(max(1, CORES // case.ranks))
    batch, own = case.batch(), np.array_split(np.arange(case.n), case.ranks)[dist.get_rank()]
    samples = torch.cat([torch.from_numpy(own) + view * case.n for view in range(len(VIEWS[case.views]))])
    rows = {name: getattr(batch, name)[samples] for name in ("sample_ids", "domain_ids")}
    embeddings = batch.embeddings.detach()[samples].requires_grad_()
    return PROVIDERS[case.objective][case.provider](replace(batch, embeddings=embeddings, **rows))


def _result(case: Case) -> list[np.ndarray]:
    return [t.numpy() for t in _step(case)()]


def _sent_and_memory(case: Case) -> tuple[int, int]:
    step = _step(case)
    with bytes_sent() as sent:
        step()
    return sum(sent), peak_memory(step)


def _seconds(case: Case) -> float:
    step = _step(case)
    dist.barrier()
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


# What runs here:


def measure(objective: str, sizes: list[int], n: int, d: int, seconds: float, run: str) -> list[Row]:
    """One row for each provider and number of ranks: checked on all rows, then measured, then timed in turn."""
    cases = [
        Case(objective, provider, size, n, d)
        for size in sizes
        for provider in PROVIDERS[objective]
        if size > 1 or provider not in AS_ALONE
    ]
    expected, notes, found, times = cases[0].expected(), {}, {}, {}
    for case in bar(cases, desc=f"{objective} memory", leave=False):
        if not case.provider.startswith(OURS) and importlib.util.find_spec("open_clip") is None:
            notes[case] = "open_clip is not installed"
            continue
        with ranks(case.ranks) as group:  # fresh ones, in which no allocator has memory left over from before
            try:
                check(of_all_ranks(case, _on_ranks(group, _result, case)), expected, torch.float32)
                found[case] = [
                    max(of_ranks) for of_ranks in zip(*_on_ranks(group, _sent_and_memory, case), strict=True)
                ]
            except WrongAnswerError as error:
                notes[case] = f"refused: {error}"
    with contextlib.ExitStack() as stack, bar(desc=f"{objective} time", leave=False, unit="step") as progress:
        groups = {size: stack.enter_context(ranks(size)) for size in sizes}
        steps = {case: functools.partial(_slowest, groups[case.ranks], case) for case in found}
        first = {case: step() for case, step in steps.items()}
        times = repeat_interleaved(steps, first, lambda step: (step(), []), seconds, progress.update)
    return [_row(case, times.get(case, []), found.get(case), notes.get(case, ""), run) for case in cases]


def of_all_ranks(case: Case, parts: list[list[np.ndarray]]) -> list[Tensor]:
    """What averaging over ranks makes of it: loss and gradients, those of rows in the order of one process."""
    loss, rows, *tables = (np.stack(of_ranks) for of_ranks in zip(*parts, strict=True))
    rows = rows.reshape(case.ranks, len(VIEWS[case.views]), -1, case.d).swapaxes(0, 1).reshape(-1, case.d) / case.ranks
    return [torch.from_numpy(np.asarray(x)) for x in (loss.mean(0), rows, *(t.mean(0) for t in tables))]


def _on_ranks(group: Ranks, function: Callable, case: Case) -> list:
    results = group(function, case)
    if error := next((result for result in results if isinstance(result, RankError)), None):
        raise error
    return results


def _slowest(group: Ranks, case: Case) -> float:
    return max(_on_ranks(group, _seconds, case))


def _row(case: Case, seconds: list[float], found: list[int] | None, note: str, run: str) -> Row:
    p20, p50, p80 = np.quantile(seconds, (0.2, 0.5, 0.8)).tolist() if seconds else (None,) * 3
    sent_bytes, extra_bytes = found or (None, None)
    return Row(
        device=CPU.name,
        objective=case.objective,
        provider=case.provider,
        mode="forward+backward",
        n=case.n,
        m=num_rows(case.views, case.n),
        d=case.d,
        dtype="float32",
        p20=p20,
        p50=p50,
        p80=p80,
        repetitions=len(seconds),
        extra_bytes=extra_bytes,
        note=note,
        machine=CPU().machine(),
        version=versions(),
        run=run,
        work=needed_flops(case.views, case.n, case.d),
        ranks=case.ranks,
        sent_bytes=sent_bytes,
    )


def markdown(rows: list[Row]) -> str:
    """Of one run: a line for each objective and provider, with times by the number of ranks."""
    sizes, last = sorted({row.ranks for row in rows}), rows[-1]
    head = ["objective", "provider", *(f"{size} rank{'s' * (size > 1)}" for size in sizes)]
    head += [f"sent by each of {sizes[-1]}", f"memory of each of {sizes[-1]}"]
    lines = [_line(rows, objective, name, sizes) for objective, names in PROVIDERS.items() for name in names]
    text = f"""{last.machine}; {last.version}; {last.run[:10]}. N = {last.n} samples in all, D = {last.d}, float32,
forward + backward; {CORES} cores, however many ranks share them. Median of the slowest rank's time (20th to 80th percentile).
One rank is one process without a group.

{table(head, lines)}"""
    text += "".join(f"\n* — {row.provider}, {row.ranks} ranks: {row.note}\n" for row in rows if row.note)
    return f"{text}\n{ratio_table([ratio.result(rows) for ratio in RATIOS])}"


def _line(rows: list[Row], objective: str, name: str, sizes: list[int]) -> list[str]:
    timed = {(row.provider, row.ranks): row for row in rows if row.objective == objective and row.p50 is not None}
    found = [timed.get((AS_ALONE.get(name, name) if size == 1 else name, size)) for size in sizes]
    last, times = found[-1], ["—" if row is None else time_text(row) for row in found]
    return [
        objective,
        name,
        *times,
        *(["—"] * 2 if last is None else map(megabytes, (last.sent_bytes, last.extra_bytes))),
    ]


def main(arguments: list[str] | None = None) -> int:
    """0, or 1 if a provider gave a wrong answer."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranks", description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="numbers of ranks (1 2 4)")
    parser.add_argument("--samples", type=int, default=4096, help="N, of all ranks (4096)")
    parser.add_argument("--dim", type=int, default=512, help="columns D (512)")
    parser.add_argument("--seconds", type=float, default=40.0, help="time to repeat each objective in (40)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results (benchmarks/results)")
    options = parser.parse_args(arguments)
    path, run = options.out / "ranks.csv", datetime.now(timezone.utc).isoformat(timespec="seconds")
    sizes = sorted(options.ranks), options.samples, options.dim
    rows = [row for objective in PROVIDERS for row in measure(objective, *sizes, options.seconds, run)]
    write_rows(path, merge(read_rows(path), rows))
    text = markdown(rows)
    path.with_suffix(".md").write_text(f"# Rows spread over ranks\n\n{text}")
    if options.out == RESULTS:
        write_between_markers(PAGE, text)
    print(text)
    return int(any(row.refused for row in rows))


if __name__ == "__main__":
    sys.exit(main())
