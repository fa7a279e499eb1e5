"""SQuAD 1.1: a teacher fine-tuned for question answering, distilled into TinyBERT4. 2.0: task="squad2".

    tinybert finetune --model BERT --task squad --data SQuAD --batch-size 12 --epochs 2 --out runs/squad-teacher
    tinybert run experiments/squad.py --out runs/squad-tinybert4

Paths are relative to the current directory: train-v1.1.json and dev-v1.1.json in SQuAD/, the teacher in runs/, and a
general TinyBERT from `tinybert pretrain` in runs/general (the paper's start). As in the paper, the prediction stage
reads the original questions, and here so does the stage before it: sentences are augmented, contexts are not.

Not run in full: neither the files nor BERT_BASE's weights were at hand. The paper's dev EM/F1: BERT_BASE 80.7/88.4,
TinyBERT4 72.7/82.1.
"""

import tinybert_jax as tb

experiment = tb.Experiment(
    task="squad",
    source=tb.DataSource(data="SQuAD"),
    model="runs/general/student",
    teacher="runs/squad-teacher/student",
    stages=(
        tb.Stage(tb.Transformer(), epochs=3, batch_size=16, learning_rate=5e-5, schedule="constant"),
        tb.Stage(tb.Prediction(), epochs=3, batch_size=16, learning_rate=3e-5),
    ),
    max_length=384,
)
