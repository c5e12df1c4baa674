from r2kd import data, models, pruning
from r2kd.augmentation import AUGMENTATIONS
from r2kd.batch import Batch, Teachers, epoch_batches
from r2kd.config import CLEAN, DistillConfig, TeacherConfig

import pytest
import torch

TAUGHT = {"model": "resnet8", "teacher": TeacherConfig.of("resnet8")}
RUNNING = DistillConfig.of(**TAUGHT, pruned_batchnorm="running")
BATCH = DistillConfig.of(**TAUGHT)
DENSE = DistillConfig.of(**TAUGHT, pruning_rate=0.0)
MIXUP, CUTMIX, CUTMIXPICK = (AUGMENTATIONS.choose(name) for name in ("mixup", "cutmix", "cutmixpick"))


@pytest.fixture
def dense():
    return models.create("resnet8", 10).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits").subset(150, None)


def views(count=4):
    drawn = torch.Generator().manual_seed(0)
    return {view: torch.randn(count, 3, 16, 16, generator=drawn) for view in (CLEAN, CUTMIX)}


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("config", [RUNNING, BATCH, DENSE])
def test_the_teachers_answer_as_the_mixture_does_to_each_view_alone(config, plain, dense):
    given = views()
    shared = Batch(given, torch.zeros(4), Teachers(dense, plain=plain))
    mixed = pruning.MixedTeacher(dense, pruning.prune_l1(dense, 0.1), 0.7, config["pruned_batchnorm"])
    for view, images in given.items():
        logits = shared.teacher_logits(view, config)
        expected = mixed(images) if config.pruned else dense(images)
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
        assert not logits.is_inference() and not logits.requires_grad


def test_each_answer_is_computed_once_for_all_arms(dense, monkeypatch):
    asked = []
    answer = Teachers.logits
    monkeypatch.setattr(Teachers, "logits", lambda *given: asked.append(given[1]) or answer(*given))
    shared = Batch(views(), torch.zeros(4), Teachers(dense))
    for config in (RUNNING, BATCH, DENSE, RUNNING, BATCH, DENSE):
        for view in shared.images:
            shared.teacher_logits(view, config)
    shared.dense_logits(shared.images[CLEAN])
    assert len(asked) == 6 and len(set(asked)) == 3
    shared.dense_logits(torch.zeros(2, 3, 16, 16))
    assert len(asked) == 7


def test_a_view_draws_the_same_whatever_other_views_there_are(digits, dense):
    wanted = MIXUP
    recipe = {"seed": 0, "epoch": 2, "batch_size": 64}
    alone = epoch_batches(digits, {wanted}, None, **recipe)
    among = epoch_batches(digits, {CLEAN, CUTMIX, wanted, CUTMIXPICK}, Teachers(dense), **recipe)
    for first, second in zip(alone, among, strict=True):
        assert torch.equal(first.target, second.target)
        assert all(torch.equal(first.images[view], second.images[view]) for view in (CLEAN, wanted))
    assert set(second.images) == {CLEAN, CUTMIX, wanted, CUTMIXPICK}


def test_what_may_be_captured_is_answered_without_gradients_and_outside_of_inference_mode(dense):
    """There a capture leaves torch's generator on the GPU unusable to the student's (torch 2.6 to 2.10)."""
    modes = []
    dense.register_forward_hook(lambda *_: modes.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled())))
    teachers = Teachers(dense, plain=True)
    for config in (RUNNING, BATCH):
        shared = Batch(views(), torch.zeros(4), teachers)
        for view in shared.images:
            shared.teacher_logits(view, config)
    assert modes and set(modes) == {(False, False)}
