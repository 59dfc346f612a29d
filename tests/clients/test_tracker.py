"""Ids hold while people move, cross and are hidden; a cut ends every track."""

import numpy as np
import pytest

from clients.faces import FRAMING, Face
from clients.tracker import LargestFace, Tracker
from clients.video import Frame

RNG = np.random.default_rng(0)
ROOM = RNG.integers(0, 256, (9, 16, 3), np.uint8).repeat(40, 0).repeat(40, 1)
STREET = RNG.integers(0, 256, (9, 16, 3), np.uint8).repeat(40, 0).repeat(40, 1)


def face(x, y=180.0, size=60.0):
    corner = np.array([x - size / 2, y - size / 2])
    return Face(np.array([*corner, *(corner + size)]), FRAMING * size + corner, 0.9)


def follow(tracker, moments, fps=10.0, scenes=None):
    """Give (place of frame) -> the numbers of its faces, in the order of the faces."""
    numbers = []
    for i, faces in enumerate(moments):
        image = ROOM if scenes is None else scenes[i]
        given = tracker.update(Frame(image, i, i / fps), faces)
        by_face = {id(f): number for number, f in given}
        numbers.append([by_face.get(id(f)) for f in faces])
    return numbers


def test_two_people_side_by_side_keep_their_numbers():
    moments = [[face(100 + 3 * i), face(400 - 2 * i)] for i in range(20)]
    assert follow(Tracker(), moments) == [[1, 2]] * 20


def test_people_who_cross_keep_their_numbers():
    # 300 pixels a second towards each other, and past; one hides the other for half a second.
    moments = []
    for i in range(30):
        left, right = 100 + 30 * i / 2, 560 - 30 * i / 2
        faces = [face(left), face(right)]
        moments.append(faces if abs(left - right) > 60 else faces[:1])
    numbers = follow(Tracker(), moments)
    assert numbers[0] == numbers[-1] == [1, 2]
    assert {n for given in numbers for n in given} == {1, 2}


def test_order_of_the_faces_does_not_matter():
    moments = [
        [face(100 + 3 * i), face(400)] if i % 2 else [face(400), face(100 + 3 * i)]
        for i in range(10)
    ]
    numbers = follow(Tracker(), moments)
    assert all(given == ([2, 1] if i % 2 else [1, 2]) for i, given in enumerate(numbers))


@pytest.mark.parametrize(("hidden", "back"), [(9, 1), (12, 2)])
def test_person_hidden_for_up_to_a_second_keeps_the_number(hidden, back):
    moments = [[face(100)]] * 5 + [[]] * hidden + [[face(110)]] * 5
    assert follow(Tracker(), moments)[-1] == [back]


def test_person_who_enters_is_a_new_track_and_one_who_leaves_ends_alone():
    moments = [[face(100)]] * 5 + [[face(100), face(400)]] * 15 + [[face(400)]] * 5
    numbers = follow(Tracker(), moments)
    assert numbers[0] == [1]
    assert numbers[10] == [1, 2]
    assert numbers[-1] == [2]


def test_someone_smaller_behind_is_someone_else():
    moments = [[face(200, size=120)]] * 5 + [[face(205, size=50)]] * 5
    assert follow(Tracker(), moments)[-1] == [2]


def test_twelve_people_keep_their_numbers():
    def crowd(i):
        return [face(60 + 160 * (k % 4) + i, 60 + 110 * (k // 4), 50) for k in range(12)]

    assert follow(Tracker(), [crowd(i) for i in range(20)]) == [list(range(1, 13))] * 20


def test_cut_ends_every_track():
    scenes = [ROOM] * 5 + [STREET] * 15
    numbers = follow(Tracker(), [[face(100), face(400)]] * 20, scenes=scenes)
    assert numbers[4] == [1, 2]
    assert numbers[5:] == [[3, 4]] * 15


def test_scene_that_is_back_within_a_second_goes_on_with_its_tracks():
    scenes = [ROOM] * 5 + [STREET] * 5 + [ROOM] * 5
    moments = [[face(100)]] * 5 + [[]] * 5 + [[face(100)]] * 5
    assert follow(Tracker(), moments, scenes=scenes)[-1] == [1]


@pytest.mark.parametrize("change", ["dark", "bright", "people"])
def test_light_and_people_who_move_are_no_cut(change):
    other = ROOM.copy()
    if change == "dark":
        other = (ROOM * 0.12).astype(np.uint8)
    elif change == "bright":
        other = (ROOM * 0.5 + 120).astype(np.uint8)
    else:
        other[100:300, 100:300] = 0
    scenes = [ROOM] * 5 + [other] * 5
    assert follow(Tracker(), [[face(100)]] * 10, scenes=scenes)[-1] == [1]


def test_frames_looked_at_once_a_second_still_make_tracks():
    assert follow(Tracker(), [[face(100)], [face(110)], [], [face(115)]], fps=1)[-1] == [1]


def test_one_person_wanted_is_the_largest_face_through_cuts():
    scenes = [ROOM] * 5 + [STREET] * 15
    moments = [[face(100, size=90), face(400)]] * 5 + [[face(420)]] * 15
    numbers = follow(LargestFace(), moments, scenes=scenes)
    assert numbers[0] == [1, None]
    assert numbers[-1] == [1]
