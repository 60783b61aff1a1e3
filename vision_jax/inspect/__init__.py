"""What a model looks like from outside: its layers, their sizes and their work, without allocating a weight."""

from vision_jax.inspect.counting import multiply_adds
from vision_jax.inspect.layers import Layer, Output, Summary, summary

__all__ = ('Layer', 'Output', 'Summary', 'multiply_adds', 'summary')
