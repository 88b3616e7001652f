import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from raydr import treatments
from raydr.config import Grader
from raydr.errors import UserError
from raydr.grading import losses

LOGITS = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0, 1.0]])
GRADES = torch.tensor([0, 4])
TARGETS = F.one_hot(GRADES, 5).float()
COUNTS = np.array([870, 82, 620, 26, 121])
# By hand: softmax of the two rows at their targets.
P0 = math.e / (math.e + 4)
P1 = math.e / (math.e**2 + math.e + 3)


def make(loss: str, counts=COUNTS, sampler="instance", **settings):
    return losses.make_loss(Grader(loss=loss, sampler=sampler, **settings), counts)


def test_cross_entropy():
    assert make("ce")(LOGITS, TARGETS).item() == pytest.approx(-(math.log(P0) + math.log(P1)) / 2, rel=1e-6)


def test_soft_targets():
    soft = torch.tensor([[0.7, 0.3, 0, 0, 0], [0, 0.25, 0, 0, 0.75]])
    log_p = F.log_softmax(LOGITS, 1)
    expected = -(0.7 * log_p[0, 0] + 0.3 * log_p[0, 1] + 0.25 * log_p[1, 1] + 0.75 * log_p[1, 4]) / 2
    assert make("ce")(LOGITS, soft).item() == pytest.approx(expected.item(), rel=1e-6)


def test_inverse_frequency():
    w0, w1 = 1 / 870, 1 / 121
    expected = -(w0 * math.log(P0) + w1 * math.log(P1)) / (w0 + w1)
    assert make("inverse_frequency")(LOGITS, TARGETS).item() == pytest.approx(expected, rel=1e-5)


def test_class_balanced():
    w0, w1 = ((1 - 0.99) / (1 - 0.99**n) for n in (870, 121))
    expected = -(w0 * math.log(P0) + w1 * math.log(P1)) / (w0 + w1)
    assert make("class_balanced", loss_parameter=0.99)(LOGITS, TARGETS).item() == pytest.approx(expected, rel=1e-5)
    # beta -> 1 is inverse frequency, beta -> 0 is no weighting (Cui et al. 2019, section 4.1).
    np.testing.assert_allclose(
        losses.class_balanced_weights(COUNTS, 1 - 1e-9), losses.inverse_frequency_weights(COUNTS), rtol=1e-5
    )
    np.testing.assert_allclose(losses.class_balanced_weights(COUNTS, 1e-9), np.ones(5), rtol=1e-6)


def test_weighted_losses_equal_torch_on_hard_targets():
    weights = torch.tensor(losses.class_balanced_weights(COUNTS, 0.999), dtype=torch.float32)
    reference = torch.nn.CrossEntropyLoss(weight=weights)(LOGITS, GRADES)
    assert losses.cross_entropy(LOGITS, TARGETS, weights).item() == pytest.approx(reference.item(), rel=1e-6)


def test_focal():
    expected = -((1 - P0) ** 2 * math.log(P0) + (1 - P1) ** 2 * math.log(P1)) / 2
    assert make("focal", sampler="balanced")(LOGITS, TARGETS).item() == pytest.approx(expected, rel=1e-5)
    expected = -((1 - P0) ** 3 * math.log(P0) + (1 - P1) ** 3 * math.log(P1)) / 2
    assert make("focal", loss_parameter=3.0)(LOGITS, TARGETS).item() == pytest.approx(expected, rel=1e-5)


def test_focal_gradient_stays_finite_at_certainty():
    logits = torch.tensor([[200.0, 0, 0, 0, 0]], requires_grad=True)
    losses.focal(logits, F.one_hot(torch.tensor([0]), 5).float(), 0.5).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_ldam():
    margins = losses.ldam_margins(COUNTS)
    assert margins[3] == pytest.approx(0.5)  # the rarest
    assert margins[0] == pytest.approx(0.5 * (26 / 870) ** 0.25)
    # scale x cosine in, scale x (cosine - margin) at the target.
    cosines = LOGITS / 30
    shifted = cosines.clone()
    shifted[0, 0] -= margins[0]
    shifted[1, 4] -= margins[4]
    expected = F.cross_entropy(30 * shifted, GRADES)
    assert make("ldam")(LOGITS, TARGETS).item() == pytest.approx(expected.item(), rel=1e-5)


