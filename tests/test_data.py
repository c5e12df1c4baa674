import hashlib
import io
import os
import pickle
import re
import shutil
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from r2kd import data, image_folders
from r2kd.image_files import ImageFiles
from r2kd.image_folders import class_images
from r2kd.randomness import generator

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import ImageFolder

PIXELS, DIGITS = load_digits(return_X_y=True)
CLASSES = {"zero": 0, "one": 1, "two": 2}
WNIDS = {"n00000003": 3, "n00000001": 1, "n00000002": 2}
TRAINED = ("n00000001", "n00000003")


def picture(index, size=(16, 16)):
    return Image.fromarray((PIXELS[index].reshape(8, 8) * 15.9375).astype(np.uint8)).resize(size).convert("RGB")


def save(path, index, size=(16, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(index, size).save(path)
    return path


def read(*paths):
    return torch.stack([torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) for path in paths])


def image_folder(folder, held_out="test", size=(16, 16)):
    """Three training and two held-out images of each class."""
    for name, digit in CLASSES.items():
        for turn, index in enumerate(np.flatnonzero(digit == DIGITS)[:5]):
            save(folder / ("train" if turn < 3 else held_out) / name / f"{turn}.png", index, size)
    return folder


def official_folder(folder):
    """Tiny ImageNet's layout: two validation images of each of three classes, three training images of two of them."""
    for wnid in TRAINED:
        for turn, index in enumerate(np.flatnonzero(WNIDS[wnid] == DIGITS)[:3]):
            save(folder / "train" / wnid / "images" / f"{wnid}_{turn}.JPEG", index)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t15\t15\n")
    rows = []
    for turn in range(2):
        for wnid, digit in WNIDS.items():
            save(folder / "val" / "images" / f"val_{len(rows)}.JPEG", np.flatnonzero(digit == DIGITS)[3 + turn])
            rows.append(f"val_{len(rows)}.JPEG\t{wnid}\t0\t0\t15\t15\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(rows))
    (folder / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in WNIDS))
    return folder


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture
def folder(tmp_path):
    return image_folder(tmp_path / "numbers")


@pytest.fixture
def tiny(tmp_path):
    return official_folder(tmp_path / "tiny-imagenet-200")


@pytest.fixture
def decoded(monkeypatch):
    """The paths that were decoded, in a list that a test may clear."""
    paths, decode = [], image_folders.decode_images

    def decode_and_tell(some, size, resize):
        paths.extend(some)
        return decode(some, size, resize)

    monkeypatch.setattr(image_folders, "decode_images", decode_and_tell)
    return paths


@pytest.fixture
def hashed(monkeypatch):
    """The paths that were hashed, in a list that a test may clear."""
    paths, hash_files = [], image_folders.hash_files
    monkeypatch.setattr(image_folders, "hash_files", lambda some: paths.extend(some) or hash_files(some))
    return paths


@pytest.fixture
def own_entries(monkeypatch):
    """What a test enters as a data set is gone afterwards."""
    monkeypatch.setattr(data.DATASETS, "_entries", dict(data.DATASETS._entries))


def cached(folder, suffix):
    return sorted((folder / ".r2kd-cache").glob(f"*{suffix}"))


@pytest.fixture
def untouched_global_generator():
    before = torch.random.get_rng_state()
    yield
    assert torch.equal(before, torch.random.get_rng_state())


def same(split, other):
    return torch.equal(split.images, other.images) and torch.equal(split.labels, other.labels)


def variants(image, padding, flip):
    height, width = image.shape[1:]
    padded = torch.nn.functional.pad(image, (padding,) * 4)
    starts = [(top, left) for top in range(2 * padding + 1) for left in range(2 * padding + 1)]
    crops = torch.stack([padded[:, top : top + height, left : left + width] for top, left in starts])
    return torch.cat([crops, crops.flip(-1)]) if flip else crops


def test_the_digits_are_1000_to_train_on_and_797_to_test(digits):
    assert digits.train.images.shape == (1000, 3, 16, 16) and digits.test.images.shape == (797, 3, 16, 16)
    assert digits.train.images.dtype == torch.uint8 and digits.train.labels.dtype == torch.int64
    assert len(digits.train) == 1000 and len(digits.test) == 797
    assert digits.classes == tuple("0123456789") and digits.num_classes == 10 and digits.image_size == 16
    assert not digits.flip


def test_the_digits_are_split_alike_in_every_class(digits):
    counts = torch.bincount(torch.from_numpy(DIGITS))
    assert (torch.bincount(digits.train.labels) - counts * 1000 / 1797).abs().max() < 1
    assert torch.equal(torch.bincount(digits.train.labels) + torch.bincount(digits.test.labels), counts)


def test_no_digit_is_lost_and_none_is_in_both_splits():
    small = data.load("digits", image_size=8)
    pixels = torch.cat([small.train.images, small.test.images])[:, 0].flatten(1)
    labels = torch.cat([small.train.labels, small.test.labels])
    expected = np.column_stack([np.rint(PIXELS * 255 / 16), DIGITS]).astype(int)
    assert sorted(torch.column_stack([pixels, labels]).tolist()) == sorted(expected.tolist())


def test_the_digits_are_the_same_at_every_load(digits):
    again = data.load("digits")
    assert same(digits.train, again.train) and same(digits.test, again.test)
    assert digits.fingerprint == again.fingerprint


def test_the_digits_statistics_are_those_of_the_training_images(digits):
    pixels = digits.train.images / 255
    assert digits.mean == pytest.approx(pixels.mean(dim=(0, 2, 3)).tolist(), abs=5e-5)
    assert digits.std == pytest.approx(pixels.std(dim=(0, 2, 3)).tolist(), abs=5e-5)


def test_the_digits_come_in_the_size_asked_for(digits):
    large = data.load("digits", image_size=32)
    assert large.train.images.shape == (1000, 3, 32, 32) and large.image_size == 32
    assert torch.equal(large.train.labels, digits.train.labels)
    assert large.fingerprint != digits.fingerprint


def test_a_split_of_the_digits_not_asked_for_is_none(digits):
    train, test = (data.load("digits", splits=(split,)) for split in ("train", "test"))
    assert train.test is None and same(train.train, digits.train) and train.image_size == 16
    assert test.train is None and same(test.test, digits.test) and test.image_size == 16


def test_a_subset_is_even_over_the_classes_and_the_same_every_time(digits, untouched_global_generator):
    subset = digits.subset(300, 50)
    assert torch.bincount(subset.train.labels).tolist() == [30] * 10
    assert torch.bincount(subset.test.labels).tolist() == [5] * 10
    again = digits.subset(300, 50)
    assert same(subset.train, again.train) and same(subset.test, again.test)
    assert sorted(torch.bincount(digits.train.subset(307).labels).tolist()) == [30] * 3 + [31] * 7


def test_a_subset_keeps_the_order_and_another_seed_is_another_subset(digits):
    numbered = data.Split(torch.arange(1000), digits.train.labels)
    chosen = numbered.subset(300).images
    assert (chosen.diff() > 0).all()
    assert torch.equal(numbered.subset(300).labels, digits.train.labels[chosen])
    assert not torch.equal(chosen, numbered.subset(300, seed=1).images)


def test_a_subset_of_all_or_more_is_the_split_itself(digits):
    assert digits.train.subset(None) is digits.train
    assert digits.train.subset(1000) is digits.train and digits.train.subset(1001) is digits.train


def test_a_subset_of_a_split_that_is_not_there_is_none():
    assert data.load("digits", splits=("test",)).subset(10, 10).train is None


@pytest.mark.parametrize("count", [0, -5])
def test_a_subset_below_one_is_refused(count, digits):
    with pytest.raises(ValueError, match=f"^a subset has at least 1 image, not {count}$"):
        digits.train.subset(count)
    with pytest.raises(ValueError, match=f"not {count}$"):
        digits.subset(None, count)


@pytest.mark.parametrize("size", [0, -16])
def test_an_image_size_below_one_is_refused(size, folder):
    for name in ("digits", folder):
        with pytest.raises(ValueError, match=f"^image_size must be at least 1, not {size}$"):
            data.load(name, image_size=size)


def numbered(digits):
    """The digits, each image its number."""
    return replace(
        digits,
        train=data.Split(torch.arange(1000), digits.train.labels),
        test=data.Split(torch.arange(797), digits.test.labels),
    )


def test_validation_images_are_taken_out_of_the_training_images(digits, untouched_global_generator):
    split = numbered(digits).subset(None, 50, 200)
    assert torch.equal(torch.cat([split.train.images, split.validation.images]).sort().values, torch.arange(1000))
    assert len(split.validation) == 200 and torch.bincount(split.validation.labels).tolist() == [20] * 10
    assert torch.equal(split.validation.labels, digits.train.labels[split.validation.images])
    assert (split.validation.images.diff() > 0).all() and (split.train.images.diff() > 0).all()
    assert len(split.test) == 50
    assert not torch.equal(split.validation.images, numbered(digits).train.subset(200).images)


@pytest.mark.parametrize("train_images", [1, 300, 799, 800, 1000])
def test_the_validation_images_are_the_same_however_many_train(train_images, digits):
    split, whole = (numbered(digits).subset(count, None, 200) for count in (train_images, None))
    assert same(split.validation, whole.validation) and len(split.train) == min(train_images, 800)
    assert not set(split.train.images.tolist()) & set(split.validation.images.tolist())


def test_the_training_subset_with_validation_is_even_too(digits):
    assert torch.bincount(digits.subset(300, None, 200).train.labels).tolist() == [30] * 10


def test_without_validation_images_there_is_no_such_split_and_the_subset_is_as_ever(digits):
    chosen = numbered(digits).subset(300, 50, 0)
    assert chosen.validation is None and digits.validation is None
    digest = hashlib.sha256(f"{chosen.train.images.tolist()} {chosen.test.images.tolist()}".encode()).hexdigest()
    assert digest[:16] == "800258266e9f5b17"  # what was chosen before there was a validation split


@pytest.mark.parametrize("count", [1000, 1001, -1])
def test_validation_images_that_leave_none_to_train_on_are_refused(count, digits):
    with pytest.raises(ValueError, match=f"^of 1000 training images, {count} cannot be kept for validation$"):
        digits.subset(None, None, count)
    assert len(digits.subset(None, None, 999).train) == 1


def test_a_validation_split_stays_through_another_subset_and_a_move(digits):
    split = digits.subset(None, None, 200)
    assert same(split.subset(100, 10).validation, split.validation)
    assert split.to("meta").validation.images.device.type == "meta"
    assert data.load("digits", splits=("test",)).subset(None, 10, 200).validation is None


def test_a_subset_says_of_how_many_images_it_is(digits):
    assert digits.of_images is None
    assert digits.subset(None, None).of_images == (1000, 797)
    assert digits.subset(300, 50, 200).subset(10, 10).of_images == (1000, 797)
    assert data.load("digits", splits=("test",)).subset(10, 10).of_images == (0, 797)


def test_the_training_classes_come_before_a_subset_or_after_it(tiny):
    kept = data.load(tiny).with_training_classes().subset(2, 2, 2)
    assert kept.of_images == (6, 4) and kept.validation.labels.tolist() == [0, 1]
    other = data.load(tiny).subset(2, 2, 2).with_training_classes()
    assert same(other.validation, kept.validation) and same(other.train, kept.train)


def test_a_streamed_validation_split_is_the_one_in_memory(folder):
    memory, stream = (data.load(folder, stream=stream).subset(3, None, 3) for stream in (False, True))
    assert isinstance(stream.validation.images, ImageFiles) and stream.validation.labels.tolist() == [0, 1, 2]
    for one, other in ((memory.train, stream.train), (memory.validation, stream.validation)):
        assert torch.equal(one.images, other.images[:]) and torch.equal(one.labels, other.labels)


@pytest.mark.parametrize(("rate", "flipped"), [(0, 0), (0.2, 61), (0.4, 123), (0.5, 154), (1, 307)])
def test_exactly_the_share_of_the_labels_is_flipped_and_each_to_another_class(rate, flipped, digits):
    clean = digits.train.subset(307)
    kept = clean.labels.clone()
    noisy = clean.with_label_noise(rate, 10)
    assert int((noisy.labels != clean.labels).sum()) == flipped
    assert noisy.labels.dtype == torch.int64 and noisy.labels.min() >= 0 and noisy.labels.max() <= 9
    assert noisy.images is clean.images and torch.equal(clean.labels, kept)


def test_what_a_lower_rate_flips_a_higher_one_flips_to_the_same_class(digits):
    clean = digits.train.labels
    fifth, two_fifths, all_ = (digits.train.with_label_noise(rate, 10).labels for rate in (0.2, 0.4, 1))
    for fewer, more in ((fifth, two_fifths), (two_fifths, all_)):
        assert torch.equal(fewer[fewer != clean], more[fewer != clean])


def test_labels_are_flipped_to_all_other_classes_alike_wherever_they_stand():
    noisy = data.Split(torch.arange(9000), torch.full((9000,), 3)).with_label_noise(1, 10).labels
    counts = torch.bincount(noisy, minlength=10)
    assert counts[3] == 0 and (counts[torch.arange(10) != 3] - 1000).abs().max() < 150  # five standard deviations
    half = data.Split(torch.arange(9000), torch.full((9000,), 3)).with_label_noise(0.5, 10).labels
    assert ((half != 3).view(9, 1000).sum(1) - 500).abs().max() < 80


def test_the_same_labels_are_flipped_every_time_and_by_another_seed_others(digits, untouched_global_generator):
    noisy, again, other = (digits.train.with_label_noise(0.4, 10, seed).labels for seed in (0, 0, 1))
    assert torch.equal(noisy, again) and not torch.equal(noisy, other)
    digest = hashlib.sha256(str(noisy.tolist()).encode()).hexdigest()
    assert digest[:16] == "3b64b01a9bfa15e4"  # of other flips, runs would keep the address of these


@pytest.mark.parametrize("rate", [-0.1, 1.01, 40, float("nan")])
def test_a_label_noise_that_is_no_share_is_refused(rate, digits):
    with pytest.raises(ValueError, match=f"^label noise is a share, 0 <= rate <= 1, not {rate}$"):
        digits.train.with_label_noise(rate, 10)
    with pytest.raises(ValueError, match=f"not {rate}$"):
        digits.subset(None, None, label_noise=rate)
    with pytest.raises(ValueError, match=r"^a label is flipped to another class, and there is 1$"):
        digits.train.with_label_noise(0.5, 1)


def test_of_the_images_that_train_alone_labels_are_flipped_after_the_subset(digits):
    clean, noisy = (numbered(digits).subset(300, 50, 200, rate) for rate in (0, 0.4))
    assert (clean.label_noise, noisy.label_noise, digits.label_noise) == (0, 0.4, 0)
    assert torch.equal(noisy.train.images, clean.train.images)
    assert int((noisy.train.labels != clean.train.labels).sum()) == 120
    assert torch.equal(noisy.train.labels, clean.train.with_label_noise(0.4, 10).labels)
    assert same(noisy.test, clean.test) and same(noisy.validation, clean.validation)
    assert noisy.to("cpu").label_noise == 0.4


def test_once_labels_are_flipped_neither_images_nor_classes_are_chosen_anew(digits, tiny):
    noisy = digits.subset(300, 50, label_noise=0.2)
    for again in (lambda: noisy.subset(100, 50), lambda: noisy.subset(None, None, label_noise=0.4)):
        with pytest.raises(ValueError, match=r"^labels of digits are flipped already"):
            again()
    with pytest.raises(ValueError, match=r"^labels of tiny-imagenet-200 are flipped already"):
        data.load(tiny).subset(None, None, label_noise=0.4).with_training_classes()
    kept = data.load(tiny).with_training_classes().subset(None, None, label_noise=1)
    assert kept.train.labels.tolist() == [1, 1, 1, 0, 0, 0]  # of two classes, the other one


def test_the_labels_of_a_streamed_split_are_flipped_as_those_in_memory(folder):
    memory, stream = (data.load(folder, stream=stream).subset(None, None, label_noise=0.4) for stream in (False, True))
    assert isinstance(stream.train.images, ImageFiles) and torch.equal(memory.train.labels, stream.train.labels)


def test_shuffling_changes_the_order_alone(digits, untouched_global_generator):
    numbered = data.Split(torch.arange(1000), digits.train.labels)
    shuffled = numbered.shuffled()
    assert not torch.equal(shuffled.images, numbered.images)
    assert torch.equal(shuffled.images.sort().values, numbered.images)
    assert torch.equal(shuffled.labels, numbered.labels[shuffled.images])
    assert same(shuffled, numbered.shuffled()) and not same(shuffled, numbered.shuffled(seed=1))


def test_without_padding_and_flip_images_stay_as_they_are(digits):
    assert torch.equal(data.crop_and_flip(digits.train.images, 0, False, generator(0)), digits.train.images)


@pytest.mark.parametrize("flip", [False, True])
def test_each_image_becomes_a_crop_or_mirrored_crop_of_itself(flip, digits):
    images = digits.train.images[:100]
    before = images.clone()
    cropped = data.crop_and_flip(images, 2, flip, generator(0))
    assert cropped.shape == images.shape and cropped.dtype == torch.uint8 and torch.equal(images, before)
    for image, result in zip(images, cropped, strict=True):
        assert (variants(image, 2, flip) == result).flatten(1).all(dim=1).any()


@pytest.mark.parametrize("flip", [False, True])
def test_every_crop_and_no_other_image_comes_up(flip, digits):
    image = digits.train.images[0]
    cropped = data.crop_and_flip(image.expand(2000, -1, -1, -1), 1, flip, generator(0))
    expected = variants(image, 1, flip).unique(dim=0)
    assert len(expected) == (18 if flip else 9)
    found, counts = cropped.unique(dim=0, return_counts=True)
    assert torch.equal(found, expected)
    assert counts.min() > 0.6 * 2000 / len(expected)


def test_half_of_the_images_are_mirrored(digits):
    image = digits.train.images[0]
    flipped = data.crop_and_flip(image.expand(2000, -1, -1, -1), 0, True, generator(0))
    mirrored = (flipped == image.flip(-1)).flatten(1).all(dim=1)
    assert torch.equal(flipped[~mirrored], image.expand(int((~mirrored).sum()), -1, -1, -1))
    assert 950 < mirrored.sum() < 1050


def test_the_same_generator_crops_the_same(digits, untouched_global_generator):
    images = digits.train.images[:64]
    first, again, other = (data.crop_and_flip(images, 2, True, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(("count", "sizes"), [(12, [4, 4, 4]), (11, [4, 4, 3]), (10, [4, 4, 2])])
def test_an_epoch_covers_every_image_once(count, sizes, untouched_global_generator):
    batches = data.batch_indices(count, 4, generator(0))
    assert [len(batch) for batch in batches] == sizes
    assert torch.cat(batches).sort().values.tolist() == list(range(count))


def test_a_last_batch_of_one_is_left_out():
    batches = data.batch_indices(9, 4, generator(0))
    assert [len(batch) for batch in batches] == [4, 4]
    assert torch.cat(batches).unique().numel() == 8


def test_batches_are_shuffled_by_the_generator_alone():
    first, again, other = (torch.cat(data.batch_indices(100, 10, generator(seed))) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first, torch.arange(100))


def test_normalizing_is_the_plain_formula(digits):
    mean, std = data.CIFAR100_STATISTICS
    images = digits.train.images[:50]
    before = images.clone()
    normalized = replace(digits, mean=mean, std=std).normalize(images)
    expected = (images.numpy() / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(normalized.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert normalized.dtype == torch.float32 and normalized.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_a_folder_is_read_with_its_classes_sorted(held_out, tmp_path):
    loaded = data.load(image_folder(tmp_path / "numbers", held_out))
    assert loaded.name == "numbers" and loaded.classes == ("one", "two", "zero") and loaded.of_classes is None
    assert loaded.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert loaded.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    for split, part in ((loaded.train, "train"), (loaded.test, held_out)):
        assert split.images.dtype == torch.uint8 and split.labels.dtype == torch.int64
        assert torch.equal(split.images, read(*sorted((tmp_path / "numbers" / part).glob("*/*.png"))))


def test_test_goes_before_val_where_a_folder_has_both(folder):
    for name in CLASSES:
        save(folder / "val" / name / "only.png", 0)
    assert len(data.load(folder).test) == 6


def test_a_folder_of_test_images_alone_can_be_tested_on(folder):
    for path in (folder / "train").glob("*/*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"one, two, zero"):
        data.load(folder)
    (folder / "train").rename(folder / "elsewhere")
    loaded = data.load(folder, splits=("test",))
    assert loaded.train is None and len(loaded.test) == 6
    with pytest.raises(FileNotFoundError, match=re.escape(str(folder))):
        data.load(folder)


def test_images_are_resized_on_their_shorter_side_and_cropped_at_the_centre(tmp_path):
    loaded = data.load(image_folder(tmp_path / "wide", size=(48, 24)), image_size=12)
    assert loaded.image_size == 12 and loaded.train.images.shape == (9, 3, 12, 12)
    whole = Image.open(tmp_path / "wide" / "train" / "one" / "0.png").resize((24, 12), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(whole.crop((6, 0, 18, 12)))).permute(2, 0, 1)
    assert torch.equal(loaded.train.images[0], expected)


def test_without_an_image_size_an_oblong_image_is_named(tmp_path):
    image_folder(tmp_path / "wide", size=(48, 24))
    with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path))}\S+\.png is 48 x 24 .*: give an image size"):
        data.load(tmp_path / "wide")


def test_without_an_image_size_an_image_of_another_size_is_named(folder):
    odd = save(folder / "train" / "two" / "1.png", 0, (20, 20))
    with pytest.raises(ValueError, match=rf"{re.escape(str(odd))} is 20 x 20 .* 16 x 16: give an image size"):
        data.load(folder)
    assert data.load(folder, image_size=16).train.images.shape == (9, 3, 16, 16)


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("kept", [0, 5, 100])
@pytest.mark.parametrize("suffix", [".jpeg", ".png", ".webp", ".bmp", ".ppm"])
def test_a_cut_off_image_is_named(suffix, kept, part, folder):
    broken = save(folder / part / "one" / f"cut{suffix}", 0)
    broken.write_bytes(broken.read_bytes()[:kept])
    with pytest.raises(ValueError, match=rf"broken image {re.escape(str(broken))}"):
        data.load(folder)


def test_a_text_that_calls_itself_an_image_is_named(folder):
    text = folder / "train" / "two" / "notes.png"
    text.write_text("to be drawn")
    with pytest.raises(ValueError, match=rf"broken image {re.escape(str(text))}"):
        data.load(folder)


@pytest.mark.parametrize("part", ["train", "test"])
def test_an_empty_class_is_named(part, folder):
    for path in (folder / part / "two").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=rf"{re.escape(str(folder / part))}.* two\b"):
        data.load(folder)


def test_classes_that_differ_between_the_splits_are_named(folder):
    (folder / "test" / "two").rename(folder / "test" / "twain")
    with pytest.raises(ValueError, match=r"2 classes .*: twain, two$"):
        data.load(folder)


def test_many_differing_classes_are_counted_and_five_named(folder):
    for number in range(10):
        save(folder / "train" / f"more{number}" / "image.png", 0)
    with pytest.raises(ValueError, match=r"10 classes .*: more0, more1, more2, more3, more4, \.\.\.$"):
        data.load(folder)


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"'imagenet'.*digits, cifar100, tiny_imagenet"):
        data.load("imagenet", tmp_path)


def test_each_entry_has_a_label_a_source_and_a_recipe():
    assert [entry.label for entry in data.DATASETS.values()] == ["digits", "CIFAR-100", "Tiny ImageNet"]
    assert all(entry.cite for entry in data.DATASETS.values())
    assert data.recipe("digits") == {"image_size": 16, "train_images": 300, "epochs": 20}
    assert data.recipe("cifar100") == {} and data.recipe("some/folder") == {}


def test_a_data_set_of_ones_own_is_loaded_by_its_name(own_entries, folder, tmp_path, monkeypatch):
    @data.dataset("My numbers", recipe={"epochs": 3})
    def mine(root, splits, *, part="numbers"):
        return data.load(root / part, image_size=8, splits=splits)

    monkeypatch.setenv("R2KD_DATA", str(tmp_path))
    loaded = data.load("mine", splits=("test",))
    assert loaded.name == "mine" and loaded.train is None and loaded.image_size == 8
    assert same(loaded.test, data.load(folder, image_size=8).test)
    assert data.recipe("mine") == {"epochs": 3}
    with pytest.raises(ValueError, match=r"'yours'.*tiny_imagenet, mine nor a folder"):
        data.load("yours")


def test_a_folder_without_splits_is_told_what_it_needs(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{re.escape(str(tmp_path))}.*train/<class>/.*test/<class>/"):
        data.load(tmp_path)


def test_the_fingerprint_is_of_the_files_and_the_size_whatever_is_read(folder):
    fingerprint = data.load(folder).fingerprint
    assert data.load(folder, splits=("test",)).fingerprint == fingerprint
    assert data.load(folder, image_size=8).fingerprint != fingerprint
    save(folder / "train" / "one" / "more.png", 0)
    assert data.load(folder).fingerprint != fingerprint


LAYOUTS = {"folder": (image_folder, "train/one/0.bmp"), "official": (official_folder, "train/n00000001/images/0.bmp")}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("put_back", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_image_replaced_by_one_of_its_name_and_size_is_noticed(layout, put_back, stream, tmp_path):
    make, name = LAYOUTS[layout]
    folder = make(tmp_path / "images")
    replaced = save(folder / name, 0)
    before, status = data.load(folder, stream=stream), replaced.stat()
    row = [str(path) for path in sorted((folder / "train").rglob("*.*")) if path.suffix != ".txt"].index(str(replaced))
    image = before.train.images[row]
    assert torch.equal(image, read(replaced)[0])
    save(replaced, 1)
    assert replaced.stat().st_size == status.st_size
    if put_back:
        os.utime(replaced, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert replaced.stat().st_mtime_ns == status.st_mtime_ns
    after = data.load(folder, stream=stream)
    assert after.fingerprint != before.fingerprint
    assert torch.equal(after.train.images[row], read(replaced)[0]) and not torch.equal(after.train.images[row], image)
    assert data.load(folder, splits=("test",)).fingerprint == after.fingerprint


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_touched_image_is_hashed_and_not_decoded(layout, tmp_path, hashed, decoded):
    folder = LAYOUTS[layout][0](tmp_path / "images")
    before = data.load(folder)
    hashed.clear(), decoded.clear()
    next((folder / "train").rglob("*_0.JPEG" if layout == "official" else "0.png")).touch()
    after = data.load(folder)
    assert after.fingerprint == before.fingerprint and same(after.train, before.train)
    assert decoded == [] and len(hashed) == len(before.train)
    assert len(cached(folder, ".digest")) == len(cached(folder, ".npz")) == 2
    hashed.clear()
    assert data.load(folder).fingerprint == before.fingerprint and hashed == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_copy_elsewhere_has_the_same_fingerprint(layout, tmp_path, decoded):
    folder = LAYOUTS[layout][0](tmp_path / "images")
    before = data.load(folder)
    decoded.clear()
    copy = Path(shutil.copytree(folder, tmp_path / "elsewhere" / "copy"))
    assert data.load(copy).fingerprint == before.fingerprint and decoded == []
    shutil.rmtree(copy / ".r2kd-cache")
    assert data.load(copy).fingerprint == before.fingerprint and decoded != []


def test_images_that_changed_places_are_another_fingerprint(folder):
    before = data.load(folder)
    one, two = (folder / "train" / name / "0.png" for name in ("one", "two"))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second), two.write_bytes(first)
    after = data.load(folder)
    assert after.fingerprint != before.fingerprint
    assert torch.equal(after.train.images[[0, 3]], before.train.images[[3, 0]])


def test_a_renamed_image_is_another_fingerprint(folder):
    before = data.load(folder)
    (folder / "train" / "one" / "0.png").rename(folder / "train" / "one" / "0a.png")
    after = data.load(folder)
    assert same(after.train, before.train) and after.fingerprint != before.fingerprint


def test_a_streamed_folder_is_hashed_once(folder, hashed):
    first = data.load(folder, stream=True)
    assert len(hashed) == 15
    hashed.clear()
    assert data.load(folder, stream=True).fingerprint == first.fingerprint and hashed == []


def flipped(content, at, bit=1):
    return content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: bytes(64),
        lambda whole: whole[:64],
        *(partial(flipped, at=at) for at in (0, 128)),
    ],
    ids=["empty", "zeros", "half", "a digit of it", "a digit of its check"],
)
def test_a_damaged_digest_is_named_and_made_again(damage, folder, capsys):
    first = data.load(folder)
    kept = cached(folder, ".digest")
    whole = [path.read_bytes() for path in kept]
    for path, content in zip(kept, whole, strict=True):
        path.write_bytes(damage(content))
    capsys.readouterr()
    assert data.load(folder).fingerprint == first.fingerprint
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" is damaged: it is made again")[0] for line in said] == [str(path) for path in kept]
    assert [path.read_bytes() for path in kept] == whole


