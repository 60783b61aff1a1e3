"""What a model looks like from outside: layers, sizes, work; and what a detector's loss takes its outputs for."""

from vision_jax.inspect.assignment import Assignment, Role, explain_assignment
from vision_jax.inspect.counting import multiply_adds
from vision_jax.inspect.layers import Layer, Output, Summary, summary

__all__ = ('Assignment', 'Layer', 'Output', 'Role', 'Summary', 'explain_assignment', 'multiply_adds', 'summary')
