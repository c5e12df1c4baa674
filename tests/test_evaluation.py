import math

from r2kd import data, evaluation, models, robustness

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_data import image_folder


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
    (row,) = evaluation.reliability_table(logits, labels, bins=10)
    assert row == {"bin": 8, "confidence": pytest.approx(0.75), "accuracy": pytest.approx(0.6), "samples": 100}


def test_calibration_error_by_hand():
    sure = torch.tensor([0.62, 0.64, 0.68, 0.96, 0.98])  # of 15 bins: the 10th twice, the 11th, the 15th twice
    labels = torch.tensor([0, 1, 0, 0, 1])  # class 0 is named
    logits = torch.stack((sure, 1 - sure), dim=1).log()
    expected = (2 * abs(0.63 - 0.5) + 1 * abs(0.68 - 1) + 2 * abs(0.97 - 0.5)) / 5
    assert evaluation.calibration_error(logits, labels) == pytest.approx(100 * expected, abs=1e-3)
    table = evaluation.reliability_table(logits, labels)
    assert [(row["bin"], row["samples"]) for row in table] == [(10, 2), (11, 1), (15, 2)]
    gaps = [row["samples"] * abs(row["confidence"] - row["accuracy"]) for row in table]
    assert sum(gaps) / 5 == pytest.approx(expected)


def calibrated():
    """Logits (20, 3) and labels: each class as often as the logits say."""
    counts = torch.tensor([[5, 3, 2], [1, 2, 7]])
    logits = (counts / 10).log().repeat_interleave(10, dim=0)
    return logits, torch.cat([torch.arange(3).repeat_interleave(count) for count in counts])


@given(st.floats(0.1, 15))
def test_the_temperature_of_scaled_calibrated_logits_is_the_scale(scale):
    logits, labels = calibrated()
    assert evaluation.fit_temperature(scale * logits, labels) == pytest.approx(scale, rel=1e-3)


def test_the_fitted_temperature_lowers_the_loss_and_names_the_same_classes():
    logits, labels = calibrated()
    logits = 3 * logits + torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    cooled = logits / evaluation.fit_temperature(logits, labels)
    assert evaluation.accuracy(cooled, labels) == evaluation.accuracy(logits, labels)
    losses = [evaluation.summary(scale * cooled, labels)["loss"] for scale in (0.9, 1, 1.1)]
    assert losses[1] == min(losses) < evaluation.summary(logits, labels)["loss"]


def test_a_temperature_beyond_the_bounds_is_the_bound_and_one_of_nothing_is_refused():
    logits, _ = calibrated()
    assert evaluation.fit_temperature(logits, logits.argmax(1)) == pytest.approx(0.05, rel=1e-3)
    assert evaluation.fit_temperature(logits, logits.argmin(1)) == pytest.approx(20, rel=1e-3)
    with pytest.raises(ValueError, match="no samples"):
        evaluation.fit_temperature(logits[:0], torch.arange(0))


@given(st.integers(5, 60), st.integers(1, 5), st.integers(0, 1000))
def test_ambiguity_bins_are_of_equal_size_and_sorted_by_entropy(samples, bins, seed):
    logits = 3 * torch.randn(samples, 4, generator=torch.Generator().manual_seed(seed))
    index, entropies = evaluation.ambiguity_bins(logits, bins), evaluation.entropy(logits.double())
    sizes = index.bincount()
    assert index.dtype == torch.int64 and len(sizes) == bins and sizes.max() - sizes.min() <= 1
    for i in range(1, bins):
        assert entropies[index == i - 1].max() <= entropies[index == i].min()


