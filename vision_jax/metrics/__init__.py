"""Whole-dataset metrics: NumPy accumulators that take one image at a time and merge across processes."""

from vision_jax.metrics.base import Accumulator
from vision_jax.metrics.classification import Confusion, TopK
from vision_jax.metrics.detection import COCO_THRESHOLDS, DetectionAP
from vision_jax.metrics.segmentation import SegmentationScores

__all__ = ('COCO_THRESHOLDS', 'Accumulator', 'Confusion', 'DetectionAP', 'SegmentationScores', 'TopK')
