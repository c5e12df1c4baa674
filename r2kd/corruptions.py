"""CIFAR-C's and Tiny-ImageNet-C's corruptions at their own sizes, batched. Hendrycks & Dietterich, ICLR 2019.

One entry a corruption; its facts are the constants of severities 1 to 5 as they were published for 32 and for 64 pixels. An
entry gets `images` (N, 3, S, S) float32 in grey levels, 0 to 255, the `constants` of one severity, and a CPU `generator`; it
returns grey levels, which are clipped and truncated to uint8, as the released code does. A separable linear filter is one
matrix for the rows and one for the columns.
"""

import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional

from . import acceleration
from .entries import Registry

CORRUPTIONS = Registry(
    "corruption",
    gives=("images", "constants", "generator"),
    facts={"family": "own", "at_32": (), "at_64": (), "extra": False, "needs": lambda: None},
)
corruption = CORRUPTIONS.entry
CITE = "Hendrycks & Dietterich, ICLR 2019"
SEVERITIES = (1, 2, 3, 4, 5)


def constants_size(image_size: int) -> int:
    """Whose constants images of this side get: 32 pixels (CIFAR-C) or 64 (Tiny-ImageNet-C), the nearer by ratio."""
    return 32 if image_size < 46 else 64


def corrupt(images: Tensor, name: str, severity: int, generator: Generator) -> Tensor:
    """uint8 images (N, 3, S, S) under a corruption of severity 1 to 5, on their device. Every draw is the CPU generator's.

    Raises ValueError for an unknown name or severity, or an entry without five constants, FileNotFoundError where frost's
    photographs are not installed.
    """
    entry = CORRUPTIONS[name]
    if severity not in SEVERITIES:
        raise ValueError(f"a severity is 1 to 5, not {severity!r}")
    table = entry.at_64 if entry.at_64 and constants_size(images.shape[-1]) == 64 else entry.at_32
    if "constants" in entry.asks and len(table) != len(SEVERITIES):
        raise ValueError(f"the corruption {name!r} needs five constants, at_32=(...): it has {len(table)}")
    own = {"constants": table[severity - 1] if table else None, "generator": generator, "images": images.float()}
    with acceleration.exact():  # grey levels are truncated
        levels = entry(**{asked: own[asked] for asked in entry.asks})
    return _to_uint8(levels)


def missing(name: str) -> str | None:
    """Why a corruption cannot be made here, with what to do; None where it can."""
    return CORRUPTIONS[name].needs()


def jpeg(images: Tensor, quality: int) -> Tensor:
    """uint8 images (N, 3, S, S) saved as JPEG of a quality and read again."""
    return functional.jpeg(images.cpu(), quality).to(images.device)


def _to_uint8(levels: Tensor) -> Tensor:
    """Truncated, not rounded, as np.uint8 does; 1e-3 is what float32 may lack to a whole number."""
    return (levels + 1e-3).clamp_(0, 255).to(torch.uint8)


def _normal(like: Tensor, generator: Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator).to(like.device)


def _uniform(low: float, high: float, shape: tuple[int, ...], like: Tensor, generator: Generator) -> Tensor:
    return (low + (high - low) * torch.rand(shape, generator=generator)).to(like.device)


def _filtered(images: Tensor, matrix: np.ndarray) -> Tensor:
    """A separable linear filter: the same matrix (S, S) on the rows and on the columns of (..., S, S)."""
    filter = torch.from_numpy(np.ascontiguousarray(matrix)).float().to(images.device)
    return filter @ images @ filter.T


@cache
def _gaussian(size: int, sigma: float, mode: str = "nearest", truncate: float = 4.0) -> np.ndarray:
    """The matrix of a Gaussian filter, as scikit-image's: what it makes of the unit vectors."""
    from scipy.ndimage import gaussian_filter  # so that a machine that only trains does without

    return gaussian_filter(np.eye(size), (sigma, 0), mode=mode, truncate=truncate)


@cache
def _zoom(size: int, factor: float) -> np.ndarray:
    """The matrix of a linear zoom into the centre, trimmed to the size again."""
    from scipy.ndimage import zoom

    inner = int(np.ceil(size / factor))
    top = (size - inner) // 2
    zoomed = zoom(np.eye(size)[top : top + inner], (factor, 1), order=1)
    trim = (len(zoomed) - size) // 2
    return zoomed[trim : trim + size]


