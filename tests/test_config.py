"""The address of a run: what acts of its configuration, and nothing else."""

import dataclasses
import json
import os

from r2kd import augmentation, config, experiments, fidelity, methods, parts, runs, training
from r2kd.config import DistillConfig, TeacherConfig

import pytest
import torch
from PIL import Image

SMALL = {"train_images": 64, "test_images": 50, "epochs": 1, "image_size": 16, "device": "cpu"}


@pytest.fixture(scope="module")
def images():
    return training.open_data(TeacherConfig.of("resnet8", **SMALL))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, images):
    made = TeacherConfig.of("resnet8", **SMALL, runs_root=str(tmp_path_factory.mktemp("teacher")))
    training.train_teacher(made, images, progress=False)
    return made


def student(teacher, method="r2kd", **settings):
    return DistillConfig.of("resnet8", teacher=teacher, method=method, **SMALL | settings)


def address(made, images):
    return made.run(images).address


def test_cross_entropy_does_not_know_of_a_teacher_a_pruning_or_a_temperature(teacher, images):
    plain = address(student(teacher, "ce"), images)
    others = [
        DistillConfig.of("resnet8", method="ce", **SMALL),
        student(dataclasses.replace(teacher, seed=9), "ce"),
        student(teacher, "ce", pruning_rate=0.3),
        student(teacher, "ce", reported="last"),
        student(teacher, "ce", learning_rate=0.05, milestones=(1, 1, 1)),  # what they are anyhow
    ]
    assert {address(other, images) for other in others} == {plain}
    assert "temperature" not in student(teacher, "ce").settings()


def test_a_value_that_is_the_default_anyhow_is_the_same_run(teacher, images):
    same = student(teacher, "r2kd:temperature=4,rank=hard", pruning_rate=0.1, weight_decay=5e-4)
    assert address(same, images) == address(student(teacher), images)


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 2},
        {"ce_weight": 0.5},
        {"value_weight": 1},
        {"rank_weight": 1},
        {"pruning_rate": 0.2},
        {"pruning_rate": 0},
        {"dense_weight": 0.5},
        {"pruned_batchnorm": "running"},
        {"rank_regularisation": 1},
        {"momentum": 0.8},
        {"weight_decay": 0},
        {"milestones": (1,)},
        {"learning_rate": 0.1},
        {"batch_size": 32},
        {"plain": True},
        {"view": "mixup"},
        {"method": "kd"},
        {"label_noise": 0.2},
        {"teacher.label_noise": 0.2},
        {"teacher.epochs": 2},
        {"teacher.weight_decay": 0},
    ],
    ids=str,
)
def test_what_acts_makes_another_run(change, teacher, images):
    assert address(student(teacher, **change), images) != address(student(teacher), images)


def test_in_bfloat16_it_is_another_run_asked_for_or_not(teacher, images, monkeypatch):
    auto, float32, half = (address(student(teacher, precision=p), images) for p in ("auto", "float32", "bfloat16"))
    assert auto == float32 != half
    monkeypatch.setattr(config.acceleration, "precision", lambda *_: "bfloat16")
    assert address(student(teacher, precision="auto"), images) not in (auto, half)  # the teacher, too, is another


def test_a_plain_run_computes_in_float32_or_not_at_all(teacher):
    assert student(teacher, plain=True).precision == "float32"
    with pytest.raises(ValueError, match="plain computes in float32"):
        student(teacher, plain=True, precision="bfloat16")


def test_all_images_and_a_number_above_them_are_one(images):
    whole = training.open_data(TeacherConfig.of("resnet8", image_size=16))
    everything = TeacherConfig.of("resnet8", image_size=16).run(whole)
    assert TeacherConfig.of("resnet8", image_size=16, train_images=1000, test_images=5000).run(whole) == everything
    assert TeacherConfig.of("resnet8", image_size=16, train_images=999).run(whole) != everything


