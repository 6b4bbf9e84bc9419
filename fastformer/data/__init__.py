"""Vocabulary, expressions and examples of the digit task.

Batches are in `fastformer.data.batches`: reading an expression needs none of what they import.
"""

from fastformer.data.digits import DigitExamples, DigitTask, Splits, generate, split
from fastformer.data.expressions import OPERATIONS, Expression, parse_expression
from fastformer.data.vocabulary import DIGIT_TOKENS, EOS, PAD, decode, encode

__all__ = [
    "DIGIT_TOKENS",
    "EOS",
    "OPERATIONS",
    "PAD",
    "DigitExamples",
    "DigitTask",
    "Expression",
    "Splits",
    "decode",
    "encode",
    "generate",
    "parse_expression",
    "split",
]
