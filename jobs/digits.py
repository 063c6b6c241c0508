"""Tell handwritten digits apart: train on scikit-learn's 8x8 images, print the score as JSON, save the model.

Nothing in here knows about cloudrun. `python jobs/digits.py --C 0.5` does the same on this computer.
"""

from __future__ import annotations

import argparse
import json

import joblib
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--C", type=float, default=0.1, help="inverse strength of the l2 penalty")
    parser.add_argument("--seed", type=int, default=0, help="of the split into training and test images")
    args = parser.parse_args()

    images, digits = load_digits(return_X_y=True)  # (1797, 64) intensities 0 to 16; (1797,) labels 0 to 9
    train_x, test_x, train_y, test_y = train_test_split(images, digits, random_state=args.seed, stratify=digits)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=args.C, max_iter=1000))
    print(f"training on {len(train_y)} images", flush=True)
    model.fit(train_x, train_y)

    joblib.dump(model, "digits.joblib")
    scores = {
        "accuracy": accuracy_score(test_y, model.predict(test_x)),
        "log_loss": log_loss(test_y, model.predict_proba(test_x)),
    }
    print(json.dumps(scores))


if __name__ == "__main__":
    main()