def test_a_setting_that_is_added_with_a_default_keeps_every_run(teacher, images, monkeypatch):
    views = {name: "identity" if entry.second_view else "none" for name, entry in methods.METHODS.items()}
    before = {name: address(student(teacher, name, view=view), images) for name, view in views.items()}

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Recipe(parts.Recipe):
        warmup: int = parts.setting(0, "epochs")

    monkeypatch.setattr(config, "Recipe", Recipe)
    added = {n: dataclasses.replace(student(teacher, n, view=v), recipe=Recipe(epochs=1)) for n, v in views.items()}
    taught = dataclasses.replace(teacher, recipe=Recipe(epochs=1))
    added = {name: dataclasses.replace(made, teacher=taught) for name, made in added.items()}
    assert {name: address(made, images) for name, made in added.items()} == before
    acting = dataclasses.replace(added["ce"], recipe=Recipe(epochs=1, warmup=3))
    assert address(acting, images) != before["ce"]


def test_the_defaults_that_addresses_rest_on_stay_as_they_are():
    """An address holds what differs from the default: changing one of these would give old runs to new questions."""
    defaults = {
        name: value for part in (parts.Recipe, parts.Pruning, parts.Machine) for name, value in part().options.items()
    }
    assert {name: value for name, value in defaults.items() if value is not None} == {
        "epochs": 240,
        "batch_size": 64,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "reported": "best",
        "tested_from": 0.0,
        "pruning_rate": 0.0,
        "dense_weight": 0.7,
        "pruned_batchnorm": "batch",
        "device": "auto",
        "precision": "auto",
        "streams": 4,
        "plain": False,
    }
    assert (methods.METHODS.shared, parts.Data().validation_images) == ({"ce_weight": 1.0}, 0)
    assert parts.Data().label_noise == 0


def test_label_noise_is_in_an_address_where_there_is_some_and_each_rate_is_another(teacher, images):
    clean = {"fingerprint": "digits-16", "classes": 10, "train_images": 64, "test_images": 50}
    addresses = set()
    for rate in (0, "0.0", 0.2, "0.4"):
        made = student(teacher, label_noise=rate)
        noise = {"label_noise": float(rate)} if float(rate) else {}
        assert made.acts(images)["data"] == clean | noise and made.acts(images)["teacher"]["data"] == clean
        addresses.add(address(made, images))
    assert len(addresses) == 3 and address(student(teacher), images) in addresses


@pytest.mark.parametrize(
    ("rate", "said"),
    [(-0.1, "must be at least 0"), (1.01, "label_noise is a share, .* not 1.01"), (40, "is a share, .* not 40")],
)
def test_a_label_noise_that_is_no_share_is_refused(rate, said):
    with pytest.raises(ValueError, match=said):
        TeacherConfig.of("resnet8", label_noise=rate)
    assert TeacherConfig.of("resnet8", label_noise=1)["label_noise"] == 1


MINE = """
import torch.nn.functional as F
{before}
def helper(x):
    {comment}
    return {body}


def mine(student, teacher):
    return helper(F.mse_loss(student, teacher))
"""


def written(tmp_path, before="", comment='"""Mine."""', body="0.1 * x"):
    """The function `mine` of a file, as it stands after an edit."""
    path = tmp_path / f"version{len(list(tmp_path.iterdir()))}.py"
    path.write_text(MINE.format(before=before, comment=comment, body=body))
    namespace = {"__name__": "mine", "__file__": str(path)}
    exec(compile(path.read_text(), str(path), "exec"), namespace)
    return namespace["mine"]


def test_a_changed_function_never_returns_an_old_run_and_says_so(teacher, images, tmp_path, capsys):
    files = tmp_path / "files"
    files.mkdir()
    where = {"runs_root": str(tmp_path / "runs")}
    first = training.distill(student(teacher, written(files), **where), images, progress=False)
    for same in (written(files, comment="# another comment"), written(files, before="# above\nOTHER = 3")):
        assert training.distill(student(teacher, same, **where), images, progress=False) == first
    assert "trained anew" not in capsys.readouterr().err
    changed = training.distill(student(teacher, written(files, body="0.2 * x"), **where), images, progress=False)
    assert changed != first and changed.metrics["loss"][0] != first.metrics["loss"][0]
    said = capsys.readouterr().err
    assert said == f"method computes something else than in {first.address}: trained anew\n"


def test_a_changed_closure_value_is_another_run_in_training_too(teacher, images, tmp_path):
    def mse(weight):
        return lambda student, teacher: weight * (student - teacher).square().mean()

    made = [student(teacher, mse(weight), runs_root=str(tmp_path)) for weight in (0.1, 0.2, 0.1)]
    first, other, again = (training.distill(one, images, progress=False) for one in made)
    assert first == again != other and first.metrics["loss"][0] != other.metrics["loss"][0]


