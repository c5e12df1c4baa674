import math

from r2kd import data, evaluation, models, robustness
from r2kd.randomness import generator

import pytest
import torch


@pytest.fixture(scope="module")
def digits():
    return data.load("digits").subset(10, 100)


@pytest.fixture(scope="module")
def model():
    return models.create("resnet8", 10).eval()


def test_accuracy_counts_labels_among_the_k_highest():
    logits = torch.tensor([[3.0, 2, 1, 0], [0, 1, 2, 3], [0, 3, 2, 1]])
    labels = torch.tensor([0, 2, 3])
    assert evaluation.accuracy(logits, labels) == pytest.approx(100 / 3)
    assert evaluation.accuracy(logits, labels, 2) == pytest.approx(200 / 3)
    assert evaluation.accuracy(logits, labels, 5) == 100


def test_entropy_and_confidence_of_certain_and_undecided_answers():
    logits = torch.tensor([[0.0, 0, 0, 0], [1e4, 0, 0, 0]])
    assert evaluation.entropy(logits).tolist() == pytest.approx([math.log(4), 0])
    assert evaluation.confidence(logits).tolist() == pytest.approx([0.25, 1])


def test_agreement_is_of_the_named_classes():
    logits = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]])
    assert evaluation.agreement(logits, 5 * logits) == 100
    assert evaluation.agreement(logits, logits.roll(1, 0)) == 0


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    logits = torch.tensor([[math.log(3.0), 0.0]]).repeat(100, 1)  # sure by 0.75
    labels = (torch.arange(100) >= 60).long()  # right in 60
    assert evaluation.calibration_error(logits, labels) == pytest.approx(15, abs=1e-3)
    (row,) = evaluation.reliability_table(logits, labels)
    assert row == {"confidence": pytest.approx(0.75), "accuracy": pytest.approx(0.6), "samples": 100}


def test_predict_is_the_model_on_normalised_images_in_any_batch_size(digits, model):
    with torch.no_grad():
        expected = model(digits.normalize(digits.test.images))
    for batch_size in (7, 100):
        logits = evaluation.predict(model, digits.test, digits, batch_size=batch_size)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", robustness.CORRUPTIONS)
def test_a_corruption_grows_with_its_severity_and_is_nothing_at_zero(name, digits):
    images = digits.normalize(digits.test.images)
    changes = []
    corruption = robustness.CORRUPTIONS.choose(name)
    for severity in (0, *corruption.entry.severities):
        corrupted = corruption(images=images, severity=severity, generator=generator(0, name))
        assert corrupted.shape == images.shape
        changes.append(float((corrupted - images).norm()))
    assert changes[0] < 1e-3 and changes == sorted(changes) and changes[1] > 0


def test_noise_has_the_standard_deviation_that_it_says(digits):
    noisy = robustness.noise(digits.normalize(digits.test.images), 0.8, generator(0, "noise"))
    assert float((noisy - digits.normalize(digits.test.images)).std()) == pytest.approx(0.8, rel=0.01)


def test_every_model_meets_the_same_corrupted_images(digits, model):
    first = robustness.corrupted_logits(model, digits, "noise", 0.8)
    assert torch.equal(first, robustness.corrupted_logits(model, digits, "noise", 0.8))
    assert not torch.equal(first, robustness.corrupted_logits(model, digits, "noise", 0.8, seed=1))


def test_the_robustness_table_has_a_row_for_each_severity_and_the_clean_images(digits, model):
    clean = evaluation.predict(model, digits.test, digits)
    table = robustness.robustness_table(model, digits, clean)
    assert len(table) == sum(1 + len(entry.severities) for entry in robustness.CORRUPTIONS.values())
    top1 = evaluation.accuracy(clean, digits.test.labels)
    assert [row["top1"] for row in table if row["severity"] == 0] == [top1] * 3


def test_an_unknown_corruption_is_named(digits, model):
    with pytest.raises(ValueError, match="unknown corruption 'fog'; known: noise, blur, contrast"):
        robustness.corrupted_logits(model, digits, "fog", 1)


def test_a_prediction_is_in_float32_whatever_torch_is_allowed():
    digits = data.load("digits").subset(None, 20)
    allowed = []

    def model(images):
        allowed.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return images.mean(dim=(2, 3))

    before = torch.backends.cudnn.allow_tf32
    evaluation.predict(model, digits.test, digits)
    assert allowed == [(False, False)] and torch.backends.cudnn.allow_tf32 == before
