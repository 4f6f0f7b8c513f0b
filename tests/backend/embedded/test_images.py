"""Nodes that change pictures, and pictures in and out of files."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from backend.embedded import images
from backend.embedded.registry import registry

NODES = registry()


class FakeRun:
    """What picture nodes use of a run."""

    device = torch.device("cpu")


def node(name: str, **inputs: Any) -> torch.Tensor:
    found: torch.Tensor = NODES[name].run(FakeRun(), **inputs).values[0]
    return found


def plain(value: float, *, width: int = 8, height: int = 4) -> torch.Tensor:
    return torch.full((1, height, width, 3), value)


def test_empty_image_is_one_colour():
    """Size, batch and colour as asked."""
    found = node("EmptyImage", width=5, height=3, batch_size=2, color=0xFF8000)
    assert found.shape == (2, 3, 5, 3)
    assert torch.allclose(found[1, 2, 4], torch.tensor([255, 128, 0]) / 255)


def test_invert_twice_is_the_same():
    """Inverting is its own opposite."""
    x = torch.rand((1, 4, 4, 3))
    assert torch.allclose(node("ImageInvert", image=node("ImageInvert", image=x)), x)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("normal", 0.25), ("multiply", 0.1875), ("screen", 0.8125), ("overlay", 0.625), ("difference", 0.5)],
)
def test_blend_modes(mode: str, expected: float):
    """At full strength the formula of each mode, here for 0.75 under 0.25."""
    found = node("ImageBlend", image1=plain(0.75), image2=plain(0.25), blend_factor=1.0, blend_mode=mode)
    assert torch.allclose(found, plain(expected))


def test_soft_light_of_grey_changes_nothing():
    """Half grey is neutral there, and a factor of 0 is so anywhere."""
    x = torch.rand((1, 4, 8, 3))
    assert torch.allclose(node("ImageBlend", image1=x, image2=plain(0.5), blend_factor=1.0, blend_mode="soft_light"), x)
    assert torch.allclose(node("ImageBlend", image1=x, image2=plain(0.9), blend_factor=0.0, blend_mode="multiply"), x)


def test_blend_fits_the_second_picture_to_the_first():
    """Pictures of other sizes are scaled and cut to match."""
    found = node(
        "ImageBlend", image1=plain(0.2), image2=plain(0.6, width=31, height=17), blend_factor=0.5, blend_mode="normal"
    )
    assert torch.allclose(found, plain(0.4), atol=1e-5)


def test_blur_keeps_flat_pictures_and_spreads_points():
    """The kernel sums to one and is symmetric."""
    assert torch.allclose(node("ImageBlur", image=plain(0.3), blur_radius=2, sigma=1.0), plain(0.3), atol=1e-6)
    point = torch.zeros((1, 9, 9, 3))
    point[0, 4, 4] = 1.0
    found = node("ImageBlur", image=point, blur_radius=2, sigma=1.0)
    assert float(found[..., 0].sum()) == pytest.approx(1.0, abs=1e-5)
    assert torch.allclose(found, found.flip(1))
    assert float(found[0, 4, 4, 0]) > float(found[0, 4, 5, 0]) > float(found[0, 4, 6, 0]) > 0


def test_a_blur_wider_than_the_picture_is_an_error():
    """It is told in words, not by torch's padding."""
    with pytest.raises(ValueError, match="blur_radius 9"):
        node("ImageBlur", image=plain(0.1), blur_radius=9, sigma=1.0)


@pytest.mark.parametrize("method", images.SCALE_METHODS)
@pytest.mark.parametrize(
    ("width", "height", "crop", "shape"),
    [(16, 16, "disabled", (1, 16, 16, 3)), (6, 6, "center", (1, 6, 6, 3)), (16, 0, "disabled", (1, 8, 16, 3)),
     (0, 2, "disabled", (1, 2, 4, 3)), (0, 0, "disabled", (1, 4, 8, 3))],
)  # fmt: skip
def test_scaling(method: str, width: int, height: int, crop: str, shape: tuple[int, ...]):
    """0 keeps the proportion, two zeros keep the picture; a flat picture stays flat."""
    found = node("ImageScale", image=plain(0.4), upscale_method=method, width=width, height=height, crop=crop)
    assert found.shape == shape
    assert torch.allclose(found, torch.full(shape, 0.4), atol=0.005)


def test_loading_reads_transparency_and_frames(tmp_path: Path):
    """The mask is 1 where the picture is transparent; an animation is a batch."""
    Image.new("RGBA", (6, 4), (255, 0, 0, 51)).save(tmp_path / "a.png")
    picture, mask = images.load(tmp_path / "a.png")
    assert (picture.shape, mask.shape) == ((1, 4, 6, 3), (1, 4, 6))
    assert float(mask[0, 0, 0]) == pytest.approx(0.8)
    frames = [Image.new("RGB", (6, 4), (value, 0, 0)) for value in (0, 128, 255)]
    frames[0].save(tmp_path / "b.gif", save_all=True, append_images=frames[1:], duration=10)
    picture, mask = images.load(tmp_path / "b.gif")
    assert picture.shape == (3, 4, 6, 3)
    Image.new("L", (6, 4), 77).save(tmp_path / "c.png")
    picture, mask = images.load(tmp_path / "c.png")
    assert (picture.shape, mask.shape, float(mask.sum())) == ((1, 4, 6, 3), (1, 64, 64), 0.0)


def test_a_picture_goes_to_a_file_and_back(tmp_path: Path):
    """Eight bits per colour survive."""
    x = torch.randint(0, 256, (4, 6, 3)).float() / 255
    images.to_pillow(x).save(tmp_path / "x.png")
    back, _ = images.load(tmp_path / "x.png")
    assert float((back[0] - x).abs().max()) <= 1 / 255 + 1e-6


def test_previews_are_small():
    """Whatever the picture's size, a preview's longer side is bounded."""
    found = Image.open(io.BytesIO(images.jpeg(Image.new("RGB", (2000, 500)))))
    assert (found.format, found.size) == ("JPEG", (256, 64))
