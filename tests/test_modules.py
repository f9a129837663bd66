"""MPNCELoss: its tables, the floor of the temperature, saving, copying and what it passes on; and stack_views."""

import copy
import io
import math
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from uniclip_kernels import MPNCELoss, mp_nce, stack_views

MASK = torch.tensor([[True, True], [True, False]])


def rows():
    return torch.randn(30, 8, requires_grad=True), torch.arange(30) // 3, torch.arange(30) % 2


def test_is_the_function_with_its_own_tables():
    options = {"offset": 0.1, "weight": torch.tensor([[1.0, 2.0], [0.5, 1.0]]), "domain_mask": MASK, "reduction": "sum"}
    inputs = rows()
    torch.testing.assert_close(
        MPNCELoss(temperature=0.2, **options)(*inputs), mp_nce(*inputs, temperature=0.2, **options)
    )


def test_learns_one_number_for_each_pair_of_domains():
    criterion = MPNCELoss(3)
    inputs = rows()
    criterion(*inputs).backward()
    tables = [criterion.temperature.detach().requires_grad_(), criterion.offsets.detach().requires_grad_()]
    mp_nce(*inputs, temperature=tables[0], offset=tables[1]).backward()
    upper = torch.ones(3, 3).triu().bool()
    torch.testing.assert_close(criterion.log_temperature.grad, (tables[0].grad * tables[0])[upper].detach())
    torch.testing.assert_close(criterion.offset.grad, tables[1].grad[upper])
    assert (criterion.log_temperature.grad[[0, 1, 3]] != 0).all()
    frozen = MPNCELoss(learnable=False)
    assert list(frozen.parameters()) == []
    assert set(frozen.state_dict()) == {"log_temperature", "offset", "weight"}


