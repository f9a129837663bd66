"""The main job, examples/train.py: its data, augmentation, evaluation, and that a stop changes nothing."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import train  # noqa: E402
from uniclip import augment, checkpoint, files, retrieval, samples, sources, text  # noqa: E402
from uniclip.objective import OBJECTIVES  # noqa: E402
from uniclip.options import parse  # noqa: E402

FIELDS = {
    "epoch",
    "step",
    "loss",
    *(f"{way}_recall@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)),
    "temperature",
    "offset",
    "seconds_encoders",
    "seconds_loss",
    "seconds_optimizer",
    "peak_memory_bytes",
}
MEASURED_ANEW = {"seconds_encoders", "seconds_loss", "seconds_optimizer", "peak_memory_bytes"}


def picture(seed: int, size: tuple[int, int] = (80, 80)) -> Image.Image:
    """A few coloured rectangles."""
    random = np.random.default_rng(seed)
    pixels = np.full((size[1], size[0], 3), 255, np.uint8)
    for _ in range(4):
        x, y = random.integers(0, 60, 2)
        pixels[y : y + 20, x : x + 20] = random.integers(0, 256, 3)
    return Image.fromarray(pixels)


def png(seed: int) -> bytes:
    buffer = BytesIO()
    picture(seed).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """24 pictures, the first ten with two captions."""
    path = tmp_path_factory.mktemp("data")
    lines = ["image,caption"]
    (path / "pictures").mkdir()
    for i in range(24):
        picture(i).save(path / "pictures" / f"{i}.png")
        lines.append(f"pictures/{i}.png,number {i}")
        if i < 10:
            lines.append(f"pictures/{i}.png,the {i}th")
    (path / "captions.csv").write_text("\n".join(lines) + "\n")
    return path


# Data


def table(tmp_path: Path, content: bytes) -> Path:
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(png(1)[:100])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "captions.csv").write_bytes(content)
    return tmp_path / "captions.csv"


@pytest.mark.parametrize(
    ("content", "line", "what"),
    [
        (b"image,caption\na.png,one\nnone.png,two\n", 3, "image none.png does not exist"),
        (b"image,caption\na.png,one\n\nbroken.png,two\n", 4, "image broken.png cannot be read"),
        (b"image,caption\ntext.png,two\n", 2, "image text.png cannot be read"),
        (b'image,caption\na.png,one\na.png,"  "\n', 3, "empty caption"),
        (b"image,caption\n,one\n", 2, "empty image"),
        (b"image,caption\na.png,one\na.png\n", 3, "1 fields where the header has 2"),
        (b"image,caption\na.png,one,two\n", 2, "3 fields where the header has 2"),
        (b'image,caption\na.png,"two\nlines"\na.png,"never closed\n\n', 4, "not valid CSV"),
        (b"image,caption\na.png,one\na.png,\xff\n", 3, "not valid CSV"),
        (b"picture,caption\na.png,one\n", 1, "no column image"),
        (b"a,b\n", 1, "no column caption or image"),
        (b"", 1, "empty file"),
    ],
)
def test_csv_error_names_file_and_line(tmp_path, content, line, what):
    path = table(tmp_path, content)
    with pytest.raises(samples.DataError) as error:
        sources.load(str(tmp_path), None)
    assert str(error.value).startswith(f"{path}:{line}: ")
    assert what in str(error.value)


def test_missing_table_and_unknown_source(tmp_path):
    with pytest.raises(samples.DataError, match=r"captions\.csv: cannot be opened"):
        sources.load(str(tmp_path), None)
    with pytest.raises(samples.DataError, match=r"neither a folder with captions\.csv nor"):
        sources.load(str(tmp_path / "nowhere"), None)


def test_too_few_pictures(tmp_path):
    table(tmp_path, b"image,caption\na.png,one\n")
    with pytest.raises(samples.DataError, match="at least 2 different pictures, found 1"):
        sources.load(str(tmp_path), None)


def test_csv_rows_of_an_image_and_equal_pictures_are_one_sample(tmp_path):
    for name, seed in {"a.png": 0, "b.png": 1, "copy of a.png": 0}.items():
        picture(seed).save(tmp_path / name)
    (tmp_path / "captions.csv").write_bytes(
        b"\xef\xbb\xbfcaption,image,source\r\n"
        b"one,a.png,x\r\n"
        b'"two, with a comma",b.png,x\r\n'
        b"\r\n"
        b'"three on\r\ntwo lines",a.png,x\r\n'
        b"four,copy of a.png,x\r\n"
        b"one,a.png,x\r\n"
    )
    loaded = sources.load(str(tmp_path), None)
    assert loaded.captions == [["one", "three on\r\ntwo lines", "four"], ["two, with a comma"]]
    assert loaded.extra_texts == [[], []]
    assert loaded.images.shape == (2, 3, samples.IMAGE_SIZE, samples.IMAGE_SIZE)
    assert loaded.images.dtype == torch.uint8
    assert sources.load(str(tmp_path), 3).captions == [["one", "three on\r\ntwo lines"], ["two, with a comma"]]


def test_pictures_are_cut_to_their_central_square_on_white(tmp_path):
    wide = np.zeros((32, 96, 4), np.uint8)
    wide[:, 32:64] = (255, 0, 0, 255)  # all around is transparent
    wide[:16, 32:64, 3] = 0
    Image.fromarray(wide).save(tmp_path / "wide.png")
    pixels = samples.square(tmp_path / "wide.png")
    assert (pixels[:28] == 255).all()
    assert (pixels[36:, 4:-4] == (255, 0, 0)).all()  # the filter looks a little across the edges


def write_shard(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, BytesIO(content))


def test_webdataset_shards(tmp_path):
    write_shard(tmp_path / "s-000.tar", {"a.png": png(0), "a.txt": b"one\n\n2 \n", "b.png": png(1), "b.txt": b"three"})
    write_shard(tmp_path / "s-001.tar", {"c.txt": "vier ä".encode(), "c.png": png(2)})
    loaded = sources.load(str(tmp_path / "s-{000..001}.tar"), None)
    assert loaded.captions == [["one", "2"], ["three"], ["vier ä"]]
    np.testing.assert_array_equal(loaded.images[2].permute(1, 2, 0), samples.square(BytesIO(png(2))))
    assert len(sources.load(str(tmp_path / "s-{000..001}.tar"), 2)) == 2


@pytest.mark.parametrize(
    ("members", "what"),
    [
        ({"a.txt": b"one"}, "sample a: no image"),
        ({"a.png": png(0)}, "sample a: no caption"),
        ({"a.png": png(0), "a.txt": b" \n"}, "sample a: empty caption"),
        ({"a.png": png(0), "a.txt": b"\xff"}, "sample a: txt is not UTF-8"),
        ({"a.png": png(0)[:60], "a.txt": b"one"}, "sample a: image a.png cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_webdataset_error_names_shard_and_sample(tmp_path, members, what):
    write_shard(tmp_path / "s-000.tar", {"x.png": png(5), "x.txt": b"fine"})
    bad = tmp_path / "s-001.tar"
    if members is None:
        bad.write_bytes(b"no tar at all" * 100)
    else:
        write_shard(bad, members)
    with pytest.raises(samples.DataError) as error:
        sources.load(str(tmp_path / "s-{000..001}.tar"), None)
    assert str(error.value).startswith(f"{bad}: {what}")


def test_missing_shard(tmp_path):
    with pytest.raises(samples.DataError, match=r"none-0\.tar: does not exist"):
        sources.load(str(tmp_path / "none-{0..1}.tar"), None)


def test_openmoji_and_its_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = sources.load(None, 60)
    (cache,) = (tmp_path / "uniclip-kernels").iterdir()
    marked = np.load(cache)
    assert marked.shape == (60, samples.IMAGE_SIZE, samples.IMAGE_SIZE, 3)
    marked[0] = 7
    np.save(cache, marked)
    second = sources.load(None, 60)
    assert (second.images[0] == 7).all(), "the second time comes from the cache"
    assert torch.equal(first.images[1:], second.images[1:])
    assert first.captions[0] == ["keycap #"]
    at = first.captions.index(["Switzerland"]) if ["Switzerland"] in first.captions else None
    assert at is None or "flagge schweiz" in first.extra_texts[at]


def test_split_holds_out_a_tenth_of_the_samples():
    n = 200
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, 2, 2)
    every = samples.Samples(images, [[f"caption {i}"] for i in range(n)], [[f"extra {i}"] for i in range(n)])
    kept, held_out = samples.split(every, seed=3)
    assert (len(kept), len(held_out)) == (180, 20)
    numbers = [int(part.images[i, 0, 0, 0]) for part in (kept, held_out) for i in range(len(part))]
    assert sorted(numbers) == list(range(n))
    for part in (kept, held_out):
        for i in range(len(part)):
            number = int(part.images[i, 0, 0, 0])
            assert part.captions[i] == [f"caption {number}"]
            assert part.extra_texts[i] == [f"extra {number}"]
    assert samples.split(every, seed=3)[1].captions == held_out.captions
    assert samples.split(every, seed=4)[1].captions != held_out.captions


def test_text_table_draws_and_bags():
    texts = [["one", "two words"], ["three"], ["", "four", "five"]]
    table = text.TextTable(texts)
    flat = [t for of_sample in texts for t in of_sample]
    rows = torch.tensor([4, 0, 3, 1])
    ids, offsets = table.bags(rows, torch.device("cpu"))
    ends = [*offsets[1:].tolist(), len(ids)]
    assert [ids[a:b].tolist() for a, b in zip(offsets.tolist(), ends, strict=True)] == [
        text.features(flat[row]) for row in rows
    ]
    torch.manual_seed(0)
    chosen = torch.tensor([0, 1, 2]).repeat(100)
    drawn = table.draw(chosen)
    assert [set(drawn[i::3].tolist()) for i in range(3)] == [{0, 1}, {2}, {3, 4, 5}]
    assert set(table.draw(chosen, torch.tensor([1, 1, 2]))[2::3].tolist()) == {3, 4}
    assert text.features("light dark") != text.features("dark light")


# Augmentation


@pytest.fixture
def photos() -> torch.Tensor:
    torch.manual_seed(0)
    coarse = torch.rand(6, 3, 8, 8)
    return (F.interpolate(coarse, size=(64, 64), mode="bilinear") * 255).byte()


def vector(count: int, **fields: float) -> torch.Tensor:
    result = augment.identity(count)
    for name, value in fields.items():
        result[:, augment.FIELDS.index(name)] = value
    return result


def test_identity_is_zero_and_changes_nothing(photos):
    nothing = augment.identity(len(photos))
    assert nothing.shape == (len(photos), len(augment.FIELDS))
    assert not nothing.any()
    torch.testing.assert_close(augment.apply(photos, nothing, 64), photos / 255, atol=1e-5, rtol=0)


def test_crop_and_flip_show_the_box_that_the_vector_names(photos):
    half = math.log(0.5)
    corner = vector(len(photos), crop_x=-0.5, crop_y=0.5, log_crop_width=half, log_crop_height=half)
    expected = photos[:, :, 32:, :32] / 255
    torch.testing.assert_close(augment.apply(photos, corner, 32), expected, atol=1e-5, rtol=0)
    corner[:, augment.FIELDS.index("flip")] = 1
    torch.testing.assert_close(augment.apply(photos, corner, 32), expected.flip(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("factor", [0.8, 1.25])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_agrees_with_torchvision(photos, name, factor):
    import torchvision.transforms.v2.functional as tv

    mild = photos // 2 + 50  # nothing is cut off at 0 or 1
    done = augment.apply(mild, vector(len(mild), **{f"log_{name}": math.log(factor)}), 64)
    expected = getattr(tv, f"adjust_{name}")(mild / 255, factor)
    torch.testing.assert_close(done, expected, atol=1e-3, rtol=0)


def test_grayscale_and_blur_agree_with_torchvision(photos):
    import torchvision.transforms.v2.functional as tv

    gray = augment.apply(photos, vector(len(photos), grayscale=1), 64)
    torch.testing.assert_close(gray, tv.rgb_to_grayscale(photos / 255, 3), atol=1e-3, rtol=0)
    blurred = augment.apply(photos, vector(len(photos), blur=0.8), 64)
    expected = tv.gaussian_blur(photos / 255, 5, 0.8)
    torch.testing.assert_close(blurred[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], atol=1e-5, rtol=0)


def test_hue_turns_colours_and_keeps_luma_and_grey(photos):
    mild = photos // 4 + 96
    luma = torch.tensor(augment.LUMA).view(3, 1, 1)
    turned = augment.apply(mild, vector(len(mild), hue=math.pi / 2), 64)
    torch.testing.assert_close((turned * luma).sum(1), (mild / 255 * luma).sum(1), atol=1e-3, rtol=0)
    assert (turned - mild / 255).abs().max() > 0.1
    once_round = augment.apply(mild, vector(len(mild), hue=2 * math.pi), 64)
    torch.testing.assert_close(once_round, mild / 255, atol=1e-4, rtol=0)
    grey = mild[:, :1].expand_as(mild)
    torch.testing.assert_close(augment.apply(grey, vector(len(grey), hue=1), 64), grey / 255, atol=2e-3, rtol=0)


def test_drawn_vectors_vary_stay_in_range_and_act_per_picture(photos):
    torch.manual_seed(0)
    drawn = augment.draw(4000)
    assert drawn.isfinite().all()
    for name in augment.FIELDS:
        assert drawn[:, augment.FIELDS.index(name)].std() > 0, name
    width = drawn[:, augment.FIELDS.index("log_crop_width")].exp()
    x = drawn[:, augment.FIELDS.index("crop_x")].abs()
    assert (x <= (1 - width).abs() + 1e-6).all()

    mixed = drawn[: len(photos)]
    together = augment.apply(photos, mixed, 48)
    alone = torch.cat([augment.apply(photos[i : i + 1], mixed[i : i + 1], 48) for i in range(len(photos))])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert together.min() >= 0
    assert together.max() <= 1


# Evaluation


def test_recall_by_hand():
    # Pictures 0, 1, 2; texts "a" (of 0), "b" (of 0 and 1), "c" (of 2).
    held_out = retrieval.HeldOut.of(
        samples.Samples(torch.zeros(3, 3, 2, 2), [["a", "b"], ["b"], ["c"]], [[], [], []]),
    )
    assert held_out.captions == ["a", "b", "c"]
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.3, 0.8, 0.7], [0.6, 0.5, 0.4]])
    measured = retrieval.recalls(similarity, held_out.right)
    # a finds 0, b finds 1, c finds 2 third; picture 0 finds a, 1 finds b, 2 finds c second (b is nearer).
    assert measured["text_to_image_recall@1"] == pytest.approx(2 / 3)
    assert measured["image_to_text_recall@1"] == pytest.approx(2 / 3)
    assert measured["text_to_image_recall@5"] == measured["image_to_text_recall@5"] == 1


@pytest.mark.parametrize("value", [0.5, math.nan])
def test_recall_of_a_collapsed_model_is_zero(value):
    measured = retrieval.recalls(torch.full((20, 20), value), torch.eye(20, dtype=torch.bool))
    assert set(measured.values()) == {0.0}


# Objectives


def rows(objective, n: int = 7) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [F.normalize(torch.randn(n, 16), dim=1) for _ in objective.row_domains]


def cross_entropy_both_ways(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    logits, target = x @ y.T / 0.07, torch.arange(len(x))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def nt_xent(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    z = torch.cat([x, y])
    logits = (z @ z.T / 0.07).fill_diagonal_(-math.inf)
    return F.cross_entropy(logits, torch.arange(len(z)).roll(len(x)))


def objective_loss(name: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    from uniclip_kernels import stack_views

    objective = OBJECTIVES[name]
    views = rows(objective)
    return objective.loss(None)(*stack_views(views, objective.row_domains)).detach(), views


def test_clip_is_the_loss_of_clip():
    loss, (image, caption) = objective_loss("clip")
    torch.testing.assert_close(loss, cross_entropy_both_ways(image, caption))


def test_simclr_clip_is_the_mean_of_both():
    loss, (image, first, second, caption) = objective_loss("simclr+clip")
    torch.testing.assert_close(loss, (cross_entropy_both_ways(image, caption) + nt_xent(first, second)) / 2)


# Whole runs


def run(folder: Path, out: Path, *more: str) -> int:
    arguments = ["--data", str(folder), "--out", str(out), "--device", "cpu", "--batch-size", "7", *more]
    return train.run(parse(arguments))


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_objective_runs_and_writes_everything(folder, tmp_path, objective):
    assert run(folder, tmp_path, "--objective", objective, "--epochs", "1", "--limit", "20") == 0
    (row,) = metrics(tmp_path)
    assert set(row) == FIELDS
    domains = len(OBJECTIVES[objective].domains)
    for name in ("temperature", "offset"):
        assert np.shape(row[name]) == (domains, domains)
        assert row[name] == np.transpose(row[name]).tolist()
    assert row["epoch"] == 1
    assert row["step"] == 1
    assert all(math.isfinite(row[name]) for name in FIELDS - {"temperature", "offset"})
    assert 1e8 < row["peak_memory_bytes"] < 1e11
    for name in ("curves.png", "retrieval.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 500
            assert len(np.unique(np.asarray(image.convert("L")))) > 20
    assert list((tmp_path / "tensorboard").glob("events.*"))


@pytest.fixture(scope="module")
def uninterrupted(folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    assert run(folder, out, "--epochs", "2") == 0
    return out


def numbers(out: Path) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in MEASURED_ANEW} for row in metrics(out)]


def assert_same(first, second, where: str = "") -> None:
    """Bit for bit, apart from what is measured anew."""
    assert type(first) is type(second), where
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for name in first.keys() - MEASURED_ANEW:
            assert_same(first[name], second[name], f"{where}/{name}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for i, pair in enumerate(zip(first, second, strict=True)):
            assert_same(*pair, f"{where}/{i}")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    else:
        assert first == second, where


@pytest.mark.parametrize("stop_after", [0, 2, 3])
def test_resumed_run_is_bit_identical(folder, tmp_path, uninterrupted, stop_after, monkeypatch, capsys):
    """Stopped by Ctrl-C before the first step, in the middle of an epoch of three steps, and at its end."""
    step = train.Trainer.train_step

    def press(*_):
        signal.raise_signal(signal.SIGINT)

    def press_then_step(trainer):
        loss = step(trainer)
        if trainer.step == stop_after:
            press()
        return loss

    monkeypatch.setattr(train.Trainer, "train_step", press_then_step)
    if stop_after == 0:
        monkeypatch.setattr(train, "progress", lambda *a, real=train.progress: (press(), real(*a))[1])
    assert run(folder, tmp_path, "--epochs", "2") == train.INTERRUPTED
    assert f"stopped after step {stop_after} of 6" in capsys.readouterr().out
    monkeypatch.undo()
    torch.manual_seed(12345)  # what the process did before must not matter
    assert run(folder, tmp_path, "--epochs", "2", "--resume") == 0
    assert len(numbers(tmp_path)) == 2
    assert numbers(tmp_path) == numbers(uninterrupted)
    states = [torch.load(out / "checkpoint.pt", weights_only=True) for out in (tmp_path, uninterrupted)]
    assert_same(*states)
    # Once more at the end: nothing is left to do, and nothing changes.
    assert run(folder, tmp_path, "--epochs", "2", "--resume") == 0
    assert numbers(tmp_path) == numbers(uninterrupted)


def test_resume_refuses_what_would_give_other_numbers(folder, tmp_path, uninterrupted):
    with pytest.raises(checkpoint.CheckpointError, match="there is no checkpoint"):
        run(folder, tmp_path, "--epochs", "2", "--resume")
    with pytest.raises(checkpoint.CheckpointError, match="was made with epochs 2, this run has epochs 4"):
        run(folder, uninterrupted, "--epochs", "4", "--resume")


def test_seed_decides_the_numbers(folder, tmp_path, uninterrupted):
    assert run(folder, tmp_path, "--epochs", "2", "--seed", "1") == 0
    assert numbers(tmp_path)[0]["loss"] != numbers(uninterrupted)[0]["loss"]


def test_interrupted_process_says_how_to_go_on(folder, tmp_path):
    out = tmp_path / "with space"
    arguments = ["--data", folder, "--out", out, "--batch-size", "21", "--epochs", "8", "--device", "cpu"]
    command = [sys.executable, str(EXAMPLES / "train.py"), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 300
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    go_on = shlex.split(said.split("to go on:")[1])
    assert go_on == [*command, "--resume"]
    done = len(metrics(out))
    assert 0 < done < 8
    subprocess.run(go_on, check=True, capture_output=True, timeout=300, env={**os.environ, "PYTHONHASHSEED": "1"})
    assert [row["epoch"] for row in metrics(out)] == list(range(1, 9))


def test_data_error_ends_the_process_in_one_line(tmp_path):
    path = table(tmp_path, b"image,caption\nnone.png,one\n")
    command = [sys.executable, str(EXAMPLES / "train.py"), "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr == f"error: {path}:2: image none.png does not exist\n"


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--epochs", "0"], "--epochs: must be at least 1"),
        (["--seed", "-1"], "--seed: must not be negative"),
        (["--device", "nonsense"], "--device: nonsense is not usable here"),
        (["--objective", "other"], "--objective: invalid choice"),
    ],
)
def test_bad_option(arguments, what, capsys):
    with pytest.raises(SystemExit):
        parse(arguments)
    assert what in capsys.readouterr().err


def test_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "new" / "file"
    files.write_atomically(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half of the new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]
