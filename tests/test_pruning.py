from r2kd import models, pruning

import pytest
import torch
from conftest import fill


@pytest.fixture
def teacher():
    return fill(models.create("resnet8", 10)).eval()


def images(count=6):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_the_smallest_weights_of_each_layer_go_and_the_teacher_stays_whole(teacher):
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    pruned = pruning.prune_l1(teacher, 0.3)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert set(pruned.state_dict()) == set(before)
    for (_, dense), (_, sparse) in zip(pruning.prunable_layers(teacher), pruning.prunable_layers(pruned), strict=True):
        gone = sparse.weight == 0
        assert int(gone.sum()) == round(0.3 * dense.weight.numel())
        assert dense.weight[gone].abs().max() <= sparse.weight[~gone].abs().min()
        assert torch.equal(dense.weight[~gone], sparse.weight[~gone])


def test_a_channels_last_model_prunes_alike(teacher):
    other = pruning.prune_l1(teacher, 0.5).state_dict()
    state = pruning.prune_l1(teacher.to(memory_format=torch.channels_last), 0.5).state_dict()
    assert all(torch.equal(value, other[name]) for name, value in state.items())


def test_rate_zero_changes_nothing(teacher):
    assert torch.equal(pruning.prune_l1(teacher, 0)(images()), teacher(images()))


@pytest.mark.parametrize("rate", [-0.1, 1, 10])
def test_a_rate_that_is_no_share_is_refused(teacher, rate):
    with pytest.raises(ValueError, match="0 <= rate < 1"):
        pruning.prune_l1(teacher, rate)


def test_the_sparsity_table_counts_every_prunable_weight(teacher):
    table = pruning.sparsity_table(pruning.prune_l1(teacher, 0.25))
    assert [row["layer"] for row in table] == [name for name, _ in pruning.prunable_layers(teacher)]
    assert table[0]["layer"] == "conv1" and table[-1] == table[-1] | {"layer": "fc", "kind": "Linear", "weights": 640}
    assert all(row["sparsity"] == pytest.approx(0.25, abs=0.01) and row["threshold"] > 0 for row in table)


def test_the_mixture_is_the_weighted_sum_of_logits(teacher):
    pruned = pruning.prune_l1(teacher, 0.4)
    mixed = pruning.MixedTeacher(teacher, pruned, 0.7, "running")
    expected = 0.7 * teacher(images()) + 0.3 * pruned.eval()(images())
    torch.testing.assert_close(mixed(images()), expected)
    torch.testing.assert_close(mixed.mix(teacher(images()), pruned(images())), expected)


def test_train_does_not_touch_the_teachers_modes(teacher):
    running = pruning.MixedTeacher(teacher, pruning.prune_l1(teacher, 0.1), 0.7, "running").train()
    batch = pruning.MixedTeacher(teacher, pruning.prune_l1(teacher, 0.1), 0.7, "batch").eval()
    assert not running.dense.training and not running.pruned.training
    assert not batch.dense.training and batch.pruned.training


def test_in_batch_mode_an_answer_depends_on_its_neighbours_and_statistics_drift(teacher):
    batch = pruning.MixedTeacher(teacher, pruning.prune_l1(teacher, 0.1), 0.7, "batch")
    running = pruning.MixedTeacher(teacher, pruning.prune_l1(teacher, 0.1), 0.7, "running")
    before = batch.pruned.bn1.running_mean.clone()
    assert not torch.allclose(batch(images())[0], batch(images()[:3])[0], rtol=1e-3)
    assert not torch.equal(batch.pruned.bn1.running_mean, before)
    torch.testing.assert_close(running(images())[0], running(images()[:3])[0], rtol=1e-4, atol=1e-4)


def test_the_mixture_gives_no_gradient_to_anything(teacher):
    assert not pruning.MixedTeacher(teacher, pruning.prune_l1(teacher, 0.1), 0.7, "running")(images()).requires_grad


@pytest.mark.parametrize("wrong", [{"pruned_batchnorm": "frozen"}, {"dense_weight": 1.2}])
def test_a_wrong_mixture_is_refused(teacher, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        pruning.MixedTeacher(teacher, teacher, **{"dense_weight": 0.7, "pruned_batchnorm": "running"} | wrong)
