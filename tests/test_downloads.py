"""Downloads from a server of our own on loopback, that stalls, cuts and lies; archives; several processes at once."""

import hashlib
import io
import multiprocessing
import os
import pickle
import re
import socket
import tarfile
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from types import SimpleNamespace

from r2kd import data, downloads

import numpy as np
import pytest
import torch
from test_data import DIGITS, image_folder, official_folder, picture, same
from torchvision.datasets import CIFAR100

BODY = bytes(range(256)) * 4000  # a megabyte


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(downloads, "WAITS", (0, 0.01, 0.02))
    monkeypatch.setattr(downloads, "TIMEOUT", 5)


@pytest.fixture
def server(monkeypatch):
    """A loopback server of `files` by path, with a list of `requests`, (path, range).

    `tricks`, used up one a request: what it does instead of answering well; `cut_off`: all answers end half-way.
    """
    state = SimpleNamespace(files={}, requests=[], cut_off=False, tricks=[], closing=Event(), sent=0)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked = self.headers.get("Range")
            state.requests.append((self.path, asked))
            content = state.files[self.path]
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
            trick = state.tricks.pop(0) if state.tricks else "cut" if state.cut_off else None
            if callable(trick):
                return trick(self, content)
            if trick == "no ranges":
                start = 0
            if start >= len(content):
                return self.answer(416, {"Content-Length": "0"})
            shown = start - 100 if trick == "another range" else start
            headers = {"Content-Range": f"bytes {shown}-{len(content) - 1}/{len(content)}"} if start else {}
            content = content[start:]
            self.answer(206 if start else 200, headers | {"Content-Length": str(len(content))})
            if trick in ("cut", "stall"):
                content = content[: len(content) // 2]
            self.wfile.write(content)
            self.wfile.flush()
            if trick == "stall":
                state.closing.wait(20)

        def answer(self, code, headers):
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_):
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.handle_error = lambda *_: None  # a client that has had enough hangs up
        state.address = f"http://127.0.0.1:{http.server_port}"
        state.url = f"{state.address}/body"
        state.files["/body"] = BODY
        thread = Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield state
        state.closing.set()
        http.shutdown()
        thread.join()


def part(path):
    return path.with_name(f".{path.name}.part")


def left(folder):
    """What lies in a folder beside the lock."""
    return sorted(set(os.listdir(folder)) - {".download.lock"})


def ranges(server):
    return [asked for _, asked in server.requests]