def test_of_equal_entropies_the_earlier_sample_is_the_surer():
    logits = torch.tensor([[0.0, 0], [2, 0], [0, 2], [0, 2], [0, 0]])
    assert evaluation.ambiguity_bins(logits, 2).tolist() == [1, 0, 0, 0, 1]
    assert evaluation.ambiguity_bins(torch.zeros(100, 3), 50).tolist() == [i // 2 for i in range(100)]


CONFUSION = torch.tensor(
    [[0.50, 0.40, 0.05, 0.05], [0.30, 0.40, 0.28, 0.02], [0.02, 0.30, 0.50, 0.18], [0.05, 0.05, 0.12, 0.78]]
)  # of each class's images: (0, 1) scores 0.70, (1, 2) 0.58, (2, 3) 0.30, (0, 3) 0.10


def test_confused_classes_are_the_worst_pairs_of_classes_that_are_free():
    labels = torch.tensor([3, 3, 3, 3, 3, 3, 0, 1, 2])  # a class of many images counts as one of few
    assert evaluation.confused_classes(CONFUSION[labels].log(), labels, 1).tolist() == [[0, 1]]
    assert evaluation.confused_classes(CONFUSION[labels].log(), labels, 2).tolist() == [[0, 1], [2, 3]]


def test_a_class_without_images_confuses_by_what_it_is_given_alone():
    labels = torch.tensor([0, 2, 3])  # (0, 1) scores 0.40, (1, 2) 0.30
    assert evaluation.confused_classes(CONFUSION[labels].log(), labels, 2).tolist() == [[0, 1], [2, 3]]
    labels = torch.tensor([2, 3])  # (1, 2) and (2, 3) score 0.30
    assert evaluation.confused_classes(CONFUSION[labels].log(), labels, 1).tolist() in ([[1, 2]], [[2, 3]])


@pytest.mark.parametrize("pairs", [0, 3])
def test_there_are_as_many_pairs_as_half_the_classes(pairs):
    with pytest.raises(ValueError, match=f"of 4 classes there are 1 to 2 disjoint pairs, not {pairs}"):
        evaluation.confused_classes(CONFUSION.log(), torch.arange(4), pairs)


def test_by_group_measures_each_group_alone():
    p = [[0.8, 0.2], [0.4, 0.6], [0.9, 0.1], [0.5, 0.5], [0.3, 0.7]]
    labels, groups = [0, 0, 1, 1, 1], [7, 2, 7, 7, 2]
    rows = evaluation.by_group(torch.tensor(p).log(), torch.tensor(labels), torch.tensor(groups))
    assert [(row["group"], row["samples"]) for row in rows] == [(2, 2), (7, 3)]
    assert [row["top1"] for row in rows] == pytest.approx([50, 100 / 3])  # of two equal logits the first is named
    expected = [-math.log(0.4 * 0.7) / 2, -math.log(0.8 * 0.1 * 0.5) / 3]
    assert [row["loss"] for row in rows] == pytest.approx(expected)


def test_predict_is_the_model_on_normalised_images_in_any_batch_size(digits, model):
    with torch.no_grad():
        expected = model(digits.normalize(digits.test.images))
    for batch_size in (7, 100):
        logits = evaluation.predict(model, digits.test, digits, batch_size=batch_size)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_every_model_meets_the_same_corrupted_images(digits):
    first = robustness.corrupted(digits.test, "gaussian_noise", 3)
    assert torch.equal(first.images, robustness.corrupted(digits.test, "gaussian_noise", 3).images)
    assert torch.equal(first.labels, digits.test.labels)
    for other in ({"severity": 4}, {"name": "speckle_noise"}, {"seed": 1}):
        given = {"name": "gaussian_noise", "severity": 3} | other
        assert not torch.equal(first.images, robustness.corrupted(digits.test, **given).images)


def test_each_severity_draws_its_own():
    grey = data.Split(torch.full((50, 3, 16, 16), 128, dtype=torch.uint8), torch.zeros(50, dtype=torch.int64))
    noise = [robustness.corrupted(grey, "gaussian_noise", severity).images.flatten() for severity in (1, 2)]
    assert abs(float(torch.stack(noise).float().corrcoef()[0, 1])) < 0.03


def test_images_are_corrupted_by_the_chunk_and_each_draws_its_own(digits, monkeypatch):
    sizes, corrupt = [], robustness.corrupt
    monkeypatch.setattr(
        robustness, "corrupt", lambda images, *given: sizes.append(len(images)) or corrupt(images, *given)
    )
    monkeypatch.setattr(robustness, "CHUNK", 40)
    alike = data.Split(digits.test.images[:1].repeat(100, 1, 1, 1), digits.test.labels)
    noisy = robustness.corrupted(alike, "gaussian_noise", 1)
    assert sizes == [40, 40, 20] and len(noisy.images.flatten(1).unique(dim=0)) == 100


def test_streamed_images_are_corrupted_as_those_in_memory(tmp_path):
    folder = image_folder(tmp_path / "numbers")
    memory, stream = (data.load(folder, splits=("test",), stream=stream).test for stream in (False, True))
    one, other = (robustness.corrupted(split, "motion_blur", 2) for split in (memory, stream))
    assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


def test_corrupted_images_can_be_saved_as_jpeg_as_tiny_imagenet_c_was(digits):
    plain, saved = (robustness.corrupted(digits.test, "fog", 3, as_jpeg=as_jpeg).images for as_jpeg in (False, True))
    assert torch.equal(saved, robustness.jpeg(plain, 85)) and not torch.equal(saved, plain)


def test_an_unknown_corruption_is_named(digits):
    with pytest.raises(ValueError, match="unknown corruption 'mist'; known: gaussian_noise, shot_noise, "):
        robustness.corrupted(digits.test, "mist", 1)


def test_a_prediction_is_in_float32_whatever_torch_is_allowed():
    digits = data.load("digits").subset(None, 20)
    allowed = []

    def model(images):
        allowed.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return images.mean(dim=(2, 3))

    before = torch.backends.cudnn.allow_tf32
    evaluation.predict(model, digits.test, digits)
    assert allowed == [(False, False)] and torch.backends.cudnn.allow_tf32 == before