def other_array(images):
    def damage(whole):
        made = io.BytesIO()
        with np.load(io.BytesIO(whole)) as kept:
            np.savez(made, **{name: images for name in kept})
        return made.getvalue()

    return damage


def whole_npy(whole):
    made = io.BytesIO()
    np.save(made, np.zeros((6, 3, 16, 16), np.uint8))
    return made.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[:3000],
        lambda whole: whole[:-1],
        partial(flipped, at=700),  # a pixel
        partial(flipped, at=210, bit=128),  # numpy's header
        other_array(np.zeros((6, 3, 16, 16), np.int64)),
        other_array(np.zeros((6, 3, 8, 8), np.uint8)),
        other_array(np.zeros((5, 3, 16, 16), np.uint8)),
        other_array(np.array({"an": "object"}, dtype=object)),
        whole_npy,
        lambda whole: pickle.dumps(print),
    ],
    ids=[
        "empty",
        "cut",
        "cut by one",
        "flipped",
        "header",
        "dtype",
        "size",
        "count",
        "pickle",
        "bare array",
        "foreign",
    ],
)
def test_a_damaged_decode_cache_is_named_and_decoded_again(damage, folder, decoded, capsys):
    first = data.load(folder)
    (kept,) = folder.glob(".r2kd-cache/test-*.npz")
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    decoded.clear(), capsys.readouterr()
    again = data.load(folder)
    assert same(first.test, again.test) and same(first.train, again.train) and len(decoded) == 6
    assert capsys.readouterr().err == f"{kept} is damaged: it is made again from the images\n"
    assert kept.read_bytes()[4000:] and same(data.load(folder).test, first.test) and len(decoded) == 6


