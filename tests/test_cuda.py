"""What only a GPU can show. Plain functions over random images: benchmarks.gpu runs them where there is no pytest."""

import gc
import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from pathlib import Path

from benchmarks import loops
from r2kd import (
    acceleration,
    batch,
    corruptions,
    data,
    evaluation,
    models,
    parts,
    profiles,
    robustness,
    runs,
    training,
)
from r2kd.arm import Arm
from r2kd.augmentation import AUGMENTATIONS
from r2kd.config import DistillConfig, TeacherConfig
from r2kd.methods import METHODS
from r2kd.randomness import generator, seeded

import torch
from PIL import Image

SETTINGS = {"dataset": "random", "epochs": 2, "batch_size": 20, "device": "cuda", "learning_rate": 0.01}
TEACHER = TeacherConfig.of("resnet14", **SETTINGS)


def random_images() -> data.ImageData:
    return loops.random_images(32, train=130, test=60, classes=10)


def student(root: str | Path = ".", **settings) -> DistillConfig:
    teacher = TEACHER.with_settings({"runs_root": str(root)})
    return DistillConfig.of("resnet8", teacher=teacher, **SETTINGS | {"runs_root": str(root)} | settings)


def first_model(config: DistillConfig) -> torch.nn.Module:
    """A student before its first step."""
    return Arm.new(config, runs.Run(Path(".")), random_images(), torch.device("cpu")).model


def frozen_teacher(device: torch.device, config: DistillConfig) -> batch.Teachers:
    with seeded(0, "weights", "teacher"):
        dense = models.create("resnet14", 10).eval().requires_grad_(False)
    return batch.Teachers(dense.to(device), config.precision, config.machine.plain)


def stepped(config: DistillConfig, steps: int = 6, lane: acceleration.Lane | None = None, watched: bool = False) -> Arm:
    """A student after some steps of 20 images; `watched`: from the fifth on it must not wait for the device."""
    device = training.resolve_device("cuda")
    images = random_images().to(device)
    arm = Arm.new(config, runs.Run(Path(".")), images, device, lane)
    teachers = frozen_teacher(device, config)
    recipe = {"seed": 0, "epoch": 0, "batch_size": 20, "plain": config.machine.plain}
    arm.begin_epoch()
    given = batch.epoch_batches(images, set(config.views.values()), teachers, **recipe)
    with acceleration.exact():
        for i in range(steps):
            with waiting_is_an_error(watched and i > acceleration.WARM_UP):  # a capture waits, a replay must not
                arm.step(next(given))
        arm.lane.join()
    if (
        not config.machine.plain and not arm.draws
    ):  # a step that could not be captured goes on call by call, and only this would tell
        for replayed in (arm._replayed, *teachers._forwards.values()):
            assert replayed._graphs and all(replayed._graphs.values())
    return arm


@contextmanager
def waiting_is_an_error(watched: bool) -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error" if watched else "default")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_function_is_replayed_with_what_it_is_given_whatever_its_shape():
    lane = acceleration.Lane(training.resolve_device("cuda"))
    replayed, total, calls = acceleration.Replayed(lane), torch.zeros((), device="cuda"), []

    def function(x):
        calls.append(len(x))
        total.add_(x.sum())
        return 2 * x

    for i in range(10):
        for count in (4, 7):
            doubled = replayed(function, torch.full((count,), float(i), device="cuda"))
            lane.join()
            assert doubled.tolist() == [2.0 * i] * count
    assert float(total) == 11 * sum(range(10)) and calls.count(4) == calls.count(7) == 4
    lane.release()


def test_what_cannot_be_captured_runs_call_by_call_and_the_stream_is_the_one_before():
    """A function that reads a value back, and one that finds no memory while it is captured."""
    before = torch.cuda.current_stream()

    def reads(x):
        return x + x.sum().item()

    def too_large(x):
        if torch.cuda.is_current_stream_capturing():
            torch.empty(2**50, device="cuda")
        return x + 1

    for function, expected in ((reads, 4.0), (too_large, 2.0)):
        lane = acceleration.Lane(training.resolve_device("cuda"))
        replayed, said = acceleration.Replayed(lane), io.StringIO()
        with redirect_stderr(said):
            for _ in range(8):
                answer = replayed(function, torch.ones(3, device="cuda"))
                lane.join()
                assert answer.tolist() == [expected] * 3
                assert torch.cuda.current_stream() == before
        assert said.getvalue().count("no CUDA graph") == 1
        lane.release()


