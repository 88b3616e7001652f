import dataclasses
import time

import numpy as np
import pytest
import torch

from grading.blobs import blobs
from raydr import metrics, treatments
from raydr.config import Grader
from raydr.errors import UserError
from raydr.grading import sampling, training

TINY = Grader(backbone="test_resnet", px=32, steps=6, batch=10)
IMAGES, GRADES = blobs(100)
ROWS = np.arange(100)


def fit(grader=TINY, seed=0, **options):
    return training.train(grader, IMAGES, ROWS, GRADES, seed=seed, num_threads=1, **options)


def weights(trained):
    return torch.cat([p.detach().flatten() for p in trained.model.parameters()])


def test_a_grader_learns():
    # Without jitter: brightness is what makes these grades.
    grader = dataclasses.replace(TINY, steps=80, batch=20, augmentation="none", learning_rate=5e-3)
    trained = training.train(grader, IMAGES, ROWS, GRADES, seed=1, validation=(ROWS[:50], GRADES[:50]), num_threads=1)
    test, truth = blobs(100, seed=9)
    probabilities = training.predict(trained.model, test, ROWS)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert metrics.balanced_accuracy(metrics.confusion(truth, probabilities.argmax(1))) > 0.6
    assert trained.validation["balanced_accuracy"] > 0.8
    assert not trained.model.training


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_equal_seeds_give_equal_bits(precision):
    grader = dataclasses.replace(TINY, precision=precision, mixup=0.4, steps=4)
    one, same, other = (fit(grader, seed) for seed in (1, 1, 2))
    assert torch.equal(weights(one), weights(same))
    assert [e["loss"] for e in one.history] == [e["loss"] for e in same.history]
    assert not torch.equal(weights(one), weights(other))
    assert one.precision == precision


def test_dropout_is_seeded_and_the_process_left_alone():
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    threads = torch.get_num_threads()
    grader = Grader(backbone="test_efficientnet", px=32, steps=2, batch=10)
    one, same = fit(grader), fit(grader)
    assert torch.equal(weights(one), weights(same))
    assert torch.equal(torch.rand(1), expected)
    assert torch.get_num_threads() == threads


def test_the_number_of_steps_does_not_depend_on_the_data():
    seen = []
    for rows in (ROWS[:15], ROWS):
        training.train(TINY, IMAGES, rows, GRADES[: len(rows)], seed=0, on_event=seen.append, num_threads=1)
    steps = [event["step"] for event in seen if event["event"] == "train"]
    assert steps == [1, 2, 3, 4, 5, 6] * 2


class Recording:
    """The images, remembering which were asked for."""

    def __init__(self):
        self.asked = []

    def __getitem__(self, positions):
        self.asked.append(np.array(positions))
        return IMAGES[positions]


def test_each_step_is_one_gather_of_its_share_per_grade():
    images = Recording()
    training.train(TINY, images, ROWS, GRADES, seed=0, num_threads=1)
    assert [len(batch) for batch in images.asked] == [10] * 6
    for batch in images.asked:
        assert np.bincount(GRADES[batch]).tolist() == [2, 2, 2, 2, 2]
    expected = sampling.draws(GRADES, "balanced", 60, seed=0)
    assert (np.concatenate(images.asked) == expected).all()


def test_the_paper_sampler_weighs_by_the_real_counts():
    """Doubling grade 3 with synthetic images doubles its draws; the strict sampler leaves them at a fifth."""
    rows = np.concatenate([ROWS, ROWS[GRADES == 3]])
    grades = GRADES[rows]
    synthetic = np.arange(len(rows)) >= 100
    share = {}
    for sampler in ("paper", "balanced"):
        images = Recording()
        grader = dataclasses.replace(TINY, sampler=sampler, steps=60)
        grader = dataclasses.replace(grader, backbone="test_resnet", augmentation="none")
        training.train(grader, images, rows, grades, seed=0, synthetic=synthetic, num_threads=1)
        share[sampler] = (GRADES[np.concatenate(images.asked)] == 3).mean()
    assert share["balanced"] == pytest.approx(0.2)
    assert share["paper"] == pytest.approx(2 / 6, abs=0.06)