def test_no_flipped_byte_of_the_decode_cache_is_used(folder, monkeypatch):
    paths = [str(folder / "test" / "one" / "3.png")]
    first = image_folders.decoded(folder, "test", paths, "digest", 1, True)
    monkeypatch.setattr(image_folders, "decode_images", lambda *_: first)  # as it would again
    (kept,) = folder.glob(".r2kd-cache/test-*.npz")
    whole = kept.read_bytes()
    for at in range(len(whole)):
        kept.write_bytes(flipped(whole, at, 1 << at % 8))
        assert torch.equal(image_folders.decoded(folder, "test", paths, "digest", 1, True), first), at


def test_the_cache_of_other_images_under_this_ones_name_is_not_used(folder, capsys):
    first = data.load(folder)
    (kept,) = folder.glob(".r2kd-cache/test-*.npz")
    save(folder / "test" / "one" / "3.png", 0)
    data.load(folder)
    (other,) = folder.glob(".r2kd-cache/test-*.npz")
    save(folder / "test" / "one" / "3.png", np.flatnonzero(DIGITS == 1)[3])
    other.rename(kept)
    assert same(data.load(folder).test, first.test) and "is damaged" in capsys.readouterr().err


def test_a_file_that_vanishes_while_it_is_hashed_is_named(folder, monkeypatch):
    gone, hash_files = folder / "train" / "two" / "1.png", image_folders.hash_files
    monkeypatch.setattr(image_folders, "hash_files", lambda paths: gone.unlink(missing_ok=True) or hash_files(paths))
    with pytest.raises(ValueError, match=rf"^{re.escape(str(gone))} cannot be read: No such file or directory$"):
        data.load(folder, splits=("train",))


