"""Whole-dataset metrics: NumPy accumulators that take one image at a time and merge across processes."""

from vision_jax.metrics.base import Accumulator
from vision_jax.metrics.classification import Confusion, TopK
from vision_jax.metrics.detection import COCO_THRESHOLDS, Curve, DetectionAP
from vision_jax.metrics.embedding import Retrieval, Verification
from vision_jax.metrics.segmentation import SegmentationScores
from vision_jax.metrics.voc import VocAP

__all__ = ('COCO_THRESHOLDS', 'Accumulator', 'Confusion', 'Curve', 'DetectionAP', 'Retrieval', 'SegmentationScores',
           'TopK', 'Verification', 'VocAP')