@cache
def _box(size: int, target: int) -> np.ndarray:
    """The matrix (target, size) of Pillow's box filter."""
    return np.asarray(Image.fromarray(np.eye(size, dtype=np.float32)).resize((size, target), Image.Resampling.BOX))


def _convolved(images: Tensor, kernel: Tensor) -> Tensor:
    """(..., S, S) correlated with a kernel (k, k), mirrored at the border without repeating it, as OpenCV does."""
    half = kernel.shape[-1] // 2
    single = F.pad(images.reshape(-1, 1, *images.shape[-2:]), (half,) * 4, mode="reflect")
    return F.conv2d(single, kernel[None, None].to(images.device)).reshape(images.shape)


@corruption(
    "Gaussian noise", CITE, family="noise", at_32=(0.04, 0.06, 0.08, 0.09, 0.1), at_64=(0.04, 0.08, 0.12, 0.15, 0.18)
)
def gaussian_noise(images, constants, generator):
    return images + 255 * constants * _normal(images, generator)


@corruption("shot noise", CITE, family="noise", at_32=(500, 250, 100, 75, 50), at_64=(250, 100, 50, 30, 15))
def shot_noise(images, constants, generator):
    photons = torch.poisson((images / 255 * constants).cpu(), generator=generator)
    return 255 / constants * photons.to(images.device)


@corruption(
    "impulse noise", CITE, family="noise", at_32=(0.01, 0.02, 0.03, 0.05, 0.07), at_64=(0.01, 0.02, 0.05, 0.08, 0.14)
)
def impulse_noise(images, constants, generator):
    draw = _uniform(0, 1, images.shape, images, generator)
    return torch.where(draw < constants / 2, 0, torch.where(draw < constants, 255, images))


@corruption(
    "speckle noise",
    CITE,
    family="noise",
    extra=True,
    at_32=(0.06, 0.1, 0.12, 0.16, 0.2),
    at_64=(0.15, 0.2, 0.25, 0.3, 0.35),
)
def speckle_noise(images, constants, generator):
    return images + images * constants * _normal(images, generator)


@corruption(
    "Gaussian blur", CITE, family="blur", extra=True, at_32=(0.4, 0.6, 0.7, 0.8, 1), at_64=(0.5, 0.75, 1, 1.25, 1.5)
)
def gaussian_blur(images, constants):
    return _filtered(images, _gaussian(images.shape[-1], constants))