def test_validation_keeps_the_best_weights():
    grader = dataclasses.replace(TINY, steps=40, batch=20, augmentation="none", learning_rate=2e-2, evaluate_every=5)
    trained = fit(grader, validation=(ROWS, GRADES))
    events = [event for event in trained.history if event["event"] == "validation"]
    assert [event["step"] for event in events] == list(range(5, 41, 5))
    scores = [event["balanced_accuracy"] for event in events]
    assert len(set(scores)) > 1
    assert trained.step == events[int(np.argmax(scores))]["step"]
    assert trained.validation["balanced_accuracy"] == max(scores)
    assert training.evaluate(trained.model, IMAGES, ROWS, GRADES) == trained.validation


def test_validating_does_not_change_the_training():
    plain = fit(dataclasses.replace(TINY, steps=4))
    watched = fit(dataclasses.replace(TINY, steps=4), validation=(ROWS, GRADES))
    assert torch.equal(weights(plain), weights(watched))


def test_images_of_another_side_are_resized():
    grader = dataclasses.replace(TINY, px=24, steps=2)
    trained = fit(grader)
    assert training.predict(trained.model, IMAGES, ROWS[:3]).shape == (3, 5)


def test_predictions_do_not_depend_on_the_batch():
    trained = fit(dataclasses.replace(TINY, steps=2))
    one, other = (training.predict(trained.model, IMAGES, ROWS, batch) for batch in (100, 7))
    np.testing.assert_allclose(one, other, atol=1e-5)
    assert training.predict(trained.model, IMAGES, ROWS[:0]).shape == (0, 5)


@pytest.mark.parametrize("loss", [name for name in treatments.LOSSES if name != "ce"])
def test_every_loss_trains(loss):
    grader = dataclasses.replace(TINY, loss=loss, sampler="instance", steps=3)
    trained = fit(grader)
    assert all(np.isfinite(event["loss"]) for event in trained.history)
    assert torch.isfinite(weights(trained)).all()


def test_posthoc_adjustment_is_in_the_trained_model():
    rows = np.concatenate([ROWS, np.repeat(ROWS[GRADES == 0], 4)])
    grader = dataclasses.replace(TINY, loss="logit_adjustment_post", sampler="instance", loss_parameter=0.5)
    trained = training.train(grader, IMAGES, rows, GRADES[rows], seed=0, num_threads=1)
    plain = dataclasses.replace(TINY, sampler="instance")
    same = training.train(plain, IMAGES, rows, GRADES[rows], seed=0, num_threads=1)
    assert torch.equal(weights(trained), weights(same))  # trained by plain cross entropy
    expected = 0.5 * np.log(np.array([100, 20, 20, 20, 20]) / 180)
    np.testing.assert_allclose(trained.model.shift.numpy(), expected, rtol=1e-5)
    p, q = (training.predict(t.model, IMAGES, ROWS) for t in (trained, same))
    adjusted = q / np.exp(expected)
    np.testing.assert_allclose(p, adjusted / adjusted.sum(1, keepdims=True), rtol=1e-3, atol=1e-6)


def test_soft_labels_touch_synthetic_images_only():
    soft = np.full((4, 5), 0.2, np.float32)
    soft[1] = np.nan  # real images carry no ensemble probabilities
    synthetic = np.array([True, False, True, False])
    grader = dataclasses.replace(TINY, soft_labels=0.5)
    targets = training.mixed_targets(grader, np.array([1, 2, 3, 4]), soft, synthetic)
    np.testing.assert_allclose(targets[0], [0.1, 0.6, 0.1, 0.1, 0.1], rtol=1e-6)
    np.testing.assert_array_equal(targets[[1, 3]], np.eye(5, dtype=np.float32)[[2, 4]])
    with pytest.raises(UserError, match="score them first"):
        training.mixed_targets(grader, np.array([1]), None, None)


def test_soft_labels_reach_the_training():
    soft = np.full((100, 5), 0.2, np.float32)
    synthetic = GRADES == 3
    grader = dataclasses.replace(TINY, soft_labels=1.0, steps=3)
    one = fit(grader, soft_targets=soft, synthetic=synthetic)
    other = fit(dataclasses.replace(grader, soft_labels=0.0), soft_targets=soft, synthetic=synthetic)
    assert not torch.equal(weights(one), weights(other))