def test_a_method_is_told_what_it_asks_for(teacher, images, tmp_path):
    told = []

    def asking(student, teacher, target, index, epoch, view, clean):
        told.append((view, len(student), int(epoch), index, target))
        assert clean.student.shape == clean.teacher.shape == (len(clean.target), 10)
        assert torch.equal(clean.target[index], target)
        assert not teacher.requires_grad and student.requires_grad
        return (student - teacher).square().mean()

    def picked(images, target):
        index = torch.arange(len(images)).flip(0)
        return images[index], index

    view = augmentation.AUGMENTATIONS.make(picked, keeps_target=True)
    made = student(teacher, asking, view=view, epochs=2, runs_root=str(tmp_path))
    training.distill(made, images, progress=False)
    assert [(view, epoch) for view, _, epoch, *_ in told] == [
        ("clean", 1),
        ("augmented", 1),
        ("clean", 2),
        ("augmented", 2),
    ]
    assert torch.equal(told[1][3], torch.arange(64).flip(0)) and torch.equal(told[0][3], torch.arange(64))


def test_a_view_that_changes_the_number_of_images_must_say_which_they_are(teacher, images, tmp_path):
    made = student(teacher, "kd", view=lambda images: images[:3], runs_root=str(tmp_path))
    with pytest.raises(
        ValueError, match=r"the view 'lambda' of images \(64, 3, 16, 16\) is \(3, 3, 16, 16\): it must return"
    ):
        training.distill(made, images, progress=False)
    picking = lambda images: (images[:3], torch.arange(3))  # noqa: E731
    assert training.distill(
        student(teacher, "kd", view=picking, runs_root=str(tmp_path)), images, progress=False
    ).finished


def test_dkd_trains_and_its_warm_up_follows_the_epoch(teacher, images, tmp_path):
    still = {"epochs": 2, "view": "cutout", "learning_rate": 1e-6, "runs_root": str(tmp_path)}
    made = [student(teacher, f"dkd:warmup_epochs={warmup}", **still) for warmup in (1, 20)]
    full, warm = (training.distill(one, images, progress=False).metrics["loss_distance"] for one in made)
    assert (full > 0.1).all() and (warm / full).tolist() == pytest.approx([1 / 20, 2 / 20], rel=1e-3)


PUBLISHED_BETA = {
    ("resnet56", "resnet20"): 2,
    ("resnet32x4", "resnet8x4"): 8,
    ("resnet32x4", "ShuffleV2"): 8,
    ("wrn_40_2", "wrn_16_2"): 6,
    ("vgg13", "vgg8"): 6,
    ("vgg13", "MobileNetV2"): 6,
    ("resnet20", "resnet8"): 6,
    ("resnet56", "resnet8"): 6,
}


@pytest.mark.parametrize(("pair", "beta"), PUBLISHED_BETA.items(), ids=str)
def test_dkd_by_its_name_has_the_published_beta_of_the_pair(pair, beta):
    taught, model = TeacherConfig.of(pair[0]), pair[1]
    made = DistillConfig.of(model, teacher=taught, method="dkd")
    assert made["beta"] == beta and made["alpha"] == 1 and made["warmup_epochs"] == 20
    (told,) = experiments.study(teacher=pair[0], student=model, arms="dkd").arms.values()
    assert told["beta"] == beta
    for other in set(methods.METHODS) - {"dkd"}:
        view = "identity" if methods.METHODS[other].second_view else "none"
        named = DistillConfig.of(model, teacher=taught, method=other, view=view)
        assert named.method == methods.METHODS.choose(other)


def test_dkd_keeps_a_beta_that_is_said():
    def beta(method, **settings):
        return DistillConfig.of("resnet20", teacher=TeacherConfig.of("resnet56"), method=method, **settings)["beta"]

    assert beta("dkd:beta=8") == beta(methods.METHODS.choose("dkd")) == 8  # the function's default, and yet said
    assert beta("dkd:beta=3") == beta(methods.METHODS.choose("dkd:beta=3")) == beta("dkd", beta=3) == 3
    assert beta("dkd:alpha=9,warmup_epochs=5") == 2
    pair = {"teacher": "resnet56", "student": "resnet20"}
    arms = {
        "published": "dkd",
        "text": "dkd:beta=8",
        "setting": "dkd beta=4",
        "choice": methods.METHODS.choose("dkd:beta=3"),
    }
    made = experiments.study(**pair, arms=arms).arms
    assert {label: config["beta"] for label, config in made.items()} == {
        "published": 2,
        "text": 8,
        "setting": 4,
        "choice": 3,
    }
    assert experiments.study(**pair, arms="dkd", beta=5).first["beta"] == 5