def test_a_file_that_cannot_be_read_is_named(tiny):
    directory = tiny / "val" / "images" / "val_3.JPEG"
    directory.unlink()
    directory.mkdir()
    with pytest.raises(ValueError, match=rf"^{re.escape(str(directory))} cannot be read: it is no regular file$"):
        data.load(tiny, stream=True)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("layout", ["folder", "official", "official held out"])
def test_a_pipe_among_the_images_is_named_and_not_waited_for(layout, stream, tmp_path):
    folder = LAYOUTS[layout.partition(" ")[0]][0](tmp_path / "images")
    pipe = folder / ("val/images/val_3.JPEG" if "held out" in layout else LAYOUTS[layout][1])
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(pipe))} cannot be read: it is no regular file$"):
        data.load(folder, stream=stream)


@pytest.mark.parametrize("target", [".", "../one", "../two", "..", "../..", "/", "../../test"])
def test_a_link_back_into_the_folders_is_refused(target, folder):
    link = folder / "train" / "one" / "link"
    link.symlink_to(target, target_is_directory=True)
    with pytest.raises(ValueError, match=r"^\S+ and \S+ are one folder, which is read once: remove the link$"):
        data.load(folder)


def test_links_out_and_round_are_refused(folder, tmp_path):
    outside = tmp_path / "outside"
    save(outside / "more.png", 0)
    (outside / "back").symlink_to(folder / "train" / "one")
    (folder / "train" / "one" / "out").symlink_to(outside)
    with pytest.raises(
        ValueError, match=rf"^{re.escape(str(folder))}/train/one/out/back and [^\n]* are one folder, [^\n]*$"
    ):
        data.load(folder)