def test_mixup_mixes_images_and_targets_by_one_share(monkeypatch):
    """Zhang et al. 2018, eq. 1-2, in NumPy."""
    before, mixed, targets = [], [], []
    grader = dataclasses.replace(TINY, mixup=0.4, steps=2, precision="fp32")
    augment, make_loss, both = training.pixels.augment, training.losses.make_loss, training.GradingModel.both

    def noted(x, kind, noise):
        before.append(augment(x, kind, noise).clone())
        return before[-1]

    def loss_of(*arguments):
        loss = make_loss(*arguments)
        return lambda logits, y, progress: targets.append(y.numpy().copy()) or loss(logits, y, progress)

    monkeypatch.setattr(training.pixels, "augment", noted)
    monkeypatch.setattr(training.losses, "make_loss", loss_of)
    monkeypatch.setattr(training.GradingModel, "both", lambda self, x: mixed.append(x.clone()) or both(self, x))
    fit(grader, seed=3)
    rng = np.random.default_rng(training.seed_of("grader-mixup", 3))
    drawn = sampling.draws(GRADES, "balanced", 20, 3).reshape(2, 10)
    for step in range(2):
        share, partner = rng.beta(0.4, 0.4), rng.permutation(10)
        x, y = before[step].numpy(), np.eye(5, dtype=np.float32)[GRADES[drawn[step]]]
        np.testing.assert_allclose(mixed[step].numpy(), share * x + (1 - share) * x[partner], atol=1e-5)
        np.testing.assert_allclose(targets[step], share * y + (1 - share) * y[partner], atol=1e-6)
        assert 0 < share < 1
        assert (partner != np.arange(10)).any()


def test_lanet_trains_all_of_its_parts():
    grader = dataclasses.replace(TINY, head="lanet", optimizer="sgd", learning_rate=0.05, augmentation="paper", steps=3)
    trained = fit(grader)
    start = training.build(grader, seed=0).net
    for name in ("fc_clf", "reduce_dim"):
        assert not torch.equal(getattr(trained.model.net, name).weight, getattr(start, name).weight)
    assert trained.model.net.sigma1.item() != 0
    assert trained.model.net.sigma2.item() != 0


def test_learning_rates():
    sgd = dataclasses.replace(TINY, optimizer="sgd", learning_rate=1e-3, steps=100)
    assert training.learning_rate(sgd, 0) == 1e-3
    assert training.learning_rate(sgd, 50) == pytest.approx(1e-3 * 0.5**0.9)
    adamw = dataclasses.replace(TINY, learning_rate=1e-3, steps=100)  # five steps of warm-up
    assert training.learning_rate(adamw, 0) == pytest.approx(2e-4)
    assert training.learning_rate(adamw, 5) == pytest.approx(1e-3)
    assert training.learning_rate(adamw, 99) < 1e-6


def test_decay_spares_biases_and_norms():
    model = training.build(TINY)
    optimizer = training.make_optimizer(TINY, model)
    spared = optimizer.param_groups[1]
    assert spared["weight_decay"] == 0
    assert all(p.ndim <= 1 for p in spared["params"])
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_refused_combinations_are_refused_before_training():
    with pytest.raises(UserError, match="balanced_softmax"):
        fit(dataclasses.replace(TINY, loss="balanced_softmax"))


def test_what_is_waited_for_images_is_told():
    class Slow:
        def __getitem__(self, positions):
            time.sleep(0.2)
            return IMAGES[positions]

    slow = training.train(TINY, Slow(), ROWS, GRADES, seed=0, num_threads=1)
    waits = [event["waited_seconds"] for event in slow.history]
    # The first gather hides behind nothing; how much of the others does is up to the machine.
    assert 0.2 <= waits[0] <= waits[-1] < slow.seconds
    assert waits == sorted(waits)


def test_an_error_while_gathering_surfaces():
    with pytest.raises(IndexError):
        training.train(TINY, IMAGES, ROWS + 50, GRADES, seed=0, num_threads=1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_equal_bits_on_a_gpu():
    one, same = fit(device="cuda"), fit(device="cuda")
    assert torch.equal(weights(one), weights(same))