@corruption(
    "glass blur",
    CITE,
    family="blur",
    at_32=((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    at_64=((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
)
def glass_blur(images, constants, generator):
    """As released: of two pixels to be exchanged the first becomes a copy of the second, from the last pixel to the first."""
    sigma, reach, passes = constants
    size = images.shape[-1]
    blurred = _blurred(images, sigma)
    for _ in range(passes):
        source = _copied_from(len(images), size, reach, generator).to(images.device)
        blurred = blurred.flatten(2).gather(2, source[:, None].expand(-1, 3, -1)).unflatten(2, (size, size))
    return _blurred(blurred, sigma)


def _blurred(images: Tensor, sigma: float) -> Tensor:
    """A Gaussian filter, truncated: float64 in SciPy's order, as a flat 255 becomes 254 or not by its last bit."""
    reach = int(4 * sigma + 0.5)
    weights = torch.exp(-0.5 / sigma**2 * torch.arange(-reach, reach + 1, dtype=torch.float64) ** 2)
    weights = (weights / weights.sum())[: reach + 1].tolist()
    levels = images.double() / 255
    for axis in (2, 3):
        padding = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
        padded, size = F.pad(levels, padding, mode="replicate"), levels.shape[axis]
        levels = levels * weights[-1]
        for i, weight in enumerate(weights[:-1]):
            levels = levels + (padded.narrow(axis, i, size) + padded.narrow(axis, 2 * reach - i, size)) * weight
    return (255 * levels).floor().float()


def _copied_from(count: int, size: int, reach: int, generator: Generator) -> Tensor:
    """(count, size * size): the pixel whose first value each ends with. A pixel that was copied before hands on its own."""
    place = torch.arange(size * size).view(size, size)
    inner = slice(reach + 1, size - reach + 1)
    shift = torch.randint(-reach, reach, (2, count, size, size), generator=generator)
    copied = place.expand(count, size, size).clone()
    copied[:, inner, inner] += (size * shift[0] + shift[1])[:, inner, inner]
    copied = copied.flatten(1)
    changed = torch.zeros(size, size, dtype=torch.bool)
    changed[inner, inner] = True
    earlier = (copied > place.flatten()) & changed.flatten()[copied]  # they go from the last pixel to the first
    follow = torch.where(earlier, copied, place.flatten())
    while not torch.equal(further := follow.gather(1, follow), follow):
        follow = further
    return copied.gather(1, follow)


@corruption(
    "defocus blur",
    CITE,
    family="blur",
    at_32=((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    at_64=((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
)
def defocus_blur(images, constants):
    radius, alias = constants
    half = int(radius) + 1
    x = torch.arange(-half, half + 1.0)
    disk = (x[:, None] ** 2 + x**2 <= radius**2).float()
    edge = torch.exp(-(torch.tensor((-1.0, 0.0, 1.0)) ** 2) / (2 * alias**2))
    smooth = F.conv2d((disk / disk.sum())[None, None], (edge[:, None] * edge / edge.sum() ** 2)[None, None], padding=1)
    return _convolved(images, smooth[0, 0])


def _motion(images: Tensor, radius: float, sigma: float, degrees: Tensor) -> Tensor:
    """ImageMagick's: a one-sided Gaussian of 2 radius + 1 taps along an angle of each image's (N,), truncated; edges go on."""
    size = images.shape[-1]
    taps = torch.arange(2 * radius + 1)
    weights = torch.exp(-(taps**2) / (2 * sigma**2))
    weights /= weights.sum()
    x = torch.arange(size, device=images.device)
    blurred = torch.zeros_like(images)
    angle = degrees.double().deg2rad()
    for tap, weight in zip(taps.tolist(), weights.tolist(), strict=True):
        if weight > 1e-6:
            down, across = ((tap * way - 0.5).ceil().long()[:, None] for way in (angle.sin(), angle.cos()))
            rows, columns = (x + down).clamp(0, size - 1), (x + across).clamp(0, size - 1)
            index = (rows[:, :, None] * size + columns[:, None, :]).flatten(1)[:, None]
            blurred += weight * images.flatten(2).gather(2, index.expand(-1, images.shape[1], -1)).view_as(images)
    return (blurred + 1e-3).floor()


@corruption(
    "motion blur",
    CITE,
    family="blur",
    at_32=((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    at_64=((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
)
def motion_blur(images, constants, generator):
    return _motion(images, *constants, _uniform(-45, 45, (len(images),), images, generator))


def _zooms(*ends: float) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(np.arange(1, end, 0.01).tolist()) for end in ends)


@corruption(
    "zoom blur",
    CITE,
    family="blur",
    at_32=_zooms(1.06, 1.11, 1.16, 1.21, 1.26),
    at_64=_zooms(1.06, 1.11, 1.16, 1.21, 1.26),
)
def zoom_blur(images, constants):
    total = images + sum(_filtered(images, _zoom(images.shape[-1], factor)) for factor in constants)
    return total / (len(constants) + 1)


def _plasma(count: int, size: int, decay: float, generator: Generator) -> Tensor:
    """(count, size, size) fractal height maps from 0 to 1, by diamonds and squares; size is a power of two."""
    height = torch.zeros(count, size, size)
    step, wibble = size, 100.0

    def wibbled(total: Tensor) -> Tensor:
        return total / 4 + wibble * wibble * (2 * torch.rand(total.shape, generator=generator) - 1)

    while step >= 2:
        half = step // 2
        corners = height[:, ::step, ::step]
        total = corners + corners.roll(-1, 1)
        height[:, half::step, half::step] = middles = wibbled(total + total.roll(-1, 2))
        height[:, ::step, half::step] = wibbled(middles + middles.roll(1, 1) + corners + corners.roll(-1, 2))
        height[:, half::step, ::step] = wibbled(middles + middles.roll(1, 2) + corners + corners.roll(-1, 1))
        step, wibble = half, wibble / decay
    height -= height.amin((1, 2), keepdim=True)
    return height / height.amax((1, 2), keepdim=True)


@corruption(
    "fog",
    CITE,
    family="weather",
    at_32=((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    at_64=((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
)
def fog(images, constants, generator):
    thickness, decay = constants
    size = images.shape[-1]
    drawn = _plasma(len(images), 2 ** (size - 1).bit_length(), decay, generator)[:, None, :size, :size]
    brightest = images.amax((1, 2, 3), keepdim=True)
    return (images + 255 * thickness * drawn.to(images.device)) * brightest / (brightest + 255 * thickness)


def _no_frost() -> str | None:
    if importlib.util.find_spec("imagecorruptions") is None:
        return "frost needs the photographs of imagecorruptions-imaug: pip install imagecorruptions-imaug"
    return None


@cache
def _frost_photographs(scale: float) -> tuple[Tensor, ...]:
    """(3, height, width) grey levels: the five of six that the released code draws from, scaled."""
    if reason := _no_frost():
        raise FileNotFoundError(reason)
    folder = Path(importlib.util.find_spec("imagecorruptions").submodule_search_locations[0]) / "frost"
    photographs = []
    for name in ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg"):
        pixels = torch.from_numpy(np.array(Image.open(folder / name).convert("RGB"))).permute(2, 0, 1)[None].float()
        photographs.append(F.interpolate(pixels, scale_factor=scale, mode="bilinear")[0].round())
    return tuple(photographs)


@corruption(
    "frost",
    CITE,
    family="weather",
    needs=_no_frost,
    at_32=((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    at_64=((1, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)),
)
def frost(images, constants, generator):
    size = images.shape[-1]
    patches = torch.empty_like(images, device="cpu")
    which = torch.randint(5, (len(images),), generator=generator)
    corner = torch.rand(2, len(images), generator=generator)
    x = torch.arange(size)
    scale = 0.2 if constants_size(size) == 32 else 0.3 * max(1, size / 64)  # as released at 32 and at 64 pixels
    for i, photograph in enumerate(_frost_photographs(scale)):
        chosen = which == i
        room = torch.tensor(photograph.shape[1:]) - size
        top, left = (corner[:, chosen] * room[:, None]).long()
        rows, columns = (top[:, None] + x)[:, :, None], (left[:, None] + x)[:, None]
        patches[chosen] = photograph[:, rows, columns].transpose(0, 1)
    return constants[0] * images + constants[1] * patches.to(images.device)


@corruption(
    "snow",
    CITE,
    family="weather",
    at_32=(
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    at_64=(
        (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
    ),
)
def snow(images, constants, generator):
    mean, deviation, zoom, threshold, radius, sigma, kept = constants
    flakes = _filtered(mean + deviation * _normal(images[:, :1], generator), _zoom(images.shape[-1], zoom))
    flakes = _to_uint8(255 * flakes * (flakes >= threshold)).float()
    flakes = _motion(flakes, radius, sigma, _uniform(-135, -45, (len(images),), images, generator))
    grey = _grey(images)
    white = kept * images + (1 - kept) * torch.maximum(images, 1.5 * grey + 0.5 * 255)
    return white + flakes + flakes.rot90(2, (2, 3))


def _grey(images: Tensor) -> Tensor:
    return (images * torch.tensor((0.299, 0.587, 0.114), device=images.device).view(3, 1, 1)).sum(1, keepdim=True)


@corruption(
    "spatter",
    CITE,
    family="weather",
    extra=True,
    at_32=(
        (0.62, 0.1, 0.7, 0.7, 0.5, 0),
        (0.65, 0.1, 0.8, 0.7, 0.5, 0),
        (0.65, 0.3, 1, 0.69, 0.5, 0),
        (0.65, 0.1, 0.7, 0.69, 0.6, 1),
        (0.65, 0.1, 0.5, 0.68, 0.6, 1),
    ),
    at_64=(
        (0.62, 0.1, 0.7, 0.7, 0.6, 0),
        (0.65, 0.1, 0.8, 0.7, 0.6, 0),
        (0.65, 0.3, 1, 0.69, 0.6, 0),
        (0.65, 0.1, 0.7, 0.68, 0.6, 1),
        (0.65, 0.1, 0.5, 0.67, 0.6, 1),
    ),
)
def spatter(images, constants, generator):
    """Drops of water, or of mud; an image that no drop falls on stays as it is."""
    mean, deviation, sigma, threshold, strength, mud = constants
    size = images.shape[-1]
    liquid = _filtered(mean + deviation * _normal(images[:, 0], generator), _gaussian(size, sigma))
    if mud:
        cover = _filtered((liquid > threshold).float(), _gaussian(size, strength))[:, None]
        cover = cover * (cover >= 0.8)
        brown = torch.tensor((63.0, 42.0, 20.0), device=images.device).view(3, 1, 1)
        return (1 - cover) * images + cover * brown
    liquid = _to_uint8(255 * liquid * (liquid >= threshold)).float()
    drops = liquid * _relief(liquid)
    drops = (drops / drops.amax((1, 2), keepdim=True)).nan_to_num_(0)[:, None]
    return images + strength * drops * torch.tensor((175.0, 238.0, 238.0), device=images.device).view(3, 1, 1)


def _relief(liquid: Tensor) -> Tensor:
    """(N, S, S) grey levels: the distance from the drops' edges, equalised, lit from one side and smoothed."""
    blur = torch.full((3, 3), 1 / 9)
    near = _convolved(_distance(_edges(liquid)), blur).add_(1e-4).floor()  # 0 to 20
    light = torch.tensor(((-2.0, -1.0, 0.0), (-1.0, 1.0, 1.0), (0.0, 1.0, 2.0)))
    lit = _convolved(_equalised(near, 21), light).clamp(0, 255)
    return _convolved(lit, blur).round()


def _edges(levels: Tensor, low: float = 50, high: float = 150) -> Tensor:
    """(N, S, S) bool: Canny's edges of grey levels, as OpenCV finds them."""
    slope = torch.tensor(((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0)), device=levels.device)
    padded = F.pad(levels[:, None], (1,) * 4, mode="replicate")
    dx, dy = F.conv2d(padded, torch.stack((slope, slope.T))[:, None]).unbind(1)
    size = F.pad(dx.abs() + dy.abs(), (1,) * 4)

    def beside(down: int, across: int) -> Tensor:
        return size[:, 1 + down : size.shape[1] - 1 + down, 1 + across : size.shape[2] - 1 + across]

    here, ratio = beside(0, 0), 2**0.5 - 1  # the tangent of 22.5 degrees
    flat, steep = dy.abs() < ratio * dx.abs(), dy.abs() > (ratio + 2) * dx.abs()
    rising = (here > beside(-1, -1)) & (here > beside(1, 1))
    falling = (here > beside(-1, 1)) & (here > beside(1, -1))
    ridge = torch.where(dx * dy < 0, falling, rising)
    ridge = torch.where(steep, (here > beside(-1, 0)) & (here >= beside(1, 0)), ridge)
    ridge = torch.where(flat, (here > beside(0, -1)) & (here >= beside(0, 1)), ridge)
    weak = ridge & (here > low)
    edges = weak & (here > high)
    while True:  # a weak edge counts where it touches one that counts
        grown = weak & (F.max_pool2d(edges[:, None].float(), 3, 1, 1)[:, 0] > 0)
        if torch.equal(grown, edges):
            return edges
        edges = grown


def _distance(edges: Tensor, largest: float = 20) -> Tensor:
    """(N, S, S): the distance to the nearest edge by OpenCV's 5 x 5 mask, at most `largest`."""
    moves = [(0, 1, 1.0), (1, 0, 1.0), (1, 1, 1.4), (1, 2, 2.1969), (2, 1, 2.1969)]
    moves = {(down * a, across * b): cost for down, across, cost in moves for a in (-1, 1) for b in (-1, 1)}
    height, width = edges.shape[1:]
    distance = torch.where(edges, 0.0, largest)
    while True:
        padded = F.pad(distance, (2,) * 4, value=largest)
        nearer = distance
        for (down, across), cost in moves.items():
            moved = padded[:, 2 + down : 2 + down + height, 2 + across : 2 + across + width]
            nearer = torch.minimum(nearer, moved + cost)
        if torch.equal(nearer, distance):
            return distance
        distance = nearer


def _equalised(levels: Tensor, count: int) -> Tensor:
    """Grey levels 0 to count - 1 (N, S, S) spread over 0 to 255 by their histogram, as OpenCV does; an even image stays."""
    flat = levels.long().flatten(1)
    histogram = torch.zeros(len(flat), count, device=flat.device).scatter_add_(
        1, flat, torch.ones_like(flat, dtype=torch.float)
    )
    lowest = histogram.gather(1, flat.amin(1, keepdim=True))
    spread = 255 * (histogram.cumsum(1) - lowest) / (flat.shape[1] - lowest)
    equalised = spread.round().gather(1, flat)
    return torch.where(lowest == flat.shape[1], flat.float(), equalised).view_as(levels)


@corruption("contrast", CITE, family="digital", at_32=(0.75, 0.5, 0.4, 0.3, 0.15), at_64=(0.4, 0.3, 0.2, 0.1, 0.05))
def contrast(images, constants):
    mean = images.mean((2, 3), keepdim=True)
    return mean + constants * (images - mean)


@corruption("brightness", CITE, family="digital", at_32=(0.05, 0.1, 0.15, 0.2, 0.3), at_64=(0.1, 0.2, 0.3, 0.4, 0.5))
def brightness(images, constants):
    """The value of HSV is raised: hue and saturation are the ratios of the channels, so all three are scaled."""
    value = images.amax(1, keepdim=True)
    raised = (value + 255 * constants).clamp(max=255)
    return torch.where(value > 0, images * (raised / value), raised)


@corruption(
    "saturate",
    CITE,
    family="digital",
    extra=True,
    at_32=((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
    at_64=((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)),
)
def saturate(images, constants):
    """The saturation of HSV is changed; grey has the hue of red."""
    value = images.amax(1, keepdim=True)
    chroma = value - images.amin(1, keepdim=True)
    red = torch.tensor((0.0, 1.0, 1.0), device=images.device).view(3, 1, 1)
    below = torch.where(chroma > 0, (value - images) / chroma, red)  # how far each channel lies below the highest
    saturation = (constants[0] * (chroma / value).nan_to_num_(0) + constants[1]).clamp(0, 1)
    return value * (1 - saturation * below)


@corruption("JPEG", CITE, family="digital", at_32=(80, 65, 58, 50, 40), at_64=(65, 58, 50, 40, 25))
def jpeg_compression(images, constants):
    return jpeg(images.to(torch.uint8), constants)


@corruption("pixelate", CITE, family="digital", at_32=(0.95, 0.9, 0.85, 0.75, 0.65), at_64=(0.9, 0.8, 0.7, 0.6, 0.5))
def pixelate(images, constants):
    size = images.shape[-1]
    small = int(size * constants)
    for matrix in (_box(size, small), _box(small, size)):
        weights = torch.tensor(matrix, device=images.device)
        across = (images @ weights.T + 0.5).floor()  # Pillow rounds after each axis
        images = (weights @ across + 0.5).floor()
    return images


@corruption(
    "elastic transform",
    CITE,
    family="digital",
    at_32=((0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96)),
    at_64=((0, 0, 5.12), (3.2, 19.2, 3.84), (6.4, 5.12, 3.84), (6.4, 1.92, 1.92), (10.24, 1.92, 1.28)),
)
def elastic_transform(images, constants, generator):
    """An affine map that moves three points at random, then a smooth random shift of each pixel."""
    strength, sigma, moved = constants
    count, size = len(images), images.shape[-1]
    centre, reach = size // 2, size // 3
    corners = torch.tensor(((reach, reach), (reach, -reach), (-reach, -reach))) + float(centre)
    found = corners + moved * (2 * torch.rand(count, 3, 2, generator=generator) - 1)
    ones = torch.ones(count, 3, 1)
    back = torch.linalg.solve(
        torch.cat((found, ones), 2), corners.expand(count, 3, 2)
    )  # from where it went to where it was
    place = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="xy"), -1).float()
    source = torch.cat((place, torch.ones(size, size, 1)), -1) @ back[:, None]
    mapped = _sampled(images, source.to(images.device), repeat=False)
    noise = 2 * torch.rand(2, count, size, size, generator=generator) - 1
    shift = strength * _filtered(noise, _gaussian(size, sigma, "reflect", 3.0))
    return _sampled(mapped, (place + shift.permute(1, 2, 3, 0)).to(images.device), repeat=True)


def _sampled(images: Tensor, place: Tensor, repeat: bool) -> Tensor:
    """Bilinear values at places (N, S, S, 2), x and y in pixels; beyond the border mirrored, with the border pixel twice or not."""
    size = images.shape[-1]
    grid = (2 * place + 1) / size - 1 if repeat else 2 * place / (size - 1) - 1
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=not repeat)
