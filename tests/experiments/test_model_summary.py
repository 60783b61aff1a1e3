"""experiments/summary.py as a user runs it."""

import ast

import pytest

from tests.experiments.test_programs import ROOT, complaint, program

pytestmark = pytest.mark.medium


def test_it_prints_the_layers_and_the_totals_of_a_model_with_options():
  lines = program('summary', '--model', 'resnet18', '--size', '64x96', '--set', 'num_classes=10', '--set', 'norm=group',
                  '--depth', 0).stdout.splitlines()
  # The convolutions' share of the published 1.814 G at 224 x 224, and the smaller `fc`.
  work = (1_814_073_344 - 512 * 1000) * 64 * 96 // 224 ** 2 + 512 * 10
  assert lines[1].split() == ['model', 'ResNet', '10', '11,181,642', f'{work:,}', 'all']
  assert len(lines) == 4
  assert lines[-1].startswith('11,181,642 parameters, 0 batch statistics; for an input of 1 x 64 x 96 x 3: ')


@pytest.mark.parametrize('options, message', [
    (['--model', 'resnet18', '--set', 'norm'], "--set 'norm' has no value; write it as 'num_classes=10'"),
    (['--model', 'resnet18', '--size', 'large'], "--size 'large' is neither a number of pixels nor two, as 480x640"),
])
def test_a_mistake_is_answered_in_one_line(options, message):
  assert message in complaint(program('summary', *options, code=2))


def test_how_options_are_read_stands_in_one_place():
  found = [path.stem for path in sorted((ROOT / 'experiments').glob('*.py'))
           if any(isinstance(node, ast.Call) and ast.unparse(node.func) == 'ast.literal_eval'
                  for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))))]
  assert found == ['launch']


@pytest.mark.slow
def test_the_document_is_what_the_program_prints():
  assert program('summary', '--table').stdout == (ROOT / 'docs' / 'models.md').read_text(encoding='utf-8')
