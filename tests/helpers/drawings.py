"""Checks that hold for every picture, whatever it shows."""

from supernet.drawing import LETTER, Box, Label, Picture


def boxes(picture: Picture) -> list[Box]:
    """Returns the boxes of a picture in the order in which they are drawn."""
    return [shape for shape in picture.shapes if isinstance(shape, Box)]


def overlap(first: Box, second: Box) -> bool:
    """Returns whether two boxes share more than an edge."""
    apart = first.x + first.width <= second.x or second.x + second.width <= first.x
    return not (apart or first.y + first.height <= second.y or second.y + second.height <= first.y)


def check(picture: Picture) -> None:
    """Asserts that all boxes are on the canvas, that none overlaps another and that titles are not cut off."""
    for label in (shape for shape in picture.shapes if isinstance(shape, Label)):
        assert label.at[0] - LETTER * len(label.text) / 2 >= 0, label.text
        assert label.at[0] + LETTER * len(label.text) / 2 <= picture.width, label.text
    drawn = boxes(picture)
    for index, box in enumerate(drawn):
        assert box.x >= 0
        assert box.y >= 0
        assert box.x + box.width <= picture.width
        assert box.y + box.height <= picture.height
        assert not any(overlap(box, other) for other in drawn[index + 1 :])
