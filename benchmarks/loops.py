"""The loop to compare with, written as the released code works, and ours, as endless steps that time themselves.

Plain: per-image PIL transforms in a DataLoader with two workers, four separate teacher forwards, float32, default layout.
Ours: what r2kd.training does with a batch. Both: R2KD with cutmix and the pruned teacher, by the released recipe.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import NamedTuple

from r2kd import acceleration, augmentation, evaluation, loop, losses, models, pruning, runs
from r2kd.arm import Arm
from r2kd.batch import Teachers, epoch_batches
from r2kd.config import DistillConfig, TeacherConfig
from r2kd.data import ImageData, Split
from r2kd.entries import Choice
from r2kd.randomness import generator, seeded

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

BATCH = 64


class Step(NamedTuple):
    """Seconds of a step, those of it that went into loading, cropping and augmenting, and the loss of the (first) student."""

    seconds: float
    data_seconds: float
    loss: float


class PilImages(Dataset):
    """The images of a split one by one through PIL, as torchvision's data sets give them."""

    def __init__(self, split: Split, transform: transforms.Compose) -> None:
        self.images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in split.images]
        self.labels, self.transform = split.labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def plain_loop(pair: tuple[str, str], images: ImageData, mode: str, device: torch.device) -> Iterator[Step]:
    """`mode` is the pruned teacher's BatchNorm: "running" or "batch"."""
    teacher, student = (_model(name, images.num_classes).to(device) for name in pair)
    pruned = pruning.prune_l1(teacher, 0.1).train(mode == "batch")
    teacher.eval()
    student.train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    crop = transforms.RandomCrop(images.image_size, padding=images.image_size // 8)
    normalize = transforms.Normalize(images.mean, images.std)
    transform = transforms.Compose([crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(), normalize])
    loader = DataLoader(PilImages(images.train, transform), BATCH, shuffle=True, num_workers=2, drop_last=True)
    draws = generator(0, "plain")

    def distance(logits: Tensor, view: Tensor) -> Tensor:
        with torch.no_grad():
            answers = 0.7 * teacher(view) + 0.3 * pruned(view)
        return 2 * losses.value_loss(logits, answers) + 2 * losses.rank_loss(logits, answers)

    while True:
        batches = iter(loader)
        for _ in range(len(loader)):
            started = time.perf_counter()
            batch, target = (tensor.to(device) for tensor in next(batches))
            augmented = augmentation.cutmix(batch, draws)
            data_seconds = time.perf_counter() - started
            logits = student(batch)
            loss = (
                losses.cross_entropy(logits, target) + distance(logits, batch) + distance(student(augmented), augmented)
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            evaluation.accuracy(logits, target), evaluation.accuracy(logits, target, 5)
            acceleration.wait(device)
            yield Step(time.perf_counter() - started, data_seconds, loss.item())


def students_and_teachers(
    pair: tuple[str, str],
    images: ImageData,
    mode: str,
    device: torch.device,
    count: int = 1,
    **settings,
) -> tuple[list[Arm], Teachers]:
    """`count` students of one teacher, untrained, at temperatures 4, 5, ..., on the lanes of the machine's `streams`."""
    teacher, student = pair
    settings |= {
        "teacher": TeacherConfig.of(teacher),
        "view": "cutmix",
        "pruned_batchnorm": mode,
        "device": str(device),
    }
    configs = [DistillConfig.of(student, temperature=4.0 + i, **settings) for i in range(count)]
    dense = _model(teacher, images.num_classes).eval().requires_grad_(False).to(device)
    machine = configs[0].machine
    lanes = [acceleration.Lane(device, i) for i in range(min(machine.streams, count))]
    arms = [Arm.new(config, _NOWHERE, images, device, lanes[i % len(lanes)]) for i, config in enumerate(configs)]
    return arms, Teachers(dense, configs[0].precision, machine.plain)


def our_loop(
    pair: tuple[str, str], images: ImageData, mode: str, device: torch.device, count: int = 1, **settings
) -> Iterator[Step]:
    """Steps of `count` students; in "auto" precision, float32 on a CPU, unless `settings` say otherwise."""
    if device.type == "cpu":
        acceleration.keep_freed_memory()
    students, teachers = students_and_teachers(pair, images, mode, device, count, **settings)
    plain = students[0].config.machine.plain
    images, views = images.to(device), set(students[0].config.views.values())
    try:
        with acceleration.SideBySide(device, students[0].config.threads) as side_by_side:
            yield from _our_steps(students, teachers, images, views, plain, side_by_side)
    finally:
        for lane in {teachers.lane, *(arm.lane for arm in students)}:
            lane.release()


def _our_steps(
    students: list[Arm],
    teachers: Teachers,
    images: ImageData,
    views: set[Choice],
    plain: bool,
    side_by_side: acceleration.SideBySide,
) -> Iterator[Step]:
    for epoch in itertools.count():
        batches = epoch_batches(images, views, teachers, seed=0, epoch=epoch, batch_size=BATCH, plain=plain)
        for _ in range(len(images.train) // BATCH):
            for arm in students:
                arm.begin_epoch()
            with acceleration.exact():  # as training does; it is of the process, so not across the yield
                started = time.perf_counter()
                batch = next(batches)
                data_seconds = time.perf_counter() - started
                loop.step(batch, students, side_by_side)
                for arm in students:
                    arm.lane.join()
                    if arm.failure:
                        raise arm.failure
                acceleration.wait(batch.target.device)
                seconds = time.perf_counter() - started
            yield Step(seconds, data_seconds, float(students[0].sums[0]) / BATCH)


def random_images(pixels: int, train: int, test: int, classes: int = 100) -> ImageData:
    """Noise with labels: the time of a step does not depend on what the images show."""
    draws = generator(0, "random images", pixels)

    def split(count: int) -> Split:
        images = torch.randint(256, (count, 3, pixels, pixels), generator=draws, dtype=torch.uint8)
        return Split(images, torch.randint(classes, (count,), generator=draws))

    return ImageData(
        name="random",
        classes=tuple(map(str, range(classes))),
        train=split(train),
        test=split(test),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        flip=True,
        policy="cifar10",
        fingerprint="random",
    )


@contextmanager
def processes(serve: Callable, arguments: dict[str, tuple]) -> Iterator[dict[str, Connection]]:
    """A process for each name, running serve(connection, *its arguments), and our ends of their pipes; they end with the block."""
    context, started = get_context("spawn"), []
    with ExitStack() as open_connections:
        connections = {}
        for name, given in arguments.items():
            mine, theirs = context.Pipe()
            started.append(context.Process(target=serve, args=(theirs, *given)))
            started[-1].start()
            theirs.close()  # so that we notice if it dies
            connections[name] = open_connections.enter_context(mine)
        yield connections
    for process in started:
        process.join()


def ask(connection: Connection, message: str) -> Step | float:
    """What the process at the other end answers."""
    connection.send(message)
    return connection.recv()


_NOWHERE = runs.Run(runs.Path("."))  # a step writes nothing


def _model(name: str, classes: int) -> nn.Module:
    with seeded(0, "weights", name):
        return models.create(name, classes)