def test_ldam_drw_defers_its_weights():
    loss = make("ldam_drw")
    assert loss(LOGITS, TARGETS, 0.79).item() == make("ldam")(LOGITS, TARGETS).item()
    margins = torch.tensor(losses.ldam_margins(COUNTS), dtype=torch.float32)
    weights = torch.tensor(losses.class_balanced_weights(COUNTS, 0.9999), dtype=torch.float32)
    shifted = LOGITS - 30 * margins * TARGETS
    expected = F.cross_entropy(shifted, GRADES, weight=weights)
    assert loss(LOGITS, TARGETS, 0.8).item() == pytest.approx(expected.item(), rel=1e-6)


def test_balanced_softmax():
    n = torch.tensor(COUNTS, dtype=torch.float64)
    unnormalised = n * LOGITS.double().exp()
    p = unnormalised / unnormalised.sum(1, keepdim=True)  # Ren et al. 2020, eq. 4
    expected = -(p[0, 0].log() + p[1, 4].log()) / 2
    assert make("balanced_softmax")(LOGITS, TARGETS).item() == pytest.approx(expected.item(), rel=1e-5)
    assert make("logit_adjustment", loss_parameter=1.0)(LOGITS, TARGETS).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_logit_adjustment_tau():
    prior = np.log(COUNTS / COUNTS.sum())
    expected = F.cross_entropy(LOGITS + 1.5 * torch.tensor(prior, dtype=torch.float32), GRADES)
    got = make("logit_adjustment", loss_parameter=1.5)(LOGITS, TARGETS)
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)


def test_posthoc_adjustment_divides_by_the_prior():
    """softmax of the adjusted logits is p(y|x) / prior(y), normalised (Menon et al. 2021, eq. 9)."""
    p = F.softmax(LOGITS.double(), 1)
    expected = p / torch.tensor(COUNTS / COUNTS.sum())
    expected /= expected.sum(1, keepdim=True)
    got = F.softmax(LOGITS.double() - torch.from_numpy(losses.log_prior(COUNTS)), 1)
    torch.testing.assert_close(got, expected)


def test_absent_grades_neither_weigh_nor_break():
    counts = np.array([10, 0, 5, 0, 1])
    assert losses.inverse_frequency_weights(counts)[[1, 3]].tolist() == [0, 0]
    assert losses.class_balanced_weights(counts, 0.999)[[1, 3]].tolist() == [0, 0]
    assert losses.ldam_margins(counts)[[1, 3, 4]].tolist() == [0, 0, 0.5]
    for name in treatments.LOSSES:
        assert torch.isfinite(make(name, counts)(LOGITS, TARGETS, 0.9)), name


def test_joint_loss_of_lanet():
    s1, s2 = torch.tensor(0.5, requires_grad=True), torch.tensor(-1.0, requires_grad=True)
    loss = losses.joint(torch.tensor(0.3), torch.tensor(0.8), s1, s2)
    assert loss.item() == pytest.approx(math.exp(-0.5) * 0.3 + 0.5 + math.exp(1) * 0.8 - 1.0, rel=1e-6)
    loss.backward()
    assert s1.grad is not None
    assert s1.grad.item() == pytest.approx(1 - math.exp(-0.5) * 0.3, rel=1e-6)
    torch.testing.assert_close(
        losses.binary_targets(torch.tensor([[1.0, 0, 0, 0, 0], [0.2, 0.8, 0, 0, 0]])),
        torch.tensor([[1.0, 0], [0.2, 0.8]]),
    )


@pytest.mark.parametrize("loss", treatments.PRIOR_BASED)
@pytest.mark.parametrize("sampler", ["balanced", "sqrt", "paper"])
def test_a_prior_based_loss_on_corrected_draws_is_refused_by_name(loss, sampler):
    with pytest.raises(UserError, match=f"(?s){loss}.*{sampler}.*instance"):
        treatments.check_combination(Grader(loss=loss, sampler=sampler))
    treatments.check_combination(Grader(loss=loss, sampler="instance"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss": "focla"}, "unknown grader.loss 'focla'"),
        ({"loss": "class_balanced", "loss_parameter": 1.5, "sampler": "instance"}, "beta between 0 and 1"),
        ({"loss": "focal", "loss_parameter": -1.0}, "positive parameter"),
        ({"loss": "ce", "loss_parameter": 2.0}, "has no parameter"),
    ],
)
def test_refusals(settings, words):
    with pytest.raises(UserError, match=words):
        losses.make_loss(Grader(**settings), COUNTS)