def test_a_student_trains_with_each_view_and_method():
    methods = [{"method": name} | ({"view": "identity"} if e.second_view else {}) for name, e in METHODS.items()]
    for settings in [{"view": name} for name in AUGMENTATIONS] + methods:
        with tempfile.TemporaryDirectory() as root:
            run = training.distill(student(root, **settings), random_images(), progress=False)
            assert run.finished and run.config["precision"] == student(root).precision


def test_a_method_that_reads_a_value_back_trains():
    def reading(student, teacher):
        return (student - teacher).square().mean() * float(teacher.abs().max() > 0)

    with tempfile.TemporaryDirectory() as root:
        assert training.distill(student(root, method=reading), random_images(), progress=False).finished


def test_a_step_waits_for_nothing_and_its_graph_computes_what_eager_float32_does():
    for switches in ({"fidelity": "released"}, {"fidelity": "intended"}, {"pruning_rate": 0.0}):
        fast = stepped(student(view="cutmix", learning_rate=0.001, **switches), watched=True)
        plain = stepped(student(view="cutmix", learning_rate=0.001, plain=True, **switches))
        sums, expected = ((arm.sums / arm.images).tolist()[:3] for arm in (fast, plain))
        assert all(abs(a - b) < 0.02 * abs(b) + 0.01 for a, b in zip(sums, expected, strict=True)), (sums, expected)
        first = first_model(fast.config).fc.weight.cuda()
        moved, expected = (arm.model.fc.weight.detach() - first for arm in (fast, plain))
        assert float((moved - expected).norm()) < 0.1 * float(expected.norm())


def test_in_float32_the_graph_computes_what_eager_does():
    fast = stepped(student(view="cutmix", precision="float32", learning_rate=0.001))
    plain = stepped(student(view="cutmix", plain=True, learning_rate=0.001))
    torch.testing.assert_close(fast.model.fc.weight, plain.model.fc.weight, rtol=1e-3, atol=1e-4)


def test_a_view_waits_for_nothing():
    device = training.resolve_device("cuda")
    images = random_images().to(device)
    for name in AUGMENTATIONS.keys() - {
        "autoaug",
        "randaugment",
    }:  # torchvision's rotation makes its matrix on the device, and waits
        config = student(view=name)
        teachers = frozen_teacher(device, config)
        recipe = {"seed": 0, "epoch": 0, "batch_size": 20}
        given = batch.epoch_batches(images, set(config.views.values()), teachers, **recipe)
        for i in range(len(images.train) // 20):
            with waiting_is_an_error(i == acceleration.WARM_UP + 1):
                next(given)


def test_students_side_by_side_are_the_students_alone():
    configs = [{"view": "cutmix"}, {"view": "mixup"}, {"method": "kd"}, {"method": "ce"}, {"view": "cutout"}]
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        together = [student(one, streams=3, **settings) for settings in configs]
        found = training.distill_all(together, random_images(), progress=False)
        for run, settings in zip(found, configs, strict=True):
            alone = training.distill(student(other, **settings), random_images(), progress=False)
            mine, theirs = (models.read_checkpoint(one.weights("last")) for one in (run, alone))
            assert all(torch.equal(value, theirs[name]) for name, value in mine.items()), settings


def test_a_student_that_was_cut_off_goes_on_fused_and_is_the_student_that_was_not():
    class CutOff(Exception):
        pass

    begin = Arm.begin_epoch

    def cut(arm):
        if arm.epoch == 1 and isinstance(arm.config, DistillConfig):
            raise CutOff
        begin(arm)

    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        whole = training.distill(student(one, view="cutmix"), random_images(), progress=False)
        Arm.begin_epoch = cut
        try:
            training.distill(student(other, view="cutmix"), random_images(), progress=False)
        except CutOff:
            pass
        finally:
            Arm.begin_epoch = begin
        run = training.distill(student(other, view="cutmix"), random_images(), progress=False)
        mine, theirs = (models.read_checkpoint(found.weights("last")) for found in (whole, run))
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_a_frozen_parameter_does_not_decay():
    def frozen_features(num_classes):
        features = torch.nn.Linear(3 * 32 * 32, 8).requires_grad_(False)
        return torch.nn.Sequential(torch.nn.Flatten(), features, torch.nn.Linear(8, num_classes))

    config = DistillConfig.of(frozen_features, teacher=TEACHER, method="ce", **SETTINGS)
    assert torch.equal(stepped(config).model[1].weight.cpu(), first_model(config)[1].weight)


def test_what_a_model_draws_is_its_seeds_whatever_was_drawn_before():
    def drawing(num_classes):
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(), torch.nn.Linear(3 * 32 * 32, num_classes))

    config, found = DistillConfig.of(drawing, teacher=TEACHER, method="ce", **SETTINGS), []
    for seed in (0, 1):
        torch.cuda.manual_seed(seed)
        found.append(stepped(config).model[2].weight)
    assert torch.equal(*found) and not torch.equal(found[0].cpu(), first_model(config)[2].weight)


