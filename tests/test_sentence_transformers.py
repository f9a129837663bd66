"""sentence-transformers' ranking losses and ours: the same values and gradients, alone, across ranks, in its trainer."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

pytest.importorskip("sentence_transformers", reason="in the extra `test`")

from sentence_transformers import SentenceTransformer, util
from sentence_transformers.sentence_transformer import losses, modules

from tests.ranks import ranks
from uniclip_kernels.integrations import sentence_transformers as ours

NAMES = ["MultipleNegativesRankingLoss", "CachedMultipleNegativesRankingLoss"]
WORDS = [f"w{i}" for i in range(50)]
SYMMETRIC = dict(directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction")

of_names = pytest.mark.parametrize("name", NAMES)


def make_model() -> SentenceTransformer:
    """Means of random word vectors, dropout, a layer."""
    torch.manual_seed(0)
    words = modules.WordEmbeddings(
        modules.tokenizer.WhitespaceTokenizer(WORDS, stop_words=[]), torch.randn(50, 8).numpy(), True
    )
    layers = [words, modules.Pooling(8), modules.Dropout(0.2), modules.Dense(8, 6)]
    return SentenceTransformer(modules=layers, device="cpu").double()


def make_texts(columns: int, n: int, seed: int = 1) -> list[list[str]]:
    generator = torch.Generator().manual_seed(seed)

    def text() -> str:
        picked = torch.randint(50, (int(torch.randint(2, 6, (), generator=generator)),), generator=generator)
        return " ".join(WORDS[i] for i in picked)

    return [[text() for _ in range(n)] for _ in range(columns)]


def step(loss, texts: list[list[str]]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss and the gradients of all parameters, with the same dropout each time."""
    torch.manual_seed(2)
    loss.model.zero_grad()
    found = loss([loss.model.preprocess(column) for column in texts], None)
    found.backward()
    return found.detach(), [p.grad.clone() for p in loss.model.parameters()]


def assert_alike(found, expected):
    torch.testing.assert_close(found[0], expected[0], rtol=1e-10, atol=0)
    for pair in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(*pair, rtol=1e-9, atol=1e-11)
        assert pair[0].count_nonzero() > 0


@pytest.mark.parametrize("columns", [2, 4], ids=["pairs", "hard negatives"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(scale=7.0, similarity_fct=util.dot_score),
        dict(directions=("query_to_doc", "query_to_query")),
        SYMMETRIC,
        dict(hardness_mode="hard_negatives", hardness_strength=0.0),
    ],
    ids=["default", "dot", "queries too", "symmetric", "no hardness"],
)
@of_names
def test_is_the_loss_of_sentence_transformers(name, options, columns):
    model, texts = make_model(), make_texts(columns, 11)
    options = options | (dict(mini_batch_size=4) if name.startswith("Cached") else {})
    assert_alike(*(step(getattr(package, name)(model, **options), texts) for package in (ours, losses)))


@of_names
def test_in_matryoshka_loss(name):
    model, texts = make_model(), make_texts(3, 11)
    found, expected = (
        step(losses.MatryoshkaLoss(model, getattr(package, name)(model), [6, 3]), texts) for package in (ours, losses)
    )
    assert_alike(found, expected)


@pytest.mark.parametrize("options", [{}, SYMMETRIC], ids=["default", "symmetric"])
@of_names
def test_duplicates_are_no_negatives(name, options):
    """Queries 0 and 1 have one document, documents 1 and 2 one query; one hard negative is document 4, one is query 5."""
    texts = make_texts(3, 8)
    queries, documents, hard = texts
    documents[1], queries[2], hard[3], hard[6] = documents[0], queries[1], documents[4], queries[5]
    model = make_model().eval()
    loss = getattr(ours, name)(model, exclude_duplicates=True, **options)
    found = step(loss, texts)
    q, d, h = (
        torch.nn.functional.normalize(model(model.preprocess(column))["sentence_embedding"], dim=1) for column in texts
    )
    group = torch.tensor([0, 0, 0, 3, 4, 5, 6, 7])
    of_hard = torch.tensor([-1, -1, -1, 4, -1, -1, 5, -1])
    eye = torch.eye(8, dtype=torch.bool)
    pairs = (20 * q @ d.T).masked_fill((group[:, None] == group) & ~eye, -torch.inf)
    more = (20 * q @ h.T).masked_fill(group[:, None] == of_hard, -torch.inf)
    expected = -torch.cat([pairs, more], 1).log_softmax(1).diagonal().mean()
    if options:
        expected = (expected - pairs.T.log_softmax(1).diagonal().mean()) / 2
    model.zero_grad()
    expected.backward()
    assert_alike(found, (expected, [p.grad for p in model.parameters()]))