def test_a_method_that_needs_a_second_view_is_refused_without():
    taught = TeacherConfig.of("resnet8")
    with pytest.raises(ValueError, match="method 'mlkd' needs a second view, and 'none' is none"):
        DistillConfig.of("resnet8", teacher=taught, method="mlkd")
    assert list(DistillConfig.of("resnet8", teacher=taught, method="mlkd", view="identity").views) == [
        "clean",
        "augmented",
    ]
    with pytest.raises(ValueError, match="method 'mlkd' asks for labels, and view 'cutmix' keeps none"):
        DistillConfig.of("resnet8", teacher=taught, method="mlkd", view="cutmix")


def test_a_second_view_of_the_same_images_doubles_the_distance_of_the_first_step(teacher, images, tmp_path):
    made = [student(teacher, "kd", view=view, runs_root=str(tmp_path)) for view in ("none", "identity")]
    assert [list(one.views) for one in made] == [["clean"], ["clean", "augmented"]]
    one, two = (training.distill(config, images, progress=False) for config in made)
    assert one != two and one.metrics["loss_ce"][0] == two.metrics["loss_ce"][0]
    assert two.metrics["loss_distance"][0] == pytest.approx(2 * one.metrics["loss_distance"][0], rel=1e-5)


def test_mlkd_as_intended_turns_its_own_three_switches_and_r2kd_its_own(teacher, images):
    released = student(teacher, "mlkd", view="randaugment")
    intended = released.with_preset("intended")
    assert intended == student(teacher, "mlkd", view="randaugment", fidelity="intended")
    own = {s.name: s for s in fidelity.SWITCHES if s.of == "MLKD"}
    assert list(own) == ["mask", "strong_temperatures", "strong_terms"]
    apart = {name: value for name, value in intended.method.options.items() if value != released.method.options[name]}
    assert apart == {name: s.intended for name, s in own.items()}
    assert {name: released[s.key] for name, s in own.items()} == {name: s.released for name, s in own.items()}
    before, after = released.acts(images), intended.acts(images)
    assert {part for part in after if after[part] != before[part]} == {"method"}
    r2kd = student(teacher, fidelity="intended")
    assert not set(own) & set(r2kd.method.options) and (r2kd["rank"], r2kd["value"]) == ("soft", "pearson")


def test_a_models_answer_must_be_logits(teacher, images, tmp_path):
    bare = lambda num_classes: torch.nn.Conv2d(3, num_classes, 3)  # noqa: E731
    with pytest.raises(
        ValueError, match=r"the model lambda \(Conv2d\) answers a tensor \(2, 10, 14, 14\), not a tensor \(2, 10\)"
    ):
        training.train_teacher(TeacherConfig.of(bare, **SMALL, runs_root=str(tmp_path)), images, progress=False)


def test_images_that_are_not_the_configurations_are_refused(images):
    with pytest.raises(
        ValueError, match="the images given are not those of the configuration: train_images 64, not 32"
    ):
        training.train_teacher(TeacherConfig.of("resnet8", **SMALL | {"train_images": 32}), images)
    with pytest.raises(ValueError, match="not those of the configuration: train_images 64, not 1000"):
        training.train_teacher(TeacherConfig.of("resnet8", **SMALL | {"train_images": None}), images)


def test_validation_images_choose_the_epoch_and_the_best_on_test_stays_a_column(tmp_path):
    settings = SMALL | {"train_images": 200, "epochs": 6, "validation_images": 50, "runs_root": str(tmp_path)}
    made = TeacherConfig.of("resnet8", **settings)
    run = training.train_teacher(made, progress=False)
    metrics, result = run.metrics.set_index("epoch"), run.result
    chosen = metrics["validation_top1"].idxmax()
    assert result["chosen_epoch"] == chosen and result["validation_top1"] == metrics["validation_top1"].max()
    assert result["chosen_top1"] == metrics["test_top1"][chosen] and result["best_top1"] == metrics["test_top1"].max()
    held = training.open_data(made)
    best = training.load_model(made, run, 10, "best")
    with torch.inference_mode():
        answers = best(held.normalize(held.validation.images)).argmax(1)
    assert 100 * float((answers == held.validation.labels).float().mean()) == pytest.approx(result["validation_top1"])
    without = TeacherConfig.of("resnet8", **settings | {"validation_images": 0})
    assert without.run(held).address != run.address