def test_streamed_images_train_beside_the_thread_that_pins_memory():
    with tempfile.TemporaryDirectory() as root:
        drawn = random_images()
        for name, split in (("train", drawn.train), ("test", drawn.test)):
            for i, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
                folder = Path(root, name, f"class{int(label)}")
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
        images = data.load(root, stream=True)
        config = student(root, view="cutmix", dataset=root)
        assert training.distill(config.with_settings({"teacher.dataset": root}), images, progress=False).finished


def test_memory_is_given_back_when_a_training_ends():
    def trained() -> int:
        with tempfile.TemporaryDirectory() as root:
            configs = [student(root, view=name) for name in ("mixup", "cutmix", "cutout")]
            training.distill_all(configs, random_images(), progress=False)
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    gc.collect()
    gc.disable()  # nothing may wait for the collector of cycles
    try:
        first = trained()
        assert trained() <= first + 2**20
    finally:
        gc.enable()


def test_a_model_is_evaluated_in_float32_whatever_torch_is_allowed():
    device = training.resolve_device("cuda")
    images = random_images().to(device)
    with seeded(0, "weights", "evaluated"):
        model = models.create("resnet8", 10).to(device).eval()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    try:
        logits = evaluation.predict(model, images.test, images)
        with torch.no_grad():
            expected = model.double()(images.normalize(images.test.images).double()).float()
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, False
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_the_second_gpu_is_used_where_there_is_one():
    if torch.cuda.device_count() < 2:
        return
    device = training.resolve_device("cuda:1")
    try:
        assert torch.cuda.current_device() == 1 and acceleration.Lane(device).stream.device == device
        with tempfile.TemporaryDirectory() as root:
            run = training.distill(student(root, device="cuda:1"), random_images(), progress=False)
            assert run.finished
    finally:
        torch.cuda.set_device(0)


def test_the_pairs_of_the_paper_answer_in_bfloat16_as_in_float32():
    device = training.resolve_device("cuda")
    for pair in profiles.PAIRS.values():
        for name in pair:
            with seeded(0, "weights", name):
                model = models.create(name, 10).to(device).eval()
            views = torch.randn(8, 3, 32, 32, device=device)
            with torch.no_grad(), acceleration.exact():
                expected = model(views)
                with acceleration.autocast(device, "bfloat16"):
                    answer = model(views).float()
            assert float((answer - expected).norm() / expected.norm()) < 0.1, name


def test_corrupted_images_are_those_of_the_cpu():
    if not find_spec("scipy"):  # a machine that only trains
        return
    images = random_images().test.images[:8]
    for name in (name for name in corruptions.CORRUPTIONS if not corruptions.missing(name)):
        for severity in (1, 4):
            expected = corruptions.corrupt(images, name, severity, generator(0))
            made = corruptions.corrupt(images.cuda(), name, severity, generator(0)).cpu()
            apart = (made.int() - expected.int()).abs()
            assert (apart > 1).float().mean() < 0.005, (name, severity)


def test_a_model_is_tested_on_the_gpu_as_on_the_cpu():
    if not (find_spec("scipy") and find_spec("torchmetrics")):
        return
    images, tests = random_images(), parts.Tests(corruptions="fog+glass_blur", attacks="pgd", attacked_images=20)
    with seeded(0, "weights", "tested"):
        model = models.create("resnet8", 10).eval()
    found = {}
    for device in ("cpu", "cuda"):
        there = images.to(device)
        under = robustness.protocol(tests, there)
        found[device] = robustness.measure(
            {"a": model.to(device)}, there, under, torch.eye(10).repeat(6, 1).to(device)
        )["a"]
    named = {device: [(row["test"], row["name"], row["level"]) for row in rows] for device, rows in found.items()}
    assert [row for row in named["cpu"] if row[0] != "reliability"] == [
        row for row in named["cuda"] if row[0] != "reliability"
    ]
    of = {device: [row for row in rows if row["test"] == "corruption"] for device, rows in found.items()}
    for one, other in zip(of["cpu"], of["cuda"], strict=True):
        assert abs(one["top1"] - other["top1"]) <= 5 and abs(one["loss"] - other["loss"]) < 0.05, one