def test_texts_are_equal_whatever_the_padding():
    left = dict(input_ids=torch.tensor([[0, 5, 6], [7, 8, 9]]), attention_mask=torch.tensor([[0, 1, 1], [1, 1, 1]]))
    right = dict(input_ids=torch.tensor([[1, 0], [5, 6]]), attention_mask=torch.tensor([[1, 0], [1, 1]]))
    zero = dict(input_ids=torch.tensor([[1, 0], [5, 0]]), attention_mask=torch.tensor([[1, 1], [1, 0]]))
    assert ours._exclusions([left, right]).tolist() == [0, 0, 0, 0]
    assert ours._exclusions([left, zero]).tolist() == [0, 1, 0, 1]
    assert ours._exclusions([zero, zero, right]).tolist() == [0, 1, 0, 1, -1, -1]


def step_on_rank(package_name: str, name: str) -> tuple[float, list[torch.Tensor]]:
    """The means over ranks of the losses and of the gradients."""
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    texts = [column[rank::size] for column in make_texts(3, 12)]
    package = {"ours": ours, "theirs": losses}[package_name]
    found, gradients = step(getattr(package, name)(make_model().eval(), gather_across_devices=True), texts)
    for x in (found, *gradients):
        torch.distributed.all_reduce(x)
    return found / size, [g / size for g in gradients]


def test_across_ranks():
    with ranks(2) as run:
        for name in NAMES:
            (found, other), (expected, _) = (run(step_on_rank, package, name) for package in ("ours", "theirs"))
            assert_alike(found, expected)
            assert_alike(other, expected)
    assert_alike(found, step(ours.MultipleNegativesRankingLoss(make_model().eval()), make_texts(3, 12)))


@of_names
def test_in_the_trainer(name, tmp_path):
    datasets = pytest.importorskip("datasets", reason="in the extra `test`")
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    data = datasets.Dataset.from_dict(dict(zip(["query", "document", "negative"], make_texts(3, 24), strict=True)))
    trained = []
    for package in (ours, losses):
        model = make_model()
        arguments = SentenceTransformerTrainingArguments(
            tmp_path,
            num_train_epochs=1,
            per_device_train_batch_size=8,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
        )
        loss = getattr(package, name)(model)
        trainer = SentenceTransformerTrainer(model, arguments, train_dataset=data, loss=loss)
        before = [p.detach().clone() for p in model.parameters()]
        torch.manual_seed(3)
        trained.append((torch.tensor(trainer.train().training_loss), list(model.parameters())))
        assert all((p != q).any() for p, q in zip(before, model.parameters(), strict=True))
    (found, weights), (expected, their_weights) = trained
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(weights, their_weights, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(similarity_fct=util.euclidean_sim), "similarity_fct must be cos_sim or dot_score"),
        (dict(hardness_mode="all_negatives", hardness_strength=1.0), "hardness_mode must be None, got 'all_negatives'"),
        (dict(directions=("query_to_doc", "doc_to_query")), "directions must be query_to_doc, .* 'joint'"),
        (dict(directions=("query_to_doc", "query_to_query", "doc_to_doc")), "directions must be query_to_doc"),
        (dict(exclude_duplicates=True, gather_across_devices=True), "exclude_duplicates must be False with gather"),
    ],
)
@of_names
def test_what_cannot_be_honoured_is_an_error(name, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(ours, name)(make_model(), **options)


def test_duplicates_need_tokens():
    features = [dict(input_ids=torch.arange(4)), dict(input_ids=torch.arange(4))]
    with pytest.raises(ValueError, match="exclude_duplicates needs input_ids and attention_mask"):
        ours.MultipleNegativesRankingLoss(make_model(), exclude_duplicates=True)(features, None)
