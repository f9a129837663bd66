"""MPNCELoss: its tables, the floor of the temperature, saving, copying and what it passes on; and stack_views."""

import copy
import io
import math
import pickle

import pytest
import torch

from uniclip_kernels import MPNCELoss, mp_nce, stack_views


def rows():
    return torch.randn(30, 8, requires_grad=True), torch.arange(30) // 3, torch.arange(30) % 2


def test_is_the_function_with_its_own_tables():
    mask = torch.tensor([[True, True], [True, False]])
    options = {"offset": 0.1, "weight": torch.tensor([[1.0, 2.0], [0.5, 1.0]]), "domain_mask": mask, "reduction": "sum"}
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
        {"domain_mask": torch.ones(2, 2)},
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
    mask = torch.tensor([[True, True], [True, False]])
    criterion = MPNCELoss(temperature=0.3, offset=0.2, domain_mask=mask, learnable=learnable)
    inputs = rows()
    expected = criterion(*inputs)
    other = MPNCELoss(domain_mask=~mask, learnable=learnable)
    file = io.BytesIO()
    torch.save(criterion.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    for copied in (other, copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert torch.equal(copied(*inputs), expected)


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