def test_a_link_to_itself_is_named(folder):
    (folder / "test" / "one" / "x.png").symlink_to("x.png")
    with pytest.raises(ValueError, match=r"/x\.png cannot be read: Too many levels of symbolic links$"):
        data.load(folder)


def test_links_that_lead_elsewhere_are_followed(folder, tmp_path):
    first = data.load(folder)
    (folder / "train" / "one").rename(tmp_path / "one")
    (folder / "train" / "one").symlink_to(tmp_path / "one")
    (folder / "test").rename(tmp_path / "test")
    (folder / "test").symlink_to(tmp_path / "test")
    again = data.load(folder)
    assert again.fingerprint == first.fingerprint and same(again.train, first.train) and same(again.test, first.test)


def test_images_at_any_depth_are_in_torchvisions_order(folder):
    for name in ("a/b/0.png", "a.d/0.PNG", "a/0.png", "B/0.jpeg"):
        save(folder / "train" / "one" / name, 0)
    found = class_images(folder / "train", {})
    expected = ImageFolder(folder / "train")
    assert list(found) == expected.classes
    assert [(path, i) for i, paths in enumerate(found.values()) for path in paths] == expected.samples


def test_files_of_unlisted_types_are_counted_and_said(folder, capsys):
    images = sorted((folder / "train" / "one").iterdir())
    data.load(folder)
    assert capsys.readouterr().err == ""
    images[0].rename(images[0].with_suffix(".gif"))
    (folder / "train" / "two" / "a" / "b").mkdir(parents=True)
    for name in ("one/notes.txt", "two/a/b/more.GIF", "two/README", "labels.csv", "one/.DS_Store"):
        (folder / "train" / name).write_text("no image")
    assert len(data.load(folder).train) == 8
    said = capsys.readouterr().err
    expected = (
        f"{folder / 'train'}: 5 files are not read (2 .gif, 1 in no class, 1 .txt, 1 without suffix); images are .jpg,"
    )
    assert said.startswith(expected) and said.count("\n") == 1


