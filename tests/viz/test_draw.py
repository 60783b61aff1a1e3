"""Predictions on images: what is drawn, where, and at which size."""

import io
import json

import numpy as np
from PIL import Image
import pytest

from vision_jax import viz
from vision_jax.conventions import ClassMap

CLASSES = ClassMap(names=('cat', 'dog', 'emu'))
MAP_CLASSES = ClassMap(names=('background', 'cat', 'dog'), ids=(0, 17, 18))
GREY = np.full((80, 120, 3), 90, np.uint8)


def _prediction(boxes, scores, labels, **more):
  return {'boxes': np.array(boxes, np.float32), 'scores': np.array(scores), 'labels': np.array(labels), **more}


def _has(picture, colour):
  return (picture == colour).all(axis=-1)


def test_the_box_is_drawn_on_its_outermost_pixels_in_its_class_colour():
  picture = viz.draw_detections(GREY, _prediction([[10, 30, 60, 70]], [0.9], [1]), CLASSES)
  ys, xs = np.nonzero(_has(picture, viz.class_colours(3, None)[1])[30:])  # from the box down: the label is above
  assert (ys.min() + 30, ys.max() + 30, xs.min(), xs.max()) == (30, 69, 10, 59)


def test_a_scaled_picture_has_the_box_at_the_scaled_place():
  picture = viz.draw_detections(GREY, _prediction([[10, 30, 60, 70]], [0.9], [1]), CLASSES, scale=4)
  assert picture.shape == (320, 480, 3)
  ys, xs = np.nonzero(_has(picture, viz.class_colours(3, None)[1])[120:])
  assert (ys.max() + 120, xs.min(), xs.max()) == (279, 40, 239)


def test_the_picture_has_the_size_of_the_image_which_stays_as_it_was():
  before = GREY.copy()
  picture = viz.draw_detections(GREY, _prediction([[10, 30, 60, 70]], [0.9], [1]), CLASSES)
  assert picture.shape == GREY.shape and picture.dtype == np.uint8
  np.testing.assert_array_equal(GREY, before)


def test_nothing_is_drawn_for_weak_invalid_or_not_finite_detections():
  boxes = [[5, 5, 50, 50], [5, 5, 50, 50], [np.nan, 5, 50, 50]]
  prediction = _prediction(boxes, [0.4, 0.9, 0.9], [0, 99, 1], valid=np.array([True, False, True]))
  np.testing.assert_array_equal(viz.draw_detections(GREY, prediction, CLASSES), GREY)


