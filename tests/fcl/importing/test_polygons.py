from __future__ import annotations

import numpy as np
import pytest

from fcl.importing.polygons import area, inside, read_polygon

SIZE = (20, 24)


def write(file, points):
    file.write_text("".join(f"{x:.2f} {y:.2f}\n" for x, y in points), encoding="utf-8")
    return file


def test_pixel_centres_at_whole_numbers(tmp_path):
    points = read_polygon(write(tmp_path / "c.txt", [(2.5, 3.5), (6.5, 3.5), (6.5, 5.5), (2.5, 5.5)]), SIZE)
    mask = inside(points, SIZE)
    assert mask.shape == (24, 20)
    assert {(int(x), int(y)) for x, y in np.argwhere(mask)} == {(x, y) for x in (3, 4, 5, 6) for y in (4, 5)}
    assert area(points) == 8


def test_files_may_count_pixels_from_1(tmp_path):
    file = write(tmp_path / "c.txt", [(1, 1), (8, 1), (8, 8)])
    assert np.array_equal(read_polygon(file, SIZE, 1), read_polygon(file, SIZE) - 1)


def test_circle_has_its_area():
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    circle = np.column_stack([11.7 + 7 * np.cos(angle), 10.2 + 7 * np.sin(angle)])
    assert area(circle) == pytest.approx(np.pi * 49, rel=1e-3)
    assert np.count_nonzero(inside(circle, SIZE)) == pytest.approx(np.pi * 49, rel=0.03)


def test_repeated_and_closing_corners_are_dropped(tmp_path):
    points = read_polygon(write(tmp_path / "c.txt", [(2, 2), (2, 2), (8, 2), (8, 8), (2, 2)]), SIZE)
    assert points.tolist() == [[8, 2], [8, 8], [2, 2]] or len(points) == 3


WRONG = {
    "empty": ("", "is empty"),
    "words": ("a b\n", "no list of x y pairs"),
    "ragged": ("1 2\n3\n", "no list of x y pairs"),
    "three columns": ("1 2 3\n4 5 6\n7 8 9\n", r"no list of x y pairs, shape \(3, 3\)"),
    "a line": ("1 1\n2 2\n3 3\n", "encloses nothing"),
    "a point": ("1 1\n1 1\n", "encloses nothing"),
    "right of the image": ("1 1\n23.6 1\n5 5\n", r"leaves its image of 24 x 20 pixels: x 1 to 23.6"),
    "below the image": ("1 1\n9 19.6\n5 5\n", "leaves its image"),
    "not a number": ("1 1\nnan 2\n3 9\n", "no list of x y pairs"),
    "figure of eight": ("1 1\n9 9\n9 1\n1 9.5\n", "crosses itself"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_contour(tmp_path, case):
    text, expected = WRONG[case]
    (tmp_path / "c.txt").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=expected):
        read_polygon(tmp_path / "c.txt", SIZE)