def test_of_tiny_imagenets_own_files_nothing_is_said(tiny, capsys):
    data.load(tiny)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["wnids.txt", "val/val_annotations.txt"])
@pytest.mark.parametrize("binary", [False, True])
def test_a_list_that_is_no_text_is_named(name, binary, tiny):
    (tiny / name).unlink()
    (tiny / name).write_bytes(b"\xff\xfe\x00") if binary else (tiny / name).mkdir()
    with pytest.raises(ValueError, match=rf"^{re.escape(str(tiny / name))} cannot be read: [^\n]*$"):
        data.load(tiny)


def deep(suffix, values, path):
    path.unlink()
    Image.fromarray(values).save(path.with_suffix(suffix))


@pytest.mark.parametrize(("suffix", "scale"), [(".png", 257), (".png", 256), (".tiff", 257)])
def test_images_of_16_bits_are_scaled_to_8(suffix, scale, folder):
    first = data.load(folder)
    for path in sorted(folder.rglob("*.png")):
        deep(suffix, np.array(Image.open(path).convert("L")).astype(np.uint16) * scale, path)
    again = data.load(folder)
    assert first.train.images.unique().numel() > 50
    assert same(again.train, first.train) and same(again.test, first.test)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
@pytest.mark.parametrize("stream", [False, True])
def test_images_of_no_known_range_are_refused_by_name(dtype, stream, folder):
    for path in sorted((folder / "train" / "one").iterdir()):
        deep(".tiff", np.array(Image.open(path).convert("L")).astype(dtype) / dtype(1), path)
    with pytest.raises(
        ValueError, match=r"^\S+/train/one/\d\.tiff has pixels of 32 bits, [^\n]*: save it with 8 or 16$"
    ):
        loaded = data.load(folder, stream=stream)
        list(loaded.train.batches([torch.arange(9)]))