def test_a_run_writes_down_what_acts_and_every_setting(teacher, images):
    kept = teacher.run(images).config
    assert kept["acts"] == json.loads(json.dumps(teacher.acts(images))) and kept["weight_decay"] == 5e-4
    assert runs.Run(teacher.run(images).folder).row["milestones"] == "1 1 1"


def test_images_replaced_by_others_of_equal_names_and_sizes_are_another_run(tmp_path):
    def paint(shade):
        for split in ("train", "test"):
            for label in "ab":
                path = tmp_path / split / label / "1.bmp"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (16, 16), (shade, 9, 9)).save(path)
                os.utime(path, (1, 1))

    made, found = TeacherConfig.of("resnet8", dataset=str(tmp_path), epochs=1, device="cpu"), []
    for shade in (10, 20, 10):
        paint(shade)
        held = training.open_data(made)
        found.append((made.run(held).address, int(held.train.images[0, 0, 0, 0])))
    assert [shade for _, shade in found] == [10, 20, 10]
    assert found[0] == found[2] and found[0][0] != found[1][0]


def test_a_setting_that_acts_on_nothing_is_told_from_one_that_acts(teacher):
    pruning = ("pruning_rate", "dense_weight", "pruned_batchnorm")
    given = dataclasses.replace(teacher, checkpoint="weights")
    for made, idle in (
        (student(teacher), {}),
        (student(teacher, "kd"), dict.fromkeys(pruning[1:], "pruning_rate is 0")),
        (student(teacher, "kd", pruning_rate=0.1), {}),
        (student(teacher, pruning_rate=0), dict.fromkeys(pruning[1:], "pruning_rate is 0")),
        (student(given), {"teacher.epochs": "the weights are given"}),
        (
            student(teacher, "ce", pruning_rate=0.1),
            dict.fromkeys(("teacher.epochs", *pruning), "the method ce has no teacher"),
        ),
        (given, {"epochs": "the weights are given"}),
    ):
        keys = ["epochs", "seed", "device", *(["teacher.epochs", *pruning] if made is not given else [])]
        assert made.idle(keys) == idle


def test_in_a_study_a_setting_of_some_arm_is_fine_and_one_of_none_is_refused():
    made = experiments.study(arms="ce; kd; r2kd cutmixpick", rank="soft", pick="after", pruned_batchnorm="running")
    assert [config.owner("rank") for config in made.arms.values()] == [None, None, "method"]
    for setting, said in (
        ({"rank": "soft"}, "^rank is of r2kd, and the method is ce or kd$"),
        ({"pick": "after"}, "^pick is of cutmixpick, and the view is none$"),
        ({"pruned_batchnorm": "running"}, "^pruned_batchnorm acts on nothing: no arm prunes$"),
        ({"temprature": 2}, "^unknown setting 'temprature'; known: "),
    ):
        with pytest.raises(ValueError, match=said):
            experiments.study(arms="ce; kd", **setting)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"seed": -1}, "seed must be at least 0, not -1"),
        ({"checkpoint": ""}, "checkpoint is empty"),
        ({"train_images": 1}, "train_images must be at least 2, not 1: BatchNorm"),
        ({"image_size": 100000}, "image_size must be at most 1024, not 100000"),
        ({"momentum": float("inf")}, "momentum of recipe is a finite number, not inf"),
        ({"runs_root": ""}, "runs_root of machine is empty"),
        ({"milestones": (1.5,)}, "milestones are epochs, whole numbers"),
    ],
    ids=str,
)
def test_a_value_that_cannot_be_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        TeacherConfig.of("resnet8", **wrong)


def test_a_folder_is_taken_as_a_path_too(tmp_path):
    by_path = experiments.study("smoke", runs_root=tmp_path, figures_root=tmp_path)
    by_text = experiments.study("smoke", runs_root=str(tmp_path), figures_root=str(tmp_path))
    assert by_path.arms == by_text.arms and by_path.roots == by_text.roots