def test_no_detection_at_all_leaves_the_image():
  empty = _prediction(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
  np.testing.assert_array_equal(viz.draw_detections(GREY, empty, CLASSES, truth=empty), GREY)


def test_a_score_equal_to_the_threshold_is_drawn():
  prediction = _prediction([[10, 30, 60, 70]], [0.5], [1])
  assert (viz.draw_detections(GREY, prediction, CLASSES, threshold=0.5) != GREY).any()


def test_the_truth_is_dashed_and_leaves_gaps_for_the_detection_beneath():
  box = [[20, 20, 100, 60]]
  truth = {'boxes': np.array(box), 'labels': np.array([0])}
  picture = viz.draw_detections(GREY, _prediction(box, [0.9], [0]), CLASSES, truth=truth)
  row = picture[59, 20:100]
  dashes, gaps = _has(row, [255, 255, 255]).sum(), _has(row, viz.class_colours(3, None)[0]).sum()
  assert dashes >= 30 and gaps >= 30 and dashes + gaps == 80


@pytest.mark.parametrize('box', [[-40, -40, 30, 30], [100, 60, 400, 300], [-9, -9, 999, 999], [200, 5, 220, 9],
                                 [50, 50, 50, 50], [60, 40, 20, 10]])
@pytest.mark.parametrize('scale', [1, 3])
def test_boxes_over_the_border_without_area_or_inverted_are_drawn_without_an_error(box, scale):
  truth = {'boxes': np.array([box]), 'labels': np.array([2])}
  picture = viz.draw_detections(GREY, _prediction([box], [0.9], [1]), CLASSES, truth=truth, scale=scale)
  assert picture.shape == (80 * scale, 120 * scale, 3)


def test_labels_of_neighbouring_boxes_do_not_cover_each_other():
  from vision_jax.viz.draw import _free_place
  taken = []
  for shift in range(4):
    tag = _free_place((40 + shift, 60, 120, 100), (50, 12), (300, 200), taken, False)
    assert all(tag[2] <= t[0] or t[2] <= tag[0] or tag[3] <= t[1] or t[3] <= tag[1] for t in taken)
    taken.append(tag)


def test_a_picture_smaller_than_its_text_is_drawn_all_the_same():
  tiny = np.zeros((8, 8, 3), np.uint8)
  assert viz.draw_detections(tiny, _prediction([[1, 1, 6, 6]], [0.9], [1]), CLASSES).shape == (8, 8, 3)


def test_an_unknown_label_and_a_float_image_are_refused():
  with pytest.raises(ValueError, match=r'the prediction holds label 3, the classes are 0\.\.2'):
    viz.draw_detections(GREY, _prediction([[1, 1, 6, 6]], [0.9], [3]), CLASSES)
  with pytest.raises(ValueError, match='the image is float32'):
    viz.draw_detections(GREY.astype(np.float32), _prediction([[1, 1, 6, 6]], [0.9], [1]), CLASSES)


def _segmentation():
  segmentation = np.zeros(GREY.shape[:2], np.int32)
  segmentation[20:50, 30:80] = 2
  return segmentation


def test_a_class_is_tinted_by_alpha_outlined_in_full_and_background_is_left():
  picture = viz.draw_segmentation(GREY, _segmentation(), MAP_CLASSES, alpha=0.25, legend=False)
  colour = viz.palette(3)[2].astype(float)
  np.testing.assert_array_equal(picture[35, 50], (0.75 * 90 + 0.25 * colour).round())
  np.testing.assert_array_equal(picture[20, 50], colour)
  np.testing.assert_array_equal(picture[:19], GREY[:19])
  assert picture.shape == GREY.shape


def test_the_legend_has_the_colours_of_the_classes_present_and_no_others():
  strip = viz.draw_segmentation(GREY, _segmentation(), MAP_CLASSES)[80:]
  assert _has(strip, viz.palette(3)[2]).any() and not _has(strip, viz.palette(3)[1]).any()


def test_a_map_of_background_only_has_a_legend_that_says_so_and_an_untouched_image():
  picture = viz.draw_segmentation(GREY, np.zeros((80, 120), int), MAP_CLASSES)
  np.testing.assert_array_equal(picture[:80], GREY)
  assert (picture[80:] < 128).any()


def test_without_a_background_class_zero_is_coloured():
  picture = viz.draw_segmentation(GREY, np.zeros((80, 120), int), MAP_CLASSES, background=None, legend=False)
  assert (picture != GREY).any(axis=-1).all()


def test_a_map_of_another_size_or_with_an_unknown_class_is_refused():
  with pytest.raises(ValueError, match=r'the map is \(8, 8\), the image \(80, 120\)'):
    viz.draw_segmentation(GREY, np.zeros((8, 8), int), MAP_CLASSES)
  with pytest.raises(ValueError, match=r'holds values 0\.\.3, the classes are 0\.\.2'):
    viz.draw_segmentation(GREY, _segmentation() // 2 * 3, MAP_CLASSES)


def test_the_longest_bar_belongs_to_the_most_probable_class_and_the_true_one_is_green():
  picture = viz.draw_classification(GREY, np.array([0.1, 0.7, 0.2]), CLASSES, label=2)
  strip = picture[80:]
  blue, green = _has(strip, [165, 200, 245]).sum(axis=1), _has(strip, [140, 215, 160]).sum(axis=1)
  assert blue.argmax() < green.argmax()  # the first row is dog, the second emu
  assert blue.max() > 2 * green.max() > 0


def test_the_true_class_is_added_where_it_is_not_among_the_top_ones():
  probabilities = np.array([0.1, 0.7, 0.2])
  two = viz.draw_classification(GREY, probabilities, CLASSES, top=2)
  three = viz.draw_classification(GREY, probabilities, CLASSES, top=2, label=0)
  assert len(three) > len(two)


def test_an_image_of_eight_pixels_stands_unchanged_in_the_middle_above_its_classes():
  image = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
  picture = viz.draw_classification(image, np.array([0.1, 0.7, 0.2]), CLASSES)
  left = (picture.shape[1] - 8) // 2
  np.testing.assert_array_equal(picture[:8, left:left + 8], image)


def test_one_probability_for_each_class_is_asked_for():
  with pytest.raises(ValueError, match=r'shape \(4,\) for 3 classes'):
    viz.draw_classification(GREY, np.ones(4), CLASSES)


def test_a_palette_file_holds_the_files_ids_their_colours_and_their_names(tmp_path):
  viz.save_palette_png(tmp_path / 'map.png', _segmentation(), MAP_CLASSES)
  image = Image.open(tmp_path / 'map.png')
  assert image.mode == 'P'
  assert json.loads(image.text['classes']) == {'0': 'background', '17': 'cat', '18': 'dog'}
  values = np.asarray(image)
  np.testing.assert_array_equal(values, np.where(_segmentation() == 2, 18, 0))
  np.testing.assert_array_equal(np.asarray(image.convert('RGB')), viz.palette(3)[_segmentation()])


def test_names_outside_latin_survive_in_a_palette_file():
  file = io.BytesIO()
  viz.save_palette_png(file, np.zeros((2, 2), int), ClassMap(names=('fond', 'chêne', '猫')))
  assert json.loads(Image.open(file).text['classes']) == {'0': 'fond', '1': 'chêne', '2': '猫'}


def test_an_id_above_a_byte_is_refused_in_a_palette_file():
  with pytest.raises(ValueError, match='class ids run from 0 to 300'):
    viz.save_palette_png(io.BytesIO(), np.zeros((2, 2), int), ClassMap(names=('a', 'b'), ids=(0, 300)))


def test_a_contact_sheet_holds_every_image_unchanged_whatever_its_size():
  rng = np.random.default_rng(1)
  images = [rng.integers(0, 256, (h, w, 3)).astype(np.uint8) for h, w in ((20, 30), (31, 17), (8, 8))]
  sheet = viz.contact_sheet(images, ['first', 'a long caption that needs more than one line', ''], columns=2)
  for image in images:
    h, w = image.shape[:2]
    assert any((sheet[y:y + h, x:x + w] == image).all() for y in range(len(sheet) - h + 1)
               for x in range(sheet.shape[1] - w + 1) if (sheet[y, x] == image[0, 0]).all())


def test_a_contact_sheet_of_nothing_or_with_a_caption_missing_is_refused():
  with pytest.raises(ValueError, match='0 images'):
    viz.contact_sheet([])
  with pytest.raises(ValueError, match='1 images, 2 captions'):
    viz.contact_sheet([GREY], ['a', 'b'])


def test_a_saved_picture_reads_back_the_same(tmp_path):
  image = np.random.default_rng(2).integers(0, 256, (9, 7, 3)).astype(np.uint8)
  viz.save_png(tmp_path / 'picture.png', image)
  np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'picture.png')), image)


def test_the_legible_scale_brings_the_shorter_side_to_the_asked_pixels():
  assert viz.legible_scale((96, 128), shortest=400) == 5
  assert viz.legible_scale((1000, 800)) == 1


def test_a_scale_that_is_no_whole_number_is_refused():
  with pytest.raises(ValueError, match=r'scale is 1\.5'):
    viz.draw_segmentation(GREY, _segmentation(), MAP_CLASSES, scale=1.5)