def test_thousands_of_files_are_hashed_in_their_order(tmp_path):
    paths = [tmp_path / str(i) for i in range(2345)]
    for path in paths:
        path.write_text(path.name)
    expected = [hashlib.sha256(path.name.encode()).hexdigest() for path in paths]
    assert image_folders.hash_files([str(path) for path in paths]) == expected


def test_the_second_load_decodes_and_hashes_nothing(folder, decoded, hashed):
    first = data.load(folder)
    assert len(decoded) == len(hashed) == 15
    decoded.clear(), hashed.clear()
    again = data.load(folder)
    assert decoded == hashed == []
    assert same(first.train, again.train) and same(first.test, again.test)
    assert first.fingerprint == again.fingerprint


def test_a_changed_image_is_decoded_again(folder, decoded):
    first = data.load(folder)
    decoded.clear()
    changed = save(folder / "test" / "one" / "3.png", 0)
    os.utime(changed, ns=(1, 1))
    again = data.load(folder)
    assert len(decoded) == 6 and str(changed) in decoded
    assert not torch.equal(again.test.images[0], first.test.images[0])
    assert torch.equal(again.test.images[0], read(changed)[0])
    assert len(cached(folder, ".npz")) == len(cached(folder, ".digest")) == 2 and not cached(folder, ".tmp")


def test_an_added_and_a_removed_image_are_noticed(folder):
    data.load(folder)
    added = save(folder / "train" / "one" / "9.png", 0)
    assert torch.equal(data.load(folder).train.images[3], read(added)[0])
    added.unlink()
    assert len(data.load(folder).train) == 9


def test_reading_one_split_first_neither_loses_nor_changes_the_cache(folder, decoded):
    test = data.load(folder, splits=("test",))
    kept = cached(folder, ".npz")
    assert len(kept) == 1 and len(decoded) == 6
    decoded.clear()
    both = data.load(folder)
    assert len(decoded) == 9 and kept[0].exists()
    assert same(test.test, both.test) and test.fingerprint == both.fingerprint and test.classes == both.classes
    decoded.clear()
    assert same(data.load(folder, splits=("train",)).train, both.train)
    assert same(data.load(folder, splits=("test",)).test, both.test)
    assert decoded == []


def test_the_cache_of_one_size_is_not_read_for_another(folder):
    native = data.load(folder)
    assert data.load(folder, image_size=8).image_size == 8
    assert data.load(folder, image_size=12).image_size == 12
    assert same(data.load(folder).train, native.train)


def test_a_folder_that_was_moved_keeps_its_cache(folder, decoded):
    first = data.load(folder)
    decoded.clear()
    moved = data.load(folder.rename(folder.with_name("moved")))
    assert decoded == [] and same(moved.train, first.train) and moved.fingerprint == first.fingerprint