@pytest.fixture
def nowhere(monkeypatch):
    """An address whose port is taken, so that no one else listens there, and answers nothing."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def md5(content):
    return hashlib.md5(content).hexdigest()


def fetch(server, path, **limits):
    downloads.fetch(server.url, path, **limits)
    assert path.read_bytes() == BODY and left(path.parent) == [path.name]


def test_a_download_that_is_cut_resumes_where_it_broke_off(server, tmp_path):
    server.tricks = ["cut", "cut"]
    fetch(server, tmp_path / "file", at_least=len(BODY), at_most=len(BODY), md5=md5(BODY))
    assert ranges(server) == [None, f"bytes={len(BODY) // 2}-", f"bytes={len(BODY) * 3 // 4}-"]


def test_what_several_processes_fetch_at_once_comes_once(server, tmp_path):
    fork = multiprocessing.get_context("fork")
    limits = {"at_least": len(BODY), "at_most": len(BODY), "md5": md5(BODY)}
    several = [fork.Process(target=fetch, args=(server, tmp_path / "file"), kwargs=limits) for _ in range(6)]
    for process in several:
        process.start()
    for process in several:
        process.join()
    assert [process.exitcode for process in several] == [0] * 6 and ranges(server) == [None]


def test_a_download_that_stalls_is_tried_again(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", 0.3)
    server.tricks = ["stall"]
    downloads.fetch(server.url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY and len(server.requests) == 2


def test_a_download_that_always_breaks_off_keeps_its_part_for_the_next(server, tmp_path):
    server.cut_off = True
    with pytest.raises(
        OSError, match=r"^it broke off 4 times \([^\n]*\); 9\d\d,\d{3} bytes are kept in [^\n]*\.file\.part$"
    ):
        downloads.fetch(server.url, tmp_path / "file")
    kept = part(tmp_path / "file").stat().st_size
    assert left(tmp_path) == [".file.part"]
    server.cut_off, server.requests = False, []
    fetch(server, tmp_path / "file")
    assert ranges(server) == [f"bytes={kept}-"]


@pytest.mark.parametrize("trick", ["no ranges", "another range"])
def test_a_server_that_knows_no_ranges_or_sends_another_starts_anew(trick, server, tmp_path):
    server.tricks = ["cut", trick]
    fetch(server, tmp_path / "file", md5=md5(BODY))


@pytest.mark.parametrize("left", [b"of another file", bytes(len(BODY)), bytes(len(BODY) + 1)])
@pytest.mark.parametrize("known", [True, False])
def test_a_part_of_another_file_is_thrown_away(left, known, server, tmp_path):
    part(tmp_path / "file").write_bytes(left)
    limits = {"at_least": len(BODY), "at_most": len(BODY)} if known else {}
    fetch(server, tmp_path / "file", md5=md5(BODY), **limits)


def test_answers_that_pass_are_tried_again_and_others_are_not(server, tmp_path):
    server.tricks = [lambda handler, _: handler.send_error(503), lambda handler, _: handler.send_error(429)]
    fetch(server, tmp_path / "file")
    server.tricks, server.requests = [lambda handler, _: handler.send_error(404)], []
    with pytest.raises(OSError, match=r"^the server answers 404 Not Found$"):
        downloads.fetch(server.url, tmp_path / "other")
    assert len(server.requests) == 1 and left(tmp_path) == ["file"]


def test_a_wrong_length_is_refused_before_a_byte_is_written(server, tmp_path):
    for limits in ({"at_least": len(BODY) + 1}, {"at_most": len(BODY) - 1}, {"at_least": 9, "at_most": 9}):
        server.requests.clear()
        with pytest.raises(ValueError, match=r"^it has 1,024,000 bytes, not (at least 1,024,001|1 to 1,023,999|9)$"):
            downloads.fetch(server.url, tmp_path / "file", **limits)
        assert len(server.requests) == 1 and left(tmp_path) == []


def endless(state, chunked):
    def answer(handler, _):
        handler.answer(200, {"Transfer-Encoding": "chunked"} if chunked else {})
        block = bytes(2**16)
        try:
            while state.sent < 2**30:
                handler.wfile.write(b"%x\r\n%s\r\n" % (len(block), block) if chunked else block)
                state.sent += len(block)
        except OSError:
            pass

    return answer


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_without_a_length_is_bounded_while_it_streams(chunked, server, tmp_path):
    server.tricks = [endless(server, chunked)]
    if chunked:
        server.tricks[0] = lambda handler, body, answer=server.tricks[0]: (
            setattr(handler, "protocol_version", "HTTP/1.1"),
            answer(handler, body),
        )
    with pytest.raises(ValueError, match=r"^it has more than 3,400,000 bytes$"):
        downloads.fetch(server.url, tmp_path / "file", at_most=3_400_000)
    assert server.sent < 50 * 2**20 and left(tmp_path) == []


def test_a_redirect_to_a_file_is_refused(server, tmp_path):
    (tmp_path / "secret").write_text("secret")
    address = f"file://{tmp_path}/secret"
    server.tricks = [lambda handler, _: handler.answer(302, {"Location": address, "Content-Length": "0"})]
    with pytest.raises(OSError, match=r"^the server answers 302 [^\n]*not allowed[^\n]*$"):
        downloads.fetch(server.url, tmp_path / "file")
    assert left(tmp_path) == ["secret"]


def test_another_content_is_told_by_both_checksums(server, tmp_path):
    with pytest.raises(ValueError, match=rf"^what came has the MD5 {md5(BODY)}, not {'0' * 32}$"):
        downloads.fetch(server.url, tmp_path / "file", md5="0" * 32)
    assert len(server.requests) == 1 and left(tmp_path) == []


def test_without_a_server_it_is_tried_again_and_said(nowhere, tmp_path):
    with pytest.raises(ConnectionError, match=rf"^{nowhere}/x: [^\n]*refused$"):
        downloads.fetch(f"{nowhere}/x", tmp_path / "file")
    assert left(tmp_path) == []


def test_a_full_disk_names_the_file_and_keeps_what_came(server, tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, content):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloads, "open", lambda path, mode: Full(path, mode), raising=False)
    with pytest.raises(OSError, match=r"No space left on device: '[^\n]*/\.file\.part'$"):
        downloads.fetch(server.url, tmp_path / "file")


def test_what_was_there_is_set_aside_when_the_new_file_has_come(server, tmp_path):
    (tmp_path / "file").write_text("mine")
    downloads.fetch(server.url, tmp_path / "file")
    assert (tmp_path / "file.damaged").read_text() == "mine" and (tmp_path / "file").read_bytes() == BODY


def zipped(path, content, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a/member", content)
    return path


def flag(path, at, central, value):
    """The zip with another value, of two bytes, in both headers of its one member."""
    content = bytearray(path.read_bytes())
    for place in (at, content.index(b"PK\1\2") + central):
        content[place : place + 2] = value.to_bytes(2, "little")
    path.write_bytes(content)
    return path


DAMAGES = {
    "encrypted": lambda path: flag(zipped(path, b"x" * 50), 6, 8, 1),
    "unknown compression": lambda path: flag(zipped(path, b"x" * 50), 8, 10, 77),
    "bzip2": lambda path: zipped(path, b"x" * 50, zipfile.ZIP_BZIP2),
    "bomb": lambda path: zipped(path, bytes(50 * 2**20)),
    "cut": lambda path: path.write_bytes(zipped(path, os.urandom(50)).read_bytes()[:-30]),
    "flipped": lambda path: path.write_bytes(zipped(path, b"x" * 50, 0).read_bytes().replace(b"xx", b"xy", 1)),
    "empty": lambda path: path.write_bytes(b""),
    "none": lambda path: None,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_zip_that_is_damaged_encrypted_or_a_bomb_is_refused_in_a_line(damage, tmp_path):
    path = tmp_path / "x.zip"
    DAMAGES[damage](path)
    with pytest.raises(ValueError, match=rf"^a/member in {re.escape(str(path))} cannot be had: [^\n]+$"):
        downloads.zip_member(path, "a/member", 1000)


def test_a_member_of_a_zip_is_read_up_to_its_limit(tmp_path):
    path = zipped(tmp_path / "x.zip", b"x" * 50)
    assert downloads.zip_member(path, "a/member", 50) == b"x" * 50
    with pytest.raises(ValueError, match="it has 50 bytes, not 1 to 49"):
        downloads.zip_member(path, "a/member", 49)
    with pytest.raises(ValueError, match=r"cannot be had: .*no item named 'other'"):
        downloads.zip_member(path, "other", 50)


@pytest.fixture
def cifar100(server, monkeypatch):
    """A small CIFAR-100 on the server, as (its pixels by split, its archive)."""
    pixels = {
        split: np.stack([np.array(picture(index, (32, 32))).transpose(2, 0, 1) for index in indices])
        for split, indices in (("train", range(20)), ("test", range(20, 30)))
    }
    files = {"meta": pickle.dumps({"fine_label_names": list("0123456789")}, protocol=2)}
    for split, start in (("train", 0), ("test", 20)):
        labels = DIGITS[start : start + len(pixels[split])].tolist()
        entry = {"data": pixels[split].reshape(-1, 3072), "fine_labels": labels, "coarse_labels": labels}
        files[split] = pickle.dumps(entry, protocol=2)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-100-python/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    server.files["/cifar-100-python.tar.gz"] = archive.getvalue()
    monkeypatch.setattr(CIFAR100, "url", f"{server.address}/cifar-100-python.tar.gz")
    monkeypatch.setattr(CIFAR100, "tgz_md5", md5(archive.getvalue()))
    monkeypatch.setattr(data, "CIFAR100_SIZE", len(archive.getvalue()))
    monkeypatch.setattr(CIFAR100, "train_list", [["train", md5(files["train"])]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", md5(files["test"])]])
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": md5(files["meta"])})
    return pixels


@pytest.fixture
def tiny_imagenet(server, monkeypatch, tmp_path):
    """A small Tiny ImageNet on the server; its folder as it was packed."""
    source = official_folder(tmp_path / "source" / "tiny-imagenet-200")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(source.rglob("*")):
            packed.write(path, path.relative_to(source.parent))
    server.files["/tiny-imagenet-200.zip"] = archive.getvalue()
    monkeypatch.setattr(data, "TINY_IMAGENET_URL", f"{server.address}/tiny-imagenet-200.zip")
    monkeypatch.setattr(data, "TINY_IMAGENET_MD5", md5(archive.getvalue()))
    monkeypatch.setattr(data, "TINY_IMAGENET_SIZE", len(archive.getvalue()))
    return source


def seen(root):
    """What is in a folder, but for the locks."""
    return sorted(path.name for path in root.iterdir() if path.suffix != ".lock")


def test_the_real_addresses_sizes_and_checksums_are_these():
    assert (data.TINY_IMAGENET_SIZE, data.CIFAR100_SIZE) == (248_100_043, 169_001_437)
    assert data.TINY_IMAGENET_URL == "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    assert data.TINY_IMAGENET_MD5 == "90528d7ca1a48142e341f4ef8d21d0de"
    assert CIFAR100.tgz_md5 == "eb9058c3a382ffc7106e4002c42a8d85" and CIFAR100.filename == "cifar-100-python.tar.gz"
    assert CIFAR100.url == "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"


def test_cifar100_is_downloaded_once(cifar100, server, tmp_path):
    root = tmp_path / "new" / "data"
    loaded = data.load("cifar100", root)
    assert loaded.name == "cifar100" and loaded.classes == tuple("0123456789") and loaded.image_size == 32
    assert torch.equal(loaded.train.images, torch.from_numpy(cifar100["train"]))
    assert torch.equal(loaded.test.images, torch.from_numpy(cifar100["test"]))
    assert loaded.train.labels.tolist() == DIGITS[:20].tolist() and loaded.train.labels.dtype == torch.int64
    assert loaded.test.labels.tolist() == DIGITS[20:30].tolist()
    assert (loaded.mean, loaded.std) == data.CIFAR100_STATISTICS and loaded.flip and loaded.policy == "cifar10"
    assert server.requests
    server.requests.clear()
    assert same(data.load("cifar100", root).train, loaded.train)
    assert server.requests == []


def test_cifar100_reads_only_the_splits_asked_for(cifar100, tmp_path):
    loaded = data.load("cifar100", tmp_path, splits=("test",))
    assert loaded.train is None and torch.equal(loaded.test.images, torch.from_numpy(cifar100["test"]))


def test_a_damaged_file_of_cifar100_is_unpacked_again(cifar100, server, tmp_path):
    whole = data.load("cifar100", tmp_path)
    server.requests.clear()
    (tmp_path / "cifar-100-python" / "train").write_bytes(b"half")
    assert same(data.load("cifar100", tmp_path).train, whole.train)
    assert server.requests == []


def test_cifar100_as_a_folder_of_images_is_not_downloaded(cifar100, server, tmp_path):
    image_folder(tmp_path / "cifar100")
    loaded = data.load("cifar100", tmp_path)
    assert loaded.classes == ("one", "two", "zero") and server.requests == []
    assert (loaded.mean, loaded.std) == data.CIFAR100_STATISTICS and loaded.policy == "cifar10"


def test_tiny_imagenet_is_downloaded_once(tiny_imagenet, server, tmp_path):
    root = tmp_path / "new" / "data"
    loaded, expected = data.load("tiny_imagenet", root), data.load(tiny_imagenet)
    assert loaded.classes == expected.classes
    assert same(loaded.train, expected.train) and same(loaded.test, expected.test)
    assert seen(root) == ["tiny-imagenet-200", "tiny-imagenet-200.zip"]
    assert server.requests
    server.requests.clear()
    assert same(data.load("tiny_imagenet", root).train, loaded.train)
    assert server.requests == []


def test_a_zip_of_tiny_imagenet_put_into_the_folder_is_not_downloaded(tiny_imagenet, server, tmp_path):
    (tmp_path / "tiny-imagenet-200.zip").write_bytes(server.files["/tiny-imagenet-200.zip"])
    assert len(data.load("tiny_imagenet", tmp_path).test) == 6
    assert server.requests == []


def test_tiny_imagenet_is_unpacked_whole_or_not_at_all(tiny_imagenet, server, tmp_path, monkeypatch):
    root, unpack = tmp_path / "data", downloads.shutil.unpack_archive

    def unpack_and_stop(archive, place):
        unpack(archive, place)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(downloads.shutil, "unpack_archive", unpack_and_stop)
        with pytest.raises(KeyboardInterrupt):
            data.load("tiny_imagenet", root)
    assert seen(root) == ["tiny-imagenet-200.zip"]
    server.requests.clear()
    assert len(data.load("tiny_imagenet", root).test) == 6
    assert server.requests == []


NAMED = {
    "cifar100": SimpleNamespace(file="cifar-100-python.tar.gz", url=(CIFAR100, "url"), md5=(CIFAR100, "tgz_md5")),
    "tiny_imagenet": SimpleNamespace(
        file="tiny-imagenet-200.zip", url=(data, "TINY_IMAGENET_URL"), md5=(data, "TINY_IMAGENET_MD5")
    ),
}


def assert_says_what_to_do(error, name, address, root):
    message = str(error.value)
    assert f"{address}/{NAMED[name].file}" in message and re.search(r"\(\d+ MB\)", message)
    assert NAMED[name].file in message.rsplit("; put ", 1)[1] and message.endswith(f"into {root}")


@pytest.mark.parametrize("name", NAMED)
def test_a_wrong_checksum_leaves_no_half_data_set(name, server, tmp_path, monkeypatch, request):
    request.getfixturevalue(name)
    root = tmp_path / "data"
    with monkeypatch.context() as patch:
        patch.setattr(*NAMED[name].md5, "0" * 32)
        with pytest.raises(FileNotFoundError) as error:
            data.load(name, root)
    assert_says_what_to_do(error, name, server.address, root)
    assert seen(root) == []
    assert f"has the MD5 {md5(server.files['/' + NAMED[name].file])}, not {'0' * 32}" in str(error.value)
    assert len(data.load(name, root).test)


@pytest.mark.parametrize("name", NAMED)
def test_a_download_that_was_cut_off_starts_anew(name, server, tmp_path, request):
    request.getfixturevalue(name)
    root = tmp_path / "data"
    server.cut_off = True
    with pytest.raises(FileNotFoundError) as error:
        data.load(name, root)
    assert_says_what_to_do(error, name, server.address, root)
    server.cut_off = False
    assert len(data.load(name, root).test)


@pytest.mark.parametrize("name", NAMED)
def test_a_server_that_is_not_there_is_told_with_what_to_do(name, nowhere, tmp_path, monkeypatch):
    monkeypatch.setattr(*NAMED[name].url, f"{nowhere}/{NAMED[name].file}")
    root = tmp_path / "data"
    with pytest.raises(FileNotFoundError) as error:
        data.load(name, root)
    assert_says_what_to_do(error, name, nowhere, root)
    assert seen(root) == []


@pytest.mark.parametrize("name", NAMED)
def test_an_archive_of_another_content_is_said_and_set_aside_for_the_right_one(name, server, tmp_path, request):
    request.getfixturevalue(name)
    archive = tmp_path / "data" / NAMED[name].file
    archive.parent.mkdir()
    archive.write_bytes(b"half")
    server.cut_off = True
    with pytest.raises(FileNotFoundError) as error:
        data.load(name, archive.parent)
    assert f"{archive} has the MD5 {md5(b'half')}, not " in str(error.value) and archive.read_bytes() == b"half"
    server.cut_off = False
    assert len(data.load(name, archive.parent).test)
    assert archive.with_name(f"{archive.name}.damaged").read_bytes() == b"half"


def test_a_half_copied_tiny_imagenet_is_said_and_left_alone(tiny_imagenet, server, tmp_path):
    half = tmp_path / "tiny-imagenet-200"
    (half / "train").mkdir(parents=True)
    with pytest.raises(
        FileNotFoundError, match=rf"^{half} has neither wnids\.txt nor \S+: finish copying it, or move it away$"
    ):
        data.load("tiny_imagenet", tmp_path)
    assert os.listdir(half) == ["train"] and server.requests == []


def test_a_half_copied_cifar100_is_said(server, cifar100, tmp_path):
    (tmp_path / "cifar-100-python").mkdir()
    server.tricks = [lambda handler, _: handler.send_error(404)]
    with pytest.raises(
        FileNotFoundError, match=rf"^{tmp_path}/cifar-100-python is not whole, and [^\n]*answers 404[^\n]*$"
    ):
        data.load("cifar100", tmp_path)


def test_what_a_killed_unpacking_left_is_cleared_away(tiny_imagenet, tmp_path):
    left = tmp_path / ".tiny-imagenet-200.unpacking" / "tiny-imagenet-200" / "half"
    left.parent.mkdir(parents=True)
    left.write_text("half")
    assert len(data.load("tiny_imagenet", tmp_path).test) == 6
    assert seen(tmp_path) == ["source", "tiny-imagenet-200", "tiny-imagenet-200.zip"]


def load_at_once(name, root, start, found):
    start.wait(60)
    try:
        found.put(data._hash_of_pixels(data.load(name, root)))
    except BaseException as error:
        found.put(repr(error))


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="needs processes that inherit a patch"
)
@pytest.mark.parametrize("name", NAMED)
def test_three_processes_that_need_a_data_set_at_once_download_unpack_and_decode_it_once(
    name, server, tmp_path, request, capfd
):
    request.getfixturevalue(name)
    root, forked = tmp_path / "data", multiprocessing.get_context("fork")
    start, found = forked.Barrier(3), forked.SimpleQueue()
    loading = [forked.Process(target=load_at_once, args=(name, root, start, found)) for _ in range(3)]
    for process in loading:
        process.start()
    answers = [found.get() for _ in loading]
    for process in loading:
        process.join(60)
    assert len(set(answers)) == 1 and re.fullmatch("[0-9a-f]{16}", answers[0]), answers
    assert len(server.requests) == 1 and capfd.readouterr().err == ""
    assert len(list(root.glob("*/.r2kd-cache/*.npz"))) == (2 if name == "tiny_imagenet" else 0)
    assert not [path for path in root.rglob("*") if path.suffix in (".tmp", ".part", ".unpacking")]
