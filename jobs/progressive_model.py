"""What a progressive run saves: a pipeline of scikit-learn's own classes, which loads where these jobs are not.

    model = run.model()
    model.predict_proba([{"x1": 0.3, "x2": -1.2, "colour": "red"}])     # [[P(y=0), P(y=1)]]

Its steps: variables to numbers and dummies, their products, the columns these are hashed to (hashing is a projection
with one 1 or -1 for each term, and what SparseRandomProjection calls its components is that matrix), the classifier.
A category that was never seen in training counts for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from progressive_stream import HashedSpace
from scipy.sparse import csc_matrix, csr_matrix
from sklearn.base import clone
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import PolynomialFeatures
from sklearn.random_projection import SparseRandomProjection


def steps_before(space: HashedSpace, degree: int) -> Pipeline:
    """From the variables of a row to its hashed columns; the same for all classifiers of a space."""
    examples = [{factor: 1.0} for term in space.seen for factor in term]
    inputs = DictVectorizer().fit(examples)
    products = PolynomialFeatures(degree, include_bias=False).fit(inputs.transform(examples[:1]))
    n_terms = products.n_output_features_
    places = [
        _place(sorted(inputs.vocabulary_[factor] for factor in term), len(inputs.vocabulary_)) for term in space.seen
    ]
    columns, signs = zip(*space.seen.values(), strict=True)
    hashed = SparseRandomProjection(space.n_features)
    hashed.components_ = csc_matrix((signs, (columns, places)), shape=(space.n_features, n_terms))
    hashed.n_components_, hashed.n_features_in_ = hashed.components_.shape
    return Pipeline([("inputs", inputs), ("products", products), ("hashed", hashed)])


def whole(before: Pipeline, classifier: SGDClassifier, space: HashedSpace) -> Pipeline:
    """The classifier, which was trained on the columns that were seen, on all columns and with the steps before it."""
    full = clone(classifier)
    vars(full).update(vars(classifier))
    full.n_features_in_ = space.n_features
    coefficients = classifier.coef_[0]
    there = np.flatnonzero(coefficients)
    shape = (1, space.n_features)
    full.coef_ = csr_matrix((coefficients[there], (np.zeros_like(there), space.columns[there])), shape=shape)
    return Pipeline([*before.steps, ("classifier", full)])


def _place(factors: Sequence[int], n_inputs: int) -> int:
    """Where PolynomialFeatures has the product of these inputs (ascending): smaller degrees first, then in the order of
    combinations with replacement, of which there are comb(n + d - 1, d).
    """
    degree = len(factors)
    smaller = sum(math.comb(n_inputs + d - 1, d) for d in range(1, degree))
    after = sum(math.comb(n_inputs + degree - 2 - (factor + i), degree - i) for i, factor in enumerate(factors))
    return smaller + math.comb(n_inputs + degree - 1, degree) - 1 - after