def test_a_full_disk_costs_the_cache_alone(folder, monkeypatch, capsys):
    def fill_the_disk(file, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(image_folders.np, "savez", fill_the_disk)
        loaded = data.load(folder)
    assert "No space left on device" in capsys.readouterr().err
    assert {path.suffix for path in (folder / ".r2kd-cache").iterdir()} == {".digest", ".lock"}
    again = data.load(folder)
    assert same(loaded.train, again.train) and same(loaded.test, again.test)
    assert len(cached(folder, ".npz")) == 2


def test_a_place_that_cannot_hold_the_cache_costs_the_cache_alone(folder, capsys):
    (folder / ".r2kd-cache").write_text("a file where the folder should be")
    loaded = data.load(folder)
    assert torch.equal(loaded.train.images[:3], read(*sorted((folder / "train" / "one").iterdir())))
    told = capsys.readouterr().err
    assert "digests are not kept" in told and "decoded images are not kept" in told
    (folder / ".r2kd-cache").unlink()
    assert data.load(folder).fingerprint == loaded.fingerprint


def test_tiny_imagenet_has_all_classes_of_its_list(tiny):
    loaded = data.load("tiny_imagenet", tiny.parent)
    assert loaded.name == "tiny_imagenet" and loaded.classes == tuple(sorted(WNIDS))
    assert loaded.train.labels.tolist() == [0, 0, 0, 2, 2, 2]
    assert loaded.test.labels.tolist() == [2, 0, 1, 2, 0, 1]
    assert torch.equal(loaded.train.images, read(*sorted((tiny / "train").glob("*/images/*.JPEG"))))
    assert torch.equal(loaded.test.images, read(*sorted((tiny / "val" / "images").iterdir())))
    assert (loaded.mean, loaded.std) == data.IMAGENET_STATISTICS and loaded.flip and loaded.policy == "imagenet"


@pytest.mark.parametrize("place", ["tiny-imagenet-200", "tiny_imagenet", "."])
def test_tiny_imagenet_is_found_in_each_of_its_places(place, tmp_path):
    official_folder(tmp_path / place)
    assert len(data.load("tiny_imagenet", tmp_path).test) == 6


def test_the_environment_says_where_named_data_sets_lie(tiny, monkeypatch):
    monkeypatch.setenv("R2KD_DATA", str(tiny.parent))
    assert len(data.load("tiny_imagenet").test) == 6


def test_the_official_layout_is_known_by_its_folder_alone(tiny):
    named, found = data.load("tiny_imagenet", tiny.parent), data.load(tiny)
    assert found.name == "tiny-imagenet-200" and found.classes == named.classes
    assert same(found.train, named.train) and same(found.test, named.test)
    assert found.fingerprint == named.fingerprint


def test_the_training_classes_are_kept_and_counted_anew(tiny):
    loaded = data.load(tiny)
    kept = loaded.with_training_classes()
    assert kept.classes == TRAINED and kept.num_classes == 2 and kept.of_classes == 3
    assert kept.train.labels.tolist() == [0, 0, 0, 1, 1, 1] and kept.test.labels.tolist() == [1, 0, 1, 0]
    assert torch.equal(kept.train.images, loaded.train.images)
    assert torch.equal(kept.test.images, loaded.test.images[[0, 1, 3, 4]])
    assert kept.with_training_classes() is kept


def test_where_all_classes_have_training_images_all_are_kept(digits):
    assert digits.with_training_classes() is digits and digits.of_classes is None


def test_keeping_the_training_classes_needs_training_images(tiny):
    with pytest.raises(ValueError, match="tiny_imagenet has no training images"):
        data.load("tiny_imagenet", tiny.parent, splits=("test",)).with_training_classes()


def test_tiny_imagenet_without_training_images_can_be_tested_on(tiny):
    whole = data.load(tiny)
    (tiny / "train").rename(tiny / "elsewhere")
    loaded = data.load("tiny_imagenet", tiny.parent, splits=("test",))
    assert loaded.train is None and loaded.classes == whole.classes and same(loaded.test, whole.test)
    with pytest.raises(FileNotFoundError, match=rf"{re.escape(str(tiny))} has no folder train/"):
        data.load("tiny_imagenet", tiny.parent)


def test_missing_annotations_are_named(tiny):
    (tiny / "val" / "val_annotations.txt").unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(str(tiny / "val" / "val_annotations.txt"))):
        data.load("tiny_imagenet", tiny.parent)


def test_an_annotated_image_that_is_not_there_is_named(tiny):
    (tiny / "val" / "images" / "val_3.JPEG").unlink()
    with pytest.raises(ValueError, match=rf"{re.escape(str(tiny / 'val' / 'images' / 'val_3.JPEG'))} is missing"):
        data.load(tiny)


@pytest.mark.parametrize("content", ["", "val_0.JPEG n00000001\n"])
def test_annotations_that_cannot_be_read_are_named(content, tiny):
    (tiny / "val" / "val_annotations.txt").write_text(content)
    with pytest.raises(ValueError, match=re.escape(str(tiny / "val" / "val_annotations.txt"))):
        data.load(tiny)


def test_a_class_that_is_not_on_the_list_is_named(tiny):
    (tiny / "wnids.txt").write_text("n00000001\nn00000002\n")
    with pytest.raises(ValueError, match=r"wnids\.txt does not list: n00000003$"):
        data.load(tiny)


def test_the_real_cifar100_test_images_are_10000_with_the_known_mean(tmp_path):
    archive = Path(__file__).resolve().parents[2] / "shared" / "datasets" / "cifar100-test.zip"
    if not archive.exists():
        pytest.skip(f"needs cifar100-test.zip in the folder {archive.parent}")
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path)
    loaded = data.load("cifar100", tmp_path, splits=("test",))
    assert loaded.train is None and loaded.test.images.shape == (10000, 3, 32, 32)
    assert torch.bincount(loaded.test.labels).tolist() == [100] * 100
    assert loaded.classes[:2] == ("apple", "aquarium_fish") and loaded.num_classes == 100
    mean = loaded.test.images.double().mean(dim=(0, 2, 3)) / 255
    assert mean.tolist() == pytest.approx((0.5071, 0.4867, 0.4408), abs=0.01)


def test_another_label_is_another_fingerprint(tmp_path):
    official = tmp_path / "tiny-imagenet-200"
    official_folder(official)
    before = data.load("tiny_imagenet", tmp_path).fingerprint
    annotations = official / "val" / "val_annotations.txt"
    first, second = sorted((official / "wnids.txt").read_text().split())[:2]
    text = annotations.read_text()
    annotations.write_text(text.replace(first, "swap").replace(second, first).replace("swap", second))
    assert annotations.read_text() != text
    assert data.load("tiny_imagenet", tmp_path).fingerprint != before


def test_the_cifar100_archive_is_not_scaled_behind_ones_back(tmp_path):
    with pytest.raises(ValueError, match="the CIFAR-100 archive has 32 pixels, not 64"):
        data.load("cifar100", tmp_path, image_size=64)


def test_a_data_set_of_ones_own_is_an_entry_whose_options_and_contents_count(tmp_path):
    def stripes(splits, *, width=2, shade=200):
        pixels = (torch.arange(16) // width % 2 * shade).to(torch.uint8).expand(4, 3, 16, 16).contiguous()
        part = data.Split(pixels, torch.tensor([0, 1, 0, 1]))
        about = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "flip": False, "policy": "cifar10"}
        return data.ImageData("stripes", ("a", "b"), part, part if "test" in splits else None, **about)

    data.dataset("Stripes", recipe={"epochs": 3})(stripes)
    try:
        loaded, wide, again = (data.load(name) for name in ("stripes", "stripes:width=4", "stripes"))
        assert loaded.fingerprint == again.fingerprint != wide.fingerprint and wide.name == "stripes:width=4"
        assert (
            data.recipe("stripes:width=4") == {"epochs": 3} and data.named("stripes") and not data.named(str(tmp_path))
        )
        with pytest.raises(ValueError, match="unknown option 'depth' of data set 'stripes'; known: width, shade"):
            data.load("stripes:depth=1")
    finally:
        data.DATASETS._entries.pop("stripes")
