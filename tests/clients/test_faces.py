"""Faces are found, one of them is followed, and it is framed as the weights learnt."""

import time
from contextlib import closing

import cv2
import numpy as np
import pytest
from skimage.data import astronaut

from base.errors import FerError
from clients.faces import (
    FACE_SIZE,
    FRAMING,
    DetectorPool,
    Face,
    FaceDetector,
    FaceFollower,
    align,
    similarity,
)
from clients.video import Frame


@pytest.fixture(scope="module")
def detector():
    return FaceDetector()


def face_at(x, y, size=40.0):
    box = np.array([x - size / 2, y - size / 2, x + size / 2, y + size / 2])
    return Face(box, np.zeros((5, 2)), 0.9)


def test_detector_finds_the_face_and_its_landmarks(detector):
    (face,) = detector.detect(astronaut())
    left, top, right, bottom = face.box
    assert 160 < left < 200 < 240 < right < 280
    assert 50 < top < 90 < 140 < bottom < 190
    left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < right_mouth[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])


def test_detector_finds_every_face_of_a_group(detector):
    picture = astronaut()[:256, 96:352]
    group = np.concatenate([picture, picture[:, ::-1]], axis=1)
    assert len(detector.detect(group)) == 2


def test_detector_answers_the_same_whatever_it_saw_before(detector):
    picture = astronaut()
    (before,) = detector.detect(picture)
    detector.detect(picture[:200, 100:400])
    (after,) = detector.detect(picture)
    np.testing.assert_array_equal(before.landmarks, after.landmarks)


@pytest.mark.parametrize("shape", [(1, 1), (4, 4000), (700, 2), (33, 31), (480, 640)])
def test_picture_without_a_face_has_none(detector, shape):
    assert detector.detect(np.full((*shape, 3), 90, np.uint8)) == []


def test_largest_face_is_followed_first():
    assert FaceFollower().follow([face_at(0, 0, 30), face_at(200, 0, 60)], 0.0).size == 60


def test_followed_face_is_the_nearest_even_when_another_grows():
    follower = FaceFollower()
    follower.follow([face_at(100, 100)], 0.0)
    followed = follower.follow([face_at(300, 100, 90), face_at(110, 100, 30)], 0.1)
    assert followed.centre[0] == 110


def test_somebody_else_is_not_taken_for_the_followed_face():
    follower = FaceFollower()
    follower.follow([face_at(100, 100)], 0.0)
    assert follower.follow([face_at(300, 100)], 0.1) is None
    assert follower.follow([], 0.2) is None
    assert follower.follow([face_at(120, 100)], 0.3) is not None


def test_after_a_second_without_it_the_largest_is_followed():
    follower = FaceFollower()
    follower.follow([face_at(100, 100)], 0.0)
    assert follower.follow([face_at(300, 100)], 1.5).centre[0] == 300


def test_similarity_undoes_rotation_scale_and_shift():
    angle, scale, shift = 0.4, 2.5, np.array([30.0, -12.0])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    target = FRAMING * FACE_SIZE
    source = (target - shift) @ turn / scale
    matrix = similarity(source, target)
    np.testing.assert_allclose(source @ matrix[:, :2].T + matrix[:, 2], target, atol=1e-9)


@pytest.mark.parametrize("zoom", [0.5, 1, 4])
def test_aligned_face_is_framed_as_the_weights_learnt(detector, zoom):
    picture = cv2.resize(astronaut()[:256, 96:352], None, fx=zoom, fy=zoom)
    (face,) = detector.detect(picture)
    crop = align(picture, face.landmarks)
    assert (crop.shape, crop.dtype) == ((FACE_SIZE, FACE_SIZE, 3), np.uint8)
    (again,) = detector.detect(crop)
    # A similarity has four degrees of freedom for ten numbers, and the detector its own noise.
    assert np.abs(again.landmarks / FACE_SIZE - FRAMING).max() < 0.08


def test_landmarks_that_coincide_do_not_fail():
    assert align(np.zeros((50, 50, 3), np.uint8), np.full((5, 2), 20.0)).shape == (224, 224, 3)


def test_frames_searched_side_by_side_come_in_their_order_with_their_own_faces(monkeypatch):
    def detect(self, image):
        time.sleep(0.02 if image % 2 else 0)  # every other frame is done before the one before it
        return [image]

    monkeypatch.setattr(FaceDetector, "detect", detect)
    frames = [Frame(number, number, 0.0) for number in range(9)]
    with DetectorPool(3) as detectors:
        found = [(frame.index, faces) for frame, faces in detectors.detect_all(frames)]
    assert found == [(number, [number]) for number in range(9)]


def test_frames_wait_for_detectors_and_no_more_of_them_than_that(monkeypatch):
    monkeypatch.setattr(FaceDetector, "detect", lambda self, image: [])
    taken = []
    frames = (taken.append(number) or Frame(number, number, 0.0) for number in range(20))
    with DetectorPool(2) as detectors, closing(detectors.detect_all(frames)) as found:
        next(found)
        assert len(taken) == 1 + 2 + 2  # given, at work, waiting


def test_faces_found_side_by_side_are_those_found_one_after_the_other(detector):
    picture = astronaut()
    images = [picture, picture[:256, 96:352], picture[:, :400], np.zeros((90, 70, 3), np.uint8)] * 3
    frames = [Frame(image, number, 0.0) for number, image in enumerate(images)]
    with DetectorPool(3) as detectors:
        found = [faces for _, faces in detectors.detect_all(frames)]
    assert [len(faces) for faces in found] == [1, 1, 1, 0] * 3
    for image, faces in zip(images, found, strict=True):
        for one, other in zip(faces, detector.detect(image), strict=True):
            # The detector alone shares its work between cores, and adds up in another order.
            assert np.allclose(one.landmarks, other.landmarks, atol=1e-2)


def test_failure_to_search_a_frame_reaches_the_caller(monkeypatch):
    def detect(self, image):
        raise FerError("no detector")

    monkeypatch.setattr(FaceDetector, "detect", detect)
    with DetectorPool(2) as detectors, pytest.raises(FerError, match="no detector"):
        list(detectors.detect_all([Frame(0, 0, 0.0)]))
