import multiprocessing
import os

from r2kd import data, image_files, training
from r2kd.config import TeacherConfig
from r2kd.data import Split
from r2kd.image_files import ImageFiles

import pytest
import torch
from test_data import image_folder, save


@pytest.fixture
def folder(tmp_path):
    """Nine training and six test images, to be resized and cropped."""
    return image_folder(tmp_path / "numbers", size=(24, 20))


@pytest.fixture
def both(folder):
    """The same folder in memory and streamed."""
    return tuple(data.load(folder, image_size=16, stream=stream) for stream in (False, True))


def test_a_streamed_data_set_gives_the_images_of_the_one_in_memory(both):
    memory, stream = both
    before = torch.random.get_rng_state()
    assert isinstance(stream.train.images, ImageFiles) and not isinstance(memory.train.images, ImageFiles)
    assert (stream.fingerprint, stream.classes, stream.image_size) == (
        memory.fingerprint,
        memory.classes,
        memory.image_size,
    )
    order = torch.randperm(len(memory.train), generator=torch.Generator().manual_seed(0))
    changed = (lambda split: split, Split.shuffled, lambda split: split.subset(3), lambda split: split.take(order))
    for change in changed:
        one, other = change(memory.train), change(stream.train)
        assert torch.equal(one.labels, other.labels) and one.images.shape == other.images.shape
        for (a, labels), (b, same_labels) in zip(
            one.batches(torch.arange(len(one)).split(3)), other.batches(torch.arange(len(one)).split(3)), strict=True
        ):
            assert torch.equal(a, b) and torch.equal(labels, same_labels)
        assert torch.equal(one.images[:2], other.images[:2]) and torch.equal(
            one.images[order[:1] * 0], other.images[[0]]
        )
    assert torch.equal(before, torch.random.get_rng_state())


def test_nothing_of_a_streamed_data_set_is_decoded_before_it_is_asked_for(folder, monkeypatch):
    decoded, decode = [], image_files.decode
    monkeypatch.setattr(image_files, "decode", lambda *given: decoded.append(given[0]) or decode(*given))
    streamed = data.load(folder, image_size=16, stream=True)
    assert not decoded and not list((folder / ".r2kd-cache").glob("*.npz"))
    assert streamed.train.images[0].shape == (3, 16, 16) and len(decoded) == 1


def test_a_student_of_a_streamed_data_set_is_the_one_of_it_in_memory(both, tmp_path):
    weights = []
    for i, images in enumerate(both):
        config = TeacherConfig.of("resnet8", epochs=2, batch_size=4, device="cpu", runs_root=str(tmp_path / str(i)))
        run = training.train_teacher(config, images, progress=False)
        weights.append((run.weights().read_bytes(), (run.folder / "metrics.csv").read_bytes()))
    assert weights[0] == weights[1]


def test_a_folder_too_large_for_memory_is_streamed(folder, monkeypatch):
    def streamed():
        return isinstance(data.load(folder, image_size=16).train.images, ImageFiles)

    assert not streamed()
    monkeypatch.setattr(data, "MEMORY", 1000)
    assert streamed()
    monkeypatch.undo()
    monkeypatch.setattr(data, "_machine_memory", lambda: 1000)
    assert streamed()


def test_a_broken_image_of_a_streamed_data_set_is_named_in_a_line(folder):
    broken = next((folder / "train").rglob("*.png"))
    broken.write_bytes(broken.read_bytes()[:40])
    streamed = data.load(folder, image_size=16, stream=True).train
    with pytest.raises(ValueError, match=f"^broken image {broken}: [^\n]*$"):
        list(streamed.batches(torch.arange(len(streamed)).split(2)))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("damage", ["no byte", "cut", "another size"])
def test_an_image_without_a_byte_cut_or_of_another_size_is_named_in_a_line(damage, stream, tmp_path):
    folder = image_folder(tmp_path / "numbers")
    image = save(folder / "train" / "two" / "1.jpg", 0, (20, 20) if damage == "another size" else (16, 16))
    image.write_bytes(image.read_bytes()[: {"no byte": 0, "cut": -60}.get(damage)])
    with pytest.raises(ValueError, match=rf"^(broken image )?{image}(: | is 20 x 20 pixels, )[^\n]+$"):
        list(data.load(folder, stream=stream).train.batches(torch.arange(10).split(2)))


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="needs workers that inherit a patch")
def test_a_worker_that_dies_is_said_in_a_line(folder, monkeypatch):
    monkeypatch.setattr(image_files, "decode", lambda *_: os._exit(1))
    streamed = data.load(folder, image_size=16, stream=True).train
    with pytest.raises(OSError, match=r"^DataLoader worker [^\n]*out of memory\?\)$"):
        list(streamed.batches(torch.arange(len(streamed)).split(2)))