def test_shows_the_tables_that_it_uses():
    criterion = MPNCELoss(3, temperature=torch.rand(3, 3) + 0.1, offset=torch.randn(3, 3))
    optimizer = torch.optim.Adam(criterion.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        criterion(*rows()).backward()
        optimizer.step()
    for table in (criterion.temperature, criterion.offsets):
        assert torch.equal(table, table.T)
    inputs = rows()
    assert torch.equal(criterion(*inputs), mp_nce(*inputs, temperature=criterion.temperature, offset=criterion.offsets))


@pytest.mark.parametrize("other", [0.0, math.nan, -1.0])
def test_reads_upper_triangles_alone(other):
    upper = torch.tensor([[0.1, 0.2], [0.0, 0.3]])
    below = torch.tensor([[0.0, 0.0], [other, 0.0]])
    criterion = MPNCELoss(temperature=upper + below, offset=upper + below)
    for table in (criterion.temperature, criterion.offsets):
        torch.testing.assert_close(table, upper + upper.triu(1).T)


def no_decay_of_vectors(module: nn.Module, **options) -> torch.optim.AdamW:
    """The usual rule."""
    groups = [
        {"params": [p for p in module.parameters() if (p.ndim < 2) == vectors], "weight_decay": 0.0 if vectors else 0.1}
        for vectors in (True, False)
    ]
    return torch.optim.AdamW(groups, **options)


def test_the_usual_rule_does_not_decay_the_tables():
    criterion = MPNCELoss(temperature=0.02, offset=0.3)
    optimizer = no_decay_of_vectors(criterion, lr=1e-2)
    before = criterion.temperature.detach().clone(), criterion.offsets.detach().clone()
    for _ in range(2000):
        for parameter in criterion.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    assert torch.equal(criterion.temperature, before[0])
    assert torch.equal(criterion.offsets, before[1])


CASTS = {
    "half": lambda module: module.half(),
    "bfloat16": lambda module: module.bfloat16(),
    "to": lambda module: module.to(torch.float16),
    "twice": lambda module: module.double().half(),
}


@pytest.mark.parametrize("learnable", [True, False])
@pytest.mark.parametrize("cast", CASTS)
def test_tables_stay_float32_in_a_narrow_model(cast, learnable):
    tables = dict(temperature=torch.rand(2, 2) + 0.1, offset=torch.randn(2, 2), weight=torch.rand(2, 2))
    criterion = MPNCELoss(**tables, domain_mask=torch.ones(2, 2) > 0, learnable=learnable)
    expected = copy.deepcopy(criterion)
    model = CASTS[cast](nn.ModuleDict({"head": nn.Linear(3, 3), "loss": criterion}))
    assert model["head"].weight.element_size() == 2
    for name, tensor in model["loss"].state_dict().items():
        assert tensor.dtype == (torch.uint8 if name == "domain_mask" else torch.float32)
        assert torch.equal(tensor, expected.state_dict()[name])


def test_tables_follow_to_float64_and_to_other_devices():
    criterion = MPNCELoss().double()
    assert all(t.dtype == torch.float64 for t in criterion.state_dict().values())
    criterion = MPNCELoss().to("meta", torch.bfloat16)
    assert all(t.is_meta and t.dtype == torch.float32 for t in criterion.state_dict().values())
    assert criterion.to_empty(device="cpu").temperature.shape == (2, 2)


def test_learns_in_a_model_of_bfloat16():
    model = nn.ModuleDict({"head": nn.Linear(8, 8), "loss": MPNCELoss()}).bfloat16()
    optimizer = no_decay_of_vectors(model, lr=1e-4)
    before = model["loss"].temperature.detach()
    z, *ids = rows()
    for _ in range(100):
        optimizer.zero_grad()
        model["loss"](model["head"](z.bfloat16()), *ids).backward()
        optimizer.step()
    moved = (model["loss"].temperature / before).log().abs()
    assert ((moved > 1e-3) & (moved < 1.1e-2)).all()  # a step of AdamW is 1e-4 at most, and less than bfloat16 can tell
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_learnable_temperature_stays_above_its_floor_and_can_come_back():
    criterion = MPNCELoss(min_temperature=0.05)
    with torch.no_grad():
        criterion.log_temperature.fill_(-20)
    inputs = rows()
    assert (criterion.temperature >= 0.05).all()
    torch.testing.assert_close(criterion(*inputs), mp_nce(*inputs, temperature=0.05))
    up, down = (
        torch.autograd.grad(sign * criterion.temperature.sum(), criterion.log_temperature)[0] for sign in (-1, 1)
    )
    assert (up < 0).all()  # descent raises it
    assert (down == 0).all()
    assert (MPNCELoss(temperature=0.001, learnable=False).temperature < 0.0011).all()


@pytest.mark.parametrize(
    "options",
    [
        {"num_domains": 0},
        {"temperature": 0.0},
        {"temperature": math.nan},
        {"temperature": 0.005},
        {"temperature": torch.ones(3, 3)},
        {"offset": torch.ones(2)},
        {"offset": math.nan},
        {"weight": math.inf},
        {"domain_mask": torch.ones(3, 3).bool()},
        {"domain_mask": torch.ones(2, 2).triu().bool()},
        {"reduction": "average"},
        {"min_temperature": 0.0},
        {"backend": "gpu"},
    ],
    ids=str,
)
def test_bad_arguments_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        MPNCELoss(**options)


def test_checks_its_tables_whatever_the_environment_says(monkeypatch):
    monkeypatch.setenv("UNICLIP_CHECK_VALUES", "0")
    with pytest.raises(ValueError, match="temperature must be positive and finite, got nan"):
        MPNCELoss(temperature=float("nan"))


def test_is_made_without_values_on_the_meta_device():
    with torch.device("meta"):
        criterion = MPNCELoss(domain_mask=torch.ones(2, 2).bool())
    assert all(tensor.is_meta for tensor in criterion.state_dict().values())
    loaded = criterion.to_empty(device="cpu")
    loaded.load_state_dict(MPNCELoss(temperature=0.2, domain_mask=torch.ones(2, 2).bool()).state_dict())
    inputs = rows()
    assert torch.equal(loaded(*inputs), mp_nce(*inputs, temperature=torch.full((2, 2), 0.2).log().exp()))


def test_function_transforms_with_the_reference():
    criterion, inputs = MPNCELoss(backend="reference"), rows()
    parameters = dict(criterion.named_parameters())
    gradient = torch.func.grad(lambda p: torch.func.functional_call(criterion, p, inputs))(parameters)
    criterion(*inputs).backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(gradient[name], parameter.grad)


@pytest.mark.parametrize("learnable", [True, False])
def test_state_dict_pickle_and_deepcopy(learnable):
    criterion = MPNCELoss(temperature=0.3, offset=0.2, domain_mask=MASK, learnable=learnable)
    inputs = rows()
    expected = criterion(*inputs)
    other = MPNCELoss(domain_mask=~MASK, learnable=learnable)
    file = io.BytesIO()
    torch.save(criterion.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    for copied in (other, copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert torch.equal(copied(*inputs), expected)


def of_version_0_1_0(criterion: MPNCELoss) -> dict:
    """The state dict that it had: (K, K) tables, of which the upper triangles count, and a bool mask."""
    state = criterion.state_dict()
    below = torch.full_like(criterion.weight, math.nan).tril(-1)
    state["log_temperature"], state["offset"] = criterion.temperature.log() + below, criterion.offsets + below
    if criterion.domain_mask is not None:
        state["domain_mask"] = criterion.domain_mask.bool()
    return state


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("learnable", [True, False])
@pytest.mark.parametrize("num_domains", [1, 2, 3])
def test_loads_what_version_0_1_0_saved(num_domains, learnable, assign):
    """In a model too; and the dict of the caller stays as it is."""
    mask = torch.rand(num_domains, num_domains) < 0.7
    options = dict(domain_mask=mask | mask.T, learnable=learnable)
    tables = dict(temperature=torch.rand(num_domains, num_domains) + 0.1, offset=torch.randn(num_domains, num_domains))
    saved = MPNCELoss(num_domains, **tables, **options)
    old = {f"heads.loss.{name}": value for name, value in of_version_0_1_0(saved).items()}
    before = dict(old)
    model = nn.ModuleDict({"heads": nn.ModuleDict({"loss": MPNCELoss(num_domains, **options)})})
    model.load_state_dict(old, strict=True, assign=assign)
    assert old.keys() == before.keys()
    assert all(old[name] is before[name] for name in old)
    loaded = model["heads"]["loss"]
    torch.testing.assert_close(dict(loaded.state_dict()), dict(saved.state_dict()))
    assert [type(p) for p in loaded.parameters()] == [nn.Parameter] * (2 * learnable)


@pytest.mark.parametrize("saved_by", ["this version", "0.1.0"])
def test_a_mask_survives_averaging(saved_by):
    criterion = MPNCELoss(domain_mask=MASK)
    averages = [
        AveragedModel(criterion, use_buffers=True),
        AveragedModel(criterion, use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(0.97)),
    ]
    inputs = rows()
    for average in averages:
        if saved_by == "0.1.0":
            old = {f"module.{name}": value for name, value in of_version_0_1_0(criterion).items()}
            average.load_state_dict(old | {"n_averaged": torch.tensor(0)})
        for _ in range(5):
            average.update_parameters(criterion)
        torch.testing.assert_close(average(*inputs), criterion(*inputs))
        copied = copy.deepcopy(average)
        copied.load_state_dict(average.state_dict())
        for module in (copied, pickle.loads(pickle.dumps(copied.module))):
            assert torch.equal(module(*inputs), average(*inputs))
    assert not torch.equal(criterion(*inputs), MPNCELoss()(*inputs))


def test_a_batch_of_padding_alone_gives_a_warning_once():
    z, ids, domains = rows()
    criterion = MPNCELoss()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # torch.compile may cause others
        criterion(z, ids - 5, domains)
        criterion(z[:0], ids[:0], domains[:0])
        torch.compile(criterion, backend="eager")(z, ids - 10, domains)
    with pytest.warns(UserWarning, match="every sample id of the batch is negative") as seen:
        assert criterion(z, ids - 10, domains) == 0
    assert [warning.filename for warning in seen] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # torch.compile may cause others
        criterion(z, ids - 10, domains)


@pytest.mark.parametrize(
    ("views", "domains", "named"),
    [
        ([], [], "views"),
        ([torch.ones(2, 3)], [0, 1], "domains"),
        ([torch.ones(2, 3), torch.ones(3, 3)], [0, 1], r"views\[1\]"),
        ([torch.ones(2, 3), torch.ones(2, 3).half()], [0, 1], r"views\[1\]"),
        ([torch.ones(2)], [0], r"views\[0\]"),
        ([torch.ones(2, 3)], [-1], "domains"),
        ([torch.ones(2, 3)], [0.5], "domains"),
    ],
)
def test_stack_views_names_what_is_wrong(views, domains, named):
    with pytest.raises(ValueError, match=named):
        stack_views(views, domains)


def test_stacked_views_are_rows_of_the_loss():
    views = [torch.randn(5, 4) for _ in range(3)]
    z, ids, domains = stack_views(views, [0, 0, 1])
    assert torch.equal(z, torch.cat(views))
    assert ids.tolist() == [*range(5)] * 3
    assert domains.tolist() == [0] * 10 + [1] * 5
